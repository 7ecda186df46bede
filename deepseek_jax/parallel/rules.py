"""The one table from logical axis names to mesh axes. Floor 2.

A parameter or activation names its dimensions ("embed", "heads"); the table says which mesh
axes cut them. Parameters and optimizer state are cut over every device: matrices by their
"embed" dimension over the axes that also cut the batch (as in FSDP, arXiv:2304.11277), by the
other one over `model`; the experts' matrices by expert over `expert`.
"""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

DATA = "data"
EXPERT = "expert"
MODEL = "model"
AXES = (DATA, EXPERT, MODEL)
# What cuts the rows of a batch, and so the tokens.
ROWS = (DATA, EXPERT)

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ROWS,
    "embed": ROWS,
    "experts": (EXPERT,),
    "expert_embed": (DATA,),
    "expert_hidden": (MODEL,),
    "heads": (MODEL,),
    "kv_heads": (MODEL,),
    "vocab": (MODEL,),
    # Small, or looped over: whole on every device.
    "layers": (),
    "head_dim": (),
    "norm": (),
}


def partition_spec(names: Sequence[str | None]) -> PartitionSpec:
    """Which mesh axes cut each dimension of an array.

    Args:
      names: the logical name of each dimension; None is a dimension that nothing cuts.

    Raises:
      ValueError: a name that the table does not have, or two dimensions of one array that the
        same mesh axis would cut.
    """
    used: dict[str, str] = {}
    entries: list[str | tuple[str, ...] | None] = []
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} of {tuple(names)} is not in {sorted(RULES)}")
        axes = () if name is None else RULES[name]
        for axis in axes:
            if axis in used:
                raise ValueError(
                    f"mesh axis {axis!r} would cut two dimensions of {tuple(names)}: "
                    f"{used[axis]!r} and {name!r}"
                )
            used[axis] = str(name)
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)


def sharding(mesh: jax.sharding.Mesh, *names: str | None) -> NamedSharding:
    """How an array with dimensions of these names lies on a mesh; without names, whole."""
    return NamedSharding(mesh, partition_spec(names))
