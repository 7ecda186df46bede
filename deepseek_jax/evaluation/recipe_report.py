"""The report of the recipe: one page for a person, the same as JSON, and pictures. Floor 5.

`to_markdown` and `to_json` are pure functions of the findings; `write` puts both on disk, and
draws.
"""

import os
import pathlib
from typing import Any

from deepseek_jax.evaluation import page, recipe_pictures
from deepseek_jax.evaluation import recipe_words as words
from deepseek_jax.evaluation.recipe_findings import (
    ARMS,
    BASE,
    PPO_LEARNED,
    PPO_NO_KL,
    ArticleRow,
    ArticleTable,
    RecipeFindings,
    RewardModel,
    Setting,
    Stored,
)

NOT_MEASURED = "not measured"
# The article's figures of R1, R1-Zero and GPT-4: latency in ms, accuracy and utilization.
ARTICLE = {"R1": (45, 0.82, 0.98), "R1-Zero": (60, 0.78, 1.0), "GPT-4": (120, 0.65, 0.2)}


def write(findings: RecipeFindings, workdir: str | os.PathLike[str]) -> None:
    """Writes `report.md`, `report.json` and the pictures; files already there are replaced.

    Raises:
      ValueError: a number that is not finite.
    """
    page.write(workdir, name="report", markdown=to_markdown(findings), content=to_json(findings))
    recipe_pictures.draw(findings, pathlib.Path(workdir))


def to_json(findings: RecipeFindings) -> dict[str, Any]:
    """The findings as dicts, lists, strings and numbers, with the verdicts."""
    plain = page.plain(findings)
    if findings.reward_model is not None:
        kinds = zip(findings.reward_model.kinds, plain["reward_model"]["kinds"], strict=True)
        for kind, node in kinds:
            node["is_blind"] = kind.is_blind
    if findings.article is not None:
        for name in ("r1", "r1_zero", "dense"):
            plain["article"][name]["utilization"] = getattr(findings.article, name).utilization
    verdicts: dict[str, Any] = {"verdict": words.headline(findings)}
    if findings.has_hacking:
        verdicts["was_hacked"] = findings.was_hacked
    return verdicts | plain


