"""Seconds of transformers' experts for few tokens: the peer of `benchmarks.moe_decoding`.

Run: python -m benchmarks.moe_decoding --peer-python=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS

A program of its own, since nothing here depends on torch; it imports neither jax nor deepseek_jax.
It reads a JSON request from its first argument and writes what it measured to its second.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks import moe_layer_problem, torch_measuring, torch_moe_layer
from benchmarks.moe_layer_problem import Shape

IMPLEMENTATIONS = ("grouped_mm", "batched_mm")
# Tokens past which `batched_mm`, which copies the matrices of every assignment, is left out.
MOST_COPIED = 64


def main() -> None:
    """Answers one request."""
    torch_measuring.answer(
        lambda request: {
            "measured": [
                measure(Shape(*shape), request, implementation, is_compiled=is_compiled)
                for shape in request["shapes"]
                for implementation, is_compiled in itertools.product(IMPLEMENTATIONS, (False, True))
                if implementation != "batched_mm" or shape[0] <= MOST_COPIED
            ],
            "transformers": transformers.__version__,
        }
    )


@torch.no_grad()
def measure(
    shape: Shape, request: dict[str, Any], implementation: str, *, is_compiled: bool
) -> dict[str, Any]:
    """Seconds of a call, and its error."""
    like = {"device": request["device"], "dtype": getattr(torch, request["dtype"])}
    experts = torch_moe_layer.make_experts(shape, request, implementation)
    torch.compiler.reset()
    layer = torch.compile(experts) if is_compiled else experts
    tokens = torch.randn(shape.num_tokens, shape.model_dim, **like)
    drawn = [
        moe_layer_problem.draw_routing(shape, "even", seed) for seed in range(request["num_calls"])
    ]
    routings = [
        (torch.from_numpy(ids).to(request["device"], torch.int64), torch.from_numpy(w).to(**like))
        for ids, w in drawn
    ]

    def calls() -> list[torch.Tensor]:
        return [layer(tokens, *routing) for routing in routings]

    answers = calls()[0]
    is_gpu = request["device"] != "cpu"
    # Of float32 this one waits for the host, which no graph can.
    is_waiting = implementation == "grouped_mm" and request["dtype"] == "float32"
    run = _graph(calls) if is_gpu and not is_waiting else calls
    how = ", compiled" * is_compiled + ", no graph" * (is_gpu and is_waiting)
    return {
        "shape": shape,
        "name": implementation + how,
        "seconds": torch_measuring.seconds(run, request) / len(routings),
        "error": moe_layer_problem.answers_error(
            *drawn[0],
            tokens=torch_moe_layer.array(tokens),
            answers=torch_moe_layer.array(answers),
            matrices=lambda expert: torch_moe_layer.matrices_of(
                experts.gate_up_proj, experts.down_proj, expert
            ),
        ),
    }


def _graph(calls: Callable[[], Any]) -> Callable[[], Any]:
    """All calls as one CUDA graph: nothing is started from the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            calls()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    return graph.replay


if __name__ == "__main__":
    main()
