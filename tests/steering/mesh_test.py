"""Steps on eight devices: the numbers of one device, and a state that stays where it lies."""

import dataclasses

import jax
import numpy as np
import pytest

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.data import tokenizers
from deepseek_jax.steering import batches, stage
from deepseek_jax.training import step as step_lib
from tests import tolerances
from tests.steering import tiny

pytestmark = pytest.mark.deep

SPEC = tiny.spec(**{"model.num_kv_heads": 2})
DATA = batches.make_data(SPEC, tokenizers.bytes_tokenizer())


def on_mesh(shape):
    names = dict(zip(("data", "expert", "model"), shape, strict=True))
    return dataclasses.replace(SPEC, mesh=MeshSpec(**names, exchange="exact", rows_factor=0.0))


def advanced(shape):
    """What three steps on a mesh report, what is measured then, and which arrays have moved."""
    built = stage.build(on_mesh(shape), DATA)
    now, told = built.initial(), []
    for number in range(3):
        now, metrics = built.advance(now, number)
        told.append(jax.device_get(metrics))
    moved = [
        jax.tree_util.keystr(path)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(now), jax.tree.leaves(built.abstract), strict=True
        )
        if not leaf.sharding.is_equivalent_to(where.sharding, leaf.ndim)
    ]
    return told, built.measure(now), moved


@pytest.fixture(scope="module")
def alone():
    return advanced((1, 1, 1))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_steps_on_a_mesh_equal_those_on_a_device(alone, shape):
    told, measured, moved = advanced(shape)
    assert told[0]["loss"] > told[2]["loss"]
    for first, second in zip(alone[0], told, strict=True):
        assert first.keys() == second.keys()
        for name in ("loss", "aux_loss", "gradient_norm"):
            np.testing.assert_allclose(first[name], second[name], **tolerances.MODEL_F32)
    assert measured == alone[1]
    assert not moved  # else the next step compiles again, and saves what lies otherwise


def test_the_step_is_bound_to_the_placement(monkeypatch):
    """Asked for, not left to the compiler, which happens to keep this one by itself."""
    asked = []
    monkeypatch.setattr(step_lib, "jitted", lambda _, shardings: asked.append(shardings))
    built = stage.build(on_mesh((2, 2, 2)), DATA)
    want = [leaf.sharding for leaf in jax.tree.leaves(built.abstract)]
    assert [jax.tree.leaves(one) for one in asked] == [want]
