"""Muon against optax, and by the law that its updates are orthogonal momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.training import muon
from deepseek_jax.training.parameter_groups import parameter_name
from tests import tolerances

SHAPES = {
    ("attention", "query", "kernel"): (2, 6, 2, 4),
    ("attention", "out", "kernel"): (2, 2, 4, 6),
    ("feed_forward", "gate"): (2, 3, 6, 10),
    ("feed_forward", "down"): (2, 3, 10, 6),
    ("feed_forward", "shared_up"): (2, 6, 10),
}
# Of each: dimensions of the inputs and of the outputs, as optax counts them.
OPTAX_AXES = {
    ("attention", "query", "kernel"): ((1,), (2, 3)),
    ("attention", "out", "kernel"): ((1, 2), (3,)),
    ("feed_forward", "gate"): ((2,), (3,)),
    ("feed_forward", "down"): ((2,), (3,)),
    ("feed_forward", "shared_up"): ((1,), (2,)),
}


def _tree(leaf_of):
    """{"layers": {part: {name: ...}}} with what `leaf_of` makes for each matrix."""
    tree = {}
    for path in SHAPES:
        node = tree
        for name in ("layers", *path[:-1]):
            node = node.setdefault(name, {})
        node[path[-1]] = leaf_of(path)
    return tree


def _gradients(seed):
    random = np.random.default_rng(seed)
    return _tree(lambda path: jnp.asarray(random.normal(size=SHAPES[path]), jnp.float32))


def _fans(path):
    inputs, outputs = (int(np.prod([SHAPES[path][i] for i in side])) for side in OPTAX_AXES[path])
    return inputs, outputs


@pytest.mark.deep
def test_the_first_update_is_that_of_optax():
    """Later ones differ: optax corrects the bias of both parts of Nesterov's momentum."""
    axes = _tree(lambda path: optax.contrib.MuonDimensionNumbers(*OPTAX_AXES[path]))
    oracle = optax.contrib.scale_by_muon(beta=muon.BETA, weight_dimension_numbers=axes)
    ours = muon.orthogonalized_momentum(None)
    gradients = _gradients(0)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = oracle.update(gradients, oracle.init(gradients), gradients)
    updates, _ = ours.update(gradients, ours.init(gradients))
    scales = _tree(lambda path: np.sqrt(max(1.0, _fans(path)[1] / _fans(path)[0])))
    for (path, update), want, scale in zip(
        jax.tree_util.tree_leaves_with_path(updates),
        jax.tree.leaves(expected),
        jax.tree.leaves(scales),
        strict=True,
    ):
        np.testing.assert_allclose(
            update, want * np.float32(scale), **tolerances.LAYER_F32, err_msg=parameter_name(path)
        )


def test_an_update_is_orthogonal_momentum():
    ours = muon.orthogonalized_momentum(None)
    state = ours.init(_gradients(0))
    for seed in range(3):
        updates, state = ours.update(_gradients(seed), state)
    parts = [_gradients(seed)["layers"]["feed_forward"]["down"] for seed in range(3)]
    trace = parts[2] + muon.BETA * parts[1] + muon.BETA**2 * parts[0]
    expected = muon.orthogonalized(parts[2] + muon.BETA * trace)
    update = updates["layers"]["feed_forward"]["down"]
    np.testing.assert_allclose(update, expected, **tolerances.LAYER_F32)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (3, 5, 5)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    matrices = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    made = np.asarray(muon.orthogonalized(jnp.asarray(matrices)))
    values = np.linalg.svd(made, compute_uv=False)
    assert values.min() > 0.3 and values.max() < 1.6
    u, _, vt = np.linalg.svd(matrices, full_matrices=False)
    inside = np.swapaxes(u, -1, -2) @ made @ np.swapaxes(vt, -1, -2)
    off = inside - np.einsum("...ii->...i", inside)[..., None] * np.eye(inside.shape[-1])
    np.testing.assert_allclose(off, np.zeros_like(off), **tolerances.MODEL_F32)
