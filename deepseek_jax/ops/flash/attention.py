"""Full causal attention by kernels, where the device has them. Floor 1.

Axes: B sequences, L positions, N query heads = M key/value heads x G, H head width.
"""

import functools
from typing import Any, Literal

import chex
import jax
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.flash import triton
from deepseek_jax.ops.flash.triton import Tiles

# tiles: `ops/attention.full_attention`, any device; triton: NVIDIA GPUs.
Backend = Literal["tiles", "triton"]


def flash_attention(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> Float[Array, "B L N H"]:
    """`attention.full_attention` by kernels for NVIDIA GPUs; differentiable in q, k and v.

    Each query sees itself and every earlier token of its document. Tiles above the diagonal, and
    tiles whose documents can't meet, are skipped.

    Args:
      query: [B, L, N, H] rotated; float32, bfloat16 or float16, all finite, padding too; so must
        be the gradient of the answers.
      key: [B, L, M, H] rotated, in the dtype of `query`; M divides N.
      value: [B, L, M, H] likewise.
      document_ids: [B, L] int32; 0 is padding. No order is assumed, but rows whose ids ascend
        cost least.
      tiles: of the kernels, sides powers of 2 and at least 16; None takes those measured; static.
      interpret: runs the kernels step by step, on any device; for tests; static.

    Returns:
      [B, L, N, H] in the dtype of `value`, sums and softmax in float32; 0 for padding, and no
      gradient.

    Raises:
      ValueError: the kernels can't do these shapes or this dtype (trace time).

    Cost: 2 B N L^2 H FLOPs forward for one document a row, 3.5 times that backward; O(L) memory.
    """
    chex.assert_rank([query, key, value, document_ids], [4, 4, 4, 2])
    num_sequences, length, _, head_dim = query.shape
    chex.assert_shape([key, value], (num_sequences, length, None, head_dim))
    chex.assert_equal_shape([key, value])
    chex.assert_shape(document_ids, (num_sequences, length))
    chex.assert_type([key, value], query.dtype)
    chex.assert_type(document_ids, int)
    reason = refusal(query, key)
    if reason is not None:
        raise ValueError(f"the kernels of flash attention take {reason}")
    if tiles is None:
        tiles = triton.tiles_for(length=length, head_dim=head_dim, dtype=query.dtype)
    arguments = (query, key, value, document_ids)
    return _attention(*(varying.like(x, *arguments) for x in arguments), tiles, interpret)


def choose(device: jax.Device, query: Any, key: Any) -> Backend:
    """The fastest backend for a device that can do these shapes.

    Args:
      device: that will run it.
      query: array [B, L, N, H], or its shape and dtype.
      key: array [B, L, M, H], or its shape and dtype.
    """
    return next(x for x in for_device(device) if x == "tiles" or refusal(query, key) is None)


def for_device(device: jax.Device) -> tuple[Backend, ...]:
    """The backends that run on a device, the fastest first; the tiles, last, run on all."""
    return ("triton", "tiles") if device.platform in ("gpu", "cuda") else ("tiles",)


def refusal(query: Any, key: Any) -> str | None:
    """What the kernels take instead of these shapes and this dtype; None if they take them."""
    num_heads, head_dim = query.shape[2:]
    if not query.size:
        return f"no empty queries, as of shape {query.shape}"
    if not key.shape[2] or num_heads % key.shape[2]:
        return f"key/value heads that divide the query heads, not {key.shape[2]} of {num_heads}"
    if head_dim not in triton.WIDTHS:
        return f"heads of width {', '.join(map(str, triton.WIDTHS))}, not {head_dim}"
    if query.dtype.name not in triton.DTYPES:
        return f"{', '.join(triton.DTYPES)}, not {query.dtype.name}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    query: Array, key: Array, value: Array, document_ids: Array, tiles: Tiles, interpret: bool
) -> Array:
    arguments = (query, key, value, document_ids)
    return triton.forward(*arguments, tile=tiles.forward, interpret=interpret)[0]


def _forward(
    query: Array, key: Array, value: Array, document_ids: Array, tiles: Tiles, interpret: bool
) -> tuple[Array, tuple[Array, ...]]:
    arguments = (query, key, value, document_ids)
    out, log_sums = triton.forward(*arguments, tile=tiles.forward, interpret=interpret)
    return out, (*arguments, out, log_sums)


def _backward(
    tiles: Tiles, interpret: bool, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array, Array, Array, None]:
    query, key, value, document_ids, out, log_sums = saved
    d_query, deltas = triton.d_query(
        query,
        key,
        value,
        document_ids,
        out,
        log_sums,
        d_out,
        tile=tiles.d_query,
        interpret=interpret,
    )
    d_key, d_value = triton.d_key_value(
        query,
        key,
        value,
        document_ids,
        log_sums,
        deltas,
        d_out,
        tile=tiles.d_key_value,
        interpret=interpret,
    )
    return d_query, d_key, d_value, None


_attention.defvjp(_forward, _backward)
