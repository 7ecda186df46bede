"""What the devices of a mesh send each other, by arithmetic alone. Floor 2.

Letters as in `exchange` and `core.accounting`; sizes are of one device. The exchange and the
gathering of experts are what `expert_parallel` does, to the byte. Where the compiler puts in the
collectives itself (matrices that every token visits, model axis), the leanest usual program is
counted: matrices gathered forward and backward, their gradients scattered. With several
microbatches the compiler for the CPU hoists one of the two gathers of the head out of their loop,
and so sends less than is counted here.
"""

import math
from typing import Literal, NamedTuple

from deepseek_jax.core import accounting
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.parallel import exchange, rules

Kind = Literal["all-to-all", "all-gather", "reduce-scatter", "all-reduce"]
_STORED_BYTES = 4
_ID_BYTES = 4
_WEIGHT_BYTES = 4


class Transfer(NamedTuple):
    """One collective of a training step.

    Attributes:
      what: is sent.
      kind: of collective.
      axes: mesh axes that it runs over.
      group_size: devices along them.
      num_bytes: that a device holds as the result of one call.
      num_calls: in one training step.
    """

    what: str
    kind: Kind
    axes: tuple[str, ...]
    group_size: int
    num_bytes: int
    num_calls: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that leave a device in one training step, by the usual ring or direct exchange."""
        others = self.group_size - 1
        per_result = {
            "all-to-all": others / self.group_size,
            "all-gather": others / self.group_size,
            "reduce-scatter": float(others),
            "all-reduce": 2 * others / self.group_size,
        }[self.kind]
        return per_result * self.num_bytes * self.num_calls


def training_step(
    model: ModelSpec,
    mesh: MeshSpec,
    *,
    num_rows: int,
    length: int,
    num_microbatches: int,
    optimizer: Literal["adamw", "muon"],
) -> list[Transfer]:
    """The collectives of one training step on one device, those that move nothing left out.

    Args:
      model: the decoder.
      mesh: its devices.
      num_rows: rows of a microbatch, on all devices.
      length: L, tokens of a row.
      num_microbatches: of the step.
      optimizer: Muon needs whole matrices once a step; AdamW sends nothing.
    """
    tokens = num_rows * length // mesh.num_row_shards
    found = _dense_matrices(model, mesh) + _model_axis(model, mesh, tokens)
    found += _ends(model, mesh, tokens)
    if not model.is_dense:
        found += _experts(model, mesh, tokens)
    step = [
        transfer._replace(num_calls=transfer.num_calls * num_microbatches) for transfer in found
    ]
    if optimizer == "muon":
        step += _whole_matrices(model, mesh)
    return [transfer for transfer in step if transfer.group_size > 1 and transfer.num_bytes]


def exchange_bytes(model: ModelSpec, mesh: MeshSpec, *, num_tokens: int) -> int:
    """Bytes of the rows that a device sends to all destinations in one layer, once: P C D."""
    rows = mesh.expert * exchange.rows_per_destination(mesh, model, num_tokens=num_tokens)
    return rows * model.model_dim * _element_bytes(model)


def _experts(model: ModelSpec, mesh: MeshSpec, tokens: int) -> list[Transfer]:
    layers, again = model.num_layers, _recomputed(model)
    rows = mesh.expert * exchange.rows_per_destination(mesh, model, num_tokens=tokens)
    row_bytes = exchange_bytes(model, mesh, num_tokens=tokens)
    matrices = accounting.count_parameters(model).experts.total // layers
    held = matrices // (mesh.expert * mesh.model) * _element_bytes(model)

    def exchanged(what: str, num_bytes: int, calls: int) -> Transfer:
        axes = (rules.EXPERT,)
        return Transfer(what, "all-to-all", axes, mesh.expert, num_bytes, layers * calls)

    data = (rules.DATA,)
    return [
        exchanged("rows to the experts", row_bytes, 2 + again),
        exchanged("rows back", row_bytes, 2),
        exchanged("expert ids", rows * model.top_k * _ID_BYTES, 1 + again),
        exchanged("routing weights", rows * model.top_k * _WEIGHT_BYTES, 2 + again),
        Transfer("experts", "all-gather", data, mesh.data, held, layers * (1 + again)),
        Transfer(
            "gradients of experts",
            "reduce-scatter",
            data,
            mesh.data,
            held // mesh.data,
            layers,
        ),
    ]


def _dense_matrices(model: ModelSpec, mesh: MeshSpec) -> list[Transfer]:
    """What every token of a layer visits: cut over data and expert, gathered where used."""
    count = accounting.count_parameters(model)
    cut = count.attention.total + count.shared_experts.total
    cut += count.experts.total if model.is_dense else 0
    num_bytes = cut // model.num_layers // mesh.model * _element_bytes(model)
    num_bytes += count.router.total // model.num_layers * _STORED_BYTES
    return _gathered("matrices of layers", mesh, num_bytes, 2 * model.num_layers, model.num_layers)


def _ends(model: ModelSpec, mesh: MeshSpec, tokens: int) -> list[Transfer]:
    """The head, gathered; and the table, whose columns stay: all tokens come to each device.

    The compiler gathers the head as it is stored, float32, and casts it afterwards.
    """
    head = model.vocab_size * model.model_dim // mesh.model * _STORED_BYTES
    embedded = tokens * model.model_dim * _element_bytes(model)
    size = mesh.num_row_shards
    return [
        *_gathered("output head", mesh, head, 1, 1),
        Transfer("token ids", "all-gather", rules.ROWS, size, size * tokens * _ID_BYTES, 1),
        Transfer("embeddings", "all-to-all", rules.ROWS, size, embedded, 2),
    ]


def _gathered(
    what: str, mesh: MeshSpec, num_bytes: int, calls: int, scatters: int
) -> list[Transfer]:
    size = mesh.num_row_shards
    return [
        Transfer(what, "all-gather", rules.ROWS, size, num_bytes, calls),
        Transfer(
            f"gradients of {what}", "reduce-scatter", rules.ROWS, size, num_bytes // size, scatters
        ),
    ]


def _model_axis(model: ModelSpec, mesh: MeshSpec, tokens: int) -> list[Transfer]:
    """Sums over the parts of heads and of the experts' width: two a layer and direction."""
    num_bytes = tokens * model.model_dim * _element_bytes(model)
    calls = model.num_layers * (4 + 2 * _recomputed(model))
    axes = (rules.MODEL,)
    return [Transfer("parts of activations", "all-reduce", axes, mesh.model, num_bytes, calls)]


