"""Tables in and out: record batches as records of JSON values, and records as a Parquet file with types.

pyarrow is imported when it is first needed. Everything here blocks; the job calls it in threads.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Context, Decimal
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Final, Self
from uuid import UUID

from aiosmrt._extras import installed
from aiosmrt.batch.tasks import check_wanted
from aiosmrt.errors import BatchInputError, BatchOutputError, SerializationError
from aiosmrt.serializers.frames import is_pandas_frame

__all__ = ["Nearest", "json_value", "parquet_reader", "plain_object", "records_of", "table_batches", "write_parquet"]

# Rows that are converted at a time, and rows of a row group.
_ROWS: Final = 1024
_GROUP_ROWS: Final = 1 << 15
_GROUP_BYTES: Final = 8 << 20

# Facts about the job in the metadata of a Parquet file.
_FACTS: Final = b"aiosmrt.batch"


def pyarrow(module: str = "pyarrow") -> Any:
    """pyarrow, or one of its modules.

    Raises:
        ConfigurationError: it is not installed.
    """
    return installed(module, "batch")


# In


def parquet_reader(file: Any) -> Any:
    """Open a Parquet file so that its memory does not grow with it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not Parquet; pyarrow's ``ArrowInvalid`` is one.
    """
    # Reading ahead would fetch whole row groups of all columns.
    return pyarrow("pyarrow.parquet").ParquetFile(file, pre_buffer=False)


def table_batches(table: Any) -> Iterator[Any]:
    """The record batches of a DataFrame, an Arrow table, or whatever has one of the interfaces for exchanging them."""
    pa = pyarrow()
    if is_pandas_frame(table):
        for start in range(0, len(table), _ROWS):
            yield from pa.Table.from_pandas(table.iloc[start : start + _ROWS], preserve_index=False).to_batches()
        return
    if hasattr(table, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(table)
    elif hasattr(table, "__arrow_c_array__"):
        reader = [pa.record_batch(table)]
    else:
        reader = pyarrow("pyarrow.interchange").from_dataframe(table).to_batches()
    for batch in reader:
        for start in range(0, batch.num_rows, _ROWS):
            yield batch.slice(start, _ROWS)


def records_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch, with values as JSON has them; binary ones stay ``bytes``.

    Times and dates become text as in ISO 8601, durations seconds, short floats the nearest float, and so do decimals;
    those without places become whole numbers.
    """
    names = batch.schema.names
    columns = [_values(column) for column in batch.columns]
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    pa = pyarrow()
    types = pa.types
    if types.is_run_end_encoded(column.type) and types.is_primitive(column.type.value_type):
        column = pyarrow("pyarrow.compute").run_end_decode(column)
    kind = column.type
    if types.is_float16(kind) or types.is_float32(kind):
        # By way of text, as 0.1 is 0.10000000149011612 otherwise.
        column = column.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    elif types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif types.is_duration(kind) and kind.unit == "ns":
        column = column.cast(pa.duration("us"), safe=False)
    elif types.is_time64(kind) and kind.unit == "ns":
        column = column.cast(pa.time64("us"), safe=False)
    values: list[Any] = column.to_pylist()
    if types.is_nested(kind) or types.is_temporal(kind) or types.is_decimal(kind) or types.is_dictionary(kind):
        plain = _plainer(kind)
        return [None if value is None else plain(value) for value in values]
    return values


def _plainer(kind: Any) -> Callable[[Any], Any]:
    """A function that makes JSON values of a type's values, None aside."""
    types = pyarrow().types
    kind = _decoded(kind)
    if types.is_struct(kind):
        members = {(field := kind.field(number)).name: _plainer(field.type) for number in range(kind.num_fields)}
        return lambda value: {
            name: None if (part := value[name]) is None else plain(part) for name, plain in members.items()
        }
    if types.is_map(kind):
        key, item = _plainer(kind.key_type), _plainer(kind.item_type)
        if _is_text(_decoded(kind.key_type)):
            return lambda value: {name: None if part is None else item(part) for name, part in value}
        return lambda value: [[key(name), None if part is None else item(part)] for name, part in value]
    if _is_list(kind):
        item = _plainer(kind.value_type)
        return lambda value: [None if part is None else item(part) for part in value]
    if types.is_decimal(kind):
        # Whole numbers of any length, such as identifiers, keep all their digits.
        return Nearest if kind.scale > 0 else int
    # A union's values are of several types.
    return lambda value: plain_object(value) if isinstance(value, (date, time, timedelta, Decimal, UUID)) else value


