"""Grouped matmuls, forward and both gradients, beside `torch._grouped_mm` on the same device.

Run: python -m benchmarks.grouped_matmul [--backends=hopper,triton] [--out=runs/grouped.json]
     python -m benchmarks.grouped_matmul --shapes=1024x8x128x256     (a CPU can do these)

A shape is rows x groups x in x out; sizes of the groups are even up to chance, or skewed (shares
drawn from a Dirichlet distribution with parameter 2). The peer runs in the same call, on the same
sizes, in a Python of its own that has torch (--peer-python; this one by default). Times are
medians of rounds of many calls, with one wait at the end of a round; TFLOP/s count 2 operations a
row, column and depth forward and twice that backward. The error is the largest of some groups,
relative to float64. Memory was filled with NaN before results were allocated.

At few rows what counts is how fast the matrices that are used are read: the last column is the
time that their bytes take at the bandwidth of a copy, measured in the same run, over the time of
a call. There a call is one of many in one program (of the peer: in one CUDA graph), each with rows
of other groups, so that neither starting it nor what a cache holds is measured.
"""

import argparse
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console

from benchmarks import measuring, peer
from deepseek_jax.ops.grouped import matmul
from experiments import numbers

PEER = "benchmarks.torch_grouped_mm"
SHAPES = ",".join(
    (
        "131072x128x1024x2048",
        "65536x128x2048x1536",
        "131072x128x2048x768",
        "1024x128x1024x2048",
        "32x128x1024x2048",
    )
)
# Up to so many rows a call is bound by the bytes of the matrices.
FEW_ROWS = 4096
NUM_CALLS = 16  # in one program, of few rows


class Shape(NamedTuple):
    """Of one problem."""

    num_rows: int
    num_groups: int
    num_in: int
    num_out: int


