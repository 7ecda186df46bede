"""Which experts a token visits, and how much of each answer it keeps. Floor 1.

Axes: T tokens, E routed experts, K experts of a token. Experts stand in groups of consecutive
ids: group g holds the experts [g * E / num_groups, (g + 1) * E / num_groups).
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.ops import largest


class Routing(NamedTuple):
    """Where each token goes and what the answers weigh: [T, K] int32 and float32."""

    expert_ids: Int[Array, "T K"]
    weights: Float[Array, "T K"]


def router_scores(
    logits: Float[Array, "T E"], *, kind: Literal["softmax", "sigmoid"]
) -> Float[Array, "T E"]:
    """Scores of all experts from the logits of the gate.

    softmax: s_ti = exp(l_ti) / sum_j exp(l_tj), arXiv:2101.03961, eq. 1.
    sigmoid: s_ti = 1 / (1 + exp(-l_ti)), DeepSeek-V3, arXiv:2412.19437, eq. 15.

    Args:
      logits: [T, E] float32, unnormalised.
      kind: which of the two; static.

    Returns:
      [T, E] float32 in [0, 1]; with "softmax" rows sum to 1.

    Raises:
      ValueError: another `kind` (trace time).
    """
    chex.assert_rank(logits, 2)
    chex.assert_type(logits, jnp.float32)
    match kind:
        case "softmax":
            return jax.nn.softmax(logits, axis=-1)
        case "sigmoid":
            return jax.nn.sigmoid(logits)
    raise ValueError(f"kind={kind!r} is not one of ['softmax', 'sigmoid']")


def top_k_routing(
    scores: Float[Array, "T E"],
    choice_bias: Float[Array, " E"] | None = None,
    *,
    top_k: int,
    num_groups: int = 1,
    top_groups: int = 1,
    renormalize: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Chooses experts by biased score, inside the best groups, and weighs them by the score.

    DeepSeek-V3, arXiv:2412.19437, eqs. 12 (the sum that the weights enter), 13 and 16, with
    the node-limited routing of its section 2.1.2 as groups of experts:

        value_tg = sum of the best two of {s_ti + b_i : i in group g}
        chosen_t = TopK_i(s_ti + b_i) over the experts of the `top_groups` best groups
        w_ti     = scale * s_ti                               raw, eq. 13 of the scores
        w_ti     = scale * s_ti / sum_{j in chosen_t} s_tj    renormalized, eq. 13

    Differs: the paper sums the best K_r / M of a group; two whatever K, as its published
    model does (the one score of a group with one expert). Ties go to the lower id. Raw
    weights are the default; eq. 13 renormalizes.

    Args:
      scores: [T, E] float32. s_ti, at least 0, dimensionless; finite.
      choice_bias: [E] float32. b_i in units of the score, or None for none. It reaches only
        the ids: its gradient is zero.
      top_k: K; static; 1 <= K <= the experts in `top_groups` groups.
      num_groups: groups that the experts stand in; static; divides E.
      top_groups: groups that a token may choose from; static; 1 <= top_groups <= num_groups.
      renormalize: divide by the sum over the chosen; static.
      scale: factor on the weights, dimensionless; static.

    Returns:
      ids [T, K] int32, distinct in a row, best biased score first, in at most `top_groups`
      groups; weights [T, K] float32, which sum to `scale` in a row if renormalized (to less
      if the chosen scores sum to a subnormal number) and else to `scale` times the chosen
      scores.

    Raises:
      ValueError: `top_k`, `num_groups` or `top_groups` out of range (trace time).
    """
    chex.assert_rank(scores, 2)
    chex.assert_type(scores, jnp.float32)
    _check_sizes(scores.shape[1], top_k, num_groups, top_groups)
    ranking = jax.lax.stop_gradient(scores)
    if choice_bias is not None:
        chex.assert_shape(choice_bias, (scores.shape[1],))
        chex.assert_type(choice_bias, jnp.float32)
        ranking = ranking + jax.lax.stop_gradient(choice_bias)[None, :]
    if top_groups < num_groups:
        allowed = _group_mask(ranking, num_groups, top_groups)
        ranking = jnp.where(allowed, ranking, -jnp.inf)
    _, expert_ids = largest.top_k(ranking, top_k)
    weights = jnp.take_along_axis(scores, expert_ids, axis=-1)
    if renormalize:
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights / jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    return Routing(expert_ids, scale * weights)


def routing_reference(
    scores: Float[Array, "T E"],
    choice_bias: Float[Array, " E"] | None = None,
    *,
    top_k: int,
    num_groups: int = 1,
    top_groups: int = 1,
    renormalize: bool = False,
    scale: float = 1.0,
) -> Routing:
    """The oracle of `top_k_routing`: numpy, one token after the other; not differentiable."""
    values = np.asarray(scores)
    num_tokens, num_experts = values.shape
    _check_sizes(num_experts, top_k, num_groups, top_groups)
    bias = np.zeros(num_experts, np.float32) if choice_bias is None else np.asarray(choice_bias)
    group_dim = num_experts // num_groups
    ids = np.zeros((num_tokens, top_k), np.int32)
    weights = np.zeros((num_tokens, top_k), np.float32)
    for t in range(num_tokens):
        biased = values[t] + bias
        groups = [biased[g * group_dim : (g + 1) * group_dim] for g in range(num_groups)]
        best_two = [np.sort(group)[::-1][:2].sum() for group in groups]
        open_groups = np.argsort([-value for value in best_two], kind="stable")[:top_groups]
        candidates = [i for i in range(num_experts) if i // group_dim in open_groups]
        ids[t] = sorted(candidates, key=lambda i: (-biased[i], i))[:top_k]
        weights[t] = values[t][ids[t]]
        if renormalize:
            weights[t] /= max(weights[t].sum(), np.finfo(np.float32).tiny)
    return Routing(jnp.asarray(ids), jnp.asarray(np.float32(scale) * weights))


def _group_mask(
    ranking: Float[Array, "T E"], num_groups: int, top_groups: int
) -> Bool[Array, "T E"]:
    """True for the experts of the groups whose best two scores sum to the most."""
    num_tokens, num_experts = ranking.shape
    grouped = ranking.reshape(num_tokens, num_groups, -1)
    best, _ = largest.top_k(grouped, min(2, grouped.shape[-1]))
    _, group_ids = largest.top_k(jnp.sum(best, axis=-1), top_groups)
    group_index = jnp.arange(num_experts) // (num_experts // num_groups)
    return jnp.any(group_ids[:, :, None] == group_index[None, None, :], axis=1)


def _check_sizes(num_experts: int, top_k: int, num_groups: int, top_groups: int) -> None:
    """Raises unless the counts fit one another."""
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(f"num_groups={num_groups} is not a divisor of {num_experts} (num_experts)")
    if not 1 <= top_groups <= num_groups:
        raise ValueError(f"top_groups={top_groups} is outside [1, {num_groups}] (num_groups)")
    reachable = top_groups * (num_experts // num_groups)
    if not 1 <= top_k <= reachable:
        raise ValueError(f"top_k={top_k} is outside [1, {reachable}] (experts in top_groups)")
