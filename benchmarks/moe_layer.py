"""A whole layer of routed experts, forward and backward, beside transformers' on the same device.

Run: python -m benchmarks.moe_layer [--peer-python=PYTHON] [--out=runs/moe_layer.json]
     python -m benchmarks.moe_layer --shapes=64x2x8x128x128 --dtype=float32     (a CPU can do it)

A shape is tokens x experts of a token x experts x model x hidden; routing is even up to chance, or
skewed (shares drawn from a Dirichlet distribution with parameter 2). The backward pass has the
gradients of tokens, routing weights and all matrices. The peer, in a Python of its own that has
torch and transformers 5 or later, gets the same routing: Qwen3MoeExperts with `grouped_mm`, as it
is and compiled; "x peer" is the faster of the two over ours. Times are medians of rounds of many
calls; TFLOP/s count 18 D F operations a row. Memory is the most that is held at once, arguments
and results included (of ours by XLA's plan of the program, of torch's by its allocator), and what
the forward pass keeps for the backward pass beside its arguments and its answer. The error is the
largest of some tokens and experts, relative to float64. A second table has the parts one by one,
each a program of its own, and what they move or compute in a second.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from benchmarks import measuring, moe_layer_problem, peer
from benchmarks.moe_layer_problem import Layer, Shape
from deepseek_jax.ops import dispatch, moe
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped import matmul, swiglu
from deepseek_jax.ops.routing import Routing
from experiments import numbers

PEER = "benchmarks.torch_moe_layer"


class Arguments(NamedTuple):
    """Of the layer, and the gradient of its answers."""

    tokens: Any
    weights: Any
    matrices: ExpertWeights
    ids: Any
    d_out: Any


class Part(NamedTuple):
    """One program: how often a forward and backward pass has it, its bytes or operations."""

    name: str
    times: int
    call: Callable[[], Any]
    num_bytes: float
    flops: float


def main() -> None:
    """Measures, prints the tables, and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--shapes", default="32768x4x128x1024x2048", help="with commas")
    parser.add_argument("--routing", default="even,skewed")
    parser.add_argument("--backend", default="", help="default: the device's own")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--peer-python", default=sys.executable, help="has torch and transformers")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    dtype = jnp.dtype(arguments.dtype)
    problems = [
        {"shape": Shape(*map(int, text.split("x"))), "routing": routing}
        for text in arguments.shapes.split(",")
        for routing in arguments.routing.split(",")
    ]
    found = {
        "ours": [
            measure(problem, arguments.backend, dtype, recompute=recompute)
            for problem in problems
            for recompute in (False, True)
        ],
        "parts": [measure_parts(problem, arguments.backend, dtype) for problem in problems],
        "copy_bytes_per_second": measuring.copy_bandwidth(),
        "made_with": measuring.made_with(dtype),
    }
    request = measuring.request(dtype, problems=problems)
    measuring.write(arguments.out, found | {"peer": None})
    found["peer"] = peer.run(PEER, request, python=arguments.peer_python, package="transformers")
    report(rich_console.Console(width=150), found)
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


def measure(problem: dict[str, Any], asked: str, dtype: Any, *, recompute: bool) -> dict[str, Any]:
    """Seconds, errors and the most memory of one problem."""
    made = draw(problem, dtype)
    backend = backend_for(asked, problem, made)
    layer = moe.grouped(backend=backend, recompute=recompute)

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
    return {
        "problem": problem,
        "name": f"{backend}, {'experts' if recompute else 'none'}",
        "errors": errors,
        "all_finite": is_finite,
        "num_bytes": most_bytes(compiled),
        "num_kept_bytes": kept_bytes(answer, *entered),
        "forward_seconds": measuring.seconds(lambda: forward(*entered)),
        "both_seconds": measuring.seconds(lambda: compiled(*made)),
    }


def most_bytes(compiled: Any) -> int:
    """Arguments, results and what lies between them, by XLA's plan."""
    plan = compiled.memory_analysis()
    sizes = (plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes)
    return int(sum(sizes)) - int(plan.alias_size_in_bytes)


def kept_bytes(answer: Any, *entered: Any) -> int:
    """What jax keeps for the backward pass of `answer`, arguments that it keeps left out."""
    *learned, ids = entered
    pull = jax.eval_shape(lambda *three: jax.vjp(lambda *x: answer(*x, ids), *three)[1], *learned)
    sizes = [
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) for tree in (pull, learned)
    ]
    return int(sizes[0] - sizes[1])


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
    return {
        "problem": problem,
        "backend": backend,
        "parts": [
            {
                "name": part.name,
                "times": part.times,
                "seconds": measuring.seconds(part.call),
                "num_bytes": part.num_bytes,
                "flops": part.flops,
            }
            for part in parts_of(problem["shape"], made, backend)
        ],
    }


