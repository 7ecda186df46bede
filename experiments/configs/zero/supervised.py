"""The supervised arm: the base fine-tuned on right solutions of the policy's own problems.

Run: python -m experiments.main --config=experiments/configs/zero/supervised.py \
       --workdir=runs/zero/seed_0/supervised
"""

from ml_collections import config_dict

from experiments import presets
from experiments.configs.zero import base, shared


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; there are no variants."""
    presets.check_variant(variant, {"": None})
    config = base.get_config("")
    config.data.path = f"{shared.ROOT}/problems/solutions.jsonl"
    config.data.prompt_field = "prompt"
    config.data.heldout_fraction = 0.05
    config.optimizer.update(dict(learning_rate=1e-3, muon_learning_rate=2e-3, warmup_steps=5))
    config.train.update(
        dict(num_steps=80, log_every=10, eval_every=80, eval_rows=64, checkpoint_every=80)
    )
    config.train.start_from = f"{shared.ROOT}/base"
    return config
