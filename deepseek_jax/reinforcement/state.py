"""The state of a policy that learns: everything that an iteration changes or needs. Floor 6."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.training import checkpoint
from deepseek_jax.training import state as state_lib
from deepseek_jax.training.state import TrainState


class PolicyState(NamedTuple):
    """What an iteration takes and returns; its first fields are those of `TrainState`.

    Attributes:
      step: iterations made so far.
      params: of the policy.
      balance: its choice biases; they move between iterations, never within one.
      opt_state: its optimizer's moments.
      key: the run's key; iteration i draws from fold_in(key, i).
      reference: parameters and choice biases that the KL is measured to; they never change.
      kl_coefficient: beta.
      critic: of PPO; None with GRPO.
    """

    step: Int[Array, ""]
    params: PyTree
    balance: PyTree
    opt_state: optax.OptState
    key: Key[Array, ""]
    reference: PyTree
    kl_coefficient: Float[Array, ""]
    critic: TrainState | None


def scalar_params(template: PyTree, decoder_params: PyTree, *, bias: float) -> PyTree:
    """Parameters of a `ScalarDecoder`: a decoder's backbone, a head of zeros with a bias.

    Args:
      template: of the scalar decoder, for its structure.
      decoder_params: of a decoder of the same sizes.
      bias: what every position gets at first.
    """
    backbone = {name: decoder_params[name] for name in template if name != "scalar_head"}
    head = jax.tree.map(jnp.zeros_like, template["scalar_head"])
    return {**backbone, "scalar_head": {**head, "bias": head["bias"] + bias}}


def scalar_state(
    spec: ModelSpec,
    optimizer: optax.GradientTransformation,
    start: checkpoint.Model,
    key: Key[Array, ""],
    *,
    sequence_length: int,
    bias: float,
) -> TrainState:
    """A scalar decoder at a decoder's parameters, before its first step.

    Args:
      spec: of both.
      optimizer: makes the moments.
      start: the decoder.
      key: of the run.
      sequence_length: L.
      bias: of the head.
    """
    fresh = state_lib.initial_state(
        ScalarDecoder(spec), optimizer, key, sequence_length=sequence_length
    )
    params = scalar_params(fresh.params, start.params, bias=bias)
    return fresh._replace(
        params=params, balance=start.balance, opt_state=optimizer.init(params), key=key
    )


def initial_policy(
    optimizer: optax.GradientTransformation,
    start: checkpoint.Model,
    key: Key[Array, ""],
    *,
    kl_coefficient: float,
    critic: TrainState | None,
) -> PolicyState:
    """A policy at its reference, before its first iteration."""
    return PolicyState(
        step=jnp.int32(0),
        params=start.params,
        balance=start.balance,
        opt_state=optimizer.init(start.params),
        key=key,
        reference=jax.tree.map(jnp.copy, {"params": start.params, "balance": start.balance}),
        kl_coefficient=jnp.float32(kl_coefficient),
        critic=critic,
    )


def abstract_policy(
    spec: ModelSpec,
    optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation | None,
    *,
    sequence_length: int,
    mesh: Mesh,
) -> PolicyState:
    """Shape, dtype and placement of every array of a policy's state.

    Args:
      spec: of the policy and its critic.
      optimizer: the policy's.
      critic_optimizer: the critic's; None with GRPO.
      sequence_length: L.
      mesh: of one device or many.
    """
    policy = state_lib.abstract(
        Decoder(spec), optimizer, sequence_length=sequence_length, mesh=mesh
    )
    critic = None
    if critic_optimizer is not None:
        critic = state_lib.abstract(
            ScalarDecoder(spec), critic_optimizer, sequence_length=sequence_length, mesh=mesh
        )
    whole = NamedSharding(mesh, PartitionSpec())
    coefficient: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    return PolicyState(
        *policy,
        reference={"params": policy.params, "balance": policy.balance},
        kl_coefficient=coefficient,
        critic=critic,
    )
