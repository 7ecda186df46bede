"""What a decoder computes beside experts and attention: head with loss, and router.

Run: python -m benchmarks.dense_parts [--out=runs/dense_parts.json]
     python -m benchmarks.dense_parts --rows=2 --length=128 --dim=64 --vocab=500 --experts=16

The second is small enough for a CPU. Each way stands beside a plain one, which is its baseline:
the loss with its gradients by chunks (`objectives/linear_next_token.py`) beside all logits and
automatic differentiation; log-normalisers by one reading of a chunk's logits
(`objectives/log_norms.py`) beside two; the router's product by three of bfloat16
(`ops/float32_product.py`) beside one of float32, forward and the gradients of both operands.
Times are medians of rounds of many calls. The error is that of the norm of the first result,
relative to float64, over the first rows.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from benchmarks import measuring
from deepseek_jax.objectives import linear_next_token, log_norms, next_token
from deepseek_jax.ops import float32_product
from deepseek_jax.training import nats
from experiments import numbers

SIZES = {"rows": 8, "length": 4096, "dim": 1024, "vocab": 32_000, "experts": 128}
DTYPE = jnp.bfloat16
NUM_CHECKED = 64


class Way(NamedTuple):
    """One way of computing `what`; the first of each is the baseline."""

    what: str
    name: str
    function: Callable[..., Any]
    arrays: tuple[Any, ...]
    flops: float
    exact: Callable[..., Any] | None


def main() -> None:
    """Measures, prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in SIZES}
    found = {
        "sizes": sizes,
        "ways": [measure(way) for way in ways(**sizes)],
        "copy_bytes_per_second": measuring.copy_bandwidth(),
        "made_with": measuring.made_with(DTYPE),
    }
    report(rich_console.Console(width=130), found)
    measuring.write(arguments.out, found)


def ways(*, rows: int, length: int, dim: int, vocab: int, experts: int) -> list[Way]:
    """What is measured, on arrays drawn here."""
    keys = jax.random.split(jax.random.key(0), 6)
    hidden = jax.random.normal(keys[0], (rows, length, dim), DTYPE)
    head = jax.random.normal(keys[1], (dim, vocab), DTYPE) * jnp.asarray(dim**-0.5, DTYPE)
    targets = jax.random.randint(keys[2], (rows, length), 0, vocab, jnp.int32)
    weights = jnp.full((rows, length), 1.0 / (rows * length), jnp.float32)
    chunk = linear_next_token.chunk_length(
        num_rows=rows, length=length, vocab_size=vocab, max_bytes=nats.MAX_LOGITS_BYTES
    )
    logits = jax.random.normal(keys[3], (rows * chunk, vocab), jnp.float32)
    x = hidden.reshape(-1, dim)
    kernel = jax.random.normal(keys[4], (dim, experts), jnp.float32) * dim**-0.5
    d_routed = jax.random.normal(keys[5], (rows * length, experts), jnp.float32)
    by_chunks = functools.partial(
        linear_next_token.weighted_nats, chunk=chunk, num_parts=1, constrain=lambda cut: cut
    )
    loss, norms = "head, loss, gradients", f"log-normalisers of {chunk} positions"
    flops = 2.0 * rows * length * dim
    inputs, routed = (hidden, head, targets, weights), (x, kernel)
    return [
        Way(loss, "all logits", _with_gradients(_whole), inputs, 3 * flops * vocab, None),
        Way(loss, "by chunks", _with_gradients(by_chunks), inputs, 3 * flops * vocab, None),
        Way(norms, "two readings", log_norms.two_readings, (logits,), 0.0, _exact_norms),
        Way(norms, "one reading", log_norms.one_reading, (logits,), 0.0, _exact_norms),
        Way("router", "float32", float32_product.at_once, routed, flops * experts, _exact_product),
        Way(
            "router",
            "three of bfloat16",
            float32_product.by_parts,
            routed,
            flops * experts,
            _exact_product,
        ),
        Way(
            "router's gradients",
            "float32",
            float32_product.pull_at_once,
            (*routed, d_routed),
            2 * flops * experts,
            _exact_gradient,
        ),
        Way(
            "router's gradients",
            "three of bfloat16",
            float32_product.pull_by_parts,
            (*routed, d_routed),
            2 * flops * experts,
            _exact_gradient,
        ),
    ]


def measure(way: Way) -> dict[str, Any]:
    """Seconds, memory and, where there is something exact to compare with, the error."""
    compiled = jax.jit(way.function).lower(*way.arrays).compile()
    plan: Any = compiled.memory_analysis()
    answer = np.asarray(jax.tree.leaves(compiled(*way.arrays))[0], np.float64)
    error = None
    if way.exact is not None:
        exact = way.exact(
            *(np.asarray(x[:NUM_CHECKED], np.float64) for x in way.arrays[:1]),
            *(np.asarray(x, np.float64) for x in way.arrays[1:]),
        )
        found = answer[: len(exact)]
        error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    return {
        "what": way.what,
        "name": way.name,
        "seconds": measuring.seconds(lambda: compiled(*way.arrays)),
        "temporary_bytes": int(plan.temp_size_in_bytes),
        "flops": way.flops,
        "error": error,
        "value": float(answer) if answer.ndim == 0 else None,
    }


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured; ratios are of seconds, the baseline's over these."""
    sizes, made = found["sizes"], found["made_with"]
    table = numbers.table(
        "Dense parts, " + ", ".join(f"{name} {size}" for name, size in sizes.items()),
        "part",
        "computed",
        "ms",
        "TFLOP/s",
        "x first",
        "temporary",
        "error or loss",
    )
    first: dict[str, float] = {}
    for each in found["ways"]:
        took, flops = each["seconds"], each["flops"]
        before = first.setdefault(each["what"], took)
        table.add_row(
            each["what"],
            each["name"],
            f"{1e3 * took:.3f}",
            f"{flops / took / 1e12:.1f}" if flops else "",
            f"{before / took:.2f}",
            numbers.human_bytes(each["temporary_bytes"]),
            f"{each['error']:.1e}" if each["value"] is None else f"{each['value']:.6f}",
        )
    console.print(table)
    console.print(
        f"copy: {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s; {made['device']}, jax "
        f"{made['jax']}, Python {made['python']}",
        highlight=False,
    )


def _whole(hidden: Any, head: Any, targets: Any, weights: Any) -> Any:
    logits = jnp.einsum("bld,dv->blv", hidden, head, preferred_element_type=jnp.float32)
    return jnp.sum(weights * next_token.next_token_terms(logits, targets))


def _with_gradients(loss: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(loss, argnums=(0, 1))


def _exact_norms(logits: Any) -> Any:
    most = logits.max(axis=-1)
    return most + np.log(np.sum(np.exp(logits - most[:, None]), axis=-1))


def _exact_product(x: Any, kernel: Any) -> Any:
    return x @ kernel


def _exact_gradient(x: Any, kernel: Any, gradient: Any) -> Any:
    return gradient[: len(x)] @ kernel.T


if __name__ == "__main__":
    main()
