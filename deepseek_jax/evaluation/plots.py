"""The report's pictures, drawn without a display and without pyplot's state. Floor 5.

Loads stand on a brown-purple scale that tells apart with any colour vision, and no curve is told
by colour alone.
"""

import math
import os
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from jaxtyping import Int64
from matplotlib.axes import Axes

from deepseek_jax.evaluation import drawing
from deepseek_jax.evaluation.expert_usage import KindInformation
from deepseek_jax.evaluation.history import Curve, History, RouterCurves

# The colour scale of loads ends at a quarter of and four times the even share.
_LOAD_LIMIT = 2.0
# An axis of information reaches at least this high, so that none at all can be drawn.
_LEAST_BITS = 1e-3


def loss_curve(
    path: str | os.PathLike[str], history: History, *, baselines: Mapping[str, float]
) -> None:
    """Training and held-out bits per byte over steps, with a line for each baseline.

    Args:
      path: the PNG to write.
      history: of the run.
      baselines: bits per byte by name.
    """
    figure, (axes,) = drawing.grid(1, 1, width=7.6, height=4.6)
    train, heldout = history.train, history.heldout
    axes.plot(*train, color=drawing.SKY, linewidth=1.4, label="training text")
    axes.plot(
        *heldout, color=drawing.BLUE, linewidth=1.8, marker="o", markersize=4, label="held-out text"
    )
    levels = [*baselines.values(), *heldout.values]
    lowest, highest = min([*levels, train.values.min()]), max(levels)
    margin = 0.08 * max(highest - lowest, 0.1)
    top = min(max(highest, train.values.max()), 1.6 * highest) + margin
    axes.set_ylim(lowest - margin, top)
    axes.set_xlim(0, 1.01 * max(train.steps.max(), 1))
    heights = _spread(sorted(baselines.values()), gap=0.045 * (top - lowest + margin))
    for (name, value), height in zip(
        sorted(baselines.items(), key=lambda item: item[1]), heights, strict=True
    ):
        axes.axhline(value, color=drawing.GREY, linewidth=1.0, linestyle="--", zorder=0)
        axes.annotate(
            f"{name} {value:.2f}",
            xy=(1.0, value),
            xytext=(1.015, height),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=drawing.BLACK,
            annotation_clip=False,
        )
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("bits per byte of text (less is better)")
    axes.legend(**drawing.LEGEND_ABOVE)
    drawing.save(figure, path)


def expert_load(
    path: str | os.PathLike[str], load_by_kind: Mapping[str, Int64[np.ndarray, "layers E"]]
) -> None:
    """How much each expert is used, for all text and for each kind, layer by layer.

    Args:
      path: the PNG to write.
      load_by_kind: assignments by kind of text.
    """
    loads = {"all text": np.sum(list(load_by_kind.values()), axis=0)}
    if len(load_by_kind) > 1:
        loads |= load_by_kind
    num_layers, num_experts = loads["all text"].shape
    height = 1.0 + len(loads) * (0.6 + 0.28 * max(num_layers, 2))
    figure, panels = drawing.grid(len(loads), 1, width=7.6, height=height)
    scale = mpl.colormaps["PuOr_r"]
    for axes, (kind, load) in zip(panels, loads.items(), strict=True):
        share = load * num_experts / np.maximum(load.sum(axis=1, keepdims=True), 1)
        with np.errstate(divide="ignore"):
            shown = np.clip(np.log2(share), -_LOAD_LIMIT, _LOAD_LIMIT)
        image = axes.imshow(
            shown,
            cmap=scale,
            vmin=-_LOAD_LIMIT,
            vmax=_LOAD_LIMIT,
            aspect="auto",
            interpolation="nearest",
        )
        layers, experts = np.nonzero(load == 0)
        axes.plot(experts, layers, "x", color="white", markersize=5)
        axes.set_title(kind, fontsize=10, loc="left")
        axes.set_yticks(range(num_layers))
        axes.set_ylabel("layer")
        axes.spines[:].set_visible(False)
    panels[-1].set_xlabel("expert")
    ticks = np.arange(-_LOAD_LIMIT, _LOAD_LIMIT + 1)
    bar = figure.colorbar(image, ax=panels, ticks=ticks, extend="both", pad=0.02)
    bar.set_ticklabels([f"{2.0**tick:g}x" for tick in ticks])
    bar.set_label("share of assignments\nover an even share (cross: none)", fontsize=9)
    drawing.save(figure, path)


