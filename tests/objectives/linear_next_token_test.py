"""The next-token loss without all logits: hand numbers, the plain way, chunks, memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.objectives import linear_next_token, masked, next_token
from tests import tolerances

B, L, D, V = 4, 12, 8, 40


def _nats(*arrays, chunk, num_parts=1):
    return linear_next_token.weighted_nats(
        *arrays, chunk=chunk, num_parts=num_parts, constrain=lambda x: x
    )


def _plain(hidden, kernel, targets, weights):
    """By all logits and autodiff."""
    logits = jnp.einsum("bld,dv->blv", hidden, kernel, preferred_element_type=jnp.float32)
    terms = next_token.next_token_terms(logits, targets)
    return jnp.sum(weights * masked.zeroed(terms, weights > 0.0))


def _arrays(dtype=jnp.float32):
    """Some targets count nothing, the others differently."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, L, D)).astype(dtype)
    kernel = jax.random.normal(keys[1], (D, V)).astype(dtype)
    targets = jax.random.randint(keys[2], (B, L), 0, V, jnp.int32)
    weights = jax.nn.relu(jax.random.normal(keys[3], (B, L)))
    return hidden, kernel, targets, weights


def _both(function, arrays):
    """The value, and the gradients by what has any, of three times the loss."""
    value = jax.jit(lambda *inner: 3.0 * function(*inner, *arrays[2:]))
    return jax.jit(value)(*arrays[:2]), *jax.jit(jax.grad(value, argnums=(0, 1)))(*arrays[:2])


LOG3 = np.log(3.0)


@pytest.mark.parametrize("chunk", [1, 2])
def test_by_hand(chunk):
    # Logits (0, ln 3) and (ln 3, 0): probabilities 1/4 and 3/4, then 3/4 and 1/4.
    arrays = (
        jnp.eye(2)[None],
        jnp.array([[0.0, LOG3], [LOG3, 0.0]], jnp.float32),
        jnp.array([[0, 0]]),
        jnp.array([[2.0, 0.5]]),
    )
    function = functools.partial(_nats, chunk=chunk)
    value, d_hidden, d_kernel = _both(function, arrays)
    expected = 2.0 * np.log(4.0) + 0.5 * np.log(4 / 3)
    np.testing.assert_allclose(value, 3.0 * expected, **tolerances.OP_F32)
    d_logits = 3.0 * np.array([[-1.5, 1.5], [-0.125, 0.125]])
    np.testing.assert_allclose(d_kernel, d_logits, **tolerances.OP_F32)
    wanted = LOG3 * d_logits[:, ::-1]
    np.testing.assert_allclose(d_hidden[0], wanted, **tolerances.OP_F32)
    loss, _ = jax.value_and_grad(function)(*arrays)
    np.testing.assert_allclose(loss, expected, **tolerances.OP_F32)


@pytest.mark.parametrize(("chunk", "num_parts"), [(1, 1), (3, 1), (L, 1), (4, 2), (L, 4)])
def test_chunks_and_parts_change_nothing(chunk, num_parts):
    arrays = _arrays()
    found = _both(functools.partial(_nats, chunk=chunk, num_parts=num_parts), arrays)
    for got, want in zip(found, _both(_plain, arrays), strict=True):
        np.testing.assert_allclose(got, want, **tolerances.LAYER_F32)


@pytest.mark.parametrize("chunk", [3, L])
def test_half_precision_is_near_single(chunk):
    arrays = _arrays(jnp.bfloat16)
    found = _both(functools.partial(_nats, chunk=chunk), arrays)
    assert found[0].dtype == jnp.float32
    assert found[1].dtype == found[2].dtype == jnp.bfloat16
    exact = _both(_plain, (*(x.astype(jnp.float32) for x in arrays[:2]), *arrays[2:]))
    np.testing.assert_allclose(found[0], exact[0], **tolerances.LAYER_F32)
    for got, want in zip(found[1:], exact[1:], strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want, **tolerances.BF16)


