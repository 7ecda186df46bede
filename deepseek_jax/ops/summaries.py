"""Compression of finished attention blocks into a few keys and values. Floor 1.

Axes: B sequences, L positions = J blocks of C, m summaries of a block, M key/value heads,
H head width (docs/notation.md).
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.ops import softmax_parts


class CompressionWeights(NamedTuple):
    """Learned weights that decide how much of a block's token each summary takes."""

    queries: Float[Array, "M m H"]
    positions: Float[Array, "M m C"]


class BlockSummaries(NamedTuple):
    """What later blocks see of each block.

    `document_ids` and `positions` are those of the block's last token: the summaries belong to
    the document alive there, and 0 means that there is none (the block ends in padding).
    """

    key: Float[Array, "B J m M H"]
    value: Float[Array, "B J m M H"]
    document_ids: Int[Array, "B J"]
    positions: Int[Array, "B J"]


def compress(
    key: Float[Array, "*B C M H"],
    value: Float[Array, "*B C M H"],
    token_mask: Bool[Array, "*B C"],
    weights: CompressionWeights,
) -> tuple[Float[Array, "*B m M H"], Float[Array, "*B m M H"]]:
    """Softmax-weighted means of a block's keys and of its values.

    a_ic = softmax_c(u_i . k_c / sqrt(H) + p_ic), over the tokens that `token_mask` keeps;
    key_i = sum_c a_ic k_c, value_i = sum_c a_ic v_c. Keys come unrotated, so that a summary
    can be rotated to the position of its block. Weights are float32.

    Args:
      key: [*B, C, M, H] any float dtype, before rotation.
      value: [*B, C, M, H] same dtype.
      token_mask: [*B, C] True for the tokens that the summaries may use.
      weights: u [M, m, H] and p [M, m, C], float32.

    Returns:
      keys and values [*B, m, M, H] in the dtypes given; zeros where no token is kept.
    """
    chex.assert_equal_shape([key, value])
    chex.assert_shape(weights.positions, (key.shape[-2], None, key.shape[-3]))
    logits = jnp.einsum("...cmh,mih->...mic", key.astype(jnp.float32), weights.queries)
    lead = (1,) * (logits.ndim - 3)
    bias = weights.positions.reshape(lead + weights.positions.shape)
    logits = logits / math.sqrt(key.shape[-1]) + bias
    mask = token_mask[..., None, None, :]
    shares = jax.nn.softmax(jnp.where(mask, logits, softmax_parts.MASKED_LOGIT), axis=-1)
    shares = jnp.where(mask, shares, 0.0)

    def pooled(x: Array) -> Array:
        # Heads in front: with bfloat16, XLA:CPU has no kernel for the product of the other order.
        mean = jnp.einsum(
            "...mic,...mch->...mih",
            shares.astype(x.dtype),
            jnp.swapaxes(x, -3, -2),
            preferred_element_type=jnp.float32,
        )
        return jnp.swapaxes(mean, -3, -2).astype(x.dtype)

    return pooled(key), pooled(value)


def summarize_blocks(
    key: Float[Array, "B L M H"],
    value: Float[Array, "B L M H"],
    document_ids: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    weights: CompressionWeights,
    *,
    block_size: int,
) -> BlockSummaries:
    """The summaries of every block of a sequence; keys still unrotated and unnormalised.

    Args:
      key: [B, L, M, H] before rotation.
      value: [B, L, M, H].
      document_ids: [B, L] int32; 0 is padding.
      positions: [B, L] int32, in tokens.
      weights: the learned compression.
      block_size: C; static; divides L.
    """
    num_sequences, length = document_ids.shape
    blocks = (num_sequences, length // block_size, block_size)
    block_ids = document_ids.reshape(blocks)
    alive = block_ids[:, :, -1]
    token_mask = (block_ids == alive[:, :, None]) & (alive[:, :, None] != 0)
    pooled_key, pooled_value = compress(
        key.reshape(blocks + key.shape[2:]),
        value.reshape(blocks + value.shape[2:]),
        token_mask,
        weights,
    )
    return BlockSummaries(pooled_key, pooled_value, alive, positions.reshape(blocks)[:, :, -1])
