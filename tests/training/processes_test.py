"""One run of two processes, as on two hosts: equal to one process, and ended together."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from deepseek_jax.training import checkpoint
from experiments import settings
from tests import tolerances
from tests.training import kill_config, loop_test, tiny

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TIME_LIMIT = 300.0  # seconds for one run, only so that a hang ends
NUM_STEPS = 60  # of a fifth of a second each: far more than pass between a checkpoint and a kill
OVERRIDES = {
    "mesh.data": 2,
    "mesh.expert": 2,
    "train.num_microbatches": 1,
    "train.num_steps": NUM_STEPS,
}
# What a process reads of a batch of 8 rows, and the devices that it puts them on.
PART = """
import sys
import jax, numpy as np
from absl import app
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.data import batches, rows
from deepseek_jax.parallel import layout, placement
from experiments import processes
def main(argv):
    join()
    spec = MeshSpec(data=2, expert=2, model=1, exchange="exact", rows_factor=0.0)
    mesh = layout.make(spec, jax.devices())
    part = placement.local_part(mesh, num_rows=8)
    data = rows.Rows(*(np.arange(16, dtype=np.int32)[:, None],) * 5)
    read = next(batches.TrainBatches(data, batch_size=8, seed=1, part=part))
    whole = placement.put_rows(mesh, read, part, num_rows=8)["tokens"]
    everything = next(batches.TrainBatches(data, batch_size=8, seed=1))["tokens"]
    for shard in whole.addressable_shards:
        assert (shard.data == everything[shard.index]).all()
    print("read", part.tolist(), read["tokens"].shape)
    processes.leave()
join = processes.join_flags()
app.run(main)
"""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(program, log, cache, *, num_devices, more=()):
    """A process with so many devices, whose output goes to `log`."""
    environment = dict(os.environ) | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *program, *more], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def _start_two(program, directory, name):
    where = f"--coordinator=127.0.0.1:{_free_port()}"
    return [
        _start(
            program,
            directory / f"{name}.{number}.log",
            directory / f"cache{number}",
            num_devices=2,
            more=["--distributed", where, "--num_processes=2", f"--process_id={number}"],
        )
        for number in (0, 1)
    ]


def _training(directory, name):
    overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    return [
        *("-m", "experiments.main", "--config=tests/training/kill_config.py"),
        f"--workdir={directory / name}",
        f"--config.data.path={directory / 'texts'}",
        *overrides,
    ]


def _logs(directory, name):
    return [(directory / f"{name}.{number}.log").read_text() for number in (0, 1)]


def _finish(processes, directory, name):
    """Waits for both to end well."""
    codes = [process.wait(TIME_LIMIT) for process in processes]
    assert codes == [0, 0], _logs(directory, name)


def _kill_when_saved(processes, workdir, victim, number):
    """Sends one a signal within a step of a finished checkpoint; returns both exit codes."""
    limit = time.monotonic() + TIME_LIMIT
    while not checkpoint.finished_steps(workdir / "checkpoints"):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(0.1)
    processes[victim].send_signal(number)
    return [process.wait(TIME_LIMIT) for process in processes]


def _compare(directory, name):
    config = kill_config.get_config()
    config.data.path = str(directory / "texts")
    config.update_from_flattened_dict(OVERRIDES)
    spec = settings.freeze(config)
    loop_test.assert_same_run(directory / name, directory / "whole", spec)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A place with texts, and with an uninterrupted run of two processes in `whole`."""
    place = tmp_path_factory.mktemp("processes")
    tiny.write_corpus(place / "texts")
    _finish(_start_two(_training(place, "whole"), place, "whole"), place, "whole")
    return place


def test_each_process_reads_its_own_rows(tmp_path):
    processes = _start_two(["-c", PART], tmp_path, "part")
    _finish(processes, tmp_path, "part")
    first, second = (re.findall(r"read (.*)", log)[0] for log in _logs(tmp_path, "part"))
    assert first == "[0, 1, 2, 3] (4, 1)"
    assert second == "[4, 5, 6, 7] (4, 1)"


