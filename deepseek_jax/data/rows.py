"""Packed rows: tokenized documents laid end to end and cut to equal length. Floor 1.

A document of n tokens is [BOS, t_1 .. t_n, EOS]: its n + 1 inputs are all but the last, its
targets all but the first, so that every token behind BOS is predicted exactly once in an
epoch, but for those of its prompt, which are inputs only. A row's end cuts a document into
pieces; the next row continues it as a piece of its own, without BOS, at position 0. Only the
last row may have padding, at its end.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int8, Int32, Int64

from deepseek_jax.data import documents as documents_lib
from deepseek_jax.data.documents import Document
from deepseek_jax.data.tokenizers import Tokenizer


class Rows(NamedTuple):
    """Packed rows; the leading axis counts rows, here and as B in a batch.

    Attributes:
      tokens: inputs; `pad_id` in padding.
      targets: the next token of the same document; 0 where `target_mask` is False.
      target_mask: True where a target is scored: not in padding, not for tokens of a prompt.
      document_ids: the piece a token belongs to, 1, 2, .. within its row; 0 is padding.
      positions: index of the token in its piece; 0 in padding.
    """

    tokens: Int32[np.ndarray, "B L"]
    targets: Int32[np.ndarray, "B L"]
    target_mask: Bool[np.ndarray, "B L"]
    document_ids: Int32[np.ndarray, "B L"]
    positions: Int32[np.ndarray, "B L"]


class Packed(NamedTuple):
    """Rows, and beside them what kind of text each token is from.

    Attributes:
      rows: what a batch is made of.
      kind_ids: index into `documents.KINDS`, -1 in padding.
    """

    rows: Rows
    kind_ids: Int8[np.ndarray, "B L"]


def shuffled(documents: Sequence[Document], *, seed: int) -> list[Document]:
    """The documents in an order of hashes of the seed and their names, whatever order they had."""
    return sorted(
        documents,
        key=lambda document: documents_lib.digest(f"{seed}\0{document.name}\0{document.kind}"),
    )


def pack_documents(
    documents: Sequence[Document], tokenizer: Tokenizer, *, sequence_length: int
) -> Packed:
    """Tokenizes documents, prompts and texts each for itself, and packs them in the order given."""
    token_ids = tokenizer.encode_batch([document.text for document in documents])
    prompts = [document.prompt for document in documents]
    num_unscored = np.zeros(len(prompts), dtype=np.int64)
    if any(prompts):
        prompt_ids = tokenizer.encode_batch(prompts)
        num_unscored = np.array([len(ids) for ids in prompt_ids], dtype=np.int64)
        token_ids = [np.concatenate(pair) for pair in zip(prompt_ids, token_ids, strict=True)]
    kinds = np.array([documents_lib.KINDS.index(d.kind) for d in documents], dtype=np.int8)
    return pack(
        token_ids,
        kinds,
        num_unscored,
        sequence_length=sequence_length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )


def pack(
    token_ids: Sequence[Int32[np.ndarray, " _"]],
    kinds: Int8[np.ndarray, " documents"],
    num_unscored: Int64[np.ndarray, " documents"],
    *,
    sequence_length: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
) -> Packed:
    """Lays documents end to end and cuts rows of `sequence_length`.

    Args:
      token_ids: the tokens of each document, without BOS and EOS; may be empty.
      kinds: the kind of each document.
      num_unscored: leading tokens of each document that are inputs and never scored.
      sequence_length: L.
      bos_id: put before each document.
      eos_id: put behind each document.
      pad_id: fills the last row.

    Returns:
      ceil(sum over documents of (tokens + 1) / L) rows. The scored targets of all rows, in
      order, are the tokens of each document behind its unscored ones, and EOS.

    Raises:
      ValueError: no documents, more kinds than documents or fewer, or more unscored tokens than
        a document has.
    """
    if not token_ids or not len(token_ids) == len(kinds) == len(num_unscored):
        raise ValueError(
            f"{len(token_ids)} documents with {len(kinds)} kinds and {len(num_unscored)} counts of "
            "unscored tokens cannot be packed"
        )
    lengths = np.array([len(ids) + 1 for ids in token_ids], dtype=np.int64)
    if np.any((num_unscored < 0) | (num_unscored >= lengths)):
        raise ValueError(f"num_unscored={num_unscored} of documents of {lengths - 1} tokens")
    starts = np.cumsum(lengths) - lengths
    num_inputs = int(lengths.sum())
    num_rows = -(-num_inputs // sequence_length)
    size = num_rows * sequence_length

    # The stream of all inputs; the target of an input is its neighbour, or EOS at a document's end.
    tokens = np.full(size, pad_id, dtype=np.int32)
    is_first = np.zeros(num_inputs, dtype=bool)
    is_first[starts] = True
    tokens[:num_inputs][~is_first] = np.concatenate(token_ids)
    tokens[starts] = bos_id
    targets = np.zeros(size, dtype=np.int32)
    targets[: num_inputs - 1] = tokens[1:num_inputs]
    targets[starts + lengths - 1] = eos_id
    # Input i of a document has the target i + 1, so that as many inputs are unscored as tokens.
    target_mask = np.zeros(size, dtype=bool)
    index = np.arange(num_inputs) - np.repeat(starts, lengths)
    target_mask[:num_inputs] = index >= np.repeat(num_unscored, lengths)
    targets[~target_mask] = 0

    # Document numbers from 1 over the whole stream, then from 1 within each row.
    number = np.zeros(size, dtype=np.int32)
    number[:num_inputs] = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    in_rows = number.reshape(num_rows, sequence_length)
    document_ids = np.where(in_rows > 0, in_rows - in_rows[:, :1] + 1, 0).astype(np.int32)

    # A piece starts where its document does, or where the row does.
    start_of_token = np.zeros(size, dtype=np.int64)
    start_of_token[:num_inputs] = np.repeat(starts, lengths)
    row_starts = np.arange(num_rows, dtype=np.int64)[:, None] * sequence_length
    piece_starts = np.maximum(start_of_token.reshape(in_rows.shape), row_starts)
    positions = np.arange(size, dtype=np.int64).reshape(in_rows.shape) - piece_starts
    positions = np.where(in_rows > 0, positions, 0).astype(np.int32)

    kind_ids = np.full(size, -1, dtype=np.int8)
    kind_ids[:num_inputs] = np.repeat(kinds, lengths)
    shape = in_rows.shape
    rows = Rows(
        tokens.reshape(shape),
        targets.reshape(shape),
        target_mask.reshape(shape),
        document_ids,
        positions,
    )
    return Packed(rows, kind_ids.reshape(shape))


def num_rows(rows: Rows) -> int:
    """How many rows there are."""
    return len(rows.tokens)


def take(rows: Rows, row_ids: Int32[np.ndarray, " B"]) -> Rows:
    """The rows with these ids, in this order."""
    return Rows(*(array[row_ids] for array in rows))


def target_bytes(rows: Rows, token_byte_lengths: Int32[np.ndarray, " V"]) -> int:
    """Bytes of text that the targets of the rows stand for (`Tokenizer.token_byte_lengths`)."""
    return int(token_byte_lengths[rows.targets].sum(where=rows.target_mask, dtype=np.int64))
