"""Answers of a trained model to described tasks, and the experts that it uses. Floor 6."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int8, Int32

from deepseek_jax.data.steering import encoded
from deepseek_jax.data.steering.encoded import Rows, Table
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.decoding import generate, prompts
from deepseek_jax.evaluation.expert_usage import ExpertCounts
from deepseek_jax.nn.steered import SteeredDecoder

_AT_ONCE = 240


class Answerer(NamedTuple):
    """A model that answers.

    Attributes:
      model: on one device, dropless.
      variables: its parameters and state.
      tokenizer: of its training.
      max_new_tokens: of an answer, its end included.
    """

    model: SteeredDecoder
    variables: Any
    tokenizer: Tokenizer
    max_new_tokens: int


def greedy(
    answerer: Answerer,
    asked: Int32[np.ndarray, "N P"],
    description: Int32[np.ndarray, "N W"],
) -> list[str | None]:
    """The greedy answer to each prompt under its description, from the cache.

    Args:
      answerer: the model.
      asked: prompts of one length.
      description: of each; all padding is a missing one.

    Returns:
      The text before the end token; None for an answer that did not end.
    """
    model, tokenizer = answerer.model, answerer.tokenizer
    found: list[str | None] = []
    for start in range(0, len(asked), _AT_ONCE):
        # The last part is filled up, so that there is one program.
        ids = np.minimum(np.arange(start, start + _AT_ONCE), len(asked) - 1)
        tokens, lengths = prompts.pad_prompts(
            list(asked[ids]), block_size=model.spec.block_size, pad_id=tokenizer.pad_id
        )
        drawn = generate.generate(
            model,
            answerer.variables,
            jnp.asarray(tokens),
            jnp.asarray(lengths),
            jax.random.key(0),
            max_new_tokens=answerer.max_new_tokens,
            temperature=0.0,
            top_p=1.0,
            vocab_size=tokenizer.vocab_size,
            end_id=tokenizer.eos_id,
            task_vector=_encode(model, answerer.variables, description[ids]),
        )
        drawn_tokens, kept = np.asarray(drawn.tokens), np.asarray(drawn.token_mask)
        for row, mask in zip(drawn_tokens, kept, strict=True):
            ended = row[mask][-1] == tokenizer.eos_id
            found.append(tokenizer.decode(row[mask][:-1]) if ended else None)
    return found[: len(asked)]


def expert_counts(
    answerer: Answerer,
    table: Table,
    input_ids: Int[np.ndarray, " N"],
    task_ids: Int[np.ndarray, " N"],
    description: Int32[np.ndarray, "N W"],
    *,
    length: int,
) -> dict[str, ExpertCounts]:
    """Assignments of each row's tokens, with the row's task as its kind.

    Args:
      answerer: a sparse model.
      table: prompts and right answers.
      input_ids: of each row.
      task_ids: of each row.
      description: of each row.
      length: L.

    Returns:
      "prompt": of the prompts' tokens, which are the same whatever the task; "all": of the right
      answers' tokens too.
    """
    num_experts = answerer.model.spec.num_experts
    parts: dict[str, list[np.ndarray]] = {"prompt": [], "all": []}
    for start in range(0, len(input_ids), _AT_ONCE):
        ids = np.minimum(np.arange(start, start + _AT_ONCE), len(input_ids) - 1)
        rows = encoded.rows(table, input_ids[ids], task_ids[ids], length=length)
        sown = _expert_ids(answerer.model, answerer.variables, rows, description[ids])
        size = min(_AT_ONCE, len(input_ids) - start)
        is_token = rows.document_ids == 1
        in_prompt = rows.positions < table.prompts.shape[1]
        for name, mask in (("prompt", in_prompt), ("all", is_token)):
            parts[name].append(_counted(np.asarray(sown), mask, num_experts)[:, :size])
    kinds: Int8[np.ndarray, " N"] = task_ids.astype(np.int8)
    return {name: ExpertCounts(np.concatenate(part, axis=1), kinds) for name, part in parts.items()}


def _counted(expert_ids: np.ndarray, mask: np.ndarray, num_experts: int) -> np.ndarray:
    """[layers, B, L, K] ids to [layers, B, E] counts over the tokens that `mask` [B, L] keeps."""
    is_expert = expert_ids[..., None] == np.arange(num_experts)
    kept = is_expert & mask[None, :, :, None, None]
    return np.asarray(np.sum(kept, axis=(2, 3), dtype=np.int64))


_encode: Callable[..., Array] = functools.partial(jax.jit, static_argnums=0)(
    lambda model, variables, description: model.apply(variables, description, method="encode")
)


@functools.partial(jax.jit, static_argnums=0)
def _expert_ids(model: SteeredDecoder, variables: Any, rows: Rows, description: Any) -> Any:
    _, sown = model.apply(
        variables,
        rows.tokens,
        document_ids=rows.document_ids,
        positions=rows.positions,
        description=description,
        mutable=["intermediates"],
    )
    (expert_ids,) = sown["intermediates"]["layers"]["feed_forward"]["router"]["expert_ids"]
    return expert_ids.reshape(expert_ids.shape[0], *rows.tokens.shape, -1)
