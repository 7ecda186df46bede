"""What all pictures share: colours, panels and files, without pyplot's state. Floor 5.

Colours tell apart with any colour vision (Okabe and Ito's set).
"""

import os
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE = "#222222", "#D55E00", "#56B4E9", "#009E73", "#0072B2"
PINK, GREY = "#CC79A7", "#8A8A8A"
LEGEND_ABOVE: dict[str, Any] = {
    "frameon": False,
    "loc": "lower left",
    "bbox_to_anchor": (0.0, 1.0),
    "ncols": 2,
    "fontsize": 9,
}
_DPI = 110


def grid(
    num_rows: int, num_columns: int, *, width: float, height: float
) -> tuple[Figure, list[Axes]]:
    """A figure with panels that share their horizontal axis, row by row; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True)
    for axes in np.ravel(panels):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(np.ravel(panels))


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG."""
    figure.savefig(path, format="png", dpi=_DPI)
