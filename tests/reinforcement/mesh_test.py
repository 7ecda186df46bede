"""Iterations on eight devices against one: the same answers, the same parameters."""

import functools

import chex
import jax
import numpy as np
import pytest

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.reinforcement import learner
from deepseek_jax.reinforcement import state as state_lib
from deepseek_jax.training import optimizer
from deepseek_jax.training import state as train_state
from tests import tolerances
from tests.reinforcement import tiny

pytestmark = pytest.mark.deep

SPECS = {
    "ppo": tiny.ppo_spec(update={"num_epochs": 1}, optimizer={"eps": 1e-3}),
    "grpo": tiny.grpo_spec(update={"num_epochs": 1}, optimizer={"eps": 1e-3}),
}


def _abstract(spec, mesh):
    transform = optimizer.make_optimizer(spec.optimizer, num_steps=10)
    return state_lib.abstract_policy(
        spec.model,
        transform,
        transform if spec.stage == "ppo" else None,
        sequence_length=24,
        mesh=mesh,
    )


def _iterated(spec, sizes):
    """Answers, the state and the metrics after an iteration."""
    data, expert, model = sizes
    mesh = MeshSpec(data=data, expert=expert, model=model, exchange="exact", rows_factor=0.0)
    layout = layout_lib.make(mesh, jax.devices())
    built = tiny.build(spec, layout=layout if mesh.num_devices > 1 else None)
    placed = train_state.shardings(_abstract(spec, layout.mesh))
    state = jax.device_put(tiny.copied(built.state), placed)
    drawn, _ = jax.jit(built.halves.collect)(state, tiny.prompts())
    tokens = np.asarray(drawn.tokens)
    iteration = learner.make_iteration(
        built.halves, shardings=placed if mesh.num_devices > 1 else None
    )
    state, told = iteration(state, tiny.prompts(), built.reward_variables)
    moved = [
        (jax.tree_util.keystr(path), leaf.sharding, where)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(placed), strict=True
        )
        if not leaf.sharding.is_equivalent_to(where, leaf.ndim)
    ]
    critic = None if state.critic is None else state.critic._replace(key=0)
    numbers = state._replace(key=0, critic=critic)
    return tokens, moved, jax.device_get(numbers), jax.device_get(told)


@pytest.fixture(scope="module")
def alone():
    return functools.cache(lambda stage: _iterated(SPECS[stage], (1, 1, 1)))


@pytest.mark.parametrize(
    ("stage", "sizes"),
    [
        ("ppo", (2, 2, 2)),
        ("grpo", (1, 4, 1)),
        # As long as the others, and cut in the same ways.
        pytest.param("ppo", (1, 4, 1), marks=pytest.mark.slow),
        pytest.param("grpo", (2, 2, 2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_iteration_on_a_mesh_equals_one_on_a_device(alone, stage, sizes):
    tokens, moved, state, told = _iterated(SPECS[stage], sizes)
    want_tokens, _, want, want_told = alone(stage)
    np.testing.assert_array_equal(tokens, want_tokens)
    assert not moved  # else the next iteration compiles again, and saves what lies otherwise
    chex.assert_trees_all_close(told, want_told, **tolerances.MODEL_F32)
    chex.assert_trees_all_equal(state.balance, want.balance)
    # Matrix by matrix: AdamW makes whole steps of single gradients that are mere rounding.
    got = jax.tree_util.tree_leaves_with_path(state)
    for (path, one), two in zip(got, jax.tree.leaves(want), strict=True):
        error = np.linalg.norm(one - two)
        limit = tolerances.MODEL_F32["rtol"] * np.linalg.norm(two) + 1e-7
        assert error < limit, jax.tree_util.keystr(path)
