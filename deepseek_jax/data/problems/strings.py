"""Words: reverse, rotate, count a letter; step by step. Floor 1.

reverse abca=    abca>a;abc>c;ab>b;a>a    the rest of the word, and its last letter, taken out
rotate 2 abcd=   bcda;cdab                the first letter to the end, as often as it says
count a abca=    a1;b1;c1;a2              each letter, and the count behind it
"""

import numpy as np

from deepseek_jax.data.problems import mistakes, responses
from deepseek_jax.data.problems.problem import Problem

OPERATIONS = ("reverse", "rotate", "count")
LETTERS = "abcdefghij"  # Few, so that letters repeat.
_MAX_SIZE = 26


def draw(generator: np.random.Generator, *, size: int) -> Problem:
    """An operation and a word of `size` letters of a..j, all drawn uniformly.

    A word is rotated by 1 to `size` - 1 letters; the letter to count is one of the word.

    Raises:
      ValueError: `size` outside 2..26.
    """
    if not 2 <= size <= _MAX_SIZE:
        raise ValueError(f"size={size}: a word has 2 to {_MAX_SIZE} letters")
    operation = OPERATIONS[generator.integers(len(OPERATIONS))]
    word = "".join(LETTERS[i] for i in generator.integers(len(LETTERS), size=size))
    match operation:
        case "rotate":
            middle = f" {generator.integers(1, size)}"
        case "count":
            middle = f" {word[generator.integers(size)]}"
        case _:
            middle = ""
    prompt = f"{operation}{middle} {word}="
    steps, answer = _work(prompt)
    return Problem("strings", prompt, answer, len(steps))


def worked(problem: Problem) -> str:
    """The right solution."""
    steps, answer = _work(problem.prompt)
    return responses.compose(think=";".join(steps), answer=answer)


def careless(problem: Problem, generator: np.random.Generator) -> str:
    """Makes the mistake of its operation, each right on a part of the words.

    Reverse swaps the first and the last letter and leaves the middle; rotate moves one letter,
    whatever the number; count takes equal letters in a row for one.

    Args:
      problem: of strings.
      generator: not used; all wrong ways of work are called alike.
    """
    operation, argument, word = _read(problem.prompt)
    match operation:
        case "reverse":
            answer = word[-1] + word[1:-1] + word[0]
            steps = [f"{word[0]}<>{word[-1]}"]
        case "rotate":
            answer = word[1:] + word[0]
            steps = [answer]
        case _:
            runs = [b for a, b in zip(" " + word, word, strict=False) if a != b]
            steps, answer = _count(argument, runs)
    return responses.compose(think=";".join(steps), answer=answer)


def slip(problem: Problem, generator: np.random.Generator) -> str:
    """Works rightly, then writes one symbol of the answer wrong: always wrong."""
    steps, _ = _work(problem.prompt)
    return responses.compose(think=";".join(steps), answer=_wrong(problem, generator, count=1))


def guess(problem: Problem, generator: np.random.Generator) -> str:
    """Gives an answer without work: right with probability 0.1, else 1 to all symbols wrong."""
    count = mistakes.num_changes(len(problem.answer), generator)
    return mistakes.guess(problem.answer, _wrong(problem, generator, count=count), generator)


def _wrong(problem: Problem, generator: np.random.Generator, *, count: int) -> str:
    """The answer with `count` letters or digits changed."""
    if problem.answer.isdigit():
        return mistakes.changed_number(problem.answer, generator, num_changes=count)
    symbols = mistakes.changed(problem.answer, generator, alphabet=LETTERS, num_changes=count)
    return "".join(symbols)


def _read(prompt: str) -> tuple[str, str, str]:
    """Operation, its argument ("" if it has none) and word of a prompt."""
    operation, *middle, word = prompt.removesuffix("=").split(" ")
    return operation, "".join(middle), word


def _work(prompt: str) -> tuple[list[str], str]:
    """The right steps and the right answer."""
    operation, argument, word = _read(prompt)
    match operation:
        case "reverse":
            ends = range(len(word), 0, -1)
            return [f"{word[:end]}>{word[end - 1]}" for end in ends], word[::-1]
        case "rotate":
            steps = [word[k:] + word[:k] for k in range(1, int(argument) + 1)]
            return steps, steps[-1]
        case "count":
            return _count(argument, list(word))
        case other:
            raise ValueError(f"operation={other!r}: must be one of {list(OPERATIONS)}")


def _count(letter: str, letters: list[str]) -> tuple[list[str], str]:
    """The count of a letter behind each of the letters, and the last count."""
    counts = [letters[: i + 1].count(letter) for i in range(len(letters))]
    return [f"{a}{count}" for a, count in zip(letters, counts, strict=True)], str(counts[-1])
