"""The product of rows and the matrices of their groups, a kernel for Hopper. Floor 1.

Tiles of a group begin at the multiple of eight at or before its first row, since copies into a
layout without bank conflicts must; rows of another group in a tile are computed and not stored.
Nothing is worked out before the kernel: each program walks over the sizes of the groups.
Axes: R rows, E groups, In and Out of the matrices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from deepseek_jax.ops.grouped import tiles
from deepseek_jax.ops.grouped.hopper import limits, pipeline
from deepseek_jax.ops.grouped.hopper.pipeline import DEPTH, EIGHT, HALF, HEIGHT, NUM_WORKERS, Work

# Columns that are stored at a time, of rows that are whole blocks of eight and of others.
_STORED, _PLAIN = 32, 64
_NUM_BUFFERS = 2


def product(
    rows: Float[Array, "R In"],
    weights: Float[Array, "E In Out"],
    group_sizes: Int[Array, " E"],
    *,
    transposed: bool,
    interpret: bool,
) -> Float[Array, "R Out"]:
    """As `matmul.grouped_matmul`; with `transposed` the weights are [E, Out, In].

    Raises:
      NotImplementedError: from `limits.interpreter`.
    """
    num_rows, num_in = rows.shape
    num_out = weights.shape[1 if transposed else 2]
    width = tiles.largest_divisor(num_out, pipeline.WIDTHS)
    assert width is not None, limits.refusal.__doc__
    # Copies take whole blocks of eight rows, and no tile is smaller than half of one.
    whole = max(num_rows + -num_rows % EIGHT, HALF)
    padded = jnp.pad(rows, ((0, whole - num_rows), (0, 0)))
    out = pipeline.call(
        functools.partial(_work, width=width, transposed=transposed),
        group_sizes.astype(jnp.int32),
        weights,
        padded,
        shape=(whole, num_out),
        buffers=dict(
            stored=plgpu.SMEM(
                (NUM_WORKERS, _NUM_BUFFERS, HALF, _STORED),
                rows.dtype,
                transforms=pipeline.swizzled(_STORED),
            ),
            plain=plgpu.SMEM((NUM_WORKERS, HALF, _PLAIN), rows.dtype),
        ),
        width=width,
        transposed=(False, transposed),
        interpret=interpret,
    )
    return out[:num_rows]


class _Tile(NamedTuple):
    """A tile's number, its group, and that group's rows and tiles.

    `group` is E for the rows that no group holds, and E + 1 behind them. Rows are [start, end),
    numbers of tiles [first, behind).
    """

    number: Array
    group: Array
    start: Array
    end: Array
    first: Array
    behind: Array


class _Walk(NamedTuple):
    """Over the groups, in their order; the tiles of a group's rows follow each other."""

    sizes: Any
    num_groups: int
    num_rows: int
    tiles_across: int

    def beginning(self, number: Array) -> _Tile:
        """A tile's number, before all groups."""
        none = jnp.int32(0)
        return _Tile(number, jnp.int32(-1), none, none, none, none)

    def num_tiles(self) -> Array:
        def next_group(_: Array, tile: _Tile) -> _Tile:
            return self.next_group(tile)

        begin = self.beginning(jnp.int32(0))
        return jax.lax.fori_loop(0, self.num_groups + 1, next_group, begin).behind

    def next_group(self, tile: _Tile) -> _Tile:
        group = tile.group + 1
        size = self.sizes[jnp.minimum(group, self.num_groups - 1)]
        end = jnp.where(group < self.num_groups, tile.end + size, self.num_rows)
        begin = _block(tile.end) * EIGHT
        num_down = jax.lax.div(end - begin + HEIGHT - 1, jnp.int32(HEIGHT))
        num_tiles = jnp.where(end > tile.end, num_down, 0) * self.tiles_across
        return _Tile(tile.number, group, tile.end, end, tile.behind, tile.behind + num_tiles)

    def found(self, tile: _Tile) -> _Tile:
        """The tile of a number, from one that is not behind it."""

        def is_behind(tile: _Tile) -> Array:
            return (tile.number >= tile.behind) & (tile.group <= self.num_groups)

        return jax.lax.while_loop(is_behind, self.next_group, tile)

    def corner(self, tile: _Tile) -> tuple[Array, Array]:
        """A tile's first row, in blocks of eight, and its place across."""
        index, across = tile.number - tile.first, jnp.int32(self.tiles_across)
        down = jax.lax.div(index, across) * (HEIGHT // EIGHT)
        return _block(tile.start) + down, jax.lax.rem(index, across)


def _work(
    size_ref: Any,
    weights_ref: Any,
    rows_ref: Any,
    out_ref: Any,
    *,
    program: Array,
    num_programs: int,
    worker: Array,
    stored: Any,
    plain: Any,
    width: int,
    transposed: bool,
) -> Work:
    num_rows, num_out = out_ref.shape
    num_groups = weights_ref.shape[0]
    walk = _Walk(size_ref, num_groups, num_rows, num_out // width)

    def following(tile: _Tile) -> _Tile:
        return walk.found(tile._replace(number=tile.number + num_programs))

    def blocks(tile: _Tile, j: Array) -> tuple[list[Any], Any]:
        first, across = walk.corner(tile)
        inner = pl.ds(j * DEPTH, DEPTH)
        halves = [
            pl.ds((first + number * (HALF // EIGHT)) * EIGHT, HALF) for number in range(NUM_WORKERS)
        ]
        matrix = weights_ref.at[jnp.minimum(tile.group, num_groups - 1)]
        columns = pl.ds(across * width, width)
        y = matrix.at[columns, inner] if transposed else matrix.at[inner, columns]
        return [rows_ref.at[half, inner] for half in halves], y

    def store(tile: _Tile, numbers: Array) -> None:
        first, across = walk.corner(tile)
        block = first + worker * (HALF // EIGHT)
        low = jnp.maximum(tile.start - block * EIGHT, 0)
        high = jnp.minimum(tile.end - block * EIGHT, HALF)
        place = _Place(block, across * width, low, high)
        _store_rows(numbers, out_ref, place, stored.at[worker], plain.at[worker])

    return Work(
        num_tiles=lambda: pipeline.share(walk.num_tiles(), program, num_programs),
        first=lambda: walk.found(walk.beginning(program)),
        following=following,
        # No group has the rows past the last one: their sum has no terms.
        num_blocks=lambda tile: jnp.where(tile.group < num_groups, rows_ref.shape[1] // DEPTH, 0),
        blocks=blocks,
        prepare=lambda tile, j, x: None,
        store=store,
    )


class _Place(NamedTuple):
    """Where a half of a tile goes: its first block of eight rows, its first column, its rows."""

    block: Array
    column: Array
    low: Array
    high: Array


def _store_rows(numbers: Array, out_ref: Any, place: _Place, stored: Any, plain: Any) -> None:
    """Stores the rows [low, high) of a half; whole blocks of eight without bank conflicts."""
    block, column, low, high = place
    are_blocks = (low == 0) & (jax.lax.rem(high, jnp.int32(EIGHT)) == 0)

    def pieces(width: int, buffers: list[Any], copies: Callable[[Any, Any], None]) -> None:
        for number, begin in enumerate(range(0, numbers.shape[1], width)):
            buffer = buffers[number % len(buffers)]
            # Before the first piece all copies of the tile before must have been read.
            plgpu.wait_smem_to_gmem(len(buffers) - 1 if number else 0, wait_read_only=True)
            buffer[...] = numbers[:, begin : begin + width]
            plgpu.commit_smem()
            copies(buffer, pl.ds(column + begin, width))

    def whole(buffer: Any, columns: Any) -> None:
        plgpu.copy_smem_to_gmem(buffer, out_ref.at[pl.ds(block * EIGHT, HALF), columns])

    def blocks(buffer: Any, columns: Any) -> None:
        for size in (32, 16, 8):
            at = jax.lax.div(high, jnp.int32(2 * size)) * (2 * size // EIGHT)
            mine, target = pl.ds(at * EIGHT, size), pl.ds((block + at) * EIGHT, size)
            copy = functools.partial(
                plgpu.copy_smem_to_gmem, buffer.at[mine], out_ref.at[target, columns]
            )
            pl.when((high & size) != 0)(copy)

    def single(buffer: Any, columns: Any) -> None:
        for size in (32, 16, 8, 4, 2, 1):
            at = low + jax.lax.div(high - low, jnp.int32(2 * size)) * (2 * size)
            mine, target = pl.ds(at, size), pl.ds(block * EIGHT + at, size)
            copy = functools.partial(
                plgpu.copy_smem_to_gmem, buffer.at[mine], out_ref.at[target, columns]
            )
            pl.when(((high - low) & size) != 0)(copy)

    swizzled = [stored.at[number] for number in range(_NUM_BUFFERS)]

    @pl.when(high == low + HALF)
    def _() -> None:
        pieces(_STORED, swizzled, whole)

    # A piece is several copies here: one buffer, so that all of them have been read.
    @pl.when(are_blocks & (high > 0) & (high < HALF))
    def _() -> None:
        pieces(_STORED, swizzled[:1], blocks)

    @pl.when(jnp.logical_not(are_blocks) & (high > low))
    def _() -> None:
        pieces(_PLAIN, [plain], single)


def _block(row: Array) -> Array:
    return jax.lax.div(row, jnp.int32(EIGHT))
