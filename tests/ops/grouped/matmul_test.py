"""Laws of the grouped matmul, for every backend that this machine can run or interpret."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from deepseek_jax.ops.grouped import few_rows, matmul
from tests import tolerances
from tests.ops.grouped import lowering

NUM_ROWS, NUM_IN, NUM_OUT = 256, 128, 128
CAN_INTERPRET_HOPPER = jax.__version_info__ >= (0, 12)
# Norm of the error over the norm of the result: bfloat16's own rounding is 1.7e-3.
RELATIVE = {jnp.float32: 1e-6, jnp.bfloat16: 2e-3}
SUBJECTS = [
    pytest.param(backend, dtype, id=f"{backend}-{dtype.__name__}")
    for backend in ("loop", "triton", "hopper", "megablox")
    for dtype in (jnp.float32, jnp.bfloat16)
    if backend != "hopper" or (CAN_INTERPRET_HOPPER and dtype == jnp.bfloat16)
]
SIZES = {
    "even": [64, 64, 64, 64],
    "zeros, not whole tiles, rows of none": [0, 61, 0, 66],
    "one has all": [0, 0, NUM_ROWS, 0],
    "none has any": [0, 0, 0, 0],
    "single rows": [1, 1, 253, 1],
    "one past a tile": [129, 127, 0, 0],
    "whole blocks of eight": [72, 0, 16, 160],
    "a tile's rows from within a block": [4, 128, 0, 1],
}


def subject(backend):
    return functools.partial(matmul.grouped_matmul, backend=backend, interpret=backend != "loop")


@functools.cache
def compiled(backend):
    """(rows, weights, sizes, d_out) -> answers, gradients of rows and weights."""

    @jax.jit
    def run(rows, weights, sizes, d_out):
        answers, pull = jax.vjp(lambda x, w: subject(backend)(x, w, sizes), rows, weights)
        return (answers, *pull(d_out))

    return run


def expected(rows, weights, sizes, d_out):
    """The same in float64, group by group."""
    rows, weights, d_out = (np.asarray(x).astype(np.float64) for x in (rows, weights, d_out))
    answers = np.zeros((rows.shape[0], weights.shape[2]))
    d_rows, d_weights = np.zeros_like(rows), np.zeros_like(weights)
    start = 0
    for group, size in enumerate(sizes):
        mine = slice(start, start + size)
        answers[mine] = rows[mine] @ weights[group]
        d_rows[mine] = d_out[mine] @ weights[group].T
        d_weights[group] = rows[mine].T @ d_out[mine]
        start += size
    return answers, d_rows, d_weights


def inputs(seed, dtype, *, num_rows=NUM_ROWS, num_groups=4, sides=(NUM_IN, NUM_OUT)):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((num_rows, sides[0]), (num_groups, *sides), (num_rows, sides[1]))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def assert_near(found, wanted, dtype):
    for one, other in zip(found, wanted, strict=True):
        one = np.asarray(one).astype(np.float64)
        # What must be zero is zero: nothing was left as it was in memory.
        assert not one[other == 0].any()
        assert np.linalg.norm(one - other) <= RELATIVE[dtype] * np.linalg.norm(other)


@pytest.mark.parametrize(("backend", "dtype"), SUBJECTS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_answers_and_gradients_are_those_of_float64(backend, dtype, sizes):
    rows, weights, d_out = inputs(0, dtype)
    found = compiled(backend)(rows, weights, jnp.array(sizes, jnp.int32), d_out)
    chex.assert_type(found, dtype)
    assert_near(found, expected(rows, weights, sizes, d_out), dtype)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("backend", "num_rows", "sizes", "sides", "dtype"),
    [
        # Several tiles across and down, and those of every height and depth.
        pytest.param("triton", 600, [251, 330], (96, 256), jnp.float32, id="triton-128-rows"),
        pytest.param("triton", 600, [0, 201, 390], (48, 256), jnp.float32, id="triton-64-rows"),
        pytest.param("triton", 60, [3, 0, 41, 9, 1], (16, 48), jnp.float32, id="triton-16-rows"),
        pytest.param("triton", 40, [3, 0, 21, 9, 1], (16, 48), jnp.float32, id="few-rows"),
        pytest.param("triton", 40, [3, 0, 21, 9, 1], (256, 128), jnp.bfloat16, id="few-bfloat16"),
        pytest.param("triton", 300, [100, 100], (256, 512), jnp.bfloat16, id="triton-bfloat16"),
        pytest.param("loop", 600, [251, 330], (96, 256), jnp.float32, id="loop"),
        pytest.param(
            "hopper",
            200,
            [65, 0, 120],
            (256, 512),
            jnp.bfloat16,
            id="hopper",
            marks=pytest.mark.skipif(
                not CAN_INTERPRET_HOPPER, reason="this jax cannot interpret Mosaic GPU"
            ),
        ),
    ],
)
def test_many_tiles(backend, num_rows, sizes, sides, dtype):
    rows, weights, d_out = inputs(4, dtype, num_rows=num_rows, num_groups=len(sizes), sides=sides)
    found = compiled(backend)(rows, weights, jnp.array(sizes, jnp.int32), d_out)
    assert_near(found, expected(rows, weights, sizes, d_out), dtype)


@pytest.mark.skipif(not CAN_INTERPRET_HOPPER, reason="this jax cannot interpret Mosaic GPU")
@pytest.mark.parametrize(("num_rows", "sizes"), [(3, [0, 1, 0, 1]), (261, [130, 0, 37, 94])])
def test_hopper_takes_any_number_of_rows(num_rows, sizes):
    rows, weights, d_out = inputs(5, jnp.bfloat16, num_rows=num_rows)
    found = compiled("hopper")(rows, weights, jnp.array(sizes, jnp.int32), d_out)
    assert_near(found, expected(rows, weights, sizes, d_out), jnp.bfloat16)


@pytest.mark.parametrize("backend", ["loop", "triton"])
def test_fewer_rows_than_groups_and_than_a_tile(backend):
    rows, weights, d_out = inputs(1, jnp.float32, num_rows=3, num_groups=7)
    sizes = [0, 1, 0, 0, 1, 0, 0]
    found = compiled(backend)(rows, weights, jnp.array(sizes, jnp.int32), d_out)
    assert_near(found, expected(rows, weights, sizes, d_out), jnp.float32)


@pytest.mark.parametrize("backend", ["loop", "triton"])
def test_any_sizes(backend):
    rows, weights, d_out = inputs(2, jnp.float32)

    @hypothesis.given(st.lists(st.integers(0, NUM_ROWS), min_size=4, max_size=4))
    @hypothesis.settings(max_examples=6)
    def law(cuts):
        sizes = np.diff(np.sort(cuts), prepend=0)
        found = compiled(backend)(rows, weights, jnp.asarray(sizes, jnp.int32), d_out)
        assert_near(found, expected(rows, weights, sizes, d_out), jnp.float32)

    law()


def test_any_sizes_of_few_rows():
    num_rows, num_groups = 40, 6  # groups are not a power of two, and some have several tiles
    assert few_rows.are_few(num_rows=num_rows, num_groups=num_groups)
    rows, weights, d_out = inputs(
        6, jnp.float32, num_rows=num_rows, num_groups=num_groups, sides=(16, 32)
    )

    @hypothesis.given(st.lists(st.integers(0, num_rows), min_size=num_groups, max_size=num_groups))
    @hypothesis.settings(max_examples=12)
    def law(cuts):
        sizes = np.diff(np.sort(cuts), prepend=0)
        found = compiled("triton")(rows, weights, jnp.asarray(sizes, jnp.int32), d_out)
        assert_near(found, expected(rows, weights, sizes, d_out), jnp.float32)

    law()


def test_by_hand():
    rows = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    weights = jnp.array([[[1.0], [1.0]], [[2.0], [0.0]]])
    d_out = jnp.array([[1.0], [10.0], [100.0]])
    answers, d_rows, d_weights = compiled("loop")(rows, weights, jnp.array([1, 1]), d_out)
    np.testing.assert_array_equal(answers, [[3.0], [6.0], [0.0]])
    np.testing.assert_array_equal(d_rows, [[1.0, 1.0], [20.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(d_weights, [[[1.0], [2.0]], [[30.0], [40.0]]])


def test_on_two_devices_the_gradient_of_shared_matrices_is_the_sum():
    rows, weights, d_out = inputs(3, jnp.float32)
    sizes = [[10, 50, 0, 68], [0, 0, 100, 28]]
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    cut, whole = PartitionSpec("data"), PartitionSpec()

    def body(rows, weights, sizes):
        return subject("loop")(rows, weights, sizes[0])

    mapped = jax.shard_map(body, mesh=mesh, in_specs=(cut, whole, cut), out_specs=cut)

    @jax.jit
    def run(rows, weights, d_out):
        own = jnp.array(sizes, jnp.int32)
        answers, pull = jax.vjp(lambda x, w: mapped(x, w, own), rows, weights)
        return (answers, *pull(d_out))

    found = run(rows, weights, d_out)
    halves = [
        expected(rows[mine], weights, own, d_out[mine])
        for mine, own in zip((slice(0, 128), slice(128, 256)), sizes, strict=True)
    ]
    (y, x, w), (other_y, other_x, other_w) = halves
    wanted = (np.concatenate([y, other_y]), np.concatenate([x, other_x]), w + other_w)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, **tolerances.MODEL_F32)


@pytest.mark.parametrize("backend", ["triton", "hopper"])
def test_kernels_say_over_which_devices_their_results_vary(backend):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    cut, whole = PartitionSpec("data"), PartitionSpec()
    multiply = functools.partial(matmul.grouped_matmul, backend=backend)
    mapped = jax.shard_map(
        lambda rows, weights, sizes: multiply(rows, weights, sizes[0]),
        mesh=mesh,
        in_specs=(cut, whole, cut),
        out_specs=cut,
    )
    rows, weights, d_out = inputs(0, jnp.bfloat16)
    sizes = jnp.ones((2, 4), jnp.int32)

    def both(rows, weights, d_out):
        return jax.vjp(lambda x, w: mapped(x, w, sizes), rows, weights)[1](d_out)

    d_rows, d_weights = jax.eval_shape(both, rows, weights, d_out)
    assert (d_rows.shape, d_weights.shape) == (rows.shape, weights.shape)


@pytest.mark.parametrize(
    ("backend", "shape", "dtype", "message"),
    [
        ("triton", (64, 24, 128), jnp.float32, "24 x 128; these can: loop"),
        ("hopper", (64, 128, 128), jnp.float32, "not float32; these can: loop, triton"),
        ("hopper", (64, 128, 64), jnp.bfloat16, "128 x 64; these can: loop, triton"),
        ("hopper", (0, 128, 128), jnp.bfloat16, "not 0; these can: loop"),
        ("megablox", (64, 128, 128), jnp.float32, "not 64 rows and 128 x 128"),
        ("megablox", (128, 128, 128), jnp.float16, "not float16; these can: loop, triton, hopper"),
        ("triton", (0, 128, 128), jnp.float16, "not 0; these can: loop"),
    ],
)
def test_what_a_backend_cannot_do_raises_and_says_which_can(backend, shape, dtype, message):
    num_rows, num_in, num_out = shape
    with pytest.raises(ValueError, match=f"backend='{backend}' takes .*{message}"):
        jax.eval_shape(
            lambda *arguments: matmul.grouped_matmul(*arguments, backend=backend),
            jax.ShapeDtypeStruct((num_rows, num_in), dtype),
            jax.ShapeDtypeStruct((2, num_in, num_out), dtype),
            jax.ShapeDtypeStruct((2,), jnp.int32),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "cuda"}, "backend='cuda': must be one of loop, triton, hopper, megablox"),
        ({"backend": "loop", "interpret": True}, "interpret=True: must be False with backend="),
    ],
)
def test_settings_that_mean_nothing_raise(settings, message):
    rows, weights, _ = inputs(0, jnp.float32)
    with pytest.raises(ValueError, match=message):
        matmul.grouped_matmul(rows, weights, jnp.zeros(4, jnp.int32), **settings)


def test_no_group_and_sizes_that_are_no_integers_raise():
    rows, weights, _ = inputs(0, jnp.float32)
    with pytest.raises(ValueError, match="E must be at least 1"):
        matmul.grouped_matmul(rows, weights[:0], jnp.zeros(0, jnp.int32), backend="loop")
    with pytest.raises(AssertionError, match="type"):
        matmul.grouped_matmul(rows, weights, jnp.full(4, 1.5), backend="loop")


def test_megablox_is_refused_where_rows_differ_between_devices():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    cut, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        lambda *arguments: matmul.grouped_matmul(*arguments, backend="megablox"),
        mesh=mesh,
        in_specs=(cut, whole, whole),
        out_specs=cut,
    )
    rows, weights, _ = inputs(0, jnp.float32)
    with pytest.raises(ValueError, match="takes no rows that differ between the devices"):
        jax.eval_shape(mapped, rows, weights, jnp.zeros(4, jnp.int32))


class _Device:
    def __init__(self, platform, compute_capability=""):
        self.platform, self.compute_capability = platform, compute_capability


@pytest.mark.parametrize(
    ("device", "dtype", "num_in", "backend"),
    [
        (_Device("cpu"), jnp.bfloat16, 128, "loop"),
        (_Device("tpu"), jnp.bfloat16, 128, "megablox"),
        (_Device("tpu"), jnp.bfloat16, 96, "loop"),
        (_Device("gpu", "8.0"), jnp.bfloat16, 128, "triton"),
        (_Device("gpu", "9.0"), jnp.bfloat16, 128, "hopper"),
        (_Device("gpu", "9.0"), jnp.float32, 128, "triton"),
        (_Device("gpu", "9.0"), jnp.bfloat16, 96, "triton"),
        (_Device("gpu", "9.0"), jnp.bfloat16, 10, "loop"),
    ],
)
def test_the_backend_that_is_meant_for_a_device(device, dtype, num_in, backend):
    rows = jax.ShapeDtypeStruct((256, num_in), dtype)
    weights = jax.ShapeDtypeStruct((2, num_in, 128), dtype)
    assert matmul.choose(device, rows, weights) == backend


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(
    ("backend", "num_rows", "platform", "names"),
    [
        ("hopper", NUM_ROWS, "cuda", ["mosaic_gpu"]),
        ("hopper", 32, "cuda", ["__gpu$xla.gpu.triton"]),  # few rows
        ("triton", NUM_ROWS, "cuda", ["__gpu$xla.gpu.triton"]),
        ("megablox", NUM_ROWS, "tpu", ["tpu_custom_call"]),
    ],
)
def test_lowers_for_its_platform(backend, num_rows, platform, names):
    def both(rows, weights, sizes, d_out):
        run = functools.partial(matmul.grouped_matmul, backend=backend)
        return jax.vjp(lambda x, w: run(x, w, sizes), rows, weights)[1](d_out)

    rows, weights, d_out = inputs(0, jnp.bfloat16, num_rows=num_rows)
    sizes = jnp.array([8, 8, 0, 10], jnp.int32)
    lowered = lowering.text_for(platform, both, rows, weights, sizes, d_out)
    for name in names:
        assert f"custom_call @{name}" in lowered
