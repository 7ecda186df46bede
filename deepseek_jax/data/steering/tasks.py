"""Tasks on strings of digits: all of them take the same inputs. Floor 1."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from deepseek_jax.core import steering_spec

# What "keep only the even digits" answers where there are none.
NONE = "-"


class Task(NamedTuple):
    """What is to be done with a string of digits.

    Attributes:
      name: e.g. "reverse"; of a composition, "reverse+double".
      kind: "arithmetic", "lists", "strings", "formats" or "composition".
      answer: from the digits to the answer.
    """

    name: str
    kind: str
    answer: Callable[[str], str]


def _range(digits: str) -> str:
    return str(int(max(digits)) - int(min(digits)))


def _evens(digits: str) -> str:
    return "".join(digit for digit in digits if digit in "02468") or NONE


TASKS = (
    Task("sum", "arithmetic", lambda digits: str(sum(map(int, digits)))),
    Task("largest", "arithmetic", max),
    Task("smallest", "arithmetic", min),
    Task("range", "arithmetic", _range),
    Task("reverse", "lists", lambda digits: digits[::-1]),
    Task("ascending", "lists", lambda digits: "".join(sorted(digits))),
    Task("descending", "lists", lambda digits: "".join(sorted(digits, reverse=True))),
    Task("rotate", "lists", lambda digits: digits[1:] + digits[0]),
    Task("double", "strings", lambda digits: "".join(2 * digit for digit in digits)),
    Task("evens", "strings", _evens),
    Task("commas", "formats", ",".join),
    Task("brackets", "formats", lambda digits: f"[{digits}]"),
)
_BY_NAME = {task.name: task for task in TASKS}


def composition(first: str, second: str) -> Task:
    """One task, then another on its answer, which must be digits again."""
    inner, outer = _BY_NAME[first].answer, _BY_NAME[second].answer
    return Task(f"{first}+{second}", "composition", lambda digits: outer(inner(digits)))


TRAINED_COMPOSITIONS = tuple(
    composition(*name.split("+")) for name in steering_spec.TRAINED_COMPOSITIONS
)
# Never of the training.
LEFT_OUT = tuple(
    composition(first, second)
    for first, second in (
        ("reverse", "double"),
        ("ascending", "rotate"),
        ("rotate", "commas"),
        ("descending", "brackets"),
        ("ascending", "evens"),
        ("reverse", "descending"),
    )
)


def training_tasks(names: str, *, with_compositions: bool) -> tuple[Task, ...]:
    """The tasks of a training, in the order of their numbers.

    Args:
      names: of single tasks, with commas between them.
      with_compositions: whether the compositions of these tasks that may be trained are too.
    """
    single = tuple(_BY_NAME[name] for name in names.split(","))
    return single + composed_of(TRAINED_COMPOSITIONS, single) if with_compositions else single


def composed_of(compositions: Sequence[Task], parts: Sequence[Task]) -> tuple[Task, ...]:
    """Those compositions of which both parts are among the tasks."""
    names = {task.name for task in parts}
    return tuple(task for task in compositions if set(task.name.split("+")) <= names)


def split_inputs(
    *, num_digits: int, num_train: int, num_heldout: int, seed: int
) -> tuple[list[str], list[str]]:
    """Different strings of digits to train on and to measure, drawn evenly.

    Args:
      num_digits: of each.
      num_train: how many to train on.
      num_heldout: how many to measure; the same ones whatever `num_train` is.
      seed: of the draw.
    """
    order = np.random.default_rng([seed, num_digits]).permutation(10**num_digits)
    texts = [f"{number:0{num_digits}d}" for number in order[: num_heldout + num_train].tolist()]
    return texts[num_heldout:], texts[:num_heldout]


class Chance(NamedTuple):
    """Shares of right answers without knowing the task, exact over tasks and inputs.

    Attributes:
      uniform: of answers by a task drawn evenly.
      best: of the answer that most tasks give, which nothing can beat that sees the input alone.
    """

    uniform: float
    best: float


def chance(tasks: Sequence[Task], inputs: Sequence[str]) -> Chance:
    """What can be right by chance, every task being asked equally often on each input.

    For an input on which n_a of the n tasks answer a: uniform = sum_a (n_a / n)^2, best =
    max_a n_a / n; then the mean over the inputs.
    """
    uniform = best = 0.0
    for digits in inputs:
        _, counts = np.unique([task.answer(digits) for task in tasks], return_counts=True)
        shares = counts / len(tasks)
        uniform += float(np.sum(shares**2))
        best += float(shares.max())
    return Chance(uniform / len(inputs), best / len(inputs))


def differ(first: Task, second: Task, inputs: Sequence[str]) -> Bool[np.ndarray, " N"]:
    """Whether two tasks answer differently, input by input."""
    return np.array([first.answer(digits) != second.answer(digits) for digits in inputs])
