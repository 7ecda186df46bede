"""Numbers put into honest words: each sentence of the report that judges. Floor 5."""

from collections.abc import Sequence

from deepseek_jax.evaluation import expert_usage, page
from deepseek_jax.evaluation.bootstrap import Estimate
from deepseek_jax.evaluation.findings import Experts, Score

# A p-value at or below this is called more than chance.
SIGNIFICANCE = 0.05


def headline(scores: Sequence[Score]) -> str:
    """The outcome in a line: PASS only if every baseline that must be beaten is."""
    required = [score for score in scores if score.must_be_beaten]
    lost = [score for score in required if not score.is_beaten]
    if lost:
        gaps = page.joined([f"{score.name} by {-score.lead.value:.3f}" for score in lost])
        return f"FAIL: the model needs more bits per byte of held-out text than {gaps}."
    gaps = page.joined([f"{score.name} by {score.lead.value:.3f}" for score in required])
    line = f"PASS: the model needs fewer bits per byte of held-out text than {gaps}."
    unclear = [score.name for score in required if not score.is_clear]
    if unclear:
        line += (
            f" The lead over {page.joined(unclear)} is within what other documents could change."
        )
    return line


def verdict(score: Score) -> str:
    """What a baseline's row says."""
    beaten = "beaten" if score.is_beaten else "NOT beaten"
    clear = "" if score.is_clear else ", but within the interval"
    duty = " (must be)" if score.must_be_beaten else ""
    return f"{beaten}{duty}{clear}"


def estimate(value: Estimate, *, signed: bool = False) -> str:
    """A value with its interval."""
    form = "{:+.3f}" if signed else "{:.3f}"
    if value.low is None or value.high is None:
        return f"{form.format(value.value)} (one document: no interval)"
    return f"{form.format(value.value)} [{form.format(value.low)}, {form.format(value.high)}]"


def usage(experts: Experts) -> str:
    """Unused experts and drops."""
    unused = [
        f"layer {i}: {', '.join(map(str, layer.unused))}"
        for i, layer in enumerate(experts.layers)
        if layer.unused
    ]
    if unused:
        number = sum(len(layer.unused) for layer in experts.layers)
        total = experts.num_experts * len(experts.layers)
        text = f"{number} of {total} experts were never chosen ({'; '.join(unused)})."
    else:
        text = "Every expert of every layer was chosen by held-out tokens."
    dropped = max(layer.dropped_share for layer in experts.layers)
    if dropped > 0.0:
        return f"{text} Up to {dropped:.2%} of a layer's assignments were dropped."
    return f"{text} No assignment was dropped."


def information(experts: Experts) -> str:
    """Whether the choice of experts tells the kinds of text apart."""
    found = experts.information
    kinds = page.joined(list(experts.load_by_kind))
    if found is None:
        return f"All held-out text is of one kind ({kinds}): there are no kinds to tell apart."
    num_layers = len(found.bits)
    num_clear = int((found.p_values <= SIGNIFICANCE).sum())
    basis = (
        f"Shuffled: the kinds given to the documents in random order, "
        f"{expert_usage.NUM_SHUFFLES:,} times; the kinds' own entropy is "
        f"{found.kind_entropy:.3f} bits, the most that experts could tell."
    )
    if num_clear == 0:
        outcome = f"No layer's choice of experts tells {kinds} apart more than chance does"
    else:
        outcome = (
            f"In {num_clear} of {num_layers} layers the choice of experts tells {kinds} apart "
            "more than chance does"
        )
    return f"{outcome} (p <= {SIGNIFICANCE}, each layer by itself). {basis}"


def p_value(p: float) -> str:
    """A p-value; the least that the shuffles can show is given as a bound."""
    least = 1.0 / (1 + expert_usage.NUM_SHUFFLES)
    return f"<= {least:.3f}" if p <= least else f"{p:.3f}"
