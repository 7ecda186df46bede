"""Which experts which kind of text uses, and whether that is more than chance. Floor 5.

Axes: B rows, L positions, E experts, K experts per token (docs/notation.md).

Tokens of a document are alike, so even experts that know nothing of kinds would share some
information with them in a sample. What counts as chance is therefore measured by giving the
kinds to the documents in random order, never to tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float64, Int, Int8, Int64

from deepseek_jax.data import batches
from deepseek_jax.data.documents import KINDS
from deepseek_jax.evaluation.heldout import Batch, HeldoutSet

NUM_SHUFFLES = 1000
QUANTILE = 0.95
_CHUNK_ENTRIES = 4_000_000
# A shuffle that only swaps two kinds has the measured information, but for rounding.
_ROUNDING = 1e-12


class ExpertCounts(NamedTuple):
    """Assignments to experts over held-out tokens.

    Attributes:
      counts: assignments of each document's tokens.
      kind_ids: index of each document into `documents.KINDS`.
    """

    counts: Int64[np.ndarray, "layers documents E"]
    kind_ids: Int8[np.ndarray, " documents"]


class KindInformation(NamedTuple):
    """Mutual information between the expert of an assignment and the kind of its text.

    Attributes:
      bits: as measured, by layer.
      shuffled_mean: mean over shuffles of the documents' kinds, by layer.
      shuffled_quantile: their `QUANTILE`, by layer.
      p_values: (1 + shuffles with at least the measured bits) / (1 + shuffles), by layer.
      kind_entropy: entropy of the kinds in bits, by assignment: no expert can tell more.
    """

    bits: Float64[np.ndarray, " layers"]
    shuffled_mean: Float64[np.ndarray, " layers"]
    shuffled_quantile: Float64[np.ndarray, " layers"]
    p_values: Float64[np.ndarray, " layers"]
    kind_entropy: float


def count(
    expert_ids_fn: Callable[[Batch], Int[Array, "layers B L K"]],
    heldout_set: HeldoutSet,
    *,
    num_experts: int,
    batch_size: int,
) -> ExpertCounts:
    """Counts the assignments of every held-out token; padding counts nowhere.

    Args:
      expert_ids_fn: the experts that the tokens of a batch are sent to.
      heldout_set: what is counted.
      num_experts: E.
      batch_size: rows of one forward pass.

    Raises:
      ValueError: an expert id outside [0, E).
    """
    rows, num_documents = heldout_set.rows, len(heldout_set.kind_ids)
    total = None
    for i, batch in enumerate(batches.eval_batches(rows, batch_size=batch_size)):
        ids = np.asarray(jax.device_get(expert_ids_fn(jax.device_put(batch))))
        index = heldout_set.document_index[i * batch_size : (i + 1) * batch_size]
        mask = index >= 0
        ids = ids[:, : len(index)][:, mask].astype(np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < num_experts:
            raise ValueError(f"expert ids in [{ids.min()}, {ids.max()}], not in [0, {num_experts})")
        layers = np.arange(len(ids))[:, None, None]
        flat = (layers * num_documents + index[mask][None, :, None]) * num_experts + ids
        size = len(ids) * num_documents * num_experts
        counts = np.bincount(flat.ravel(), minlength=size)
        total = counts if total is None else total + counts
    counts = np.asarray(total).reshape(-1, num_documents, num_experts)
    return ExpertCounts(counts, heldout_set.kind_ids)


def load(usage: ExpertCounts) -> Int64[np.ndarray, "layers E"]:
    """Assignments of each expert over all text."""
    return usage.counts.sum(axis=1)


def load_by_kind(usage: ExpertCounts) -> dict[str, Int64[np.ndarray, "layers E"]]:
    """Assignments of each expert by kind of text, for the kinds that occur."""
    return {
        kind: usage.counts[:, is_kind].sum(axis=1)
        for kind_id, kind in enumerate(KINDS)
        if (is_kind := usage.kind_ids == kind_id).any()
    }


def kind_information(usage: ExpertCounts, *, seed: int) -> KindInformation | None:
    """Mutual information of expert and kind, against kinds shuffled over the documents.

    Args:
      usage: counts by document.
      seed: of the shuffles.

    Returns:
      The information by layer, or None if all text is of one kind: then there is nothing to
      tell apart.
    """
    kinds, labels = np.unique(usage.kind_ids, return_inverse=True)
    if len(kinds) < 2:
        return None
    measured = _information_of(usage.counts, labels[None], num_kinds=len(kinds))[0]
    generator = np.random.default_rng(seed)
    at_once = max(1, _CHUNK_ENTRIES // (usage.counts[:, 0].size * len(kinds) + len(labels)))
    shuffled = []
    for start in range(0, NUM_SHUFFLES, at_once):
        size = min(at_once, NUM_SHUFFLES - start)
        orders = generator.permuted(np.tile(labels, (size, 1)), axis=1)
        shuffled.append(_information_of(usage.counts, orders, num_kinds=len(kinds)))
    by_chance = np.concatenate(shuffled)
    as_much = by_chance >= measured[None] - _ROUNDING
    by_kind = np.bincount(labels, weights=usage.counts[0].sum(axis=-1))
    return KindInformation(
        bits=measured,
        shuffled_mean=by_chance.mean(axis=0),
        shuffled_quantile=np.quantile(by_chance, QUANTILE, axis=0),
        p_values=(1 + np.count_nonzero(as_much, axis=0)) / (1 + NUM_SHUFFLES),
        kind_entropy=float(_entropy(by_kind / by_kind.sum())),
    )


def mutual_information(table: Float64[np.ndarray, "*N X Y"]) -> Float64[np.ndarray, "*N"]:
    """I(X; Y) in bits of tables of counts: H(X) + H(Y) - H(X, Y), at least 0.

    Args:
      table: counts or probabilities, at least one above 0 in each table.
    """
    joint = table / table.sum(axis=(-2, -1), keepdims=True)
    flat = joint.reshape(*joint.shape[:-2], -1)
    information = _entropy(joint.sum(axis=-1)) + _entropy(joint.sum(axis=-2)) - _entropy(flat)
    return np.maximum(information, 0.0)


def _entropy(probs: Float64[np.ndarray, "*N X"]) -> Float64[np.ndarray, "*N"]:
    """Entropy in bits over the last axis; 0 log 0 is 0."""
    logs = np.log2(np.where(probs > 0.0, probs, 1.0))
    return -np.sum(probs * logs, axis=-1)


def _information_of(
    counts: Int64[np.ndarray, "layers documents E"],
    labels: Int64[np.ndarray, "shuffles documents"],
    *,
    num_kinds: int,
) -> Float64[np.ndarray, "shuffles layers"]:
    """The mutual information of each layer under each labelling of the documents."""
    masks = (labels[:, None, :] == np.arange(num_kinds)[None, :, None]).astype(np.float64)
    by_document = counts.astype(np.float64).transpose(1, 0, 2)
    tables = np.tensordot(masks, by_document, axes=1)
    return mutual_information(tables.transpose(0, 2, 1, 3))
