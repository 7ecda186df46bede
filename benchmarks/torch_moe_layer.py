"""Seconds of transformers' experts on torch: the peer of `benchmarks.moe_layer`, which starts it.

Run: python -m benchmarks.moe_layer --peer-python=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS

Qwen3MoeExperts of transformers 5 or later with its `grouped_mm` implementation, as it is and under
`torch.compile`. A program of its own, since nothing here depends on torch; it imports neither jax
nor deepseek_jax. It reads a JSON request from its first argument and writes what it measured to
its second.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.qwen3_moe import modeling_qwen3_moe

from benchmarks import moe_layer_problem, torch_measuring
from benchmarks.moe_layer_problem import Layer, Shape


def main() -> None:
    """Answers one request."""
    torch_measuring.answer(
        lambda request: {
            "measured": [
                measure(problem, request, is_compiled=is_compiled)
                for problem in request["problems"]
                for is_compiled in (False, True)
            ],
            "transformers": transformers.__version__,
        }
    )


def make_experts(shape: Shape, request: dict[str, Any], implementation: str = "grouped_mm") -> Any:
    """The module with drawn parameters."""
    config = transformers.Qwen3MoeConfig(
        hidden_size=shape.model_dim,
        moe_intermediate_size=shape.width,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        experts_implementation=implementation,
    )
    with torch.device(request["device"]):
        experts = modeling_qwen3_moe.Qwen3MoeExperts(config)
    experts = experts.to(getattr(torch, request["dtype"]))
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_().mul_(0.03)
    return experts


def measure(
    problem: dict[str, Any], request: dict[str, Any], *, is_compiled: bool
) -> dict[str, Any]:
    """Seconds, errors and the most memory of one problem."""
    shape = Shape(*problem["shape"])
    ids, shares = moe_layer_problem.draw_routing(shape, problem["routing"])
    like = {"device": request["device"], "dtype": getattr(torch, request["dtype"])}
    experts = make_experts(shape, request)
    torch.compiler.reset()
    layer = torch.compile(experts) if is_compiled else experts
    tokens = torch.randn(shape.num_tokens, shape.model_dim, **like).requires_grad_()
    # As its own router gives them: ids of torch.topk, weights in the dtype of the tokens.
    expert_ids = torch.from_numpy(ids).to(request["device"], torch.int64)
    weights = torch.from_numpy(shares.copy()).to(**like).requires_grad_()
    d_out = torch.randn(shape.num_tokens, shape.model_dim, **like)
    wanted = (tokens, weights, experts.gate_up_proj, experts.down_proj)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return layer(tokens, expert_ids, weights)

    def both() -> Any:
        out = layer(tokens, expert_ids, weights)
        return out.detach(), *torch.autograd.grad(out, wanted, d_out)

    out, *gradients = both()
    found = _found(experts, tokens, out, d_out, gradients)
    measured = {
        "problem": problem,
        "name": "transformers, compiled" if is_compiled else "transformers",
        "errors": moe_layer_problem.errors(ids, shares, found),
    }
    del out, gradients, found
    held = bytes_held(lambda: layer(tokens, expert_ids, weights), both, request)
    return (
        measured
        | held
        | {
            "forward_seconds": torch_measuring.seconds(forward, request),
            "both_seconds": torch_measuring.seconds(both, request),
        }
    )


def bytes_held(
    layer: Callable[[], torch.Tensor], both: Callable[[], Any], request: dict[str, Any]
) -> dict[str, int | None]:
    """The most that is allocated during both passes, and what the forward pass keeps for the other.

    The former includes arguments and results, the latter neither.
    """
    if request["device"] != "cuda":
        return {"num_bytes": None, "num_kept_bytes": None}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    out = layer()
    kept = torch.cuda.memory_allocated() - before - out.nbytes
    del out
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    return {"num_bytes": torch.cuda.max_memory_allocated(), "num_kept_bytes": kept}


def _found(experts: Any, tokens: Any, out: Any, d_out: Any, gradients: list[Any]) -> Layer:
    d_tokens, d_weights, d_gate_up, d_down = gradients
    return Layer(
        tokens=_reader(tokens),
        out=_reader(out),
        d_out=_reader(d_out),
        d_tokens=_reader(d_tokens),
        d_weights=_reader(d_weights),
        matrices=lambda expert: matrices_of(experts.gate_up_proj, experts.down_proj, expert),
        d_matrices=lambda expert: matrices_of(d_gate_up, d_down, expert),
    )


def _reader(x: torch.Tensor) -> Callable[[Any], Any]:
    return lambda index: array(x[torch.as_tensor(np.asarray(index), device=x.device)])


def matrices_of(gate_up: torch.Tensor, down: torch.Tensor, expert: int) -> tuple[Any, Any, Any]:
    """Gate, up and down of one expert, as float64."""
    gate, up = (array(half).T for half in gate_up[expert].chunk(2))
    return gate, up, array(down[expert]).T


def array(x: torch.Tensor) -> Any:
    """As numpy's float64."""
    return x.detach().double().cpu().numpy()


if __name__ == "__main__":
    main()
