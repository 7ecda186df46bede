"""Reading sources: what is taken, what is recorded, and every way in which input can be bad."""

import json

import pytest

from deepseek_jax.data import sources
from deepseek_jax.data.documents import Document


def names(found):
    return {(document.name, document.kind) for document in found.documents}


def reasons(found):
    return {exclusion.name: exclusion.reason for exclusion in found.exclusions}


@pytest.fixture
def library(tmp_path):
    files = {
        "a.py": b'"""Doc a."""\nx = 1\n',
        "pkg/__init__.py": b'"""Only prose."""\n',
        "pkg/empty.py": b"\n",
        "pkg/data.txt": b"no source",
        "pkg/tests/helper.py": b"x = 2\n",
        "pkg/test_b.py": b"x = 3\n",
        "pkg/testing.py": b"y = 4\n",
        "pkg/latin.py": b"# coding: latin-1\nx = '\xe9'\n",
        "pkg/broken.py": b"print 'two'\n",
        "pkg/surrogate.py": b'"""\\ud800"""\nx = 5\n',
        "pkg/__pycache__/c.py": b"x = 6\n",
        "site-packages/d.py": b"x = 7\n",
        "pydoc_data/topics.py": b"topics = {'for': 'The for statement', 'if': 'The if'}\n",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path


def test_library(library):
    found = sources.read_library(library, prefix="lib")
    assert names(found) == {
        ("lib/a.py", "code"),
        ("lib/a.py", "prose"),
        ("lib/pkg/__init__.py", "prose"),
        ("lib/pkg/empty.py", "code"),
        ("lib/pkg/testing.py", "code"),
        ("lib/pydoc_data/topics.py/for", "prose"),
        ("lib/pydoc_data/topics.py/if", "prose"),
    }
    assert reasons(found) == {
        "lib/pkg/tests/helper.py": "test",
        "lib/pkg/test_b.py": "test",
        "lib/pkg/latin.py": "not UTF-8",
        "lib/pkg/surrogate.py": "not UTF-8",
        "lib/pkg/broken.py": "does not parse",
    }
    assert Document("lib/a.py", "lib/a.py", "code", "x = 1\n") in found.documents
    assert Document("lib/a.py", "lib/a.py", "prose", "Doc a.\n") in found.documents


def test_library_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sources.read_library(tmp_path / "nowhere", prefix="lib")


def test_folder_takes_every_file_unchanged(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".hidden").write_bytes("\u00e9\r\n".encode())
    (tmp_path / "a.py").write_bytes(b'"""doc"""\n')
    (tmp_path / "link").symlink_to(tmp_path / "b")
    found = sources.read_folder(str(tmp_path))
    assert found.documents == [
        Document("a.py", "a.py", "text", '"""doc"""\n'),
        Document("b/.hidden", "b/.hidden", "text", "\u00e9\r\n"),
    ]
    assert reasons(found) == {"link": "link to a folder"}


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.path=.*nowhere.*no such folder"):
        sources.read_folder(str(tmp_path / "nowhere"))
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"ab\xff")
    with pytest.raises(NotADirectoryError, match="bad.txt.*a folder of texts is expected"):
        sources.read_folder(str(bad))
    with pytest.raises(ValueError, match=r"bad\.txt: byte 2 \(0xff\) is not UTF-8"):
        sources.read_folder(str(tmp_path))
    bad.unlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="dangling"):
        sources.read_folder(str(tmp_path))


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"q": text, "n": 1}) for text in ("one", "two\n\u2028", "one")]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    found = sources.read_jsonl(str(path), field="q", prompt_field=None)
    assert [(d.name, d.text) for d in found.documents] == [
        ("a.jsonl:1", "one"),
        ("a.jsonl:2", "two\n\u2028"),
        ("a.jsonl:3", "one"),
    ]
    assert found.documents[0].group == found.documents[2].group != found.documents[1].group


def test_jsonl_with_prompts(tmp_path):
    path = tmp_path / "a.jsonl"
    pairs = [("1+1=", "2"), ("1+1=", "3"), ("", "2"), ("0+2=", "2")]
    path.write_text("\n".join(json.dumps({"p": p, "q": q}) for p, q in pairs))
    found = sources.read_jsonl(str(path), field="q", prompt_field="p")
    assert [(d.prompt, d.text) for d in found.documents] == pairs
    # The answers to one prompt stay together, equal answers to two prompts need not.
    assert [d.group for d in found.documents] == ["1+1=", "1+1=", "2", "0+2="]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"q": "fine"}', r"only the fields \['q'\]"),
        ('{"p": "fine"}', r"only the fields \['p'\]"),
        ('{"p": 1, "q": "fine"}', "'p' holds int"),
        ('{"p": "\\ud800", "q": "fine"}', "'p' holds a lone surrogate"),
    ],
)
def test_jsonl_lines_whose_prompt_is_wrong(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"p": "fine", "q": "fine"}}\n{line}\n')
    expected = (
        rf"a\.jsonl:2: .*{problem}.*expected a JSON object with a string in the field 'p' and a "
        "string in the field 'q'"
    )
    with pytest.raises(ValueError, match=expected):
        sources.read_jsonl(str(path), field="q", prompt_field="p")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'q': 1}", "does not parse"),
        ("", "does not parse"),
        ("[1]", "holds list"),
        ('{"a": "b", "z": 1}', r"only the fields \['a', 'z'\]"),
        ('{"q": 1}', "'q' holds int"),
        ('{"q": null}', "'q' holds NoneType"),
        ('{"q": "\\ud800"}', "lone surrogate"),
    ],
)
def test_jsonl_lines_that_are_wrong(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"q": "fine"}}\n{line}\n{{"q": "fine"}}\n', encoding="utf-8")
    expected = rf"a\.jsonl:2: .*{problem}.*expected a JSON object with a string in the field 'q'"
    with pytest.raises(ValueError, match=expected):
        sources.read_jsonl(str(path), field="q", prompt_field=None)


def test_jsonl_files_that_are_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.path=.*gone.jsonl.*no such file"):
        sources.read_jsonl(str(tmp_path / "gone.jsonl"), field="q", prompt_field=None)
    with pytest.raises(IsADirectoryError, match="a JSONL file is expected"):
        sources.read_jsonl(str(tmp_path), field="q", prompt_field=None)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"q": "\xe9"}\n')
    with pytest.raises(ValueError, match="byte 7"):
        sources.read_jsonl(str(path), field="q", prompt_field=None)
