"""Bits per byte over documents, with bootstrap intervals. Floor 5: numpy only.

A document is the unit of everything here: its tokens depend on one another, so intervals come
from drawing whole documents. Every method (a model, a bigram, a compressor) gives one
`DocumentBits` for the same documents, so that two methods are compared on the same draws.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from deepseek_jax.evaluation import bootstrap
from deepseek_jax.evaluation.bootstrap import Estimate


class DocumentBits(NamedTuple):
    """What a method spends on each document.

    Attributes:
      bits: code length of the document, in bits.
      num_bytes: bytes of its text in UTF-8.
    """

    bits: Float64[np.ndarray, " documents"]
    num_bytes: Int64[np.ndarray, " documents"]


def bits_per_byte(measured: DocumentBits, *, seed: int) -> Estimate:
    """All bits over all bytes, with an interval over documents.

    Args:
      measured: of one method.
      seed: of the resamples.

    Raises:
      ValueError: no text, an empty document, or a code length that is not finite.
    """
    _check(measured)
    return bootstrap.ratio(measured.bits, measured.num_bytes, seed=seed)


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
    return bootstrap.difference(theirs.bits, ours.bits, ours.num_bytes, seed=seed)


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
