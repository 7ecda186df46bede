"""Preferences of people: a JSONL file of chosen and rejected dialogues, read and split. Floor 1.

A line is {"chosen": dialogue, "rejected": dialogue}, as Anthropic's HH-RLHF has them
(arXiv:2204.05862): turns that begin with "\\n\\nHuman:" and "\\n\\nAssistant:", of which the last
one is the reply that was compared. People compared replies at several turns of one conversation,
and several conversations begin alike, so that pairs of a file are not independent: what is split,
and what an interval draws, is the *opening*, all in front of the first reply. Pairs whose openings
have the same words are one group and fall on one side.
"""

import gzip
import hashlib
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from deepseek_jax.data import given, jsonl

REPLY = "\n\nAssistant:"
HH_RLHF = "hh_rlhf/harmless-base-test.jsonl.gz"
_WORD = re.compile(r"\w+")
_FIELDS = ("chosen", "rejected")
_GZIP_FAULTS = (gzip.BadGzipFile, EOFError, zlib.error)

# What is done with a pair that says nothing, or does not fit: named as an error, or left out.
Care = Literal["error", "leave_out"]


class Preference(NamedTuple):
    """One pair.

    Attributes:
      line: of the file, from 1.
      chosen: the dialogue with the preferred last reply.
      rejected: the other dialogue.
    """

    line: int
    chosen: str
    rejected: str


class Found(NamedTuple):
    """What reading a file gave.

    Attributes:
      pairs: in the order of the file.
      left_out: lines by the reason, "blank" or "equal".
      num_lines: of the file.
      sha256: of its content, uncompressed.
    """

    pairs: list[Preference]
    left_out: dict[str, list[int]]
    num_lines: int
    sha256: str


class Leaks(NamedTuple):
    """What stands on both sides of a split: openings, and whole dialogues."""

    openings: int
    texts: int


def locate(path: str | None) -> pathlib.Path:
    """The file of a path; HH-RLHF's in the folder of DEEPSEEK_JAX_DATA for None.

    Raises:
      FileNotFoundError: no such file, or the environment variable is not set.
      ValueError: a file that is called neither .jsonl nor .jsonl.gz.
    """
    if path is None:
        try:
            return given.find(HH_RLHF)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"files.pairs=None: {error}, or give files.pairs") from error
    if not path.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"files.pairs={path!r}: must be a .jsonl or .jsonl.gz file")
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"files.pairs={path!r}: no such file")
    return pathlib.Path(path)


def read(path: pathlib.Path, *, blank: Care, equal: Care) -> Found:
    """The pairs of a file; every line is one, or is named.

    Args:
      path: of `locate`.
      blank: what is done with a pair of which a side, or its last reply, has no text.
      equal: what is done with a pair whose sides are the same, up to blanks at the ends.

    Raises:
      ValueError: no whole gzip file, or a line that is not UTF-8, does not parse, is no object,
        lacks a field, holds something else than a string or a lone surrogate there, has no
        reply, or is of a kind that is an error; names the file and the line.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except _GZIP_FAULTS as error:
            raise ValueError(f"{path}: not a whole gzip file: {error}") from error
    lines = content.removesuffix(b"\n").split(b"\n")
    found = Found([], {}, len(lines), hashlib.sha256(content).hexdigest())
    cares = {"blank": blank, "equal": equal}
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        pair = Preference(number, *jsonl.fields_of(_utf8(line, where), fields=_FIELDS, where=where))
        reason, fault = _fault(pair, where=where)
        if reason is None:
            found.pairs.append(pair)
        elif cares[reason] == "error":
            raise ValueError(f'{where}: {fault}; pairs.{reason}="leave_out" leaves such pairs out')
        else:
            found.left_out.setdefault(reason, []).append(number)
    return found


def opening(text: str) -> str:
    """The words in front of a dialogue's first reply, in lower case, without punctuation.

    Of a dialogue that begins with a reply that is "": all such dialogues are one group.
    """
    return " ".join(_WORD.findall(text.partition(REPLY)[0].casefold()))


def groups(pairs: Sequence[Preference]) -> Int64[np.ndarray, " N"]:
    """Which group each pair is of.

    Pairs with a side of the same opening are of one group; where the sides of a pair open
    differently, their groups are one.

    Returns:
      numbers from 0, in an order of hashes of what the groups' dialogues begin with: neither the
      order of the lines nor a seed matters.
    """
    above: dict[str, str] = {}
    for pair in pairs:
        first, second = (_root(above, opening(text)) for text in (pair.chosen, pair.rejected))
        above[max(first, second)] = min(first, second)
    roots = [_root(above, opening(pair.chosen)) for pair in pairs]
    ordered = sorted(set(roots), key=lambda text: hashlib.sha256(text.encode("utf-8")).digest())
    numbers = {root: number for number, root in enumerate(ordered)}
    return np.array([numbers[root] for root in roots], np.int64)


def split(group_ids: Int64[np.ndarray, " N"], *, heldout_fraction: float) -> Bool[np.ndarray, " N"]:
    """Which pairs are held out: those of the first groups.

    Args:
      group_ids: of `groups`.
      heldout_fraction: share of the groups, rounded to whole ones, at least one.

    Raises:
      ValueError: fewer than two groups.
    """
    num_groups = len(np.unique(group_ids))
    if num_groups < 2:
        raise ValueError(
            f"{len(group_ids)} pairs of {num_groups} dialogue openings: at least two openings are "
            "needed, one of them to be held out"
        )
    num_heldout = min(max(1, round(heldout_fraction * num_groups)), num_groups - 1)
    return group_ids < num_heldout


def leaks(train: Iterable[str], heldout: Iterable[str]) -> Leaks:
    """What stands on both sides, counted from the dialogues alone, whatever split them."""
    sides = [set(train), set(heldout)]
    openings = [{opening(text) for text in side} for side in sides]
    return Leaks(len(openings[0] & openings[1]), len(sides[0] & sides[1]))


def _utf8(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: byte {error.start} of the line (0x{line[error.start]:02x}) is not UTF-8 "
            "text; convert the file to UTF-8"
        ) from error


def _fault(pair: Preference, *, where: str) -> tuple[str | None, str]:
    """Why a pair says nothing, in a word and in a sentence; None if it says something.

    Raises:
      ValueError: a side with text has no reply, so that its dialogue cannot be told.
    """
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    for field, text in sides.items():
        if not text.strip():
            return "blank", f"{field!r} has no text"
        if REPLY not in text:
            raise ValueError(
                f"{where}: {field!r} has no reply; expected turns that begin with "
                f'{json.dumps(REPLY)} and "\\n\\nHuman:"'
            )
        if not text.rpartition(REPLY)[2].strip():
            return "blank", f"the last reply of {field!r} has no text"
    if pair.chosen.strip() == pair.rejected.strip():
        return "equal", "'chosen' and 'rejected' are the same"
    return None, ""


def _root(above: dict[str, str], name: str) -> str:
    """What a name is joined to in the end; names are joined to smaller ones."""
    above.setdefault(name, name)
    while above[name] != name:
        name = above[name]
    return name
