"""The training state: everything that a step changes. Floor 4."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree


class TrainState(NamedTuple):
    """What a training step takes and returns.

    Attributes:
      step: updates made so far.
      params: the parameters, float32.
      balance: the collection `balance` (choice biases, [layers, E]); empty without it.
      opt_state: the optimizer's moments.
      key: the run's key; a stage that samples splits it, training on text leaves it as it is.
    """

    step: Int[Array, ""]
    params: PyTree
    balance: PyTree
    opt_state: optax.OptState
    key: Key[Array, ""]


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    sequence_length: int,
) -> TrainState:
    """The state before the first step.

    Args:
      model: takes tokens [B, L] with `document_ids` and `positions`, e.g. `nn.model.Decoder`.
      optimizer: makes the moments.
      key: consumed.
      sequence_length: L of the rows that initialisation traces; parameters don't depend on it.
    """
    init_key, state_key = jax.random.split(key)
    row = jnp.zeros((1, sequence_length), jnp.int32)
    variables = nn.unbox(model.init(init_key, row, document_ids=row + 1, positions=row))
    params = variables["params"]
    balance = variables["balance"] if "balance" in variables else {}
    return TrainState(jnp.int32(0), params, balance, optimizer.init(params), state_key)


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and placement of a state; of one of shapes, placed on the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def placed(leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = first if leaf.sharding is None else leaf.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, state)
