"""Pairs of spans of the same document: what contrastive pretraining reads. Floor 1.

A span is L tokens of one document and a row of its own. Two spans of a document never overlap,
so that nothing of one is seen by the other but through what the document is about.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from deepseek_jax.core.run_spec import DataSpec
from deepseek_jax.data import corpus as corpus_lib
from deepseek_jax.data import order, text_data, tokenizers
from deepseek_jax.data import rows as rows_lib
from deepseek_jax.data.corpus import Corpus
from deepseek_jax.data.documents import Document
from deepseek_jax.data.record import CorpusRecord
from deepseek_jax.data.tokenizers import Tokenizer

# Of the documents, the same for every run: `batch` shuffles them, and held-out pairs stay the same.
_ORDER = 0


class SpanDocuments(NamedTuple):
    """Documents that are long enough for two spans.

    Attributes:
      token_ids: of each document, at least 2 L of them.
      groups: of each document, equal where two are parts of one module.
      kinds: code, prose or text.
      names: relative to the place that was read.
      num_short: documents that were too short and are left out.
    """

    token_ids: tuple[Int32[np.ndarray, " _"], ...]
    groups: Int32[np.ndarray, " N"]
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    num_short: int


class SpanData(NamedTuple):
    """Both sides of a corpus, its tokenizer, and the record of both."""

    train: SpanDocuments
    heldout: SpanDocuments
    tokenizer: Tokenizer
    record: CorpusRecord


class SpanPairs(NamedTuple):
    """Spans of B documents: `first` and `second` [B, L], and the group of each document."""

    first: Int32[np.ndarray, "B L"]
    second: Int32[np.ndarray, "B L"]
    groups: Int32[np.ndarray, " B"]


def load(data_spec: DataSpec, *, tokenizer_path: str | None) -> SpanData:
    """Reads, splits and tokenizes the text that the settings name.

    Args:
      data_spec: its `sequence_length` is L.
      tokenizer_path: a `tokenizer.json` to use instead, when a run goes on; None.

    Raises:
      ValueError: as `text_data.load`; or no document on one side is long enough for two spans.
    """
    corpus = corpus_lib.build(
        corpus_lib.read(data_spec),
        source=data_spec.source,
        max_bytes=data_spec.max_bytes,
        heldout_fraction=data_spec.heldout_fraction,
    )
    return of_corpus(corpus, data_spec, tokenizer_path=tokenizer_path)


def of_corpus(corpus: Corpus, data_spec: DataSpec, *, tokenizer_path: str | None) -> SpanData:
    """Tokenizes a corpus that has been read and split.

    Args:
      corpus: both sides; `data_spec` says nothing more of what is in it.
      data_spec: its `sequence_length` is L; its tokenizer is made from the training side.
      tokenizer_path: as of `load`.

    Raises:
      ValueError: as `load`.
    """
    if tokenizer_path is None:
        tokenizer = text_data.make_tokenizer(data_spec, corpus.train)
    else:
        tokenizer = tokenizers.load(tokenizer_path)
    length = data_spec.sequence_length
    sides = {
        name: _long_enough(rows_lib.shuffled(side, seed=_ORDER), tokenizer, span_length=length)
        for name, side in (("train", corpus.train), ("heldout", corpus.heldout))
    }
    for name, side in sides.items():
        if not side.token_ids:
            raise ValueError(
                f"data.sequence_length={length}: none of the {side.num_short} documents of the "
                f"side {name!r} has two spans, {2 * length} tokens; give longer texts or shorter "
                "spans"
            )
    return SpanData(sides["train"], sides["heldout"], tokenizer, corpus.record)


def batch(
    documents: SpanDocuments, *, step: int, batch_size: int, span_length: int, seed: int
) -> SpanPairs:
    """The pairs of a step: every document once an epoch, its spans drawn anew each time.

    Args:
      documents: at least one.
      step: from 0; a run that goes on needs no saved position.
      batch_size: B.
      span_length: L.
      seed: of orders and places.
    """
    ids = order.batch_ids(
        step=step, batch_size=batch_size, num_rows=len(documents.token_ids), seed=seed
    )
    generator = np.random.default_rng([seed, 1, step])
    return pairs_of(documents, ids, generator, span_length=span_length)


def pairs_of(
    documents: SpanDocuments,
    ids: Int64[np.ndarray, " B"],
    generator: np.random.Generator,
    *,
    span_length: int,
) -> SpanPairs:
    """One pair of spans of each of these documents.

    Args:
      documents: all of at least 2 L tokens.
      ids: which of them.
      generator: of the places.
      span_length: L.
    """
    lengths = np.array([len(documents.token_ids[i]) for i in ids], np.int64)
    starts = span_starts(lengths, generator, span_length=span_length)
    first, second = (
        np.stack(
            [
                documents.token_ids[i][start : start + span_length]
                for i, start in zip(ids, starts[:, side], strict=True)
            ]
        )
        for side in (0, 1)
    )
    return SpanPairs(first, second, documents.groups[ids])


def span_starts(
    lengths: Int64[np.ndarray, " B"], generator: np.random.Generator, *, span_length: int
) -> Int64[np.ndarray, "B 2"]:
    """Where two spans of each document start, in random order.

    All places that fit are equally likely: two cuts are drawn in what the spans leave over.

    Args:
      lengths: tokens of the documents, each at least 2 L.
      generator: draws.
      span_length: L.
    """
    slack = lengths - 2 * span_length
    if np.any(slack < 0):
        raise ValueError(f"documents of {lengths.min()} tokens have no two spans of {span_length}")
    # Cuts a <= b of the slack, every such pair once: draw from all of them by their number.
    number = generator.integers(0, (slack + 1) * (slack + 2) // 2)
    upper = ((np.sqrt(8.0 * number + 1.0) - 1.0) // 2.0).astype(np.int64)
    lower = number - upper * (upper + 1) // 2
    starts = np.stack([lower, upper + span_length], axis=1)
    swap = generator.integers(0, 2, size=len(lengths)).astype(bool)
    return np.where(swap[:, None], starts[:, ::-1], starts)


def _long_enough(
    documents: Sequence[Document], tokenizer: Tokenizer, *, span_length: int
) -> SpanDocuments:
    """The documents with two spans, and the number of the others."""
    token_ids = tokenizer.encode_batch([document.text for document in documents])
    kept = [i for i, ids in enumerate(token_ids) if len(ids) >= 2 * span_length]
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(documents[i].group, len(numbers)) for i in kept]
    return SpanDocuments(
        tuple(token_ids[i] for i in kept),
        np.array(groups, np.int32),
        tuple(documents[i].kind for i in kept),
        tuple(documents[i].name for i in kept),
        len(documents) - len(kept),
    )
