"""A training step on several meshes of the devices at hand, against the first of them.

Run: python -m benchmarks.mesh_step --config=experiments/configs/gpu_small.py \
       --meshes=1x1x1,1x2x1,2x1x1 --steps=20

Meshes are data x expert x model. Same parameters, same random rows (tokens by a power law, no
padding) and same global batch on each; prints tokens a second and their ratio to the first mesh,
how far losses are from the first mesh's at most, the peak memory of a device where it is known,
and the collectives of the compiled step; writes the same to `--out`. Overrides of the config come
as usual, e.g. --config.mesh.rows_factor=1.5.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from rich import console as rich_console

from deepseek_jax.core import accounting
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.nn.model import Decoder
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.parallel import placement, program
from deepseek_jax.training import optimizer, progress, state, step
from experiments import numbers, settings

_CONFIG = config_flags.DEFINE_config_file("config", "experiments/configs/gpu_small.py")
_MESHES = flags.DEFINE_list("meshes", ["1x1x1", "1x2x1"], "data x expert x model, each.")
_STEPS = flags.DEFINE_integer("steps", 20, "Timed steps.", lower_bound=1)
_OUT = flags.DEFINE_string("out", "runs/mesh_step.json", "Where the figures go.")
_WARMUP = 3
_POWER = 1.2  # of the tokens' frequencies


def main(argv: list[str]) -> None:
    """Measures every mesh in turn."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    console = rich_console.Console(width=160)
    results: list[dict[str, Any]] = []
    for name in _MESHES.value:
        results.append(measure(_run_spec(name)))
        console.print(f"{name}: {results[-1]['tokens_per_second']:,.0f} tokens/s")
    _report(console, results)
    devices = jax.devices()
    made_with = {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "jax": jax.__version__,
        "config": dict(_CONFIG.value.model),
    }
    path = pathlib.Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made_with": made_with, "meshes": results}, indent=1) + "\n")


def measure(run_spec: RunSpec) -> dict[str, Any]:
    """Compiles and runs the step on the mesh of the settings."""
    spec, length = run_spec.train, run_spec.data.sequence_length
    layout = layout_lib.make(run_spec.mesh, jax.devices())
    model = Decoder(run_spec.model)
    where = state.parameter_placement(model, sequence_length=length, mesh=layout.mesh)
    transform = optimizer.make_optimizer(
        run_spec.optimizer, num_steps=spec.num_steps, placement=where
    )
    abstract = state.abstract(model, transform, sequence_length=length, mesh=layout.mesh)
    shardings = state.shardings(abstract)
    on_mesh = layout if layout.mesh.size > 1 else None
    train_step = step.make_train_step(
        Decoder(run_spec.model, on_mesh).apply,
        transform,
        num_microbatches=spec.num_microbatches,
        bias_update_rate=run_spec.model.bias_update_rate,
        layout=on_mesh,
        shardings=shardings,
    )
    initial = functools.partial(
        state.initial_state,
        model,
        transform,
        jax.random.key(run_spec.seed),
        sequence_length=length,
    )
    current = jax.jit(initial, out_shardings=shardings)()
    batches = [placement.put_whole_rows(layout, _batch(run_spec, seed)) for seed in range(4)]
    started = time.perf_counter()
    compiled = train_step.lower(current, batches[0]).compile()  # type: ignore[attr-defined]
    compile_seconds = time.perf_counter() - started
    losses, seconds, last = [], [], None
    for number in range(_WARMUP + _STEPS.value):
        started = time.perf_counter()
        current, metrics = compiled(current, batches[number % len(batches)])
        last = jax.device_get(metrics)
        seconds.append(time.perf_counter() - started)
        losses.append(float(last.loss))
    assert last is not None
    tokens = spec.batch_size * length
    rate = tokens / statistics.median(seconds[_WARMUP:])
    peak = progress.peak_flops(jax.devices()[0].device_kind)
    flops = accounting.training_flops(run_spec.model, length=length)
    memory = jax.devices()[0].memory_stats() or {}
    stats = last.stats
    return {
        "mesh": str(run_spec.mesh),
        "exchange": run_spec.mesh.exchange,
        "tokens_per_second": rate,
        "share_of_peak": None if peak is None else rate * flops / peak / layout.mesh.size,
        "step_seconds": sorted(seconds[_WARMUP:]),
        "compile_seconds": compile_seconds,
        "peak_bytes": memory["peak_bytes_in_use"] if "peak_bytes_in_use" in memory else None,
        "losses": losses,
        "devices_per_token": _ratio(stats, "visits", "num_tokens"),
        "overflow_share": _ratio(stats, "overflowed", "visits"),
        "dropped_share": None if stats is None else float(stats.dropped.sum() / stats.load.sum()),
        "collectives": _collectives(compiled.as_text()),
    }


