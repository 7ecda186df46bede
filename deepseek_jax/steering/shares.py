"""Shares of right answers, with intervals over what does not depend on one another. Floor 6."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from deepseek_jax.evaluation import accuracy, bootstrap

_SEED = 0


class Share(NamedTuple):
    """A share of right answers with its 95% interval.

    Attributes:
      value: num_right / num.
      low: lower end of the interval, at least 0.
      high: upper end, at most 1.
      num_right: answers that are right.
      num: answers.
      drawn: what the interval draws whole; each answer is to one of them.
      num_drawn: how many of them there are.
    """

    value: float
    low: float
    high: float
    num_right: int
    num: int
    drawn: Literal["descriptions", "inputs"]
    num_drawn: int


def share(
    is_right: Bool[np.ndarray, " N"],
    description_ids: Int[np.ndarray, " N"],
    input_ids: Int[np.ndarray, " N"],
) -> Share:
    """The share of right answers to some descriptions of some inputs.

    Answers to one description depend on one another: a sentence is understood, or it is not. So
    the interval is that of resamples of whole descriptions, with the inputs as they are. With one
    description it can only be over the inputs, and tells nothing of other sentences. Where each of
    what is drawn has one answer, or there is only one to draw, it is Wilson's over the answers.

    Args:
      is_right: of each answer.
      description_ids: of each answer.
      input_ids: of each answer.

    Returns:
      low <= value <= high; no width where all that is drawn has the same share, but for Wilson's.
    """
    drawn: Literal["descriptions", "inputs"] = "descriptions"
    units, owner = np.unique(description_ids, return_inverse=True)
    if len(units) == 1:
        drawn = "inputs"
        units, owner = np.unique(input_ids, return_inverse=True)
    wilson = accuracy.share(int(is_right.sum()), len(is_right))
    low, high = wilson.low, wilson.high
    if 1 < len(units) < wilson.num:
        right = np.bincount(owner, weights=is_right)
        found = bootstrap.ratio(right, np.bincount(owner), seed=_SEED)
        assert found.low is not None and found.high is not None
        low, high = found.low, found.high
    return Share(wilson.value, low, high, wilson.num_right, wilson.num, drawn, len(units))
