"""Expressions of whole numbers: a small parser that computes exactly and never raises. Floor 1.

  sum     = product { ("+" | "-") product }
  product = factor { ("*" | "/") factor }
  factor  = number | "(" sum ")"

There are no signs, blanks, powers or names; a number is ASCII digits without leading zeros.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 64
MAX_DIGITS = 6  # of a number

_PART = re.compile(r"(?:0|[1-9][0-9]*)|[-+*/()]", re.ASCII)


class Expression(NamedTuple):
    """An expression that was read.

    Attributes:
      value: exact.
      numbers: as they stand in it, from left to right.
    """

    value: Fraction
    numbers: tuple[int, ...]


def parse(text: str) -> Expression | None:
    """Reads and computes an expression.

    Returns:
      None if the text is no expression, is longer than `MAX_CHARACTERS`, has a number of more
      than `MAX_DIGITS` digits, or divides by zero.
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return None
    parts = split(text)
    digits = [part for part in parts if part[0].isdigit()]
    if "".join(parts) != text or any(len(part) > MAX_DIGITS for part in digits):
        return None
    try:
        value, end = _sum(parts, 0)
    except (_NotAnExpression, ZeroDivisionError):
        return None
    return Expression(value, tuple(map(int, digits))) if end == len(parts) else None


def split(text: str) -> list[str]:
    """The numbers, signs and brackets of an expression, from left to right."""
    return _PART.findall(text)


class _NotAnExpression(Exception):  # noqa: N818
    """Parts that the grammar doesn't have."""


def _sum(parts: list[str], start: int) -> tuple[Fraction, int]:
    """The value of the longest sum from `start` on, and the index behind it."""
    value, end = _product(parts, start)
    while parts[end : end + 1] in (["+"], ["-"]):
        other, behind = _product(parts, end + 1)
        value = value + other if parts[end] == "+" else value - other
        end = behind
    return value, end


def _product(parts: list[str], start: int) -> tuple[Fraction, int]:
    """The value of the longest product from `start` on, and the index behind it."""
    value, end = _factor(parts, start)
    while parts[end : end + 1] in (["*"], ["/"]):
        other, behind = _factor(parts, end + 1)
        value = value * other if parts[end] == "*" else value / other
        end = behind
    return value, end


def _factor(parts: list[str], start: int) -> tuple[Fraction, int]:
    """The value of the number or bracket at `start`, and the index behind it."""
    match parts[start : start + 1]:
        case ["("]:
            value, end = _sum(parts, start + 1)
            if parts[end : end + 1] == [")"]:
                return value, end + 1
        case [part] if part[0].isdigit():
            return Fraction(int(part)), start + 1
    raise _NotAnExpression
