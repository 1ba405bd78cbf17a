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
refuses to go on. A mark also has two checksums of what follows the mark before it: of the entries, and of their scored
records. Opening checks by these and looks at single records only where they do not fit, so a finished job with a
million rows opens in a fraction of a second.

What is cut off has to be the job's own, though, and where no record is whole, anything may have been put in the file's
place. So the first record of a file is announced: entries with its first bytes are on the disk before the record is. A
file that begins otherwise is refused.

When all rows are done, the last entry holds the number of rows in the input. Nothing is torn then, so what is found
behind the records later was added by something else, and the job refuses to cut it off. A job that goes on all the
same, with further rows or failed ones, notes that first.

At the end, the records are put in input order: sorted copies of all three files are written and synced, the
journal's copy is renamed to OUT.journal.commit, which decides, and then each copy is renamed over its original. What
finds a commit file on opening finishes the renaming; copies without one are deleted.

All of this blocks; the job calls it in a thread.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import secrets
import stat
import struct
import sys
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import groupby
from operator import add, itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from aiosmrt.batch.rowset import RowSet
from aiosmrt.batch.tasks import check_wanted, close_all, note_failed_close
from aiosmrt.errors import BatchOutputError

__all__ = ["LogFiles", "OutputLog", "is_at", "sync_folder"]

# Among the facts, what was noted when the job began, and does not have to be the same; what the output begins with is
# among that.
_NOTED: Final = "noted"
_PREAMBLE: Final = "preamble"

# Kind and row, length of the record, its CRC, CRC of the 16 bytes before.
_ENTRY: Final = struct.Struct("<QIII")
_BODY: Final = struct.Struct("<QII")
_CHECKSUM: Final = struct.Struct("<I")
_CHECKED_BODY: Final = struct.Struct("<16sI")
_SCORED, _FAILED, _SYNCED, _FINISHED = range(4)
_ROW: Final = (1 << 62) - 1

# In place of a record's length, which _FINISHED lacks: records follow after all; the first record of a file follows.
_REOPENED: Final = 1
_ANNOUNCED: Final = 2

# How much of a first record is announced, and by an entry: six bytes in place of the row, four of the checksum.
_ANNOUNCED_BYTES: Final = 60
_SHARE: Final = 10
_SHARE_OF_ROW: Final = 6

_MAGIC: Final = b"aiosmrt batch journal 1\n"

# The length of the head and its checksum, on the line behind that.
_SIZES: Final = re.compile(rb"(\d{1,18}) (\d{1,10})\n")

# What the names of sorted copies end with: not as people call theirs, because leftovers are removed.
_COPY: Final = ".sorting"

# An entry as unsigned integers of 32 bits: row; kind and, for rows from 2^32, the rest of the row; length; checksums.
_WORDS: Final = 5
_FAILED_HIGH: Final = _FAILED << 30
_SYNCED_HIGH: Final = _SYNCED << 30

# Entries and bytes that are read at once.
_ENTRIES: Final = 4096
_READ_BYTES: Final = 1 << 20
_MARKED_BYTES: Final = 200_000 * _ENTRY.size

# How far records that are read at once may be apart, in bytes.
_APART_BYTES: Final = 4 << 20

# A row's place in the table by which records are sorted: offset and kind, length, CRC.
_PLACE: Final = struct.Struct("<QII")

# Where a record is: row, offset, length, checksum.
_Found: TypeAlias = tuple[int, int, int, int]


class LogFiles(NamedTuple):
    """Where a log is, all in one folder.

    Args:
        out: the records of scored rows.
        errors: the records of failed rows.
        journal: what the job is about, and the entries.
    """

    out: Path
    errors: Path
    journal: Path

    @classmethod
    def beside(cls, output: Path, records: str = "") -> LogFiles:
        """The files of an output, next to it.

        Args:
            output: the output file.
            records: what is added to its name for the records; nothing where they are the output.
        """
        return cls(*(output.with_name(f"{output.name}{end}") for end in (records, ".errors.jsonl", ".journal")))

    def all(self) -> list[Path]:
        """All files that a log may write, for a moment or for good."""
        return [path.with_name(f"{path.name}{end}") for path in self for end in ("", _COPY, ".commit")]

    def resolved(self) -> LogFiles:
        """The files without symbolic links: a sorted copy renamed over a link would replace it."""
        return LogFiles(*(Path(os.path.realpath(path)) for path in self))


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
            # A full disk takes a part.
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.end)
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
        try:
            os.close(self.descriptor)
        except OSError as error:
            # A network file system may report a failed write only now.
            raise _refused(self.path, error) from error


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


