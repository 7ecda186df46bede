"""Unlabelled text: shares as asked, rightness as measured, the same for the same seed."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.data.problems import splits, tasks, unlabelled, verify
from deepseek_jax.data.problems.unlabelled import Shares

MIXED = Shares(worked=0.22, careless=0.33, guess=0.4, slip=0.05)


def make(name, seed, num_problems, shares):
    generator = np.random.default_rng(seed)
    task = tasks.task(name)
    problems = splits.draw_split(
        task.draw, generator, sizes=(3, 4), split="text", num_problems=num_problems
    )
    return problems, unlabelled.text(problems, generator, styles=task.styles, shares=shares)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_documents(name):
    problems, made = make(name, 0, 200, MIXED)
    assert collections.Counter(made.style_ids.tolist()) == {0: 44, 1: 66, 2: 80, 3: 10}
    assert (made.style_ids[:44] != 0).any()  # the styles are mixed
    for problem, document, right in zip(problems, made.documents, made.right, strict=True):
        assert document.startswith(problem.prompt)
        assert verify.is_right(problem, document.removeprefix(problem.prompt)) == right
    assert made.right[made.style_ids == 0].all()
    assert not made.right[made.style_ids == 3].any()
    by_style = [made.right[made.style_ids == i].sum() for i in range(4)]
    assert unlabelled.right_share(made) == sum(by_style) / 200
    _, again = make(name, 0, 200, MIXED)
    assert again.documents == made.documents
    _, other = make(name, 1, 200, MIXED)
    assert other.documents != made.documents


def test_the_share_of_right_documents():
    # A column of two digits gives no carry with probability 0.55, so that an addition of three
    # or four digits has none below the highest with 0.5 x (0.55^2 + 0.55^3) = 0.234; right are
    # 0.22 + 0.33 x 0.234 + 0.40 x 0.1 = 0.337. Five standard errors are 0.04.
    _, made = make("arithmetic", 0, 2000, MIXED)
    assert abs(unlabelled.right_share(made) - 0.337) < 0.04
    _, right = make("arithmetic", 0, 50, Shares(worked=1.0, careless=0.0, guess=0.0, slip=0.0))
    assert unlabelled.right_share(right) == 1.0
    _, wrong = make("arithmetic", 0, 50, Shares(worked=0.0, careless=0.0, guess=0.0, slip=1.0))
    assert unlabelled.right_share(wrong) == 0.0


@hypothesis.given(st.lists(st.integers(0, 20), min_size=4, max_size=4), st.integers(0, 30))
def test_counts_are_close_to_the_shares(weights, num_documents):
    total = sum(weights)
    hypothesis.assume(total)
    shares = Shares(*(weight / total for weight in weights))
    counts = unlabelled._counts(shares, num_documents)
    assert sum(counts) == num_documents
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - share * num_documents) < 1
        assert share or not count


@pytest.mark.parametrize(
    "shares",
    [
        Shares(0.5, 0.5, 0.5, 0.0),
        Shares(0.5, 0.4, 0.0, 0.0),
        Shares(1.5, -0.5, 0.0, 0.0),
        Shares(float("nan"), 0.5, 0.5, 0.0),
    ],
)
def test_shares_are_checked(shares):
    with pytest.raises(ValueError, match=r"Shares\(.*\): must be in \[0, 1\] and add up to 1"):
        make("lists", 0, 4, shares)
