"""Tables: Arrow IPC streams and Parquet files. pyarrow is imported when one of the codecs is first used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, TypeAlias

from aiosmrt._extras import installed
from aiosmrt.errors import SerializationError
from aiosmrt.serializers.codec import Codec, parsed
from aiosmrt.serializers.frames import is_pandas_frame
from aiosmrt.serializers.objects import type_name

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

__all__ = ["ARROW", "PARQUET", "ArrowCodec", "ParquetCodec", "SupportsArrowArray", "SupportsArrowStream"]


class SupportsArrowStream(Protocol):
    """An object with the Arrow PyCapsule interface for streams, such as a table of pyarrow, pandas or polars."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Return an ``ArrowArrayStream`` in a capsule."""
        ...


class SupportsArrowArray(Protocol):
    """An object with the Arrow PyCapsule interface for arrays, such as a pyarrow record batch."""

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        """Return an ``ArrowSchema`` and an ``ArrowArray`` in capsules."""
        ...


ArrowTable: TypeAlias = SupportsArrowStream | SupportsArrowArray | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _ArrowBased(Codec, ABC):
    """Makes a table of an object and has it written and read."""

    compression: str | None = None

    _compressions: ClassVar[tuple[str | None, ...]]
    _format: ClassVar[str]

    def _option_faults(self) -> Iterable[str]:
        if self.compression not in self._compressions:
            allowed = ", ".join(map(repr, self._compressions))
            yield f"compression must be one of {allowed}; got {self.compression!r:.80}"

    @abstractmethod
    def _write(self, table: pyarrow.Table, sink: Any) -> None:
        """Write a table into a pyarrow sink."""

    @abstractmethod
    def _read(self, body: bytes) -> pyarrow.Table:
        """Read a table; errors of pyarrow are not caught."""

    def serialize(self, data: ArrowTable, /) -> bytes:
        """Write a table.

        Raises:
            SerializationError: the object cannot be converted to a table, or the format cannot express it.
            ConfigurationError: pyarrow is not installed.
        """
        table = _table(data)
        sink = installed("pyarrow", "arrow").BufferOutputStream()
        try:
            self._write(table, sink)
            body: bytes = sink.getvalue().to_pybytes()
            return body
        except _arrow_faults():
            fault = "data has a column of a type that the format lacks"
        raise SerializationError(fault)

    def deserialize(self, body: bytes, content_type: str, /) -> pyarrow.Table:
        """Read a table.

        Raises:
            DeserializationError: the response has another type, or is malformed.
            ConfigurationError: pyarrow is not installed.
        """
        self._expect(content_type)
        return parsed(lambda: self._validated(body), self._format)

    def _validated(self, body: bytes) -> pyarrow.Table:
        table = self._read(body)
        table.validate(full=True)
        return table


def _arrow_faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that pyarrow raises; their messages quote names and values."""
    return (installed("pyarrow", "arrow").ArrowException, OSError, OverflowError, TypeError, ValueError)


def _table(data: ArrowTable) -> pyarrow.Table:
    pa = installed("pyarrow", "arrow")
    if isinstance(data, pa.Table):
        return data
    from_pandas = is_pandas_frame(data)
    has_arrow = hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")
    if not (isinstance(data, Mapping) or from_pandas or has_arrow):
        raise SerializationError(f"data must be a table; got a {type_name(data)}")
    fault = f"data cannot be converted to a table; got a {type_name(data)}"
    try:
        if not isinstance(data, Mapping):
            # Through the PyCapsule interface, pandas would add some kinds of index as columns.
            return pa.Table.from_pandas(data, preserve_index=False) if from_pandas else pa.table(data)
        columns = {}
        for number, (name, values) in enumerate(data.items()):
            fault = f"data[{number}] cannot be a column: its name is not text, or its values have different Arrow types"
            columns[name] = pa.table({name: values}).column(0)
        fault = "data has columns of different lengths"
        return pa.table(columns)
    except _arrow_faults():
        pass  # with `fault` as it is
    raise SerializationError(fault)


@dataclass(frozen=True, kw_only=True)
class ArrowCodec(_ArrowBased):
    """A table as an Arrow IPC stream (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format).

    Serializes a ``pyarrow.Table``, a ``RecordBatch``, a ``RecordBatchReader``, a DataFrame of pandas without its index,
    any table with the Arrow PyCapsule interface, such as a DataFrame of polars from 1.3, and a mapping from names to
    columns. Deserializes to a ``pyarrow.Table``, which is validated: reading a malformed one could read outside its
    memory. Needs the extra ``arrow``.

    Args:
        compression: how to compress columns. Defaults to None, no compression.
        content_type: the request's type. Defaults to the registered one.
        accept: the response's type.

    Raises:
        ParamValidationError: a header is invalid, or the compression is unknown.

    >>> table = ARROW.deserialize(ARROW.serialize({"age": [29, 31]}), "application/vnd.apache.arrow.stream")
    >>> table.to_pydict()
    {'age': [29, 31]}
    """

    compression: Literal["lz4", "zstd"] | None = None
    content_type: str = "application/vnd.apache.arrow.stream"
    accept: str = "application/vnd.apache.arrow.stream"

    _kin = r"application/(x-apache-|vnd\.apache\.)arrow(\.stream|-stream)?"
    _compressions = (None, "lz4", "zstd")
    _format = "an Arrow IPC stream"

    def _write(self, table: pyarrow.Table, sink: Any) -> None:
        ipc = installed("pyarrow.ipc", "arrow")
        with ipc.new_stream(sink, table.schema, options=ipc.IpcWriteOptions(compression=self.compression)) as writer:
            writer.write_table(table)

    def _read(self, body: bytes) -> pyarrow.Table:
        with installed("pyarrow.ipc", "arrow").open_stream(body) as reader:
            return reader.read_all()


@dataclass(frozen=True, kw_only=True)
class ParquetCodec(_ArrowBased):
    """A table as a Parquet file.

    Serializes what `ArrowCodec` does. Deserializes to a ``pyarrow.Table``, validated; types that Parquet lacks come
    back as the nearest one that it has. Needs the extra ``arrow``.

    Args:
        compression: how to compress columns, or None. Defaults to ``"snappy"``.
        content_type: the request's type. Defaults to SageMaker's, not the registered
            ``application/vnd.apache.parquet``.
        accept: the response's type; the registered one is read as well.

    Raises:
        ParamValidationError: a header is invalid, or the compression is unknown.

    >>> PARQUET.deserialize(PARQUET.serialize({"age": [29, 31]}), "application/x-parquet").to_pydict()
    {'age': [29, 31]}
    """

    compression: Literal["snappy", "gzip", "brotli", "lz4", "zstd"] | None = "snappy"
    content_type: str = "application/x-parquet"
    accept: str = "application/x-parquet"

    _kin = r"application/(x-|vnd\.apache\.)?parquet"
    _compressions = (None, "snappy", "gzip", "brotli", "lz4", "zstd")
    _format = "a Parquet file"

    def _write(self, table: pyarrow.Table, sink: Any) -> None:
        installed("pyarrow.parquet", "arrow").write_table(table, sink, compression=self.compression or "none")

    def _read(self, body: bytes) -> pyarrow.Table:
        pa = installed("pyarrow", "arrow")
        with installed("pyarrow.parquet", "arrow").ParquetFile(pa.BufferReader(body)) as file:
            return file.read()


ARROW: Final = ArrowCodec()
"""`ArrowCodec` with its defaults."""

PARQUET: Final = ParquetCodec()
"""`ParquetCodec` with its defaults."""
