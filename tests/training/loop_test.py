"""Whole tiny runs in this process: resumed equals uninterrupted; every refusal by its name."""

import dataclasses
import json
import logging
import os
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import pytest
from rich import console as rich_console

from deepseek_jax.core import mesh_spec
from deepseek_jax.data import text_data, tokenizers
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel import layout
from deepseek_jax.training import (
    checkpoint,
    finite,
    loop,
    manifest,
    metrics,
    optimizer,
    programs,
    progress,
    state,
    workdir,
)
from tests.training import tiny

pytestmark = pytest.mark.deep
TIMING = ("seconds", "tokens_per_second", "share_of_peak")


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Every run of this file compiles the same few programs."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    outcome = _train(tiny.run_spec(corpus), directory)
    assert outcome == loop.Outcome(12, 12, None)
    return directory


def _train(spec, directory):
    console = rich_console.Console(quiet=True)
    return loop.train(spec, directory, flops_per_token=None, console=console)


def _saved_state(directory, spec):
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=spec.train.num_steps)
    one_device = layout.make(mesh_spec.ONE_DEVICE, jax.devices())
    abstract = state.abstract(
        Decoder(spec.model), transform, sequence_length=16, mesh=one_device.mesh
    )
    keeper = checkpoint.Checkpoints(directory / "checkpoints", keep=9)
    try:
        return keeper.restore(abstract, step=None)
    finally:
        keeper.close()


