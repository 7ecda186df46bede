"""Linen shell over routing and its balancing terms. Floor 3."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.nn import parameters
from deepseek_jax.ops import balance, float32_product, routing
from deepseek_jax.parallel import rowwise
from deepseek_jax.parallel.layout import Layout


class RouterOutput(NamedTuple):
    """Where tokens go, the loss that balances them, and the probabilities behind it."""

    routing: routing.Routing
    aux_loss: Float[Array, ""]
    probs: Float[Array, "T E"]


class Router(nn.Module):
    """A linear gate, scores, and the group-limited choice of experts; all float32.

    Params: `kernel` [D, E]. State, only with `balance="bias"`: `balance/choice_bias` [E],
    moved by the training step, never by the optimizer. Sows `expert_ids` [T, K] and `probs`
    [T, E] into `intermediates`.
    """

    spec: ModelSpec
    layout: Layout | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T D"],
        token_mask: Bool[Array, " T"],
        shift: Float[Array, "T E"] | None,
    ) -> RouterOutput:
        """Routes tokens `x`; padding (`token_mask` False) enters no loss.

        Args:
          x: [T, D] the tokens.
          token_mask: [T] False is padding.
          shift: [T, E] added to the logits; None adds nothing.
        """
        spec = self.spec
        kernel = self.param(
            "kernel",
            parameters.scaled_normal("embed", None, fan_in=spec.model_dim),
            (spec.model_dim, spec.num_experts),
            jnp.float32,
        )
        choice_bias = None
        if spec.balance == "bias":
            choice_bias = self.variable(
                "balance", "choice_bias", jnp.zeros, (spec.num_experts,), jnp.float32
            ).value
        logits = float32_product.float32_product(x, kernel)
        if shift is not None:
            logits += shift
        scores = routing.router_scores(logits, kind=spec.router_scores)
        choose = functools.partial(
            routing.top_k_routing,
            top_k=spec.top_k,
            num_groups=spec.num_groups,
            top_groups=spec.top_groups,
            renormalize=spec.router_weights == "renormalized",
            scale=spec.router_scale,
        )
        chosen = rowwise.apply(self.layout, choose, scores, choice_bias)
        self.sow("intermediates", "expert_ids", chosen.expert_ids)
        probs = scores / jnp.sum(scores, axis=-1, keepdims=True)
        self.sow("intermediates", "probs", probs)
        aux_loss = spec.load_balance_weight * balance.load_balance_loss(
            probs, chosen.expert_ids, token_mask
        ) + spec.router_z_weight * balance.router_z_loss(logits, token_mask)
        return RouterOutput(chosen, aux_loss, probs)
