"""Laws of `ops.counts`."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.ops import counts


@hypothesis.given(st.lists(st.integers(0, 6), min_size=200, max_size=200))
def test_counts_are_those_of_numpy_and_an_id_of_none_counts_nowhere(ids):
    found = counts.occurrences(jnp.array(ids, jnp.int32), num_ids=5)
    np.testing.assert_array_equal(found, np.bincount(ids, minlength=7)[:5])


def test_neighbours_that_are_equal_add_at_different_addresses():
    ids = jnp.full(64, 3, jnp.int32)
    (scatter,) = [
        each
        for each in jax.make_jaxpr(lambda x: counts.occurrences(x, num_ids=5))(ids).eqns
        if each.primitive.name == "scatter-add"
    ]
    assert scatter.outvars[0].aval.shape[0] > 32


def test_of_nothing_there_is_nothing():
    np.testing.assert_array_equal(counts.occurrences(jnp.zeros(0, jnp.int32), num_ids=2), [0, 0])
