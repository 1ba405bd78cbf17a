"""The AWS CLI's output format ``text``: tab-separated values, each line of nested data with the name of its key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["format_text"]


def format_text(data: Any) -> str:
    """Format JSON-like data.

    >>> format_text({"ContentType": "text/csv", "Rows": [{"a": 1, "b": None}, {"a": 2}]})
    'text/csv\\nROWS\\t1\\tNone\\nROWS\\t2\\t\\n'
    """
    return "".join(f"{line}\n" for line in _lines(data, None, None))


def _lines(data: Any, name: str | None, columns: Sequence[str] | None) -> Iterator[str]:
    """Format data as lines.

    Args:
        data: JSON-like data.
        name: the key that the data belongs to.
        columns: the keys with scalar values among the dictionaries of a list. Defaults to those of the data.
    """
    if isinstance(data, dict):
        yield from _dictionary_lines(data, name, columns)
    elif not isinstance(data, list):
        yield str(data)
    elif any(isinstance(item, dict) for item in data):
        shared = sorted({key for item in data if isinstance(item, dict) for key in item if _is_scalar(item[key])})
        for item in data:
            yield from _lines(item, name, shared)
    else:
        scalars = [str(item) for item in data if _is_scalar(item)]
        if name is not None:
            yield from (f"{name.upper()}\t{scalar}" for scalar in scalars)
        elif scalars:
            yield "\t".join(scalars)
        for item in data:
            if not _is_scalar(item):
                yield from _lines(item, name, None)


def _dictionary_lines(data: dict[str, Any], name: str | None, columns: Sequence[str] | None) -> Iterator[str]:
    if columns is None:
        columns = sorted(key for key in data if _is_scalar(data[key]))
    if columns:
        yield "\t".join([*([] if name is None else [name.upper()]), *(str(data.get(key, "")) for key in columns)])
    for key in sorted(data.keys() - set(columns)):
        yield from _lines(data[key], key, None)


def _is_scalar(value: object) -> bool:
    return not isinstance(value, (dict, list))
