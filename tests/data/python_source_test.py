"""The code of a source is its tree less the docstrings; the prose is the docstrings."""

import ast
import pathlib
import sysconfig
import textwrap

import pytest

from deepseek_jax.data import python_source

OWNERS = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
STDLIB = pathlib.Path(sysconfig.get_path("stdlib"))
# Short modules of every manner: nested definitions, decorators, comments behind docstrings.
MODULES = ["abc", "bisect", "contextlib", "dataclasses", "enum", "heapq", "json/decoder", "string"]

TRICKY = {
    "one line": 'def f(): "doc"\n',
    "semicolon": 'def f():\n    "doc"; return 1\n',
    "comment": 'class A:\n    """doc"""  # why\n    x = 1\n',
    "parentheses": 'def f():\n    ("doc")\n    return 2\n',
    "joined": 'def f():\n    "a" "b"\n    return 2\n',
    "continued": 'def f():\n    "doc" \\\n\n    return 2\n',
    "only a docstring": 'class E(Exception):\n    """doc\n\n    more"""\n\nx = 1\n',
    "second string": '"""doc"""\n"""not a docstring"""\nx = 1\n',
    "wide characters": 'def f(x="\u00e9\u4e2d"): "\u4e2d\U0001f600"; return "\U0001f600"\n',
    "form feed": '\x0c"""doc"""\n\x0cx = 1\n',
    "separators in strings": '"""a\u2028b"""\nx = "\u2028\x1c"\ndef f():\n    """c"""\n    x\n',
    "async and nested": 'async def f():\n    """a"""\n    def g():\n        """b"""\n    g()\n',
    "within blocks": textwrap.dedent(
        '''
        try:
            def f():
                """in try"""
        except ValueError:
            class A:
                """in except"""
                x = 1
        else:
            with open("a"):
                def g():
                    """in with"""
                    return 1
        match 1:
            case 1:
                def h():
                    """in case"""
        '''
    ),
    "not docstrings": 'x = 1\n"a"\ndef f():\n    f"a{x}"\n\ndef g():\n    b"a"\n',
}


def without_docstrings(source, *, is_original):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, OWNERS):
            continue
        # clean=False: a docstring of blanks is one too.
        if is_original and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        if node.body and ast.dump(node.body[0]) == ast.dump(ast.parse("...").body[0]):
            node.body = node.body[1:]
    return ast.dump(tree)


def check(source):
    code, prose = python_source.split_source(source)
    assert without_docstrings(code, is_original=False) == without_docstrings(
        source, is_original=True
    )
    owners = [node for node in ast.walk(ast.parse(source)) if isinstance(node, OWNERS)]
    owners.sort(key=lambda node: getattr(node, "lineno", 0))
    docstrings = [text for node in owners if (text := ast.get_docstring(node))]
    assert prose == "\n\n".join(docstrings)


@pytest.mark.parametrize("name", TRICKY)
def test_tricky_sources(name):
    check(TRICKY[name])


@pytest.mark.parametrize("module", MODULES)
def test_standard_library_modules(module):
    check(python_source.decode((STDLIB / f"{module}.py").read_bytes()))


@pytest.mark.deep
def test_every_standard_library_package():
    for path in sorted(STDLIB.glob("*.py")) + sorted(STDLIB.glob("email/*.py")):
        check(python_source.decode(path.read_bytes()))


def test_code_keeps_comments_and_layout():
    head = '"""doc"""\n\n# kept\n\n\ndef f(x):\n'
    source = head + '    """Twice.\n\n    More.\n    """\n    return 2 * x  # kept\n'
    code, prose = python_source.split_source(source)
    assert code == "\n# kept\n\n\ndef f(x):\n    return 2 * x  # kept\n"
    assert prose == "doc\n\nTwice.\n\nMore."


def test_decode_takes_a_byte_order_mark_and_any_line_end():
    assert python_source.decode(b"\xef\xbb\xbfx = 1\r\ny = 2\rz\n") == "x = 1\ny = 2\nz\n"


@pytest.mark.parametrize("source", ["def f(:", "x = '\0'", "-" * 100_000 + "1", "print 'two'"])
def test_sources_that_do_not_parse(source):
    with pytest.raises(SyntaxError):
        python_source.split_source(source)


def test_string_table():
    assert python_source.string_table("# a\nx: int\nt = {'a': 'b' 'c'}\n") == {"a": "bc"}
    with pytest.raises(SyntaxError, match="no statement assigns a dict"):
        python_source.string_table("t = 1")
