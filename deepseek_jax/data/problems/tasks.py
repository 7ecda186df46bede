"""Tasks: what belongs to each kind of drawn problems, chosen by name in one place. Floor 1."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deepseek_jax.data.problems import arithmetic, countdown, lists, strings
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.data.problems.splits import Draw

NAMES = ("arithmetic", "countdown", "lists", "strings")

Style = Callable[[Problem, np.random.Generator], str]


class Styles(NamedTuple):
    """Ways to respond to a problem; each gives the text of a response.

    Attributes:
      worked: with right steps; always right.
      careless: with steps that make the task's one systematic mistake; right on some problems.
      guess: without steps; right with probability `mistakes.RIGHT_GUESSES`.
      slip: with steps and one error; never right.
    """

    worked: Callable[[Problem], str]
    careless: Style
    guess: Style
    slip: Style


class Task(NamedTuple):
    """A kind of problems.

    Attributes:
      name: `Problem.task` of its problems.
      draw: gives a problem of a size.
      styles: ways to respond.
    """

    name: str
    draw: Draw
    styles: Styles


def task(name: str) -> Task:
    """The task of a name; who verifies it is decided in `verify.is_right`.

    Raises:
      ValueError: a name that no drawn task has; gsm8k is read, not drawn.
    """
    match name:
        case "arithmetic":
            return Task(
                name,
                arithmetic.draw,
                Styles(arithmetic.worked, arithmetic.careless, arithmetic.guess, arithmetic.slip),
            )
        case "countdown":
            return Task(
                name,
                countdown.draw,
                Styles(countdown.worked, countdown.careless, countdown.guess, countdown.slip),
            )
        case "lists":
            return Task(
                name, lists.draw, Styles(lists.worked, lists.careless, lists.guess, lists.slip)
            )
        case "strings":
            return Task(
                name,
                strings.draw,
                Styles(strings.worked, strings.careless, strings.guess, strings.slip),
            )
        case other:
            raise ValueError(f"task={other!r}: must be one of {list(NAMES)}")
