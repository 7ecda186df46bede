"""Identities of problems: trivial twins have one, other problems another."""

import pytest

from deepseek_jax.data.problems import problem as problem_lib
from deepseek_jax.data.problems.problem import Problem


def key(task, prompt):
    return problem_lib.key(Problem(task, prompt, "?", 1))


@pytest.mark.parametrize(
    ("task", "prompt", "twin", "other"),
    [
        ("arithmetic", "941+367=", "367+941=", "941+368="),
        ("arithmetic", "9+11=", "11+9=", "91+1="),
        ("countdown", "3 7 25 -> 46=", "25 3 7 -> 46=", "3 7 25 -> 47="),
        ("countdown", "3 7 25 -> 46=", "7 25 3 -> 46=", "3 7 7 -> 46="),
        ("lists", "sort 5 3 9=", "sort 9 5 3=", "sort 5 3 3="),
        ("lists", "unique 5 3 9=", "unique 3 5 9=", "sort 5 3 9="),
        ("strings", "reverse abc=", "reverse cba=", "reverse abb="),
        ("strings", "rotate 1 abc=", "rotate 2 cba=", "reverse abc="),
        ("strings", "count a abca=", "count b abac=", "count a abcb="),
        ("gsm8k", "Two eggs,\n three?\n", "two eggs, three?\n", "Two eggs, four?\n"),
    ],
)
def test_twins(task, prompt, twin, other):
    assert key(task, prompt) == key(task, twin)
    assert key(task, prompt) != key(task, other)


def test_hand_keys():
    assert key("arithmetic", "941+367=") == "arithmetic 367 941"
    assert key("countdown", "25 3 7 -> 46=") == "countdown 3 7 25 -> 46"


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("addition", "1+1="),
        ("arithmetic", "1+1"),
        ("arithmetic", "1+a="),
        ("countdown", "1 2 46="),
        ("lists", "sort="),
        ("strings", ""),
        ("gsm8k", " \n"),
    ],
)
def test_what_is_no_problem(task, prompt):
    with pytest.raises(ValueError):
        key(task, prompt)
