"""Tokens through their experts on one device: dispatch, experts, combine. Floor 1.

Axes: T tokens, K experts of a token, E experts, D model.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.ops import dispatch, experts, grouped_swiglu
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped import few_rows, few_tokens
from deepseek_jax.ops.grouped import swiglu as kernels
from deepseek_jax.ops.grouped.matmul import ON_NVIDIA, Backend
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

# (tokens [T, D], expert_ids [T, K], shares [T, K], weights) -> answers [T, D].
_Compute = Callable[
    [Float[Array, "T D"], Int[Array, "T K"], Float[Array, "T K"], ExpertWeights],
    Float[Array, "T D"],
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

    Few tokens, as in decoding, go through `few_tokens` where the backend is one for NVIDIA GPUs,
    numbers have 16 bits, and there is no backward pass; it rounds less, and answers differ by that.

    Args:
      backend: of the matmuls.
      recompute: as `kernels.routed_swiglu`.
      interpret: runs the kernels of the matmuls step by step, on any device; for tests.
      fused: as `kernels.routed_swiglu`, where the backend can and rows are not few.
    """

    def by_rows(
        tokens: Float[Array, "T D"],
        expert_ids: Int[Array, "T K"],
        shares: Float[Array, "T K"],
        weights: ExpertWeights,
    ) -> Float[Array, "T D"]:
        num_experts = weights.gate.shape[0]
        plan = dispatch.dropless_plan(
            expert_ids, jnp.ones(len(tokens), bool), num_experts=num_experts, block_rows=1
        )
        num_rows = dispatch.most_rows(*expert_ids.shape, num_experts=num_experts)
        are_few = few_rows.are_few(num_rows=num_rows, num_groups=num_experts)
        return kernels.routed_swiglu(
            tokens,
            shares,
            *weights,
            plan,
            backend=backend,
            interpret=interpret,
            recompute=recompute,
            fused=fused and backend in kernels.FUSED and not are_few,
        )

    def at_once(
        tokens: Float[Array, "T D"],
        expert_ids: Int[Array, "T K"],
        shares: Float[Array, "T K"],
        weights: ExpertWeights,
    ) -> Float[Array, "T D"]:
        return few_tokens.routed_swiglu(tokens, expert_ids, shares, *weights, interpret=interpret)

    def moe(
        tokens: Float[Array, "T D"],
        token_mask: Bool[Array, " T"],
        routing: Routing,
        weights: ExpertWeights,
    ) -> MoeOutput:
        compute: _Compute = by_rows
        are_few = few_tokens.are_few(num_tokens=len(tokens), dtype=tokens.dtype)
        if backend in ON_NVIDIA and are_few:
            kernels.check(tokens, routing.weights, *weights, backend=backend, interpret=interpret)
            compute = _without_gradient(at_once, by_rows)
        ids = jnp.where(token_mask[:, None], routing.expert_ids, weights.gate.shape[0])
        return MoeOutput(compute(tokens, ids, routing.weights, weights), jnp.int32(0))

    return moe


def _without_gradient(forward: _Compute, with_gradient: _Compute) -> _Compute:
    """The one where nothing is differentiated, the other where something is."""
    compute = jax.custom_vjp(forward)

    def kept(
        tokens: Array, expert_ids: Array, shares: Array, weights: ExpertWeights
    ) -> tuple[Array, Any]:
        return jax.vjp(
            lambda tokens, shares, weights: with_gradient(tokens, expert_ids, shares, weights),
            tokens,
            shares,
            weights,
        )

    def pulled(pull: Any, d_x: Array) -> tuple[Array, None, Array, ExpertWeights]:
        d_tokens, d_shares, d_weights = pull(d_x)
        return d_tokens, None, d_shares, d_weights

    compute.defvjp(kept, pulled)
    return compute


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
