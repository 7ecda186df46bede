"""The decoder: cached decoding equals the full pass, packing, padding, dtypes, gradients."""

import dataclasses
import functools
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.core import accounting
from deepseek_jax.nn import feed_forward, kernels
from deepseek_jax.nn import model as model_lib
from deepseek_jax.ops import moe
from tests import tiny, tolerances

# The sparse model in `make check`; the others, each a compilation of its own, in `make test`.
VARIANTS = [
    pytest.param(name, marks=[] if name == "sparse" else [pytest.mark.deep])
    for name in tiny.VARIANTS
]


@pytest.fixture(scope="module", params=VARIANTS)
def built(request):
    spec = tiny.VARIANTS[request.param]
    return (spec, *tiny.make(spec))


def test_cached_decoding_equals_the_full_pass_at_every_position(built):
    spec, model, variables = built
    length = 19  # crosses four block borders of 4 and ends inside a block
    tokens, context = tiny.rows(batch_size=4, length=20)
    full = jax.jit(lambda t: model.apply(variables, t, **context).logits)(tokens)
    lengths = jnp.array([1, 4, 7, 8], jnp.int32)  # inside a block and on its border
    empty = model_lib.empty_cache(spec, batch_size=4, max_length=24)
    rows = jnp.arange(4)
    # What stands behind a prompt in its row must not matter: it is padding.
    prompts = jnp.where(jnp.arange(8)[None] < lengths[:, None], tokens[:, :8], 49)
    logits, cache = jax.jit(lambda t, n, c: model.apply(variables, t, n, c, method="prefill"))(
        prompts, lengths, empty
    )
    np.testing.assert_allclose(logits, full[rows, lengths - 1], **tolerances.MODEL_F32)
    step = jax.jit(lambda t, c: model.apply(variables, t, c, method="step"))
    for _ in range(length - 8):
        at = cache.lengths
        logits, cache = step(tokens[rows, at], cache)
        np.testing.assert_allclose(logits, full[rows, at], **tolerances.MODEL_F32)
    np.testing.assert_array_equal(cache.lengths, lengths + length - 8)


def test_packed_documents_do_not_see_each_other(built):
    _, model, variables = built
    tokens, _ = tiny.rows(batch_size=1)
    ids = jnp.array([[1] * 6 + [2] * 7 + [3] * 4 + [0] * 3], jnp.int32)
    positions = jnp.array([[*range(6), *range(7), *range(4), 0, 0, 0]], jnp.int32)
    run = jax.jit(lambda t: model.apply(variables, t, document_ids=ids, positions=positions).logits)
    before = np.asarray(run(tokens))
    after = np.asarray(run(jnp.where(ids == 2, (tokens + 1) % 50, tokens)))
    others = np.asarray((ids == 1) | (ids == 3))
    np.testing.assert_array_equal(after[others], before[others])
    assert not np.allclose(after[np.asarray(ids == 2)], before[np.asarray(ids == 2)])
    padded = np.asarray(run(jnp.where(ids == 0, 3, tokens)))
    real = np.asarray(ids != 0)
    np.testing.assert_array_equal(padded[real], before[real])


@pytest.mark.deep
def test_a_document_that_starts_on_a_border_equals_itself_unpacked(built):
    spec, model, variables = built
    tokens, _ = tiny.rows(batch_size=1)
    start, end = 8, 17
    ids = jnp.array([[1] * 8 + [2] * 9 + [0] * 3], jnp.int32)
    positions = jnp.array([[*range(8), *range(9), 0, 0, 0]], jnp.int32)
    packed = tiny.applied(model, variables, tokens, document_ids=ids, positions=positions).logits
    alone, context = jnp.pad(tokens[:, start:end], ((0, 0), (0, 3))), tiny.rows(length=12)[1]
    context = jax.tree.map(lambda x: x[:1], context)
    context["document_ids"] = jnp.where(context["positions"] < end - start, 1, 0)
    unpacked = tiny.applied(model, variables, alone, **context).logits
    np.testing.assert_allclose(
        packed[:, start:end], unpacked[:, : end - start], **tolerances.MODEL_F32
    )


