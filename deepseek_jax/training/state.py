"""The training state: everything that a step changes. Floor 5."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PyTree

from deepseek_jax.parallel import rules
from deepseek_jax.training.parameter_groups import parameter_name


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


def parameter_placement(
    model: nn.Module, *, sequence_length: int, mesh: Mesh | AbstractMesh
) -> dict[str, NamedSharding]:
    """How each parameter, by its dotted name, lies on a mesh: as the rules cut its axes.

    Args:
      model: as for `initial_state`.
      sequence_length: as for `initial_state`.
      mesh: of one device or many; an abstract one has no devices.

    Raises:
      ValueError: a parameter that names an axis the rules do not have.
    """
    row = jnp.zeros((1, sequence_length), jnp.int32)
    boxed = jax.eval_shape(
        lambda key: model.init(key, row, document_ids=row + 1, positions=row)["params"],
        jax.random.key(0),
    )
    names = jax.tree_util.tree_leaves_with_path(
        nn.get_partition_spec(boxed), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
    return {
        parameter_name(path): NamedSharding(mesh, rules.partition_spec(tuple(axes)))
        for path, axes in names
    }


def abstract(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    sequence_length: int,
    mesh: Mesh | AbstractMesh,
) -> TrainState:
    """Shape, dtype and placement of every array of a state; nothing is allocated.

    The optimizer's moments lie as the parameters that they are of; numbers, keys and choice
    biases are whole on every device.

    Args:
      model: as for `initial_state`.
      optimizer: as for `initial_state`.
      sequence_length: as for `initial_state`.
      mesh: of one device or many; an abstract one has no devices.

    Raises:
      ValueError: a parameter that names an axis the rules do not have, or an array of the
        optimizer that is none of a parameter's.
    """
    placement = parameter_placement(model, sequence_length=sequence_length, mesh=mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.eval_shape(
        lambda key: initial_state(model, optimizer, key, sequence_length=sequence_length),
        jax.random.key(0),
    )

    def placed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        owner = _owner(parameter_name(path), leaf, placement)
        sharding = whole if owner is None else placement[owner]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, state)


def shardings(abstract_state: Any) -> Any:
    """The placement of every array of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state)


def _owner(name: str, leaf: jax.ShapeDtypeStruct, parameters: Iterable[str]) -> str | None:
    """The parameter that an array of the state is, or is a moment of; None for other arrays."""
    if name.partition(".")[0] not in ("params", "opt_state"):
        return None
    owners = [parameter for parameter in parameters if name.endswith(f".{parameter}")]
    if len(owners) == 1:
        return owners[0]
    if leaf.ndim > 0:
        raise ValueError(f"{name} {leaf.shape} is no array of a parameter; how is it cut?")
    return None
