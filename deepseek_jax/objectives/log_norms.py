"""What turns logits into log-probabilities. Floor 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def log_norms(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """The logarithm of sum_v exp(logits_v), by the reduction that is faster where it will run.

    Args:
      logits: [..., V] float32, finite.
    """
    return jax.lax.platform_dependent(logits, cpu=two_readings, default=one_reading)


def two_readings(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """The largest first, then the sum relative to it."""
    return jax.nn.logsumexp(logits, axis=-1)


def one_reading(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """The largest so far and the sum relative to it together (arXiv:1805.02867, alg. 3).

    A reduction of pairs, which XLA makes one kernel for a GPU and, on a CPU, no vector code.
    """

    def join(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        most = jnp.maximum(one[0], other[0])
        return most, one[1] * jnp.exp(one[0] - most) + other[1] * jnp.exp(other[0] - most)

    nothing = (jnp.finfo(logits.dtype).min, jnp.zeros((), logits.dtype))
    axis = (logits.ndim - 1,)
    most, total = jax.lax.reduce((logits, jnp.ones_like(logits)), nothing, join, axis)
    return most + jnp.log(total)
