"""Bits per byte over documents, with bootstrap intervals. Floor 5: numpy only.

A document is the unit of everything here: its tokens depend on one another, so intervals come
from drawing whole documents. Every method (a model, a bigram, a compressor) gives one
`DocumentBits` for the same documents, so that two methods are compared on the same draws.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

NUM_RESAMPLES = 2000
LEVEL = 0.95
_CHUNK_ENTRIES = 4_000_000


class DocumentBits(NamedTuple):
    """What a method spends on each document.

    Attributes:
      bits: code length of the document, in bits.
      num_bytes: bytes of its text in UTF-8.
    """

    bits: Float64[np.ndarray, " documents"]
    num_bytes: Int64[np.ndarray, " documents"]


class Estimate(NamedTuple):
    """A value in bits per byte with its bootstrap interval.

    `low` and `high` are the percentiles between which `LEVEL` of the resamples lie, and None
    when there is one document only, which tells nothing of the spread.
    """

    value: float
    low: float | None
    high: float | None


def bits_per_byte(measured: DocumentBits, *, seed: int) -> Estimate:
    """All bits over all bytes, with an interval over documents.

    Args:
      measured: of one method.
      seed: of the resamples.

    Raises:
      ValueError: no text, an empty document, or a code length that is not finite.
    """
    _check(measured)
    ratios = [_ratios(measured, draws) for draws in _draws(len(measured.bits), seed=seed)]
    return _estimate(float(_ratios(measured, _once(measured))[0]), np.concatenate(ratios), measured)


def difference(ours: DocumentBits, theirs: DocumentBits, *, seed: int) -> Estimate:
    """Their bits per byte less ours: above 0 when ours is better.

    The interval is paired: each resample measures both methods on the same documents, so what
    makes a document hard for both cancels.

    Args:
      ours: of one method.
      theirs: of another, on the same documents.
      seed: of the resamples.

    Raises:
      ValueError: other documents, no text, an empty document, or a code length that is not
        finite.
    """
    _check(ours)
    _check(theirs)
    if not np.array_equal(ours.num_bytes, theirs.num_bytes):
        raise ValueError(
            f"two methods measured different text: {len(ours.num_bytes)} documents of "
            f"{ours.num_bytes.sum()} bytes and {len(theirs.num_bytes)} of {theirs.num_bytes.sum()}"
        )
    gaps = [
        _ratios(theirs, draws) - _ratios(ours, draws)
        for draws in (_once(ours), *_draws(len(ours.bits), seed=seed))
    ]
    return _estimate(float(gaps[0][0]), np.concatenate(gaps[1:]), ours)


def select(measured: DocumentBits, mask: Bool[np.ndarray, " documents"]) -> DocumentBits:
    """The documents that `mask` keeps."""
    return DocumentBits(measured.bits[mask], measured.num_bytes[mask])


def _check(measured: DocumentBits) -> None:
    """Raises unless every document has text and a finite code length."""
    num_documents = len(measured.num_bytes)
    if measured.bits.shape != (num_documents,) or num_documents == 0:
        raise ValueError(f"{len(measured.bits)} code lengths of {num_documents} documents")
    empty = np.flatnonzero(measured.num_bytes < 1)
    if len(empty):
        raise ValueError(f"held-out document {empty[0]} has no text")
    bad = np.flatnonzero(~np.isfinite(measured.bits))
    if len(bad):
        raise ValueError(
            f"the code length of held-out document {bad[0]} is {measured.bits[bad[0]]} bits "
            f"({len(bad)} of {num_documents} are not finite)"
        )


def _once(measured: DocumentBits) -> Int64[np.ndarray, "1 documents"]:
    """The draw that has every document once: the sample itself."""
    return np.ones((1, len(measured.bits)), np.int64)


def _ratios(
    measured: DocumentBits, draws: Int64[np.ndarray, "resamples documents"]
) -> Float64[np.ndarray, " resamples"]:
    """Bits per byte of each resample."""
    return (draws @ measured.bits) / (draws @ measured.num_bytes)


def _draws(num_documents: int, *, seed: int) -> Iterator[Int64[np.ndarray, "resamples documents"]]:
    """How often each document is drawn in each resample, a part of the resamples at a time."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_documents, 1.0 / num_documents)
    at_once = max(1, _CHUNK_ENTRIES // num_documents)
    for start in range(0, NUM_RESAMPLES, at_once):
        size = min(at_once, NUM_RESAMPLES - start)
        yield generator.multinomial(num_documents, shares, size=size)


def _estimate(
    value: float, resampled: Float64[np.ndarray, " resamples"], measured: DocumentBits
) -> Estimate:
    """The value with the percentiles of its resamples."""
    if len(measured.bits) == 1:
        return Estimate(value, None, None)
    low, high = np.quantile(resampled, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return Estimate(value, float(low), float(high))
