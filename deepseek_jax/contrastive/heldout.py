"""Held-out pairs of spans: embeddings, and the recall of a span's partner. Floor 6."""

from collections.abc import Callable
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
# (variables, rows [B, L]) -> (embeddings [B, P] of length 1, nats [B])
Encode = Callable[[Any, Any], tuple[Float[Array, "B P"], Float[Array, " B"]]]
_SEED = 0


class Encoded(NamedTuple):
    """Spans of N documents: embeddings of both, [N, P] of length 1, and nats a token."""

    first: Float[np.ndarray, "N P"]
    second: Float[np.ndarray, "N P"]
    nats_per_token: float


def pairs(documents: SpanDocuments, *, num: int | None, span_length: int) -> SpanPairs:
    """One fixed pair of spans of each of the first documents; of all where `num` is None."""
    ids = np.arange(len(documents.token_ids) if num is None else num)
    return spans.pairs_of(documents, ids, np.random.default_rng(_SEED), span_length=span_length)


def last_of(spec: ContrastiveSpec) -> Kind:
    """What a run trains to stand for a span: its projection, or the state that it is made of."""
    return "projection" if spec.is_on else "last"


def make_encode(model: SpanDecoder, kind: Kind) -> Encode:
    """A jitted function from spans to embeddings and next-token losses.

    Args:
      model: dropless.
      kind: what stands for a span.
    """

    def encode(
        variables: Any, rows: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B P"], Float[Array, " B"]]:
        output = step.forward(model, variables, rows)
        nats = jnp.mean(step.next_token_nats(output, rows), axis=1)
        match kind:
            case "projection":
                assert output.projected is not None
                vectors = output.projected
            case "last":
                vectors = output.hidden[:, -1]
            case "mean":
                vectors = jnp.mean(output.hidden.astype(jnp.float32), axis=1)
            case "tokens":
                vectors = jnp.mean(variables["params"]["embed"]["embedding"][rows], axis=1)
        return contrastive.normalized(vectors), nats

    return jax.jit(encode)


def encode_all(
    encode: Encode,
    variables: Any,
    rows: Int[np.ndarray, "N L"],
    *,
    batch_size: int,
    layout: Layout,
) -> tuple[Float[np.ndarray, "N P"], Float[np.ndarray, " N"]]:
    """Embeddings and nats a token of many spans; the last batch is filled up with span 0."""
    parts = []
    for start in range(0, len(rows), batch_size):
        ids = np.arange(start, start + batch_size)
        batch = {"rows": rows[np.where(ids < len(rows), ids, 0)]}
        put = placement.put_whole_rows(layout, batch)["rows"]
        parts.append(jax.device_get(encode(variables, put)))
    vectors, nats = (np.concatenate(arrays)[: len(rows)] for arrays in zip(*parts, strict=True))
    return vectors, nats


def encode_pairs(
    encode: Encode, variables: Any, given: SpanPairs, *, batch_size: int, layout: Layout
) -> Encoded:
    """Both spans of every pair."""
    rows = np.concatenate([given.first, given.second])
    vectors, nats = encode_all(encode, variables, rows, batch_size=batch_size, layout=layout)
    first, second = np.split(vectors, 2)
    return Encoded(first, second, float(np.mean(nats, dtype=np.float64)))


def measure(
    encode: Encode, variables: Any, given: SpanPairs, *, batch_size: int, layout: Layout
) -> dict[str, float]:
    """What the loop logs: held-out nats a token, and how often the partner is found first."""
    found = encode_pairs(encode, variables, given, batch_size=batch_size, layout=layout)
    ranks = retrieval.partner_ranks(retrieval.cosines(found.first, found.second))
    return {
        "heldout_loss": found.nats_per_token,
        "heldout_recall_at_1": float(np.mean(ranks <= 1)),
        "heldout_recall_at_10": float(np.mean(ranks <= 10)),
    }
