"""The bytes behind rows of tokens, and the pairs of neighbours in them. Floor 5: numpy only.

Compressors and the byte bigram read the text that the rows hold, byte for byte, so that they
are measured on exactly the model's targets, a document cut by the last row included.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from deepseek_jax.data.rows import Rows

BOS = 256
EOS = 257
NUM_SYMBOLS = 258


class Pairs(NamedTuple):
    """What a bigram sees: a symbol, and the one behind it in the same document."""

    contexts: Int32[np.ndarray, " pairs"]
    targets: Int32[np.ndarray, " pairs"]


def token_pairs(rows: Rows) -> Pairs:
    """Every target with its input token."""
    return Pairs(rows.tokens[rows.target_mask], rows.targets[rows.target_mask])


def document_texts(
    rows: Rows, document_index: Int32[np.ndarray, "B L"], token_bytes: Sequence[bytes]
) -> list[bytes]:
    """The bytes that the targets of each document stand for.

    Args:
      rows: packed text.
      document_index: from `heldout.index_documents`.
      token_bytes: the bytes of each token, none for special ones.
    """
    index = document_index[rows.target_mask]
    targets = rows.targets[rows.target_mask]
    ends = np.searchsorted(index, np.arange(1, index[-1] + 1))
    return [b"".join([token_bytes[token] for token in part]) for part in np.split(targets, ends)]


def byte_pairs(texts: Sequence[bytes]) -> Pairs:
    """Neighbours among the bytes of each document, its start and its end."""
    lengths = np.array([len(text) for text in texts], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    is_end = np.zeros(int(lengths.sum()) + len(texts), dtype=bool)
    is_end[ends] = True
    targets = np.full(is_end.shape, EOS, np.int32)
    targets[~is_end] = np.frombuffer(b"".join(texts), np.uint8)
    contexts = np.roll(targets, 1)
    contexts[ends - lengths] = BOS
    return Pairs(contexts, targets)
