"""Copies of tokens in the rows of their experts, a kernel for NVIDIA GPUs. Floor 1.

A program reads some tokens once and writes each to all of its rows; a gather reads a token for each
row. Axes: T tokens, K experts of a token, R rows, E experts, D model.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float

from deepseek_jax.ops import varying
from deepseek_jax.ops.dispatch import Plan
from deepseek_jax.ops.grouped import tiles, triton

# Of a program's tile, the best first; measured on an H200 at 32,768 x 4 x 1024 (docs/log.md).
_HEIGHT, _WIDTHS = 32, (512, 256, 128, 64, 32, 16)


class _Tile(NamedTuple):
    """Tokens, or rows, and columns of a program."""

    height: int
    width: int


def rows_of(x: Float[Array, "T D"], plan: Plan, *, interpret: bool) -> Float[Array, "R D"]:
    """As `dispatch.take_rows(x, plan.token_ids)`, of a plan with blocks of one row.

    Args:
      x: [T, D], any float dtype; T at least 1, D a multiple of 16.
      plan: from `dispatch.dropless_plan` with `block_rows` 1, so that only rows behind all groups
        are empty.
      interpret: runs the kernel step by step, on any device; for tests.

    Returns:
      [R, D] in the dtype of `x`; zero for an empty row.
    """
    arguments = (plan.group_sizes, plan.row_ids, x)
    sizes, row_ids, x = (varying.like(each, *arguments) for each in arguments)
    (num_tokens, model_dim), num_rows = x.shape, plan.token_ids.size
    tile = _Tile(_HEIGHT, tiles.largest_divisor(model_dim, _WIDTHS))
    num_programs = [pl.cdiv(number, tile.height) for number in (num_tokens, num_rows)]
    whole = pl.BlockSpec(memory_space=pl.ANY)
    made: Array = pl.pallas_call(
        functools.partial(_spread, tile=tile, num_of_tokens=num_programs[0]),
        out_shape=varying.shape_like((num_rows, model_dim), x),
        grid=(sum(num_programs), model_dim // tile.width),
        in_specs=[whole] * 3,
        out_specs=whole,
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="spread_tokens",
    )(sizes, row_ids, x)
    return made


def _spread(
    size_ref: Any, row_ref: Any, x_ref: Any, out_ref: Any, *, tile: _Tile, num_of_tokens: int
) -> None:
    (num_tokens, top_k), num_rows = row_ref.shape, out_ref.shape[0]
    program = pl.program_id(0)
    index = jnp.arange(tile.height, dtype=jnp.int32)
    columns = pl.ds(pl.program_id(1) * tile.width, tile.width)

    def store(rows: Array, values: Array, is_mine: Array) -> None:
        plt.store(out_ref.at[triton.indices(rows, columns)], values, mask=is_mine[:, None])

    @pl.when(program < num_of_tokens)
    def copy() -> None:
        window = pl.ds(program * tile.height, tile.height)
        is_token = program * tile.height + index < num_tokens
        values = plt.load(x_ref.at[window, columns], mask=is_token[:, None], other=0)
        for k in range(top_k):
            rows = plt.load(row_ref.at[window, jnp.int32(k)], mask=is_token, other=num_rows)
            store(rows, values, rows < num_rows)

    @pl.when(program >= num_of_tokens)
    def clear() -> None:
        num_used = jnp.sum(triton.entries(size_ref))
        rows = (program - num_of_tokens) * tile.height + index
        empty = jnp.zeros((tile.height, tile.width), out_ref.dtype)
        store(rows, empty, (rows >= num_used) & (rows < num_rows))
