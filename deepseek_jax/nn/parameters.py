"""How parameters are made: initialisers with logical axis names, and norm scales. Floor 3."""

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


class NormScale(nn.Module):
    """The learned scale of an RMS norm. Params: `scale` [dim] float32, ones at first."""

    dim: int
    axis: str | None

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the scale [dim]."""
        init = named(nn.initializers.ones, self.axis)
        return self.param("scale", init, (self.dim,), jnp.float32)
