"""What every request asks the event loop for, without the functions in Python that asyncio's own loops have for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

__all__ = ["clock_of", "future_maker"]

# Taken when this is imported: a test that replaces them means to be asked.
_TIME: Final = asyncio.BaseEventLoop.time
_CREATE_FUTURE: Final = asyncio.BaseEventLoop.create_future


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """A function that returns the loop's time, in seconds.

    >>> loop = asyncio.new_event_loop()
    >>> clock_of(loop) is time.monotonic
    True
    >>> loop.close()
    """
    return time.monotonic if getattr(loop.time, "__func__", None) is _TIME else loop.time


def future_maker(loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Future[Any]]:
    """A function that returns a new future of the loop's."""
    is_ordinary = getattr(loop.create_future, "__func__", None) is _CREATE_FUTURE
    return partial(asyncio.Future, loop=loop) if is_ordinary else loop.create_future
