"""The reward model: pairs that the base drew, and pairs built in every style.

Run: python -m experiments.main --config=experiments/configs/zero/reward.py \
       --workdir=runs/zero/seed_0/reward
"""

from ml_collections import config_dict

from experiments import presets
from experiments.configs.zero import shared


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; there are no variants."""
    presets.check_variant(variant, {"": None})
    config = config_dict.ConfigDict()
    config.stage = "reward"
    config.seed = 0
    config.model = shared.model()
    config.mesh = shared.mesh()
    config.files = shared.files(reward=False)
    config.rollout = shared.rollout(num_prompts=64, samples_per_prompt=4)
    config.pairs = config_dict.ConfigDict(
        dict(
            num_sampled=1600,
            num_built=0,
            pairs_per_problem=2,
            heldout_fraction=0.2,
            batch_size=32,
            centering_weight=1e-3,
        )
    )
    config.optimizer = shared.policy_optimizer(learning_rate=5e-4)
    config.train = shared.stage_train(num_steps=60, eval_every=20)
    return config
