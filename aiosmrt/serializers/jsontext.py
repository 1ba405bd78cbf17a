"""JSON and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from aiosmrt.errors import DeserializationError, SerializationError
from aiosmrt.serializers.codec import BYTE_ORDER_MARK, Codec, encoding_of
from aiosmrt.serializers.objects import SupportsRead, is_array, is_file, is_numpy_scalar, kind_of, listed

__all__ = ["JSON", "JSON_LINES", "JSONCodec", "JSONLinesCodec"]

# The white space of JSON (RFC 8259, section 2), which is less than that of Python.
_BLANKS: Final = " \t\r\n"

# Levels of containers that are searched for what is at fault.
_MAX_SEARCHED: Final = 100


@dataclass(frozen=True, kw_only=True)
class _JSONBased(Codec):
    """What JSON and JSON Lines have in common: the options, and the search for what is at fault."""

    default: Callable[[Any], object] | None = field(default=None, repr=False)
    allow_nan: bool = False

    def _option_faults(self) -> Iterable[str]:
        if self.default is not None and not callable(self.default):
            yield f"default must be a function or None; got a {kind_of(self.default)}"
        if not isinstance(self.allow_nan, bool):
            yield f"allow_nan must be True or False; got a {kind_of(self.allow_nan)}"

    def _replace(self, value: Any) -> object:
        """What is sent instead of an object that json does not know."""
        if is_array(value) or is_numpy_scalar(value):
            plain: object = value.tolist()
            if type(plain) is not type(value):  # as it is for a longdouble, which no Python type can hold
                return plain
        if self.default is None:
            raise TypeError
        return self.default(value)

    def _dumps(self, value: object) -> str:
        return json.dumps(
            value, ensure_ascii=False, allow_nan=self.allow_nan, separators=(",", ":"), default=self._replace
        )

    def _lines(self, values: Iterable[object]) -> bytes | None:
        """Each value on a line of its own; None when one of them cannot be expressed."""
        try:
            return "\n".join(map(self._dumps, values)).encode(encoding_of(self.content_type) or "utf-8")
        except MemoryError:
            raise
        except Exception:
            # json's own errors, those of its encoders and whatever `default` raises; all of them may quote data, so
            # what is at fault is looked for instead.
            return None

    def _fault(self, data: object) -> str:
        """What is wrong, and where, with data that cannot be expressed."""
        where = "data"
        for _ in range(_MAX_SEARCHED):
            items = _items(data)
            if self._lines([items]) is not None:
                return f"{where} {self._reason(data)}"
            start, end = 0, len(items)
            while end - start > 1:
                middle = (start + end) // 2
                if self._lines(items[start:middle]) is None:
                    end = middle
                else:
                    start = middle
            where += f"[{start}]"
            data = items[start]
        return f"data contains itself, or is at fault more than {_MAX_SEARCHED} levels down"

    def _reason(self, data: object) -> str:
        """What is wrong with an object whose items are in order."""
        plain = data.tolist() if is_numpy_scalar(data) else data
        if isinstance(plain, float):
            return "is NaN or infinite, which JSON does not have; allow_nan=True sends it all the same"
        if isinstance(plain, int):
            return "is an integer of more digits than Python writes"
        if isinstance(plain, str):
            return f"has a character that cannot be expressed in {encoding_of(self.content_type)}"
        if isinstance(data, dict):
            for number, key in enumerate(data):
                if self._lines([{key: None}]) is None:
                    return f"has a key that cannot be one in JSON: number {number}, a {kind_of(key)}"
        if self.default is None:
            return f"is a {kind_of(data)}, which JSON does not have"
        return f"is a {kind_of(data)}, for which default gives nothing that JSON has"

    def _loads(self, text: str, line: int | None = None) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            fault = f"is not JSON at line {line or error.lineno}, column {error.colno}"
        except RecursionError:
            fault = "is nested too deeply"
        except ValueError:
            fault = "has an integer of more digits than Python reads"
        raise DeserializationError(f"the response {fault}")


def _items(data: object) -> list[object]:
    """The parts of what json takes for a container, and of an array; none for all else."""
    if isinstance(data, dict):
        return list(data.values())
    if is_array(data):
        data = data.tolist()
    return list(data) if isinstance(data, (list, tuple)) else []


@dataclass(frozen=True, kw_only=True)
class JSONCodec(_JSONBased):
    """JSON, the compact form of it, not escaped beyond need.

    Serializes what `json` does (dictionaries, lists, tuples, text, numbers, True, False, None), NumPy's arrays as lists
    and its scalars as numbers or text, and open files of JSON, which are sent as they are.  Deserializes to what `json`
    gives.

    Args:
        content_type: the request's type.
        accept: what the response shall be. JSON by another name (``+json``) is read as well.
        default: called for an object that neither `json` nor NumPy knows; gives one to send instead. It may be called
            again for the same object to find out what is at fault. Its errors become a `SerializationError` that does
            not quote them.
        allow_nan: whether NaN and the infinities may be sent, as ``NaN``, ``Infinity`` and ``-Infinity``, which are not
            JSON (RFC 8259, section 6), but which Python's json reads. In a response they are always read.

    Raises:
        ParamValidationError: a header cannot be one, or an option is of the wrong type.

    >>> JSON.serialize({"instances": [[1.5, 2], ["é", None]]}).decode()
    '{"instances":[[1.5,2],["é",null]]}'
    >>> JSON.serialize({"instances": [[1.5, float("nan")]]})
    Traceback (most recent call last):
        ...
    aiosmrt.errors.SerializationError: data[0][0][1] is NaN or infinite, which JSON does not have; ...
    >>> JSONCodec(default=str).serialize(1j)
    b'"1j"'
    >>> JSON.deserialize(b"<h1>Bad Gateway</h1>", "text/html")
    Traceback (most recent call last):
        ...
    aiosmrt.errors.DeserializationError: the response is 'text/html', not 'application/json'
    """

    content_type: str = "application/json"
    accept: str = "application/json"

    _kin = r"text/plain|(application|text)/(x-)?json|[^/]+/.+\+json"

    def serialize(self, data: Any, /) -> bytes:
        """Write JSON.

        Raises:
            SerializationError: something in the object is not JSON.
        """
        if is_file(data):
            return self._contents(data)
        body = self._lines([data])
        if body is None:
            raise SerializationError(self._fault(data))
        return body

    def deserialize(self, body: bytes, content_type: str, /) -> Any:
        """Read JSON.

        Raises:
            DeserializationError: the response is of another type, empty, or malformed.
        """
        self._expect(content_type)
        text = self._decode(body, content_type).removeprefix(BYTE_ORDER_MARK)
        if not text:
            raise DeserializationError("the response is empty, and no JSON")
        return self._loads(text)


@dataclass(frozen=True, kw_only=True)
class JSONLinesCodec(_JSONBased):
    """JSON Lines (https://jsonlines.org): a JSON value on every line.

    Serializes an iterable of what `JSONCodec` serializes, NumPy arrays by their first axis; text, bytes and open files
    are sent as they are.  Dictionaries and sets are refused: neither is a sequence of values.  Between values is LF,
    and after the last is none.  Deserializes to a list; blank lines are skipped.

    Args:
        content_type: the request's type.
        accept: what the response shall be; JSON Lines by another name is read as well.
        default: as for `JSONCodec`.
        allow_nan: as for `JSONCodec`.

    Raises:
        ParamValidationError: a header cannot be one, or an option is of the wrong type.

    >>> JSON_LINES.serialize({"text": word} for word in ("a", "b"))
    b'{"text":"a"}\\n{"text":"b"}'
    >>> JSON_LINES.deserialize(b'{"score": 0.5}\\n{"score": 0.25}\\n', "application/jsonlines")
    [{'score': 0.5}, {'score': 0.25}]
    """

    content_type: str = "application/jsonlines"
    accept: str = "application/jsonlines"

    _kin = r"text/plain|(application|text)/(x-)?(jsonlines|json-lines|jsonl|ndjson)"

    def serialize(self, data: Iterable[Any] | SupportsRead, /) -> bytes:
        """Write a line for each value.

        Raises:
            SerializationError: something in a value is not JSON, or there are no values.
        """
        if (body := self._ready_made(data)) is not None:
            return body
        values = listed(data, "data", "values")
        body = self._lines(values)
        if body is None:
            raise SerializationError(self._fault(values))
        return body

    def deserialize(self, body: bytes, content_type: str, /) -> list[Any]:
        """Read a value from each line.

        Raises:
            DeserializationError: the response is of another type, or a line is not JSON.
        """
        self._expect(content_type)
        lines = self._decode(body, content_type).removeprefix(BYTE_ORDER_MARK).split("\n")
        return [self._loads(line, number) for number, line in enumerate(lines, 1) if line.strip(_BLANKS)]


JSON: Final = JSONCodec()
"""`JSONCodec` with its defaults."""

JSON_LINES: Final = JSONLinesCodec()
"""`JSONLinesCodec` with its defaults."""
