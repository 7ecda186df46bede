"""Drawing the next token. Floor 1: arrays in, arrays out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sample_tokens(
    logits: Float[Array, "B V"], key: jax.Array, *, temperature: float, top_p: float = 1.0
) -> Int[Array, " B"]:
    """One token for each row.

    Args:
      logits: [B, V] float32, unnormalised.
      key: consumed; unused when greedy.
      temperature: divides the logits; 0.0 takes the most likely token; static.
      top_p: draws from the smallest set of most likely tokens that holds this probability
        (arXiv:1904.09751); 1.0 draws from all; static.

    Returns:
      [B] int32.

    Raises:
      ValueError: temperature below 0, or top_p outside (0, 1] (trace time).
    """
    if temperature < 0.0:
        raise ValueError(f"temperature={temperature}: must be at least 0")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p}: must be in (0, 1]")
    if temperature == 0.0:
        return _argmax(logits)
    logits = logits / temperature
    if top_p < 1.0:
        logits = jnp.where(_nucleus_mask(logits, top_p), logits, -jnp.inf)
    # The Gumbel-max draw of `jax.random.categorical`.
    return _argmax(logits + jax.random.gumbel(key, logits.shape, logits.dtype))


def _argmax(x: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The first index of each row's maximum, int32; the last index if the row holds a NaN.

    In two plain reductions: XLA's own, of pairs of value and index, is not vectorised on a CPU.
    """
    index = jnp.arange(x.shape[-1], dtype=jnp.int32)
    is_largest = x == jnp.max(x, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_largest, index, x.shape[-1] - 1), axis=-1)


def _nucleus_mask(logits: Float[Array, "B V"], top_p: float) -> Array:
    """True for tokens before which, in order of likelihood, less than `top_p` has gone."""
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    rank = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(before < top_p, rank, axis=-1)
