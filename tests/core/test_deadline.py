"""Work that has to be done in time, on a loop that is busy when its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aiosmrt._core.deadline import OverdueError, within
from aiosmrt.errors import ReadTimeoutError

SECONDS = 10.0


@contextmanager
def clock_ahead() -> Iterator[list[float]]:
    """Let the loop's clock go ahead by what is added to a list."""
    loop: Any = asyncio.get_running_loop()
    measured, ahead = loop.time, [0.0]
    loop.time = lambda: measured() + sum(ahead)
    try:
        yield ahead
    finally:
        loop.time = measured


async def iterations(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_work_that_only_needs_the_loop_is_done() -> None:
    with clock_ahead() as ahead:

        async def work() -> str:
            ahead.append(2 * SECONDS)
            await iterations(10)
            return "done"

        assert await within(SECONDS, work()) == "done"


async def test_another_limit_that_is_reached_later_is_not_the_reason() -> None:
    with clock_ahead() as ahead:

        async def work() -> None:
            ahead.append(2 * SECONDS)
            await iterations(5)
            raise ReadTimeoutError("silence")

        with pytest.raises(OverdueError):
            await within(SECONDS, work())


async def test_another_limit_that_is_reached_before_is_the_reason() -> None:
    async def work() -> None:
        await iterations(5)
        raise ReadTimeoutError("silence")

    with pytest.raises(ReadTimeoutError):
        await within(SECONDS, work())


async def test_a_loop_that_stays_busy_is_not_waited_for() -> None:
    taken = 0
    with clock_ahead() as ahead:

        async def work() -> None:
            nonlocal taken
            ahead.append(2 * SECONDS)
            while taken < 1000:
                await asyncio.sleep(0)
                taken += 1
                ahead.append(1.0)

        with pytest.raises(OverdueError):
            await within(SECONDS, work())
    assert 4 <= taken < 10
