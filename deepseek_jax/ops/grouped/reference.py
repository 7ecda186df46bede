"""Grouped matmuls as a plain loop over the groups: what every backend is compared with. Floor 1.

Axes: R rows, E groups, In and Out of the matrices.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def product(
    rows: Float[Array, "R In"], weights: Float[Array, "E In Out"], group_sizes: Int[Array, " E"]
) -> Float[Array, "R Out"]:
    """Each row times the matrix of its group, summed in the dtype of the arguments.

    Args:
      rows: [R, In], the rows of group 0, then of group 1, and so on.
      weights: [E, In, Out].
      group_sizes: [E], sum at most R.

    Returns:
      [R, Out]; zero for rows that no group holds.
    """
    member = _member(group_sizes, rows.shape[0])
    return sum(
        (
            jnp.where(member[group][:, None], rows @ weights[group], 0)
            for group in range(weights.shape[0])
        ),
        start=jnp.zeros((rows.shape[0], weights.shape[2]), rows.dtype),
    )


def outer(
    rows: Float[Array, "R In"], d_out: Float[Array, "R Out"], group_sizes: Int[Array, " E"]
) -> Float[Array, "E In Out"]:
    """The sum over the rows of each group of rows^T d_out: the gradient of its matrix."""
    member = _member(group_sizes, rows.shape[0])
    return jnp.stack([jnp.where(mine[:, None], rows, 0).T @ d_out for mine in member])


def _member(group_sizes: Int[Array, " E"], num_rows: int) -> Array:
    """[E, R] bool: whether a row is of a group."""
    ends = jnp.cumsum(group_sizes)[:, None]
    row = jnp.arange(num_rows)[None, :]
    return (row >= ends - group_sizes[:, None]) & (row < ends)
