"""The gradient of grouped matrices, a kernel for Hopper. Floor 1.

The tiles of a matrix are summed over the rows of its group. Groups come in order of their size, so
that programs that run at the same time read the same rows and end together. Axes: R rows, E
groups, In and Out of the matrices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles
from deepseek_jax.ops.grouped.hopper import pipeline
from deepseek_jax.ops.grouped.hopper.pipeline import (
    DEPTH,
    EIGHT,
    HALF,
    HEIGHT,
    NUM_WORKERS,
    Read,
    Work,
)

_STORED = 64  # columns that are stored at a time
_NUM_BUFFERS = 2


def outer(
    rows: Float[Array, "R In"],
    d_out: Float[Array, "R Out"],
    group_sizes: Int[Array, " E"],
    *,
    interpret: bool,
) -> Float[Array, "E In Out"]:
    """The gradient of the matrices, d_W of `matmul`, summed in float32.

    Both arguments must be finite in all rows.
    At the edges of groups a row of `rows` that is another's is set to zero, and multiplied.

    Raises:
      NotImplementedError: from `limits.interpreter`.
    """
    num_rows, num_in, num_out = rows.shape[0], rows.shape[1], d_out.shape[1]
    width = tiles.largest_divisor(num_out, pipeline.WIDTHS)
    # Copies take whole blocks of eight rows, of which there must be a block's depth.
    missing = max(num_rows + -num_rows % EIGHT, DEPTH) - num_rows
    rows, d_out = (jnp.pad(x, ((0, missing), (0, 0))) for x in (rows, d_out))
    ends = tiles.group_ends(group_sizes)
    (out,) = pipeline.call(
        functools.partial(_work, width=width),
        tiles.largest_first(group_sizes),
        ends - group_sizes.astype(jnp.int32),
        ends,
        d_out,
        rows,
        results=[varying.shape_like((group_sizes.shape[0], num_in, num_out), rows)],
        buffers=dict(
            stored=plgpu.SMEM(
                (NUM_WORKERS, _NUM_BUFFERS, HALF, _STORED),
                rows.dtype,
                transforms=pipeline.swizzled(_STORED),
            )
        ),
        width=width,
        transposed=(True, False),
        interpret=interpret,
    )
    return out


class _Walk(NamedTuple):
    """Over the matrices in their order, and the tiles of each; a tile is its number."""

    order: Any
    starts: Any
    ends: Any
    tiles_down: int
    tiles_across: int

    def num_tiles(self) -> int:
        return int(self.order.shape[0]) * self.tiles_down * self.tiles_across

    def corner(self, tile: Array) -> tuple[Array, Array, Array]:
        """A tile's group, and its place in the matrix."""
        num_places = jnp.int32(self.tiles_down * self.tiles_across)
        group = self.order[jax.lax.div(tile, num_places)]
        place = jax.lax.rem(tile, num_places)
        across = jnp.int32(self.tiles_across)
        return group, jax.lax.div(place, across), jax.lax.rem(place, across)

    def rows(self, tile: Array) -> tuple[Array, Array, Array]:
        """The first block of eight rows that has one of the tile's group, and its rows."""
        group = self.corner(tile)[0]
        start, end = self.starts[group], self.ends[group]
        return jax.lax.div(start, jnp.int32(EIGHT)), start, end


def _work(
    order_ref: Any,
    start_ref: Any,
    end_ref: Any,
    d_out_ref: Any,
    rows_ref: Any,
    out_ref: Any,
    *,
    program: Array,
    num_programs: int,
    worker: Array,
    stored: Any,
    width: int,
) -> Work:
    _, num_in, num_out = out_ref.shape
    walk = _Walk(order_ref, start_ref, end_ref, num_in // HEIGHT, num_out // width)

    def num_blocks(tile: Array) -> Array:
        first, start, end = walk.rows(tile)
        return jnp.where(end > start, jax.lax.div(end - first * EIGHT + DEPTH - 1, DEPTH), 0)

    def blocks(tile: Array, j: Array) -> tuple[list[Any], list[Any]]:
        _, down, across = walk.corner(tile)
        taken = pl.ds((walk.rows(tile)[0] + j * (DEPTH // EIGHT)) * EIGHT, DEPTH)
        halves = [pl.ds(down * HEIGHT + number * HALF, HALF) for number in range(NUM_WORKERS)]
        columns = pl.ds(across * width, width)
        return [rows_ref.at[taken, half] for half in halves], [d_out_ref.at[taken, columns]]

    def prepare(tile: Array, j: Array, x: Any) -> None:
        first, start, end = walk.rows(tile)
        low = first * EIGHT + j * DEPTH
        _keep_rows(x, start - low, end - low)

    def store(tile: Array, parts: list[Array], _: Read) -> None:
        (numbers,) = parts
        group, down, across = walk.corner(tile)
        row = (down * NUM_WORKERS + worker) * HALF
        for number in range(width // _STORED):
            buffer = stored.at[worker, number % _NUM_BUFFERS]
            begin = number * _STORED
            plgpu.wait_smem_to_gmem(_NUM_BUFFERS - 1, wait_read_only=True)
            buffer[...] = numbers[:, begin : begin + _STORED]
            plgpu.commit_smem()
            columns = pl.ds(across * width + begin, _STORED)
            plgpu.copy_smem_to_gmem(buffer, out_ref.at[group, pl.ds(row, HALF), columns])

    return Work(
        num_tiles=lambda: pipeline.share(walk.num_tiles(), program, num_programs),
        first=lambda: program,
        following=lambda tile: tile + num_programs,
        num_blocks=num_blocks,
        is_idle=lambda tile, worker: False,
        blocks=[blocks],
        prepare=prepare,
        store=store,
    )


def _keep_rows(x: Any, start: Array, end: Array) -> None:
    """Sets the rows of a block that are outside [start, end), another group's, to zero."""

    @pl.when((start > 0) | (end < DEPTH))
    def _() -> None:
        row = plgpu.layout_cast(
            jax.lax.broadcasted_iota(jnp.int32, (DEPTH, HALF), 0), plgpu.Layout.WGMMA
        )
        is_mine = (row >= start) & (row < end)
        x[...] = jnp.where(is_mine, x[...], jnp.zeros((), x.dtype))
        plgpu.commit_smem()
