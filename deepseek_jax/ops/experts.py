"""SwiGLU experts on rows, in the layouts that dispatch makes. Floor 1.

    swiglu(x) = (silu(x gate) * (x up)) down,  arXiv:2002.05202, eq. 5 without biases

Matmuls accumulate in float32; the gated product is taken in float32 and rounded to the dtype
of the rows. Axes: R rows, E experts, C capacity, T tokens, K experts of a token, D model,
F expert hidden.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from deepseek_jax.ops import grouped_swiglu, swiglu
from deepseek_jax.ops.routing import Routing


class ExpertWeights(NamedTuple):
    """The three matrices of every expert, in the dtype of the rows."""

    gate: Float[Array, "E D F"]
    up: Float[Array, "E D F"]
    down: Float[Array, "E F D"]


def swiglu_dropless(
    rows: Float[Array, "R D"],
    weights: ExpertWeights,
    group_sizes: Int32[Array, " E"],
    *,
    block_rows: int,
) -> Float[Array, "R D"]:
    """Each row through the expert whose group it stands in.

    Args:
      rows: [R, D], as `dispatch` filled them for `dropless_plan`.
      weights: of all experts.
      group_sizes: [E] int32, multiples of `block_rows`.
      block_rows: of the plan; static.

    Returns:
      [R, D] in the dtype of `rows`; zero for rows that no group holds.

    Raises:
      ValueError: from `grouped_swiglu`.

    Cost: 6 R D F FLOPs, whatever E is.
    """
    return grouped_swiglu.grouped_swiglu(rows, *weights, group_sizes, block_rows=block_rows)


def swiglu_capacity(rows: Float[Array, "R D"], weights: ExpertWeights) -> Float[Array, "R D"]:
    """Rows of equal groups through their experts, as batched matmuls.

    Args:
      rows: [E * C, D], as `dispatch` filled them for `capacity_plan`.
      weights: of all experts.

    Returns:
      [E * C, D] in the dtype of `rows`.

    Raises:
      ValueError: the number of rows is no multiple of E (trace time).
    """
    num_rows, num_experts = rows.shape[0], weights.gate.shape[0]
    if num_rows % num_experts:
        raise ValueError(f"num_rows={num_rows} is not a multiple of {num_experts} (num_experts)")
    rows_ecd = rows.reshape(num_experts, -1, rows.shape[1])
    gate = swiglu.matmul("ecd,edf->ecf", rows_ecd, weights.gate)
    up = swiglu.matmul("ecd,edf->ecf", rows_ecd, weights.up)
    answers = swiglu.matmul("ecf,efd->ecd", swiglu.gated(gate, up), weights.down)
    return answers.reshape(rows.shape)


def swiglu_every_expert(
    x: Float[Array, "T D"], weights: ExpertWeights, mixture: Float[Array, "T E"]
) -> Float[Array, "T D"]:
    """Every token through every expert, answers weighed: for few experts, or few tokens.

    Args:
      x: [T, D], any float dtype.
      weights: of all experts, in the dtype of `x`.
      mixture: [T, E] float32; weight of each expert's answer, 0 where it was not chosen.

    Returns:
      [T, D] in the dtype of `x`.

    Cost: 6 T E D F FLOPs, E / K times those of the chosen experts, in three plain matmuls.
    """
    num_experts, _, width = weights.gate.shape
    gate = swiglu.matmul("td,edf->tef", x, weights.gate)
    up = swiglu.matmul("td,edf->tef", x, weights.up)
    # The weight goes onto the hidden layer, so that the sum over experts is part of the matmul.
    hidden = swiglu.gated(gate, up).astype(jnp.float32) * mixture[:, :, None]
    flat = hidden.astype(x.dtype).reshape(x.shape[0], num_experts * width)
    return swiglu.matmul("tf,fd->td", flat, weights.down.reshape(num_experts * width, -1))


def swiglu_dense(
    x: Float[Array, "T D"],
    gate: Float[Array, "D F"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
) -> Float[Array, "T D"]:
    """One SwiGLU network on every token: [T, D] in the dtype of `x`."""
    hidden = swiglu.gated(swiglu.matmul("td,df->tf", x, gate), swiglu.matmul("td,df->tf", x, up))
    return swiglu.matmul("tf,fd->td", hidden, down)


def moe_reference(
    x: Float[Array, "T D"],
    routing: Routing,
    weights: ExpertWeights,
    token_mask: Bool[Array, " T"],
) -> Float[Array, "T D"]:
    """The oracle of all paths: every expert on every token, masked; float32 arithmetic.

    Args:
      x: [T, D], any float dtype.
      routing: ids and weights [T, K].
      weights: of all experts.
      token_mask: [T] bool; a token that is False gets a zero.

    Returns:
      [T, D] in the dtype of `x`.

    Cost: T E rows instead of T K.
    """
    num_experts = weights.gate.shape[0]
    chosen = jax.nn.one_hot(routing.expert_ids, num_experts, dtype=jnp.float32)
    mixture = jnp.einsum("tke,tk->te", chosen, routing.weights)
    mixture = jnp.where(token_mask[:, None], mixture, 0.0)
    wide = x.astype(jnp.float32)
    gate, up, down = (matrices.astype(jnp.float32) for matrices in weights)
    gates, ups = (jnp.einsum("td,edf->tef", wide, matrices) for matrices in (gate, up))
    hidden = swiglu.gated(gates, ups)
    return jnp.einsum("tef,efd,te->td", hidden, down, mixture).astype(x.dtype)
