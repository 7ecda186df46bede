"""Hand numbers and laws of `ops.dispatch`: plans, and the movement that follows them."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import dispatch
from tests import tolerances

# (T, K, E); few distinct shapes keep compiles few.
SHAPES = [(1, 1, 1), (1, 3, 5), (7, 2, 4), (6, 4, 4), (9, 1, 8)]
MODEL_DIM = 3


@st.composite
def assignments(draw):
    """(expert_ids [T, K] distinct in a row, token_mask [T], E).

    Contents come from a drawn seed: drawing them one by one finds mostly masks of False.
    """
    num_tokens, top_k, num_experts = draw(st.sampled_from(SHAPES))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pool = [random.permutation(num_experts)[:top_k] for _ in range(draw(st.integers(1, 4)))]
    ids = random.choice(np.stack(pool), num_tokens)  # few patterns: some experts overflow
    mask = random.random(num_tokens) < draw(st.sampled_from([1.0, 0.7]))
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask), num_experts


def _check_maps_agree(plan, ids, mask):
    """The two maps of a plan are inverse, rows stand in the group of their expert."""
    rows, tokens = np.asarray(plan.row_ids), np.asarray(plan.token_ids)
    ends = np.cumsum(plan.group_sizes)
    held = rows < len(tokens)
    assert not held[~np.asarray(mask)].any()  # padding has no row
    assert len(set(rows[held].tolist())) == held.sum()  # no row is shared
    for t, k in zip(*np.nonzero(held), strict=True):
        assert tokens[rows[t, k]] == t
        assert np.searchsorted(ends, rows[t, k], side="right") == ids[t, k]
    assert (tokens < len(rows)).sum() == held.sum()  # all other rows are empty
    assert set(tokens[tokens >= len(rows)].tolist()) <= {len(rows)}
    assert rows[~held].size == 0 or set(rows[~held].tolist()) == {len(tokens)}


class PlanTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_dropless_laws(self):
        make = self.variant(dispatch.dropless_plan, static_argnames=("num_experts", "block_rows"))

        @hypothesis.given(assignments(), st.sampled_from([1, 4]))
        def laws(case, block_rows):
            ids, mask, num_experts = case
            plan = make(ids, mask, num_experts=num_experts, block_rows=block_rows)
            _check_maps_agree(plan, ids, mask)
            real = np.asarray(ids)[np.asarray(mask)]
            held = np.asarray(plan.row_ids) < plan.token_ids.size
            assert held.sum() == real.size and plan.num_dropped == 0  # nothing lost
            load = np.bincount(real.ravel(), minlength=num_experts)
            np.testing.assert_array_equal(plan.group_sizes, -(-load // block_rows) * block_rows)
            assert plan.group_sizes.sum() <= plan.token_ids.size
            assert plan.token_ids.size % block_rows == 0
            starts = np.cumsum(plan.group_sizes) - plan.group_sizes
            for expert in range(num_experts):  # filled from the front, in token order
                tokens = np.nonzero((np.asarray(ids) == expert).any(-1) & np.asarray(mask))[0]
                first = starts[expert]
                np.testing.assert_array_equal(plan.token_ids[first : first + len(tokens)], tokens)

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_capacity_laws(self):
        make = self.variant(dispatch.capacity_plan, static_argnames=("num_experts", "capacity"))

        @hypothesis.given(assignments(), st.sampled_from([1, 2, 5]))
        def laws(case, capacity):
            ids, mask, num_experts = case
            plan = make(ids, mask, num_experts=num_experts, capacity=capacity)
            _check_maps_agree(plan, ids, mask)
            # The oracle: seats are taken one after the other, first choices first.
            num_tokens, top_k = ids.shape
            rows, taken, dropped = np.full(ids.shape, num_experts * capacity), [0] * num_experts, 0
            for k in range(top_k):
                for t in range(num_tokens):
                    expert = int(ids[t, k])
                    if not mask[t]:
                        continue
                    if taken[expert] == capacity:
                        dropped += 1
                        continue
                    rows[t, k] = expert * capacity + taken[expert]
                    taken[expert] += 1
            np.testing.assert_array_equal(plan.row_ids, rows)
            np.testing.assert_array_equal(plan.num_dropped, dropped)
            np.testing.assert_array_equal(plan.group_sizes, capacity)
            assert plan.token_ids.shape == (num_experts * capacity,)

        laws()


class MovementTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_round_trip_is_the_identity(self):
        def round_trip(x, weights, ids, mask, num_experts, capacity):
            if capacity:
                plan = dispatch.capacity_plan(ids, mask, num_experts=num_experts, capacity=capacity)
            else:
                plan = dispatch.dropless_plan(ids, mask, num_experts=num_experts, block_rows=2)
            return dispatch.combine(dispatch.dispatch(x, plan), weights, plan)

        there_and_back = self.variant(round_trip, static_argnums=(4, 5))

        @hypothesis.given(assignments(), st.booleans())
        def law(case, has_capacity):
            ids, mask, num_experts = case
            x = 1.0 + jnp.arange(ids.shape[0] * MODEL_DIM, dtype=jnp.float32).reshape(-1, MODEL_DIM)
            weights = jnp.arange(1.0, 1.0 + ids.size).reshape(ids.shape)
            weights = weights / weights.sum(-1, keepdims=True)
            capacity = ids.shape[0] if has_capacity else 0
            out = there_and_back(x, weights, ids, mask, num_experts, capacity)
            want = jnp.where(mask[:, None], x, 0.0)
            np.testing.assert_allclose(out, want, **tolerances.OP_F32)

        law()

    @chex.variants(with_jit=True, without_jit=True)
    def test_equals_a_dense_matrix_in_values_and_gradients(self):
        """Movement as products with 0/1 matrices, which jax differentiates itself."""

        def oracle(x, weights, plan):
            fills = jax.nn.one_hot(plan.token_ids, x.shape[0])
            held = jax.nn.one_hot(plan.row_ids, plan.token_ids.size)
            rows = jnp.einsum("rt,td->rd", fills, x)
            return rows, jnp.einsum("tk,tkr,rd->td", weights, held, jnp.square(rows))

        def moved(x, weights, plan):
            rows = dispatch.dispatch(x, plan)
            return rows, dispatch.combine(jnp.square(rows), weights, plan)

        def with_gradients(function):
            def loss(x, weights, plan, d_out):
                rows, out = function(x, weights, plan)
                return jnp.vdot(out, d_out), (rows, out)

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

        subject = self.variant(with_gradients(moved))
        want = jax.jit(with_gradients(oracle))

        @hypothesis.given(assignments(), st.integers(0, 999), st.booleans())
        @hypothesis.settings(max_examples=15)
        def law(case, seed, has_capacity):
            ids, mask, num_experts = case
            if has_capacity:
                plan = dispatch.capacity_plan(ids, mask, num_experts=num_experts, capacity=2)
            else:
                plan = dispatch.dropless_plan(ids, mask, num_experts=num_experts, block_rows=4)
            keys = jax.random.split(jax.random.key(seed), 3)
            x, d_out = (jax.random.normal(key, (ids.shape[0], MODEL_DIM)) for key in keys[:2])
            weights = jax.random.normal(keys[2], ids.shape)
            chex.assert_trees_all_close(
                subject(x, weights, plan, d_out),
                want(x, weights, plan, d_out),
                **tolerances.LAYER_F32,
            )

        law()


def test_first_choices_come_before_second_choices():
    # Capacity 1. Token 1's first choice (expert 0) is served before token 0's second.
    ids, mask = jnp.array([[1, 0], [0, 1]]), jnp.ones(2, bool)
    plan = dispatch.capacity_plan(ids, mask, num_experts=2, capacity=1)
    np.testing.assert_array_equal(plan.row_ids, [[1, 2], [0, 2]])
    np.testing.assert_array_equal(plan.token_ids, [1, 0])
    np.testing.assert_array_equal(plan.num_dropped, 2)


def test_padding_takes_no_seat_and_is_not_dropped():
    ids, mask = jnp.zeros((3, 1), jnp.int32), jnp.array([False, True, True])
    plan = dispatch.capacity_plan(ids, mask, num_experts=2, capacity=1)
    np.testing.assert_array_equal(plan.row_ids, [[2], [0], [2]])
    np.testing.assert_array_equal(plan.num_dropped, 1)


def test_dropless_plan_by_hand():
    # expert 1 has tokens 0, 1, 2 (block of 2: 4 rows), expert 0 token 2 (2 rows), 2 has none
    ids, mask = jnp.array([[1], [1], [1], [0]]), jnp.ones(4, bool)
    plan = dispatch.dropless_plan(ids, mask, num_experts=3, block_rows=2)
    np.testing.assert_array_equal(plan.group_sizes, [2, 4, 0])
    np.testing.assert_array_equal(plan.row_ids[:, 0], [2, 3, 4, 0])
    np.testing.assert_array_equal(plan.token_ids[:6], [3, 4, 0, 1, 2, 4])


def test_the_worst_routing_has_rows():
    # 5 tokens of which every expert in use gets one more than a block holds: 2 blocks each
    ids = jnp.array([[0, 1], [0, 1], [0, 1], [0, 1], [0, 1]])
    plan = dispatch.dropless_plan(ids, jnp.ones(5, bool), num_experts=2, block_rows=4)
    np.testing.assert_array_equal(plan.group_sizes, [8, 8])
    np.testing.assert_array_equal(plan.row_ids[4], [4, 12])
    assert plan.token_ids.size == 16


def test_one_token_costs_its_choices_only():
    plan = dispatch.dropless_plan(
        jnp.array([[7, 2, 100, 5]]), jnp.ones(1, bool), num_experts=128, block_rows=1
    )
    assert plan.token_ids.shape == (4,)


def test_combine_by_hand():
    # token 0 has rows 2 and 0, token 1 row 1 and none (R = 3)
    plan = dispatch.Plan(
        jnp.array([[2, 0], [1, 3]]), jnp.array([0, 1, 0]), jnp.array([3]), jnp.int32(1)
    )
    rows, weights = jnp.array([[1.0], [10.0], [100.0]]), jnp.array([[0.5, 2.0], [3.0, 7.0]])
    out = dispatch.combine(rows, weights, plan)
    np.testing.assert_allclose(out, [[52.0], [30.0]], **tolerances.OP_F32)
    d_rows, d_weights = jax.grad(
        lambda rows, weights: dispatch.combine(rows, weights, plan).sum(), argnums=(0, 1)
    )(rows, weights)
    np.testing.assert_allclose(d_rows, [[2.0], [3.0], [0.5]], **tolerances.OP_F32)
    np.testing.assert_allclose(d_weights, [[100.0, 1.0], [10.0, 0.0]], **tolerances.OP_F32)


def test_low_precision_adds_up_in_float32():
    # 256 + 1 is 256 in bfloat16, so a running bfloat16 sum of 256 + 1 + 1 would stay 256.
    plan = dispatch.Plan(
        jnp.array([[0, 1, 2]]), jnp.zeros(3, jnp.int32), jnp.array([3]), jnp.int32(0)
    )
    rows = jnp.array([[256.0], [1.0], [1.0]], jnp.bfloat16)
    out = dispatch.combine(rows, jnp.ones((1, 3)), plan)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 258.0)
    d_x = jax.vjp(lambda x: dispatch.dispatch(x, plan), jnp.zeros((1, 1), jnp.bfloat16))[1](rows)[0]
    np.testing.assert_array_equal(np.asarray(d_x, np.float32), 258.0)


def test_weights_get_a_float32_gradient_from_low_precision_rows():
    num_tokens, top_k, dim = 5, 2, 64
    keys = jax.random.split(jax.random.key(0), 2)
    ids = jnp.array([[0, 1], [1, 2], [0, 2], [2, 1], [1, 0]])
    plan = dispatch.dropless_plan(ids, jnp.ones(num_tokens, bool), num_experts=3, block_rows=2)
    rows = jax.random.normal(keys[0], (plan.token_ids.size, dim), jnp.bfloat16)
    d_out = jax.random.normal(keys[1], (num_tokens, dim), jnp.bfloat16)
    weights = jnp.full((num_tokens, top_k), 0.5)
    _, pull = jax.vjp(lambda weights: dispatch.combine(rows, weights, plan), weights)
    want = np.einsum(
        "tkd,td->tk",
        np.asarray(rows, np.float32)[np.asarray(plan.row_ids)],
        np.asarray(d_out, np.float32),
    )
    np.testing.assert_allclose(pull(d_out)[0], want, **tolerances.LAYER_F32)


def test_movement_is_gathers_forward_and_backward():
    ids = jnp.zeros((4, 2), jnp.int32).at[:, 1].set(1)
    plan = dispatch.dropless_plan(ids, jnp.ones(4, bool), num_experts=4, block_rows=2)

    def loss(x, weights):
        return jnp.sum(dispatch.combine(jnp.square(dispatch.dispatch(x, plan)), weights, plan))

    jaxpr = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(jnp.ones((4, 3)), jnp.ones((4, 2))))
    assert "gather" in jaxpr and "scatter" not in jaxpr


def test_rejects_sizes_below_one():
    ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones(1, bool)
    with pytest.raises(ValueError, match="block_rows=0"):
        dispatch.dropless_plan(ids, mask, num_experts=2, block_rows=0)
    with pytest.raises(ValueError, match="capacity=0"):
        dispatch.capacity_plan(ids, mask, num_experts=2, capacity=0)


@pytest.mark.parametrize("keys_end", [2**32, 1], ids=["one number each", "pairs"])
def test_assignments_of_an_owner_keep_their_order(monkeypatch, keys_end):
    monkeypatch.setattr(dispatch, "_KEYS_END", keys_end)
    owners = jnp.asarray(np.random.default_rng(0).integers(0, 6, 500), jnp.int32)
    found = dispatch._by_owner(owners, 5)
    program = str(jax.make_jaxpr(lambda x: dispatch._by_owner(x, 5))(owners))
    assert ("is_stable=True" in program) == (keys_end == 1)
    order = np.argsort(owners, stable=True)
    np.testing.assert_array_equal(found.assignment, order)
    np.testing.assert_array_equal(found.owner, np.asarray(owners)[order])
    np.testing.assert_array_equal(found.counts, np.bincount(owners, minlength=6)[:5])
    first = np.searchsorted(np.asarray(owners)[order], np.asarray(found.owner))
    np.testing.assert_array_equal(found.rank, np.arange(500) - first)


def test_a_plan_sorts_single_numbers_and_adds_at_many_addresses():
    ids, mask = jnp.zeros((64, 4), jnp.int32), jnp.ones(64, bool)
    program = jax.jit(lambda *x: dispatch.dropless_plan(*x, num_experts=128, block_rows=1))
    text = program.lower(ids, mask).as_text()
    (sort,) = [line for line in text.splitlines() if "stablehlo.sort" in line]
    assert sort.count("%") == 2  # its result and one operand
    assert "stablehlo.while" not in text and "stablehlo.reduce_window" not in text


def test_no_token_has_a_plan_too():
    ids, mask = jnp.zeros((0, 2), jnp.int32), jnp.ones(0, bool)
    plan = dispatch.dropless_plan(ids, mask, num_experts=3, block_rows=1)
    assert (plan.row_ids.shape, plan.token_ids.shape) == ((0, 2), (0,))
    np.testing.assert_array_equal(plan.group_sizes, 0)
