"""Root-mean-square normalisation. Floor 1: arrays in, arrays out."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], *, eps: float) -> Array:
    """The rows of `x` at unit root mean square, times a learned scale.

    arXiv:1910.07467, eq. 4: y = x / sqrt(mean(x^2) + eps) * scale. Computed in float32. For a
    gradient only `x` is kept, in its own dtype, and the rest computed again.

    Args:
      x: [..., D] any float dtype.
      scale: [D] float32, dimensionless.
      eps: added to the mean square; static.

    Returns:
      [..., D] in the dtype of `x`.
    """
    return _normed(x, scale, eps)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2,))
def _normed(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Array:
    """`rms_norm`."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    scaled = x32 * jax.lax.rsqrt(mean_square + eps)
    return (scaled * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)
