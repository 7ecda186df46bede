"""Files of problems: what is written is read back, and a bad line is named."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from deepseek_jax.data.problems import files
from deepseek_jax.data.problems.problem import Problem

HAND = Problem("arithmetic", "941+367=", "1308", 3)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def test_hand_lines(tmp_path):
    path = tmp_path / "new" / "problems.jsonl"
    files.write(path, [HAND, HAND])
    line = '{"task": "arithmetic", "prompt": "941+367=", "answer": "1308", "num_steps": 3}\n'
    assert path.read_text("utf-8") == line * 2
    assert files.read(path) == [HAND, HAND]
    assert [p.name for p in path.parent.iterdir()] == ["problems.jsonl"]
    files.write(path, [])
    assert files.read(path) == []


@hypothesis.given(
    st.lists(st.builds(Problem, TEXTS, TEXTS, TEXTS, st.integers(0, 2**40)), max_size=4)
)
def test_round_trip(tmp_path_factory, problems):
    path = tmp_path_factory.mktemp("files") / "problems.jsonl"
    files.write(path, problems)
    assert files.read(path) == problems


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"{", "does not parse as JSON in UTF-8"),
        (b"", "does not parse as JSON in UTF-8"),
        (b"\xff", "does not parse as JSON in UTF-8"),
        (b"[" * 100_000, "does not parse as JSON in UTF-8"),
        (b"[1]", "expected the fields .*, found list"),
        ({"num_steps": ...}, "expected the fields .*, found .*'answer', 'prompt', 'task'"),
        ({"size": 3}, "expected the fields .*'size'"),
        ({"prompt": ""}, "prompt='': must be a text that is not empty"),
        ({"answer": 1308}, "answer=1308: must be a text"),
        ({"task": None}, "task=None: must be a text"),
        ({"answer": "\ud800"}, "answer=.*: must be a text"),
        ({"num_steps": "3"}, "num_steps='3': must be a whole number"),
        ({"num_steps": True}, "num_steps=True: must be a whole number"),
        ({"num_steps": -1}, "num_steps=-1: must be a whole number"),
        ({"num_steps": 3.0}, "num_steps=3.0: must be a whole number"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, match):
    if isinstance(line, dict):
        fields = {k: v for k, v in {**HAND._asdict(), **line}.items() if v is not ...}
        line = json.dumps(fields).encode("ascii")
    path = tmp_path / "problems.jsonl"
    files.write(path, [HAND])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=rf"problems\.jsonl:2: {match}"):
        files.read(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl: no such file of problems"):
        files.read(tmp_path / "none.jsonl")
