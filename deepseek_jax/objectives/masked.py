"""Means over the entries that a mask keeps. Floor 1: arrays only."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_sum(terms: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """The sum of the kept terms, float32. A masked term may be anything, even NaN."""
    chex.assert_equal_shape([terms, mask])
    return jnp.sum(jnp.where(mask, terms, jnp.zeros((), terms.dtype)), dtype=jnp.float32)


def masked_mean(terms: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """The mean of the kept terms, float32; 0 when none is kept."""
    count = jnp.sum(mask, dtype=jnp.float32)
    return masked_sum(terms, mask) / jnp.maximum(count, 1.0)
