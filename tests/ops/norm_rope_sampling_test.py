"""Hand numbers and laws of the small operations: RMS norm, rotary positions, sampling."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import norm, rope, sampling
from tests import tolerances


def test_rms_norm_by_hand():
    # mean(3^2, 4^2) = 12.5; 3 / sqrt(12.5) = 0.848528, 4 / sqrt(12.5) = 1.131371
    out = norm.rms_norm(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 2.0]), eps=1e-12)
    np.testing.assert_allclose(out, [[0.8485281, 2.2627417]], **tolerances.OP_F32)


def test_rms_norm_computes_in_float32():
    x = jnp.full((1, 4), 300.0, jnp.bfloat16)  # 300^2 * 4 is beyond bf16's exact integers
    out = norm.rms_norm(x, jnp.ones(4), eps=1e-12)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)


def test_rms_norm_keeps_its_input_for_the_gradient_and_no_more():
    x = jax.random.normal(jax.random.key(0), (16, 64), jnp.bfloat16)
    scale = jnp.linspace(0.5, 2.0, 64)
    _, backward = jax.vjp(lambda x, scale: norm.rms_norm(x, scale, eps=1e-6), x, scale)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(backward))
    assert x.nbytes <= kept < 1.5 * x.nbytes


def test_rms_norm_gradient_by_hand():
    # y = x / r * s; with r = sqrt(12.5) = 3.535534 and g = (1, 0):
    # dx = (1 / r - 3 * 3 / (2 r^3), -3 * 4 / (2 r^3)), ds = (3 / r, 0).
    function = jax.grad(lambda *inputs: norm.rms_norm(*inputs, eps=1e-12)[0, 0], argnums=(0, 1))
    d_x, d_scale = jax.jit(function)(jnp.array([[3.0, 4.0]]), jnp.ones(2))
    np.testing.assert_allclose(d_x, [[0.1810193, -0.1357645]], **tolerances.OP_F32)
    np.testing.assert_allclose(d_scale, [0.8485281, 0.0], **tolerances.OP_F32)


def test_rotation_by_hand():
    # H = 2: one pair, frequency 1; position pi/2 would turn (1, 0) to (0, 1). Position 1: cos, sin.
    out = rope.rotate(jnp.array([[[1.0, 0.0]]]), jnp.array([1]), base=10.0)
    np.testing.assert_allclose(out, [[[np.cos(1.0), np.sin(1.0)]]], **tolerances.OP_F32)
    # H = 4, base 100: the second pair (channels 1, 3) turns by position / 10.
    out = rope.rotate(jnp.array([[[0.0, 1.0, 0.0, 0.0]]]), jnp.array([2]), base=100.0)
    np.testing.assert_allclose(out, [[[0.0, np.cos(0.2), 0.0, np.sin(0.2)]]], **tolerances.OP_F32)


class RotationTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_products_depend_on_the_distance_only(self):
        rotate = self.variant(rope.rotate, static_argnames="base")
        query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))

        @hypothesis.given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
        def law(q, k, shift):
            def product(q, k):
                return jnp.vdot(
                    rotate(query, jnp.array([q]), base=1e3), rotate(key, jnp.array([k]), base=1e3)
                )

            np.testing.assert_allclose(
                product(q, k), product(q + shift, k + shift), **tolerances.MODEL_F32
            )

        law()


def test_greedy_takes_the_most_likely():
    logits = jnp.array([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])
    out = sampling.sample_tokens(logits, jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(out, [1, 0])
    assert out.dtype == jnp.int32


def test_temperature_scales_the_odds():
    logits = jnp.log(jnp.array([0.8, 0.2]))
    draws = jnp.tile(logits[None], (20000, 1))
    for temperature, expected in ((1.0, 0.2), (2.0, 1 / 3)):  # at 2: sqrt odds 2 : 1
        tokens = sampling.sample_tokens(draws, jax.random.key(1), temperature=temperature)
        assert abs(float(jnp.mean(tokens)) - expected) < 0.015


def test_nucleus_keeps_the_smallest_sufficient_set():
    logits = jnp.tile(jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]])), (4000, 1))
    tokens = sampling.sample_tokens(logits, jax.random.key(2), temperature=1.0, top_p=0.7)
    # 0.5 alone is below 0.7, 0.5 + 0.3 reaches it: tokens 1 and 3, at odds 5 : 3.
    assert set(np.asarray(tokens).tolist()) == {1, 3}
    assert abs(float(jnp.mean(tokens == 1)) - 0.625) < 0.03


def test_draws_are_those_of_the_library_and_ties_go_to_the_first():
    logits = jax.random.normal(jax.random.key(0), (64, 11)).round(0)
    logits = jnp.where(jnp.arange(11) < 9, logits, -jnp.inf)
    key = jax.random.key(1)
    drawn = jax.jit(lambda x: sampling.sample_tokens(x, key, temperature=0.5))(logits)
    np.testing.assert_array_equal(drawn, jax.random.categorical(key, logits / 0.5))
    greedy = sampling.sample_tokens(logits, key, temperature=0.0)
    np.testing.assert_array_equal(greedy, jnp.argmax(logits, axis=-1))


def test_a_row_that_is_no_number_still_gives_an_index():
    logits = jnp.array([[0.0, jnp.nan, 1.0], [jnp.nan, jnp.nan, jnp.nan]])
    drawn = sampling.sample_tokens(logits, jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(drawn, [2, 2])


def test_sampling_refuses_bad_settings():
    logits = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=r"temperature=-1\.0"):
        sampling.sample_tokens(logits, jax.random.key(0), temperature=-1.0)
    with pytest.raises(ValueError, match=r"top_p=0\.0"):
        sampling.sample_tokens(logits, jax.random.key(0), temperature=1.0, top_p=0.0)