def parts_of(shape: Shape, made: Arguments, backend: Any) -> list[Part]:
    """The programs, on arrays that the ones before them made."""
    plan_of = functools.partial(dispatch.dropless_plan, num_experts=shape.num_experts, block_rows=1)
    how: dict[str, Any] = {"backend": backend, "interpret": False}
    mask = jnp.ones(shape.num_tokens, bool)

    def compiled(function: Any, *arrays: Any) -> tuple[Any, Callable[[], Any]]:
        """What it returns, and a call."""
        program = jax.jit(function)
        return program(*arrays), lambda: program(*arrays)

    plan, make_plan = compiled(plan_of, made.ids, mask)
    sizes = plan.group_sizes
    gate, up, down = made.matrices
    rows, gather = compiled(dispatch.take_rows, made.tokens, plan.token_ids)
    gates, enter = compiled(functools.partial(matmul.product, **how), rows, gate, sizes)
    ups = matmul.product(rows, up, sizes, **how)
    weights = dispatch.row_weights(made.weights, plan)
    hidden, gated = compiled(swiglu.weighted_hidden, gates, ups, weights)
    answers, leave = compiled(functools.partial(matmul.product, **how), hidden, down, sizes)
    _, combine = compiled(_summed, plan.row_ids, answers)
    back = functools.partial(matmul.product, **how, transposed=True)
    d_rows = dispatch.take_rows(made.d_out, plan.token_ids)
    d_hidden, through = compiled(back, d_rows, down, sizes)
    pulled, gated_back = compiled(swiglu.hidden_and_gradients, gates, ups, weights, d_hidden)
    d_x, enter_back = compiled(back, pulled.d_gates, gate, sizes)
    _, combine_two = compiled(_summed, plan.row_ids, d_x, d_x)
    outer = functools.partial(matmul.outer, **how)
    _, of_matrix = compiled(outer, rows, pulled.d_gates, sizes)
    _, of_down = compiled(outer, hidden, d_rows, sizes)
    size = made.tokens.dtype.itemsize
    small, large = (float(size * rows.shape[0] * side) for side in (shape.model_dim, shape.width))
    few = float(size * shape.num_tokens * shape.model_dim)
    flops = 2.0 * rows.shape[0] * shape.model_dim * shape.width
    return [
        Part("plan", 1, make_plan, 0.0, 0.0),
        Part("gather rows of tokens, of them again, of gradients", 3, gather, few + small, 0.0),
        Part("gate, up", 2, enter, 0.0, flops),
        Part("hidden layer", 1, gated, 3 * large, 0.0),
        Part("down", 1, leave, 0.0, flops),
        Part("combine answers", 1, combine, few + small, 0.0),
        Part("gradient of the hidden layer", 1, through, 0.0, flops),
        Part("gradients of gate, up and weights", 1, gated_back, 6 * large, 0.0),
        Part("gradient of rows", 2, enter_back, 0.0, flops),
        Part("combine both gradients of rows", 1, combine_two, few + 2 * small, 0.0),
        Part("gradient of gate's matrices, of up's", 2, of_matrix, 0.0, flops),
        Part("gradient of down's matrices", 1, of_down, 0.0, flops),
    ]


def _summed(row_ids: Any, *rows: Any) -> Any:
    return dispatch.summed_rows(*rows, row_ids=row_ids)


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured, with ratios to the peer."""
    made, other = found["made_with"], found["peer"]
    table = numbers.table(
        f"Layer of experts, tokens x k x experts x model x hidden, {made['dtype']}",
        "problem",
        "routing",
        "computed by, remat",
        "forward ms",
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
        table.add_row(*_cells(each, mine))
    console.print(table)
    for each in found["parts"]:
        console.print(_parts_table(each))
    wrong = [each["name"] for each in found["ours"] if not each["all_finite"]]
    versions = "no transformers there: no peer"
    if other is not None:
        versions = f"torch {other['torch']}, transformers {other['transformers']}"
    console.print(
        f"NOT finite: {wrong}" if wrong else "all results are finite",
        f"copy: {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s; {made['device']}, jax "
        f"{made['jax']}, Python {made['python']}; {versions}",
        sep="\n",
        highlight=False,
    )


def _name(measured: dict[str, Any]) -> tuple[Any, ...]:
    problem = measured["problem"]
    return (*problem["shape"], problem["routing"])


def _cells(each: dict[str, Any], theirs: list[dict[str, Any]]) -> list[str]:
    shape = Shape(*each["problem"]["shape"])

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
        ratio("forward_seconds"),
        f"{1e3 * both:.3f}",
        f"{shape.training_flops / both / 1e12:.1f}",
        ratio("both_seconds"),
        memory,
        kept,
        f"{max(each['errors'].values()):.1e}",
    ]


def _parts_table(each: dict[str, Any]) -> Any:
    shape = Shape(*each["problem"]["shape"])
    title = f"Parts, {shape.name}, {each['problem']['routing']}, {each['backend']}"
    table = numbers.table(title, "part", "times", "ms each", "ms all", "GB/s", "TFLOP/s")
    for part in each["parts"]:
        took = part["seconds"]
        moved = f"{part['num_bytes'] / took / 1e9:,.0f}" if part["num_bytes"] else ""
        done = f"{part['flops'] / took / 1e12:.1f}" if part["flops"] else ""
        spent = f"{1e3 * took * part['times']:.3f}"
        table.add_row(part["name"], str(part["times"]), f"{1e3 * took:.3f}", spent, moved, done)
    totals = {
        "matmuls": sum(part["seconds"] * part["times"] for part in each["parts"] if part["flops"]),
        "all else": sum(
            part["seconds"] * part["times"] for part in each["parts"] if not part["flops"]
        ),
    }
    table.add_section()
    for name, took in totals.items():
        table.add_row(name, "", "", f"{1e3 * took:.3f}", "", "")
    return table


if __name__ == "__main__":
    main()
