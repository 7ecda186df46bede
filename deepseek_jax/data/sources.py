"""Where documents come from: installed Python sources, a folder, JSON lines. Floor 1.

Names are relative to the place that was read, never paths of this machine. Nothing is left
out silently: what is found and not taken becomes an `Exclusion`, or an error where the files
are the user's own.
"""

import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

from deepseek_jax.data import jsonl, python_source
from deepseek_jax.data.documents import Document, Exclusion

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TOPICS = "pydoc_data/topics.py"


class Found(NamedTuple):
    """What reading a source gave."""

    documents: list[Document]
    exclusions: list[Exclusion]


def read_stdlib() -> Found:
    """Code and prose of the Python standard library as installed, tests left out."""
    return read_library(pathlib.Path(sysconfig.get_path("stdlib")), prefix="stdlib")


def read_packages() -> Found:
    """Code and prose of all installed packages and of the standard library."""
    documents, exclusions = read_stdlib()
    roots = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    for root in sorted(roots):
        found = read_library(pathlib.Path(root), prefix="packages")
        documents += found.documents
        exclusions += found.exclusions
    return Found(documents, exclusions)


def read_library(root: pathlib.Path, *, prefix: str) -> Found:
    """Code and prose of the Python files below `root`, tests left out.

    A file that is not UTF-8 or does not parse is an exclusion: a user cannot mend what is
    installed. `pydoc_data/topics.py` gives one document of prose for each topic, no code.

    Raises:
      FileNotFoundError: `root` does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no folder of installed Python sources")
    found = Found([], [])
    for path in _files_below(root, leave_out=_NOT_LIBRARY):
        if path.suffix != ".py":
            continue
        relative = path.relative_to(root)
        name = f"{prefix}/{relative.as_posix()}"
        data = path.read_bytes()
        if _is_test(relative):
            found.exclusions.append(Exclusion(name, "test", "", len(data)))
            continue
        try:
            source = python_source.decode(data)
            if relative.as_posix() == _TOPICS:
                documents = _topic_documents(source, name=name)
            else:
                documents = _module_documents(source, name=name)
        except UnicodeDecodeError as error:
            detail = f"byte {error.start} is not UTF-8"
            found.exclusions.append(Exclusion(name, "not UTF-8", detail, len(data)))
        except UnicodeEncodeError:
            detail = "a docstring holds a lone surrogate"
            found.exclusions.append(Exclusion(name, "not UTF-8", detail, len(data)))
        except SyntaxError as error:
            found.exclusions.append(Exclusion(name, "does not parse", str(error), len(data)))
        else:
            found.documents.extend(documents)
    return found


def read_folder(path: str) -> Found:
    """Every regular file below a folder, hidden ones too, as a text of its own group.

    Links to folders are not followed; they, and what is no regular file, are exclusions.

    Raises:
      FileNotFoundError: no such folder, or a link that points nowhere.
      NotADirectoryError: `path` is a file.
      ValueError: a file is not UTF-8; names it and the byte.
    """
    root = pathlib.Path(path)
    if not root.exists():
        raise FileNotFoundError(f"data.path={path!r}: no such folder")
    if not root.is_dir():
        raise NotADirectoryError(f"data.path={path!r}: a file, where a folder of texts is expected")
    found = Found([], [])
    for file in _files_below(root, leave_out=frozenset()):
        name = file.relative_to(root).as_posix()
        if file.is_symlink() and not file.exists():
            raise FileNotFoundError(f"{file}: a link to a file that does not exist")
        if file.is_file():
            found.documents.append(Document(name, name, "text", _read_utf8(file)))
        else:
            reason = "link to a folder" if file.is_dir() else "not a regular file"
            found.exclusions.append(Exclusion(name, reason, "", 0))
    return found


def read_jsonl(path: str, *, field: str, prompt_field: str | None) -> Found:
    """A text of every line of a JSONL file, and the prompt in front of it.

    Each distinct text is its own group; of lines with a prompt, each distinct prompt is, so that
    no prompt is on both sides of the split.

    Args:
      path: the file; names of documents have its last part only, wherever it lies.
      field: of the text.
      prompt_field: of the prompt; None for no prompts.

    Raises:
      FileNotFoundError: no such file.
      IsADirectoryError: `path` is a folder.
      ValueError: the file is not UTF-8, or a line does not parse, is no object, lacks a
        field or holds something else than a string there; names file, line and expectation.
    """
    file = pathlib.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"data.path={path!r}: no such file")
    if file.is_dir():
        raise IsADirectoryError(f"data.path={path!r}: a folder, where a JSONL file is expected")
    lines = _read_utf8(file).split("\n")
    if not lines[-1]:
        lines.pop()
    found = Found([], [])
    fields = (field,) if prompt_field is None else (prompt_field, field)
    for number, line in enumerate(lines, start=1):
        *prompts, text = jsonl.fields_of(line, fields=fields, where=f"{path}:{number}")
        prompt = "".join(prompts)
        name = f"{file.name}:{number}"
        found.documents.append(Document(name, prompt or text, "text", text, prompt))
    return found


def _files_below(root: pathlib.Path, *, leave_out: frozenset[str]) -> Iterator[pathlib.Path]:
    """What lies below a folder and is no folder itself, in an order of names alone.

    Folders with a name in `leave_out` are not entered.
    """
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if name not in leave_out)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(files + links):
            yield pathlib.Path(folder, name)


def _raise(error: OSError) -> None:
    """Stops a walk at a folder that cannot be listed, which `os.walk` would skip."""
    raise error


def _is_test(relative: pathlib.PurePath) -> bool:
    """Whether a file of a library is a test of it."""
    stem = relative.stem
    is_test_file = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
    return is_test_file or bool(_TEST_FOLDERS & set(relative.parts[:-1]))


def _module_documents(source: str, *, name: str) -> list[Document]:
    """The code and the prose of one module; the prose only if it has some."""
    code, prose = python_source.split_source(source)
    prose.encode("utf-8")
    documents = [Document(name, name, "code", code)] if code.strip() or not prose else []
    if prose:
        documents.append(Document(name, name, "prose", prose + "\n"))
    return documents


def _topic_documents(source: str, *, name: str) -> list[Document]:
    """The topics of the library's documentation, each a group."""
    topics = python_source.string_table(source)
    return [
        Document(f"{name}/{topic}", f"{name}/{topic}", "prose", topics[topic])
        for topic in sorted(topics)
    ]


def _read_utf8(path: pathlib.Path) -> str:
    """The text of a user's file, unchanged."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8 text; "
            "convert the file to UTF-8 or move it out of the way"
        ) from error
