"""The largest few of a row, without sorting it where sorting is slow. Floor 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

# Up to so many, rounds should be faster than XLA's sort of whole rows on a GPU: of 32,768 x 128
# numbers on an H200 4 take 18 us and the sort 112 (docs/log.md); others are not measured.
_MOST_ROUNDS = 16


def top_k(
    values: Float[Array, "*B N"], k: int
) -> tuple[Float[Array, "*B K"], Int32[Array, "*B K"]]:
    """The k largest, largest first, and their places; of equal ones the lower place first.

    As `jax.lax.top_k`, but that where it takes rounds 0.0 and -0.0 are equal.

    Args:
      values: [..., N], more than k - 1 of a row above -inf; NaN counts as largest.
      k: K; static; 1 <= K <= N.
    """
    if k > _MOST_ROUNDS:
        best, places = jax.lax.top_k(values, k)
        return best, places

    def whole(values: Array) -> tuple[Array, Array]:
        best, places = jax.lax.top_k(values, k)
        return best, places

    found: tuple[Array, Array] = jax.lax.platform_dependent(
        values, cuda=lambda values: rounds(values, k), default=whole
    )
    return found


def rounds(
    values: Float[Array, "*B N"], k: int
) -> tuple[Float[Array, "*B K"], Int32[Array, "*B K"]]:
    """One maximum after the other, each time without those before."""
    number = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    best, places = [], []
    for _ in range(k):
        most = jnp.max(values, axis=-1, keepdims=True)
        # Two plain reductions: one of pairs is slower (docs/log.md).
        is_it = (values == most) | jnp.isnan(values)
        place = jnp.min(jnp.where(is_it, number, values.shape[-1]), axis=-1, keepdims=True)
        best.append(most)
        places.append(place)
        values = jnp.where(number == place, -jnp.inf, values)
    return jnp.concatenate(best, axis=-1), jnp.concatenate(places, axis=-1)
