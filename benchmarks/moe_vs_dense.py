"""The sparse model against its dense twin of the same active size, on the same real tokens.

Run: python -m benchmarks.moe_vs_dense --workdir=runs/moe_vs_dense --seeds=0,1

Trains `experiments/configs/gpu_small.py` and its twin `:dense_active` for each seed, or what
`--models` names, in one process over one reading of the corpus, and prints held-out loss, speed,
share of the device's peak and the sparse models' unused experts; writes the same to
`moe_vs_dense.json`. Runs that are finished in the directory are not made again.
"""

import json
import pathlib
import pickle
import statistics
from typing import Any

import jax
from absl import app, flags, logging
from rich import console as rich_console
from rich import table as rich_table

from deepseek_jax.core import accounting
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.data import text_data
from deepseek_jax.training import loop
from experiments import settings

_CONFIG = "experiments/configs/gpu_small.py"
_TWIN = "dense_active"
_MODELS = {
    "preset": _CONFIG,
    "capacity": f"{_CONFIG}:capacity",
    _TWIN: f"{_CONFIG}:{_TWIN}",
}
_WORKDIR = flags.DEFINE_string("workdir", "runs/moe_vs_dense", "Directory of all the runs.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds; each makes one run of each model.")
_CHOSEN = flags.DEFINE_multi_enum(
    "models", ["preset", _TWIN], list(_MODELS), "What is trained; once for each model."
)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of a run; the preset's own if not given.")


def main(argv: list[str]) -> None:
    """Trains what is missing, then prints and writes the comparison."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    console = rich_console.Console()
    directory = pathlib.Path(_WORKDIR.value).absolute()
    specs = {
        (name, seed): _run_spec(_MODELS[name], seed=int(seed))
        for seed in _SEEDS.value
        for name in _CHOSEN.value
    }
    # The corpus, its split and its packing are those of the first seed for all runs; a seed
    # changes the initial parameters and the order of the rows.
    first = next(iter(specs.values()))
    data = _read_once(directory / "corpus.pickle", first)
    results = []
    for (name, seed), spec in specs.items():
        console.print(f"{name}, seed {seed}")
        workdir = directory / f"{name}_{seed}"
        flops = accounting.training_flops(spec.model, length=spec.data.sequence_length)
        loop.train(spec, workdir, flops_per_token=flops, console=console, data=data)
        count = accounting.count_parameters(spec.model)
        results.append(
            {
                "model": name,
                "seed": int(seed),
                "total_parameters": count.total,
                "active_parameters": count.active,
                "epochs": _epochs(spec, num_rows=len(data.train.tokens)),
                **_outcome(workdir),
            }
        )
    _report(console, results)
    made_with = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "corpus_sha256": data.record.sha256,
        "train_tokens": int(data.train.target_mask.sum()),
    }
    console.print(made_with)
    text = json.dumps({"made_with": made_with, "runs": results}, indent=2)
    (directory / "moe_vs_dense.json").write_text(text + "\n")


def _read_once(path: pathlib.Path, spec: RunSpec) -> text_data.TextData:
    """The corpus, kept beside the runs so that a second call need not read it again."""
    if path.exists():
        return pickle.loads(path.read_bytes())
    data = text_data.load(spec.data, seed=spec.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL))
    return data


def _run_spec(config: str, *, seed: int) -> RunSpec:
    node = settings.load_config(config)
    node.seed = seed
    if _STEPS.value is not None:
        node.train.num_steps = _STEPS.value
    return settings.freeze(node)


def _epochs(spec: RunSpec, *, num_rows: int) -> float:
    return spec.train.num_steps * spec.train.batch_size / num_rows


def _outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """The last held-out loss, and the typical speed and routing of the log lines."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    heldout = [line for line in lines if "heldout_loss" in line]
    logged = [line for line in lines if "tokens_per_second" in line]
    return {
        "heldout_loss": heldout[-1]["heldout_loss"],
        "heldout_bits_per_byte": heldout[-1]["heldout_bits_per_byte"],
        "train_loss": logged[-1]["loss"],
        # The first lines hold the compilation.
        "tokens_per_second": statistics.median(x["tokens_per_second"] for x in logged[2:]),
        "share_of_peak": statistics.median(x["share_of_peak"] or 0.0 for x in logged[2:]),
        "unused_experts": logged[-1].get("unused_experts"),
        "dropped_share": logged[-1].get("dropped_share"),
        "load_max_over_mean": logged[-1].get("load_max_over_mean"),
        "most_unused_experts": _most(logged, "unused_experts"),
        "most_dropped_share": _most(logged, "dropped_share"),
        "seconds": logged[-1]["seconds"],
    }


def _most(lines: list[dict[str, Any]], name: str) -> Any:
    """The largest value of any line; None for a dense model, whose lines do not have it."""
    return max((line[name] for line in lines if name in line), default=None)


def _report(console: rich_console.Console, results: list[dict[str, Any]]) -> None:
    table = rich_table.Table(title="same active size, same tokens")
    columns = ["model", "seed", "heldout_loss", "heldout_bits_per_byte", "tokens_per_second"]
    columns += ["share_of_peak", "unused_experts", "dropped_share", "load_max_over_mean"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in results:
        table.add_row(*(_shown(row[column]) for column in columns))
    console.print(table)
    twins = {row["seed"]: row for row in results if row["model"] == _TWIN}
    for row in results:
        if row["model"] == _TWIN or row["seed"] not in twins:
            continue
        twin = twins[row["seed"]]
        console.print(
            f"{row['model']}, seed {row['seed']}: held-out loss less its twin's "
            f"{row['heldout_loss'] - twin['heldout_loss']:+.4f} nats; tokens/s over its twin's "
            f"{row['tokens_per_second'] / twin['tokens_per_second']:.3f}"
        )


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app.run(main)