@pytest.mark.deep
def test_every_parameter_gets_a_gradient(built):
    spec, model, variables = built
    tokens, context = tiny.rows(batch_size=4)

    def loss(params):
        out = model.apply({**variables, "params": params}, tokens, **context)
        picked = jnp.take_along_axis(jax.nn.log_softmax(out.logits), tokens[..., None], -1)
        return jnp.mean(picked) + out.aux_loss

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0.0, f"{jax.tree_util.keystr(path)} has no gradient"


def test_parameter_count_is_the_accounted_one(built):
    spec, _, variables = built
    counted = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert counted == accounting.count_parameters(spec).total


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "setting"),
    [("sparse", {"remat": "block"}), ("dense", {"remat": "block"}), ("sparse", {"scan_unroll": 2})],
)
def test_how_layers_are_computed_changes_nothing(name, setting):
    spec = tiny.VARIANTS[name]
    model, variables = tiny.make(spec)
    again = model_lib.Decoder(dataclasses.replace(spec, **setting))
    tokens, context = tiny.rows()

    def gradients(model):
        def loss(params):
            out = model.apply({**variables, "params": params}, tokens, **context)
            return jnp.mean(out.logits**2) + out.aux_loss

        return jax.jit(jax.grad(loss))(variables["params"])

    for got, want in zip(
        jax.tree.leaves(gradients(again)), jax.tree.leaves(gradients(model)), strict=True
    ):
        np.testing.assert_allclose(got, want, **tolerances.LAYER_F32)


@pytest.mark.deep
def test_recomputing_experts_changes_no_gradient(monkeypatch):
    """With a kernel for them (here the loop of grouped matmuls stands in for one)."""
    made, grouped = set(), moe.grouped

    def stand_in(*, backend, recompute):
        made.add((backend, recompute))
        return grouped(backend="loop", recompute=recompute)

    monkeypatch.setattr(moe, "grouped", stand_in)
    monkeypatch.setattr(feed_forward.matmul, "for_device", lambda device: ("triton", "loop"))
    base = dataclasses.replace(tiny.SPARSE, expert_kernel="triton")
    _, variables = tiny.make(base)
    tokens, context = tiny.rows()

    def gradients(spec):
        def loss(params):
            out = model_lib.Decoder(spec).apply({**variables, "params": params}, tokens, **context)
            return jnp.mean(out.logits**2) + out.aux_loss

        return jax.jit(jax.grad(loss))(variables["params"])

    chex.assert_trees_all_close(
        gradients(dataclasses.replace(base, remat="experts")),
        gradients(base),
        **tolerances.LAYER_F32,
    )
    assert made == {("triton", True), ("triton", False)}


@pytest.mark.deep
def test_capacity_with_room_equals_dropless():
    model, variables = tiny.make(tiny.SPARSE)
    # Room for every token in every expert: 8 experts / 2 choices = 4 times the expected load.
    roomy = dataclasses.replace(tiny.SPARSE, dispatch="capacity", capacity_factor=4.0)
    tokens, context = tiny.rows()
    dropless = tiny.applied(model, variables, tokens, **context)
    capacity = tiny.applied(model_lib.Decoder(roomy), variables, tokens, **context)
    np.testing.assert_allclose(capacity.logits, dropless.logits, **tolerances.MODEL_F32)
    np.testing.assert_array_equal(capacity.stats.dropped, 0.0)
    np.testing.assert_array_equal(capacity.stats.load, dropless.stats.load)
    tight = dataclasses.replace(roomy, capacity_factor=1.0)
    few = tiny.applied(model_lib.Decoder(tight), variables, tokens, **context)
    assert few.stats.dropped.sum() > 0


@pytest.mark.deep
def test_kernels_for_experts_change_no_answer(monkeypatch):
    interpreted = functools.partial(moe.grouped, interpret=True)
    monkeypatch.setattr(feed_forward.moe_ops, "grouped", interpreted)
    monkeypatch.setattr(feed_forward.matmul, "for_device", lambda device: ("triton", "loop"))
    loop = dataclasses.replace(tiny.SPARSE, model_dim=32)
    model, variables = tiny.make(loop)
    tokens, context = tiny.rows()
    want = tiny.applied(model, variables, tokens, **context)
    spec = dataclasses.replace(loop, expert_kernel="triton")
    found = tiny.applied(model_lib.Decoder(spec), variables, tokens, **context)
    np.testing.assert_allclose(found.logits, want.logits, **tolerances.MODEL_F32)