def to_markdown(findings: RecipeFindings) -> str:
    """The report as Markdown."""
    sections = [
        f"# {findings.run.name}: what reinforcement did",
        f"**{words.headline(findings)}**",
        _stages(findings),
        _steps(findings),
        "" if findings.article is None else _article(findings.article),
        "" if findings.reward_model is None else _reward_model(findings.reward_model),
        _hacking(findings) if findings.has_hacking else "",
        _curves() if recipe_pictures.has_curves(findings) else "",
        _samples(findings),
        _run(findings),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _stages(findings: RecipeFindings) -> str:
    """Accuracy of each stage, beside earlier runs if there are any."""
    stored = findings.stored
    columns = ["stage", "temperature 1", "greedy", "right format", "tokens a response"]
    if stored is not None:
        columns += ["earlier runs, temperature 1", "earlier runs, greedy"]
    rows = []
    for name, arm in findings.ordered.items():
        greedy = NOT_MEASURED if arm.greedy is None else words.interval(arm.greedy.all)
        rate, length = words.percent(arm.sampled.format_rate), f"{arm.sampled.mean_length:.1f}"
        row = [ARMS[name], words.interval(arm.sampled.all), greedy, rate, length]
        rows.append([*row, *_earlier(stored, name)])
    notes = "In brackets: 95% intervals (Wilson) of one run; format and length at temperature 1."
    if stored is not None:
        notes += (
            " Earlier runs: mean +- sample standard deviation over seeds, which train every stage "
            f"anew, from {stored.source}."
        )
    shown = page.picture(recipe_pictures.STAGES, "Accuracy by stage, with 95% intervals.")
    return f"## Accuracy by stage\n\n{page.table(columns, rows)}\n\n{notes}\n\n{shown}"


def _earlier(stored: Stored | None, name: str) -> list[str]:
    """The cells of earlier runs in the row of an arm."""
    if stored is None:
        return []
    if name not in stored.arms:
        return [NOT_MEASURED, NOT_MEASURED]
    arm = stored.arms[name]
    return [words.seeds(values) or NOT_MEASURED for values in (arm.sampled, arm.greedy)]


def _steps(findings: RecipeFindings) -> str:
    """Accuracy by number of steps, an arm in each column."""
    arms = findings.ordered
    base = findings.arms[BASE].sampled
    rows = [
        [
            str(steps),
            f"{share.num:,}",
            *(words.interval(arm.sampled.by_steps[steps]) for arm in arms.values()),
        ]
        for steps, share in base.by_steps.items()
    ]
    columns = ["steps", "problems", *(ARMS[name] for name in arms)]
    parts = [
        "## Accuracy by number of steps",
        f"At temperature 1. Steps are {findings.problems.steps_are}. {words.most_steps(findings)}",
        page.table(columns, rows),
        page.picture(recipe_pictures.STEPS, "Accuracy by the number of steps."),
    ]
    return "\n\n".join(part.strip() for part in parts)


def _article(table: ArticleTable) -> str:
    """The article's table with our figures, and what each column means."""
    measured = zip(ARTICLE.items(), (table.r1, table.r1_zero, table.dense), strict=True)
    rows = [_article_row(name, theirs, ours) for (name, theirs), ours in measured]
    columns = ("row", "what stands in it here", "latency, ms a token", "accuracy", "utilization")
    advice = words.advice(table)
    return (
        "## The article's table\n\n"
        "Each cell: measured here (the article's figure).\n\n"
        f"{page.table(columns, rows)}\n\n"
        f"- Latency: of one generated token. {table.latency_is}\n"
        f"- Accuracy: share of right answers. {table.accuracy_is} The article's column is "
        '"zero-shot math", of other problems and models.\n'
        "- Utilization: parameters that a token uses over all parameters, a dense model's being "
        "100%. The article gives sparse models the high figures and does not define the column, "
        "so that the two do not compare.\n"
        "- GPT-4 cannot be measured here: a dense model stands in its row."
        + (f"\n\n{advice}" if advice else "")
    )


def _article_row(name: str, theirs: tuple[int, float, float], ours: ArticleRow) -> list[str]:
    latency = NOT_MEASURED if ours.latency_ms is None else f"{ours.latency_ms:.3g}"
    accuracy = NOT_MEASURED if ours.accuracy is None else words.interval(ours.accuracy)
    used = NOT_MEASURED if ours.utilization is None else words.percent(ours.utilization)
    return [
        name,
        ours.model,
        f"{latency} ({theirs[0]})",
        f"{accuracy} ({theirs[1]:.0%})",
        f"{used} ({theirs[2]:.0%})",
    ]


def _reward_model(model: RewardModel) -> str:
    """How well the reward model ranks, how sure it is, and where it is blind."""
    parts = [
        "## The reward model",
        f"Trained on {model.num_train_pairs:,} pairs. On {model.pairs.num:,} held-out pairs of "
        f"{model.pairs_are} it ranks {words.interval(model.pairs)} rightly (ties are not right). "
        f"Expected calibration error: {model.calibration_error:.3f}, in {model.num_bins} bins of "
        "equal width, over pairs that a coin turned round.",
        words.blindness(model),
    ]
    if model.kinds:
        columns = ("right against wrong", "ranked rightly", "mean score", "")
        rows = [
            [
                kind.name,
                words.interval(kind.accuracy),
                NOT_MEASURED if kind.mean_score is None else f"{kind.mean_score:.3f}",
                "**blind**" if kind.is_blind else "",
            ]
            for kind in model.kinds
        ]
        legend = f"{model.kinds_are} Mean score: of the wrong response, in 0..1."
        parts += [page.table(columns, rows), legend.strip()]
    parts.append(
        page.picture(recipe_pictures.RELIABILITY, "What it foretells against what happens.")
    )
    return "\n\n".join(parts)


def _hacking(findings: RecipeFindings) -> str:
    """Reward beside truth, with and without KL."""
    arms = {name: findings.arms[name] for name in (PPO_LEARNED, PPO_NO_KL)}
    rows = [
        [label, *(words.path_of(arm.records, metric) or NOT_MEASURED for arm in arms.values())]
        for metric, label in (
            ("reward", "learned reward"),
            ("accuracy", "true accuracy"),
            ("kl", "KL, nats a response"),
        )
    ]
    held, freed = (arm.settings for arm in arms.values())
    differing = [
        name for name in {**held, **freed} if _setting(held, name) != _setting(freed, name)
    ]
    told = ", ".join(
        f"{name} ({_setting(held, name)}, {_setting(freed, name)})" for name in differing
    )
    parts = [
        "## Reward hacking",
        words.hacking(findings),
        f"The two runs differ in: {told or 'no setting that was handed to this report'}.",
        page.table(["of the rollouts", *(ARMS[name] for name in arms)], rows),
    ]
    if recipe_pictures.can_show_hacking(findings):
        parts.append(
            page.picture(
                recipe_pictures.REWARD_AND_TRUTH, "What the reward model says, and what is true."
            )
        )
    return "\n\n".join(parts)


def _curves() -> str:
    picture = page.picture(recipe_pictures.CURVES, "The policies over the iterations, by arm.")
    return f"## Curves\n\n{picture}"


def _samples(findings: RecipeFindings) -> str:
    """What each stage writes, in fences that the text cannot close."""
    blocks = []
    for name, arm in findings.ordered.items():
        if arm.samples:
            blocks.append(f"### {ARMS[name]}")
        for sample in arm.samples:
            verdict = "right" if sample.is_right else "wrong"
            text = page.fenced(sample.prompt + sample.response)
            blocks.append(
                f"**{verdict}** (the first {len(sample.prompt)} characters ask):\n\n{text}"
            )
    return "## What it writes\n\n" + "\n\n".join(blocks) if blocks else ""


def _run(findings: RecipeFindings) -> str:
    """What it takes to get these numbers again."""
    run, arms = findings.run, findings.ordered
    rows = [
        ("config", run.name),
        ("command", f"`{run.command}`"),
        ("machine", run.machine),
        ("versions", ", ".join(f"{name} {value}" for name, value in run.versions.items())),
        ("parameters", ", ".join(f"{name} {n:,}" for name, n in run.parameters.items())),
        *((name, str(value)) for name, value in run.settings.items()),
    ]
    times = [(name, f"{duration:.1f}") for name, duration in run.stage_seconds.items()]
    times.append(("all", f"{sum(run.stage_seconds.values()):.1f}"))
    parts = ["## What was run", page.table(("", ""), rows)]
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm.settings))
    if names:
        columns = ["setting", *(ARMS[name] for name in arms)]
        cells = [[name, *(_setting(arm.settings, name) for arm in arms.values())] for name in names]
        parts += ["### Settings of the stages", page.table(columns, cells)]
    parts += ["### Time", page.table(("stage", "seconds"), times)]
    return "\n\n".join(parts)


def _setting(settings: dict[str, Setting], name: str) -> str:
    """A setting as text; a stage that lacks it has none."""
    return str(settings[name]) if name in settings else "-"
