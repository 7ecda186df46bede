"""Means over the entries that a mask keeps. Floor 1: arrays only.

A mask on the terms of a loss keeps garbage out of its value but not out of its gradient: the
cotangent 0 times an infinite slope is NaN. Where entries outside the mask may be garbage, put
`zeroed` on what goes into the terms, before any exponential.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def zeroed(x: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, "*B"]:
    """The kept entries, 0 elsewhere. A masked entry may be anything, and gets gradient 0."""
    chex.assert_equal_shape([x, mask])
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def masked_sum(terms: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """The sum of the kept terms, float32. A masked term may be anything, even NaN."""
    return jnp.sum(zeroed(terms, mask), dtype=jnp.float32)


def masked_mean(terms: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
    """The mean of the kept terms, float32; 0 when none is kept."""
    count = jnp.sum(mask, dtype=jnp.float32)
    return masked_sum(terms, mask) / jnp.maximum(count, 1.0)


def mean_of_row_means(terms: Float[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, ""]:
    """The mean over rows of the mean over each row's kept terms.

    GRPO, arXiv:2402.03300, eq. 3: 1/G sum_i 1/|o_i| sum_t term_it. A short row weighs as much
    as a long one; a row without kept terms is no row.

    Args:
      terms: [B, L] float; masked terms may be anything, even NaN.
      mask: [B, L] bool, True keeps.

    Returns:
      [] float32, in the unit of the terms; 0 when none is kept.
    """
    chex.assert_rank([terms, mask], 2)
    lengths = jnp.sum(mask, axis=1, dtype=jnp.float32)
    sums = jnp.sum(zeroed(terms, mask), axis=1, dtype=jnp.float32)
    return masked_mean(sums / jnp.maximum(lengths, 1.0), lengths > 0.0)
