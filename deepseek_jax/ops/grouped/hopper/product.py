"""The product of rows and the matrices of their groups, a kernel for Hopper. Floor 1.

Axes: R rows, E groups, In and Out of the matrices.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles
from deepseek_jax.ops.grouped.hopper import pipeline, storing
from deepseek_jax.ops.grouped.hopper.pipeline import DEPTH, Read, Work
from deepseek_jax.ops.grouped.hopper.walk import Tile, Walk, whole_rows


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
    return sum_of_products(
        [rows], [weights], group_sizes, transposed=transposed, interpret=interpret
    )


def sum_of_products(
    rows: Sequence[Float[Array, "R In"]],
    weights: Sequence[Float[Array, "E In Out"]],
    group_sizes: Int[Array, " E"],
    *,
    transposed: bool,
    interpret: bool,
) -> Float[Array, "R Out"]:
    """The sum of the products of pairs, all of one shape, in float32 and rounded once.

    Else as `product`.
    """
    num_rows, num_in = rows[0].shape
    num_out = weights[0].shape[1 if transposed else 2]
    width = tiles.largest_divisor(num_out, pipeline.WIDTHS)
    whole = whole_rows(num_rows)
    (out,) = pipeline.call(
        functools.partial(_work, width=width, transposed=transposed),
        group_sizes.astype(jnp.int32),
        *weights,
        *(jnp.pad(each, ((0, whole - num_rows), (0, 0))) for each in rows),
        results=[varying.shape_like((whole, num_out), rows[0])],
        buffers=storing.buffers(rows[0].dtype),
        width=width,
        transposed=(False, transposed),
        interpret=interpret,
    )
    return out[:num_rows]


def _work(
    size_ref: Any,
    *references: Any,
    program: Array,
    num_programs: int,
    worker: Array,
    storage: Any,
    width: int,
    transposed: bool,
) -> Work:
    *pairs, out_ref = references
    weight_refs, row_refs = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    num_rows, num_out = out_ref.shape
    num_groups = weight_refs[0].shape[0]
    walk = Walk(size_ref, num_groups, num_rows, num_out // width, program, num_programs)

    def blocks(
        weights_ref: Any, rows_ref: Any, tile: Tile, j: Array
    ) -> tuple[list[Any], list[Any]]:
        inner = pl.ds(j * DEPTH, DEPTH)
        matrix = walk.matrix(tile, weights_ref)
        columns = pl.ds(walk.corner(tile)[1] * width, width)
        y = matrix.at[columns, inner] if transposed else matrix.at[inner, columns]
        return [rows_ref.at[half, inner] for half in walk.halves(tile)], [y]

    def store(tile: Tile, parts: list[Array], _: Read) -> None:
        (numbers,) = parts
        storing.store_rows(
            storing.columns_of([(numbers, out_ref)]),
            walk.place(tile, worker),
            column=walk.corner(tile)[1] * width,
            num_columns=width,
            storage=storage,
            worker=worker,
        )

    pairs_of_blocks = [
        functools.partial(blocks, *pair) for pair in zip(weight_refs, row_refs, strict=True)
    ]
    return walk.work(row_refs[0].shape[1], blocks=pairs_of_blocks, store=store)
