"""Calibration of pairs by hand; who is always sure of stored pairs does not look calibrated."""

import math

import numpy as np
import pytest

from deepseek_jax.evaluation import calibration
from tests import tolerances

LOG3 = math.log(3.0)


def test_ties_are_not_right():
    found = calibration.pair_accuracy(
        np.array([1.0, 0.0, 2.0, 5.0]), np.array([0.0, 0.0, 3.0, 1.0])
    )
    assert (found.num_right, found.num) == (2, 4)


def test_orientation_keeps_what_the_model_says_of_the_winner():
    chosen, rejected = np.full(1000, LOG3), np.zeros(1000)
    probs, outcomes = calibration.oriented(chosen, rejected, seed=0)
    # sigmoid(log 3) = 3/4; a pair that is turned round has 1/4.
    np.testing.assert_allclose(probs, np.where(outcomes, 0.75, 0.25), **tolerances.OP_F32)
    assert 400 < outcomes.sum() < 600
    again = calibration.oriented(chosen, rejected, seed=0)
    other = calibration.oriented(chosen, rejected, seed=1)
    assert np.array_equal(again.outcomes, outcomes)
    assert not np.array_equal(other.outcomes, outcomes)


def test_large_gaps_do_not_overflow():
    probs, outcomes = calibration.oriented(np.full(8, 1e4), np.full(8, -1e4), seed=0)
    assert np.array_equal(probs, outcomes)


def test_bins_by_hand():
    probs = np.array([0.0, 0.2, 0.25, 0.9, 1.0])
    outcomes = np.array([False, True, False, True, True])
    first, second, last = calibration.reliability(probs, outcomes, num_bins=4)
    assert (first.share.num, second.share.num, last.share.num) == (2, 1, 2)
    np.testing.assert_allclose(
        [(b.mean_prob, b.share.value) for b in (first, second, last)],
        [(0.1, 0.5), (0.25, 0.0), (0.95, 1.0)],
        **tolerances.OP_F32,
    )
    # (2 * 0.4 + 1 * 0.25 + 2 * 0.05) / 5
    error = calibration.expected_calibration_error(probs, outcomes, num_bins=4)
    np.testing.assert_allclose(error, 0.23, **tolerances.OP_F32)


def test_a_calibrated_model_and_a_boaster():
    generator = np.random.default_rng(0)
    gaps = generator.normal(size=20_000)
    wins = generator.random(20_000) < 1.0 / (1.0 + np.exp(-gaps))
    chosen = np.where(wins, gaps, -gaps)  # the winner's lead as the model sees it
    honest = calibration.oriented(chosen, np.zeros(20_000), seed=1)
    boaster = calibration.oriented(10.0 * chosen, np.zeros(20_000), seed=1)
    assert calibration.expected_calibration_error(*honest, num_bins=10) < 0.02
    assert calibration.expected_calibration_error(*boaster, num_bins=10) > 0.15


def test_wrong_arrays_are_refused():
    two, three = np.zeros(2), np.zeros(3)
    with pytest.raises(ValueError, match="chosen scores"):
        calibration.pair_accuracy(two, three)
    with pytest.raises(ValueError, match="pair 1 has scores nan"):
        calibration.pair_accuracy(np.array([0.0, np.nan]), two)
    with pytest.raises(ValueError, match="must be in 0..1"):
        calibration.reliability(np.array([0.5, 1.5]), two > 0, num_bins=2)
    with pytest.raises(ValueError, match="num_bins is 0"):
        calibration.reliability(two, two > 0, num_bins=0)
