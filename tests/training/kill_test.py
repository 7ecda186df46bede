"""The real command, killed at arbitrary moments and during saves, ends with the same bits."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from deepseek_jax.training import checkpoint
from experiments import settings
from tests.training import kill_config, loop_test, tiny

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TIME_LIMIT = 300.0  # seconds for one process, only so that a hang ends


def _start(workdir, corpus, cache):
    environment = dict(os.environ)
    environment.pop("XLA_FLAGS")  # one device, as a user has
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [
        sys.executable,
        "-m",
        "experiments.main",
        "--config=tests/training/kill_config.py",
        f"--workdir={workdir}",
        f"--config.data.path={corpus}",
    ]
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    with log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def _wait_for(process, seen):
    """Returns when `seen()` is true; False if the process ended before."""
    limit = time.monotonic() + TIME_LIMIT
    while not seen():
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit
        time.sleep(0.0005)
    return True


def _newest(workdir):
    return max(checkpoint.finished_steps(workdir / "checkpoints"), default=0)


def _unfinished(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def _kill(process, number=signal.SIGKILL):
    process.send_signal(number)
    return process.wait(TIME_LIMIT)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kill")
    corpus = tiny.write_corpus(directory / "texts")
    whole, cache = directory / "whole", directory / "cache"
    process = _start(whole, corpus, cache)
    assert process.wait(TIME_LIMIT) == 0, (directory / "whole.log").read_text()
    return directory, corpus, cache


def test_killed_run_equals_uninterrupted_run(places):
    directory, corpus, cache = places
    killed = directory / "killed"
    generator = random.Random(0)
    caught_saving, starts, num_kills = [], [], 0

    while num_kills < 7:
        process = _start(killed, corpus, cache)
        before = _newest(killed)
        starts.append(before)
        if num_kills % 2 == 0:  # during the save after the next good one, if it can be caught
            running = _wait_for(
                process, lambda before=before: _newest(killed) > before and _unfinished(killed)
            )
        else:  # anywhere: while it starts, compiles, steps, logs, measures or saves
            running = _wait_for(process, lambda process=process: process.pid)
            time.sleep(generator.uniform(0.0, 12.0))
            running = process.poll() is None
        assert running or process.returncode == 0, (directory / "killed.log").read_text()
        if not running:
            break  # it was faster than the kill; the comparison below still holds
        _kill(process)
        num_kills += 1
        caught_saving += _unfinished(killed)
    process = _start(killed, corpus, cache)
    assert process.wait(TIME_LIMIT) == 0, (directory / "killed.log").read_text()

    log = (directory / "killed.log").read_text()
    print(f"{num_kills} kills, starts from steps {starts}, {len(caught_saving)} during a save")
    assert num_kills >= 4 and len(set(starts)) >= 3
    assert caught_saving and "unfinished save, passed over" in log
    _compare(directory / "whole", killed, corpus)


def test_sigterm_saves_and_exits_with_0(places):
    directory, corpus, cache = places
    stopped = directory / "stopped"
    process = _start(stopped, corpus, cache)
    assert _wait_for(process, lambda: _newest(stopped) >= 5)
    assert _kill(process, signal.SIGTERM) == 0
    log = (directory / "stopped.log").read_text()
    assert "SIGTERM: finishing the step" in log
    step = _newest(stopped)
    assert f"stopped at step {step}" in log and not _unfinished(stopped)
    process = _start(stopped, corpus, cache)
    assert process.wait(TIME_LIMIT) == 0
    assert f"going on from step {step}" in (directory / "stopped.log").read_text()
    _compare(directory / "whole", stopped, corpus)


def _compare(whole, other, corpus):
    config = kill_config.get_config()
    config.data.path = str(corpus)
    loop_test.assert_same_run(other, whole, settings.freeze(config))
