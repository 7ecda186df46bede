"""A sparse layer on many devices: rows travel to the experts and back. Floor 2.

Stands in `shard_map`, whose replication check is on; gradients are taken outside.
Letters as in `exchange`; F expert width. In the body of the map all sizes are those of one
device: T tokens, X = E / P experts, F / model columns, D / data rows of a matrix as stored.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from deepseek_jax.ops import dispatch, varying
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.moe import Moe
from deepseek_jax.ops.routing import Routing
from deepseek_jax.parallel import exchange, rules
from deepseek_jax.parallel.layout import Layout


class ExpertParallelOutput(NamedTuple):
    """Answers [T, D], and counts over all devices.

    `num_dropped` []: assignments that were not computed, on the way or at the expert;
    `num_visits` []: devices that tokens have experts on, summed over tokens; `num_overflowed`
    []: visits that found no row.
    """

    x: Float[Array, "T D"]
    num_dropped: Int32[Array, ""]
    num_visits: Int32[Array, ""]
    num_overflowed: Int32[Array, ""]


def moe(
    tokens: Float[Array, "T D"],
    token_mask: Bool[Array, " T"],
    routing: Routing,
    weights: ExpertWeights,
    *,
    layout: Layout,
    local_moe: Moe,
    rows_per_destination: int,
) -> ExpertParallelOutput:
    """The answer of all experts to all tokens, each expert computed where it lives.

    On every device: a plan of which rows go where; all-to-all of rows, expert ids and weights;
    the local experts on what came, weighted and summed to one row each; all-to-all back; the
    sum over the devices that a token visited. With matrices cut over `data`, they are gathered
    first, and their gradients scattered; with experts cut over `model`, the answers are summed
    over it.

    Collectives, forward (the backward pass has the transposes), of one device:

        all-gather over data     the device's X matrices, where data > 1
        all-to-all over expert   P C D there and back, P C K int32 and float32 there
        all-reduce over model    T D answers, where model > 1

    Where C is T, nothing can be dropped on the way (`mesh.exchange="exact"`): training measures
    held-out text so, whatever its own exchange is.

    Args:
      tokens: [T, D] of all devices, cut over data and expert; any float dtype.
      token_mask: [T] bool, cut alike.
      routing: [T, K] ids and weights, cut alike.
      weights: of all E experts, cut by `rules`.
      layout: the mesh.
      local_moe: what a device does with the rows that reach it.
      rows_per_destination: C of one device; static.

    Returns:
      [T, D] cut as `tokens` are; the counts are whole on every device.

    Raises:
      ValueError: E or T cannot be cut evenly (trace time).
    """
    # Specs stand where arrays do; a spec for a whole tuple goes for each array in it.
    rows: Any = PartitionSpec(rules.ROWS)
    whole: Any = PartitionSpec()
    enter: Any = rules.partition_spec(("experts", "expert_embed", "expert_hidden"))
    leave: Any = rules.partition_spec(("experts", "expert_hidden", "expert_embed"))
    mapped = jax.shard_map(
        functools.partial(
            _on_device,
            local_moe=local_moe,
            num_devices=layout.spec.expert,
            capacity=rows_per_destination,
        ),
        mesh=layout.mesh,
        in_specs=(rows, rows, rows, ExpertWeights(enter, enter, leave)),
        out_specs=ExpertParallelOutput(rows, whole, whole, whole),
    )
    return mapped(tokens, token_mask, routing, weights)


def _on_device(
    tokens: Float[Array, "T D"],
    token_mask: Bool[Array, " T"],
    routing: Routing,
    weights: ExpertWeights,
    *,
    local_moe: Moe,
    num_devices: int,
    capacity: int,
) -> ExpertParallelOutput:
    """What one device does; all shapes are local."""
    with jax.named_scope("gather_weights"):
        whole = ExpertWeights(
            gate=_gathered(weights.gate, axis=1),
            up=_gathered(weights.up, axis=1),
            down=_gathered(weights.down, axis=2),
        )
    # Each part of the experts' width has its own part of the answer, and of the gradient.
    tokens = varying.over(tokens, rules.MODEL)
    routing = routing._replace(weights=varying.over(routing.weights, rules.MODEL))
    if num_devices == 1:
        answer = local_moe(tokens, token_mask, routing, whole)
        num_visits = jnp.sum(token_mask, dtype=jnp.int32)
        counts = (answer.num_dropped, num_visits, jnp.int32(0))
        summed = answer.x
    else:
        summed, counts = _exchanged(
            tokens, token_mask, routing, whole, local_moe, num_devices, capacity
        )
    x = jax.lax.psum(summed, rules.MODEL)
    totals = [jax.lax.psum(varying.over(count, *rules.ROWS), rules.ROWS) for count in counts]
    return ExpertParallelOutput(x, *totals)


def _exchanged(
    tokens: Float[Array, "T D"],
    token_mask: Bool[Array, " T"],
    routing: Routing,
    weights: ExpertWeights,
    local_moe: Moe,
    num_devices: int,
    capacity: int,
) -> tuple[Float[Array, "T D"], tuple[Array, Array, Array]]:
    """Rows there, experts, rows back. Returns the answers and the three counts."""
    experts_per_device = weights.gate.shape[0]
    with jax.named_scope("plan"):
        sent = exchange.make(
            routing.expert_ids,
            token_mask,
            num_devices=num_devices,
            experts_per_device=experts_per_device,
            capacity=capacity,
        )
    with jax.named_scope("there"):
        received = _all_to_all(dispatch.dispatch(tokens, sent.plan))
        received_ids = _all_to_all(sent.local_ids)
        received_weights = _all_to_all(dispatch.dispatch(routing.weights, sent.plan))
    with jax.named_scope("experts"):
        has_expert = jnp.any(received_ids < experts_per_device, axis=-1)
        answer = local_moe(received, has_expert, Routing(received_ids, received_weights), weights)
    with jax.named_scope("back"):
        returned = _all_to_all(answer.x)
        ones = varying.like(jnp.ones(sent.plan.row_ids.shape, jnp.float32), returned)
        summed = dispatch.combine(returned, ones, sent.plan)
    num_dropped = answer.num_dropped + sent.num_dropped
    return summed, (num_dropped, sent.num_visits, sent.num_overflowed)


def _gathered(matrices: Array, *, axis: int) -> Array:
    """Matrices whose `axis` is cut over data, whole again."""
    if jax.lax.axis_size(rules.DATA) == 1:
        return matrices
    return jax.lax.all_gather(matrices, rules.DATA, axis=axis, tiled=True)


def _all_to_all(rows: Array) -> Array:
    """Rows in P runs of C, run p sent to device p; what comes, by the device it comes from."""
    return jax.lax.all_to_all(rows, rules.EXPERT, split_axis=0, concat_axis=0, tiled=True)
