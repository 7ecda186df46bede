"""A whole layer of routed experts, forward and backward, beside transformers' on the same device.

Run: python -m benchmarks.moe_layer [--peer-python=PYTHON] [--out=runs/moe_layer.json]
     python -m benchmarks.moe_layer --remats=none --no-parts \
       --shapes=1x4x128x1024x2048,8x4x128x1024x2048,64x4x128x1024x2048
     python -m benchmarks.moe_layer --shapes=64x2x8x128x128 --dtype=float32     (a CPU can do it)

A shape is tokens x experts of a token x experts x model x hidden; routing is even up to chance, or
skewed (shares drawn from a Dirichlet distribution with parameter 2). The backward pass has the
gradients of tokens, routing weights and all matrices. The peer, in a Python of its own that has
torch and transformers 5 or later, gets the same routing: Qwen3MoeExperts with `grouped_mm`, as it
is and compiled; "x peer" is the faster of the two over ours. Times are medians of rounds of many
calls; TFLOP/s count 18 D F operations a row, and GB/s the matrices, read once, of the experts that
any token chose: what a few tokens, as in decoding, have to wait for. Memory is the most that is
held at once, arguments and results included (of ours by XLA's plan of the program, of torch's by
its allocator), and what the forward pass keeps for the backward pass beside its arguments and its
answer. The error is the largest of some tokens and experts, relative to float64. A second table has
the parts one by one, each a program of its own, and what they move or compute in a second.

Where a backend has fused kernels (`swiglu.FUSED`) the layer is measured with them too, and a third
table has each of them alone beside the parts that it stands for.
"""

import argparse
import collections
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from benchmarks import measuring, moe_layer_parts, moe_layer_problem, peer
from benchmarks.moe_layer_parts import Arguments
from benchmarks.moe_layer_problem import Layer, Shape
from deepseek_jax.ops import moe
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped import swiglu
from deepseek_jax.ops.routing import Routing
from experiments import numbers

PEER = "benchmarks.torch_moe_layer"
REMATS = ("none", "experts")


def main() -> None:
    """Measures, prints the tables, and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--shapes", default="32768x4x128x1024x2048", help="with commas")
    parser.add_argument("--routing", default="even,skewed")
    parser.add_argument("--remats", default=",".join(REMATS), help="of ours, with commas")
    parser.add_argument("--no-parts", action="store_true", help="the layers alone, which is faster")
    parser.add_argument("--backend", default="", help="default: the device's own")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--peer-python", default=sys.executable, help="has torch and transformers")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    dtype = jnp.dtype(arguments.dtype)
    remats = arguments.remats.split(",")
    if unknown := set(remats) - set(REMATS):
        parser.error(f"--remats={arguments.remats}: {unknown} not of {REMATS}")
    problems = [
        {"shape": Shape(*map(int, text.split("x"))), "routing": routing}
        for text in arguments.shapes.split(",")
        for routing in arguments.routing.split(",")
    ]
    found = {
        "ours": [
            measure(problem, arguments.backend, dtype, **design)
            for problem in problems
            for design in designs(problem, arguments.backend, dtype, remats)
        ],
        "parts": [
            measure_parts(problem, arguments.backend, dtype)
            for problem in problems
            if not arguments.no_parts
        ],
        "copy_bytes_per_second": measuring.copy_bandwidth(),
        "made_with": measuring.made_with(dtype),
    }
    request = measuring.request(dtype, problems=problems)
    measuring.write(arguments.out, found | {"peer": None})
    found["peer"] = peer.run(PEER, request, python=arguments.peer_python, package="transformers")
    report(rich_console.Console(width=160), found)
    measuring.write(arguments.out, found)


def draw(problem: dict[str, Any], dtype: Any) -> Arguments:
    """The arrays of a problem, on the device."""
    shape: Shape = problem["shape"]
    ids, weights = moe_layer_problem.draw_routing(shape, problem["routing"])
    keys = jax.random.split(jax.random.key(0), 5)
    inner = (shape.num_experts, shape.model_dim, shape.width)
    outer = (shape.num_experts, shape.width, shape.model_dim)
    tokens, d_out = (
        jax.random.normal(key, (shape.num_tokens, shape.model_dim), dtype) for key in keys[:2]
    )
    matrices = (
        jax.random.normal(key, sides, dtype) * jnp.asarray(0.03, dtype)
        for key, sides in zip(keys[2:], (inner, inner, outer), strict=True)
    )
    made = Arguments(
        tokens, jnp.asarray(weights), ExpertWeights(*matrices), jnp.asarray(ids), d_out
    )
    return jax.block_until_ready(made)


def backend_for(asked: str, problem: dict[str, Any], made: Arguments) -> Any:
    """The named backend, or the device's own."""
    shape: Shape = problem["shape"]
    num_rows = shape.num_tokens * shape.top_k
    own = swiglu.choose(jax.devices()[0], made.tokens, made.matrices.gate, num_rows=num_rows)
    return asked or own


