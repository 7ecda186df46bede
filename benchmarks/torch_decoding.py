"""Seconds a token of transformers' Qwen3Moe: the peer of `benchmarks.decoding`, which starts it.

Run: python -m benchmarks.decoding --peer-python=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS

A program of its own, since nothing here depends on torch; it imports neither jax nor deepseek_jax.
It reads a JSON request from its first argument and writes what it measured to its second.
"""

import time
from typing import Any

import torch
import transformers

from benchmarks import torch_measuring, torch_model_step

# Arguments of `generate`. The experts are `grouped_mm`: `batched_mm` copies matrices for each token
# of a prompt, 25 GB a layer for 512 tokens.
WAYS: dict[str, dict[str, Any]] = {
    "transformers": {},
    "transformers, static cache": {"cache_implementation": "static"},
}


def main() -> None:
    """Answers one request."""
    torch_measuring.answer(
        lambda request: {
            "measured": [found for name in WAYS for found in measure(request, name)],
            "transformers": transformers.__version__,
        }
    )


@torch.inference_mode()
def measure(request: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Seconds a token of all batches, one way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch_model_step.make(request, "grouped_mm", device).eval()
    found = []
    for batch in request["batches"]:
        shape = (batch, request["prompt"])
        prompts = torch.randint(0, request["vocab"], shape, device=device)

        def run(num_new: int, prompts: torch.Tensor = prompts) -> float:
            started = time.perf_counter()
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                pad_token_id=0,
                **WAYS[name],
            )
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        def best(num_new: int) -> float:
            run(num_new)
            return min(run(num_new) for _ in range(request["num_runs"]))

        few, many = request["few"], request["many"]
        took = (best(many) - best(few)) / (many - few)
        found.append({"batch": batch, "name": name, "seconds": took})
    return found


if __name__ == "__main__":
    main()
