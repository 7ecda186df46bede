"""Rollouts: against a plain loop without a cache, against the training pass, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.decoding import generate
from deepseek_jax.nn import model as model_lib
from deepseek_jax.reinforcement import forward, rollout
from deepseek_jax.reinforcement.rollout import Prompts
from tests import tiny as tiny_models
from tests import tolerances
from tests.reinforcement import tiny

SPEC = tiny.ppo_spec()
LENGTH = 24  # 7 + 12 tokens in whole blocks of 8


@pytest.fixture(scope="module")
def built():
    model, variables = tiny_models.make(SPEC.model)
    # So that the choice of experts is not that of the scores alone.
    biases = jax.tree.map(
        lambda x: 0.1 * jax.random.normal(jax.random.key(2), x.shape), variables["balance"]
    )
    return model, variables | {"balance": biases}


def _collect(built, *, temperature, end_id=5, key=0):
    model, variables = built
    return rollout.collect(
        model,
        variables,
        tiny.prompts(),
        jax.random.key(key),
        spec=SPEC.rollout,
        temperature=temperature,
        vocab_size=16,
        end_id=end_id,
    )


def _whole_rows(built):
    """Tokens, lengths -> logits of whole rows, no cache."""
    model, variables = built

    def run(tokens, lengths):
        index = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32)[None], tokens.shape)
        ids = (index < lengths[:, None]).astype(jnp.int32)
        return model.apply(variables, tokens, document_ids=ids, positions=index).logits

    return jax.jit(run)


@pytest.mark.deep
def test_greedy_equals_a_plain_loop_without_a_cache(built):
    run, asked = _whole_rows(built), tiny.prompts()
    rows = np.zeros((4, LENGTH), np.int32)
    rows[:, :8] = asked.tokens
    lengths, alive = np.array(asked.lengths), np.ones(4, bool)
    free = _collect(built, temperature=0.0, end_id=16)
    end_id = int(free.responses[0, 8])  # so that some answers end, in the second block
    for _ in range(SPEC.rollout.max_new_tokens):
        logits = run(jnp.asarray(rows), jnp.asarray(lengths))
        following = np.asarray(jnp.argmax(logits, axis=-1))[np.arange(4), lengths - 1]
        rows[np.flatnonzero(alive), lengths[alive]] = following[alive]
        lengths = lengths + alive
        alive &= following != end_id
    drawn = _collect(built, temperature=0.0, end_id=end_id)
    np.testing.assert_array_equal(drawn.tokens, rows)
    np.testing.assert_array_equal(drawn.document_ids.sum(axis=1), lengths)
    np.testing.assert_array_equal(drawn.is_finished, ~alive)
    assert (~alive).any()


@pytest.fixture(scope="module")
def drawn(built):
    return _collect(built, temperature=1.0, key=3)


def test_lengths_are_worth_testing(drawn):
    lengths = np.asarray(drawn.response_mask.sum(axis=1))
    assert lengths.max() == 12 > lengths.min() and len(set(lengths.tolist())) > 1
    assert bool(drawn.is_finished.any()) and not bool(drawn.is_finished.all())


def test_the_sampler_and_the_training_pass_agree_on_every_token(built, drawn):
    model, variables = built
    terms = jax.jit(lambda v, d: forward.policy_terms(model, v, d))(variables, drawn)
    assert int(drawn.mask.sum()) == int(drawn.response_mask.sum())
    np.testing.assert_allclose(
        jnp.where(drawn.mask, terms.logprobs, 0.0),
        drawn.sampled_logprobs,
        **tolerances.MODEL_F32,
    )
    assert float(jnp.where(drawn.mask, terms.logprobs, -1.0).max()) < 0.0
    garbage = tiny.with_garbage(drawn)
    assert not np.array_equal(garbage.tokens, drawn.tokens)
    other = jax.jit(lambda v, d: forward.policy_terms(model, v, d))(variables, garbage)
    kept = np.asarray(drawn.mask)
    np.testing.assert_array_equal(np.asarray(other.logprobs)[kept], terms.logprobs[kept])
    np.testing.assert_array_equal(other.aux_loss, terms.aux_loss)
    np.testing.assert_array_equal(other.stats.load, terms.stats.load)


def _margins(scores):
    """How far the nearest two experts or groups are apart, where a choice could tip over."""

    def least_gap(x):
        return np.diff(np.sort(x, axis=-1), axis=-1).min(axis=-1)

    groups = scores.reshape(*scores.shape[:-1], 2, 2)
    return np.minimum(
        least_gap(scores), np.minimum(least_gap(groups.sum(-1)), least_gap(groups.max(-1)))
    )


@pytest.mark.deep
def test_decoding_steps_choose_the_experts_of_the_training_pass(built, drawn):
    model, variables = built
    # Without biases the probabilities alone choose.
    variables = variables | {"balance": jax.tree.map(jnp.zeros_like, variables["balance"])}

    def chosen(method, *args, **kwargs):
        """What a method answers; expert ids and probabilities of its tokens."""
        answer, sown = model.apply(
            variables,
            *args,
            **kwargs,
            method=method,
            mutable=["intermediates"],
        )
        router = sown["intermediates"]["layers"]["feed_forward"]["router"]
        (ids,), (probs,) = router["expert_ids"], router["probs"]
        return answer, ids, probs

    def trained(d):
        _, ids, probs = chosen(
            "__call__", d.tokens, document_ids=d.document_ids, positions=d.positions
        )
        return ids.reshape(2, 4, LENGTH, 2), probs.reshape(2, 4, LENGTH, 4)

    ids, probs = jax.device_get(jax.jit(trained)(drawn))
    empty = model_lib.empty_cache(SPEC.model, batch_size=4, max_length=LENGTH)
    asked = tiny.prompts()
    prefill = jax.jit(lambda t, n, c: chosen("prefill", t, n, c))
    step = jax.jit(lambda t, c: chosen("step", t, c))
    (_, cache), _, _ = prefill(jnp.asarray(asked.tokens), jnp.asarray(asked.lengths), empty)
    rows, num_compared = np.arange(4), 0
    for _ in range(SPEC.rollout.max_new_tokens):
        at = np.asarray(cache.lengths)
        (_, cache), got_ids, got_probs = step(drawn.tokens[rows, at], cache)
        inside = np.asarray(drawn.document_ids)[rows, at] == 1
        want_ids, want_probs = ids[:, rows, at], probs[:, rows, at]
        np.testing.assert_allclose(
            np.asarray(got_probs)[:, inside], want_probs[:, inside], **tolerances.MODEL_F32
        )
        sure = inside[None] & (_margins(want_probs) > 1e-5)
        same = (np.sort(got_ids, -1) == np.sort(want_ids, -1)).all(-1)
        assert same[sure].all()
        num_compared += sure.sum()
    assert num_compared > 40


def test_rows_by_hand():
    """Two prompts in blocks of 4: a finished answer, and one that was cut."""
    prompts = Prompts(
        jnp.array([[7, 8, 0, 0], [6, 9, 10, 0]]),
        jnp.array([2, 3]),
        jnp.zeros((2, 1), jnp.int32),
        jnp.ones(2, jnp.int32),
    )
    drawn = generate.Generation(
        jnp.array([[11, 5, 0, 0], [12, 13, 14, 15]]),
        jnp.array([[True, True, False, False], [True] * 4]),
        jnp.array([[-1.0, -2.0, 0.0, 0.0], [-3.0, -4.0, -5.0, -6.0]]),
    )
    rows = rollout.as_rows(prompts, drawn, length=8, end_id=5)
    assert rows.tokens.tolist() == [[7, 8, 11, 5, 0, 0, 0, 0], [6, 9, 10, 12, 13, 14, 15, 0]]
    assert rows.targets.tolist() == [[8, 11, 5, 0, 0, 0, 0, 0], [9, 10, 12, 13, 14, 15, 0, 0]]
    assert rows.mask.astype(int).tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]]
    assert rows.document_ids.tolist() == [[1] * 4 + [0] * 4, [1] * 7 + [0]]
    assert rows.positions.tolist() == [list(range(8))] * 2
    assert rows.sampled_logprobs.tolist() == [
        [0, -1.0, -2.0, 0, 0, 0, 0, 0],
        [0, 0, -3.0, -4.0, -5.0, -6.0, 0, 0],
    ]
    assert rows.is_finished.tolist() == [True, False]
    assert rows.responses.tolist() == drawn.tokens.tolist()
    assert rows.response_mask.tolist() == drawn.token_mask.tolist()


def test_an_answer_that_fills_the_row_is_not_shifted():
    """Prompt and answer take all of L; the padded prompt alone is wider than what is left."""
    prompts = Prompts(
        jnp.array([[7, 8, 9, 0]]), jnp.array([3]), jnp.zeros((1, 1), jnp.int32), jnp.array([1])
    )
    drawn = generate.Generation(
        jnp.array([[11]]), jnp.array([[True]]), jnp.array([[-1.0]], jnp.float32)
    )
    rows = rollout.as_rows(prompts, drawn, length=4, end_id=5)
    assert rows.tokens.tolist() == [[7, 8, 9, 11]]
    assert rows.mask.tolist() == [[False, False, True, False]]
    assert rows.sampled_logprobs.tolist() == [[0.0, 0.0, -1.0, 0.0]]


def test_copies_of_a_prompt_lie_side_by_side():
    asked = rollout.repeated(tiny.prompts(), times=3)
    assert asked.lengths.tolist() == [7] * 3 + [1] * 3 + [4] * 3 + [6] * 3


def test_the_last_token_is_found(drawn):
    index = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.float32)[None], (4, LENGTH))
    lengths = tiny.prompts().lengths + np.asarray(drawn.response_mask.sum(axis=1))
    np.testing.assert_array_equal(forward.at_last_token(index, drawn), lengths - 1)
