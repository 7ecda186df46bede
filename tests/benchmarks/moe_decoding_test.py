"""The benchmark of experts for few tokens at a tiny shape."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from benchmarks import moe_decoding, moe_layer_problem
from benchmarks.moe_layer_problem import Shape

SHAPE = Shape(3, 2, 4, 16, 32)


@pytest.fixture(scope="module")
def measured():
    return moe_decoding.measure(SHAPE, jnp.dtype("float32"))


@pytest.mark.deep
def test_it_measures_right_answers_both_ways(measured):
    assert [each["name"] for each in measured] == ["loop, as it is", "loop, rows"]
    for each in measured:
        assert each["seconds"] > 0.0
        assert 0.0 < each["error"] < 2e-6


def test_a_wrong_answer_is_an_error():
    ids, weights = moe_layer_problem.draw_routing(SHAPE, "even")
    random = np.random.default_rng(0)
    matrices = [random.normal(size=(4, *sides)) for sides in ((16, 32), (16, 32), (32, 16))]
    error = moe_layer_problem.answers_error(
        ids,
        weights,
        tokens=random.normal(size=(3, 16)),
        answers=np.zeros((3, 16)),
        matrices=lambda expert: tuple(each[expert] for each in matrices),
    )
    assert error == 1.0


def test_each_seed_is_a_routing_of_its_own():
    drawn = [moe_layer_problem.draw_routing(SHAPE, "even", seed)[0].tolist() for seed in range(4)]
    assert any(each != drawn[0] for each in drawn)


def test_the_table_has_ratios_to_the_fastest_peer_and_to_the_bytes(measured):
    ours = measured[0] | {"seconds": 1e-6}
    theirs = [ours | {"name": "slow", "seconds": 9e-6}, ours | {"name": "fast", "seconds": 3e-6}]
    found = {
        "ours": [ours],
        "peer": {"measured": theirs, "torch": "2", "transformers": "5"},
        "copy_bytes_per_second": moe_decoding._bytes_read(SHAPE, 4) / 0.25e-6,
        "made_with": {"device": "a", "jax": "b", "python": "c", "dtype": "float32"},
    }
    console = rich_console.Console(file=io.StringIO(), width=130)
    moe_decoding.report(console, found)
    line = next(each for each in console.file.getvalue().splitlines() if "as it is" in each)
    assert line.split()[-3:-1] == ["0.25", "3.00"]


def test_bytes_are_those_of_the_experts_that_were_chosen():
    shape = Shape(1, 2, 64, 16, 32)  # two experts whatever the routing
    assert moe_decoding._bytes_read(shape, 2) == 2 * 3 * 16 * 32 * 2
