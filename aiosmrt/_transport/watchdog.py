"""The read timeouts of all exchanges behind one timer."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import aiohttp

from aiosmrt.errors import ClientStateError

__all__ = ["ReadWatchdog", "Watched"]


# How often within a read timeout a body that trickles in is looked at: it may stay silent for so much longer.
_LOOKS = 10


class Watched:
    """An exchange that must not stay silent for too long."""

    __slots__ = (
        "cancelling",
        "expired",
        "expires_at",
        "over",
        "received_bytes",
        "response",
        "task",
        "timer",
        "watchdog",
    )

    def __init__(self, task: asyncio.Task[Any], watchdog: ReadWatchdog) -> None:
        self.task = task
        self.watchdog = watchdog
        self.cancelling = task.cancelling()
        self.expires_at = math.inf
        self.expired = False
        self.over = False
        self.response: aiohttp.ClientResponse | None = None
        self.received_bytes = 0
        self.timer: asyncio.TimerHandle | None = None


class ReadWatchdog:
    """One timer for the read timeouts of all exchanges that have the same one.

    aiohttp's own read timeout arms and cancels a timer twice per exchange, which is 5 to 8 % of a call
    (benchmarks/overhead.py). Here an exchange is put at the end of an ordered dictionary and taken out again. All have
    the same timeout, so the order of beginning is the order of expiry, and only the first one needs a timer.

    Args:
        seconds: the read timeout.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> Watched:
        """Name the current task's exchange, to be watched from `begin` to `forget`.

        Raises:
            ClientStateError: there is no task to be ended.
        """
        task = asyncio.current_task(asyncio.get_running_loop())  # on Python 3.11, half of the cost with the loop named
        if task is None:
            raise ClientStateError("a call must run in a task")
        return Watched(task, self)

    def begin(self, watched: Watched) -> None:
        """The service has its turn; from now on the exchange must not be silent."""
        if watched.over:
            return  # it answered before it had all of the request
        watched.expires_at = self._loop.time() + self._seconds
        self._watched[watched] = None
        if self._timer is None:
            self._timer = self._loop.call_at(watched.expires_at, self._look)

    def forget(self, watched: Watched) -> None:
        """The exchange is over."""
        watched.over = True
        self._watched.pop(watched, None)
        if watched.timer is not None:
            watched.timer.cancel()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._watched:
            watched = next(iter(self._watched))
            if watched.expires_at > now:
                self._timer = self._loop.call_at(watched.expires_at, self._look)
                return
            del self._watched[watched]
            self._judge(watched)

    def _judge(self, watched: Watched) -> None:
        """End an exchange that was silent; look at a long body that trickles in from time to time."""
        watched.timer = None
        now = self._loop.time()
        received = 0 if watched.response is None else watched.response.content.total_bytes
        if received > watched.received_bytes:
            watched.received_bytes = received
            watched.expires_at = now + self._seconds
        elif watched.expires_at <= now:
            watched.expired = True
            watched.task.cancel()
            return
        watched.timer = self._loop.call_later(self._seconds / _LOOKS, self._judge, watched)
