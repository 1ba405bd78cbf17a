"""A job's input: which files, whether they are the same as before, and their rows.

Rows are counted from 0 over all files, blank lines aside. What is wrong with one row fails that row; what is wrong with
a file ends the job. Everything here blocks; the job calls it in a thread.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import os
import select
import stat
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TypeAlias, cast

from aiosmrt._aws.s3 import ObjectFacts
from aiosmrt._extras import installed
from aiosmrt.batch.objects import Bucket, ObjectFile, is_s3
from aiosmrt.batch.tables import parquet_reader, records_of, unreadable
from aiosmrt.batch.tasks import JobStoppedError, close_all
from aiosmrt.errors import AiosmrtError, BatchInputError

__all__ = ["STANDARD_INPUT", "InputFormat", "Line", "Source", "format_of"]

# The longest field of CSV.
_CSV_FIELD_CHARACTERS: Final = 1 << 27

InputFormat: TypeAlias = Literal["jsonl", "csv", "text", "parquet", "openai-batch", "file"]

STANDARD_INPUT: Final = "-"

_SUFFIXES: Final[dict[str, InputFormat]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}

_COMPRESSED: Final = (".gz", ".zst", ".zstd")

# Or records, which come from Python.
RowFormat: TypeAlias = InputFormat | Literal["records"]

# What reading raises, of compressed files among others.
_READ_ERRORS: Final = (OSError, EOFError, zlib.error)

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# What a skippable frame begins with, such as those that pzstd writes: RFC 8878, section 3.1.2.
_ZSTD_SKIPPABLE: Final = tuple(bytes((number, 0x2A, 0x4D, 0x18)) for number in range(0x50, 0x60))
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")

# What is not text, by its first bytes.
_NOT_TEXT: Final = {
    **dict.fromkeys(_UTF_16, "UTF-16; the input must be UTF-8"),
    b"PAR1": "Parquet, not what its name or the input format says",
    b"ARROW1": "an Arrow file, which is not read; Parquet is",
    b"Obj\x01": "an Avro file, which is not read; Parquet is",
    **dict.fromkeys((b"BZh%d1AY&SY" % level for level in range(1, 10)), "compressed by bzip2; gzip and zstd are read"),
    b"\xfd7zXZ\x00": "compressed by xz; gzip and zstd are read",
    b"\x04\x22\x4d\x18": "compressed by lz4; gzip and zstd are read",
    b"PK\x03\x04": "a ZIP archive, as workbooks of Excel are; text, gzip, zstd and Parquet are read",
}
_UTF_8_MARK: Final = b"\xef\xbb\xbf"

# Bytes at both ends of a file by which it is known again.
_KNOWN_BY: Final = 1 << 16
_BUFFER_BYTES: Final = 1 << 18

# Rows of Parquet that are read at a time.
_PARQUET_ROWS: Final = 1024

# Seconds between two looks at whether a stream that sends nothing is still wanted.
_LOOK_EVERY: Final = 0.1


def format_of(name: str) -> InputFormat | None:
    """The format that a file's suffix stands for, that of a compression aside; None if it stands for none.

    >>> format_of("rows.jsonl.gz"), format_of("rows.parquet"), format_of("rows.xml")
    ('jsonl', 'parquet', None)
    """
    path = Path(name)
    return _SUFFIXES.get((path.with_suffix("") if is_compressed(name) else path).suffix.lower())


def is_compressed(name: str) -> bool:
    """Whether a file's suffix stands for a compression."""
    return Path(name).suffix.lower() in _COMPRESSED


class FileSet:
    """Files, and URIs of S3, by whatever name: a link is what it leads to, and so is a hard link.

    Args:
        names: files, which need not exist, and URIs.
    """

    def __init__(self, names: Iterable[Path | str]) -> None:
        texts = [os.fspath(name) for name in names]
        self._names = {name if is_s3(name) else os.path.realpath(name) for name in texts}
        self._nodes = {node for name in texts if not is_s3(name) and (node := _node(name)) is not None}

    def __contains__(self, name: object) -> bool:
        if name == STANDARD_INPUT:
            return _node(0) in self._nodes
        if not isinstance(name, str) or is_s3(name):
            return name in self._names
        return os.path.realpath(name) in self._names or _node(name) in self._nodes


