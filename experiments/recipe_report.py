"""From the directories of a recipe to its report, and the table of all seeds."""

import datetime
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax

from deepseek_jax.core import accounting
from deepseek_jax.core.stage_spec import RolloutSpec
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.evaluation import page, recipe_findings
from deepseek_jax.evaluation import recipe_report as page_of_recipe
from deepseek_jax.evaluation.recipe_findings import Arm, ArticleTable
from deepseek_jax.reinforcement import problem_files
from deepseek_jax.training import metrics, workdir
from experiments import measure, settings
from experiments.configs.zero import shared

# `table.json` of a run of three seeds, as `write_table` wrote it; a new one replaces it by hand.
STORED = pathlib.Path(__file__).parent / "configs" / "zero" / "three_seeds.json"
MEASURED, SECONDS = "accuracy.json", "seconds.json"
# Directory of each arm.
DIRECTORIES = {
    recipe_findings.BASE: "base",
    recipe_findings.SUPERVISED: "supervised",
    recipe_findings.PPO_LEARNED: "ppo",
    recipe_findings.PPO_RULE: "ppo_rule",
    recipe_findings.GRPO: "grpo",
    recipe_findings.PPO_NO_KL: "ppo_no_kl",
}
_ANSWERS_AT_ONCE = 250
# Of the styles of the text: the share of right answers that they amount to (docs/claims.md).
_BY_CONSTRUCTION = 0.32


def test_problems(directory: pathlib.Path) -> tuple[list[Problem], RolloutSpec]:
    """The problems that no stage has seen, and how they are answered."""
    listed = problem_files.read(directory / "problems", "test")
    settings_of = shared.rollout(num_prompts=_ANSWERS_AT_ONCE, samples_per_prompt=1)
    return listed, RolloutSpec(**settings_of.to_dict())


