"""Rows through an asynchronous endpoint: each request is a job, whose answer appears in S3.

``OUT.jobs`` has a line for each request before it is sent, with the name of its future answer (``Filename``), and one
when the service has accepted it, so that a later run waits for the answer in place of paying for another. A row belongs
to the last job that has it. Lines that were torn by a kill are ignored.

A request that was sent, but not answered, may have been accepted: it is *in doubt*. The service cannot be asked for it,
not even by its ``InferenceId``. But its answer, if there is to be one, appears under its name in the place in which the
answers of others are. If its call fails, its answer is looked for there before its rows fail. If the run is killed, or
stopped by an error that all calls meet, the next one looks for it last of all, and sends the request again if nothing
is there once all others have ended. So that this place is known, the first request of all is sent alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from zlib import crc32

from aiosmrt._core.outcome import concerns_every_call
from aiosmrt._policy.polling import next_pause
from aiosmrt.batch.outputlog import is_at, sync_folder
from aiosmrt.batch.requests import Row
from aiosmrt.batch.tasks import close_all, uninterrupted
from aiosmrt.config import JOB_PATIENCE, Unset
from aiosmrt.endpoint import CallOptions, Endpoint, JobHandle
from aiosmrt.endpoint.fanout import Answer
from aiosmrt.endpoint.groups import rows_reader
from aiosmrt.errors import (
    AiosmrtError,
    BatchOutputError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ObjectStoreError,
    ProxyConnectionError,
    SSLError,
)
from aiosmrt.events import AttemptEnded, Event

__all__ = ["JobsUnderWay", "QueuedScoring", "jobs_file", "rewritten"]

# The file is rewritten without what has ended, once it is this large and four times what is left of it.
_REWRITE_BYTES: Final = 4 << 20

# S3's answers that may be others in a moment; None where there was none.
_TRANSIENT: Final = frozenset({None, 429, 500, 502, 503, 504})
_LONGEST_PAUSE: Final = 30.0

# How many places are kept in which answers were: they are in another one once the endpoint has another configuration.
_PLACES: Final = 4

# What names of answers end with, as those that the service makes do. It allows 32 characters.
_SUFFIX: Final = ".out"


def jobs_file(out: Path) -> Path:
    """The file of an output's jobs under way."""
    return out.with_name(f"{out.name}.jobs")


def rewritten(path: Path) -> Path:
    """What a file of jobs is while it is rewritten; a kill leaves it behind."""
    return path.with_name(f"{path.name}.new")


class Place(NamedTuple):
    """Where an endpoint's answers and failures are, shown by one job.

    Args:
        stem: the name of its answer, without the suffix.
        answer: the URI of its answer, with the stem in it.
        failure: the URI of its failure, with the stem in it; None if the endpoint has none, or names it otherwise.
    """

    stem: str
    answer: str
    failure: str | None

    @classmethod
    def of(cls, name: str, handle: JobHandle) -> Place | None:
        """The place that a job shows, whose answer was to have a name; None if the service gave it another one."""
        stem = name.removesuffix(_SUFFIX)
        if stem not in handle.output_location:
            return None
        failure = handle.failure_location
        return cls(stem, handle.output_location, failure if failure is not None and stem in failure else None)

    def is_that_of(self, other: Place) -> bool:
        """Whether another job shows the same place."""
        return self.at(other.stem) == (other.answer, other.failure)

    def at(self, name: str) -> tuple[str, str | None]:
        """The URIs of the answer of a name and of its failure."""
        stem = name.removesuffix(_SUFFIX)
        failure = None if self.failure is None else self.failure.replace(self.stem, stem)
        return self.answer.replace(self.stem, stem), failure


def new_name() -> str:
    """A name for an answer that no other has."""
    return f"{secrets.token_hex(14)}{_SUFFIX}"


