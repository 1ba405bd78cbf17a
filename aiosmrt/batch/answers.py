"""Codecs by content type: what a request body is made with, and what an answer is read with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from json.scanner import make_scanner
from typing import Any, Final, cast

from aiosmrt.endpoint import split_answer
from aiosmrt.serializers import (
    CSV,
    JSON,
    JSON_LINES,
    TEXT,
    BytesCodec,
    CSVCodec,
    Deserializer,
    JSONCodec,
    JSONLinesCodec,
    Serializer,
    TextCodec,
)
from aiosmrt.serializers.codec import encoding_of

__all__ = ["ANY_ANSWER", "AnyAnswer", "JSONText", "Verbatim", "codec_for"]

_JSON: Final = re.compile(r"(application|text)/(x-)?json|[^/]+/.+\+json")
_JSON_LINES: Final = re.compile(r"(application|text)/(x-)?(jsonlines|json-lines|jsonl|ndjson)")
_CSV: Final = re.compile(r"(application|text)/(x-)?(csv|comma-separated-values)")
_TEXT: Final = re.compile(r"text/.+|[^/]+/(.+\+)?(xml|yaml)")

# As JSON has it (RFC 8259, section 6), so that 007 and nan stay text.
_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)

# Longer ones are identifiers rather than measurements, and more than a float or Python's int() takes.
_MAX_DIGITS: Final = 300


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


@lru_cache(maxsize=128)
def _is_json(content_type: str) -> bool:
    return _JSON.fullmatch(_media_type(content_type)) is not None


@lru_cache(maxsize=128)
def _is_utf_8_json(content_type: str) -> bool:
    return _is_json(content_type) and encoding_of(content_type) == "utf-8"


def codec_for(content_type: str) -> Serializer[Any]:
    """The serializer whose bodies have a content type; bytes for one that it does not know.

    Args:
        content_type: the content type, which the codec sends as it is.

    Raises:
        ParamValidationError: it cannot be a header.

    >>> type(codec_for("application/vnd.model+json; v=2")).__name__
    'JSONCodec'
    """
    media_type = _media_type(content_type)
    if _JSON.fullmatch(media_type):
        return JSONCodec(content_type=content_type)
    if _JSON_LINES.fullmatch(media_type):
        return JSONLinesCodec(content_type=content_type)
    if _CSV.fullmatch(media_type):
        return CSVCodec(content_type=content_type)
    if _TEXT.fullmatch(media_type):
        return TextCodec(content_type=content_type)
    return BytesCodec(content_type=content_type)


class AnyAnswer:
    """A deserializer that goes by an answer's content type.

    JSON is read as it is, and JSON Lines as a list. A single row of CSV is a list of its fields, a single field stands
    for itself, and fields that are numbers become numbers. Text is a ``str``, and anything else ``bytes``.

    >>> AnyAnswer().deserialize(b"0.25,yes", "text/csv")
    [0.25, 'yes']
    """

    accept = "*/*"

    def __repr__(self) -> str:
        return "AnyAnswer()"

    def deserialize(self, body: bytes, content_type: str, /) -> Any:
        """Read an answer.

        Args:
            body: the response body.
            content_type: its content type; empty if it is missing.

        Raises:
            DeserializationError: the body is not what its content type says.
        """
        if _is_json(content_type):
            return JSON.deserialize(body, content_type)
        media_type = _media_type(content_type)
        if _JSON_LINES.fullmatch(media_type):
            return JSON_LINES.deserialize(body, content_type)
        if _CSV.fullmatch(media_type):
            rows = _csv_rows(body, content_type)
            row: list[Any] = rows[0] if len(rows) == 1 else rows
            return row[0] if len(row) == 1 else row
        if _TEXT.fullmatch(media_type):
            return TEXT.deserialize(body, content_type)
        return body

    def deserialize_rows(self, body: bytes, content_type: str, count: int, /) -> Sequence[Any]:
        """Read the answer to several rows: JSON as `aiosmrt.endpoint.split_answer` does, everything else line by line.

        A single line of CSV with as many fields as there are rows has a field for each.

        Args:
            body: the response body.
            content_type: its content type; empty if it is missing.
            count: the number of rows.

        Raises:
            DeserializationError: the body is not what its content type says, or has no values for rows.

        >>> AnyAnswer().deserialize_rows(b"0.25,yes\\n0.5,no", "text/csv", 2)
        [[0.25, 'yes'], [0.5, 'no']]
        """
        media_type = _media_type(content_type)
        if not _CSV.fullmatch(media_type):
            return split_answer(self.deserialize(body, content_type), count)
        rows = _csv_rows(body, content_type)
        if len(rows) == 1 and len(rows[0]) == count > 1:
            return rows[0]
        return [row[0] if len(row) == 1 else row for row in rows]


def _csv_rows(body: bytes, content_type: str) -> list[list[int | float | str]]:
    return [[_number(field) for field in row] for row in CSV.deserialize(body, content_type)]


def _number(field: str) -> int | float | str:
    text = field.strip()
    if len(text) > _MAX_DIGITS or not (found := _NUMBER.fullmatch(text)):
        return field
    return float(text) if found[2] or found[3] else int(text)


ANY_ANSWER: Final = AnyAnswer()
"""The only `AnyAnswer` that is needed: it does not take options."""


class JSONText:
    """An answer in JSON, on one line, as the model wrote it.

    Args:
        data: its bytes, in UTF-8.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Returns a value and where it ends; unlike `decode`, it looks for no space around it. The decoder's `raw_decode` does
# the same by one function call more, and raises ValueError instead of StopIteration.
_parse: Final = make_scanner(cast("Any", json.JSONDecoder(parse_constant=_refuse)))
_SPACE: Final = b" \t\n\r"


class Verbatim:
    """A deserializer for an output that repeats JSON: parses it to see whether it is JSON, and leaves it as it is.

    That saves writing it again, and keeps numbers as they are. Space around it is left out. Everything else is left to
    the other deserializer: what is not JSON, NaN, several lines, another charset.

    Args:
        deserializer: the other one.
    """

    accept = "*/*"

    def __init__(self, deserializer: Deserializer[Any]) -> None:
        self._deserialize = deserializer.deserialize

    @classmethod
    def of(cls, deserializer: Deserializer[Any]) -> Deserializer[Any]:
        """The same deserializer, or one in front of it if it reads JSON as `json` does."""
        return cls(deserializer) if deserializer in (ANY_ANSWER, JSON) else deserializer

    def deserialize(self, body: bytes, content_type: str, /) -> Any:
        """Read an answer, as `AnyAnswer.deserialize` does.

        >>> Verbatim(ANY_ANSWER).deserialize(b'{"score": 1.50}', "application/json").data
        b'{"score": 1.50}'
        >>> Verbatim(ANY_ANSWER).deserialize(b"NaN", "application/json")
        nan
        """
        # Flask's answers, and others, end with a line feed.
        data = body.strip(_SPACE)
        if _is_utf_8_json(content_type) and b"\n" not in data and b"\r" not in data:
            try:
                text = data.decode()
                _, end = _parse(text, 0)
            except (ValueError, RecursionError, StopIteration):
                pass
            else:
                if end == len(text):
                    return JSONText(data)
        return self._deserialize(body, content_type)
