"""The optimizer: schedule, and AdamW or Muon by parameter group. Floor 5."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PyTree

from deepseek_jax.core.run_spec import OptimizerSpec
from deepseek_jax.training import muon, parameter_groups


def learning_rate(
    spec: OptimizerSpec, *, peak: float, num_steps: int
) -> Callable[[Array | int], Float[Array, ""]]:
    """The rate by the number of updates already made.

    Linear from 0 to `peak` over `warmup_steps`, then half a cosine down to
    `final_fraction * peak`. Update i (from 0) takes the schedule's value at i + 1, so that no
    update is wasted on a rate of 0 and the last one ends the cosine.

    Args:
      spec: warmup and final fraction.
      peak: largest rate, dimensionless.
      num_steps: updates of the whole run; above `spec.warmup_steps`.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=spec.warmup_steps,
        decay_steps=num_steps,
        end_value=spec.final_fraction * peak,
    )
    return lambda count: jnp.asarray(schedule(jnp.asarray(count) + 1), jnp.float32)


def make_optimizer(
    spec: OptimizerSpec, *, num_steps: int, placement: Mapping[str, NamedSharding] | None = None
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon by group.

    Muon takes the matrices of the layers (`muon`), Adam every other parameter. Weight decay is
    decoupled, multiplied by the rate, and reaches only matrices (`parameter_groups`).

    Args:
      spec: the settings.
      num_steps: updates of the whole run, the length of the schedule.
      placement: of each parameter by name, `state.parameter_placement`, for Muon to share out
        its work; None on one device.
    """
    adam_rate = learning_rate(spec, peak=spec.learning_rate, num_steps=num_steps)
    moments = optax.scale_by_adam(b1=spec.beta1, b2=spec.beta2, eps=spec.eps)
    decay = optax.add_decayed_weights(spec.weight_decay)
    adam = optax.chain(moments, optax.scale_by_learning_rate(adam_rate))
    adamw = optax.chain(moments, decay, optax.scale_by_learning_rate(adam_rate))
    layer_matrix = adamw
    if spec.name == "muon":
        muon_rate = learning_rate(spec, peak=spec.muon_learning_rate, num_steps=num_steps)
        layer_matrix = optax.chain(
            muon.orthogonalized_momentum(placement),
            decay,
            optax.scale_by_learning_rate(muon_rate),
        )
    groups = {"layer_matrix": layer_matrix, "projection": adamw, "plain": adam}
    return _with_standard_promotion(
        optax.chain(
            optax.clip_by_global_norm(spec.clip_norm),
            optax.partition(groups, parameter_groups.parameter_groups),
        )
    )


def with_learning_rate(spec: OptimizerSpec, learning_rate: float) -> OptimizerSpec:
    """The same settings with another peak rate; Muon's keeps its ratio to Adam's."""
    ratio = learning_rate / spec.learning_rate
    return dataclasses.replace(
        spec,
        learning_rate=learning_rate,
        muon_learning_rate=ratio * spec.muon_learning_rate,
    )


def without_moments() -> optax.GradientTransformation:
    """An optimizer for states that are only read: it keeps nothing and cannot update."""
    return optax.set_to_zero()


def _with_standard_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, traced under JAX's standard promotion, which optax's own arithmetic needs."""

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
