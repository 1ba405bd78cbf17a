"""The files of a job's output, which survive being killed at any moment.

::

    OUT                 records of scored rows, in the order in which their answers came
    OUT.errors.jsonl    records of failed rows
    OUT.journal         what the job is about, then 20 bytes for each of those records

An entry of the journal has the row, the length of its record and two checksums: the record's and its own. Records of
one file follow each other without gaps, so lengths are enough to find them. On opening, all three files are cut to the
longest prefix on which they agree. The order in which the three reach the disk therefore does not matter, and a record
that was torn by a kill, a full disk or a power failure is as if it had never been written: its row is scored again.

Sync marks separate damage from tearing: they are entries with the number of entries before them that were on the disk
together with their records. A record that is wrong before such a mark was changed by something else, and the job
refuses to go on.

When all rows are done, the records are put in input order: sorted copies of all three files are written and synced, the
journal's copy is renamed to OUT.journal.commit, which decides, and then each copy is renamed over its original. What
finds a commit file on opening finishes the renaming; copies without one are deleted.

All of this blocks; the job calls it in a thread.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

from aiosmrt.batch.rowset import RowSet
from aiosmrt.errors import BatchOutputError

__all__ = ["OutputLog", "Record", "companions"]

# Kind and row, length of the record, its CRC, CRC of the 16 bytes before.
_ENTRY: Final = struct.Struct("<QIII")
_BODY: Final = struct.Struct("<QII")
_SCORED, _FAILED, _SYNCED, _FINISHED = range(4)
_ROW: Final = (1 << 62) - 1

_MAGIC: Final = b"aiosmrt batch journal 1\n"

# Entries and bytes that are read at once.
_ENTRIES: Final = 4096
_READ_BYTES: Final = 1 << 20
_MOST_AT_ONCE: Final = 4 << 20

# A row's place in the table by which records are sorted: offset and kind, length, CRC.
_PLACE: Final = struct.Struct("<QII")


class Record(NamedTuple):
    """What is written for a row.

    Args:
        row: its number in the input, from 0.
        failed: whether the row failed, and the record goes into the errors file.
        data: the record with its line end.
    """

    row: int
    failed: bool
    data: bytes


def companions(out: Path) -> list[Path]:
    """All files that a job with this output may write."""
    names = [out.name, f"{out.name}.errors.jsonl", f"{out.name}.journal"]
    return [out.with_name(f"{name}{end}") for name in names for end in ("", ".sorted", ".commit")]


class _File:
    """A file that is written at its end and read anywhere."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.end: int = 0

    @classmethod
    def open(cls, path: Path) -> _File:
        try:
            return cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        except OSError as error:
            raise _refused(path, error) from error

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        position = self.end
        try:
            while rest:
                written = os.pwrite(self.descriptor, rest, position)
                rest = rest[written:]
                position += written
        except OSError as error:
            raise _refused(self.path, error) from error
        self.end = position

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def cut(self, end: int) -> None:
        """Remove what is behind ``end``."""
        try:
            if self.size != end:
                os.ftruncate(self.descriptor, end)
        except OSError as error:
            raise _refused(self.path, error) from error
        self.end = end

    def sync(self) -> None:
        try:
            # Not on every system; fsync also writes the times.
            getattr(os, "fdatasync", os.fsync)(self.descriptor)
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        os.close(self.descriptor)


class _Sequence:
    """Reads the records of a file one after the other, many at a time."""

    def __init__(self, file: _File, offset: int) -> None:
        self._file = file
        self._offset = offset
        self._buffer = b""
        self._at = 0

    def next(self, length: int) -> bytes:
        """The next ``length`` bytes, or fewer at the file's end."""
        at = self._at
        end = self._at = at + length
        if end > len(self._buffer):
            rest = self._buffer[at:]
            read = self._file.read(max(length - len(rest), _READ_BYTES), self._offset)
            self._offset += len(read)
            self._buffer = rest + read
            at, self._at = 0, length
            return self._buffer[:length]
        return self._buffer[at:end]

    def back(self, length: int) -> None:
        """Go back by the ``length`` that was asked for last."""
        self._at -= length


