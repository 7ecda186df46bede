"""Held-out pairs of spans: embeddings, and the recall of a span's partner. Floor 6."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deepseek_jax.contrastive import step
from deepseek_jax.core.contrastive_spec import ContrastiveSpec
from deepseek_jax.data import spans
from deepseek_jax.data.spans import SpanDocuments, SpanPairs
from deepseek_jax.evaluation import retrieval
from deepseek_jax.nn.span import SpanDecoder
from deepseek_jax.objectives import contrastive
from deepseek_jax.parallel import placement
from deepseek_jax.parallel.layout import Layout

# Which vector stands for a span: the head's, the last hidden state, the mean of all, or the mean
# of its tokens' embeddings.
Kind = Literal["projection", "last", "mean", "tokens"]
# (variables, rows [B, L]) -> (embeddings [B, P] of length 1 by kind, nats a token [B])
Encode = Callable[[Any, Any], tuple[dict[Kind, Float[Array, "B P"]], Float[Array, " B"]]]
_SEED = 0


class Encoded(NamedTuple):
    """Embeddings [N, P] of length 1 of both spans of N documents."""

    first: Float[np.ndarray, "N P"]
    second: Float[np.ndarray, "N P"]


def pairs(documents: SpanDocuments, *, num: int | None, span_length: int) -> SpanPairs:
    """One fixed pair of spans of each of the first documents; of all where `num` is None."""
    ids = np.arange(len(documents.token_ids) if num is None else num)
    return spans.pairs_of(documents, ids, np.random.default_rng(_SEED), span_length=span_length)


def kinds_of(spec: ContrastiveSpec) -> tuple[Kind, ...]:
    """All that may stand for a span, what the run trains first."""
    return ("projection", "last", "mean", "tokens") if spec.is_on else ("last", "mean", "tokens")


def make_encode(model: SpanDecoder, kinds: Sequence[Kind]) -> Encode:
    """A jitted function from spans to embeddings and next-token losses.

    Args:
      model: dropless.
      kinds: what is asked for, of `kinds_of`; all come of one pass.
    """

    def encode(
        variables: Any, rows: Int[Array, "B L"]
    ) -> tuple[dict[Kind, Float[Array, "B P"]], Float[Array, " B"]]:
        output = step.forward(model, variables, rows)
        nats = jnp.mean(step.next_token_nats(output, rows), axis=1)

        def vectors(kind: Kind) -> Float[Array, "B P"]:
            match kind:
                case "projection":
                    assert output.projected is not None
                    return output.projected
                case "last":
                    return output.hidden[:, -1]
                case "mean":
                    return jnp.mean(output.hidden.astype(jnp.float32), axis=1)
                case "tokens":
                    return jnp.mean(variables["params"]["embed"]["embedding"][rows], axis=1)

        return {kind: contrastive.normalized(vectors(kind)) for kind in kinds}, nats

    return jax.jit(encode)


def encode_all(
    encode: Encode,
    variables: Any,
    rows: Int[np.ndarray, "N L"],
    *,
    batch_size: int,
    layout: Layout,
) -> tuple[dict[Kind, Float[np.ndarray, "N P"]], Float[np.ndarray, " N"]]:
    """Embeddings and nats a token of many spans; the last batch is filled up with span 0."""
    parts = []
    for start in range(0, len(rows), batch_size):
        ids = np.arange(start, start + batch_size)
        batch = {"rows": rows[np.where(ids < len(rows), ids, 0)]}
        put = placement.put_whole_rows(layout, batch)["rows"]
        parts.append(jax.device_get(encode(variables, put)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)


def encode_pairs(
    encode: Encode, variables: Any, given: SpanPairs, *, batch_size: int, layout: Layout
) -> tuple[dict[Kind, Encoded], float]:
    """Both spans of every pair, by kind, and nats a token of all of them."""
    rows = np.concatenate([given.first, given.second])
    vectors, nats = encode_all(encode, variables, rows, batch_size=batch_size, layout=layout)
    found = {kind: Encoded(*np.split(array, 2)) for kind, array in vectors.items()}
    return found, float(np.mean(nats, dtype=np.float64))


def measure(
    encode: Encode, variables: Any, given: SpanPairs, *, batch_size: int, layout: Layout
) -> dict[str, float]:
    """What the loop logs: held-out nats a token, and how often the partner is found first.

    Args:
      encode: of `make_encode`, with one kind.
      variables: of the model.
      given: of `pairs`.
      batch_size: spans of one forward pass.
      layout: where they are put.
    """
    by_kind, nats = encode_pairs(encode, variables, given, batch_size=batch_size, layout=layout)
    (found,) = by_kind.values()
    ranks = retrieval.partner_ranks(retrieval.cosines(found.first, found.second))
    return {
        "heldout_loss": nats,
        "heldout_recall_at_1": float(np.mean(ranks <= 1)),
        "heldout_recall_at_10": float(np.mean(ranks <= 10)),
    }
