"""Hand numbers and laws of `objectives.contrastive`."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.objectives import contrastive
from tests import tolerances

APART = jnp.array([0, 1], jnp.int32)


def test_info_nce_by_hand():
    # s = ln 3 * [[1, 0], [0, 0]]: rows sum to 3 + 1 and 1 + 1, columns too.
    first = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    second = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    terms = contrastive.info_nce_terms(first, second, float(np.log(3.0)), APART)
    np.testing.assert_allclose(terms, np.log([4.0 / 3.0, 2.0]), **tolerances.OP_F32)


def test_both_directions_count():
    # s = [[0, ln 7], [0, 0]]: row 0 sums to 8, row 1 to 2; column 0 to 2, column 1 to 8.
    first, second = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])
    terms = contrastive.info_nce_terms(first, second, float(np.log(7.0)), APART)
    np.testing.assert_allclose(terms, [0.5 * np.log(16.0)] * 2, **tolerances.OP_F32)


@pytest.mark.deep
def test_pairs_of_one_group_are_no_negatives():
    random = np.random.default_rng(0)
    first, second = (
        contrastive.normalized(jnp.asarray(random.normal(size=(4, 3)), jnp.float32))
        for _ in range(2)
    )
    terms = contrastive.info_nce_terms(first, second, 5.0, jnp.array([3, 1, 3, 2], jnp.int32))
    kept = np.array([0, 1, 3])
    alone = contrastive.info_nce_terms(first[kept], second[kept], 5.0, jnp.arange(3))
    np.testing.assert_allclose(terms[0], alone[0], **tolerances.LAYER_F32)
    assert terms[1] > alone[1]  # both pairs of group 3 are negatives of this one


def test_a_batch_of_one_group_has_nothing_to_tell_apart():
    x = contrastive.normalized(jnp.ones((3, 2)))
    terms = contrastive.info_nce_terms(x, x, 10.0, jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(terms, 0.0, **tolerances.OP_F32)


def test_alignment_and_uniformity_by_hand():
    x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    assert float(contrastive.alignment(x, x[::-1])) == 2.0
    # |x - y|^2 = 2 for both ordered pairs: log exp(-4).
    np.testing.assert_allclose(contrastive.uniformity(x), -4.0, **tolerances.OP_F32)
    np.testing.assert_allclose(contrastive.uniformity(jnp.ones((5, 1))), 0.0, atol=1e-6)


def test_a_row_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(lambda x: jnp.sum(contrastive.normalized(x)))(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()
    length = jnp.linalg.norm(contrastive.normalized(jnp.array([[3.0, 4.0]])))
    np.testing.assert_allclose(length, 1.0, **tolerances.OP_F32)


class InfoNceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_laws(self):
        terms_of = self.variant(contrastive.info_nce_terms)

        @hypothesis.given(st.integers(0, 10_000), st.floats(0.5, 20.0))
        def laws(seed, scale):
            random = np.random.default_rng(seed)
            first, second = (
                contrastive.normalized(jnp.asarray(random.normal(size=(6, 4)), jnp.float32))
                for _ in range(2)
            )
            groups = jnp.arange(6, dtype=jnp.int32)
            terms = terms_of(first, second, jnp.float32(scale), groups)
            assert (np.asarray(terms) >= -1e-5).all()
            swapped = terms_of(second, first, jnp.float32(scale), groups)
            np.testing.assert_allclose(terms, swapped, **tolerances.LAYER_F32)
            order = random.permutation(6)
            moved = terms_of(first[order], second[order], jnp.float32(scale), groups[order])
            np.testing.assert_allclose(terms[order], moved, **tolerances.LAYER_F32)
            same = terms_of(first[:1].repeat(6, 0), first[:1].repeat(6, 0), 3.0, groups)
            np.testing.assert_allclose(same, np.log(6.0), **tolerances.LAYER_F32)

        laws()
