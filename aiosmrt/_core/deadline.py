"""Work that has to be done in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from aiosmrt.errors import AiosmrtError

__all__ = ["OverdueError", "within"]

T = TypeVar("T")

# How late, in seconds, a timer is that the loop was too busy to run in time.
_LATE: Final = 0.001

# How many iterations a loop that was busy gets, to process what has arrived by then: aiohttp takes a few, and each
# reads up to 256 KiB of a body. After some time, it gets no more than it takes to read a short answer.
_ITERATIONS: Final = 20
_SHORT_ITERATIONS: Final = 4
_SHORT_SECONDS: Final = 0.1  # of such iterations


class OverdueError(Exception):
    """The work was not done in time, and was cancelled."""


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """Return the result of some work; cancel it when its time is over.

    If the loop was busy when its time was over, what has arrived by then is processed first: an answer that lies in the
    socket is not late.

    Args:
        seconds: the time that it may take. If None, any.
        work: makes the result.

    Raises:
        OverdueError: its time is over. A TimeoutError that the work raises before that is passed on.
    """
    timer = asyncio.timeout(None)
    due = None if seconds is None else _Due(seconds, timer)
    try:
        async with timer:
            return await work
    except TimeoutError as late:
        is_overdue = due is not None and due.is_over
        if not is_overdue and (isinstance(late, AiosmrtError) or not timer.expired()):
            raise
    finally:
        if due is not None:
            due.cancel()
        # The timer knows this task, and with it an error that leaves it; so does the TimeoutError's traceback.
        del timer, due, work
    raise OverdueError


class _Due:
    """Lets a timeout expire after some time, or some iterations later if the loop was busy."""

    __slots__ = ("_handle", "_iterations", "_loop", "_timeout", "_when")

    def __init__(self, seconds: float, timeout: asyncio.Timeout) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._when = loop.time() + seconds
        self._iterations = 0
        self._handle: asyncio.Handle = loop.call_at(self._when, self._expire)

    @property
    def is_over(self) -> bool:
        """Whether the time is over, and only what has arrived by then is still processed."""
        return self._iterations > 0

    def cancel(self) -> None:
        self._handle.cancel()

    def _expire(self) -> None:
        now = self._loop.time()
        if self._iterations == 0:
            is_late = now - self._when > _LATE
            self._when = now
        else:
            is_late = True
        most = _ITERATIONS if now - self._when < _SHORT_SECONDS else _SHORT_ITERATIONS
        if is_late and self._iterations < most:
            self._iterations += 1
            self._handle = self._loop.call_soon(self._expire)
        else:
            self._timeout.reschedule(now)
