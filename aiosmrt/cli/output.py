"""The output formats of the AWS CLI, and its ``--query``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self, TextIO

from aiosmrt._aws.shared_config import load_shared_config, selected_profile
from aiosmrt._extras import installed
from aiosmrt.cli.parameters import ParameterError
from aiosmrt.cli.table import format_table
from aiosmrt.cli.text import format_text
from aiosmrt.errors import InvalidConfigError

__all__ = ["FORMATS", "OutputFormat"]

FORMATS: Final = ("json", "text", "table", "yaml", "yaml-stream", "off")

_NEXT_LINE: Final = "\x85"


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How responses are printed.

    Args:
        name: one of `FORMATS`.
        query: a compiled JMESPath expression. If None, the whole response is printed.
    """

    name: str
    query: Any = None

    @classmethod
    def of(cls, name: str | None, query: str | None, *, profile: str | None) -> Self:
        """Resolve and check an output format.

        Args:
            name: one of `FORMATS`. Defaults to ``AWS_DEFAULT_OUTPUT``, then to ``output`` in the profile, then to
                ``"json"``.
            query: a JMESPath expression.
            profile: a profile of the AWS configuration files. Defaults to the one that the environment selects.

        Raises:
            ParameterError: ``query`` is not a valid JMESPath expression.
            ConfigurationError: the configured format is unknown, YAML needs the extra ``cli``, or the profile cannot be
                read.
        """
        compiled = None if query is None else _compile(query)
        name = name or _configured_format(profile)
        if name.startswith("yaml"):
            installed("yaml", "cli")
        return cls(name, compiled)

    def write(self, response: Any, stream: TextIO, *, title: str) -> None:
        """Print a response.

        Args:
            response: JSON-like data.
            stream: the destination.
            title: the title of a table.

        Raises:
            ParameterError: the query calls a function with arguments of the wrong type.
        """
        if self.name == "off":
            return
        selected = _search(self.query, response)
        encoding = stream.encoding or "utf-8"
        text = self._formatted(selected, title)
        if not _can_encode(text, encoding):
            # JSON and YAML have their own escapes.
            text = self._formatted(selected, title, ascii_only=True)
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        stream.write(text)

    def _formatted(self, response: Any, title: str, *, ascii_only: bool = False) -> str:
        if self.name == "text":
            return format_text(response)
        if self.name == "table":
            return format_table(title, response)
        if self.name == "yaml-stream":
            response = [response]
        if response == {}:
            return ""
        if self.name == "json":
            return json.dumps(response, indent=4, ensure_ascii=ascii_only) + "\n"
        dump = partial(installed("yaml", "cli").safe_dump, response, default_flow_style=False)
        text: str = dump(allow_unicode=not ascii_only)
        # PyYAML does not escape it inside quotes, where readers, itself included, fold it into a space.
        return dump(allow_unicode=False) if _NEXT_LINE in text else text


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _configured_format(profile: str | None) -> str:
    name = os.environ.get("AWS_DEFAULT_OUTPUT")
    source = "AWS_DEFAULT_OUTPUT"
    if not name:
        source = "output in the profile"
        name = load_shared_config().profile(selected_profile(profile)).get("output") or "json"
    if name not in FORMATS:
        raise InvalidConfigError(f"{source} must be one of {', '.join(FORMATS)}; got {name!r:.80}")
    return name


def _compile(query: str) -> Any:
    """Compile a JMESPath expression, and check what JMESPath itself checks only in a search.

    Raises:
        ParameterError: the expression is invalid.
    """
    # Installed with botocore; without type hints.
    import jmespath  # type: ignore[import-untyped]

    try:
        compiled = jmespath.compile(query)
        for node in _nodes(compiled.parsed):
            _check_node(node)
    except RecursionError:
        raise ParameterError("--query", "Bad value: nested too deeply") from None
    except ValueError as error:
        raise ParameterError("--query", f"Bad value {query}: {error}") from error
    return compiled


def _check_node(node: dict[str, Any]) -> None:
    from jmespath.exceptions import JMESPathTypeError  # type: ignore[import-untyped]
    from jmespath.functions import Functions  # type: ignore[import-untyped]

    if node["type"] == "function_expression":
        # The types of arguments are known only from a response; name and number are known now.
        with suppress(JMESPathTypeError):
            Functions().call_function(node["value"], [None] * len(node["children"]))
    elif node["type"] == "slice" and node["children"][2] == 0:
        raise ValueError("slice step cannot be zero")


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the nodes of a parsed JMESPath expression."""
    if isinstance(node, dict):
        yield node
        for child in node.get("children", ()):
            yield from _nodes(child)


def _search(query: Any, response: Any) -> Any:
    if query is None:
        return response
    try:
        return query.search(response)
    except ValueError as error:
        raise ParameterError("--query", f"Bad value {query.expression}: {error}") from error
