"""Losses and measures of embeddings that come in pairs. Floor 1: arrays only."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_MASKED = -1e30


def info_nce_terms(
    first: Float[Array, "B P"],
    second: Float[Array, "B P"],
    scale: Float[Array, ""] | float,
    groups: Int[Array, " B"],
) -> Float[Array, " B"]:
    """InfoNCE of each pair, from both sides, in nats.

    arXiv:1807.03748, eq. 4, with the symmetry of arXiv:2103.00020:

        s_ij = scale * first_i . second_j
        term_i = (logsumexp_j s_ij + logsumexp_j s_ji) / 2 - s_ii

    where j runs over i itself and all pairs of other groups: what is of the same group as i (a
    document, or the parts of one module) is neither its partner nor a negative.

    Args:
      first: [B, P] float32, of length 1.
      second: [B, P] float32, of length 1; row i is the partner of row i.
      scale: [] inverse temperature, above 0.
      groups: [B] int32, what each pair is of.

    Returns:
      [B] float32, at least 0; log B where all embeddings are equal and all groups differ.
    """
    chex.assert_equal_shape([first, second])
    chex.assert_shape(groups, first.shape[:1])
    full = jax.lax.Precision.HIGHEST
    logits = scale * jnp.einsum("ip,jp->ij", first, second, precision=full)
    is_other = groups[:, None] != groups[None, :]
    seen = is_other | jnp.eye(len(groups), dtype=bool)
    logits = jnp.where(seen, logits, _MASKED)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return 0.5 * both - jnp.diagonal(logits)


def alignment(first: Float[Array, "B P"], second: Float[Array, "B P"]) -> Float[Array, ""]:
    """Mean squared distance of partners, arXiv:2005.10242, eq. 4 (alpha 2); 0 is best.

    Args:
      first: [B, P] of length 1.
      second: [B, P] of length 1.
    """
    chex.assert_equal_shape([first, second])
    return jnp.mean(jnp.sum(jnp.square(first - second), axis=-1))


def uniformity(embeddings: Float[Array, "N P"]) -> Float[Array, ""]:
    """Log of the mean of exp(-2 |x - y|^2) over pairs of different rows; lower is more even.

    arXiv:2005.10242, eq. 5 (t = 2): 0 where all are equal.

    Args:
      embeddings: [N, P] of length 1; N at least 2.
    """
    num = embeddings.shape[0]
    full = jax.lax.Precision.HIGHEST
    cosines = jnp.einsum("ip,jp->ij", embeddings, embeddings, precision=full)
    logits = jnp.where(jnp.eye(num, dtype=bool), -jnp.inf, -4.0 * (1.0 - cosines))
    return jax.nn.logsumexp(logits) - jnp.log(num * (num - 1.0))


def normalized(x: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
    """Rows of length 1, float32; a row of zeros stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
