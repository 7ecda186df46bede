"""Means over rows, and what a mask keeps out of a gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.objectives import masked
from tests import tolerances

NAN = jnp.nan


def test_short_rows_weigh_as_much_as_long_ones():
    # row means 2 and 7; the third row has no kept term: (2 + 7) / 2, not (6 + 7) / 4 nor / 3
    terms = jnp.array([[1.0, 2.0, 3.0], [NAN, 7.0, NAN], [NAN, NAN, NAN]])
    mask = jnp.array([[True, True, True], [False, True, False], [False, False, False]])
    assert float(masked.mean_of_row_means(terms, mask)) == 4.5
    assert float(masked.masked_mean(terms, mask)) == 13 / 4
    gradient = jax.grad(masked.mean_of_row_means)(terms, mask)
    expected = [[1 / 6, 1 / 6, 1 / 6], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(gradient, expected, **tolerances.OP_F32)


def test_no_kept_term_gives_zero_and_no_gradient():
    terms, mask = jnp.full((2, 3), NAN), jnp.zeros((2, 3), bool)
    value, gradient = jax.value_and_grad(masked.mean_of_row_means)(terms, mask)
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_row_means_keep_a_kept_nan():
    terms = jnp.array([[NAN, 1.0], [1.0, 1.0]])
    assert np.isnan(masked.mean_of_row_means(terms, jnp.ones((2, 2), bool)))


def test_zeroed_keeps_garbage_out_of_a_gradient():
    x, mask = jnp.array([1.0, 1e4, NAN]), jnp.array([True, False, False])

    def by_mask_before(x):
        return masked.masked_sum(jnp.exp(masked.zeroed(x, mask)), mask)

    def by_mask_after(x):
        return masked.masked_sum(jnp.exp(x), mask)

    value, gradient = jax.value_and_grad(by_mask_before)(x)
    np.testing.assert_allclose(value, np.e, **tolerances.OP_F32)
    np.testing.assert_allclose(gradient, [np.e, 0.0, 0.0], **tolerances.OP_F32)
    assert np.isnan(jax.grad(by_mask_after)(x)).tolist() == [False, True, True]