def test_the_kernel_for_a_device_is_told_once(caplog):
    with caplog.at_level("INFO"):
        for _ in range(2):
            kernels.tell("model.expert_kernel", "triton", "64 rows", "a GPU")
    (line,) = [each for each in caplog.messages if "expert_kernel" in each]
    assert line == "model.expert_kernel='auto': triton for 64 rows on a GPU"


@pytest.mark.parametrize(("dispatch", "factor"), [("dropless", 0.0), ("capacity", 1.0)])
def test_a_kernel_of_another_device_is_refused(dispatch, factor):
    spec = dataclasses.replace(
        tiny.SPARSE, expert_kernel="hopper", dispatch=dispatch, capacity_factor=factor
    )
    tokens, context = tiny.rows()
    message = "model.expert_kernel='hopper': must be 'auto' or 'loop' on cpu"
    with pytest.raises(ValueError, match=message):
        model_lib.Decoder(spec).init(jax.random.key(0), tokens, **context)


@pytest.mark.parametrize(
    ("platform", "changes", "way"),
    [
        pytest.param("gpu", {}, "all at once", id="few in float32"),
        pytest.param("gpu", {"expert_kernel": "triton"}, "kernel", id="a kernel by its name"),
        pytest.param("gpu", {"compute_dtype": "bfloat16"}, "kernel", id="few in bfloat16"),
        pytest.param("gpu", {"top_k": 1}, "kernel", id="many in float32"),
        pytest.param("tpu", {"model_dim": 128, "expert_hidden_dim": 128}, "kernel", id="on a TPU"),
        pytest.param("cpu", {}, "by rows", id="on a CPU"),
    ],
)
def test_on_nvidia_auto_computes_few_experts_of_float32_all_at_once(
    platform, changes, way, monkeypatch
):
    taken = set()

    def told(name, make):
        def made(**settings):
            compute = make(**settings)

            def layer(*arguments):
                taken.add(name)
                return compute(*arguments)

            return layer

        return made

    grouped = functools.partial(moe.grouped, interpret=True)
    device = types.SimpleNamespace(platform=platform, device_kind="any", compute_capability="8.0")
    monkeypatch.setattr(feed_forward.jax, "devices", lambda: [device])
    monkeypatch.setattr(feed_forward.moe_ops, "grouped", told("kernel", grouped))
    for name, make in (("all at once", "every_expert"), ("by rows", "dropless")):
        monkeypatch.setattr(feed_forward.moe_ops, make, told(name, getattr(moe, make)))
    sizes = {"model_dim": 32, "expert_hidden_dim": 16, "expert_kernel": "auto"}
    spec = dataclasses.replace(tiny.SPARSE, **(sizes | changes))
    # As many rows as Megablox takes.
    row = jnp.zeros((4, 64), jnp.int32)
    model = model_lib.Decoder(spec)
    jax.eval_shape(model.init, jax.random.key(0), row, document_ids=row, positions=row)
    assert taken == {way}


@pytest.mark.deep
def test_without_a_kernel_for_the_device_the_program_is_the_loops():
    def program(kernel):
        spec = dataclasses.replace(tiny.SPARSE, expert_kernel=kernel)
        model, variables = tiny.make(spec)
        tokens, context = tiny.rows()
        return jax.jit(model.apply).lower(variables, tokens, **context).as_text()

    assert program("auto") == program("loop")


@pytest.mark.deep
def test_nothing_waits_for_the_host():
    """A value that was read on the host would end the trace; what calls it would be seen."""
    model, variables = tiny.make(tiny.SPARSE)
    tokens, context = tiny.rows()

    def loss(params):
        return jnp.mean(model.apply({"params": params}, tokens, **context).logits)

    traced = jax.jit(jax.grad(loss)).trace(variables["params"])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.dot_general" in text
    assert not re.search("callback|infeed|outfeed|stablehlo.(send|recv)", text)


@pytest.mark.deep
def test_bfloat16_computes_routing_norms_and_logits_in_float32():
    spec = dataclasses.replace(tiny.SPARSE, compute_dtype="bfloat16")
    model, variables = tiny.make(spec)
    tokens, context = tiny.rows()
    out = tiny.applied(model, variables, tokens, **context)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    assert out.logits.dtype == out.aux_loss.dtype == jnp.float32
    exact = tiny.applied(model_lib.Decoder(tiny.SPARSE), variables, tokens, **context).logits
    # Near-ties may route differently in bf16, so whole rows are compared by their median error.
    error = np.median(np.abs(np.asarray(out.logits - exact)))
    assert error < tolerances.BF16["rtol"] * np.asarray(exact).std()


