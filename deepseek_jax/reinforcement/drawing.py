"""Answers to many problems, a batch at a time: what is measured of a policy. Floor 6."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from deepseek_jax.core.model_spec import ModelSpec
from deepseek_jax.core.stage_spec import RolloutSpec
from deepseek_jax.data import tokenizers
from deepseek_jax.data.problems import encoded as encoded_lib
from deepseek_jax.data.problems import verify
from deepseek_jax.data.problems.encoded import EncodedProblems
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.nn.model import Decoder
from deepseek_jax.ops import answers
from deepseek_jax.reinforcement import rewards, rollout
from deepseek_jax.reinforcement.learner import Tokens
from deepseek_jax.reinforcement.rewards import Verdict
from deepseek_jax.reinforcement.rollout import Prompts, Rollout

# (variables, prompts, key) -> answers and verdict
Draw = Callable[[Any, Prompts, jax.Array], tuple[Rollout, Verdict]]


class Answers(NamedTuple):
    """One answer to each of N problems, on the host."""

    tokens: Int[np.ndarray, "N L"]
    num_tokens: Int[np.ndarray, " N"]
    responses: Int[np.ndarray, "N S"]
    lengths: Int[np.ndarray, " N"]
    is_right: Bool[np.ndarray, " N"]
    has_format: Bool[np.ndarray, " N"]
    is_finished: Bool[np.ndarray, " N"]


def tokens_of(tokenizer: Tokenizer, model: ModelSpec) -> Tokens:
    """The ids that rollouts need.

    Raises:
      ValueError: the tokenizer has no tags, or more ids than the model.
    """
    tokenizers.check_vocabulary(tokenizer, model_vocab_size=model.vocab_size)
    ids = answers.AnswerIds(*tokenizers.tag_ids(tokenizer), eos=tokenizer.eos_id)
    return Tokens(tokenizer.vocab_size, ids)


def encode(
    listed: list[Problem], tokenizer: Tokenizer, spec: RolloutSpec, *, block_size: int
) -> EncodedProblems:
    """Problems as arrays, prompts padded to whole blocks.

    Raises:
      ValueError: a prompt or an answer is longer than the settings say; names it.
    """
    made = encoded_lib.encode(
        listed,
        tokenizer,
        prompt_width=-(-spec.prompt_width // block_size) * block_size,
        answer_width=spec.answer_width,
        bos=True,
    )
    longest = int(made.lengths.max())
    if longest > spec.prompt_width:
        raise ValueError(f"rollout.prompt_width={spec.prompt_width}: a prompt has {longest} tokens")
    return made


def make_draw(model: Decoder, spec: RolloutSpec, tokens: Tokens, *, temperature: float) -> Draw:
    """A jitted function that answers one batch of prompts.

    Args:
      model: dropless.
      spec: widths and lengths; its temperature is not read.
      tokens: of the tokenizer.
      temperature: 0.0 is greedy.
    """

    def draw(variables: Any, prompts: Prompts, key: jax.Array) -> tuple[Rollout, Verdict]:
        drawn = rollout.collect(
            model,
            variables,
            prompts,
            key,
            spec=spec,
            temperature=temperature,
            vocab_size=tokens.vocab_size,
            end_id=tokens.ids.eos,
        )
        return drawn, rewards.verify(drawn, prompts, ids=tokens.ids)

    return jax.jit(draw)


def answer_all(
    draw: Draw, variables: Any, problems: EncodedProblems, key: jax.Array, *, batch_size: int
) -> Answers:
    """One answer to each problem, in their order.

    Args:
      draw: of `make_draw`.
      variables: of the model.
      problems: N of them.
      key: batch i draws with fold_in(key, i).
      batch_size: prompts of a batch; the last batch is filled up with the first problem.
    """
    num_problems = len(problems.prompts)
    parts = []
    for number, start in enumerate(range(0, num_problems, batch_size)):
        ids = np.arange(start, start + batch_size)
        batch = as_prompts(encoded_lib.take(problems, np.where(ids < num_problems, ids, 0)))
        drawn, verdict = draw(variables, batch, jax.random.fold_in(key, number))
        drawn, verdict = jax.device_get((drawn, verdict))
        parts.append(
            (
                drawn.tokens,
                drawn.document_ids.sum(axis=1),
                drawn.responses,
                drawn.response_mask.sum(axis=1),
                verdict.is_right,
                verdict.has_format,
                drawn.is_finished,
            )
        )
    return Answers(*(np.concatenate(arrays)[:num_problems] for arrays in zip(*parts, strict=True)))


def verify_texts(
    responses: Int[np.ndarray, "N S"],
    mask: Bool[np.ndarray, "N S"],
    is_finished: Bool[np.ndarray, " N"],
    asked: Sequence[Problem],
    tokenizer: Tokenizer,
) -> Bool[np.ndarray, " N"]:
    """What the verifier of each problem's task says of the text of its answer.

    Args:
      responses: the answers.
      mask: True up to and including the end token.
      is_finished: whether there is an end token; an answer without one is not right.
      asked: the N problems.
      tokenizer: of the answers.
    """
    verdicts = [
        bool(finished) and verify.is_right(problem, tokenizer.decode(response[kept][:-1]))
        for problem, response, kept, finished in zip(
            asked, responses, mask, is_finished, strict=True
        )
    ]
    return np.array(verdicts, dtype=bool)


def as_prompts(problems: EncodedProblems) -> Prompts:
    """The arrays that a rollout needs."""
    arrays: Any = (problems.prompts, problems.lengths, problems.answers, problems.answer_lengths)
    return Prompts(*arrays)
