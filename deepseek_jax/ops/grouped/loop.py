"""Grouped matmuls as a loop over tiles of rows: any device, any dtype, any shape. Floor 1.

Made for a CPU, where a matmul of a few rows is as fast as it gets. Axes: R rows, E groups, In and
Out of the matrices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import tiles

_LARGEST_TILE = 256


def product(
    rows: Float[Array, "R In"],
    weights: Float[Array, "E In Out"],
    group_sizes: Int[Array, " E"],
    *,
    transposed: bool,
) -> Float[Array, "R Out"]:
    """As `matmul.grouped_matmul`; with `transposed` the weights are [E, Out, In]."""
    num_out = weights.shape[1 if transposed else 2]
    if not rows.size:
        return jnp.zeros((rows.shape[0], num_out), rows.dtype)
    height = _tile_rows(rows.shape[0], weights.shape[0])
    listed = tiles.row_tiles(group_sizes, num_rows=rows.shape[0], tile_rows=height)
    equation = "ri,oi->ro" if transposed else "ri,io->ro"

    def step(tile: Array, out: Array) -> Array:
        start, mine = _window(listed, tile, rows.shape[0], height)
        group = jnp.minimum(listed.group[tile], weights.shape[0] - 1)
        part = jax.lax.dynamic_slice_in_dim(rows, start, height)
        answers = jnp.einsum(
            equation, part, weights[group], preferred_element_type=jnp.float32
        ).astype(rows.dtype)
        answers = jnp.where(listed.group[tile] < weights.shape[0], answers, 0)
        before = jax.lax.dynamic_slice_in_dim(out, start, height)
        answers = jnp.where(mine[:, None], answers, before)
        return jax.lax.dynamic_update_slice_in_dim(out, answers, start, 0)

    out = jnp.zeros((rows.shape[0], num_out), rows.dtype)
    out = varying.like(out, rows, weights, group_sizes)
    return jax.lax.fori_loop(0, _num_used(listed), step, out)


def outer(
    rows: Float[Array, "R In"], d_out: Float[Array, "R Out"], group_sizes: Int[Array, " E"]
) -> Float[Array, "E In Out"]:
    """The gradient of the matrices, d_W of `matmul`, summed in float32."""
    num_groups = group_sizes.shape[0]
    shape = (num_groups, rows.shape[1], d_out.shape[1])
    if not rows.size or not d_out.size:
        return jnp.zeros(shape, rows.dtype)
    height = _tile_rows(rows.shape[0], num_groups)
    listed = tiles.row_tiles(group_sizes, num_rows=rows.shape[0], tile_rows=height)

    def step(tile: Array, total: Array) -> Array:
        start, mine = _window(listed, tile, rows.shape[0], height)
        mine &= listed.group[tile] < num_groups
        part, d_part = (
            jnp.where(mine[:, None], jax.lax.dynamic_slice_in_dim(x, start, height), 0)
            for x in (rows, d_out)
        )
        product = jnp.einsum("ri,ro->io", part, d_part, preferred_element_type=jnp.float32)
        return total.at[listed.group[tile]].add(product, mode="drop")

    total = varying.like(jnp.zeros(shape, jnp.float32), rows, d_out, group_sizes)
    return jax.lax.fori_loop(0, _num_used(listed), step, total).astype(rows.dtype)


def _tile_rows(num_rows: int, num_groups: int) -> int:
    """A power of two, at most half of the mean rows of a group where that is more than one."""
    height = 1
    while height < _LARGEST_TILE and 4 * height * num_groups <= num_rows:
        height *= 2
    return height


def _window(listed: tiles.RowTiles, tile: Array, num_rows: int, height: int) -> tuple[Array, Array]:
    """The first of `height` rows that hold the tile, and which of them are the tile's."""
    start = jnp.minimum(listed.start[tile], num_rows - height)
    row = start + jnp.arange(height, dtype=jnp.int32)
    first = listed.start[tile]
    return start, (row >= first) & (row < first + listed.size[tile])


def _num_used(listed: tiles.RowTiles) -> Array:
    return jnp.sum(listed.size > 0)
