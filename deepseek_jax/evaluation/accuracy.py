"""Shares of right answers with their intervals. Floor 5: numpy only."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

LEVEL = 0.95
# The normal quantile of the level: 2.5% lie above it.
_QUANTILE = 1.959963984540054


class Share(NamedTuple):
    """A share of trials with its Wilson interval at `LEVEL`.

    Attributes:
      value: num_right / num.
      low: lower end of the interval, at least 0.
      high: upper end, at most 1.
      num_right: trials that went right.
      num: trials.
    """

    value: float
    low: float
    high: float
    num_right: int
    num: int


class Accuracy(NamedTuple):
    """How well one way of answering does on a set of problems.

    Attributes:
      all: share of right answers.
      by_steps: the same by the number of steps that a problem takes, fewest first.
      format_rate: share of responses that keep the format, right or wrong.
      mean_length: tokens of a response.
    """

    all: Share
    by_steps: dict[int, Share]
    format_rate: float
    mean_length: float


def share(num_right: int, num: int) -> Share:
    """The share of right trials.

    Wilson's interval, J. Am. Stat. Assoc. 22 (1927), p. 209: with z the normal quantile,
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). It stays within 0 and 1
    and has a width above 0 even if no trial went right, or all did.

    Args:
      num_right: of the trials.
      num: all of them.

    Returns:
      low <= value <= high.

    Raises:
      ValueError: no trials, or more right than there are.
    """
    if num < 1 or not 0 <= num_right <= num:
        raise ValueError(f"{num_right} right of {num}: a share needs 0 <= right <= all, all >= 1")
    value = num_right / num
    square = _QUANTILE**2
    centre = value + square / (2 * num)
    half = _QUANTILE * math.sqrt(value * (1.0 - value) / num + square / (4 * num**2))
    scale = 1.0 + square / num
    # Rounding alone could take an end past the value where none or all went right.
    low, high = min((centre - half) / scale, value), max((centre + half) / scale, value)
    return Share(value, max(low, 0.0), min(high, 1.0), int(num_right), int(num))


def are_apart(first: Share, second: Share) -> bool:
    """Whether two intervals have no point in common: a difference called clear in a report.

    This asks for more than a test at the same level does, so that little is called clear.
    """
    return first.low > second.high or second.low > first.high


def summarize(
    is_right: Bool[np.ndarray, " N"],
    num_steps: Int[np.ndarray, " N"],
    has_format: Bool[np.ndarray, " N"],
    lengths: Int[np.ndarray, " N"],
) -> Accuracy:
    """The accuracy of one response to each problem.

    Args:
      is_right: of each response.
      num_steps: of each problem.
      has_format: whether each response keeps the format.
      lengths: tokens of each response.

    Raises:
      ValueError: no problems, arrays of other lengths, or a mask that is not boolean.
    """
    arrays = {
        "is_right": np.asarray(is_right),
        "num_steps": np.asarray(num_steps),
        "has_format": np.asarray(has_format),
        "lengths": np.asarray(lengths),
    }
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or arrays["is_right"].ndim != 1:
        raise ValueError(f"one value for each response, got shapes {shapes}")
    if not len(arrays["is_right"]):
        raise ValueError("no responses to summarize")
    for name in ("is_right", "has_format"):
        if arrays[name].dtype != np.bool_:
            raise ValueError(f"{name} holds {arrays[name].dtype}, not booleans")
    right, steps = arrays["is_right"], arrays["num_steps"]
    return Accuracy(
        all=_of(right),
        by_steps={int(n): _of(right[steps == n]) for n in np.unique(steps)},
        format_rate=float(arrays["has_format"].mean()),
        mean_length=float(arrays["lengths"].mean()),
    )


def to_json(accuracy: Accuracy) -> dict[str, Any]:
    """The accuracy as dicts and numbers; `from_json` gives it back."""
    return {
        "all": accuracy.all._asdict(),
        "by_steps": {str(n): found._asdict() for n, found in accuracy.by_steps.items()},
        "format_rate": accuracy.format_rate,
        "mean_length": accuracy.mean_length,
    }


def from_json(content: Mapping[str, Any]) -> Accuracy:
    """The accuracy that `to_json` wrote; shares are computed again from their counts.

    Raises:
      KeyError: something is missing.
      ValueError: counts that are no share.
    """
    return Accuracy(
        all=_counted(content["all"]),
        by_steps={int(n): _counted(found) for n, found in content["by_steps"].items()},
        format_rate=content["format_rate"],
        mean_length=content["mean_length"],
    )


def _of(is_right: Bool[np.ndarray, " N"]) -> Share:
    return share(int(is_right.sum()), len(is_right))


def _counted(content: Mapping[str, Any]) -> Share:
    return share(content["num_right"], content["num"])
