"""Unlabelled text: problems with responses, a known share of them right work. Floor 1.

A model of this text learns all ways to respond; which of them are right, no label in it says.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int8

from deepseek_jax.data.problems import verify
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.data.problems.tasks import Styles


class Shares(NamedTuple):
    """The share of the documents in each style, in the order of `Styles`; they add up to 1."""

    worked: float
    careless: float
    guess: float
    slip: float


class Unlabelled(NamedTuple):
    """Documents, and beside them what only a measurement may look at.

    Attributes:
      documents: prompt and response of each problem, in the order of the problems.
      style_ids: index into the fields of `Styles`.
      right: whether the response is right.
    """

    documents: list[str]
    style_ids: Int8[np.ndarray, " N"]
    right: Bool[np.ndarray, " N"]


def text(
    problems: Sequence[Problem],
    generator: np.random.Generator,
    *,
    styles: Styles,
    shares: Shares,
) -> Unlabelled:
    """A document for each problem, in styles of the given shares.

    Args:
      problems: all of the task of `styles`.
      generator: draws which problem gets which style, and what the styles draw.
      styles: ways to respond.
      shares: of the documents; counts are rounded so that they add up, largest rests first.

    Returns:
      The same text for the same problems and state of the generator.

    Raises:
      ValueError: a share is outside [0, 1] or not finite, or their sum is not 1.
    """
    if not all(0.0 <= share <= 1.0 for share in shares) or not math.isclose(sum(shares), 1.0):
        raise ValueError(f"{shares}: must be in [0, 1] and add up to 1")
    style_ids = np.repeat(np.arange(len(shares)), _counts(shares, len(problems))).astype(np.int8)
    generator.shuffle(style_ids)
    documents, right = [], []
    for problem, style_id in zip(problems, style_ids.tolist(), strict=True):
        name = Styles._fields[style_id]
        match name:
            case "worked":
                response = styles.worked(problem)
            case "careless":
                response = styles.careless(problem, generator)
            case "guess":
                response = styles.guess(problem, generator)
            case _:
                response = styles.slip(problem, generator)
        documents.append(problem.prompt + response)
        right.append(verify.is_right(problem, response))
    return Unlabelled(documents, style_ids, np.array(right, dtype=bool))


def right_share(unlabelled: Unlabelled) -> float:
    """The measured share of documents whose response is right."""
    return float(unlabelled.right.mean())


def _counts(shares: Shares, num_documents: int) -> list[int]:
    """Whole numbers as close to the shares as can be, adding up to `num_documents`."""
    wanted = [share * num_documents for share in shares]
    counts = [math.floor(number + 1e-9) for number in wanted]
    by_rest = sorted(range(len(shares)), key=lambda i: counts[i] - wanted[i])
    for i in by_rest[: num_documents - sum(counts)]:
        counts[i] += 1
    return counts
