"""Ranks, recall and BM25 by hand."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from deepseek_jax.evaluation import retrieval

# Spans a0, a1, b0, b1: the partner of span i is span (i + 2) % 4.
SCORES = np.array(
    [
        [9.0, 0.5, 1.0, 0.2],  # a0: partner b0 is first
        [0.9, 9.0, 0.5, 0.4],  # a1: partner b1 is last
        [0.7, 0.8, 9.0, 0.7],  # b0: partner a0 is behind a1, and level with b1
        [0.1, 0.9, 0.2, 9.0],  # b1: partner a1 is first
    ]
)


def test_ranks_by_hand():
    np.testing.assert_array_equal(retrieval.partner_ranks(SCORES), [[1, 3], [3, 1]])


def test_a_method_that_tells_nothing_apart_finds_nothing():
    assert (retrieval.partner_ranks(np.ones((6, 6))) == 5).all()


def test_recall_by_hand():
    ranks = retrieval.partner_ranks(SCORES)
    groups = np.array([4, 7])
    assert retrieval.recall(ranks, groups, at=1, seed=0).value == 0.5
    found = retrieval.recall(ranks, groups, at=3, seed=0)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert retrieval.recall(ranks[:1], groups[:1], at=1, seed=0) == (0.5, None, None)


def test_what_is_no_number_finds_nothing():
    assert (retrieval.partner_ranks(np.full((6, 6), np.nan)) == 5).all()


def test_the_interval_is_of_groups():
    hits = np.array([[1, 1]] * 100 + [[99, 99]] * 100)
    found = retrieval.recall(hits, np.arange(200) // 2, at=1, seed=0)
    # Of 100 groups of two documents that are found or not: 1.96 * sqrt(0.25 / 100) on each side.
    assert abs(found.low - 0.402) < 0.02 and abs(found.high - 0.598) < 0.02


def test_embeddings_that_are_equal_find_each_other():
    vectors = np.eye(5, dtype=np.float32)
    ranks = retrieval.partner_ranks(retrieval.cosines(vectors, vectors))
    assert (ranks == 1).all()


def test_bm25_by_hand():
    spans = [["x", "x", "y"], ["x"], ["z", "z"]]
    scores = retrieval.bm25(spans)
    # Term x is in 2 of 3 spans: ln(1 + 1.5 / 2.5); mean length 2.
    weight = np.log(1.0 + 1.5 / 2.5)
    norm = 1.2 * (0.25 + 0.75 * np.array([3.0, 1.0]) / 2.0)
    gains = weight * np.array([2.0, 1.0]) * 2.2 / (np.array([2.0, 1.0]) + norm)
    np.testing.assert_allclose(scores[1, :2], gains, rtol=1e-12)
    np.testing.assert_allclose(scores[0, 1], 2.0 * gains[1], rtol=1e-12)  # x occurs twice in it
    assert scores[2, 0] == scores[0, 2] == 0.0


@hypothesis.given(st.integers(0, 10_000))
def test_a_span_is_found_by_its_own_words(seed):
    random = np.random.default_rng(seed)
    spans = [random.integers(0, 30, size=6).tolist() + [100 + i] * 3 for i in range(5)]
    scores = retrieval.bm25(spans)
    np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(5))


def test_a_lead_is_paired():
    # Both miss the same half of the documents: each recall is uncertain, their difference is not.
    misses = np.repeat([[9, 9]], 50, axis=0)
    both = np.concatenate([np.ones((50, 2), int), misses])
    better = np.concatenate([np.ones((50, 2), int), np.repeat([[1, 9]], 50, axis=0)])
    groups = np.arange(100)
    same = retrieval.lead(both, both, groups, at=1, seed=0)
    assert same == (0.0, 0.0, 0.0)
    assert retrieval.recall(both, groups, at=1, seed=0).high > 0.55
    found = retrieval.lead(better, both, groups, at=1, seed=0)
    assert found.value == 0.25
    assert 0.19 < found.low < 0.25 < found.high < 0.31
    assert retrieval.lead(both, better, groups, at=1, seed=0).value == -0.25