def _lines(directory):
    lines = metrics.read_lines(directory / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def assert_same_run(directory, other, spec):
    one, two = _saved_state(directory, spec), _saved_state(other, spec)
    chex.assert_trees_all_equal(one.state, two.state)
    assert one.progress["data"] == two.progress["data"]
    assert one.progress["sums"] == two.progress["sums"]
    assert _lines(directory) == _lines(other)
    assert (directory / "load.jsonl").read_text() == (other / "load.jsonl").read_text()


def _with_step(monkeypatch, around):
    """Runs take the step that `around` makes of their own."""
    make = programs.make

    def changed(*args, **kwargs):
        made = make(*args, **kwargs)
        return made._replace(train_step=around(made.train_step))

    monkeypatch.setattr(programs, "make", changed)


def _stop_at(monkeypatch, stops):
    """Sends this process SIGTERM while the given steps run, each once."""
    left = list(stops)

    def stopping(train_step):
        def run(current, batch):
            if left and int(current.step) + 1 == left[0]:
                left.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(current, batch)

        return run

    _with_step(monkeypatch, stopping)


def test_what_a_run_leaves(uninterrupted):
    lines = _lines(uninterrupted)
    logged = [line["step"] for line in lines if "loss" in line]
    measured = [line["step"] for line in lines if "heldout_loss" in line]
    assert (logged, measured) == ([3, 6, 9, 12], [6, 12])
    assert lines[-2]["loss"] < lines[0]["loss"] and lines[0]["aux_loss"] == 0.0
    assert checkpoint.finished_steps(uninterrupted / "checkpoints") == [4, 8, 12]
    record = json.loads((uninterrupted / "record.json").read_text())
    assert record["made_with"]["jax"] == jax.__version__ and record["gone_on"] == []
    loads = metrics.read_lines(uninterrupted / "load.jsonl")
    assert [line["step"] for line in loads] == logged
    per_layer = [sum(layer) for layer in loads[0]["load"]]
    assert per_layer == [2 * lines[0]["tokens"]] * 2  # top_k assignments of each token
    saved = json.loads((uninterrupted / "config.json").read_text())
    assert saved["train"]["num_steps"] == 12


def test_a_finished_run_says_so_and_trains_nothing(uninterrupted, corpus):
    before = _lines(uninterrupted)
    console = rich_console.Console(record=True, quiet=False, width=200)
    outcome = loop.train(
        tiny.run_spec(corpus), uninterrupted, flops_per_token=None, console=console
    )
    assert outcome == loop.Outcome(12, 0, None)
    said = console.export_text()
    assert "already finished: 12 steps" in said and "going on" not in said
    assert _lines(uninterrupted) == before


def test_stopped_and_resumed_equals_uninterrupted(uninterrupted, corpus, tmp_path, monkeypatch):
    # In the middle of a logging interval, on a line's step, and right behind a checkpoint.
    spec = tiny.run_spec(corpus)
    _stop_at(monkeypatch, [2, 6, 9])
    for stopped in (2, 6, 9):
        before = signal.getsignal(signal.SIGTERM)
        outcome = _train(spec, tmp_path)
        assert (outcome.step, outcome.stopped_by) == (stopped, signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
    assert _train(spec, tmp_path) == loop.Outcome(12, 3, None)
    assert_same_run(tmp_path, uninterrupted, spec)


def test_lines_written_after_the_last_checkpoint_are_written_once(
    uninterrupted, corpus, tmp_path, monkeypatch
):
    """As after a SIGKILL at step 7: the line of step 6 is there, the checkpoint is of step 4."""
    spec = tiny.run_spec(corpus)

    def failing(train_step):
        def run(current, batch):
            if int(current.step) == 6:
                raise KeyboardInterrupt
            return train_step(current, batch)

        return run

    with monkeypatch.context() as patch:
        _with_step(patch, failing)
        with pytest.raises(KeyboardInterrupt):
            _train(spec, tmp_path)
    assert _lines(tmp_path)[-1]["step"] == 6
    assert checkpoint.finished_steps(tmp_path / "checkpoints") == [4]
    assert _train(spec, tmp_path) == loop.Outcome(12, 8, None)
    assert_same_run(tmp_path, uninterrupted, spec)


def test_going_back_to_an_older_step(uninterrupted, corpus, tmp_path, caplog):
    spec = tiny.run_spec(corpus)
    _train(spec, tmp_path)
    older = dataclasses.replace(spec, train=dataclasses.replace(spec.train, restore_step=4))
    caplog.set_level(logging.WARNING)
    assert _train(older, tmp_path) == loop.Outcome(12, 8, None)
    assert "lines of steps after 4 dropped" in caplog.text
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"aside_0_step_00000008", "aside_0_step_00000012"} < names
    assert_same_run(tmp_path, uninterrupted, spec)


def test_a_damaged_checkpoint_is_never_passed_over(uninterrupted, corpus, tmp_path):
    spec = tiny.run_spec(corpus)
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    path = max(
        (p for p in (tmp_path / "checkpoints" / "step_00000012").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(manifest.CheckpointDamagedError, match=r"step 12 is damaged.*\[4, 8\]"):
        _train(spec, tmp_path)


TILDE = int(tokenizers.bytes_tokenizer().encode("~")[0])


class _PoisonedDecoder(Decoder):
    """NaN hidden states wherever a tilde is read."""

    def __call__(self, tokens, **kwargs):
        output = super().__call__(tokens, **kwargs)
        nan = jnp.where(jnp.any(tokens == TILDE), jnp.nan, 0.0)
        return output._replace(hidden=output.hidden + nan)


def test_a_nan_stops_the_run_and_leaves_the_last_checkpoint(corpus, tmp_path, monkeypatch):
    texts = tiny.write_corpus(tmp_path / "texts")
    spec = tiny.run_spec(
        texts, train={"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 20}
    )
    poisoned = texts / "0.txt"  # on the training side
    poisoned.write_text(poisoned.read_text().replace("0 and 0 0", "0 and 0 ~", 1))
    assert poisoned.read_text().count("~") == 1
    monkeypatch.setattr(programs, "Decoder", _PoisonedDecoder)
    monkeypatch.setattr(programs, "make", programs.make.__wrapped__)
    run = tmp_path / "run"
    with pytest.raises(
        finite.NonFiniteError, match=r"step (\d+): loss nan.*embed.embedding"
    ) as caught:
        _train(spec, run)
    bad = int(str(caught.value).split(":")[0].removeprefix("step "))
    assert bad > 1  # so that there is something to leave
    assert checkpoint.finished_steps(run / "checkpoints") == list(range(1, bad))
    assert [line["step"] for line in _lines(run) if "loss" in line] == list(range(1, bad))
    restored = _saved_state(run, spec)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(restored.state.params))
    with pytest.raises(finite.NonFiniteError, match=f"step {bad}: loss nan"):
        _train(spec, run)  # and again at the same step: never past it


def test_other_settings_are_refused_by_name(uninterrupted, corpus):
    spec = tiny.run_spec(corpus, train={"num_steps": 13}, optimizer={"beta1": 0.8})
    with pytest.raises(
        ValueError, match=r"optimizer.beta1: 0.9 there, 0.8 now; train.num_steps: 12"
    ):
        _train(spec, uninterrupted)


def test_checkpoints_of_unknown_settings_are_refused(uninterrupted, corpus, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoints of steps \[4, 8, 12\] but no config.json"):
        _train(tiny.run_spec(corpus), tmp_path)


def test_another_corpus_is_refused(corpus, tmp_path):
    texts = tiny.write_corpus(tmp_path / "texts")
    spec = tiny.run_spec(texts)
    _train(spec, tmp_path / "run")
    (texts / "3.txt").write_text("Something else.\n" * 9)
    with pytest.raises(ValueError, match="the corpus has changed"):
        _train(spec, tmp_path / "run")


def test_text_that_was_read_before_is_compared_too(uninterrupted, corpus, tmp_path):
    spec = tiny.run_spec(corpus)
    data = text_data.load(spec.data, seed=spec.seed)
    quiet = rich_console.Console(quiet=True)
    again = loop.train(spec, uninterrupted, flops_per_token=None, console=quiet, data=data)
    assert again.trained == 0
    texts = tiny.write_corpus(tmp_path / "texts")
    (texts / "3.txt").write_text("Something else.\n" * 9)
    data = text_data.load(tiny.run_spec(texts).data, seed=spec.seed)
    with pytest.raises(ValueError, match="the corpus has changed"):
        loop.train(spec, uninterrupted, flops_per_token=None, console=quiet, data=data)


def test_refused_settings_leave_no_trace(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"train.eval_rows=1000: must be at most"):
        _train(tiny.run_spec(corpus, train={"eval_rows": 1000}), tmp_path)
    small = tiny.run_spec(corpus, model={"vocab_size": 64})
    with pytest.raises(ValueError, match="model.vocab_size=64"):
        _train(small, tmp_path)
    assert _train(tiny.run_spec(corpus), tmp_path).trained == 12


def test_one_process_at_a_time(corpus, tmp_path):
    spec = tiny.run_spec(corpus)
    with (
        workdir.claimed(tmp_path, spec),
        pytest.raises(BlockingIOError, match="another process is training there"),
    ):
        _train(spec, tmp_path)


def test_a_profile_on_request(corpus, tmp_path):
    train = {"profile_at": 4, "profile_steps": 2}
    _train(tiny.run_spec(corpus, train=train), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_dense_model_with_muon_trains_and_resumes(corpus, tmp_path, monkeypatch):
    spec = tiny.run_spec(
        corpus,
        model=tiny.DENSE,
        optimizer={"name": "muon", "muon_learning_rate": 0.02},
        train={"num_steps": 6, "num_microbatches": 1},
    )
    _train(spec, tmp_path / "whole")
    _stop_at(monkeypatch, [3])
    assert _train(spec, tmp_path / "parts").step == 3
    _train(spec, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole", spec)
    lines = _lines(tmp_path / "whole")
    assert "unused_experts" not in lines[0] and lines[-2]["loss"] < lines[0]["loss"]


def test_the_share_of_peak_is_of_all_devices(monkeypatch):
    monkeypatch.setattr(progress, "peak_flops", lambda kind: 600.0)
    # 600 FLOP/s on each of 4 devices, 12 FLOPs a token: 200 tokens a second at most.
    assert loop._peak_rate(12.0, num_devices=4) == 200.0
    assert loop._peak_rate(None, num_devices=4) is None
