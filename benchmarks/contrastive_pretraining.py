"""What the contrastive term gives retrieval, and what it costs the language loss.

Run: python -m benchmarks.contrastive_pretraining --root=runs/contrastive_seeds --seeds=0,1,2
     python -m benchmarks.contrastive_pretraining --variant=gpu_small

Trains with and without the term, for every seed, on the same documents, spans, steps and tokens;
measures both on all held-out documents beside BM25 and prints the table. Text is read once, for
all runs. What is finished is not trained again.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
from typing import Any

import jax
from rich import console as rich_console

from deepseek_jax.contrastive import stage
from deepseek_jax.data import spans
from deepseek_jax.evaluation import page
from experiments import numbers, semantics, settings

CONFIG = "experiments/configs/contrastive.py"


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/contrastive_seeds"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variant", default="", help="of the config file")
    parser.add_argument("--arms", default="with,without")
    arguments = parser.parse_args()
    console = rich_console.Console()
    results: list[dict[str, Any]] = []
    data, lexical = None, None
    for seed in (int(part) for part in arguments.seeds.split(",")):
        for arm in arguments.arms.split(","):
            spec = _spec(arguments.variant, arm, seed)
            if data is None:
                data = spans.load(spec.data, tokenizer_path=None)
            directory = arguments.root.absolute() / f"{arm}_{seed}"
            stage.train(spec, directory, console=console, given=data)
            run = semantics.open_run(directory, given=data)
            lexical = lexical or semantics.lexical_methods(run)
            found = semantics.measure(run, lexical=lexical)
            semantics.write(directory, run, found)
            methods = page.plain(found.methods)
            loss = found.heldout_loss
            results.append({"seed": seed, "arm": arm, "heldout_loss": loss, "methods": methods})
            (arguments.root / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            console.print(f"{arm}, seed {seed}: {loss:.4f} nats a token", highlight=False)
    report(console, results)


def _spec(variant: str, arm: str, seed: int) -> Any:
    names = [variant] if arm == "with" else [variant, "without"]
    name = "_".join(part for part in names if part)
    spec = settings.freeze(settings.load_config(f"{CONFIG}:{name}" if name else CONFIG))
    return dataclasses.replace(spec, seed=seed)


def report(console: rich_console.Console, results: list[dict[str, Any]]) -> None:
    """Means and deviations over the seeds: recall of each method, and the loss of each arm."""
    table = numbers.table(
        "Partner among all held-out spans, mean +- deviation of the seeds (%)",
        "arm and method",
        "recall@1",
        "recall@10",
        "over BM25 at 1",
    )
    best = statistics.mean(
        max(
            method["recall"]["1"]["value"]
            for method in result["methods"]
            if method["name"].startswith("BM25")
        )
        for result in results
    )
    arms = sorted({result["arm"] for result in results})
    for arm in arms:
        chosen = [result for result in results if result["arm"] == arm]
        for place, method in enumerate(chosen[0]["methods"]):
            if method["name"].startswith(("untrained", "BM25")) and arm != arms[0]:
                continue
            at = {
                k: [result["methods"][place]["recall"][k]["value"] for result in chosen]
                for k in ("1", "10")
            }
            table.add_row(
                f"{arm}: {method['name']}",
                *(_spread([100.0 * value for value in at[k]], digits=1) for k in ("1", "10")),
                f"{statistics.mean(at['1']) / best:.2f}",
            )
    console.print(table)
    losses = {
        arm: [result["heldout_loss"] for result in results if result["arm"] == arm] for arm in arms
    }
    told = ", ".join(f"{arm} {_spread(values, digits=4)}" for arm, values in losses.items())
    if len(arms) == 2:
        gaps = [first - second for first, second in zip(*losses.values(), strict=True)]
        told += f"; the term costs {_spread(gaps, digits=4)}"
    console.print(
        f"next token, nats a token: {told}",
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"Python {platform.python_version()}",
        sep="\n",
        highlight=False,
    )


def _spread(values: list[float], *, digits: int) -> str:
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