def test_another_text_on_one_host_is_an_error(directory):
    name, other = "texts_differ", directory / "other"
    tiny.write_corpus(other)
    (other / "7.txt").write_text("Another text.")
    processes = []
    where = f"--coordinator=127.0.0.1:{_free_port()}"
    for number, texts in enumerate((directory / "texts", other)):
        more = ["--distributed", where, "--num_processes=2", f"--process_id={number}"]
        program = [*_training(directory, name), f"--config.data.path={texts}"]
        log, cache = directory / f"{name}.{number}.log", directory / f"cache{number}"
        processes.append(_start(program, log, cache, num_devices=2, more=more))
    codes = [process.wait(TIME_LIMIT) for process in processes]
    assert 0 not in codes
    expected = "process 1 has other settings, process 1 has other texts"
    assert any(expected in log for log in _logs(directory, name))
    assert not (directory / name / "config.json").exists()


def _start_unlike(directory, name, override):
    """Two processes on one run directory, of which the second has a setting of its own."""
    processes, where = [], f"--coordinator=127.0.0.1:{_free_port()}"
    for number, own in enumerate(([], [override])):
        more = ["--distributed", where, "--num_processes=2", f"--process_id={number}", *own]
        log, cache = directory / f"{name}.{number}.log", directory / f"cache{number}"
        program = _training(directory, "whole")
        processes.append(_start(program, log, cache, num_devices=2, more=more))
    return [process.wait(TIME_LIMIT) for process in processes]


def test_a_start_that_is_refused_changes_nothing(directory):
    whole = directory / "whole"
    before = {path: path.read_bytes() for path in whole.rglob("*.json*")}
    assert 0 not in _start_unlike(
        directory, "unlike", f"--config.train.restore_step={NUM_STEPS - 5}"
    )
    assert any("process 1 has other settings" in log for log in _logs(directory, "unlike"))
    assert {path: path.read_bytes() for path in whole.rglob("*.json*")} == before


def test_a_mesh_refused_on_one_host_ends_both(directory):
    codes = _start_unlike(directory, "misfit", "--config.mesh.data=1")
    assert codes[1] == 2 and codes[0] != 0
    assert "needs 2 devices, there are 4" in _logs(directory, "misfit")[1]


def test_two_processes_equal_one(directory):
    one = _start(
        _training(directory, "one"),
        directory / "one.log",
        directory / "cache",
        num_devices=4,
    )
    assert one.wait(TIME_LIMIT) == 0, (directory / "one.log").read_text()
    alone, together = (loop_test._lines(directory / name) for name in ("one", "whole"))
    assert [line["step"] for line in alone] == [line["step"] for line in together]
    for key in ("loss", "gradient_norm", "heldout_loss"):
        values = [[line[key] for line in lines if key in line] for lines in (alone, together)]
        np.testing.assert_allclose(*values, **tolerances.LAYER_F32)
    record = json.loads((directory / "whole" / "record.json").read_text())["made_with"]
    assert (record["num_devices"], record["num_processes"]) == (4, 2)


def test_one_process_writes(directory):
    first, second = _logs(directory, "whole")
    assert f"step {NUM_STEPS}/{NUM_STEPS}  loss" in first
    assert "step" not in second
    lines = (directory / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == NUM_STEPS // 4 + NUM_STEPS // 20  # of training, of evaluation, each once


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_both_and_all_go_on(directory, victim):
    name = f"lost{victim}"
    processes = _start_two(_training(directory, name), directory, name)
    codes = _kill_when_saved(processes, directory / name, victim, signal.SIGKILL)
    survivor, log = codes[1 - victim], _logs(directory, name)[1 - victim]
    assert codes[victim] == -signal.SIGKILL
    # JAX's runtime may end it by a signal before Python sees an error; what is said is JAX's then.
    assert survivor == 1 or survivor < 0, log
    assert survivor < 0 or "another process was lost" in log, log
    _finish(_start_two(_training(directory, name), directory, name), directory, name)
    assert "going on from step" in _logs(directory, name)[0]
    _compare(directory, name)


def test_sigterm_to_one_stops_both_at_the_same_step(directory):
    name = "asked"
    processes = _start_two(_training(directory, name), directory, name)
    assert _kill_when_saved(processes, directory / name, 1, signal.SIGTERM) == [0, 0]
    first, second = _logs(directory, name)
    step = checkpoint.finished_steps(directory / name / "checkpoints")[-1]
    assert f"stopped at step {step}" in first and step < NUM_STEPS
    assert "SIGTERM: finishing the step" in second
    _finish(_start_two(_training(directory, name), directory, name), directory, name)
    _compare(directory, name)