class JobsUnderWay:
    """The requests that were sent, or nearly, and whose rows are not done. Blocks; may be used by several threads.

    Args:
        path: the file.
        key: what the jobs are about; a file with another key is started over.
        fresh: whether to start over.
        is_done: whether a row is done.

    Attributes:
        places: where answers are, the latest first; none as long as that is not known.

    Raises:
        BatchOutputError: the file cannot be read or written.
    """

    def __init__(self, path: Path, key: Any, *, fresh: bool, is_done: Callable[[int], bool]) -> None:
        self._path = path
        self._head = _line({"key": sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()})
        self._lock = threading.Lock()
        self.places: list[Place] = []
        # For each row the number of its job, and for each job its rows that are not done, its line, and its handle or,
        # as long as it is in doubt, the name of its answer.
        self._jobs: dict[int, int] = {}
        self._rows: dict[int, set[int]] = {}
        self._lines: dict[int, bytes] = {}
        self._handles: dict[int, tuple[list[int], JobHandle | str]] = {}
        self._number = 0
        self._live = 0
        self._unsynced = False
        try:
            lines = [] if fresh or not path.exists() else path.read_bytes().splitlines(keepends=True)
            if lines and "key" not in (_record(lines[0]) or {}):
                # It is renamed into place as a whole, so this is not a torn one.
                raise BatchOutputError(
                    f"{path} is not a job's; choose another output, or start over with fresh (--fresh)"
                )
            if lines and lines[0] == self._head:
                self._read(lines[1:], is_done)
            self._file = self._rewritten()
        except OSError as error:
            raise self._refused(error) from error

    def _read(self, lines: list[bytes], is_done: Callable[[int], bool]) -> None:
        for line in lines:
            if (record := _record(line)) is None:
                continue
            if "place" in record:
                self._add_place(Place(*record["place"]))
            elif "handle" in record:
                self._add(record["rows"], JobHandle(*record["handle"]), line)
            elif "name" in record:
                self._add(record["rows"], record["name"], line)
            else:
                self._end(record["rows"])
        self._end([row for row in self._jobs if is_done(row)])

    def _rewritten(self) -> int:
        """Write what is under way to a new file, and return its descriptor."""
        new = rewritten(self._path)
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            head = self._head + b"".join(map(_place_line, reversed(self.places)))
            _write(descriptor, b"".join([head, *self._lines.values()]))
            os.fsync(descriptor)
            new.replace(self._path)
            # So that a power failure does not bring back the file before.
            sync_folder(self._path.parent)
        except BaseException:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        self._size = len(head) + self._live
        return descriptor

    def _add_place(self, place: Place) -> None:
        others = [known for known in self.places if not known.is_that_of(place)]
        self.places = [place, *others][:_PLACES]

    def _add(self, rows: Sequence[int], handle: JobHandle | str, line: bytes) -> None:
        self._end(rows)
        self._number += 1
        number = self._number
        self._rows[number] = set(rows)
        self._lines[number] = line
        self._handles[number] = (list(rows), handle)
        self._live += len(line)
        for row in rows:
            self._jobs[row] = number

    def _end(self, rows: Iterable[int]) -> None:
        for row in rows:
            if (number := self._jobs.pop(row, None)) is None:
                continue
            left = self._rows[number]
            left.discard(row)
            if not left:
                self._live -= len(self._lines.pop(number))
                del self._rows[number], self._handles[number]

    def __len__(self) -> int:
        """How many jobs are under way."""
        return len(self._rows)

    def jobs(self) -> set[int | None]:
        """The numbers of the jobs that are under way."""
        return {*self._rows}

    def job_of(self, row: int) -> int | None:
        """The number of a row's job; None if it has none."""
        return self._jobs.get(row)

    def rows_of(self, job: int) -> set[int]:
        """The rows of a job that are not done."""
        return self._rows[job]

    def handle_of(self, job: int | None) -> tuple[list[int], JobHandle | str]:
        """A job's rows, in the order of its body, and its handle or, if it is in doubt, the name of its answer."""
        return self._handles[cast("int", job)]

    def is_in_doubt(self, job: int) -> bool:
        """Whether it is not known if the service has accepted a job."""
        return isinstance(self._handles[job][1], str)

    def intend(self, rows: Sequence[int], name: str) -> None:
        """Note a request that is about to be sent.

        Args:
            rows: its rows.
            name: the name of its answer.

        Raises:
            BatchOutputError: the file cannot be written.
        """
        line = _line({"rows": list(rows), "name": name})
        with self._lock:
            self._add(rows, name, line)
            self._append(line)

    def record(self, rows: Sequence[int], handle: JobHandle, name: str | None = None) -> None:
        """Note a job that was accepted.

        Args:
            rows: its rows.
            handle: finds it again.
            name: the name that its answer was to have.

        Raises:
            BatchOutputError: the file cannot be written.
        """
        line = _line({"rows": list(rows), "handle": list(handle)})
        with self._lock:
            place = None if name is None else Place.of(name, handle)
            if place is not None and not (self.places and self.places[0].is_that_of(place)):
                self._add_place(place)
                self._append(_place_line(place))
            self._add(rows, handle, line)
            self._append(line)

    def withdraw(self, rows: Sequence[int]) -> None:
        """Note a request that was not sent, or refused each time, so that it is not in doubt.

        Raises:
            BatchOutputError: the file cannot be written.
        """
        with self._lock:
            self._end(rows)
            self._append(_line({"rows": list(rows)}))

    def end(self, scored: Sequence[int], failed: Sequence[int]) -> None:
        """Note rows that are done.

        Args:
            scored: rows whose answers are in the output, which is enough.
            failed: rows that failed; when they are scored again, it is by another job.

        Raises:
            BatchOutputError: the file cannot be written.
        """
        with self._lock:
            self._end((*scored, *failed))
            if failed:
                self._append(_line({"rows": list(failed)}))
            elif self._size > max(_REWRITE_BYTES, 4 * self._live):
                self._append(b"")

    def _append(self, line: bytes) -> None:
        try:
            if self._size > max(_REWRITE_BYTES, 4 * self._live):
                old, self._file = self._file, self._rewritten()
                os.close(old)
            else:
                try:
                    _write(self._file, line)
                except OSError:
                    # A torn line would spoil the one behind it.
                    os.ftruncate(self._file, self._size)
                    raise
                self._size += len(line)
                self._unsynced = True
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Have what was noted survive a power failure.

        Raises:
            BatchOutputError: the disk does not take it.
        """
        try:
            with self._lock:
                if not self._unsynced:
                    return
                # Another descriptor: this one may be replaced at any time, and the loop must not wait for the disk.
                descriptor = os.dup(self._file)
                self._unsynced = False
            try:
                getattr(os, "fdatasync", os.fsync)(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the file, and remove it if nothing is under way.

        Raises:
            BatchOutputError: it cannot be removed, or the disk does not take what was written.
        """
        try:
            close_all(*([] if self._rows else [self._remove]), partial(os.close, self._file))
        except OSError as error:
            raise self._refused(error) from error

    def _remove(self) -> None:
        if is_at(self._path, self._file):
            self._path.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> BatchOutputError:
        return BatchOutputError(f"cannot write {self._path}: {error.strerror or error}")


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _place_line(place: Place) -> bytes:
    return _line({"place": list(place)})


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it is torn."""
    text = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % crc32(text):
        return None
    found: dict[str, Any] = json.loads(text)
    return found


class _RowsOf:
    """A deserializer of the answer to so many rows."""

    def __init__(self, accept: str, read: Callable[[int, bytes, str], Sequence[Any]], count: int) -> None:
        self.accept = accept
        self._read = read
        self._count = count

    def deserialize(self, body: bytes, content_type: str, /) -> Sequence[Any]:
        return self._read(self._count, body, content_type)


def _whole(deserializer: Any) -> Callable[[int, bytes, str], Sequence[Any]]:
    def read(count: int, body: bytes, content_type: str) -> Sequence[Any]:
        return (deserializer.deserialize(body, content_type),)

    return read


# Errors of attempts that sent nothing.
_NOTHING_SENT: Final = frozenset(
    error.__name__ for error in (ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError, SSLError)
)


class _Fate:
    """What became of a call's requests. One on a connection that turned out to be closed does not count.

    Attributes:
        is_unknown: whether one of them may have been accepted.
    """

    def __init__(self) -> None:
        self.is_unknown: bool = False


# That of the call that the current task makes.
_fate: ContextVar[_Fate | None] = ContextVar("aiosmrt-fate", default=None)


def _see(event: Event) -> None:
    """Take note of a call's requests; an observer."""
    if (fate := _fate.get()) is None:
        return
    if isinstance(event, AttemptEnded):
        refused = event.error is not None and (event.status is not None or event.error in _NOTHING_SENT)
        fate.is_unknown = fate.is_unknown or not refused


