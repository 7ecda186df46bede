"""Preference pairs as rows of tokens: a right answer to a problem against a wrong one. Floor 6.

Sampled pairs are what the starting model drew, judged by the verifier; built pairs are written
in every style that a right and a wrong answer can have, so that what a reward model sees, and
what not, can be measured style by style.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from deepseek_jax.data.problems import arithmetic, responses, tasks, verify
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.data.tokenizers import Tokenizer
from deepseek_jax.reinforcement.drawing import Answers


class Pairs(NamedTuple):
    """N pairs as rows of tokens: begin token, prompt, answer, end token, padding.

    Attributes:
      chosen: rows of the right answers.
      chosen_lengths: their tokens.
      rejected: rows of the wrong answers.
      rejected_lengths: their tokens.
      problem_ids: which problem each pair is of; of people's preferences, which dialogue.
    """

    chosen: Int[np.ndarray, "N L"]
    chosen_lengths: Int[np.ndarray, " N"]
    rejected: Int[np.ndarray, "N L"]
    rejected_lengths: Int[np.ndarray, " N"]
    problem_ids: Int[np.ndarray, " N"]


class Styled(NamedTuple):
    """Answers to one problem by style, as texts."""

    right: dict[str, str]
    wrong: dict[str, str]


def take(pairs: Pairs, ids: Int[np.ndarray, " B"]) -> Pairs:
    """The pairs with these ids, in this order."""
    return Pairs(*(array[ids] for array in pairs))


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of the parts, in order."""
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def sampled(
    answers: Answers, generator: np.random.Generator, *, samples_per_prompt: int, limit: int
) -> Pairs:
    """Pairs of drawn answers: each right one with a wrong one of the same problem, drawn anew.

    Args:
      answers: those of problem i at [i * samples_per_prompt, (i + 1) * samples_per_prompt).
      generator: chooses.
      samples_per_prompt: answers of a problem.
      limit: pairs of one problem at most.

    Returns:
      The pairs; answers that were cut before their end are left out, and a problem without a
      right or without a wrong answer has none.
    """
    chosen, rejected, owners = [], [], []
    num_problems = len(answers.is_right) // samples_per_prompt
    for problem in range(num_problems):
        ids = np.arange(problem * samples_per_prompt, (problem + 1) * samples_per_prompt)
        ids = ids[answers.is_finished[ids]]
        right, wrong = ids[answers.is_right[ids]], ids[~answers.is_right[ids]]
        count = min(len(right), len(wrong), limit)
        chosen += generator.permutation(right)[:count].tolist()
        rejected += generator.permutation(wrong)[:count].tolist()
        owners += [problem] * count
    first, second = np.array(chosen, np.int64), np.array(rejected, np.int64)
    return Pairs(
        answers.tokens[first],
        answers.num_tokens[first],
        answers.tokens[second],
        answers.num_tokens[second],
        np.array(owners, np.int64),
    )


def styled(problem: Problem, generator: np.random.Generator) -> Styled:
    """Answers of every style, sorted by whether they are right."""
    styles = tasks.task(problem.task).styles
    direct = responses.compose(think=None, answer=problem.answer)
    texts = {
        "worked": styles.worked(problem),
        "careless": styles.careless(problem, generator),
        "direct": direct,
        "guess": styles.guess(problem, generator),
        "slip": styles.slip(problem, generator),
    }
    if problem.task == "arithmetic":
        texts["changed answer"] = arithmetic.changed_answer(problem, generator)
        texts["extra carry"] = arithmetic.extra_carry(problem)
    right = {name: text for name, text in texts.items() if verify.is_right(problem, text)}
    wrong = {name: text for name, text in texts.items() if name not in right}
    # A careless solution that is right reads like the worked one, and a right guess is direct.
    unique = {text: name for name, text in reversed(right.items())}
    return Styled({name: text for text, name in unique.items()}, wrong)


def built(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    generator: np.random.Generator,
    *,
    num_pairs: int,
    length: int,
) -> Pairs:
    """Pairs of a random right with a random wrong style, problems in turn.

    Args:
      problems: at least one.
      tokenizer: of the rows.
      generator: chooses.
      num_pairs: N.
      length: L.
    """
    made = _endless(problems, generator)
    texts = [next(made) for _ in range(num_pairs)]
    rows = [
        _rows([problems[owner].prompt + pair[side] for owner, pair in texts], tokenizer, length)
        for side in (0, 1)
    ]
    owners = np.array([owner for owner, _ in texts], np.int64)
    return Pairs(*rows[0], *rows[1], owners)


def by_kind(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    generator: np.random.Generator,
    *,
    length: int,
) -> dict[tuple[str, str], Pairs]:
    """Every pairing of a right with a wrong style that the problems have, each on its own."""
    texts: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for owner, problem in enumerate(problems):
        answers = styled(problem, generator)
        for right, first in answers.right.items():
            for wrong, second in answers.wrong.items():
                entry = (owner, problem.prompt + first, problem.prompt + second)
                texts.setdefault((right, wrong), []).append(entry)
    return {
        kinds: Pairs(
            *_rows([first for _, first, _ in entries], tokenizer, length),
            *_rows([second for _, _, second in entries], tokenizer, length),
            np.array([owner for owner, _, _ in entries], np.int64),
        )
        for kinds, entries in sorted(texts.items())
    }


def _endless(
    problems: Sequence[Problem], generator: np.random.Generator
) -> Iterator[tuple[int, tuple[str, str]]]:
    while True:
        for owner, problem in enumerate(problems):
            answers = styled(problem, generator)
            right, wrong = list(answers.right.values()), list(answers.wrong.values())
            yield (
                owner,
                (
                    right[generator.integers(len(right))],
                    wrong[generator.integers(len(wrong))],
                ),
            )


def documents(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Whole texts as tokens: begin token, text, end token."""
    return [
        [tokenizer.bos_id, *ids.tolist(), tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)
    ]


def rows(
    listed: Sequence[list[int]], *, length: int
) -> tuple[Int[np.ndarray, "N L"], Int[np.ndarray, " N"]]:
    """Documents as rows that padding fills up, and how many tokens each has; at most `length`."""
    filled = np.zeros((len(listed), length), np.int32)
    lengths = np.array([len(document) for document in listed], np.int32)
    for row, document in zip(filled, listed, strict=True):
        row[: len(document)] = document
    return filled, lengths


def _rows(
    texts: Sequence[str], tokenizer: Tokenizer, length: int
) -> tuple[Int[np.ndarray, "N L"], Int[np.ndarray, " N"]]:
    """Rows of whole documents and their lengths."""
    made = documents(texts, tokenizer)
    for text, document in zip(texts, made, strict=True):
        if len(document) > length:
            raise ValueError(
                f"rollout.max_new_tokens: {text!r} needs {len(document)} tokens of {length}"
            )
    return rows(made, length=length)
