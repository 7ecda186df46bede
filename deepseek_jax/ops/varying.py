"""Arrays that differ from device to device, as `shard_map` tracks them. Floor 1.

Inside `shard_map` the type of an array says over which mesh axes its values vary. What starts a
loop must have the type of what the loop makes of it, and what a custom gradient is taken of the
type of that gradient. Outside of `shard_map` nothing varies and nothing here does anything.
"""

from typing import Any

import jax
from jaxtyping import Array


def like(x: Array, *others: Array) -> Array:
    """`x`, typed as varying over every axis that it or one of `others` varies over.

    The values stay what they are on each device; the gradient of the result is summed over the
    axes that were added.
    """
    return over(x, *(axis for other in others for axis in sorted(_varying(other))))


def over(x: Array, *axes: str) -> Array:
    """`x`, typed as varying over `axes` and over those that it varies over already."""
    missing = tuple(dict.fromkeys(axis for axis in axes if axis not in _varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def shape_like(shape: tuple[int, ...], x: Array, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """The type of an array of this shape that varies as `x` does; of its dtype if none is given."""
    kind = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype or x.dtype, manual_axis_type=kind)


def is_varying(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the values differ between the devices of a `shard_map`."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    return bool(kind.manual_axis_type and kind.manual_axis_type.varying)


def _varying(x: Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying
