"""The optimizer: parameter groups, schedule, AdamW and Muon by optax. Floor 5."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from deepseek_jax.core.run_spec import OptimizerSpec

Group = Literal["layer_matrix", "projection", "plain"]

# Decay of Muon's momentum, as in the reference implementation of Muon.
MUON_BETA = 0.95

_LAYER_MATRICES = {
    "attention": ("query", "key", "value", "out"),
    "feed_forward": ("gate", "up", "down", "shared_gate", "shared_up", "shared_down"),
}
_PLAIN = ("scale", "embedding", "summary_queries", "summary_positions")


def parameter_name(path: tuple) -> str:
    """The dotted name of a leaf, e.g. "layers.attention.query.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def parameter_group(name: str) -> Group:
    """The group of a parameter, by its dotted name.

    Args:
      name: path below `params`, e.g. "layers.feed_forward.router.kernel".

    Returns:
      "layer_matrix": matrices of the layers (decayed; Muon's, if it is chosen);
      "projection": the output head and the router's gate (decayed; Adam's);
      "plain": norms, embeddings and the summaries' queries (never decayed; Adam's).

    Raises:
      ValueError: a name that this function does not know: a new parameter must be put into a
        group on purpose.
    """
    parts = name.split(".")
    leaf = parts[-1]
    owner = parts[:-1] if leaf == "kernel" else parts
    if leaf in _PLAIN:
        return "plain"
    if parts == ["head", "kernel"] or parts[-2:] == ["router", "kernel"]:
        return "projection"
    if len(owner) == 3 and owner[0] == "layers" and owner[2] in _LAYER_MATRICES[owner[1]]:
        return "layer_matrix"
    raise ValueError(f"parameter {name} belongs to no group of training.optimizer.parameter_group")


def parameter_groups(params: PyTree) -> PyTree:
    """The tree of groups of the parameters `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: parameter_group(parameter_name(path)), params
    )


def matrix_axes(name: str) -> optax.contrib.MuonDimensionNumbers:
    """Which axes of a layer matrix it sums over, and which it makes.

    The leading axes that are in neither (layers, experts) hold independent matrices. Query,
    key and value are [layers, D, N, H], a D x (N H) matrix a layer; the output projection is
    [layers, N, H, D]; every other layer matrix ends in its two axes.
    """
    if name.startswith("layers.attention.out."):
        return optax.contrib.MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(3,))
    if name.startswith("layers.attention."):
        return optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3))
    return optax.contrib.MuonDimensionNumbers(reduction_axis=(-2,), output_axis=(-1,))


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


def make_optimizer(spec: OptimizerSpec, *, num_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon by group.

    Muon (Keller Jordan, 2024; optax.contrib.scale_by_muon): the momentum of each layer matrix,
    of each expert by itself, is made nearly orthogonal by Newton-Schulz steps and scaled by
    sqrt(max(1, outputs / inputs)). Adam takes every other parameter. Weight decay is
    decoupled, multiplied by the rate, and reaches only matrices (`parameter_group`).

    Args:
      spec: the settings.
      num_steps: updates of the whole run, the length of the schedule.
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
            optax.contrib.scale_by_muon(beta=MUON_BETA, weight_dimension_numbers=_axes_tree),
            optax.stateless(_scale_by_width),
            decay,
            optax.scale_by_learning_rate(muon_rate),
        )
    groups = {"layer_matrix": layer_matrix, "projection": adamw, "plain": adam}
    return _with_standard_promotion(
        optax.chain(
            optax.clip_by_global_norm(spec.clip_norm), optax.partition(groups, parameter_groups)
        )
    )


def _with_standard_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, traced under JAX's standard promotion, which optax's own arithmetic needs."""

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _axes_tree(params: PyTree) -> PyTree:
    """The axes of every layer matrix; parameters of other groups are masked out of `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: matrix_axes(parameter_name(path)), params
    )


def _scale_by_width(updates: PyTree, params: PyTree) -> PyTree:
    """Scales each orthogonal update by sqrt(max(1, outputs / inputs))."""
    del params
    return jax.tree_util.tree_map_with_path(_scaled_by_width, updates)


def _scaled_by_width(path: tuple, update: Array) -> Array:
    axes = matrix_axes(parameter_name(path))
    size = functools.partial(map, update.shape.__getitem__)
    fan_in, fan_out = (math.prod(size(side)) for side in axes)
    return update * jnp.asarray(math.sqrt(max(1.0, fan_out / fan_in)), update.dtype)
