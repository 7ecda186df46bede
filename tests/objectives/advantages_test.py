"""Hand numbers, laws and a plain loop for `objectives.advantages`."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.objectives import advantages
from tests import tolerances

NAN = jnp.nan


def gae_reference(rewards, values, mask, *, discount, gae_lambda):
    """The sum of eq. 16 term by term, in float64."""
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    result = np.zeros(rewards.shape)
    for row, kept in enumerate(np.asarray(mask)):
        run = np.flatnonzero(kept)
        deltas = [
            rewards[row, t]
            + (discount * values[row, t + 1] if t + 1 in run else 0.0)
            - values[row, t]
            for t in run
        ]
        for start, t in enumerate(run):
            result[row, t] = sum(
                (discount * gae_lambda) ** steps * delta
                for steps, delta in enumerate(deltas[start:])
            )
    return result


def runs(rng, shape):
    """One run of True in each row, at times empty, at times to the end."""
    starts = rng.integers(0, shape[1], shape[0])
    ends = np.minimum(starts + rng.integers(0, shape[1] + 1, shape[0]), shape[1])
    index = np.arange(shape[1])
    return jnp.asarray((index >= starts[:, None]) & (index < ends[:, None]))


def draw(rng, *shape):
    return jnp.asarray(rng.normal(0.0, 1.0, shape).astype(np.float32))


def test_gae_by_hand():
    # gamma 1/2, lambda 1/4, kept positions 1..3 with r = (1, 0, 4), V = (2, 6, 8):
    # delta = 1 + 3 - 2, 0 + 4 - 6, 4 + 0 - 8 = 2, -2, -4
    # A_3 = -4, A_2 = -2 - 4/8 = -2.5, A_1 = 2 - 2.5/8 = 1.6875
    rewards = jnp.array([[NAN, 1.0, 0.0, 4.0, NAN]])
    values = jnp.array([[NAN, 2.0, 6.0, 8.0, NAN]])
    mask = jnp.array([[False, True, True, True, False]])
    result = advantages.generalized_advantages(rewards, values, mask, discount=0.5, gae_lambda=0.25)
    np.testing.assert_array_equal(result.advantages, [[0.0, 1.6875, -2.5, -4.0, 0.0]])
    np.testing.assert_array_equal(result.returns, [[0.0, 3.6875, 3.5, 4.0, 0.0]])


def test_a_run_to_the_end_of_the_row_ends_there():
    result = advantages.generalized_advantages(
        jnp.array([[0.0, 1.0]]),
        jnp.array([[5.0, 3.0]]),
        jnp.array([[True, True]]),
        discount=1.0,
        gae_lambda=0.0,
    )
    np.testing.assert_array_equal(result.advantages, [[-2.0, -2.0]])


def test_no_run_gives_zeros():
    nothing = jnp.full((2, 3), NAN)
    result = advantages.generalized_advantages(
        nothing, nothing, jnp.zeros((2, 3), bool), discount=1.0, gae_lambda=1.0
    )
    np.testing.assert_array_equal(result.advantages, 0.0)
    np.testing.assert_array_equal(result.returns, 0.0)


def test_whitened_by_hand():
    # kept 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    x = jnp.array([[1.0, 3.0, NAN], [5.0, 7.0, 100.0]])
    mask = jnp.array([[True, True, False], [True, True, False]])
    expected = np.array([[-3.0, -1.0, 0.0], [1.0, 3.0, 0.0]]) / np.sqrt(5.0)
    result = advantages.whitened(x, mask, shift_mean=True)
    np.testing.assert_allclose(result, expected, **tolerances.OP_F32)
    result = advantages.whitened(x, mask, shift_mean=False)
    expected = np.where(mask, expected + 4.0, 0.0)
    np.testing.assert_allclose(result, expected, **tolerances.OP_F32)


def test_whitening_a_constant_gives_exact_zeros():
    # in float32 the sum of eleven 0.1, divided by 11, is not 0.1
    for value in (0.1, 0.7, -12345.678):
        x, mask = jnp.full((1, 12), value), jnp.array([[True] * 11 + [False]])
        np.testing.assert_array_equal(advantages.whitened(x, mask, shift_mean=True), 0.0)


def test_whitening_nothing_gives_zeros():
    x, mask = jnp.full((2, 2), NAN), jnp.zeros((2, 2), bool)
    for shift_mean in (True, False):

        def total(x, shift_mean=shift_mean):
            return advantages.whitened(x, mask, shift_mean=shift_mean).sum()

        value, gradient = jax.value_and_grad(total)(x)
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


def test_whitening_keeps_a_kept_nan():
    x = jnp.array([[1.0, NAN]])
    assert np.isnan(advantages.whitened(x, jnp.ones((1, 2), bool), shift_mean=True)).all()


def test_group_advantages_by_hand():
    # groups (1, 3) and (0, 10): means 2 and 5, population deviations 1 and 5
    rewards = jnp.array([1.0, 3.0, 0.0, 10.0])
    plain = advantages.group_advantages(rewards, group_size=2, divide_by_std=False)
    np.testing.assert_array_equal(plain, [-1.0, 1.0, -5.0, 5.0])
    scaled = advantages.group_advantages(rewards, group_size=2, divide_by_std=True)
    np.testing.assert_allclose(scaled, [-1.0, 1.0, -1.0, 1.0], **tolerances.OP_F32)
    # one of four correct: mean 1/4, deviation sqrt(3)/4
    rewards = jnp.array([1.0, 0.0, 0.0, 0.0])
    scaled = advantages.group_advantages(rewards, group_size=4, divide_by_std=True)
    expected = np.array([3.0, -1.0, -1.0, -1.0]) / np.sqrt(3.0)
    np.testing.assert_allclose(scaled, expected, **tolerances.OP_F32)


@pytest.mark.parametrize("divide_by_std", [True, False])
def test_equal_rewards_of_a_group_give_exact_zeros(divide_by_std):
    rewards = jnp.array([0.1, 0.1, 0.1, 5.0, 6.0, 7.0, -0.7, -0.7, -0.7])
    result = advantages.group_advantages(rewards, group_size=3, divide_by_std=divide_by_std)
    np.testing.assert_array_equal(result[:3], 0.0)
    np.testing.assert_array_equal(result[6:], 0.0)
    assert result[5] > 0.9


@pytest.mark.parametrize(("rows", "group_size"), [(4, 3), (4, 1), (4, 0), (2, 4)])
def test_a_wrong_group_size_is_an_error(rows, group_size):
    with pytest.raises(ValueError, match=f"group_size={group_size}: must"):
        jax.eval_shape(
            lambda rewards: advantages.group_advantages(
                rewards, group_size=group_size, divide_by_std=True
            ),
            jnp.zeros(rows),
        )


class AdvantagesTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_gae_laws(self):
        gae = self.variant(advantages.generalized_advantages)

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            rewards, values = draw(rng, 4, 6), draw(rng, 4, 6)
            mask = runs(rng, (4, 6))
            discount, gae_lambda = map(float, rng.random(2).astype(np.float32))
            settings = {"discount": discount, "gae_lambda": gae_lambda}
            result = gae(rewards, values, mask, **settings)
            expected = gae_reference(rewards, values, mask, **settings)
            np.testing.assert_allclose(result.advantages, expected, **tolerances.LAYER_F32)
            np.testing.assert_array_equal(
                result.returns, result.advantages + jnp.where(mask, values, 0.0)
            )
            # what stands outside the mask changes no bit
            dirty = gae(
                jnp.where(mask, rewards, NAN), jnp.where(mask, values, NAN), mask, **settings
            )
            chex.assert_trees_all_equal(dirty, result)
            # lambda = 1, gamma = 1: all rewards to come, less the value
            to_come = jnp.cumsum(jnp.where(mask, rewards, 0.0)[:, ::-1], axis=1)[:, ::-1]
            monte_carlo = gae(rewards, values, mask, discount=1.0, gae_lambda=1.0)
            np.testing.assert_allclose(
                monte_carlo.returns, jnp.where(mask, to_come, 0.0), **tolerances.LAYER_F32
            )
            # lambda = 0: the error of one step
            one_step = gae(rewards, values, mask, discount=discount, gae_lambda=0.0)
            later = np.zeros((4, 6), np.float32)
            later[:, :-1] = np.where(mask, values, 0.0)[:, 1:]
            errors = np.where(mask, rewards + np.float32(discount) * later - values, 0.0)
            np.testing.assert_allclose(one_step.advantages, errors, **tolerances.LAYER_F32)

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_garbage_outside_the_mask_gets_no_gradient(self):
        weights = draw(np.random.default_rng(0), 4, 6)

        def gae(rewards, values, mask):
            result = advantages.generalized_advantages(
                rewards, values, mask, discount=0.9, gae_lambda=0.8
            )
            return jnp.sum(weights * (result.advantages + 2.0 * result.returns))

        def white(x, _, mask):
            return jnp.sum(weights * advantages.whitened(x, mask, shift_mean=True))

        gradients = [self.variant(jax.grad(loss, argnums=(0, 1))) for loss in (gae, white)]

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            first, second, mask = draw(rng, 4, 6), draw(rng, 4, 6), runs(rng, (4, 6))
            for gradient in gradients:
                clean = gradient(first, second, mask)
                dirty = gradient(jnp.where(mask, first, NAN), jnp.where(mask, second, NAN), mask)
                chex.assert_trees_all_equal(dirty, clean)
                for part in clean:
                    assert np.isfinite(part).all()
                    np.testing.assert_array_equal(jnp.where(mask, 0.0, part), 0.0)

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_whitened_laws(self):
        white = self.variant(advantages.whitened, static_argnames="shift_mean")

        @hypothesis.given(st.integers(0, 10_000))
        def laws(seed):
            rng = np.random.default_rng(seed)
            x = draw(rng, 4, 6) * 3.0 + 2.0
            mask = runs(rng, (4, 6)).at[0, :2].set(True)  # at least two values
            moved, kept = white(x, mask, shift_mean=True), white(x, mask, shift_mean=False)
            chosen = np.asarray(moved)[np.asarray(mask)]
            np.testing.assert_allclose(chosen.mean(), 0.0, **tolerances.LAYER_F32)
            np.testing.assert_allclose(chosen.var(), 1.0, **tolerances.LAYER_F32)
            mean = np.asarray(x)[np.asarray(mask)].mean()
            np.testing.assert_allclose(
                kept, jnp.where(mask, moved + mean, 0.0), **tolerances.LAYER_F32
            )
            dirty = white(jnp.where(mask, x, NAN), mask, shift_mean=True)
            np.testing.assert_array_equal(dirty, moved)
            np.testing.assert_allclose(
                white(4.0 * x - 8.0, mask, shift_mean=True), moved, **tolerances.LAYER_F32
            )

        laws()

    @chex.variants(with_jit=True, without_jit=True)
    def test_group_laws(self):
        of_groups = self.variant(
            advantages.group_advantages, static_argnames=("group_size", "divide_by_std")
        )

        @hypothesis.given(st.integers(0, 10_000), st.booleans())
        def laws(seed, divide_by_std):
            rng = np.random.default_rng(seed)
            settings = {"group_size": 3, "divide_by_std": divide_by_std}
            rewards = draw(rng, 9)
            result = of_groups(rewards, **settings)
            groups = np.asarray(result).reshape(3, 3)
            np.testing.assert_allclose(groups.sum(1), 0.0, **tolerances.LAYER_F32)
            # each group by itself: another level for each changes nothing
            levels = jnp.repeat(draw(rng, 3), 3)
            np.testing.assert_allclose(
                of_groups(rewards + levels, **settings), result, **tolerances.LAYER_F32
            )
            # another scale for each cancels with the division only
            scales = jnp.repeat(jnp.array([2.0, 1.0, 5.0]), 3)
            expected = result if divide_by_std else scales * result
            np.testing.assert_allclose(
                of_groups(scales * rewards, **settings), expected, **tolerances.LAYER_F32
            )
            if divide_by_std:
                np.testing.assert_allclose(groups.std(1), 1.0, **tolerances.LAYER_F32)
            # the order within a group and that of the groups
            order = np.arange(9).reshape(3, 3)[rng.permutation(3)][:, rng.permutation(3)].ravel()
            np.testing.assert_allclose(
                of_groups(rewards[order], **settings), result[order], **tolerances.LAYER_F32
            )

        laws()