class QueuedScoring:
    """One call for several rows, or for one, through an asynchronous endpoint.

    Args:
        endpoint: its serializer takes rows.
        under_way: where jobs are noted; those that are in it are an earlier run's.
        several: whether rows share bodies. If not, a row's value is the answer as it is.
        split: as for `Endpoint.map`.
        patience: seconds for which S3 may fail; left out, as long as for calls.
        doubt: seconds for which the answer to a request in doubt is looked for, or twice as long as any other answer
            took, if that is longer; see `aiosmrt.batch.score`.
        options_for: the members of a row's call, where it does not share it; None if there are none.
    """

    def __init__(
        self,
        endpoint: Endpoint[Any, Any],
        under_way: JobsUnderWay,
        *,
        several: bool,
        split: Callable[[Any, int], Sequence[Any]] | None,
        patience: float | Unset | None,
        doubt: float,
        options_for: Callable[[Any], CallOptions] | None = None,
    ) -> None:
        self._endpoint = Endpoint(
            endpoint.client._observed_by(_see),
            endpoint.name,
            serializer=endpoint.serializer,
            deserializer=endpoint.deserializer,
            upload_to=endpoint.upload_to,
            **endpoint.options,
        )
        self._options_for = options_for
        self._under_way = under_way
        self._several = several
        self._patience = JOB_PATIENCE if isinstance(patience, Unset) else math.inf if patience is None else patience
        self._doubt = doubt
        self._read = rows_reader(endpoint.deserializer, split) if several else _whole(endpoint.deserializer)
        self._earlier = under_way.jobs()
        # Held by the first request, until its acceptance shows where answers are.
        self._first = asyncio.Lock()
        self._knows_place = bool(under_way.places)
        # How many of those in flight are, or were, an earlier run's in doubt; when the run began; the longest time from
        # a request to its answer.
        self._in_doubt = 0
        self._began = asyncio.get_running_loop().time()
        self._longest = 0.0
        # How many jobs are submitted or awaited.
        self.in_flight: int = 0

    async def __call__(self, rows: list[Row]) -> Answer[Sequence[Any]]:
        self.in_flight += 1
        try:
            return await self._score(rows)
        finally:
            self.in_flight -= 1

    async def _score(self, rows: list[Row]) -> Answer[Sequence[Any]]:
        under_way = self._under_way
        if rows[0].error is not None:
            raise rows[0].error
        numbers = [row.number for row in rows]
        sent = numbers
        handle: JobHandle | None = None
        if (job := under_way.job_of(numbers[0])) in self._earlier:
            # Once: if it fails, its halves are two jobs.
            self._earlier.discard(job)
            sent, known_by = under_way.handle_of(job)
            if isinstance(known_by, str):
                return await self._score_in_doubt(rows, sent, known_by)
            handle = known_by
        return await self._answered(rows, sent, handle)

    async def _score_in_doubt(self, rows: list[Row], sent: list[int], name: str) -> Answer[Sequence[Any]]:
        def is_over() -> bool:
            # Until then, its answer may appear.
            return self._is_late(self._began) and self.in_flight == self._in_doubt

        self._in_doubt += 1
        try:
            return await self._answered(rows, sent, await self._found(name, is_over))
        finally:
            self._in_doubt -= 1

    async def _answered(self, rows: list[Row], sent: list[int], handle: JobHandle | None) -> Answer[Sequence[Any]]:
        """The values of rows.

        Args:
            rows: the rows.
            sent: the rows of the job, in the order of its body.
            handle: the job. If None, the rows are sent.
        """
        numbers, clock = [row.number for row in rows], asyncio.get_running_loop().time
        attempts = 0
        if handle is None:
            attempts, sent = 1, numbers
            handle = await self._submitted(rows, numbers)
        submitted = clock()
        values = await self._answer(handle, len(sent))
        if attempts:
            self._longest = max(self._longest, clock() - submitted)
        if sent != numbers:
            position = {row: at for at, row in enumerate(sent)}
            values = [values[position[number]] for number in numbers]
        return Answer(values, attempts, clock() - submitted, handle.inference_id)

    async def _submitted(self, rows: list[Row], numbers: list[int]) -> JobHandle:
        """Send a request."""
        if self._knows_place:
            return await self._sent(rows, numbers)
        async with self._first:
            if not self._knows_place:
                handle = await self._sent(rows, numbers)
                # If it is still unknown, the service ignores the names asked for, and what is in doubt cannot be found.
                self._knows_place = True
                return handle
        return await self._sent(rows, numbers)

    async def _sent(self, rows: list[Row], numbers: list[int]) -> JobHandle:
        under_way, name = self._under_way, new_name()
        options: CallOptions = {} if self._options_for is None else self._options_for(rows[0])
        fate = _Fate()
        told = _fate.set(fate)
        try:
            await uninterrupted(asyncio.to_thread(under_way.intend, numbers, name))
            job = await self._endpoint.submit(rows if self._several else rows[0], filename=name, **options)
            handle = job.handle
        except BaseException as error:
            if not fate.is_unknown:
                await uninterrupted(asyncio.to_thread(under_way.withdraw, numbers))
                raise
            if not isinstance(error, AiosmrtError) or concerns_every_call(error):
                raise
            # Before its rows fail: one of its requests may have been accepted.
            began = asyncio.get_running_loop().time()
            if (found := await self._found(name, lambda: self._is_late(began))) is None:
                raise
            handle = found
        finally:
            _fate.reset(told)
        # What is accepted is paid for.
        await uninterrupted(asyncio.to_thread(under_way.record, numbers, handle, name))
        return handle

    def _is_late(self, since: float) -> bool:
        """Whether an answer in doubt is not to be expected any more."""
        return asyncio.get_running_loop().time() - since >= max(self._doubt, 2 * self._longest)

    async def _found(self, name: str, is_over: Callable[[], bool]) -> JobHandle | None:
        """Wait for the answer to a request in doubt; returns None if it has to be sent again.

        Args:
            name: the name of its answer.
            is_over: whether to wait no longer.
        """
        pause = 0.0
        while places := self._under_way.places:
            for place in places:
                answer, failure = place.at(name)
                is_current = place is places[0]
                if await self._is_there(answer, is_current=is_current):
                    return JobHandle(self._endpoint.name, None, answer, failure)
                # Its body may have been deleted by the run that did not hear of its acceptance.
                if failure is not None and await self._is_there(failure, is_current=is_current):
                    return None
            if is_over():
                break
            pause = next_pause(pause)
            await asyncio.sleep(min(pause, self._doubt))
        return None

    async def _is_there(self, uri: str, *, is_current: bool) -> bool:
        try:
            return await self._endpoint.job(JobHandle(self._endpoint.name, None, uri)).done()
        except ObjectStoreError as error:
            # A place of before may be gone.
            if is_current and error.status not in _TRANSIENT:
                raise
            return False

    async def _answer(self, handle: JobHandle, count: int) -> Sequence[Any]:
        """Wait for a job's answer, through failures of S3."""
        endpoint, clock = self._endpoint, asyncio.get_running_loop().time
        reader = Endpoint(
            endpoint.client,
            endpoint.name,
            serializer=endpoint.serializer,
            deserializer=_RowsOf(endpoint.deserializer.accept, self._read, count),
        )
        job = reader.job(handle)
        failing_since = began = clock()
        pause = 1.0
        while True:
            try:
                return await job.result()
            except ObjectStoreError as error:
                now = clock()
                if now - began > 2 * _LONGEST_PAUSE:
                    # It has been well in between.
                    failing_since, pause = now, 1.0
                if error.status not in _TRANSIENT or now + pause > failing_since + self._patience:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            began = clock()
