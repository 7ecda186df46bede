"""Kernels for Hopper that make the hidden layer and its gradients where their matmuls end."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from deepseek_jax.ops import moe
from deepseek_jax.ops.experts import ExpertWeights
from deepseek_jax.ops.grouped.hopper import gated, gated_back
from deepseek_jax.ops.grouped.hopper import product as hopper_product
from deepseek_jax.ops.routing import Routing
from tests.ops.grouped import lowering, matmul_test, swiglu_test

NUM_ROWS, MODEL_DIM, WIDTH = matmul_test.NUM_ROWS, 128, 256
# Norm of the error over that of the result: a rounding to bfloat16 is 1.7e-3, and gates and ups
# are rounded before the hidden layer is made of them.
RELATIVE = {"hidden": 4e-3, "gates": 2e-3, "ups": 2e-3, "d_weights": 4e-3} | dict.fromkeys(
    ("d_gates", "d_ups", "d_rows"), 4e-3
)
TRITON_IS_OLD = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
interpreted = pytest.mark.skipif(
    not matmul_test.CAN_INTERPRET_HOPPER, reason="this jax cannot interpret Mosaic GPU"
)
SIZES = {name: sizes for name, sizes in matmul_test.SIZES.items() if name != "even"}


def inputs(num_rows=NUM_ROWS, num_groups=4, width=WIDTH):
    """(rows, weights, gate, up, down, d_answers)."""
    keys = jax.random.split(jax.random.key(0), 6)
    inner, outer = (num_groups, MODEL_DIM, width), (num_groups, width, MODEL_DIM)
    rows, d_answers = (
        jax.random.normal(key, (num_rows, MODEL_DIM), jnp.bfloat16) for key in keys[:2]
    )
    matrices = [
        jax.random.normal(key, shape, jnp.bfloat16) * jnp.bfloat16(0.1)
        for key, shape in zip(keys[2:5], (inner, inner, outer), strict=True)
    ]
    return rows, jax.random.uniform(keys[5], (num_rows, 1), minval=0.1), *matrices, d_answers


@functools.cache
def compiled(keep=True):
    """(sizes, inputs) -> what each of the three kernels makes, the later ones of the first's."""

    @jax.jit
    def run(sizes, rows, weights, gate, up, down, d_answers):
        first = gated.gated(rows, weights, gate, up, sizes, keep=keep, interpret=True)
        if not keep:
            return first.hidden
        *pulled, d_weights = gated_back.gated_back(
            d_answers, weights, *first.kept, down, sizes, interpret=True
        )
        d_rows = hopper_product.sum_of_products(
            pulled, (gate, up), sizes, transposed=True, interpret=True
        )
        names = ("hidden", "gates", "ups", "d_gates", "d_ups", "d_weights", "d_rows")
        made = (first.hidden, *first.kept, *pulled, d_weights, d_rows)
        return dict(zip(names, made, strict=True))

    return run


def expected(sizes, *arrays):
    """The same in float64, group by group."""
    rows, weights, gate, up, down, d_answers = (np.asarray(x).astype(np.float64) for x in arrays)
    shape = (rows.shape[0], gate.shape[2])
    names = ("hidden", "gates", "ups", "d_gates", "d_ups")
    found = {name: np.zeros(shape) for name in names}
    found |= {"d_weights": np.zeros(shape[:1]), "d_rows": np.zeros_like(rows)}
    start = 0
    for group, size in enumerate(sizes):
        mine = slice(start, start + size)
        g, u = rows[mine] @ gate[group], rows[mine] @ up[group]
        share, d_hidden = 1 / (1 + np.exp(-g)), d_answers[mine] @ down[group].T
        d_g = weights[mine] * d_hidden * u * share * (1 + g * (1 - share))
        d_u = weights[mine] * d_hidden * g * share
        hidden = weights[mine] * g * share * u
        made = (hidden, g, u, d_g, d_u)
        for name, value in zip(names, made, strict=True):
            found[name][mine] = value
        found["d_weights"][mine] = np.sum(d_hidden * g * share * u, axis=1)
        found["d_rows"][mine] = d_g @ gate[group].T + d_u @ up[group].T
        start += size
    return found


def assert_near(found, wanted):
    for name, other in wanted.items():
        one = np.asarray(found[name]).astype(np.float64)
        # What must be zero is zero: nothing was left as it was in memory.
        assert not one[other == 0].any(), name
        assert np.linalg.norm(one - other) <= RELATIVE[name] * np.linalg.norm(other), name


@pytest.mark.deep
@interpreted
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_all_three_kernels_are_as_float64(sizes):
    arrays = inputs()
    found = compiled()(jnp.array(sizes, jnp.int32), *arrays)
    for name, each in found.items():
        chex.assert_type(each, jnp.float32 if name == "d_weights" else jnp.bfloat16)
    assert_near(found, expected(sizes, *arrays))


@pytest.mark.deep
@interpreted
@pytest.mark.parametrize(
    ("num_rows", "sizes", "width"),
    [
        pytest.param(3, [0, 1, 0, 0, 1, 0, 0], 128, id="fewer rows than groups and than a tile"),
        pytest.param(261, [130, 0, 37, 94], 128, id="tiles of half the width"),
        pytest.param(200, [65, 0, 120], 512, id="several tiles across"),
    ],
)
def test_any_number_of_rows_and_columns(num_rows, sizes, width):
    arrays = inputs(num_rows=num_rows, num_groups=len(sizes), width=width)
    found = compiled()(jnp.array(sizes, jnp.int32), *arrays)
    assert_near(found, expected(sizes, *arrays))


