"""Losses of a reward model that learns from comparisons. Floor 1: arrays only."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bradley_terry_terms(
    chosen_logits: Float[Array, " B"], rejected_logits: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Negative log-probability of each preference, in nats.

    arXiv:2203.02155, eq. 1 (K = 2): term = -log sigmoid(c - r).

    Args:
      chosen_logits: [B] float32, scores of the preferred responses.
      rejected_logits: [B] float32, scores of the others.

    Returns:
      [B] float32, at least 0; log 2 at equal scores; finite for finite scores. Only
      differences count: see `centering_terms`.
    """
    chex.assert_equal_shape([chosen_logits, rejected_logits])
    return jax.nn.softplus(rejected_logits - chosen_logits)


def centering_terms(
    chosen_logits: Float[Array, " B"], rejected_logits: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Mean square of each pair of scores: (c^2 + r^2) / 2.

    Bradley-Terry leaves the level of the scores open; a small weight on this one keeps them
    around 0. Arguments as in `bradley_terry_terms`.
    """
    chex.assert_equal_shape([chosen_logits, rejected_logits])
    return 0.5 * (jnp.square(chosen_logits) + jnp.square(rejected_logits))
