"""What the recipe found, put into honest words: each sentence that judges. Floor 5.

A difference is called clear only when two 95% intervals have no point in common.
"""

from deepseek_jax.evaluation import accuracy, history, page, recipe_findings
from deepseek_jax.evaluation.accuracy import Share
from deepseek_jax.evaluation.recipe_findings import (
    ARMS,
    BASE,
    PPO_LEARNED,
    PPO_NO_KL,
    SUPERVISED,
    ArticleTable,
    RecipeFindings,
    RewardModel,
)

# More blind kinds than this are counted; the table names them.
_MAX_NAMED = 3


def headline(findings: RecipeFindings) -> str:
    """The outcome in a line, and what it does not mean."""
    base, problems = findings.arms[BASE].sampled.all, findings.problems
    line = (
        f"Accuracy on {base.num:,} held-out problems of {problems.name} at temperature 1: "
        f"base {percent(base.value)}"
    )
    learned = findings.learned
    if not learned:
        return f"{line}. No policy was reinforced in this run. {_by_construction(findings)}"
    ends = "; ".join(
        f"{ARMS[name]} {percent(arm.sampled.all.value)}" for name, arm in learned.items()
    )
    changes = {name: change(base, arm.sampled.all) for name, arm in learned.items()}
    gained = [name for name, found in changes.items() if found == "above"]
    parts = [f"{line} -> {ends}."]
    for found, says in (("below", "clearly below"), ("alike", "not clearly apart from")):
        names = [f'"{ARMS[name]}"' for name in changes if changes[name] == found]
        if names:
            verb = "is" if len(names) == 1 else "are"
            parts.append(f"{page.joined(names)} {verb} {says} the base.")
    if gained:
        parts.append(
            "Reinforcement selects and sharpens a procedure that "
            f"{percent(problems.procedure_share)} of the text holds; it does not discover it."
        )
    return " ".join([*parts, _by_construction(findings)])


def change(before: Share, after: Share) -> str:
    """ "above" or "below" when the intervals are apart, else "alike"."""
    if not accuracy.are_apart(before, after):
        return "alike"
    return "above" if after.value > before.value else "below"


def most_steps(findings: RecipeFindings) -> str:
    """Policies beside the supervised arm on the problems with the most steps; empty without it."""
    if SUPERVISED not in findings.arms or not findings.learned:
        return ""
    supervised = findings.arms[SUPERVISED].sampled
    steps = max(supervised.by_steps)
    theirs = supervised.by_steps[steps]
    words = {
        "above": "clearly ahead of",
        "below": "clearly behind",
        "alike": "not clearly apart from",
    }
    verdicts = []
    for name, arm in findings.learned.items():
        ours = arm.sampled.by_steps[steps]
        verdicts.append(
            f'"{ARMS[name]}" ({percent(ours.value)}) is {words[change(theirs, ours)]} it'
        )
    return (
        "The article says that PPO is comparable to supervised models, and behind them on "
        f"multi-step problems. Here, at {steps} steps, the most there are, the supervised arm is "
        f"right in {percent(theirs.value)}; {page.joined(verdicts)}."
    )


def blindness(model: RewardModel) -> str:
    """Where the reward model is blind, by name."""
    if not model.kinds:
        return "It was not measured on pairs of single kinds: what it overlooks is not known."
    rule = f"(blind: the interval reaches 50%, or the share is below {recipe_findings.SEEING:.0%})"
    blind = [f'"{kind.name}" ({interval(kind.accuracy)})' for kind in model.kinds if kind.is_blind]
    if not blind:
        return f"It is blind to none of these kinds {rule}."
    named = page.joined(blind) if len(blind) <= _MAX_NAMED else f"{len(blind)} of the kinds below"
    return (
        f"**It is blind to {named}** {rule}. Its accuracy over all pairs does not "
        "show this: it scores what the pairs differ in, and is no checker of answers."
    )


def hacking(findings: RecipeFindings) -> str:
    """Whether reward rose at the expense of truth once KL was gone."""
    held, freed = findings.arms[PPO_LEARNED], findings.arms[PPO_NO_KL]
    if findings.was_hacked:
        verdict = (
            "**Without KL the policy hacked the reward model**: the reward rose, and the answers "
            "ended clearly less right than with KL."
        )
    else:
        verdict = (
            "In this run no hacking shows: without KL the reward did not rise, or the answers did "
            "not end clearly less right than with KL."
        )
    return (
        f"{verdict} Held-out accuracy at temperature 1: {interval(held.sampled.all)} with KL, "
        f"{interval(freed.sampled.all)} without."
    )


def path_of(records: tuple[dict, ...], name: str) -> str:
    """First, best and last value of a metric; empty if it was not measured."""
    curve = history.policy_curve(records, name)
    if not len(curve.steps):
        return ""
    best = int(curve.values.argmax())
    return (
        f"{curve.values[0]:.3f} at first, {curve.values[best]:.3f} at most (iteration "
        f"{curve.steps[best]}), {curve.values[-1]:.3f} at last"
    )


def advice(table: ArticleTable) -> str:
    """What the table tells of R1 against R1-Zero; empty if one of them was not measured."""
    ours, zero = table.r1.accuracy, table.r1_zero.accuracy
    if ours is None or zero is None:
        return ""
    verdict = {
        "above": "R1-Zero is clearly the more accurate",
        "below": "R1 is clearly the more accurate",
        "alike": "neither of R1 and R1-Zero is clearly the more accurate",
    }[change(ours, zero)]
    return (
        f"The article advises R1 for general work and R1-Zero for zero- or few-shot. On these "
        f"problems, which R1-Zero was reinforced on, {verdict}; general work is not measured here."
    )


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100.0 * value:.1f}%"


def interval(share: Share) -> str:
    """A share with its interval."""
    return f"{percent(share.value)} [{100.0 * share.low:.1f}, {100.0 * share.high:.1f}]"


def seeds(values: tuple[float, ...]) -> str:
    """Mean and deviation over seeds, in percent; empty without any."""
    if not values:
        return ""
    mean, deviation = recipe_findings.mean_and_deviation(values)
    if deviation is None:
        return f"{percent(mean)} (1 seed)"
    return f"{100.0 * mean:.1f} +- {100.0 * deviation:.1f}% ({len(values)} seeds)"


def _by_construction(findings: RecipeFindings) -> str:
    return (
        f"A base of about {findings.problems.base_accuracy:.0%} is a matter of construction: the "
        "styles of its text were chosen for it."
    )
