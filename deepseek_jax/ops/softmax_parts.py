"""One softmax over keys that arrive in parts. Floor 1: arrays in, arrays out.

A part is what attention over some of the keys leaves behind: the unnormalised weighted sum of
values, the sum of weights, and the logit that both were scaled by. Parts add to the attention
over all their keys, forward and backward, whichever order they are merged in. All float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# A finite stand-in for -inf: differences stay finite, and exp of (masked - floor) is exactly 0.
MASKED_LOGIT = -1e30
MAX_FLOOR = -1e20


class SoftmaxPart(NamedTuple):
    """Attention of queries over some keys, before normalisation.

    *Q are the axes of the queries: [B, L, M, G] of `attend_part`, [B, M, G] of `attend_heads`.
    """

    weighted_values: Float[Array, "*Q H"]
    weight_sum: Float[Array, "*Q"]
    max_logit: Float[Array, "*Q"]


def attend_part(
    query: Float[Array, "B L M G H"],
    key: Float[Array, "B S M H"],
    value: Float[Array, "B S M H"],
    mask: Bool[Array, "B L S"],
) -> SoftmaxPart:
    """The part of the keys that `mask` keeps; a query with no key leaves zeros.

    logit_ls = q_l . k_s / sqrt(H). The scale is subject to no gradient, since any value of it
    gives the same normalised answer.

    Args:
      query: [B, L, M, G, H] any float dtype; M key/value heads, G query heads for each.
      key: [B, S, M, H] same dtype.
      value: [B, S, M, H] same dtype.
      mask: [B, L, S] True where query l sees key s.
    """
    return _part(
        ("blmgh,bsmh->blmgs", "blmgs,bsmh->blmgh"), query, key, value, mask[:, :, None, None]
    )


def attend_heads(
    query: Float[Array, "B M G H"],
    key: Float[Array, "B M S H"],
    value: Float[Array, "B M S H"],
    mask: Bool[Array, "B S"],
) -> SoftmaxPart:
    """`attend_part` of one query a sequence, with keys and values that lie head by head.

    Args:
      query: [B, M, G, H] any float dtype; M key/value heads, G query heads for each.
      key: [B, M, S, H] same dtype.
      value: [B, M, S, H] same dtype.
      mask: [B, S] True for the keys that are seen.
    """
    return _part(("bmgh,bmsh->bmgs", "bmgs,bmsh->bmgh"), query, key, value, mask[:, None, None])


def merge_parts(first: SoftmaxPart, second: SoftmaxPart) -> SoftmaxPart:
    """The part over the keys of both."""
    max_logit = jnp.maximum(first.max_logit, second.max_logit)
    first_scale = jnp.exp(first.max_logit - max_logit)
    second_scale = jnp.exp(second.max_logit - max_logit)
    return SoftmaxPart(
        first.weighted_values * first_scale[..., None]
        + second.weighted_values * second_scale[..., None],
        first.weight_sum * first_scale + second.weight_sum * second_scale,
        max_logit,
    )


def normalize_part(part: SoftmaxPart) -> Float[Array, "*Q H"]:
    """The attention output, float32; exactly zero for a query that saw no key."""
    total = jnp.maximum(part.weight_sum, jnp.finfo(jnp.float32).tiny)
    return part.weighted_values / total[..., None]


def _part(
    subscripts: tuple[str, str], query: Array, key: Array, value: Array, mask: Array
) -> SoftmaxPart:
    """Logits and weighted values by these subscripts; `mask` broadcasts against the logits."""
    logits = jnp.einsum(subscripts[0], query, key, preferred_element_type=jnp.float32)
    logits = jnp.where(mask, logits / math.sqrt(query.shape[-1]), MASKED_LOGIT)
    max_logit = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1), MAX_FLOOR))
    weights = jnp.exp(logits - max_logit[..., None])
    weighted = jnp.einsum(
        subscripts[1], weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return SoftmaxPart(weighted, jnp.sum(weights, axis=-1), max_logit)
