"""The record of a corpus: what was read, what was left out, and one hash of it all. Floor 1."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

from deepseek_jax.data import documents as documents_lib
from deepseek_jax.data.documents import Document, Exclusion

# Exclusions that tell of a fault in a file are listed one by one, the others only counted.
_FAULTS = frozenset({"not UTF-8", "does not parse", "not a regular file", "link to a folder"})
_SHORT_HASH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One document: `sha256` holds the first 16 hexadecimal digits, `num_bytes` has no prompt."""

    name: str
    kind: str
    split: Literal["train", "heldout"]
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """Documents or files and their bytes."""

    num_documents: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """What a corpus consists of.

    Attributes:
      source: `data.source`.
      sha256: hash over names, kinds, sides and whole prompts and texts; equal hashes mean equal
        corpora.
      num_groups: groups that were split.
      kept: counts by "side/kind"; bytes of texts, without prompts.
      excluded: counts by reason.
      faults: files that were excluded because something is wrong with them, with the fault.
      files: every document, sorted by name.
    """

    source: str
    sha256: str
    num_groups: int
    kept: dict[str, Count]
    excluded: dict[str, Count]
    faults: tuple[str, ...]
    files: tuple[Entry, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as plain dicts, lists, strings and numbers."""
        return dataclasses.asdict(self)


def make(
    train: list[Document],
    heldout: list[Document],
    exclusions: list[Exclusion],
    *,
    source: str,
    num_groups: int,
) -> CorpusRecord:
    """The record of a split corpus."""
    total = hashlib.sha256()
    entries: list[Entry] = []
    sides: tuple[tuple[Literal["train", "heldout"], list[Document]], ...] = (
        ("train", train),
        ("heldout", heldout),
    )
    lines = []
    for split, members in sides:
        for document in members:
            content_hash = documents_lib.content_digest(document)
            lines.append(json.dumps([document.name, document.kind, split, content_hash]))
            entries.append(
                Entry(
                    name=document.name,
                    kind=document.kind,
                    split=split,
                    num_bytes=documents_lib.byte_count(document),
                    sha256=content_hash[:_SHORT_HASH],
                )
            )
    total.update("\n".join(sorted(lines)).encode("utf-8"))
    return CorpusRecord(
        source=source,
        sha256=total.hexdigest(),
        num_groups=num_groups,
        kept=_counts((f"{entry.split}/{entry.kind}", entry.num_bytes) for entry in entries),
        excluded=_counts((exclusion.reason, exclusion.num_bytes) for exclusion in exclusions),
        faults=tuple(
            f"{exclusion.name}: {exclusion.detail or exclusion.reason}"
            for exclusion in sorted(exclusions)
            if exclusion.reason in _FAULTS
        ),
        files=tuple(sorted(entries, key=lambda entry: (entry.name, entry.kind))),
    )


def describe_exclusions(exclusions: list[Exclusion]) -> str:
    """What was left out, in a line."""
    counts = _counts((exclusion.reason, exclusion.num_bytes) for exclusion in exclusions)
    if not counts:
        return "nothing was left out"
    parts = (f"{count.num_documents} {reason}" for reason, count in counts.items())
    return f"left out: {', '.join(parts)}"


def write(record: CorpusRecord, path: str | os.PathLike[str]) -> None:
    """Writes the record as JSON; a file already there is replaced at once or not at all."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".tmp")
    unfinished.write_text(json.dumps(record.to_json(), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(target)


def check_same_corpus(record: CorpusRecord, *, recorded_sha256: str, where: str) -> None:
    """Raises unless the corpus that was read is the one a run was started on.

    Args:
      record: of the corpus as read now.
      recorded_sha256: hash in the run's record.
      where: where the recorded hash was found, for the message.

    Raises:
      ValueError: the hashes differ; names both.
    """
    if record.sha256 != recorded_sha256:
        raise ValueError(
            f"the corpus has changed: sha256 {record.sha256} as read now, {recorded_sha256} in "
            f"{where}; restore the texts (and the Python and packages, for installed sources) "
            "or start a new run directory"
        )


def _counts(items: Iterable[tuple[str, int]]) -> dict[str, Count]:
    """Number and bytes by name, sorted by name."""
    numbers: dict[str, tuple[int, int]] = {}
    for name, num_bytes in items:
        number, total = numbers[name] if name in numbers else (0, 0)
        numbers[name] = (number + 1, total + num_bytes)
    return {
        name: Count(num_documents=number, num_bytes=total)
        for name, (number, total) in sorted(numbers.items())
    }
