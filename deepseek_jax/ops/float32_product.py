"""A product of tokens with a float32 matrix, in float32 whatever the tokens' dtype. Floor 1.

Matrix units multiply bfloat16, not float32. A float32 number is the sum of three of bfloat16, of
eight bits of mantissa each; tokens that are bfloat16 already times those three are exact, so
three fast products stand in for the slow one (as in arXiv:1904.06376, for one operand). CPUs
multiply float32 faster than bfloat16, so there it stays one product.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

_EXPONENT_BITS, _MANTISSA_BITS = 8, 7  # of bfloat16
# Without it a GPU would round operands of float32 to 10 bits of mantissa (TF32).
_whole = functools.partial(
    jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)
_half = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def float32_product(x: Float[Array, "T D"], kernel: Float[Array, "D E"]) -> Float[Array, "T E"]:
    """The product x kernel in float32, with float32 sums.

    For bfloat16 tokens every term is exact. Their gradient is rounded to bfloat16 at the end; its
    terms are right to 2^-16 before. For a gradient tokens are kept as they are given.

    Args:
      x: [T, D], any float dtype.
      kernel: [D, E] float32.
    """
    return _fastest(x, at_once, by_parts)(x, kernel)


def _forward(
    x: Float[Array, "T D"], kernel: Float[Array, "D E"]
) -> tuple[Float[Array, "T E"], tuple[Float[Array, "T D"], Float[Array, "D E"]]]:
    return float32_product(x, kernel), (x, kernel)


def _backward(
    kept: tuple[Float[Array, "T D"], Float[Array, "D E"]], gradient: Float[Array, "T E"]
) -> tuple[Float[Array, "T D"], Float[Array, "D E"]]:
    return _fastest(kept[0], pull_at_once, pull_by_parts)(*kept, gradient)


float32_product.defvjp(_forward, _backward)


def _fastest(
    x: Float[Array, "T D"], at_once: Callable[..., Any], by_parts: Callable[..., Any]
) -> Callable[..., Any]:
    """Which of the two, for these tokens and where they will be."""
    if x.dtype != jnp.bfloat16:
        return at_once
    return functools.partial(jax.lax.platform_dependent, cpu=at_once, default=by_parts)


def at_once(x: Float[Array, "T D"], kernel: Float[Array, "D E"]) -> Float[Array, "T E"]:
    """`float32_product` by one product of float32."""
    return _whole("td,de->te", x.astype(jnp.float32), kernel)


def pull_at_once(
    x: Float[Array, "T D"], kernel: Float[Array, "D E"], gradient: Float[Array, "T E"]
) -> tuple[Float[Array, "T D"], Float[Array, "D E"]]:
    """The gradients of both by products of float32."""
    d_x = _whole("te,de->td", gradient, kernel).astype(x.dtype)
    return d_x, _whole("td,te->de", x.astype(jnp.float32), gradient)


def by_parts(x: BFloat16[Array, "T D"], kernel: Float[Array, "D E"]) -> Float[Array, "T E"]:
    """`float32_product` by three products of bfloat16."""
    return _sum(_half("td,de->te", x, _beside(*_parts(kernel))))


def pull_by_parts(
    x: BFloat16[Array, "T D"], kernel: Float[Array, "D E"], gradient: Float[Array, "T E"]
) -> tuple[BFloat16[Array, "T D"], Float[Array, "D E"]]:
    """The gradients of both by products of bfloat16."""
    high, middle, low = _parts(gradient)
    d_kernel = _sum(_half("td,te->de", x, _beside(high, middle, low)))
    kernel_high, kernel_middle, _ = _parts(kernel)
    # Of the nine products the three that reach 2^-16.
    left = _beside(high, high, middle)
    right = _beside(kernel_high, kernel_middle, kernel_high)
    return _half("te,de->td", left, right).astype(x.dtype), d_kernel


def _parts(x: Float[Array, "N E"]) -> tuple[BFloat16[Array, "N E"], ...]:
    """Three parts of falling size, whose sum is x."""
    # A compiler may leave out a cast to bfloat16 and back, but not this.
    rounded = functools.partial(
        jax.lax.reduce_precision, exponent_bits=_EXPONENT_BITS, mantissa_bits=_MANTISSA_BITS
    )
    high = rounded(x)
    middle = rounded(x - high)
    return tuple(part.astype(jnp.bfloat16) for part in (high, middle, x - high - middle))


def _beside(*parts: BFloat16[Array, "N E"]) -> BFloat16[Array, "N F"]:
    """F = 3 E: as one matrix, for one product."""
    return jnp.concatenate(parts, axis=1)


def _sum(products: Float[Array, "N F"]) -> Float[Array, "N E"]:
    """Of what came of three parts, the smallest first."""
    high, middle, low = jnp.split(products, 3, axis=1)
    return high + (middle + low)
