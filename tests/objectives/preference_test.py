"""Hand numbers and laws of `objectives.preference`."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import preference
from tests import tolerances


def test_bradley_terry_by_hand():
    # sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4
    chosen = jnp.array([2.0, 1.0 + np.log(3.0), 0.0], jnp.float32)
    rejected = jnp.array([2.0, 1.0, np.log(3.0)], jnp.float32)
    terms = preference.bradley_terry_terms(chosen, rejected)
    np.testing.assert_allclose(terms, np.log([2.0, 4 / 3, 4.0]), **tolerances.OP_F32)


def test_huge_differences_are_finite():
    chosen, rejected = jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])

    def total(chosen, rejected):
        return preference.bradley_terry_terms(chosen, rejected).sum()

    np.testing.assert_array_equal(preference.bradley_terry_terms(chosen, rejected), [0.0, 2e4])
    for argument, sign in ((0, -1.0), (1, 1.0)):
        gradient = jax.grad(total, argnums=argument)(chosen, rejected)
        np.testing.assert_array_equal(gradient, [0.0, sign])


def test_centering_by_hand():
    terms = preference.centering_terms(jnp.array([3.0, 0.0]), jnp.array([-1.0, 2.0]))
    np.testing.assert_array_equal(terms, [5.0, 2.0])


class PreferenceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_laws(self):
        def total(chosen, rejected):
            return preference.bradley_terry_terms(chosen, rejected).sum()

        terms_of = self.variant(preference.bradley_terry_terms)
        gradients_of = self.variant(jax.grad(total, argnums=(0, 1)))

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            chosen, rejected = jnp.asarray(rng.normal(0.0, 3.0, (2, 5)).astype(np.float32))
            terms = terms_of(chosen, rejected)
            assert (terms >= 0.0).all()
            # -log sigmoid(x) + x = -log sigmoid(-x): one preference and its opposite
            opposite = terms_of(rejected, chosen)
            np.testing.assert_allclose(terms + chosen - rejected, opposite, **tolerances.LAYER_F32)
            # the two probabilities sum to 1
            both = jnp.exp(-terms) + jnp.exp(-opposite)
            np.testing.assert_allclose(both, 1.0, **tolerances.OP_F32)
            # the gradient is the probability of the opposite; it sums to 0 over the pair
            of_chosen, of_rejected = gradients_of(chosen, rejected)
            np.testing.assert_allclose(of_chosen, -jnp.exp(-opposite), **tolerances.LAYER_F32)
            np.testing.assert_array_equal(of_chosen, -of_rejected)
            # the level of the scores counts for nothing
            np.testing.assert_allclose(
                terms_of(chosen + 8.0, rejected + 8.0), terms, **tolerances.LAYER_F32
            )

        laws()
