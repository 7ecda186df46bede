"""Few tokens, as in decoding, through two kernels, interpreted: values and edges."""

import functools
from unittest import mock

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from deepseek_jax.ops import moe
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped import few_tokens, matmul
from deepseek_jax.ops.routing import Routing
from tests.ops.grouped import lowering, swiglu_test

TOP_K, NUM_EXPERTS = swiglu_test.TOP_K, swiglu_test.NUM_EXPERTS
# At a time, of programs for each assignment and for each expert, and of tiles of 16 and 64 places.
NUMBERS = (1, 3, 17, 64)


def layer(tokens, weights, gate, up, down, ids, mask, *, backend="triton", interpret=True):
    """As a model computes it, with what it takes for these tokens."""
    compute = moe.grouped(backend=backend, recompute=False, interpret=interpret)
    return compute(tokens, mask, Routing(ids, weights), ExpertWeights(gate, up, down)).x


@functools.cache
def compiled():
    """The kernels alone, in any dtype; padding has no assignment."""

    def run(tokens, weights, gate, up, down, ids, mask):
        ids = jnp.where(mask[:, None], ids, len(gate))
        return few_tokens.routed_swiglu(tokens, ids, weights, gate, up, down, interpret=True)

    return jax.jit(run)


def draw(seed, num_tokens, dtype=jnp.float32, share=0.2):
    """(arguments, ids, mask)."""
    _, arguments = swiglu_test.inputs(seed, dtype, num_tokens=num_tokens)
    random = np.random.default_rng(seed)
    ids = swiglu_test.draw_ids(random, num_tokens=num_tokens, share_of_none=share)
    return arguments, ids, random.random(num_tokens) >= share


def assert_right(arguments, ids, mask, relative=2e-6):
    found = compiled()(*arguments, ids, mask)
    chex.assert_type(found, arguments[0].dtype)
    wanted = swiglu_test.expected(ids, mask, np.zeros(arguments[0].shape), arguments)[0]
    swiglu_test.assert_near([found], [wanted], relative)


@pytest.mark.parametrize(
    ("dtype", "relative"),
    [(jnp.float32, 2e-6), pytest.param(jnp.bfloat16, 1e-2, marks=pytest.mark.deep)],
)
@pytest.mark.parametrize("num_tokens", NUMBERS)
def test_answers_are_those_of_float64(num_tokens, dtype, relative):
    assert_right(*draw(num_tokens, num_tokens, dtype), relative)


@pytest.mark.parametrize(
    ("num_experts", "sides"),
    [
        pytest.param(16, (16, 48), id="several tiles across, more experts than assignments"),
        pytest.param(2, (144, 128), id="tiles of 16 columns, sums of two steps in two parts"),
    ],
)
def test_any_sides(num_experts, sides):
    model_dim, width = sides
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((2, model_dim), *[(num_experts, *sides)] * 2, (num_experts, width, model_dim))
    tokens, *matrices = (
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    )
    ids = np.array([[num_experts - 1, 0], [num_experts - 1, num_experts]], np.int32)
    arguments = (tokens, jnp.array([[0.5, 2.0], [1.0, 3.0]]), *matrices)
    assert_right(arguments, ids, np.ones(2, bool))


@hypothesis.given(st.integers(0, 2**31), st.sampled_from(NUMBERS[:3]), st.sampled_from([0.0, 0.9]))
def test_any_routing(seed, num_tokens, share):
    assert_right(*draw(seed, num_tokens, share=share), relative=5e-6)


def test_by_hand():
    # silu(1) = 0.731059; expert 1 of 2, all of whose matrices are ones: 16 inputs of 1/16 each.
    tokens = jnp.full((1, 16), 1 / 16)
    matrices = [jnp.stack([jnp.full((16, 16), jnp.nan), jnp.ones((16, 16))]) for _ in range(3)]
    found = compiled()(
        tokens, jnp.full((1, 1), 2.0), *matrices, jnp.ones((1, 1), jnp.int32), jnp.ones(1, bool)
    )
    np.testing.assert_allclose(found, np.full((1, 16), 2 * 16 * 0.731059), rtol=1e-5)


def test_padding_that_is_not_finite_reaches_nobody():
    (tokens, *others), ids, _ = draw(2, 17)
    mask = np.arange(17) % 4 > 0
    found = compiled()(jnp.where(mask[:, None], tokens, jnp.nan), *others, ids, mask)
    wanted = swiglu_test.expected(ids, mask, np.zeros(tokens.shape), (tokens, *others))[0]
    swiglu_test.assert_near([found], [wanted], 2e-6)


