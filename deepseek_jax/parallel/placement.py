"""Rows of a batch on the devices of a mesh, each process with its own. Floor 2."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Int64

from deepseek_jax.parallel import rules
from deepseek_jax.parallel.layout import Layout


def local_part(layout: Layout, *, num_rows: int) -> Int64[np.ndarray, " P"]:
    """The places in a batch of `num_rows` rows that lie on this process's devices, ascending."""
    sharding = rules.sharding(layout.mesh, "batch")
    places = sharding.addressable_devices_indices_map((num_rows,)).values()
    every = np.arange(num_rows, dtype=np.int64)
    return np.unique(np.concatenate([every[index] for index in places]))


def put_rows(
    layout: Layout,
    local: Mapping[str, np.ndarray],
    part: Int64[np.ndarray, " P"],
    *,
    num_rows: int,
) -> dict[str, jax.Array]:
    """A batch over all devices, of the rows that each process has.

    Args:
      layout: the mesh.
      local: arrays [P, ...]; the rows of this process.
      part: their places in the batch, `local_part`.
      num_rows: B, rows of the batch.

    Returns:
      The arrays [B, ...], cut over data and expert.
    """

    def put(array: np.ndarray) -> jax.Array:
        names = ("batch", *[None] * (array.ndim - 1))

        def rows_of(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = np.arange(num_rows, dtype=np.int64)[index[0]]
            return array[np.searchsorted(part, wanted)]

        return jax.make_array_from_callback(
            (num_rows, *array.shape[1:]), rules.sharding(layout.mesh, *names), rows_of
        )

    return {name: put(array) for name, array in local.items()}


def put_whole_rows(layout: Layout, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch over all devices, of which every process has all rows."""
    num_rows = len(next(iter(batch.values())))
    every = np.arange(num_rows, dtype=np.int64)
    return put_rows(layout, batch, every, num_rows=num_rows)
