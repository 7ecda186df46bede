"""Lines of JSON that survive kills: each step's line is there exactly once. Floor 5."""

import json
import logging
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

_LOG = logging.getLogger(__name__)


class JsonLines:
    """An append-only file of JSON objects that each carry their `step`."""

    def __init__(self, path: str | os.PathLike[str], *, last_step: int) -> None:
        """Opens the file and drops what a resumed run will write again.

        Args:
          path: made if missing.
          last_step: the restored step; lines of later steps are dropped, as is a last line
            that a kill left torn. What is dropped is logged.

        Raises:
          ValueError: a line that is no JSON object with a step; names the file and the line.
        """
        self._path = pathlib.Path(path)
        kept = _kept_lines(self._path, last_step=last_step) if self._path.exists() else []
        unfinished = self._path.with_name(self._path.name + ".tmp")
        unfinished.write_text("".join(kept), encoding="utf-8")
        unfinished.replace(self._path)
        self._file = self._path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a line, which is in the operating system's hands when this returns."""
        line = json.dumps(record, allow_nan=False) + "\n"
        self._file.write(line.encode("utf-8"))

    def sync(self) -> None:
        """Returns when all lines are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class RunLines:
    """`metrics.jsonl`, the same numbers for TensorBoard, and `load.jsonl`."""

    def __init__(self, workdir: str | os.PathLike[str], *, last_step: int) -> None:
        """Opens all at the step that a run goes on from, 0 for a new one."""
        directory = pathlib.Path(workdir)
        self._loads = JsonLines(directory / "load.jsonl", last_step=last_step)
        self._lines = JsonLines(directory / "metrics.jsonl", last_step=last_step)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=last_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Writes one line; TensorBoard gets every number in it, not what is None."""
        self._lines.write(record)
        for name, value in record.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, global_step=record["step"])

    def write_load(self, record: dict[str, Any]) -> None:
        """Writes a line of the experts' load."""
        self._loads.write(record)

    def sync(self) -> None:
        """Returns when all lines are on disk."""
        self._lines.sync()
        self._loads.sync()
        self._board.flush()

    def close(self) -> None:
        """Closes all."""
        self._lines.close()
        self._loads.close()
        self._board.close()


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a file that `JsonLines` wrote, without a last line that is torn.

    Raises:
      ValueError: a line that is no JSON object with a step; names the file and the line.
    """
    return [record for _, record in _parsed(pathlib.Path(path))]


def _kept_lines(path: pathlib.Path, *, last_step: int) -> list[str]:
    parsed = _parsed(path)
    kept = [line for line, record in parsed if record["step"] <= last_step]
    if len(kept) < len(parsed):
        _LOG.warning(
            "%s: %d lines of steps after %d dropped; these steps are run again",
            path,
            len(parsed) - len(kept),
            last_step,
        )
    return kept


def _parsed(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Each whole line with its record."""
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        _LOG.warning("%s: the last line was torn by a kill and is dropped: %r", path, rest)
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError(f"{path}:{number}: want a JSON object with a step")
        parsed.append((line + "\n", record))
    return parsed
