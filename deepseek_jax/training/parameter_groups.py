"""Parameters by name, and which of them an optimizer treats alike. Floor 5."""

from typing import Literal

import jax
from jaxtyping import PyTree

Group = Literal["layer_matrix", "projection", "plain"]

_LAYER_MATRICES = {
    "attention": ("query", "key", "value", "out"),
    "feed_forward": ("gate", "up", "down", "shared_gate", "shared_up", "shared_down"),
}
_PLAIN = (
    "scale",
    "embedding",
    "summary_queries",
    "summary_positions",
    "log_scale",
    "positions",
    "missing",
)


def parameter_name(path: tuple) -> str:
    """The dotted name of a leaf, e.g. "layers.attention.query.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def parameter_group(name: str) -> Group:
    """The group of a parameter, by its dotted name.

    Args:
      name: path below `params`, e.g. "layers.feed_forward.router.kernel".

    Returns:
      "layer_matrix": matrices of the layers (decayed; Muon's, if it is chosen);
      "projection": the output, scalar or span head, the router's gate, the description's encoder
        and what its vector does to a layer (decayed; Adam's);
      "plain": norms, biases, embeddings, positions, the vector of no description, the summaries'
        queries and a temperature (never decayed; Adam's).

    Raises:
      ValueError: a name that this function does not know: a new parameter must be put into a
        group on purpose.
    """
    parts = name.split(".")
    leaf = parts[-1]
    owner = parts[:-1] if leaf == "kernel" else parts
    if leaf in _PLAIN or parts == ["scalar_head", "bias"]:
        return "plain"
    is_head = parts in (
        ["head", "kernel"],
        ["scalar_head", "kernel"],
        ["span_head", "inner"],
        ["span_head", "outer"],
    )
    of_task = parts[0] == "description" or parts[:2] == ["layers", "task"]
    if is_head or of_task or parts[-2:] == ["router", "kernel"]:
        return "projection"
    if len(owner) == 3 and owner[0] == "layers" and owner[2] in _LAYER_MATRICES[owner[1]]:
        return "layer_matrix"
    raise ValueError(f"parameter {name} belongs to no group of training.parameter_groups")


def parameter_groups(params: PyTree) -> PyTree:
    """The tree of groups of the parameters `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: parameter_group(parameter_name(path)), params
    )
