"""The files of the first stage: the same for the same seed, disjoint, and never changed."""

import json

import pytest

from deepseek_jax.data.problems import problem, splits, verify
from deepseek_jax.reinforcement import problem_files
from tests.reinforcement import tiny

MIXED = {"share_worked": 0.25, "share_careless": 0.25, "share_guess": 0.25, "share_slip": 0.25}
SPLITS = ("reward", "policy", "validation", "test")


def _contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.json*"))}


def test_same_seed_same_files(tmp_path):
    one = tiny.write_problems(tmp_path / "one", **MIXED)
    two = tiny.write_problems(tmp_path / "two", **MIXED)
    other = tiny.write_problems(tmp_path / "other", seed=4, **MIXED)
    assert _contents(one) == _contents(two)
    differing = [name for name, text in _contents(one).items() if _contents(other)[name] != text]
    assert {f"{split}.jsonl" for split in SPLITS} < set(differing) and "text.jsonl" in differing


@pytest.mark.parametrize("task", ["arithmetic", "lists", "strings", "countdown"])
def test_what_is_written(tmp_path, task):
    spec = tiny.problems_spec(task=task, min_size=3, max_size=3, **MIXED)
    facts = problem_files.write(spec, tmp_path)
    assert facts == problem_files.read_facts(tmp_path)
    assert facts["task"] == task and facts["num_documents"] == 200
    assert facts["num_problems"] == {"reward": 16, "policy": 12, "validation": 8, "test": 4}
    assert 0.25 <= facts["right_share"] < 0.75  # worked is right, slips are not
    listed = {split: problem_files.read(tmp_path, split) for split in SPLITS}
    keys = {problem.key(each) for split in SPLITS for each in listed[split]}
    assert len(keys) == 16 + 12 + 8 + 4  # no twins, within a split or between two
    for split in SPLITS:
        assert {splits.split_of(each) for each in listed[split]} == {split}
    text = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    prompts = {each.prompt for split in SPLITS for each in listed[split]}
    assert not [line for line in text if line["text"].partition("=")[0] + "=" in prompts]
    solutions = (tmp_path / "solutions.jsonl").read_text().splitlines()
    for line, each in zip(solutions, listed["policy"], strict=True):
        solution = json.loads(line)
        assert solution["prompt"] == each.prompt and verify.is_right(each, solution["text"])


def test_written_once(tmp_path):
    first = problem_files.write(tiny.problems_spec(), tmp_path)
    (tmp_path / "text.jsonl").unlink()  # which shows whether anything is written again
    assert problem_files.write(tiny.problems_spec(), tmp_path) == first
    assert not (tmp_path / "text.jsonl").exists()


def test_an_unfinished_directory_is_written_anew(tmp_path):
    tiny.write_problems(tmp_path)
    want = _contents(tmp_path)
    (tmp_path / "facts.json").unlink()
    (tmp_path / "policy.jsonl").write_text("half a li")
    tiny.write_problems(tmp_path)
    assert _contents(tmp_path) == want


def test_other_settings_are_refused_by_name(tmp_path):
    tiny.write_problems(tmp_path)
    with pytest.raises(ValueError, match="problems.num_test: 4 there, 5 now"):
        tiny.write_problems(tmp_path, num_test=5)


def test_a_changed_file_is_refused(tmp_path):
    tiny.write_problems(tmp_path)
    path = tmp_path / "reward.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=r"reward\.jsonl: sha256 .* the file was changed"):
        problem_files.read(tmp_path, "reward")
    assert len(problem_files.read(tmp_path, "policy")) == 12


def test_no_problems_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"facts\.json: no such file; the stage 'problems'"):
        problem_files.read_facts(tmp_path)