def write(directory: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Writes `report.md`, `report.json` and pictures of a seed; returns the page's path."""
    page_of_recipe.write(find(directory, names), directory)
    return directory / "report.md"


def find(directory: pathlib.Path, names: Sequence[str]) -> recipe_findings.RecipeFindings:
    """What the stages of a seed came to; stages that were not run are left out."""
    arms = {arm: _arm(directory / name) for arm, name in DIRECTORIES.items() if name in names}
    problems = settings.load_run_spec(directory / "problems").problems
    base = settings.load_run_spec(directory / "base")
    count = accounting.count_parameters(base.model)
    record = workdir.read_json(directory / "base" / "record.json")
    made_with = dict(record["made_with"])
    kind, devices = made_with.pop("device_kind"), made_with.pop("num_devices")
    return recipe_findings.RecipeFindings(
        run=recipe_findings.RecipeRun(
            name=f"{directory.parent.name}/{directory.name}",
            command=shlex.join(["python", *sys.orig_argv[1:]]),
            versions={name: str(value) for name, value in made_with.items()},
            machine=f"{devices} x {kind}, {os.cpu_count()} CPU cores",
            settings={"seed": base.seed, **_flat(settings.to_dict(base)["model"])},
            stage_seconds=json.loads((directory / SECONDS).read_text(encoding="utf-8")),
            parameters={"total": count.total, "active": count.active},
        ),
        problems=recipe_findings.Problems(
            name=f"{problems.max_size}-digit addition",
            steps_are="single additions of the worked solution, carries included",
            procedure_share=problems.share_worked,
            base_accuracy=_BY_CONSTRUCTION,
        ),
        arms=arms,
        reward_model=measure.measure_reward_model(directory / "reward"),
        article=_article(directory, arms, names),
        stored=_stored(),
    )


def _stored() -> recipe_findings.Stored:
    """The table of three seeds that the repository holds."""
    table = workdir.read_json(STORED)
    arms = {
        arm: recipe_findings.StoredArm(tuple(found["sampled"]), tuple(found["greedy"]))
        for arm, found in table["arms"].items()
    }
    seeds = ", ".join(map(str, table["seeds"]))
    source = f"seeds {seeds} on {table['device']}, jax {table['jax']}, {table['date']}"
    return recipe_findings.Stored(source=source, arms=arms)


def write_table(root: pathlib.Path, seeds: Sequence[int]) -> str:
    """Writes `table.md` and `table.json` of the arms that every seed has; returns the table."""
    accuracies: dict[str, dict[str, list[float]]] = {}
    for arm, name in DIRECTORIES.items():
        paths = [root / f"seed_{seed}" / name / MEASURED for seed in seeds]
        if all(path.exists() for path in paths):
            both = [measure.load(path) for path in paths]
            accuracies[arm] = {
                "sampled": [sampled.accuracy.all.value for sampled, _ in both],
                "greedy": [greedy.accuracy.all.value for _, greedy in both],
            }
    rows = [
        [recipe_findings.ARMS[arm], _spread(found["sampled"]), _spread(found["greedy"])]
        for arm, found in accuracies.items()
    ]
    table = page.table(["arm", "temperature 1", "greedy"], rows)
    content = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seeds": list(seeds),
        "arms": accuracies,
    }
    (root / "table.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (root / "table.md").write_text(table + "\n", encoding="utf-8")
    return table


def _spread(values: list[float]) -> str:
    """The mean and standard deviation in percent, and each seed's."""
    mean, deviation = recipe_findings.mean_and_deviation(tuple(values))
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    if deviation is None:
        return f"{100 * mean:.1f}%"
    return f"{100 * mean:.1f}% +- {100 * deviation:.1f} ({each})"


def _arm(directory: pathlib.Path) -> Arm:
    """What was measured of a stage."""
    sampled, greedy = measure.load(directory / MEASURED)
    spec = settings.load_run_spec(directory)
    is_policy = hasattr(spec, "rewards")
    lines = metrics.read_lines(directory / "metrics.jsonl") if is_policy else []
    elsewhere = ("model", "mesh", "files")
    own = {name: node for name, node in settings.to_dict(spec).items() if name not in elsewhere}
    return Arm(
        sampled=sampled.accuracy,
        greedy=greedy.accuracy,
        settings=_flat(own),
        records=tuple(lines),
        samples=sampled.samples,
    )


def _article(directory: pathlib.Path, arms: dict[str, Arm], names: Sequence[str]) -> ArticleTable:
    """The article's table; the dense row is measured where the dense twin was trained."""
    listed, rollout = test_problems(directory)
    prompt = listed[0].prompt
    r1 = measure.article_row(
        "sparse base, pretrained on text",
        measure.open_run(directory / "base", step=None),
        arms[recipe_findings.BASE].sampled.all,
        rollout,
        prompt,
    )
    r1_zero = measure.article_row(
        "the same after PPO against the reward model",
        measure.open_run(directory / "ppo", step=None),
        arms[recipe_findings.PPO_LEARNED].sampled.all,
        rollout,
        prompt,
    )
    dense = recipe_findings.ArticleRow(
        model="dense twin of the same total size, pretrained on text",
        latency_ms=None,
        accuracy=None,
        active_parameters=None,
        total_parameters=None,
    )
    if "dense" in names and (directory / "dense" / "config.json").exists():
        model = measure.open_run(directory / "dense", step=None)
        answered = measure.measure(model, listed, rollout, temperature=1.0)
        dense = measure.article_row(dense.model, model, answered.accuracy.all, rollout, prompt)
    return ArticleTable(
        r1=r1,
        r1_zero=r1_zero,
        dense=dense,
        latency_is=(
            "Milliseconds for each new token when one answer of "
            f"{rollout.max_new_tokens} tokens is drawn alone, prompt included, compilation not; "
            "median of 5."
        ),
        accuracy_is=(
            f"At temperature 1, of {len(listed):,} held-out problems; no "
            "example is shown in the prompt."
        ),
    )


def _flat(node: dict[str, Any], *, prefix: str = "") -> dict[str, recipe_findings.Setting]:
    """Nested settings by dotted name."""
    flat: dict[str, recipe_findings.Setting] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, prefix=f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
