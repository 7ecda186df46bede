"""Hand numbers and laws of `objectives.kl`."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import kl
from tests import tolerances

NAN = jnp.nan


def test_estimators_by_hand():
    # q / p = 1, 4, 1/2
    logprobs = jnp.log(jnp.array([[0.5, 0.2, 0.8]]))
    reference = jnp.log(jnp.array([[0.5, 0.8, 0.4]]))
    k1 = kl.kl_k1_terms(logprobs, reference)
    np.testing.assert_allclose(k1, [[0.0, -np.log(4.0), np.log(2.0)]], **tolerances.OP_F32)
    k3 = kl.kl_k3_terms(logprobs, reference)
    expected = [[0.0, 3.0 - np.log(4.0), -0.5 + np.log(2.0)]]
    np.testing.assert_allclose(k3, expected, **tolerances.OP_F32)


def test_k3_keeps_small_differences():
    # about d^2 / 2: exp(d) - d - 1 in float32 would lose it
    difference = 2.0**-9
    k3 = kl.kl_k3_terms(jnp.zeros((1, 1)), jnp.full((1, 1), difference))
    exact = np.expm1(difference) - difference
    np.testing.assert_allclose(
        k3 / (difference**2 / 2), exact / (difference**2 / 2), **tolerances.MODEL_F32
    )


def test_k3_pulls_the_policy_to_the_reference():
    logprobs, reference = jnp.array([[-1.0, -2.0, -1.5]]), jnp.array([[-2.0, -1.0, -1.5]])
    of_policy, of_reference = jax.grad(lambda p, q: kl.kl_k3_terms(p, q).sum(), argnums=(0, 1))(
        logprobs, reference
    )
    # d k3 / d log p = 1 - q / p
    expected = 1.0 - np.exp([[-1.0, 1.0, 0.0]])
    np.testing.assert_allclose(of_policy, expected, **tolerances.OP_F32)
    np.testing.assert_array_equal(of_reference, 0.0)


def test_rewards_by_hand():
    # beta 1/2; k1 = 1, -2, 3 on the kept positions of row 0; row 1 keeps its last position, row 2
    # none, and its final reward goes nowhere
    logprobs = jnp.array([[NAN, -1.0, -3.0, -1.0, NAN], [NAN] * 4 + [-2.0], [NAN] * 5])
    reference = jnp.array([[NAN, -2.0, -1.0, -4.0, NAN], [NAN] * 4 + [-2.0], [NAN] * 5])
    rewards = kl.penalized_rewards(
        jnp.array([10.0, 20.0, NAN]),
        logprobs,
        reference,
        jnp.isfinite(logprobs),
        coefficient=jnp.float32(0.5),
    )
    expected = [[0.0, -0.5, 1.0, 10.0 - 1.5, 0.0], [0.0] * 4 + [20.0], [0.0] * 5]
    np.testing.assert_array_equal(rewards, expected)


def test_coefficient_by_hand():
    def adapted(observed_kl):
        return kl.adapted_coefficient(
            jnp.float32(2.0), jnp.float32(observed_kl), target=5.0, horizon=100.0, num_samples=50
        )

    # errors 0, 0.1, -0.1 and beyond +-0.2; times 50 / 100
    np.testing.assert_allclose(adapted(5.0), 2.0, **tolerances.OP_F32)
    np.testing.assert_allclose(adapted(5.5), 2.1, **tolerances.OP_F32)
    np.testing.assert_allclose(adapted(4.5), 1.9, **tolerances.OP_F32)
    np.testing.assert_allclose(adapted(6.0), 2.2, **tolerances.OP_F32)
    np.testing.assert_allclose(adapted(50.0), 2.2, **tolerances.OP_F32)
    np.testing.assert_allclose(adapted(0.0), 1.8, **tolerances.OP_F32)


class KlTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_estimator_laws(self):
        k1_of, k3_of = self.variant(kl.kl_k1_terms), self.variant(kl.kl_k3_terms)

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            logits = jnp.asarray(rng.normal(0.0, 1.0, (2, 3, 5)).astype(np.float32))
            log_p, log_q = jax.nn.log_softmax(logits, axis=-1)
            # every token weighed by its probability: both means are the KL, and not KL(q || p)
            exact = np.sum(np.exp(log_p) * (np.asarray(log_p) - np.asarray(log_q)), axis=-1)
            for estimator in (k1_of, k3_of):
                mean = jnp.sum(jnp.exp(log_p) * estimator(log_p, log_q), axis=-1)
                np.testing.assert_allclose(mean, exact, **tolerances.LAYER_F32)
            k3 = np.asarray(k3_of(log_p, log_q))
            apart = np.abs(np.asarray(log_p - log_q)) > 1e-2
            assert (
                apart.any() and (k3[apart] > 0.0).all() and (k3 >= -tolerances.OP_F32["atol"]).all()
            )
            np.testing.assert_array_equal(k3_of(log_p, log_p), 0.0)

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_reward_laws(self):
        rewards_of = self.variant(kl.penalized_rewards)

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            log_p, log_q = jnp.asarray(rng.normal(-2.0, 1.0, (2, 4, 6)).astype(np.float32))
            final = jnp.asarray(rng.normal(0.0, 1.0, 4).astype(np.float32))
            starts = rng.integers(0, 6, (4, 1))
            index, lengths = np.arange(6), rng.integers(0, 7, (4, 1))
            mask = jnp.asarray((index >= starts) & (index < starts + lengths))
            coefficient = jnp.float32(rng.random())
            rewards = rewards_of(final, log_p, log_q, mask, coefficient=coefficient)
            # a row sums to its score less beta times the log-ratio of the whole response
            log_ratio = np.where(mask, log_p - log_q, 0.0).sum(1)
            expected = np.where(mask.any(1), final - coefficient * log_ratio, 0.0)
            np.testing.assert_allclose(rewards.sum(1), expected, **tolerances.LAYER_F32)
            np.testing.assert_array_equal(jnp.where(mask, 0.0, rewards), 0.0)
            # without a penalty one position has the score: the last
            bare = np.asarray(rewards_of(final, log_p, log_q, mask, coefficient=jnp.float32(0.0)))
            for row, kept in enumerate(np.asarray(mask)):
                if kept.any():
                    assert np.flatnonzero(bare[row]).tolist() == [np.flatnonzero(kept)[-1]]
            dirty = rewards_of(
                final,
                jnp.where(mask, log_p, NAN),
                jnp.where(mask, log_q, NAN),
                mask,
                coefficient=coefficient,
            )
            np.testing.assert_array_equal(dirty, rewards)

        laws()
