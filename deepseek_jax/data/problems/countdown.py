"""Countdown: reach a target from numbers with + - * /, each used exactly once. Floor 1.

The task of github.com/Jiayi-Pan/TinyZero: 3 7 25 -> 46= is worked as 7*3=21;25+21=46 and
answered by 25+7*3, or by any other expression of exactly these numbers and this value.
"""

import functools
from typing import NamedTuple

import numpy as np

from deepseek_jax.data.problems import expressions, mistakes, responses
from deepseek_jax.data.problems.problem import Problem

MAX_NUMBER = 25
MAX_VALUE = 999  # of the target and of all that is met on the way to it
_MAX_SIZE = 5  # The search behind `worked` grows with the factorial of the size.
_SUM, _PRODUCT, _ATOM = 0, 1, 2  # How tightly the outermost sign binds.


class _Term(NamedTuple):
    """A number or what was made of several, with its text."""

    value: int
    text: str
    binding: int


def draw(generator: np.random.Generator, *, size: int) -> Problem:
    """`size` numbers of 1..25, drawn uniformly, and a target of 1..999 that they reach.

    The target is found by joining two drawn terms by a drawn sign until one is left; no step
    leaves the whole numbers from 1 to 999.

    Raises:
      ValueError: `size` outside 2..5.
    """
    if not 2 <= size <= _MAX_SIZE:
        raise ValueError(f"size={size}: a countdown has 2 to {_MAX_SIZE} numbers")
    numbers = generator.integers(1, MAX_NUMBER + 1, size=size).tolist()
    terms = [_Term(number, str(number), _ATOM) for number in numbers]
    while len(terms) > 1:
        i, j = generator.choice(len(terms), size=2, replace=False).tolist()
        joined = [term for _, term in _joins(terms[i], terms[j])]
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        terms = [*rest, joined[generator.integers(len(joined))]]
    prompt = f"{' '.join(map(str, numbers))} -> {terms[0].value}="
    return Problem("countdown", prompt, str(terms[0].value), size - 1)


def worked(problem: Problem) -> str:
    """The first solution that a search finds: a step for each sign, then the expression.

    Raises:
      ValueError: the target cannot be reached within the limits of `draw`.
    """
    numbers, target = _read(problem)
    found = _search(tuple(_Term(n, str(n), _ATOM) for n in sorted(numbers)), target)
    if found is None:
        raise ValueError(f"{problem}: has no solution")
    return responses.compose(think=";".join(found[:-1]), answer=found[-1])


def careless(problem: Problem, generator: np.random.Generator) -> str:
    """Tries only + and -, from left to right, and takes what comes closest.

    Right exactly if some choice of signs reaches the target without going below 0 on the way.

    Args:
      problem: a countdown.
      generator: not used; all wrong ways of work are called alike.
    """
    numbers, target = _read(problem)
    ways: list[tuple[int, list[str], str]] = [(numbers[0], [], str(numbers[0]))]
    for number in numbers[1:]:
        ways = [
            (new, [*steps, f"{value}{sign}{number}={new}"], f"{text}{sign}{number}")
            for value, steps, text in ways
            for sign, new in (("+", value + number), ("-", value - number))
            if new >= 0
        ]
    _, steps, text = min(ways, key=lambda way: abs(way[0] - target))
    return responses.compose(think=";".join(steps), answer=text)


def slip(problem: Problem, generator: np.random.Generator) -> str:
    """Works rightly, then writes one number of the expression wrong: always wrong."""
    response = responses.parse(worked(problem))
    assert response is not None
    numbers, _ = _read(problem)
    place = int(generator.integers(len(numbers)))
    other = int(generator.integers(1, MAX_NUMBER))
    wrong = str(other + (other >= numbers[place]))
    parts = expressions.split(response.answer)
    parts[parts.index(str(numbers[place]))] = wrong
    return responses.compose(think=response.think, answer="".join(parts))


def guess(problem: Problem, generator: np.random.Generator) -> str:
    """Gives an expression without work: right with probability 0.1, else drawn and wrong.

    A wrong one has the numbers in a drawn order with drawn signs between them.
    """
    response = responses.parse(worked(problem))
    assert response is not None
    numbers, _ = _read(problem)
    wrong = response.answer
    while verify(problem, wrong):  # + and - before the last number differ, so one is wrong.
        order = generator.permutation(numbers).tolist()
        signs = ["+-*/"[i] for i in generator.integers(4, size=len(order) - 1)]
        wrong = str(order[0]) + "".join(
            f"{sign}{number}" for sign, number in zip(signs, order[1:], strict=True)
        )
    return mistakes.guess(response.answer, wrong, generator)


def verify(problem: Problem, answer: str) -> bool:
    """Whether an expression uses each number exactly once and has the target as its value.

    Exact arithmetic; values on the way may be negative or fractions. The grammar is that of
    `expressions`: no blanks, no "= target" behind it. Never raises, whatever the answer.
    """
    numbers, target = _read(problem)
    expression = expressions.parse(answer)
    return (
        expression is not None
        and sorted(expression.numbers) == sorted(numbers)
        and expression.value == target
    )


def _read(problem: Problem) -> tuple[list[int], int]:
    """The numbers and the target of a prompt."""
    numbers, target = problem.prompt.removesuffix("=").split(" -> ")
    return [int(number) for number in numbers.split(" ")], int(target)


def _joins(a: _Term, b: _Term) -> list[tuple[str, _Term]]:
    """What two terms make by each sign within the limits: the step, and the new term.

    Never nothing: equal terms have a quotient, others a difference.
    """
    large, small = (a, b) if a.value >= b.value else (b, a)
    quotient, remainder = divmod(large.value, small.value)
    candidates = [
        ("+", large.value + small.value, _SUM, _SUM),
        ("-", large.value - small.value, _SUM, _PRODUCT),
        ("*", large.value * small.value, _PRODUCT, _PRODUCT),
        ("/", 0 if remainder else quotient, _PRODUCT, _ATOM),
    ]
    joins = []
    for sign, value, binding, right_binding in candidates:
        if 1 <= value <= MAX_VALUE:
            left = large.text if large.binding >= binding else f"({large.text})"
            right = small.text if small.binding >= right_binding else f"({small.text})"
            step = f"{large.value}{sign}{small.value}={value}"
            joins.append((step, _Term(value, f"{left}{sign}{right}", binding)))
    return joins


def _search(terms: tuple[_Term, ...], target: int) -> tuple[str, ...] | None:
    """Steps that reach the target, and behind them the expression; None if there are none."""
    if len(terms) == 1:
        return (terms[0].text,) if terms[0].value == target else None
    if not _is_reachable(tuple(sorted(term.value for term in terms)), target):
        return None
    for i in range(len(terms)):
        for j in range(i):
            rest = tuple(term for k, term in enumerate(terms) if k not in (i, j))
            for step, term in _joins(terms[i], terms[j]):
                found = _search((*rest, term), target)
                if found is not None:
                    return (step, *found)
    return None


@functools.lru_cache(maxsize=100_000)
def _is_reachable(values: tuple[int, ...], target: int) -> bool:
    """Whether values in ascending order make the target; remembered, which `_search` is not."""
    if len(values) == 1:
        return values[0] == target
    for i in range(len(values)):
        for j in range(i):
            rest = [value for k, value in enumerate(values) if k not in (i, j)]
            one, other = (_Term(values[k], "", _ATOM) for k in (i, j))
            for _, term in _joins(one, other):
                if _is_reachable(tuple(sorted([*rest, term.value])), target):
                    return True
    return False
