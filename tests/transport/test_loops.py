"""What the pool asks the event loop for is what the loop gives."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from aiosmrt._transport.loops import clock_of, future_maker


class OwnLoop(asyncio.SelectorEventLoop):
    """A loop that has its own time and its own futures."""

    def time(self) -> float:
        return 17.0

    def create_future(self) -> asyncio.Future[Any]:
        return OwnFuture(loop=self)


class OwnFuture(asyncio.Future[Any]):
    """A future of such a loop."""


async def test_asyncios_own_loop_needs_no_function_in_python() -> None:
    loop = asyncio.get_running_loop()
    assert clock_of(loop) is time.monotonic
    future = future_maker(loop)()
    assert type(future) is type(loop.create_future())
    assert future.get_loop() is loop


def test_a_loop_with_its_own_time_and_futures_is_asked() -> None:
    loop = OwnLoop()
    try:
        assert clock_of(loop)() == 17.0
        assert type(future_maker(loop)()) is OwnFuture
    finally:
        loop.close()


async def test_a_time_that_was_replaced_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: 18.0)
    assert clock_of(loop)() == 18.0
    monkeypatch.setattr(loop, "time", lambda: 19.0)
    assert clock_of(loop)() == 19.0
