"""Seconds of torch's attention: the peer of `benchmarks.attention`, which starts it.

Run: python -m benchmarks.attention --peer-python=PYTHON_THAT_HAS_TORCH

A program of its own, since nothing here depends on torch; it imports neither jax nor
deepseek_jax. It reads a JSON request from its first argument (shapes, dtype, device) and writes
what it measured to its second.
"""

from typing import Any

import torch
from torch.nn import attention, functional

from benchmarks import torch_measuring

BACKENDS = {
    "cuda": ("FLASH_ATTENTION", "CUDNN_ATTENTION"),
    "cpu": ("FLASH_ATTENTION",),
}


def main() -> None:
    """Answers one request."""
    torch_measuring.answer(measured)


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Every shape by every backend, and which were refused."""
    found, refused = [], []
    for shape in request["shapes"]:
        for backend in BACKENDS[request["device"]]:
            with attention.sdpa_kernel(getattr(attention.SDPBackend, backend)):
                try:
                    found.append(measure(shape, backend, request))
                except RuntimeError as error:
                    refused.append(f"torch {backend} on {shape}: {str(error).splitlines()[0]}")
    return {"measured": found, "refused": refused}


def measure(shape: list[int], backend: str, request: dict[str, Any]) -> dict[str, Any]:
    """Seconds and errors of one backend; tensors lie in memory as [B, L, heads, H]."""
    num_rows, length, num_heads, num_kv_heads, head_dim = shape
    like = {"device": request["device"], "dtype": getattr(torch, request["dtype"])}

    def heads(num: int) -> torch.Tensor:
        return torch.randn(num_rows, length, num, head_dim, **like).transpose(1, 2)

    query, key, value = (
        heads(num).requires_grad_() for num in (num_heads, num_kv_heads, num_kv_heads)
    )
    d_out = heads(num_heads)

    def attend() -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=num_heads != num_kv_heads
        )

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return attend()

    out = attend()

    def backward() -> Any:
        return torch.autograd.grad(out, (query, key, value), d_out, retain_graph=True)

    return {
        "shape": shape,
        "name": f"torch {backend}",
        "num_pairs": num_rows * length * (length + 1) // 2,
        "forward_seconds": torch_measuring.seconds(forward, request),
        "backward_seconds": torch_measuring.seconds(backward, request),
        "errors": errors(query, key, value, d_out, out, *backward()),
    }


def errors(query: Any, key: Any, value: Any, d_out: Any, *found: Any) -> dict[str, float]:
    """The relative errors in the first row's first key/value head."""
    group = query.shape[1] // key.shape[1]
    q, k, v, d_o = (
        x[0, : x.shape[1] // key.shape[1]].detach().double() for x in (query, key, value, d_out)
    )
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    length = q.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    wanted: list[list[Any]] = []
    for head in range(group):
        logits = (q[head] @ k[0].T * q.shape[2] ** -0.5).masked_fill(later, -torch.inf)
        out = torch.softmax(logits, dim=1) @ v[0]
        wanted.append([out.detach(), *torch.autograd.grad(out, (q, k, v), d_o[head])])
    outs, d_queries, d_keys, d_values = zip(*wanted, strict=True)
    exact = (torch.stack(outs), sum(d_queries), sum(d_keys), sum(d_values))
    worst = {}
    for name, one, other in zip(("out", "d_query", "d_key", "d_value"), found, exact, strict=True):
        mine = one[0, : other.shape[0]].detach().double()
        worst[name] = float(torch.linalg.norm(mine - other) / torch.linalg.norm(other))
    return worst


if __name__ == "__main__":
    main()
