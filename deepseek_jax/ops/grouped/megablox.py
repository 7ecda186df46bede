"""Grouped matmuls by Megablox, which comes with JAX: TPUs. Floor 1.

Never run on a TPU by this project; tests interpret it and lower it. Axes: R rows, E groups, In and
Out of the matrices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm
from jaxtyping import Array, Float, Int

_TILE = 128


def refusal(
    *, num_rows: int, num_in: int, num_out: int, dtype: Any, is_varying: bool
) -> str | None:
    """Why this backend can't do these shapes; None if it can."""
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        return f"takes bfloat16 and float32, not {jnp.dtype(dtype).name}"
    if is_varying:
        return (
            "takes no rows that differ between the devices of a `shard_map`, whose check it fails"
        )
    if num_rows % _TILE or num_in % _TILE or num_out % _TILE:
        return (
            f"takes rows and sides of matrices that are multiples of {_TILE}, not {num_rows} rows "
            f"and {num_in} x {num_out}"
        )
    return None


def product(
    rows: Float[Array, "R In"],
    weights: Float[Array, "E In Out"],
    group_sizes: Int[Array, " E"],
    *,
    transposed: bool,
    interpret: bool,
) -> Float[Array, "R Out"]:
    """As `matmul.grouped_matmul`; with `transposed` the weights are [E, Out, In]."""
    with jax.numpy_dtype_promotion("standard"):  # also where the user has asked for the strict one
        out = gmm(
            rows,
            weights,
            group_sizes.astype(jnp.int32),
            preferred_element_type=rows.dtype,
            tiling=(_TILE, _TILE, _TILE),
            transpose_rhs=transposed,
            interpret=interpret,
        )
    # It leaves rows past the last group as they were in memory.
    is_held = jnp.arange(rows.shape[0], dtype=jnp.int32) < jnp.sum(group_sizes)
    return jnp.where(is_held[:, None], out, 0)


def outer(
    rows: Float[Array, "R In"],
    d_out: Float[Array, "R Out"],
    group_sizes: Int[Array, " E"],
    *,
    interpret: bool,
) -> Float[Array, "E In Out"]:
    """The gradient of the matrices, d_W of `matmul`, summed in float32."""
    with jax.numpy_dtype_promotion("standard"):
        out = tgmm(
            rows.T,
            d_out,
            group_sizes.astype(jnp.int32),
            preferred_element_type=rows.dtype,
            tiling=(_TILE, _TILE, _TILE),
            interpret=interpret,
        )
    return jnp.where(group_sizes[:, None, None] > 0, out, 0)
