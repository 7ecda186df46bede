"""Hand numbers and laws of `objectives.ppo`."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import masked, ppo
from tests import tolerances

# Ratios 0.5, 1, 2 of likelihoods, each with both signs of the advantage; clip 0.2.
RATIOS = jnp.array([[0.5, 1.0, 2.0], [0.5, 1.0, 2.0]])
OLD = jnp.full((2, 3), -1.25)
NEW = OLD + jnp.log(RATIOS)
SIGNED = jnp.array([[3.0, 3.0, 3.0], [-3.0, -3.0, -3.0]])
#   A = 3: min(1.5, 2.4), min(3, 3), min(6, 3.6);  A = -3: min(-1.5, -2.4), -3, min(-6, -3.6)
SURROGATES = jnp.array([[1.5, 3.0, 3.6], [-2.4, -3.0, -6.0]])
CUT = jnp.array([[False, False, True], [True, False, False]])


def total(logprobs, old_logprobs, advantages):
    return ppo.clipped_surrogate_terms(logprobs, old_logprobs, advantages, clip=0.2).sum()


def test_surrogate_by_hand():
    terms = ppo.clipped_surrogate_terms(NEW, OLD, SIGNED, clip=0.2)
    np.testing.assert_allclose(terms, -SURROGATES, **tolerances.OP_F32)


def test_clipping_cuts_the_gradient_on_both_signs():
    gradient = jax.grad(total)(NEW, OLD, SIGNED)
    # -r A where the ratio may still move that way, 0 where it has moved far enough
    expected = jnp.where(CUT, 0.0, -RATIOS * SIGNED)
    np.testing.assert_allclose(gradient, expected, **tolerances.OP_F32)
    np.testing.assert_array_equal(ppo.is_clipped(NEW, OLD, SIGNED, clip=0.2), CUT)


def test_an_advantage_of_zero_is_never_clipped():
    zeros = jnp.zeros((2, 3))
    assert not ppo.is_clipped(NEW, OLD, zeros, clip=0.2).any()
    np.testing.assert_array_equal(jax.grad(total)(NEW, OLD, zeros), 0.0)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    gradient = jax.grad(total)(OLD, OLD, SIGNED)
    np.testing.assert_array_equal(gradient, -SIGNED)  # of -A log p


def test_only_the_policy_gets_a_gradient():
    of_old, of_advantages = jax.grad(total, argnums=(1, 2))(NEW, OLD, SIGNED)
    np.testing.assert_array_equal(of_old, 0.0)
    np.testing.assert_array_equal(of_advantages, 0.0)


def test_values_by_hand():
    # old 1, clip 1/2. Return 3: value 1.25 errs by 1.75; 2 by 1, held at 1.5 it errs by 1.5;
    # 0 by 3, held at 0.5 by 2.5. Return 0: value 0 errs by 0, held at 0.5 by 0.5.
    values = jnp.array([[1.25, 2.0, 0.0, 0.0]])
    returns = jnp.array([[3.0, 3.0, 3.0, 0.0]])
    old_values = jnp.ones((1, 4))
    terms = ppo.clipped_value_terms(values, old_values, returns, clip=0.5)
    expected = np.square([[1.75, 1.5, 3.0, 0.5]]) / 2
    np.testing.assert_allclose(terms, expected, **tolerances.OP_F32)
    plain = ppo.clipped_value_terms(values, jnp.full((1, 4), jnp.nan), returns, clip=None)
    np.testing.assert_array_equal(plain, np.square([[1.75, 1.0, 3.0, 0.0]]) / 2)


def test_a_value_gets_a_gradient_where_it_is_the_worse_one():
    def loss(values, old_values, returns):
        return ppo.clipped_value_terms(values, old_values, returns, clip=0.5).sum()

    arguments = (jnp.array([[1.25, 2.0, 0.0, 0.0]]), jnp.ones((1, 4)), jnp.array([[3.0, 3, 3, 0]]))
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    np.testing.assert_allclose(gradients[0], [[-1.75, 0.0, -3.0, 0.0]], **tolerances.OP_F32)
    np.testing.assert_array_equal(gradients[1], 0.0)
    np.testing.assert_array_equal(gradients[2], 0.0)


class PpoTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_surrogate_laws(self):
        terms_of = self.variant(ppo.clipped_surrogate_terms)
        gradient_of = self.variant(jax.grad(total))
        clipped = self.variant(ppo.is_clipped)

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            new, old, advantages = jnp.asarray(rng.normal(-1, 0.4, (3, 4, 6)).astype(np.float32))
            advantages = advantages + 1.0
            terms = terms_of(new, old, advantages, clip=0.2)
            # a bound: never better than the surrogate without a clip
            unclipped = -jnp.exp(new - old) * advantages
            assert (terms >= unclipped - tolerances.OP_F32["atol"]).all()
            # the reference chooses by cases
            cut = clipped(new, old, advantages, clip=0.2)
            held = -jnp.where(advantages > 0.0, 1.2, 0.8) * advantages
            np.testing.assert_allclose(
                terms, jnp.where(cut, held, unclipped), **tolerances.LAYER_F32
            )
            # the gradient is gone exactly where `is_clipped` says so
            gradient = gradient_of(new, old, advantages)
            np.testing.assert_allclose(
                gradient, jnp.where(cut, 0.0, unclipped), **tolerances.LAYER_F32
            )
            np.testing.assert_array_equal(gradient == 0.0, cut)
            # only the ratio counts
            np.testing.assert_allclose(
                terms_of(new - 2.0, old - 2.0, advantages, clip=0.2), terms, **tolerances.LAYER_F32
            )

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_value_laws(self):
        terms_of = self.variant(ppo.clipped_value_terms, static_argnames="clip")

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            values, old, returns = jnp.asarray(rng.normal(0, 1, (3, 4, 6)).astype(np.float32))
            plain = terms_of(values, old, returns, clip=None)
            assert (terms_of(values, old, returns, clip=0.3) >= plain).all()
            wide = terms_of(values, old, returns, clip=100.0)
            np.testing.assert_allclose(wide, plain, **tolerances.LAYER_F32)

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_garbage_outside_the_mask_changes_nothing(self):
        def loss(logprobs, values, old_logprobs, advantages, old_values, returns, mask):
            kept = [masked.zeroed(x, mask) for x in (logprobs, old_logprobs, advantages)]
            surrogate = ppo.clipped_surrogate_terms(*kept, clip=0.2)
            kept = [masked.zeroed(x, mask) for x in (values, old_values, returns)]
            error = ppo.clipped_value_terms(*kept, clip=0.3)
            return masked.masked_mean(surrogate, mask) + masked.mean_of_row_means(error, mask)

        loss_and_gradients = self.variant(jax.value_and_grad(loss, argnums=(0, 1)))

        @hypothesis.given(st.integers(0, 10_000), st.sampled_from([jnp.nan, jnp.inf, -1e4, 1e4]))
        def laws(seed, garbage):
            rng = np.random.default_rng(seed)
            arrays = jnp.asarray(rng.normal(0.0, 1.0, (6, 4, 6)).astype(np.float32))
            mask = jnp.asarray(np.arange(6) < rng.integers(0, 7, (4, 1)))
            clean = loss_and_gradients(*arrays, mask)
            dirty = loss_and_gradients(*jnp.where(mask, arrays, garbage), mask)
            chex.assert_trees_all_equal(dirty, clean)
            chex.assert_tree_all_finite(clean)

        laws()
