"""Finding a span's partner among all held-out spans: ranks, recall, BM25. Floor 5: numpy only.

N documents have two spans each; the 2 N spans stand in the order first_0 .. first_N-1,
second_0 .. second_N-1. A query is every span in turn, its candidates are all others.
"""

import collections
import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

from deepseek_jax.evaluation import bootstrap
from deepseek_jax.evaluation.bootstrap import Estimate

# Robertson and Zaragoza, 2009: the usual values.
_K1 = 1.2
_B = 0.75


def cosines(
    first: Float[np.ndarray, "N P"], second: Float[np.ndarray, "N P"]
) -> Float[np.ndarray, "S S"]:
    """Similarities of all 2 N spans, from embeddings of length 1."""
    every = np.concatenate([first, second]).astype(np.float32)
    return every @ every.T


def partner_ranks(scores: Float[np.ndarray, "S S"]) -> Int[np.ndarray, "N 2"]:
    """The place of each span's partner among its candidates, by score; 1 is the first.

    A candidate with the partner's very score counts as before it, so that a method that tells
    nothing apart finds nothing.

    Args:
      scores: [2 N, 2 N], row i of query i.

    Returns:
      [N, 2]: ranks from 1 to 2 N - 1 of the queries first_i and second_i.
    """
    num = len(scores) // 2
    queries = np.arange(2 * num)
    partners = (queries + num) % (2 * num)
    own = scores[queries, partners][:, None]
    # Not `scores >= own`: what is no number tells nothing apart either.
    before = ~(scores < own)
    before[queries, queries] = False
    before[queries, partners] = False
    return 1 + before.sum(axis=1).reshape(2, num).T


def recall(
    ranks: Int[np.ndarray, "N 2"], groups: Int[np.ndarray, " N"], *, at: int, seed: int
) -> Estimate:
    """Share of the queries whose partner is among the first `at`; resamples of groups.

    Args:
      ranks: of `partner_ranks`.
      groups: of the documents; code and prose of one module are drawn together.
      at: k.
      seed: of the resamples.
    """
    hits, queries = _by_group(ranks, groups, at)
    return bootstrap.ratio(hits, queries, seed=seed)


def lead(
    ranks: Int[np.ndarray, "N 2"],
    others: Int[np.ndarray, "N 2"],
    groups: Int[np.ndarray, " N"],
    *,
    at: int,
    seed: int,
) -> Estimate:
    """The recall of one method less that of another on the same queries; paired resamples.

    Args:
      ranks: of the one.
      others: of the other.
      groups: as `recall`.
      at: k.
      seed: of the resamples.
    """
    hits, queries = _by_group(ranks, groups, at)
    return bootstrap.difference(hits, _by_group(others, groups, at)[0], queries, seed=seed)


def _by_group(
    ranks: Int[np.ndarray, "N 2"], groups: Int[np.ndarray, " N"], at: int
) -> tuple[np.ndarray, np.ndarray]:
    """Queries of each group whose partner is among the first `at`, and all of its queries."""
    _, owner = np.unique(groups, return_inverse=True)
    return np.bincount(owner, weights=(ranks <= at).sum(axis=1)), 2 * np.bincount(owner)


def bm25(spans: Sequence[Sequence[Hashable]]) -> Float[np.ndarray, "S S"]:
    """Okapi BM25 of every span as a query against every span as a document.

    score(q, d) = sum over terms t of q, as often as they occur, of

        ln(1 + (S - n_t + 0.5) / (n_t + 0.5)) * f (k1 + 1) / (f + k1 (1 - b + b |d| / mean))

    with f the occurrences of t in d and n_t the spans that hold t.

    Args:
      spans: the terms of each of S spans, at least one of them not empty.
    """
    num = len(spans)
    counts = [collections.Counter(terms) for terms in spans]
    lengths = np.array([len(terms) for terms in spans], np.float64)
    norm = _K1 * (1.0 - _B + _B * lengths / lengths.mean())
    postings: dict[Hashable, list[tuple[int, int]]] = collections.defaultdict(list)
    for place, found in enumerate(counts):
        for term, count in found.items():
            postings[term].append((place, count))
    scores = np.zeros((num, num), np.float64)
    for listed in postings.values():
        places = np.array([place for place, _ in listed])
        often = np.array([count for _, count in listed], np.float64)
        weight = math.log(1.0 + (num - len(listed) + 0.5) / (len(listed) + 0.5))
        gains = weight * often * (_K1 + 1.0) / (often + norm[places])
        scores[np.ix_(places, places)] += often[:, None] * gains[None, :]
    return scores