def _node(file: str | int) -> tuple[int, int] | None:
    """What a name, or a descriptor, leads to; None if there is nothing."""
    try:
        status = os.stat(file)  # noqa: PTH116 (may be a descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Line(NamedTuple):
    """A row as it was read.

    Args:
        row: its number over all files, from 0.
        data: its bytes without the line's end; the fields of a row of CSV; the record of other rows.
        file: the file's name.
        line: the number of its last line in the file, from 1.
    """

    row: int
    data: Any
    file: str
    line: int


class _Stream(io.RawIOBase):
    """Standard input or another pipe, whose reader can be stopped while it waits."""

    def __init__(self, descriptor: int, source: Source, *, owned: bool) -> None:
        self._descriptor = descriptor
        self._source = source
        self._owned = owned

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while (data := self._read(len(buffer))) is None:
            if self._source.stopped.is_set():
                raise JobStoppedError
        buffer[: len(data)] = data
        self._source._count(len(data))
        return len(data)

    def _read(self, size: int) -> bytes | None:
        """What is there; None if nothing has come yet."""
        if select.select([self._descriptor], [], [], _LOOK_EVERY)[0]:
            # Another reader of the same pipe may have been first.
            with suppress(BlockingIOError):
                return os.read(self._descriptor, size)
        return None

    def close(self) -> None:
        if self._owned and not self.closed:
            os.close(self._descriptor)
        super().close()


