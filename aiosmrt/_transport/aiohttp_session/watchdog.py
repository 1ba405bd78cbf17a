"""One timer for the read timeouts of all requests."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import aiohttp

from aiosmrt._idle import UnreadCheck
from aiosmrt.errors import ClientStateError

__all__ = ["ReadWatchdog", "Watched"]


# How often a slowly arriving body is checked within one read timeout. It may be silent for longer by one such interval.
_CHECKS = 10


class Watched:
    """A request with a read timeout.

    Args:
        task: the task to cancel.
        watchdog: the watchdog.
        large: whether the timeout starts when the request was sent, rather than when it gets a connection.
    """

    __slots__ = (
        "cancelling",
        "ended",
        "expired",
        "expires_at",
        "has_unread",
        "large",
        "received_bytes",
        "reprieves",
        "response",
        "task",
        "timer",
        "watchdog",
    )

    def __init__(self, task: asyncio.Task[Any], watchdog: ReadWatchdog, large: bool) -> None:
        self.task = task
        self.watchdog = watchdog
        self.large = large
        self.cancelling = task.cancelling()
        self.expires_at = math.inf
        self.expired = False
        self.ended = False
        # how often an expired request was given the time to process what had arrived
        self.reprieves = 0
        self.has_unread: UnreadCheck | None = None
        self.response: aiohttp.ClientResponse | None = None
        self.received_bytes = 0
        self.timer: asyncio.Handle | None = None


class ReadWatchdog:
    """One timer for all requests with the same read timeout.

    aiohttp's read timeout sets and cancels a timer twice per request, which is 5 to 8 % of a call
    (benchmarks/overhead.py). Here a request is appended to an ordered dictionary and removed from it. As all requests
    have the same timeout, they expire in the order in which they began, and only the first one needs a timer.

    A response that has arrived in time is never late, however long the loop was busy: nothing expires while its
    connection has something to read, nor before its task had the chance to process what was read.

    Args:
        seconds: the read timeout, seconds.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being timed."""
        return not self._watched

    def expect(self, *, large: bool = False) -> Watched:
        """Register the current task's request; its timeout runs from `begin` to `forget`.

        Args:
            large: whether the timeout starts when the request was sent, rather than when it gets a connection.

        Raises:
            ClientStateError: not called from a task.
        """
        task = asyncio.current_task(asyncio.get_running_loop())  # passing the loop halves the cost on Python 3.11
        if task is None:
            raise ClientStateError("a call must run in a task")
        return Watched(task, self, large)

    def begin(self, watched: Watched) -> None:
        """Start the timeout, or start it anew."""
        if watched.ended:
            return  # the response came before the whole request was sent
        watched.expires_at = self._loop.time() + self._seconds
        self._watched.pop(watched, None)
        self._watched[watched] = None
        if self._timer is None:
            self._timer = self._loop.call_at(watched.expires_at, self._check)

    def receive(self, watched: Watched, response: aiohttp.ClientResponse) -> None:
        """The head has arrived: start the timeout anew, for the body."""
        watched.response = response
        watched.received_bytes = response.content.total_bytes
        if watched.timer is not None:
            watched.timer.cancel()
            watched.timer = None
        self.begin(watched)

    def forget(self, watched: Watched) -> None:
        """Stop the timeout."""
        watched.ended = True
        self._watched.pop(watched, None)
        if watched.timer is not None:
            watched.timer.cancel()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._watched:
            watched = next(iter(self._watched))
            if watched.expires_at > now:
                self._timer = self._loop.call_at(watched.expires_at, self._check)
                return
            del self._watched[watched]
            self._judge(watched)

    def _judge(self, watched: Watched) -> None:
        """Cancel a silent request's task; keep checking one whose body is arriving slowly."""
        watched.timer = None
        now = self._loop.time()
        received = 0 if watched.response is None else watched.response.content.total_bytes
        if received > watched.received_bytes:
            watched.received_bytes = received
            watched.reprieves = 0
            watched.expires_at = now + self._seconds
        elif watched.expires_at <= now:
            if watched.reprieves < _CHECKS and watched.has_unread is not None and watched.has_unread():
                watched.reprieves += 1
            elif watched.reprieves:
                watched.expired = True
                watched.task.cancel()
                return
            else:
                # What was read in this iteration of the loop reaches the task in the next one.
                watched.reprieves = 1
                watched.timer = self._loop.call_soon(self._judge, watched)
                return
        watched.timer = self._loop.call_later(self._seconds / _CHECKS, self._judge, watched)
