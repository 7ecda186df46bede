"""Seconds of `torch._grouped_mm`: the peer of `benchmarks.grouped_matmul`, which starts it.

Run: python -m benchmarks.grouped_matmul --peer-python=PYTHON_THAT_HAS_TORCH

A program of its own, since nothing here depends on torch; it imports neither jax nor
deepseek_jax. It reads a JSON request from its first argument (problems, dtype, device) and writes
what it measured to its second. At few rows the forward pass is many calls in one CUDA graph.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import torch_measuring


def main() -> None:
    """Answers one request."""
    torch_measuring.answer(
        lambda request: {"measured": [measure(problem, request) for problem in request["problems"]]}
    )


def measure(problem: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Errors on one problem, and seconds in the faster of two layouts of the matrices."""
    either = [measure_layout(problem, request, is_transposed=side) for side in (False, True)]
    parts = ("forward_seconds", "backward_seconds")
    return either[0] | {part: min(each[part] for each in either) for part in parts}


def measure_layout(
    problem: dict[str, Any], request: dict[str, Any], *, is_transposed: bool
) -> dict[str, Any]:
    """Matrices that lie in memory as [E, In, Out], or transposed."""
    num_rows, num_groups, num_in, num_out = problem["shape"]
    like = {"device": request["device"], "dtype": getattr(torch, request["dtype"])}
    rows = torch.randn(num_rows, num_in, **like, requires_grad=True)
    sides = (num_out, num_in) if is_transposed else (num_in, num_out)
    matrices = torch.randn(num_groups, *sides, **like) * 0.03
    weights = (matrices.transpose(-2, -1) if is_transposed else matrices).requires_grad_()
    sizes = torch.tensor(problem["group_sizes"], device=request["device"])
    ends = torch.cumsum(sizes, 0).to(torch.int32)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return torch._grouped_mm(rows, weights, ends)

    out = torch._grouped_mm(rows, weights, ends)
    d_out = torch.randn_like(out)

    def backward() -> Any:
        return torch.autograd.grad(out, (rows, weights), d_out, retain_graph=True)

    d_rows, d_weights = backward()
    took = [
        torch_measuring.seconds(call, request) / num_calls
        for call, num_calls in (
            (forward, 1) if len(problem["calls"]) == 1 else graph_of_calls(rows, weights, problem),
            (backward, 1),
        )
    ]
    return {
        "problem": problem,
        "backend": "torch",
        "forward_seconds": took[0],
        "backward_seconds": took[1],
        "errors": errors(problem["group_sizes"], rows, weights, d_out, out, d_rows, d_weights),
    }


def graph_of_calls(
    rows: Any, weights: Any, problem: dict[str, Any]
) -> tuple[Callable[[], Any], int]:
    """All calls of a problem, in one CUDA graph where there is CUDA; and how many they are."""
    ends = [
        torch.cumsum(torch.tensor(sizes, device=rows.device), 0).to(torch.int32)
        for sizes in problem["calls"]
    ]

    def calls() -> list[Any]:
        with torch.no_grad():
            return [torch._grouped_mm(rows, weights, end) for end in ends]

    if rows.device.type != "cuda":
        return calls, len(ends)
    calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = calls()
    return lambda: (graph.replay(), kept), len(ends)


def errors(
    group_sizes: list[int], rows: Any, weights: Any, d_out: Any, *found: Any
) -> dict[str, float]:
    """The largest relative error in some groups: the first and last, the smallest and largest."""
    used = [group for group, size in enumerate(group_sizes) if size]
    by_size = sorted(used, key=lambda group: group_sizes[group])
    worst = {"out": 0.0, "d_rows": 0.0, "d_weights": 0.0}
    for group in {used[0], used[-1], by_size[0], by_size[-1]}:
        start = sum(group_sizes[:group])
        mine = slice(start, start + group_sizes[group])
        x, w, y = (
            each.detach().double().cpu() for each in (rows[mine], weights[group], d_out[mine])
        )
        wanted = (x @ w, y @ w.T, x.T @ y)
        theirs = (found[0][mine], found[1][mine], found[2][group])
        for name, one, other in zip(worst, theirs, wanted, strict=True):
            error = torch.linalg.norm(one.detach().double().cpu() - other) / torch.linalg.norm(
                other
            )
            worst[name] = max(worst[name], float(error))
    return worst


if __name__ == "__main__":
    main()
