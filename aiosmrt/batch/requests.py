"""From a row of the input to a request body."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from aiosmrt.batch.source import Line, RowFormat
from aiosmrt.errors import AiosmrtError, ParamValidationError, SerializationError
from aiosmrt.serializers import BytesCodec, CSVCodec, JSONCodec, JSONLinesCodec, Serializer, TextCodec

__all__ = ["JoinSource", "Prepared", "RequestMaker", "Row", "template_columns"]

JoinSource: TypeAlias = Literal["None", "Input"]

_PLACEHOLDER: Final = re.compile(r"\{([^{}]+)\}")

# The only column of text.
TEXT_COLUMN: Final = "text"


class Row:
    """A row that is ready to be sent, or cannot be.

    Args:
        number: its number in the input, from 0.
        id: the value of its ``id_field``; None without one.
        record: the parsed row; None where the output does not repeat it.
        body: the request body.
        error: the reason why it cannot be sent; None if it can.
    """

    __slots__ = ("body", "error", "id", "number", "record")

    # Serializing a row means fetching its body, not worth a thread: see `aiosmrt.serializers.weight`.
    nbytes = 0

    def __init__(self, number: int, id: Any, record: Any, body: bytes, error: Exception | None) -> None:
        self.number: int = number
        self.id: Any = id
        self.record: Any = record
        self.body: bytes = body
        self.error: Exception | None = error


class Prepared:
    """A serializer of rows whose bodies were made before, in a thread.

    Args:
        content_type: the content type of the bodies.
    """

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type

    def serialize(self, row: Row, /) -> bytes:
        """Return the row's body, or raise the error of making it."""
        if row.error is not None:
            raise row.error
        return row.body


class _BadRowError(Exception):
    """What is wrong with a row, without its content."""


class RequestMaker:
    """Makes rows of lines.

    Args:
        input_format: how lines are to be read.
        serializer: makes bodies of values.
        columns: the columns of CSV; None until they are known.
        column: the column that is the body. If None, the template or the whole row.
        template: JSON with ``{column}`` in its texts, which is the body. If None, the column or the whole row.
        id_field: the column that names rows in the output.
        join: whether the output repeats the row.
    """

    def __init__(
        self,
        input_format: RowFormat,
        serializer: Serializer[Any],
        *,
        columns: Callable[[], list[str] | None],
        column: str | None,
        template: Any,
        id_field: str | None,
        join: bool,
    ) -> None:
        self._openai = input_format == "openai-batch"
        if self._openai:
            input_format, column, id_field = "jsonl", "body", "custom_id"
        self._format = input_format
        self._serializer = serializer
        self._columns = columns
        self._id_field = id_field
        self._join = join
        self._column = column
        self._fill = None if template is None else _filler(template)
        self._whole = column is None and template is None
        # A line that is the body as it stands is sent without being read.
        as_it_stands = (JSONCodec, JSONLinesCodec, BytesCodec) if input_format == "jsonl" else (BytesCodec,)
        self._raw = (
            self._whole
            and input_format in ("jsonl", "text")
            and type(serializer) in as_it_stands
            and "charset" not in serializer.content_type.lower()
        )
        self._reads = not self._raw or id_field is not None or join

    def row(self, line: Line) -> Row:
        """Make a row, with an error in place of a body where that fails."""
        record: Any = None
        row_id: Any = None
        body = b""
        error: Exception | None = None
        try:
            if self._reads:
                record = self._read(line)
            if self._id_field is not None:
                row_id = _field(record, self._id_field)
            if self._openai:
                _check_openai(record)
            if self._join:
                _check_object(record)
            body = self._body(line, record)
        except _BadRowError as bad:
            error = SerializationError(f"row {line.row} ({line.file}, line {line.line}) {bad}")
        except AiosmrtError as failure:
            error = SerializationError(f"row {line.row} ({line.file}, line {line.line}): {failure}")
        except Exception as failure:
            # Raised by a serializer that is not ours; fails this row, as in `Endpoint.map`.
            error = failure
        return Row(line.row, row_id, record if self._join and error is None else None, body, error)

    def _read(self, line: Line) -> Any:
        data = line.data
        if self._format == "csv":
            return self._read_fields(data)
        if self._format in ("parquet", "records"):
            return data
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise _BadRowError(f"is not UTF-8 at byte {error.start}") from None
        if self._format == "text":
            return {TEXT_COLUMN: text}
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise _BadRowError(f"is not JSON at column {error.colno}") from None
        except (RecursionError, ValueError):
            raise _BadRowError(
                "is JSON that Python cannot read: nested too deeply, or a number of too many digits"
            ) from None

    def _read_fields(self, fields: list[str]) -> dict[str, str]:
        columns = self._columns() or []
        if len(fields) != len(columns):
            raise _BadRowError(f"has {len(fields)} fields, not {len(columns)}")
        joined = "".join(fields)
        if not joined.isascii():
            try:
                joined.encode()
            except UnicodeEncodeError:
                raise _BadRowError("is not UTF-8") from None
        return dict(zip(columns, fields, strict=True))

    def _body(self, line: Line, record: Any) -> bytes:
        if self._raw:
            return line.data if isinstance(line.data, bytes) else b""
        serialize = self._serializer.serialize
        if not self._whole:
            value = _field(record, self._column or "") if self._fill is None else self._fill(record)
            return serialize(self._fit(value))
        if self._format == "text":
            return serialize(self._fit(record[TEXT_COLUMN]))
        if self._format != "jsonl" and isinstance(record, dict) and isinstance(self._serializer, CSVCodec):
            return serialize(list(record.values()))
        if self._format == "csv" and isinstance(self._serializer, (TextCodec, BytesCodec)):
            return serialize(self._fit(csv_line(record.values())))
        return serialize(self._fit(record))

    def _fit(self, value: Any) -> Any:
        """A value as the serializer takes it."""
        serializer = self._serializer
        if isinstance(serializer, JSONLinesCodec):
            return [value]
        if isinstance(serializer, CSVCodec):
            return value if isinstance(value, (str, list, dict)) else [value]
        if isinstance(serializer, BytesCodec) and isinstance(value, (bytes, bytearray, memoryview)):
            return value
        if isinstance(serializer, (TextCodec, BytesCodec)):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            return text if isinstance(serializer, TextCodec) else text.encode()
        return value


