"""Mistakes that all tasks share: symbols of an answer changed, answers guessed. Floor 1."""

from collections.abc import Sequence

import numpy as np

from deepseek_jax.data.problems import responses

RIGHT_GUESSES = 0.1  # The probability that a guess is right.


def changed(
    symbols: Sequence[str],
    generator: np.random.Generator,
    *,
    alphabet: Sequence[str],
    num_changes: int,
) -> list[str]:
    """The symbols with some of them replaced by others of the alphabet.

    Args:
      symbols: e.g. the digits of a number.
      generator: draws the places and what is put there.
      alphabet: what a symbol may become.
      num_changes: how many places change, each to another symbol than it held.

    Returns:
      As many symbols, different in exactly `num_changes` places.
    """
    result = list(symbols)
    for place in generator.choice(len(symbols), size=num_changes, replace=False):
        others = [symbol for symbol in alphabet if symbol != symbols[place]]
        result[place] = others[generator.integers(len(others))]
    return result


def changed_number(number: str, generator: np.random.Generator, *, num_changes: int) -> str:
    """The digits of a whole number, some of them changed; the first one never to 0."""
    while True:
        digits = changed(number, generator, alphabet="0123456789", num_changes=num_changes)
        if digits[0] != "0" or len(digits) == 1:
            return "".join(digits)


def num_changes(num_symbols: int, generator: np.random.Generator) -> int:
    """How many symbols of a wrong guess are wrong: 1 to all of them, uniformly."""
    return int(generator.integers(1, num_symbols + 1))


def guess(right: str, wrong: str, generator: np.random.Generator) -> str:
    """A response without work: right with probability `RIGHT_GUESSES`, else wrong."""
    is_lucky = generator.random() < RIGHT_GUESSES
    return responses.compose(think=None, answer=right if is_lucky else wrong)
