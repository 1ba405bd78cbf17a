"""Rows that come from Python: tables, and iterables of records.

The interface is that of `aiosmrt.batch.source.Source`. A synchronous iterable is advanced in the reader's thread, an
asynchronous one by a task on the event loop, which is at most some hundreds of records ahead.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from typing import Any, Final, TypeVar

from aiosmrt.batch.objects import result_while_wanted
from aiosmrt.batch.source import Line, Source
from aiosmrt.batch.tables import records_of, table_batches
from aiosmrt.batch.tasks import close_all
from aiosmrt.errors import AiosmrtError, BatchInputError
from aiosmrt.serializers.frames import is_frame

__all__ = ["RecordSource", "is_table", "records_fault"]

T = TypeVar("T")

NAME: Final = "source"

# Records of an asynchronous iterable that are held, and how long a thread waits for some before it looks around.
_HELD: Final = 512
_LOOK_EVERY: Final = 0.1

# Records at both ends by which a sequence is known again.
_KNOWN_BY: Final = 100

# Stands between records where the next one has to be waited for.
_PAUSE: Final = object()

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def is_table(source: object) -> bool:
    """Whether an object is a DataFrame, an Arrow table, or has one of the interfaces for exchanging them."""
    return is_frame(source) or any(
        hasattr(source, name) for name in ("__arrow_c_stream__", "__arrow_c_array__", "__dataframe__")
    )


def _as_list(source: Any) -> Callable[[], list[Any]] | None:
    """What makes a list of a single column, such as a series of pandas or polars or an array of Arrow."""
    if is_frame(source) or not is_table(source):
        return None
    as_list: Callable[[], list[Any]] | None = getattr(source, "to_pylist", None) or getattr(source, "to_list", None)
    return as_list


def records_fault(source: object) -> str | None:
    """What is wrong with an object as the source of records; None if nothing is."""
    if is_table(source):
        return None
    if isinstance(source, (bytes, bytearray, memoryview, Mapping)) or not isinstance(source, (Iterable, AsyncIterable)):
        return f"source must be files, a table, or an iterable of records; got {type(source)}"
    return None


class RecordSource(Source):
    """Rows of a table or an iterable.

    Args:
        source: the rows.
        loop: where an asynchronous iterable is advanced.
        stopped: set to end the reading, by another thread.
    """

    def __init__(self, source: Any, *, loop: asyncio.AbstractEventLoop, stopped: threading.Event) -> None:
        super().__init__((), input_format="records", header=False, stopped=stopped)
        self._source = source
        self._row = 0
        self._first: list[Any] = []
        self._rest: Iterator[Any] = iter(())
        self._ahead: _Ahead | None = None
        self._loop = loop

    def prepare(self) -> dict[str, Any]:
        source: Any = self._source
        if (as_list := _as_list(source)) is not None:
            source = _readable(as_list)
        if is_table(source):
            if is_frame(source):
                _check_names(source.schema.names if hasattr(source, "num_rows") else source.columns)
            self.rows_in_all = _length(source)
            batches = table_batches(source)
            first = _next(batches, source)
            if first is not None:
                self.schema: Any = first.schema
                self.columns: list[str] | None = list(first.schema.names)
                _check_names(self.columns)
                self._first = _readable(partial(records_of, first))
            self._rest = _records(batches, source)
            facts: dict[str, Any] = {"columns": self.columns or [], "first": _hash(self._first[:1])}
        elif isinstance(source, Sequence):
            self.rows_in_all = len(source)
            self._rest = iter(source)
            facts = {"first": _hash(source[:_KNOWN_BY]), "last": _hash(source[-_KNOWN_BY:])}
        else:
            if isinstance(source, AsyncIterable):
                self._ahead = _Ahead(source, self._loop, self.stopped)
                self._rest = iter(self._ahead)
            else:
                self._rest = iter(source)
            self._first = list(islice(self._rest, 1))
            facts = {"first": _hash(self._first)}
        self.is_known: bool = self.rows_in_all is not None
        if self.is_known:
            facts["rows"] = self.rows_in_all
        return {NAME: facts}

    def check_unchanged(self) -> None:
        """Do nothing: what Python holds is the caller's."""

    @property
    def fraction(self) -> float | None:
        return None if self.rows_in_all is None else min(self._row / max(self.rows_in_all, 1), 1.0)

    def rows(self) -> Iterator[Line | None]:
        row = 0
        for record in chain(self._first, self._rest):
            if record is _PAUSE:
                yield None
                continue
            row += 1
            self._row = row
            yield Line(row - 1, record, NAME, row)
            if self.stopped.is_set():
                return

    def close(self) -> None:
        close_all(super().close, *([] if self._ahead is None else [self._ahead.close]))


class _Ahead:
    """The records of an asynchronous iterable, for a thread.

    One task advances it, because the time limits and task groups of a generator belong to the task that does.
    """

    def __init__(self, source: AsyncIterable[Any], loop: asyncio.AbstractEventLoop, stopped: threading.Event) -> None:
        self._source = source
        self._loop = loop
        self._stopped = stopped
        self._records: list[Any] = []
        self._task: asyncio.Task[None] | None = None
        self._some = asyncio.Event()
        self._room = asyncio.Event()

    def __iter__(self) -> Iterator[Any]:
        while records := result_while_wanted(
            asyncio.run_coroutine_threadsafe(self._take(), self._loop), self._stopped.is_set
        ):
            yield from records
            if not self._records:
                yield _PAUSE

    async def _take(self) -> list[Any]:
        """Records that are there, at least one; none at the end. Raises what the iterable raises."""
        if self._task is None:
            self._task = asyncio.create_task(self._advance())
        while not self._records and not self._task.done():
            self._some.clear()
            await self._some.wait()
        if not self._records:
            self._task.result()
        records, self._records = self._records, []
        self._room.set()
        return records

    async def _advance(self) -> None:
        try:
            async for record in self._source:
                self._records.append(record)
                self._some.set()
                while len(self._records) >= _HELD:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._loop.call_soon(self._some.set)

    def close(self) -> None:
        """End the task; called in a thread, which waits for it."""

        async def end() -> None:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
                if not self._task.cancelled():
                    self._task.exception()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()


def _check_names(names: Iterable[Any]) -> None:
    names = list(map(str, names))
    if len(set(names)) < len(names):
        raise BatchInputError("the table has two columns of the same name")


def _next(batches: Iterator[Any], table: Any) -> Any:
    """The next record batch of a table; None if there is none. A stream's own error is passed on."""
    return _readable(lambda: next(batches, None)) if is_frame(table) else next(batches, None)


def _records(batches: Iterator[Any], table: Any) -> Iterator[Any]:
    while (batch := _next(batches, table)) is not None:
        yield from _readable(partial(records_of, batch))


def _readable(read: Callable[[], T]) -> T:
    """Return what is read from a table.

    Raises:
        BatchInputError: the table has values that neither Arrow nor Python can express.
    """
    try:
        return read()
    except AiosmrtError:
        raise
    except Exception:  # from any library; it may quote values
        fault = "the table has a value that cannot be read, such as a date out of range, or a column of several types"
    raise BatchInputError(fault)


def _length(table: Any) -> int | None:
    try:
        return len(table)
    except TypeError:
        rows: object = getattr(table, "num_rows", None)
        return rows if isinstance(rows, int) else None


def _hash(records: Iterable[Any]) -> str:
    text = json.dumps(list(records), default=lambda value: _ADDRESS.sub("", repr(value)), skipkeys=True)
    return sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