class _Counted(io.RawIOBase):
    """A regular file, whose bytes are counted as they are read."""

    def __init__(self, path: str, source: Source) -> None:
        self._file = io.FileIO(path)
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._source._count(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass
class _Input:
    """One file, or a stream.

    Args:
        name: as the user knows it.
        regular: whether it is a regular file, or an object, which can be read again.
        size: bytes; 0 for a stream.
        stored: what S3 knows of an object; None of a file.
    """

    name: str
    regular: bool
    size: int
    stored: ObjectFacts | None = None


class Source:
    """The input of a job.

    Args:
        inputs: files, folders, patterns, objects and prefixes in S3, or ``-`` for standard input.
        input_format: the format. If None, the files' suffixes decide.
        header: whether files of CSV begin with the names of their columns. If not, the names are ``0``, ``1``, ...
        excluded: files and URIs that folders, prefixes and patterns leave out, and that no input may name: the job's
            own output.
        stopped: set to end the reading, by another thread.
        bucket: reads objects of S3. If None, they are refused.

    Attributes:
        input_format: the format.
        columns: the columns of CSV and Parquet, once `prepare` has run.
        schema: the Arrow schema of Parquet and tables, once `prepare` has run; None of other formats.
        wanted: the columns of Parquet that are read. If None, all.
        rows_in_all: how many rows the input has, where it says so before they are read, once `prepare` has run.
        is_known: whether what `prepare` returns tells this input from another that is longer or shorter.
        bytes_in_all: the input's size; None where it is not known.
        stopped: as given.

    Raises:
        BatchInputError: an input does not exist or is the job's own output, or its format is not known.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        input_format: RowFormat | None,
        header: bool,
        excluded: Iterable[Path | str] = (),
        stopped: threading.Event | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        output = FileSet(excluded)
        self._header = header
        self._bucket = bucket
        self._inputs = [found for name in inputs for found in self._expanded(name, input_format, output)]
        _check_different(self._inputs)
        self.input_format: RowFormat = input_format or _common_format(self._inputs)
        if stream := next((one.name for one in self._inputs if not one.regular), None):
            name = "standard input" if stream == STANDARD_INPUT else stream
            if self.input_format == "file":
                raise BatchInputError(f"{name} is a stream; the input format file needs files")
            if self.input_format == "parquet":
                raise BatchInputError(f"{name} is a stream; Parquet is read from files and objects")
        self.columns: list[str] | None = None
        self.schema: Any = None
        self.wanted: list[str] | None = None
        self.rows_in_all: int | None = len(self._inputs) if self.input_format == "file" else None
        regular = all(found.regular for found in self._inputs)
        self.is_known: bool = regular
        self.bytes_in_all: int | None = sum(found.size for found in self._inputs) if regular else None
        # Bytes of the inputs that were read to their ends. Of the current one: fetched, compressed where it is; what
        # they were unpacked to, if they were; and how much of that was made into rows.
        self._bytes_before = 0
        self._fetched = self._unpacked = self._taken = 0
        self.stopped: threading.Event = threading.Event() if stopped is None else stopped
        self._opened: dict[str, BinaryIO] = {}
        self._header_read: set[str] = set()
        self._before: dict[str, Any] = {}

    def _expanded(self, name: str, input_format: RowFormat | None, excluded: FileSet) -> list[_Input]:
        if not is_s3(name):
            return _expanded(name, input_format, excluded)
        if self._bucket is None:
            raise BatchInputError(f"{name}: only local files can be read")
        found = self._bucket.find(name, lambda key: input_format is not None or format_of(key) is not None, excluded)
        return [_Input(uri, True, facts.size, facts) for uri, facts in found]

    @property
    def fraction(self) -> float | None:
        """The share of the input that was made into rows; None where it is not known."""
        if (in_all := self.bytes_in_all) is None:
            return None
        # Buffers hold more than rows were made of: with small files or large rows, the whole input.
        size = self._unpacked or self._fetched
        taken = self._fetched * self._taken / size if size else 0.0
        return min((self._bytes_before + taken) / in_all, 1.0) if in_all else 1.0

    def close(self) -> None:
        """Close what was opened."""
        self.stopped.set()
        files = list(self._opened.values())
        self._opened.clear()
        close_all(*(file.close for file in files))

    def prepare(self) -> dict[str, Any]:
        """Read what is needed before the first row: the columns of CSV, and what the input is known by.

        Returns:
            facts by which the same input is recognized, as JSON values: for each file its size, its time of
            modification, and a hash of its first and last 64 KiB; for a stream a hash of its first line.

        Raises:
            BatchInputError: a file cannot be read, or files of CSV or Parquet have different columns.
        """
        facts = self._facts()
        self._before = facts
        if self.input_format == "parquet" or (self.input_format == "csv" and self._header):
            if self.input_format == "parquet":
                self.rows_in_all = 0
            for found in self._inputs:
                columns = self._columns_of(found) if self.input_format == "csv" else self._schema_of(found)
                if columns is None:
                    continue
                if self.columns is not None and columns != self.columns:
                    raise BatchInputError(f"the columns of {found.name} are not those of the files before it")
                self.columns = columns
        return facts

    def check_unchanged(self) -> None:
        """Make sure that the files are those that `prepare` saw.

        Raises:
            BatchInputError: a file was changed.
        """
        if (now := self._facts()) != self._before:
            names = [name for name in self._before if now.get(name) != self._before[name]]
            raise BatchInputError(
                f"{', '.join(names)} changed while it was read; answers to rows of both versions may be mixed: "
                "start over with fresh (--fresh)"
            )

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for found in self._inputs:
            if found.stored is not None:
                facts[found.name] = self._facts_of_object(found)
            elif found.regular:
                facts[found.name] = self._facts_of(found)
            elif found.name in self._before:
                facts[found.name] = self._before[found.name]
            else:
                file = self._open(found)
                self._opened[found.name] = file
                try:
                    line = file.readline()
                except _READ_ERRORS as error:
                    raise _unreadable(found.name, error) from error
                self._opened[found.name] = cast("BinaryIO", _Resumed(line, file))
                facts[found.name] = {"first line": sha256(line).hexdigest()[:16]}
        return facts

    def _facts_of(self, found: _Input) -> dict[str, Any]:
        try:
            with Path(found.name).open("rb") as file:
                status = os.fstat(file.fileno())
                digest = sha256(file.read(_KNOWN_BY))
                if status.st_size > _KNOWN_BY:
                    file.seek(max(_KNOWN_BY, status.st_size - _KNOWN_BY))
                    digest.update(file.read(_KNOWN_BY))
        except OSError as error:
            raise _unreadable(found.name, error) from error
        return {"size": status.st_size, "modified": status.st_mtime_ns, "hash": digest.hexdigest()[:16]}

    def _facts_of_object(self, found: _Input) -> dict[str, Any]:
        if found.name in self._before and self._bucket is not None:
            # Asked for again, to see whether it has changed.
            stored = self._bucket.facts(found.name)
            return {} if stored is None else {"size": stored.size, "etag": stored.etag}
        stored = found.stored
        return {} if stored is None else {"size": stored.size, "etag": stored.etag}

    def _schema_of(self, found: _Input) -> list[str]:
        """The columns of a Parquet file."""
        with self._parquet(found) as reader:
            schema = reader.schema_arrow
            self.rows_in_all = (self.rows_in_all or 0) + reader.metadata.num_rows
        if len(set(schema.names)) < len(schema.names):
            raise BatchInputError(f"{found.name} has two columns of the same name")
        if self.schema is None:
            self.schema = schema
        return list(schema.names)

    @contextmanager
    def _parquet(self, found: _Input) -> Iterator[Any]:
        """An open Parquet file."""
        # Around the bytes, because pyarrow takes a short read for the end.
        file: Any = io.BufferedReader(self._raw(found, counted=False), _BUFFER_BYTES)
        try:
            try:
                reader = parquet_reader(file)
            except AiosmrtError:
                raise  # of S3, or of the credentials for it
            except (OSError, ValueError) as error:
                raise unreadable(found.name, error) from None
            with reader:
                yield reader
        finally:
            file.close()

    def _columns_of(self, found: _Input) -> list[str] | None:
        """The names in a file's first line, or None if the file is empty."""
        file = self._open(found)
        try:
            first = next(self._parsed_csv(found, file), None)
        except _READ_ERRORS as error:
            raise _unreadable(found.name, error) from error
        finally:
            if found.regular:
                file.close()
            else:
                # It cannot be read again.
                self._opened[found.name] = file
                self._header_read.add(found.name)
        if first is None:
            return None
        names = first[0]
        if not _is_text(names):
            raise BatchInputError(f"the header line of {found.name} is not UTF-8")
        if (name := next((name for name, count in Counter(names).items() if count > 1), None)) is not None:
            fault = f"names the column {name!r:.80} twice" if name else "has several columns without a name"
            raise BatchInputError(f"the header line of {found.name} {fault}")
        return names

    def _open(self, found: _Input) -> BinaryIO:
        """Open a file, decompress it, and skip a byte order mark."""
        if (waiting := self._opened.pop(found.name, None)) is not None:
            return waiting
        raw = self._raw(found)
        file: io.BufferedReader[Any] = io.BufferedReader(raw, _BUFFER_BYTES)
        try:
            start = file.peek(16)
            if start.startswith(_GZIP):
                file = io.BufferedReader(_Gzip(file, self._count_unpacked), _BUFFER_BYTES)
                start = file.peek(16)
            elif start.startswith((_ZSTD, *_ZSTD_SKIPPABLE)):
                file = io.BufferedReader(_Zstd(file, self._count_unpacked), _BUFFER_BYTES)
                start = file.peek(16)
            if start.startswith(_UTF_8_MARK):
                file.read(len(_UTF_8_MARK))
        except BaseException as error:
            file.close()
            if isinstance(error, _READ_ERRORS):
                raise _unreadable(found.name, error) from error
            raise
        what = next((what for signature, what in _NOT_TEXT.items() if start.startswith(signature)), None)
        if what is not None:
            file.close()
            raise BatchInputError(f"{found.name} is {what}")
        return file

    def _raw(self, found: _Input, *, counted: bool = True) -> io.RawIOBase:
        """The bytes of an input.

        Args:
            found: the input.
            counted: whether they count as read.
        """
        try:
            if found.stored is not None and self._bucket is not None:
                return ObjectFile(self._bucket, found.name, found.stored, self._count if counted else _uncounted)
            if found.regular:
                return _Counted(found.name, self) if counted else io.FileIO(found.name)
            if found.name == STANDARD_INPUT:
                return _Stream(0, self, owned=False)
            # Otherwise, opening a FIFO waits for its writer, and nothing can end that.
            return _Stream(os.open(found.name, os.O_RDONLY | os.O_NONBLOCK), self, owned=True)
        except OSError as error:
            raise _unreadable(found.name, error) from error

    def _count(self, size: int) -> None:
        self._fetched += size

    def _count_unpacked(self, size: int) -> None:
        self._unpacked += size

    # Rows

    def rows(self) -> Iterator[Line | None]:
        """All rows, one after the other, until `stopped` is set; None where the next one has to be waited for.

        Raises:
            BatchInputError: a file cannot be read, is cut short, or is not CSV.
        """
        row = 0
        for found in self._inputs:
            if self.input_format == "file":
                if (content := self._whole(found)) is None:
                    return
                self._next_input(found)
                yield Line(row, content, found.name, 1)
                row += 1
                if self.stopped.is_set():
                    return
                continue
            if self.input_format == "parquet":
                for record in self._records(found):
                    yield Line(row, record, found.name, row + 1)
                    row += 1
                    if self.stopped.is_set():
                        return
                continue
            # What `prepare` has read does not count.
            self._fetched = self._unpacked = self._taken = 0
            file = self._open(found)
            try:
                if self.input_format == "csv":
                    skip = self._header and found.name not in self._header_read
                    for fields, number in self._parsed_csv(found, file):
                        if skip:
                            skip = False
                            continue
                        if self.columns is None:
                            self.columns = [str(column) for column in range(len(fields))]
                        yield Line(row, fields, found.name, number)
                        row += 1
                        if self.stopped.is_set():
                            return
                else:
                    name = found.name
                    for number, line in enumerate(file, 1):
                        self._taken += len(line)
                        data = line.rstrip(b"\r\n")
                        if not data or data.isspace():
                            continue
                        yield Line(row, data, name, number)
                        row += 1
                        if self.stopped.is_set():
                            return
                self._next_input(found)
            except JobStoppedError:
                return
            except _READ_ERRORS as error:
                raise _unreadable(found.name, error) from error
            finally:
                file.close()

    def _next_input(self, ended: _Input) -> None:
        self._fetched = self._unpacked = self._taken = 0
        self._bytes_before += ended.size

    def _whole(self, found: _Input) -> bytes | None:
        """A file as it is; None if the reading was stopped."""
        try:
            with io.BufferedReader(self._raw(found), _BUFFER_BYTES) as file:
                return file.read()
        except JobStoppedError:
            return None
        except _READ_ERRORS as error:
            raise _unreadable(found.name, error) from error

    def _records(self, found: _Input) -> Iterator[dict[str, Any]]:
        """The rows of a Parquet file; none where the reading was stopped."""
        try:
            with self._parquet(found) as reader:
                before, rows, in_all = self._bytes_before, 0, max(reader.metadata.num_rows, 1)
                try:
                    for batch in reader.iter_batches(_PARQUET_ROWS, columns=self.wanted, use_threads=False):
                        rows += batch.num_rows
                        self._bytes_before = before + found.size * rows // in_all
                        yield from records_of(batch)
                except AiosmrtError:
                    raise
                except (OSError, ValueError) as error:
                    raise unreadable(found.name, error) from None
        except JobStoppedError:
            self.stopped.set()

    def _decoded(self, file: BinaryIO) -> Iterator[str]:
        for line in file:
            self._taken += len(line)
            yield line.decode(errors="surrogateescape")

    def _parsed_csv(self, found: _Input, file: BinaryIO) -> Iterator[tuple[list[str], int]]:
        """Rows of CSV that have fields, and the numbers of their last lines; bytes that are not UTF-8 as surrogates."""
        # A setting of the whole process, which is only ever raised: by default, fields end at 131,072 characters, and
        # bodies are larger. A limit remains, as a quote that is never closed makes one field of the rest of the file.
        csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_CHARACTERS))
        reader = csv.reader(self._decoded(file), strict=True)
        begins = 1
        try:
            for fields in reader:
                begins = reader.line_num + 1
                if fields:
                    yield fields, reader.line_num
        except csv.Error as error:
            where, reason = f"line {reader.line_num}", str(error)
            if "new-line" in reason:
                # The module's own words are about Python.
                reason = "lines must end with a line feed, or a carriage return and a line feed"
            elif reader.line_num > begins:
                where = f"lines {begins} to {reader.line_num}"
            raise BatchInputError(f"{found.name} is not CSV at {where}: {reason}") from None


