"""Rotary positions. Floor 1: arrays in, arrays out."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "*B N H"], positions: Int[Array, "*B"], *, base: float
) -> Float[Array, "*B N H"]:
    """Rotates pairs of channels by angles proportional to the position.

    arXiv:2104.09864, eq. 34, with channel i paired to channel i + H/2:

        angle_i = position * base^(-2 i / H)          i = 0 .. H/2 - 1
        (x_i, x_{i+H/2}) -> (x_i cos - x_{i+H/2} sin, x_i sin + x_{i+H/2} cos)

    so the product of a rotated query and a rotated key depends on the difference of their
    positions only. Computed in float32.

    Args:
      x: [*B, N, H] any float dtype; H even.
      positions: [*B] int32, in tokens.
      base: dimensionless; static.

    Returns:
      [*B, N, H] in the dtype of `x`.

    Raises:
      AssertionError: `positions` does not have the leading axes of `x` (trace time).
    """
    chex.assert_shape(positions, x.shape[:-2])
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    lead = (1,) * positions.ndim
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies.reshape(*lead, 1, half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([low * cos - high * sin, low * sin + high * cos], axis=-1)
    return rotated.astype(x.dtype)
