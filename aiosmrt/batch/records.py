"""Rows that come from Python: tables, and iterables of records.

The interface is that of `aiosmrt.batch.source.Source`. A synchronous iterable is advanced in the reader's thread, an
asynchronous one by a task on the event loop, which is at most some hundreds of records ahead.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import chain, islice
from typing import Any, Final

from aiosmrt.batch.objects import result_while_wanted
from aiosmrt.batch.source import Line, Source
from aiosmrt.batch.tables import records_of, table_batches
from aiosmrt.batch.tasks import close_all
from aiosmrt.errors import BatchInputError
from aiosmrt.serializers.frames import is_frame

__all__ = ["RecordSource", "is_table", "records_fault"]

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
        source = self._source
        if is_table(source):
            self.rows_in_all = _length(source)
            batches = table_batches(source)
            first = next(batches, None)
            if first is not None:
                self.schema: Any = first.schema
                self.columns: list[str] | None = list(first.schema.names)
                if len(set(self.columns)) < len(self.columns):
                    raise BatchInputError("the table has two columns of the same name")
                self._first = records_of(first)
            self._rest = (record for batch in batches for record in records_of(batch))
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


def _length(table: Any) -> int | None:
    try:
        return len(table)
    except TypeError:
        rows: object = getattr(table, "num_rows", None)
        return rows if isinstance(rows, int) else None


def _hash(records: Iterable[Any]) -> str:
    text = json.dumps(list(records), default=lambda value: _ADDRESS.sub("", repr(value)), skipkeys=True)
    return sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
