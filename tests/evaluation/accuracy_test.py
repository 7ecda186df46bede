"""Shares by hand, laws of their intervals, and accuracies by number of steps."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.evaluation import accuracy
from tests import tolerances


def test_the_interval_of_wilson_by_hand():
    # z^2 = 3.8414588: (0.8 + 0.19207294 +- 1.959964 sqrt(0.016 + 0.09603647 / 10)) / 1.38414588
    found = accuracy.share(8, 10)
    assert (found.value, found.num_right, found.num) == (0.8, 8, 10)
    np.testing.assert_allclose([found.low, found.high], [0.4901625, 0.9433178], **tolerances.OP_F32)


def test_none_and_all_right_still_have_a_width():
    # z^2 / (n + z^2) with n = 10.
    none, everything = accuracy.share(0, 10), accuracy.share(10, 10)
    assert none.low == 0.0 and everything.high == 1.0
    np.testing.assert_allclose([none.high, 1 - everything.low], 0.2775328, **tolerances.OP_F32)


@hypothesis.given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_value_and_mirrors(counts):
    right, num = counts
    found, mirrored = accuracy.share(right, num), accuracy.share(num - right, num)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    np.testing.assert_allclose(1.0 - mirrored.low, found.high, **tolerances.OP_F32)


@pytest.mark.parametrize(("right", "num"), [(0, 0), (3, 2), (-1, 2)])
def test_counts_that_are_no_share_are_refused(right, num):
    with pytest.raises(ValueError, match=f"{right} right of {num}"):
        accuracy.share(right, num)


def test_apart_only_without_a_common_point():
    assert accuracy.are_apart(accuracy.share(10, 100), accuracy.share(90, 100))
    assert accuracy.are_apart(accuracy.share(90, 100), accuracy.share(10, 100))
    assert not accuracy.are_apart(accuracy.share(50, 100), accuracy.share(55, 100))


def summary():
    return accuracy.summarize(
        np.array([True, False, True, True]),
        np.array([3, 1, 1, 3]),
        np.array([True, True, True, False]),
        np.array([10, 20, 30, 41]),
    )


def test_a_summary_by_hand():
    found = summary()
    assert (found.all.num_right, found.all.num) == (3, 4)
    assert list(found.by_steps) == [1, 3]
    assert [(s.num_right, s.num) for s in found.by_steps.values()] == [(1, 2), (2, 2)]
    assert (found.format_rate, found.mean_length) == (0.75, 25.25)


def test_json_and_back():
    content = accuracy.to_json(summary())
    assert accuracy.from_json(json.loads(json.dumps(content, allow_nan=False))) == summary()
    assert content["by_steps"]["1"]["num"] == 2


def test_wrong_arrays_are_refused():
    ones = np.ones(2, np.bool_)
    with pytest.raises(ValueError, match="shapes"):
        accuracy.summarize(ones, np.ones(3, np.int64), ones, np.ones(2, np.int64))
    with pytest.raises(ValueError, match="no responses"):
        accuracy.summarize(ones[:0], ones[:0], ones[:0], ones[:0])
    with pytest.raises(ValueError, match="is_right holds int64"):
        accuracy.summarize(np.array([0, 2]), np.ones(2, np.int64), ones, np.ones(2, np.int64))
