"""One iteration of PPO: in one program or two, refused when not finite, and every setting."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.nn.model import Decoder
from deepseek_jax.objectives import kl
from deepseek_jax.ops import balance as balance_ops
from deepseek_jax.reinforcement import forward, learner, ppo
from tests import tolerances
from tests.reinforcement import tiny

pytestmark = pytest.mark.deep

SPEC = tiny.ppo_spec(kl={"target": 0.5, "horizon": 40.0})


@functools.cache
def _built():
    return tiny.build(SPEC)


@functools.cache
def _drawn():
    built = _built()
    return jax.jit(built.halves.collect)(built.state, tiny.prompts())


@functools.cache
def _update():
    return jax.jit(_built().halves.update)


@functools.cache
def _updated():
    built = _built()
    return _update()(built.state, *_drawn(), built.reward_variables)


_policy_terms = jax.jit(functools.partial(forward.policy_terms, Decoder(SPEC.model)))


def test_what_an_iteration_reports():
    built, (drawn, verdict), (state, told) = _built(), _drawn(), _updated()
    assert int(state.step) == int(state.critic.step) == 1
    lengths = np.asarray(drawn.response_mask.sum(axis=1))
    assert float(told["length"]) == lengths.mean()
    assert float(told["finished_rate"]) == np.mean(drawn.is_finished)
    assert 0.0 < float(told["finished_rate"]) < 1.0  # so that both kinds are in this test
    assert float(told["logprob_mismatch"]) < tolerances.MODEL_F32["atol"]
    variables = {"params": built.state.params, "balance": built.state.balance}
    terms = _policy_terms(variables, drawn)
    reference = _policy_terms(built.state.reference, drawn).logprobs
    differences = jnp.where(drawn.mask, terms.logprobs - reference, 0.0).sum(axis=1)
    np.testing.assert_allclose(told["kl"], differences.mean(), **tolerances.MODEL_F32)
    np.testing.assert_allclose(
        told["entropy"], tiny.mean_over(terms.entropies, drawn.mask), **tolerances.MODEL_F32
    )
    assert float(told["learned_score"]) > 0.0  # the finished answers alone have a score
    earned = told["learned_score"] + 0.5 * told["accuracy"] + 0.25 * told["format_rate"]
    np.testing.assert_allclose(told["reward"], earned, **tolerances.OP_F32)
    assert verdict.is_right.shape == (8,)


def test_policy_and_critic_learn_and_the_reference_does_not():
    before, (after, told) = _built().state, _updated()
    chex.assert_trees_all_equal(after.reference, before.reference)
    moved = jax.tree.map(
        lambda x, y: bool(jnp.any(x != y)),
        (before.params, before.critic.params),
        (after.params, after.critic.params),
    )
    assert all(jax.tree.leaves(moved)), moved
    assert float(told["gradient_norm"]) > 0.0 and float(told["critic_gradient_norm"]) > 0.0


def test_one_program_equals_its_two_halves():
    built = _built()
    iteration = learner.make_iteration(built.halves, shardings=None)
    state, told = iteration(tiny.copied(built.state), tiny.prompts(), built.reward_variables)
    want, want_told = _updated()
    for name in ("accuracy", "format_rate", "finished_rate", "length"):
        assert float(told[name]) == float(want_told[name])  # the same answers
    chex.assert_trees_all_close(told, want_told, **tolerances.MODEL_F32)
    chex.assert_trees_all_close(state.params, want.params, **tolerances.MODEL_F32)
    chex.assert_trees_all_close(state.critic.params, want.critic.params, **tolerances.MODEL_F32)


def test_a_reward_that_is_not_finite_leaves_the_state_as_it_was():
    built = _built()
    broken = {**built.reward_variables["params"]}
    broken["scalar_head"] = {**broken["scalar_head"], "bias": jnp.float32(jnp.nan)}
    state, told = _update()(built.state, *_drawn(), built.reward_variables | {"params": broken})
    assert np.isnan(told["reward"])
    chex.assert_trees_all_equal(state, built.state)


def test_padding_changes_nothing():
    built, (drawn, verdict) = _built(), _drawn()
    garbage = tiny.with_garbage(drawn)
    state, told = _update()(built.state, garbage, verdict, built.reward_variables)
    want, want_told = _updated()
    chex.assert_trees_all_equal(told, want_told)
    chex.assert_trees_all_equal(state, want)


def test_choice_biases_move_once_by_the_load_of_the_whole_batch():
    built, (drawn, _), (after, _) = _built(), _drawn(), _updated()
    variables = {"params": built.state.params, "balance": built.state.balance}
    stats = _policy_terms(variables, drawn).stats
    want = jax.vmap(
        lambda load: balance_ops.updated_choice_bias(
            jnp.zeros_like(load), load, rate=SPEC.model.bias_update_rate
        )
    )(stats.load)
    (got,) = jax.tree.leaves(after.balance)
    np.testing.assert_array_equal(got, want)
    assert float(jnp.abs(got).max()) > 0.0
    chex.assert_trees_all_equal(after.critic.balance, built.state.critic.balance)


def test_the_coefficient_moves_towards_its_target():
    built, (after, told) = _built(), _updated()
    want = kl.adapted_coefficient(
        built.state.kl_coefficient, told["kl"], target=0.5, horizon=40.0, num_samples=8
    )
    np.testing.assert_allclose(after.kl_coefficient, want, **tolerances.OP_F32)
    assert (float(after.kl_coefficient) > 0.1) == (float(told["kl"]) > 0.5)
    assert float(told["kl_coefficient"]) == np.float32(0.1)  # the one that was used
    fixed = ppo._moved(tiny.ppo_spec(), built.state, told["kl"])
    assert fixed is built.state.kl_coefficient


def test_the_coefficient_of_the_state_is_the_one_that_counts():
    built = _built()
    without = built.state._replace(kl_coefficient=jnp.float32(0.0))
    state, _ = _update()(without, *_drawn(), built.reward_variables)
    assert _largest_difference(state.params, _updated()[0].params) > 1e-5


def _largest_difference(one, two):
    return max(
        float(jnp.max(jnp.abs(x - y)))
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


@functools.cache
def _dense(**nodes):
    """An iteration of a dense model, which compiles fast, on the answers of the sparse one."""
    changes = {name: dict(values) for name, values in nodes.items()}
    built = tiny.build(tiny.ppo_spec(model=tiny.DENSE, **changes))
    return jax.jit(built.halves.update)(built.state, *_drawn(), built.reward_variables)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node", "name", "value", "moves_policy", "moves_critic"),
    [
        ("critic", "value_clip", 0.001, False, True),
        ("critic", "whiten", False, True, False),
        ("critic", "discount", 0.5, True, True),
        ("critic", "gae_lambda", 0.1, True, True),
        ("kl", "place", "loss", True, True),
        ("update", "clip", 0.001, True, False),
        ("update", "num_epochs", 1, True, True),
        ("update", "num_minibatches", 1, True, True),
    ],
)
def test_every_setting_does_something(node, name, value, moves_policy, moves_critic):
    one, two = _dense(), _dense(**{node: ((name, value),)})
    assert (_largest_difference(one.params, two.params) > 1e-6) == moves_policy
    critics = _largest_difference(one.critic.params, two.critic.params)
    assert (critics > 1e-6) == moves_critic


def test_without_updates_nothing_but_counters_and_biases_change():
    still = optax.set_to_zero()
    built = tiny.build(SPEC, optimizers=[still, still])
    state, told = jax.jit(built.halves.update)(built.state, *_drawn(), built.reward_variables)
    chex.assert_trees_all_equal(state.params, built.state.params)
    chex.assert_trees_all_equal(state.critic.params, built.state.critic.params)
    # The policy is the one that drew the answers all the time, under the same biases.
    assert float(told["clip_fraction"]) == 0.0
    # The head of the critic is 0 at first, and all values are its bias.
    drawn, _ = _drawn()
    values = jnp.where(drawn.mask, 0.3, 0.0)
    assert float(told["explained_variance"]) == pytest.approx(0.0, abs=1e-5)
    assert bool(jnp.all(values[drawn.mask] == 0.3)) and float(told["value_loss"]) > 0.0


def test_explained_variance_by_hand():
    mask = jnp.array([[True, True, False], [True, True, False]])
    drawn = _drawn()[0]._replace(mask=mask)
    returns = jnp.array([[0.0, 1.0, 99.0], [2.0, 3.0, jnp.nan]])  # mean 1.5, variance 1.25

    def explained(values):
        return float(ppo.explained_variance(jnp.asarray(values), returns, drawn))

    assert explained(returns) == 1.0
    assert explained(returns + 5.0) == 1.0  # a constant error is none of the variance's
    assert explained(jnp.full((2, 3), 7.0)) == 0.0
    # Errors -0.5, 0.5, -0.5, 0.5: variance 0.25 of 1.25.
    assert explained([[0.5, 0.5, 0.0], [2.5, 2.5, 0.0]]) == pytest.approx(0.8)
    assert explained(-returns) == pytest.approx(-3.0)
    equal = jnp.ones((2, 3))
    assert float(ppo.explained_variance(returns, equal, drawn)) == 0.0
