"""What attention keeps of the past while decoding: one block, and summaries. Floor 1.

Axes: B sequences, C slots of the current block, J finished blocks at most, m summaries of a
block, M key/value heads, H head width. Every sequence stands at a position of its own. Full
attention is the case of one block as long as the context, with no summaries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import rope, softmax_parts


class LayerCache(NamedTuple):
    """The past of one layer. Keys of the block are unrotated, since they may yet be pooled."""

    key: Float[Array, "B C M H"]
    value: Float[Array, "B C M H"]
    summary_key: Float[Array, "B J m M H"]
    summary_value: Float[Array, "B J m M H"]


def empty_cache(
    *,
    batch_size: int,
    block_size: int,
    num_blocks: int,
    num_summaries: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jnp.dtype,
) -> LayerCache:
    """A cache of zeros for sequences of up to `num_blocks * block_size` tokens."""
    block = (batch_size, block_size, num_kv_heads, head_dim)
    summaries = (batch_size, num_blocks, num_summaries, num_kv_heads, head_dim)
    return LayerCache(
        jnp.zeros(block, dtype),
        jnp.zeros(block, dtype),
        jnp.zeros(summaries, dtype),
        jnp.zeros(summaries, dtype),
    )


def filled_cache(
    empty: LayerCache,
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    summary_key: Float[Array, "B P m M H"],
    summary_value: Float[Array, "B P m M H"],
    lengths: Int[Array, " B"],
) -> LayerCache:
    """The cache after prompts that were computed in one go.

    Args:
      empty: fixes the capacity.
      key: [B, L, M, H] unrotated keys of right-padded prompts.
      value: [B, L, M, H].
      summary_key: [B, P, m, M, H] rotated summaries of the P blocks of the prompts; those of
        unfinished blocks are never looked at, since a sequence knows its length.
      summary_value: [B, P, m, M, H].
      lengths: [B] int32, tokens of each prompt, at most L.

    Raises:
      ValueError: the prompts have more blocks than the cache (trace time).
    """
    block_size, num_prompt_blocks = empty.key.shape[1], summary_key.shape[1]
    if num_prompt_blocks > empty.summary_key.shape[1]:
        raise ValueError(
            f"prompts of {num_prompt_blocks} blocks do not fit a cache of "
            f"{empty.summary_key.shape[1]} blocks of {block_size} tokens"
        )
    starts = (lengths // block_size) * block_size

    def current_block(x: Array) -> Array:
        # One block of slack: a prompt that ends on a border has its current block beyond L.
        room = [(0, block_size), (0, 0), (0, 0)]
        return jax.vmap(
            lambda row, start: jax.lax.dynamic_slice_in_dim(jnp.pad(row, room), start, block_size)
        )(x, starts)

    def put(buffer: Array, x: Array) -> Array:
        return buffer.at[:, :num_prompt_blocks].set(x)

    return LayerCache(
        current_block(key),
        current_block(value),
        put(empty.summary_key, summary_key),
        put(empty.summary_value, summary_value),
    )


def append(
    cache: LayerCache,
    key: Float[Array, "B M H"],
    value: Float[Array, "B M H"],
    positions: Int[Array, " B"],
) -> LayerCache:
    """The cache with one more token in each sequence, at that sequence's own slot."""
    rows, slots = jnp.arange(key.shape[0]), positions % cache.key.shape[1]
    return cache._replace(
        key=cache.key.at[rows, slots].set(key), value=cache.value.at[rows, slots].set(value)
    )


def put_summaries(
    cache: LayerCache,
    summary_key: Float[Array, "B m M H"],
    summary_value: Float[Array, "B m M H"],
    positions: Int[Array, " B"],
) -> LayerCache:
    """The cache with the current block's summaries, for sequences whose block is now full."""
    block_size = cache.key.shape[1]
    block_index = positions // block_size
    finished = positions % block_size == block_size - 1
    rows = jnp.arange(positions.shape[0])

    def put(buffer: Array, new: Array) -> Array:
        old = buffer[rows, block_index]
        return buffer.at[rows, block_index].set(jnp.where(finished[:, None, None, None], new, old))

    return cache._replace(
        summary_key=put(cache.summary_key, summary_key),
        summary_value=put(cache.summary_value, summary_value),
    )


def attend_cache(
    query: Float[Array, "B N H"],
    cache: LayerCache,
    positions: Int[Array, " B"],
    *,
    rope_base: float,
) -> Float[Array, "B N H"]:
    """Attention of one new token a sequence over its current block and earlier summaries.

    Args:
      query: [B, N, H] rotated.
      cache: with the new token already appended.
      positions: [B] int32, index of the new token in its sequence.
      rope_base: base of the rotary frequencies; static.

    Returns:
      [B, N, H] in the dtype of the cached values.
    """
    batch_size, block_size, num_kv_heads, head_dim = cache.key.shape
    block_index, slot = positions // block_size, positions % block_size
    slots = jnp.arange(block_size)
    key_positions = block_index[:, None] * block_size + slots[None]
    grouped = query.reshape(batch_size, 1, num_kv_heads, -1, head_dim)
    part = softmax_parts.attend_part(
        grouped,
        rope.rotate(cache.key, key_positions, base=rope_base),
        cache.value,
        (slots[None] <= slot[:, None])[:, None],
    )
    num_blocks, per_block = cache.summary_key.shape[1:3]
    if per_block:
        flat = (batch_size, num_blocks * per_block, num_kv_heads, head_dim)
        earlier = jnp.arange(num_blocks)[None] < block_index[:, None]
        part = softmax_parts.merge_parts(
            part,
            softmax_parts.attend_part(
                grouped,
                cache.summary_key.reshape(flat),
                cache.summary_value.reshape(flat),
                jnp.repeat(earlier, per_block, axis=-1)[:, None],
            ),
        )
    output = softmax_parts.normalize_part(part).astype(cache.value.dtype)
    return output.reshape(query.shape)
