"""Hand numbers and laws of `ops.balance`."""

import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.ops import balance
from tests import tolerances

EVERY = jnp.ones(4, bool)


def test_balanced_loss_is_one():
    # eqs. 4-6: f = P = 1/4 each: 4 * 4 * (1/4 * 1/4) = 1; without the factor E it is 0.25
    ids = jnp.array([[0, 1], [2, 3], [1, 0], [3, 2]])
    loss = balance.load_balance_loss(jnp.full((4, 4), 0.25), ids, EVERY)
    np.testing.assert_allclose(loss, 1.0, **tolerances.OP_F32)


def test_collapsed_loss_is_the_number_of_experts():
    probs = jnp.zeros((4, 8)).at[:, 5].set(1.0)
    loss = balance.load_balance_loss(probs, jnp.full((4, 1), 5), EVERY)
    np.testing.assert_allclose(loss, 8.0, **tolerances.OP_F32)


def test_load_balance_loss_by_hand():
    # f = (2/4, 1/4, 1/4) of 4 assignments, P = (0.4, 0.35, 0.25): 3 * (0.2 + 0.0875 + 0.0625)
    probs = jnp.array([[0.6, 0.3, 0.1], [0.2, 0.4, 0.4], [0.9, 0.05, 0.05]])
    ids = jnp.array([[0, 1], [0, 2], [0, 1]])
    mask = jnp.array([True, True, False])  # the third token is padding
    loss, d_probs = jax.value_and_grad(balance.load_balance_loss)(probs, ids, mask)
    np.testing.assert_allclose(loss, 1.05, **tolerances.OP_F32)
    # d loss / d probs[t, i] = E f_i / (real tokens)
    row = [3 * 0.5 / 2, 3 * 0.25 / 2, 3 * 0.25 / 2]
    np.testing.assert_allclose(d_probs, [row, row, [0.0] * 3], **tolerances.OP_F32)


def test_z_loss_by_hand():
    # eq. 5: log-sum-exp of (0, log 3) is log 4, of (0, 0) log 2; the third token is padding
    logits = jnp.array([[0.0, math.log(3.0)], [0.0, 0.0], [50.0, 50.0]])
    loss = balance.router_z_loss(logits, jnp.array([True, True, False]))
    want = (math.log(4.0) ** 2 + math.log(2.0) ** 2) / 2
    np.testing.assert_allclose(loss, want, **tolerances.OP_F32)


def test_losses_are_zero_without_real_tokens():
    nothing = jnp.zeros(4, bool)
    probs, ids = jnp.full((4, 4), 0.25), jnp.zeros((4, 1), jnp.int32)
    assert balance.load_balance_loss(probs, ids, nothing) == 0.0
    assert balance.router_z_loss(probs, nothing) == 0.0


def test_bias_grows_where_load_is_low():
    # mean load 4: expert 0 is overloaded, 1 exactly at the mean, 2 and 3 underloaded
    bias = balance.updated_choice_bias(
        jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([9.0, 4.0, 3.0, 0.0]), rate=0.01
    )
    np.testing.assert_allclose(bias, [0.09, 0.2, 0.31, 0.41], **tolerances.OP_F32)


def test_bias_of_several_layers_is_moved_by_the_load_of_each():
    bias = balance.updated_choice_bias(
        jnp.zeros((2, 2)), jnp.array([[0.0, 2.0], [30.0, 10.0]]), rate=1.0
    )
    np.testing.assert_array_equal(bias, [[1.0, -1.0], [-1.0, 1.0]])


def test_stats_by_hand():
    probs = jnp.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]])
    ids = jnp.array([[0, 1], [2, 0], [1, 2]])
    mask = jnp.array([True, True, False])
    stats = balance.router_stats(probs, ids, mask, **_counts(1))
    np.testing.assert_array_equal(stats.load, [2.0, 1.0, 1.0])
    np.testing.assert_array_equal(stats.dropped, 1.0)
    # entropies log 2 and 1.5 log 2 (0 log 0 counts as 0)
    np.testing.assert_allclose(stats.entropy_sum, 2.5 * math.log(2.0), **tolerances.OP_F32)
    np.testing.assert_array_equal(stats.num_tokens, 2.0)
    np.testing.assert_allclose(balance.max_over_mean_load(stats), 1.5, **tolerances.OP_F32)
    np.testing.assert_allclose(
        balance.mean_entropy(stats), 1.25 * math.log(2.0), **tolerances.OP_F32
    )


def _counts(num_dropped):
    counts = {
        "num_dropped": num_dropped,
        "num_visits": 5 * num_dropped,
        "num_overflowed": 3 * num_dropped,
    }
    return {name: jnp.int32(count) for name, count in counts.items()}


def test_unused_experts_are_counted_in_every_layer():
    stats = balance.RouterStats(
        load=jnp.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
        dropped=jnp.zeros(2),
        entropy_sum=jnp.zeros(2),
        num_tokens=jnp.full(2, 3.0),
        visits=jnp.full(2, 3.0),
        overflowed=jnp.zeros(2),
    )
    np.testing.assert_array_equal(balance.num_unused(stats), [2, 0])
    np.testing.assert_array_equal(balance.max_over_mean_load(stats), [3.0, 1.0])


def test_derived_figures_without_tokens_are_finite():
    stats = balance.RouterStats(jnp.zeros(4), *[jnp.zeros(())] * 5)
    assert balance.max_over_mean_load(stats) == 0.0
    assert balance.mean_entropy(stats) == 0.0
    assert balance.num_unused(stats) == 4


def test_stats_carry_no_gradient():
    def entropy(probs):
        ids = jnp.zeros((4, 1), jnp.int32)
        return balance.router_stats(probs, ids, EVERY, **_counts(0)).entropy_sum

    np.testing.assert_array_equal(jax.grad(entropy)(jnp.full((4, 4), 0.25)), 0.0)


class BalanceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_laws(self):
        loss = self.variant(balance.load_balance_loss)
        stats_of = self.variant(balance.router_stats)
        shape = (6, 8, 3)

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            num_tokens, num_experts, top_k = shape
            rng = np.random.default_rng(seed)
            raw = rng.random((num_tokens, num_experts), np.float32) + 0.01
            probs = jnp.asarray(raw / raw.sum(-1, keepdims=True))
            ids = jnp.asarray(np.argsort(-raw, axis=-1)[:, :top_k].astype(np.int32))
            mask = jnp.asarray(rng.random(num_tokens) < 0.7)
            stats = stats_of(probs, ids, mask, **_counts(2))
            real = np.asarray(mask)
            np.testing.assert_array_equal(stats.load.sum(), top_k * real.sum())
            np.testing.assert_array_equal(
                stats.load, np.bincount(np.asarray(ids)[real].ravel(), minlength=num_experts)
            )
            # padding counts nowhere: whatever it holds
            garbage = jnp.where(mask[:, None], probs, 0.125)
            other_ids = jnp.where(mask[:, None], ids, 0)
            np.testing.assert_array_equal(loss(garbage, other_ids, mask), loss(probs, ids, mask))
            chex.assert_trees_all_equal(stats_of(garbage, other_ids, mask, **_counts(2)), stats)
            # sums add up over two halves of the batch
            halves = [
                stats_of(probs[part], ids[part], mask[part], **_counts(1))
                for part in (slice(0, 3), slice(3, 6))
            ]
            added = jax.tree.map(lambda a, b: a + b, *halves)
            chex.assert_trees_all_close(added, stats, **tolerances.OP_F32)

        laws()
