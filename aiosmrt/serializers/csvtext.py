"""Comma-separated values."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aiosmrt.errors import DeserializationError, SerializationError
from aiosmrt.serializers.codec import BYTE_ORDER_MARK, Codec
from aiosmrt.serializers.objects import SupportsRead, is_listable, listed

__all__ = ["CSV", "CSVCodec"]

_PLAIN: Final = frozenset({bool, float, int, str, type(None)})


class _Rows(list[str]):
    """What csv writes its rows into: one call for each, with the line's end."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n"))


@dataclass(frozen=True, kw_only=True)
class CSVCodec(Codec):
    r"""Comma-separated values (RFC 4180), without a header line.

    Serializes an iterable of rows or a single row, a row being an iterable of fields; NumPy arrays of one or two
    dimensions; and text, bytes and open files, which are sent as they are.  If the first item is a row, they all are:
    ``["a", "b"]`` is a row of two fields.  A field is what ``str`` makes of an object, and empty for None; NaN is
    ``nan``.  Dictionaries and sets are refused, because they have no order of fields, and so are DataFrames, which
    iterate over the names of their columns: send their ``to_csv(header=False, index=False)``.  Between rows is LF, and
    after the last is none.

    Deserializes to a list of rows, each a list of ``str``; blank lines are skipped.  A field may be as long as
    ``csv.field_size_limit()`` allows.

    Args:
        delimiter: what separates fields, a single character.
        content_type: the request's type, such as ``"text/csv; label_size=0"``.
        accept: what the response shall be; CSV by another name is read as well.

    Raises:
        ParamValidationError: a header cannot be one, or the delimiter is not a character that could be one.

    >>> CSV.serialize([[1.5, "a"], [2, "b, c"]])
    b'1.5,a\n2,"b, c"'
    >>> CSV.serialize([1.5, 2, None])
    b'1.5,2,'
    >>> CSV.deserialize(b"0.25,yes\r\n0.5,no\r\n", "text/csv; charset=utf-8")
    [['0.25', 'yes'], ['0.5', 'no']]
    >>> CSV.serialize([[1.5, 2], [b"3", 4]])
    Traceback (most recent call last):
        ...
    aiosmrt.errors.SerializationError: data[1][0] is a bytes, which is not text for a field
    """

    delimiter: str = ","
    content_type: str = "text/csv"
    accept: str = "text/csv"

    _kin = "text/plain|(application|text)/(x-)?(csv|comma-separated-values)"

    def _option_faults(self) -> Iterable[str]:
        if not isinstance(self.delimiter, str) or len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            yield f"delimiter must be one character, and neither a quote nor a line's end; got {self.delimiter!r:.80}"

    def serialize(self, data: Iterable[object] | SupportsRead, /) -> bytes:
        """Write rows.

        Raises:
            SerializationError: something is neither a row nor a field, or there are no rows or fields.
        """
        if (body := self._ready_made(data)) is not None:
            return body
        import csv

        items = listed(data, "data", "fields or rows")
        if is_listable(items[0]):
            rows = [listed(item, f"data[{number}]", "fields") for number, item in enumerate(items)]
            places = [f"data[{number}]" for number in range(len(rows))]
        else:
            rows, places = [items], ["data"]
        for row, where in zip(rows, places, strict=True):
            _check_fields(row, where)
        written = _Rows()
        # With this end of a line, csv quotes fields with either of its characters.
        writer = csv.writer(written, delimiter=self.delimiter, lineterminator="\r\n")
        try:
            writer.writerows(rows)
        except ValueError:
            fault = f"{places[len(written)]} has an integer of more digits than Python writes"
        else:
            return self._encode("\n".join(written))
        raise SerializationError(fault)

    def deserialize(self, body: bytes, content_type: str, /) -> list[list[str]]:
        """Read rows.

        Raises:
            DeserializationError: the response is of another type, or malformed.
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
            f"the response is not CSV at line {line}, or has a field of more than {csv.field_size_limit()} characters"
        )


def _check_fields(row: list[object], where: str) -> None:
    """Refuse a row with an object in it whose ``str`` is not what anybody means to send."""
    for kind in set(map(type, row)) - _PLAIN:
        if issubclass(kind, str):
            continue
        if (
            issubclass(kind, (bytes, bytearray, memoryview))
            or hasattr(kind, "__iter__")
            or (kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__)
        ):
            number = next(number for number, value in enumerate(row) if type(value) is kind)
            raise SerializationError(f"{where}[{number}] is a {kind.__qualname__}, which is not text for a field")


CSV: Final = CSVCodec()
"""`CSVCodec` with its defaults."""
