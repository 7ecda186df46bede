"""Devices by their place in a mesh, and arrays that are cut on it."""

import types

import jax
import numpy as np
import pytest

from deepseek_jax.parallel import layout
from tests.parallel import layers


def test_a_mesh_takes_the_first_devices_in_order_and_no_fewer():
    devices = layers.layout((2, 1, 2))
    np.testing.assert_array_equal(
        devices.mesh.devices, np.array(jax.devices()[:4], dtype=object).reshape(2, 1, 2)
    )
    with pytest.raises(ValueError, match="a mesh of 2x1x2 needs 4 devices, got 3"):
        layout.make(devices.spec, jax.devices()[:3])


def test_a_mesh_over_several_tpu_slices_is_refused():
    fake = [types.SimpleNamespace(platform="tpu", slice_index=index // 2) for index in range(4)]
    with pytest.raises(ValueError, match="a mesh over 2 TPU slices: must lie on one"):
        layout.make(layers.layout((2, 1, 2)).spec, fake)


def test_constraints_cut_on_a_mesh_only():
    x = np.zeros((4, 6), np.float32)
    assert layout.constrain(None, x, "batch", "vocab") is x
    devices = layers.layout((2, 1, 2))
    cut = jax.jit(lambda x: layout.constrain(devices, x, "batch", "vocab"))(x)
    assert cut.sharding.shard_shape(x.shape) == (2, 3)
