"""Starting the real command as a process of its own, and killing it, also within a save."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from deepseek_jax.training import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
TIME_LIMIT = 300.0  # seconds for one process, only so that a hang ends


def start(workdir, cache, *arguments):
    """`experiments.main` on one CPU device; what it prints is appended to `log_of(workdir)`."""
    environment = dict(os.environ)
    environment.pop("XLA_FLAGS")  # one device, as a user has
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "experiments.main", f"--workdir={workdir}", *arguments]
    with log_of(workdir).open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def log_of(workdir):
    """The file beside a run's directory that holds what its processes printed."""
    return workdir.parent / f"{workdir.name}.log"


def wait_for(process, seen):
    """Returns when `seen()` is true; False if the process ended before."""
    limit = time.monotonic() + TIME_LIMIT
    while not seen():
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit
        time.sleep(0.0005)
    return True


def newest(workdir):
    """The last step that is saved; 0 without any."""
    return max(checkpoint.finished_steps(workdir / "checkpoints"), default=0)


def unfinished(workdir):
    """Directories of saves that are not done."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def is_caught_saving(process, workdir, *, after):
    """Whether the process now stands still within a save, with a good one later than `after`."""
    if newest(workdir) <= after or not unfinished(workdir):
        return False
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if unfinished(workdir):
        return True
    process.send_signal(signal.SIGCONT)  # it was faster: the next save, then
    return False


def kill(process, number=signal.SIGKILL):
    """Sends the signal; returns the exit status."""
    process.send_signal(number)
    return process.wait(TIME_LIMIT)