class _Gzip(gzip.GzipFile):
    """A compressed file, which is closed with what it is read from."""

    def __init__(self, compressed: io.BufferedReader[Any], count: Callable[[int], object]) -> None:
        super().__init__(fileobj=compressed, mode="rb")
        self._compressed = compressed
        self._count = count

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        self._count(size)
        return size

    def close(self) -> None:
        super().close()
        self._compressed.close()


class _Zstd(io.RawIOBase):
    """A compressed file, which is closed with what it is read from."""

    def __init__(self, compressed: io.BufferedReader[Any], count: Callable[[int], object]) -> None:
        self._count = count
        self._stream = installed("pyarrow", "batch").CompressedInputStream(compressed, "zstd")
        self._compressed = compressed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise _DamagedError(str(error)) from error
        buffer[: len(data)] = data
        self._count(len(data))
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._compressed.close()
        super().close()


class _DamagedError(EOFError):
    """Compressed data is damaged, or cut short."""


def _uncounted(size: int) -> None:
    pass


class _Resumed(io.RawIOBase):
    """A stream whose first line was read already."""

    def __init__(self, line: bytes, rest: BinaryIO) -> None:
        self._line = line
        self._rest = rest

    def readline(self, size: int | None = -1, /) -> bytes:
        line, self._line = self._line, b""
        return line or self._rest.readline()

    def __next__(self) -> bytes:
        if line := self.readline():
            return line
        raise StopIteration

    def close(self) -> None:
        self._rest.close()
        super().close()


