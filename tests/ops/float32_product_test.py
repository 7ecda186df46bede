"""The router's product: exact where it can be, beside float64, by platform, dtypes kept."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import float32_product as product
from tests import tolerances

T, D, E = 48, 96, 16
WAYS = {
    "once": (product.at_once, product.pull_at_once),
    "parts": (product.by_parts, product.pull_by_parts),
    "fastest": (
        product.float32_product,
        lambda x, kernel, gradient: jax.vjp(product.float32_product, x, kernel)[1](gradient),
    ),
}


def _arrays(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (T, D)).astype(dtype)
    kernel = jax.random.normal(keys[1], (D, E))
    gradient = jax.random.normal(keys[2], (T, E))
    return x, kernel, gradient


def _exact(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


def test_one_term_is_exact():
    # All 24 bits of 1 + 2^-8 + 2^-16 + 2^-23 are needed; two parts have 16.
    kernel = jnp.array([[1.0 + 2.0**-8 + 2.0**-16 + 2.0**-23, np.pi, 1e-20, -3.3e20]], jnp.float32)
    x = jnp.array([[1.0], [-4.0]], jnp.bfloat16)
    for forward, pull in WAYS.values():
        found = jax.jit(forward)(x, kernel)
        np.testing.assert_array_equal(found, np.asarray(x, np.float32) * np.asarray(kernel))
        np.testing.assert_array_equal(jax.jit(pull)(x[:1], kernel, kernel)[1], kernel)


class Float32ProductTest(chex.TestCase):
    """With and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_bfloat16_tokens_are_as_exact_as_float32(self):
        x, kernel, _ = _arrays(jnp.bfloat16)
        for forward, _ in WAYS.values():
            found = self.variant(forward)(x, kernel)
            chex.assert_type(found, jnp.float32)
            np.testing.assert_allclose(found, _exact(x) @ _exact(kernel), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        ("once", jnp.bfloat16),
        ("parts", jnp.bfloat16),
        *(("fastest", dtype) for dtype in (jnp.bfloat16, jnp.float16, jnp.float32)),
    ],
)
def test_like_float64(way, dtype):
    forward, pull = WAYS[way]
    x, kernel, gradient = _arrays(dtype)
    found = jax.jit(forward)(x, kernel)
    d_x, d_kernel = jax.jit(pull)(x, kernel, gradient)
    chex.assert_type([found, d_x, d_kernel], [jnp.float32, dtype, jnp.float32])
    left, right, back = (_exact(array) for array in (x, kernel, gradient))
    np.testing.assert_allclose(found, left @ right, **tolerances.LAYER_F32)
    np.testing.assert_allclose(d_kernel, left.T @ back, **tolerances.LAYER_F32)
    error = np.abs(_exact(d_x) - back @ right.T)
    # Rounded once, with what three of nine products leave out.
    one_rounding = np.abs(back @ right.T) * jnp.finfo(dtype).eps * 0.51
    assert (error <= one_rounding + 2.0**-15 * np.abs(back) @ np.abs(right.T)).all()


def test_gradient_keeps_the_tokens_as_given():
    x, kernel, _ = _arrays(jnp.bfloat16)
    _, pull = jax.vjp(product.float32_product, x, kernel)
    kept = {leaf.dtype.name for leaf in jax.tree.leaves(pull) if leaf.shape == (T, D)}
    assert kept == {"bfloat16"}


def test_no_cast_that_a_compiler_may_leave_out():
    # XLA on GPUs takes float32 -> bfloat16 -> float32 for nothing, and the parts would be zero.
    x, kernel, _ = _arrays(jnp.bfloat16)
    traced = str(jax.make_jaxpr(product.by_parts)(x, kernel))
    assert traced.count("reduce_precision") == 2
    assert "new_dtype=float32" not in traced


@pytest.mark.parametrize(
    ("platform", "dtype", "num_parts"),
    [
        ("cpu", jnp.bfloat16, 1),
        ("cuda", jnp.bfloat16, 3),
        ("tpu", jnp.bfloat16, 3),
        ("cuda", jnp.float32, 1),
    ],
)
def test_parts_where_they_are_faster(platform, dtype, num_parts):
    x, kernel, _ = _arrays(dtype)
    program = jax.jit(product.float32_product).trace(x, kernel)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 1
    assert products[0].endswith(f"tensor<{T}x{num_parts * E}xf32>")
