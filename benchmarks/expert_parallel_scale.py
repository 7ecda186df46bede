"""What expert parallelism sends from 8 to 1,024 devices, and where that holds it up: on paper.

Run: python -m benchmarks.expert_parallel_scale --workdir=runs/demo

Bytes by `deepseek_jax.parallel.traffic`, the same arithmetic as `experiments.describe`; seconds
by the data sheets in `benchmarks/interconnect.py`; overflow by counting what the router's own rule
chooses: by random scores (seed below), and by a trained router's for held-out text, if `--workdir`
names a run. Allocates nothing of the models' size and needs no device but the CPU. Writes all
figures to `--out`. The models are `r1_12b` and the same with DeepSeek-V3's experts
(arXiv:2412.19437: 256 of width 2048, top-8 in 4 of 8 groups, one shared, D = 7168); rows travel in
bfloat16.
"""

import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Float32
from rich import console as rich_console

from benchmarks import exchange_load, interconnect
from benchmarks import expert_parallel_tables as tables
from deepseek_jax.core.mesh_spec import MeshSpec
from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.parallel import exchange, rules, traffic
from experiments import settings

DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)
GROUPS_CHOSEN = (1, 2, 4, 8)
EXPERTS_CHOSEN = (1, 2, 4, 8)
ZIPF_EXPONENTS = (0.0, 0.25, 0.5, 1.0)
SKEW_DEVICES = (8, 32, 128)
SKEW_SOURCES = 8
FACTORS = (1.0, 1.1, 1.25, 1.5, 2.0)
TRAINED_DEVICES = (2, 4, 8, 16, 32)
TRAINED_TOKENS = (256, 1024, 4096)
SEED = 0

_BYTES_OF_BF16 = 2
_R1 = "experiments/configs/r1_12b.py"
_V3 = {
    "model_dim": 7168,
    "num_experts": 256,
    "top_k": 8,
    "num_shared_experts": 1,
    "expert_hidden_dim": 2048,
}


def models() -> dict[str, ModelSpec]:
    """The two models by name."""
    r1 = settings.freeze(settings.load_config(_R1)).model
    return {"r1_12b": r1, "V3-like": dataclasses.replace(r1, **_V3)}


def mesh_for(model: ModelSpec, num_devices: int, *, rows_factor: float) -> MeshSpec:
    """As many devices along `expert` as there are experts for, the rest along `data`."""
    expert = min(num_devices, model.num_experts)
    return MeshSpec(
        data=num_devices // expert,
        expert=expert,
        model=1,
        exchange="bounded",
        rows_factor=rows_factor,
    )


def forward_bytes(model: ModelSpec, num_devices: int, *, num_tokens: int) -> dict[str, float]:
    """Bytes that leave a device for each of its tokens in one layer, forward, there and back.

    `once`: one row to each device with an expert of the token, as this code does, without empty
    rows; `sent`: what it sends with `rows_factor` 1.25, empty rows, ids and weights included;
    `exact`: the same with room for the worst case; `by_expert`: a row for each of the K experts;
    `all_gather`: every token to every device, answers scattered back.
    """
    mesh = mesh_for(model, num_devices, rows_factor=1.25)
    share = (mesh.expert - 1) / mesh.expert
    row = model.model_dim * _BYTES_OF_BF16
    even = mesh_for(model, num_devices, rows_factor=1.0)

    def there_and_back(mesh: MeshSpec) -> float:
        rows = traffic.exchange_bytes(model, mesh, num_tokens=num_tokens) * share / num_tokens
        # To each row go K ids and K weights of 4 bytes, which do not come back.
        return 2 * rows + rows / row * 8 * model.top_k

    gathered = traffic.Transfer(
        "tokens", "all-gather", (rules.EXPERT,), mesh.expert, mesh.expert * row, 2
    )
    rows = traffic.exchange_bytes(model, even, num_tokens=num_tokens) * share / num_tokens
    return {
        "once": 2 * rows,
        "sent": there_and_back(mesh),
        "exact": there_and_back(mesh.exact()),
        "by_expert": 2 * model.top_k * row * share,
        "all_gather": gathered.sent_bytes,
    }


