"""Descriptions of a user: what is wrong is told with file and line."""

import re

import pytest

from deepseek_jax.data import tokenizers
from deepseek_jax.data.steering import description_file, encoded

NAMES = ("sum", "reverse")
GOOD = b'{"task": "sum", "description": "add"}\n'
BAD = {
    "not UTF-8": (GOOD + b"\xff\xfea", "a.jsonl:2: not UTF-8: byte 1 is 0xff"),
    "UTF-16": ("add".encode("utf-16"), "a.jsonl:1: not UTF-8: byte 1 is 0xff"),
    "BOM": (b"\xef\xbb\xbf" + GOOD, "a.jsonl:1: begins with a byte order mark"),
    "empty line": (GOOD + b"\n" + GOOD, "a.jsonl:2: the description is empty"),
    "empty file": (b"", "a.jsonl: no descriptions, the file is empty"),
    "blank": (GOOD + b'{"task": "sum", "description": " "}', "a.jsonl:2: the description is"),
    "no JSON": (GOOD + b"add", "a.jsonl:2: not JSON"),
    "a list": (b"[1]", "a.jsonl:1: expected an object of ['description', 'task'], got list"),
    "a number": (b'{"task": "sum", "description": 3}', "a.jsonl:1: description is 3, not a string"),
    "task": (
        GOOD + b'{"task": "sun", "description": "a"}',
        "a.jsonl:2: unknown task 'sun'; known: sum, reverse",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_with_its_line(name, tmp_path):
    content, message = BAD[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(encoded.DescriptionError, match=re.escape(message)):
        description_file.read(path, task_names=NAMES)


def test_both_kinds_of_files_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD * 2)
    found = description_file.read(tmp_path / "a.jsonl", task_names=NAMES)
    assert [(line.text, line.task) for line in found] == [("add", "sum")] * 2
    (tmp_path / "a.txt").write_bytes(b"reverse it\r\nturn it\n")
    found = description_file.read(tmp_path / "a.txt", task_names=NAMES)
    assert [line.text for line in found] == ["reverse it", "turn it"]
    assert found[1].where.endswith("a.txt:2")


def test_a_description_that_is_too_long_is_told_with_its_line():
    tokenizer = tokenizers.bytes_tokenizer()
    with pytest.raises(
        encoded.DescriptionError, match=r"f:2: the description has 5 .*description_length=4"
    ):
        encoded.descriptions(["abcd", "abcde"], tokenizer, length=4, where=["f:1", "f:2"])