class OutputLog:
    """The output of a job: rows that are done, and new records.

    Made by `open`. `append` and `sync` may be called by two threads at the same time.

    Attributes:
        scored: rows whose answer is in the output.
        failed: rows that failed, and were not scored since.
        rows_in_input: how many rows the input has; None until a run has reached its end.
        noted: what was noted when the job began.
        is_ordered: whether the records are in input order as they are.
    """

    def __init__(self, files: LogFiles, journal: _File) -> None:
        self.scored: RowSet = RowSet()
        self.failed: RowSet = RowSet()
        self.rows_in_input: int | None = None
        self.noted: dict[str, str] = {}
        self._files = files
        self._out_path, self._errors_path, _ = files
        self._journal = journal
        self._out: _File
        self._errors: _File
        self._head = b""
        self._preamble = b""
        self._entries = 0
        self._synced = 0
        self.is_ordered: bool = True
        # Whether an earlier run has ended the log, and nothing was written since.
        self._ended = False
        self._last = {_SCORED: -1, _FAILED: -1}
        self._journal_lock = threading.Lock()
        # What was announced of the files' first records.
        self._announced = {_SCORED: b"", _FAILED: b""}
        # Checksums of the entries since the last mark and of their scored records. If None, they are not known.
        self._since_mark: tuple[int, int] | None = (0, 0)

    # Opening

    @classmethod
    def open(
        cls,
        files: LogFiles | Path,
        facts: Mapping[str, Any],
        *,
        preamble: bytes = b"",
        fresh: bool = False,
        noted: Mapping[str, str] | None = None,
    ) -> OutputLog:
        """Lock the output and find out what is done.

        Args:
            files: where the log is; beside the output if that is given.
            facts: what the job is about, as JSON values; an output is continued only by a job with the same facts.
            preamble: what the output begins with, such as a header line.
            fresh: whether to start over.
            noted: what a new log keeps besides, and gives back as `noted`.

        Raises:
            BatchOutputError: another process writes this output, it belongs to another job or was changed, or one of
                the files cannot be written.
        """
        files = LogFiles.beside(files) if isinstance(files, Path) else files
        try:
            for path in (files.out, files.errors):
                if path.exists() and not path.is_file():
                    raise BatchOutputError(f"the output must be a regular file; {path} is not")
            files = files.resolved()
            journal, created = _locked_journal(files)
        except OSError as error:
            raise _refused(Path(error.filename or files.out), error) from error
        log = cls(files, journal)
        try:
            log._start(dict(facts), preamble, fresh, dict(noted or {}))
        except BaseException as error:
            try:
                close_all(
                    *([partial(journal.path.unlink, missing_ok=True)] if created and not journal.size else []),
                    log.close,
                )
            except Exception as failure:
                note_failed_close(error, failure)
            raise
        return log

    def _start(self, facts: dict[str, Any], preamble: bytes, fresh: bool, noted: dict[str, str]) -> None:
        for path in (self._out_path, self._errors_path):
            with suppress(FileNotFoundError):
                if not self._journal.size and path.stat().st_size and not fresh:
                    raise BatchOutputError(
                        f"{path} exists without a journal, so no job can resume it; "
                        "choose another output, or start over with fresh (--fresh)"
                    )
        found = None if fresh else self._read_head()
        self.noted = {} if found is None else found.pop(_NOTED, {})
        same = json.loads(json.dumps(facts))
        if found is not None and found != same and self._journal.size == len(self._head):
            # No record was written, so nothing of the job is lost.
            before = self.noted.get(_PREAMBLE, "").encode()
            for path, start in ((self._out_path, before), (self._errors_path, b"")):
                if _first_of(path, len(start) + 1) not in (b"", start):
                    raise _replaced(path)
            found = None
        if found is not None and found != same:
            raise BatchOutputError(
                f"{self._out_path} belongs to another job: {_difference(found, same)}; "
                "choose another output, or start over with fresh (--fresh)"
            )
        self._preamble = preamble
        self._out = _locked_output(self._out_path)
        self._errors = _File.open(self._errors_path)
        if found is None:
            self._journal.cut(0)
            self._out.cut(0)
            self._errors.cut(0)
            self.noted = {**noted, "run": secrets.token_hex(8), _PREAMBLE: preamble.decode()}
            head = json.dumps({**facts, _NOTED: self.noted}, separators=(",", ":")).encode()
            self._head = _MAGIC + b"%d %d\n" % (len(head), crc32(head)) + head + b"\n"
            self._journal.write(self._head)
            self._out.write(preamble)
            self.sync()
            sync_folder(self._out_path.parent)
        else:
            self._recover()

    @property
    def run(self) -> str:
        """Tells one start of a job from another, as with ``fresh``."""
        return self.noted.get("run", "")

    @property
    def state(self) -> str:
        """What is in the output, in few characters: two outputs of the same run with the same state are equal."""
        done = sha256(self._head)
        for rows in (self.scored, self.failed):
            done.update(rows.digest())
        return done.hexdigest()[:32]

    def _read_head(self) -> dict[str, Any] | None:
        """The facts at the journal's beginning. If None, the journal is new, or its beginning is torn."""
        journal = self._journal
        start = journal.read(len(_MAGIC) + 40, 0)
        # What was torn by a power failure may have zeros.
        written = start.rstrip(b"\0")
        if not written.startswith(_MAGIC[: len(written)]):
            raise BatchOutputError(
                f"{journal.path} is not a journal of this version; choose another output, or start over with fresh "
                "(--fresh)"
            )
        if sizes := _SIZES.match(start, len(_MAGIC)):
            line_end = sizes.end() - 1
            length, checksum = map(int, sizes.groups())
            head = journal.read(min(length + 1, journal.size), line_end + 1)
            if len(head) == length + 1 and crc32(head[:-1]) == checksum:
                self._head = start[: line_end + 1] + head
                facts: dict[str, Any] = json.loads(head)
                return facts
        # The head is on the disk before the first record is written.
        if journal.size and any(_first_of(path, 1) for path in (self._out_path, self._errors_path)):
            raise BatchOutputError(f"{journal.path} is not a journal of this version, or is damaged")
        return None

    def _read_entries(self, start: int = 0) -> Iterator[list[tuple[int, int, int, int]]]:
        """The entries up to the first that is torn, many at a time: kind and row in one number, length, checksums.

        Args:
            start: the first entry.
        """
        offset = len(self._head) + start * _ENTRY.size
        while chunk := self._journal.read(_ENTRIES * _ENTRY.size, offset):
            offset += len(chunk)
            whole = chunk[: len(chunk) - len(chunk) % _ENTRY.size]
            entries = list(_ENTRY.iter_unpack(whole))
            for number, (body, own) in enumerate(_CHECKED_BODY.iter_unpack(whole)):
                if crc32(body) != own:
                    yield entries[:number]
                    return
            yield entries
            if len(whole) != len(chunk):
                return

    def _recover(self) -> None:
        """Find the longest prefix on which the files agree, and cut them to it."""
        ends = {_SCORED: len(self._preamble), _FAILED: 0}
        broken: _File | None = None
        good = 0
        if self._out.read(len(self._preamble), 0) != self._preamble:
            broken = self._out
        behind_mark = True
        while broken is None:
            if behind_mark and (taken := self._take_marked(good, ends)):
                good += taken
                continue
            entries = next(self._read_entries(good), [])
            at_end = len(entries) < _ENTRIES
            mark = next((number for number, (word, *_) in enumerate(entries, 1) if word >> 62 == _SYNCED), None)
            taken, broken = self._take_singly(entries[:mark], ends)
            good += taken
            behind_mark = mark is not None
            if at_end and not behind_mark:
                break
        if broken is not None:
            # A mark behind vouches for what is wrong here.
            for some in self._read_entries(good):
                for word, *_ in some:
                    if word >> 62 == _SYNCED and word & _ROW > good:
                        raise BatchOutputError(
                            f"{broken.path} was changed by something else: the record of entry {good} is not what the "
                            "job wrote; restore the file, or start over with fresh (--fresh)"
                        )
        if self._ended:
            for file, end in ((self._out, ends[_SCORED]), (self._errors, ends[_FAILED])):
                # All that the job wrote was whole, so this is not its own.
                if file.size > end:
                    raise BatchOutputError(
                        f"{file.path} was changed by something else: {file.size - end} bytes were added after the job "
                        "ended; restore the file, or start over with fresh (--fresh)"
                    )
        if broken is not None:
            # The first record of the other file may be announced behind what is torn.
            for some in self._read_entries(good):
                for word, length, checksum, _ in some:
                    self._take_announcement(word, length, checksum)
        self._check_own(ends)
        self._entries = good
        # The next mark is preceded by entries of the run before, unless that one ended with a mark.
        self._since_mark = (0, 0) if good == self._synced else None
        if self._out.size < len(self._preamble) or (broken is self._out and not self.scored):
            self._out.cut(0)
            self._out.write(self._preamble)
        for file, end in ((self._out, ends[_SCORED]), (self._errors, ends[_FAILED])):
            is_torn = file.size != end
            file.cut(end)
            if is_torn:
                # Before the journal, which announces what is cut off here.
                file.sync()
        self._journal.cut(len(self._head) + good * _ENTRY.size)

    def _check_own(self, ends: Mapping[int, int]) -> None:
        """Refuse files of which no record is whole, unless what they have begins like the job's first record.

        Args:
            ends: where the whole records end.

        Raises:
            BatchOutputError: a file was replaced by something else, which would be cut off.
        """
        for kind, file, preamble in ((_SCORED, self._out, self._preamble), (_FAILED, self._errors, b"")):
            if ends[kind] > len(preamble):
                continue
            found = file.read(len(preamble) + _ANNOUNCED_BYTES, 0)
            begins, rest = found[: len(preamble)], found[len(preamble) :]
            # What was torn by a power failure may have zeros.
            announced = self._announced[kind]
            # All of it where nothing is announced.
            first = (rest[: len(announced)] or rest).rstrip(b"\0")
            if not (preamble.startswith(begins.rstrip(b"\0")) and announced.startswith(first)):
                raise _replaced(file.path)

    def _take_singly(self, entries: list[tuple[int, int, int, int]], ends: dict[int, int]) -> tuple[int, _File | None]:
        """Note entries whose records are whole; returns their number, and the file of the first that is not."""
        files = {_SCORED: self._out, _FAILED: self._errors}
        records = {kind: _Sequence(file, ends[kind]) for kind, file in files.items()}
        for number, (word, length, checksum, _) in enumerate(entries):
            kind = word >> 62
            if kind in files:
                record = records[kind].next(length)
                if crc32(record) != checksum or len(record) != length:
                    return number, files[kind]
                ends[kind] += length
                self._ended = False
                self._note(kind, [word & _ROW])
            elif self._take_announcement(word, length, checksum):
                pass
            elif kind == _FINISHED:
                self.rows_in_input = word & _ROW
                self._ended = length != _REOPENED
            else:
                self._synced = (word & _ROW) + 1
        return len(entries), None

    def _take_announcement(self, word: int, length: int, checksum: int) -> bool:
        """Note an entry that announces a first record; returns whether it does."""
        if word >> 62 != _FINISHED or length != _ANNOUNCED:
            return False
        self._announced[word & 1] = _with_share(self._announced[word & 1], word & _ROW, checksum)
        return True

    def _take_marked(self, start: int, ends: dict[int, int]) -> int:
        """Note the entries before the next marks at once, where the marks' checksums fit.

        Args:
            start: the first entry.
            ends: where the records of the entries before end.

        Returns:
            how many entries were noted; 0 where they have to be looked at one by one.
        """
        if sys.byteorder != "little":
            return 0
        chunk = self._journal.read(_MARKED_BYTES, len(self._head) + start * _ENTRY.size)
        words = array("I", chunk[: len(chunk) - len(chunk) % _ENTRY.size])
        high = words[1::_WORDS]
        taken = 0
        while True:
            try:
                mark = high.index(_SYNCED_HIGH, taken)
            except ValueError:
                return taken
            at, end = taken * _ENTRY.size, mark * _ENTRY.size
            word, of_records, of_entries, own = _ENTRY.unpack_from(chunk, end)
            if crc32(chunk[end : end + _BODY.size]) != own or crc32(chunk[at:end]) != of_entries:
                return taken
            if not self._take_between(words[taken * _WORDS : mark * _WORDS], of_records, ends):
                return taken
            self._synced = (word & _ROW) + 1
            taken = mark + 1

    def _take_between(self, words: array[int], of_records: int, ends: dict[int, int]) -> bool:
        """Note the entries between two marks if their records are whole; returns whether they are."""
        rows, high, lengths = words[0::_WORDS], words[1::_WORDS], words[2::_WORDS]
        failed = 0
        failures: list[int] = []
        if len(rows) != (scored := high.count(0)):
            if len(rows) != scored + high.count(_FAILED_HIGH):
                return False
            records = _Sequence(self._errors, ends[_FAILED])
            checksums = words[3::_WORDS]
            failures = [position for position, kind in enumerate(high) if kind]
            for position in failures:
                if crc32(records.next(lengths[position])) != checksums[position]:
                    return False
                failed += lengths[position]
        length = sum(lengths) - failed
        if self._checksum_of(ends[_SCORED], length) != of_records:
            return False
        ends[_SCORED] += length
        ends[_FAILED] += failed
        if rows:
            self._ended = False
        if rows and rows[0] > max(self._last.values()):
            first = rows[0]
            if rows == array("I", range(first, first + len(rows))):
                at = 0
                for position in (*failures, len(rows)):
                    if position > at:
                        self.scored.add_run(first + at, position - at)
                        self._last[_SCORED] = first + position - 1
                    if position < len(rows):
                        self.failed.add(first + position)
                        self._last[_FAILED] = first + position
                    at = position + 1
                return True
        for kind, some in groupby(zip(high, rows, strict=True), itemgetter(0)):
            self._note(_FAILED if kind else _SCORED, [row for _, row in some])
        return True

    def _checksum_of(self, offset: int, length: int) -> int | None:
        """The checksum of a part of the output; None if it ends before."""
        checksum = 0
        while length:
            data = self._out.read(min(length, _READ_BYTES), offset)
            if not data:
                return None
            checksum = crc32(data, checksum)
            offset += len(data)
            length -= len(data)
        return checksum

    def _note(self, kind: int, rows: list[int]) -> None:
        """Note that rows have records, which follow each other in this order."""
        if not rows:
            return
        in_order, last = sorted(rows), self._last[kind]
        if rows != in_order or rows[0] < last:
            self.is_ordered = False
        self._last[kind] = max(last, in_order[-1])
        if kind == _FAILED:
            if self.failed.update(rows) < len(rows):
                self.is_ordered = False
            return
        self.scored.update(rows)
        if self.failed:
            for row in rows:
                if row in self.failed:
                    self.failed.discard(row)
                    self.is_ordered = False

    # Writing

    @property
    def rows(self) -> int:
        """One more than the last row that has a record."""
        return max(self._last.values()) + 1

    def append(self, scored: Mapping[int, bytes], failed: Mapping[int, bytes]) -> None:
        """Write records, of rows that are not scored yet.

        Args:
            scored: the records of scored rows by their rows, with their line ends.
            failed: those of rows that failed, which go into the errors file.

        Raises:
            BatchOutputError: a file cannot be written, because the disk is full for example. What was written of these
                records does not count.
        """
        if self._ended:
            # Before the first record: what is behind the end is the job's from now on, and may be torn.
            self._add([_packed(_FINISHED, self.rows_in_input or 0, _REOPENED)])
            self._journal.sync()
            self._ended = False
        data, errors = b"".join(scored.values()), b"".join(failed.values())
        firsts = (_SCORED, data, self._out.end - len(self._preamble)), (_FAILED, errors, self._errors.end)
        if announced := [
            entry for kind, first, before in firsts if first and not before for entry in _announcement(kind, first)
        ]:
            self._add(announced)
            self._journal.sync()
        self._out.write(data)
        self._errors.write(errors)
        self._add([*_entries(_SCORED, scored), *_entries(_FAILED, failed)], data)
        self._note(_SCORED, list(scored))
        self._note(_FAILED, list(failed))

    def _add(self, entries: Sequence[bytes], scored: bytes = b"") -> None:
        data = b"".join(entries)
        with self._journal_lock:
            self._journal.write(data)
            self._entries += len(entries)
            if (before := self._since_mark) is not None:
                self._since_mark = crc32(data, before[0]), crc32(scored, before[1])

    def _add_mark(self, synced: int) -> None:
        with self._journal_lock:
            self._journal.write(_mark(synced, self._since_mark))
            self._entries += 1
            self._since_mark = 0, 0

    def sync(self) -> None:
        """Have everything written so far survive a power failure.

        Raises:
            BatchOutputError: the disk does not take it, or a file is not there any more.
        """
        for file in (self._out, self._errors, self._journal):
            if not is_at(file.path, file.descriptor):
                raise BatchOutputError(f"{file.path} was removed, or replaced by something else, while the job ran")
        with self._journal_lock:
            entries = self._entries
        if entries == self._synced and entries:
            return
        for file in (self._out, self._errors, self._journal):
            file.sync()
        if entries:
            # The mark is an entry itself.
            self._synced = entries + 1
            self._add_mark(entries)

    # The end

    def finish(self, rows_in_input: int | None, *, is_unwanted: Callable[[], bool] = lambda: False) -> None:
        """Put the records in input order.

        Args:
            rows_in_input: how many rows the input has, all of which have a record; None if it has more.
            is_unwanted: asked every now and then.

        Raises:
            JobStoppedError: it is no longer wanted; the output is complete, but not sorted.
            BatchOutputError: the sorted copies cannot be written; the output is complete, but not sorted.
        """
        if self.is_ordered:
            if rows_in_input is not None and not (self._ended and self.rows_in_input == rows_in_input):
                self._add([_packed(_FINISHED, rows_in_input)])
                self.rows_in_input = rows_in_input
                self._ended = True
            self.sync()
            return
        self.sync()
        self._sort(rows_in_input, is_unwanted)

    def _sort(self, rows_in_input: int | None, is_unwanted: Callable[[], bool]) -> None:
        copies: dict[str, _File] = {}
        try:
            for name, file in (("out", self._out), ("errors", self._errors), ("journal", self._journal)):
                copies[name] = copy = _File.open(file.path.with_name(f"{file.path.name}{_COPY}"))
                copy.cut(0)
                os.fchmod(copy.descriptor, stat.S_IMODE(os.fstat(file.descriptor).st_mode))
            for name in ("out", "journal"):
                _lock(copies[name].descriptor, self._out_path)
            entries = self._write_sorted(copies, rows_in_input, is_unwanted)
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
            sync_folder(self._out_path.parent)
            _roll_forward(self._files)
        except OSError as error:
            raise _refused(self._out_path, error) from error
        finally:
            for name, file in (("out", self._out), ("errors", self._errors), ("journal", self._journal)):
                copies[name].path = file.path
                file.close()
            self._out, self._errors, self._journal = copies["out"], copies["errors"], copies["journal"]
        self._entries, self._synced = entries, entries
        self._since_mark = None
        self.is_ordered = True
        self.rows_in_input = rows_in_input
        self._ended = rows_in_input is not None

    def _write_sorted(
        self, copies: dict[str, _File], rows_in_input: int | None, is_unwanted: Callable[[], bool]
    ) -> int:
        """Write the sorted copies; returns the number of entries of the journal's."""
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
                ends = [len(self._preamble), 0]
                pack_into, size = _PLACE.pack_into, _PLACE.size
                read = 0
                for some in self._read_entries():
                    check_wanted(is_unwanted)
                    read += len(some)
                    for word, length, checksum, _ in some:
                        if (kind := word >> 62) <= _FAILED:
                            end = ends[kind]
                            pack_into(places, (word & _ROW) * size, (end << 2) | (kind + 1), length, checksum)
                            ends[kind] = end + length
                if read != self._entries:
                    raise _changed(self._journal)
                for scored, failed in self._read_sorted(places):
                    check_wanted(is_unwanted)
                    entries += _write_marked(copies, scored, failed, entries)
        if rows_in_input is not None:
            copies["journal"].write(_packed(_FINISHED, rows_in_input))
            entries += 1
        return entries

    def _read_sorted(self, places: mmap.mmap) -> Iterator[tuple[dict[int, bytes], dict[int, bytes]]]:
        """The records in input order, some at a time: of scored rows, and of those that failed.

        Args:
            places: the table of places.
        """
        for first in range(0, self.rows, _ENTRIES):
            found: tuple[list[_Found], list[_Found]] = ([], [])
            held = 0
            part = places[first * _PLACE.size : (first + _ENTRIES) * _PLACE.size]
            for row, (word, length, checksum) in enumerate(_PLACE.iter_unpack(part), first):
                if word:
                    found[(word & 3) - 1].append((row, word >> 2, length, checksum))
                    held += length
                    if held > _READ_BYTES:
                        yield _records_at(self._out, found[0]), _records_at(self._errors, found[1])
                        found = ([], [])
                        held = 0
            if any(found):
                yield _records_at(self._out, found[0]), _records_at(self._errors, found[1])

    def close(self) -> None:
        """Release the output. An empty errors file is removed.

        Raises:
            BatchOutputError: it cannot be removed, or the disk does not take what was written.
        """
        files = [file for name in ("_out", "_errors") if (file := getattr(self, name, None)) is not None]
        remove = [self._remove_empty_errors] if len(files) == 2 else []
        close_all(*remove, *(file.close for file in (*files, self._journal)))

    def _remove_empty_errors(self) -> None:
        try:
            if not self._errors.size and is_at(self._errors.path, self._errors.descriptor):
                self._errors.path.unlink(missing_ok=True)
        except OSError as error:
            raise _refused(self._errors_path, error) from error


