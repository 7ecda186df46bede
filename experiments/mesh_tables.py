"""What a mesh holds and sends, for `experiments.describe`: no device of it has to be there."""

import math
from typing import Any

import jax
import rich.table
from jax.sharding import AbstractMesh

from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel import exchange, rules, traffic
from deepseek_jax.training import optimizer, state
from experiments import numbers

WIDTH = 130


def tables(run_spec: RunSpec) -> list[rich.table.Table]:
    """Bytes of a device, and of each collective of a training step."""
    return [_memory_table(run_spec), _traffic_table(run_spec)]


def sentences(run_spec: RunSpec) -> list[str]:
    """What the tables count, and how far a token travels."""
    model, mesh = run_spec.model, run_spec.mesh
    lines = [
        "Bytes of a call: what a device holds as its result. Leaves a device: by a ring, or "
        "directly; of a bounded exchange, empty rows included. Activations are not counted.",
    ]
    if not model.is_dense:
        visits = exchange.expected_visits(model, num_devices=mesh.expert)
        devices_of_group = max(1, mesh.expert // model.num_groups)
        limit = min(mesh.expert, model.top_k, model.top_groups * devices_of_group)
        lines.append(
            f"A token has experts on {visits:.2f} of {mesh.expert} devices if no expert is liked "
            f"better than others, on {limit} at most; its row travels once to each."
        )
    return lines


def _memory_table(run_spec: RunSpec) -> rich.table.Table:
    """Bytes on one device, and on all together if each array were there once."""
    model, mesh = run_spec.model, run_spec.mesh
    abstract_mesh = AbstractMesh(tuple(mesh.sizes.values()), rules.AXES)
    transform = optimizer.make_optimizer(run_spec.optimizer, num_steps=run_spec.train.num_steps)
    abstract = state.abstract(
        Decoder(model),
        transform,
        sequence_length=model.block_size,
        mesh=abstract_mesh,
    )
    table = numbers.table(f"Mesh of {mesh.num_devices} devices, {mesh}", "", "a device", "once")
    parts = {
        "parameters": abstract.params,
        "gradients": abstract.params,
        "optimizer": abstract.opt_state,
    }
    totals = [0, 0]
    for name, tree in parts.items():
        held, whole = _held_bytes(tree), _whole_bytes(tree)
        totals = [totals[0] + held, totals[1] + whole]
        table.add_row(f"{name}, float32", numbers.human_bytes(held), numbers.human_bytes(whole))
    table.add_section()
    table.add_row("all", *map(numbers.human_bytes, totals), style="bold")
    if not model.is_dense and mesh.expert > 1:
        rows = run_spec.train.microbatch_size // mesh.num_row_shards
        tokens = rows * run_spec.data.sequence_length
        sent = traffic.exchange_bytes(model, mesh, num_tokens=tokens)
        table.add_row("rows sent in a layer, and again received", numbers.human_bytes(sent), "")
    return table


def _traffic_table(run_spec: RunSpec) -> rich.table.Table:
    """Every collective of a training step."""
    spec = run_spec.train
    step = traffic.training_step(
        run_spec.model,
        run_spec.mesh,
        num_rows=spec.microbatch_size,
        length=run_spec.data.sequence_length,
        num_microbatches=spec.num_microbatches,
        optimizer=run_spec.optimizer.name,
    )
    table = numbers.table(
        "Collectives of a training step, on one device",
        "what",
        "kind",
        "over",
        "devices",
        "bytes of a call",
        "calls",
        "leaves a device",
    )
    for transfer in step:
        table.add_row(
            transfer.what,
            transfer.kind,
            " and ".join(transfer.axes),
            str(transfer.group_size),
            numbers.human_bytes(transfer.num_bytes),
            f"{transfer.num_calls:,}",
            numbers.human_bytes(transfer.sent_bytes),
        )
    table.add_section()
    total = sum(transfer.sent_bytes for transfer in step)
    table.add_row("all", "", "", "", "", "", numbers.human_bytes(total), style="bold")
    tokens = spec.batch_size * run_spec.data.sequence_length / run_spec.mesh.num_row_shards
    per_token = numbers.human_bytes(total / tokens)
    table.add_row("for each token of the device", "", "", "", "", "", per_token)
    return table


def _held_bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _whole_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
