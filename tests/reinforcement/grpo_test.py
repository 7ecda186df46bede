"""One iteration of GRPO: in one program or two, silent groups, and every setting."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.nn.model import Decoder
from deepseek_jax.objectives import advantages, masked
from deepseek_jax.objectives import grpo as grpo_objective
from deepseek_jax.reinforcement import forward, learner
from deepseek_jax.reinforcement.rewards import Verdict
from tests import tolerances
from tests.reinforcement import tiny

pytestmark = pytest.mark.deep

SPEC = tiny.grpo_spec(
    rollout={"num_prompts": 2, "samples_per_prompt": 4},
    rewards={"learned": 0.0, "right": 1.0, "format": 0.0},
    files={"reward_from": None},
)


def _verdict(is_right):
    right = jnp.asarray(np.array(is_right, bool))
    return Verdict(right, jnp.zeros(8, bool))


MIXED = _verdict([1, 0, 0, 0, 1, 1, 0, 1])


@functools.cache
def _built():
    return tiny.build(SPEC)


@functools.cache
def _drawn():
    built = _built()
    return jax.jit(built.halves.collect)(built.state, tiny.prompts(2))[0]


@functools.cache
def _update():
    return jax.jit(_built().halves.update)


@functools.cache
def _updated():
    return _update()(_built().state, _drawn(), MIXED, None)


def test_what_an_iteration_changes():
    before, (after, told) = _built().state, _updated()
    assert int(after.step) == 1 and after.critic is None
    assert float(told["reward"]) == float(told["accuracy"]) == 0.5
    assert float(told["silent_groups"]) == 0.0
    assert float(told["logprob_mismatch"]) < tolerances.MODEL_F32["atol"]
    chex.assert_trees_all_equal(after.reference, before.reference)
    assert float(after.kl_coefficient) == float(before.kl_coefficient)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), before.params, after.params)
    assert all(jax.tree.leaves(moved)), moved
    assert float(jnp.abs(jax.tree.leaves(after.balance)[0]).max()) == np.float32(0.01)


@jax.jit
def _chances(state):
    """Log-probability of each answer."""
    variables = {"params": state.params, "balance": _built().state.balance}
    drawn = _drawn()
    terms = forward.policy_terms(Decoder(SPEC.model), variables, drawn)
    return jnp.sum(jnp.where(drawn.mask, terms.logprobs, 0.0), axis=1)


def test_answers_that_earn_more_than_their_group_become_likelier():
    state = _built().state._replace(kl_coefficient=jnp.float32(0.0))
    first = _chances(state)
    for _ in range(4):  # the coefficient of the settings holds it back only a little
        state, _ = _update()(state, _drawn(), MIXED, None)
    gained = np.asarray(_chances(state) - first)
    better = np.asarray(MIXED.is_right)
    assert gained[better].min() > gained[~better].max()


def test_equal_rewards_leave_only_the_pull_of_the_reference():
    # The balancing losses of these settings are 0.
    for verdict in (_verdict([0] * 8), _verdict([1] * 4 + [0] * 4)):
        at_reference = _built().state
        params = at_reference.params
        at_reference = at_reference._replace(
            reference={"params": params, "balance": at_reference.balance}
        )
        state, told = _update()(at_reference, _drawn(), verdict, None)
        assert float(told["silent_groups"]) == 1.0
        assert float(told["gradient_norm"]) == 0.0
        chex.assert_trees_all_equal(state.params, params)
        away, told = _update()(_built().state, _drawn(), verdict, None)
        assert float(told["gradient_norm"]) > 0.0
        _, then = _update()(away, _drawn(), verdict, None)
        assert float(then["policy_loss"]) < float(told["policy_loss"])


def test_a_single_update_follows_the_gradient_at_the_old_policy():
    """Its own pass stands for the old policy's: the same as with old log-probabilities apart."""
    spec = dataclasses.replace(
        SPEC, update=dataclasses.replace(SPEC.update, num_epochs=1, num_minibatches=1)
    )
    built = tiny.build(spec, optimizers=[optax.sgd(1.0)] * 2)
    state, drawn, model = built.state, _drawn(), Decoder(spec.model)
    gains = advantages.group_advantages(
        MIXED.is_right.astype(jnp.float32), group_size=4, divide_by_std=True
    )

    def logprobs(params):
        terms = forward.policy_terms(model, {"params": params, "balance": state.balance}, drawn)
        return masked.zeroed(terms.logprobs, drawn.mask)

    old, reference = map(jax.jit(logprobs), (state.params, state.reference["params"]))

    def loss(params):
        terms = grpo_objective.grpo_terms(
            logprobs(params),
            old,
            reference,
            gains,
            clip=spec.update.clip,
            kl_coefficient=spec.kl.coefficient,
        )
        return masked.mean_of_row_means(terms, drawn.mask)

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    after, told = jax.jit(built.halves.update)(state, drawn, MIXED, None)
    want = jax.tree.map(lambda p, g: p - g, state.params, gradient)
    chex.assert_trees_all_close(after.params, want, **tolerances.MODEL_F32)
    np.testing.assert_allclose(told["policy_loss"], value, **tolerances.MODEL_F32)
    np.testing.assert_allclose(
        told["gradient_norm"], optax.tree.norm(gradient), **tolerances.MODEL_F32
    )
    assert float(told["clip_fraction"]) == 0.0 and float(told["gradient_norm"]) > 0.01
    # What is told of the policy that drew is what several updates tell of it.
    for name in ("kl", "entropy", "logprob_mismatch", "load_max_over_mean"):
        np.testing.assert_allclose(told[name], _updated()[1][name], **tolerances.MODEL_F32)


