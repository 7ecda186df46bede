"""Muon: the momentum of every layer matrix, made nearly orthogonal. Floor 5.

Keller Jordan, 2024. optax has it too (`optax.contrib.scale_by_muon`, the oracle of the tests),
but merges layers and experts into one axis and multiplies matrices as they lie: on a mesh every
device would gather all experts, or parts of matrices in each of the products.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PyTree

from deepseek_jax.parallel import whole_matrices
from deepseek_jax.training.parameter_groups import parameter_name

# Decay of the momentum, and the quintic's coefficients and number of steps, as in the reference
# implementation; the coefficients are chosen for their slope at 0, not to converge.
BETA = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_STEPS = 5
_EPS = 1e-8


def orthogonalized_momentum(
    placement: Mapping[str, NamedSharding] | None,
) -> optax.GradientTransformation:
    """Nesterov momentum, each matrix orthogonal, times sqrt(max(1, outputs / inputs)).

    Args:
      placement: of each parameter by name, on a mesh; every matrix is then computed on one
        device, or where they don't share out evenly on all. None on one device.
    """

    def orthogonalize(updates: PyTree, params: PyTree) -> PyTree:
        del params

        def of_leaf(path: tuple, update: Array) -> Array:
            name = parameter_name(path)
            stacked, inputs = matrix_shape(name, update.ndim)
            shape = update.shape
            width = math.prod(shape[stacked : stacked + inputs])

            def of_matrices(tensors: Array) -> Array:
                lead = tensors.shape[:stacked]
                matrices = tensors.reshape(*lead, width, -1)
                scale = math.sqrt(max(1.0, matrices.shape[-1] / width))
                return (scale * orthogonalized(matrices)).reshape(tensors.shape)

            if placement is None:
                return of_matrices(update)
            return whole_matrices.apply(of_matrices, update, placement[name], num_stacked=stacked)

        return jax.tree_util.tree_map_with_path(of_leaf, updates)

    return optax.chain(optax.trace(decay=BETA, nesterov=True), optax.stateless(orthogonalize))


def matrix_shape(name: str, num_dims: int) -> tuple[int, int]:
    """How a layer matrix is stored: dimensions that stack matrices, and that are its inputs.

    The rest are its outputs. Query, key and value are [layers, D, N, H], a D x (N H) matrix a
    layer; the output projection is [layers, N, H, D]; every other layer matrix ends in its two
    dimensions.
    """
    if name.startswith("layers.attention."):
        return 1, 2 if name.startswith("layers.attention.out.") else 1
    return num_dims - 2, 1


def orthogonalized(matrices: Float[Array, "*B D F"]) -> Float[Array, "*B D F"]:
    """U V^T of each matrix U S V^T, nearly: singular values end in about [0.5, 1.5].

    Newton-Schulz steps of the quintic x -> a x + b x^3 + c x^5 on matrices of norm 1:

        A = X X^T,   X -> a X + (b A + c A A) X
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = jnp.swapaxes(matrices, -1, -2) if is_tall else matrices
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))
    x = x / (norm + _EPS)
    for _ in range(_NUM_STEPS):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return jnp.swapaxes(x, -1, -2) if is_tall else x
