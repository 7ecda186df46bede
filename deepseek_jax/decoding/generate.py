"""Continuing prompts with the cache: all at once under one jit, or token by token. Floor 4."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.nn import model as model_lib
from deepseek_jax.ops import sampling


class Generation(NamedTuple):
    """Continuations of a batch of prompts.

    `tokens` [B, S]; `token_mask` [B, S] is True up to and including the end token;
    `logprobs` [B, S] of the drawn tokens in nats, at temperature 1, 0 where masked.
    """

    tokens: Int[Array, "B S"]
    token_mask: Bool[Array, "B S"]
    logprobs: Float[Array, "B S"]


@functools.partial(
    jax.jit, static_argnames=("model", "max_new_tokens", "temperature", "top_p", "vocab_size")
)
def generate(
    model: model_lib.Decoder,
    variables: Mapping[str, Any],
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    key: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    vocab_size: int,
    end_id: int,
    task_vector: Float[Array, "B Z"] | None = None,
) -> Generation:
    """Continues every prompt by up to `max_new_tokens`, until all have drawn `end_id`.

    Args:
      model: the decoder; dropless, so that a row does not depend on the others.
      variables: its parameters and state.
      prompts: [B, P] int32, right-padded to whole blocks.
      lengths: [B] int32 in [1, P].
      key: consumed.
      max_new_tokens: S; static.
      temperature: 0.0 is greedy; static.
      top_p: nucleus of the sampling; static.
      vocab_size: tokens of the tokenizer; ids from here on are never drawn; static.
      end_id: the token that ends a row; it is part of the continuation.
      task_vector: [B, Z] of a model that has a `task_spec`, else None.

    Raises:
      ValueError: prompts and continuations do not fit the context, or the model drops
        assignments (trace time).
    """
    _check_dropless(model)
    batch_size, width = prompts.shape
    cache = model_lib.empty_cache(
        model.spec, batch_size=batch_size, max_length=width + max_new_tokens
    )
    cache = cache._replace(task_vector=task_vector)
    logits, cache = _prefill(model, variables, prompts, lengths, cache)
    weights = _step_weights(model, variables)
    shape = (batch_size, max_new_tokens)
    start = Generation(
        jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32)
    )

    def unfinished(carry: tuple) -> Array:
        index, _, _, alive, _, _ = carry
        return (index < max_new_tokens) & jnp.any(alive)

    def draw(carry: tuple) -> tuple:
        index, logits, cache, alive, key, done = carry
        key, sample_key = jax.random.split(key)
        tokens = sampling.sample_tokens(
            _drawable(logits, vocab_size), sample_key, temperature=temperature, top_p=top_p
        )
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=-1)[:, 0]
        done = Generation(
            done.tokens.at[:, index].set(jnp.where(alive, tokens, 0)),
            done.token_mask.at[:, index].set(alive),
            done.logprobs.at[:, index].set(jnp.where(alive, logprobs, 0.0)),
        )
        logits, cache = _step(model, variables, tokens, cache, weights)
        return index + 1, logits, cache, alive & (tokens != end_id), key, done

    alive = jnp.ones((batch_size,), bool)
    carry = (jnp.int32(0), logits, cache, alive, key, start)
    return jax.lax.while_loop(unfinished, draw, carry)[-1]


def stream(
    model: model_lib.Decoder,
    variables: Mapping[str, Any],
    prompt: np.ndarray,
    length: int,
    key: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    vocab_size: int,
    end_id: int,
    task_vector: Float[Array, "B Z"] | None = None,
) -> Iterator[int]:
    """Continues one prompt, yielding each token as it is drawn, up to and without `end_id`.

    The same tokens as `generate` draws for a batch of this one prompt and key.

    Args:
      model: the decoder; dropless.
      variables: its parameters and state.
      prompt: [P] int32, right-padded to whole blocks.
      length: tokens of the prompt.
      key: consumed.
      max_new_tokens: tokens drawn at most.
      temperature: 0.0 is greedy.
      top_p: nucleus of the sampling.
      vocab_size: tokens of the tokenizer; ids from here on are never drawn.
      end_id: the token that ends the stream.
      task_vector: [1, Z] of a model that has a `task_spec`, else None.

    Raises:
      ValueError: prompt and continuation do not fit the context.
    """
    _check_dropless(model)
    cache = model_lib.empty_cache(
        # Its blocks cover the padded prompt too, since a whole block holds its last token.
        model.spec,
        batch_size=1,
        max_length=length + max_new_tokens,
    )
    cache = cache._replace(task_vector=task_vector)
    lengths = jnp.array([length], jnp.int32)
    logits, cache = _prefill(model, variables, jnp.asarray(prompt)[None], lengths, cache)
    weights = _step_weights(model, variables)
    for _ in range(max_new_tokens):
        key, sample_key = jax.random.split(key)
        tokens = sampling.sample_tokens(
            _drawable(logits, vocab_size), sample_key, temperature=temperature, top_p=top_p
        )
        token = int(tokens[0])
        if token == end_id:
            return
        yield token
        logits, cache = _step(model, variables, tokens, cache, weights)


@functools.partial(jax.jit, static_argnums=0)
def _prefill(
    model: model_lib.Decoder, variables: Mapping[str, Any], *arguments: Any
) -> tuple[Array, model_lib.DecoderCache]:
    """`Decoder.prefill`, compiled once for each shape."""
    answer: Any = model.apply(variables, *arguments, method="prefill")
    return answer


@functools.partial(jax.jit, static_argnums=0)
def _step_weights(model: model_lib.Decoder, variables: Mapping[str, Any]) -> model_lib.StepWeights:
    """`Decoder.step_weights`, compiled once."""
    made: Any = model.apply(variables, method="step_weights")
    return made


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(
    model: model_lib.Decoder,
    variables: Mapping[str, Any],
    tokens: Int[Array, " B"],
    cache: model_lib.DecoderCache,
    weights: model_lib.StepWeights,
) -> tuple[Array, model_lib.DecoderCache]:
    """`Decoder.step`, compiled once for each shape; the old cache's memory is reused."""
    answer: Any = model.apply(variables, tokens, cache, weights, method="step")
    return answer


def _drawable(logits: Float[Array, "B V"], vocab_size: int) -> Float[Array, "B V"]:
    """Logits of the tokenizer's ids; the rest of a table that is larger is out of reach."""
    is_token = jnp.arange(logits.shape[-1]) < vocab_size
    return jnp.where(is_token[None], logits, -jnp.inf)


def _check_dropless(model: model_lib.Decoder) -> None:
    if model.spec.dispatch != "dropless":
        raise ValueError(
            f"model.dispatch={model.spec.dispatch!r}: generation needs 'dropless', or a row's "
            "tokens would depend on the other rows; use spec.dropless()"
        )