class OutputLog:
    """The output of a job: rows that are done, and new records.

    Made by `open`. `append` and `sync` may be called by two threads at the same time.

    Attributes:
        scored: rows whose answer is in the output.
        failed: rows that failed, and were not scored since.
        rows_in_input: how many rows the input has; None until a run has reached its end.
    """

    def __init__(self, out: Path, journal: _File) -> None:
        self.scored: RowSet = RowSet()
        self.failed: RowSet = RowSet()
        self.rows_in_input: int | None = None
        self._out_path = out
        self._errors_path = out.with_name(f"{out.name}.errors.jsonl")
        self._journal = journal
        self._out: _File
        self._errors: _File
        self._head = b""
        self._preamble = b""
        self._entries = 0
        self._synced = 0
        # Whether the records are in input order as they are.
        self._ordered = True
        self._last = {_SCORED: -1, _FAILED: -1}
        self._journal_lock = threading.Lock()

    # Opening

    @classmethod
    def open(cls, out: Path, facts: Mapping[str, Any], *, preamble: bytes = b"", fresh: bool = False) -> OutputLog:
        """Lock the output and find out what is done.

        Args:
            out: the output file.
            facts: what the job is about, as JSON values; an output is continued only by a job with the same facts.
            preamble: what the output begins with, such as a header line.
            fresh: whether to start over.

        Raises:
            BatchOutputError: another process writes this output, it belongs to another job or was changed, or one of
                the files cannot be written.
        """
        try:
            # The sorted copy is renamed over the output, and would otherwise replace a symbolic link.
            out = Path(os.path.realpath(out))
            journal, created = _locked_journal(out)
        except OSError as error:
            raise _refused(out, error) from error
        log = cls(out, journal)
        try:
            log._start(dict(facts), preamble, fresh)
        except BaseException:
            if created and not journal.size:
                journal.path.unlink(missing_ok=True)
            log.close()
            raise
        return log

    def _start(self, facts: dict[str, Any], preamble: bytes, fresh: bool) -> None:
        for path in (self._out_path, self._errors_path):
            with suppress(FileNotFoundError):
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise BatchOutputError(f"the output must be a regular file; {path} is not")
                if not self._journal.size and status.st_size and not fresh:
                    raise BatchOutputError(
                        f"{path} exists without a journal, so no job can resume it; "
                        "choose another output, or start over with fresh (--fresh)"
                    )
        found = None if fresh else self._read_head()
        same = json.loads(json.dumps(facts))
        if found is not None and found != same and self._journal.size == len(self._head):
            # Nothing was scored, so there is nothing to lose.
            found = None
        if found is not None and found != same:
            raise BatchOutputError(
                f"{self._out_path} belongs to another job: {_difference(found, same)}; "
                "choose another output, or start over with fresh (--fresh)"
            )
        self._preamble = preamble
        self._out = _File.open(self._out_path)
        self._errors = _File.open(self._errors_path)
        if found is None:
            self._journal.cut(0)
            self._out.cut(0)
            self._errors.cut(0)
            head = json.dumps(facts, separators=(",", ":")).encode()
            self._head = _MAGIC + b"%d %d\n" % (len(head), crc32(head)) + head + b"\n"
            self._journal.write(self._head)
            self._out.write(preamble)
            self.sync()
            _sync_folder(self._out_path.parent)
        else:
            self._recover()

    def _read_head(self) -> dict[str, Any] | None:
        """The facts at the journal's beginning. If None, the journal is new, or its beginning is torn."""
        journal = self._journal
        line_end = -1
        if (start := journal.read(len(_MAGIC) + 40, 0)).startswith(_MAGIC):
            line_end = start.find(b"\n", len(_MAGIC))
        if line_end >= 0:
            length, checksum = map(int, start[len(_MAGIC) : line_end].split())
            head = journal.read(length + 1, line_end + 1)
            if len(head) == length + 1 and crc32(head[:-1]) == checksum:
                self._head = start[: line_end + 1] + head
                facts: dict[str, Any] = json.loads(head)
                return facts
        # The head is on the disk before the first record is written.
        if journal.size and self._out_path.exists() and self._out_path.stat().st_size:
            raise BatchOutputError(f"{journal.path} is not a journal of this version, or is damaged")
        return None

    def _read_entries(self) -> Iterator[list[tuple[int, int, int]]]:
        """The entries up to the first that is torn, many at a time: kind and row in one number, length, checksum."""
        offset = len(self._head)
        while chunk := self._journal.read(_ENTRIES * _ENTRY.size, offset):
            offset += len(chunk)
            whole = len(chunk) - len(chunk) % _ENTRY.size
            entries: list[tuple[int, int, int]] = []
            for at, (word, length, checksum, own) in zip(
                range(0, whole, _ENTRY.size), _ENTRY.iter_unpack(chunk[:whole]), strict=True
            ):
                if crc32(chunk[at : at + _BODY.size]) != own:
                    yield entries
                    return
                entries.append((word, length, checksum))
            yield entries
            if whole != len(chunk):
                return

    def _recover(self) -> None:
        """Find the longest prefix on which the files agree, and cut them to it."""
        ends = {_SCORED: len(self._preamble), _FAILED: 0}
        records = {_SCORED: _Sequence(self._out, ends[_SCORED]), _FAILED: _Sequence(self._errors, 0)}
        next_scored = records[_SCORED].next
        note = self._note
        broken: _File | None = None
        if self._out.read(len(self._preamble), 0) != self._preamble:
            broken = self._out
        good = 0
        for entries in self._read_entries():
            if broken is None and self._take_scored(entries, records[_SCORED]):
                ends[_SCORED] += sum(length for _, length, _ in entries)
                good += len(entries)
            elif broken is None:
                for word, length, checksum in entries:
                    if word <= _ROW:  # scored, as nearly all are
                        record = next_scored(length)
                        if crc32(record) != checksum or len(record) != length:
                            broken = self._out
                            break
                        ends[_SCORED] += length
                        note(_SCORED, word)
                    elif (kind := word >> 62) == _FAILED:
                        record = records[_FAILED].next(length)
                        if crc32(record) != checksum or len(record) != length:
                            broken = self._errors
                            break
                        ends[_FAILED] += length
                        note(_FAILED, word & _ROW)
                    elif kind == _FINISHED:
                        self.rows_in_input = word & _ROW
                    else:
                        self._synced = (word & _ROW) + 1
                    good += 1
            if broken is not None:
                # A mark behind vouches for what is wrong here.
                for word, _, _ in entries:
                    if word >> 62 == _SYNCED and word & _ROW > good:
                        raise BatchOutputError(
                            f"{broken.path} was changed by something else: the record of entry {good} is not what the "
                            "job wrote; restore the file, or start over with fresh (--fresh)"
                        )
        self._entries = good
        self._journal.cut(len(self._head) + good * _ENTRY.size)
        if self._out.size < len(self._preamble) or (broken is self._out and not self.scored):
            self._out.cut(0)
            self._out.write(self._preamble)
        self._out.cut(ends[_SCORED])
        self._errors.cut(ends[_FAILED])

    def _take_scored(self, entries: list[tuple[int, int, int]], records: _Sequence) -> bool:
        """Note many entries at once, if all are of scored rows in order and their records are whole."""
        if not entries:
            return True
        first = entries[0][0]
        if first <= self._last[_SCORED] or self.failed or entries[-1][0] != first + len(entries) - 1:
            return False
        total = sum(length for _, length, _ in entries)
        if total > _MOST_AT_ONCE:
            return False
        data = records.next(total)
        at = 0
        for row, (word, length, checksum) in enumerate(entries, first):
            end = at + length
            if word != row or crc32(data[at:end]) != checksum or end > len(data):
                records.back(total)
                return False
            at = end
        self.scored.add_run(first, len(entries))
        self._last[_SCORED] = first + len(entries) - 1
        return True

    def _note(self, kind: int, row: int) -> None:
        last = self._last
        if row < last[kind]:
            self._ordered = False
        else:
            last[kind] = row
        if kind == _SCORED:
            self.scored.add(row)
            if self.failed and row in self.failed:
                self.failed.discard(row)
                self._ordered = False
        elif not self.failed.add(row):
            self._ordered = False

    # Writing

    @property
    def rows(self) -> int:
        """One more than the last row that has a record."""
        return max(self._last.values()) + 1

    def append(self, records: Iterable[Record]) -> None:
        """Write records, of rows that are not scored yet.

        Raises:
            BatchOutputError: a file cannot be written, because the disk is full for example. What was written of these
                records does not count.
        """
        data: dict[int, list[bytes]] = {_SCORED: [], _FAILED: []}
        entries = []
        rows = []
        for row, failed, record in records:
            kind = _FAILED if failed else _SCORED
            data[kind].append(record)
            entries.append(_packed(kind, row, len(record), crc32(record)))
            rows.append((kind, row))
        self._out.write(b"".join(data[_SCORED]))
        self._errors.write(b"".join(data[_FAILED]))
        self._add(entries)
        for kind, row in rows:
            self._note(kind, row)

    def _add(self, entries: list[bytes]) -> None:
        with self._journal_lock:
            self._journal.write(b"".join(entries))
            self._entries += len(entries)

    def sync(self) -> None:
        """Have everything written so far survive a power failure.

        Raises:
            BatchOutputError: the disk does not take it.
        """
        with self._journal_lock:
            entries = self._entries
        if entries == self._synced and entries:
            return
        for file in (self._out, self._errors, self._journal):
            file.sync()
        if entries:
            # The mark is an entry itself.
            self._synced = entries + 1
            self._add([_packed(_SYNCED, entries)])

    # The end

    def finish(self, rows_in_input: int | None) -> None:
        """Put the records in input order.

        Args:
            rows_in_input: how many rows the input has, all of which have a record; None if it has more.

        Raises:
            BatchOutputError: the sorted copies cannot be written; the output is complete, but not sorted.
        """
        if self._ordered:
            if rows_in_input is not None and self.rows_in_input is None:
                self._add([_packed(_FINISHED, rows_in_input)])
                self.rows_in_input = rows_in_input
            self.sync()
            return
        self.sync()
        self._sort(rows_in_input)

    def _sort(self, rows_in_input: int | None) -> None:
        copies: dict[str, _File] = {}
        try:
            for name, file in (("out", self._out), ("errors", self._errors), ("journal", self._journal)):
                copies[name] = copy = _File.open(file.path.with_name(f"{file.path.name}.sorted"))
                copy.cut(0)
                os.fchmod(copy.descriptor, stat.S_IMODE(os.fstat(file.descriptor).st_mode))
            _lock(copies["journal"].descriptor, self._out_path)
            entries = self._write_sorted(copies, rows_in_input)
            for copy in copies.values():
                copy.sync()
            commit = self._journal.path.with_name(f"{self._journal.path.name}.commit")
            copies["journal"].path.replace(commit)
        except BaseException as error:
            for copy in copies.values():
                copy.close()
                copy.path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _refused(self._out_path, error) from error
            raise
        # The copies keep their descriptors, the journal's its lock, under their new names.
        try:
            _sync_folder(self._out_path.parent)
            _roll_forward(self._out_path)
        except OSError as error:
            raise _refused(self._out_path, error) from error
        finally:
            for name, file in (("out", self._out), ("errors", self._errors), ("journal", self._journal)):
                copies[name].path = file.path
                file.close()
            self._out, self._errors, self._journal = copies["out"], copies["errors"], copies["journal"]
        self._entries, self._synced = entries, entries
        self._ordered = True
        self.rows_in_input = rows_in_input

    def _write_sorted(self, copies: dict[str, _File], rows_in_input: int | None) -> int:
        """Write the sorted copies; returns the number of entries of the journal's."""
        writers = {_SCORED: copies["out"], _FAILED: copies["errors"]}
        copies["out"].write(self._preamble)
        copies["journal"].write(self._head)
        entries = 0
        with tempfile.TemporaryFile(dir=self._out_path.parent) as file:
            # In a file, so that memory does not grow with the rows; written out, because touching a page of a sparse
            # file on a full disk would kill the process.
            for at in range(0, self.rows * _PLACE.size, _READ_BYTES):
                file.write(bytes(min(_READ_BYTES, self.rows * _PLACE.size - at)))
            file.flush()
            with mmap.mmap(file.fileno(), self.rows * _PLACE.size) as places:
                ends = {_SCORED: len(self._preamble), _FAILED: 0}
                for some in self._read_entries():
                    for word, length, checksum in some:
                        if (kind := word >> 62) in ends:
                            at = (word & _ROW) * _PLACE.size
                            _PLACE.pack_into(places, at, (ends[kind] << 2) | (kind + 1), length, checksum)
                            ends[kind] += length
                data: dict[int, list[bytes]] = {_SCORED: [], _FAILED: []}
                lines: list[bytes] = []
                held = 0
                originals = {_SCORED: self._out, _FAILED: self._errors}
                for row in range(self.rows):
                    word, length, checksum = _PLACE.unpack_from(places, row * _PLACE.size)
                    kind = (word & 3) - 1
                    if kind < 0:
                        continue
                    record = originals[kind].read(length, word >> 2)
                    if crc32(record) != checksum or len(record) != length:
                        raise BatchOutputError(
                            f"{originals[kind].path} was changed by something else while the job ran"
                        )
                    data[kind].append(record)
                    lines.append(_packed(kind, row, length, checksum))
                    entries += 1
                    held += length
                    if held > _READ_BYTES or len(lines) > _ENTRIES:
                        for written, records in data.items():
                            writers[written].write(b"".join(records))
                            records.clear()
                        copies["journal"].write(b"".join(lines))
                        lines.clear()
                        held = 0
        for written, records in data.items():
            writers[written].write(b"".join(records))
        # All copies are synced before the commit, and so before anything reads this mark.
        lines.append(_packed(_SYNCED, entries))
        entries += 1
        if rows_in_input is not None:
            lines.append(_packed(_FINISHED, rows_in_input))
            entries += 1
        copies["journal"].write(b"".join(lines))
        return entries

    def close(self) -> None:
        """Release the output. An empty errors file is removed."""
        files = [file for name in ("_out", "_errors") if (file := getattr(self, name, None)) is not None]
        if len(files) == 2 and not self._errors.size:
            self._errors.path.unlink(missing_ok=True)
        for file in (*files, self._journal):
            file.close()


