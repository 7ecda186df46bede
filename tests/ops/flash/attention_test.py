"""The kernels of flash attention, interpreted, against float64 and against `ops/attention.py`."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from deepseek_jax.ops import attention
from deepseek_jax.ops.flash import attention as flash
from deepseek_jax.ops.flash.triton import Tile, Tiles
from tests.ops import attention_oracle

# Norm of the error over the norm of the result: bfloat16's own rounding is 1.7e-3, of weights too.
RELATIVE = {jnp.float32: 2e-6, jnp.bfloat16: 6e-3, jnp.float16: 1e-3}
# Kernels of unlike tiles, so that a tile of queries has several of keys, and the other way round.
TILES = Tiles(Tile(32, 16, 4, 2), Tile(16, 32, 4, 2), Tile(32, 16, 4, 2))
LENGTH, HEADS, KV_HEADS, WIDTH = 72, 4, 2, 16
IDS = {
    "one document": [1] * 72,
    "borders of tiles": [1] * 32 + [2] * 16 + [3] * 24,
    "inside tiles": [1] * 3 + [2] * 50 + [3] * 19,
    "padding": [1] * 5 + [2] * 40 + [3] * 10 + [0] * 17,
    "padding first": [0] * 20 + [1] * 52,
    "one token each": list(range(1, 73)),
    "not in order": [7] * 20 + [1] * 20 + [7] * 20 + [-3] * 12,
}


def inputs(dtype=jnp.float32, *, seed=0, shape=(2, LENGTH, HEADS, KV_HEADS, WIDTH)):
    """Queries, keys, values and the gradient of the answers."""
    num_rows, length, num_heads, num_kv_heads, width = shape
    keys = jax.random.split(jax.random.key(seed), 4)
    heads = (num_heads, num_kv_heads, num_kv_heads, num_heads)
    return [
        jax.random.normal(key, (num_rows, length, num, width), dtype)
        for key, num in zip(keys, heads, strict=True)
    ]


@functools.cache
def compiled(tiles):
    """(query, key, value, ids, d_out) -> answers, gradients of query, key and value."""

    @jax.jit
    def run(query, key, value, ids, d_out):
        def attend(*qkv):
            return flash.flash_attention(*qkv, ids, tiles=tiles, interpret=True)

        out, pull = jax.vjp(attend, query, key, value)
        return (out, *pull(d_out))

    return run


def expected(query, key, value, ids, d_out):
    """The same in float64, each head by itself, over a whole [L, L] array."""
    query, key, value, d_out = (
        np.asarray(x).astype(np.float64) for x in (query, key, value, d_out)
    )
    ids, length, group = np.asarray(ids), query.shape[1], query.shape[2] // key.shape[2]
    out, d_query, d_key, d_value = (np.zeros_like(x) for x in (query, query, key, value))
    for b, n in np.ndindex(query.shape[0], query.shape[2]):
        m = n // group
        q, k, v, d_o = query[b, :, n], key[b, :, m], value[b, :, m], d_out[b, :, n]
        seen = (ids[b][:, None] == ids[b][None]) & (ids[b] != 0)[:, None]
        seen &= np.tril(np.ones((length, length), bool))
        logits = np.where(seen, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
        highest = np.where(seen.any(axis=1), logits.max(axis=1), 0.0)
        weights = np.exp(logits - highest[:, None])
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        out[b, :, n] = weights @ v
        d_logits = weights * (d_o @ v.T - np.sum(d_o * out[b, :, n], axis=1, keepdims=True))
        d_query[b, :, n] = d_logits @ k / np.sqrt(q.shape[1])
        d_key[b, :, m] += d_logits.T @ q / np.sqrt(q.shape[1])
        d_value[b, :, m] += weights.T @ d_o
    return out, d_query, d_key, d_value


def assert_near(found, wanted, dtype, ids):
    chex.assert_type(found, dtype)
    least = 0.3 * np.linalg.norm(wanted[0])
    for one, other in zip(found, wanted, strict=True):
        one = np.asarray(one).astype(np.float64)
        assert np.isfinite(one).all()
        assert not one[np.asarray(ids == 0)].any()
        # The gradient of queries that see themselves only is zero but for rounding.
        assert np.linalg.norm(one - other) <= RELATIVE[dtype] * max(np.linalg.norm(other), least)


def rows_of(ids):
    return jnp.asarray([ids, ids[::-1]], jnp.int32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_answers_and_gradients_are_those_of_float64(ids, dtype):
    query, key, value, d_out = inputs(dtype)
    ids = rows_of(ids)
    arguments = (query, key, value, ids, d_out)
    assert_near(compiled(TILES)(*arguments), expected(*arguments), dtype, ids)


def test_answers_are_those_of_the_oracle():
    query, key, value, d_out = inputs()
    ids = rows_of(IDS["padding"])
    out = compiled(TILES)(query, key, value, ids, d_out)[0]
    wanted = attention_oracle.full(*map(np.asarray, (query, key, value, ids)))
    assert_near([out], [wanted], jnp.float32, ids)


def test_answers_and_gradients_are_those_of_the_tiles():
    query, key, value, d_out = inputs(seed=1)
    ids = rows_of(IDS["inside tiles"])

    @jax.jit
    def tiles(query, key, value):
        def attend(*qkv):
            return attention.full_attention(*qkv, ids, block_size=24)

        out, pull = jax.vjp(attend, query, key, value)
        return (out, *pull(d_out))

    wanted = [np.asarray(x, np.float64) for x in tiles(query, key, value)]
    assert_near(compiled(TILES)(query, key, value, ids, d_out), wanted, jnp.float32, ids)


def test_any_documents_in_any_order():
    query, key, value, d_out = inputs(seed=2)

    @hypothesis.given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=1))
    @hypothesis.settings(max_examples=6)
    def law(pieces):
        ids = np.concatenate([[number] * size for number, size in pieces])
        ids = rows_of(np.resize(ids, LENGTH).tolist())
        arguments = (query, key, value, ids, d_out)
        assert_near(compiled(TILES)(*arguments), expected(*arguments), jnp.float32, ids)

    law()


@pytest.mark.deep
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        # The tiles that are meant for these shapes; rows shorter than a tile, and not multiples.
        pytest.param((1, 200, 4, 1, 64), jnp.bfloat16, id="one key head, width 64"),
        pytest.param((1, 256, 2, 2, 128), jnp.bfloat16, id="a key head each, width 128"),
        pytest.param((1, 80, 3, 1, 32), jnp.float16, id="three heads in a group, float16"),
        pytest.param((2, 100, 2, 1, 64), jnp.float32, id="float32"),
        pytest.param((1, 1, 1, 1, 16), jnp.float32, id="one token"),
        pytest.param((2, 17, 2, 1, 16), jnp.bfloat16, id="one past a tile"),
    ],
)
def test_shapes_and_the_tiles_meant_for_them(shape, dtype):
    query, key, value, d_out = inputs(dtype, seed=3, shape=shape)
    length = shape[1]
    ids = jnp.asarray([[1] * (length // 3) + [2] * (length - length // 3)] * shape[0], jnp.int32)
    arguments = (query, key, value, ids, d_out)
    assert_near(compiled(None)(*arguments), expected(*arguments), dtype, ids)


def test_large_logits_neither_overflow_nor_vanish():
    query, key, value, d_out = inputs(seed=4)
    arguments = (query * 100.0, key * 100.0, value, rows_of(IDS["inside tiles"]), d_out)
    found, wanted = compiled(TILES)(*arguments), expected(*arguments)
    assert all(np.isfinite(np.asarray(x)).all() for x in found)
    # Logits of 1e5 have errors of 1e-2 themselves.
    for one, other in zip(found, wanted, strict=True):
        assert np.linalg.norm(np.asarray(one) - other) <= 0.02 * np.linalg.norm(other)


def test_changing_one_document_changes_no_other_bit_for_bit():
    query, key, value, d_out = inputs()
    ids = rows_of(IDS["inside tiles"])
    other = (ids == 2)[:, :, None, None]
    before = compiled(TILES)(query, key, value, ids, d_out)
    changed = (jnp.where(other, 3.0 * x + 1.0, x) for x in (query, key, value))
    after = compiled(TILES)(*changed, ids, d_out)
    others = np.asarray(ids != 2)
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(one)[others], np.asarray(two)[others])
        assert not np.allclose(np.asarray(one)[~others], np.asarray(two)[~others])


def test_padding_is_unseen_and_has_no_gradient():
    query, key, value, d_out = inputs()
    ids = rows_of(IDS["padding"])
    padding = (ids == 0)[:, :, None, None]
    before = compiled(TILES)(query, key, value, ids, d_out)
    noisy = [jnp.where(padding, 1e3, x) for x in (query, key, value, d_out)]
    after = compiled(TILES)(*noisy[:3], ids, noisy[3])
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.asarray(one)[np.asarray(ids == 0)].any()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 16, 4, 2, 24), jnp.float32, "heads of width 16, 32, 64, 128, not 24"),
        ((2, 16, 4, 3, 16), jnp.float32, "heads that divide the query heads, not 3 of 4"),
        ((2, 16, 4, 2, 16), jnp.float8_e4m3fn, "bfloat16, float16, float32, not float8_e4m3fn"),
        ((0, 16, 4, 2, 16), jnp.float32, "no empty queries"),
    ],
)
def test_what_the_kernels_cannot_do_raises(shape, dtype, message):
    num_rows, length, num_heads, num_kv_heads, width = shape
    heads = [
        jax.ShapeDtypeStruct((num_rows, length, num, width), dtype)
        for num in (num_heads, num_kv_heads, num_kv_heads)
    ]
    with pytest.raises(ValueError, match=f"the kernels of flash attention take .*{message}"):
        jax.eval_shape(
            flash.flash_attention, *heads, jax.ShapeDtypeStruct((num_rows, length), jnp.int32)
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v, i: (q, k[:, :-1], v, i),
        lambda q, k, v, i: (q, k, v[..., :-1], i),
        lambda q, k, v, i: (q, k, v, i[:1]),
        lambda q, k, v, i: (q, k.astype(jnp.bfloat16), v, i),
        lambda q, k, v, i: (q, k, v, i.astype(jnp.float32)),
    ],
)
def test_arrays_that_do_not_fit_each_other_raise(change):
    query, key, value, _ = inputs()
    arguments = change(query, key, value, rows_of(IDS["padding"]))
    with pytest.raises(AssertionError):
        jax.eval_shape(flash.flash_attention, *arguments)


class _Device:
    def __init__(self, platform):
        self.platform = platform


@pytest.mark.parametrize(
    ("platform", "width", "backend"),
    [("cpu", 64, "tiles"), ("tpu", 64, "tiles"), ("gpu", 64, "triton"), ("gpu", 24, "tiles")],
)
def test_the_backend_that_is_meant_for_a_device(platform, width, backend):
    query = jax.ShapeDtypeStruct((1, 16, 4, width), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((1, 16, 2, width), jnp.bfloat16)
    assert flash.choose(_Device(platform), query, key) == backend


def test_kernels_say_over_which_devices_their_results_vary():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    heads = PartitionSpec("data", None, "model")
    in_specs = (heads, heads, heads, PartitionSpec("data"))
    attend = jax.shard_map(flash.flash_attention, mesh=mesh, in_specs=in_specs, out_specs=heads)
    query, key, value, d_out = inputs()

    def both(query, key, value, d_out):
        ids = rows_of(IDS["padding"])
        return jax.vjp(lambda *qkv: attend(*qkv, ids), query, key, value)[1](d_out)

    gradients = jax.eval_shape(both, query, key, value, d_out)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 512, 4, 2, 64), jnp.bfloat16),
        ((2, 500, 4, 4, 128), jnp.float16),
        ((1, 48, 4, 1, 32), jnp.float32),
    ],
)
def test_lowers_for_nvidia_gpus(shape, dtype):
    query, key, value, d_out = inputs(dtype, shape=shape)
    ids = jnp.ones(shape[:2], jnp.int32)

    def both(query, key, value, d_out):
        out, pull = jax.vjp(lambda *qkv: flash.flash_attention(*qkv, ids), query, key, value)
        return (out, *pull(d_out))

    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("one",), abstract_device=kind)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(both).trace(query, key, value, d_out)
        lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @__gpu$xla.gpu.triton") == 3
