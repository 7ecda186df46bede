"""Causal attention in blocks: local-global, and full as the baseline. Floor 1.

No path makes an array of [length x length], forward or backward. Axes: B sequences,
L positions = J blocks of C, N query heads = M key/value heads x G, H head width.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import softmax_parts
from deepseek_jax.ops.summaries import BlockSummaries

# Up to this many blocks are attended in one batched computation; more go one after another,
# each recomputed in the backward pass, so that memory grows with the length only.
MAX_BATCHED_BLOCKS = 16


def local_global_attention(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    summaries: BlockSummaries | None,
    *,
    block_size: int,
) -> Float[Array, "B L N H"]:
    """Each query sees its own block up to itself, and the summaries of all earlier blocks.

    One softmax runs over both kinds of key. A query sees keys and summaries of its own
    document only; padding (document 0) sees nothing and is seen by nothing: its output is 0.

    Args:
      query: [B, L, N, H] rotated.
      key: [B, L, M, H] rotated; M divides N.
      value: [B, L, M, H].
      document_ids: [B, L] int32; 0 is padding.
      summaries: of every block, keys rotated; None for attention inside the blocks only.
      block_size: C; static; divides L.

    Returns:
      [B, L, N, H] in the dtype of `value`.

    Cost: O(L * (C + J * m)) products of width H for each query head.
    """
    num_sequences, length, num_heads, head_dim = query.shape
    num_blocks = length // block_size
    chex.assert_is_divisible(length, block_size)
    grouped = _split_heads(query, key.shape[2])

    def blocks_first(x: Array) -> Array:
        parts = x.reshape((num_sequences, num_blocks, block_size) + x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    def attend_block(block: tuple[Array, Array, Array, Array, Array]) -> Array:
        block_index, q, k, v, ids = block
        own = (ids[:, :, None] == ids[:, None, :]) & (ids[:, :, None] != 0)
        causal = jnp.tril(jnp.ones((block_size, block_size), bool))
        part = softmax_parts.attend_part(q, k, v, own & causal[None])
        if summaries is not None:
            part = softmax_parts.merge_parts(part, _attend_summaries(q, ids, block_index))
        return softmax_parts.normalize_part(part).astype(v.dtype)

    def _attend_summaries(q: Array, ids: Array, block_index: Array) -> softmax_parts.SoftmaxPart:
        assert summaries is not None
        per_block = summaries.key.shape[2]
        flat = (num_sequences, num_blocks * per_block) + summaries.key.shape[3:]
        earlier = jnp.arange(num_blocks) < block_index
        same = (ids[:, :, None] == summaries.document_ids[:, None, :]) & (ids[:, :, None] != 0)
        mask = jnp.repeat(same & earlier[None, None], per_block, axis=-1)
        return softmax_parts.attend_part(
            q, summaries.key.reshape(flat), summaries.value.reshape(flat), mask
        )

    blocks = (
        jnp.arange(num_blocks),
        blocks_first(grouped),
        blocks_first(key),
        blocks_first(value),
        blocks_first(document_ids),
    )
    if num_blocks <= MAX_BATCHED_BLOCKS:
        output = jax.vmap(attend_block)(blocks)
    else:
        output = jax.lax.map(jax.checkpoint(attend_block), blocks)
    return jnp.moveaxis(output, 0, 1).reshape(num_sequences, length, num_heads, head_dim)


def full_attention(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    *,
    block_size: int,
) -> Float[Array, "B L N H"]:
    """Each query sees every earlier token of its document: the baseline.

    Computed tile by tile of [C x C] with a running softmax (arXiv:2205.14135, algorithm 1);
    tiles above the diagonal are skipped and tiles are recomputed in the backward pass.

    Args:
      query: [B, L, N, H] rotated.
      key: [B, L, M, H] rotated; M divides N.
      value: [B, L, M, H].
      document_ids: [B, L] int32; 0 is padding.
      block_size: C, side of a tile; static; divides L.

    Returns:
      [B, L, N, H] in the dtype of `value`; 0 for padding.

    Cost: O(L^2 / 2) products of width H for each query head; O(L) memory.
    """
    num_sequences, length, num_heads, head_dim = query.shape
    num_blocks = length // block_size
    chex.assert_is_divisible(length, block_size)
    grouped = _split_heads(query, key.shape[2])
    within = jnp.arange(block_size)

    def tile(x: Array, block_index: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, block_index * block_size, block_size, axis=1)

    def attend_row_of_tiles(row_index: Array) -> Array:
        q, q_ids = tile(grouped, row_index), tile(document_ids, row_index)

        def add_tile(part: softmax_parts.SoftmaxPart, column_index: Array) -> tuple:
            def visible(part: softmax_parts.SoftmaxPart) -> softmax_parts.SoftmaxPart:
                k_ids = tile(document_ids, column_index)
                own = (q_ids[:, :, None] == k_ids[:, None, :]) & (q_ids[:, :, None] != 0)
                rows = row_index * block_size + within
                columns = column_index * block_size + within
                causal = rows[:, None] >= columns[None, :]
                new = softmax_parts.attend_part(
                    q, tile(key, column_index), tile(value, column_index), own & causal[None]
                )
                return softmax_parts.merge_parts(part, new)

            return jax.lax.cond(column_index <= row_index, visible, lambda p: p, part), None

        shape = q.shape[:-1]
        nothing = softmax_parts.SoftmaxPart(
            jnp.zeros(q.shape, jnp.float32),
            jnp.zeros(shape, jnp.float32),
            jnp.full(shape, softmax_parts.MAX_FLOOR, jnp.float32),
        )
        part, _ = jax.lax.scan(jax.checkpoint(add_tile), nothing, jnp.arange(num_blocks))
        return softmax_parts.normalize_part(part).astype(value.dtype)

    rows = jax.lax.map(jax.checkpoint(attend_row_of_tiles), jnp.arange(num_blocks))
    return jnp.moveaxis(rows, 0, 1).reshape(num_sequences, length, num_heads, head_dim)


def _split_heads(query: Float[Array, "B L N H"], num_kv_heads: int) -> Array:
    """[B, L, M, G, H]: query head n belongs to key/value head n // G."""
    num_sequences, length, num_heads, head_dim = query.shape
    chex.assert_is_divisible(num_heads, num_kv_heads)
    return query.reshape(num_sequences, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