def _packed(kind: int, row: int, length: int = 0, checksum: int = 0) -> bytes:
    body = _BODY.pack(kind << 62 | row, length, checksum)
    return body + crc32(body).to_bytes(4, "little")


def _announcement(kind: int, data: bytes) -> list[bytes]:
    """The entries that announce the first record of a file.

    Args:
        kind: which file it is.
        data: the record, and what follows it.
    """
    entries = []
    for at in range(0, min(len(data), _ANNOUNCED_BYTES), _SHARE):
        share = data[at : min(at + _SHARE, _ANNOUNCED_BYTES)]
        of_row, of_checksum = share[:_SHARE_OF_ROW], share[_SHARE_OF_ROW:]
        row = int.from_bytes(of_row, "little") << 8 | at // _SHARE << 5 | len(share) << 1 | kind
        entries.append(_packed(_FINISHED, row, _ANNOUNCED, int.from_bytes(of_checksum, "little")))
    return entries


def _with_share(announced: bytes, row: int, checksum: int) -> bytes:
    """What is announced by the entries before and one more.

    Args:
        announced: by those before.
        row, checksum: the entry's.
    """
    share = (row >> 8).to_bytes(_SHARE_OF_ROW + 1, "little")[:_SHARE_OF_ROW] + checksum.to_bytes(4, "little")
    # A first record that did not reach the file is announced once more.
    return announced[: (row >> 5 & 7) * _SHARE] + share[: row >> 1 & 15]


