"""Attention on a mesh is what it is on one device, and sends nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.flash import attention as flash
from deepseek_jax.parallel import headwise, program, rules
from deepseek_jax.parallel.layout import Layout
from tests import tolerances
from tests.parallel import layers


def plain(query, key, value, ids):
    """Attention of each query head to the key head of its group, with whole [L, L] arrays."""
    group = query.shape[2] // key.shape[2]
    logits = jnp.einsum("blnh,bsnh->bnls", query, jnp.repeat(key, group, 2))
    seen = (ids[:, :, None] == ids[:, None, :]) & (ids[:, :, None] != 0)
    logits = jnp.where(seen[:, None], logits, -1e30)
    return jnp.einsum("bnls,bsnh->blnh", jax.nn.softmax(logits), jnp.repeat(value, group, 2))


def inputs(*, num_rows=8, num_kv_heads=2, width=6):
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, d_out = (
        jax.random.normal(each, (num_rows, 12, num, width))
        for each, num in zip(keys, (4, num_kv_heads, num_kv_heads, 4), strict=True)
    )
    ids = jnp.asarray([[1] * (n + 1) + [2] * (10 - n) + [0] for n in range(num_rows)], jnp.int32)
    return query, key, value, ids, d_out


def both(layout, attend):
    """(query, key, value, ids, d_out) -> answers and gradients."""

    def run(query, key, value, ids, d_out):
        def on_mesh(*qkv):
            return headwise.apply(layout, attend, *qkv, ids)

        out, pull = jax.vjp(on_mesh, query, key, value)
        return (out, *pull(d_out))

    return run


def test_equals_the_function_and_learns_the_same():
    arguments = inputs()
    found = jax.jit(both(layers.layout((2, 2, 2)), plain))(*arguments)
    wanted = jax.jit(both(None, plain))(*arguments)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, **tolerances.LAYER_F32)


def test_nothing_is_sent():
    layout = layers.layout((2, 2, 2))
    heads = rules.sharding(layout.mesh, "batch", None, "heads", None)
    rows = rules.sharding(layout.mesh, "batch", None)
    placed = (heads, heads, heads, rows, heads)
    run = jax.jit(both(layout, plain), in_shardings=placed)
    compiled = run.lower(*inputs()).compile()
    assert program.collectives(compiled.as_text()) == []
    out, *_ = compiled(*map(jax.device_put, inputs(), placed))
    assert out.sharding.shard_shape(out.shape) == (2, 12, 2, 6)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_the_kernels_stand_in_the_map_and_lower_for_nvidia_gpus():
    # JAX cannot interpret a kernel where values vary, so the program is looked at instead.
    spec = layers.layout((2, 2, 2)).spec
    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.sharding.AbstractMesh((2, 2, 2), rules.AXES, auto, abstract_device=kind)
    arguments = inputs(width=16)
    with jax.sharding.use_abstract_mesh(mesh):
        run = jax.jit(both(Layout(spec, mesh), flash.flash_attention))
        traced = run.trace(*arguments)
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert [x.shape for x in traced.out_info] == [(8, 12, num, 16) for num in (4, 4, 2, 2)]
    calls = [line for line in lowered.splitlines() if "@__gpu$xla.gpu.triton" in line]
    assert len(calls) == 3
    # Each device's own two rows and two heads of four.
    assert all("tensor<2x12x2x16xf32>" in line for line in calls)


@pytest.mark.parametrize("sizes", [{"num_rows": 6}, {"num_kv_heads": 1}])
def test_what_cannot_be_cut_evenly_raises(sizes):
    with pytest.raises(ValueError, match="2x2x2: must be multiples of 4 and 2"):
        jax.eval_shape(both(layers.layout((2, 2, 2)), plain), *inputs(**sizes))
