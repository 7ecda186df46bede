"""Hand numbers of the next-token loss and of masked means."""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import masked, next_token
from tests import tolerances


def test_terms_by_hand():
    # logits (0, ln 3): probabilities 1/4 and 3/4.
    logits = jnp.array([[[0.0, np.log(3.0)], [0.0, np.log(3.0)]]], jnp.float32)
    terms = next_token.next_token_terms(logits, jnp.array([[0, 1]]))
    np.testing.assert_allclose(terms, [[np.log(4.0), np.log(4 / 3)]], **tolerances.OP_F32)


def test_terms_survive_large_logits():
    logits = jnp.array([[1e4, 0.0]])
    assert float(next_token.next_token_terms(logits, jnp.array([0]))[0]) == 0.0
    np.testing.assert_allclose(next_token.next_token_terms(logits, jnp.array([1])), [1e4])


def test_gradient_is_probability_minus_one_hot():
    logits = jnp.array([0.3, -1.0, 2.0])
    gradient = jax.grad(lambda x: next_token.next_token_terms(x[None], jnp.array([1]))[0])(logits)
    expected = jax.nn.softmax(logits) - jnp.array([0.0, 1.0, 0.0])
    np.testing.assert_allclose(gradient, expected, **tolerances.OP_F32)


def test_masked_mean_counts_kept_terms_only():
    terms = jnp.array([[1.0, jnp.nan], [3.0, 100.0]])
    mask = jnp.array([[True, False], [True, False]])
    assert float(masked.masked_mean(terms, mask)) == 2.0
    assert float(masked.masked_sum(terms, mask)) == 4.0
    assert float(masked.masked_mean(terms, jnp.zeros_like(mask))) == 0.0


def test_a_kept_nan_shows():
    assert np.isnan(masked.masked_mean(jnp.array([1.0, jnp.nan]), jnp.array([True, True])))
