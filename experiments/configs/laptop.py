"""Sparse mixture of experts for two CPU cores: the preset of `make demo`.

Run:      python -m experiments.main --config=experiments/configs/laptop.py --workdir=runs/laptop
Twins:    experiments/configs/laptop.py:dense_active, experiments/configs/laptop.py:dense_total
Raw weights, as the article has them: --config.model.router_weights=raw
Measured: 1.681 held-out bits per byte (a token bigram 1.763, gzip -9 2.251) after 202 s with
          evaluation, 2 CPU cores, jax 0.10.2, 2026-11-25 (docs/claims.md).
"""

from ml_collections import config_dict

from experiments import presets


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; variants: dense_active, dense_total."""
    config = config_dict.ConfigDict()
    config.seed = 0
    config.model = config_dict.ConfigDict(
        dict(
            vocab_size=4096,
            context_length=1024,
            num_layers=3,
            model_dim=128,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            rope_base=10_000.0,
            attention="local_global",
            block_size=64,
            attention_kernel="tiles",
            num_summaries=4,
            num_experts=32,
            num_groups=8,
            top_groups=4,
            top_k=4,
            num_shared_experts=0,
            expert_hidden_dim=64,
            router_scores="softmax",
            router_weights="renormalized",
            router_scale=1.0,
            balance="loss",
            load_balance_weight=0.03,
            router_z_weight=0.001,
            bias_update_rate=0.0,
            dispatch="dropless",
            capacity_factor=0.0,
            expert_kernel="auto",
            tie_embeddings=False,
            norm_eps=1e-6,
            remat="none",
            scan_unroll=1,
            compute_dtype="float32",
        )
    )
    config.mesh = config_dict.ConfigDict(
        dict(data=1, expert=1, model=1, exchange="bounded", rows_factor=1.25)
    )
    config.data = config_dict.ConfigDict(
        dict(
            source="stdlib",
            path=presets.optional(),
            field=presets.optional(),
            prompt_field=presets.optional(),
            max_bytes=presets.optional(),
            tokenizer="bpe",
            tokenizer_path=presets.optional(),
            bpe_vocab_size=presets.optional(4096),
            heldout_fraction=0.05,
            sequence_length=256,
        )
    )
    config.optimizer = config_dict.ConfigDict(
        dict(
            name="muon",
            learning_rate=0.01,
            muon_learning_rate=0.02,
            warmup_steps=20,
            final_fraction=0.1,
            weight_decay=0.01,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            clip_norm=1.0,
        )
    )
    config.train = config_dict.ConfigDict(
        dict(
            num_steps=260,
            batch_size=8,
            num_microbatches=1,
            log_every=10,
            eval_every=65,
            eval_rows=48,
            checkpoint_every=65,
            keep_checkpoints=2,
            restore_step=presets.optional(),
            start_from=presets.optional(),
            profile_at=presets.optional(),
            profile_steps=3,
        )
    )
    config.eval = config_dict.ConfigDict(
        dict(
            num_rows=presets.optional(320),
            batch_size=16,
            prompt="def ",
            sample_tokens=128,
            temperature=0.8,
        )
    )
    return presets.with_variant(config, variant, {})
