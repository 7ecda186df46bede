"""Seconds of each kernel of flash attention by its tiles, to choose those that it takes.

Run: python -m benchmarks.attention_tiles [--shapes=8x4096x16x4x64] [--kernels=forward]
     python -m benchmarks.attention_tiles --tiles=128x64x4x3,128x128x8x3 --documents

A tile is queries x keys x warps x stages. Shapes and times are those of `benchmarks.attention`;
TFLOP/s count all that a kernel computes of pairs that see each other: two products forward, three
for queries, four for keys and values. A tile that the device has no room for says so. On a CPU
kernels are interpreted, to try the program.
"""

import argparse
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from rich import console as rich_console

from benchmarks import attention, measuring
from deepseek_jax.ops.flash import triton
from deepseek_jax.ops.flash.triton import Tile
from experiments import numbers

NUM_PRODUCTS = {"forward": 2, "d_query": 3, "d_key_value": 4}
SIDES = ((128, 64), (64, 128), (128, 128), (64, 64), (128, 32), (32, 128))


def main() -> None:
    """Measures every tile and prints them, the fastest first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--shapes", default=attention.SHAPES, help="with commas")
    parser.add_argument("--dtype", default="bfloat16", choices=triton.DTYPES)
    parser.add_argument("--kernels", default=",".join(NUM_PRODUCTS))
    parser.add_argument("--tiles", default="", help="with commas; default: what may be fast")
    parser.add_argument("--documents", action="store_true", help="several in a row")
    arguments = parser.parse_args()
    tiles = [Tile(*map(int, each.split("x"))) for each in arguments.tiles.split(",") if each]
    tiles = tiles or candidates()
    console = rich_console.Console(width=100)
    for shape in attention.parse_shapes(arguments.shapes):
        inputs = attention.make_inputs(
            shape, jnp.dtype(arguments.dtype), is_packed=arguments.documents
        )
        for kernel in arguments.kernels.split(","):
            report(console, shape, kernel, inputs, measure(inputs, kernel, tiles))


def candidates() -> list[Tile]:
    """All with 4 or 8 warps and 2 to 4 stages."""
    settings = itertools.product(SIDES, (4, 8), (2, 3, 4))
    return [Tile(*sides, warps, stages) for sides, warps, stages in settings]


def measure(
    inputs: attention.Inputs, kernel: str, tiles: list[Tile]
) -> list[tuple[Tile, float | str]]:
    """Seconds of a kernel with each tile, or why it does not run."""
    interpret = jax.default_backend() != "gpu"
    *arguments, d_out = inputs
    usual = triton.tiles_for(
        length=inputs.query.shape[1], head_dim=inputs.query.shape[3], dtype=inputs.query.dtype
    )
    out, log_sums = jax.jit(lambda *x: triton.forward(*x, tile=usual.forward, interpret=interpret))(
        *arguments
    )
    operands = {
        "forward": tuple(arguments),
        "d_query": (*arguments, out, log_sums, d_out),
        # Any numbers will do for delta.
        "d_key_value": (*arguments, log_sums, log_sums, d_out),
    }[kernel]
    function: Any = getattr(triton, kernel)
    found: list[tuple[Tile, float | str]] = []
    for tile in tiles:
        run = functools.partial(
            jax.jit(functools.partial(function, tile=tile, interpret=interpret)), *operands
        )
        try:
            found.append((tile, measuring.seconds(run)))
        except RuntimeError as error:
            found.append((tile, str(error).splitlines()[0][:60]))
    return sorted(found, key=lambda each: each[1] if isinstance(each[1], float) else float("inf"))


def report(
    console: rich_console.Console,
    shape: attention.Shape,
    kernel: str,
    inputs: attention.Inputs,
    found: list[tuple[Tile, float | str]],
) -> None:
    """Prints the tiles of one kernel, the fastest first."""
    title = f"{kernel}, {'x'.join(map(str, shape))}, {jax.devices()[0].device_kind}"
    table = numbers.table(title, "queries x keys x warps x stages", "ms", "TFLOP/s")
    pairs = attention.num_pairs(inputs.document_ids)
    flops = 2.0 * NUM_PRODUCTS[kernel] * shape.num_heads * shape.head_dim * pairs
    for tile, took in found:
        if isinstance(took, float):
            cells = (f"{1e3 * took:.3f}", f"{flops / took / 1e12:.1f}")
        else:
            cells = (took, "")
        table.add_row("x".join(map(str, tile)), *cells)
    console.print(table)


if __name__ == "__main__":
    main()
