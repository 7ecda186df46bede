"""Encoded problems: prompts and right answers as padded arrays of token ids. Floor 1.

N problems, P positions of padded prompts, A of padded answers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.data.tokenizers import Tokenizer


class EncodedProblems(NamedTuple):
    """Problems as arrays; the leading axis counts problems.

    Attributes:
      prompts: right-padded with `pad_id`.
      lengths: tokens of each prompt.
      answers: of the right answer's text alone, no tags; right-padded with `pad_id`.
      answer_lengths: tokens of each answer.
      num_steps: steps of the worked solution.
    """

    prompts: Int32[np.ndarray, "N P"]
    lengths: Int32[np.ndarray, " N"]
    answers: Int32[np.ndarray, "N A"]
    answer_lengths: Int32[np.ndarray, " N"]
    num_steps: Int32[np.ndarray, " N"]


def encode(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    *,
    prompt_width: int,
    answer_width: int,
    bos: bool,
) -> EncodedProblems:
    """Encodes problems.

    Args:
      problems: in the order of the result.
      tokenizer: of both arrays.
      prompt_width: P.
      answer_width: A.
      bos: whether a prompt begins with `tokenizer.bos_id`, as documents do.

    Raises:
      ValueError: a prompt or an answer is longer than its width; names the problem.
    """
    first = [tokenizer.bos_id] if bos else []
    prompts, lengths = _pad(
        [[*first, *tokenizer.encode(problem.prompt).tolist()] for problem in problems],
        problems,
        name="prompt_width",
        width=prompt_width,
        pad_id=tokenizer.pad_id,
    )
    answers, answer_lengths = _pad(
        [tokenizer.encode(problem.answer).tolist() for problem in problems],
        problems,
        name="answer_width",
        width=answer_width,
        pad_id=tokenizer.pad_id,
    )
    num_steps = np.array([problem.num_steps for problem in problems], dtype=np.int32)
    return EncodedProblems(prompts, lengths, answers, answer_lengths, num_steps)


def take(encoded: EncodedProblems, ids: Int[np.ndarray, " B"]) -> EncodedProblems:
    """The problems with these ids, in this order."""
    return EncodedProblems(*(array[ids] for array in encoded))


def _pad(
    token_ids: Sequence[list[int]],
    problems: Sequence[Problem],
    *,
    name: str,
    width: int,
    pad_id: int,
) -> tuple[Int32[np.ndarray, "N W"], Int32[np.ndarray, " N"]]:
    """Rows of equal width, and the length of each."""
    rows = np.full((len(token_ids), width), pad_id, dtype=np.int32)
    for row, ids, problem in zip(rows, token_ids, problems, strict=True):
        if len(ids) > width:
            raise ValueError(f"{name}={width}: {problem} needs {len(ids)} tokens")
        row[: len(ids)] = ids
    return rows, np.array([len(ids) for ids in token_ids], dtype=np.int32)
