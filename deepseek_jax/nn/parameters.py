"""How parameters are made: initialisers with logical axis names, and norm scales. Floor 3."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def scaled_normal(*axes: str | None, fan_in: int, gain: float = 1.0) -> Callable[..., Any]:
    """Normal with standard deviation gain / sqrt(fan_in), carrying logical axis names."""
    return named(nn.initializers.normal(gain / math.sqrt(fan_in)), *axes)


def named(init: jax.nn.initializers.Initializer, *axes: str | None) -> Callable[..., Any]:
    """The initialiser, boxing what it makes with logical axis names; `param` opens the box."""
    return nn.with_logical_partitioning(init, axes)


# The names that parameters of a layer end with, module and all, which are rounded to the compute
# dtype wherever they are used: the experts' matrices and attention's projections.
_ROUNDED = frozenset(
    (
        *itertools.product(["feed_forward"], ["gate", "up", "down"]),
        *itertools.product(["feed_forward"], ["shared_gate", "shared_up", "shared_down"]),
        *itertools.product(["query", "key", "value", "out"], ["kernel"]),
    )
)


def rounded(variables: Any, dtype: Any) -> Any:
    """A layer's variables, or those of all layers, rounded as every use of them rounds them.

    Args:
      variables: nested by module, as of `nn/block.py`; what is rounded is told by its name.
      dtype: the compute dtype.

    Returns:
      The same tree; matrices of experts and projections of attention are of `dtype`.
    """

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = tuple(key.key for key in path[-2:])
        return leaf.astype(dtype) if names in _ROUNDED else leaf

    return jax.tree_util.tree_map_with_path(one, variables)


class NormScale(nn.Module):
    """The learned scale of an RMS norm. Params: `scale` [dim] float32, ones at first."""

    dim: int
    axis: str | None

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the scale [dim]."""
        init = named(nn.initializers.ones, self.axis)
        return self.param("scale", init, (self.dim,), jnp.float32)