def _ratio(stats: Any, part: str, whole: str) -> float | None:
    if stats is None:
        return None
    return float(getattr(stats, part).sum() / getattr(stats, whole).sum())


def _collectives(text: str) -> dict[str, int]:
    """Bytes of results on one device in a step, by kind."""
    sums: dict[str, int] = collections.Counter()
    for collective in program.collectives(text):
        sums[collective.kind] += collective.num_bytes * collective.num_runs
    return dict(sorted(sums.items()))


def _run_spec(name: str) -> RunSpec:
    """The settings on a mesh written as data x expert x model."""
    data, expert, model = map(int, name.split("x"))
    run_spec = settings.freeze(_CONFIG.value)
    mesh = dataclasses.replace(run_spec.mesh, data=data, expert=expert, model=model)
    return dataclasses.replace(run_spec, mesh=mesh)


def _batch(run_spec: RunSpec, seed: int) -> dict[str, np.ndarray]:
    """Rows of one document each, whose tokens follow a power law."""
    shape = (run_spec.train.batch_size, run_spec.data.sequence_length + 1)
    random = np.random.default_rng(seed)
    weights = np.arange(1, run_spec.model.vocab_size + 1) ** -_POWER
    drawn = random.choice(weights.size, shape, p=weights / weights.sum()).astype(np.int32)
    tokens, targets = drawn[:, :-1], drawn[:, 1:]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return {
        "tokens": tokens,
        "targets": targets,
        "target_mask": np.ones(tokens.shape, bool),
        "document_ids": np.ones(tokens.shape, np.int32),
        "positions": positions,
    }


def _report(console: rich_console.Console, results: list[dict[str, Any]]) -> None:
    first = results[0]
    table = numbers.table(
        f"A training step, {_CONFIG.value.model.num_experts} experts",
        "mesh",
        "exchange",
        "tokens/s",
        "of the first",
        "share of peak",
        "compile (s)",
        "peak memory",
        "devices a token",
        "overflow",
        "dropped",
        "loss off by (nats)",
    )
    for result in results:
        off = np.abs(np.subtract(result["losses"], first["losses"])).max()
        table.add_row(
            result["mesh"],
            result["exchange"],
            f"{result['tokens_per_second']:,.0f}",
            f"{result['tokens_per_second'] / first['tokens_per_second']:.2f}",
            _shown(result["share_of_peak"], ".1%"),
            f"{result['compile_seconds']:.0f}",
            "unknown"
            if result["peak_bytes"] is None
            else numbers.human_bytes(result["peak_bytes"]),
            _shown(result["devices_per_token"], ".2f"),
            _shown(result["overflow_share"], ".2%"),
            _shown(result["dropped_share"], ".2%"),
            f"{off:.1e}",
        )
    console.print(table)
    for result in results:
        sent = ", ".join(
            f"{kind} {numbers.human_bytes(size)}" for kind, size in result["collectives"].items()
        )
        console.print(f"{result['mesh']}: {sent or 'no collectives'}")


def _shown(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


if __name__ == "__main__":
    app.run(main)
