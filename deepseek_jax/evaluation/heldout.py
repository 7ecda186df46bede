"""Held-out text: what is measured, and what a model spends on it. Floor 5.

Axes: B rows, L positions, V vocabulary (docs/notation.md). The model's work is jitted; only
the loss of each target leaves the device, and is summed in float64.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8, Int32, Int64

from deepseek_jax.data import batches
from deepseek_jax.data.documents import KINDS
from deepseek_jax.data.rows import Rows
from deepseek_jax.evaluation import bits as bits_lib
from deepseek_jax.evaluation.bits import DocumentBits
from deepseek_jax.evaluation.bootstrap import Estimate
from deepseek_jax.objectives import next_token

Batch = Mapping[str, Array]


class HeldoutSet(NamedTuple):
    """The rows that every method is measured on, and the documents in them.

    The last document may be cut by the end of the rows; what is left of it is a document, unless
    it is only a prompt.

    Attributes:
      rows: inputs and targets.
      document_index: which document a position belongs to, from 0; -1 in padding and in what is
        left out.
      num_bytes: text of each document's targets, in bytes.
      num_targets: targets of each document, its end included.
      kind_ids: index of each document into `documents.KINDS`.
    """

    rows: Rows
    document_index: Int32[np.ndarray, "B L"]
    num_bytes: Int64[np.ndarray, " documents"]
    num_targets: Int64[np.ndarray, " documents"]
    kind_ids: Int8[np.ndarray, " documents"]


class HeldoutLoss(NamedTuple):
    """A model on held-out text.

    Attributes:
      nats: summed over the targets.
      num_targets: targets, ends of documents included.
      num_bytes: bytes of text that the targets stand for.
      bits_per_byte: with its interval over documents.
      by_kind: the same by kind of text, for the kinds that occur.
    """

    nats: float
    num_targets: int
    num_bytes: int
    bits_per_byte: Estimate
    by_kind: dict[str, Estimate]

    @property
    def nats_per_target(self) -> float:
        """The held-out loss."""
        return self.nats / self.num_targets


def make(
    rows: Rows,
    kind_ids: Int8[np.ndarray, "B L"],
    token_byte_lengths: Int32[np.ndarray, " V"],
    *,
    bos_id: int,
    num_rows: int | None,
) -> HeldoutSet:
    """The held-out set of the first rows.

    Args:
      rows: packed held-out text, from its start.
      kind_ids: the kind of each position, -1 in padding (`rows.Packed.kind_ids`).
      token_byte_lengths: bytes of text of each token, 0 for special ones.
      bos_id: the token that each document starts with, and no other position has.
      num_rows: rows to take; None for all.

    Raises:
      ValueError: fewer rows than asked for, rows that don't start with a document, or that hold
        nothing but prompts.
    """
    available = len(rows.tokens)
    if num_rows is not None and not 1 <= num_rows <= available:
        raise ValueError(
            f"eval.num_rows={num_rows} is outside [1, {available}], the held-out rows there are"
        )
    rows, kind_ids = Rows(*(array[:num_rows] for array in rows)), kind_ids[:num_rows]
    document_index = index_documents(rows, bos_id=bos_id)
    mask = rows.target_mask
    index = document_index[mask]
    if not index.size:
        raise ValueError(f"the first {len(rows.tokens)} held-out rows hold nothing but prompts")
    num_documents = int(index.max()) + 1
    document_index = np.where(document_index < num_documents, document_index, np.int32(-1))
    lengths = token_byte_lengths[rows.targets[mask]]
    is_first = (document_index >= 0) & (rows.tokens == bos_id)
    return HeldoutSet(
        rows,
        document_index,
        np.bincount(index, weights=lengths, minlength=num_documents).astype(np.int64),
        np.bincount(index, minlength=num_documents),
        kind_ids[is_first],
    )


def index_documents(rows: Rows, *, bos_id: int) -> Int32[np.ndarray, "B L"]:
    """Which document each position belongs to, from 0, across row ends; -1 in padding.

    Raises:
      ValueError: the first row doesn't start with a document.
    """
    is_text = rows.document_ids > 0
    if rows.tokens.flat[0] != bos_id or not is_text.flat[0]:
        raise ValueError(
            f"the rows start with token {rows.tokens.flat[0]}, not with the start of a document "
            f"(token {bos_id})"
        )
    starts = is_text & (rows.tokens == bos_id)
    index = np.cumsum(starts.ravel(), dtype=np.int32).reshape(starts.shape) - 1
    return np.where(is_text, index, np.int32(-1))


def target_terms(
    logits_fn: Callable[[Any, Batch], Float[Array, "B L V"]],
    variables: Any,
    rows: Rows,
    *,
    batch_size: int,
) -> Float32[np.ndarray, "B L"]:
    """The loss of each target in nats, 0 where there is none.

    Args:
      logits_fn: (variables, batch) -> next-token logits; pure, jitted here.
      variables: of the model; passed to the jitted function, never baked into it.
      rows: all of them are measured, once each.
      batch_size: rows of one forward pass; the last pass is filled with padding.

    Returns:
      [B, L] float32, of the given rows only.
    """

    @jax.jit
    def terms_of(variables: Any, batch: Batch) -> Float[Array, "B L"]:
        terms = next_token.next_token_terms(logits_fn(variables, batch), batch["targets"])
        return jnp.where(batch["target_mask"], terms, 0.0)

    parts = [
        jax.device_get(terms_of(variables, jax.device_put(batch)))
        for batch in batches.eval_batches(rows, batch_size=batch_size)
    ]
    return np.concatenate(parts)[: len(rows.tokens)]


def document_bits(heldout_set: HeldoutSet, terms: Float[np.ndarray, "B L"]) -> DocumentBits:
    """Code length of each document from the loss of each target in nats."""
    mask = heldout_set.rows.target_mask
    nats = np.bincount(
        heldout_set.document_index[mask],
        weights=terms[mask],
        minlength=len(heldout_set.num_bytes),
    )
    return DocumentBits(nats / np.log(2.0), heldout_set.num_bytes)


def summarize(
    heldout_set: HeldoutSet, terms: Float[np.ndarray, "B L"], *, seed: int
) -> HeldoutLoss:
    """The held-out loss as numbers to report.

    Args:
      heldout_set: what was measured.
      terms: the loss of each target in nats (`target_terms`).
      seed: of the bootstrap.

    Raises:
      ValueError: a loss that is not finite, or a document without text.
    """
    measured = document_bits(heldout_set, terms)
    by_kind: dict[str, Estimate] = {
        kind: bits_lib.bits_per_byte(bits_lib.select(measured, is_kind), seed=seed)
        for kind_id, kind in enumerate(KINDS)
        if (is_kind := heldout_set.kind_ids == kind_id).any()
    }
    return HeldoutLoss(
        nats=float(terms.sum(where=heldout_set.rows.target_mask, dtype=np.float64)),
        num_targets=int(heldout_set.num_targets.sum()),
        num_bytes=int(heldout_set.num_bytes.sum()),
        bits_per_byte=bits_lib.bits_per_byte(measured, seed=seed),
        by_kind=by_kind,
    )
