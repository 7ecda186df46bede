"""What a reward model makes of people's preferences, beside rules of length. Floor 5: numpy only.

Several pairs may be of one dialogue, so that intervals come from drawing dialogues, and the model
is compared with a rule on the same draws.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from deepseek_jax.evaluation import bootstrap, calibration, page
from deepseek_jax.evaluation.bootstrap import Estimate
from deepseek_jax.evaluation.calibration import Bin

NUM_BINS = 10
CHANCE = 0.5
RELIABILITY = "reliability.png"
_BASE = "the model before training, by mean log-probability"
_SEED = 0


class Side(NamedTuple):
    """One side of N pairs.

    Attributes:
      logits: of the reward model.
      characters: of the dialogue.
      tokens: of its row.
    """

    logits: Float[np.ndarray, " N"]
    characters: Int[np.ndarray, " N"]
    tokens: Int[np.ndarray, " N"]


class Compared(NamedTuple):
    """N pairs as a model and the rules see them.

    Attributes:
      chosen: the preferred sides.
      rejected: the others.
      group_ids: which dialogue each pair is of.
    """

    chosen: Side
    rejected: Side
    group_ids: Int[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A way to choose that has learned nothing of the pairs.

    Attributes:
      name: what it chooses.
      accuracy: on the held-out pairs.
      num_ties: pairs that it cannot choose in, which are not right.
      lead: of the model over it, on the same draws.
    """

    name: str
    accuracy: Estimate
    num_ties: int
    lead: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that the page says.

    Attributes:
      name: of the run.
      step: of its checkpoint.
      pairs: what was read, left out and split: `inputs.pairs` of `record.json`, lines as counts.
      num_heldout: pairs measured.
      num_heldout_openings: dialogues that they are of.
      accuracy: of the model on held-out pairs; ties are not right.
      num_ties: held-out pairs with equal scores.
      train_accuracy: on the pairs that it was trained on.
      rules: of length.
      base: the model before training, which chooses the reply that it finds likelier, by the mean
        log-probability of a token; None if it was not there any more.
      prefers_longer: share of held-out pairs in which the model prefers the side with more
        characters; of people, that is the accuracy of the rule.
      calibration_error: of the held-out pairs, turned round by a coin.
      bins: of `calibration.reliability`.
      on_both_sides: openings and whole dialogues that were trained on and measured, counted anew
        from the rows of the run.
    """

    name: str
    step: int
    pairs: dict[str, Any]
    num_heldout: int
    num_heldout_openings: int
    accuracy: Estimate
    num_ties: int
    train_accuracy: Estimate
    rules: tuple[Rule, ...]
    base: Rule | None
    prefers_longer: Estimate
    calibration_error: float
    bins: tuple[Bin, ...]
    on_both_sides: dict[str, int]


def measure(
    train: Compared,
    heldout: Compared,
    base_gaps: Float[np.ndarray, " N"] | None,
    *,
    name: str,
    step: int,
    pairs: Mapping[str, Any],
    on_both_sides: dict[str, int],
) -> Findings:
    """The findings on a run's pairs.

    Args:
      train: pairs that it was trained on.
      heldout: the others.
      base_gaps: by how much the model before training prefers the chosen sides of the latter.
      name: of the run.
      step: of its checkpoint.
      pairs: `inputs.pairs` of its record.
      on_both_sides: openings and dialogues of both.
    """
    ours = heldout.chosen.logits > heldout.rejected.logits

    def rule(rule_name: str, gaps: np.ndarray) -> Rule:
        return Rule(
            name=rule_name,
            accuracy=share(gaps > 0, heldout.group_ids),
            num_ties=int((gaps == 0).sum()),
            lead=_lead(ours, gaps > 0, heldout.group_ids),
        )

    rules = []
    for what in ("characters", "tokens"):
        gaps = getattr(heldout.chosen, what) - getattr(heldout.rejected, what)
        rules += [
            rule(f"the longer wins ({what})", gaps),
            rule(f"the shorter wins ({what})", -gaps),
        ]
    longer = heldout.chosen.characters > heldout.rejected.characters
    shorter = heldout.chosen.characters < heldout.rejected.characters
    theirs = heldout.chosen.logits < heldout.rejected.logits
    probs, outcomes = calibration.oriented(
        heldout.chosen.logits, heldout.rejected.logits, seed=_SEED
    )
    left_out = {reason: len(lines) for reason, lines in pairs["left_out"].items()}
    return Findings(
        name=name,
        step=step,
        pairs={**pairs, "left_out": left_out},
        num_heldout=len(ours),
        num_heldout_openings=len(np.unique(heldout.group_ids)),
        accuracy=share(ours, heldout.group_ids),
        num_ties=int((~ours & ~theirs).sum()),
        train_accuracy=share(train.chosen.logits > train.rejected.logits, train.group_ids),
        rules=tuple(rules),
        base=None if base_gaps is None else rule(_BASE, base_gaps),
        prefers_longer=share((ours & longer) | (theirs & shorter), heldout.group_ids),
        calibration_error=calibration.expected_calibration_error(
            probs, outcomes, num_bins=NUM_BINS
        ),
        bins=calibration.reliability(probs, outcomes, num_bins=NUM_BINS),
        on_both_sides=on_both_sides,
    )


def share(is_right: Bool[np.ndarray, " N"], group_ids: Int[np.ndarray, " N"]) -> Estimate:
    """The share of pairs that are right, with an interval over groups.

    Args:
      is_right: of each pair.
      group_ids: the group of each pair; pairs weigh alike, whatever their group.
    """
    return _lead(is_right, np.zeros_like(is_right), group_ids)


def headline(findings: Findings) -> str:
    """The outcome in a line."""
    best = max(findings.rules, key=lambda rule: rule.accuracy.value)
    return (
        f"The model ranks {percent(findings.accuracy)} of the held-out pairs rightly, "
        f"{_beside_chance(findings.accuracy)}. The best rule of length here, {best.name}, gets "
        f"{percent(best.accuracy)}; the model's lead is {points(best.lead)}, "
        f"{_beside_nothing(best.lead)}."
    )


def to_json(findings: Findings) -> dict[str, Any]:
    """The findings as dicts, lists, strings and numbers, with the verdict."""
    return {"verdict": headline(findings)} | page.plain(findings)


def to_markdown(findings: Findings) -> str:
    """The findings as a page."""
    facts, both = findings.pairs, findings.on_both_sides
    left_out = [f"{count:,} {reason}" for reason, count in facts["left_out"].items()]
    rows = [
        ["the reward model", percent(findings.accuracy), f"{findings.num_ties:,}", ""],
        *(
            [rule.name, percent(rule.accuracy), f"{rule.num_ties:,}", points(rule.lead)]
            for rule in (*findings.rules, *([findings.base] if findings.base else []))
        ),
        *([] if findings.base else [[_BASE, "not measured: its run is not there", "", ""]]),
        ["the reward model, training pairs", percent(findings.train_accuracy), "", ""],
    ]
    columns = ["who chooses", "held-out pairs ranked rightly", "ties", "lead of the model"]
    return "\n\n".join(
        [
            f"# {findings.name}: people's preferences",
            f"**{headline(findings)}**",
            page.table(columns, rows),
            f"In brackets: {bootstrap.LEVEL:.0%} intervals, from {bootstrap.NUM_RESAMPLES:,} "
            f"resamples of the {findings.num_heldout_openings:,} openings that the "
            f"{findings.num_heldout:,} held-out pairs are of; the model and a rule are compared on "
            "the same ones. A tie is not right. The last row is measured on the training pairs: "
            "what it is above the first was learned by heart.",
            f"The model prefers the side with more characters in "
            f"{percent(findings.prefers_longer)} of the pairs. Expected calibration error: "
            f"{findings.calibration_error:.3f}, in {NUM_BINS} bins of equal width, over pairs that "
            "a coin turned round.",
            f"On both sides of the split: {both['openings']:,} openings and {both['texts']:,} "
            "whole dialogues, counted anew from the rows of the run.",
            f"{facts['file']}: {facts['num_lines']:,} pairs, of which {facts['num_train']:,} "
            f"trained and {facts['num_heldout']:,} were held out; left out: "
            f"{', '.join(left_out) or 'none'}. Checkpoint of step {findings.step:,}.",
            page.picture(RELIABILITY, "What the model foretells against what happens."),
        ]
    )


def percent(estimate: Estimate) -> str:
    """A share in percent with its interval."""
    return _with_interval(estimate, form="{:.1f}", unit="%")


def points(estimate: Estimate) -> str:
    """A difference of shares in points with its interval."""
    return _with_interval(estimate, form="{:+.1f}", unit=" points")


def _with_interval(estimate: Estimate, *, form: str, unit: str) -> str:
    value = f"{form.format(100.0 * estimate.value)}{unit}"
    if estimate.low is None or estimate.high is None:
        return f"{value} (one opening: no interval)"
    ends = ", ".join(form.format(100.0 * end) for end in (estimate.low, estimate.high))
    return f"{value} [{ends}]"


def _lead(
    ours: Bool[np.ndarray, " N"], theirs: Bool[np.ndarray, " N"], group_ids: Int[np.ndarray, " N"]
) -> Estimate:
    """The share of one choice less that of another."""
    _, places = np.unique(group_ids, return_inverse=True)
    first, second = (np.bincount(places, weights=np.float64(each)) for each in (ours, theirs))
    return bootstrap.difference(first, second, np.bincount(places), seed=_SEED)


def _beside_chance(accuracy: Estimate) -> str:
    if accuracy.low is not None and accuracy.low > CHANCE:
        return "above chance"
    if accuracy.high is not None and accuracy.high < CHANCE:
        return "below chance"
    return "which is not told from chance"


def _beside_nothing(lead: Estimate) -> str:
    if lead.low is not None and lead.low > 0.0:
        return "a clear one"
    if lead.high is not None and lead.high < 0.0:
        return "so that it is behind"
    return "not told from none"
