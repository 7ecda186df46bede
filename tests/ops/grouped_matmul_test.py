"""Laws of `ops.grouped_matmul`: its oracle, its edges, its cost."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import grouped_matmul
from tests import tolerances

NUM_BLOCKS, NUM_GROUPS, DIM, WIDTH = 6, 4, 3, 5


def _with_gradients(function):
    def loss(rows, weights, group_sizes, d_out):
        out = function(rows, weights, group_sizes)
        return jnp.vdot(out.astype(jnp.float32), d_out), out

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def _inputs(seed, num_rows, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    rows = jax.random.normal(keys[0], (num_rows, DIM)).astype(dtype)
    weights = jax.random.normal(keys[1], (NUM_GROUPS, DIM, WIDTH)).astype(dtype)
    return rows, weights, jax.random.normal(keys[2], (num_rows, WIDTH))


@st.composite
def block_counts(draw):
    """Blocks of each group; empty groups, full and half empty row arrays."""
    left, counts = NUM_BLOCKS, []
    for _ in range(NUM_GROUPS):
        counts.append(draw(st.integers(0, left)))
        left -= counts[-1]
    return draw(st.permutations(counts))


class GroupedMatmulTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equals_its_oracle_in_values_and_gradients(self):
        want = jax.jit(_with_gradients(grouped_matmul.grouped_matmul_reference))
        subjects = {
            block_rows: self.variant(
                _with_gradients(
                    functools.partial(grouped_matmul.grouped_matmul, block_rows=block_rows)
                )
            )
            for block_rows in (1, 2, 8)
        }

        @hypothesis.given(block_counts(), st.integers(0, 999), st.sampled_from([1, 2, 8]))
        @hypothesis.settings(max_examples=15)
        def law(counts, seed, block_rows):
            group_sizes = block_rows * jnp.asarray(counts, jnp.int32)
            rows, weights, d_out = _inputs(seed, NUM_BLOCKS * block_rows)
            chex.assert_trees_all_close(
                subjects[block_rows](rows, weights, group_sizes, d_out),
                want(rows, weights, group_sizes, d_out),
                **tolerances.LAYER_F32,
            )

        law()


def test_by_hand():
    rows, weights = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[[10.0]], [[100.0]]])
    out = grouped_matmul.grouped_matmul(rows, weights, jnp.array([1, 2]), block_rows=1)
    np.testing.assert_array_equal(out, [[10.0], [200.0], [300.0]])


def test_rows_behind_the_last_group_neither_answer_nor_teach():
    # What lies there may be anything, even NaN.
    rows, weights, d_out = _inputs(0, 8)
    group_sizes = jnp.array([2, 0, 2, 0])
    rows, d_out = rows.at[4:].set(jnp.nan), d_out.at[4:].set(jnp.nan)
    out, pull = jax.vjp(
        lambda rows, weights: grouped_matmul.grouped_matmul(
            rows, weights, group_sizes, block_rows=2
        ),
        rows,
        weights,
    )
    np.testing.assert_array_equal(out[4:], 0.0)
    d_rows, d_weights = pull(d_out)
    np.testing.assert_array_equal(d_rows[4:], 0.0)
    assert np.isfinite(d_weights).all()
    np.testing.assert_array_equal(d_weights[jnp.array([1, 3])], 0.0)  # empty groups


def test_low_precision_accumulates_in_float32():
    rows, weights, d_out = _inputs(1, 8, jnp.bfloat16)
    group_sizes = jnp.array([4, 0, 2, 2])
    subject = functools.partial(grouped_matmul.grouped_matmul, block_rows=2)
    got = _with_gradients(subject)(rows, weights, group_sizes, d_out)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves((got[0][1], got[1])))
    wide = [a.astype(jnp.float32) for a in (rows, weights)]
    want = _with_gradients(grouped_matmul.grouped_matmul_reference)(*wide, group_sizes, d_out)
    got = jax.tree.map(lambda a: a.astype(jnp.float32), (got[0][1], got[1]))
    chex.assert_trees_all_close(got, (want[0][1], want[1]), **tolerances.BF16)
    # 256 + 1 + 1 in one group of blocks of one row: a bfloat16 sum would stay at 256
    ones = jnp.array([[256.0], [1.0], [1.0]], jnp.bfloat16)
    d_weights = jax.grad(
        lambda w: jnp.sum(
            grouped_matmul.grouped_matmul(ones, w, jnp.array([3]), block_rows=1), dtype=jnp.float32
        )
    )(jnp.ones((1, 1, 1), jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(d_weights, np.float32), 258.0)


def _sizes(jaxpr):
    """Elements of every array in a jaxpr and in those inside it."""
    for equation in jaxpr.eqns:
        yield from (var.aval.size for var in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def test_nothing_of_rows_times_groups_is_made():
    num_rows, num_groups, dim = 256, 64, 8
    arguments = (
        jnp.ones((num_rows, dim)),
        jnp.ones((num_groups, dim, dim)),
        jnp.full(num_groups, 4, jnp.int32),
        jnp.ones((num_rows, dim)),
    )

    def largest(function):
        return max(_sizes(jax.make_jaxpr(_with_gradients(function))(*arguments).jaxpr))

    subject = functools.partial(grouped_matmul.grouped_matmul, block_rows=4)
    assert largest(subject) <= num_groups * dim * dim
    # The same measure finds the oracle guilty, so it can find.
    assert largest(grouped_matmul.grouped_matmul_reference) >= num_rows * num_groups * dim


def test_work_is_the_blocks_in_use():
    """XLA's count for one turn of the loop is one block's: nothing dense over groups."""
    num_rows, num_groups, dim = 256, 64, 8
    compiled = (
        jax.jit(functools.partial(grouped_matmul.grouped_matmul, block_rows=4))
        .lower(
            jnp.ones((num_rows, dim)),
            jnp.ones((num_groups, dim, dim)),
            jnp.full(num_groups, 4, jnp.int32),
        )
        .compile()
    )
    analysis = compiled.cost_analysis()
    assert analysis is not None and analysis["flops"] < 2 * num_rows * dim * dim


@hypothesis.given(st.integers(1, 100_000), st.integers(1, 512))
def test_block_rows(num_assignments, num_experts):
    block_rows = grouped_matmul.block_rows_for(num_assignments, num_experts)
    assert block_rows & (block_rows - 1) == 0 and block_rows >= 1
    assert block_rows == 1 or 2 * block_rows * num_experts <= num_assignments
    assert grouped_matmul.block_rows_for(num_assignments + 1, num_experts) >= block_rows


def test_block_rows_of_one_token_and_of_many():
    assert grouped_matmul.block_rows_for(4, 128) == 1
    assert grouped_matmul.block_rows_for(8192, 128) == 32
    assert grouped_matmul.block_rows_for(10**6, 8) == 64


@pytest.mark.parametrize("block_rows", [0, 3])
def test_rejects_blocks_that_do_not_divide_the_rows(block_rows):
    rows, weights, _ = _inputs(0, 8)
    with pytest.raises(ValueError, match=f"block_rows={block_rows} is not a divisor of 8"):
        grouped_matmul.grouped_matmul(rows, weights, jnp.array([8, 0, 0, 0]), block_rows=block_rows)