def kind_information(path: str | os.PathLike[str], information: KindInformation) -> None:
    """What a layer's experts tell of the kind of text, beside what shuffled kinds do.

    Args:
      path: the PNG to write.
      information: by layer.
    """
    figure, (axes,) = drawing.grid(1, 1, width=6.4, height=3.8)
    layers = np.arange(len(information.bits))
    width = 0.38
    axes.bar(layers - width / 2, information.bits, width, color=drawing.BLUE, label="measured")
    above = information.shuffled_quantile - information.shuffled_mean
    axes.bar(
        layers + width / 2,
        information.shuffled_mean,
        width,
        yerr=np.stack([np.zeros_like(above), np.maximum(above, 0.0)]),
        capsize=3,
        color=drawing.ORANGE,
        ecolor=drawing.BLACK,
        hatch="//",
        edgecolor="white",
        label="kinds shuffled over documents (mean, 95% quantile)",
    )
    axes.set_xticks(layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("mutual information of\nexpert and kind of text (bits)")
    highest = max(information.bits.max(), information.shuffled_quantile.max())
    axes.set_ylim(0.0, 1.05 * max(highest, _LEAST_BITS))
    axes.legend(**drawing.LEGEND_ABOVE)
    drawing.save(figure, path)


def router_health(path: str | os.PathLike[str], curves: RouterCurves, *, num_experts: int) -> None:
    """Load, entropy, unused experts and drops while training.

    Args:
      path: the PNG to write.
      curves: of the run.
      num_experts: E, whose logarithm bounds the entropy.
    """
    figure, panels = drawing.grid(2, 1, width=7.6, height=5.0)
    load, entropy = panels
    load.plot(*curves.load_max_over_mean, color=drawing.BLUE, linewidth=1.6)
    _bound(load, 1.0, "even")
    load.set_ylabel("busiest expert over mean\n(load, worst layer)")
    load.set_ylim(0.8, 1.1 * max(curves.load_max_over_mean.values.max(), 1.2))
    load.set_title(_losses_in_words(curves), fontsize=10, loc="left")
    entropy.plot(*curves.entropy, color=drawing.GREEN, linewidth=1.6)
    bound = math.log(num_experts)
    _bound(entropy, bound, f"ln {num_experts}")
    entropy.set_ylim(0.0, 1.15 * bound)
    entropy.set_ylabel("router entropy\n(nats, worst layer)")
    entropy.set_xlim(0, None)
    entropy.set_xlabel("optimizer steps")
    drawing.save(figure, path)


def _bound(axes: Axes, height: float, name: str) -> None:
    """A dashed line with its name above its right end."""
    axes.axhline(height, color=drawing.GREY, linewidth=1.0, linestyle="--")
    axes.annotate(
        name,
        xy=(0.995, height),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=drawing.BLACK,
    )


def _losses_in_words(curves: RouterCurves) -> str:
    """Drops and unused experts in words: they are mostly flat at zero."""
    dropped = curves.dropped_share.values.max()
    unused: Curve = curves.unused_experts
    return (
        f"dropped assignments: {dropped:.2%} at most;  unused experts: "
        f"{int(unused.values.max())} at most, {int(unused.values[-1])} at the end"
    )


def _spread(heights: list[float], *, gap: float) -> list[float]:
    """Ascending heights for labels, moved up where they would overlap."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return placed
