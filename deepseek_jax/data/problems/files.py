"""Files of problems: JSONL, one problem a line with its four fields. Floor 1."""

import json
import os
import pathlib
from collections.abc import Iterable

from deepseek_jax.data.problems.problem import Problem


def write(path: str | os.PathLike[str], problems: Iterable[Problem]) -> None:
    """Writes problems; `read` gives them back."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(problem._asdict()) + "\n" for problem in problems)
    unfinished = target.with_name(target.name + ".tmp")
    unfinished.write_text(lines, encoding="ascii")
    unfinished.replace(target)


def read(path: str | os.PathLike[str]) -> list[Problem]:
    """The problems of a file, in its order.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line is not UTF-8 or no JSON object, lacks a field or has another one, or a
        field holds the wrong type, an empty text or a negative count; names file and line.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of problems")
    lines = file.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [_problem(line, where=f"{file}:{number}") for number, line in enumerate(lines, start=1)]


def _problem(line: bytes, *, where: str) -> Problem:
    """Reads one line."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: does not parse as JSON in UTF-8 ({error})") from error
    if not isinstance(fields, dict) or sorted(fields) != sorted(Problem._fields):
        found = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"{where}: expected the fields {list(Problem._fields)}, found {found}")
    for name in ("task", "prompt", "answer"):
        value = fields[name]
        if not isinstance(value, str) or not value or not _is_utf8(value):
            raise ValueError(f"{where}: {name}={value!r}: must be a text that is not empty")
    num_steps = fields["num_steps"]
    if type(num_steps) is not int or num_steps < 0:
        raise ValueError(f"{where}: num_steps={num_steps!r}: must be a whole number from 0 on")
    return Problem(**fields)


def _is_utf8(text: str) -> bool:
    """Whether a text has no lone surrogate, which JSON may hold and no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
