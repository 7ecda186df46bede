"""The gradients of the hidden layer of routed experts by what it is made of, for Hopper. Floor 1.

The gradient of the hidden layer, a product, never leaves the registers: a tile of it meets the
tiles of gate and up that belong to it, which come through the ring behind what is multiplied. Axes:
R rows, E groups, D model, F hidden.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles
from deepseek_jax.ops.grouped.hopper import gated, pipeline, storing
from deepseek_jax.ops.grouped.hopper.pipeline import (
    DEPTH,
    EIGHT,
    HALF,
    HEIGHT,
    NUM_WORKERS,
    Read,
    Work,
)
from deepseek_jax.ops.grouped.hopper.walk import (
    Tile,
    Walk,
    row_in_tiles,
    rows_of_all_tiles,
    whole_rows,
)


def gated_back(
    d_answers: Float[Array, "R D"],
    weights: Float[Array, "R 1"],
    gates: Float[Array, "R F"],
    ups: Float[Array, "R F"],
    down: Float[Array, "E F D"],
    group_sizes: Int[Array, " E"],
    *,
    interpret: bool,
) -> tuple[Float[Array, "R F"], Float[Array, "R F"], Float[Array, " R"]]:
    """The gradients of gates, ups and weights.

    Args:
      d_answers: [R, D] gradient of the rows' answers, a dtype and shapes that `limits.refusal` has
        nothing against, finite.
      weights: [R, 1] float32, finite.
      gates: [R, F] in the dtype of `d_answers`, as `gated.gated` keeps them.
      ups: [R, F] same dtype.
      down: [E, F, D] same dtype.
      group_sizes: [E] integers, any sizes from 0 that sum to at most R.
      interpret: as `matmul.grouped_matmul`.

    Returns:
      d_gates, d_ups [R, F] in the dtype of `d_answers` and d_weights [R] float32, as
      `swiglu.gradients` makes of the gradient of the hidden layer, rounded; zero for rows that no
      group holds, whose gates and ups must be zero.

    Raises:
      NotImplementedError: from `limits.interpreter`.
    """
    num_rows, hidden_dim = gates.shape
    width = tiles.largest_divisor(hidden_dim, pipeline.WIDTHS)
    whole = whole_rows(num_rows, least=HEIGHT)
    gates, ups, d_answers = (
        jnp.pad(each, ((0, whole - num_rows), (0, 0))) for each in (gates, ups, d_answers)
    )
    sizes = group_sizes.astype(jnp.int32)
    wide = varying.shape_like((whole, hidden_dim), d_answers)
    partial = varying.shape_like(
        (hidden_dim // width, rows_of_all_tiles(sizes, whole)), d_answers, jnp.dtype(jnp.float32)
    )
    *found, parts = pipeline.call(
        functools.partial(_work, width=width),
        sizes,
        gated.padded_weights(weights, whole),
        gates,
        ups,
        down,
        d_answers,
        results=[wide, wide, partial],
        buffers=storing.buffers(d_answers.dtype),
        width=width,
        transposed=(False, True),
        interpret=interpret,
    )
    d_gates, d_ups = (each[:num_rows] for each in found)
    d_weights = jnp.sum(jnp.take(parts, row_in_tiles(sizes, num_rows), axis=1), axis=0)
    return d_gates, d_ups, d_weights


def _work(
    size_ref: Any,
    weight_ref: Any,
    gates_ref: Any,
    ups_ref: Any,
    down_ref: Any,
    d_answers_ref: Any,
    d_gates_ref: Any,
    d_ups_ref: Any,
    partial_ref: Any,
    *,
    program: Array,
    num_programs: int,
    worker: Array,
    storage: Any,
    width: int,
) -> Work:
    num_rows, num_columns = d_gates_ref.shape
    results = (d_gates_ref, d_ups_ref)
    walk = Walk(size_ref, down_ref.shape[0], num_rows, num_columns // width, program, num_programs)
    # A slot of the ring has so many times DEPTH columns of all rows of a tile.
    fit = width // HEIGHT
    pieces = [(begin, ref) for begin in range(0, width, DEPTH) for ref in (gates_ref, ups_ref)]

    def blocks(tile: Tile, j: Array) -> tuple[list[Any], list[Any]]:
        inner = pl.ds(j * DEPTH, DEPTH)
        columns = pl.ds(walk.corner(tile)[1] * width, width)
        y = walk.matrix(tile, down_ref).at[columns, inner]
        return [d_answers_ref.at[half, inner] for half in walk.halves(tile)], [y]

    def slot_of(some: list[Any], tile: Tile) -> list[Any]:
        first, across = walk.corner(tile)
        rows = pl.ds(first * EIGHT, HEIGHT)
        return [ref.at[rows, pl.ds(across * width + begin, DEPTH)] for begin, ref in some]

    def piece(begin: int, read: Read) -> list[Array]:
        """A worker's gates and ups of some columns, from the ring, whose slots it hands back."""
        found = []
        for at in (number for number, (first, _) in enumerate(pieces) if first == begin):
            place = at % fit
            if not place:
                block, hand_back = read(at // fit)
            mine = block.at[pl.ds(place * HEIGHT + worker * HALF, HALF)]
            found.append(plgpu.layout_cast(mine[...], plgpu.Layout.WGMMA))
            if place == fit - 1:
                plgpu.commit_smem()  # what was read is read before copies overwrite it
                hand_back()
        return found

    def store(tile: Tile, parts: list[Array], read: Read) -> None:
        (d_hidden,) = parts
        place = walk.place(tile, worker)
        across = walk.corner(tile)[1]
        row_weights = gated.half_weights(weight_ref, place)
        sums = []
        for begin in range(0, width, DEPTH):
            d_piece = d_hidden[:, begin : begin + DEPTH]
            gates, ups = piece(begin, read)
            made, part = _pulled(gates, ups, d_piece, row_weights)
            sums.append(part)
            storing.store_rows(
                storing.columns_of(list(zip(made, results, strict=True))),
                place,
                column=across * width + begin,
                num_columns=DEPTH,
                storage=storage,
                worker=worker,
                num_before=begin // storing.STORED * len(results),
            )
        down_number = jax.lax.div(tile.number, jnp.int32(walk.tiles_across))
        rows = pl.ds((down_number * NUM_WORKERS + worker) * HALF, HALF)
        partial_ref[across, rows] = functools.reduce(jnp.add, sums)

    reads = [
        functools.partial(slot_of, pieces[begin : begin + fit])
        for begin in range(0, len(pieces), fit)
    ]
    return walk.work(d_answers_ref.shape[1], blocks=[blocks], store=store, reads=reads)


def _pulled(
    gates: Float[Array, "64 C"],
    ups: Float[Array, "64 C"],
    d_hidden: Float[Array, "64 C"],
    weights: Float[Array, "64"],
) -> tuple[list[Array], Array]:
    """`swiglu.gradients` of a few columns; of d_weights their part."""
    wide, wide_ups, wide_d = (each.astype(jnp.float32) for each in (gates, ups, d_hidden))
    share = gated.sigmoid(wide)
    silu = wide * share
    weighted = jax.lax.broadcast_in_dim(weights, gates.shape, (0,)) * wide_d
    d_gates = weighted * wide_ups * (share + silu * (1.0 - share))
    made = [each.astype(gates.dtype) for each in (d_gates, weighted * silu)]
    return made, jnp.sum(wide_d * (silu * wide_ups), axis=1)