class Nearest(float):
    """The number that is nearest to a decimal.

    Args:
        exact: the decimal.
    """

    def __new__(cls, exact: Decimal) -> Self:
        made = super().__new__(cls, exact)
        made.exact = exact
        return made

    exact: Decimal


def _decoded(kind: Any) -> Any:
    """The type of the values that a dictionary, or runs, encode."""
    types = pyarrow().types
    while types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        kind = kind.value_type
    return kind


def _is_text(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    types = pyarrow().types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def plain_object(value: Any) -> Any:
    """What JSON has for an object that `json` does not know.

    Raises:
        TypeError: there is nothing.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        # Whole numbers of any length, such as identifiers, keep all their digits.
        return int(value) if value.is_finite() and value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, (UUID, PurePath)):
        return str(value)
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    raise TypeError(f"JSON has nothing for {type(value).__qualname__}")


_OBJECTS: Final = json.JSONEncoder(default=plain_object)


def json_value(value: Any, what: str = "it") -> Any:
    """A value of Python's as JSON has it, NaN and the infinities as they are.

    Args:
        value: the value.
        what: the value, for the error.

    Raises:
        SerializationError: it has parts that JSON lacks, or cannot be written as JSON.

    >>> json_value({"at": date(2024, 2, 29), "price": Decimal("12.5")})
    {'at': '2024-02-29', 'price': 12.5}
    """
    try:
        return json.loads(_OBJECTS.encode(value))
    except Exception as error:
        # Objects that are not ours raise what they like; the message may quote the value.
        kind = type(error).__name__
    raise SerializationError(f"{what} cannot be written as JSON ({kind})")


# Out


class _Column:
    """A column of the output, whose type is found out.

    Values of different types become text with their JSON.

    Args:
        hint: the type that they had in the input, if they come from there.
    """

    def __init__(self, hint: Any) -> None:
        self._hint = None if hint is None else _writable(hint)
        self._type: Any = None
        self._as_json = False

    def look(self, values: list[Any]) -> None:
        if self._as_json:
            return
        pa = pyarrow()
        try:
            if self._hint is not None:
                _converted(values, self._hint)
                return
            found = pa.array(values).type
            if self._type is None:
                self._type = found
            elif found != self._type:
                schemas = [pa.schema([("", kind)]) for kind in (self._type, found)]
                self._type = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except _faults():
            self._as_json = True

    @property
    def type(self) -> Any:
        pa = pyarrow()
        kind = self._type if self._hint is None else self._hint
        if self._as_json or kind is None or pa.types.is_null(kind) or _has_no_place(kind):
            return pa.string()
        return kind

    def array(self, values: list[Any]) -> Any:
        """Values as what is written.

        Raises:
            _MisfitError: the column has just become text.
        """
        pa = pyarrow()
        if self._as_json or (self._hint is None and self._type is not None and _has_no_place(self._type)):
            return pa.array([None if value is None else _as_json(value) for value in values], pa.string())
        try:
            return _converted(values, self.type)
        except _faults():
            self._as_json = True
        raise _MisfitError


class _MisfitError(Exception):
    """Values did not fit the type that suits the others of their column, which is text from then on."""


def _as_json(value: Any) -> str:
    return _encodable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _encodable(text: str) -> str:
    """A text with its lone surrogates escaped, as in JSON."""
    return text.encode(errors="backslashreplace").decode()


def _writable(kind: Any) -> Any:
    """What a type of the input is in Parquet; None if Parquet has nothing for it."""
    pa, parquet = pyarrow(), pyarrow("pyarrow.parquet")
    if pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    try:
        # It looks at the types of a schema before there are rows.
        parquet.ParquetWriter(pa.BufferOutputStream(), pa.schema([("", kind)])).close()
    except pa.ArrowException:
        return None
    return kind


def _has_no_place(kind: Any) -> bool:
    """Whether Parquet lacks a type: a structure without members."""
    types = pyarrow().types
    if types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_no_place(kind.field(number).type) for number in range(kind.num_fields))
    return types.is_list(kind) and (types.is_null(kind.value_type) or _has_no_place(kind.value_type))


def _converted(values: list[Any], kind: Any) -> Any:
    """An array of a type, of values as `records_of` makes them."""
    pa = pyarrow()
    types = pa.types
    if types.is_dictionary(kind):
        return _converted(values, kind.value_type).cast(kind)
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind):
        parse: Any = datetime.fromisoformat if types.is_timestamp(kind) else date.fromisoformat
        parse = time.fromisoformat if types.is_time(kind) else parse
        return pa.array([None if value is None else parse(value) for value in values], kind)
    if types.is_duration(kind):
        return pa.array([None if value is None else timedelta(seconds=value) for value in values], kind)
    if types.is_decimal(kind):
        # As many digits as Parquet has at most.
        exact, unit = Context(prec=76), Decimal(1).scaleb(-kind.scale)
        return pa.array(
            [None if value is None else exact.quantize(Decimal(str(value)), unit) for value in values], kind
        )
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pa.array([None if value is None else _as_bytes(value) for value in values], kind)
    if types.is_floating(kind):
        return pa.array([None if value is None else float(value) for value in values], kind)
    return pa.array(values, kind)


def _as_bytes(value: Any) -> bytes:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value.encode()


def _faults() -> tuple[type[Exception], ...]:
    return (
        pyarrow().ArrowException,
        # Numbers that a type is too small for.
        ArithmeticError,
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
        RecursionError,
    )


def write_parquet(
    records: Path,
    out: Path,
    *,
    columns: Iterable[str],
    hints: Mapping[str, Any],
    facts: Mapping[str, str],
    is_unwanted: Callable[[], bool] = lambda: False,
) -> None:
    """Write records of JSON into a Parquet file, which appears when it is complete.

    The records are read twice: for their types, and to be written. A part of them is in memory.

    Args:
        records: lines of JSON objects.
        out: the Parquet file.
        columns: what its columns begin with; further members of records follow.
        hints: the types of columns that come from the input.
        facts: kept in its metadata; see `parquet_facts`.
        is_unwanted: asked every now and then.

    Raises:
        BatchOutputError: it cannot be written.
        JobStoppedError: it is no longer wanted.
    """

    def groups() -> Iterator[list[dict[str, Any]]]:
        for some in _groups(records):
            check_wanted(is_unwanted)
            yield some

    pyarrow("pyarrow.parquet")
    partial = out.with_name(f"{out.name}.partial")
    try:
        try:
            found = _look(groups(), columns, hints)
            while True:
                # A group may not fit a type that a later one widened: numbers of 64 bits, among floats. Their column
                # is text in the next attempt, so there is an end.
                with suppress(_MisfitError):
                    _write(groups(), partial, found, facts)
                    break
            partial.replace(out)
            return
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BatchOutputError(f"cannot write {out}: {error.strerror or error}") from error
    except _faults() as error:
        # The message may quote a value.
        kind = type(error).__name__
    raise BatchOutputError(f"cannot write {out}: the records do not fit into Parquet ({kind})")


def _look(
    groups: Iterable[list[dict[str, Any]]], columns: Iterable[str], hints: Mapping[str, Any]
) -> dict[str, _Column]:
    """The columns of groups of records, whose types are found out."""
    found = {name: _Column(hints.get(name)) for name in columns}
    for some in groups:
        for record in some:
            for name in record:
                if name not in found:
                    found[name] = _Column(hints.get(name))
        for name, column in found.items():
            column.look([record.get(name) for record in some])
    return found


def _write(
    groups: Iterable[list[dict[str, Any]]], out: Path, found: Mapping[str, _Column], facts: Mapping[str, str]
) -> None:
    """Write groups of records into a Parquet file.

    Raises:
        _MisfitError: a column has just become text.
    """
    pa, parquet = pyarrow(), pyarrow("pyarrow.parquet")
    schema = pa.schema([(_encodable(name), column.type) for name, column in found.items()])
    schema = schema.with_metadata({_FACTS: json.dumps(dict(facts)).encode()})
    with out.open("wb") as file:
        with parquet.ParquetWriter(file, schema) as writer:
            for some in groups:
                arrays = [column.array([record.get(name) for record in some]) for name, column in found.items()]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _groups(records: Path) -> Iterator[list[dict[str, Any]]]:
    with records.open("rb") as file:
        lines = iter(file)
        while some := list(_up_to(lines, _GROUP_ROWS, _GROUP_BYTES)):
            yield [json.loads(line) for line in some]


def _up_to(lines: Iterator[bytes], most: int, size: int) -> Iterator[bytes]:
    for line in islice(lines, most):
        yield line
        size -= len(line)
        if size <= 0:
            return


def parquet_facts(path: Path) -> dict[str, str] | None:
    """The facts in the metadata of a Parquet file; None if it lacks them."""
    with suppress(OSError, ValueError):
        metadata = pyarrow("pyarrow.parquet").read_schema(path).metadata or {}
        if _FACTS in metadata:
            facts: dict[str, str] = json.loads(metadata[_FACTS])
            return facts
    return None


def unreadable(name: str, error: Exception) -> BatchInputError:
    """The error for a Parquet file that is damaged, or none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return BatchInputError(f"{name} is damaged, or not Parquet: {lines[0]:.200}")
