"""From a row of the input to a request body."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

from aiosmrt.batch.filters import Selection
from aiosmrt.batch.source import Line, RowFormat
from aiosmrt.batch.tables import Nearest, json_value
from aiosmrt.errors import AiosmrtError, ParamValidationError, SerializationError
from aiosmrt.serializers import (
    BytesCodec,
    CSVCodec,
    JSONCodec,
    JSONLinesCodec,
    Serializer,
    TextCodec,
    estimated_size,
)

__all__ = [
    "GROUP_BYTES",
    "BadRowError",
    "Groups",
    "JoinSource",
    "Prepared",
    "RequestMaker",
    "Row",
    "names_whole_row",
    "template_columns",
]

JoinSource: TypeAlias = Literal["None", "Input"]

# A column in braces, or a brace that is written twice and stands for itself.
_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")

# A text that stands for the whole row.
_WHOLE_ROW: Final = "{}"

# Serializers that make a part of each row, so that a body of several rows is its parts and what is between them.
_JOINABLE: Final = frozenset({JSONCodec, JSONLinesCodec, CSVCodec, TextCodec, BytesCodec})

# Stands for the parts where a body is taken apart.
_MARK: Final = "aiosmrt-rows-of-a-body"

GROUP_BYTES: Final = 6 << 20
"""The most that rows are grouped to where no size is given: the default of Batch Transform's ``MaxPayloadInMB``."""

# The only column of text.
TEXT_COLUMN: Final = "text"

# The only column of files: their names.
FILE_COLUMN: Final = "file"


class Row:
    """A row that is ready to be sent, or cannot be.

    Args:
        number: its number in the input, from 0.
        id: the value of its ``id_field``; None without one.
        record: the parsed row; None where the output does not repeat it.
        body: the request body, or its part of a body that several rows share.
        error: the reason why it cannot be sent; None if it can.
        value: what the serializer gets together with the values of other rows, if it cannot make a part of it.
    """

    __slots__ = ("body", "error", "id", "number", "record", "value")

    @property
    def nbytes(self) -> int:
        """How much there is to serialize, see `estimated_size`: nothing where the body was made before."""
        return 0 if self.value is None else estimated_size(self.value)

    def __init__(
        self, number: int, id: Any, record: Any, body: bytes, error: Exception | None, value: Any = None
    ) -> None:
        self.number: int = number
        self.id: Any = id
        self.record: Any = record
        self.body: bytes = body
        self.error: Exception | None = error
        self.value: Any = value


class Prepared:
    """A serializer of rows whose bodies were made before, in a thread.

    Args:
        content_type: the content type of the bodies.
        body_of: makes a body of several rows.
    """

    def __init__(self, content_type: str, body_of: Callable[[list[Row]], bytes]) -> None:
        self.content_type = content_type
        self._body_of = body_of

    def serialize(self, data: Row | list[Row], /) -> bytes:
        """Return the body of a row or of several, or raise the error of making it."""
        first = data[0] if isinstance(data, list) else data
        # A row that has an error is never among others.
        if first.error is not None:
            raise first.error
        return self._body_of(data) if isinstance(data, list) else data.body