@pytest.mark.deep
def test_load_statistics_count_real_tokens_only():
    model, variables = tiny.make(tiny.SPARSE)
    tokens, context = tiny.rows()
    context["document_ids"] = context["document_ids"].at[:, 15:].set(0)
    stats = tiny.applied(model, variables, tokens, **context).stats
    np.testing.assert_array_equal(stats.load.sum(axis=-1), 2 * 15 * tiny.SPARSE.top_k)
    np.testing.assert_array_equal(stats.num_tokens, 2 * 15)


@pytest.mark.deep
def test_a_step_sows_what_the_full_pass_does():
    for spec in (tiny.SPARSE, tiny.DENSE):
        model, variables = tiny.make(spec)
        tokens, context = tiny.rows(length=8)
        sow = functools.partial(tiny.applied, model, variables, mutable=["intermediates"])
        _, whole = sow(tokens, **context)
        cache = model_lib.empty_cache(spec, batch_size=2, max_length=8)
        lengths = jnp.array([3, 3], jnp.int32)
        _, cache = tiny.applied(model, variables, tokens[:, :4], lengths, cache, method="prefill")
        _, stepped = sow(tokens[:, 3], cache, method="step")
        assert jax.tree.structure(stepped) == jax.tree.structure(whole)
        for one, all_of_them in zip(jax.tree.leaves(stepped), jax.tree.leaves(whole), strict=True):
            at = all_of_them.reshape(spec.num_layers, 2, 8, -1)[:, :, 3]
            np.testing.assert_allclose(one, at, **tolerances.MODEL_F32)


@pytest.mark.deep
def test_bfloat16_steps_are_near_the_full_pass():
    """Keys are rounded once more in the cache than in the full pass."""
    spec = dataclasses.replace(tiny.VARIANTS["dense"], compute_dtype="bfloat16")
    model, variables = tiny.make(spec)
    tokens, context = tiny.rows(length=20)
    full = tiny.applied(model, variables, tokens, **context).logits
    step = jax.jit(lambda t, c: model.apply(variables, t, c, method="step"))
    cache = model_lib.empty_cache(spec, batch_size=2, max_length=20)
    lengths = jnp.array([3, 3], jnp.int32)
    _, cache = tiny.applied(model, variables, tokens[:, :4], lengths, cache, method="prefill")
    errors = []
    for at in range(3, 20):
        logits, cache = step(tokens[:, at], cache)
        errors.append(np.abs(np.asarray(logits - full[:, at])))
    assert np.median(errors) < tolerances.BF16["rtol"] * np.asarray(full).std()


@pytest.mark.deep
def test_expert_ids_are_sown_by_layer():
    model, variables = tiny.make(tiny.SPARSE)
    tokens, context = tiny.rows()
    _, sown = tiny.applied(model, variables, tokens, mutable=["intermediates"], **context)
    (expert_ids,) = sown["intermediates"]["layers"]["feed_forward"]["router"]["expert_ids"]
    assert expert_ids.shape == (2, 40, tiny.SPARSE.top_k)
    assert set(np.unique(expert_ids)) == set(range(8))


def test_bad_lengths_are_refused():
    model, variables = tiny.make(tiny.SPARSE)
    tokens, context = tiny.rows(length=18)
    with pytest.raises(ValueError, match=r"rows of 18 tokens: .* model.block_size=4"):
        model.apply(variables, tokens, **context)
    with pytest.raises(ValueError, match=r"max_length=65 is outside \[1, 64\]"):
        model_lib.empty_cache(tiny.SPARSE, batch_size=1, max_length=65)


def test_cache_holds_one_block_and_the_summaries():
    cache = model_lib.empty_cache(tiny.SPARSE, batch_size=3, max_length=64)
    assert len(cache.layers) == 2
    assert cache.layers[0].key.shape == (3, 2, 4, 8)
    assert cache.layers[1].summary_key.shape == (3, 2, 16, 2, 8)
    cached = sum(x.nbytes for x in jax.tree.leaves(cache.layers)) // 3
    assert cached == accounting.cache_bytes(tiny.SPARSE, bytes_per_element=4)
