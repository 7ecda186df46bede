"""Attention in blocks against a query-by-query oracle, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import attention, summaries
from tests import tolerances
from tests.ops import attention_oracle

BLOCK, LENGTH, HEADS, KV_HEADS, WIDTH, SUMMARIES = 4, 16, 4, 2, 6, 3

# Documents that start on a border, in the middle of a block, fill several blocks, and padding.
LAYOUTS = {
    "one document": [1] * 16,
    "borders": [1] * 4 + [2] * 8 + [3] * 4,
    "inside blocks": [1] * 3 + [2] * 7 + [3] * 6,
    "padding": [1] * 6 + [2] * 5 + [0] * 5,
}


def _inputs(document_ids, *, seed=0, length=LENGTH):
    keys = jax.random.split(jax.random.key(seed), 5)
    ids = jnp.asarray([document_ids, document_ids[::-1]], jnp.int32)
    query = jax.random.normal(keys[0], (2, length, HEADS, WIDTH))
    key = jax.random.normal(keys[1], (2, length, KV_HEADS, WIDTH))
    value = jax.random.normal(keys[2], (2, length, KV_HEADS, WIDTH))
    weights = summaries.CompressionWeights(
        jax.random.normal(keys[3], (KV_HEADS, SUMMARIES, WIDTH)),
        jax.random.normal(keys[4], (KV_HEADS, SUMMARIES, BLOCK)),
    )
    return query, key, value, ids, weights


@jax.jit
def _summarize(key, value, ids, weights):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    return summaries.summarize_blocks(key, value, ids, positions, weights, block_size=BLOCK)


@jax.jit
def _hybrid(query, key, value, ids, weights):
    pooled = _summarize(key, value, ids, weights)
    return attention.local_global_attention(query, key, value, ids, pooled, block_size=BLOCK)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_summaries_equal_the_oracle(layout):
    _, key, value, ids, weights = _inputs(LAYOUTS[layout])
    pooled = _summarize(key, value, ids, weights)
    oracle = attention_oracle.compress(
        *map(np.asarray, (key, value, ids, *weights)), block_size=BLOCK
    )
    np.testing.assert_allclose(pooled.key, oracle[0], **tolerances.LAYER_F32)
    np.testing.assert_allclose(pooled.value, oracle[1], **tolerances.LAYER_F32)
    np.testing.assert_array_equal(pooled.document_ids, ids[:, BLOCK - 1 :: BLOCK])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_summaries", [True, False])
def test_local_global_equals_the_oracle(layout, with_summaries):
    query, key, value, ids, weights = _inputs(LAYOUTS[layout])
    pooled = _summarize(key, value, ids, weights) if with_summaries else None
    out = attention.local_global_attention(query, key, value, ids, pooled, block_size=BLOCK)
    as_numpy = jax.tree.map(np.asarray, (query, key, value, ids, pooled))
    expected = attention_oracle.local_global(*as_numpy, block_size=BLOCK)
    np.testing.assert_allclose(out, expected, **tolerances.LAYER_F32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_equals_the_oracle(layout):
    query, key, value, ids, _ = _inputs(LAYOUTS[layout])
    out = attention.full_attention(query, key, value, ids, block_size=BLOCK)
    expected = attention_oracle.full(*map(np.asarray, (query, key, value, ids)))
    np.testing.assert_allclose(out, expected, **tolerances.LAYER_F32)


def _dense(query, key, value, ids):
    """Masked softmax over a whole [L, L] array: the form whose gradient nobody doubts."""
    length, groups = query.shape[1], HEADS // KV_HEADS
    logits = jnp.einsum("blnh,bsnh->bnls", query, jnp.repeat(key, groups, 2)) / WIDTH**0.5
    mask = (ids[:, :, None] == ids[:, None, :]) & jnp.tril(jnp.ones((length, length), bool))[None]
    probs = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e30), axis=-1)
    return jnp.einsum("bnls,bsnh->blnh", probs, jnp.repeat(value, groups, 2))


def test_full_gradients_equal_dense_softmax():
    query, key, value, ids, _ = _inputs(LAYOUTS["inside blocks"])
    cotangent = jax.random.normal(jax.random.key(9), query.shape)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *qkv: jnp.sum(attend(*qkv, ids) * cotangent), (0, 1, 2)))(
            query, key, value
        )

    ours = gradients(lambda *x: attention.full_attention(*x, block_size=BLOCK))
    for got, want in zip(ours, gradients(_dense), strict=True):
        np.testing.assert_allclose(got, want, **tolerances.LAYER_F32)


def test_one_block_is_full_attention_with_its_gradients():
    # The local part alone, over one block: the merge with no summaries visible changes nothing.
    query, key, value, ids, weights = _inputs(LAYOUTS["one document"])
    first = slice(0, BLOCK)
    operands = query[:, first], key[:, first], value[:, first]
    cotangent = jax.random.normal(jax.random.key(9), operands[0].shape)

    def gradients(attend):
        return jax.jit(
            jax.grad(lambda *x: jnp.sum(attend(*x, ids[:, first]) * cotangent), (0, 1, 2))
        )(*operands)

    for got, want in zip(
        gradients(lambda *x: _hybrid(*x, weights)), gradients(_dense), strict=True
    ):
        np.testing.assert_allclose(got, want, **tolerances.LAYER_F32)


@pytest.mark.deep
def test_hybrid_gradients_equal_one_concatenated_softmax():
    # Two blocks; the second sees its own keys and the first block's summaries in one softmax.
    query, key, value, ids, weights = _inputs([1] * 8, length=8)
    cotangent = jax.random.normal(jax.random.key(3), query.shape)
    groups = HEADS // KV_HEADS

    def plain(query, key, value, weights):
        pooled = _summarize(key, value, ids, weights)
        keys = jnp.concatenate([key, pooled.key[:, 0]], axis=1)
        values = jnp.concatenate([value, pooled.value[:, 0]], axis=1)
        index = jnp.arange(8)
        local = (index[:, None] // BLOCK == index[None] // BLOCK) & (index[:, None] >= index[None])
        mask = jnp.concatenate([local, jnp.tile(index[:, None] >= BLOCK, (1, SUMMARIES))], axis=1)
        logits = jnp.einsum("blnh,bsnh->bnls", query, jnp.repeat(keys, groups, 2)) / WIDTH**0.5
        probs = jax.nn.softmax(jnp.where(mask[None, None], logits, -1e30), axis=-1)
        return jnp.einsum("bnls,bsnh->blnh", probs, jnp.repeat(values, groups, 2))

    def gradients(attend):
        return jax.jit(jax.grad(lambda *x: jnp.sum(attend(*x) * cotangent), (0, 1, 2, 3)))(
            query, key, value, weights
        )

    ours = gradients(lambda q, k, v, w: _hybrid(q, k, v, ids, w))
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(gradients(plain)), strict=True):
        np.testing.assert_allclose(got, want, **tolerances.LAYER_F32)


@pytest.mark.parametrize("attend", ["hybrid", "full"])
def test_changing_one_document_changes_no_other_bit_for_bit(attend):
    query, key, value, ids, weights = _inputs(LAYOUTS["inside blocks"])

    @jax.jit
    def run(query, key, value):
        if attend == "full":
            return attention.full_attention(query, key, value, ids, block_size=BLOCK)
        return _hybrid(query, key, value, ids, weights)

    other = (ids == 2)[:, :, None, None]
    changed = run(*(jnp.where(other, x * 3.0 + 1.0, x) for x in (query, key, value)))
    before, others = run(query, key, value), np.asarray(ids != 2)
    np.testing.assert_array_equal(np.asarray(changed)[others], np.asarray(before)[others])
    assert not np.allclose(np.asarray(changed)[~others], np.asarray(before)[~others])


def test_padding_is_zero_and_unseen():
    query, key, value, ids, weights = _inputs(LAYOUTS["padding"])
    padding = np.asarray(ids == 0)
    out = np.asarray(_hybrid(query, key, value, ids, weights))
    np.testing.assert_array_equal(out[padding], 0.0)
    full = np.asarray(attention.full_attention(query, key, value, ids, block_size=BLOCK))
    np.testing.assert_array_equal(full[padding], 0.0)
    noisy = jnp.where((ids == 0)[:, :, None, None], 1e3, value)
    np.testing.assert_array_equal(np.asarray(_hybrid(query, key, noisy, ids, weights)), out)


def test_the_future_is_unseen_bit_for_bit():
    query, key, value, ids, weights = _inputs(LAYOUTS["one document"])
    cut = 9  # inside the third block
    later = (jnp.arange(LENGTH) >= cut)[None, :, None, None]
    before = _hybrid(query, key, value, ids, weights)
    after = _hybrid(query, jnp.where(later, 7.0, key), jnp.where(later, 7.0, value), ids, weights)
    np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
    assert not np.allclose(after[:, cut:], before[:, cut:])


def test_earlier_blocks_reach_later_ones_only_through_summaries():
    query, key, value, ids, weights = _inputs(LAYOUTS["one document"])
    first = (jnp.arange(LENGTH) < BLOCK)[None, :, None, None]
    changed = jnp.where(first, value + 1.0, value)
    hybrid = [_hybrid(query, key, v, ids, weights)[:, BLOCK:] for v in (value, changed)]
    assert not np.allclose(*hybrid)
    local = [
        attention.local_global_attention(query, key, v, ids, None, block_size=BLOCK)[:, BLOCK:]
        for v in (value, changed)
    ]
    np.testing.assert_array_equal(*local)


@pytest.mark.deep
def test_blocks_one_after_another_equal_blocks_at_once(monkeypatch):
    query, key, value, ids, weights = _inputs(LAYOUTS["inside blocks"])
    untraced = _hybrid.__wrapped__  # the jitted one would answer from its first trace

    def value_and_gradients():
        return jax.jit(
            jax.value_and_grad(lambda *x: jnp.sum(untraced(*x, ids, weights) ** 2), (0, 1, 2))
        )(query, key, value)

    batched = value_and_gradients()
    monkeypatch.setattr(attention, "MAX_BATCHED_BLOCKS", 1)
    mapped = value_and_gradients()
    for got, want in zip(jax.tree.leaves(mapped), jax.tree.leaves(batched), strict=True):
        np.testing.assert_allclose(got, want, **tolerances.LAYER_F32)


def _largest_array(function, *args):
    """Elements of the largest array in a traced program, its inner programs included."""

    def walk(jaxpr):
        sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "size")]
        inner = [
            walk(sub.jaxpr if hasattr(sub, "jaxpr") else sub)
            for e in jaxpr.eqns
            for param in e.params.values()
            for sub in (param if isinstance(param, tuple | list) else [param])
            if hasattr(sub, "eqns") or hasattr(sub, "jaxpr")
        ]
        return max([0, *sizes, *inner])

    return walk(jax.make_jaxpr(function)(*args).jaxpr)


@pytest.mark.deep
@pytest.mark.parametrize("attend", ["hybrid", "full"])
def test_no_array_of_length_squared_forward_or_backward(attend):
    length, block = 4096, 64
    shape = (1, length, 1, 2)
    ids = jnp.ones((1, length), jnp.int32)
    positions = jnp.arange(length)[None]
    weights = summaries.CompressionWeights(jnp.ones((1, 1, 2)), jnp.ones((1, 1, block)))

    def loss(query, key, value):
        if attend == "full":
            out = attention.full_attention(query, key, value, ids, block_size=block)
        else:
            pooled = summaries.summarize_blocks(
                key, value, ids, positions, weights, block_size=block
            )
            out = attention.local_global_attention(query, key, value, ids, pooled, block_size=block)
        return jnp.sum(out)

    x = jnp.ones(shape)
    largest = _largest_array(jax.grad(loss, (0, 1, 2)), x, x, x)
    assert largest < length * length / 8
    assert largest >= length * 2  # the probe does see the program


def test_bfloat16_stays_close_to_float32():
    query, key, value, ids, weights = _inputs(LAYOUTS["inside blocks"])
    exact = _hybrid(query, key, value, ids, weights)
    low = _hybrid(*(x.astype(jnp.bfloat16) for x in (query, key, value)), ids, weights)
    assert low.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(low, np.float32) - exact) / np.linalg.norm(exact)
    assert error < tolerances.BF16["rtol"]
