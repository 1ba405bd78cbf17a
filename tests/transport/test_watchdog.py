"""The one timer behind all read timeouts, on a clock that stands still until told."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest

from aiosmrt._transport.aiohttp_session.watchdog import ReadWatchdog, Watched


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The part of an event loop that the watchdog uses."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, int, Handle, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., None], *arguments: Any) -> Handle:
        handle = Handle()
        heapq.heappush(self._timers, (when, len(self._timers), handle, callback, arguments))
        return handle

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> Handle:
        return self.call_at(self.now + delay, callback, *arguments)

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> Handle:
        return self.call_at(self.now, callback, *arguments)

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, handle, callback, arguments = heapq.heappop(self._timers)
            if not handle.cancelled:
                callback(*arguments)
        self.now = until

    @property
    def armed(self) -> int:
        return sum(not handle.cancelled for _, _, handle, _, _ in self._timers)


class Content:
    total_bytes = 0


class Response:
    def __init__(self) -> None:
        self.content = Content()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watchdog_on(clock: Clock, seconds: float) -> ReadWatchdog:
    watchdog = ReadWatchdog(seconds)
    watchdog._loop = clock  # type: ignore[assignment]
    return watchdog


async def watched_task(watchdog: ReadWatchdog) -> tuple[asyncio.Task[None], Watched]:
    """A task that waits under the watchdog until it is cancelled."""
    started: asyncio.Future[Watched] = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        watched = watchdog.expect()
        watchdog.begin(watched)
        started.set_result(watched)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            watchdog.forget(watched)

    task = asyncio.create_task(wait())
    return task, await started


async def test_silence_ends_an_exchange_on_time(clock: Clock) -> None:
    watchdog = watchdog_on(clock, 10.0)
    task, watched = await watched_task(watchdog)
    clock.advance(9.9)
    assert not watched.expired
    clock.advance(0.1)
    assert watched.expired
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.armed == 0


async def test_each_exchange_has_its_own_time(clock: Clock) -> None:
    watchdog = watchdog_on(clock, 10.0)
    first, first_watched = await watched_task(watchdog)
    clock.advance(4.0)
    second, second_watched = await watched_task(watchdog)
    assert clock.armed == 1
    clock.advance(6.0)
    assert (first_watched.expired, second_watched.expired) == (True, False)
    clock.advance(4.0)
    assert second_watched.expired
    await asyncio.gather(first, second, return_exceptions=True)


async def test_an_exchange_that_is_over_is_forgotten(clock: Clock) -> None:
    watchdog = watchdog_on(clock, 10.0)
    task, watched = await watched_task(watchdog)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    clock.advance(100.0)
    assert not watched.expired
    assert clock.armed == 0


async def test_a_body_that_trickles_in_is_not_silent_until_it_stops(clock: Clock) -> None:
    watchdog = watchdog_on(clock, 10.0)
    task, watched = await watched_task(watchdog)
    response = Response()
    watched.response = response  # type: ignore[assignment]
    for _ in range(50):
        clock.advance(3.0)
        response.content.total_bytes += 1
    assert not watched.expired
    clock.advance(10.0)
    assert not watched.expired
    clock.advance(2.0)
    assert watched.expired
    await asyncio.gather(task, return_exceptions=True)
    assert clock.armed == 0


async def test_a_body_that_ends_while_it_is_looked_at_leaves_no_timer(clock: Clock) -> None:
    watchdog = watchdog_on(clock, 10.0)
    task, watched = await watched_task(watchdog)
    response = Response()
    response.content.total_bytes = 5
    watched.response = response  # type: ignore[assignment]
    clock.advance(10.0)
    assert clock.armed == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.armed == 0


async def test_closing_disarms_the_timer(clock: Clock) -> None:
    watchdog = watchdog_on(clock, 10.0)
    task, watched = await watched_task(watchdog)
    watchdog.close()
    clock.advance(100.0)
    assert not watched.expired
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
