"""GRPO from the base, by the rule: groups of eight answers, no critic.

Run: python -m experiments.main --config=experiments/configs/zero/grpo.py \
       --workdir=runs/zero/seed_0/grpo
"""

from ml_collections import config_dict

from experiments import presets
from experiments.configs.zero import shared


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; there are no variants."""
    presets.check_variant(variant, {"": None})
    config = config_dict.ConfigDict()
    config.stage = "grpo"
    config.seed = 0
    config.model = shared.model()
    config.mesh = shared.mesh()
    config.files = shared.files(reward=False)
    config.rollout = shared.rollout(num_prompts=16, samples_per_prompt=8)
    config.rewards = config_dict.ConfigDict(dict(learned=0.0, right=1.0, format=0.0))
    config.kl = config_dict.ConfigDict(
        dict(
            place="loss",
            coefficient=0.02,
            target=presets.optional(),
            horizon=presets.optional(),
        )
    )
    config.update = config_dict.ConfigDict(dict(clip=0.2, num_epochs=1, num_minibatches=2))
    config.group = config_dict.ConfigDict(dict(divide_by_std=True))
    config.optimizer = shared.policy_optimizer(learning_rate=3e-4)
    config.train = shared.stage_train(num_steps=40, eval_every=20)
    return config