def _entries(kind: int, records: Mapping[int, bytes]) -> list[bytes]:
    """The entries of records, by their rows."""
    words = [kind << 62 | row for row in records]
    bodies = list(map(_BODY.pack, words, map(len, records.values()), map(crc32, records.values())))
    return list(map(add, bodies, map(_CHECKSUM.pack, map(crc32, bodies))))


def _records_at(file: _File, found: list[_Found]) -> dict[int, bytes]:
    """Records of a file by their rows, read at once where they are close to each other.

    Raises:
        BatchOutputError: one of them is not what was written.
    """
    if not found:
        return {}
    rows, offsets, lengths, checksums = zip(*found, strict=True)
    start, end = min(offsets), max(map(add, offsets, lengths))
    if end - start <= _APART_BYTES:
        block = file.read(end - start, start)
        records = [block[offset - start : offset - start + length] for _, offset, length, _ in found]
    else:
        records = [file.read(length, offset) for _, offset, length, _ in found]
    if (*map(len, records),) != lengths or (*map(crc32, records),) != checksums:
        raise _changed(file)
    return dict(zip(rows, records, strict=True))


def _write_marked(
    copies: Mapping[str, _File], scored: Mapping[int, bytes], failed: Mapping[int, bytes], before: int
) -> int:
    """Write records in input order with their entries and a mark.

    Args:
        copies: the files.
        scored, failed: the records by their rows.
        before: the number of entries that were written before.

    Returns:
        The number of entries that were written.
    """
    data = b"".join(scored.values())
    copies["out"].write(data)
    copies["errors"].write(b"".join(failed.values()))
    entries = _entries(_SCORED, scored)
    if failed:
        by_row = zip([*scored, *failed], [*entries, *_entries(_FAILED, failed)], strict=True)
        entries = [entry for _, entry in sorted(by_row)]
    added = b"".join(entries)
    # All copies are synced before the commit, and so before anything reads this mark.
    mark = _mark(before + len(entries), (crc32(added), crc32(data)))
    copies["journal"].write(added + mark)
    return len(entries) + 1


