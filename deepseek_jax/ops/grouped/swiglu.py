"""SwiGLU experts on rows sorted by expert, as grouped matmuls. Floor 1.

    y = (silu(x gate_e) * (x up_e)) down_e,  arXiv:2002.05202, eq. 5 without biases

Gate and up are one matmul. Axes: R rows, E experts, D model, F expert hidden.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import swiglu, varying
from deepseek_jax.ops.grouped import matmul
from deepseek_jax.ops.grouped.matmul import Backend


def grouped_swiglu(
    rows: Float[Array, "R D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    group_sizes: Int[Array, " E"],
    *,
    backend: Backend,
    interpret: bool,
) -> Float[Array, "R D"]:
    """Each row through the expert of its group; differentiable in rows and matrices.

    Args:
      rows: [R, D], any float dtype; the rows of expert 0, then of expert 1, and so on.
      gate: [E, D, F] in the dtype of `rows`.
      up: [E, D, F] same dtype.
      down: [E, F, D] same dtype.
      group_sizes: [E], any sizes that sum to at most R.
      backend: of both matmuls; static.
      interpret: as `matmul.grouped_matmul`.

    Returns:
      [R, D] in the dtype of `rows`; zero for rows past the last group.

    Raises:
      ValueError: the backend can't do these shapes (trace time).

    Cost: 6 D F FLOPs a row forward and 12 backward; R (D + 3 F) numbers are kept for the backward
    pass.
    """
    gate_up = jnp.concatenate([gate, up], axis=-1)
    both = matmul.grouped_matmul(rows, gate_up, group_sizes, backend=backend, interpret=interpret)
    hidden = swiglu.gated(*jnp.split(both, 2, axis=-1))
    return matmul.grouped_matmul(hidden, down, group_sizes, backend=backend, interpret=interpret)


def choose(
    device: jax.Device,
    tokens: Float[Array, "T D"],
    gate: Float[Array, "E D F"],
    *,
    num_rows: int,
) -> Backend:
    """The fastest backend for a device that can do both matmuls.

    Args:
      device: that will run it.
      tokens: what the rows will be copies of.
      gate: of all experts.
      num_rows: R.
    """
    num_experts, model_dim, width = gate.shape
    rows = varying.shape_like((num_rows, model_dim), tokens)
    sides = ((model_dim, 2 * width), (width, model_dim))
    matrices = [varying.shape_like((num_experts, *side), gate) for side in sides]
    return matmul.choose(device, rows, *matrices)
