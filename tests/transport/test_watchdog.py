"""The one timer behind all read timeouts, in time that passes only when told."""

from __future__ import annotations

import asyncio

import pytest

from aiosmrt._transport.aiohttp_session.watchdog import ReadWatchdog, Watched
from tests.support.virtual_time import VirtualTime


class Content:
    total_bytes = 0


class Response:
    def __init__(self) -> None:
        self.content = Content()


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


async def test_silence_ends_an_exchange_on_time(virtual_time: VirtualTime) -> None:
    watchdog = ReadWatchdog(10.0)
    task, watched = await watched_task(watchdog)
    await virtual_time.advance(9.9)
    assert not watched.expired
    await virtual_time.advance(0.1)
    assert watched.expired
    with pytest.raises(asyncio.CancelledError):
        await task
    assert virtual_time.pending == []


async def test_each_exchange_has_its_own_time(virtual_time: VirtualTime) -> None:
    watchdog = ReadWatchdog(10.0)
    first, first_watched = await watched_task(watchdog)
    await virtual_time.advance(4.0)
    second, second_watched = await watched_task(watchdog)
    assert virtual_time.pending == [6.0]
    await virtual_time.advance(6.0)
    assert (first_watched.expired, second_watched.expired) == (True, False)
    await virtual_time.advance(4.0)
    assert second_watched.expired
    await asyncio.gather(first, second, return_exceptions=True)


async def test_an_exchange_that_is_over_is_forgotten(virtual_time: VirtualTime) -> None:
    watchdog = ReadWatchdog(10.0)
    task, watched = await watched_task(watchdog)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await virtual_time.advance(100.0)
    assert not watched.expired
    assert virtual_time.pending == []


async def test_a_body_that_trickles_in_is_not_silent_until_it_stops(virtual_time: VirtualTime) -> None:
    watchdog = ReadWatchdog(10.0)
    task, watched = await watched_task(watchdog)
    response = Response()
    watched.response = response  # type: ignore[assignment]
    for _ in range(50):
        await virtual_time.advance(3.0)
        response.content.total_bytes += 1
    assert not watched.expired
    await virtual_time.advance(10.0)
    assert not watched.expired
    await virtual_time.advance(2.0)
    assert watched.expired
    await asyncio.gather(task, return_exceptions=True)
    assert virtual_time.pending == []


async def test_a_body_that_ends_while_it_is_looked_at_leaves_no_timer(virtual_time: VirtualTime) -> None:
    watchdog = ReadWatchdog(10.0)
    task, watched = await watched_task(watchdog)
    response = Response()
    response.content.total_bytes = 5
    watched.response = response  # type: ignore[assignment]
    await virtual_time.advance(10.0)
    assert virtual_time.pending == [1.0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert virtual_time.pending == []


async def test_closing_disarms_the_timer(virtual_time: VirtualTime) -> None:
    watchdog = ReadWatchdog(10.0)
    task, watched = await watched_task(watchdog)
    watchdog.close()
    await virtual_time.advance(100.0)
    assert not watched.expired
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
