"""GSM8K: grade school word problems, read from files, with the check of an answer. Floor 1.

arXiv:2110.14168. A line holds a question and an answer, whose last line is "#### number".
"""

import json
import re
from fractions import Fraction
from typing import Literal, NamedTuple

from deepseek_jax.data import given
from deepseek_jax.data.problems import responses
from deepseek_jax.data.problems.problem import Problem

_MAX_CHARACTERS = 40  # of an answer that is looked at
_ANNOTATION = re.compile(r"<<[^<>]*>>")  # Notes for a calculator, which repeat what is there.
# A minus, a sign of money (dollar, euro, pound), digits with or without commas, decimals.
_NUMBER = re.compile(r"\s*(-?)[$\u20ac\u00a3]?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)([.][0-9]*)?\s*")


class Record(NamedTuple):
    """One line of the data.

    Attributes:
      problem: its prompt is the question and a line end.
      worked: the lines of the given solution, without notes for a calculator.
    """

    problem: Problem
    worked: str


def read(*, split: Literal["train", "test"]) -> list[Record]:
    """The lines of `gsm8k/train.jsonl` or `gsm8k/test.jsonl` in the folder of the data.

    Args:
      split: which file; the folder is that of the environment variable DEEPSEEK_JAX_DATA.

    Raises:
      FileNotFoundError: the variable is not set, or the file isn't there.
      ValueError: a bad line; names the file and the line.
    """
    path = given.find(f"gsm8k/{split}.jsonl")
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    return [_record(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def solution(record: Record) -> str:
    """The given solution as a response: its lines in the think part, then the number."""
    return responses.compose(think=record.worked, answer=record.problem.answer)


def verify(problem: Problem, answer: str) -> bool:
    """Whether an answer is the number of the problem, by value.

    Blanks around it, a sign of money, commas between thousands and a point with zeros behind it
    do not matter; any other text does. Never raises, whatever the answer.
    """
    value = _value(answer)
    return value is not None and value == _value(problem.answer)


def _value(text: str) -> Fraction | None:
    """The value of a number as people write it, None of anything else."""
    if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals = match.groups()
    return Fraction(f"{sign}{whole.replace(',', '')}{(decimals or '').rstrip('.')}")


def _record(line: bytes, *, where: str) -> Record:
    """Reads one line."""
    expected = 'expected {"question": text, "answer": "lines of work\\n#### number"}'
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: does not parse ({error}); {expected}") from error
    match fields:
        case {"question": str(question), "answer": str(text)} if question.strip():
            worked, mark, number = text.rpartition("\n#### ")
        case _:
            raise ValueError(f"{where}: {expected}")
    answer = number.strip().replace(",", "")
    if not mark or _value(answer) is None or any(tag in worked for tag in responses.TAGS):
        raise ValueError(f"{where}: the answer is {text!r}; {expected}")
    work = _ANNOTATION.sub("", worked)
    num_steps = sum(bool(step.strip()) for step in work.split("\n"))
    return Record(Problem("gsm8k", question + "\n", answer, num_steps), work)
