"""Rows land on the device that the rules say, from one process and from one of several."""

import types

import jax
import numpy as np

from deepseek_jax.parallel import placement
from tests.parallel import layers

BATCH = {
    "tokens": np.arange(24, dtype=np.int32).reshape(8, 3),
    "weights": np.arange(8, dtype=np.float32),
}


def test_one_process_has_all_rows():
    devices = layers.layout((2, 2, 2))
    np.testing.assert_array_equal(placement.local_part(devices, num_rows=8), np.arange(8))
    placed = placement.put_whole_rows(devices, BATCH)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, BATCH[name])
        assert array.dtype == BATCH[name].dtype
        for shard in array.addressable_shards:
            # device (data, expert, model) has the rows of data and expert, whatever its model
            (data,), (expert,), _ = np.nonzero(devices.mesh.devices == shard.device)
            first = 2 * (2 * int(data) + int(expert))
            np.testing.assert_array_equal(shard.data, BATCH[name][first : first + 2])


def test_a_process_has_the_rows_of_its_devices_once(monkeypatch):
    # a process whose devices hold the rows 4 and 5, twice since model is 2, and 0 and 1
    held = {"a": (slice(4, 6),), "b": (slice(4, 6),), "c": (slice(0, 2),)}
    sharding = types.SimpleNamespace(addressable_devices_indices_map=lambda shape: held)
    monkeypatch.setattr(placement.rules, "sharding", lambda mesh, *names: sharding)
    part = placement.local_part(layers.layout((1, 1, 1)), num_rows=8)
    np.testing.assert_array_equal(part, [0, 1, 4, 5])

    def make(shape, placed, rows_of):
        assert placed is sharding
        return shape, [
            rows_of((*index, *[slice(None)] * (len(shape) - 1))) for index in held.values()
        ]

    monkeypatch.setattr(jax, "make_array_from_callback", make)
    local = {name: array[part] for name, array in BATCH.items()}
    put = placement.put_rows(layers.layout((1, 1, 1)), local, part, num_rows=8)
    for name, array in BATCH.items():
        shape, blocks = put[name]
        assert shape == array.shape  # of the whole batch
        for block, (rows,) in zip(blocks, held.values(), strict=True):
            np.testing.assert_array_equal(block, array[rows])
