"""Bits per byte by hand, and intervals that cover."""

import numpy as np
import pytest

from deepseek_jax.evaluation import bits, bootstrap
from deepseek_jax.evaluation.bits import DocumentBits
from tests import tolerances


def measured(code_lengths, num_bytes):
    return DocumentBits(np.array(code_lengths, np.float64), np.array(num_bytes, np.int64))


def test_long_documents_weigh_more():
    # (10 + 40) bits over (10 + 10) bytes; not the mean of 1 and 4 by document of 5 and 15 bytes.
    assert bits.bits_per_byte(measured([10, 40], [10, 10]), seed=0).value == 2.5
    assert bits.bits_per_byte(measured([5, 60], [5, 15]), seed=0).value == 65 / 20


def test_equal_documents_have_no_spread():
    assert bits.bits_per_byte(measured([6, 6, 6], [2, 2, 2]), seed=0) == (3.0, 3.0, 3.0)


def test_the_interval_is_that_of_two_documents():
    # Resamples are AA, AB, BB with 1/4, 1/2, 1/4: the ends of 95% are A and B.
    assert bits.bits_per_byte(measured([1, 3], [1, 1]), seed=0) == (2.0, 1.0, 3.0)


def test_one_document_has_no_interval():
    assert bits.bits_per_byte(measured([3], [1]), seed=0) == (3.0, None, None)


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 400)
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        num_bytes = generator.integers(1, 20, size=60)
        rates = 2.0 + generator.normal(size=60)
        estimate = bits.bits_per_byte(measured(rates * num_bytes, num_bytes), seed=seed)
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= 2.0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_of_many_documents_is_that_of_normal_theory():
    # Half of the documents at 1, half at 3: standard error 1 / sqrt(400), times 1.96.
    estimate = bits.bits_per_byte(measured([1, 3] * 200, [1] * 400), seed=0)
    assert estimate.low is not None and estimate.high is not None
    assert 0.9 * 0.098 < 2.0 - estimate.low < 1.1 * 0.098
    assert 0.9 * 0.098 < estimate.high - 2.0 < 1.1 * 0.098


def test_a_paired_difference_cancels_what_is_hard_for_both():
    hard = np.random.default_rng(0).uniform(1, 9, size=50)
    ours, theirs = measured(hard, np.ones(50)), measured(hard + 0.5, np.ones(50))
    for estimate, gap in (
        (bits.difference(ours, theirs, seed=0), 0.5),
        (bits.difference(theirs, ours, seed=0), -0.5),
    ):
        np.testing.assert_allclose(np.array(estimate), gap, **tolerances.OP_F32)


def test_the_seed_decides():
    sample = measured(np.random.default_rng(0).uniform(1, 9, size=50), np.ones(50))
    assert bits.bits_per_byte(sample, seed=1) == bits.bits_per_byte(sample, seed=1)
    assert bits.bits_per_byte(sample, seed=1) != bits.bits_per_byte(sample, seed=2)


def test_chunks_of_resamples_make_them_all(monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK_ENTRIES", 7 * 300)
    sizes = [draws.shape[0] for draws in bootstrap._draws(7, seed=0)]
    assert sum(sizes) == bootstrap.NUM_RESAMPLES and max(sizes) == 300
    assert all((draws.sum(axis=1) == 7).all() for draws in bootstrap._draws(7, seed=0))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (measured([1, np.nan], [1, 1]), "document 1 is nan"),
        (measured([1, 1], [1, 0]), "document 1 has no text"),
        (measured([], []), "0 documents"),
        (measured([1.0], [1, 2]), "1 code lengths of 2 documents"),
    ],
)
def test_what_cannot_be_averaged_is_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        bits.bits_per_byte(sample, seed=0)


def test_other_text_cannot_be_compared():
    with pytest.raises(ValueError, match="different text"):
        bits.difference(measured([1], [1]), measured([1], [2]), seed=0)


def test_select_keeps_documents():
    part = bits.select(measured([1, 2, 3], [4, 5, 6]), np.array([True, False, True]))
    assert part.bits.tolist() == [1, 3] and part.num_bytes.tolist() == [4, 6]