def _whole_matrices(model: ModelSpec, mesh: MeshSpec) -> list[Transfer]:
    """What `whole_matrices.apply` sends for Muon, float32: as it does, dimension by dimension."""
    layers, dim, head = model.num_layers, model.model_dim, model.head_dim
    hidden = model.expert_hidden_dim
    shared = hidden if model.is_dense else model.num_shared_experts * hidden
    heads, kv_heads = ("heads", model.num_heads), ("kv_heads", model.num_kv_heads)
    tables: list[tuple[str, int, int, list[tuple[str, int]]]] = [
        ("query", 1, 1, [("layers", layers), ("embed", dim), heads, ("head_dim", head)]),
        ("key, value", 2, 1, [("layers", layers), ("embed", dim), kv_heads, ("head_dim", head)]),
        ("out", 1, 1, [("layers", layers), heads, ("head_dim", head), ("embed", dim)]),
        ("feed-forward", 3, 1, [("layers", layers), ("embed", dim), ("expert_hidden", shared)]),
    ]
    if not model.is_dense:
        named = [("layers", layers), ("experts", model.num_experts)]
        named += [("expert_embed", dim), ("expert_hidden", hidden)]
        tables.append(("experts", 3, 2, named))
    found = []
    for name, count, stacked, dims in tables:
        cuts = [math.prod(mesh.sizes[axis] for axis in rules.RULES[axes]) for axes, _ in dims]
        part = [size // cut for (_, size), cut in zip(dims, cuts, strict=True)]
        for index in range(stacked, len(dims)):
            cut, axes = cuts[index], rules.RULES[dims[index][0]]
            shared_out = part[stacked - 1] % cut == 0
            part[index] *= cut
            part[stacked - 1] //= cut if shared_out else 1
            kind: Kind = "all-to-all" if shared_out else "all-gather"
            calls = count * (2 if shared_out else 1)
            what = f"Muon: {name}"
            found.append(Transfer(what, kind, axes, cut, 4 * math.prod(part), calls))
    return found


def _recomputed(model: ModelSpec) -> int:
    return 1 if model.remat == "block" else 0


def _element_bytes(model: ModelSpec) -> int:
    return {"float32": 4, "bfloat16": 2}[model.compute_dtype]
