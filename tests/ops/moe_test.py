"""Both ways through the experts of one device, with ids that are no assignment."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import experts, moe
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.routing import Routing
from tests import tolerances

NUM_EXPERTS, MODEL_DIM, HIDDEN_DIM = 3, 16, 32
NONE = NUM_EXPERTS
IDS = [[0, 2, NONE], [NONE, NONE, NONE], [NONE, 2, NONE], [1, NONE, 0], [2, 1, 0]]
MASK = [True, True, True, False, True]


def inputs():
    keys = jax.random.split(jax.random.key(0), 6)
    inner, outer = (NUM_EXPERTS, MODEL_DIM, HIDDEN_DIM), (NUM_EXPERTS, HIDDEN_DIM, MODEL_DIM)
    tokens, d_x = (jax.random.normal(key, (len(IDS), MODEL_DIM)) for key in keys[:2])
    matrices = zip(keys[2:5], (inner, inner, outer), strict=True)
    weights = ExpertWeights(*(jax.random.normal(key, shape) for key, shape in matrices))
    return tokens, jax.random.uniform(keys[5], (len(IDS), 3)), weights, d_x


def reference(tokens, token_mask, routing, weights):
    return moe.MoeOutput(experts.moe_reference(tokens, routing, weights, token_mask), jnp.int32(0))


def with_gradients(layer):
    tokens, shares, weights, d_x = inputs()

    def loss(tokens, shares, weights):
        output = layer(tokens, jnp.array(MASK), Routing(jnp.array(IDS), shares), weights)
        return jnp.vdot(output.x, d_x), output

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        tokens, shares, weights
    )


@pytest.mark.parametrize(
    "layer",
    [
        moe.dropless(num_assignments=1),
        moe.dropless(num_assignments=1000),  # another block, the same result
        moe.grouped(backend="loop", recompute=False),
        moe.grouped(backend="loop", recompute=True),
        moe.grouped(backend="triton", recompute=False, interpret=True),
        moe.every_expert(recompute=False),
        moe.every_expert(recompute=True),
        moe.capacity(num_assignments=6, factor=1.5),  # 3 rows, which expert 2 needs
    ],
    ids=[
        "dropless",
        "dropless, large blocks",
        "grouped, loop",
        "grouped, loop, recomputed",
        "grouped, triton",
        "every expert",
        "every expert, recomputed",
        "capacity",
    ],
)
def test_an_id_of_none_neither_answers_nor_learns_nor_drops(layer):
    chex.assert_trees_all_close(
        with_gradients(layer), with_gradients(reference), **tolerances.LAYER_F32
    )


def test_capacity_is_a_factor_of_the_equal_share_rounded_up():
    # ceil(1.25 * 4 / 3) = 2 rows an expert: four tokens want expert 1, two are dropped
    tokens, shares, weights, _ = inputs()
    routing = Routing(jnp.array([[1]] * 4 + [[NONE]]), shares[:, :1])
    layer = moe.capacity(num_assignments=4, factor=1.25)
    output = layer(tokens, jnp.ones(5, bool), routing, weights)
    kept = jnp.array([True, True, False, False, True])
    want = reference(tokens, kept, routing, weights)
    np.testing.assert_allclose(output.x, want.x, **tolerances.LAYER_F32)
    assert int(output.num_dropped) == 2
