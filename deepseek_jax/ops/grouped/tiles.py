"""Tiles of consecutive rows that belong to one group each. Floor 1.

Axes: R rows, E groups, T tiles.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Int32


class RowTiles(NamedTuple):
    """Which rows each tile has.

    `group` [T]: of the tile, in [0, E); E for rows that no group holds. `start` [T]: its first row.
    `size` [T]: its rows, at most those of a whole tile; 0 for a tile that is not needed,
    whose start means nothing.
    """

    group: Int32[Array, " T"]
    start: Int32[Array, " T"]
    size: Int32[Array, " T"]


def row_tiles(group_sizes: Int[Array, " E"], *, num_rows: int, tile_rows: int) -> RowTiles:
    """Tiles that begin where their group begins; every row is in exactly one of them.

    Args:
      group_sizes: [E], not negative, sum at most R.
      num_rows: R; static.
      tile_rows: rows of a whole tile; static.

    Returns:
      Tiles in the order of their rows, as many as any sizes can need: R / tile_rows + E + 1 at
      most, the last group being the rows past all groups.
    """
    sizes = group_sizes.astype(jnp.int32)
    sizes = jnp.append(sizes, num_rows - jnp.sum(sizes))
    ends = group_ends(sizes)
    num_tiles = (sizes + tile_rows - 1) // tile_rows
    last_tiles = group_ends(num_tiles)
    most = num_rows // tile_rows + min(sizes.size, num_rows)
    tile = jnp.arange(most, dtype=jnp.int32)
    group = jnp.sum(tile[:, None] >= last_tiles[None, :], axis=1, dtype=jnp.int32)
    group = jnp.minimum(group, sizes.size - 1)
    within = tile - (last_tiles - num_tiles)[group]
    start = (ends - sizes)[group] + within * tile_rows
    size = jnp.clip(ends[group] - start, 0, tile_rows)
    return RowTiles(group, start, size)


def group_ends(sizes: Int[Array, " E"]) -> Int32[Array, " E"]:
    """The cumulative sum: behind the last row of each group.

    By comparing all with all, E^2 operations in one kernel: a scan is many, each as long as its
    launch on a GPU, where a whole matmul of few rows takes no longer.
    """
    group = jnp.arange(sizes.size, dtype=jnp.int32)
    is_before = group[None, :] <= group[:, None]
    return jnp.sum(jnp.where(is_before, sizes.astype(jnp.int32)[None, :], 0), axis=1)


def largest_first(sizes: Int[Array, " E"]) -> Int32[Array, " E"]:
    """The groups in the order of their sizes, equal ones in their own order; no sorting kernel."""
    group = jnp.arange(sizes.size, dtype=jnp.int32)
    is_ahead = (sizes[None, :] > sizes[:, None]) | (
        (sizes[None, :] == sizes[:, None]) & (group[None, :] < group[:, None])
    )
    place = jnp.sum(is_ahead, axis=1, dtype=jnp.int32)
    return jnp.sum(jnp.where(place[None, :] == group[:, None], group[None, :], 0), axis=1)


def largest_divisor(size: int, candidates: tuple[int, ...]) -> int:
    """The first of the candidates that divides a size; one does, by what a backend refuses."""
    found = next((each for each in candidates if size % each == 0), None)
    assert found is not None, f"none of {candidates} divides {size}"
    return found
