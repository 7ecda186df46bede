"""Lists and words: hand numbers, the right answer by plain Python, who is right when."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.data.problems import lists, responses, strings, verify
from deepseek_jax.data.problems.problem import Problem

SEEDS = st.integers(0, 2**32)
GENERATOR = np.random.default_rng(0)  # careless takes one and draws nothing
MODULES = {"lists": lists, "strings": strings}
both = pytest.mark.parametrize("task", MODULES)


def draw(task, seed, size):
    generator = np.random.default_rng(seed)
    return MODULES[task].draw(generator, size=size), generator


def right(prompt):
    """The right answer, without steps."""
    operation, *middle, last = prompt.removesuffix("=").split(" ")
    match operation, middle:
        case "sort", _:
            return " ".join(sorted([*middle, last]))
        case "reverse", []:
            return "".join(reversed(last))
        case "reverse", _:
            return " ".join([*middle, last][::-1])
        case "unique", _:
            return " ".join(dict.fromkeys([*middle, last]))
        case "rotate", [count]:
            return last[int(count) :] + last[: int(count)]
        case "count", [letter]:
            return str(last.count(letter))


@pytest.mark.parametrize(
    ("prompt", "worked", "careless"),
    [
        ("sort 5 3 9=", "5 3 9>3;5 9>5;9>9:3 5 9", "5 3 9>3;5 9>5;9>9:3 5 9"),
        ("sort 5 3 3=", "5 3 3>3;5 3>3;5>5:3 3 5", "5 3 3>3;5>5:3 5"),
        ("reverse 5 3 9 1=", "5 3 9 1>1;5 3 9>9;5 3>3;5>5:1 9 3 5", "5<>1:1 3 9 5"),
        ("unique 5 3 5=", "5:5;3:5 3;5:5 3:5 3", "5:5;3:5 3;5:5 3 5:5 3 5"),
        ("unique 5 5 3=", "5:5;5:5;3:5 3:5 3", "5:5;5:5;3:5 3:5 3"),
        ("reverse abca=", "abca>a;abc>c;ab>b;a>a:acba", "a<>a:abca"),
        ("rotate 2 abcd=", "bcda;cdab:cdab", "bcda:bcda"),
        ("count a abaa=", "a1;b1;a2;a3:3", "a1;b1;a2:2"),
    ],
)
def test_hand_numbers(prompt, worked, careless):
    task = "lists" if prompt.split(" ")[-2].isdigit() and prompt[-2].isdigit() else "strings"
    problem = Problem(task, prompt, right(prompt), 1)
    module = MODULES[task]
    for text, want in (
        (module.worked(problem), worked),
        (module.careless(problem, GENERATOR), careless),
    ):
        think, _, answer = want.rpartition(":")
        assert responses.parse(text) == (think, answer)


@both
@hypothesis.given(SEEDS, st.integers(2, 9))
def test_laws(task, seed, size):
    problem, generator = draw(task, seed, size)
    module = MODULES[task]
    assert problem.task == task and problem.answer == right(problem.prompt)
    assert draw(task, seed, size)[0] == problem
    assert verify.is_right(problem, module.worked(problem))
    assert responses.parse(module.worked(problem)).think.count(";") == problem.num_steps - 1
    assert responses.has_format(module.careless(problem, generator))
    assert not verify.is_right(problem, module.slip(problem, generator))
    assert responses.has_format(module.slip(problem, generator))
    assert responses.parse(module.guess(problem, generator)).think is None


@hypothesis.given(SEEDS, st.integers(2, 9))
def test_careless_is_right_exactly_when_it_says(seed, size):
    problem, _ = draw("lists", seed, size)
    operation, *numbers = problem.prompt.removesuffix("=").split(" ")
    match operation:
        case "sort":
            want = len(set(numbers)) == size
        case "reverse":
            want = numbers[1:-1] == numbers[1:-1][::-1]
        case _:
            runs = [b for a, b in zip([None, *numbers], numbers, strict=False) if a != b]
            want = len(runs) == len(set(numbers))
    assert verify.is_right(problem, lists.careless(problem, GENERATOR)) == want


@both
def test_every_operation_is_drawn_and_every_mistake_made(task):
    generator = np.random.default_rng(1)
    module = MODULES[task]
    seen = {}
    for _ in range(300):
        problem = module.draw(generator, size=5)
        operation = problem.prompt.split(" ")[0]
        is_right = verify.is_right(problem, module.careless(problem, generator))
        seen.setdefault(operation, set()).add(is_right)
    assert set(seen) == set(module.OPERATIONS)
    assert all(rights == {True, False} for rights in seen.values())
    rights = [verify.is_right(problem, module.guess(problem, generator)) for _ in range(2000)]
    assert abs(np.mean(rights) - 0.1) < 0.034  # five standard errors


@pytest.mark.parametrize(("task", "size"), [("lists", 0), ("strings", 1), ("strings", 27)])
def test_sizes(task, size):
    with pytest.raises(ValueError, match=f"size={size}: "):
        draw(task, 0, size)


@both
def test_unknown_operations(task):
    with pytest.raises(ValueError, match="operation='shuffle': must be one of"):
        MODULES[task].worked(Problem(task, "shuffle 1 2=", "", 1))
