"""Seconds of transformers' Qwen3Moe: the peer of `benchmarks.model_step`, which starts it.

Run: python -m benchmarks.model_step --peer-python=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS

A program of its own, since nothing here depends on torch; it imports neither jax nor
deepseek_jax. It reads a JSON request from its first argument (sizes, and which of its ways to
take) and writes what it measured to its second. Parameters, gradients and activations are
bfloat16. The loss is the library's, without its balancing loss, which would make it slower.
"""

import gc
import time
from typing import Any

import torch
import transformers

from benchmarks import torch_measuring

# How the experts are computed, and whether torch.compile compiles the model.
WAYS = {
    "grouped_mm, compiled": ("grouped_mm", True),
    "grouped_mm": ("grouped_mm", False),
    "eager": ("eager", False),
}


def main() -> None:
    """Answers one request."""
    torch_measuring.answer(measured)


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """The ways one after the other, each with the memory to itself."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for way in request["ways"]:
        found.append(measure(request, way, device))
        gc.collect()
        torch.compiler.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
    return {
        "measured": found,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def measure(request: dict[str, Any], way: str, device: str) -> dict[str, Any]:
    """Seconds, memory and loss of one way."""
    torch.manual_seed(0)
    kernel, is_compiled = WAYS[way]
    model = make(request, kernel, device)
    if is_compiled:
        model.forward = torch.compile(model.forward)
    shape = (request["batch"], request["length"])
    tokens = torch.randint(0, request["vocab"], shape, device=device)

    def step() -> float:
        started = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.detach())
        model.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    losses: list[torch.Tensor] = []
    first = step()
    for _ in range(request["warmup"]):
        step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [step() for _ in range(request["steps"])]
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "name": f"transformers, {way}",
        "seconds": seconds,
        "first_seconds": first,
        "peak_bytes": peak,
        "loss": float(losses[0]),
        "num_parameters": sum(each.numel() for each in model.parameters()),
    }


def make(request: dict[str, Any], kernel: str, device: str) -> Any:
    """The model, initialised as the library does."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=request["vocab"],
        hidden_size=request["dim"],
        num_hidden_layers=request["layers"],
        num_attention_heads=request["heads"],
        num_key_value_heads=request["kv_heads"],
        head_dim=request["head_dim"],
        moe_intermediate_size=request["hidden"],
        num_experts=request["experts"],
        num_experts_per_tok=request["top_k"],
        norm_topk_prob=True,
        decoder_sparse_step=1,
        max_position_embeddings=request["length"],
        tie_word_embeddings=False,
    )
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.Qwen3MoeForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.set_experts_implementation(kernel)
    return model


if __name__ == "__main__":
    main()
