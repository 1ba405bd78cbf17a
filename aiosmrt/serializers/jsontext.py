"""JSON and JSON Lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from aiosmrt.errors import DeserializationError, SerializationError
from aiosmrt.serializers.codec import BYTE_ORDER_MARK, Codec, encoding_of
from aiosmrt.serializers.frames import frame_records, is_frame
from aiosmrt.serializers.objects import SupportsRead, as_items, is_array, is_file, is_numpy_scalar, type_name

__all__ = ["JSON", "JSON_LINES", "JSONCodec", "JSONLinesCodec"]

# JSON's white space (RFC 8259, section 2), which is less than Python's.
_BLANKS: Final = " \t\r\n"

# How many levels of containers are searched for a fault.
_MAX_SEARCHED: Final = 100

# An error handler: JSON has an escape for every character (RFC 8259, section 8.2, for lone surrogates).
_ESCAPE: Final = "aiosmrt.json"


# `json.loads` for text alone, without looking at its arguments at each call.
_parse: Final = json.JSONDecoder().decode


@dataclass(frozen=True, kw_only=True)
class _JSONBased(Codec):
    """The options of JSON and JSON Lines, and the search for a fault."""

    default: Callable[[Any], object] | None = field(default=None, repr=False)
    allow_nan: bool = False

    def _option_faults(self) -> Iterable[str]:
        if self.default is not None and not callable(self.default):
            yield f"default must be a function or None; got a {type_name(self.default)}"
        if not isinstance(self.allow_nan, bool):
            yield f"allow_nan must be True or False; got a {type_name(self.allow_nan)}"

    def _replace(self, value: Any) -> object:
        """Return the object to send in place of one that json does not know."""
        if is_array(value) or is_numpy_scalar(value):
            plain: object = value.tolist()
            if type(plain) is not type(value):  # a longdouble is returned as it is: Python has no such type
                return plain
        if is_frame(value):
            return frame_records(value)
        if self.default is None:
            raise TypeError
        return self.default(value)

    def _dumps(self, value: object) -> str:
        return json.dumps(
            value, ensure_ascii=False, allow_nan=self.allow_nan, separators=(",", ":"), default=self._replace
        )

    def _lines(self, values: Iterable[object]) -> bytes | None:
        """Return each value on a separate line; None if one of them cannot be expressed."""
        try:
            return self._encode("\n".join(map(self._dumps, values)))
        except MemoryError:
            raise
        except Exception:
            # Errors of json, of its encoders and of `default` may quote data, so `_fault` searches for the cause.
            return None

    def _encode(self, text: str) -> bytes:
        return text.encode(encoding_of(self.content_type) or "utf-8", _ESCAPE)

    def _fault(self, data: object) -> str:
        """Say what is wrong, and where, with data that cannot be expressed."""
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
        return f"data contains itself, or has a fault more than {_MAX_SEARCHED} levels down"

    def _reason(self, data: object) -> str:
        """Say what is wrong with an object whose items are in order."""
        plain = data.tolist() if is_numpy_scalar(data) else data
        if isinstance(plain, float):
            return "is NaN or infinite, which JSON lacks; allow_nan=True sends it anyway"
        if isinstance(plain, int):
            return "is an integer with more digits than Python writes"
        if isinstance(data, dict):
            for number, key in enumerate(data):
                if self._lines([{key: None}]) is None:
                    return f"has an invalid JSON key: number {number} is of type {type_name(key)}"
        if self.default is None:
            return f"is of type {type_name(data)}, which JSON lacks"
        return f"is of type {type_name(data)}, for which default returned nothing that JSON can express"

    def _loads(self, text: str, line: int | None = None) -> Any:
        try:
            return _parse(text)
        except json.JSONDecodeError as error:
            fault = f"is not JSON at line {line or error.lineno}, column {error.colno}"
        except RecursionError:
            fault = "is nested too deeply"
        except ValueError:
            fault = "contains an integer with more digits than Python reads"
        raise DeserializationError(f"the response {fault}")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPE, _escaped)


def _items(data: object) -> list[object]:
    """Return the items of a container, an array or a table; an empty list for other objects."""
    if isinstance(data, dict):
        return list(data.values())
    if is_array(data):
        data = data.tolist()
    elif is_frame(data):
        data = frame_records(data)
    return list(data) if isinstance(data, (list, tuple)) else []


@dataclass(frozen=True, kw_only=True)
class JSONCodec(_JSONBased):
    """JSON in compact form.

    Serializes the types of `json` (dictionaries, lists, tuples, text, numbers, True, False, None), NumPy arrays as
    lists, NumPy scalars as numbers or text, and open files of JSON, which are sent as they are. A table (a DataFrame of
    pandas or polars, a ``pyarrow.Table`` or ``RecordBatch``) is a list of its rows, each a dictionary by column name,
    with null for missing values. A character that the charset lacks, such as a lone surrogate, is sent as an escape.
    Deserializes as `json` does.

    Args:
        content_type: the request's type.
        accept: the response's type. JSON by another name (``+json``) is read as well.
        default: called for an object that neither `json` nor NumPy knows; returns one to send instead. It may be called
            again for the same object to search for a fault. Its errors become a `SerializationError` that does not
            quote them.
        allow_nan: whether to send NaN and the infinities, as ``NaN``, ``Infinity`` and ``-Infinity``, which are not
            JSON (RFC 8259, section 6) but which Python's json reads. Responses may always contain them. Defaults to
            False.

    Raises:
        ParamValidationError: a header is invalid, or an option has the wrong type.

    >>> JSON.serialize({"instances": [[1.5, 2], ["é", None]]}).decode()
    '{"instances":[[1.5,2],["é",null]]}'
    >>> JSON.serialize({"instances": [[1.5, float("nan")]]})
    Traceback (most recent call last):
        ...
    aiosmrt.errors.SerializationError: data[0][0][1] is NaN or infinite, which JSON lacks; ...
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
            SerializationError: the object cannot be expressed in JSON.
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
            DeserializationError: the response has another type, is empty, or is malformed.
        """
        self._expect(content_type)
        text = self._decode(body, content_type).removeprefix(BYTE_ORDER_MARK)
        if not text:
            raise DeserializationError("expected JSON, got an empty response")
        return self._loads(text)


@dataclass(frozen=True, kw_only=True)
class JSONLinesCodec(_JSONBased):
    """JSON Lines (https://jsonlines.org): a JSON value on every line.

    Serializes an iterable of values that `JSONCodec` takes, NumPy arrays along their first axis, and the rows of
    tables; text, bytes and open files are sent as they are. Refuses dictionaries and sets, which are not sequences of
    values. Values are separated by LF, without one after the last. Deserializes to a list; blank lines are skipped.

    Args:
        content_type: the request's type.
        accept: the response's type; JSON Lines by another name is read as well.
        default: as for `JSONCodec`.
        allow_nan: as for `JSONCodec`.

    Raises:
        ParamValidationError: a header is invalid, or an option has the wrong type.

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
            SerializationError: a value cannot be expressed in JSON, or there is nothing to send.
        """
        if (body := self._ready_made(data)) is not None:
            return body
        values = as_items(frame_records(data) if is_frame(data) else data, "data", "values")
        body = self._lines(values)
        if body is None:
            raise SerializationError(self._fault(values))
        return body

    def deserialize(self, body: bytes, content_type: str, /) -> list[Any]:
        """Read a value from each line.

        Raises:
            DeserializationError: the response has another type, or a line is not JSON.
        """
        self._expect(content_type)
        lines = self._decode(body, content_type).removeprefix(BYTE_ORDER_MARK).split("\n")
        return [self._loads(line, number) for number, line in enumerate(lines, 1) if line.strip(_BLANKS)]


JSON: Final = JSONCodec()
"""`JSONCodec` with its defaults."""

JSON_LINES: Final = JSONLinesCodec()
"""`JSONLinesCodec` with its defaults."""
