"""Pictures of reward models and of policies that learn from them. Floor 5.

Arms keep their colour, line and hatching by their place in the mapping: pass the same arms in the
same order to every picture, and those without values are skipped.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import MaxNLocator

from deepseek_jax.evaluation import drawing, history
from deepseek_jax.evaluation.accuracy import Accuracy, Share
from deepseek_jax.evaluation.calibration import Bin

# Metrics of an iteration and what an axis calls them.
METRICS = {
    "reward": "mean reward",
    "accuracy": "true accuracy",
    "kl": "KL to the reference\n(nats a response)",
    "entropy": "entropy (nats a token)",
    "clip_fraction": "clipped ratios (share)",
    "explained_variance": "explained variance\nof the critic",
    "length": "length (tokens)",
    "format_rate": "right format (share)",
}
_SHARES = ("accuracy", "clip_fraction", "format_rate")
_COLUMNS = 2
_COLOURS = (
    drawing.GREY,
    drawing.BLACK,
    drawing.BLUE,
    drawing.GREEN,
    drawing.ORANGE,
    drawing.PINK,
    drawing.SKY,
)
_LINES = ("-", "-", "-", "--", "-.", ":", (0, (5, 1)))
_HATCHES = ("", "xx", "//", "..", "\\\\", "oo", "--")


class StageRow(NamedTuple):
    """A stage in the picture of accuracy by stage.

    Attributes:
      name: of the stage.
      sampled: accuracy at temperature 1.
      greedy: accuracy of the most likely tokens; None if it was not measured.
    """

    name: str
    sampled: Share
    greedy: Share | None


def reliability(path: str | os.PathLike[str], bins: Sequence[Bin]) -> None:
    """What was foretold against what happened, with intervals; the diagonal is calibrated.

    Args:
      path: the PNG to write.
      bins: of `calibration.reliability`.
    """
    figure, (axes,) = drawing.grid(1, 1, width=5.2, height=4.6)
    axes.plot([0, 1], [0, 1], color=drawing.GREY, linewidth=1.0, linestyle="--", zorder=0)
    _intervals(
        axes,
        [found.mean_prob for found in bins],
        [found.share for found in bins],
        drawing.BLUE,
        "o",
    )
    for found in bins:
        # Below the point on the upper half, above it on the lower half: never outside.
        offset = -14 if found.share.value > 0.5 else 8
        axes.annotate(
            f"{found.share.num:,}",
            xy=(found.mean_prob, found.share.low if offset < 0 else found.share.high),
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=drawing.BLACK,
        )
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("probability that the first response is preferred")
    axes.set_ylabel("share of pairs where it is\n(numbers: pairs of the bin)")
    drawing.save(figure, path)


def policy_curves(
    path: str | os.PathLike[str], curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """A panel for each of `METRICS` that any arm measured, over iterations, a line for each arm.

    Args:
      path: the PNG to write.
      curves: records of each arm; see `history.policy_curve`.

    Raises:
      ValueError: no arm measured anything that can be drawn.
    """
    found = {
        metric: {arm: history.policy_curve(records, metric) for arm, records in curves.items()}
        for metric in METRICS
    }
    shown = [name for name, by_arm in found.items() if any(len(c.steps) for c in by_arm.values())]
    if not shown:
        raise ValueError(f"none of the arms {list(curves)} measured any of {list(METRICS)}")
    num_rows = -(-len(shown) // _COLUMNS)
    figure, panels = drawing.grid(num_rows, _COLUMNS, width=9.2, height=1.0 + 2.1 * num_rows)
    handles = {}
    for metric, axes in zip(shown, panels, strict=False):
        for i, (arm, curve) in enumerate(found[metric].items()):
            if len(curve.steps):
                (handles[arm],) = axes.plot(*curve, marker=_dot(len(curve.steps)), **_look(i))
        axes.set_ylabel(METRICS[metric])
        if metric in _SHARES:
            axes.set_ylim(-0.03, 1.03)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[max(len(shown) - _COLUMNS, 0) : len(shown)]:
        _count_iterations(axes)
        axes.tick_params(labelbottom=True)
    ordered = [arm for arm in curves if arm in handles]
    figure.legend(
        [handles[arm] for arm in ordered],
        ordered,
        loc="outside upper left",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    drawing.save(figure, path)


def hacking(
    path: str | os.PathLike[str],
    with_kl: Sequence[Mapping[str, Any]],
    without_kl: Sequence[Mapping[str, Any]],
) -> None:
    """What the reward model says beside the truth, with and without the KL term.

    Args:
      path: the PNG to write.
      with_kl: records of the run that is held near its reference.
      without_kl: of the run that is not.
    """
    figure, panels = drawing.grid(1, 2, width=9.2, height=3.8)
    reached = [0.0, 1.0]
    titles = ("held near the reference by KL", "without KL")
    for axes, title, records in zip(panels, titles, (with_kl, without_kl), strict=True):
        for metric, colour, line in (
            ("reward", drawing.ORANGE, "--"),
            ("accuracy", drawing.BLUE, "-"),
        ):
            curve = history.policy_curve(records, metric)
            marker = _dot(len(curve.steps))
            label = {"reward": "mean reward (learned)", "accuracy": "true accuracy"}[metric]
            axes.plot(*curve, color=colour, linestyle=line, marker=marker, label=label)
            reached += [*curve.values]
        axes.set_title(title, fontsize=10, loc="right")
        _count_iterations(axes)
    for axes in panels:
        axes.set_ylim(min(reached) - 0.03, max(reached) + 0.03)
    panels[0].set_ylabel("of the rollouts")
    panels[0].legend(**{**drawing.LEGEND_ABOVE, "ncols": 1})
    drawing.save(figure, path)


def accuracy_by_steps(path: str | os.PathLike[str], arms: Mapping[str, Accuracy]) -> None:
    """A group of bars for each number of steps, a bar with its interval for each arm.

    Args:
      path: the PNG to write.
      arms: accuracy of each.
    """
    steps = sorted({n for found in arms.values() for n in found.by_steps})
    figure, (axes,) = drawing.grid(1, 1, width=max(6.4, 1.5 * len(steps)), height=4.4)
    width = 0.84 / len(arms)
    for i, (arm, found) in enumerate(arms.items()):
        places = [j for j, n in enumerate(steps) if n in found.by_steps]
        shares = [found.by_steps[steps[j]] for j in places]
        axes.bar(
            np.array(places) + (i - (len(arms) - 1) / 2) * width,
            [share.value for share in shares],
            width,
            yerr=_reach(shares),
            capsize=2,
            color=_look(i)["color"],
            hatch=_HATCHES[i % len(_HATCHES)],
            ecolor=drawing.BLACK,
            edgecolor="white",
            label=arm,
        )
    axes.set_xticks(range(len(steps)), [str(n) for n in steps])
    axes.set_ylim(0.0, 1.03)
    axes.set_xlabel("steps that a problem takes")
    axes.set_ylabel("accuracy (95% intervals)")
    axes.legend(**drawing.LEGEND_ABOVE)
    drawing.save(figure, path)


def accuracy_by_stage(path: str | os.PathLike[str], rows: Sequence[StageRow]) -> None:
    """Accuracy of each stage with intervals, at temperature 1 and greedy, first stage on top.

    Args:
      path: the PNG to write.
      rows: stages in order.
    """
    figure, (axes,) = drawing.grid(1, 1, width=7.6, height=1.4 + 0.5 * len(rows))
    ways = (("sampled", drawing.BLUE, "o", -0.13), ("greedy", drawing.ORANGE, "D", 0.13))
    labels = {"sampled": "temperature 1", "greedy": "greedy"}
    for name, colour, marker, shift in ways:
        measured = [(i, getattr(row, name)) for i, row in enumerate(rows)]
        measured = [(i, share) for i, share in measured if share is not None]
        if measured:
            _intervals(
                axes,
                [i + shift for i, _ in measured],
                [share for _, share in measured],
                colour,
                marker,
                label=labels[name],
                sideways=True,
            )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color=drawing.GREY, alpha=0.3)
    axes.set_xlabel("accuracy on held-out problems (95% intervals)")
    axes.legend(**drawing.LEGEND_ABOVE)
    drawing.save(figure, path)


def _count_iterations(axes: Axes) -> None:
    """A horizontal axis of whole iterations."""
    axes.set_xlabel("iterations")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _intervals(
    axes: Axes,
    places: Sequence[float],
    shares: Sequence[Share],
    colour: str,
    marker: str,
    *,
    label: str | None = None,
    sideways: bool = False,
) -> ErrorbarContainer:
    """Points with intervals along one axis."""
    values, reach = [share.value for share in shares], _reach(shares)
    looks: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 2, "label": label}
    if sideways:
        return axes.errorbar(values, places, xerr=reach, **looks)
    return axes.errorbar(places, values, yerr=reach, **looks)


def _reach(shares: Sequence[Share]) -> np.ndarray:
    """How far intervals reach below and above their values."""
    return np.array([[s.value - s.low for s in shares], [s.high - s.value for s in shares]])


def _look(place: int) -> dict[str, Any]:
    """Colour and line of the arm at a place of the mapping."""
    i = place % len(_COLOURS)
    return {"color": _COLOURS[i], "linestyle": _LINES[i], "linewidth": 1.6, "markersize": 3}


def _dot(num_points: int) -> str:
    """A marker for curves so short that a line could not be seen."""
    return "o" if num_points < 30 else ""
