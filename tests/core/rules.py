"""Which rules of a spec file a set of bad settings breaks."""

import ast
import pathlib
import traceback
from collections.abc import Callable
from types import ModuleType

import pytest


def line_of_broken_rule(module: ModuleType, make: Callable[[], object], message: str) -> int:
    """Checks that `make` raises `message`, and returns the line of the rule in `module`."""
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message), str(error.value)
    frames = traceback.extract_tb(error.value.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == module.__file__]
    assert lines[-1] is not None
    return lines[-1]


def lines_of_rules(module: ModuleType) -> set[int]:
    """The lines of all calls of `require`."""
    assert module.__file__ is not None
    return {
        node.lineno
        for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "require"
    }
