"""Every baseline on the held-out targets: bigrams of tokens and bytes, gzip, xz. Floor 5."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepseek_jax.data.rows import Rows
from deepseek_jax.evaluation import bigram, byte_stream, compression, heldout
from deepseek_jax.evaluation.bits import DocumentBits
from deepseek_jax.evaluation.heldout import HeldoutSet


class Baselines(NamedTuple):
    """What each baseline spends on each held-out document."""

    token_bigram: DocumentBits
    byte_bigram: DocumentBits
    gzip: DocumentBits
    xz: DocumentBits


def measure(
    train: Rows, heldout_set: HeldoutSet, token_bytes: Sequence[bytes], *, bos_id: int
) -> Baselines:
    """Trains the bigrams on the training rows and measures all baselines.

    Args:
      train: the rows that the model was trained on, from their start, in their stored order.
      heldout_set: what the model is measured on.
      token_bytes: the bytes of each token, none for special ones; V entries.
      bos_id: the token that each document starts with.
    """
    texts = byte_stream.document_texts(heldout_set.rows, heldout_set.document_index, token_bytes)
    return Baselines(
        token_bigram=_token_bigram(train, heldout_set, num_symbols=len(token_bytes)),
        byte_bigram=_byte_bigram(train, texts, token_bytes, bos_id=bos_id),
        gzip=compression.document_bits(texts, compressed_size=compression.gzip_size),
        xz=compression.document_bits(texts, compressed_size=compression.xz_size),
    )


def _token_bigram(train: Rows, heldout_set: HeldoutSet, *, num_symbols: int) -> DocumentBits:
    """The bigram of tokens, on the model's own inputs and targets."""
    model = bigram.fit(byte_stream.token_pairs(train), num_symbols=num_symbols)
    terms = np.zeros(heldout_set.rows.targets.shape)
    terms[heldout_set.rows.target_mask] = model.terms(byte_stream.token_pairs(heldout_set.rows))
    return heldout.document_bits(heldout_set, terms)


def _byte_bigram(
    train: Rows, texts: Sequence[bytes], token_bytes: Sequence[bytes], *, bos_id: int
) -> DocumentBits:
    """The bigram of bytes, on the bytes that the model's targets stand for."""
    train_index = heldout.index_documents(train, bos_id=bos_id)
    train_texts = byte_stream.document_texts(train, train_index, token_bytes)
    model = bigram.fit(byte_stream.byte_pairs(train_texts), num_symbols=byte_stream.NUM_SYMBOLS)
    lengths = np.array([len(text) for text in texts], np.int64)
    index = np.repeat(np.arange(len(texts)), lengths + 1)
    nats = np.bincount(index, weights=model.terms(byte_stream.byte_pairs(texts)))
    return DocumentBits(nats / np.log(2.0), lengths)