def main() -> None:
    """Measures, prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--shapes", default=SHAPES, help="rows x groups x in x out, with commas")
    parser.add_argument("--sizes", default="even,skewed")
    parser.add_argument("--backends", default="", help="default: the device's own")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    shapes = [Shape(*map(int, text.split("x"))) for text in arguments.shapes.split(",")]
    problems = [
        {"shape": shape, "sizes": sizes, "group_sizes": draw_sizes(shape, sizes)}
        | {"calls": draw_calls(shape, sizes)}
        for shape in shapes
        for sizes in arguments.sizes.split(",")
    ]
    dtype = jnp.dtype(arguments.dtype)
    found = {
        "copy_bytes_per_second": measuring.copy_bandwidth(),
        "ours": [
            measure(problem, backend, dtype)
            for problem in problems
            for backend in backends_for(arguments.backends, problem["shape"], dtype)
        ],
        "made_with": measuring.made_with(dtype),
    }
    request = measuring.request(dtype, problems=problems)
    measuring.write(arguments.out, found | {"peer": None})
    found["peer"] = peer.run(PEER, request, python=arguments.peer_python, package="torch")
    report(rich_console.Console(width=150), found)
    measuring.write(arguments.out, found)


def draw_calls(shape: Shape, kind: str) -> list[list[int]]:
    """Rows of each group in the calls that are timed together."""
    num_calls = NUM_CALLS if shape.num_rows <= FEW_ROWS else 1
    return [draw_sizes(shape, kind, seed) for seed in range(num_calls)]


def draw_sizes(shape: Shape, kind: str, seed: int = 0) -> list[int]:
    """Rows of each group; all rows are of some group."""
    generator = np.random.default_rng(seed)
    shares = {
        "even": np.full(shape.num_groups, 1.0 / shape.num_groups),
        "skewed": generator.dirichlet(np.full(shape.num_groups, 2.0)),
    }[kind]
    sizes: list[int] = generator.multinomial(shape.num_rows, shares).tolist()
    return sizes


def backends_for(asked: str, shape: Shape, dtype: Any) -> list[Any]:
    """The named backends, or those worth a look on this device."""
    if asked:
        return asked.split(",")
    rows = jax.ShapeDtypeStruct((shape.num_rows, shape.num_in), dtype)
    weights = jax.ShapeDtypeStruct(shape[1:], dtype)
    return [matmul.choose(jax.devices()[0], rows, weights)]


def measure(problem: dict[str, Any], backend: Any, dtype: Any) -> dict[str, Any]:
    """Seconds and errors of one backend on one problem."""
    shape, group_sizes = problem["shape"], problem["group_sizes"]
    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(keys[0], (shape.num_rows, shape.num_in), dtype)
    weights = jax.random.normal(keys[1], shape[1:], dtype) * jnp.asarray(0.03, dtype)
    d_out = jax.random.normal(keys[2], (shape.num_rows, shape.num_out), dtype)
    sizes = jnp.asarray(group_sizes, jnp.int32)

    @jax.jit
    def forward(rows: Any, weights: Any, sizes: Any) -> Any:
        return matmul.grouped_matmul(rows, weights, sizes, backend=backend)

    @jax.jit
    def backward(rows: Any, weights: Any, sizes: Any, d_out: Any) -> Any:
        return jax.vjp(lambda x, w: forward(x, w, sizes), rows, weights)[1](d_out)

    @jax.jit
    def forward_calls(rows: Any, weights: Any, calls: Any) -> Any:
        def one(_: Any, sizes: Any) -> Any:
            return _, forward(rows, weights, sizes)[0, 0]

        return jax.lax.scan(one, None, calls)[1]

    @jax.jit
    def backward_calls(rows: Any, weights: Any, calls: Any, d_out: Any) -> Any:
        def one(_: Any, sizes: Any) -> Any:
            return _, [x.ravel()[0] for x in backward(rows, weights, sizes, d_out)]

        return jax.lax.scan(one, None, calls)[1]

    results = ((shape.num_rows, shape.num_out), rows.shape, weights.shape)
    measuring.poison(results, dtype)
    out = forward(rows, weights, sizes)
    measuring.poison(results, dtype)
    d_rows, d_weights = backward(rows, weights, sizes, d_out)
    calls = jnp.asarray(problem["calls"], jnp.int32)
    if len(calls) == 1:
        took = [
            measuring.seconds(lambda: forward(rows, weights, sizes)),
            measuring.seconds(lambda: backward(rows, weights, sizes, d_out)),
        ]
    else:
        took = [
            measuring.seconds(lambda: forward_calls(rows, weights, calls)) / len(calls),
            measuring.seconds(lambda: backward_calls(rows, weights, calls, d_out)) / len(calls),
        ]
    measuring.say(f"{'x'.join(map(str, shape))}, {problem['sizes']}, {backend}, forward", took[0])
    return {
        "problem": problem,
        "backend": backend,
        "forward_seconds": took[0],
        "backward_seconds": took[1],
        "errors": errors(group_sizes, rows, weights, d_out, out, d_rows, d_weights),
        "all_finite": all(bool(jnp.all(jnp.isfinite(x))) for x in (out, d_rows, d_weights)),
    }


def errors(
    group_sizes: list[int], rows: Any, weights: Any, d_out: Any, *found: Any
) -> dict[str, float]:
    """The largest relative error in some groups: the first and last, the smallest and largest."""
    used = [group for group, size in enumerate(group_sizes) if size]
    by_size = sorted(used, key=lambda group: group_sizes[group])
    worst = {"out": 0.0, "d_rows": 0.0, "d_weights": 0.0}
    ends = np.cumsum(group_sizes)
    # Each slice of an array on the device would be a program of its own.
    rows, weights, d_out, *found = jax.device_get((rows, weights, d_out, *found))
    for group in {used[0], used[-1], by_size[0], by_size[-1]}:
        mine = slice(int(ends[group]) - group_sizes[group], int(ends[group]))
        x, w, y = (
            np.asarray(each, np.float64) for each in (rows[mine], weights[group], d_out[mine])
        )
        wanted = (x @ w, y @ w.T, x.T @ y)
        ours = (found[0][mine], found[1][mine], found[2][group])
        for name, one, other in zip(worst, ours, wanted, strict=True):
            error = np.linalg.norm(np.asarray(one, np.float64) - other) / np.linalg.norm(other)
            worst[name] = max(worst[name], float(error))
    return worst


def report(console: rich_console.Console, found: dict[str, Any]) -> None:
    """Prints what `main` measured, with ratios to the peer."""
    made, other = found["made_with"], found["peer"]
    table = numbers.table(
        f"Grouped matmul, rows x groups x in x out, {made['dtype']}",
        "problem",
        "sizes",
        "backend",
        "forward ms",
        "TFLOP/s",
        "x peer",
        "backward ms",
        "TFLOP/s",
        "x peer",
        "error, peer's",
        "x bytes' limit",
    )
    elements_per_second = found["copy_bytes_per_second"] / jnp.dtype(made["dtype"]).itemsize
    theirs = {} if other is None else {_name(each): each for each in other["measured"]}
    for each in found["ours"]:
        its = theirs.get(_name(each))
        table.add_row(*_cells(each, its, elements_per_second))
    for each in theirs.values():
        table.add_row(*_cells(each, None, elements_per_second))
    console.print(table)
    wrong = [each for each in found["ours"] if not each["all_finite"]]
    console.print(
        "all results are finite, over memory filled with NaN before"
        if not wrong
        else f"NOT WRITTEN or not finite: {[_name(each) + each['backend'] for each in wrong]}",
        f"copy: {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s; {made['device']}, jax "
        f"{made['jax']}, Python {made['python']}; "
        + ("no torch there: no peer" if other is None else f"torch {other['torch']}"),
        sep="\n",
        highlight=False,
    )


def _name(measured: dict[str, Any]) -> str:
    problem = measured["problem"]
    return f"{'x'.join(map(str, problem['shape']))} {problem['sizes']}"


def _cells(
    each: dict[str, Any], its: dict[str, Any] | None, elements_per_second: float
) -> list[str]:
    shape = Shape(*each["problem"]["shape"])
    flops = 2.0 * shape.num_rows * shape.num_in * shape.num_out
    cells = ["x".join(map(str, shape)), each["problem"]["sizes"], each["backend"]]
    for part, share in (("forward", 1.0), ("backward", 2.0)):
        took = each[f"{part}_seconds"]
        cells += [f"{1e3 * took:.3f}", f"{share * flops / took / 1e12:.1f}"]
        cells.append("" if its is None else f"{its[f'{part}_seconds'] / took:.2f}")
    error = max(each["errors"].values())
    cells.append(f"{error:.1e}" + ("" if its is None else f", {max(its['errors'].values()):.1e}"))
    limit = ""
    if shape.num_rows <= FEW_ROWS:
        calls = each["problem"]["calls"]
        num_used = sum(size > 0 for sizes in calls for size in sizes) / len(calls)
        num_elements = num_used * shape.num_in * shape.num_out
        limit = f"{num_elements / elements_per_second / each['forward_seconds']:.2f}"
    return [*cells, limit]


if __name__ == "__main__":
    main()
