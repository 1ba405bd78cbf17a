"""`Feed`: what a thread makes, many at a time, for a map on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from aiosmrt.endpoint.fanout import Buffered

__all__ = ["Feed"]


class Feed(Buffered[Any]):
    """Items that a function makes in a thread; the next batch is made while one is consumed.

    It ends with an empty batch, or when it is told to.

    Args:
        make: makes the next batch; called in a thread, one call after the other.
        ending: set to give no more items.
        on_close: called when it is closed, for `make` to return early.
    """

    def __init__(self, make: Callable[[], list[Any]], ending: asyncio.Event, on_close: Callable[[], object]) -> None:
        self._make = make
        self._ending = ending
        self._on_close = on_close
        self._ready: deque[Any] = deque()
        self._making = self._start()
        self._told = asyncio.create_task(ending.wait())

    def _start(self) -> asyncio.Task[list[Any]]:
        return asyncio.create_task(asyncio.to_thread(self._make))

    def take_ready(self) -> Any | None:
        """The next item, if it is there."""
        if self._ending.is_set() or not (self._ready or self._is_made()):
            return None
        return self._ready.popleft()

    def _is_made(self) -> bool:
        """Whether the next batch is there with items, which are ready then."""
        making = self._making
        if not making.done() or making.cancelled() or making.exception() is not None or not (batch := making.result()):
            # What it ended with is for `__anext__`.
            return False
        self._making = self._start()
        self._ready.extend(batch)
        return True

    async def __anext__(self) -> Any:
        while not self._ready and not self._ending.is_set():
            await asyncio.wait([self._making, self._told], return_when=asyncio.FIRST_COMPLETED)
            # The other task that waits here may have been first.
            if self._ready or not self._making.done():
                continue
            batch = self._making.result()
            if not batch:
                raise StopAsyncIteration
            self._making = self._start()
            self._ready.extend(batch)
        if self._ending.is_set():
            raise StopAsyncIteration
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Wait for the thread; items that were not taken are dropped."""
        self._told.cancel()
        self._on_close()
        cancelled: asyncio.CancelledError | None = None
        while not (self._making.done() and self._told.done()):
            try:
                await asyncio.wait([self._making, self._told])
            except asyncio.CancelledError as again:
                cancelled = again
        if not self._making.cancelled():
            # An error of a batch that is no longer wanted concerns nothing.
            self._making.exception()
        self._ready.clear()
        if cancelled is not None:
            raise cancelled
