"""The loop of a stage on a state of one number: what it logs, measures, saves, and stops at."""

import os
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from deepseek_jax.core.stage_spec import StageTrainSpec
from deepseek_jax.training import checkpoint, finite, interrupt, stage_loop
from deepseek_jax.training.loop import Outcome
from tests.reinforcement import tiny


class _State(NamedTuple):
    step: jax.Array
    params: jax.Array


def _run(
    directory,
    *,
    at=None,
    bad=None,
    measured=1.0,
    restore_step=None,
    began=None,
    console=tiny.QUIET,
):
    """Adds the number of each step; at step `at` a signal comes, at step `bad` a NaN."""

    def advance(state, step):
        assert int(state.step) == step
        if step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        reward = jnp.nan if step + 1 == bad else 0.5 * step
        return _State(state.step + 1, state.params + step), {"reward": reward, "kl": 1.0}

    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = _State(
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),
    )
    stage = stage_loop.Stage(
        abstract,
        lambda: _State(jnp.int32(0), jnp.float32(0)),
        advance,
        lambda state: {"heldout_accuracy": measured * float(state.params)},
    )
    spec = StageTrainSpec(**(tiny.TRAIN | {"restore_step": restore_step}))
    starts = [] if began is None else began
    return stage_loop.run(stage, spec, directory, begin=starts.append, console=console)


def test_what_a_run_leaves(tmp_path):
    began = []
    assert _run(tmp_path, began=began) == Outcome(5, 5, None)
    assert began == [0]
    assert tiny.lines(tmp_path) == [
        {"reward": 0.0, "kl": 1.0, "step": 1},
        {"reward": 0.5, "kl": 1.0, "heldout_accuracy": 1.0, "step": 2},
        {"reward": 1.0, "kl": 1.0, "step": 3},
        {"reward": 1.5, "kl": 1.0, "heldout_accuracy": 6.0, "step": 4},
        {"reward": 2.0, "kl": 1.0, "heldout_accuracy": 10.0, "step": 5},
    ]
    assert checkpoint.finished_steps(tmp_path / "checkpoints") == [2, 4, 5]
    assert _run(tmp_path, began=began) == Outcome(5, 0, None)  # already finished
    assert began == [0] and len(tiny.lines(tmp_path)) == 5


@pytest.mark.parametrize("at", [1, 2, 5])
def test_stopped_and_resumed(tmp_path, at):
    began = []
    outcome = _run(tmp_path / "stopped", at=at)
    assert outcome == Outcome(at, at, signal.SIGTERM)
    assert _run(tmp_path / "stopped", began=began) == Outcome(5, 5 - at, None)
    assert began == ([at] if at < 5 else [])
    _run(tmp_path / "whole")
    assert tiny.lines(tmp_path / "stopped") == tiny.lines(tmp_path / "whole")


def test_a_signal_before_the_first_step_stops_before_it(tmp_path, monkeypatch):
    class Asked(interrupt.Interrupt):
        def __enter__(self):
            self.requested = signal.SIGTERM
            return super().__enter__()

    monkeypatch.setattr(interrupt, "Interrupt", Asked)
    console = rich_console.Console(width=200)
    with console.capture() as captured:
        assert _run(tmp_path, console=console) == Outcome(0, 0, signal.SIGTERM)
    assert "stopped at step 0, before a step" in captured.get()
    assert checkpoint.finished_steps(tmp_path / "checkpoints") == []


def test_a_signal_while_it_saves_lets_one_more_step_happen(tmp_path, monkeypatch):
    save = checkpoint.Checkpoints.save

    def signalled(keeper, state, progress):
        if int(state.step) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        save(keeper, state, progress)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", signalled)
    assert _run(tmp_path) == Outcome(3, 3, signal.SIGTERM)
    assert checkpoint.finished_steps(tmp_path / "checkpoints") == [2, 3]
    console = rich_console.Console(width=200)
    with console.capture() as captured:
        assert _run(tmp_path, console=console) == Outcome(5, 2, None)
    assert "going on from step 3" in captured.get()


def test_going_back(tmp_path, caplog):
    _run(tmp_path)
    want = tiny.lines(tmp_path)
    assert _run(tmp_path, restore_step=2) == Outcome(5, 3, None)
    assert tiny.lines(tmp_path) == want
    assert "lines of steps after 2 dropped" in caplog.text


def test_what_is_not_finite_stops_the_run_by_name(tmp_path):
    with pytest.raises(finite.NonFiniteError, match="step 3: reward is nan. The update was not"):
        _run(tmp_path, bad=3)
    assert checkpoint.finished_steps(tmp_path / "checkpoints") == [2]
    assert [line["step"] for line in tiny.lines(tmp_path)] == [1, 2]
    assert _run(tmp_path) == Outcome(5, 3, None)


def test_a_measurement_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(finite.NonFiniteError, match="step 2: heldout_accuracy is inf"):
        _run(tmp_path, measured=np.inf)
    assert checkpoint.finished_steps(tmp_path / "checkpoints") == []
