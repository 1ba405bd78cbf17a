"""JSONPath (RFC 9535) in the place of Batch Transform's InputFilter and OutputFilter: a part of a row or its record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from aiosmrt._extras import installed
from aiosmrt.errors import ParamValidationError, SerializationError

__all__ = ["Selection"]

# A path that begins with positions, and so means a row of CSV as an array.
_BY_POSITION: Final = re.compile(r"\$\s*\[\s*(-?[0-9]|:|\*)")


class Selection:
    """Selects a part of a record.

    A path to one place selects the value there. Of several places, members of one object are an object again, and
    everything else is a list.

    Args:
        path: the JSONPath.

    Raises:
        ParamValidationError: it is not JSONPath.
        ConfigurationError: the library that reads it is not installed.

    >>> Selection("$['id','score']")({"id": 7, "text": "a", "score": 0.5})
    {'id': 7, 'score': 0.5}
    >>> Selection("$[1:]").of_fields({"id": "7", "age": "41", "calls": "3"})
    ['41', '3']
    """

    def __init__(self, path: str) -> None:
        jsonpath = installed("jsonpath", "batch")
        if not isinstance(path, str):
            raise ParamValidationError([f"must be a JSONPath as text; got {type(path)}"])
        try:
            # Strict: what RFC 9535 has, and no unions of paths.
            self._query = jsonpath.JSONPathEnvironment(strict=True).compile(path)
        except jsonpath.JSONPathError as error:
            raise ParamValidationError([f"must be a JSONPath, such as $.features; {error.args[0]}"]) from None
        self._fault: type[Exception] = jsonpath.JSONPathError
        self.path: str = path
        self.by_position: bool = _BY_POSITION.match(path) is not None
        self._to_one_place: bool = self._query.singular_query()

    def __repr__(self) -> str:
        return f"Selection({self.path!r})"

    def __call__(self, record: Any) -> Any:
        """The part of a record.

        Raises:
            SerializationError: there is none.
        """
        try:
            matches = list(self._query.finditer(record))
        except (self._fault, RecursionError):
            # Most often of a value that is nested too deeply; the message may quote it.
            raise SerializationError(f"the JSONPath {self.path:.80} cannot be applied to it") from None
        if not matches:
            raise SerializationError(f"there is nothing at {self.path:.80}")
        if self._to_one_place:
            return matches[0].obj
        if all(isinstance(match.parts[-1], str) for match in matches) and len({m.parts[:-1] for m in matches}) == 1:
            return {match.parts[-1]: match.obj for match in matches}
        return [match.obj for match in matches]

    def of_fields(self, record: Mapping[str, Any]) -> Any:
        """The part of a row of CSV, whose columns have names and positions.

        Raises:
            SerializationError: there is none.
        """
        return self(list(record.values()) if self.by_position else record)