class BadRowError(Exception):
    """What is wrong with a row, without its content; the row is the sentence's subject."""


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
        several: whether bodies are made of several rows.
        choose: selects what is sent of a row, in place of column and template. If None, all of it.
        max_bytes: the largest body. If None, no limit.

    Attributes:
        exact: columns whose decimals the output repeats as text, with all their digits. Empty at first.

    Raises:
        ParamValidationError: the template is none, or has no place for several rows.
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
        several: bool = False,
        choose: Selection | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.exact: Collection[str] = ()
        self._openai = input_format == "openai-batch"
        if self._openai:
            input_format, column, id_field = "jsonl", "body", "custom_id"
        self._format = input_format
        self._serializer = serializer
        self._columns = columns
        self._id_field = id_field
        self._join = join
        self._column = column
        self._several = several
        self._max_bytes = max_bytes
        self._whole = column is None and template is None and choose is None
        # What stands around the parts of several rows and between them; None if the serializer makes the whole body.
        self._frame: tuple[bytes, bytes, bytes] | None = None
        self._around: Callable[[list[Any]], Any] = list
        self._by_lines = isinstance(serializer, (CSVCodec, TextCodec, BytesCodec))
        if several:
            if template is not None and not isinstance(serializer, (JSONLinesCodec, CSVCodec, TextCodec)):
                self._around, template = _repeated(template)
            if type(serializer) in _JOINABLE and _is_utf_8(serializer.content_type):
                self._frame = (b"", b"\n", b"")
                if isinstance(serializer, JSONCodec):
                    before, _, behind = serializer.serialize(self._around([_MARK])).partition(b'"%s"' % _MARK.encode())
                    self._frame = (before, b",", behind)
        self._choose = choose
        self._fill = None if template is None else _filler(template)
        # A line that is the body as it stands is sent as it was written.
        as_it_stands = (JSONCodec, JSONLinesCodec, BytesCodec) if input_format == "jsonl" else (BytesCodec,)
        self._raw = (
            self._whole
            and input_format in ("jsonl", "text")
            and type(serializer) in as_it_stands
            and "charset" not in serializer.content_type.lower()
        )
        if input_format == "file":
            # Not even its encoding is of interest.
            self._raw = type(serializer) in _JOINABLE
        needs_record = id_field is not None or join
        # A line that is not JSON is unreadable, and would spoil the bodies of others.
        self._reads = not self._raw or needs_record or input_format == "jsonl"
        # Nothing but the line is needed, whatever it is; or whatever it is, as long as it is JSON.
        self._takes_any = self._raw and not self._reads and max_bytes is None
        self._takes_json = self._raw and not (needs_record or several) and input_format == "jsonl" and max_bytes is None

    def row(self, line: Line) -> Row:
        """Make a row, with an error in place of a body where that fails."""
        if self._takes_any or (self._takes_json and _is_json(line.data)):
            return Row(line.row, None, None, line.data, None)
        record: Any = None
        row_id: Any = None
        joined: Any = None
        body = b""
        value: Any = None
        error: Exception | None = None
        try:
            if self._reads:
                record = self._read(line)
            if self._id_field is not None:
                row_id = self._as_written(_field(record, self._id_field), "its id")
            if self._openai:
                _check_openai(record)
            if self._join:
                _check_object(record)
                exact = {name: str(part.exact) for name in self.exact if isinstance(part := record[name], Nearest)}
                joined = self._as_written({**record, **exact} if exact else record, "it")
            if self._raw:
                body = line.data if isinstance(line.data, bytes) else b""
            elif self._format == "file":
                body = self._serializer.serialize(line.data)
            else:
                body, value = self._part(record)
            if self._max_bytes is not None:
                _check_size(self.size(len(body), 1), self._max_bytes)
        except BadRowError as bad:
            error = SerializationError(f"row {line.row} ({line.file}, line {line.line}) {bad}")
        except AiosmrtError as failure:
            error = SerializationError(f"row {line.row} ({line.file}, line {line.line}): {failure}")
        except Exception as failure:
            # Raised by a serializer that is not ours; fails this row, as in `Endpoint.map`.
            error = failure
        return Row(line.row, row_id, joined if error is None else None, body, error, value)

    def _part(self, record: Any) -> tuple[bytes, Any]:
        """What is sent of a row: its body or its part of one, or, where the serializer makes no parts, its value."""
        if self._several and self._frame is None:
            return b"", self._value(record)
        body = self._serializer.serialize(part := self._fit(self._value(record)))
        if self._several and self._by_lines and isinstance(part, (str, bytes)):
            _check_line(body)
        return body, None

    def _as_written(self, value: Any, what: str) -> Any:
        """What the output repeats of a row, as a JSON value: a row that cannot be written is not sent either."""
        return json_value(value, what) if self._format in ("parquet", "records") else value

    def size(self, parts: int, rows: int) -> int:
        """The size of a body in bytes, as far as it is known before it is made.

        Args:
            parts: the size of its rows' parts, in bytes.
            rows: the number of its rows.
        """
        if self._frame is None:
            return parts
        before, between, behind = self._frame
        return len(before) + len(behind) + parts + len(between) * (rows - 1)

    def body_of(self, rows: list[Row]) -> bytes:
        """The body that several rows share.

        Raises:
            SerializationError: the serializer does not take them, or the body is too large.
        """
        if self._frame is not None:
            before, between, behind = self._frame
            return before + between.join([row.body for row in rows]) + behind
        body = self._serializer.serialize(self._around([row.value for row in rows]))
        if self._max_bytes is not None and len(body) > self._max_bytes:
            raise SerializationError(f"the body has {len(body)} bytes; the limit is {self._max_bytes}")
        return body

    def _read(self, line: Line) -> Any:
        data = line.data
        if self._format == "file":
            return {FILE_COLUMN: line.file}
        if self._format == "csv":
            return self._read_fields(data)
        if self._format in ("parquet", "records"):
            return data
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise BadRowError(f"is not UTF-8 at byte {error.start}") from None
        if self._format == "text":
            return {TEXT_COLUMN: text}
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise BadRowError(f"is not JSON at column {error.colno}") from None
        except (RecursionError, ValueError):
            raise BadRowError(
                "is JSON that Python cannot read: nested too deeply, or a number of too many digits"
            ) from None

    def _read_fields(self, fields: list[str]) -> dict[str, str]:
        columns = self._columns() or []
        if len(fields) != len(columns):
            raise BadRowError(f"has {len(fields)} fields, not {len(columns)}")
        joined = "".join(fields)
        if not joined.isascii():
            try:
                joined.encode()
            except UnicodeEncodeError:
                raise BadRowError("is not UTF-8") from None
        return dict(zip(columns, fields, strict=True))

    def _value(self, record: Any) -> Any:
        """What is sent of a row."""
        if self._fill is not None:
            return self._fill(record)
        if self._column is not None:
            return _field(record, self._column)
        part = record
        if self._choose is not None:
            part = self._choose.of_fields(record) if self._format == "csv" else self._choose(record)
        elif self._format == "text":
            return record[TEXT_COLUMN]
        if self._format in ("parquet", "records") and isinstance(part, dict) and isinstance(self._serializer, CSVCodec):
            return list(part.values())
        if self._format != "csv" or not isinstance(self._serializer, (CSVCodec, TextCodec, BytesCodec)):
            return part
        fields = list(part.values()) if isinstance(part, dict) else part if isinstance(part, list) else [part]
        return fields if isinstance(self._serializer, CSVCodec) else csv_line(fields)

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


