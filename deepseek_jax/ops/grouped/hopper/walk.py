"""The tiles of rows sorted by group, as a program of a kernel for Hopper walks over them. Floor 1.

Tiles of a group begin at the multiple of eight at or before its first row, since copies into a
layout without bank conflicts must; rows of another group in a tile are computed and not stored.
Nothing is worked out before the kernel: each program walks over the sizes of the groups.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int, Int32

from deepseek_jax.ops.grouped import tiles
from deepseek_jax.ops.grouped.hopper import pipeline
from deepseek_jax.ops.grouped.hopper.pipeline import DEPTH, EIGHT, HALF, HEIGHT, NUM_WORKERS, Work


def whole_rows(num_rows: int, *, least: int = HALF) -> int:
    """Rows of an array that kernels read and write, for a number of rows that mean something.

    Copies take whole blocks of eight rows, and none takes more than an array has: half a tile's,
    unless `least` is another number.
    """
    return max(num_rows + -num_rows % EIGHT, least)


def rows_of_all_tiles(sizes: Int[Array, " E"], num_rows: int) -> int:
    """At most so many: a group of s rows has at most (s + 7 + 127) / 128 tiles down."""
    return (num_rows // HEIGHT + 2 * (sizes.shape[0] + 1)) * HEIGHT


def row_in_tiles(sizes: Int32[Array, " E"], num_rows: int) -> Int32[Array, " R"]:
    """The number of each row among those of all tiles, in their order, one tile across."""
    sizes = jnp.append(sizes, num_rows - jnp.sum(sizes))
    ends = tiles.group_ends(sizes)
    starts = ends - sizes
    begins = starts // EIGHT * EIGHT
    num_tiles = jnp.where(sizes > 0, (ends - begins + HEIGHT - 1) // HEIGHT, 0)
    shift = (tiles.group_ends(num_tiles) - num_tiles) * HEIGHT - begins
    row = jnp.arange(num_rows, dtype=jnp.int32)
    is_mine = (row[:, None] >= starts[None, :]) & (row[:, None] < ends[None, :])
    return row + jnp.sum(jnp.where(is_mine, shift[None, :], 0), axis=1, dtype=jnp.int32)


class Tile(NamedTuple):
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


class Place(NamedTuple):
    """Where a half of a tile goes: its first block of eight rows, and those rows of it that do."""

    block: Array
    low: Array
    high: Array


class Walk(NamedTuple):
    """Over the groups, in their order; the tiles of a group's rows follow each other.

    All functions but `num_tiles` and `first`, which walk, cost a few operations.
    """

    sizes: Any
    num_groups: int
    num_rows: int
    tiles_across: int
    program: Array
    num_programs: int

    def num_tiles(self) -> Array:
        """How many the program has."""

        def next_group(_: Array, tile: Tile) -> Tile:
            return self._next_group(tile)

        begin = self._beginning(jnp.int32(0))
        behind = jax.lax.fori_loop(0, self.num_groups + 1, next_group, begin).behind
        return pipeline.share(behind, self.program, self.num_programs)

    def first(self) -> Tile:
        """The program's first tile."""
        return self._found(self._beginning(self.program))

    def following(self, tile: Tile) -> Tile:
        """The program's next tile."""
        return self._found(tile._replace(number=tile.number + self.num_programs))

    def corner(self, tile: Tile) -> tuple[Array, Array]:
        """A tile's first row, in blocks of eight, and its place across."""
        index, across = tile.number - tile.first, jnp.int32(self.tiles_across)
        down = jax.lax.div(index, across) * (HEIGHT // EIGHT)
        return _block(tile.start) + down, jax.lax.rem(index, across)

    def halves(self, tile: Tile) -> list[Any]:
        """The rows of each worker."""
        first, _ = self.corner(tile)
        return [
            pl.ds((first + number * (HALF // EIGHT)) * EIGHT, HALF) for number in range(NUM_WORKERS)
        ]

    def matrix(self, tile: Tile, weights: Any) -> Any:
        """The reference of the group's matrix; of the last one's for rows of no group."""
        return weights.at[jnp.minimum(tile.group, self.num_groups - 1)]

    def work(
        self,
        depth: int,
        *,
        blocks: Sequence[Callable[..., tuple[list[Any], list[Any]]]],
        store: Callable[..., None],
        reads: Sequence[Callable[[Tile], list[Any]]] = (),
    ) -> Work:
        """What a kernel does that walks so, with sums over `depth` columns of rows."""
        return Work(
            num_tiles=self.num_tiles,
            first=self.first,
            following=self.following,
            # None for rows past the last group.
            num_blocks=lambda tile: jnp.where(tile.group < self.num_groups, depth // DEPTH, 0),
            is_idle=self._is_idle,
            blocks=blocks,
            prepare=lambda tile, j, x: None,
            store=store,
            reads=reads,
        )

    def place(self, tile: Tile, worker: Array) -> Place:
        """Of a worker's half."""
        block = self.corner(tile)[0] + worker * (HALF // EIGHT)
        low = jnp.maximum(tile.start - block * EIGHT, 0)
        return Place(block, low, jnp.minimum(tile.end - block * EIGHT, HALF))

    def _is_idle(self, tile: Tile, worker: Array) -> Array:
        _, low, high = self.place(tile, worker)
        return high <= low

    def _beginning(self, number: Array) -> Tile:
        """A tile's number, before all groups."""
        none = jnp.int32(0)
        return Tile(number, jnp.int32(-1), none, none, none, none)

    def _next_group(self, tile: Tile) -> Tile:
        group = tile.group + 1
        size = self.sizes[jnp.minimum(group, self.num_groups - 1)]
        end = jnp.where(group < self.num_groups, tile.end + size, self.num_rows)
        begin = _block(tile.end) * EIGHT
        num_down = jax.lax.div(end - begin + HEIGHT - 1, jnp.int32(HEIGHT))
        num_tiles = jnp.where(end > tile.end, num_down, 0) * self.tiles_across
        return Tile(tile.number, group, tile.end, end, tile.behind, tile.behind + num_tiles)

    def _found(self, tile: Tile) -> Tile:
        """The tile of a number, from one that is not behind it."""

        def is_behind(tile: Tile) -> Array:
            return (tile.number >= tile.behind) & (tile.group <= self.num_groups)

        return jax.lax.while_loop(is_behind, self._next_group, tile)


def _block(row: Array) -> Array:
    return jax.lax.div(row, jnp.int32(EIGHT))
