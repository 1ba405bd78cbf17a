"""Work that has to be done in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from aiosmrt.errors import AiosmrtError

__all__ = ["OverdueError", "within"]

T = TypeVar("T")


class OverdueError(Exception):
    """The work was not done in time, and was cancelled."""


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """Return the result of some work; cancel it when its time is over.

    Args:
        seconds: the time that it may take. If None, any.
        work: makes the result.

    Raises:
        OverdueError: its time is over. A TimeoutError that the work raises is passed on.
    """
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await work
    except TimeoutError as late:
        if isinstance(late, AiosmrtError) or not timer.expired():
            raise
    finally:
        # The timer knows this task, and with it an error that leaves it; so does the TimeoutError's traceback.
        del timer, work
    raise OverdueError