def csv_line(fields: Any) -> str:
    """A row of CSV without its line end."""
    written = io.StringIO()
    # With this end of a line, csv quotes fields with either of its characters.
    csv.writer(written, lineterminator="\r\n").writerow(fields)
    return written.getvalue().removesuffix("\r\n")


def template_columns(template: Any) -> set[str]:
    """The columns that a template names.

    >>> sorted(template_columns({"inputs": "{question} {context}", "n": [1, "{k}"]}))
    ['context', 'k', 'question']
    """
    if isinstance(template, str):
        return set(_PLACEHOLDER.findall(template))
    if isinstance(template, Mapping):
        return set().union(*map(template_columns, template.values()))
    if isinstance(template, (list, tuple)):
        return set().union(*map(template_columns, template))
    return set()


def _filler(template: Any) -> Callable[[Any], Any]:
    """Make a function that fills a template from a record.

    Raises:
        ParamValidationError: the template is not a JSON value, or names no column.
    """
    try:
        json.dumps(template)
    except (TypeError, ValueError):
        raise ParamValidationError(["template must be a JSON value"]) from None
    if not template_columns(template):
        raise ParamValidationError(["template must name a column, as in {'inputs': '{text}'}"])

    def fill(part: Any, record: Any) -> Any:
        if isinstance(part, str):
            if whole := _PLACEHOLDER.fullmatch(part):
                return _field(record, whole[1])
            return _PLACEHOLDER.sub(lambda found: _as_text(_field(record, found[1])), part)
        if isinstance(part, Mapping):
            return {name: fill(value, record) for name, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [fill(value, record) for value in part]
        return part

    return lambda record: fill(template, record)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_object(record: Any) -> None:
    if not isinstance(record, dict):
        raise _BadRowError("is not a JSON object")


def _check_openai(record: Any) -> None:
    """Refuse what is not a line of OpenAI's Batch API
    (https://platform.openai.com/docs/api-reference/batch/request-input).
    """
    _check_object(record)
    for name, kind, what in (("custom_id", str, "text"), ("url", str, "text"), ("body", dict, "an object")):
        if not isinstance(record.get(name), kind):
            raise _BadRowError(f"is not a line of a batch: {name} must be {what}")
    if record.get("method") != "POST":
        raise _BadRowError("is not a line of a batch: method must be POST")


def _field(record: Any, name: str) -> Any:
    _check_object(record)
    try:
        return record[name]
    except KeyError:
        raise _BadRowError(f"has no column {name!r:.80}") from None
