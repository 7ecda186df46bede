"""Addition of two numbers, column by column from the lowest, right and wrong. Floor 1.

941+367= is worked as 1+7=8;4+6=10;9+3+1=13, so 1308: each step is a column, with +1 where
the column below gave a carry.
"""

from collections.abc import Sequence

import numpy as np

from deepseek_jax.data.problems import mistakes, responses
from deepseek_jax.data.problems.problem import Problem

_MAX_SIZE = 18  # Numbers that int64 holds.


def draw(generator: np.random.Generator, *, size: int) -> Problem:
    """An addition of two numbers of `size` digits, each drawn uniformly, the first digit not 0.

    Its steps are the single additions of the worked solution: one a column, and one more for
    each carry that enters a column.

    Raises:
      ValueError: `size` outside 1..18.
    """
    if not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"size={size}: an addition has numbers of 1 to {_MAX_SIZE} digits")
    a, b = generator.integers(10 ** (size - 1), 10**size, size=2).tolist()
    problem = Problem("arithmetic", f"{a}+{b}=", str(a + b), size)
    columns = _columns(problem)
    return problem._replace(num_steps=size + sum(_carries(columns, [0] * size)[:size]))


def worked(problem: Problem) -> str:
    """The right solution."""
    columns = _columns(problem)
    slips = [0] * len(columns)
    return _response(columns, _carries(columns, slips), slips)


def careless(problem: Problem, generator: np.random.Generator) -> str:
    """Forgets every carry: right exactly if no column below the highest gives one.

    Args:
      problem: an addition.
      generator: not used; all wrong ways of work are called alike.
    """
    columns = _columns(problem)
    nothing = [0] * len(columns)
    return _response(columns, nothing, nothing)


def extra_carry(problem: Problem) -> str:
    """Adds a carry in every column, also the lowest one, so that it is always wrong."""
    columns = _columns(problem)
    return _response(columns, [1] * len(columns), [0] * len(columns))


def slip(problem: Problem, generator: np.random.Generator) -> str:
    """Errs by 1 or 2 in the sum of one column and goes on rightly from there: always wrong."""
    columns = _columns(problem)
    slips = [0] * len(columns)
    place = int(generator.integers(len(columns)))
    total = sum(columns[place]) + _carries(columns, slips)[place]
    errors = [error for error in (-2, -1, 1, 2) if 1 <= total + error <= 19]
    slips[place] = errors[generator.integers(len(errors))]
    return _response(columns, _carries(columns, slips), slips)


def changed_answer(problem: Problem, generator: np.random.Generator) -> str:
    """Works rightly, then writes one digit of the answer wrong: always wrong."""
    response = responses.parse(worked(problem))
    assert response is not None
    wrong = mistakes.changed_number(problem.answer, generator, num_changes=1)
    return responses.compose(think=response.think, answer=wrong)


def guess(problem: Problem, generator: np.random.Generator) -> str:
    """Gives an answer without work: right with probability 0.1, else 1 to all digits wrong."""
    count = mistakes.num_changes(len(problem.answer), generator)
    wrong = mistakes.changed_number(problem.answer, generator, num_changes=count)
    return mistakes.guess(problem.answer, wrong, generator)


def _columns(problem: Problem) -> list[tuple[int, int]]:
    """The digits of both numbers, lowest column first."""
    a, b = problem.prompt.removesuffix("=").split("+")
    return [(int(i), int(j)) for i, j in zip(reversed(a), reversed(b), strict=True)]


def _carries(columns: Sequence[tuple[int, int]], slips: Sequence[int]) -> list[int]:
    """The carry that enters each column, where each column's sum is off by its slip."""
    carries = [0]
    for (a, b), error in zip(columns, slips, strict=True):
        carries.append((a + b + carries[-1] + error) // 10)
    return carries[:-1]


def _response(
    columns: Sequence[tuple[int, int]], carries: Sequence[int], slips: Sequence[int]
) -> str:
    """The work with these carries and errors, and the answer that follows from its columns."""
    steps, answer = [], ""
    for (a, b), carry, error in zip(columns, carries, slips, strict=True):
        total = a + b + carry + error
        steps.append(f"{a}+{b}{'+1' if carry else ''}={total}")
        answer = str(total % 10) + answer
    return responses.compose(think=";".join(steps), answer=str(total // 10 or "") + answer)
