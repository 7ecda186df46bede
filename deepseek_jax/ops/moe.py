"""Tokens through their experts on one device: dispatch, experts, combine. Floor 1.

Axes: T tokens, K experts of a token, E experts, D model.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.ops import dispatch, experts, grouped_swiglu
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped import swiglu as kernels
from deepseek_jax.ops.grouped.matmul import Backend
from deepseek_jax.ops.routing import Routing


class MoeOutput(NamedTuple):
    """Answers [T, D], zero for padding, and the assignments that were dropped []."""

    x: Float[Array, "T D"]
    num_dropped: Int[Array, ""]


# (tokens [T, D], token_mask [T], routing, weights) -> MoeOutput. An expert id of E, the number
# of matrices in `weights`, is no assignment.
Moe = Callable[
    [Float[Array, "T D"], Bool[Array, " T"], Routing, ExpertWeights],
    MoeOutput,
]


def dropless(*, num_assignments: int) -> Moe:
    """Every assignment is computed.

    Args:
      num_assignments: about how many there will be; chooses the size of a block and changes no
        result.
    """

    def moe(
        tokens: Float[Array, "T D"],
        token_mask: Bool[Array, " T"],
        routing: Routing,
        weights: ExpertWeights,
    ) -> MoeOutput:
        num_experts = weights.gate.shape[0]
        block_rows = grouped_swiglu.block_rows_for(num_assignments, num_experts)
        plan = dispatch.dropless_plan(
            routing.expert_ids, token_mask, num_experts=num_experts, block_rows=block_rows
        )
        rows = experts.swiglu_dropless(
            dispatch.dispatch(tokens, plan), weights, plan.group_sizes, block_rows=block_rows
        )
        return MoeOutput(dispatch.combine(rows, routing.weights, plan), plan.num_dropped)

    return moe


def grouped(
    *, backend: Backend, recompute: bool, interpret: bool = False, fused: bool = True
) -> Moe:
    """Every assignment is computed, by grouped matmuls on as many rows as there are assignments.

    Args:
      backend: of the matmuls.
      recompute: as `kernels.routed_swiglu`.
      interpret: runs the kernels of the matmuls step by step, on any device; for tests.
      fused: as `kernels.routed_swiglu`, where the backend can.
    """

    def moe(
        tokens: Float[Array, "T D"],
        token_mask: Bool[Array, " T"],
        routing: Routing,
        weights: ExpertWeights,
    ) -> MoeOutput:
        plan = dispatch.dropless_plan(
            routing.expert_ids, token_mask, num_experts=weights.gate.shape[0], block_rows=1
        )
        answers = kernels.routed_swiglu(
            tokens,
            routing.weights,
            *weights,
            plan,
            backend=backend,
            interpret=interpret,
            recompute=recompute,
            fused=fused and backend in kernels.FUSED,
        )
        return MoeOutput(answers, plan.num_dropped)

    return moe


def every_expert(*, recompute: bool) -> Moe:
    """Every expert on every token; of the answers, those that were asked for.

    Args:
      recompute: the experts are computed again in the backward pass.
    """
    compute = experts.swiglu_every_expert
    if recompute:
        compute = jax.checkpoint(compute)

    def moe(
        tokens: Float[Array, "T D"],
        token_mask: Bool[Array, " T"],
        routing: Routing,
        weights: ExpertWeights,
    ) -> MoeOutput:
        num_experts = weights.gate.shape[0]
        # An id of E, which is no assignment, has a row of zeros.
        chosen = jax.nn.one_hot(routing.expert_ids, num_experts, dtype=jnp.float32)
        mixture = jnp.einsum("tke,tk->te", chosen, routing.weights)
        mixture = jnp.where(token_mask[:, None], mixture, 0.0)
        return MoeOutput(compute(tokens, weights, mixture), jnp.int32(0))

    return moe


def capacity(*, num_assignments: int, factor: float) -> Moe:
    """Each expert takes `factor` times its share of the assignments; the rest is dropped.

    Args:
      num_assignments: expected number, of which E experts have equal shares.
      factor: dimensionless, at least 1.
    """

    def moe(
        tokens: Float[Array, "T D"],
        token_mask: Bool[Array, " T"],
        routing: Routing,
        weights: ExpertWeights,
    ) -> MoeOutput:
        num_experts = weights.gate.shape[0]
        plan = dispatch.capacity_plan(
            routing.expert_ids,
            token_mask,
            num_experts=num_experts,
            capacity=math.ceil(factor * num_assignments / num_experts),
        )
        rows = experts.swiglu_capacity(dispatch.dispatch(tokens, plan), weights)
        return MoeOutput(dispatch.combine(rows, routing.weights, plan), plan.num_dropped)

    return moe
