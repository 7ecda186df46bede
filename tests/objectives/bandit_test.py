"""The objectives put together, on bandits small enough that the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import advantages, grpo, kl, masked, policy, ppo
from tests import tolerances

# Sampled: two tokens of four each, one point for each right one, told after the second; a third
# position belongs to no response. All logits start at 0: the chance of both is 1/16.
BEST = jnp.array([[2, 0, 0]])
ROWS, CHOICES = 32, 4
MASK = jnp.tile(jnp.array([[True, True, False]]), (ROWS, 1))

# Exact: three arms, each weighed by its probability when the actions were drawn.
REWARDS = jnp.array([0.0, 0.5, 1.0])
REFERENCE = jnp.log(jnp.array([0.5, 0.3, 0.2]))
BETA = 0.7


def logprobs_of(logits, tokens):
    rows = jnp.broadcast_to(logits, (ROWS, *logits.shape))
    return masked.zeroed(policy.token_logprobs(rows, tokens), MASK)


def scores_of(tokens):
    return jnp.sum((tokens == BEST) & MASK, axis=1).astype(jnp.float32)


def descend(loss, parameters, *, rate, num_steps):
    """Plain gradient descent."""
    gradient_of = jax.grad(loss)

    def step(parameters, _):
        gradient = gradient_of(parameters)
        return jax.tree.map(lambda x, d: x - rate * d, parameters, gradient), None

    return jax.lax.scan(step, parameters, length=num_steps)[0]


def chance_of_best(logits):
    return float(jnp.exp(jax.nn.log_softmax(logits)[jnp.arange(2), BEST[0, :2]].sum()))


def test_ppo_learns_two_tokens():
    def loss(parameters, tokens, old_logprobs, old_values, estimates):
        logprobs = logprobs_of(parameters["logits"], tokens)
        values = jnp.broadcast_to(parameters["values"], (ROWS, 3))
        scaled = advantages.whitened(estimates.advantages, MASK, shift_mean=True)
        surrogate = ppo.clipped_surrogate_terms(logprobs, old_logprobs, scaled, clip=0.2)
        errors = ppo.clipped_value_terms(values, old_values, estimates.returns, clip=0.2)
        return masked.masked_mean(surrogate + errors, MASK)

    def round_of(parameters, key):
        old_logits = jnp.broadcast_to(parameters["logits"], (ROWS, 3, CHOICES))
        tokens = jax.random.categorical(key, old_logits)
        old_logprobs = logprobs_of(parameters["logits"], tokens)
        reference = logprobs_of(jnp.zeros((3, CHOICES)), tokens)
        rewards = kl.penalized_rewards(
            scores_of(tokens), old_logprobs, reference, MASK, coefficient=jnp.float32(0.01)
        )
        old_values = jnp.broadcast_to(parameters["values"], (ROWS, 3))
        estimates = advantages.generalized_advantages(
            rewards, old_values, MASK, discount=1.0, gae_lambda=0.9
        )
        drawn = (tokens, old_logprobs, old_values, estimates)
        return descend(lambda p: loss(p, *drawn), parameters, rate=0.5, num_steps=4), None

    start = {"logits": jnp.zeros((3, CHOICES)), "values": jnp.zeros(3)}
    keys = jax.random.split(jax.random.key(0), 60)
    end = jax.jit(lambda start: jax.lax.scan(round_of, start, keys)[0])(start)
    assert chance_of_best(end["logits"]) > 0.95
    # All the score comes after the second token, so both values near 2; the third position has
    # learned nothing.
    np.testing.assert_array_less(1.5, end["values"][:2])
    assert end["values"][2] == 0.0
    np.testing.assert_array_equal(end["logits"][2], 0.0)


def test_grpo_learns_two_tokens():
    def round_of(logits, key):
        tokens = jax.random.categorical(key, jnp.broadcast_to(logits, (ROWS, 3, CHOICES)))
        old_logprobs = logprobs_of(logits, tokens)
        reference = logprobs_of(jnp.zeros((3, CHOICES)), tokens)
        estimates = advantages.group_advantages(scores_of(tokens), group_size=8, divide_by_std=True)

        def loss(logits):
            terms = grpo.grpo_terms(
                logprobs_of(logits, tokens),
                old_logprobs,
                reference,
                estimates,
                clip=0.2,
                kl_coefficient=0.01,
            )
            return masked.mean_of_row_means(terms, MASK)

        return descend(loss, logits, rate=0.5, num_steps=4), None

    keys = jax.random.split(jax.random.key(1), 60)
    start = jnp.zeros((3, CHOICES))
    end = jax.jit(lambda start: jax.lax.scan(round_of, start, keys)[0])(start)
    assert chance_of_best(end) > 0.9
    np.testing.assert_array_equal(end[2], 0.0)


def test_ppo_with_a_penalty_in_the_reward_finds_the_tilted_reference():
    # the maximum of E r - beta KL(p || q) is p = q exp(r / beta) / Z
    every = jnp.ones((3, 1), bool)

    def loss(logits):
        logprobs = jax.nn.log_softmax(logits)[:, None]
        old_logprobs = jax.lax.stop_gradient(logprobs)
        rewards = kl.penalized_rewards(
            REWARDS, old_logprobs, REFERENCE[:, None], every, coefficient=jnp.float32(BETA)
        )
        terms = ppo.clipped_surrogate_terms(logprobs, old_logprobs, rewards, clip=0.2)
        return jnp.sum(jnp.exp(old_logprobs) * terms)

    end = jax.jit(lambda x: descend(loss, x, rate=1.0, num_steps=200))(jnp.zeros(3))
    expected = jax.nn.softmax(REFERENCE + REWARDS / BETA)
    np.testing.assert_allclose(jax.nn.softmax(end), expected, **tolerances.MODEL_F32)


def test_grpo_stops_where_its_two_forces_are_equal():
    # The sampled k3 has the gradient of KL(q || p), not of KL(p || q): the fixed point is
    # p (r - E r) = beta (p - q), not the tilted reference.
    def loss(logits):
        logprobs = jax.nn.log_softmax(logits)[:, None]
        old_logprobs = jax.lax.stop_gradient(logprobs)
        probs = jnp.exp(old_logprobs)[:, 0]
        terms = grpo.grpo_terms(
            logprobs,
            old_logprobs,
            REFERENCE[:, None],
            REWARDS - probs @ REWARDS,
            clip=0.2,
            kl_coefficient=BETA,
        )
        return jnp.sum(probs[:, None] * terms)

    end = jax.jit(lambda x: descend(loss, x, rate=1.0, num_steps=200))(jnp.zeros(3))
    probs, reference = jax.nn.softmax(end), jnp.exp(REFERENCE)
    pulled = probs * (REWARDS - probs @ REWARDS)
    np.testing.assert_allclose(pulled, BETA * (probs - reference), **tolerances.LAYER_F32)
    assert probs[2] > reference[2] and probs[0] < reference[0]
