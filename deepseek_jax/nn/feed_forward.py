"""Linen shells of the feed-forward part: routed experts, or one dense network. Floor 3."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.nn import conditioning, kernels, parameters, router
from deepseek_jax.ops import balance, experts
from deepseek_jax.ops import moe as moe_ops
from deepseek_jax.ops.grouped import matmul, swiglu
from deepseek_jax.ops.routing import Routing
from deepseek_jax.parallel import exchange, expert_parallel
from deepseek_jax.parallel.expert_parallel import ExpertParallelOutput
from deepseek_jax.parallel.layout import Layout

# Experts for each chosen one up to which computing all of them beats choosing, off the CPU.
_FEW_EXPERTS = 4


class FeedForwardOutput(NamedTuple):
    """The layer's answer, its weighted balancing loss, and its routing statistics."""

    x: Float[Array, "B L D"]
    aux_loss: Float[Array, ""]
    stats: balance.RouterStats | None


class DenseFeedForward(nn.Module):
    """One SwiGLU that every token visits. Params: `gate`, `up` [D, F], `down` [F, D]."""

    spec: ModelSpec

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], token_mask: Bool[Array, "B L"]
    ) -> FeedForwardOutput:
        """Applies the network to every token; there is no loss and no routing."""
        del token_mask
        gate, up, down = _swiglu_params(self, self.spec, "", self.spec.expert_hidden_dim)
        flat = x.reshape(-1, x.shape[-1])
        return FeedForwardOutput(
            experts.swiglu_dense(flat, gate, up, down).reshape(x.shape), jnp.float32(0.0), None
        )


class SparseFeedForward(nn.Module):
    """Routed SwiGLU experts, with shared ones beside them.

    Params: `gate`, `up` [E, D, F], `down` [E, F, D]; with S shared experts `shared_gate`,
    `shared_up` [D, S F] and `shared_down` [S F, D]; float32. With a `layout`, every expert is
    computed on the device that holds it.
    """

    spec: ModelSpec
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        token_mask: Bool[Array, "B L"],
        router_shift: Float[Array, "B E"] | None = None,
    ) -> FeedForwardOutput:
        """Routes tokens to experts, moves them there, and adds up the answers."""
        spec = self.spec
        tokens, mask = x.reshape(-1, x.shape[-1]), token_mask.reshape(-1)
        shift = conditioning.by_token(router_shift, length=x.shape[1])
        routed = router.Router(spec, self.layout, name="router")(tokens, mask, shift)
        weights = self._expert_weights()
        answer = _through_experts(
            tokens, mask, routed.routing, weights, spec=spec, layout=self.layout
        )
        output = answer.x
        if spec.num_shared_experts:
            width = spec.num_shared_experts * spec.expert_hidden_dim
            output += experts.swiglu_dense(tokens, *_swiglu_params(self, spec, "shared_", width))
        stats = balance.router_stats(
            routed.probs,
            routed.routing.expert_ids,
            mask,
            num_dropped=answer.num_dropped,
            num_visits=answer.num_visits,
            num_overflowed=answer.num_overflowed,
        )
        return FeedForwardOutput(output.reshape(x.shape), routed.aux_loss, stats)

    def _expert_weights(self) -> experts.ExpertWeights:
        spec = self.spec
        dtype = jnp.dtype(spec.compute_dtype)
        inner = (spec.num_experts, spec.model_dim, spec.expert_hidden_dim)
        outer = (spec.num_experts, spec.expert_hidden_dim, spec.model_dim)
        enter = parameters.scaled_normal(
            "experts", "expert_embed", "expert_hidden", fan_in=spec.model_dim
        )
        leave = parameters.scaled_normal(
            "experts",
            "expert_hidden",
            "expert_embed",
            fan_in=spec.expert_hidden_dim,
            gain=1.0 / math.sqrt(2 * spec.num_layers),
        )
        return experts.ExpertWeights(
            gate=self.param("gate", enter, inner, jnp.float32).astype(dtype),
            up=self.param("up", enter, inner, jnp.float32).astype(dtype),
            down=self.param("down", leave, outer, jnp.float32).astype(dtype),
        )


