"""Experts on many devices answer and learn as on one: values, gradients, counts, checks."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.nn import feed_forward
from deepseek_jax.nn import model as model_lib
from deepseek_jax.ops import experts, moe
from deepseek_jax.parallel import exchange, expert_parallel
from deepseek_jax.parallel import layout as layout_lib
from tests import tiny, tolerances
from tests.parallel import layers

MESHES = [(1, 1, 1), (1, 2, 1), (1, 4, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 4, 2), (8, 1, 1)]
REFERENCE = jax.jit(layers.with_gradients(layers.reference))


def name_of(sizes):
    return "x".join(map(str, sizes))


def meshes(*, deep, quick):
    """All of them for `make test`, some for `make check`."""
    marks = {sizes: () if sizes in quick else (pytest.mark.deep,) for sizes in deep}
    return [pytest.param(sizes, marks=marks[sizes], id=name_of(sizes)) for sizes in deep]


def check(subject, given, sizes, *, capacity):
    """Answers, gradients and counts are those of the reference without what found no row."""
    output, gradients = subject(given)
    kept = layers.kept_of(given, sizes, capacity=capacity)
    share = kept.astype(np.float32)
    routing = given.routing._replace(weights=given.routing.weights * share)
    want, (d_tokens, d_weights, d_matrices) = REFERENCE(given._replace(routing=routing))
    want_gradients = (d_tokens, d_weights * share, d_matrices)
    chex.assert_trees_all_close(output.x, want.x, **tolerances.LAYER_F32)
    chex.assert_trees_all_close(gradients, want_gradients, **tolerances.LAYER_F32)
    real = np.broadcast_to(np.asarray(given.token_mask)[:, None], kept.shape)
    visits = layers.visits_of(given, sizes, real)
    placed = layers.visits_of(given, sizes, real & kept)
    counts = (output.num_dropped, output.num_visits, output.num_overflowed)
    expected = ((real & ~kept).sum(), len(visits), len(visits) - len(placed))
    assert [int(count) for count in counts] == [int(count) for count in expected]
    return expected


@pytest.mark.parametrize("sizes", meshes(deep=MESHES, quick=[(1, 4, 1), (2, 2, 2)]))
def test_exact_equals_the_reference(sizes):
    num_local = layers.NUM_TOKENS // (sizes[0] * sizes[1])
    subject = jax.jit(layers.with_gradients(layers.on_mesh(sizes, capacity=num_local)))
    cases = {
        "usual": layers.case(),
        "padding": layers.case(padding=True, seed=1),
        "five experts have no token": layers.case([6, 0, 3]),
        # on 1x2 and 2x2x2 all of a token's experts on one device; on 1x4 two of three
        "experts that live together": layers.case([5, 4, 7]),
        "no real token": layers.case()._replace(token_mask=jnp.zeros(layers.NUM_TOKENS, bool)),
    }
    for name, given in cases.items():
        num_dropped, _, num_overflowed = check(subject, given, sizes, capacity=num_local)
        assert (num_dropped, num_overflowed) == (0, 0), name


@pytest.mark.deep
@pytest.mark.parametrize("sizes", MESHES, ids=name_of)
def test_all_tokens_on_one_expert(sizes):
    num_local = layers.NUM_TOKENS // (sizes[0] * sizes[1])
    given = layers.case([5], top_k=1)
    subject = jax.jit(layers.with_gradients(layers.on_mesh(sizes, capacity=num_local)))
    assert check(subject, given, sizes, capacity=num_local) == (0, layers.NUM_TOKENS, 0)
    used = np.abs(subject(given)[1][2].gate).max((1, 2)) > 0
    np.testing.assert_array_equal(used, np.arange(8) == 5)


BOUNDED = [(1, 2, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]


@pytest.mark.parametrize("sizes", meshes(deep=BOUNDED, quick=[(2, 2, 2)]))
def test_bounded_drops_what_found_no_row_and_nothing_else(sizes):
    capacity = 3 if sizes[1] == 2 else 1
    subject = jax.jit(layers.with_gradients(layers.on_mesh(sizes, capacity=capacity)))
    for given in (layers.case(), layers.case(padding=True, seed=2), layers.case([2, 3, 6])):
        num_dropped, _, num_overflowed = check(subject, given, sizes, capacity=capacity)
        assert num_dropped >= num_overflowed > 0


def test_local_capacity_with_room_equals_the_reference():
    sizes, num_local = (1, 4, 1), 8
    # 8 experts / 3 choices: room for every token that can come, in each expert
    local_moe = moe.capacity(num_assignments=num_local * 3, factor=layers.NUM_EXPERTS / 3)
    layer = layers.on_mesh(sizes, capacity=num_local, local_moe=local_moe)
    check(jax.jit(layers.with_gradients(layer)), layers.case(), sizes, capacity=num_local)


@pytest.mark.parametrize("sizes", meshes(deep=[(1, 4, 1), (2, 1, 2), (2, 2, 2)], quick=[(2, 2, 2)]))
@pytest.mark.deep
def test_grouped_matmuls_on_each_device_equal_the_reference(sizes):
    num_local = layers.NUM_TOKENS // (sizes[0] * sizes[1])
    local_moe = moe.grouped(backend="loop", recompute=True)
    layer = layers.on_mesh(sizes, capacity=num_local, local_moe=local_moe)
    subject = jax.jit(layers.with_gradients(layer))
    for given in (layers.case(), layers.case(padding=True, seed=2)):
        assert check(subject, given, sizes, capacity=num_local)[0] == 0


def test_local_capacity_drops_are_counted_with_those_on_the_way():
    # 4 tokens on 2 devices, all want expert 0, which takes ceil(1 * 8 / 4) = 2 rows (X = 4):
    # those of the first device. One more assignment is dropped on the way with one row each.
    given = layers.case([0], num_tokens=4, top_k=1)
    local_moe = moe.capacity(num_assignments=8, factor=1.0)
    for capacity, kept, dropped in ((2, [0, 1], 2), (1, [0, 2], 2)):
        layer = layers.on_mesh((1, 2, 1), capacity=capacity, local_moe=local_moe)
        output = jax.jit(layer)(*given[:4])
        mask = np.isin(np.arange(4), kept)
        want = layers.reference(given.tokens, jnp.asarray(mask), given.routing, given.weights)
        np.testing.assert_allclose(output.x, want.x, **tolerances.LAYER_F32)
        assert (int(output.num_dropped), int(output.num_visits)) == (dropped, 4)
        assert int(output.num_overflowed) == 4 - 2 * capacity


@pytest.mark.deep
def test_low_precision_stays_near_the_reference():
    sizes, num_local = (2, 2, 2), 8
    given = layers.case(seed=3)
    half = given._replace(
        tokens=given.tokens.astype(jnp.bfloat16),
        weights=jax.tree.map(lambda x: (0.3 * x).astype(jnp.bfloat16), given.weights),
        d_x=given.d_x.astype(jnp.bfloat16).astype(jnp.float32),
    )
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, half)
    output, gradients = jax.jit(layers.with_gradients(layers.on_mesh(sizes, capacity=num_local)))(
        half
    )
    want, want_gradients = REFERENCE(wide)
    assert output.x.dtype == gradients[0].dtype == jnp.bfloat16
    assert gradients[1].dtype == jnp.float32
    got = jax.tree.map(lambda x: x.astype(jnp.float32), (output.x, gradients))
    chex.assert_trees_all_close(got, (want.x, want_gradients), **tolerances.BF16)


@pytest.mark.parametrize(
    ("axes", "what"), [("model", "x"), (("data", "expert"), "num_dropped")], ids=str
)
def test_a_forgotten_sum_is_an_error_before_anything_runs(axes, what, monkeypatch):
    psum = jax.lax.psum
    monkeypatch.setattr(
        expert_parallel.jax.lax,
        "psum",
        lambda x, names: x if names == axes else psum(x, names),
    )
    with pytest.raises(ValueError, match=rf"out_specs\.{what} is"):
        jax.eval_shape(layers.on_mesh((1, 2, 1), capacity=16), *layers.case()[:4])


def test_tokens_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="divisible"):
        jax.eval_shape(layers.on_mesh((1, 8, 1), capacity=4), *layers.case(num_tokens=12)[:4])


def _decoder_gradients(spec, layout, variables):
    """Loss and statistics of random rows, one of them half padding, and all gradients."""
    model = model_lib.Decoder(spec, layout)
    tokens, context = tiny.rows(batch_size=4, vocab_size=48)
    context["document_ids"] = context["document_ids"].at[1, 13:].set(0)

    def loss(params):
        output = model.apply({**variables, "params": params}, tokens, **context)
        logprobs = jax.nn.log_softmax(output.logits)
        picked = jnp.take_along_axis(logprobs, tokens[..., None], -1)
        return -jnp.mean(picked) + output.aux_loss, output.stats

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@pytest.mark.deep
@pytest.mark.parametrize(
    ("variant", "sizes"),
    [("sparse", (2, 2, 2)), ("biased", (2, 2, 2)), ("full", (1, 4, 2)), ("dense", (4, 1, 2))],
)
def test_the_decoder_on_a_mesh_equals_itself_on_one_device(variant, sizes):
    """Experts in a scan over layers whose blocks are computed again in the backward pass."""
    spec = dataclasses.replace(tiny.VARIANTS[variant], vocab_size=48, remat="block")
    _, variables = tiny.make(spec)
    (want_loss, want_stats), want = _decoder_gradients(spec, None, variables)
    (loss, stats), got = _decoder_gradients(spec, layers.layout(sizes), variables)
    np.testing.assert_allclose(loss, want_loss, **tolerances.MODEL_F32)
    chex.assert_trees_all_close(got, want, **tolerances.MODEL_F32)
    if variant != "dense":
        np.testing.assert_array_equal(stats.load, want_stats.load)
        np.testing.assert_array_equal(stats.dropped, 0.0)


@pytest.mark.deep
def test_the_decoder_drops_on_a_mesh_what_the_oracle_drops(monkeypatch):
    """Bounded, in scan and recomputation, against every expert on every token that is kept."""
    spec = dataclasses.replace(tiny.SPARSE, vocab_size=48, remat="block")
    _, variables = tiny.make(spec)
    devices = layers.layout((1, 4, 2))
    bounded = dataclasses.replace(devices.spec, exchange="bounded", rows_factor=1.0)
    (loss, stats), got = _decoder_gradients(
        spec, layout_lib.Layout(bounded, devices.mesh), variables
    )
    num_shards = bounded.num_row_shards

    def kept(expert_ids, mask):
        per_shard = len(mask) // num_shards
        parts = [
            exchange.kept_reference(
                expert_ids[start : start + per_shard],
                mask[start : start + per_shard],
                num_devices=4,
                experts_per_device=2,
                capacity=exchange.rows_per_destination(bounded, spec, num_tokens=per_shard),
            )
            for start in range(0, len(mask), per_shard)
        ]
        return np.concatenate(parts)

    def through_experts(tokens, token_mask, routing, weights, *, spec, layout):
        shape = jax.ShapeDtypeStruct(routing.expert_ids.shape, bool)
        is_kept = jax.pure_callback(kept, shape, routing.expert_ids, token_mask)
        masked = routing._replace(weights=jnp.where(is_kept, routing.weights, 0.0))
        answer = experts.moe_reference(tokens, masked, weights, token_mask)
        lost = jnp.sum(token_mask[:, None] & ~is_kept, dtype=jnp.int32)
        return expert_parallel.ExpertParallelOutput(answer, lost, jnp.int32(0), jnp.int32(0))

    monkeypatch.setattr(feed_forward, "_through_experts", through_experts)
    (want_loss, want_stats), want = _decoder_gradients(spec, None, variables)
    assert stats.dropped.min() > 0  # in each layer
    np.testing.assert_array_equal(stats.dropped, want_stats.dropped)
    np.testing.assert_allclose(loss, want_loss, **tolerances.MODEL_F32)
    chex.assert_trees_all_close(got, want, **tolerances.MODEL_F32)