class Groups:
    """Gathers the rows of requests.

    Args:
        maker: knows how large a body will be.
        most_rows: rows in a group. If None, no limit.
        most_bytes: bytes in a body, as far as they are known; a row that is larger is a group by itself.
    """

    def __init__(self, maker: RequestMaker, most_rows: int | None, most_bytes: int) -> None:
        self._maker = maker
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._open: list[Row] = []
        self._bytes = 0

    def add(self, row: Row) -> Iterator[list[Row]]:
        """The groups that are full with a row, which may be its own."""
        # What is not serialized yet counts by an estimate.
        size = len(row.body) + row.nbytes
        self._bytes += size
        if self._open and self._maker.size(self._bytes, len(self._open) + 1) > self._most_bytes:
            yield from self.rest()
            self._bytes = size
        self._open.append(row)
        if len(self._open) == self._most_rows:
            yield from self.rest()

    def rest(self) -> Iterator[list[Row]]:
        """The group that is not full, if there is one."""
        group, self._open = self._open, []
        self._bytes = 0
        if group:
            yield group


# Returns a value and where it ends; unlike `decode`, it does not look for space around it, which costs as much as a
# small value.
_parse: Final = json.JSONDecoder().raw_decode


def _is_json(data: bytes) -> bool:
    """Whether a line is a JSON value, without space around it. If not, it may still be one with space."""
    try:
        text = data.decode()
        return _parse(text)[1] == len(text)
    except (ValueError, RecursionError):
        return False


def csv_line(fields: Any) -> str:
    """A row of CSV without its line end."""
    written = io.StringIO()
    # With this end of a line, csv quotes fields with either of its characters.
    csv.writer(written, lineterminator="\r\n").writerow(fields)
    return written.getvalue().removesuffix("\r\n")


def _is_utf_8(content_type: str) -> bool:
    text = content_type.lower()
    return "charset" not in text or "utf-8" in text


