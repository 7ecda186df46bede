"""A layer of routed experts for few tokens, as in decoding, beside transformers' on one device.

Run: python -m benchmarks.moe_decoding [--peer-python=PYTHON] [--out=runs/moe_decoding.json]
     python -m benchmarks.moe_decoding --shapes=2x2x8x64x64 --dtype=float32     (a CPU can do it)

A shape is tokens x experts of a token x experts x model x hidden. A call is one of many in one
program, each with a routing of its own, even up to chance, so that neither starting a program nor
what a cache holds is measured. Ours: as the layer takes so few tokens, and as it takes many, sorted
by expert, with fused kernels where a backend has them ("rows"). The peer, in a Python of its own
that has torch and transformers 5 or later: Qwen3MoeExperts with `grouped_mm` and with `batched_mm`,
which transformers recommends for small inputs, as they are and compiled, in one CUDA graph (but
`grouped_mm` of float32, which waits for the host); "x peer" is the fastest of those over ours. GB/s
are the matrices, read once, of the experts that any token chose; the last column but one is the
time that they take at the bandwidth of a copy, measured in the same run, over the time of a call.
The error is that of all answers of the first call, relative to float64.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich import console as rich_console

from benchmarks import measuring, moe_layer, moe_layer_problem, peer
from benchmarks.moe_layer_problem import Shape
from deepseek_jax.ops import dispatch, moe
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped import swiglu
from deepseek_jax.ops.routing import Routing
from experiments import numbers

PEER = "benchmarks.torch_moe_decoding"
NUM_CALLS = 16  # in one program
_SIDES = "x4x128x1024x2048"

# (tokens [T, D], expert_ids [T, K], shares [T, K], weights) -> answers [T, D].
Layer = Callable[[Array, Array, Array, ExpertWeights], Array]


def main() -> None:
    """Measures, prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--shapes", default=",".join(f"{n}{_SIDES}" for n in (1, 8, 64, 256)))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--peer-python", default=sys.executable, help="has torch and transformers")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    dtype = jnp.dtype(arguments.dtype)
    shapes = [Shape(*map(int, text.split("x"))) for text in arguments.shapes.split(",")]
    found = {
        "ours": [each for shape in shapes for each in measure(shape, dtype)],
        "copy_bytes_per_second": measuring.copy_bandwidth(),
        "made_with": measuring.made_with(dtype),
    }
    request = measuring.request(dtype, shapes=shapes, num_calls=NUM_CALLS)
    measuring.write(arguments.out, found | {"peer": None})
    found["peer"] = peer.run(PEER, request, python=arguments.peer_python, package="transformers")
    report(rich_console.Console(width=130), found)
    measuring.write(arguments.out, found)


def measure(shape: Shape, dtype: Any) -> list[dict[str, Any]]:
    """Seconds of a call and its error, each way that the layer has."""
    made = moe_layer.draw({"shape": shape, "routing": "even"}, dtype)
    tokens, weights = made.tokens, made.matrices
    drawn = [moe_layer_problem.draw_routing(shape, "even", seed) for seed in range(NUM_CALLS)]
    ids, shares = (jnp.asarray(np.stack(each)) for each in zip(*drawn, strict=True))
    found = []
    for name, layer in layers(shape, tokens, weights).items():
        took = measuring.seconds(
            functools.partial(_calls, layer, tokens, weights, ids, shares)
        ) / len(drawn)
        answers = _calls(layer, tokens, weights, ids[:1], shares[:1])[0]
        measuring.say(f"{shape.name}, {name}", took)
        found.append(
            {
                "shape": shape,
                "name": name,
                "seconds": took,
                "error": moe_layer_problem.answers_error(
                    *drawn[0],
                    tokens=_float64(tokens),
                    answers=_float64(answers),
                    matrices=lambda expert: tuple(_float64(x[expert]) for x in weights),
                ),
            }
        )
    return found


def layers(shape: Shape, tokens: Array, weights: ExpertWeights) -> dict[str, Layer]:
    """As the layer takes so few tokens, and as it takes many."""
    num_rows = shape.num_tokens * shape.top_k
    backend = swiglu.choose(jax.devices()[0], tokens, weights.gate, num_rows=num_rows)
    layer = moe.grouped(backend=backend, recompute=False)

    def usual(tokens: Array, ids: Array, shares: Array, weights: ExpertWeights) -> Array:
        mask = jnp.ones(tokens.shape[0], bool)
        return layer(tokens, mask, Routing(ids, shares), weights).x

    def rows(tokens: Array, ids: Array, shares: Array, weights: ExpertWeights) -> Array:
        mask = jnp.ones(tokens.shape[0], bool)
        plan = dispatch.dropless_plan(ids, mask, num_experts=shape.num_experts, block_rows=1)
        return swiglu.routed_swiglu(
            tokens,
            shares,
            *weights,
            plan,
            backend=backend,
            interpret=False,
            recompute=False,
            fused=backend in swiglu.FUSED,
        )

    both: dict[str, Layer] = {f"{backend}, as it is": usual, f"{backend}, rows": rows}
    return both


@functools.partial(jax.jit, static_argnums=0)
def _calls(layer: Layer, tokens: Array, weights: ExpertWeights, ids: Array, shares: Array) -> Array:
    """Answers of all calls, one after the other."""

    def one(_: None, routing: tuple[Array, Array]) -> tuple[None, Array]:
        return None, layer(tokens, *routing, weights)

    return jax.lax.scan(one, None, (ids, shares))[1]


def _float64(x: Array) -> Any:
    return np.asarray(x).astype(np.float64)


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured, with ratios to the peer."""
    made, other = found["made_with"], found["peer"]
    table = numbers.table(
        f"Experts of few tokens, tokens x k x experts x model x hidden, {made['dtype']}",
        "shape",
        "computed by",
        "us",
        "GB/s",
        "x bytes' limit",
        "x peer",
        "error",
    )
    theirs = [] if other is None else other["measured"]
    for each in [*found["ours"], *theirs]:
        shape = Shape(*each["shape"])
        num_bytes = _bytes_read(shape, jnp.dtype(made["dtype"]).itemsize)
        fastest = [its["seconds"] for its in theirs if tuple(its["shape"]) == shape]
        speed = num_bytes / each["seconds"]
        table.add_row(
            shape.name,
            each["name"],
            f"{1e6 * each['seconds']:.1f}",
            f"{speed / 1e9:,.0f}",
            f"{speed / found['copy_bytes_per_second']:.2f}",
            f"{min(fastest) / each['seconds']:.2f}" if fastest and each not in theirs else "",
            f"{each['error']:.1e}",
        )
    console.print(table)
    console.print(measuring.told_beside_transformers(found), highlight=False)


def _bytes_read(shape: Shape, itemsize: int) -> float:
    """Of the matrices of the experts that were chosen, the mean of the calls."""
    drawn = [moe_layer_problem.draw_routing(shape, "even", seed)[0] for seed in range(NUM_CALLS)]
    num_used = np.mean([len(np.unique(ids)) for ids in drawn])
    return float(num_used * 3 * shape.model_dim * shape.width * itemsize)


if __name__ == "__main__":
    main()
