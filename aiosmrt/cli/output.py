"""Results as the AWS CLI prints them: JSON indented by four, or tab-separated text."""

from __future__ import annotations

import json
from typing import Any

from aiosmrt.cli.parameters import ParameterError

__all__ = ["formatted"]


def formatted(result: Any, *, output: str | None, query: str | None) -> str:
    """The text to print, with its line's end; empty for an empty result.

    Args:
        result: JSON-like data.
        output: ``"json"`` or ``"text"``; None for JSON.
        query: a JMESPath expression to apply first; None for none.

    Raises:
        ParameterError: the expression is not JMESPath.

    >>> formatted({"ContentType": "text/csv"}, output=None, query="ContentType")
    '"text/csv"\\n'
    """
    if query is not None:
        result = _search(query, result)
    if output == "text":
        return "".join(f"{line}\n" for line in _text_lines(result))
    return "" if result == {} else json.dumps(result, indent=4, ensure_ascii=False) + "\n"


def _search(query: str, result: Any) -> Any:
    # It comes with botocore, and without types.
    import jmespath  # type: ignore[import-untyped]
    from jmespath.exceptions import JMESPathError  # type: ignore[import-untyped]

    try:
        return jmespath.search(query, result)
    except JMESPathError as error:
        raise ParameterError("--query", f"Bad value {query}: {error}") from error


def _text_lines(item: Any) -> list[str]:
    """One line for scalars side by side, then what is nested; a dictionary's values in the order of its keys."""
    if not isinstance(item, (dict, list)):
        return [str(item)]
    values = [item[key] for key in sorted(item)] if isinstance(item, dict) else item
    scalars = [str(value) for value in values if not isinstance(value, (dict, list))]
    nested = [line for value in values if isinstance(value, (dict, list)) for line in _text_lines(value)]
    return ["\t".join(scalars), *nested] if scalars else nested
