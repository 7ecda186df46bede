"""What the contrastive term gives retrieval, and what it costs the language loss.

Run: python -m benchmarks.contrastive_pretraining --root=runs/contrastive_seeds --seeds=0,1,2
     python -m benchmarks.contrastive_pretraining --variant=gpu_small --weights=0,0.1,0.3,1

Trains with every weight of the term (0 is without it) and every seed, on the same documents,
spans, steps and tokens; measures each on all held-out documents beside BM25 and prints the table.
Text is read once, for all runs. What stands finished in the root is neither trained nor measured
again.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any

from rich import console as rich_console

from deepseek_jax.contrastive import stage
from deepseek_jax.core.contrastive_spec import ContrastiveRunSpec
from deepseek_jax.data import spans
from experiments import numbers, recipe, semantics, settings

CONFIG = "experiments/configs/contrastive.py"


def main() -> None:
    """Trains, measures, prints.

    Raises:
      ValueError: a run of other settings stands where one of these would.
    """
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/contrastive_seeds"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variant", default="", help="of the config file, one with the term")
    parser.add_argument("--weights", default="", help="of the term; default: 0 and the config's")
    arguments = parser.parse_args()
    console = rich_console.Console()
    root = arguments.root.absolute()
    recipe.keep_programs(root)
    own = _spec(arguments.variant, weight=None, seed=0).contrastive.weight
    weights = [float(part) for part in arguments.weights.split(",")] if arguments.weights else []
    data, lexical = None, None
    results: list[dict[str, Any]] = []
    for seed in (int(part) for part in arguments.seeds.split(",")):
        for weight in weights or [own, 0.0]:
            spec = _spec(arguments.variant, weight=weight, seed=seed)
            directory = root / f"{arguments.variant or 'laptop'}_weight_{weight:g}_seed_{seed}"
            if not (directory / "semantics.json").exists():
                if data is None:
                    data = spans.load(spec.data, tokenizer_path=None)
                begun = time.perf_counter()
                stage.train(spec, directory, console=console, given=data)
                trained = time.perf_counter()
                run = semantics.open_run(directory, given=data)
                lexical = lexical or semantics.lexical_methods(run)
                semantics.write(directory, run, semantics.measure(run, lexical=lexical))
                console.print(
                    f"weight {weight:g}, seed {seed}: {trained - begun:.0f} s of training, "
                    f"{time.perf_counter() - trained:.0f} s of measuring",
                    highlight=False,
                )
            if settings.load_run_spec(directory) != spec:
                raise ValueError(f"{directory}: a run of other settings; give another --root")
            found = json.loads((directory / "semantics.json").read_text(encoding="utf-8"))
            made = json.loads((directory / "record.json").read_text(encoding="utf-8"))["made_with"]
            results.append({"seed": seed, "weight": weight, "made_with": made} | found)
    report(console, results)


def _spec(variant: str, *, weight: float | None, seed: int) -> ContrastiveRunSpec:
    """The settings of a run; a weight of None is the config's own."""
    name = "_".join(part for part in (variant, "without" if weight == 0.0 else "") if part)
    spec = settings.freeze(settings.load_config(f"{CONFIG}:{name}" if name else CONFIG))
    assert isinstance(spec, ContrastiveRunSpec)
    if weight:
        term = dataclasses.replace(spec.contrastive, weight=weight)
        spec = dataclasses.replace(spec, contrastive=term)
    return dataclasses.replace(spec, seed=seed)


def report(console: rich_console.Console, results: list[dict[str, Any]]) -> None:
    """Means and deviations over the seeds: recall of each method, and the loss of each weight."""
    table = numbers.table(
        "Partner among all held-out spans, mean +- deviation of the seeds (%)",
        "weight and method",
        "recall@1",
        "recall@10",
        "of BM25 @1",
    )
    best = max(
        method["recall"]["1"]["value"]
        for method in results[0]["methods"]
        if method["name"].startswith("BM25")
    )
    weights = sorted({result["weight"] for result in results})
    for weight in weights:
        chosen = [result for result in results if result["weight"] == weight]
        for place, method in enumerate(chosen[0]["methods"]):
            is_shared = method["name"].startswith(("untrained", "BM25"))
            if is_shared and weight != weights[-1]:
                continue
            at = {
                k: [result["methods"][place]["recall"][k]["value"] for result in chosen]
                for k in ("1", "10")
            }
            table.add_row(
                method["name"] if is_shared else f"{weight:g}: {method['name']}",
                *(_spread([100.0 * value for value in at[k]], digits=1) for k in ("1", "10")),
                f"{statistics.mean(at['1']) / best:.2f}",
            )
    console.print(table)
    losses = {
        weight: {
            result["seed"]: result["heldout_loss"]
            for result in results
            if result["weight"] == weight
        }
        for weight in weights
    }
    for weight, by_seed in losses.items():
        told = f"weight {weight:g}: next token {_spread(list(by_seed.values()), digits=4)} nats"
        if weight and 0.0 in losses:
            costs = [loss - losses[0.0][seed] for seed, loss in by_seed.items()]
            told += f", {_spread(costs, digits=4)} more than without the term"
        console.print(told, highlight=False)
    for made in {
        json.dumps(result["made_with"]): result["made_with"] for result in results
    }.values():
        console.print(
            f"{results[0]['num_documents']:,} held-out documents; {made['device_kind']}, "
            f"jax {made['jax']}, Python {made['python']}",
            highlight=False,
        )


def _spread(values: list[float], *, digits: int) -> str:
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
