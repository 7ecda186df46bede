"""A function of rows on a mesh is what it is on one device, and sends nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.parallel import program, rowwise, rules
from tests import tolerances
from tests.parallel import layers


def best(rows, bias):
    """The two best entries of each row after a bias, and where they stand."""
    values, index = jax.lax.top_k(rows + bias[None] if bias is not None else rows, 2)
    return values, index


def inputs():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (8, 5)), jax.random.normal(keys[1], (5,))


def test_equals_the_function_and_learns_the_same():
    rows, bias = inputs()

    def run(layout):
        def loss(rows, bias):
            values, index = rowwise.apply(layout, best, rows, bias)
            return jnp.sum(values**2), (values, index)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(rows, bias)

    # what is whole on every device gets its gradient from the rows of all
    chex.assert_trees_all_close(run(layers.layout((2, 2, 2))), run(None), **tolerances.LAYER_F32)


def test_nothing_is_sent():
    layout = layers.layout((2, 2, 2))
    placed = rules.sharding(layout.mesh, "batch")
    run = jax.jit(lambda rows: rowwise.apply(layout, best, rows, None), in_shardings=placed)
    compiled = run.lower(inputs()[0]).compile()
    assert program.collectives(compiled.as_text()) == []
    values, _ = compiled(jax.device_put(inputs()[0], placed))
    assert values.sharding.shard_shape(values.shape) == (2, 2)
    np.testing.assert_array_equal(values, best(inputs()[0], None)[0])
