"""Grouped matmuls as Pallas kernels that Triton compiles: NVIDIA GPUs. Floor 1.

One program makes one tile of the result. Programs of one tile of rows follow each other, and rows
of one group, so that what they read is still in the L2 cache. Axes: R rows, E groups, In and Out
of the matrices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles

# The widths of tiles, the best first; a kernel takes the first that divides its matrices.
_WIDTHS = (256, 128, 64, 32, 16)
_DEPTHS = (64, 32, 16)


class _Tile(NamedTuple):
    """Rows, columns and depth of a step, warps of a program, steps that are loaded ahead."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


def refusal(*, num_rows: int, num_in: int, num_out: int) -> str | None:
    """Why this backend can't do these shapes; None if it can."""
    if num_rows < 1:
        return "takes one row or more, not 0"
    if num_in % _DEPTHS[-1] or num_out % _WIDTHS[-1]:
        return f"takes matrices whose two sides are multiples of 16, not {num_in} x {num_out}"
    return None


def product(
    rows: Float[Array, "R In"],
    weights: Float[Array, "E In Out"],
    group_sizes: Int[Array, " E"],
    *,
    transposed: bool,
    interpret: bool,
) -> Float[Array, "R Out"]:
    """As `matmul.grouped_matmul`; with `transposed` the weights are [E, Out, In]."""
    num_rows, num_in = rows.shape
    num_out = weights.shape[1 if transposed else 2]
    tile = _product_tile(num_rows // weights.shape[0], num_in, num_out, rows.dtype)
    # A tile that would end past the last row begins earlier, so there are never too few rows.
    missing = max(tile.rows - num_rows, 0)
    padded = jnp.pad(rows, ((0, missing), (0, 0)))
    listed = tiles.row_tiles(group_sizes, num_rows=num_rows + missing, tile_rows=tile.rows)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    out = pl.pallas_call(
        functools.partial(_product_kernel, tile=tile, transposed=transposed),
        out_shape=varying.shape_like((num_rows + missing, num_out), rows),
        grid=(num_out // tile.columns, listed.group.size),
        in_specs=[whole] * 5,
        out_specs=whole,
        compiler_params=_params(tile),
        interpret=interpret,
        name="grouped_product",
    )(*listed, padded, weights)
    return out[:num_rows]


def outer(
    rows: Float[Array, "R In"],
    d_out: Float[Array, "R Out"],
    group_sizes: Int[Array, " E"],
    *,
    interpret: bool,
) -> Float[Array, "E In Out"]:
    """The gradient of the matrices, d_W of `matmul`, summed in float32."""
    num_in, num_out, num_groups = rows.shape[1], d_out.shape[1], group_sizes.shape[0]
    tile = _outer_tile(num_in, num_out, rows.dtype)
    ends = tiles.group_ends(group_sizes)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        functools.partial(_outer_kernel, tile=tile),
        out_shape=varying.shape_like((num_groups, num_in, num_out), rows),
        grid=(num_out // tile.columns, num_in // tile.rows, num_groups),
        in_specs=[whole] * 4,
        out_specs=whole,
        compiler_params=_params(tile),
        interpret=interpret,
        name="grouped_outer",
    )(ends - group_sizes.astype(jnp.int32), ends, rows, d_out)


def _product_kernel(
    group_ref: Any,
    start_ref: Any,
    size_ref: Any,
    rows_ref: Any,
    weights_ref: Any,
    out_ref: Any,
    *,
    tile: _Tile,
    transposed: bool,
) -> None:
    column, number = pl.program_id(0), pl.program_id(1)
    group, first, size = group_ref[number], start_ref[number], size_ref[number]
    num_rows, num_in = rows_ref.shape
    num_groups = weights_ref.shape[0]
    columns = pl.ds(column * tile.columns, tile.columns)
    start = jnp.minimum(first, num_rows - tile.rows)
    window = pl.ds(start, tile.rows)
    matrix = jnp.minimum(group, num_groups - 1)

    @pl.when(size > 0)
    def _() -> None:
        def step(i: Array, total: Array) -> Array:
            inner = pl.ds(i * tile.depth, tile.depth)
            x = plt.load(rows_ref.at[window, inner])
            if transposed:
                w = plt.load(weights_ref.at[matrix, columns, inner]).T
            else:
                w = plt.load(weights_ref.at[matrix, inner, columns])
            return total + dot(x, w)

        # No group has the rows past the last one: their sum has no terms.
        num_steps = jnp.where(group < num_groups, jnp.int32(num_in // tile.depth), jnp.int32(0))
        zeros = jnp.zeros((tile.rows, tile.columns), jnp.float32)
        total = jax.lax.fori_loop(jnp.int32(0), num_steps, step, zeros)
        row = start + jnp.arange(tile.rows, dtype=jnp.int32)
        is_mine = (row >= first) & (row < first + size)
        plt.store(out_ref.at[window, columns], total.astype(out_ref.dtype), mask=is_mine[:, None])


def _outer_kernel(
    start_ref: Any, end_ref: Any, rows_ref: Any, d_out_ref: Any, out_ref: Any, *, tile: _Tile
) -> None:
    column, row, group = (pl.program_id(axis) for axis in range(3))
    start, end = start_ref[group], end_ref[group]
    across = pl.ds(row * tile.rows, tile.rows)
    columns = pl.ds(column * tile.columns, tile.columns)

    def whole_step(i: Array, total: Array) -> Array:
        taken = pl.ds(start + i * tile.depth, tile.depth)
        return total + dot(
            plt.load(rows_ref.at[taken, across]).T, plt.load(d_out_ref.at[taken, columns])
        )

    def last_step(i: Array, total: Array) -> Array:
        first = start + i * tile.depth
        taken = pl.ds(first, tile.depth)
        is_mine = (first + jnp.arange(tile.depth, dtype=jnp.int32) < end)[:, None]
        x = plt.load(rows_ref.at[taken, across], mask=is_mine, other=0)
        y = plt.load(d_out_ref.at[taken, columns], mask=is_mine, other=0)
        return total + dot(x.T, y)

    num_whole = (end - start) // tile.depth
    num_steps = (end - start + tile.depth - 1) // tile.depth
    total = jnp.zeros((tile.rows, tile.columns), jnp.float32)
    total = jax.lax.fori_loop(jnp.int32(0), num_whole, whole_step, total)
    total = jax.lax.fori_loop(num_whole, num_steps, last_step, total)
    plt.store(out_ref.at[group, across, columns], total.astype(out_ref.dtype))


def indices(rows: Int[Array, " M"], columns: Any) -> tuple[Int[Array, "M N"], Int[Array, "M N"]]:
    """Of rows anywhere and a slice of columns: both arrays, as interpreted kernels want them."""
    column = columns.start + jnp.arange(columns.size, dtype=jnp.int32)
    shape = (rows.size, columns.size)
    return jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(column[None, :], shape)


def entries(reference: Any) -> Int[Array, " N"]:
    """All of a vector of integers, filled up with zeros to a power of two, which Triton wants."""
    index = jnp.arange(pl.next_power_of_2(reference.shape[0]), dtype=jnp.int32)
    held = plt.load(reference.at[jnp.minimum(index, reference.shape[0] - 1)])
    return jnp.where(index < reference.shape[0], held, 0)


def dot(x: Array, y: Array) -> Array:
    """The product, summed in float32; float32 arguments are not rounded to TF32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)


def _product_tile(rows_per_group: int, num_in: int, num_out: int, dtype: Any) -> _Tile:
    """Measured on an H100 at 1024 x 2048 (docs/log.md); half as wide for float32."""
    depth = tiles.largest_divisor(num_in, _DEPTHS)
    widths = _WIDTHS if jnp.dtype(dtype).itemsize == 2 else _WIDTHS[1:]
    columns = tiles.largest_divisor(num_out, widths)
    if rows_per_group < 32:
        return _Tile(16, columns, depth, 4, 3)
    if rows_per_group < 128 or columns < 128:
        return _Tile(64, min(columns, 128), depth, 4, 3)
    return _Tile(128, columns, depth, 8, 3)


def _outer_tile(num_in: int, num_out: int, dtype: Any) -> _Tile:
    widths = _WIDTHS if jnp.dtype(dtype).itemsize == 2 else _WIDTHS[1:]
    rows = tiles.largest_divisor(num_in, _WIDTHS[1:])
    columns = tiles.largest_divisor(num_out, widths)
    return _Tile(rows, columns, _DEPTHS[0] if columns >= 64 else _DEPTHS[1], 8, 3)


def _params(tile: _Tile) -> plt.CompilerParams:
    return plt.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages)
