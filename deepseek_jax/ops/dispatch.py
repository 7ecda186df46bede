"""Moving tokens to the rows of their experts and back. Floor 1; knows nothing of experts.

A `Plan` says which row each assignment (token and choice) owns; `dispatch` and `combine`
follow it. Both are gathers forward and backward, since the plan holds the map in both
directions. Axes: T tokens, K experts of a token, A assignments, E experts, R rows, D model.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from deepseek_jax.ops import counts as counting
from deepseek_jax.ops.grouped import tiles

# Past the largest key that a sort of one number for each assignment can have.
_KEYS_END = 2**32


class Plan(NamedTuple):
    """Where assignments go. The rows of an expert are consecutive, experts in order.

    `row_ids` [T, K]: the row that holds the assignment; R if it has none (it was dropped, or
    the token is padding). `token_ids` [R]: the token that fills the row; T if the row is
    empty. `group_sizes` [E]: rows of each expert, empty ones that pad its group included.
    `num_dropped` []: assignments of real tokens that got no row.
    """

    row_ids: Int32[Array, "T K"]
    token_ids: Int32[Array, " R"]
    group_sizes: Int32[Array, " E"]
    num_dropped: Int32[Array, ""]


def dropless_plan(
    expert_ids: Int[Array, "T K"],
    token_mask: Bool[Array, " T"],
    *,
    num_experts: int,
    block_rows: int,
) -> Plan:
    """A row for every assignment of a real token: sorted by expert, token order within.

    Args:
      expert_ids: [T, K] int32 in [0, E], distinct in a row but for E, which is no assignment.
      token_mask: [T] bool; a token that is False gets no row.
      num_experts: E; static.
      block_rows: every group is padded to a multiple of it; static; at least 1.

    Returns:
      A plan with `num_rows` = the most that any routing needs; `num_dropped` is 0.

    Raises:
      ValueError: `block_rows` below 1 (trace time).
    """
    chex.assert_rank([expert_ids, token_mask], [2, 1])
    if block_rows < 1:
        raise ValueError(f"block_rows={block_rows}: must be at least 1")
    num_tokens, top_k = expert_ids.shape
    num_assignments = most_rows(num_tokens, top_k, num_experts=num_experts)
    # Each expert in use wastes at most block_rows - 1 rows.
    worst = num_assignments + min(num_experts, num_assignments) * (block_rows - 1)
    num_rows = worst // block_rows * block_rows
    owners = jnp.where(token_mask[:, None], expert_ids, num_experts).reshape(-1)
    ordered = _by_owner(owners, num_experts)
    group_sizes = (ordered.counts + block_rows - 1) // block_rows * block_rows
    has_row = ordered.owner < num_experts
    if block_rows == 1:  # The rows are the assignments in their order.
        rows = jnp.arange(ordered.owner.size, dtype=jnp.int32)
    else:
        starts = tiles.group_ends(group_sizes) - group_sizes
        rows = starts[ordered.owner] + ordered.rank
    row_ids = _undone(jnp.where(has_row, rows, num_rows), ordered).reshape(num_tokens, top_k)
    if block_rows == 1:
        token_ids = jnp.where(has_row, ordered.assignment // top_k, num_tokens)[:num_rows]
    else:
        token_ids = _token_ids(row_ids, num_rows)
    return Plan(row_ids, token_ids, group_sizes, jnp.int32(0))


def most_rows(num_tokens: int, top_k: int, *, num_experts: int) -> int:
    """The most assignments that there can be: of more choices than experts some are none."""
    return num_tokens * min(top_k, num_experts)


def capacity_plan(
    expert_ids: Int[Array, "T K"],
    token_mask: Bool[Array, " T"],
    *,
    num_experts: int,
    capacity: int,
) -> Plan:
    """A fixed number of rows an expert; what does not fit is dropped and counted.

    Rows are given to all first choices before any second choice, and so on, in token order.
    Expert e owns the rows [e * capacity, (e + 1) * capacity).

    Args:
      expert_ids: [T, K] int32 in [0, E], best first, distinct in a row but for E, which is no
        assignment.
      token_mask: [T] bool; a token that is False gets no row and counts as dropped nowhere.
      num_experts: E; static.
      capacity: C, rows of each expert; static; at least 1.

    Returns:
      A plan with E * C rows; every group size is C.

    Raises:
      ValueError: `capacity` below 1 (trace time).
    """
    chex.assert_rank([expert_ids, token_mask], [2, 1])
    if capacity < 1:
        raise ValueError(f"capacity={capacity}: must be at least 1")
    num_tokens, top_k = expert_ids.shape
    num_rows = num_experts * capacity
    owners = jnp.where(token_mask[:, None], expert_ids, num_experts).T.reshape(-1)
    ordered = _by_owner(owners, num_experts)
    rank = _undone(ordered.rank, ordered)
    kept = (owners < num_experts) & (rank < capacity)
    row_ids = jnp.where(kept, owners * capacity + rank, num_rows).reshape(top_k, num_tokens).T
    dropped = (owners < num_experts) & (rank >= capacity)
    return Plan(
        row_ids,
        _token_ids(row_ids, num_rows),
        jnp.full(num_experts, capacity, jnp.int32),
        jnp.sum(dropped, dtype=jnp.int32),
    )


@jax.custom_vjp
def dispatch(x: Float[Array, "T D"], plan: Plan) -> Float[Array, "R D"]:
    """The rows of the experts: a copy of the token that fills each, zero where none does.

    Args:
      x: [T, D], any float dtype.
      plan: from `dropless_plan` or `capacity_plan` on the same T tokens.

    Returns:
      [R, D] in the dtype of `x`.
    """
    chex.assert_rank(x, 2)
    return take_rows(x, plan.token_ids)


def _dispatch_forward(x: Array, plan: Plan) -> tuple[Array, Plan]:
    return dispatch(x, plan), plan


def _dispatch_backward(plan: Plan, d_rows: Array) -> tuple[Array, None]:
    """The gradient of a token is the sum over the rows that it fills."""
    return summed_rows(d_rows, row_ids=plan.row_ids), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(
    rows: Float[Array, "R D"], weights: Float[Array, "T K"], plan: Plan
) -> Float[Array, "T D"]:
    """The weighted sum of each token's rows, added up in float32.

    DeepSeek-V3, arXiv:2412.19437, eq. 12 (its routed part): y_t = sum_k w_tk rows[row_ids_tk].

    Args:
      rows: [R, D], any float dtype.
      weights: [T, K] float32.
      plan: the one that `dispatch` followed.

    Returns:
      [T, D] in the dtype of `rows`; an assignment without a row adds nothing, so that a
      padding token is zero.
    """
    chex.assert_rank([rows, weights], [2, 2])
    chex.assert_type(weights, jnp.float32)
    chex.assert_equal_shape([weights, plan.row_ids])
    return _weighted_sum(rows, weights, plan.row_ids)


def _combine_forward(
    rows: Array, weights: Array, plan: Plan
) -> tuple[Array, tuple[Array, Array, Plan]]:
    return combine(rows, weights, plan), (rows, weights, plan)


def _combine_backward(saved: tuple[Array, Array, Plan], d_x: Array) -> tuple[Array, Array, None]:
    """d_rows[r] = w_r d_x[token of r];  d_w[t, k] = rows[row_ids_tk] . d_x[t], in float32."""
    rows, weights, plan = saved
    d_rows = take_rows(d_x, plan.token_ids).astype(jnp.float32) * row_weights(weights, plan)
    columns = [
        jnp.sum(take_rows(rows, ids).astype(jnp.float32) * d_x.astype(jnp.float32), axis=-1)
        for ids in plan.row_ids.T
    ]
    return d_rows.astype(rows.dtype), jnp.stack(columns, axis=-1), None


combine.defvjp(_combine_forward, _combine_backward)


class _Ordered(NamedTuple):
    """Assignments by owner, those of one owner in their own order.

    `assignment` [A], its `owner` [A] in [0, E], and how many of the same owner stand before it,
    `rank` [A]; `counts` [E]: assignments of each owner below E.
    """

    assignment: Int32[Array, " A"]
    owner: Int32[Array, " A"]
    rank: Int32[Array, " A"]
    counts: Int32[Array, " E"]


def _by_owner(owners: Int[Array, " A"], num_experts: int) -> _Ordered:
    """Sorts assignments; `owners` [A] are in [0, E].

    A sort of single numbers is one radix sort on a GPU, and four times as fast as one of pairs on
    a CPU.
    """
    size = owners.size
    if (num_experts + 1) * size <= _KEYS_END:
        keys = owners.astype(jnp.uint32) * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)
        keys = jax.lax.sort(keys, is_stable=False)
        owner, assignment = (
            part.astype(jnp.int32) for part in jnp.divmod(keys, jnp.uint32(max(size, 1)))
        )
    else:
        pairs = (owners.astype(jnp.int32), jnp.arange(size, dtype=jnp.int32))
        owner, assignment = jax.lax.sort(pairs, num_keys=1, is_stable=True)
    counts = counting.occurrences(owners, num_ids=num_experts + 1)
    rank = jnp.arange(size, dtype=jnp.int32) - (tiles.group_ends(counts) - counts)[owner]
    return _Ordered(assignment, owner, rank, counts[:-1])


def _undone(values: Int32[Array, " A"], ordered: _Ordered) -> Int32[Array, " A"]:
    """Values of ordered assignments, back in the place of each."""
    return jnp.zeros_like(values).at[ordered.assignment].set(values, unique_indices=True)


def _token_ids(row_ids: Int32[Array, "T K"], num_rows: int) -> Int32[Array, " R"]:
    """The token that fills each row; T for an empty row."""
    num_tokens, top_k = row_ids.shape
    tokens = jnp.repeat(jnp.arange(num_tokens, dtype=jnp.int32), top_k)
    empty = jnp.full(num_rows, num_tokens, jnp.int32)
    return empty.at[row_ids.reshape(-1)].set(tokens, mode="drop")


def row_weights(weights: Float[Array, "T K"], plan: Plan) -> Float[Array, "R 1"]:
    """The weight of the assignment that each row holds; 0 for an empty row."""
    token_weights = take_rows(weights, plan.token_ids)
    owned = jnp.take(plan.row_ids, plan.token_ids, axis=0, mode="fill", fill_value=-1)
    mine = owned == jnp.arange(plan.token_ids.size, dtype=jnp.int32)[:, None]
    return jnp.sum(jnp.where(mine, token_weights, 0.0), axis=-1, keepdims=True)


def take_rows(x: Float[Array, "N D"], ids: Int32[Array, " M"]) -> Float[Array, "M D"]:
    """x[ids], zero where the id is N (none).

    One kernel on a GPU, where the mode "fill" works out what to fill in a kernel of its own.
    """
    is_there = (ids < x.shape[0])[:, None]
    return jnp.where(is_there, jnp.take(x, ids, axis=0, mode="clip"), jnp.zeros((), x.dtype))


def summed_rows(*rows: Float[Array, "R D"], row_ids: Int32[Array, "T K"]) -> Float[Array, "T D"]:
    """sum_k of all `rows` at row_ids_tk, in float32, returned in their dtype."""
    total = jnp.zeros((row_ids.shape[0], rows[0].shape[1]), jnp.float32)
    for ids in row_ids.T:
        for each in rows:
            total = total + take_rows(each, ids).astype(jnp.float32)
    return total.astype(rows[0].dtype)


def _weighted_sum(
    rows: Float[Array, "R D"], weights: Float[Array, "T K"], row_ids: Int32[Array, "T K"]
) -> Float[Array, "T D"]:
    """sum_k w_tk rows[row_ids_tk] in float32, returned in the dtype of `rows`."""
    total = jnp.zeros((row_ids.shape[0], rows.shape[1]), jnp.float32)
    for ids, weight in zip(row_ids.T, weights.T, strict=True):
        total = total + weight[:, None] * take_rows(rows, ids).astype(jnp.float32)
    return total.astype(rows.dtype)
