"""The clipped objectives of proximal policy optimization. Floor 1: arrays only.

Terms are neither masked nor reduced: the caller puts `masked.zeroed` on inputs that may be
garbage outside the mask and reduces with `masked.masked_mean`.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def clipped_surrogate_terms(
    logprobs: Float[Array, "B L"],
    old_logprobs: Float[Array, "B L"],
    advantages: Float[Array, "B L"],
    *,
    clip: float,
) -> Float[Array, "B L"]:
    """The clipped surrogate of each token, negated: to minimise.

    PPO, arXiv:1707.06347, eq. 7, with r = exp(logprob - old_logprob):

        term = -min(r * A, clip(r, 1 - eps, 1 + eps) * A)

    Args:
      logprobs: [B, L] float32, nats, of the policy that learns; they alone get a gradient.
      old_logprobs: [B, L] float32, nats, of the policy that drew the tokens.
      advantages: [B, L] float32.
      clip: eps, above 0.

    Returns:
      [B, L] float32, in units of the advantage; never below the unclipped -r * A.
    """
    chex.assert_equal_shape([logprobs, old_logprobs, advantages])
    advantages = jax.lax.stop_gradient(advantages)
    ratio = _ratio(logprobs, old_logprobs)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantages)


def is_clipped(
    logprobs: Float[Array, "B L"],
    old_logprobs: Float[Array, "B L"],
    advantages: Float[Array, "B L"],
    *,
    clip: float,
) -> Bool[Array, "B L"]:
    """Where `clipped_surrogate_terms` has lost its gradient; its mean is the clip fraction.

    The ratio is above 1 + eps although A > 0, or below 1 - eps although A < 0. Arguments as
    there.
    """
    chex.assert_equal_shape([logprobs, old_logprobs, advantages])
    ratio = _ratio(logprobs, old_logprobs)
    too_high = (advantages > 0.0) & (ratio > 1.0 + clip)
    too_low = (advantages < 0.0) & (ratio < 1.0 - clip)
    return too_high | too_low


def clipped_value_terms(
    values: Float[Array, "B L"],
    old_values: Float[Array, "B L"],
    returns: Float[Array, "B L"],
    *,
    clip: float | None,
) -> Float[Array, "B L"]:
    """Half the squared error of each value, the worse of the value and the value held near the old.

    The value loss of PPO's released code (not in arXiv:1707.06347, whose eq. 9 has the plain
    squared error):

        term = max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2

    Args:
      values: [B, L] float32, in units of reward; they alone get a gradient.
      old_values: [B, L] float32, when the tokens were drawn; unused without a clip.
      returns: [B, L] float32, the targets R (`advantages.Advantages.returns`).
      clip: eps in units of reward, above 0; None gives (V - R)^2 / 2.

    Returns:
      [B, L] float32, in units of reward squared; never below (V - R)^2 / 2.
    """
    chex.assert_equal_shape([values, old_values, returns])
    returns = jax.lax.stop_gradient(returns)
    errors = jnp.square(values - returns)
    if clip is None:
        return 0.5 * errors
    old_values = jax.lax.stop_gradient(old_values)
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum(errors, jnp.square(near - returns))


def _ratio(logprobs: Float[Array, "B L"], old_logprobs: Float[Array, "B L"]) -> Float[Array, "B L"]:
    """How many times likelier a token is than when it was drawn; r_t(theta) of the paper."""
    return jnp.exp(logprobs - jax.lax.stop_gradient(old_logprobs))
