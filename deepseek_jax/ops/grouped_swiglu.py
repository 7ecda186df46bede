"""SwiGLU of many experts, each on the rows of its group, at the cost of the rows. Floor 1.

    y = (silu(x gate_e) * (x up_e)) down_e,  arXiv:2002.05202, eq. 5 without biases

Rows are cut into blocks of `block_rows`, each of which belongs to one expert; one loop over the
blocks in use takes each through all three matrices, and one loop backward makes all gradients.
Only the arguments are kept for it. Nothing of size rows x experts, and no hidden layer of all
rows, is ever made. Axes: R rows, b rows of a block, E experts, D model,
F expert hidden, 2F gate and up side by side.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import swiglu, varying

_LARGEST_BLOCK = 1024


def block_rows_for(num_assignments: int, num_experts: int) -> int:
    """Rows of a block for a number of assignments; measured by `benchmarks.moe_layer_cpu`.

    Args:
      num_assignments: T * K.
      num_experts: E.

    Returns:
      A power of two, at most half of the mean rows of an expert, so that padding adds about
      a quarter of the rows at most; 1 for few assignments, so that one token costs K rows.
      Larger blocks than the largest returned were no faster on a CPU (docs/log.md).
    """
    block = 1
    while block < _LARGEST_BLOCK and 4 * block * num_experts <= num_assignments:
        block *= 2
    return block


def grouped_swiglu(
    rows: Float[Array, "R D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    group_sizes: Int[Array, " E"],
    *,
    block_rows: int,
) -> Float[Array, "R D"]:
    """Each row through the expert of its group; differentiable in rows and matrices.

    Args:
      rows: [R, D], any float dtype; the rows of expert 0, then of expert 1, and so on.
      gate: [E, D, F] in the dtype of `rows`.
      up: [E, D, F] same dtype.
      down: [E, F, D] same dtype.
      group_sizes: [E] int32, multiples of `block_rows` that sum to at most R.
      block_rows: rows that are computed at once; static; divides R.

    Returns:
      [R, D] in the dtype of `rows`; zero, and no gradient, for rows past the last group.
      Matmuls and the gradients of the matrices accumulate in float32.

    Raises:
      ValueError: R is no multiple of `block_rows` (trace time).

    Cost: 6 D F FLOPs a row of `sum(group_sizes)` forward and 16 D F backward, where the hidden
    layer is made again. The gradient of the matrices reads and writes 3 D F float32 a block.
    """
    chex.assert_rank([rows, gate, up, down, group_sizes], [2, 3, 3, 3, 1])
    num_experts, model_dim, width = gate.shape
    chex.assert_shape(rows, (None, model_dim))
    chex.assert_shape(up, (num_experts, model_dim, width))
    chex.assert_shape(down, (num_experts, width, model_dim))
    chex.assert_shape(group_sizes, (num_experts,))
    chex.assert_type([gate, up, down], rows.dtype)
    if block_rows < 1 or rows.shape[0] % block_rows:
        raise ValueError(f"block_rows={block_rows} is not a divisor of {rows.shape[0]} (rows)")
    # The gradient of what is the same on all devices is the sum of theirs.
    arguments = (rows, gate, up, down, group_sizes)
    return _grouped_swiglu(*(varying.like(x, *arguments) for x in arguments), block_rows)


def grouped_swiglu_reference(
    rows: Float[Array, "R D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    group_sizes: Int[Array, " E"],
) -> Float[Array, "R D"]:
    """The oracle, in float32: every row through every expert, then its group's is chosen."""
    ends = jnp.cumsum(group_sizes)
    index = jnp.arange(rows.shape[0])[:, None]
    member = (index < ends[None, :]) & (index >= (ends - group_sizes)[None, :])
    wide, gate, up, down = (x.astype(jnp.float32) for x in (rows, gate, up, down))
    gates, ups = (jnp.einsum("rd,edf->ref", wide, matrices) for matrices in (gate, up))
    hidden = jax.nn.silu(gates) * ups
    answers = jnp.einsum("ref,efd->red", hidden, down)
    return jnp.sum(jnp.where(member[:, :, None], answers, 0.0), axis=1).astype(rows.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _grouped_swiglu(
    rows: Array, gate: Array, up: Array, down: Array, group_sizes: Array, block_rows: int
) -> Array:
    experts, num_used = _block_experts(group_sizes, rows.shape[0] // block_rows, block_rows)

    def step(i: Array, out: Array) -> Array:
        expert = experts[i]
        both = swiglu.matmul("bd,df->bf", _block(rows, i, block_rows), _gate_up(gate, up, expert))
        answers = swiglu.matmul("bf,fd->bd", _gated_halves(both), down[expert])
        return jax.lax.dynamic_update_slice_in_dim(out, answers, i * block_rows, 0)

    out = varying.like(jnp.zeros(rows.shape, rows.dtype), rows)
    return jax.lax.fori_loop(0, num_used, step, out)


def _forward(
    rows: Array, gate: Array, up: Array, down: Array, group_sizes: Array, block_rows: int
) -> tuple[Array, tuple[Array, ...]]:
    arguments = (rows, gate, up, down, group_sizes)
    return _grouped_swiglu(*arguments, block_rows), arguments


def _backward(
    block_rows: int, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array, Array, Array, Array, None]:
    rows, gate, up, down, group_sizes = saved
    experts, num_used = _block_experts(group_sizes, rows.shape[0] // block_rows, block_rows)

    def step(i: Array, totals: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d_rows, d_gate_up, d_down = totals
        expert = experts[i]
        x, d_answers = _block(rows, i, block_rows), _block(d_out, i, block_rows)
        gate_up = _gate_up(gate, up, expert)
        hidden, pull = jax.vjp(_gated_halves, swiglu.matmul("bd,df->bf", x, gate_up))
        (d_both,) = pull(swiglu.matmul("bd,fd->bf", d_answers, down[expert]))
        d_x = swiglu.matmul("bf,df->bd", d_both, gate_up)
        return (
            jax.lax.dynamic_update_slice_in_dim(d_rows, d_x, i * block_rows, 0),
            d_gate_up.at[expert].add(_outer(x, d_both)),
            d_down.at[expert].add(_outer(hidden, d_answers)),
        )

    num_experts, model_dim, width = gate.shape
    totals = (
        jnp.zeros(rows.shape, rows.dtype),
        jnp.zeros((num_experts, model_dim, 2 * width), jnp.float32),
        jnp.zeros((num_experts, width, model_dim), jnp.float32),
    )
    totals = jax.tree.map(lambda total: varying.like(total, rows), totals)
    d_rows, d_gate_up, d_down = jax.lax.fori_loop(0, num_used, step, totals)
    d_gate, d_up = jnp.split(d_gate_up.astype(gate.dtype), 2, axis=-1)
    return d_rows, d_gate, d_up, d_down.astype(down.dtype), None


_grouped_swiglu.defvjp(_forward, _backward)


def _block_experts(group_sizes: Array, num_blocks: int, block_rows: int) -> tuple[Array, Array]:
    """The expert of each block [num_blocks] and the number of blocks in use []."""
    ends = jnp.cumsum(group_sizes // block_rows)
    experts = jnp.searchsorted(ends, jnp.arange(num_blocks, dtype=ends.dtype), side="right")
    return experts.astype(jnp.int32), ends[-1]


def _block(rows: Float[Array, "R D"], i: Array, block_rows: int) -> Float[Array, "b D"]:
    return jax.lax.dynamic_slice_in_dim(rows, i * block_rows, block_rows)


def _gate_up(
    gate: Float[Array, "E D F"], up: Float[Array, "E D F"], expert: Array
) -> Float[Array, "D 2F"]:
    """Gate and up of one expert side by side.

    One matmul with both is the better cut over a CPU's cores, which XLA does only for those of
    about 512 x 128 x 256 multiplications and more.
    """
    return jnp.concatenate([gate[expert], up[expert]], axis=-1)


def _gated_halves(both: Float[Array, "b 2F"]) -> Float[Array, "b F"]:
    return swiglu.gated(*jnp.split(both, 2, axis=-1))


def _outer(x: Float[Array, "b In"], y: Float[Array, "b Out"]) -> Float[Array, "In Out"]:
    """x^T y in float32."""
    return jnp.einsum("bi,bj->ij", x, y, preferred_element_type=jnp.float32)
