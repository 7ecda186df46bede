"""What the processes of a run agree on; alone, a process agrees with itself. Floor 5.

One process is the first: it alone claims the run directory, writes logs and manifests, and
decides which checkpoint is taken. All of them see one shared file system.
"""

import hashlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel.layout import Layout


def layout_for(run_spec: RunSpec) -> Layout:
    """The mesh of a run, on the devices of all processes.

    Raises:
      ValueError: there are too few devices, or, with several processes, too many; names the
        nearest meshes that fit.
    """
    devices = jax.devices()
    mesh_spec.check_devices(
        run_spec.mesh,
        run_spec.model,
        num_rows=run_spec.train.microbatch_size,
        num_devices=len(devices),
        use_all=jax.process_count() > 1,
    )
    return layout_lib.make(run_spec.mesh, devices)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here; `name` says where that is."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def number_of_first(number: int | None) -> int | None:
    """The number (or None) that the first process gives, in every process."""
    if jax.process_count() == 1:
        return number
    none = -1
    given = np.int64(none if number is None else number)
    agreed = int(multihost_utils.broadcast_one_to_all(given))
    return None if agreed == none else agreed


def check_same(fingerprints: Mapping[str, str]) -> None:
    """Raises unless every process gives the same text for each name.

    Raises:
      ValueError: names the processes that differ from the first one, and in what.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(text.encode()).digest() for text in fingerprints.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    differs = np.any(everyone != everyone[:1], axis=-1)
    wrong = [
        f"process {process} has other {name}"
        for process, row in enumerate(differs)
        for name, is_other in zip(fingerprints, row, strict=True)
        if is_other
    ]
    if wrong:
        raise ValueError(f"all processes need the same, but {', '.join(wrong)} than process 0")


class Stop:
    """Whether the run is to stop after this step: the same answer in every process.

    With several processes the question is put beside every step and the answer read with the
    metrics of that step, so that nothing waits for it and all stop at the same step. Alone, a
    process follows its own request at once.
    """

    def __init__(self, layout: Layout, is_requested: Callable[[], bool]) -> None:
        """Asks `is_requested` in this process."""
        self._is_requested = is_requested
        self._size = layout.mesh.size
        self._cut = NamedSharding(layout.mesh, PartitionSpec(layout.mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(layout.mesh, PartitionSpec()))
        self._is_alone = jax.process_count() == 1
        self._is_agreed = False

    def ask(self) -> jax.Array | None:
        """Puts the question to all processes, each of which must do so with every step."""
        if self._is_alone:
            return None
        mine = np.full(1, self._is_requested(), bool)
        return self._any(jax.make_array_from_callback((self._size,), self._cut, lambda _: mine))

    def hear(self, answer: np.ndarray | None) -> None:
        """Takes note of an answer, fetched from the device."""
        self._is_agreed = self._is_agreed or (answer is not None and bool(answer))

    def is_agreed(self) -> bool:
        """Whether to stop now."""
        return self._is_requested() if self._is_alone else self._is_agreed