def designs(
    problem: dict[str, Any], asked: str, dtype: Any, remats: list[str]
) -> list[dict[str, bool]]:
    """What `measure` can be told of a backend."""
    is_able = backend_for(asked, problem, draw(problem, dtype)) in swiglu.FUSED
    return [
        {"recompute": remat == "experts", "fused": fused}
        for remat in remats
        for fused in ((False, True) if is_able else (False,))
    ]


def measure(
    problem: dict[str, Any], asked: str, dtype: Any, *, recompute: bool, fused: bool = False
) -> dict[str, Any]:
    """Seconds, errors and the most memory of one problem."""
    made = draw(problem, dtype)
    backend = backend_for(asked, problem, made)
    layer = moe.grouped(backend=backend, recompute=recompute, fused=fused)

    def answer(tokens: Any, weights: Any, matrices: ExpertWeights, ids: Any) -> Any:
        mask = jnp.ones(tokens.shape[0], bool)
        return layer(tokens, mask, Routing(ids, weights), matrices).x

    def both(tokens: Any, weights: Any, matrices: ExpertWeights, ids: Any, d_out: Any) -> Any:
        out, pull = jax.vjp(lambda x, w, m: answer(x, w, m, ids), tokens, weights, matrices)
        # As in a model: nothing of the backward pass can begin before the answer is there.
        out, d_out = jax.lax.optimization_barrier((out, d_out))
        return out, *pull(d_out)

    entered = (made.tokens, made.weights, made.matrices, made.ids)
    forward = jax.jit(answer).lower(*entered).compile()
    compiled = jax.jit(both).lower(*made).compile()
    out, *gradients = jax.block_until_ready(compiled(*made))
    routing = moe_layer_problem.draw_routing(problem["shape"], problem["routing"])
    errors = moe_layer_problem.errors(*routing, _found(made, out, gradients))
    is_finite = all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((out, gradients)))
    del out, gradients
    name = f"{backend}{' fused' * fused}, {'experts' if recompute else 'none'}"
    both_seconds = measuring.seconds(lambda: compiled(*made))
    measuring.say(f"{problem['shape'].name}, {problem['routing']}, {name}", both_seconds)
    return {
        "problem": problem,
        "name": name,
        "errors": errors,
        "all_finite": is_finite,
        "num_bytes": most_bytes(compiled),
        "num_kept_bytes": kept_bytes(answer, *entered),
        "forward_seconds": measuring.seconds(lambda: forward(*entered)),
        "both_seconds": both_seconds,
    }


def most_bytes(compiled: Any) -> int:
    """Arguments, results and what lies between them, by XLA's plan."""
    plan = compiled.memory_analysis()
    sizes = (plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes)
    return int(sum(sizes)) - int(plan.alias_size_in_bytes)


