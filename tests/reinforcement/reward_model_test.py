"""A reward model: learns an easy preference, reads the last token, and refuses NaN."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.nn.scalar import ScalarDecoder
from deepseek_jax.reinforcement import pairs, reward_model
from deepseek_jax.reinforcement import state as state_lib
from deepseek_jax.training import checkpoint, optimizer
from tests import tiny as tiny_models
from tests import tolerances
from tests.reinforcement import tiny

SPEC = tiny.reward_spec(pairs={"batch_size": 8}, train={"num_steps": 40})


def _pairs(count, seed):
    """The second token of a preferred answer is 12, of the other 7; lengths differ by one."""
    random = np.random.default_rng(seed)
    sides = []
    for low, high, length in ((12, 13, 7), (7, 8, 6)):
        rows = random.integers(6, 16, (count, 24)).astype(np.int32)
        rows[:, 1] = random.integers(low, high, count)
        lengths = np.full(count, length, np.int32)
        sides += [np.where(np.arange(24)[None] < lengths[:, None], rows, 0), lengths]
    return pairs.Pairs(*sides, np.arange(count))


@pytest.fixture(scope="module")
def begun():
    """The step, its first state and a way to score."""
    transform = optimizer.make_optimizer(SPEC.optimizer, num_steps=SPEC.train.num_steps)
    _, variables = tiny_models.make(SPEC.model)
    start = checkpoint.Model(variables["params"], variables["balance"], 0)
    state = jax.jit(
        lambda key: state_lib.scalar_state(
            SPEC.model, transform, start, key, sequence_length=24, bias=0.5
        )
    )(jax.random.key(0))
    step = reward_model.make_step(
        ScalarDecoder(SPEC.model),
        transform,
        centering_weight=SPEC.pairs.centering_weight,
        shardings=None,
    )
    return step, state, reward_model.make_scores(ScalarDecoder(SPEC.model)), start


@pytest.mark.deep
def test_it_starts_at_the_backbone_of_the_policy(begun):
    _, state, scores, start = begun
    backbone = {name: leaf for name, leaf in state.params.items() if name != "scalar_head"}
    chex.assert_trees_all_equal(backbone, {name: start.params[name] for name in backbone})
    chex.assert_trees_all_equal(state.balance, start.balance)
    listed = _pairs(8, 0)
    logits = scores(
        {"params": state.params, "balance": state.balance}, listed.chosen, listed.chosen_lengths
    )
    np.testing.assert_array_equal(logits, 0.5)


@pytest.fixture(scope="module")
def trained(begun):
    step, state, _, _ = begun
    state, table, told = tiny.copied(state), _pairs(64, 1), []
    for number in range(SPEC.train.num_steps):
        ids = np.arange(8 * number, 8 * number + 8) % 64
        state, metrics = step(state, pairs.take(table, ids))
        told.append(jax.device_get(metrics))
    return state, told


def test_it_learns_an_easy_preference(begun, trained):
    state, told = trained
    assert float(told[0]["loss"]) == pytest.approx(np.log(2.0), rel=1e-5)  # all scores are equal
    assert float(told[0]["pair_accuracy"]) == 0.0  # a tie is not right
    assert told[-1]["loss"] < 0.2 and told[-1]["score_chosen"] > told[-1]["score_rejected"] + 0.3
    assert int(state.step) == SPEC.train.num_steps
    chosen, rejected = reward_model.pair_logits(
        begun[2],
        {"params": state.params, "balance": state.balance},
        _pairs(21, 2),  # new ones, in a last batch that is not full
        batch_size=8,
    )
    assert chosen.shape == rejected.shape == (21,)
    assert np.mean(chosen > rejected) > 0.75


def test_the_last_token_is_the_one_that_counts(begun, trained):
    variables = {"params": trained[0].params, "balance": trained[0].balance}
    listed, scores = _pairs(8, 3), begun[2]
    before = scores(variables, listed.chosen, listed.chosen_lengths)
    behind = np.arange(24)[None] >= listed.chosen_lengths[:, None]
    after = scores(variables, np.where(behind, 15, listed.chosen), listed.chosen_lengths)
    np.testing.assert_array_equal(before, after)
    shorter = scores(variables, listed.chosen, listed.chosen_lengths - 2)
    assert not np.isclose(before, shorter, **tolerances.MODEL_F32).any()
    cut = np.where(np.arange(24)[None] < 5, listed.chosen, 0)
    np.testing.assert_allclose(
        shorter, scores(variables, cut, listed.chosen_lengths - 2), **tolerances.LAYER_F32
    )


def test_centering_and_levels(begun):
    """All logits are 0.5 at first: the gradient of the bias is that of the centering alone."""
    step, state, _, _ = begun
    head = jax.tree.map(jnp.zeros_like, state.params["scalar_head"])
    state = tiny.copied(state)
    at_zero = state._replace(params={**state.params, "scalar_head": head})
    listed = _pairs(8, 4)
    moved, _ = step(tiny.copied(at_zero), listed)
    assert float(moved.params["scalar_head"]["bias"]) == 0.0
    moved, _ = step(state, listed)
    assert float(moved.params["scalar_head"]["bias"]) < 0.5


def test_what_is_not_finite_leaves_the_state_as_it_was(begun):
    step, state, _, _ = begun
    head = {**state.params["scalar_head"], "bias": jnp.float32(jnp.nan)}
    broken = tiny.copied(state)._replace(params={**state.params, "scalar_head": head})
    kept, told = step(tiny.copied(broken), _pairs(8, 0))
    assert np.isnan(told["loss"])
    chex.assert_trees_all_equal(kept, broken)
