"""Preference pairs: right against wrong, by hand and by the verifier."""

import numpy as np
import pytest

from deepseek_jax.data import tokenizers
from deepseek_jax.data.problems import tasks, verify
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.reinforcement import drawing, pairs

TOKENIZER = tokenizers.tagged_bytes_tokenizer()
CARRY = Problem("arithmetic", "58+67=", "125", 3)  # 8 + 7 and 5 + 6 + 1: careless is wrong
PLAIN = Problem("arithmetic", "12+34=", "46", 2)  # careless is right
LENGTH = 40


def _generator(seed=0):
    return np.random.default_rng(seed)


def _answers(is_right, is_finished=None):
    """Rows that hold their own number, four answers a problem."""
    is_right = np.array(is_right, bool)
    count = len(is_right)
    is_finished = np.ones(count, bool) if is_finished is None else np.array(is_finished, bool)
    return drawing.Answers(
        tokens=np.arange(count, dtype=np.int32)[:, None] * np.ones((1, 3), np.int32),
        num_tokens=np.arange(count, dtype=np.int32) % 3 + 1,
        responses=np.zeros((count, 2), np.int32),
        lengths=np.zeros(count, np.int32),
        is_right=is_right,
        has_format=np.zeros(count, bool),
        is_finished=is_finished,
    )


def _sampled(answers, *, limit=4):
    made = pairs.sampled(answers, _generator(), samples_per_prompt=4, limit=limit)
    assert made.chosen_lengths.tolist() == (made.chosen[:, 0] % 3 + 1).tolist()
    assert made.rejected_lengths.tolist() == (made.rejected[:, 0] % 3 + 1).tolist()
    return made.chosen[:, 0].tolist(), made.rejected[:, 0].tolist(), made.problem_ids.tolist()


def test_right_against_wrong_of_the_same_problem():
    # Problem 0: 0 and 2 are right; 1: all are; 2: none is; 3: 13 alone.
    right = [1, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    chosen, rejected, owners = _sampled(_answers(right))
    assert owners == [0, 0, 3]
    assert sorted(chosen) == [0, 2, 13] and set(rejected[:2]) == {1, 3}
    assert rejected[2] in (12, 14, 15)


def test_at_most_so_many_pairs_of_a_problem():
    chosen, rejected, owners = _sampled(_answers([1, 1, 0, 0] * 2), limit=1)
    assert owners == [0, 1] and chosen[0] in (0, 1) and rejected[1] in (6, 7)


def test_cut_answers_are_left_out():
    finished = [1, 1, 0, 0, 0, 1, 1, 1]
    chosen, rejected, owners = _sampled(_answers([1, 0, 1, 0, 1, 0, 0, 0], finished))
    assert (chosen, rejected, owners) == ([0], [1], [0])


def test_no_pairs_at_all():
    assert _sampled(_answers([0] * 8)) == ([], [], [])


@pytest.mark.parametrize("task", tasks.NAMES)
def test_styles_are_sorted_by_the_verifier(task):
    generator = _generator(1)
    for _ in range(20):
        size = int(generator.integers(2, 4))
        problem = tasks.task(task).draw(generator, size=size)
        styled = pairs.styled(problem, generator)
        assert all(verify.is_right(problem, text) for text in styled.right.values())
        assert not any(verify.is_right(problem, text) for text in styled.wrong.values())
        assert "worked" in styled.right and "slip" in styled.wrong
        assert len(set(styled.right.values())) == len(styled.right)


def test_styles_of_additions():
    styled = pairs.styled(CARRY, _generator(1))
    assert set(styled.right) <= {"worked", "direct"} and "worked" in styled.right
    assert {"careless", "slip", "changed answer", "extra carry"} <= set(styled.wrong)
    plain = pairs.styled(PLAIN, _generator(1))
    assert "careless" not in plain.wrong and "careless" not in plain.right  # it is the worked one
    assert plain.right["direct"] == "<answer>46</answer>"


def _texts(rows, lengths):
    """What rows hold between the begin token and the end token."""
    texts = []
    for row, length in zip(rows, lengths, strict=True):
        assert row[0] == TOKENIZER.bos_id and row[length - 1] == TOKENIZER.eos_id
        assert not row[length:].any()
        texts.append(TOKENIZER.decode(row[1 : length - 1]))
    return texts


def _check(made, problems):
    """Every chosen answer is right, every rejected one is wrong."""
    for side, expected in ((0, True), (1, False)):
        rows, lengths = (made.chosen, made.chosen_lengths, made.rejected, made.rejected_lengths)[
            2 * side : 2 * side + 2
        ]
        for owner, text in zip(made.problem_ids, _texts(rows, lengths), strict=True):
            problem = problems[owner]
            assert text.startswith(problem.prompt)
            assert verify.is_right(problem, text.removeprefix(problem.prompt)) == expected, text


def test_built_pairs_are_right_against_wrong():
    made = pairs.built([CARRY, PLAIN], TOKENIZER, _generator(), num_pairs=31, length=LENGTH)
    assert made.problem_ids.tolist() == [0, 1] * 15 + [0]
    _check(made, [CARRY, PLAIN])
    assert len(set(_texts(made.chosen, made.chosen_lengths))) == 4  # worked and direct of both
    assert len(set(_texts(made.rejected, made.rejected_lengths))) > 10


def test_every_pairing_of_styles():
    problems = [CARRY, PLAIN, Problem("arithmetic", "99+99=", "198", 3)]
    made = pairs.by_kind(problems, TOKENIZER, _generator(), length=LENGTH)
    rights = {right for right, _ in made}
    wrongs = {wrong for _, wrong in made}
    assert rights <= {"worked", "careless", "direct", "guess"} and {"worked", "direct"} <= rights
    assert {"careless", "guess", "slip", "changed answer", "extra carry"} >= wrongs
    for listed in made.values():
        _check(listed, problems)
    # Careless work is wrong on two of the three.
    assert made["worked", "careless"].problem_ids.tolist() == [0, 2]
    assert made["worked", "slip"].problem_ids.tolist() == [0, 1, 2]


def test_a_row_that_is_too_short_is_named():
    with pytest.raises(ValueError, match=r"rollout.max_new_tokens: '58\+67=.*needs .* tokens of 9"):
        pairs.built([CARRY], TOKENIZER, _generator(), num_pairs=1, length=9)


def test_parts_are_joined_and_taken_in_order():
    one = pairs.built([CARRY, PLAIN], TOKENIZER, _generator(), num_pairs=3, length=LENGTH)
    two = pairs.built([PLAIN], TOKENIZER, _generator(1), num_pairs=2, length=LENGTH)
    made = pairs.joined([one, two])
    assert len(made.chosen) == 5
    last = pairs.take(made, np.array([4, 0]))
    np.testing.assert_array_equal(last.chosen, [two.chosen[1], one.chosen[0]])
    np.testing.assert_array_equal(last.rejected_lengths[1], one.rejected_lengths[0])
