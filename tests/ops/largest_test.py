"""`ops.largest` beside `jax.lax.top_k`, by rounds and as it is chosen."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import largest

SHAPES = [((3, 8), 3), ((2, 4, 5), 2), ((4, 1), 1), ((1, 6), 6)]


@st.composite
def rows(draw):
    shape, k = draw(st.sampled_from(SHAPES))
    # Few values, so that many are equal.
    values = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-2.0, -0.0, 0.5, 3.0])))
    if draw(st.booleans()) and shape[-1] > k:
        values[..., : shape[-1] - k] = -np.inf
    return jnp.asarray(values), k


class LargestTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_is_that_of_jax(self):
        @self.variant(static_argnums=(1, 2))
        def found(values, k, by_rounds):
            return (largest.rounds if by_rounds else largest.top_k)(values, k)

        @hypothesis.given(rows())
        def laws(case):
            values, k = case
            for by_rounds in (True, False):
                chex.assert_trees_all_equal(
                    found(values, k, by_rounds), tuple(jax.lax.top_k(values, k))
                )

        laws()


def test_not_a_number_is_the_largest():
    values = jnp.array([[1.0, jnp.nan, 3.0, 2.0], [jnp.nan, 0.0, jnp.nan, 1.0]])
    for found in (largest.rounds(values, 3), jax.lax.top_k(values, 3)):
        np.testing.assert_array_equal(found[1], [[1, 2, 3], [0, 2, 3]])


@pytest.mark.parametrize(
    ("platform", "k", "sorts"),
    [("cpu", 4, True), ("cuda", 4, False), ("cuda", 16, False), ("cuda", 17, True)],
)
def test_rows_are_not_sorted_on_a_gpu_for_a_few(platform, k, sorts):
    values = jax.ShapeDtypeStruct((16, 128), jnp.float32)
    traced = jax.jit(functools.partial(largest.top_k, k=k)).trace(values)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("chlo.top_k" in text) == sorts
