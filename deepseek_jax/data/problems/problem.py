"""Problem: a prompt, its right answer, and the identity by which splits are made. Floor 1."""

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One problem.

    Attributes:
      task: "arithmetic", "countdown", "lists", "strings" or "gsm8k"; decides who verifies.
      prompt: what a model is given; ends with "=" in all tasks but gsm8k.
      answer: the right answer as text; in countdown the target, which many expressions reach.
      num_steps: steps of the worked solution, e.g. the columns of an addition.
    """

    task: str
    prompt: str
    answer: str
    num_steps: int


def key(problem: Problem) -> str:
    """The identity of a problem: trivial twins share it, so that they fall in one split.

    An addition is the unordered pair of its numbers, a countdown the multiset of its numbers
    and the target; of lists and words it is what is to be done, and the multiset of the numbers
    or letters, whatever the letter to count or how far to rotate; a question of gsm8k is itself
    without regard to blanks and case.

    Returns:
      The task and the canonical form; equal keys mean twins.

    Raises:
      ValueError: an unknown task, or a prompt that is not of its task.
    """
    task, prompt = problem.task, problem.prompt
    words = prompt.removesuffix("=").split(" ")
    parts: Sequence[object]
    match task:
        case "arithmetic" if prompt.endswith("=") and prompt.count("+") == 1:
            parts = sorted(int(number) for number in words[0].split("+"))
        case "countdown" if prompt.endswith("=") and words[-2:-1] == ["->"]:
            parts = [*sorted(map(int, words[:-2])), "->", words[-1]]
        case "lists" if prompt.endswith("=") and len(words) >= 2:
            parts = [words[0], *sorted(map(int, words[1:]))]
        case "strings" if prompt.endswith("=") and len(words) >= 2:
            parts = [words[0], *sorted(words[-1])]
        case "gsm8k" if prompt.strip():
            parts = prompt.casefold().split()
        case _:
            raise ValueError(f"{problem}: no problem of a known task")
    return " ".join([task, *map(str, parts)])
