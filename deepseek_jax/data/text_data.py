"""Everything a run reads: one call from settings to rows, tokenizer and record. Floor 1."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int8

from deepseek_jax.core.run_spec import DataSpec
from deepseek_jax.data import corpus as corpus_lib
from deepseek_jax.data import rows as rows_lib
from deepseek_jax.data import tokenizers
from deepseek_jax.data.documents import Document
from deepseek_jax.data.record import CorpusRecord
from deepseek_jax.data.rows import Rows
from deepseek_jax.data.tokenizers import Tokenizer

# Merges learned from more text than this are hardly better; the time would only grow.
BPE_TRAINING_BYTES = 8_000_000


class TextData(NamedTuple):
    """A tokenized corpus.

    Attributes:
      train: rows to train on.
      heldout: rows to evaluate on; no document group is in both.
      heldout_kind_ids: kind of text of each held-out input, beside `heldout`.
      heldout_documents: the texts behind `heldout`, in its order, for compressors to beat.
      tokenizer: of both.
      record: what was read and what was left out.
    """

    train: Rows
    heldout: Rows
    heldout_kind_ids: Int8[np.ndarray, "B L"]
    heldout_documents: list[Document]
    tokenizer: Tokenizer
    record: CorpusRecord


def load(data_spec: DataSpec, *, seed: int, tokenizer_path: str | None = None) -> TextData:
    """Reads, splits, tokenizes and packs the text that the settings name.

    Args:
      data_spec: source, split, tokenizer and row length.
      seed: of the order of documents; the split doesn't depend on it.
      tokenizer_path: a `tokenizer.json` to use instead of the one of the settings, when a run
        goes on or is evaluated.

    Returns:
      The same data for the same texts, settings, seed and tokenizer.

    Raises:
      ValueError: bad text, an empty corpus, one shorter than a row, or too small for the
        vocabulary asked for; see `sources`, `corpus` and `tokenizers`.
      FileNotFoundError: a missing file or folder.
    """
    corpus = corpus_lib.build(
        corpus_lib.read(data_spec),
        source=data_spec.source,
        max_bytes=data_spec.max_bytes,
        heldout_fraction=data_spec.heldout_fraction,
    )
    if tokenizer_path is None:
        tokenizer = make_tokenizer(data_spec, corpus.train)
    else:
        tokenizer = tokenizers.load(tokenizer_path)
    length = data_spec.sequence_length
    train_documents = rows_lib.shuffled(corpus.train, seed=seed)
    train = rows_lib.pack_documents(train_documents, tokenizer, sequence_length=length)
    num_inputs = int((train.rows.document_ids > 0).sum())
    if num_inputs < length:
        raise ValueError(
            f"data.sequence_length={length}: the training text has only "
            f"{num_inputs} tokens, less than one row; give more text or shorter rows"
        )
    heldout_documents = rows_lib.shuffled(corpus.heldout, seed=seed)
    heldout = rows_lib.pack_documents(heldout_documents, tokenizer, sequence_length=length)
    return TextData(
        train.rows, heldout.rows, heldout.kind_ids, heldout_documents, tokenizer, corpus.record
    )


def make_tokenizer(data_spec: DataSpec, train_documents: list[Document]) -> Tokenizer:
    """The tokenizer that the settings ask for, trained on the training documents if need be."""
    match data_spec.tokenizer, data_spec.tokenizer_path, data_spec.bpe_vocab_size:
        case "bytes", _, _:
            return tokenizers.bytes_tokenizer()
        case "tagged_bytes", _, _:
            return tokenizers.tagged_bytes_tokenizer()
        case "bpe", _, int(vocab_size):
            return tokenizers.train_bpe(
                (
                    text
                    for document in train_documents
                    for text in (document.prompt, document.text)
                    if text
                ),
                vocab_size=vocab_size,
                max_bytes=BPE_TRAINING_BYTES,
            )
        case "file", str(path), _:
            return tokenizers.load(path)
        case other:
            raise ValueError(
                f"data.tokenizer, tokenizer_path, bpe_vocab_size = {other!r}: no such tokenizer"
            )