def _is_text(fields: list[str]) -> bool:
    joined = "".join(fields)
    if joined.isascii():
        return True
    try:
        joined.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expanded(name: str, input_format: RowFormat | None, excluded: FileSet) -> list[_Input]:
    """The files that an input stands for."""
    if name == STANDARD_INPUT:
        if name in excluded:
            raise BatchInputError("standard input is the output")
        return [_Input(name, regular=False, size=0)]
    name = os.path.normpath(name)
    try:
        status = Path(name).stat()
    except FileNotFoundError:
        if not glob.has_magic(name):
            raise BatchInputError(f"{name} does not exist") from None
        # Path.glob takes no absolute patterns.
        names = sorted(found for found in glob.glob(name, recursive=True) if Path(found).is_file())  # noqa: PTH207
    except OSError as error:
        raise _unreadable(name, error) from error
    else:
        if not stat.S_ISDIR(status.st_mode):
            if name in excluded:
                raise BatchInputError(f"{name} is both input and output")
            return [_described(name)]
        names = sorted(
            str(path)
            for path in Path(name).rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(name).parts)
            and (input_format is not None or format_of(path.name) is not None)
        )
    names = [found for found in names if found not in excluded]
    if not names:
        raise BatchInputError(f"no file matches {name}" if glob.has_magic(name) else f"{name} has no input files")
    return [_described(found) for found in names]


