"""Countdown: what the verifier takes and refuses, and who is right when."""

import re
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.data.problems import countdown, expressions, responses, verify
from deepseek_jax.data.problems.problem import Problem

HAND = Problem("countdown", "3 7 25 -> 46=", "46", 2)
SEEDS = st.integers(0, 2**32)
SIZES = st.integers(2, 5)
EXPRESSIONS = st.recursive(
    st.integers(0, 12).map(str),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join) | inner.map("({})".format)
    ),
    max_leaves=8,
)
TEXTS = st.text(max_size=80) | st.text("0123456789+-*/() ", max_size=80)


def draw(seed, size):
    generator = np.random.default_rng(seed)
    return countdown.draw(generator, size=size), generator


@pytest.mark.parametrize("answer", ["25+3*7", "3*7+25", "(7*3)+25", "((25))+7*3", "(25+7*(3))"])
def test_right_answers(answer):
    assert countdown.verify(HAND, answer)


def test_exact_arithmetic():
    # 8 / (3 - 8 / 3) = 24, through thirds.
    fractions = Problem("countdown", "3 3 8 8 -> 24=", "24", 3)
    assert countdown.verify(fractions, "8/(3-8/3)")
    # Signs of one rank go from left to right; a value on the way may be below 0.
    left = Problem("countdown", "2 3 4 -> 3=", "3", 2)
    assert countdown.verify(left, "2-3+4")
    assert not countdown.verify(left, "4-(3-2)*1")
    assert expressions.parse("8/4/2").value == 1
    assert expressions.parse("8-4-2").value == 2
    assert expressions.parse("2+3*4").value == 14
    assert expressions.parse("(2+3)*4").value == 20
    assert expressions.parse("1/3").value == Fraction(1, 3)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "46",
        "25+3*7=46",
        "25 + 3*7",
        " 25+3*7",
        "25+3*7\n",
        "25+21",
        "25+3*7+0",
        "25+3*7*1",
        "25+7+7+7",
        "25+03*7",
        "+25+3*7",
        "25+3*+7",
        "25--3*7",
        "-(-25)+3*7",
        "25+3**7",
        "25+3//7",
        "25+3x7",
        "25+3*7.0",
        "2_5+3*7",
        "25+3\u00d77",
        "\uff12\uff15+3*7",
        "\u0662\u0665+3*7",
        "25+(3*7",
        "25+3*7)",
        "25+3(7)",
        "()25+3*7",
        "25,3,7",
        "25/(3-3)+7",
        "__import__('os')",
        "25+3*7 if 1 else 0",
        "(" * 29 + "25+3*7" + ")" * 30,
        "(" * 30 + "25+3*7" + ")" * 30,
        "9" * 64,
        "((((((((((" * 1000,
        "25+3*7\0",
        None,
    ],
)
def test_wrong_answers(answer):
    assert countdown.verify(HAND, answer) is False


def test_division_by_zero():
    problem = Problem("countdown", "2 2 5 -> 5=", "5", 2)
    assert not countdown.verify(problem, "5/(2-2)")
    assert expressions.parse("1/0") is None
    assert expressions.parse("0/1").value == 0


def test_limits_of_an_expression():
    nested = "(" * 31 + "25" + ")" * 31
    assert len(nested) == expressions.MAX_CHARACTERS
    assert expressions.parse(nested).numbers == (25,)
    assert expressions.parse("(" + nested + ")") is None
    assert expressions.parse("999999").value == 999999
    assert expressions.parse("1000000") is None


@hypothesis.given(TEXTS)
def test_no_text_raises(text):
    assert countdown.verify(HAND, text) in (True, False)


@hypothesis.given(EXPRESSIONS | st.text("0123456789+-*/()", max_size=12))
def test_values_are_those_of_python(text):
    expression = expressions.parse(text)
    # Whole numbers as fractions, so that Python is exact too.
    exact = "".join(f"F({p})" if p.isdigit() else p for p in expressions.split(text))
    if expression is not None:
        assert expression.value == eval(exact, {"F": Fraction})
        return
    # Python has more in its grammar: signs in front, "**", "//" and calls.
    own = re.search(r"(^|[-+*/(])[-+*/]|[0-9)]\(|\)[0-9]|\(\)|^$|0[0-9]", text)
    if own is None and len(text) <= expressions.MAX_CHARACTERS:
        with pytest.raises((ZeroDivisionError, SyntaxError)):
            eval(exact, {"F": Fraction})


@hypothesis.given(SEEDS, SIZES)
def test_laws(seed, size):
    problem, generator = draw(seed, size)
    assert draw(seed, size)[0] == problem
    numbers, target = problem.prompt.removesuffix("=").split(" -> ")
    assert len(numbers.split(" ")) == size and problem.num_steps == size - 1
    assert problem.answer == target and 1 <= int(target) <= countdown.MAX_VALUE
    text = countdown.worked(problem)
    assert verify.is_right(problem, text)
    steps = responses.parse(text).think.split(";")
    assert len(steps) == problem.num_steps and steps[-1].endswith(f"={target}")
    for step in steps:
        left, right = step.split("=")
        assert expressions.parse(left).value == int(right)
    assert not verify.is_right(problem, countdown.slip(problem, generator))
    assert responses.parse(countdown.guess(problem, generator)).think is None
    # The verifier wants an expression, not the target.
    assert not verify.is_right(problem, responses.compose(think=None, answer=problem.answer))


@hypothesis.given(SEEDS, SIZES)
def test_careless_is_right_exactly_when_plus_and_minus_reach_it(seed, size):
    problem, generator = draw(seed, size)
    numbers, target = problem.prompt.removesuffix("=").split(" -> ")
    first, *others = map(int, numbers.split(" "))
    reached = {first}
    for number in others:
        reached = {v for r in reached for v in (r + number, r - number) if v >= 0}
    response = countdown.careless(problem, generator)
    assert responses.has_format(response)
    assert verify.is_right(problem, response) == (int(target) in reached)


def test_hand_numbers_of_careless_work():
    generator = np.random.default_rng(0)
    # 3-7+5 would reach 1, through a number below 0.
    problem = Problem("countdown", "3 7 5 -> 1=", "1", 2)
    want = "<think>3+7=10;10-5=5</think><answer>3+7-5</answer>"
    assert countdown.careless(problem, generator) == want
    assert countdown.worked(HAND) == "<think>7*3=21;25+21=46</think><answer>25+7*3</answer>"


def test_a_slip_is_one_other_number():
    generator = np.random.default_rng(0)
    for _ in range(300):
        numbers = expressions.parse(responses.parse(countdown.slip(HAND, generator)).answer).numbers
        assert sum(a != b for a, b in zip(numbers, (25, 7, 3), strict=True)) == 1
        assert all(1 <= number <= countdown.MAX_NUMBER for number in numbers)


def test_guesses_are_right_with_probability_a_tenth():
    problem, generator = draw(3, 3)
    rights = [verify.is_right(problem, countdown.guess(problem, generator)) for _ in range(2000)]
    assert abs(np.mean(rights) - 0.1) < 0.034  # five standard errors


def test_errors():
    for size in (1, 6):
        with pytest.raises(ValueError, match=f"size={size}: a countdown has"):
            draw(0, size)
    with pytest.raises(ValueError, match="has no solution"):
        countdown.worked(Problem("countdown", "1 1 -> 9=", "9", 1))
