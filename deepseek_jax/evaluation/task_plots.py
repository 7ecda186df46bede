"""Which task uses which experts, as a picture. Floor 5."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from deepseek_jax.evaluation import drawing


def usage_by_task(
    path: str | os.PathLike[str],
    load: Int64[np.ndarray, "layers tasks E"],
    *,
    names: Sequence[str],
) -> None:
    """Each task's share of assignments to each expert, one panel a layer.

    Args:
      path: the PNG to write.
      load: assignments.
      names: of the tasks.
    """
    num_layers, num_tasks, num_experts = load.shape
    share = load / np.maximum(load.sum(axis=-1, keepdims=True), 1)
    height = 0.9 + num_layers * (0.5 + 0.2 * num_tasks)
    figure, panels = drawing.grid(num_layers, 1, width=5.2, height=height)
    for layer, axes in enumerate(panels):
        image = axes.imshow(share[layer], cmap="viridis", vmin=0.0, vmax=share.max(), aspect="auto")
        axes.set_title(f"layer {layer}", fontsize=10, loc="left")
        axes.set_yticks(range(num_tasks), labels=list(names), fontsize=8)
        axes.spines[:].set_visible(False)
    panels[-1].set_xticks(range(num_experts))
    panels[-1].set_xlabel("expert")
    bar = figure.colorbar(image, ax=panels, pad=0.02)
    bar.set_label("share of a task's assignments", fontsize=9)
    drawing.save(figure, path)