def bytes_by_devices(model: ModelSpec, *, num_tokens: int) -> list[dict[str, Any]]:
    """A record for each number of devices."""
    records = []
    for num_devices in DEVICES:
        mesh = mesh_for(model, num_devices, rows_factor=1.25)
        sent = interconnect.layer_bytes(model, mesh, num_tokens=num_tokens)
        leaving = sent.exchanged * (mesh.expert - 1) / mesh.expert
        records.append(
            {
                "devices": num_devices,
                "mesh": str(mesh),
                "visits": exchange.expected_visits(model, num_devices=mesh.expert),
                "forward": forward_bytes(model, num_devices, num_tokens=num_tokens),
                "forward_and_backward": leaving / num_tokens,
            }
        )
    return records


def visits_by(model: ModelSpec, field: str, values: tuple[int, ...]) -> list[dict[str, Any]]:
    """Devices that a token has experts on, by one setting of the router and P."""
    records = []
    for value in values:
        other = dataclasses.replace(model, **{field: value})  # type: ignore[arg-type]
        by_devices = {
            num_devices: exchange.expected_visits(other, num_devices=num_devices)
            for num_devices in DEVICES
            if num_devices <= model.num_experts
        }
        records.append({field: value, "visits": by_devices})
    return records


def bytes_by_skew(model: ModelSpec, *, num_tokens: int) -> list[dict[str, Any]]:
    """Loads where some experts are liked better (Zipf's law), `SKEW_SOURCES` sources."""
    records = []
    for exponent in ZIPF_EXPONENTS:
        ids = exchange_load.draw(
            model, zipf=exponent, num_tokens=SKEW_SOURCES * num_tokens, seed=SEED
        )
        sources = exchange_load.cut_to_sources(ids, num_tokens)
        for num_devices in SKEW_DEVICES:
            load = exchange_load.measure(sources, model, num_devices=num_devices, factors=FACTORS)
            records.append({"zipf": exponent, "devices": num_devices, **load._asdict()})
    return records


def bytes_by_node(model: ModelSpec) -> list[dict[str, Any]]:
    """InfiniBand between machines of 8 GPUs: a row once a device, or once a machine."""
    records = []
    for num_devices in DEVICES:
        if not interconnect.GPUS_OF_A_NODE < num_devices <= model.num_experts:
            continue
        share = interconnect.infiniband_share(num_devices)
        visits = exchange.expected_visits(model, num_devices=num_devices)
        nodes = interconnect.node_visits(model, num_devices)
        row = model.model_dim * _BYTES_OF_BF16
        records.append(
            {
                "devices": num_devices,
                "groups_a_node": model.num_groups * interconnect.GPUS_OF_A_NODE / num_devices,
                "devices_visited": visits,
                "nodes_visited": nodes,
                "bytes_once_a_device": 2 * row * visits * share,
                "bytes_once_a_node": 2 * row * nodes * share,
                "saved": 1.0 - nodes / visits,
            }
        )
    return records


def times(model: ModelSpec, *, num_tokens: int, share_of_peak: float) -> list[dict[str, Any]]:
    """Seconds of one sparse layer, computing and sending, by machine and number of devices."""
    records = []
    for machine in interconnect.MACHINES:
        compute = interconnect.layer_flops(model) * num_tokens / machine.peak_flops / share_of_peak
        for num_devices in DEVICES:
            mesh = mesh_for(model, num_devices, rows_factor=1.25)
            sent = interconnect.layer_bytes(model, mesh, num_tokens=num_tokens)
            wires = interconnect.seconds(machine, mesh, sent)
            slowest = max(wires, key=lambda name: wires[name])
            records.append(
                {
                    "machine": machine.name,
                    "devices": num_devices,
                    "mesh": str(mesh),
                    "compute_seconds": compute,
                    "wire_seconds": wires,
                    "ratio": wires[slowest] / compute,
                    "limit": slowest if wires[slowest] > compute else "compute",
                }
            )
    return records


