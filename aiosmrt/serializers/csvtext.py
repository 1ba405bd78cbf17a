"""Comma-separated values."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from aiosmrt.errors import DeserializationError, SerializationError
from aiosmrt.serializers.codec import BYTE_ORDER_MARK, Codec
from aiosmrt.serializers.frames import frame_columns, is_frame, is_pandas_frame
from aiosmrt.serializers.objects import SupportsRead, as_items, is_listable, type_name

__all__ = ["CSV", "CSVCodec"]

_PLAIN: Final = frozenset({bool, float, int, str, type(None)})


class _Rows(list[str]):
    """Collects the rows that csv writes, one call for each, without their line ends."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n"))


@dataclass(frozen=True, kw_only=True)
class CSVCodec(Codec):
    r"""Comma-separated values (RFC 4180), without a header line.

    Serializes an iterable of rows or a single row, a row being an iterable of fields; NumPy arrays of one or two
    dimensions; and text, bytes and open files, which are sent as they are. If the first item is a row, all are:
    ``["a", "b"]`` is a row of two fields. A field is written with ``str``; None is an empty field, NaN is ``nan``.
    Rows are separated by LF, without one after the last. Refuses dictionaries and sets, whose fields are not ordered.

    Also serializes the rows of tables: a DataFrame of pandas as its ``to_csv(header=False, index=False)``, as the
    SageMaker SDK does (a missing value is an empty field, and LF follows the last row), and a DataFrame of polars, a
    ``pyarrow.Table`` or a ``RecordBatch`` as a list of rows.

    Deserializes to a list of rows, each a list of ``str``; blank lines are skipped. A field may be as long as
    ``csv.field_size_limit()`` allows.

    Args:
        delimiter: the character between fields. Defaults to a comma.
        content_type: the request's type, such as ``"text/csv; label_size=0"``.
        accept: the response's type; CSV by another name is read as well.

    Raises:
        ParamValidationError: a header is invalid, or the delimiter is not a single character that can be one.

    >>> CSV.serialize([[1.5, "a"], [2, "b, c"]])
    b'1.5,a\n2,"b, c"'
    >>> CSV.serialize([1.5, 2, None])
    b'1.5,2,'
    >>> CSV.deserialize(b"0.25,yes\r\n0.5,no\r\n", "text/csv; charset=utf-8")
    [['0.25', 'yes'], ['0.5', 'no']]
    >>> CSV.serialize([[1.5, 2], [b"3", 4]])
    Traceback (most recent call last):
        ...
    aiosmrt.errors.SerializationError: data[1][0] must have a text form; got a bytes
    """

    delimiter: str = ","
    content_type: str = "text/csv"
    accept: str = "text/csv"

    _kin = "text/plain|(application|text)/(x-)?(csv|comma-separated-values)"

    def _option_faults(self) -> Iterable[str]:
        if not isinstance(self.delimiter, str) or len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            yield f"delimiter must be one character other than a quote, CR or LF; got {self.delimiter!r:.80}"

    def serialize(self, data: Iterable[object] | SupportsRead, /) -> bytes:
        """Write rows.

        Raises:
            SerializationError: an item is neither a row nor a field, or there is nothing to send.
        """
        if (body := self._ready_made(data)) is not None:
            return body
        import csv

        if is_pandas_frame(data):
            return self._encode(self._pandas_csv(data))
        items: list[Any] = _frame_rows(data) if is_frame(data) else as_items(data, "data", "fields or rows")
        if is_listable(items[0]):
            rows = [as_items(item, f"data[{number}]", "fields") for number, item in enumerate(items)]
            names = [f"data[{number}]" for number in range(len(rows))]
        else:
            rows, names = [items], ["data"]
        for row, where in zip(rows, names, strict=True):
            _check_fields(row, where)
        written = _Rows()
        # With this line end, csv quotes fields that contain CR or LF.
        writer = csv.writer(written, delimiter=self.delimiter, lineterminator="\r\n")
        try:
            writer.writerows(rows)
        except ValueError:
            fault = f"{names[len(written)]} contains an integer with more digits than Python writes"
        else:
            return self._encode("\n".join(written))
        raise SerializationError(fault)

    def _pandas_csv(self, frame: Any) -> str:
        """Return what pandas writes, which is what the SageMaker SDK sends."""
        if frame.empty:
            raise SerializationError("data must have rows and columns; got an empty DataFrame")
        try:
            for number, dtype in enumerate(frame.dtypes):
                if dtype.kind == "O":
                    _check_fields(frame.iloc[:, number].tolist(), f"column {number} of data")
            text: str = frame.to_csv(header=False, index=False, sep=self.delimiter, lineterminator="\n")
            return text
        except SerializationError:
            raise
        except Exception:  # of pyarrow, whose types a column may have
            fault = "data has a value that Python cannot express"
        raise SerializationError(fault)

    def deserialize(self, body: bytes, content_type: str, /) -> list[list[str]]:
        """Read rows.

        Raises:
            DeserializationError: the response has another type, or is malformed.
        """
        self._expect(content_type)
        import csv

        text = self._decode(body, content_type).removeprefix(BYTE_ORDER_MARK)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True)
        try:
            return [row for row in reader if row]
        except csv.Error:
            line = reader.line_num
        raise DeserializationError(
            f"the response is not CSV at line {line}, or a field exceeds {csv.field_size_limit()} characters"
        )


def _frame_rows(frame: Any) -> list[tuple[Any, ...]]:
    if rows := list(zip(*frame_columns(frame), strict=True)):
        return rows
    raise SerializationError(f"data must have rows and columns; got an empty {type_name(frame)}")


def _check_fields(row: list[object], where: str) -> None:
    """Refuse a row that contains an object without a meaningful ``str``."""
    for kind in set(map(type, row)) - _PLAIN:
        if issubclass(kind, str):
            continue
        if (
            issubclass(kind, (bytes, bytearray, memoryview))
            or hasattr(kind, "__iter__")
            or (hasattr(kind, "__getitem__") and hasattr(kind, "__len__"))
            or (kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__)
        ):
            number = next(number for number, value in enumerate(row) if type(value) is kind)
            raise SerializationError(f"{where}[{number}] must have a text form; got a {kind.__qualname__}")


CSV: Final = CSVCodec()
"""`CSVCodec` with its defaults."""
