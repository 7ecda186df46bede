"""Which row goes to which device, and how many rows that takes. Floor 2.

A token's row travels once to each device that holds one of its experts, however many of them
live there. Axes: T tokens of one device, K experts of a token, P devices that the experts are
spread over, X experts of a device, C rows that a device sends to each destination, D model.
"""

import functools
import math
from typing import Literal, NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.ops import dispatch

_NUM_DRAWN = 8192


class Exchange(NamedTuple):
    """What one device sends to the others.

    `plan`: the row of each token and destination, as `ops.dispatch` follows it; destination p
    owns the rows [p C, (p + 1) C). `local_ids` [P C, K]: the experts that a row goes to, counted
    on its destination; X is none. `num_visits` []: devices that the tokens have experts on,
    summed over tokens. `num_overflowed` []: visits that found no row. `num_dropped` []:
    assignments of these visits.
    """

    plan: dispatch.Plan
    local_ids: Int32[Array, "P*C K"]
    num_visits: Int32[Array, ""]
    num_overflowed: Int32[Array, ""]
    num_dropped: Int32[Array, ""]


def make(
    expert_ids: Int[Array, "T K"],
    token_mask: Bool[Array, " T"],
    *,
    num_devices: int,
    experts_per_device: int,
    capacity: int,
) -> Exchange:
    """The exchange of one device's tokens.

    Device p holds the experts [p X, (p + 1) X). Where a destination has too few rows, the
    tokens whose best expert there is a better choice of theirs go first, then earlier tokens.

    Args:
      expert_ids: [T, K] int32 in [0, P X), distinct in a row, best first.
      token_mask: [T] bool; a token that is False travels nowhere.
      num_devices: P; static.
      experts_per_device: X; static.
      capacity: C; static; with T nothing can overflow.

    Returns:
      The exchange; `num_dropped` is 0 with `capacity` T.
    """
    chex.assert_rank([expert_ids, token_mask], [2, 1])
    owners = expert_ids // experts_per_device
    first = _first_on_device(owners)
    columns = jnp.arange(owners.shape[1], dtype=jnp.int32)[None]
    destinations = jnp.where(first == columns, owners, num_devices)
    plan = dispatch.capacity_plan(
        destinations, token_mask, num_experts=num_devices, capacity=capacity
    )
    sent = jnp.take(expert_ids, plan.token_ids, axis=0, mode="fill", fill_value=-1)
    destination = jnp.arange(num_devices * capacity, dtype=jnp.int32)[:, None] // capacity
    is_there = (sent >= 0) & (sent // experts_per_device == destination)
    local_ids = jnp.where(is_there, sent % experts_per_device, experts_per_device)

    num_rows = plan.token_ids.size
    has_row = jnp.take_along_axis(plan.row_ids, first, axis=1) < num_rows
    num_dropped = jnp.sum(token_mask[:, None] & ~has_row, dtype=jnp.int32)
    num_visits = jnp.sum(token_mask[:, None] & (destinations < num_devices), dtype=jnp.int32)
    return Exchange(plan, local_ids, num_visits, plan.num_dropped, num_dropped)


def kept_reference(
    expert_ids: Int[Array, "T K"],
    token_mask: Bool[Array, " T"],
    *,
    num_devices: int,
    experts_per_device: int,
    capacity: int,
) -> Bool[np.ndarray, "T K"]:
    """The oracle of `make`: which assignments find a row, in numpy, one visit after the other."""
    ids, mask = np.asarray(expert_ids), np.asarray(token_mask)
    num_tokens, top_k = ids.shape
    free = [capacity] * num_devices
    seen, placed = set(), set()
    for k in range(top_k):
        for t in range(num_tokens):
            visit = (t, int(ids[t, k]) // experts_per_device)
            if mask[t] and visit not in seen:
                seen.add(visit)
                if free[visit[1]] > 0:
                    free[visit[1]] -= 1
                    placed.add(visit)
    kept = [
        [(t, int(ids[t, k]) // experts_per_device) in placed for k in range(top_k)]
        for t in range(num_tokens)
    ]
    return np.array(kept, dtype=bool)


def rows_per_destination(mesh: MeshSpec, model: ModelSpec, *, num_tokens: int) -> int:
    """C, the rows that a device with `num_tokens` tokens keeps for each destination.

    exact: one for every token. bounded: `rows_factor` times the expected number, were no expert
    liked better than others (`expected_visits`), and never more than exact.
    """
    if mesh.exchange == "exact":
        return num_tokens
    visits = expected_visits(model, num_devices=mesh.expert)
    return min(num_tokens, math.ceil(mesh.rows_factor * num_tokens * visits / mesh.expert))


def expected_visits(model: ModelSpec, *, num_devices: int) -> float:
    """Devices that a token has experts on, on average, if no expert is liked better than others.

    Without a limit on groups all sets of K experts are equally likely, and a device of X is left
    out with the chance that all K are among the other E - X:

        visits = P * (1 - binom(E - X, K) / binom(E, K))

    With a limit, groups are opened for the experts in them that score best, so that choices are
    not even within open groups and no such form is known: then the router's own rule is applied
    to independent normal logits, always the same ones, of enough tokens for an error of 0.5%.

    Args:
      model: the router's settings.
      num_devices: P; divides E.
    """
    experts_per_device = model.num_experts // num_devices
    if model.top_groups == model.num_groups:
        others = model.num_experts - experts_per_device
        left_out = math.comb(others, model.top_k) / math.comb(model.num_experts, model.top_k)
        return num_devices * (1.0 - left_out)
    return _drawn_visits(
        model.num_experts,
        model.num_groups,
        model.top_groups,
        model.top_k,
        model.router_scores,
        num_devices,
    )


@functools.cache
def _drawn_visits(
    num_experts: int,
    num_groups: int,
    top_groups: int,
    top_k: int,
    kind: Literal["softmax", "sigmoid"],
    num_devices: int,
) -> float:
    """The mean over `_NUM_DRAWN` tokens with independent normal logits, in numpy."""
    logits = np.random.default_rng(0).normal(size=(_NUM_DRAWN, num_experts))
    # A factor common to the experts of a token changes no choice, so that exp will do.
    scores = np.exp(logits) if kind == "softmax" else 1.0 / (1.0 + np.exp(-logits))
    grouped = np.sort(scores.reshape(_NUM_DRAWN, num_groups, -1), axis=-1)
    best = grouped[..., -2:].sum(axis=-1)
    closed = np.argsort(best, axis=-1)[:, : num_groups - top_groups]
    is_open = np.ones((_NUM_DRAWN, num_groups), bool)
    np.put_along_axis(is_open, closed, False, axis=-1)
    allowed = np.repeat(is_open, num_experts // num_groups, axis=-1)
    ids = np.argsort(np.where(allowed, -scores, np.inf), axis=-1)[:, :top_k]
    owners = np.sort(ids // (num_experts // num_devices), axis=-1)
    return float(np.mean(1 + np.sum(np.diff(owners, axis=-1) > 0, axis=-1)))


def _first_on_device(owners: Int32[Array, "T K"]) -> Int32[Array, "T K"]:
    """For each choice, the first choice of the token that lives on the same device."""
    same = owners[:, :, None] == owners[:, None, :]
    return jnp.argmax(same, axis=-1).astype(jnp.int32)
