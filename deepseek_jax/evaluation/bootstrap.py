"""Ratios of sums over units that do not depend on one another, with intervals. Floor 5: numpy only.

What lies within a unit may depend on the rest of it (tokens of a document, pairs of a dialogue), so
an interval comes from drawing whole units.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

NUM_RESAMPLES = 2000
LEVEL = 0.95
_CHUNK_ENTRIES = 4_000_000


class Estimate(NamedTuple):
    """A value with its bootstrap interval.

    `low` and `high` are the percentiles between which `LEVEL` of the resamples lie, and None
    when there is one unit only, which tells nothing of the spread.
    """

    value: float
    low: float | None
    high: float | None


def ratio(
    numerators: Float64[np.ndarray, " units"],
    denominators: Int64[np.ndarray, " units"],
    *,
    seed: int,
) -> Estimate:
    """The sum of the numerators over that of the denominators.

    Args:
      numerators: of each unit.
      denominators: of each unit, above 0.
      seed: of the resamples.
    """
    return difference(numerators, np.zeros_like(numerators), denominators, seed=seed)


def difference(
    numerators: Float64[np.ndarray, " units"],
    others: Float64[np.ndarray, " units"],
    denominators: Int64[np.ndarray, " units"],
    *,
    seed: int,
) -> Estimate:
    """A ratio less another one over the same denominators.

    The interval is paired: each resample measures both on the same units, so that what makes a
    unit hard for both cancels.

    Args:
      numerators: of the first ratio.
      others: numerators of the second.
      denominators: of both, above 0.
      seed: of the resamples.
    """
    num_units = len(denominators)
    once = np.ones((1, num_units), np.int64)
    values = [
        (draws @ numerators) / (draws @ denominators) - (draws @ others) / (draws @ denominators)
        for draws in (once, *_draws(num_units, seed=seed))
    ]
    value = float(values[0][0])
    if num_units == 1:
        return Estimate(value, None, None)
    ends = [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0]
    low, high = np.quantile(np.concatenate(values[1:]), ends)
    return Estimate(value, float(low), float(high))


def _draws(num_units: int, *, seed: int) -> Iterator[Int64[np.ndarray, "resamples units"]]:
    """How often each unit is drawn in each resample, a part of the resamples at a time."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_units, 1.0 / num_units)
    at_once = max(1, _CHUNK_ENTRIES // num_units)
    for start in range(0, NUM_RESAMPLES, at_once):
        size = min(at_once, NUM_RESAMPLES - start)
        yield generator.multinomial(num_units, shares, size=size)
