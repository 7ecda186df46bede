"""The next-token loss of hidden states and an output matrix, by chunks of positions. Floor 1.

The logits of all positions are the largest array of a training step. Here those of one chunk
exist at a time, and a gradient is made of them at once: the loss is a weighted sum of terms, so
that of the logits is known before the sum is (as in Liger, arXiv:2410.10989, section 3.2).
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.objectives import log_norms, masked, next_token

# Cuts an array [S, rows, V] as a mesh wants it.
Constrain = Callable[[Array], Array]
# S parts, each with the rows of one chunk; arrays of all chunks have an axis in front.
_Chunk = tuple[Float[Array, "S R D"], Int[Array, "S R"], Float[Array, "S R"]]


def chunk_length(*, num_rows: int, length: int, vocab_size: int, max_bytes: int) -> int:
    """The largest divisor of `length` with float32 logits of at most `max_bytes`, or 1.

    Args:
      num_rows: B, rows of a device.
      length: L, positions of a row.
      vocab_size: V, symbols of a device.
      max_bytes: of the logits [B, chunk, V].
    """
    most = max_bytes // (num_rows * vocab_size * jnp.dtype(jnp.float32).itemsize)
    return max(n for n in range(1, length + 1) if length % n == 0 and n <= max(most, 1))


def weighted_nats(
    hidden: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    *,
    chunk: int,
    num_parts: int,
    constrain: Constrain,
) -> Float[Array, ""]:
    """The weighted sum of the targets' negative log-probabilities, float32.

        logits_blv = sum_d hidden_bld kernel_dv
        loss = sum_bl weights_bl (logsumexp_v(logits_blv) - logits_bl,target)

    Products have operands of the dtype of `hidden` and float32 sums. In a gradient so has that
    of the logits, weights_bl (softmax_v(logits_bl) - 1[v = target]), rounded once; what chunks
    give to the gradient of `kernel` adds up in float32.

    Args:
      hidden: [B, L, D], any float dtype.
      kernel: [D, V], of that dtype.
      targets: [B, L] int32, in [0, V).
      weights: [B, L] float32, constants; where 0 a term may be anything and counts nothing.
      chunk: positions of each row whose logits exist at a time; divides L.
      num_parts: S, equal parts of the rows, whose gradients of `kernel` are added up at the end
        only; divides B. With the rows of a device in a part no chunk waits for other devices.
      constrain: cuts arrays [S, B / S chunk, V] and [S, D, V] on a mesh.
    """
    (num_rows, length, dim), vocab_size = hidden.shape, kernel.shape[-1]
    chex.assert_shape([targets, weights], (num_rows, length))
    chex.assert_shape(kernel, (dim, vocab_size))
    chex.assert_type([kernel, weights], [hidden.dtype, jnp.float32])
    chex.assert_is_divisible(length, chunk)
    chex.assert_is_divisible(num_rows, num_parts)

    def chunks(x: Array) -> Array:
        """[B, L, ...] as [L / chunk, S, B / S chunk, ...]."""
        cut = x.reshape(num_parts, -1, length // chunk, chunk, *x.shape[2:])
        return jnp.moveaxis(cut, 2, 0).reshape(length // chunk, num_parts, -1, *x.shape[2:])

    parts = (chunks(hidden), chunks(targets), chunks(jax.lax.stop_gradient(weights)))
    return _summed(kernel, parts, constrain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _summed(kernel: Float[Array, "D V"], chunks: _Chunk, constrain: Constrain) -> Float[Array, ""]:
    """The loss alone."""

    def add(total: Float[Array, " S"], chunk: _Chunk) -> tuple[Float[Array, " S"], None]:
        logits = _logits(kernel, chunk, constrain)
        return total + _value(logits, log_norms.log_norms(logits), chunk), None

    zeros = jnp.zeros(chunks[1].shape[1], jnp.float32)
    return jnp.sum(jax.lax.scan(add, zeros, chunks)[0])


def _summed_forward(
    kernel: Float[Array, "D V"], chunks: _Chunk, constrain: Constrain
) -> tuple[Float[Array, ""], tuple[Array, Array]]:
    """The loss, and its gradients by `kernel` and the hidden states of all chunks."""

    def add(
        total: tuple[Float[Array, " S"], Float[Array, "S D V"]], chunk: _Chunk
    ) -> tuple[tuple[Float[Array, " S"], Float[Array, "S D V"]], Float[Array, "S R D"]]:
        value, d_kernel = total
        hidden = chunk[0]
        logits = _logits(kernel, chunk, constrain)
        norms = log_norms.log_norms(logits)
        d_logits = _logit_gradient(logits, norms, chunk).astype(hidden.dtype)
        d_hidden = jnp.einsum("srv,dv->srd", d_logits, kernel, preferred_element_type=jnp.float32)
        d_kernel += jnp.einsum("srd,srv->sdv", hidden, d_logits, preferred_element_type=jnp.float32)
        return (value + _value(logits, norms, chunk), d_kernel), d_hidden.astype(hidden.dtype)

    num_parts = chunks[1].shape[1]
    zeros = (
        jnp.zeros(num_parts, jnp.float32),
        constrain(jnp.zeros((num_parts, *kernel.shape), jnp.float32)),
    )
    (value, d_kernel), d_hidden = jax.lax.scan(add, zeros, chunks)
    return jnp.sum(value), (jnp.sum(d_kernel, axis=0), d_hidden)


def _summed_backward(
    constrain: Constrain, gradients: tuple[Array, Array], scale: Float[Array, ""]
) -> tuple[Array, tuple[Array, None, None]]:
    """The gradients, times that of the loss."""
    del constrain
    d_kernel, d_hidden = gradients
    dtype = d_hidden.dtype
    scaled = (d_hidden.astype(jnp.float32) * scale).astype(dtype)
    return (d_kernel * scale).astype(dtype), (scaled, None, None)


_summed.defvjp(_summed_forward, _summed_backward)


def _logits(
    kernel: Float[Array, "D V"], chunk: _Chunk, constrain: Constrain
) -> Float[Array, "S R V"]:
    """Of one chunk, float32."""
    return constrain(
        jnp.einsum("srd,dv->srv", chunk[0], kernel, preferred_element_type=jnp.float32)
    )


def _value(
    logits: Float[Array, "S R V"], norms: Float[Array, "S R"], chunk: _Chunk
) -> Float[Array, " S"]:
    """The loss of one chunk, by part."""
    _, targets, weights = chunk
    terms = norms - next_token.target_logits(logits, targets)
    return jnp.sum(weights * masked.zeroed(terms, weights != 0.0), axis=1)


def _logit_gradient(
    logits: Float[Array, "S R V"], norms: Float[Array, "S R"], chunk: _Chunk
) -> Float[Array, "S R V"]:
    """Of the loss of one chunk by its logits, float32."""
    _, targets, weights = chunk
    probs = jnp.exp(logits - norms[..., None])
    symbols = jnp.arange(logits.shape[-1], dtype=targets.dtype)[None, None]
    terms = probs - (symbols == targets[..., None]).astype(jnp.float32)
    weight = weights[..., None]
    return jnp.where(weight == 0.0, 0.0, weight * terms)