def test_a_layer_takes_them_and_leaves_padding_out(monkeypatch):
    taken = mock.Mock(wraps=few_tokens.routed_swiglu)
    monkeypatch.setattr(few_tokens, "routed_swiglu", taken)
    (tokens, *others), ids, mask = draw(5, 17, jnp.bfloat16)
    found = jax.jit(layer)(jnp.where(mask[:, None], tokens, jnp.nan), *others, ids, mask)
    wanted = swiglu_test.expected(ids, mask, np.zeros(tokens.shape), (tokens, *others))[0]
    swiglu_test.assert_near([found], [wanted], 1e-2)
    assert taken.called


@pytest.fixture
def in_float32(monkeypatch):
    """A layer takes them in float32 too, in which gradients are precise."""
    monkeypatch.setattr(few_tokens, "_DTYPES", (jnp.float32,))


@pytest.mark.usefixtures("in_float32")
@pytest.mark.deep
def test_gradients_are_those_of_any_number_of_tokens():
    d_out, arguments = swiglu_test.inputs(3, jnp.float32)
    _, ids, mask = draw(3, swiglu_test.NUM_TOKENS)

    @jax.jit
    def run(arguments, d_out):
        answers, pull = jax.vjp(lambda *five: layer(*five, ids, mask), *arguments)
        return (answers, *pull(d_out))

    found = run(arguments, d_out)
    swiglu_test.assert_near(found, swiglu_test.expected(ids, mask, d_out, arguments), 5e-6)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.deep
def test_more_choices_than_experts():
    """Some are of none, and there are fewer rows than choices."""
    d_out, arguments = swiglu_test.inputs(4, jnp.float32, num_tokens=4, top_k=3, num_experts=2)
    ids = np.array([[0, 1, 2], [2, 1, 0], [2, 2, 2], [1, 2, 2]], np.int32)
    mask = np.ones(4, bool)
    assert_right(arguments, ids, mask)

    @jax.jit
    def gradients(arguments):
        return jax.vjp(lambda *five: layer(*five, ids, mask), *arguments)[1](d_out)

    wanted = swiglu_test.expected(ids, mask, d_out, arguments)[1:]
    swiglu_test.assert_near(gradients(arguments), wanted, 5e-6)


def lowered(num_tokens, *, backend, dtype=jnp.bfloat16):
    """The program for a GPU, of sides that every backend takes."""
    shapes = (
        ((num_tokens, 128), dtype),
        ((num_tokens, 2), jnp.float32),
        *[((8, 128, 128), dtype)] * 3,
        ((num_tokens, 2), jnp.int32),
        ((num_tokens,), jnp.bool_),
    )
    subject = functools.partial(layer, backend=backend, interpret=False)
    return lowering.text_for("cuda", subject, *(jax.ShapeDtypeStruct(*each) for each in shapes))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("backend", matmul.ON_NVIDIA)
@pytest.mark.deep
def test_few_tokens_are_two_kernels_without_sorting_and_more_are_not(backend):
    few = lowered(few_tokens.MOST_TOKENS, backend=backend)
    assert few.count("custom_call @__gpu$xla.gpu.triton") == 2
    assert "stablehlo.sort" not in few
    assert "stablehlo.sort" in lowered(few_tokens.MOST_TOKENS + 1, backend=backend)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_tokens_of_32_bits_are_sorted():
    assert "stablehlo.sort" not in lowered(1, backend="triton", dtype=jnp.float16)
    assert "stablehlo.sort" in lowered(1, backend="triton", dtype=jnp.float32)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_kernels_say_over_which_devices_their_results_vary():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    cut, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        functools.partial(layer, interpret=False),
        mesh=mesh,
        in_specs=(cut, cut, whole, whole, whole, cut, cut),
        out_specs=cut,
    )
    arguments, ids, mask = draw(0, 4, jnp.bfloat16)
    assert jax.eval_shape(mapped, *arguments, ids, mask).shape == arguments[0].shape


def test_what_a_backend_cannot_do_raises():
    arguments, ids, mask = draw(0, 4, jnp.bfloat16)
    with pytest.raises(ValueError, match="backend='hopper' takes .*these can: loop, triton"):
        layer(*arguments, ids, mask, backend="hopper")
