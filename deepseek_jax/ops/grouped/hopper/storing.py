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

# Columns that are stored at a time, of rows that are whole blocks of eight and of others.
_STORED, _PLAIN = 32, 64
_NUM_BUFFERS = 2

# (first column, columns) -> pairs of numbers [HALF, columns] and the reference that they go to.
Pieces = Callable[[int, int], Sequence[tuple[Array, Any]]]


def buffers(dtype: Any) -> dict[str, Any]:
    """The memory that `store_rows` takes, of both workers, by name."""
    return dict(
        stored=plgpu.SMEM(
            (NUM_WORKERS, _NUM_BUFFERS, HALF, _STORED),
            dtype,
            transforms=pipeline.swizzled(_STORED),
        ),
        plain=plgpu.SMEM((NUM_WORKERS, HALF, _PLAIN), dtype),
    )


def columns_of(pairs: Sequence[tuple[Array, Any]]) -> Pieces:
    """Pieces of numbers [HALF, all columns] that are there already."""
    return lambda begin, columns: [(each[:, begin : begin + columns], ref) for each, ref in pairs]


def store_rows(
    made: Pieces, place: Place, *, column: Array, num_columns: int, stored: Any, plain: Any
) -> None:
    """Stores the rows [low, high) of a half; whole blocks of eight without bank conflicts.

    Args:
      made: makes a few columns at a time, so that few registers are in use; in each of the ways to
        store them, of which a tile takes one.
      place: of the half.
      column: of the results where the first one goes.
      num_columns: of a tile; static; a multiple of 64.
      stored: of `buffers`, a worker's own.
      plain: of `buffers`, a worker's own.
    """
    block, low, high = place
    are_blocks = (low == 0) & (jax.lax.rem(high, jnp.int32(EIGHT)) == 0)

    def pieces(width: int, buffers: list[Any], copies: Callable[[Any, Any, Any], None]) -> None:
        number = 0
        for begin in range(0, num_columns, width):
            for numbers, out_ref in made(begin, width):
                buffer = buffers[number % len(buffers)]
                # Before the first piece all copies of the tile before must have been read.
                plgpu.wait_smem_to_gmem(len(buffers) - 1 if number else 0, wait_read_only=True)
                buffer[...] = numbers
                plgpu.commit_smem()
                copies(buffer, out_ref, pl.ds(column + begin, width))
                number += 1

    def whole(buffer: Any, out_ref: Any, columns: Any) -> None:
        plgpu.copy_smem_to_gmem(buffer, out_ref.at[pl.ds(block * EIGHT, HALF), columns])

    def blocks(buffer: Any, out_ref: Any, columns: Any) -> None:
        for size in (32, 16, 8):
            at = jax.lax.div(high, jnp.int32(2 * size)) * (2 * size // EIGHT)
            mine, target = pl.ds(at * EIGHT, size), pl.ds((block + at) * EIGHT, size)
            copy = functools.partial(
                plgpu.copy_smem_to_gmem, buffer.at[mine], out_ref.at[target, columns]
            )
            pl.when((high & size) != 0)(copy)

    def single(buffer: Any, out_ref: Any, columns: Any) -> None:
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