def test_chunks_add_up_in_single_precision():
    # Each of 1024 positions gives (-1/2, 1/2); a sum in bfloat16 would stay at 128.
    length = 1024
    d_kernel = jax.jit(jax.grad(functools.partial(_nats, chunk=1), argnums=1))(
        jnp.ones((1, length, 1), jnp.bfloat16),
        jnp.zeros((1, 2), jnp.bfloat16),
        jnp.zeros((1, length), jnp.int32),
        jnp.ones((1, length)),
    )
    np.testing.assert_array_equal(d_kernel.astype(jnp.float32), [[-512.0, 512.0]])


def test_what_counts_nothing_may_be_infinite():
    hidden, kernel, targets, weights = _arrays()
    weights = weights.at[1, 3].set(0.0)
    function = functools.partial(_nats, chunk=2)
    arrays = (hidden.at[1, 3].set(1e38), kernel, targets, weights)
    value, d_hidden, d_kernel = _both(function, arrays)
    want = _both(_plain, (hidden.at[1, 3].set(0.0), kernel, targets, weights))
    np.testing.assert_allclose(value, want[0], **tolerances.LAYER_F32)
    np.testing.assert_allclose(d_hidden, want[1], **tolerances.LAYER_F32)
    np.testing.assert_allclose(d_kernel, want[2], **tolerances.LAYER_F32)


def test_large_logits():
    arrays = (jnp.ones((1, 1, 1)), jnp.array([[1e4, 0.0]]), jnp.array([[1]]), jnp.ones((1, 1)))
    value, d_hidden, d_kernel = _both(functools.partial(_nats, chunk=1), arrays)
    assert float(value) == 3e4
    np.testing.assert_array_equal(d_kernel, [[3.0, -3.0]])
    np.testing.assert_array_equal(d_hidden, [[[3e4]]])


def _largest(function, arrays):
    """Elements of the largest array of a compiled program, and its products of matrices."""
    text = jax.jit(function).lower(*arrays).compile().as_text()
    sizes = re.findall(r"\b[a-z]\w*\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in size.split(",")])) for size in sizes), text


def test_no_program_holds_more_logits_than_a_chunk():
    arrays = _arrays()
    gradient = functools.partial(jax.value_and_grad, argnums=(0, 1))
    assert _largest(gradient(_plain), arrays)[0] == B * L * V
    for chunk in (1, 3):
        function = functools.partial(_nats, chunk=chunk)
        most = max(B * chunk * V, B * L * D, D * V)
        assert most < B * L * V
        assert _largest(gradient(function), arrays)[0] == most
        assert _largest(function, arrays)[0] == most


def test_the_value_alone_needs_one_product_and_a_gradient_three():
    arrays = _arrays()
    function = functools.partial(_nats, chunk=L)
    gradient = jax.grad(function, argnums=(0, 1))
    for made, num_products in ((function, 1), (gradient, 3)):
        assert str(jax.make_jaxpr(made)(*arrays)).count("dot_general[") == num_products


@pytest.mark.parametrize(
    ("max_bytes", "expected"), [(1, 1), (2 * 400 - 1, 1), (5 * 400, 4), (10**9, 12)]
)
def test_the_largest_divisor_that_fits(max_bytes, expected):
    # Two rows of 50 symbols: 400 bytes a position.
    found = linear_next_token.chunk_length(
        num_rows=2, length=12, vocab_size=50, max_bytes=max_bytes
    )
    assert found == expected


def test_log_normalisers_are_made_once():
    # What stands twice in a program with two shapes, XLA computes twice.
    loss = jax.value_and_grad(functools.partial(_nats, chunk=4), argnums=(0, 1))
    traced = str(jax.make_jaxpr(loss)(*_arrays(jnp.bfloat16)))
    assert [traced.count(f" {name}[") for name in ("reduce_max", "dot_general")] == [1, 3]