@pytest.mark.deep
@interpreted
def test_what_is_not_kept_changes_no_bit_of_the_hidden_layer():
    arrays, sizes = inputs(), jnp.array([0, 61, 0, 66], jnp.int32)
    kept, alone = compiled()(sizes, *arrays)["hidden"], compiled(keep=False)(sizes, *arrays)
    np.testing.assert_array_equal(kept, alone)


def layer(tokens, weights, gate, up, down, ids, mask, *, interpret, recompute=False, fused=True):
    compute = moe.grouped(backend="hopper", recompute=recompute, interpret=interpret, fused=fused)
    return compute(tokens, mask, Routing(ids, weights), ExpertWeights(gate, up, down)).x


def layer_inputs():
    """(d_out, arguments of the layer, ids, mask), at the smallest sizes that kernels take."""
    num_tokens, num_experts = swiglu_test.NUM_TOKENS, swiglu_test.NUM_EXPERTS
    keys = jax.random.split(jax.random.key(1), 2)
    tokens, weights, gate, up, down, d_out = inputs(num_tokens, num_experts, 128)
    weights = jax.random.uniform(keys[0], (num_tokens, swiglu_test.TOP_K), minval=0.1)
    random = np.random.default_rng(0)
    ids = swiglu_test.draw_ids(random, share_of_none=0.2)
    return d_out, (tokens, weights, gate, up, down), ids, random.random(num_tokens) < 0.8


@pytest.mark.deep
@interpreted
@pytest.mark.parametrize("recompute", [False, True])
def test_the_layer_and_its_gradients_are_those_of_float64_and_of_kernels_apart(recompute):
    d_out, arguments, ids, mask = layer_inputs()

    @functools.partial(jax.jit, static_argnames="fused")
    def run(arguments, d_out, *, fused):
        subject = functools.partial(layer, interpret=True, recompute=recompute, fused=fused)
        answers, pull = jax.vjp(lambda *five: subject(*five, ids, mask), *arguments)
        return (answers, *pull(d_out))

    found, apart = (run(arguments, d_out, fused=fused) for fused in (True, False))
    swiglu_test.assert_near(found, swiglu_test.expected(ids, mask, d_out, arguments), 1e-2)
    for one, other in zip(found, apart, strict=True):
        one, other = (np.asarray(x).astype(np.float64) for x in (one, other))
        assert np.linalg.norm(one - other) <= 4e-3 * np.linalg.norm(other)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept_is_what_kernels_apart_keep(recompute):
    """All that the hidden layer is made of and itself, or nothing but the arguments."""
    _, arguments, ids, mask = layer_inputs()

    def kept(fused):
        subject = functools.partial(layer, interpret=False, recompute=recompute, fused=fused)
        pull = jax.eval_shape(
            lambda *five: jax.vjp(lambda *x: subject(*x, ids, mask), *five)[1], *arguments
        )
        return sorted(x.shape for x in jax.tree.leaves(pull))

    assert kept(True) == kept(False)


@TRITON_IS_OLD
@pytest.mark.deep
def test_only_a_backward_pass_makes_the_hidden_layers_kernel_write_more_than_it():
    _, (tokens, weights, *matrices), ids, mask = layer_inputs()
    # More tokens than are few.
    tokens, weights, ids, mask = (jnp.concatenate([x, x]) for x in (tokens, weights, ids, mask))
    arguments = (tokens, weights, *matrices)
    body = functools.partial(layer, interpret=False)

    def results(subject):
        lowered = lowering.text_for("cuda", subject, *arguments)
        lines = [each for each in lowered.splitlines() if "@mosaic_gpu" in each]
        return [line[line.rindex("->") :].count("tensor<") for line in lines]

    assert results(lambda *five: body(*five, ids, mask)) == [1, 1]
    forward = lambda *five: jax.vjp(lambda *x: body(*x, ids, mask), *five)[0]  # noqa: E731
    assert results(forward) == [3, 1]


@TRITON_IS_OLD
@pytest.mark.deep
def test_the_layer_lowers_to_seven_kernels_and_says_over_which_devices_it_varies():
    d_out, arguments, ids, mask = layer_inputs()
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    cut, whole = PartitionSpec("data"), PartitionSpec()

    body = functools.partial(layer, interpret=False)
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(cut, cut, whole, whole, whole, cut, cut), out_specs=cut
    )

    def both(subject, d_out, *arguments):
        answers, pull = jax.vjp(lambda *five: subject(*five, ids, mask), *arguments)
        return (answers, *pull(d_out))

    gradients = jax.eval_shape(functools.partial(both, mapped), d_out, *arguments)[1:]
    assert [x.shape for x in gradients] == [x.shape for x in arguments]
    lowered = lowering.text_for("cuda", functools.partial(both, body), d_out, *arguments)
    # The hidden layer, down, gradients of the former, of rows, and of three matrices.
    assert lowered.count("custom_call @mosaic_gpu") == 7
    # Rows of tokens, and of gradients.
    assert lowered.count("custom_call @__gpu$xla.gpu.triton") == 2
    assert "callback" not in lowered  # nothing waits for the host
