"""A function of each row by itself, on many devices. Floor 2.

A sort or a choice of the best along a row needs no other row, but the compiler does not know it
and would bring all rows to every device first.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from deepseek_jax.parallel import rules
from deepseek_jax.parallel.layout import Layout

OutputT = TypeVar("OutputT")


def apply(
    layout: Layout | None,
    function: Callable[[Array, PyTree], OutputT],
    rows: Array,
    whole: PyTree,
) -> OutputT:
    """`function(rows, whole)`, each device with the rows that lie on it.

    Args:
      layout: the mesh; None calls the function as it is.
      function: arrays whose first dimension is that of `rows`; no row may depend on another.
      rows: [T, ...] cut over data and expert.
      whole: what every device has whole.

    Returns:
      What the function returns, cut as `rows` are.
    """
    if layout is None:
        return function(rows, whole)
    cut = PartitionSpec(rules.ROWS)
    mapped = jax.shard_map(
        function, mesh=layout.mesh, in_specs=(cut, PartitionSpec()), out_specs=cut
    )
    return mapped(rows, whole)