def _packed(kind: int, row: int, length: int = 0, checksum: int = 0) -> bytes:
    body = _BODY.pack(kind << 62 | row, length, checksum)
    return body + crc32(body).to_bytes(4, "little")


def _locked_journal(out: Path) -> tuple[_File, bool]:
    """The journal, locked by this process, and whether it was created; unfinished renames are finished."""
    path = out.with_name(f"{out.name}.journal")
    commit = path.with_name(f"{path.name}.commit")
    while True:
        created = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, out)
            # Another process may have renamed its sorted copy over the file, or removed it, before the lock.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                if not commit.exists():
                    for leftover in companions(out):
                        if leftover.name.endswith(".sorted"):
                            leftover.unlink(missing_ok=True)
                    return _File(path, descriptor), created
                _roll_forward(out)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    """Lock a journal.

    Raises:
        BatchOutputError: another process, or another job of this one, has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        raise BatchOutputError("batch scoring needs file locks as POSIX has them, which this system lacks") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BatchOutputError(f"another job is writing {out}") from None


def _roll_forward(out: Path) -> None:
    """Rename the sorted copies over their originals; may be repeated after any interruption."""
    journal = out.with_name(f"{out.name}.journal")
    for path in (out, out.with_name(f"{out.name}.errors.jsonl")):
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}.sorted").replace(path)
    _sync_folder(out.parent)
    journal.with_name(f"{journal.name}.commit").replace(journal)
    _sync_folder(out.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> BatchOutputError:
    return BatchOutputError(f"cannot write {path}: {error.strerror or error}")


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which facts differ, in words."""
    found = []
    for name in sorted({*before, *now}):
        was, is_now = before.get(name), now.get(name)
        if was == is_now:
            continue
        if isinstance(was, dict) and isinstance(is_now, dict):
            found += [f"{name} {_difference(was, is_now)}"]
        elif name not in before or was is None:
            found.append(f"{name} is new")
        elif name not in now or is_now is None:
            found.append(f"{name} is gone")
        else:
            found.append(f"{name} was {was!s:.80}, is {is_now!s:.80}")
    return ", ".join(found)
