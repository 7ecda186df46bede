"""The benchmark of a layer of experts at a tiny shape."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from benchmarks import moe_layer, moe_layer_parts, moe_layer_problem
from benchmarks.moe_layer_problem import Shape

SHAPE = Shape(24, 2, 4, 16, 32)
PROBLEM = {"shape": SHAPE, "routing": "skewed"}


@pytest.fixture(scope="module")
def measured():
    return {
        recompute: moe_layer.measure(PROBLEM, "loop", jnp.float32, recompute=recompute)
        for recompute in (False, True)
    }


@pytest.mark.deep
def test_it_measures_right_answers_and_gradients(measured):
    for each in measured.values():
        assert each["all_finite"]
        assert set(each["errors"]) == {"out", "d_tokens", "d_weights", "d_gate", "d_up", "d_down"}
        assert 0.0 < max(each["errors"].values()) < 2e-6
        assert each["forward_seconds"] > 0.0 < each["both_seconds"]


def test_what_is_recomputed_is_not_kept(measured):
    width_of_all = SHAPE.model_dim + 3 * SHAPE.width
    kept = [each["num_kept_bytes"] for each in measured.values()]
    assert kept[0] - kept[1] == SHAPE.num_tokens * SHAPE.top_k * width_of_all * 4
    assert 0 < kept[1] < kept[0] < measured[True]["num_bytes"]


def test_a_wrong_answer_is_an_error():
    made = moe_layer.draw(PROBLEM, jnp.float32)
    ids, weights = moe_layer_problem.draw_routing(*PROBLEM.values())
    zeros = (jnp.zeros_like(made.tokens), jnp.zeros_like(made.weights), made.matrices)
    layer = moe_layer._found(made, jnp.zeros_like(made.tokens), list(zeros))
    errors = moe_layer_problem.errors(ids, weights, layer)
    assert [errors[name] for name in ("out", "d_tokens", "d_weights")] == [1.0] * 3
    assert min(errors[name] for name in ("d_gate", "d_up", "d_down")) > 0.5


@pytest.mark.parametrize("kind", ["even", "skewed"])
def test_choices_are_distinct_and_weights_exact_in_bfloat16(kind):
    ids, weights = moe_layer_problem.draw_routing(SHAPE, kind)
    assert ids.shape == weights.shape == (SHAPE.num_tokens, SHAPE.top_k)
    assert all(len(set(row)) == SHAPE.top_k for row in ids.tolist())
    assert 0 <= ids.min() <= ids.max() < SHAPE.num_experts
    np.testing.assert_array_equal(jnp.asarray(weights, jnp.bfloat16).astype(jnp.float32), weights)


def test_skewed_is_less_even():
    shape = SHAPE._replace(num_tokens=4000, num_experts=32)
    most = [
        np.bincount(moe_layer_problem.draw_routing(shape, kind)[0].ravel()).max()
        for kind in ("even", "skewed")
    ]
    assert most[1] > 1.5 * most[0]


@pytest.mark.deep
def test_the_tables_have_ratios_to_the_faster_peer_and_all_parts(measured):
    ours = measured[False] | {"forward_seconds": 0.5e-6, "both_seconds": 2.0}
    theirs = [
        ours | {"name": "slow", "forward_seconds": 9.0e-6, "both_seconds": 9.0},
        ours | {"name": "fast", "forward_seconds": 1.0e-6, "both_seconds": 3.0},
    ]
    parts = moe_layer.measure_parts(PROBLEM, "loop", jnp.float32)
    found = {
        "ours": [ours],
        "parts": [parts],
        "peer": {"measured": theirs, "torch": "2", "transformers": "5"},
        "copy_bytes_per_second": 1.0,
        "made_with": {"device": "a", "jax": "b", "python": "c", "dtype": "float32"},
    }
    console = rich_console.Console(file=io.StringIO(), width=160)
    moe_layer.report(console, found)
    lines = console.file.getvalue().splitlines()
    line = next(line for line in lines if "loop, none" in line).split()
    assert [line[place] for place in (6, 9)] == ["2.00", "1.50"]
    # All four experts are used: 4 x 3 x 16 x 32 numbers of 4 bytes in half a microsecond.
    assert line[5] == "49"
    matmuls = [part for part in parts["parts"] if part["flops"]]
    assert sum(part["flops"] * part["times"] for part in matmuls) == SHAPE.training_flops
    assert any("all else" in line for line in lines)


@pytest.mark.parametrize(("backend", "num_designs"), [("loop", 2), ("hopper", 4)])
def test_the_layer_is_measured_with_fused_kernels_where_there_are(backend, num_designs):
    assert len(moe_layer.designs(PROBLEM, backend, jnp.float32, moe_layer.REMATS)) == num_designs


@pytest.mark.deep
def test_fused_kernels_stand_for_parts_that_there_are():
    shape = Shape(24, 2, 4, 128, 128)
    made = moe_layer.draw({"shape": shape, "routing": "even"}, jnp.bfloat16)
    parts = []

    def trace(made):  # no device here can run them
        parts.extend(moe_layer_parts.parts_of(shape, made, "hopper"))
        return made.tokens

    jax.eval_shape(trace, made)
    fused = [part for part in parts if part.instead_of]
    flops = {part.name: part.flops * part.times for part in parts if not part.instead_of}
    assert len(fused) == 5
    for part in fused:
        assert sum(flops[name] for name in part.instead_of) == part.flops


def test_a_fused_kernel_is_compared_with_all_calls_that_it_stands_for():
    def part(name, seconds, times, *instead_of):
        return {
            "name": name,
            "times": times,
            "seconds": seconds,
            "num_bytes": 6e9,
            "flops": 4e12,
            "instead_of": instead_of,
        }

    parts = [part("x", 1.0, 2), part("y", 2.0, 1), part("both", 2.0, 1, "x", "y")]
    console = rich_console.Console(file=io.StringIO(), width=150)
    tables = moe_layer_parts.tables({"problem": PROBLEM, "backend": "one", "parts": parts})
    console.print(tables[1])
    lines = console.file.getvalue().splitlines()
    line = next(line for line in lines if "both" in line).split()
    assert line[1:6] == ["2000.000", "3", "2.0", "4000.000", "2.00"]
    saved = next(line for line in lines if "saved" in line).split()
    assert "2000.000" in saved
