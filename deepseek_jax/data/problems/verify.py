"""Verifiers: whether a response solves a problem, decided without a model. Floor 1."""

from deepseek_jax.data.problems import countdown, gsm8k, responses
from deepseek_jax.data.problems.problem import Problem


def exact(problem: Problem, text: str) -> bool:
    """Whether a response has the format and its answer is the right one, letter by letter.

    Nothing is stripped: " 12" and "012" are wrong where 12 is right. `ops.answers.is_right` says
    the same of arrays.
    """
    response = responses.parse(text)
    return response is not None and response.answer == problem.answer


def is_right(problem: Problem, text: str) -> bool:
    """Whether a response has the format and solves the problem, as its task decides that.

    Never raises for any text.

    Raises:
      ValueError: the problem is of no known task.
    """
    response = responses.parse(text)
    match problem.task:
        case "arithmetic" | "lists" | "strings":
            return exact(problem, text)
        case "countdown":
            return response is not None and countdown.verify(problem, response.answer)
        case "gsm8k":
            return response is not None and gsm8k.verify(problem, response.answer)
        case other:
            raise ValueError(f"task={other!r}: no verifier for it")
