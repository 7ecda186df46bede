"""Tokens in the rows of their experts: as a gather puts them there, with nothing left out."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import dispatch
from deepseek_jax.ops.grouped import spreading

NUM_EXPERTS, TOP_K = 5, 3


@functools.cache
def compiled(num_tokens, width, dtype):
    """(x, ids, mask) -> rows, and what a gather makes."""

    @jax.jit
    def run(x, ids, mask):
        plan = dispatch.dropless_plan(ids, mask, num_experts=NUM_EXPERTS, block_rows=1)
        rows = spreading.rows_of(x, plan, interpret=True)
        return rows, dispatch.take_rows(x, plan.token_ids)

    return run


@pytest.mark.parametrize(
    ("num_tokens", "width", "dtype"),
    [(1, 16, jnp.float32), (9, 48, jnp.bfloat16), (70, 16, jnp.float32)],
)
@hypothesis.given(st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 1.0]))
@hypothesis.settings(max_examples=6)
def test_rows_are_those_of_a_gather(num_tokens, width, dtype, seed, share_of_none):
    random = np.random.default_rng(seed)
    ids = np.argsort(random.random((num_tokens, NUM_EXPERTS)), axis=1)[:, :TOP_K]
    ids = np.where(random.random(ids.shape) < share_of_none, NUM_EXPERTS, ids).astype(np.int32)
    mask = random.random(num_tokens) < 0.8
    # What has no row is not read: it may be anything.
    x = random.normal(size=(num_tokens, width))
    x = jnp.asarray(np.where(mask[:, None], x, np.nan), dtype)
    rows, wanted = compiled(num_tokens, width, dtype)(x, ids, mask)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(np.asarray(rows), np.asarray(wanted))
    assert not np.isnan(np.asarray(rows, np.float32)).any()
