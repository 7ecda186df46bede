"""How long a sparse layer computes and exchanges rows on three machines, by their data sheets.

Letters as in `deepseek_jax.parallel.exchange`; V is the bytes of the rows of one device to all P
destinations, itself included. What vendors state:

    H100 SXM     989 TFLOP/s bf16 dense, NVLink 4 with 900 GB/s both ways together (NVIDIA H100
                 data sheet, 2022-2023); 8 GPUs and 8 ConnectX-7 ports of 400 Gb/s a machine
                 (NVIDIA DGX BasePOD reference architecture, DGX H100)
    TPU v5p      459 TFLOP/s bf16, 4,800 Gb/s ICI a chip, 3D torus; slices of 4x4x4 and more are
                 whole tori (cloud.google.com/tpu/docs/v5p)
    TPU v5e      197 TFLOP/s bf16, 1,600 Gb/s ICI a chip, 2D torus; a pod has 256 chips, 1.6 TB/s
                 of bisection and 6.4 Tb/s to the data center network
                 (cloud.google.com/tpu/docs/v5e)

What is assumed here: half of NVLink each way; ICI shared evenly among a chip's 6 or 4 links, in
each direction; wires run at their full rate, and several kinds of wire at once; a v5e slice
closes the ring only where it is 16 long (How to Scale Your Model, jax-ml.github.io/scaling-book,
2025), a v5p slice below 4x4x4 nowhere; rows are spread evenly over destinations.

An all-to-all on a torus is held up at its narrowest cut: of the N devices that exchange, half
send half of their rows across a cut through a dimension of length A, which has 2 N / A links if
the dimension is a ring and N / A if it is a line. With w bytes/s of a link in one direction:

    seconds = (N / 2) (V / 2) / (2 N / A) / w = V A / (8 w)   ring
                                                V A / (4 w)   line

for the dimension where that is longest. The devices that exchange are taken to be the box of the
slice for which it is shortest. What runs over `data` (matrices of experts, gathered)
takes a ring over one dimension, in both directions; beyond a v5e pod it takes the data center
network, all of it (a bound: a part could stay inside).
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from deepseek_jax.core import accounting
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.parallel import exchange, rules, traffic

GPUS_OF_A_NODE = 8
NVLINK_BYTES = 900e9 / 2
INFINIBAND_BYTES = 400e9 / 8
_RING_OF_V5E = 16
_CUBE_OF_V5P = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torus:
    """TPU chips on a torus.

    Attributes:
      link_bytes: bytes/s of a link in one direction.
      slices: chips along each dimension, by number of chips (published topologies).
      pod: chips that one torus has at most.
      network_bytes: bytes/s of a chip to other pods; none is needed where `pod` is enough.
    """

    link_bytes: float
    slices: Mapping[int, tuple[int, ...]]
    pod: int
    network_bytes: float

    def is_ring(self, length: int, num_chips: int) -> bool:
        """Whether a dimension of a slice is closed."""
        if len(self.slices[num_chips]) == 3:
            return num_chips >= _CUBE_OF_V5P
        return length == _RING_OF_V5E

    def cut(self, group_size: int, num_chips: int) -> float:
        """Seconds of an all-to-all among `group_size` chips of a slice, times w / V."""
        chips = min(num_chips, self.pod)
        lengths = self.slices[chips]

        def cut_of(box: tuple[int, ...]) -> float:
            parts = []
            for length, whole in zip(box, lengths, strict=True):
                closed = length == whole and self.is_ring(whole, chips)
                parts.append(0.0 if length == 1 else length / (8 if closed else 4))
            return max(parts)

        sides = [[d for d in range(1, whole + 1) if whole % d == 0] for whole in lengths]
        boxes = [box for box in itertools.product(*sides) if math.prod(box) == group_size]
        return min(map(cut_of, boxes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices of one kind, bf16 FLOP/s at their peak; without a torus they are GPUs, 8 a node."""

    name: str
    peak_flops: float
    torus: Torus | None


V5P_SLICES = {
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
    128: (4, 4, 8),
    256: (4, 8, 8),
    512: (8, 8, 8),
    1024: (8, 8, 16),
}
V5E_SLICES = {8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
V5P = Torus(link_bytes=4800e9 / 8 / 6, slices=V5P_SLICES, pod=8960, network_bytes=math.inf)
V5E = Torus(link_bytes=1600e9 / 8 / 4, slices=V5E_SLICES, pod=256, network_bytes=6.4e12 / 8 / 256)
MACHINES = (
    Machine(name="H100", peak_flops=989e12, torus=None),
    Machine(name="TPU v5p", peak_flops=459e12, torus=V5P),
    Machine(name="TPU v5e", peak_flops=197e12, torus=V5E),
)


class LayerBytes(NamedTuple):
    """What a device sends for one sparse layer in a training step, forward and backward.

    `exchanged`: over `expert`, to all P destinations with itself (V); `gathered`: over `data`.
    """

    exchanged: float
    gathered: float


def layer_bytes(model: ModelSpec, mesh: MeshSpec, *, num_tokens: int) -> LayerBytes:
    """The bytes of one layer and device with `num_tokens` tokens, by `traffic.training_step`."""
    step = traffic.training_step(
        model,
        mesh,
        num_rows=mesh.num_row_shards,
        length=num_tokens,
        num_microbatches=1,
        optimizer="adamw",
    )
    over_expert = [t.num_bytes * t.num_calls for t in step if t.axes == (rules.EXPERT,)]
    over_data = [t.sent_bytes for t in step if t.axes == (rules.DATA,)]
    return LayerBytes(sum(over_expert) / model.num_layers, sum(over_data) / model.num_layers)


def layer_flops(model: ModelSpec) -> float:
    """Useful operations of one token in one sparse layer: forward, backward, recomputation."""
    count = accounting.count_parameters(model)
    active = count.experts.active + count.shared_experts.active + count.router.active
    passes = accounting.TRAINING_PASSES + (1 if model.remat == "block" else 0)
    return 2.0 * passes * active / model.num_layers


def infiniband_share(num_devices: int) -> float:
    """Share of V that goes to other machines of 8 GPUs."""
    return max(0.0, 1.0 - GPUS_OF_A_NODE / num_devices)


def node_visits(model: ModelSpec, num_devices: int) -> float:
    """Machines of 8 GPUs that a token has experts on, if none is liked better than others."""
    return exchange.expected_visits(model, num_devices=max(1, num_devices // GPUS_OF_A_NODE))


def seconds(machine: Machine, mesh: MeshSpec, sent: LayerBytes) -> dict[str, float]:
    """Seconds that each kind of wire is busy with one layer."""
    if machine.torus is None:
        away = infiniband_share(mesh.expert)
        near = (min(GPUS_OF_A_NODE, mesh.expert) - 1) / mesh.expert
        return {
            "NVLink": near * sent.exchanged / NVLINK_BYTES,
            "InfiniBand": (away * sent.exchanged + sent.gathered) / INFINIBAND_BYTES,
        }
    torus = machine.torus
    cut = torus.cut(mesh.expert, mesh.num_devices)
    wires = {"ICI bisection": cut * sent.exchanged / torus.link_bytes}
    if mesh.num_devices > torus.pod:
        wires["data center network"] = sent.gathered / torus.network_bytes
    else:
        wires["ICI bisection"] += sent.gathered / (2 * torus.link_bytes)
    return wires
