"""A reward model on people's preferences (HH-RLHF), from a run of `gpu_small`; or of `laptop`.

Run:      DEEPSEEK_JAX_DATA=FOLDER python -m experiments.main \
            --config=experiments/configs/preferences.py --workdir=runs/preferences \
            --config.files.start_from=runs/gpu_small
          python -m experiments.preferences --workdir=runs/preferences
Variant:  experiments/configs/preferences.py:laptop, from a run of experiments/configs/laptop.py
Own file: --config.files.pairs=my/pairs.jsonl, a line of which is
          {"chosen": dialogue, "rejected": dialogue}

FOLDER has hh_rlhf/harmless-base-test.jsonl.gz in it. The model is that of the run it starts from,
but dropless: a dialogue's score must not depend on the others of its batch, where the preferred
sides stand first and would have the first claim to an expert's rows.
"""

from ml_collections import config_dict

from experiments import presets
from experiments.configs import gpu_small, laptop


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; variants: laptop."""
    start = {"": gpu_small, "laptop": laptop}
    presets.check_variant(variant, start)
    is_small = variant == "laptop"
    config = config_dict.ConfigDict()
    config.stage = "preferences"
    config.seed = 0
    config.model = start[variant].get_config().model
    config.mesh = config_dict.ConfigDict(
        dict(data=1, expert=1, model=1, exchange="exact", rows_factor=0.0)
    )
    config.files = config_dict.ConfigDict(
        dict(pairs=presets.optional(), start_from="runs/laptop" if is_small else "runs/gpu_small")
    )
    config.pairs = config_dict.ConfigDict(
        dict(
            sequence_length=512 if is_small else 1024,
            heldout_fraction=0.2,
            batch_size=8 if is_small else 16,
            centering_weight=1e-3,
            too_long="leave_out",
            blank="leave_out",
            equal="leave_out",
        )
    )
    config.optimizer = config_dict.ConfigDict(
        dict(
            name="adamw",
            learning_rate=3e-4 if is_small else 1e-4,
            muon_learning_rate=0.0,
            warmup_steps=10,
            final_fraction=0.1,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_norm=1.0,
        )
    )
    config.train = config_dict.ConfigDict(
        dict(
            num_steps=230,
            eval_every=46,
            checkpoint_every=115,
            keep_checkpoints=1,
            restore_step=presets.optional(),
        )
    )
    return config
