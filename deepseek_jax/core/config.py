"""From an edge config node to a frozen spec: exact keys, exact types. Floor 0."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

SpecT = TypeVar("SpecT")


def from_config(spec_class: type[SpecT], node: Mapping[str, Any], *, where: str) -> SpecT:
    """Builds a frozen spec from a mapping, with no defaults, no extras and no coercion.

    Args:
      spec_class: a frozen dataclass whose fields are annotated with `int`, `float`, `bool`,
        `str`, `Literal[...]` of strings, or one of these `| None`.
      node: the settings; a plain mapping (`ConfigDict.to_dict()` at the edge).
      where: the dotted name of the node, used in messages, e.g. "model".

    Returns:
      `spec_class(**node)`.

    Raises:
      ValueError: an unknown key (with the nearest known one), a missing key, a value outside
        its `Literal`, or a rule of the spec itself.
      TypeError: a value whose type is not exactly the annotated one (True is not an int,
        2 is not a float, an unset placeholder is not a value).
    """
    hints = typing.get_type_hints(spec_class)
    names = [field.name for field in dataclasses.fields(spec_class)]  # type: ignore[arg-type]
    for key in node:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {where}.{near[0]}?" if near else f"; known: {sorted(names)}"
            raise ValueError(f"unknown setting {where}.{key}{hint}")
    missing = [name for name in names if name not in node]
    if missing:
        raise ValueError(f"missing settings: {[f'{where}.{name}' for name in missing]}")
    for name in names:
        _check_value(f"{where}.{name}", node[name], hints[name])
    return spec_class(**{name: node[name] for name in names})


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Raises unless `value` is exactly of the annotated type `hint`."""
    if typing.get_origin(hint) is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {list(allowed)}")
        return
    union = isinstance(hint, types.UnionType)
    allowed_types = typing.get_args(hint) if union else (hint,)
    if type(value) not in allowed_types:
        wanted = " or ".join("None" if t is type(None) else t.__name__ for t in allowed_types)
        raise TypeError(f"{name}={value!r} has type {type(value).__name__}, want {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not a finite number")


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raises a ValueError that names the setting, its value and what is allowed."""
    if not condition:
        raise ValueError(f"{name}={value!r}: must be {allowed}")
