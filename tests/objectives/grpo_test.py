"""Hand numbers and laws of `objectives.grpo`."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import grpo, kl, masked, ppo
from tests import tolerances

SETTINGS = {"clip": 0.2, "kl_coefficient": 0.5}


def test_terms_by_hand():
    # A = (2, -1); ratios 2 and 1 of the old, q / p = 1/2 and 1; clip 0.2, beta 1/2:
    # -min(4, 2.4) + k3 / 2, -2;  -min(-2, -1.2) + k3 / 2, 1;  k3 = 1/2 - 1 + log 2
    old = jnp.full((2, 2), -2.0)
    new = old + jnp.log(jnp.array([[2.0, 1.0], [2.0, 1.0]]))
    terms = grpo.grpo_terms(new, old, old, jnp.array([2.0, -1.0]), **SETTINGS)
    penalty = 0.5 * (np.log(2.0) - 0.5)
    expected = [[-2.4 + penalty, -2.0], [2.0 + penalty, 1.0]]
    np.testing.assert_allclose(terms, expected, **tolerances.OP_F32)


def test_only_the_policy_gets_a_gradient():
    def loss(*arrays):
        return grpo.grpo_terms(*arrays, **SETTINGS).sum()

    arrays = (jnp.full((2, 3), -1.0), jnp.full((2, 3), -1.1), jnp.full((2, 3), -2.0), jnp.ones(2))
    gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(*arrays)
    assert (gradients[0] != 0.0).all()
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, 0.0)


def test_without_advantages_only_the_penalty_is_left():
    new, reference = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -1.0]])
    terms = grpo.grpo_terms(new, new, reference, jnp.zeros(1), **SETTINGS)
    expected = 0.5 * kl.kl_k3_terms(new, reference)
    np.testing.assert_allclose(terms, expected, **tolerances.OP_F32)


class GrpoTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_laws(self):
        terms_of = self.variant(grpo.grpo_terms)

        def loss(logprobs, old, reference, advantages, mask):
            kept = [masked.zeroed(x, mask) for x in (logprobs, old, reference)]
            terms = grpo.grpo_terms(*kept, advantages, **SETTINGS)
            return masked.mean_of_row_means(terms, mask)

        loss_and_gradient = self.variant(jax.value_and_grad(loss))

        @hypothesis.given(st.integers(0, 10_000), st.sampled_from([jnp.nan, -jnp.inf, 1e4]))
        def laws(seed, garbage):
            rng = np.random.default_rng(seed)
            arrays = jnp.asarray(rng.normal(-1.0, 0.5, (3, 4, 6)).astype(np.float32))
            advantages = jnp.asarray(rng.normal(0.0, 1.0, 4).astype(np.float32))
            # without a penalty: PPO with the advantage of the response at each token
            spread = jnp.tile(advantages[:, None], (1, 6))
            surrogate = ppo.clipped_surrogate_terms(*arrays[:2], spread, clip=0.2)
            terms = terms_of(*arrays, advantages, clip=0.2, kl_coefficient=0.0)
            np.testing.assert_allclose(terms, surrogate, **tolerances.OP_F32)
            # the penalty only adds
            assert (
                terms_of(*arrays, advantages, **SETTINGS) >= terms - tolerances.OP_F32["atol"]
            ).all()
            mask = jnp.asarray(np.arange(6) < rng.integers(0, 7, (4, 1)))
            clean = loss_and_gradient(*arrays, advantages, mask)
            dirty = loss_and_gradient(*jnp.where(mask, arrays, garbage), advantages, mask)
            chex.assert_trees_all_equal(dirty, clean)
            chex.assert_tree_all_finite(clean)

        laws()
