"""Contrastive pretraining beside the next token, on spans of installed Python sources.

Run:      python -m experiments.main --config=experiments/configs/contrastive.py \
            --workdir=runs/contrastive
          python -m experiments.semantics --workdir=runs/contrastive
Variants: experiments/configs/contrastive.py:without has the same spans and no contrastive term;
          :gpu and :gpu_without are minutes on one GPU, :gpu_small and
          :gpu_small_without seconds.
"""

from typing import Any

from ml_collections import config_dict

from experiments import presets

_WITHOUT: dict[str, Any] = {
    "contrastive.weight": 0.0,
    "contrastive.projection_dim": 0,
    "contrastive.temperature": 0.0,
    "contrastive.learn_temperature": False,
}
_GPU: dict[str, Any] = {
    "model.vocab_size": 16384,
    "model.num_layers": 4,
    "model.model_dim": 512,
    "model.num_heads": 8,
    "model.head_dim": 64,
    "model.expert_hidden_dim": 256,
    "model.load_balance_weight": 0.1,
    "model.compute_dtype": "bfloat16",
    "data.max_bytes": 200_000_000,
    "data.bpe_vocab_size": 16384,
    "data.heldout_fraction": 0.05,
    "contrastive.weight": 0.3,
    "contrastive.batch_size": 256,
    "contrastive.projection_dim": 256,
    "contrastive.eval_documents": 512,
    "optimizer.learning_rate": 0.003,
    "optimizer.warmup_steps": 50,
    "train.num_steps": 1400,
    "train.eval_every": 700,
    "train.checkpoint_every": 1400,
}
_GPU_SMALL = {
    **_GPU,
    "model.model_dim": 256,
    "model.num_heads": 4,
    "model.expert_hidden_dim": 128,
    "contrastive.batch_size": 128,
    "train.num_steps": 400,
    "train.eval_every": 200,
    "train.checkpoint_every": 400,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "without": _WITHOUT,
    "gpu": _GPU,
    "gpu_without": {**_GPU, **_WITHOUT},
    "gpu_small": _GPU_SMALL,
    "gpu_small_without": {**_GPU_SMALL, **_WITHOUT},
}


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the settings; variants: `VARIANTS`, dense_active, dense_total."""
    config = config_dict.ConfigDict()
    config.stage = "contrastive"
    config.seed = 0
    config.model = config_dict.ConfigDict(
        dict(
            vocab_size=4096,
            context_length=128,
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
            source="packages",
            path=presets.optional(),
            field=presets.optional(),
            prompt_field=presets.optional(),
            max_bytes=presets.optional(30_000_000),
            tokenizer="bpe",
            tokenizer_path=presets.optional(),
            bpe_vocab_size=presets.optional(4096),
            heldout_fraction=0.1,
            sequence_length=128,
        )
    )
    config.contrastive = config_dict.ConfigDict(
        dict(
            weight=0.5,
            projection_dim=128,
            temperature=0.07,
            learn_temperature=True,
            batch_size=32,
            eval_documents=128,
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
            num_steps=200,
            eval_every=50,
            checkpoint_every=100,
            keep_checkpoints=1,
            restore_step=presets.optional(),
        )
    )
    return presets.with_variant(config, variant, VARIANTS)
