"""Storing the rows of a tile that are its group's, for the kernels for Hopper. Floor 1."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from deepseek_jax.ops.grouped.hopper import pipeline
from deepseek_jax.ops.grouped.hopper.pipeline import EIGHT, HALF, NUM_WORKERS
from deepseek_jax.ops.grouped.hopper.walk import Place

# Columns that are stored at a time.
STORED = 64
_NUM_BUFFERS = 2

# (first column, columns) -> pairs of numbers [HALF, columns] and the reference that they go to.
Pieces = Callable[[int, int], Sequence[tuple[Array, Any]]]

# (first row, rows) of a piece.
_Copier = Callable[[Any, int], None]


def buffers(dtype: Any) -> dict[str, Any]:
    """The memory that `store_rows` takes, of both workers, by name.

    For rows that are whole blocks of eight and for others, in the same place: of one shape, so
    that a worker's own lie in one place too.
    """
    shape = (NUM_WORKERS, _NUM_BUFFERS, HALF, STORED)
    stored = plgpu.SMEM(shape, dtype, transforms=pipeline.swizzled(STORED))
    return dict(storage=plgpu.RefUnion(stored, plgpu.SMEM(shape, dtype)))


def columns_of(pairs: Sequence[tuple[Array, Any]]) -> Pieces:
    """Pieces of numbers [HALF, all columns] that are there already."""
    return lambda begin, columns: [(each[:, begin : begin + columns], ref) for each, ref in pairs]


def store_rows(
    made: Pieces,
    place: Place,
    *,
    column: Array,
    num_columns: int,
    storage: Any,
    worker: Array,
    num_before: int = 0,
) -> None:
    """Stores the rows [low, high) of a half; whole blocks of eight without bank conflicts.

    Args:
      made: makes a few columns at a time, so that few registers are in use; in each of the ways to
        store them, of which a tile takes one.
      place: of the half.
      column: of the results where the first one goes.
      num_columns: of a tile; static; a multiple of `STORED`.
      storage: of `buffers`.
      worker: whose half it is.
      num_before: pieces of the same half that calls before this one have stored; static.
    """
    block, low, high = place
    stored, plain = storage
    are_blocks = (low == 0) & (jax.lax.rem(high, jnp.int32(EIGHT)) == 0)

    def buffers_of(reference: Any) -> list[Any]:
        return [reference.at[worker, number] for number in range(_NUM_BUFFERS)]

    def pieces(buffers: list[Any], copies: Callable[[_Copier], None]) -> None:
        number = num_before
        for begin in range(0, num_columns, STORED):
            for numbers, out_ref in made(begin, STORED):
                buffer = buffers[number % len(buffers)]
                # Before the first piece all copies of the tile before must have been read.
                plgpu.wait_smem_to_gmem(len(buffers) - 1 if number else 0, wait_read_only=True)
                buffer[...] = numbers
                plgpu.commit_smem()
                target = out_ref.at[:, pl.ds(column + begin, STORED)]
                copies(functools.partial(_copy, buffer, target, block))
                plgpu.commit_smem_to_gmem_group()
                number += 1

    def in_blocks(copy: _Copier) -> None:
        pl.when(high == HALF)(lambda: copy(0, HALF))

        @pl.when(high < HALF)
        def _() -> None:
            _for_each(jax.lax.div(high, jnp.int32(EIGHT)), lambda i: copy(i * EIGHT, EIGHT))

    def in_rows(copy: _Copier) -> None:
        num_blocks = jax.lax.div(high - low, jnp.int32(EIGHT))
        rest = low + num_blocks * EIGHT
        _for_each(num_blocks, lambda i: copy(low + i * EIGHT, EIGHT))
        _for_each(high - rest, lambda i: copy(rest + i, 1))

    @pl.when(are_blocks & (high > 0))
    def _() -> None:
        pieces(buffers_of(stored), in_blocks)

    @pl.when(jnp.logical_not(are_blocks) & (high > low))
    def _() -> None:
        pieces(buffers_of(plain), in_rows)


def _copy(buffer: Any, target: Any, block: Array, row: Any, size: int) -> None:
    """Some rows of a piece; every other size is a descriptor more, which the host has to make."""
    mine, its = buffer.at[pl.ds(row, size)], target.at[pl.ds(block * EIGHT + row, size)]
    plgpu.copy_smem_to_gmem(mine, its, commit_group=False)


def _for_each(number: Array, act: Callable[[Array], None]) -> None:
    jax.lax.fori_loop(0, number, lambda i, _: act(i), None)
