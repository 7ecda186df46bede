"""What attention keeps of the past while decoding: one block, and summaries. Floor 1.

Axes: B sequences, C slots of the current block, J finished blocks at most, m summaries of a
block, M key/value heads, H head width. Every sequence stands at a position of its own. Full
attention is the case of one block as long as the context, with no summaries. Heads stand in
front of slots, the order in which a query reads them, so that a step copies nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import rope, softmax_parts


class LayerCache(NamedTuple):
    """The past of one layer. All keys are rotated."""

    key: Float[Array, "B M C H"]
    value: Float[Array, "B M C H"]
    summary_key: Float[Array, "B M J m H"]
    summary_value: Float[Array, "B M J m H"]


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
    block = (batch_size, num_kv_heads, block_size, head_dim)
    summaries = (batch_size, num_kv_heads, num_blocks, num_summaries, head_dim)
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
      key: [B, L, M, H] rotated keys of right-padded prompts.
      value: [B, L, M, H].
      summary_key: [B, P, m, M, H] rotated summaries of the P blocks of the prompts; those of
        unfinished blocks are never looked at, since a sequence knows its length.
      summary_value: [B, P, m, M, H].
      lengths: [B] int32, tokens of each prompt, at most L.

    Raises:
      ValueError: the prompts have more blocks than the cache (trace time).
    """
    block_size, num_prompt_blocks = empty.key.shape[2], summary_key.shape[1]
    if num_prompt_blocks > empty.summary_key.shape[2]:
        raise ValueError(
            f"prompts of {num_prompt_blocks} blocks do not fit a cache of "
            f"{empty.summary_key.shape[2]} blocks of {block_size} tokens"
        )
    starts = (lengths // block_size) * block_size

    def current_block(x: Array) -> Array:
        # One block of slack: a prompt that ends on a border has its current block beyond L.
        room = [(0, block_size), (0, 0), (0, 0)]
        block = jax.vmap(
            lambda row, start: jax.lax.dynamic_slice_in_dim(jnp.pad(row, room), start, block_size)
        )(x, starts)
        return jnp.swapaxes(block, 1, 2)

    def put(buffer: Array, x: Array) -> Array:
        return buffer.at[:, :, :num_prompt_blocks].set(jnp.moveaxis(x, 3, 1))

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
    """The cache with one more token in each sequence, at that sequence's own slot.

    Args:
      cache: before the token.
      key: [B, M, H] rotated.
      value: [B, M, H].
      positions: [B] int32, index of the token in its sequence.
    """
    rows, slots = jnp.arange(key.shape[0]), positions % cache.key.shape[2]
    return cache._replace(
        key=cache.key.at[rows, :, slots].set(key), value=cache.value.at[rows, :, slots].set(value)
    )


def current_block(
    cache: LayerCache, positions: Int[Array, " B"], *, rope_base: float
) -> tuple[Float[Array, "B C M H"], Float[Array, "B C M H"]]:
    """Keys, rotated back, and values of the current block, as `summaries.compress` takes them.

    Args:
      cache: with the block's tokens.
      positions: [B] int32, index of a token of the block in its sequence.
      rope_base: base of the rotary frequencies; static.
    """
    block_size = cache.key.shape[2]
    slots = (positions // block_size * block_size)[:, None] + jnp.arange(block_size)[None]
    key, value = jnp.swapaxes(cache.key, 1, 2), jnp.swapaxes(cache.value, 1, 2)
    return rope.rotate(key, -slots, base=rope_base), value


def put_summaries(
    cache: LayerCache,
    summary_key: Float[Array, "B m M H"],
    summary_value: Float[Array, "B m M H"],
    positions: Int[Array, " B"],
) -> LayerCache:
    """The cache with the current block's summaries, for sequences whose block is now full."""
    block_size, num_blocks = cache.key.shape[2], cache.summary_key.shape[2]
    is_full = positions % block_size == block_size - 1
    # A block beyond the last is written nowhere.
    block_index = jnp.where(is_full, positions // block_size, num_blocks)
    rows = jnp.arange(positions.shape[0])

    def put(buffer: Array, new: Array) -> Array:
        return buffer.at[rows, :, block_index].set(jnp.swapaxes(new, 1, 2), mode="drop")

    return cache._replace(
        summary_key=put(cache.summary_key, summary_key),
        summary_value=put(cache.summary_value, summary_value),
    )


def attend_cache(
    query: Float[Array, "B N H"], cache: LayerCache, positions: Int[Array, " B"]
) -> Float[Array, "B N H"]:
    """Attention of one new token a sequence over its current block and earlier summaries.

    Args:
      query: [B, N, H] rotated.
      cache: with the new token already appended.
      positions: [B] int32, index of the new token in its sequence.

    Returns:
      [B, N, H] in the dtype of the cached values.
    """
    batch_size, num_kv_heads, block_size, head_dim = cache.key.shape
    block_index, slot = positions // block_size, positions % block_size
    grouped = query.reshape(batch_size, num_kv_heads, -1, head_dim)
    seen = jnp.arange(block_size)[None] <= slot[:, None]
    part = softmax_parts.attend_heads(grouped, cache.key, cache.value, seen)
    num_blocks, per_block = cache.summary_key.shape[2:4]
    if per_block:
        flat = (batch_size, num_kv_heads, num_blocks * per_block, head_dim)
        earlier = jnp.arange(num_blocks)[None] < block_index[:, None]
        part = softmax_parts.merge_parts(
            part,
            softmax_parts.attend_heads(
                grouped,
                cache.summary_key.reshape(flat),
                cache.summary_value.reshape(flat),
                jnp.repeat(earlier, per_block, axis=-1),
            ),
        )
    output = softmax_parts.normalize_part(part).astype(cache.value.dtype)
    return output.reshape(query.shape)
