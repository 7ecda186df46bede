"""Which tiles of keys a tile of queries needs, and the other way round. Floor 1.

Axes: B sequences, L positions, I tiles of queries, J tiles of keys.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32

# What a span is made of, in this order, along its last axis.
FIRST, WHOLE_START, WHOLE_STOP, STOP = range(4)


class _Tiles(NamedTuple):
    """The least and greatest document of each tile, and whether it has no padding.

    A tile of padding only has a least one above the greatest.
    """

    low: Int32[Array, "B T"]
    high: Int32[Array, "B T"]
    is_full: Bool[Array, "B T"]


def of_keys(
    document_ids: Int[Array, "B L"], *, query_tile: int, key_tile: int
) -> Int32[Array, "B I 4"]:
    """The tiles of keys that each tile of queries needs.

    Of tile i: no tile outside of [FIRST, STOP) has a key that a query of i sees; in those within
    [WHOLE_START, WHOLE_STOP), which lie inside of it, every query of i sees every key.

    Args:
      document_ids: [B, L]; 0 is padding, and so is what a last tile has past L. A token sees
        itself and those before it that have its number, in whatever order numbers come.
      query_tile: queries of a tile; static.
      key_tile: keys of a tile; static.
    """
    return _spans(*_pairs(document_ids, query_tile, key_tile))


def of_queries(
    document_ids: Int[Array, "B L"], *, query_tile: int, key_tile: int
) -> Int32[Array, "B J 4"]:
    """The tiles of queries that see a key of each tile of keys, as in `of_keys`."""
    meet, is_whole = _pairs(document_ids, query_tile, key_tile)
    return _spans(jnp.swapaxes(meet, 1, 2), jnp.swapaxes(is_whole, 1, 2))


def _pairs(
    document_ids: Int[Array, "B L"], query_tile: int, key_tile: int
) -> tuple[Bool[Array, "B I J"], Bool[Array, "B I J"]]:
    """Whether a query of tile i may see a key of tile j, and whether all see all."""
    queries, keys = (_tiles(document_ids, size) for size in (query_tile, key_tile))
    low, high, is_full = (x[:, :, None] for x in queries)
    key_low, key_high, key_is_full = (x[:, None, :] for x in keys)
    first = jnp.arange(low.shape[1], dtype=jnp.int32)[None, :, None] * query_tile
    key_first = jnp.arange(key_low.shape[2], dtype=jnp.int32)[None, None, :] * key_tile
    meet = (low <= key_high) & (key_low <= high) & (key_first < first + query_tile)
    is_one = (low == high) & (key_low == key_high) & is_full & key_is_full
    return meet, meet & is_one & (key_first + key_tile <= first + 1)


def _tiles(document_ids: Int[Array, "B L"], size: int) -> _Tiles:
    num_sequences, length = document_ids.shape
    ids = jnp.pad(document_ids.astype(jnp.int32), ((0, 0), (0, -length % size)))
    ids = ids.reshape(num_sequences, -1, size)
    limits = jnp.iinfo(jnp.int32)
    low = jnp.min(jnp.where(ids == 0, limits.max, ids), axis=2)
    high = jnp.max(jnp.where(ids == 0, limits.min, ids), axis=2)
    return _Tiles(low, high, jnp.all(ids != 0, axis=2))


def _spans(meet: Bool[Array, "B S T"], is_whole: Bool[Array, "B S T"]) -> Int32[Array, "B S 4"]:
    """From the first to behind the last tile that meets; of the whole ones the last run."""
    num_tiles = meet.shape[2]
    tile = jnp.arange(num_tiles, dtype=jnp.int32)[None, None, :]
    stop = jnp.max(jnp.where(meet, tile + 1, 0), axis=2)
    first = jnp.minimum(jnp.min(jnp.where(meet, tile, num_tiles), axis=2), stop)
    whole_stop = jnp.max(jnp.where(is_whole, tile + 1, 0), axis=2)
    breaks = ~is_whole & (tile < whole_stop[:, :, None])
    whole_start = jnp.max(jnp.where(breaks, tile + 1, 0), axis=2)
    # Without whole tiles their run is empty and lies at the first one.
    run = (jnp.maximum(whole_start, first), jnp.maximum(whole_stop, first))
    return jnp.stack([first, *run, stop], axis=2)