def loads_of_run(found: exchange_load.HeldoutRouting) -> dict[str, Any]:
    """Loads of a trained router by layer, P and T, beside those of scores that know nothing."""
    model, num_tokens = found.model, found.expert_ids.shape[1]
    counts = [count for count in TRAINED_DEVICES if count <= model.num_experts]
    scores = exchange_load.random_scores(model, zipf=0.0, num_tokens=num_tokens, seed=SEED)
    routings = {
        f"layer {layer}": (found.expert_ids[layer], found.probs[layer])
        for layer in range(len(found.expert_ids))
    }
    routings["random"] = (
        exchange_load.choose(scores, model, top_groups=model.top_groups),
        scores,
    )
    loads, by_groups = [], []
    for name, (ids, values) in routings.items():
        for num_devices in counts:
            for tokens in (count for count in TRAINED_TOKENS if count <= num_tokens):
                sources = exchange_load.cut_to_sources(ids, tokens)
                load = exchange_load.measure(
                    sources, model, num_devices=num_devices, factors=FACTORS
                )
                loads.append(
                    {"router": name, "devices": num_devices, "tokens": tokens, **load._asdict()}
                )
        if model.balance != "bias":  # the bias is no part of the scores
            by_groups += [
                {"router": name, **record} for record in visits_by_groups(values, model, counts)
            ]
    return {
        "run": found.name,
        "step": found.step,
        "num_tokens": num_tokens,
        "model": dataclasses.asdict(model),
        "expected_visits": {
            count: exchange.expected_visits(model, num_devices=count) for count in counts
        },
        "loads": loads,
        "by_groups": by_groups,
    }


def visits_by_groups(
    scores: Float32[np.ndarray, "T E"], model: ModelSpec, counts: list[int]
) -> list[dict[str, Any]]:
    """Devices that a token has experts on by the same scores, from more or fewer groups."""
    group_dim = model.num_experts // model.num_groups
    records = []
    for top_groups in GROUPS_CHOSEN:
        if top_groups > model.num_groups or top_groups * group_dim < model.top_k:
            continue
        ids = exchange_load.choose(scores, model, top_groups=top_groups)[None]
        by_devices = {
            count: exchange_load.measure(ids, model, num_devices=count, factors=()).visits
            for count in counts
        }
        records.append({"top_groups": top_groups, "visits": by_devices})
    return records


def main(
    found: exchange_load.HeldoutRouting | None, num_tokens: int, share: float, out: pathlib.Path
) -> None:
    """Counts, prints and writes everything."""
    console = rich_console.Console(width=170, highlight=False)
    figures: dict[str, Any] = {
        "made_with": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "num_cores": os.cpu_count(),
        },
        "tokens_per_device": num_tokens,
        "share_of_peak": share,
        "models": {},
    }
    for name, model in models().items():
        figures["models"][name] = {
            "bytes": bytes_by_devices(model, num_tokens=num_tokens),
            "by_groups": visits_by(model, "top_groups", GROUPS_CHOSEN),
            "by_experts": visits_by(model, "top_k", EXPERTS_CHOSEN),
            "by_node": bytes_by_node(model),
            "times": times(model, num_tokens=num_tokens, share_of_peak=share),
        }
        tables.show_model(console, name, figures["models"][name], num_tokens, share)
    figures["skew"] = bytes_by_skew(models()["r1_12b"], num_tokens=num_tokens)
    tables.show_skew(console, figures["skew"], num_tokens)
    if found is None:
        console.print("Loads of a trained router are left out: no --workdir names a run.")
    else:
        figures["trained"] = loads_of_run(found)
        tables.show_trained(console, figures["trained"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console.print(f"figures: {out}", soft_wrap=True)


def _path(name: str) -> pathlib.Path:
    return pathlib.Path(name).absolute()


def _flags() -> list[Callable[[], Any]]:
    run = flags.DEFINE_string("workdir", None, "A run whose router is looked at; none by default.")
    tokens = flags.DEFINE_integer("tokens", 8192, "Tokens of a device.", lower_bound=1)
    share = flags.DEFINE_float("share_of_peak", 0.4, "Assumed of the matmuls.", 0.01, 1.0)
    out = flags.DEFINE_string("out", "runs/expert_parallel_scale.json", "Where the figures go.")
    return [
        lambda: None if run.value is None else exchange_load.route_heldout(_path(run.value)),
        lambda: tokens.value,
        lambda: share.value,
        lambda: _path(out.value),
    ]


if __name__ == "__main__":
    settings.run_app(main, *_flags())
