"""Pictures of the semantic space: recall by method, and documents on a plane. Floor 5."""

import collections
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from deepseek_jax.evaluation import drawing
from deepseek_jax.evaluation.bootstrap import Estimate

_COLOURS = (
    drawing.BLUE,
    drawing.ORANGE,
    drawing.GREEN,
    drawing.PINK,
    drawing.SKY,
    drawing.BLACK,
)


def recall_bars(
    path: str | os.PathLike[str], recalls: Mapping[str, Mapping[int, Estimate]]
) -> None:
    """Recall at 1 and at 10 of every method, with 95% intervals.

    Args:
      path: the PNG to write.
      recalls: by method, then by k.
    """
    names = list(recalls)
    figure, (axes,) = drawing.grid(1, 1, width=7.6, height=0.9 + 0.5 * len(names))
    places = np.arange(len(names))[::-1]
    for shift, at, colour in ((0.18, 1, drawing.BLUE), (-0.18, 10, drawing.SKY)):
        found = [recalls[name][at] for name in names]
        values = np.array([100.0 * each.value for each in found])
        bounds = [
            [
                100.0 * (each.value - (each.value if each.low is None else each.low))
                for each in found
            ],
            [
                100.0 * ((each.value if each.high is None else each.high) - each.value)
                for each in found
            ],
        ]
        axes.barh(places + shift, values, 0.34, color=colour, xerr=bounds, label=f"recall@{at}")
    axes.set_yticks(places, names)
    axes.set_xlim(0, 100)
    axes.set_xlabel("held-out spans whose partner is found (%)")
    axes.legend(**drawing.LEGEND_ABOVE)
    drawing.save(figure, path)


def document_map(
    path: str | os.PathLike[str], vectors: Float[np.ndarray, "N P"], names: Sequence[str]
) -> None:
    """Held-out documents on the two directions in which their embeddings differ most.

    Args:
      path: the PNG to write.
      vectors: an embedding of each document.
      names: of the documents; the commonest top folders are told apart, the others are grey.
    """
    centred = vectors - vectors.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ directions[:2].T
    shares = np.square(singular) / np.sum(np.square(singular))
    tops = [_top(name) for name in names]
    common = [top for top, _ in collections.Counter(tops).most_common(len(_COLOURS))]
    figure, (axes,) = drawing.grid(1, 1, width=7.6, height=6.0)
    for top, colour in [(None, drawing.GREY), *zip(common, _COLOURS, strict=False)]:
        kept = np.array([(top is None and t not in common) or t == top for t in tops])
        if kept.any():
            label = "others" if top is None else f"{top} ({kept.sum()})"
            size, alpha = (10, 0.35) if top is None else (20, 0.9)
            axes.scatter(
                flat[kept, 0],
                flat[kept, 1],
                s=size,
                alpha=alpha,
                color=colour,
                label=label,
                linewidths=0,
            )
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.legend(**{**drawing.LEGEND_ABOVE, "ncols": 3})
    drawing.save(figure, path)


def _top(name: str) -> str:
    """The package that a document is of: packages/jax/_src/core.py is of jax."""
    parts = name.split("/")
    return parts[1].removesuffix(".py") if len(parts) > 1 else parts[0]
