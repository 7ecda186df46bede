"""Several passes over one batch of experience, a part at a time. Floor 6."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from deepseek_jax.core.policy_spec import UpdateSpec

CarryT = TypeVar("CarryT")


def run(
    learn: Callable[[CarryT, PyTree], tuple[CarryT, dict[str, Array]]],
    carry: CarryT,
    experience: PyTree,
    key: jax.Array,
    *,
    spec: UpdateSpec,
) -> tuple[CarryT, dict[str, Array]]:
    """Calls `learn` on every minibatch of every epoch, each epoch in an order of its own.

    Args:
      learn: (carry, part of the experience) -> (carry, metrics).
      carry: parameters and moments.
      experience: arrays with B rows in front.
      key: consumed; of the orders.
      spec: epochs and minibatches.

    Returns:
      The last carry, and the means of the metrics over all updates.
    """
    num_rows = jax.tree.leaves(experience)[0].shape[0]
    orders = jax.vmap(lambda key: jax.random.permutation(key, num_rows))(
        jax.random.split(key, spec.num_epochs)
    )
    parts = orders.reshape(spec.num_updates, num_rows // spec.num_minibatches)

    def update(carry: CarryT, ids: Array) -> tuple[CarryT, dict[str, Array]]:
        return learn(carry, jax.tree.map(lambda x: x[ids], experience))

    carry, metrics = jax.lax.scan(update, carry, parts)
    return carry, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