def _check_different(inputs: list[_Input]) -> None:
    """Refuse an input that is named twice: its rows would be paid for twice, and a stream can be read once only."""
    seen: dict[object, str] = {}
    for found in inputs:
        what = "standard input" if found.name == STANDARD_INPUT else found.name
        # By whatever name: a link, a hard link, or standard input.
        node = found.name if is_s3(found.name) else _node(0 if found.name == STANDARD_INPUT else found.name)
        node = found.name if node is None else node
        if node in seen:
            first = seen[node]
            raise BatchInputError(f"{what} is among the inputs twice" + (f": it is {first}" if first != what else ""))
        seen[node] = what


def _described(name: str) -> _Input:
    try:
        status = Path(name).stat()
    except OSError as error:
        raise _unreadable(name, error) from error
    regular = stat.S_ISREG(status.st_mode)
    return _Input(name, regular, status.st_size if regular else 0)


def _common_format(inputs: list[_Input]) -> InputFormat:
    formats = {found.name: format_of(found.name) for found in inputs}
    kinds = set(formats.values())
    unknown = next((name for name, kind in formats.items() if kind is None), None)
    if unknown is not None:
        what = "standard input" if unknown == STANDARD_INPUT else f"{unknown}, whose suffix does not name one"
        raise BatchInputError(
            f"an input format is needed for {what}: one of jsonl, csv, parquet, text and openai-batch"
        )
    if len(kinds) > 1:
        raise BatchInputError(f"the input files have more than one format: {', '.join(sorted(map(str, kinds)))}")
    return cast("InputFormat", kinds.pop())


def _unreadable(name: str, error: Exception) -> BatchInputError:
    if isinstance(error, _DamagedError):
        return BatchInputError(f"{name} is damaged, or cut short: {error}")
    if isinstance(error, EOFError):
        return BatchInputError(f"{name} is cut short: its compressed data does not end")
    if isinstance(error, (gzip.BadGzipFile, zlib.error)):
        return BatchInputError(f"{name} is damaged: {error}")
    return BatchInputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}")
