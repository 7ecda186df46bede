"""The next-token loss. Floor 1: arrays only, never a model."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def next_token_terms(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-probability of each target, in nats.

    term = logsumexp_v(logits_v) - logits_target, in float32; not masked, not reduced: the
    caller reduces with `masked.masked_mean`.

    Args:
      logits: [*B, V] unnormalised, any float dtype.
      targets: [*B] int32, in [0, V).
    """
    chex.assert_shape(targets, logits.shape[:-1])
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - target_logits(logits, targets)


def target_logits(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """The logit of each target, which is in [0, V)."""
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
