"""Additions: hand numbers, and who is right when."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.data.problems import arithmetic, responses, verify
from deepseek_jax.data.problems.problem import Problem

HAND = Problem("arithmetic", "941+367=", "1308", 3)
SEEDS = st.integers(0, 2**32)
SIZES = st.integers(1, 18)


def draw(seed, size):
    generator = np.random.default_rng(seed)
    return arithmetic.draw(generator, size=size), generator


def test_hand_numbers():
    text = "<think>1+7=8;4+6=10;9+3+1=13</think><answer>1308</answer>"
    assert arithmetic.worked(HAND) == text
    generator = np.random.default_rng(0)
    text = "<think>1+7=8;4+6=10;9+3=12</think><answer>1208</answer>"
    assert arithmetic.careless(HAND, generator) == text
    text = "<think>1+7+1=9;4+6+1=11;9+3+1=13</think><answer>1319</answer>"
    assert arithmetic.extra_carry(HAND) == text
    small = Problem("arithmetic", "10+20=", "30", 2)
    assert arithmetic.worked(small) == "<think>0+0=0;1+2=3</think><answer>30</answer>"


@hypothesis.given(SEEDS, SIZES)
def test_drawn_problems(seed, size):
    problem, _ = draw(seed, size)
    a, b = problem.prompt.removesuffix("=").split("+")
    assert problem == ("arithmetic", f"{a}+{b}=", str(int(a) + int(b)), problem.num_steps)
    assert len(a) == len(b) == size and a[0] != "0" and b[0] != "0"
    assert draw(seed, size)[0] == problem


@hypothesis.given(SEEDS, SIZES)
def test_steps_are_sums_of_columns(seed, size):
    problem, _ = draw(seed, size)
    response = responses.parse(arithmetic.worked(problem))
    steps = response.think.split(";")
    assert len(steps) == len(problem.prompt.split("+")[0])
    assert sum(step.count("+") for step in steps) == problem.num_steps
    for step in steps:
        left, right = step.split("=")
        assert sum(map(int, left.split("+"))) == int(right)
    assert response.answer == problem.answer


@hypothesis.given(SEEDS, SIZES)
def test_who_is_right(seed, size):
    problem, generator = draw(seed, size)
    a, b = problem.prompt.removesuffix("=").split("+")
    # A carry out of a column: its digits and all below make 10 to its power or more.
    carries = any(int(a[-k:]) + int(b[-k:]) >= 10**k for k in range(1, size))
    assert verify.is_right(problem, arithmetic.worked(problem))
    assert verify.is_right(problem, arithmetic.careless(problem, generator)) == (not carries)
    assert not verify.is_right(problem, arithmetic.slip(problem, generator))
    assert not verify.is_right(problem, arithmetic.changed_answer(problem, generator))
    assert not verify.is_right(problem, arithmetic.extra_carry(problem))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_slip_is_one_column_and_what_follows(size):
    for seed in range(200):
        problem, generator = draw(seed, size)
        response = responses.parse(arithmetic.slip(problem, generator))
        sums, errors = [], []
        for step in response.think.split(";"):
            left, right = step.split("=")
            # What is carried follows from the sum that was written, right or not.
            assert (left.count("+") == 2) == (bool(sums) and sums[-1] >= 10)
            errors.append(int(right) - sum(map(int, left.split("+"))))
            sums.append(int(right))
        assert sorted(map(abs, errors))[-1] in (1, 2) and errors.count(0) == size - 1
        digits = "".join(str(total % 10) for total in reversed(sums[:-1]))
        assert response.answer == f"{sums[-1]}{digits}"
        assert response.answer != problem.answer and response.answer[0] != "0"


@hypothesis.given(SEEDS, SIZES)
def test_a_changed_answer_is_off_by_one_digit(seed, size):
    problem, generator = draw(seed, size)
    response = responses.parse(arithmetic.changed_answer(problem, generator))
    assert response.think == responses.parse(arithmetic.worked(problem)).think
    pairs = list(zip(response.answer, problem.answer, strict=True))
    assert sum(one != other for one, other in pairs) == 1


def test_guesses_are_right_with_probability_a_tenth():
    problem, generator = draw(0, 3)
    answers = [responses.parse(arithmetic.guess(problem, generator)) for _ in range(4000)]
    assert all(response.think is None for response in answers)
    off = [sum(a != b for a, b in zip(r.answer, problem.answer, strict=True)) for r in answers]
    counts = np.bincount(off)
    # Five standard errors: sqrt(0.1 0.9 / 4000) = 0.0047.
    assert abs(counts[0] / 4000 - 0.1) < 0.024
    assert len(counts) == len(problem.answer) + 1 and counts.min() > 0


@pytest.mark.parametrize("size", [0, 19])
def test_sizes(size):
    with pytest.raises(ValueError, match=f"size={size}: an addition has"):
        draw(0, size)
