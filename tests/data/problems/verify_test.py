"""Verifiers of responses: nothing is stripped, every task has one, no text raises."""

import hypothesis
import hypothesis.strategies as st
import pytest

from deepseek_jax.data.problems import responses, verify
from deepseek_jax.data.problems.problem import Problem

SUM = Problem("arithmetic", "5+7=", "12", 1)
PROBLEMS = [
    SUM,
    Problem("lists", "sort 2 1=", "1 2", 2),
    Problem("strings", "reverse ab=", "ba", 2),
    Problem("countdown", "3 7 25 -> 46=", "46", 2),
    Problem("gsm8k", "How many?\n", "1200", 1),
]
ANSWERS = ["12", "1 2", "ba", "25+3*7", "1,200.0"]


@pytest.mark.parametrize("i", range(len(PROBLEMS)))
def test_each_task_has_its_own_answer(i):
    for j, answer in enumerate(ANSWERS):
        for think in (None, "so"):
            text = responses.compose(think=think, answer=answer)
            assert verify.is_right(PROBLEMS[i], text) == (i == j)
            assert not verify.is_right(PROBLEMS[i], text + " ")
        assert not verify.is_right(PROBLEMS[i], answer)


@pytest.mark.parametrize(
    "answer", [" 12", "12 ", "012", "+12", "12.0", "1 2", "1", "123", "", "\uff11\uff12"]
)
def test_exact_is_exact(answer):
    text = responses.compose(think=None, answer=answer)
    assert not verify.exact(SUM, text)
    assert not verify.is_right(SUM, text)


def test_the_right_answer_must_be_the_only_one():
    assert verify.exact(SUM, "<think>5+7=12</think><answer>12</answer>")
    for text in (
        "<answer>12</answer><answer>13</answer>",
        "<answer>13</answer><answer>12</answer>",
        "<think><answer>13</answer></think><answer>12</answer>",
        "12<answer>12</answer>",
        "<answer>12",
    ):
        assert not verify.exact(SUM, text)


@hypothesis.given(
    st.sampled_from(PROBLEMS),
    st.lists(st.sampled_from([*responses.TAGS, *ANSWERS]) | st.text(max_size=8), max_size=7),
)
def test_no_text_raises(problem, pieces):
    assert verify.is_right(problem, "".join(pieces)) in (True, False)


def test_unknown_tasks():
    with pytest.raises(ValueError, match="task='sums': no verifier"):
        verify.is_right(SUM._replace(task="sums"), "")
