"""Parts of a page in Markdown, and the writing of one beside its JSON. Floor 5."""

import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

import numpy as np


def write(
    workdir: str | os.PathLike[str],
    *,
    markdown: str,
    content: dict[str, Any],
    name: str = "report",
) -> None:
    """Writes `report.md` and `report.json`, or of another name; files there are replaced whole.

    Raises:
      ValueError: a number that is not finite.
    """
    directory = pathlib.Path(workdir)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    for file, whole in ((f"{name}.json", text), (f"{name}.md", markdown)):
        unfinished = directory / f"{file}.tmp"
        unfinished.write_text(whole, encoding="utf-8")
        unfinished.replace(directory / file)


def table(columns: Any, rows: Any) -> str:
    """A Markdown table; cells may hold anything but line ends."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def picture(file: str, caption: str) -> str:
    """A picture with its caption below."""
    return f"![{caption}]({file})\n\n*{caption}*"


def fenced(text: str) -> str:
    """A text in a fence that it cannot close."""
    runs = (len(list(group)) for found, group in itertools.groupby(text) if found == "`")
    fence = "`" * max(3, 1 + max(runs, default=0))
    return f"{fence}text\n{text}\n{fence}"


def joined(names: list[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def seconds(duration: float) -> str:
    """A duration in seconds, and in minutes when it is long."""
    if duration < 120.0:
        return f"{duration:.0f} s"
    return f"{duration:.0f} s ({duration / 60.0:.1f} minutes)"


def plain(value: Any) -> Any:
    """Dataclasses and named tuples as dicts with keys of text, arrays and tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value
