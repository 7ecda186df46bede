"""Rows sorted by group, each times the matrix of its group, on every kind of device. Floor 1.

    y_r = x_r W_e(r)
    d_x_r = d_y_r W_e(r)^T
    d_W_e = sum over the rows r of e of x_r^T d_y_r

The two gradients are kernels of their own. Axes: R rows, E groups, In and Out of the matrices.
"""

import functools
from typing import Any, Literal, get_args

import chex
import jax
from jaxtyping import Array, Float, Int

from deepseek_jax.ops import varying
from deepseek_jax.ops.grouped import few_rows, loop, megablox, triton
from deepseek_jax.ops.grouped.hopper import limits as hopper_limits
from deepseek_jax.ops.grouped.hopper import outer as hopper_outer
from deepseek_jax.ops.grouped.hopper import product as hopper_product

# loop: any device, made for a CPU; triton: NVIDIA GPUs; hopper: H100 and H200; megablox: TPUs.
Backend = Literal["loop", "triton", "hopper", "megablox"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
# Whose devices run the kernels that Triton compiles, whatever computes the matmuls.
ON_NVIDIA: tuple[Backend, ...] = ("hopper", "triton")


def grouped_matmul(
    rows: Float[Array, "R In"],
    weights: Float[Array, "E In Out"],
    group_sizes: Int[Array, " E"],
    *,
    backend: Backend,
    interpret: bool = False,
) -> Float[Array, "R Out"]:
    """Each row times the matrix of its group; differentiable in rows and matrices.

    Args:
      rows: [R, In], float32, bfloat16 or float16; the rows of group 0, then of group 1, and so on.
        All finite, those that no group holds too; so must be the gradient of the answers.
      weights: [E, In, Out] in the dtype of `rows`; E at least 1.
      group_sizes: [E] integers, any sizes from 0 that sum to at most R.
      backend: what computes it; static. `choose` says which is meant for a device.
      interpret: runs the kernels of a backend step by step, on any device; for tests.
        The loop has none.

    Returns:
      [R, Out] in the dtype of `rows`, sums in float32 (of float32 arguments as exact as JAX's
      matmuls in `loop` and `megablox`, exact in `triton`); zero, and no gradient, for rows that
      no group holds. The gradient of a group without rows is zero.

    Raises:
      ValueError: no such backend, or it can't do these shapes or this dtype; says which can; or
        `interpret` where nothing is interpreted (trace time).

    Cost: 2 In Out FLOPs a row forward and 4 backward, and those of rows that fill up tiles.
    """
    check(rows, weights, group_sizes, backend=backend, interpret=interpret)
    # The gradient of what is the same on all devices is the sum of theirs.
    arguments = (rows, weights, group_sizes)
    return _matmul(*(varying.like(x, *arguments) for x in arguments), backend, interpret)


def check(rows: Any, weights: Any, group_sizes: Any, *, backend: Backend, interpret: bool) -> None:
    """Raises as `grouped_matmul` does, for arrays or their shapes and dtypes."""
    chex.assert_rank([rows, weights, group_sizes], [2, 3, 1])
    num_groups, num_in, _ = weights.shape
    chex.assert_shape(rows, (None, num_in))
    chex.assert_shape(group_sizes, (num_groups,))
    chex.assert_type(weights, rows.dtype)
    chex.assert_type(group_sizes, int)
    if not num_groups:
        raise ValueError("weights of no group: E must be at least 1")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: must be one of {', '.join(BACKENDS)}")
    if interpret and backend == "loop":
        raise ValueError("interpret=True: must be False with backend='loop', which has no kernel")
    reason = refusal(backend, rows, weights)
    if reason is not None:
        able = [other for other in BACKENDS if refusal(other, rows, weights) is None]
        raise ValueError(f"backend={backend!r} {reason}; these can: {', '.join(able)}")


def choose(device: jax.Device, rows: Any, *weights: Any) -> Backend:
    """The fastest backend for a device that can do these shapes.

    Args:
      device: that will run it.
      rows: array, or its shape and dtype.
      weights: matrices that as many rows are multiplied with: arrays, or shapes and dtypes.
    """

    def can(backend: Backend) -> bool:
        return all(refusal(backend, rows, matrices) is None for matrices in weights)

    return next(backend for backend in for_device(device) if can(backend))


def for_device(device: jax.Device) -> tuple[Backend, ...]:
    """The backends that run on a device, the fastest first; the loop, last, runs on all."""
    match device.platform:
        case "gpu" | "cuda":
            is_hopper = getattr(device, "compute_capability", "") == "9.0"
            return ("hopper", "triton", "loop") if is_hopper else ("triton", "loop")
        case "tpu":
            return ("megablox", "loop")
        case _:
            return ("loop",)


def refusal(backend: Backend, rows: Any, weights: Any) -> str | None:
    """Why a backend can't do these shapes or this dtype, after its name; None if it can."""
    num_rows, (_, num_in, num_out) = rows.shape[0], weights.shape
    match backend:
        case "loop":
            return None
        case "triton":
            return triton.refusal(num_rows=num_rows, num_in=num_in, num_out=num_out)
        case "hopper":
            return hopper_limits.refusal(
                num_rows=num_rows, num_in=num_in, num_out=num_out, dtype=rows.dtype
            )
        case "megablox":
            return megablox.refusal(
                num_rows=num_rows,
                num_in=num_in,
                num_out=num_out,
                dtype=rows.dtype,
                is_varying=varying.is_varying(rows),
            )


def product(
    rows: Float[Array, "R In"],
    weights: Float[Array, "E In Out"],
    group_sizes: Int[Array, " E"],
    *,
    backend: Backend,
    interpret: bool,
    transposed: bool = False,
) -> Float[Array, "R Out"]:
    """As `grouped_matmul`, neither checked nor differentiable: what custom gradients are made of.

    With `transposed` the weights are [E, Out, In].
    """
    few = few_rows.are_few(num_rows=rows.shape[0], num_groups=weights.shape[0])
    match backend:
        case "loop":
            return loop.product(rows, weights, group_sizes, transposed=transposed)
        case "triton":
            make = few_rows.product if few else triton.product
        case "hopper":
            make = few_rows.product if few else hopper_product.product
        case "megablox":
            make = megablox.product
    return make(rows, weights, group_sizes, transposed=transposed, interpret=interpret)


def outer(
    rows: Float[Array, "R In"],
    d_out: Float[Array, "R Out"],
    group_sizes: Int[Array, " E"],
    *,
    backend: Backend,
    interpret: bool,
) -> Float[Array, "E In Out"]:
    """d_W of `grouped_matmul`, summed in float32, in the dtype of `rows`; not checked."""
    match backend:
        case "loop":
            return loop.outer(rows, d_out, group_sizes)
        case "triton":
            make = triton.outer
        case "hopper":
            make = hopper_outer.outer
        case "megablox":
            make = megablox.outer
    return make(rows, d_out, group_sizes, interpret=interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _matmul(
    rows: Array, weights: Array, group_sizes: Array, backend: Backend, interpret: bool
) -> Array:
    return product(rows, weights, group_sizes, backend=backend, interpret=interpret)


def _forward(
    rows: Array, weights: Array, group_sizes: Array, backend: Backend, interpret: bool
) -> tuple[Array, tuple[Array, Array, Array]]:
    saved = (rows, weights, group_sizes)
    return _matmul(*saved, backend, interpret), saved


def _backward(
    backend: Backend, interpret: bool, saved: tuple[Array, Array, Array], d_out: Array
) -> tuple[Array, Array, None]:
    rows, weights, group_sizes = saved
    d_rows = product(
        d_out, weights, group_sizes, backend=backend, interpret=interpret, transposed=True
    )
    d_weights = outer(rows, d_out, group_sizes, backend=backend, interpret=interpret)
    return d_rows, d_weights, None


_matmul.defvjp(_forward, _backward)
