"""A line of a JSONL file, checked. Floor 1."""

import json


def fields_of(line: str, *, fields: tuple[str, ...], where: str) -> list[str]:
    """The strings in some fields of a line, in the order of the fields; others may be there.

    Args:
      line: without its end.
      fields: their names.
      where: file and line, for messages.

    Raises:
      ValueError: the line does not parse, is no object, lacks a field or holds something else
        than a string there, or a lone surrogate; says where, and what is expected.
    """
    expected = " and ".join(f"a string in the field {field!r}" for field in fields)
    expected = f"expected a JSON object with {expected}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: does not parse ({error}); {expected}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: holds {type(record).__name__}; {expected}")
    for field in fields:
        if field not in record:
            raise ValueError(f"{where}: has only the fields {sorted(record)}; {expected}")
        text = record[field]
        if not isinstance(text, str):
            raise ValueError(f"{where}: {field!r} holds {type(text).__name__}; {expected}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: {field!r} holds a lone surrogate; {expected}") from error
    return [record[field] for field in fields]
