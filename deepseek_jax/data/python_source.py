"""Python sources taken apart into code and prose. Floor 1.

The code is the source without its docstrings; the prose is the docstrings alone. Positions
come from `ast`, so that strings which only look like docstrings stay in the code.
"""

import ast
import inspect
import warnings
from typing import NamedTuple


class SourceParts(NamedTuple):
    """The two texts of a module; either may be empty."""

    code: str
    prose: str


class _Docstring(NamedTuple):
    """A docstring statement and whether its body holds nothing else."""

    statement: ast.Expr
    text: str
    is_whole_body: bool


def decode(data: bytes) -> str:
    r"""The text of a Python file: UTF-8 with or without a byte-order mark, lines end in "\n".

    Raises:
      UnicodeDecodeError: the bytes are not UTF-8, whatever coding the file declares.
    """
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def parse(source: str) -> ast.Module:
    """The syntax tree of a decoded source; warnings about its literals are not ours to show.

    Raises:
      SyntaxError: this Python cannot parse the source, for whatever reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (ValueError, RecursionError, MemoryError) as error:
        # NUL bytes, lone surrogates and nesting too deep for the parser.
        raise SyntaxError(f"{type(error).__name__}: {error}") from error


def split_source(source: str) -> SourceParts:
    """The code and the prose of a decoded source.

    A docstring alone on its lines goes with them. One that shares a line, or is the whole body
    of a function or class, leaves `...` behind, so that the code still parses, to the tree of
    the source less its docstrings.

    Args:
      source: what `decode` returned.

    Returns:
      The source without docstrings, and the docstrings, dedented, in the order of the source
      with a blank line between two.

    Raises:
      SyntaxError: the source does not parse.
    """
    docstrings = _docstrings(parse(source))
    lines = source.split("\n")
    for docstring in reversed(docstrings):
        _cut(lines, docstring)
    texts = [inspect.cleandoc(docstring.text) for docstring in docstrings]
    return SourceParts("\n".join(lines), "\n\n".join(text for text in texts if text))


def string_table(source: str) -> dict[str, str]:
    """The strings of a module that is one assigned dict, as `pydoc_data/topics.py` is.

    Raises:
      SyntaxError: the source does not parse, or no statement assigns a dict of strings.
    """
    for node in parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            table = ast.literal_eval(node.value)
            return {str(key): str(value) for key, value in table.items()}
    raise SyntaxError("no statement assigns a dict of strings")


def _docstrings(tree: ast.Module) -> list[_Docstring]:
    """The docstring statements of a tree in the order of the source."""
    owners = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    # Definitions are statements within statements: expressions need no visit.
    holders = ast.stmt | ast.excepthandler | ast.match_case
    found = []
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        nodes.extend(c for c in ast.iter_child_nodes(node) if isinstance(c, holders))
        if not isinstance(node, owners) or not node.body:
            continue
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        text = first.value.value
        if isinstance(text, str):
            is_whole_body = len(node.body) == 1 and not isinstance(node, ast.Module)
            found.append(_Docstring(first, text, is_whole_body))
    return sorted(found, key=lambda docstring: docstring.statement.lineno)


def _cut(lines: list[str], docstring: _Docstring) -> None:
    """Removes a docstring from `lines`, in place; nothing after it has moved yet."""
    statement = docstring.statement
    if statement.end_lineno is None or statement.end_col_offset is None:
        raise SyntaxError(f"line {statement.lineno}: the parser gave no end of a statement")
    first, last = statement.lineno - 1, statement.end_lineno - 1
    # Columns count bytes of UTF-8.
    before = lines[first].encode("utf-8")[: statement.col_offset].decode("utf-8")
    after = lines[last].encode("utf-8")[statement.end_col_offset :].decode("utf-8")
    if docstring.is_whole_body or before.strip() or after.strip():
        lines[first : last + 1] = [f"{before}...{after}"]
    else:
        del lines[first : last + 1]
