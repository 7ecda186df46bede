"""The product of few rows and the matrices of their groups, a kernel for NVIDIA GPUs. Floor 1.

Few rows wait for the matrices of the groups that have any, each of which is read once, and for
whatever is started before: nothing is worked out before the kernel. A program multiplies the rows
of one group with some columns of its matrix. Axes: R rows, E groups, In and Out of the matrices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles, triton

# Rows for each group up to which this is faster than tiles of more rows: measured, with the sides
# of tiles, on an H200 at 1024 x 2048 (docs/log.md).
_FEW = 8
_TILE_ROWS, _WIDTHS, _DEPTHS = 16, (64, 32, 16), (128, 64, 32, 16)


class _Tile(NamedTuple):
    """Columns and depth of a step."""

    columns: int
    depth: int


def are_few(*, num_rows: int, num_groups: int) -> bool:
    """Whether this is the kernel for so many rows."""
    return num_rows <= _FEW * num_groups


def product(
    rows: Float[Array, "R In"],
    weights: Float[Array, "E In Out"],
    group_sizes: Int[Array, " E"],
    *,
    transposed: bool,
    interpret: bool,
) -> Float[Array, "R Out"]:
    """As `matmul.grouped_matmul`; with `transposed` the weights are [E, Out, In].

    Args:
      rows: [R, In], float32, bfloat16 or float16; R at least 1.
      weights: [E, In, Out] in the dtype of `rows`, or transposed; sides are multiples of 16.
      group_sizes: [E] integers that sum to at most R.
      transposed: static.
      interpret: runs the kernel step by step, on any device; for tests.

    Cost: a program multiplies all tiles of a group, one after the other, with its columns, so that
    one group with all of R rows takes R / 16 steps where even groups take one.
    """
    num_groups, num_in = weights.shape[0], rows.shape[1]
    num_out = weights.shape[1 if transposed else 2]
    tile = _Tile(tiles.largest_divisor(num_out, _WIDTHS), tiles.largest_divisor(num_in, _DEPTHS))
    whole = pl.BlockSpec(memory_space=pl.ANY)
    # Of float32 three do not fit into the shared memory of every GPU.
    num_stages = 3 if rows.dtype.itemsize == 2 else 2
    return pl.pallas_call(
        functools.partial(_few_product, tile=tile, transposed=transposed),
        out_shape=varying.shape_like((rows.shape[0], num_out), rows),
        grid=(num_out // tile.columns, num_groups + 1),
        in_specs=[whole] * 3,
        out_specs=whole,
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=num_stages),
        interpret=interpret,
        name="few_product",
    )(group_sizes.astype(jnp.int32), rows, weights)


def _few_product(
    size_ref: Any, rows_ref: Any, weights_ref: Any, out_ref: Any, *, tile: _Tile, transposed: bool
) -> None:
    group = pl.program_id(1)
    columns = pl.ds(pl.program_id(0) * tile.columns, tile.columns)
    (num_rows, num_in), num_groups = rows_ref.shape, weights_ref.shape[0]
    sizes = triton.entries(size_ref)
    index = jnp.arange(sizes.size, dtype=jnp.int32)
    start = jnp.sum(jnp.where(index < group, sizes, 0))
    # The last program has the rows that no group holds: their sum has no terms.
    size = jnp.sum(jnp.where(index == group, sizes, 0))
    size = jnp.where(group < num_groups, size, num_rows - start)
    num_steps = jnp.where(group < num_groups, jnp.int32(num_in // tile.depth), jnp.int32(0))
    matrix = jnp.minimum(group, num_groups - 1)

    def one_tile(number: Array, done: Array) -> Array:
        window = pl.ds(start + number * _TILE_ROWS, _TILE_ROWS)
        row = number * _TILE_ROWS + jnp.arange(_TILE_ROWS, dtype=jnp.int32)
        is_mine = (row < size)[:, None]

        def step(i: Array, total: Array) -> Array:
            inner = pl.ds(i * tile.depth, tile.depth)
            x = plt.load(rows_ref.at[window, inner], mask=is_mine, other=0)
            if transposed:
                w = plt.load(weights_ref.at[matrix, columns, inner]).T
            else:
                w = plt.load(weights_ref.at[matrix, inner, columns])
            return total + triton.dot(x, w)

        zeros = jnp.zeros((_TILE_ROWS, tile.columns), jnp.float32)
        total = jax.lax.fori_loop(jnp.int32(0), num_steps, step, zeros)
        plt.store(out_ref.at[window, columns], total.astype(out_ref.dtype), mask=is_mine)
        return done

    num_tiles = (size + _TILE_ROWS - 1) // _TILE_ROWS
    jax.lax.fori_loop(jnp.int32(0), num_tiles, one_tile, jnp.int32(0))
