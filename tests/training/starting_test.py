"""Runs that begin with another run's parameters: exactly these, and every refusal by its path."""

import json
import shutil

import chex
import jax
import pytest

from deepseek_jax.data import text_data
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.training import checkpoint, loop, optimizer, starting, state, workdir
from tests.training import loop_test, tiny

pytestmark = pytest.mark.deep
# Cut over four devices; the runs that are begun with lie on one.
MESH = {"data": 2, "expert": 2}
MODEL = {"num_kv_heads": 2, "top_groups": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory):
    """A run whose checkpoints are of steps 4 and 6."""
    directory = tmp_path_factory.mktemp("base")
    spec = tiny.run_spec(corpus, model=MODEL, train={"num_steps": 6})
    assert loop_test._train(spec, directory).step == 6
    return directory


def _spec(corpus, base, *, model=None, mesh=None, data=None, **train):
    train = {"num_steps": 4, "num_microbatches": 1, "start_from": str(base)} | train
    return tiny.run_spec(corpus, model=MODEL | (model or {}), mesh=mesh, data=data, train=train)


def _first(monkeypatch, spec, directory):
    """The state that a run hands to its first step; the run trains to its end."""
    seen = []
    go_on = loop._Run.go_on

    def looking(self):
        seen.append(jax.device_get(self._state._replace(key=jax.random.key_data(self._state.key))))
        go_on(self)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "go_on", looking)
        loop_test._train(spec, directory)
    return seen[0]


def _saved_model(directory, spec):
    layout = layout_lib.make(spec.mesh, jax.devices())
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=spec.train.num_steps)
    abstract = state.abstract(Decoder(spec.model), transform, sequence_length=16, mesh=layout.mesh)
    return checkpoint.restore_model(directory / "checkpoints", abstract, step=None)


@pytest.mark.parametrize("mesh", [{}, MESH], ids=["one device", "mesh"])
def test_a_run_begins_with_exactly_the_others_parameters(base, corpus, tmp_path, monkeypatch, mesh):
    spec = _spec(corpus, base, mesh=mesh)
    first = _first(monkeypatch, spec, tmp_path / "run")
    given = jax.device_get(_saved_model(base, spec))
    assert given.step == 6 and int(first.step) == 0
    chex.assert_trees_all_equal(first.params, given.params)
    chex.assert_trees_all_equal(first.balance, given.balance)
    assert all(leaf.any() for leaf in jax.tree.leaves(given.balance))
    plain = _first(monkeypatch, _spec(corpus, base, mesh=mesh, start_from=None), tmp_path / "plain")
    chex.assert_trees_all_equal(first.opt_state, plain.opt_state)
    chex.assert_trees_all_equal(first.key, plain.key)
    assert (first.params["embed"]["embedding"] != plain.params["embed"]["embedding"]).any()
    records = [json.loads((tmp_path / n / "record.json").read_text()) for n in ("run", "plain")]
    assert [r["started_from"] for r in records] == [{"path": str(base), "step": 6}, None]


def test_resumed_equals_uninterrupted_without_looking_there_again(
    base, corpus, tmp_path, monkeypatch
):
    moving = shutil.copytree(base, tmp_path / "base")
    spec = _spec(corpus, moving)
    loop_test._train(spec, tmp_path / "whole")
    loop_test._stop_at(monkeypatch, [2])
    assert loop_test._train(spec, tmp_path / "parts").step == 2
    shutil.rmtree(moving)
    assert loop_test._train(spec, tmp_path / "parts") == loop.Outcome(4, 2, None)
    loop_test.assert_same_run(tmp_path / "parts", tmp_path / "whole", spec)
    with pytest.raises(ValueError, match=r"train.start_from: '.*base' there, None now"):
        loop_test._train(_spec(corpus, moving, start_from=None), tmp_path / "parts")


def test_a_run_that_saved_nothing_begins_again_with_the_recorded_step(base, corpus, tmp_path):
    other, run = shutil.copytree(base, tmp_path / "base"), tmp_path / "run"
    spec = _spec(corpus, other)
    data = text_data.load(spec.data, seed=spec.seed)
    run.mkdir()
    begun = {"path": str(other), "step": 4}
    workdir.begin(run, spec, data, step=0, started_from=begun)  # and killed before a checkpoint
    layout = layout_lib.make(spec.mesh, jax.devices())
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=4)
    abstract = state.abstract(Decoder(spec.model), transform, sequence_length=16, mesh=layout.mesh)
    assert starting.read(str(other), abstract, data.tokenizer, directory=run).step == 4
    assert starting.read(str(other), abstract, data.tokenizer, directory=tmp_path).step == 6
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"base': the run began with its step 4.*gone"):
        starting.read(str(other), abstract, data.tokenizer, directory=run)


def test_refusals_name_the_path_and_leave_no_trace(base, corpus, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"start_from='.*gone': no run directory"):
        loop_test._train(_spec(corpus, tmp_path / "gone"), run)
    empty = shutil.copytree(base, tmp_path / "empty", ignore=lambda *_: {"checkpoints"})
    with pytest.raises(FileNotFoundError, match=r"start_from='.*empty': .*no finished checkpoint"):
        loop_test._train(_spec(corpus, empty), run)
    with pytest.raises(ValueError, match=r"start_from='.*base.*': .*step 6 holds params"):
        loop_test._train(_spec(corpus, base, model={"expert_hidden_dim": 16}), run)
    with pytest.raises(ValueError, match=r"start_from='.*base.*': "):  # an array too many
        loop_test._train(_spec(corpus, base, model={"tie_embeddings": True}), run)
    tagged = {"tokenizer": "tagged_bytes"}
    with pytest.raises(ValueError, match=r"start_from='.*base.*': its tokenizer has the sha256"):
        loop_test._train(_spec(corpus, base, model={"vocab_size": 264}, data=tagged), run)
    assert not (run / "config.json").exists()
    by_file = {"tokenizer": "file", "tokenizer_path": str(base / "tokenizer.json")}
    assert loop_test._train(_spec(corpus, base, data=by_file), run).trained == 4
