"""A whole run on a mesh: resumed, moved to other devices, and refused where it doesn't fit."""

import dataclasses
import json
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core import mesh_spec
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.training import checkpoint, loop, optimizer, state, workdir
from tests import tolerances
from tests.training import loop_test, tiny

MODEL = {"num_kv_heads": 2, "top_groups": 2}
EXACT = {"data": 2, "expert": 2}
# Little room: some rows are dropped at every step.
BOUNDED = {**EXACT, "exchange": "bounded", "rows_factor": 1.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("texts") / "corpus")


def _spec(corpus, mesh, **train):
    return tiny.run_spec(
        corpus,
        model=MODEL,
        mesh=mesh,
        optimizer={"name": "muon", "muon_learning_rate": 1e-2},
        train={"num_microbatches": 1} | train,
    )


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    assert loop_test._train(_spec(corpus, BOUNDED), directory) == loop.Outcome(12, 12, None)
    return directory


@pytest.mark.deep
def test_a_run_resumed_on_a_mesh_equals_an_uninterrupted_one(
    uninterrupted, corpus, tmp_path, monkeypatch
):
    spec = _spec(corpus, BOUNDED)
    loop_test._stop_at(monkeypatch, [5])
    assert loop_test._train(spec, tmp_path).step == 5
    assert loop_test._train(spec, tmp_path) == loop.Outcome(12, 7, None)
    loop_test.assert_same_run(tmp_path, uninterrupted, spec)


@pytest.mark.deep
def test_a_run_goes_on_on_another_mesh_and_says_so(corpus, tmp_path, monkeypatch, caplog):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    # In two microbatches, cut over devices; the mesh that it goes on on cuts them otherwise.
    parts = {"batch_size": 8, "num_microbatches": 2}
    assert loop_test._train(_spec(corpus, {}, **parts), whole) == loop.Outcome(12, 12, None)
    loop_test._stop_at(monkeypatch, [5])
    assert loop_test._train(_spec(corpus, EXACT, **parts), moved).step == 5
    other = _spec(corpus, {"expert": 2, "model": 2}, **parts)
    with caplog.at_level(logging.WARNING):
        assert loop_test._train(other, moved) == loop.Outcome(12, 7, None)
    assert "mesh 2x2x1 -> 1x2x2" in caplog.text and "bit for bit" in caplog.text
    record = json.loads((moved / "record.json").read_text())
    starts = [(start["step"], start["made_with"]["mesh"]) for start in workdir.starts(record)]
    assert starts == [(0, "2x2x1"), (5, "1x2x2")]
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # as evaluation opens it, which trains nothing
        workdir.load_data(moved, _spec(corpus, {}, **parts))
    assert not caplog.text and json.loads((moved / "record.json").read_text()) == record
    there, here = (loop_test._saved_state(d, other).state for d in (whole, moved))
    chex.assert_trees_all_close(here.params, there.params, **tolerances.MODEL_F32)


@pytest.mark.deep
def test_lines_tell_of_the_exchange(uninterrupted):
    lines = [line for line in loop_test._lines(uninterrupted) if "loss" in line]
    # Two of four experts, on one of two devices or on both.
    assert all(1.0 < line["devices_per_token"] < 2.0 for line in lines)
    assert all(0.0 < line["overflow_share"] < 0.5 for line in lines)
    assert all(0.0 < line["dropped_share"] < 0.5 for line in lines)


def _state_on(mesh):
    """The same state, of random numbers, on a mesh."""
    spec = tiny.run_spec("unused", model=MODEL, mesh=mesh, train={"num_microbatches": 1})
    layout = layout_lib.make(spec.mesh, jax.devices())
    model = Decoder(spec.model)
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=4)
    abstract = state.abstract(model, transform, sequence_length=16, mesh=layout.mesh)
    random = np.random.default_rng(1)

    def filled(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(random.normal(size=leaf.shape), leaf.dtype)
        return leaf

    initial = state.initial_state(model, transform, jax.random.key(1), sequence_length=16)
    made = jax.tree.map(filled, initial)
    return jax.device_put(made, state.shardings(abstract)), abstract


MESHES = ({}, {"data": 2, "expert": 2, "model": 2}, {"expert": 4}, {"data": 4, "model": 2})


@pytest.fixture(scope="module")
def states():
    return [_state_on(mesh) for mesh in MESHES]


@pytest.mark.deep
@pytest.mark.parametrize("here", range(len(MESHES)))
def test_a_checkpoint_of_any_mesh_is_restored_to_any_other(states, here, tmp_path):
    saved, _ = states[here]
    keeper = checkpoint.Checkpoints(tmp_path, keep=1)
    keeper.save(saved, {})
    keeper.wait()
    for there, (same, abstract) in enumerate(states):
        restored = keeper.restore(abstract, step=None).state
        chex.assert_trees_all_equal(restored._replace(key=0), same._replace(key=0))
        assert (jax.random.key_data(restored.key) == jax.random.key_data(same.key)).all()
        assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == [
            leaf.sharding for leaf in jax.tree.leaves(abstract)
        ], there
    keeper.close()


@pytest.mark.deep
def test_parameters_and_moments_are_cut_over_all_devices(states):
    whole, cut = states[0][1], states[1][1]
    share = {
        name: [
            np.prod(leaf.sharding.shard_shape(leaf.shape)) / leaf.size
            for leaf in jax.tree.leaves(tree)
            if leaf.size > 100
        ]
        for name, tree in (("params", cut.params), ("moments", cut.opt_state))
    }
    # Everything large: over all 8 devices, but for what knows no model axis (the gate of the
    # router), over the 4 that cut the rows.
    assert share["params"] and set(share["params"]) <= {1 / 8, 1 / 4}
    assert sorted(share["moments"]) == sorted(2 * share["params"])  # two moments of Adam each
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole))


def test_too_many_devices_asked_for(corpus, tmp_path):
    spec = _spec(corpus, {"data": 2, "expert": 4, "model": 2}, batch_size=8)
    with pytest.raises(ValueError, match=r"needs 16 devices, there are 8. Nearest that fit 8 dev"):
        loop_test._train(spec, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_mesh_that_does_not_fit_the_model_is_no_spec(corpus):
    fitting = tiny.run_spec(corpus)
    wrong = MeshSpec(data=1, expert=3, model=1, exchange="exact", rows_factor=0.0)
    with pytest.raises(ValueError, match=r"mesh.expert=3: must be a divisor of model.num_exp"):
        dataclasses.replace(fitting, mesh=wrong)
    assert dataclasses.replace(fitting, mesh=mesh_spec.ONE_DEVICE) == fitting
