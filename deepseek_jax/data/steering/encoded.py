"""Descriptions, inputs and answers as arrays of tokens. Floor 1.

Axes: R descriptions, W tokens of a description, N inputs, B rows, L positions of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from deepseek_jax.data.steering.tasks import Task
from deepseek_jax.data.tokenizers import Tokenizer

PADDING = 0
# Stands between the digits of an input and the answer.
SIGN = "="


class DescriptionError(ValueError):
    """A description that the encoder cannot read; the message says where it stands."""


class Table(NamedTuple):
    """Prompts of N inputs, and the answers of all tasks to each of them.

    Attributes:
      prompts: begin token, digits, sign; all of one length.
      answers: right-padded, the end token last.
      answer_lengths: end token included.
    """

    prompts: Int32[np.ndarray, "N P"]
    answers: Int32[np.ndarray, "N tasks A"]
    answer_lengths: Int32[np.ndarray, "N tasks"]


class Rows(NamedTuple):
    """What the decoder reads, and the answers that it is to predict."""

    tokens: Int32[np.ndarray, "B L"]
    targets: Int32[np.ndarray, "B L"]
    target_mask: Bool[np.ndarray, "B L"]
    document_ids: Int32[np.ndarray, "B L"]
    positions: Int32[np.ndarray, "B L"]


def descriptions(
    texts: Sequence[str], tokenizer: Tokenizer, *, length: int, where: Sequence[str]
) -> Int32[np.ndarray, "R W"]:
    """Tokens of descriptions, right-padded.

    Args:
      texts: the descriptions.
      tokenizer: of the model.
      length: W, that none may exceed.
      where: what an error calls each of them, e.g. file and line.

    Raises:
      DescriptionError: a description is empty, or longer than `length` tokens.
    """
    tokens = np.full((len(texts), length), PADDING, np.int32)
    encoded = tokenizer.encode_batch([text.strip() for text in texts])
    for row, ids, place in zip(tokens, encoded, where, strict=True):
        if len(ids) == 0:
            raise DescriptionError(f"{place}: the description is empty")
        if len(ids) > length:
            raise DescriptionError(
                f"{place}: the description has {len(ids)} tokens; "
                f"vector.description_length={length} is the most"
            )
        row[: len(ids)] = ids
    return tokens


def table(inputs: Sequence[str], tasks: Sequence[Task], tokenizer: Tokenizer) -> Table:
    """The prompts of inputs of one length and the answers of every task to them.

    Raises:
      ValueError: inputs of different lengths.
    """
    if len({len(digits) for digits in inputs}) != 1:
        raise ValueError("inputs of different lengths have no common table")
    asked = tokenizer.encode_batch([digits + SIGN for digits in inputs])
    prompts = np.stack([[tokenizer.bos_id, *ids] for ids in asked]).astype(np.int32)
    told = tokenizer.encode_batch([task.answer(digits) for digits in inputs for task in tasks])
    lengths = np.array([len(ids) + 1 for ids in told], np.int32)
    answers = np.full((len(told), lengths.max()), PADDING, np.int32)
    for row, ids in zip(answers, told, strict=True):
        row[: len(ids) + 1] = [*ids, tokenizer.eos_id]
    shape = (len(inputs), len(tasks))
    return Table(prompts, answers.reshape(*shape, -1), lengths.reshape(shape))


def rows(
    found: Table,
    input_ids: Int[np.ndarray, " B"],
    task_ids: Int[np.ndarray, " B"],
    *,
    length: int,
) -> Rows:
    """Rows of prompts and answers, one a pair of input and task; answers alone are targets.

    Args:
      found: of `table`.
      input_ids: of each row.
      task_ids: of each row.
      length: L, at least a prompt and the longest answer without its last token.
    """
    prompts = found.prompts[input_ids]
    answers, lengths = found.answers[input_ids, task_ids], found.answer_lengths[input_ids, task_ids]
    begin = prompts.shape[1]
    whole = np.full((len(prompts), max(length + 1, begin + answers.shape[1])), PADDING, np.int32)
    whole[:, :begin] = prompts
    whole[:, begin : begin + answers.shape[1]] = answers
    index = np.arange(length, dtype=np.int32)[None]
    ends = begin + lengths[:, None] - 1
    return Rows(
        tokens=np.where(index < ends, whole[:, :length], PADDING).astype(np.int32),
        targets=whole[:, 1 : length + 1],
        target_mask=(index >= begin - 1) & (index < ends),
        document_ids=(index < ends).astype(np.int32),
        positions=np.broadcast_to(index, (len(prompts), length)),
    )
