"""The report of a run: one page for a person, the same numbers as JSON. Floor 5.

`to_markdown` and `to_json` are pure functions of the findings; `write` puts both on disk.
"""

import math
import os
from typing import Any

from deepseek_jax.evaluation import bootstrap, expert_usage, page
from deepseek_jax.evaluation import report_words as words
from deepseek_jax.evaluation.findings import Experts, Findings, Sample


def write(findings: Findings, workdir: str | os.PathLike[str]) -> None:
    """Writes `report.md` and `report.json`; files already there are replaced whole.

    Raises:
      ValueError: a number that is not finite.
    """
    page.write(workdir, name="report", markdown=to_markdown(findings), content=to_json(findings))


def to_json(findings: Findings) -> dict[str, Any]:
    """The findings as dicts, lists, strings and numbers, with the verdicts."""
    plain = page.plain(findings)
    for score, node in zip(findings.scores, plain["scores"], strict=True):
        node |= {"is_beaten": score.is_beaten, "is_clear": score.is_clear}
    plain["heldout"]["nats_per_target"] = findings.heldout.nats_per_target
    return {"passes": findings.passes, "verdict": words.headline(findings.scores), **plain}


def to_markdown(findings: Findings) -> str:
    """The report as Markdown."""
    sections = [
        f"# {findings.run.name}: what was learned",
        f"**{words.headline(findings.scores)}**",
        _heldout(findings),
        _experts(findings.experts),
        _pictures(findings),
        _samples(findings.samples),
        _run(findings),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heldout(findings: Findings) -> str:
    """The table of bits per byte, and how to read it."""
    heldout = findings.heldout
    rows = [("**model**", words.estimate(heldout.bits_per_byte), "", "")]
    rows += [
        (
            score.name,
            words.estimate(score.bits_per_byte),
            words.estimate(score.lead, signed=True),
            words.verdict(score),
        )
        for score in sorted(findings.scores, key=lambda score: score.bits_per_byte.value)
    ]
    table = page.table(("", "bits per byte", "the model's lead", "verdict"), rows)
    kinds = ", ".join(f"{kind} {words.estimate(value)}" for kind, value in heldout.by_kind.items())
    by_kind = f" The model by kind of text: {kinds}." if len(heldout.by_kind) > 1 else ""
    return (
        "## Held-out text\n\n"
        f"{findings.corpus.num_heldout_documents:,} documents that training never saw, "
        f"{heldout.num_bytes:,} bytes in {heldout.num_targets:,} tokens. Fewer bits are better.\n\n"
        f"{table}\n\n"
        f"In brackets: {bootstrap.LEVEL:.0%} intervals, from {bootstrap.NUM_RESAMPLES:,} resamples "
        "of the documents; that of the lead measures both methods on the same resamples. The "
        "bigrams (interpolated Kneser-Ney) learned from the same training text as the model; "
        "gzip and xz start each document knowing nothing. The model's loss is "
        f"{heldout.nats_per_target:.3f} nats a token.{by_kind}"
    )


def _experts(experts: Experts | None) -> str:
    """Health of the router, and what its choice tells of the kind of text."""
    if experts is None:
        return "## Experts\n\nThe model is dense: it has no experts and no router."
    information = experts.information
    columns = ["layer", "busiest expert / mean", "router entropy (nats)", "unused", "dropped"]
    rows = [
        [
            str(i),
            f"{layer.load_max_over_mean:.2f}",
            f"{layer.entropy:.2f}",
            str(len(layer.unused)),
            f"{layer.dropped_share:.2%}",
        ]
        for i, layer in enumerate(experts.layers)
    ]
    if information is not None:
        columns += ["expert-kind information (bits)", "kinds shuffled", "p"]
        for i, row in enumerate(rows):
            row += [
                f"{information.bits[i]:.3g}",
                f"mean {information.shuffled_mean[i]:.2g}, "
                f"{expert_usage.QUANTILE:.0%} quantile {information.shuffled_quantile[i]:.2g}",
                words.p_value(float(information.p_values[i])),
            ]
    return (
        f"## Experts\n\n{words.usage(experts)} The entropy of an even router is "
        f"ln {experts.num_experts} = {math.log(experts.num_experts):.2f} nats.\n\n"
        f"{page.table(columns, rows)}\n\n{words.information(experts)}"
    )


def _pictures(findings: Findings) -> str:
    return "\n\n".join(page.picture(plot.file, plot.caption) for plot in findings.plots)


def _samples(samples: tuple[Sample, ...]) -> str:
    """What the model writes, in fences that the text cannot close."""
    if not samples:
        return ""
    blocks = [
        f"The first {len(sample.prompt)} characters are the prompt:\n\n"
        f"{page.fenced(sample.prompt + sample.completion)}"
        for sample in samples
    ]
    return "## What it writes\n\n" + "\n\n".join(blocks)


def _run(findings: Findings) -> str:
    """What it takes to get these numbers again."""
    run, corpus = findings.run, findings.corpus
    rows = [
        ("config", run.name),
        ("command", f"`{run.command}`"),
        ("device", run.device),
        ("versions", ", ".join(f"{name} {value}" for name, value in run.versions.items())),
        (
            "training",
            f"{run.num_steps:,} steps, {run.num_tokens:,} tokens "
            f"({run.num_tokens / corpus.num_train_targets:.2f} epochs), "
            f"{page.seconds(run.train_seconds)}",
        ),
        ("evaluation", page.seconds(run.evaluation_seconds)),
        ("parameters", ", ".join(f"{name} {n:,}" for name, n in findings.parameters.items())),
        (
            "training text",
            f"{corpus.source}: {corpus.num_train_documents:,} documents, "
            f"{corpus.num_train_bytes:,} bytes, {corpus.num_train_targets:,} tokens of "
            f"{corpus.vocab_size:,}",
        ),
        ("corpus sha256", f"`{corpus.sha256}`"),
    ]
    return "## What was run\n\n" + page.table(("", ""), rows)
