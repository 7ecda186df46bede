"""GSM8K: reading its lines, the given solutions, and the check of an answer."""

import json
import os

import hypothesis
import hypothesis.strategies as st
import pytest

from deepseek_jax.data import given
from deepseek_jax.data.problems import gsm8k, splits, verify
from deepseek_jax.data.problems.problem import Problem

LINE = {
    "question": "A robe takes 2 bolts of blue and half that much white.  How many in total?",
    "answer": "It takes 2/2=<<2/2=1>>1 bolt\nSo it is 2+1=<<2+1=3>>3 bolts\n#### 3",
}
has_data = pytest.mark.skipif(
    given.FOLDER_VARIABLE not in os.environ, reason=f"{given.FOLDER_VARIABLE} is not set"
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes lines to the file of a split in the folder that the variable names."""

    def write(*lines, split="train"):
        folder = tmp_path / "gsm8k"
        folder.mkdir(exist_ok=True)
        data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (folder / f"{split}.jsonl").write_bytes(b"".join(line + b"\n" for line in data))
        monkeypatch.setenv(given.FOLDER_VARIABLE, str(tmp_path))

    return write


def test_a_line_becomes_a_problem(write):
    write(LINE, {**LINE, "answer": "It is 1,200 - 2,400\n\n#### -1,200"})
    first, second = gsm8k.read(split="train")
    assert first.problem == Problem("gsm8k", LINE["question"] + "\n", "3", 2)
    assert first.worked == "It takes 2/2=1 bolt\nSo it is 2+1=3 bolts"
    assert gsm8k.solution(first) == (
        "<think>It takes 2/2=1 bolt\nSo it is 2+1=3 bolts</think><answer>3</answer>"
    )
    assert verify.is_right(first.problem, gsm8k.solution(first))
    assert not verify.is_right(second.problem, gsm8k.solution(first))
    assert (second.problem.answer, second.problem.num_steps) == ("-1200", 1)
    assert splits.split_of(first.problem) in splits.SPLITS


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff",
        b"",
        b"[]",
        b"[" * 100_000,
        {"question": "How many?"},
        {**LINE, "question": 3},
        {**LINE, "question": " "},
        {**LINE, "answer": None},
        {**LINE, "answer": "It is 3"},
        {**LINE, "answer": "#### 3"},
        {**LINE, "answer": "It is three\n#### three"},
        {**LINE, "answer": "It is 3\n#### "},
        {**LINE, "answer": "</think> is 3\n#### 3"},
    ],
)
def test_a_bad_line_is_named(write, line):
    write(LINE, line)
    with pytest.raises(ValueError, match=r"train\.jsonl:2: .*expected"):
        gsm8k.read(split="train")


def test_missing_data(write, monkeypatch):
    write(LINE)
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl: no such file; set the environment"):
        gsm8k.read(split="test")
    monkeypatch.setenv(given.FOLDER_VARIABLE, "")
    with pytest.raises(FileNotFoundError, match="DEEPSEEK_JAX_DATA is not set; set the envi"):
        gsm8k.read(split="train")
    monkeypatch.delenv(given.FOLDER_VARIABLE)
    with pytest.raises(FileNotFoundError, match="DEEPSEEK_JAX_DATA is not set; set the envi"):
        gsm8k.read(split="train")


def problem(answer):
    return Problem("gsm8k", "How many?\n", answer, 1)


@pytest.mark.parametrize(
    "answer",
    ["1200", "1,200", "$1,200", "$1200.00", " 1200\n", "1200.", "01200", "\u20ac1200", "1,200.0"],
)
def test_equal_numbers(answer):
    assert gsm8k.verify(problem("1200"), answer)
    assert gsm8k.verify(problem("-1200"), "-" + answer.strip())
    assert not gsm8k.verify(problem("1201"), answer)
    assert not gsm8k.verify(problem("-1200"), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "12,00",
        "1,2,0,0",
        ",1200",
        "1200,",
        "1,200,",
        "1200.5",
        "1200.000001",
        "1 200",
        "1200 eggs",
        "1200 1200",
        "1200 or 1201",
        "#### 1200",
        "1200\n1201",
        "1.2e3",
        "1_200",
        "2400/2",
        "--1200",
        "+-1200",
        "$$1200",
        "1200%",
        "nan",
        "inf",
        "Infinity",
        "0x4b0",
        "\uff11\uff12\uff10\uff10",
        "1200" + "0" * 10_000,
        "9" * 100_000,
        " " * 100_000,
        "1200.." + "0",
        None,
    ],
)
def test_other_answers(answer):
    assert gsm8k.verify(problem("1200"), answer) is False


@hypothesis.given(st.text(max_size=50) | st.text("0123456789,.$- \n", max_size=50))
def test_no_text_raises(text):
    assert gsm8k.verify(problem("1200"), text) in (True, False)


@has_data
@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_the_real_files(split, size):
    records = gsm8k.read(split=split)
    assert len(records) == size
    for record in records:
        assert record.problem.num_steps >= 1
        assert verify.is_right(record.problem, gsm8k.solution(record))
        assert "<<" not in record.worked