def test_one_program_equals_its_two_halves():
    built = _built()
    iteration = learner.make_iteration(built.halves, shardings=None)
    state, told = iteration(tiny.copied(built.state), tiny.prompts(2), None)
    drawn, verdict = jax.jit(built.halves.collect)(built.state, tiny.prompts(2))
    want, want_told = _update()(built.state, drawn, verdict, None)
    chex.assert_trees_all_close(told, want_told, **tolerances.MODEL_F32)
    chex.assert_trees_all_close(state.params, want.params, **tolerances.MODEL_F32)


def test_a_key_draws_once_and_every_iteration_draws_anew():
    built = _built()
    collect = jax.jit(built.halves.collect)
    again = collect(built.state, tiny.prompts(2))[0]
    np.testing.assert_array_equal(again.tokens, _drawn().tokens)
    later = collect(built.state._replace(step=jnp.int32(1)), tiny.prompts(2))[0]
    assert not np.array_equal(later.tokens, _drawn().tokens)
    one, two = learner.sample_key(built.state), learner.shuffle_key(built.state)
    assert (jax.random.key_data(one) != jax.random.key_data(two)).any()
    # Copies of a prompt are drawn apart.
    rows = np.asarray(again.responses)
    assert not np.array_equal(rows[0], rows[1])


def test_what_is_not_finite_leaves_the_state_as_it_was():
    state = _built().state
    broken = jax.tree.map(lambda x: x * jnp.nan, state.reference["params"])
    state = state._replace(reference=state.reference | {"params": broken})
    after, told = _update()(state, _drawn(), MIXED, None)
    assert np.isnan(told["kl"])
    chex.assert_trees_all_equal(after._replace(reference=0), state._replace(reference=0))


def test_padding_changes_nothing():
    garbage = tiny.with_garbage(_drawn())
    state, told = _update()(_built().state, garbage, MIXED, None)
    chex.assert_trees_all_equal((state, told), _updated())


@functools.cache
def _dense(**nodes):
    """Parameters before and after, of a dense model, which compiles fast."""
    base = {
        "rollout": {"num_prompts": 2, "samples_per_prompt": 4},
        "rewards": {"learned": 0.0, "right": 1.0, "format": 0.0},
        "files": {"reward_from": None},
        "optimizer": {"eps": 1.0},  # or Adam would hide a factor that all gradients share
    }
    changes = base | {name: base.get(name, {}) | dict(values) for name, values in nodes.items()}
    built = tiny.build(tiny.grpo_spec(model=tiny.DENSE, **changes))
    state, _ = jax.jit(built.halves.update)(built.state, _drawn(), MIXED, None)
    return _flat(built.state.params), _flat(state.params)


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"group": (("divide_by_std", False),)},
        {"kl": (("coefficient", 2.0),)},
        {"update": (("clip", 1e-6),)},
        {"update": (("num_epochs", 1),)},
        {"rollout": (("num_prompts", 4), ("samples_per_prompt", 2))},
    ],
    ids=str,
)
def test_every_setting_does_something(changes):
    (start, one), (_, two) = _dense(), _dense(**changes)
    assert np.linalg.norm(one - two) > 1e-3 * np.linalg.norm(one - start)


@pytest.mark.parametrize("half", ["collect", "update"])
def test_no_matmul_of_an_iteration_is_rounded_to_fewer_bits(half):
    """TF32, a GPU's default, parts rollout and training: measured in docs/log.md."""
    built = _built()
    arguments = {
        "collect": (built.state, tiny.prompts(2)),
        "update": (built.state, _drawn(), MIXED, None),
    }[half]
    text = jax.jit(getattr(built.halves, half)).lower(*arguments).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
