"""Typed, frozen settings of the device mesh, and which meshes a run fits. Floor 0.

A mesh has three axes. Rows of a batch are cut over `data` and `expert` together; parameters and
optimizer state over `data` too; the experts stand on `expert`, a run of consecutive ids a device;
heads, vocabulary and the width of the experts are cut over `model`.
"""

import dataclasses
import itertools
import math
from typing import Literal

from deepseek_jax.core.config import require
from deepseek_jax.core.model_spec import ModelSpec

_NUM_NAMED = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """The devices of a run, and how tokens travel to experts on other devices.

    With `expert` 1 nothing travels, and `exchange` and `rows_factor` have no effect.

    Attributes:
      data: devices along the axis that cuts rows and parameters.
      expert: devices that the experts are spread over; cuts rows too.
      model: devices that heads, vocabulary and expert width are cut over.
      exchange: "exact" gives every destination the worst case of rows, so that nothing is
        dropped; "bounded" gives it `rows_factor` times the expected number, and rows beyond
        that are dropped and counted.
      rows_factor: rows of a destination over their expected number; 0.0 when exact.
    """

    data: int
    expert: int
    model: int
    exchange: Literal["exact", "bounded"]
    rows_factor: float

    def __post_init__(self) -> None:
        """Checks ranges and the pairing of mode and factor."""
        for name, size in self.sizes.items():
            require(size >= 1, f"mesh.{name}", size, "at least 1")
        if self.exchange == "bounded":
            require(self.rows_factor >= 1.0, "mesh.rows_factor", self.rows_factor, "at least 1")
        else:
            require(
                self.rows_factor == 0.0,
                "mesh.rows_factor",
                self.rows_factor,
                '0.0 when mesh.exchange="exact", which has no bound',
            )

    def __str__(self) -> str:
        """The sizes of the axes: data x expert x model."""
        return f"{self.data}x{self.expert}x{self.model}"

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each axis, by its name."""
        return {"data": self.data, "expert": self.expert, "model": self.model}

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return self.data * self.expert * self.model

    @property
    def num_row_shards(self) -> int:
        """Parts that the rows of a batch are cut into."""
        return self.data * self.expert

    def exact(self) -> "MeshSpec":
        """The same devices with nothing dropped on the way: for evaluation and rollouts."""
        return dataclasses.replace(self, exchange="exact", rows_factor=0.0)


ONE_DEVICE = MeshSpec(data=1, expert=1, model=1, exchange="exact", rows_factor=0.0)


def check_fit(mesh: MeshSpec, model: ModelSpec, *, num_rows: int) -> None:
    """Raises unless the model and its batches can be cut as the mesh asks.

    Args:
      mesh: the devices.
      model: the decoder.
      num_rows: rows that are computed at once, `train.batch_size / train.num_microbatches`.

    Raises:
      ValueError: names every setting that does not fit, what is allowed, and the nearest meshes
        that do fit.
    """
    wrong = misfits(mesh, model, num_rows=num_rows)
    if wrong:
        fitting = describe_fitting(mesh, model, num_rows=num_rows, num_devices=mesh.num_devices)
        raise ValueError(f"{'; '.join(wrong)}. {fitting}")


def check_devices(
    mesh: MeshSpec, model: ModelSpec, *, num_rows: int, num_devices: int, use_all: bool
) -> None:
    """Raises unless there are enough devices.

    Args:
      mesh: the devices asked for.
      model: the decoder.
      num_rows: as in `check_fit`.
      num_devices: devices that there are.
      use_all: whether leaving devices idle is an error too, as it is with several processes.

    Raises:
      ValueError: names the numbers, and the nearest meshes that fit the devices there are.
    """
    if mesh.num_devices == num_devices or (mesh.num_devices < num_devices and not use_all):
        return
    fitting = describe_fitting(mesh, model, num_rows=num_rows, num_devices=num_devices)
    raise ValueError(
        f"mesh.data={mesh.data}, mesh.expert={mesh.expert}, mesh.model={mesh.model} needs "
        f"{mesh.num_devices} devices, there are {num_devices}. {fitting}"
    )


def misfits(mesh: MeshSpec, model: ModelSpec, *, num_rows: int) -> list[str]:
    """Why a model and its batches cannot be cut as a mesh asks: a sentence a setting, or none."""
    wrong = []

    def divides(axis: str, part: int, name: str, whole: int) -> None:
        if whole % part:
            wrong.append(f"{axis}={part}: must be a divisor of {name}={whole}")

    if model.is_dense and mesh.expert > 1:
        wrong.append(f"mesh.expert={mesh.expert}: must be 1 in a dense model (model.num_experts=1)")
    elif not model.is_dense:
        divides("mesh.expert", mesh.expert, "model.num_experts", model.num_experts)
        if model.num_groups % mesh.expert and mesh.expert % model.num_groups:
            wrong.append(
                f"mesh.expert={mesh.expert}: must divide model.num_groups={model.num_groups} or be "
                "a multiple of it, so that no device has parts of two groups"
            )
    shards = "mesh.data * mesh.expert"
    rows = "the rows computed at once (train.batch_size / train.num_microbatches)"
    divides(shards, mesh.num_row_shards, rows, num_rows)
    divides(shards, mesh.num_row_shards, "model.model_dim", model.model_dim)
    divides("mesh.model", mesh.model, "model.num_kv_heads", model.num_kv_heads)
    divides("mesh.model", mesh.model, "model.expert_hidden_dim", model.expert_hidden_dim)
    divides("mesh.model", mesh.model, "model.vocab_size", model.vocab_size)
    return wrong


def fitting_meshes(
    mesh: MeshSpec, model: ModelSpec, *, num_rows: int, num_devices: int
) -> list[MeshSpec]:
    """Meshes that fit, nearest to `mesh` first; those of `num_devices` before all others.

    Nearest is by the factors that the three axes differ by.
    """
    widths = (model.num_kv_heads, model.expert_hidden_dim, model.vocab_size)
    found = [
        dataclasses.replace(mesh, data=data, expert=expert, model=width)
        for expert, data, width in itertools.product(
            _divisors(1 if model.is_dense else model.num_experts),
            _divisors(num_rows),
            _divisors(math.gcd(*widths)),
        )
    ]
    fitting = [other for other in found if not misfits(other, model, num_rows=num_rows)]

    def distance(other: MeshSpec) -> tuple[float, float, tuple[int, ...]]:
        ratios = zip(other.sizes.values(), mesh.sizes.values(), strict=True)
        return (
            abs(math.log(other.num_devices / num_devices)),
            sum(abs(math.log(new / old)) for new, old in ratios),
            tuple(other.sizes.values()),
        )

    return sorted(fitting, key=distance)


def describe_fitting(mesh: MeshSpec, model: ModelSpec, *, num_rows: int, num_devices: int) -> str:
    """The nearest meshes that fit, in words."""
    fitting = fitting_meshes(mesh, model, num_rows=num_rows, num_devices=num_devices)
    same = [other for other in fitting if other.num_devices == num_devices][:_NUM_NAMED]
    if same:
        return f"Nearest that fit {num_devices} devices (data x expert x model): " + ", ".join(
            map(str, same)
        )
    others = ", ".join(f"{other} ({other.num_devices} devices)" for other in fitting[:_NUM_NAMED])
    return f"None fits {num_devices} devices; nearest (data x expert x model): {others}"


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
