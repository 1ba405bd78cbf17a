"""Time that passes only when a test lets it pass; sockets work as usual."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiosmrt
from tests.support import seams

T = TypeVar("T")

# Seconds by which a loop's timer fires late, so that its time is past whatever the rounding.
LATE = 1e-9

# Turns of the event loop in which tasks that a timer has woken go on until they wait again.
TURNS = 3


@dataclass(eq=False)
class VirtualTimer:
    """A function to call at a time unless it is cancelled."""

    time: VirtualTime = field(repr=False)
    at: float
    function: Callable[..., object]
    arguments: tuple[Any, ...]

    def cancel(self) -> None:
        self.time._forget(self)


@dataclass
class VirtualTime:
    """A clock, and a ``call_later`` that runs on it.

    Args:
        now: the clock's time in seconds.
    """

    now: float = 1000.0
    # pending timers in the order they were set; and a heap by time that also holds cancelled ones
    _timers: dict[VirtualTimer, None] = field(default_factory=dict, repr=False)
    _queue: list[tuple[float, int, VirtualTimer]] = field(default_factory=list, repr=False)
    _number: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def drive(self, client: aiosmrt.Client) -> aiosmrt.Client:
        """Run a client and its views on this time, with the longest pauses that jitter allows."""
        seams.set_clock(client, lambda: self.now)
        seams.set_call_later(client, self.call_later)
        seams.set_random(client, lambda: 1.0)
        return client

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> VirtualTimer:
        return self._set(self.now + max(0.0, seconds), function, arguments)

    @contextmanager
    def drive_loop(self) -> Iterator[None]:
        """Run the running event loop's timers on this time too: `asyncio.timeout`, `asyncio.sleep`, aiohttp's.

        A timer that is already set waits until the block has ended.
        """
        loop: Any = asyncio.get_running_loop()

        def call_at(at: float, function: Callable[..., object], *arguments: Any, context: Any = None) -> VirtualTimer:
            return self._set(at + LATE, function, arguments)

        loop.time = lambda: self.now
        loop.call_at = call_at
        loop.call_later = lambda seconds, *arguments, **context: call_at(self.now + seconds, *arguments, **context)
        try:
            yield
        finally:
            del loop.time, loop.call_at, loop.call_later

    def _set(self, at: float, function: Callable[..., object], arguments: tuple[Any, ...]) -> VirtualTimer:
        timer = VirtualTimer(self, at, function, arguments)
        self._timers[timer] = None
        self._number += 1
        heapq.heappush(self._queue, (at, self._number, timer))
        self._changed.set()
        return timer

    def _forget(self, timer: VirtualTimer) -> None:
        if timer in self._timers:
            del self._timers[timer]
            self._changed.set()

    def _next(self) -> VirtualTimer | None:
        while self._queue and self._queue[0][2] not in self._timers:
            heapq.heappop(self._queue)
        return self._queue[0][2] if self._queue else None

    def _fire(self, timer: VirtualTimer) -> None:
        self.now = max(self.now, timer.at)
        self._forget(timer)
        timer.function(*timer.arguments)

    def fire_due(self) -> None:
        """Fire the timers whose time has come, all in this turn of the event loop."""
        while (timer := self._next()) is not None and timer.at <= self.now:
            self._fire(timer)

    @property
    def pending(self) -> list[float]:
        """Seconds from now until each pending timer, the earliest first."""
        return sorted(round(timer.at - self.now, 6) for timer in self._timers)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition on the timers holds."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def set_to(self, *seconds: float) -> None:
        """Wait until exactly these timers are pending, by seconds from now."""
        await self.until(lambda: self.pending == sorted(seconds))

    async def advance(self, seconds: float) -> None:
        """Let time pass; each timer fires at its own time, and what it wakes runs before the next one fires."""
        until = self.now + seconds
        while (timer := self._next()) is not None and timer.at <= until + LATE:
            self._fire(timer)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        self.now = max(self.now, until)

    async def settle(self, is_busy: Callable[[], bool]) -> None:
        """Wait, while time stands still, until nothing is left to run.

        Args:
            is_busy: whether something is under way that the event loop does not know of, such as bytes between two
                sockets.
        """
        loop: Any = asyncio.get_running_loop()
        while loop._ready or is_busy():
            await asyncio.sleep(0)

    async def run(self, work: asyncio.Future[T], is_busy: Callable[[], bool]) -> T:
        """Let time pass until work is done: whenever nothing is left to run, the next timer fires.

        Args:
            work: a task or future.
            is_busy: see `settle`.

        Returns:
            The work's result.
        """
        while True:
            await self.settle(is_busy)
            if work.done():
                return work.result()
            timer = self._next()
            assert timer is not None, f"{work} waits for nothing that time could bring"
            self._fire(timer)
