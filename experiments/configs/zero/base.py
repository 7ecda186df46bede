"""Pretraining on the unlabelled text: the recipe's base model.

Run: python -m experiments.main --config=experiments/configs/zero/base.py \
       --workdir=runs/zero/seed_0/base
"""

from ml_collections import config_dict

from experiments import presets
from experiments.configs.zero import shared


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; variants: dense_active, dense_total."""
    config = config_dict.ConfigDict()
    config.seed = 0
    config.model = shared.model()
    config.mesh = shared.mesh()
    config.data = config_dict.ConfigDict(
        dict(
            source="jsonl",
            path=presets.optional(f"{shared.ROOT}/problems/text.jsonl"),
            field=presets.optional("text"),
            prompt_field=presets.optional(),
            max_bytes=presets.optional(),
            tokenizer="tagged_bytes",
            tokenizer_path=presets.optional(),
            bpe_vocab_size=presets.optional(),
            heldout_fraction=0.02,
            sequence_length=96,
        )
    )
    config.optimizer = config_dict.ConfigDict(
        dict(
            name="muon",
            learning_rate=0.01,
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
    config.train = config_dict.ConfigDict(
        dict(
            num_steps=1200,
            batch_size=16,
            num_microbatches=1,
            log_every=50,
            eval_every=400,
            eval_rows=128,
            checkpoint_every=400,
            keep_checkpoints=1,
            restore_step=presets.optional(),
            start_from=presets.optional(),
            profile_at=presets.optional(),
            profile_steps=3,
        )
    )
    config.eval = config_dict.ConfigDict(
        dict(
            num_rows=presets.optional(128),
            batch_size=16,
            prompt="941+367=",
            sample_tokens=40,
            temperature=1.0,
        )
    )
    return presets.with_variant(config, variant, {})
