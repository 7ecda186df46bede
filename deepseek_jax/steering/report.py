"""What was measured of a task vector, in words and tables. Floor 6."""

from typing import Any

from deepseek_jax.evaluation import bootstrap, page
from deepseek_jax.steering.measure import Findings
from deepseek_jax.steering.shares import Share

PICTURE = "task_experts.png"
_INTERVALS = (
    f"In brackets 95% intervals, of {bootstrap.NUM_RESAMPLES:,} resamples of whole descriptions: "
    "answers to one sentence depend on one another. The inputs are taken as they are. An interval "
    "without width says that all sentences went alike. Without a description, and for a sentence "
    "of yours, there is nothing to draw but inputs, which tells nothing of other sentences: there, "
    "by task, it is Wilson's interval, and over all tasks that of resamples of whole inputs."
)


def markdown(findings: Findings, *, step: int, num_inputs: int) -> str:
    """The report.

    Args:
      findings: of `measure`.
      step: of the checkpoint.
      num_inputs: held-out inputs of each task.
    """
    chance = findings.chance
    parts = [
        "# A task vector, measured",
        f"Checkpoint of step {step}; {num_inputs} held-out inputs, the same for every task; greedy "
        "decoding.",
        _INTERVALS,
        "## Descriptions",
        page.table(
            ("description", "right"),
            [
                ("of the training", _percent(findings.trained.all)),
                ("held-out paraphrase", _percent(findings.heldout.all)),
                ("unseen wording", _percent(findings.reworded.all)),
                ("missing", _percent(findings.missing.all)),
                ("wrong: does what is described", _percent(findings.wrong.described)),
                ("wrong: does what was asked for", _percent(findings.wrong.asked)),
            ],
        ),
        f"Chance, exact on these inputs: {chance.uniform:.1%} with a task drawn evenly; no more "
        f"than {chance.best:.1%} for anything that sees the input alone.",
        "## By task",
        page.table(
            ("task", "training", "paraphrase", "unseen wording", "missing"),
            [
                (
                    name,
                    _percent(share),
                    _percent(findings.heldout.by_task[name]),
                    _percent(findings.reworded.by_task[name])
                    if name in findings.reworded.by_task
                    else "-",
                    _percent(findings.missing.by_task[name]),
                )
                for name, share in findings.trained.by_task.items()
            ],
        ),
    ]
    if findings.compositions:
        parts += [
            "## Compositions that no training had",
            page.table(
                ("task", "right", "first part alone", "second part alone", "for example"),
                [
                    (name, *map(_percent, (one.right, one.first, one.second)), one.example)
                    for name, one in findings.compositions.items()
                ],
            ),
        ]
    if findings.information:
        parts += ["## Experts", *_experts(findings)]
    if findings.followed:
        parts += [
            "## Your descriptions",
            page.table(
                ("description", "meant", "right", "answers do most often", "how often"),
                [
                    (one.text, one.meant or "-", _percent(one.right), one.most, _percent(one.share))
                    for one in findings.followed
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def content(findings: Findings, *, step: int, num_inputs: int) -> dict[str, Any]:
    """The same as dicts and numbers."""
    plain = page.plain(findings._replace(usage={}))
    del plain["usage"]
    return {"step": step, "num_inputs": num_inputs, **plain}


def _experts(findings: Findings) -> list[str]:
    rows = [
        (
            tokens,
            str(layer),
            f"{found.bits[layer]:.3f}",
            f"{found.shuffled_mean[layer]:.3f}",
            f"{found.shuffled_quantile[layer]:.3f}",
            f"{found.p_values[layer]:.3f}",
        )
        for tokens, found in findings.information.items()
        for layer in range(len(found.bits))
    ]
    columns = ("tokens", "layer", "bits", "shuffled, mean", "shuffled, 95%", "p")
    return [
        "Mutual information of task and expert of an assignment, against tasks shuffled over the "
        "rows. The tokens of the prompt are the same whatever the task: what their experts tell of "
        "it can come from the description alone.",
        page.table(columns, rows),
        page.picture(PICTURE, "Experts of the prompt's tokens by task."),
    ]


def _percent(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
