"""Additions of three digits, and unlabelled text about them: the recipe's first stage.

Run: python -m experiments.main --config=experiments/configs/zero/problems.py \
       --workdir=runs/zero/seed_0/problems
"""

from ml_collections import config_dict

from experiments import presets


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; there are no variants."""
    presets.check_variant(variant, {"": None})
    config = config_dict.ConfigDict()
    config.stage = "problems"
    config.seed = 0
    config.problems = config_dict.ConfigDict(
        dict(
            task="arithmetic",
            min_size=3,
            max_size=3,
            num_text=60_000,
            num_reward=2500,
            num_policy=4000,
            num_validation=256,
            num_test=1000,
            # A third of the answers are right by construction: see docs/claims.md.
            share_worked=0.22,
            share_careless=0.33,
            share_guess=0.45,
            share_slip=0.0,
        )
    )
    return config
