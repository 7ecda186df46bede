"""What keeps experts evenly used, and the figures that show whether they are. Floor 1.

Axes: T tokens, E routed experts, K experts of a token. Padding (`token_mask` False) counts
nowhere. Without any real token every mean here is 0.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class RouterStats(NamedTuple):
    """Sums over tokens, float32, so that they add up over microbatches and devices.

    `load` [E] assignments of each expert, dropped ones included; `dropped` [] assignments
    that got no row; `entropy_sum` [] nats; `num_tokens` [] real tokens; `visits` [] devices that
    tokens have experts on, summed over tokens; `overflowed` [] visits that found no row on the
    way. A leading axis of layers may stand before all of them.
    """

    load: Float[Array, "... E"]
    dropped: Float[Array, "..."]
    entropy_sum: Float[Array, "..."]
    num_tokens: Float[Array, "..."]
    visits: Float[Array, "..."]
    overflowed: Float[Array, "..."]


def expert_load(
    expert_ids: Int[Array, "T K"], token_mask: Bool[Array, " T"], *, num_experts: int
) -> Float[Array, " E"]:
    """Assignments of real tokens to each expert: [E] float32, summing to K * real tokens."""
    chex.assert_rank([expert_ids, token_mask], [2, 1])
    counted = jnp.broadcast_to(token_mask[:, None], expert_ids.shape)
    return jnp.zeros(num_experts, jnp.float32).at[expert_ids].add(counted.astype(jnp.float32))


def load_balance_loss(
    probs: Float[Array, "T E"], expert_ids: Int[Array, "T K"], token_mask: Bool[Array, " T"]
) -> Float[Array, ""]:
    """The loss that is least when experts are used evenly.

    Switch Transformer, arXiv:2101.03961, eqs. 4-6, for K experts of a token:

        loss = E * sum_i f_i P_i,  f_i = share of assignments, P_i = mean probability

    Args:
      probs: [T, E] float32; rows sum to 1.
      expert_ids: [T, K] int32, the chosen experts; they get no gradient.
      token_mask: [T] bool.

    Returns:
      [] float32: 1 when loads or probabilities are even, up to E when all tokens choose
      one expert with certainty.
    """
    chex.assert_rank([probs, expert_ids, token_mask], [2, 2, 1])
    num_experts = probs.shape[1]
    load = expert_load(expert_ids, token_mask, num_experts=num_experts)
    share = load / jnp.maximum(jnp.sum(load), 1.0)
    mean_probs = jax.vmap(_masked_mean, in_axes=(1, None))(probs, token_mask)
    return num_experts * jnp.sum(share * mean_probs)


def router_z_loss(logits: Float[Array, "T E"], token_mask: Bool[Array, " T"]) -> Float[Array, ""]:
    """Mean squared log-sum-exp of the router's logits. ST-MoE, arXiv:2202.08906, eq. 5.

    Args:
      logits: [T, E] float32.
      token_mask: [T] bool.

    Returns:
      [] float32, at least 0.
    """
    chex.assert_rank([logits, token_mask], [2, 1])
    return _masked_mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)), token_mask)


def updated_choice_bias(
    bias: Float[Array, "... E"], load: Float[Array, "... E"], *, rate: float
) -> Float[Array, "... E"]:
    """The choice bias after a training step.

    DeepSeek-V3, arXiv:2412.19437, section 2.1.2, "auxiliary-loss-free load balancing":
    b_i grows by `rate` if expert i got fewer assignments than the mean, shrinks by it if
    more, and stays if it got exactly the mean.

    Args:
      bias: [..., E] float32, in units of the score; a leading axis of layers may stand there.
      load: [..., E] float32, assignments of the step (`RouterStats.load`).
      rate: step in units of the score; at least 0.

    Returns:
      [..., E] float32.
    """
    chex.assert_equal_shape([bias, load])
    return bias + rate * jnp.sign(jnp.mean(load, axis=-1, keepdims=True) - load)


def router_stats(
    probs: Float[Array, "T E"],
    expert_ids: Int[Array, "T K"],
    token_mask: Bool[Array, " T"],
    *,
    num_dropped: Int[Array, ""],
    num_visits: Int[Array, ""],
    num_overflowed: Int[Array, ""],
) -> RouterStats:
    """What a router did with its tokens; no gradient flows through it.

    Args:
      probs: [T, E] float32; rows sum to 1.
      expert_ids: [T, K] int32.
      token_mask: [T] bool.
      num_dropped: [] int32, `dispatch.Plan.num_dropped`.
      num_visits: [] int32, devices visited, summed over tokens; one each on one device.
      num_overflowed: [] int32, of these, those that found no row.

    Returns:
      The sums over the real tokens.
    """
    chex.assert_rank([probs, expert_ids, token_mask], [2, 2, 1])
    chex.assert_rank([num_dropped, num_visits, num_overflowed], 0)
    probs = jax.lax.stop_gradient(probs)
    entropy = jnp.sum(jax.scipy.special.entr(probs), axis=-1)
    return RouterStats(
        load=expert_load(expert_ids, token_mask, num_experts=probs.shape[1]),
        dropped=num_dropped.astype(jnp.float32),
        entropy_sum=jnp.sum(jnp.where(token_mask, entropy, 0.0)),
        num_tokens=jnp.sum(token_mask.astype(jnp.float32)),
        visits=num_visits.astype(jnp.float32),
        overflowed=num_overflowed.astype(jnp.float32),
    )


def max_over_mean_load(stats: RouterStats) -> Float[Array, "..."]:
    """Load of the busiest expert over the mean: 1 when even, E when one expert has all."""
    mean = jnp.mean(stats.load, axis=-1)
    return jnp.max(stats.load, axis=-1) / jnp.where(mean > 0.0, mean, 1.0)


def mean_entropy(stats: RouterStats) -> Float[Array, "..."]:
    """Mean entropy of the router's probabilities in nats, at most log(E)."""
    return stats.entropy_sum / jnp.maximum(stats.num_tokens, 1.0)


def num_unused(stats: RouterStats) -> Int[Array, "..."]:
    """Experts that no real token chose: int32."""
    return jnp.sum(stats.load == 0.0, axis=-1, dtype=jnp.int32)


def _masked_mean(values: Float[Array, " T"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
    """Mean over True entries; 0 if there is none. A masked NaN does not reach it."""
    total = jnp.sum(jnp.where(mask, values, 0.0))
    return total / jnp.maximum(jnp.sum(mask.astype(jnp.float32)), 1.0)
