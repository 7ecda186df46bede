"""A decoder that is told its task in words: twelve tasks on the same four digits.

Run: python -m experiments.main --config=experiments/configs/steering.py \
       --workdir=runs/steering
"""

from ml_collections import config_dict

from deepseek_jax.core.steering_spec import TASK_NAMES
from experiments import presets
from experiments.configs.zero import shared

_OWN = {
    "": {},
    "router_only": {"vector.modulates_blocks": False},
    "blocks_only": {"vector.shifts_router": False},
    "compositions": {"tasks.trains_compositions": True},
}


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; variants: router_only, blocks_only, compositions."""
    presets.check_variant(variant, _OWN)
    config = config_dict.ConfigDict()
    config.stage = "steering"
    config.seed = 0
    config.model = shared.model()
    # Prompts of 6 tokens in blocks of 8, answers of up to 9.
    config.model.update(dict(context_length=24, attention="full", block_size=8, num_summaries=0))
    config.mesh = shared.mesh()
    config.tasks = config_dict.ConfigDict(
        dict(
            names=",".join(TASK_NAMES),
            num_digits=4,
            num_train=8000,
            num_heldout=500,
            descriptions_per_step=24,
            inputs_per_description=4,
            description_dropout=0.1,
            trains_compositions=False,
        )
    )
    config.vector = config_dict.ConfigDict(
        dict(
            dim=64,
            description_length=80,
            encoder_dim=64,
            encoder_layers=2,
            encoder_window=5,
            num_queries=4,
            shifts_router=True,
            modulates_blocks=True,
        )
    )
    config.optimizer = config_dict.ConfigDict(
        dict(
            name="muon",
            learning_rate=0.005,
            muon_learning_rate=0.01,
            warmup_steps=60,
            final_fraction=0.05,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.98,
            eps=1e-8,
            clip_norm=1.0,
        )
    )
    config.train = shared.stage_train(num_steps=1500, eval_every=250)
    config.update_from_flattened_dict(_OWN[variant])
    return config
