"""The benchmark of grouped matmuls at a tiny shape."""

import io

import jax.numpy as jnp
import pytest
from rich import console as rich_console

from benchmarks import grouped_matmul
from benchmarks.grouped_matmul import Shape

SHAPE = Shape(48, 4, 16, 32)


@pytest.fixture(scope="module")
def measured():
    problem = {"shape": SHAPE, "sizes": "skewed"}
    problem["group_sizes"] = grouped_matmul.draw_sizes(SHAPE, "skewed")
    problem["calls"] = [[12, 12, 12, 12], [48, 0, 0, 0]]
    return grouped_matmul.measure(problem, "loop", jnp.float32)


@pytest.mark.deep
def test_it_measures_right_answers(measured):
    assert measured["all_finite"]
    assert 0.0 < max(measured["errors"].values()) < 1e-6
    assert measured["forward_seconds"] > 0.0 < measured["backward_seconds"]


def test_a_wrong_answer_is_an_error():
    rows, weights, d_out = jnp.ones((3, 2)), jnp.ones((2, 2, 2)), jnp.ones((3, 2))
    right = (
        jnp.full((3, 2), 2.0),
        jnp.full((3, 2), 2.0),
        jnp.array([[[1.0] * 2] * 2, [[2.0] * 2] * 2]),
    )
    found = grouped_matmul.errors([1, 2], rows, weights, d_out, *right)
    assert found == {"out": 0.0, "d_rows": 0.0, "d_weights": 0.0}
    found = grouped_matmul.errors([1, 2], rows, weights, d_out, *(1.5 * x for x in right))
    assert found == pytest.approx({"out": 0.5, "d_rows": 0.5, "d_weights": 0.5})


@pytest.mark.parametrize("kind", ["even", "skewed"])
def test_all_rows_are_of_a_group(kind):
    sizes = grouped_matmul.draw_sizes(SHAPE, kind)
    assert len(sizes) == SHAPE.num_groups
    assert sum(sizes) == SHAPE.num_rows


def test_the_table_has_ratios_to_the_peer(measured):
    ours = measured | {"forward_seconds": 0.5, "backward_seconds": 2.0}
    theirs = measured | {"backend": "torch", "forward_seconds": 1.0, "backward_seconds": 1.0}
    found = {
        "ours": [ours],
        "peer": {"measured": [theirs], "torch": "2"},
        "copy_bytes_per_second": 4.0 * SHAPE.num_groups * SHAPE.num_in * SHAPE.num_out,
        "made_with": {"device": "a", "jax": "b", "python": "c", "dtype": "float32"},
    }
    console = rich_console.Console(file=io.StringIO(), width=150)
    grouped_matmul.report(console, found)
    line = next(line for line in console.file.getvalue().splitlines() if "loop" in line)
    # Twice as fast forward, half as fast backward; a call takes half a second, and the matrices
    # that it uses, two and a half of four, can be read in five eighths of one.
    assert [line.split()[place] for place in (5, 8, -1)] == ["2.00", "0.50", "1.25"]
