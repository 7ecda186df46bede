"""A few hundred million parameters, 128 experts in 8 groups of 16: minutes on one GPU.

429 M parameters of which 31 M are active for a token; the heads are those of `r1_12b`.

Run:      python -m experiments.main --config=experiments/configs/gpu_small.py \
            --workdir=runs/gpu_small
Twins:    experiments/configs/gpu_small.py:dense_active,
          experiments/configs/gpu_small.py:dense_total
Mesh:     as it is on several GPUs (two have run it, `python -m benchmarks.mesh_step`);
          experiments/configs/gpu_small.py:capacity, with capacity 1.25, on several TPUs, where
          dropless experts have no kernel
Measured: held-out loss 1.888 (seed 0), 248,000 tokens/s, 2026-11-28; :capacity 1.888 and 1.920
          (seeds 0 and 1), 202,800 tokens/s, the dense twin of the same active size 1.994 and 2.020,
          2026-11-23; H200s, jax 0.11.2 (`python -m benchmarks.moe_vs_dense`, docs/claims.md).
"""

from ml_collections import config_dict

from experiments import presets


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; variants: capacity, dense_active, dense_total."""
    config = config_dict.ConfigDict()
    config.seed = 0
    config.model = config_dict.ConfigDict(
        dict(
            vocab_size=16384,
            context_length=8192,
            num_layers=8,
            model_dim=512,
            num_heads=16,
            num_kv_heads=2,
            head_dim=64,
            rope_base=10_000.0,
            attention="local_global",
            block_size=256,
            attention_kernel="tiles",
            num_summaries=8,
            num_experts=128,
            num_groups=8,
            top_groups=4,
            top_k=4,
            num_shared_experts=0,
            expert_hidden_dim=256,
            router_scores="softmax",
            router_weights="renormalized",
            router_scale=1.0,
            balance="loss",
            load_balance_weight=0.1,
            router_z_weight=0.001,
            bias_update_rate=0.0,
            dispatch="dropless",
            capacity_factor=0.0,
            expert_kernel="auto",
            tie_embeddings=False,
            norm_eps=1e-6,
            remat="none",
            scan_unroll=1,
            compute_dtype="bfloat16",
        )
    )
    config.mesh = config_dict.ConfigDict(
        dict(data=1, expert=1, model=1, exchange="bounded", rows_factor=1.25)
    )
    config.data = config_dict.ConfigDict(
        dict(
            source="packages",
            path=presets.optional(),
            field=presets.optional(),
            prompt_field=presets.optional(),
            max_bytes=presets.optional(),
            tokenizer="bpe",
            tokenizer_path=presets.optional(),
            bpe_vocab_size=presets.optional(16384),
            heldout_fraction=0.02,
            sequence_length=1024,
        )
    )
    config.optimizer = config_dict.ConfigDict(
        dict(
            name="muon",
            learning_rate=0.003,
            muon_learning_rate=0.02,
            warmup_steps=100,
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
            num_steps=1100,
            batch_size=32,
            num_microbatches=1,
            log_every=20,
            eval_every=275,
            eval_rows=256,
            checkpoint_every=550,
            keep_checkpoints=2,
            restore_step=presets.optional(),
            start_from=presets.optional(),
            profile_at=presets.optional(),
            profile_steps=3,
        )
    )
    config.eval = config_dict.ConfigDict(
        dict(
            num_rows=presets.optional(1024),
            batch_size=32,
            prompt="def ",
            sample_tokens=128,
            temperature=0.8,
        )
    )
    return presets.with_variant(config, variant, {"capacity": presets.CAPACITY})
