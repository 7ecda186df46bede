"""Rollouts: answers drawn to prompts, as rows that training reads. Floor 6.

Row coordinates: position t of a row predicts the token at t + 1; `mask` is True where that
token is part of the answer. B rows, P positions of padded prompts, S new tokens, L positions
of a row, A tokens of padded right answers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.core.stage_spec import RolloutSpec
from deepseek_jax.decoding import generate
from deepseek_jax.nn.model import Decoder


class Prompts(NamedTuple):
    """Problems of a batch; `data.problems.encoded.EncodedProblems` on the device.

    Attributes:
      tokens: right-padded to whole blocks.
      lengths: tokens of each prompt.
      answers: right answers, for verifiers that are arrays.
      answer_lengths: their tokens.
    """

    tokens: Int[Array, "B P"]
    lengths: Int[Array, " B"]
    answers: Int[Array, "B A"]
    answer_lengths: Int[Array, " B"]


class Rollout(NamedTuple):
    """Prompts with their answers.

    Attributes:
      tokens: prompt, answer, padding.
      targets: the next token.
      mask: True where the target is a token of the answer.
      document_ids: 1, and 0 in padding.
      positions: index in the row.
      sampled_logprobs: of the targets, in nats at temperature 1, as the sampler saw them.
      responses: the answers alone.
      response_mask: True up to and including the end token.
      is_finished: whether an end token was drawn.
    """

    tokens: Int[Array, "B L"]
    targets: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    document_ids: Int[Array, "B L"]
    positions: Int[Array, "B L"]
    sampled_logprobs: Float[Array, "B L"]
    responses: Int[Array, "B S"]
    response_mask: Bool[Array, "B S"]
    is_finished: Bool[Array, " B"]


def repeated(prompts: Prompts, *, times: int) -> Prompts:
    """Every prompt `times` times over, copies side by side: the groups of GRPO."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), prompts)


def collect(
    model: Decoder,
    variables: Mapping[str, Any],
    prompts: Prompts,
    key: jax.Array,
    *,
    spec: RolloutSpec,
    temperature: float,
    vocab_size: int,
    end_id: int,
) -> Rollout:
    """Draws one answer to each prompt.

    Args:
      model: dropless.
      variables: its parameters and choice biases.
      prompts: B of them.
      key: consumed.
      spec: widths and lengths; its temperature is not read.
      temperature: 0.0 is greedy; static.
      vocab_size: tokens of the tokenizer; static.
      end_id: ends an answer.
    """
    drawn = generate.generate(
        model,
        variables,
        prompts.tokens,
        prompts.lengths,
        key,
        max_new_tokens=spec.max_new_tokens,
        temperature=temperature,
        top_p=1.0,
        vocab_size=vocab_size,
        end_id=end_id,
    )
    length = spec.sequence_length(model.spec.block_size)
    return as_rows(prompts, drawn, length=length, end_id=end_id)


def as_rows(prompts: Prompts, drawn: generate.Generation, *, length: int, end_id: int) -> Rollout:
    """Prompts and answers laid end to end.

    Args:
      prompts: B of them, of at most `length` - S tokens.
      drawn: their answers.
      length: L.
      end_id: what a finished answer ends with.
    """
    num_drawn = jnp.sum(drawn.token_mask, axis=1, dtype=jnp.int32)
    width = prompts.tokens.shape[1]
    base = jnp.pad(prompts.tokens, ((0, 0), (0, max(0, length - width))))[:, :length]
    index = jnp.arange(length, dtype=jnp.int32)[None]
    start, end = prompts.lengths[:, None], (prompts.lengths + num_drawn)[:, None]

    def put(row: Array, answer: Array, first: Array) -> Array:
        return jax.lax.dynamic_update_slice(row, answer, (first,))

    tokens = jax.vmap(put)(base, drawn.tokens, prompts.lengths)
    tokens = jnp.where(index < end, tokens, 0)
    logprobs = jax.vmap(put)(
        jnp.zeros(base.shape, jnp.float32), drawn.logprobs, prompts.lengths - 1
    )
    mask = (index >= start - 1) & (index < end - 1)
    return Rollout(
        tokens=tokens,
        targets=jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
        mask=mask,
        document_ids=(index < end).astype(jnp.int32),
        positions=jnp.broadcast_to(index, tokens.shape),
        sampled_logprobs=jnp.where(mask, logprobs, 0.0),
        responses=drawn.tokens,
        response_mask=drawn.token_mask,
        is_finished=jnp.any(drawn.token_mask & (drawn.tokens == end_id), axis=1),
    )
