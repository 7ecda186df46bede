"""Descriptions of tasks in natural language: frames times objects, and free wordings. Floor 1.

A template of a task is one of its frames about one of the objects. Ten of each task, chosen by
hash, are held out: other sentences, of parts that the training has seen. `REWORDED` are
sentences of parts that it has not.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from deepseek_jax.data.steering.tasks import Task

NUM_HELDOUT = 10
NUM_OF_COMPOSITION = 50
# No description is longer; of ASCII, a token of the byte tokenizer each.
MAX_CHARACTERS = 80
_OBJECTS = ("the digits", "these digits", "all the digits", "the numbers", "the given digits")
_FRAMES = {
    "sum": (
        "add up {}",
        "sum {}",
        "total {}",
        "give the sum of {}",
        "find the total of {}",
        "compute the sum of {}",
        "what do {} add up to?",
        "tell me the sum of {}",
        "work out the total of {}",
        "return {} added together",
    ),
    "largest": (
        "give the largest of {}",
        "find the biggest of {}",
        "return the maximum of {}",
        "which of {} is the largest?",
        "pick the highest of {}",
        "tell me the greatest of {}",
        "what is the maximum of {}?",
        "take the largest among {}",
        "select the biggest of {}",
        "print the highest value among {}",
    ),
    "smallest": (
        "give the smallest of {}",
        "find the lowest of {}",
        "return the minimum of {}",
        "which of {} is the smallest?",
        "pick the least of {}",
        "tell me the smallest among {}",
        "what is the minimum of {}?",
        "take the lowest among {}",
        "select the smallest of {}",
        "print the lowest value among {}",
    ),
    "range": (
        "give the range of {}",
        "find the range of {}",
        "compute the spread of {}",
        "what is the range of {}?",
        "take the maximum minus the minimum of {}",
        "subtract the smallest of {} from the largest",
        "find the gap between the extremes of {}",
        "tell me the spread of {}",
        "work out the largest minus the smallest of {}",
        "return how far apart the extremes of {} are",
    ),
    "reverse": (
        "reverse {}",
        "write {} backwards",
        "flip the order of {}",
        "give {} in reverse order",
        "list {} from last to first",
        "turn {} around",
        "print {} back to front",
        "read {} from right to left",
        "spell {} in the opposite order",
        "mirror {}",
    ),
    "ascending": (
        "sort {} in ascending order",
        "order {} from smallest to largest",
        "arrange {} from low to high",
        "put {} in increasing order",
        "sort {} upwards",
        "list {} in rising order",
        "rank {} from the least to the greatest",
        "sort {} from small to big",
        "line {} up in ascending order",
        "give {} sorted, smallest first",
    ),
    "descending": (
        "sort {} in descending order",
        "order {} from largest to smallest",
        "arrange {} from high to low",
        "put {} in decreasing order",
        "sort {} downwards",
        "list {} in falling order",
        "rank {} from the greatest to the least",
        "sort {} from big to small",
        "line {} up in descending order",
        "give {} sorted, largest first",
    ),
    "rotate": (
        "rotate {} left by one",
        "move the first of {} to the end",
        "shift {} one place to the left",
        "cycle {} by one to the left",
        "take the first of {} and put it last",
        "rotate {} by one position",
        "send the first of {} to the back",
        "roll {} one step to the left",
        "begin with the second of {} and end with the first",
        "shift {} around by one place",
    ),
    "double": (
        "write each of {} twice",
        "repeat each of {}",
        "duplicate every one of {}",
        "double up each of {}",
        "print each of {} two times in a row",
        "say each of {} twice",
        "put a copy beside each of {}",
        "stutter {}",
        "give every one of {} twice",
        "show each of {} two times",
    ),
    "evens": (
        "keep only the even ones of {}",
        "drop the odd ones of {}",
        "remove every odd one of {}",
        "filter {} for even values",
        "list the even ones among {}",
        "leave out the odd ones of {}",
        "give just the even ones of {}",
        "delete the odd ones among {}",
        "select the even ones of {}",
        "strike the odd ones out of {}",
    ),
    "commas": (
        "separate {} with commas",
        "put commas between {}",
        "join {} with commas",
        "write {} as a comma-separated list",
        "insert a comma between {}",
        "format {} as comma-separated values",
        "list {} with commas in between",
        "print {} divided by commas",
        "type {} with a comma between neighbours",
        "place commas between {}",
    ),
    "brackets": (
        "put {} in square brackets",
        "wrap {} in brackets",
        "enclose {} in square brackets",
        "surround {} with brackets",
        "write {} inside brackets",
        "place brackets around {}",
        "add square brackets around {}",
        "format {} as a bracketed block",
        "bracket {}",
        "give {} between square brackets",
    ),
}
REWORDED = {
    "sum": (
        "how much is everything together?",
        "accumulate the entries",
        "the grand total, please",
    ),
    "largest": ("the top one, please", "which entry beats the rest?", "just the peak value"),
    "smallest": ("the bottom one, please", "which entry is the tiniest?", "the floor value"),
    "range": (
        "how wide do the entries scatter?",
        "top value less bottom value",
        "the distance from the least to the most",
    ),
    "reverse": ("last one first, please", "invert the sequence", "start at the end and walk back"),
    "ascending": ("climb from little to large", "grow as you go", "order: lowest entry leads"),
    "descending": ("step down from large to little", "shrink as you go", "order: top entry leads"),
    "rotate": (
        "let the head become the tail",
        "the front one goes behind the others",
        "turn the wheel by a notch",
    ),
    "double": ("make pairs of equal entries", "everything comes in twos", "clone every entry"),
    "evens": ("discard what two does not divide", "multiples of two only", "no odd entries"),
    "commas": ("make it a CSV line", "use , as the separator", "punctuate with a comma each time"),
    "brackets": ("use [ and ] as a frame", "box it in", "open with [ and close with ]"),
}


class Templates(NamedTuple):
    """The descriptions of one task to train on, and those held out."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def of_task(task: Task) -> Templates:
    """The templates of a task: at least 40 sentences, 10 of them held out."""
    if task.kind != "composition":
        sentences = [frame.format(what) for frame in _FRAMES[task.name] for what in _OBJECTS]
        return _split(sentences)
    first, second = (_FRAMES[name] for name in task.name.split("+"))
    sentences = [
        f"{frame.format(what).rstrip('?')}, then {then.format('them').rstrip('?')}"
        for frame in first
        for what in _OBJECTS
        for then in second
    ]
    short = [text for text in sentences if len(text) <= MAX_CHARACTERS]
    return _split(_by_hash(short)[:NUM_OF_COMPOSITION])


def _split(sentences: Sequence[str]) -> Templates:
    ordered = _by_hash(sentences)
    return Templates(tuple(ordered[NUM_HELDOUT:]), tuple(ordered[:NUM_HELDOUT]))


def _by_hash(sentences: Sequence[str]) -> list[str]:
    """In an order that looks drawn and is the same everywhere."""
    return sorted(sentences, key=lambda text: hashlib.sha256(text.encode("utf-8")).hexdigest())
