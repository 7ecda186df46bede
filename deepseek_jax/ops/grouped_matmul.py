"""Rows of many groups times the matrix of their group, at the cost of the rows. Floor 1.

Rows are cut into blocks of `block_rows`, each of which belongs to one group; a loop over the
blocks in use reads one matrix at a time. Nothing of size rows x groups is ever made.
Axes: R rows, E groups (experts), D in, F out.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from deepseek_jax.ops import varying

_LARGEST_BLOCK = 64


def block_rows_for(num_assignments: int, num_experts: int) -> int:
    """Rows of a block for a number of assignments; measured by `benchmarks.moe_layer_cpu`.

    Args:
      num_assignments: T * K.
      num_experts: E.

    Returns:
      A power of two, at most half of the mean rows of an expert, so that padding adds about
      a quarter of the rows at most; 1 for few assignments, so that one token costs K rows.
      Larger blocks than the largest returned win nothing on a CPU.
    """
    block = 1
    while block < _LARGEST_BLOCK and 4 * block * num_experts <= num_assignments:
        block *= 2
    return block


def grouped_matmul(
    rows: Float[Array, "R D"],
    weights: Float[Array, "E D F"],
    group_sizes: Int[Array, " E"],
    *,
    block_rows: int,
) -> Float[Array, "R F"]:
    """Each row times the matrix of its group; differentiable in `rows` and `weights`.

    Args:
      rows: [R, D], any float dtype; the rows of group 0, then of group 1, and so on.
      weights: [E, D, F] in the dtype of `rows`.
      group_sizes: [E] int32, multiples of `block_rows` that sum to at most R.
      block_rows: rows that are multiplied at once; static; divides R.

    Returns:
      [R, F] in the dtype of `rows`, accumulated in float32; zero, and no gradient, for rows
      past the last group.

    Raises:
      ValueError: R is no multiple of `block_rows` (trace time).

    Cost: 2 D F FLOPs a row of `sum(group_sizes)` forward and twice that backward. The
    gradient of the weights reads and writes one [D, F] float32 matrix a block.
    """
    chex.assert_rank([rows, weights, group_sizes], [2, 3, 1])
    chex.assert_equal(rows.shape[1], weights.shape[1])
    chex.assert_equal(weights.shape[0], group_sizes.shape[0])
    chex.assert_equal(rows.dtype, weights.dtype)
    if block_rows < 1 or rows.shape[0] % block_rows:
        raise ValueError(f"block_rows={block_rows} is not a divisor of {rows.shape[0]} (rows)")
    return _grouped_matmul(rows, weights, group_sizes, block_rows)


def grouped_matmul_reference(
    rows: Float[Array, "R D"], weights: Float[Array, "E D F"], group_sizes: Int[Array, " E"]
) -> Float[Array, "R F"]:
    """The oracle: every row times every matrix, then the one of its group is chosen."""
    ends = jnp.cumsum(group_sizes)
    index = jnp.arange(rows.shape[0])[:, None]
    member = (index < ends[None, :]) & (index >= (ends - group_sizes)[None, :])
    products = jnp.einsum("rd,edf->ref", rows, weights, preferred_element_type=jnp.float32)
    return jnp.sum(jnp.where(member[:, :, None], products, 0.0), axis=1).astype(rows.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(
    rows: Float[Array, "R D"],
    weights: Float[Array, "E D F"],
    group_sizes: Int32[Array, " E"],
    block_rows: int,
) -> Float[Array, "R F"]:
    return _products("bd,df->bf", rows, weights, group_sizes, block_rows)


def _forward(
    rows: Array, weights: Array, group_sizes: Array, block_rows: int
) -> tuple[Array, tuple[Array, Array, Array]]:
    return _grouped_matmul(rows, weights, group_sizes, block_rows), (rows, weights, group_sizes)


def _backward(
    block_rows: int, saved: tuple[Array, Array, Array], d_out: Array
) -> tuple[Array, Array, None]:
    rows, weights, group_sizes = saved
    d_rows = _products("bf,df->bd", d_out, weights, group_sizes, block_rows)
    d_weights = _outer_products(rows, d_out, group_sizes, block_rows)
    return d_rows, d_weights.astype(weights.dtype), None


_grouped_matmul.defvjp(_forward, _backward)


def _products(
    subscripts: str, rows: Array, weights: Array, group_sizes: Array, block_rows: int
) -> Array:
    """Each block in use times the matrix of its expert; zero for the blocks behind them."""
    blocks = rows.reshape(-1, block_rows, rows.shape[1])
    experts, num_used = _block_experts(group_sizes, blocks.shape[0], block_rows)

    def product(block: Array, matrix: Array) -> Array:
        out = jnp.einsum(subscripts, block, matrix, preferred_element_type=jnp.float32)
        return out.astype(rows.dtype)

    def step(i: Array, out: Array) -> Array:
        return out.at[i].set(product(blocks[i], weights[experts[i]]))

    shape = jax.eval_shape(product, blocks[0], weights[0]).shape
    zeros = jnp.zeros((blocks.shape[0], *shape), rows.dtype)
    out = jax.lax.fori_loop(0, num_used, step, varying.like(zeros, rows, weights, group_sizes))
    return out.reshape(rows.shape[0], shape[1])


def _outer_products(
    rows: Float[Array, "R D"], d_out: Float[Array, "R F"], group_sizes: Array, block_rows: int
) -> Float[Array, "E D F"]:
    """rows^T d_out of each group, added up in float32 block after block."""
    blocks = rows.reshape(-1, block_rows, rows.shape[1])
    d_blocks = d_out.reshape(-1, block_rows, d_out.shape[1])
    experts, num_used = _block_experts(group_sizes, blocks.shape[0], block_rows)

    def step(i: Array, total: Array) -> Array:
        product = jnp.matmul(blocks[i].T, d_blocks[i], preferred_element_type=jnp.float32)
        return total.at[experts[i]].add(product)

    total = jnp.zeros((group_sizes.shape[0], rows.shape[1], d_out.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, num_used, step, varying.like(total, rows, d_out, group_sizes))


def _block_experts(group_sizes: Array, num_blocks: int, block_rows: int) -> tuple[Array, Array]:
    """The expert of each block [num_blocks] and the number of blocks in use []."""
    ends = jnp.cumsum(group_sizes // block_rows)
    experts = jnp.searchsorted(ends, jnp.arange(num_blocks, dtype=ends.dtype), side="right")
    return experts.astype(jnp.int32), ends[-1]