def kept_bytes(answer: Any, *entered: Any) -> int:
    """What jax keeps for the backward pass of `answer`, beside its arguments.

    Those are told by their types, so K must be more than 1: else rows are as many as tokens.
    """
    *learned, ids = entered
    pull = jax.eval_shape(lambda *three: jax.vjp(lambda *x: answer(*x, ids), *three)[1], *learned)
    kept, arguments = (
        collections.Counter((x.shape, x.dtype) for x in jax.tree.leaves(tree))
        for tree in (pull, learned)
    )
    made = (kept - arguments).items()
    return sum(math.prod(shape) * dtype.itemsize * number for (shape, dtype), number in made)


def _found(made: Arguments, out: Any, gradients: list[Any]) -> Layer:
    d_tokens, d_weights, d_matrices = gradients

    def reader(x: Any) -> Callable[[Any], Any]:
        return lambda index: np.asarray(x[jnp.asarray(index)], np.float64)

    def of_expert(matrices: ExpertWeights) -> Callable[[int], Any]:
        return lambda expert: tuple(np.asarray(x[expert], np.float64) for x in matrices)

    return Layer(
        tokens=reader(made.tokens),
        out=reader(out),
        d_out=reader(made.d_out),
        d_tokens=reader(d_tokens),
        d_weights=reader(d_weights),
        matrices=of_expert(made.matrices),
        d_matrices=of_expert(d_matrices),
    )


def measure_parts(problem: dict[str, Any], asked: str, dtype: Any) -> dict[str, Any]:
    """Seconds of each part by itself, without recomputing."""
    made = draw(problem, dtype)
    backend = backend_for(asked, problem, made)
    parts = moe_layer_parts.measure(problem["shape"], made, backend)
    return {"problem": problem, "backend": backend, "parts": parts}


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured, with ratios to the peer."""
    made, other = found["made_with"], found["peer"]
    table = numbers.table(
        f"Layer of experts, tokens x k x experts x model x hidden, {made['dtype']}",
        "problem",
        "routing",
        "computed by, remat",
        "forward ms",
        "GB/s",
        "x peer",
        "both ms",
        "TFLOP/s",
        "x peer",
        "memory",
        "kept",
        "error",
    )
    theirs = [] if other is None else other["measured"]
    for each in [*found["ours"], *theirs]:
        mine = [its for its in theirs if _name(its) == _name(each) and each not in theirs]
        table.add_row(*_cells(each, mine, itemsize=jnp.dtype(made["dtype"]).itemsize))
    console.print(table)
    for each in found["parts"]:
        for table in moe_layer_parts.tables(each):
            console.print(table)
    wrong = [each["name"] for each in found["ours"] if not each["all_finite"]]
    console.print(
        f"NOT finite: {wrong}" if wrong else "all results are finite",
        measuring.told_beside_transformers(found),
        sep="\n",
        highlight=False,
    )


def _name(measured: dict[str, Any]) -> tuple[Any, ...]:
    problem = measured["problem"]
    return (*problem["shape"], problem["routing"])


def _cells(each: dict[str, Any], theirs: list[dict[str, Any]], *, itemsize: int) -> list[str]:
    shape = Shape(*each["problem"]["shape"])
    ids, _ = moe_layer_problem.draw_routing(shape, each["problem"]["routing"])
    matrices = 3 * shape.model_dim * shape.width * itemsize * len(np.unique(ids))

    def ratio(part: str) -> str:
        return f"{min(its[part] for its in theirs) / each[part]:.2f}" if theirs else ""

    forward, both = each["forward_seconds"], each["both_seconds"]
    memory, kept = (
        "" if each[name] is None else numbers.human_bytes(each[name])
        for name in ("num_bytes", "num_kept_bytes")
    )
    return [
        shape.name,
        each["problem"]["routing"],
        each["name"],
        f"{1e3 * forward:.3f}",
        f"{matrices / forward / 1e9:,.0f}",
        ratio("forward_seconds"),
        f"{1e3 * both:.3f}",
        f"{shape.training_flops / both / 1e12:.1f}",
        ratio("both_seconds"),
        memory,
        kept,
        f"{max(each['errors'].values()):.1e}",
    ]


if __name__ == "__main__":
    main()