def _through_experts(
    tokens: Float[Array, "T D"],
    token_mask: Bool[Array, " T"],
    routing: Routing,
    weights: experts.ExpertWeights,
    *,
    spec: ModelSpec,
    layout: Layout | None,
) -> ExpertParallelOutput:
    """The answers of the experts, here or where they live."""
    num_tokens = tokens.shape[0]
    if layout is None:
        answer = _local_moe(spec, num_tokens)(tokens, token_mask, routing, weights)
        num_visits = jnp.sum(token_mask, dtype=jnp.int32)
        return ExpertParallelOutput(answer.x, answer.num_dropped, num_visits, jnp.int32(0))
    num_local = num_tokens // layout.spec.num_row_shards
    return expert_parallel.moe(
        tokens,
        token_mask,
        routing,
        weights,
        layout=layout,
        local_moe=_local_moe(spec, num_local),
        rows_per_destination=exchange.rows_per_destination(layout.spec, spec, num_tokens=num_local),
    )


def _local_moe(spec: ModelSpec, num_tokens: int) -> moe_ops.Moe:
    """What a device does with rows that bring it about K assignments for each of its tokens."""
    # Also where capacity has no use for it: evaluation and generation are dropless.
    device = jax.devices()[0]
    able = matmul.for_device(device)
    kernels.check("model.expert_kernel", spec.expert_kernel, able, device)
    num_assignments = num_tokens * spec.top_k
    if spec.dispatch == "capacity":
        return moe_ops.capacity(num_assignments=num_assignments, factor=spec.capacity_factor)
    # The loop takes blocks of rows, of which a GPU runs one at a time.
    are_few = spec.num_experts <= _FEW_EXPERTS * spec.top_k
    if are_few and device.platform != "cpu":
        without_kernel = moe_ops.every_expert(recompute=spec.remat == "experts")
    else:
        without_kernel = moe_ops.dropless(num_assignments=num_assignments)
    if spec.expert_kernel == "loop":
        return without_kernel

    def moe(
        rows: Float[Array, "R D"],
        row_mask: Bool[Array, " R"],
        routing: Routing,
        weights: experts.ExpertWeights,
    ) -> moe_ops.MoeOutput:
        kernel = spec.expert_kernel
        if kernel == "auto":
            num_rows = routing.expert_ids.size
            kernel = swiglu.choose(device, rows, weights.gate, num_rows=num_rows)
            # Kernels there multiply float32 without tensor cores: all of few experts are faster.
            if kernel in matmul.ON_NVIDIA and are_few and rows.dtype == jnp.float32:
                kernel = "loop"
            num_experts, *sides = weights.gate.shape
            what = f"{num_rows} rows of {num_experts} experts {sides[0]} x {sides[1]}"
            told = f"{what} in {rows.dtype}"
            kernels.tell("model.expert_kernel", kernel, told, device.device_kind)
        if kernel == "loop":
            return without_kernel(rows, row_mask, routing, weights)
        layer = moe_ops.grouped(backend=kernel, recompute=spec.remat == "experts")
        return layer(rows, row_mask, routing, weights)

    return moe


def _swiglu_params(
    module: nn.Module, spec: ModelSpec, prefix: str, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The three matrices of one dense SwiGLU in the compute dtype."""
    dtype = jnp.dtype(spec.compute_dtype)
    enter = parameters.scaled_normal("embed", "expert_hidden", fan_in=spec.model_dim)
    gain = 1.0 / math.sqrt(2 * spec.num_layers)
    leave = parameters.scaled_normal("expert_hidden", "embed", fan_in=width, gain=gain)
    dim = spec.model_dim
    return (
        module.param(f"{prefix}gate", enter, (dim, width), jnp.float32).astype(dtype),
        module.param(f"{prefix}up", enter, (dim, width), jnp.float32).astype(dtype),
        module.param(f"{prefix}down", leave, (width, dim), jnp.float32).astype(dtype),
    )
