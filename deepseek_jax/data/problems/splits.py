"""Splits of problems, disjoint by construction: a hash of the problem's key decides. Floor 1."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from deepseek_jax.data import documents
from deepseek_jax.data.problems import problem as problem_lib
from deepseek_jax.data.problems.problem import Problem

# What each split is for: unlabelled text, the reward model, the policy, choices, the final test.
SPLITS = ("text", "reward", "policy", "validation", "test")
_ENDS = (80, 86, 94, 96, 100)  # of the percents of each
_MAX_DRAWS = 10_000  # without a new problem, after which there is none


class Draw(Protocol):
    """A task's generator of problems."""

    def __call__(self, generator: np.random.Generator, *, size: int) -> Problem:
        """One problem of a size."""


def split_of(problem: Problem) -> str:
    """The split of a problem, by SHA-256 of its key mod 100.

    text 0-79, reward 80-85, policy 86-93, validation 94-95, test 96-99.
    """
    percent = int(documents.digest(problem_lib.key(problem)), 16) % 100
    return next(name for name, end in zip(SPLITS, _ENDS, strict=True) if percent < end)


def draw_split(
    draw: Draw,
    generator: np.random.Generator,
    *,
    sizes: Sequence[int],
    split: str,
    num_problems: int,
) -> list[Problem]:
    """Problems of one split, no two with the same key.

    Args:
      draw: of a task.
      generator: draws the size of each problem, uniformly, and problems of it until one is of
        the split and new.
      sizes: to choose from.
      split: one of `SPLITS`.
      num_problems: how many.

    Returns:
      The same problems for the same state of the generator.

    Raises:
      ValueError: an unknown split, no sizes, or no new problem of a size in 10,000 draws.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {list(SPLITS)}")
    if not sizes:
        raise ValueError("sizes=[]: must hold at least one size")
    problems: dict[str, Problem] = {}
    while len(problems) < num_problems:
        size = sizes[int(generator.integers(len(sizes)))]
        for _ in range(_MAX_DRAWS):
            problem = draw(generator, size=size)
            key = problem_lib.key(problem)
            if key not in problems and split_of(problem) == split:
                problems[key] = problem
                break
        else:
            raise ValueError(
                f"{problem.task} of size {size} has no more than {len(problems)} of the "
                f"{num_problems} problems asked of the split {split!r} (none new in {_MAX_DRAWS} "
                "draws); ask for fewer or larger ones"
            )
    return list(problems.values())
