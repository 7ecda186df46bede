"""Several processes of one run: joining them, and ending all when one is lost.

On a Cloud TPU pod slice, on GKE and under SLURM or Open MPI `--distributed` is enough: JAX finds
the other processes by itself. Elsewhere the three further flags say where they are.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import flags
from jax.experimental import multihost_utils

# A process that has not been heard of for so long is taken for dead, and the others end.
_HEARTBEAT_SECONDS = 30
_EXIT_LOST = 1
_EXIT_REFUSED = 2


def join_flags() -> Callable[[], None]:
    """Defines the flags of a run of several processes; returns what joins it, if asked to."""
    distributed = flags.DEFINE_bool(
        "distributed", False, "One of several processes of a run, started alike on every host."
    )
    coordinator = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where JAX does not find it by itself."
    )
    count = flags.DEFINE_integer("num_processes", None, "Processes of the run.", lower_bound=1)
    number = flags.DEFINE_integer("process_id", None, "This one, from 0.", lower_bound=0)

    def join() -> None:
        given = (coordinator.value, count.value, number.value)
        if any(value is not None for value in given):
            if not distributed.value or None in given:
                raise ValueError(
                    "--coordinator, --num_processes and --process_id go together, and with "
                    f"--distributed; got {given} and --distributed={distributed.value}"
                )
        if distributed.value:
            _join(*given)

    return join


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Waits for all processes of the run.

    Raises:
      ValueError: JAX does not find the other processes by itself, and was not told.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed: JAX does not find the other processes by itself here ({error}); give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def leave() -> None:
    """Returns when every process has come to its end."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the run ends")
        jax.distributed.shutdown()


def refuse_all(error: Exception) -> NoReturn:
    """Ends a process whose settings are wrong, waiting for no other, which ends those too."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(_EXIT_REFUSED)


def end_all(error: BaseException) -> NoReturn:
    """Ends this process, and so all others, with the error; waits for none of them.

    A process that just raised would wait at its exit for processes that wait for it.
    """
    traceback.print_exception(error)
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} ends, and with it the run: "
        "either by the error above, or, if it tells of a lost connection, because another process "
        "was lost; see its output. (On CPUs a timeout of Gloo can also mean that it came over 30 "
        "seconds later.) Start all again to go on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(_EXIT_LOST)
