"""Hand numbers and laws of `objectives.policy`."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import masked, policy
from tests import tolerances


def test_logprobs_by_hand():
    logits = jnp.array([[[0.0, np.log(3.0)], [0.0, np.log(3.0)]]], jnp.float32)
    logprobs = policy.token_logprobs(logits, jnp.array([[0, 1]]))
    np.testing.assert_allclose(logprobs, [[np.log(0.25), np.log(0.75)]], **tolerances.OP_F32)


def test_barred_tokens_have_no_probability():
    logits = jnp.array([[[1.0, -jnp.inf, 1.0], [1.0, -jnp.inf, 1.0]]])
    logprobs = policy.token_logprobs(logits, jnp.array([[0, 1]]))
    np.testing.assert_allclose(logprobs[0, 0], -np.log(2.0), **tolerances.OP_F32)
    assert logprobs[0, 1] == -jnp.inf


def test_entropies_by_hand():
    # one certain token, two of three even, all even; 1/4 and 3/4
    ninf = -jnp.inf
    logits = jnp.array([[[0.0, ninf, ninf], [5.0, ninf, 5.0], [2.0, 2.0, 2.0]]])
    entropies = policy.token_entropies(logits)
    np.testing.assert_allclose(entropies, [[0.0, np.log(2), np.log(3)]], **tolerances.OP_F32)
    uneven = policy.token_entropies(jnp.array([[[0.0, np.log(3.0)]]], jnp.float32))
    by_hand = np.log(4.0) - 0.75 * np.log(3.0)
    np.testing.assert_allclose(uneven, [[by_hand]], **tolerances.OP_F32)


def test_entropy_of_barred_tokens_has_a_clean_gradient():
    def entropy(logits):
        return policy.token_entropies(logits[None, None])[0, 0]

    gradient = jax.grad(entropy)(jnp.array([0.0, -jnp.inf, np.log(3.0)], jnp.float32))
    # d H / d logit_v = -p_v (log p_v + H)
    probs = np.array([0.25, 0.75])
    by_hand = -probs * (np.log(probs) - np.sum(probs * np.log(probs)))
    np.testing.assert_allclose(gradient, [by_hand[0], 0.0, by_hand[1]], **tolerances.OP_F32)


def test_low_precision_logits_are_read_in_float32():
    logits = jnp.zeros((1, 1, 4), jnp.bfloat16)
    assert policy.token_entropies(logits).dtype == jnp.float32
    assert policy.token_logprobs(logits, jnp.zeros((1, 1), jnp.int32)).dtype == jnp.float32


def test_garbage_outside_the_mask_gets_no_gradient():
    logits = jnp.array([[[1.0, 2.0], [jnp.nan, jnp.inf]]])
    mask = jnp.array([[True, False]])

    def loss(logits):
        logprobs = policy.token_logprobs(masked_logits(logits), jnp.array([[0, 1]]))
        return masked.masked_mean(logprobs, mask)

    def masked_logits(logits):
        return masked.zeroed(logits, jnp.broadcast_to(mask[..., None], logits.shape))

    gradient = jax.grad(loss)(logits)
    np.testing.assert_array_equal(gradient[0, 1], 0.0)
    assert np.isfinite(gradient).all() and gradient[0, 0, 0] > 0.0


class PolicyTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_laws(self):
        logprobs_of = self.variant(policy.token_logprobs)
        entropies_of = self.variant(policy.token_entropies)

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            logits = jnp.asarray(rng.normal(0.0, 5.0, (2, 3, 4)).astype(np.float32))
            every = jnp.stack(
                [logprobs_of(logits, jnp.full((2, 3), v, jnp.int32)) for v in range(4)], axis=-1
            )
            np.testing.assert_allclose(jnp.exp(every).sum(-1), 1.0, **tolerances.LAYER_F32)
            entropies = entropies_of(logits)
            by_sum = -(jnp.exp(every) * every).sum(-1)
            np.testing.assert_allclose(entropies, by_sum, **tolerances.LAYER_F32)
            assert (entropies >= 0.0).all() and (
                entropies <= np.log(4.0) + tolerances.OP_F32["atol"]
            ).all()
            # a constant added to all logits of a position changes nothing
            moved = entropies_of(logits + 7.0)
            np.testing.assert_allclose(moved, entropies, **tolerances.LAYER_F32)

        laws()
