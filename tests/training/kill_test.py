"""The real command, killed at arbitrary moments and during saves, ends with the same bits."""

import random
import re
import signal
import time

import pytest

from experiments import settings
from tests import kills
from tests.training import kill_config, loop_test, tiny

pytestmark = pytest.mark.slow

MOST_STEPS = 20  # a kill is waited for during so many steps, which makes 120 of 200 in 6 waits
SPARE_STEPS = 60  # no kill is planned in the last steps of the run
STEP_TOLD = re.compile(r"^step (\d+)/", re.MULTILINE)


def _start(workdir, corpus, cache):
    config = "--config=tests/training/kill_config.py"
    return kills.start(workdir, cache, config, f"--config.data.path={corpus}")


class _Killer:
    """Starts the run and kills it, by its progress: how fast the machine is doesn't matter."""

    def __init__(self, workdir, corpus, cache):
        self._places = (workdir, corpus, cache)
        self._workdir = workdir
        self._log = kills.log_of(workdir)
        self._random = random.Random(0)
        self.starts, self.num_kills, self.num_saving = [], 0, 0

    def log(self):
        return self._log.read_text() if self._log.exists() else ""

    def start(self):
        self._old_log = len(self.log())
        self._before = kills.newest(self._workdir)
        self.starts.append(self._before)
        return _start(*self._places)

    def _step(self):
        """The last step that this process told of; 0 while it starts."""
        told = STEP_TOLD.findall(self.log()[self._old_log :])
        return int(told[-1]) if told else 0

    def while_it_starts(self):
        """Kills after a random time, but not later than the process tells of a step."""
        process = self.start()
        end = time.monotonic() + self._random.uniform(0.0, 8.0)
        self._end(process, kills.wait_for(process, lambda: self._step() or time.monotonic() > end))

    def while_it_runs(self):
        """Kills after a random step, within the few steps that follow."""
        process = self.start()
        step = self._before + self._random.randint(1, MOST_STEPS)
        running = kills.wait_for(process, lambda: self._step() >= step)
        time.sleep(self._random.uniform(0.0, 0.1))
        self._end(process, running)

    def while_it_saves(self):
        """Kills with a save half done, after a good one; the process stands still meanwhile."""
        process = self.start()
        latest = self._before + MOST_STEPS  # so that the run goes on although none was caught

        def is_caught():
            return kills.is_caught_saving(process, self._workdir, after=self._before)

        self._end(process, kills.wait_for(process, lambda: is_caught() or self._step() >= latest))
        self.num_saving += bool(kills.unfinished(self._workdir))

    def _end(self, process, running):
        assert running, f"ended by itself: {self.log()}"
        assert kills.kill(process) == -signal.SIGKILL, self.log()
        self.num_kills += 1


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kill")
    corpus = tiny.write_corpus(directory / "texts")
    whole, cache = directory / "whole", directory / "cache"
    process = _start(whole, corpus, cache)
    assert process.wait(kills.TIME_LIMIT) == 0, (directory / "whole.log").read_text()
    return directory, corpus, cache


def test_killed_run_equals_uninterrupted_run(places):
    directory, corpus, cache = places
    killed = directory / "killed"
    killer = _Killer(killed, corpus, cache)
    for _ in range(2):
        killer.while_it_saves()
        killer.while_it_starts()
        killer.while_it_saves()
        killer.while_it_runs()
    # Now and then a save is over before it can be caught.
    while (
        not killer.num_saving
        and kills.newest(killed) < kill_config.TRAIN["num_steps"] - SPARE_STEPS
    ):
        killer.while_it_saves()
    process = killer.start()
    assert process.wait(kills.TIME_LIMIT) == 0, killer.log()

    starts, num_kills, num_saving = killer.starts, killer.num_kills, killer.num_saving
    print(f"{num_kills} kills, starts from steps {starts}, {num_saving} during a save")
    assert num_kills >= 4 and len(set(starts)) >= 3
    assert num_saving and "unfinished save, passed over" in killer.log()
    _compare(directory / "whole", killed, corpus)


def test_sigterm_saves_and_exits_with_0(places):
    directory, corpus, cache = places
    stopped = directory / "stopped"
    process = _start(stopped, corpus, cache)
    assert kills.wait_for(process, lambda: kills.newest(stopped) >= 5)
    assert kills.kill(process, signal.SIGTERM) == 0
    log = (directory / "stopped.log").read_text()
    assert "SIGTERM: finishing the step" in log
    step = kills.newest(stopped)
    assert f"stopped at step {step}" in log and not kills.unfinished(stopped)
    process = _start(stopped, corpus, cache)
    assert process.wait(kills.TIME_LIMIT) == 0
    assert f"going on from step {step}" in (directory / "stopped.log").read_text()
    _compare(directory / "whole", stopped, corpus)


def _compare(whole, other, corpus):
    config = kill_config.get_config()
    config.data.path = str(corpus)
    loop_test.assert_same_run(other, whole, settings.freeze(config))
