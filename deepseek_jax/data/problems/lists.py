"""Lists of digits: sort, reverse, keep the first of equals; step by step. Floor 1.

sort 5 3 9=      5 3 9>3;5 9>5;9>9      the rest of the list, and the least, taken out
reverse 5 3 9=   5 3 9>9;5 3>3;5>5      the rest of the list, and the last, taken out
unique 5 3 5=    5:5;3:5 3;5:5 3        the next number, and what is kept so far
"""

import numpy as np

from deepseek_jax.data.problems import mistakes, responses
from deepseek_jax.data.problems.problem import Problem

OPERATIONS = ("sort", "reverse", "unique")
_NUMBERS = "0123456789"


def draw(generator: np.random.Generator, *, size: int) -> Problem:
    """An operation and `size` numbers of 0..9, all drawn uniformly.

    Raises:
      ValueError: `size` below 1.
    """
    if size < 1:
        raise ValueError(f"size={size}: a list has at least 1 number")
    operation = OPERATIONS[generator.integers(len(OPERATIONS))]
    numbers = [_NUMBERS[i] for i in generator.integers(len(_NUMBERS), size=size)]
    _, answer = _work(operation, numbers)
    return Problem("lists", f"{operation} {' '.join(numbers)}=", " ".join(answer), size)


def worked(problem: Problem) -> str:
    """The right solution."""
    steps, answer = _work(*_read(problem))
    return responses.compose(think=";".join(steps), answer=" ".join(answer))


def careless(problem: Problem, generator: np.random.Generator) -> str:
    """Makes the mistake of its operation, each right on a part of the lists.

    Sort takes out all equals at once (right exactly if all numbers differ); reverse swaps the
    first and the last and leaves the middle; unique compares with the last one kept only.

    Args:
      problem: of lists.
      generator: not used; all wrong ways of work are called alike.
    """
    operation, numbers = _read(problem)
    match operation:
        case "sort":
            steps, answer = [], []
            while numbers:
                answer.append(min(numbers))
                steps.append(f"{' '.join(numbers)}>{answer[-1]}")
                numbers = [number for number in numbers if number != answer[-1]]
        case "reverse":
            answer = [numbers[-1], *numbers[1:-1], numbers[0]] if len(numbers) > 1 else numbers
            steps = [f"{numbers[0]}<>{numbers[-1]}"]
        case _:
            steps, answer = [], []
            for number in numbers:
                if answer[-1:] != [number]:
                    answer.append(number)
                steps.append(f"{number}:{' '.join(answer)}")
    return responses.compose(think=";".join(steps), answer=" ".join(answer))


def slip(problem: Problem, generator: np.random.Generator) -> str:
    """Works rightly, then writes one number of the answer wrong: always wrong."""
    steps, answer = _work(*_read(problem))
    wrong = mistakes.changed(answer, generator, alphabet=_NUMBERS, num_changes=1)
    return responses.compose(think=";".join(steps), answer=" ".join(wrong))


def guess(problem: Problem, generator: np.random.Generator) -> str:
    """Gives an answer without work: right with probability 0.1, else 1 to all numbers wrong."""
    answer = problem.answer.split(" ")
    count = mistakes.num_changes(len(answer), generator)
    wrong = mistakes.changed(answer, generator, alphabet=_NUMBERS, num_changes=count)
    return mistakes.guess(problem.answer, " ".join(wrong), generator)


def _read(problem: Problem) -> tuple[str, list[str]]:
    """The operation and the numbers of a prompt."""
    operation, *numbers = problem.prompt.removesuffix("=").split(" ")
    return operation, numbers


def _work(operation: str, numbers: list[str]) -> tuple[list[str], list[str]]:
    """The right steps and the right answer."""
    steps: list[str] = []
    answer: list[str] = []
    rest = list(numbers)
    match operation:
        case "sort" | "reverse":
            while rest:
                taken = rest.index(min(rest)) if operation == "sort" else len(rest) - 1
                steps.append(f"{' '.join(rest)}>{rest[taken]}")
                answer.append(rest.pop(taken))
        case "unique":
            for number in numbers:
                if number not in answer:
                    answer.append(number)
                steps.append(f"{number}:{' '.join(answer)}")
        case other:
            raise ValueError(f"operation={other!r}: must be one of {list(OPERATIONS)}")
    return steps, answer
