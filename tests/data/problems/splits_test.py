"""Splits: stable, disjoint, of the shares they should have."""

import collections
import hashlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.data.problems import arithmetic, lists, splits, tasks
from deepseek_jax.data.problems import problem as problem_lib
from deepseek_jax.data.problems.problem import Problem


def draw_split(name, seed, split, *, sizes=(4, 5), num_problems=20):
    return splits.draw_split(
        tasks.task(name).draw,
        np.random.default_rng(seed),
        sizes=sizes,
        split=split,
        num_problems=num_problems,
    )


def test_hand_numbers():
    """A change of the hash or of a key would move problems from training to the test."""
    known = {"941+367=": "text", "100+200=": "reward", "4+4=": "policy"}
    for prompt, want in known.items():
        assert splits.split_of(Problem("arithmetic", prompt, "", 1)) == want
    ends = {"text": 80, "reward": 86, "policy": 94, "validation": 96, "test": 100}
    for i in range(300):
        key = f"lists sort {i % 10} {i // 10}"  # the first is the smaller, as a key has it
        if i % 10 <= i // 10:
            percent = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100
            want = next(name for name, end in ends.items() if percent < end)
            assert splits.split_of(Problem("lists", f"sort {i // 10} {i % 10}=", "", 2)) == want


def test_shares():
    generator = np.random.default_rng(0)
    drawn = [splits.split_of(arithmetic.draw(generator, size=6)) for _ in range(5000)]
    counts = collections.Counter(drawn)
    want = {"text": 0.80, "reward": 0.06, "policy": 0.08, "validation": 0.02, "test": 0.04}
    assert set(counts) == set(splits.SPLITS) == set(want)
    for name, share in want.items():
        assert abs(counts[name] / 5000 - share) < 5 * (share * (1 - share) / 5000) ** 0.5


@pytest.mark.parametrize("name", tasks.NAMES)
@hypothesis.given(st.integers(0, 2**32))
@hypothesis.settings(max_examples=6)
@pytest.mark.deep
def test_splits_are_disjoint(name, seed):
    keys = {}
    for split in splits.SPLITS:
        problems = draw_split(name, seed, split)
        assert problems == draw_split(name, seed, split)
        assert len(problems) == 20
        assert all(splits.split_of(problem) == split for problem in problems)
        keys[split] = {problem_lib.key(problem) for problem in problems}
        assert len(keys[split]) == 20
    assert len(set().union(*keys.values())) == 20 * len(splits.SPLITS)


def test_sizes_are_uniform():
    problems = draw_split("arithmetic", 0, "text", sizes=(2, 3, 5), num_problems=600)
    counts = collections.Counter(problem.prompt.index("+") for problem in problems)
    assert set(counts) == {2, 3, 5}
    assert all(abs(count - 200) < 60 for count in counts.values())  # five standard errors


def test_a_space_that_is_used_up():
    generator = np.random.default_rng(0)
    drawn = [lists.draw(generator, size=1) for _ in range(400)]
    keys = {problem_lib.key(p) for p in drawn if splits.split_of(p) == "text"}
    assert 20 <= len(keys) < 30  # of 3 operations on 10 numbers
    problems = draw_split("lists", 0, "text", sizes=(1,), num_problems=len(keys))
    assert {problem_lib.key(problem) for problem in problems} == keys
    match = rf"lists of size 1 has no more than {len(keys)} of the {len(keys) + 1} problems"
    with pytest.raises(ValueError, match=match):
        draw_split("lists", 0, "text", sizes=(1,), num_problems=len(keys) + 1)


def test_errors():
    with pytest.raises(ValueError, match="split='train': must be one of"):
        draw_split("lists", 0, "train")
    with pytest.raises(ValueError, match="at least one size"):
        draw_split("lists", 0, "text", sizes=())
    with pytest.raises(ValueError, match="task='gsm8k': must be one of"):
        tasks.task("gsm8k")
