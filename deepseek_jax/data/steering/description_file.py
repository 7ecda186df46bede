"""Descriptions that a user wrote, one a line; what is wrong with one is told with its line.

Floor 1.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from deepseek_jax.data.steering.encoded import DescriptionError

_KEYS = {"task", "description"}


class UserDescription(NamedTuple):
    """A description, the task that it is meant to describe if that is told, and its place."""

    text: str
    task: str | None
    where: str


def read(path: str | os.PathLike[str], *, task_names: Sequence[str]) -> list[UserDescription]:
    """The descriptions of a file: JSONL if it is named so, else plain text.

    A line of JSONL is {"task": NAME, "description": TEXT}; a line of text is a description.

    Args:
      path: of the file; UTF-8.
      task_names: that JSONL may name.

    Raises:
      FileNotFoundError: no such file.
      DescriptionError: names file and line: not UTF-8, a byte order mark, an empty line, JSON
        of another shape, an unknown task; or a file without lines.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected descriptions, one a line")
    lines = file.read_bytes().splitlines()
    if not lines:
        raise DescriptionError(f"{file}: no descriptions, the file is empty")
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{file}:{number}"
        text = _decoded(line, where)
        if not text.strip():
            raise DescriptionError(f"{where}: the description is empty")
        if file.suffix == ".jsonl":
            found.append(_parsed(text, where, task_names))
        else:
            found.append(UserDescription(text.strip(), None, where))
    return found


def _decoded(line: bytes, where: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DescriptionError(
            f"{where}: not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}; save the "
            "file as UTF-8"
        ) from error
    if text.startswith("\ufeff"):
        raise DescriptionError(f"{where}: begins with a byte order mark; save as plain UTF-8")
    return text


def _parsed(text: str, where: str, task_names: Sequence[str]) -> UserDescription:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise DescriptionError(f"{where}: not JSON: {error}") from error
    if not isinstance(line, dict) or set(line) != _KEYS:
        got = sorted(line) if isinstance(line, dict) else type(line).__name__
        raise DescriptionError(f"{where}: expected an object of {sorted(_KEYS)}, got {got}")
    for name in sorted(_KEYS):
        if not isinstance(line[name], str):
            raise DescriptionError(f"{where}: {name} is {line[name]!r}, not a string")
    if line["task"] not in task_names:
        raise DescriptionError(
            f"{where}: unknown task {line['task']!r}; known: {', '.join(task_names)}"
        )
    if not line["description"].strip():
        raise DescriptionError(f"{where}: the description is empty")
    return UserDescription(line["description"].strip(), line["task"], where)