def _mark(synced: int, since_mark: tuple[int, int] | None) -> bytes:
    of_entries, of_records = since_mark or (0, 0)
    return _packed(_SYNCED, synced, of_records, of_entries)


def _locked_journal(files: LogFiles) -> tuple[_File, bool]:
    """The journal, locked by this process, and whether it was created; unfinished renames are finished."""
    out, _, path = files
    commit = path.with_name(f"{path.name}.commit")
    while True:
        created = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, out)
            # Another process may have renamed its sorted copy over the file, or removed it, before the lock.
            if is_at(path, descriptor):
                if not commit.exists():
                    for leftover in files.all():
                        if leftover.name.endswith(_COPY):
                            leftover.unlink(missing_ok=True)
                    return _File(path, descriptor), created
                _roll_forward(files)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked_output(path: Path) -> _File:
    """The output, locked as the journal is: a job that knows it under another name has another journal.

    Raises:
        BatchOutputError: it cannot be opened, or another job has locked it.
    """
    while True:
        file = _File.open(path)
        try:
            _lock(file.descriptor, path)
            if is_at(path, file.descriptor):
                return file
        except BaseException:
            file.close()
            raise
        # Another job renamed its sorted copy over it before the lock.
        file.close()


def _lock(descriptor: int, out: Path) -> None:
    """Lock a journal, or an output.

    Raises:
        BatchOutputError: another process, or another job of this one, has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        raise BatchOutputError("batch scoring needs POSIX file locks, which this system lacks") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BatchOutputError(f"another job is writing {out}") from None


def _roll_forward(files: LogFiles) -> None:
    """Rename the sorted copies over their originals; may be repeated after any interruption.

    Raises:
        BatchOutputError: the file in the place of the journal's copy is not a journal.
    """
    out, errors, journal = files
    commit = journal.with_name(f"{journal.name}.commit")
    if _first_of(commit, len(_MAGIC)) != _MAGIC:
        raise BatchOutputError(f"{commit} is not a journal of this version; move it away")
    for path in (out, errors):
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}{_COPY}").replace(path)
    sync_folder(out.parent)
    commit.replace(journal)
    sync_folder(out.parent)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_of(path: Path, size: int) -> bytes:
    """The first bytes of a file; none if it does not exist."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        return b""


def _replaced(path: Path) -> BatchOutputError:
    return BatchOutputError(
        f"{path} was put there by something else: the job has written nothing of what is in it; move it away, or start "
        "over with fresh (--fresh)"
    )


def _changed(file: _File) -> BatchOutputError:
    return BatchOutputError(f"{file.path} was changed by something else while the job ran")


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
