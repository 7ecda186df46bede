"""A mesh of real devices, and how a model lies on it. Floor 2."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
from jaxtyping import Array

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices by their place in the mesh, and the settings of the exchange between them."""

    spec: MeshSpec
    mesh: Mesh

    def constrain(self, x: Array, *names: str | None) -> Array:
        """`x`, cut as the rules cut dimensions of these names."""
        return jax.lax.with_sharding_constraint(x, rules.sharding(self.mesh, *names))

    def exact(self) -> "Layout":
        """The same devices with nothing dropped on the way."""
        return Layout(self.spec.exact(), self.mesh)


def make(spec: MeshSpec, devices: Sequence[jax.Device]) -> Layout:
    """Lays devices out as the mesh that the settings ask for.

    The expert and model axes, which talk most, take neighbours; on a TPU the order follows the
    wires.

    Args:
      spec: sizes of the axes, and the exchange.
      devices: at least as many; the first ones are taken.

    Raises:
      ValueError: there are fewer devices, or they are of several TPU slices.
    """
    shape = tuple(spec.sizes.values())
    if len(devices) < spec.num_devices:
        raise ValueError(f"a mesh of {spec} needs {spec.num_devices} devices, got {len(devices)}")
    chosen = list(devices[: spec.num_devices])
    auto = (AxisType.Auto,) * len(shape)
    if chosen[0].platform == "tpu":
        # GPUs have a slice_index too, by host, which means nothing here.
        slices = {device.slice_index for device in chosen if hasattr(device, "slice_index")}
        if len(slices) > 1:
            raise ValueError(f"a mesh over {len(slices)} TPU slices: must lie on one")
        # A mesh axis may take a part of one of the torus' axes: some slices have no other way.
        grid = mesh_utils.create_device_mesh(shape, chosen, allow_split_physical_axes=True)
    else:
        grid = np.array(chosen, dtype=object).reshape(shape)
    return Layout(spec, Mesh(grid, rules.AXES, axis_types=auto))


def constrain(layout: Layout | None, x: Array, *names: str | None) -> Array:
    """`x` cut as the rules say; on one device without a mesh, just `x`."""
    return x if layout is None else layout.constrain(x, *names)
