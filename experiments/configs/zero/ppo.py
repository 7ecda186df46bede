"""PPO from the base: against the reward model, or by the rule (`ppo.py:rule`).

Run: python -m experiments.main --config=experiments/configs/zero/ppo.py \
       --workdir=runs/zero/seed_0/ppo
Variants: rule (a right answer earns 1), no_kl (the reward model, nothing that holds it back).
"""

from ml_collections import config_dict

from experiments import presets
from experiments.configs.zero import shared

_VARIANTS = {
    "": {},
    "rule": {"rewards.learned": 0.0, "rewards.right": 1.0, "files.reward_from": None},
    "no_kl": {
        "kl.coefficient": 0.0,
        "optimizer.learning_rate": 1e-3,
        "critic.learning_rate": 3e-3,
    },
}


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; variants: rule, no_kl."""
    presets.check_variant(variant, _VARIANTS)
    config = config_dict.ConfigDict()
    config.stage = "ppo"
    config.seed = 0
    config.model = shared.model()
    config.mesh = shared.mesh()
    config.files = shared.files(reward=True)
    config.rollout = shared.rollout(num_prompts=128, samples_per_prompt=1)
    config.rewards = config_dict.ConfigDict(dict(learned=1.0, right=0.0, format=0.0))
    config.kl = config_dict.ConfigDict(
        dict(
            place="reward",
            coefficient=0.05,
            target=presets.optional(),
            horizon=presets.optional(),
        )
    )
    config.update = config_dict.ConfigDict(dict(clip=0.2, num_epochs=2, num_minibatches=2))
    config.critic = config_dict.ConfigDict(
        dict(
            discount=1.0,
            gae_lambda=0.95,
            whiten=True,
            value_clip=presets.optional(),
            learning_rate=1e-3,
            initial_value=0.3,
        )
    )
    config.optimizer = shared.policy_optimizer(learning_rate=3e-4)
    config.train = shared.stage_train(num_steps=30, eval_every=15)
    config.update_from_flattened_dict(_VARIANTS[variant])
    return config