def _repeated(template: Any) -> tuple[Callable[[list[Any]], Any], Any]:
    """Take a template apart, at the list whose only item is repeated for each row.

    Returns:
        a function that puts a list into the template, and the template of an item.

    Raises:
        ParamValidationError: it has none such list, several, or names columns elsewhere.
    """
    found: list[Any] = []

    def look(part: Any) -> Callable[[list[Any]], Any]:
        if isinstance(part, (list, tuple)):
            if len(part) == 1 and _names_rows(part[0]):
                found.append(part[0])
                return lambda rows: rows
            items = [look(item) for item in part]
            return lambda rows: [item(rows) for item in items]
        if isinstance(part, Mapping):
            members = {name: look(value) for name, value in part.items()}
            return lambda rows: {name: value(rows) for name, value in members.items()}
        if _names_rows(part):
            found.append(None)
        written = _PLACEHOLDER.sub(lambda brace: brace[0][0], part) if isinstance(part, str) else part
        return lambda rows: written

    around = look(template)
    if len(found) != 1 or found[0] is None:
        fault = (
            "with several rows a request, template needs one list with one item, which is repeated for each row, "
            "such as {'inputs': ['{text}']} or [{'text': '{text}'}], and names columns in it alone"
        )
        raise ParamValidationError([fault])
    return around, found[0]


def _names_rows(template: Any) -> bool:
    if isinstance(template, str):
        return template == _WHOLE_ROW or any(_PLACEHOLDER.findall(template))
    if isinstance(template, Mapping):
        return any(map(_names_rows, template.values()))
    return isinstance(template, (list, tuple)) and any(map(_names_rows, template))


def template_columns(template: Any) -> set[str]:
    """The columns that a template names.

    >>> sorted(template_columns({"inputs": "{question} {context} {{}}", "n": [1, "{k}"]}))
    ['context', 'k', 'question']
    """
    if isinstance(template, str):
        return set(filter(None, _PLACEHOLDER.findall(template)))
    if isinstance(template, Mapping):
        return set().union(*map(template_columns, template.values()))
    if isinstance(template, (list, tuple)):
        return set().union(*map(template_columns, template))
    return set()


def names_whole_row(template: Any) -> bool:
    """Whether a template has the whole row in it."""
    if isinstance(template, Mapping):
        return any(map(names_whole_row, template.values()))
    return any(map(names_whole_row, template)) if isinstance(template, (list, tuple)) else template == _WHOLE_ROW


def _filler(template: Any) -> Callable[[Any], Any]:
    """Make a function that fills a template from a record.

    Raises:
        ParamValidationError: the template is not a JSON value, or names no column.
    """
    try:
        json.dumps(template)
    except (TypeError, ValueError):
        raise ParamValidationError(["template must be a JSON value"]) from None
    if not _names_rows(template):
        raise ParamValidationError(["template must name a column, as in {'inputs': '{text}'}"])

    def fill(part: Any, record: Any) -> Any:
        if isinstance(part, str):
            if part == _WHOLE_ROW:
                return record
            if (whole := _PLACEHOLDER.fullmatch(part)) and whole[1]:
                return _field(record, whole[1])
            return _PLACEHOLDER.sub(lambda found: _as_text(_field(record, found[1])) if found[1] else found[0][0], part)
        if isinstance(part, Mapping):
            return {name: fill(value, record) for name, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [fill(value, record) for value in part]
        return part

    return lambda record: fill(template, record)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_line(body: bytes) -> None:
    if b"\n" in body or not body:
        raise BadRowError("is not a single line, and so cannot share a body with other rows")


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise BadRowError(f"makes a body of {size} bytes; the limit is {most}")


def _check_object(record: Any) -> None:
    if not isinstance(record, dict):
        raise BadRowError("is not a JSON object")


def _check_openai(record: Any) -> None:
    """Refuse what is not a line of OpenAI's Batch API
    (https://platform.openai.com/docs/api-reference/batch/request-input).
    """
    _check_object(record)
    for name, kind, what in (("custom_id", str, "text"), ("url", str, "text"), ("body", dict, "an object")):
        if not isinstance(record.get(name), kind):
            raise BadRowError(f"is not a line of a batch: {name} must be {what}")
    if record.get("method") != "POST":
        raise BadRowError("is not a line of a batch: method must be POST")


def _field(record: Any, name: str) -> Any:
    _check_object(record)
    try:
        return record[name]
    except KeyError:
        raise BadRowError(f"has no column {name!r:.80}") from None
