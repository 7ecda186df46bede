"""Whether a reward model ranks pairs rightly, and knows how surely. Floor 5: numpy only.

Bradley and Terry's model says that the chosen response of a pair beats the rejected one with
probability sigmoid(c - r). In a pair as it is stored the chosen one always wins, so every outcome
would be 1 and a model that is always sure would look calibrated; `oriented` turns each pair round
by a coin before its probability is compared with what happened.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from deepseek_jax.evaluation import accuracy
from deepseek_jax.evaluation.accuracy import Share


class Oriented(NamedTuple):
    """Pairs in random order.

    Attributes:
      probs: that the first response of a pair beats the second.
      outcomes: whether it did.
    """

    probs: Float64[np.ndarray, " N"]
    outcomes: Bool[np.ndarray, " N"]


class Bin(NamedTuple):
    """Pairs whose probabilities are alike.

    Attributes:
      mean_prob: mean of the probabilities.
      share: how often the first response won, of how many pairs.
    """

    mean_prob: float
    share: Share


def pair_accuracy(chosen: Float[np.ndarray, " N"], rejected: Float[np.ndarray, " N"]) -> Share:
    """The share of pairs whose chosen response has the higher score.

    A tie is not right: a model that scores everything alike gets 0, and so does one whose
    scores are saturated.

    Args:
      chosen: scores or logits of the preferred responses.
      rejected: of the others.

    Raises:
      ValueError: no pairs, other lengths, or a score that is not finite.
    """
    chosen, rejected = _scores(chosen, rejected)
    return accuracy.share(int((chosen > rejected).sum()), len(chosen))


def oriented(
    chosen_logits: Float[np.ndarray, " N"], rejected_logits: Float[np.ndarray, " N"], *, seed: int
) -> Oriented:
    """The probabilities and outcomes of pairs that a coin has turned round or not.

    Args:
      chosen_logits: of the preferred responses, before any sigmoid.
      rejected_logits: of the others.
      seed: of the coin.

    Returns:
      probability sigmoid(c - r) with outcome true for a pair that stays, sigmoid(r - c) with
      outcome false for one that is turned.

    Raises:
      ValueError: no pairs, other lengths, or a logit that is not finite.
    """
    chosen, rejected = _scores(chosen_logits, rejected_logits)
    stays = np.random.default_rng(seed).random(len(chosen)) < 0.5
    gaps = np.where(stays, chosen - rejected, rejected - chosen)
    return Oriented(0.5 * (1.0 + np.tanh(0.5 * gaps)), stays)


def reliability(
    probs: Float[np.ndarray, " N"], outcomes: Bool[np.ndarray, " N"], *, num_bins: int
) -> tuple[Bin, ...]:
    """What was foretold beside what happened, in bins of equal width over 0..1.

    Args:
      probs: foretold.
      outcomes: what happened.
      num_bins: of which those without pairs are left out.

    Returns:
      bins in ascending order; their numbers of pairs add up to N. A probability on an edge
      belongs to the upper bin, and 1 to the last.

    Raises:
      ValueError: nothing to compare, other lengths, no bins, or no probability.
    """
    probs, outcomes = np.asarray(probs, np.float64), np.asarray(outcomes)
    if probs.ndim != 1 or probs.shape != outcomes.shape or not len(probs):
        raise ValueError(f"{probs.shape} probabilities of {outcomes.shape} outcomes")
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, must be at least 1")
    if not ((probs >= 0.0) & (probs <= 1.0)).all():
        raise ValueError(f"probabilities from {probs.min()} to {probs.max()}, must be in 0..1")
    ids = np.minimum((probs * num_bins).astype(np.int64), num_bins - 1)
    return tuple(
        Bin(float(probs[ids == i].mean()), accuracy.share(int(outcomes[ids == i].sum()), int(n)))
        for i, n in enumerate(np.bincount(ids))
        if n
    )


def expected_calibration_error(
    probs: Float[np.ndarray, " N"], outcomes: Bool[np.ndarray, " N"], *, num_bins: int
) -> float:
    """The mean gap between what was foretold and what happened.

    arXiv:1706.04599, eq. 3: sum_b (n_b / N) |share_b - mean prob_b|. The value depends on the
    number of bins and is above 0 by chance alone, the more so the fewer pairs a bin has.

    Args, Raises: as `reliability`.
    """
    bins = reliability(probs, outcomes, num_bins=num_bins)
    gaps = sum(found.share.num * abs(found.share.value - found.mean_prob) for found in bins)
    return float(gaps / len(probs))


def _scores(
    chosen: Float[np.ndarray, " N"], rejected: Float[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """The scores of pairs in float64, checked."""
    chosen, rejected = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    if chosen.ndim != 1 or chosen.shape != rejected.shape or not len(chosen):
        raise ValueError(f"{chosen.shape} chosen scores and {rejected.shape} rejected ones")
    bad = np.flatnonzero(~(np.isfinite(chosen) & np.isfinite(rejected)))
    if len(bad):
        raise ValueError(f"pair {bad[0]} has scores {chosen[bad[0]]} and {rejected[bad[0]]}")
    return chosen, rejected
