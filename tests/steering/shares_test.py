"""Intervals of shares by hand: what is drawn is a sentence, not an answer."""

import numpy as np
import pytest

from deepseek_jax.evaluation import accuracy
from deepseek_jax.steering import shares


def test_whole_descriptions_are_drawn():
    # Of 4 sentences 2 are understood: of 4 draws none is with probability 1/16, above 2.5%.
    right = np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0], bool)
    found = shares.share(right, np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4))
    assert found == (0.5, 0.0, 1.0, 6, 12, "descriptions", 4)
    assert accuracy.share(6, 12).low > 0.25  # what it would be over answers


def test_the_width_is_that_of_descriptions():
    right = np.repeat(np.arange(100) < 50, 4)
    found = shares.share(right, np.repeat(np.arange(100), 4), np.tile(np.arange(4), 100))
    # 1.96 * sqrt(0.25 / 100) on each side; over 400 answers it would be half of that.
    assert abs(found.low - 0.402) < 0.02 and abs(found.high - 0.598) < 0.02


def test_descriptions_weigh_as_many_answers_as_they_have():
    right = np.array([True] * 9 + [False])
    found = shares.share(right, np.array([7] * 9 + [3]), np.arange(10))
    assert (found.value, found.low, found.high, found.num_drawn) == (0.9, 0.0, 1.0, 2)


def test_with_one_description_the_interval_is_wilsons_over_the_inputs():
    right = np.arange(10) < 7
    found = shares.share(right, np.zeros(10, int), np.arange(10))
    assert found == (*accuracy.share(7, 10), "inputs", 10)


def test_with_one_description_the_same_input_is_no_new_one():
    # 4 inputs, each asked under 3 tasks and answered the same: the inputs are drawn whole.
    right = np.tile([True, False, False, False], 3)
    found = shares.share(right, np.zeros(12, int), np.tile(np.arange(4), 3))
    assert (found.value, found.drawn, found.num_drawn) == (0.25, "inputs", 4)
    # Of 4 draws 3 are the right one with probability 13/256, 4 of them with 1/256.
    assert (found.low, found.high) == (0.0, 0.75)


@pytest.mark.parametrize("right", [True, False])
def test_a_single_thing_to_draw_has_wilsons_interval(right):
    found = shares.share(np.full(3, right), np.zeros(3, int), np.zeros(3, int))
    assert found == (*accuracy.share(3 * right, 3), "inputs", 1)
