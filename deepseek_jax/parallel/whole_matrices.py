"""A function of whole matrices that lie cut over a mesh, the work shared out. Floor 2."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

AxisName = str | tuple[str, ...]


def apply(
    function: Callable[[Array], Array],
    matrices: Float[Array, "*B D F"],
    sharding: NamedSharding,
    *,
    num_stacked: int,
) -> Float[Array, "*B D F"]:
    """`function(matrices)`, each matrix whole on the device that computes it.

    Matrices are stacked along the first `num_stacked` dimensions. Where a mesh axis cuts them
    and its size divides the last of these as it lies on a device, every device gets its share of
    whole matrices by an all-to-all, and gives the parts back afterwards; otherwise all devices
    of that axis gather them, and compute the same.

    Args:
      function: from matrices stacked likewise to as many of the same shape, one by one.
      matrices: cut as `sharding` says.
      sharding: their placement, also of the result.
      num_stacked: leading dimensions, whose cuts may stay; at least 1; static.
    """
    mesh = sharding.mesh
    spec = (*sharding.spec, *[None] * (matrices.ndim - len(sharding.spec)))
    cuts = [
        (dim, axes, _size(mesh.shape, axes))
        for dim, axes in enumerate(spec)
        if dim >= num_stacked and axes is not None and _size(mesh.shape, axes) > 1
    ]
    if not cuts:
        return function(matrices)

    def on_device(part: Array) -> Array:
        undo: list[Callable[[Array], Array]] = []
        for dim, axes, size in cuts:
            part, back = _made_whole(part, dim, axes, size, stack=num_stacked - 1)
            undo.append(back)
        result = function(part)
        for back in reversed(undo):
            result = back(result)
        return result

    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=sharding.spec, out_specs=sharding.spec)
    return mapped(matrices)


def _made_whole(
    part: Array, dim: int, axes: AxisName, size: int, *, stack: int
) -> tuple[Array, Callable[[Array], Array]]:
    """The array with `dim` no longer cut over `axes`, and what cuts a result again."""
    if part.shape[stack] % size == 0:
        whole = jax.lax.all_to_all(part, axes, split_axis=stack, concat_axis=dim, tiled=True)

        def give_back(result: Array) -> Array:
            return jax.lax.all_to_all(result, axes, split_axis=dim, concat_axis=stack, tiled=True)

        return whole, give_back
    length = part.shape[dim]
    whole = jax.lax.all_gather(part, axes, axis=dim, tiled=True)

    def keep_own(result: Array) -> Array:
        start = jax.lax.axis_index(axes) * length
        return jax.lax.dynamic_slice_in_dim(result, start, length, axis=dim)

    return whole, keep_own


def _size(shape: dict[str, int], axes: AxisName) -> int:
    """Devices along one axis or several."""
    size = 1
    for axis in (axes,) if isinstance(axes, str) else axes:
        size *= shape[axis]
    return size
