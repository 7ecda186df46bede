"""Routed experts as grouped matmuls: answers, all gradients, what is kept for the latter."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from deepseek_jax.ops import dispatch
from deepseek_jax.ops.grouped import swiglu
from tests import tolerances

NUM_TOKENS, TOP_K, NUM_EXPERTS, MODEL_DIM, WIDTH = 40, 3, 5, 16, 32
NONE = NUM_EXPERTS
# Norm of the error over the norm of the result; a chain of roundings to bfloat16 at 1.7e-3 each.
RELATIVE = {jnp.float32: 2e-6, jnp.bfloat16: 1e-2}
SUBJECTS = [
    pytest.param("loop", jnp.float32, False, id="loop-float32"),
    pytest.param("loop", jnp.float32, True, id="loop-float32-recomputed"),
    pytest.param("loop", jnp.bfloat16, False, id="loop-bfloat16"),
    pytest.param("triton", jnp.float32, False, id="triton-float32"),
    pytest.param(
        "triton", jnp.bfloat16, True, id="triton-bfloat16-recomputed", marks=pytest.mark.deep
    ),
]


def layer(tokens, weights, gate, up, down, ids, mask, *, backend, recompute, fused=False):
    plan = dispatch.dropless_plan(ids, mask, num_experts=gate.shape[0], block_rows=1)
    return swiglu.routed_swiglu(
        tokens,
        weights,
        gate,
        up,
        down,
        plan,
        backend=backend,
        interpret=backend != "loop",
        recompute=recompute,
        fused=fused,
    )


@functools.cache
def compiled(backend, recompute):
    """(ids, mask, d_out, arguments) -> answers, and the gradients of the arguments."""

    @jax.jit
    def run(ids, mask, d_out, arguments):
        subject = functools.partial(layer, backend=backend, recompute=recompute)
        answers, pull = jax.vjp(lambda *five: subject(*five, ids, mask), *arguments)
        return (answers, *pull(d_out))

    return run


def expected(ids, mask, d_out, arguments):
    """The same in float64, token by token and choice by choice, by the chain rule."""
    tokens, weights, gate, up, down = (np.asarray(x).astype(np.float64) for x in arguments)
    d_out = np.asarray(d_out).astype(np.float64)
    answers = np.zeros_like(tokens)
    d_tokens, d_weights, d_gate, d_up, d_down = map(
        np.zeros_like, (tokens, weights, gate, up, down)
    )
    for t, k in np.ndindex(*np.shape(ids)):
        e = int(ids[t, k])
        if not mask[t] or e == len(gate):
            continue
        g, u = tokens[t] @ gate[e], tokens[t] @ up[e]
        share = 1 / (1 + np.exp(-g))
        inner = g * share * u
        answers[t] += weights[t, k] * (inner @ down[e])
        d_weights[t, k] = d_out[t] @ (inner @ down[e])
        d_inner = weights[t, k] * (down[e] @ d_out[t])
        d_g, d_u = d_inner * u * share * (1 + g * (1 - share)), d_inner * g * share
        d_tokens[t] += gate[e] @ d_g + up[e] @ d_u
        d_gate[e] += np.outer(tokens[t], d_g)
        d_up[e] += np.outer(tokens[t], d_u)
        d_down[e] += weights[t, k] * np.outer(inner, d_out[t])
    return answers, d_tokens, d_weights, d_gate, d_up, d_down


def inputs(seed, dtype, *, num_tokens=NUM_TOKENS, top_k=TOP_K, num_experts=NUM_EXPERTS):
    """(d_out, arguments of the layer)."""
    keys = jax.random.split(jax.random.key(seed), 6)
    inner, outer = (num_experts, MODEL_DIM, WIDTH), (num_experts, WIDTH, MODEL_DIM)
    tokens, d_out = (jax.random.normal(key, (num_tokens, MODEL_DIM), dtype) for key in keys[:2])
    matrices = [
        0.3 * jax.random.normal(key, shape, jnp.float32)
        for key, shape in zip(keys[2:5], (inner, inner, outer), strict=True)
    ]
    weights = jax.random.uniform(keys[5], (num_tokens, top_k), minval=0.1)
    return d_out, (tokens, weights, *(each.astype(dtype) for each in matrices))


def draw_ids(random, *, num_tokens=NUM_TOKENS, share_of_none=0.0):
    """Distinct experts of each token, some of them none."""
    ids = np.argsort(random.random((num_tokens, NUM_EXPERTS)), axis=1)[:, :TOP_K]
    return np.where(random.random(ids.shape) < share_of_none, NONE, ids).astype(np.int32)


def assert_near(found, wanted, relative):
    for one, other in zip(found, wanted, strict=True):
        one = np.asarray(one).astype(np.float64)
        assert np.isfinite(one).all()
        # What must be zero is zero: no answer and no gradient without a row.
        assert not one[other == 0].any()
        assert np.linalg.norm(one - other) <= relative * np.linalg.norm(other)


@pytest.mark.parametrize(("backend", "dtype", "recompute"), SUBJECTS)
def test_answers_and_gradients_are_those_of_float64(backend, dtype, recompute):
    d_out, arguments = inputs(0, dtype)
    random = np.random.default_rng(0)
    ids, mask = draw_ids(random, share_of_none=0.2), random.random(NUM_TOKENS) < 0.8
    found = compiled(backend, recompute)(ids, mask, d_out, arguments)
    chex.assert_type([found[0], found[1], *found[3:]], dtype)
    chex.assert_type(found[2], jnp.float32)
    assert_near(found, expected(ids, mask, d_out, arguments), RELATIVE[dtype])


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        pytest.param(np.full((NUM_TOKENS, TOP_K), NONE), np.ones(NUM_TOKENS, bool), id="of none"),
        pytest.param(
            np.tile(np.arange(TOP_K), (NUM_TOKENS, 1)), np.zeros(NUM_TOKENS, bool), id="padding"
        ),
        pytest.param(
            np.tile([4, NONE, 1], (NUM_TOKENS, 1)), np.ones(NUM_TOKENS, bool), id="few experts"
        ),
    ],
)
@pytest.mark.parametrize("backend", ["loop", "triton"])
def test_edges(backend, ids, mask):
    d_out, arguments = inputs(1, jnp.float32)
    found = compiled(backend, False)(ids.astype(np.int32), mask, d_out, arguments)
    assert_near(found, expected(ids, mask, d_out, arguments), 2e-6)


@hypothesis.given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.9]))
def test_any_routing(seed, share):
    d_out, arguments = inputs(seed, jnp.float32)
    random = np.random.default_rng(seed)
    ids, mask = draw_ids(random, share_of_none=share), random.random(NUM_TOKENS) >= share / 2
    found = compiled("loop", False)(ids, mask, d_out, arguments)
    assert_near(found, expected(ids, mask, d_out, arguments), 5e-6)


def test_by_hand():
    # silu(1) = 0.731059 and its slope is 0.927671; one token, weight 2, one expert of width 1.
    one = jnp.ones((1, 1, 1))
    arguments = (jnp.ones((1, 1)), jnp.full((1, 1), 2.0), one, 3 * one, 5 * one)
    found = compiled("loop", False)(
        jnp.zeros((1, 1), jnp.int32), jnp.ones(1, bool), jnp.ones((1, 1)), arguments
    )
    wanted = (
        2 * 0.731059 * 3 * 5,
        2 * 5 * (0.927671 * 3 + 0.731059 * 3),
        0.731059 * 3 * 5,
        2 * 5 * 0.927671 * 3,
        2 * 5 * 0.731059,
        2 * 0.731059 * 3,
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.item(), other, rtol=1e-5)


def test_padding_that_is_not_finite_reaches_nobody():
    d_out, (tokens, *others) = inputs(2, jnp.float32)
    ids = draw_ids(np.random.default_rng(2))
    mask = np.arange(NUM_TOKENS) % 4 > 0
    bad = jnp.where(mask[:, None], tokens, jnp.nan)
    found = compiled("loop", False)(
        ids, mask, jnp.where(mask[:, None], d_out, jnp.inf), (bad, *others)
    )
    assert_near(found, expected(ids, mask, d_out, (tokens, *others)), 2e-6)


@pytest.mark.deep
def test_what_is_recomputed_changes_no_bit():
    d_out, arguments = inputs(3, jnp.bfloat16)
    ids, mask = draw_ids(np.random.default_rng(3)), np.ones(NUM_TOKENS, bool)
    kept, again = (compiled("loop", each)(ids, mask, d_out, arguments) for each in (False, True))
    chex.assert_trees_all_equal(kept, again)


@pytest.mark.parametrize("recompute", [False, True])
def test_answers_are_not_kept(recompute):
    _, arguments = inputs(4, jnp.bfloat16)
    ids, mask = draw_ids(np.random.default_rng(4)), jnp.ones(NUM_TOKENS, bool)
    subject = functools.partial(layer, backend="loop", recompute=recompute)
    pull = jax.eval_shape(
        lambda *five: jax.vjp(lambda *x: subject(*x, ids, mask), *five)[1], *arguments
    )
    kept = [x.shape for x in jax.tree.leaves(pull) if x.ndim == 2]
    num_rows = NUM_TOKENS * TOP_K
    # The rows, both products and the hidden layer.
    all_made = [(num_rows, MODEL_DIM), *[(num_rows, WIDTH)] * 3]
    maps = [(NUM_TOKENS, TOP_K)] * 2
    made_of = [(NUM_TOKENS, MODEL_DIM)] if recompute else all_made
    assert sorted(kept) == sorted([*maps, *made_of])


def test_what_is_made_again_stands_behind_a_barrier():
    """Without one XLA finds it equal to what the forward pass made, which it then keeps."""
    d_out, arguments = inputs(5, jnp.float32)
    ids, mask = draw_ids(np.random.default_rng(5)), jnp.ones(NUM_TOKENS, bool)
    kept, again = (
        compiled("loop", each).lower(ids, mask, d_out, arguments).as_text()
        for each in (False, True)
    )
    assert again.count("stablehlo.while") == kept.count("stablehlo.while") + 2
    barriers = [line for line in kept.splitlines() if "optimization_barrier" in line]
    assert len(barriers) == 2  # the other is of what is kept
    shapes = ("40x16xf32", "40x3xf32")  # the tokens, of which rows are made, and weights
    assert any(all(shape in barrier for shape in shapes) for barrier in barriers)


def test_rounds_the_weighted_hidden_layer_once():
    # In steps of 2^-8: silu(1) is 187.15, weighed 187.52, so 188; rounded before, 187.37, so 187.
    gates = jnp.full((1, 2), 1.0, jnp.bfloat16)
    weights = jnp.array([[1.0 + 2**-9]])
    hidden = swiglu.weighted_hidden(gates, gates, weights)
    wide = float(jax.nn.silu(jnp.float32(1.0))) * (1.0 + 2**-9)
    np.testing.assert_array_equal(hidden, jnp.full((1, 2), wide).astype(jnp.bfloat16))


@pytest.mark.deep
def test_on_two_devices_the_gradient_of_shared_matrices_is_the_sum():
    d_out, (tokens, weights, *matrices) = inputs(6, jnp.float32)
    ids = draw_ids(np.random.default_rng(6), share_of_none=0.1)
    mask = np.ones(NUM_TOKENS, bool)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    cut, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        functools.partial(layer, backend="loop", recompute=True),
        mesh=mesh,
        in_specs=(cut, cut, whole, whole, whole, cut, cut),
        out_specs=cut,
    )

    @jax.jit
    def run(d_out, arguments):
        answers, pull = jax.vjp(lambda *five: mapped(*five, ids, mask), *arguments)
        return (answers, *pull(d_out))

    arguments = (tokens, weights, *matrices)
    wanted = expected(ids, mask, d_out, arguments)
    for one, other in zip(run(d_out, arguments), wanted, strict=True):
        np.testing.assert_allclose(one, other, **tolerances.MODEL_F32)


@pytest.mark.deep
def test_tokens_that_all_devices_share_get_the_sum_of_their_gradients():
    """As under a mesh whose devices hold different columns of the experts."""
    d_out, (tokens, weights, gate, up, down) = inputs(7, jnp.float32)
    ids, mask = draw_ids(np.random.default_rng(7)), np.ones(NUM_TOKENS, bool)
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    whole = PartitionSpec()
    last, middle = PartitionSpec(None, None, "model"), PartitionSpec(None, "model")

    def body(*arguments):
        return jax.lax.psum(layer(*arguments, backend="loop", recompute=False), "model")

    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(whole, whole, last, last, middle, whole, whole),
        out_specs=whole,
    )

    @jax.jit
    def run(d_out, arguments):
        answers, pull = jax.vjp(lambda *five: mapped(*five, ids, mask), *arguments)
        return (answers, *pull(d_out))

    arguments = (tokens, weights, gate, up, down)
    wanted = expected(ids, mask, d_out, arguments)
    for one, other in zip(run(d_out, arguments), wanted, strict=True):
        np.testing.assert_allclose(one, other, **tolerances.MODEL_F32)


def test_what_a_backend_cannot_do_raises():
    d_out, arguments = inputs(0, jnp.float32)
    ids, mask = jnp.zeros((NUM_TOKENS, TOP_K), jnp.int32), jnp.ones(NUM_TOKENS, bool)
    with pytest.raises(ValueError, match="backend='hopper' takes .*these can: loop, triton"):
        layer(*arguments, ids, mask, backend="hopper", recompute=False)
    with pytest.raises(ValueError, match="backend='no': must be one of"):
        layer(*arguments, ids, mask, backend="no", recompute=False)


@pytest.mark.parametrize("backend", ["loop", "triton"])
def test_fused_kernels_of_a_backend_that_has_none_raise(backend):
    d_out, arguments = inputs(0, jnp.float32)
    ids, mask = jnp.zeros((NUM_TOKENS, TOP_K), jnp.int32), jnp.ones(NUM_TOKENS, bool)
    message = f"fused=True: must be False with backend='{backend}'; these can: hopper"
    with pytest.raises(ValueError, match=message):
        layer(*arguments, ids, mask, backend=backend, recompute=False, fused=True)
