"""The smallest real run: a folder of a few texts, two layers, four experts."""

import pathlib

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.run_spec import DataSpec, EvalSpec, OptimizerSpec, RunSpec, TrainSpec

MODEL = {
    "vocab_size": 260,
    "context_length": 16,
    "num_layers": 2,
    "model_dim": 8,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "rope_base": 1e4,
    "attention": "local_global",
    "block_size": 8,
    "attention_kernel": "tiles",
    "num_summaries": 1,
    "num_experts": 4,
    "num_groups": 2,
    "top_groups": 1,
    "top_k": 2,
    "num_shared_experts": 0,
    "expert_hidden_dim": 8,
    "router_scores": "sigmoid",
    "router_weights": "renormalized",
    "router_scale": 1.0,
    "balance": "bias",
    "load_balance_weight": 0.0,
    "router_z_weight": 0.0,
    "bias_update_rate": 0.01,
    "dispatch": "dropless",
    "capacity_factor": 0.0,
    "expert_kernel": "loop",
    "tie_embeddings": False,
    "norm_eps": 1e-6,
    "remat": "none",
    "scan_unroll": 1,
    "compute_dtype": "float32",
}
DENSE = {
    "num_experts": 1,
    "num_groups": 1,
    "top_k": 1,
    "router_scores": "softmax",
    "router_weights": "raw",
    "balance": "none",
    "bias_update_rate": 0.0,
}
DATA = {
    "source": "folder",
    "path": "unset",
    "field": None,
    "prompt_field": None,
    "max_bytes": None,
    "tokenizer": "bytes",
    "tokenizer_path": None,
    "bpe_vocab_size": None,
    "heldout_fraction": 0.25,
    "sequence_length": 16,
}
OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 1e-2,
    "muon_learning_rate": 0.0,
    "warmup_steps": 2,
    "final_fraction": 0.1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "clip_norm": 1.0,
}
TRAIN = {
    "num_steps": 12,
    "batch_size": 4,
    "num_microbatches": 2,
    "log_every": 3,
    "eval_every": 6,
    "eval_rows": 3,
    "checkpoint_every": 4,
    "keep_checkpoints": 3,
    "restore_step": None,
    "start_from": None,
    "profile_at": None,
    "profile_steps": 1,
}
MESH = {"data": 1, "expert": 1, "model": 1, "exchange": "exact", "rows_factor": 0.0}
EVAL = {
    "num_rows": None,
    "batch_size": 4,
    "prompt": "a",
    "sample_tokens": 4,
    "temperature": 0.0,
}


def write_corpus(directory: pathlib.Path) -> pathlib.Path:
    """Eight short texts, written once."""
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(8):
        words = " ".join(f"{index} and {number * index}" for number in range(12))
        (directory / f"{index}.txt").write_text(f"Text {index}: {words}.\n")
    return directory


def run_spec(
    corpus: pathlib.Path, *, model=None, mesh=None, data=None, optimizer=None, train=None
) -> RunSpec:
    """The spec with some settings replaced."""
    return RunSpec(
        seed=7,
        model=ModelSpec(**(MODEL | (model or {}))),
        mesh=MeshSpec(**(MESH | (mesh or {}))),
        data=DataSpec(**(DATA | {"path": str(corpus)} | (data or {}))),
        optimizer=OptimizerSpec(**(OPTIMIZER | (optimizer or {}))),
        train=TrainSpec(**(TRAIN | (train or {}))),
        eval=EvalSpec(**EVAL),
    )
