"""How often each id occurs. Floor 1."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32

# Counters of each id. A GPU adds at one address one after the other, so that neighbours in the
# array count apart.
_NUM_COUNTERS = 64


def occurrences(ids: Int[Array, " A"], *, num_ids: int) -> Int32[Array, " N"]:
    """How many of `ids` are 0, 1, and so on.

    Args:
      ids: [A], at least 0; one of `num_ids` or more counts nowhere.
      num_ids: N; static.

    Returns:
      [N] int32.
    """
    chex.assert_rank(ids, 1)
    counters = jnp.arange(ids.size, dtype=jnp.int32) % _NUM_COUNTERS
    apart = jnp.zeros((_NUM_COUNTERS, num_ids), jnp.int32).at[counters, ids].add(1, mode="drop")
    return jnp.sum(apart, axis=0)
