"""Gate, up and the hidden layer of routed experts, one kernel for Hopper. Floor 1.

A tile has 128 columns of both products of the same rows, and makes the hidden layer of them before
they leave its registers. Axes: R rows, E groups, D model, F hidden.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped.hopper import pipeline, storing
from deepseek_jax.ops.grouped.hopper.pipeline import DEPTH, EIGHT, HALF, HEIGHT, Read, Work
from deepseek_jax.ops.grouped.hopper.walk import Place, Tile, Walk, whole_rows

_NUM_PARTS = 2
_COLUMNS = 128  # of each part
_WIDTH = _NUM_PARTS * _COLUMNS
_LOG2_E = 1.4426950408889634


class Gated(NamedTuple):
    """The hidden layer [R, F] and, if they are kept, what it is made of, each [R, F]."""

    hidden: Float[Array, "R F"]
    kept: tuple[Float[Array, "R F"], Float[Array, "R F"]] | None


def gated(
    rows: Float[Array, "R D"],
    weights: Float[Array, "R 1"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    group_sizes: Int[Array, " E"],
    *,
    keep: bool,
    interpret: bool,
) -> Gated:
    """The hidden layer, weights * silu(gates) * ups, and with `keep` both products themselves.

    Args:
      rows: [R, D] of a dtype and shapes that `limits.refusal` has nothing against; finite.
      weights: [R, 1] float32, finite.
      gate: [E, D, F] in the dtype of `rows`.
      up: [E, D, F] same dtype.
      group_sizes: [E] integers, any sizes from 0 that sum to at most R.
      keep: static; changes no number of the hidden layer.
      interpret: as `matmul.grouped_matmul`.

    Returns:
      In the dtype of `rows`; zero for rows that no group holds. The products are summed in float32
      and rounded; of the rounded ones the hidden layer is made in float32 and rounded once, as
      `swiglu.weighted_hidden` does.

    Raises:
      NotImplementedError: from `limits.interpreter`.
    """
    num_rows, width = rows.shape[0], gate.shape[2]
    whole = whole_rows(num_rows)
    found = pipeline.call(
        _work,
        group_sizes.astype(jnp.int32),
        padded_weights(weights, whole),
        gate,
        up,
        jnp.pad(rows, ((0, whole - num_rows), (0, 0))),
        results=[varying.shape_like((whole, width), rows)] * (1 + _NUM_PARTS * keep),
        buffers=storing.buffers(rows.dtype),
        width=_WIDTH,
        num_parts=_NUM_PARTS,
        transposed=(False, False),
        interpret=interpret,
    )
    hidden, *kept = (each[:num_rows] for each in found)
    return Gated(hidden, (kept[0], kept[1]) if keep else None)


def padded_weights(weights: Float[Array, "R 1"], num_rows: int) -> Float[Array, " N"]:
    """Weights of as many rows, and of those of a tile that begins in the last of them.

    They are read row by row, which unlike copies may not read behind an array.
    """
    return jnp.pad(weights[:, 0], (0, num_rows + HEIGHT - weights.shape[0]))


def half_weights(weight_ref: Any, place: Place) -> Float[Array, "HALF"]:
    """Of the rows of a worker's half."""
    rows = pl.ds(place.block * EIGHT, HALF)
    # From jax 0.11 on the reference alone, before with indices beside it.
    is_alone = jax.__version_info__ >= (0, 11)
    source = (weight_ref.at[rows],) if is_alone else (weight_ref, rows)
    load: Any = plgpu.load
    loaded: Array = load(*source, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)
    return loaded


def sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Of float32, by two approximations that are an instruction each; a division is many."""
    root = jax.lax.rsqrt(1.0 + jax.lax.exp2(x * -_LOG2_E))
    return root * root


def _work(
    size_ref: Any,
    weight_ref: Any,
    gate_ref: Any,
    up_ref: Any,
    rows_ref: Any,
    hidden_ref: Any,
    *kept_refs: Any,
    program: Array,
    num_programs: int,
    worker: Array,
    storage: Any,
) -> Work:
    num_rows, num_columns = hidden_ref.shape
    num_groups = gate_ref.shape[0]
    walk = Walk(size_ref, num_groups, num_rows, num_columns // _COLUMNS, program, num_programs)

    def blocks(tile: Tile, j: Array) -> tuple[list[Any], list[Any]]:
        inner = pl.ds(j * DEPTH, DEPTH)
        columns = pl.ds(walk.corner(tile)[1] * _COLUMNS, _COLUMNS)
        ys = [walk.matrix(tile, ref).at[inner, columns] for ref in (gate_ref, up_ref)]
        return [rows_ref.at[half, inner] for half in walk.halves(tile)], ys

    def store(tile: Tile, parts: list[Array], _: Read) -> None:
        place = walk.place(tile, worker)
        row_weights = half_weights(weight_ref, place)

        def made(begin: int, columns: int) -> list[tuple[Array, Any]]:
            mine = [each[:, begin : begin + columns] for each in parts]
            gates, ups = (each.astype(jnp.float32) for each in mine)
            share = jax.lax.broadcast_in_dim(row_weights, gates.shape, (0,))
            hidden = share * (gates * sigmoid(gates) * ups)
            pairs = [(hidden.astype(mine[0].dtype), hidden_ref)]
            return [*pairs, *zip(mine, kept_refs, strict=True)] if kept_refs else pairs

        storing.store_rows(
            made,
            place,
            column=walk.corner(tile)[1] * _COLUMNS,
            num_columns=_COLUMNS,
            storage=storage,
            worker=worker,
        )

    return walk.work(rows_ref.shape[1], blocks=[blocks], store=store)
