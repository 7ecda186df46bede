"""What varies over which mesh axis, and how gradients come back from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from deepseek_jax.ops import varying


def mapped(function, *, in_specs, out_specs):
    """On two by two devices, `a` and `b`."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def test_outside_of_a_map_nothing_happens():
    x = jnp.ones(3)
    assert varying.like(x, x) is x
    assert varying.over(x) is x


@pytest.mark.parametrize(
    ("specs", "axes"),
    [
        ((None, None), set()),
        ((None, "a"), {"a"}),
        (("b", "a"), {"a", "b"}),
        (("a", "a"), {"a"}),
        (("a", None), {"a"}),
    ],
)
def test_like_varies_over_the_axes_of_both(specs, axes):
    seen = []

    def body(x, other):
        y = varying.like(x, other)
        seen.append(set(jax.typeof(y).manual_axis_type.varying))
        return jax.lax.psum(varying.over(y, "a", "b"), ("a", "b"))

    in_specs = tuple(PartitionSpec(axis) for axis in specs)
    jax.eval_shape(
        mapped(body, in_specs=in_specs, out_specs=PartitionSpec()), jnp.ones(4), jnp.ones(4)
    )
    assert seen[0] == axes


def test_gradients_are_summed_over_what_was_added():
    # x is whole on four devices; those of a = 0 make x, those of a = 1 make 2 x, of either b:
    # x (1 + 1 + 2 + 2), of which each factor gets 2 x.
    def body(x, factors):
        there = varying.over(x, "a", "b")
        return jax.lax.psum(there * varying.like(factors, there), ("a", "b"))

    run = mapped(body, in_specs=(PartitionSpec(), PartitionSpec("a")), out_specs=PartitionSpec())
    loss = jax.jit(jax.value_and_grad(lambda x, factors: run(x, factors)[0], argnums=(0, 1)))
    value, (d_x, d_factors) = loss(jnp.array([3.0]), jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(value, 18.0)
    np.testing.assert_array_equal(d_x, [6.0])
    np.testing.assert_array_equal(d_factors, [6.0, 6.0])
