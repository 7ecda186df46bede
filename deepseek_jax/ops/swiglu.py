"""What every path of SwiGLU is made of: its matmul and its gate. Floor 1."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(subscripts: str, x: Array, matrices: Array) -> Array:
    """An einsum that accumulates in float32 and returns the dtype of `x`."""
    return jnp.einsum(subscripts, x, matrices, preferred_element_type=jnp.float32).astype(x.dtype)


def gated(gate: Float[Array, "*R F"], up: Float[Array, "*R F"]) -> Float[Array, "*R F"]:
    """silu(gate) * up in float32, in the dtype of `gate` (arXiv:2002.05202, eq. 5)."""
    chex.assert_equal_shape([gate, up])
    product = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return product.astype(gate.dtype)
