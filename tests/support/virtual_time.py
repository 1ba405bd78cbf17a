"""Time that passes when a test says so, for what a client does later; its sockets work in real time meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiosmrt


@dataclass(eq=False)
class VirtualTimer:
    """A function to be called at a time, unless it is cancelled."""

    time: VirtualTime
    at: float
    function: Callable[..., object]
    arguments: tuple[Any, ...]

    def cancel(self) -> None:
        self.time._forget(self)


@dataclass
class VirtualTime:
    """A clock, and a ``call_later`` that goes by it.

    Args:
        now: the clock's time in seconds.
    """

    now: float = 1000.0
    _timers: list[VirtualTimer] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def rule(self, client: aiosmrt.Client) -> aiosmrt.Client:
        """Let a client and its views live in this time; pauses last as long as they may."""
        shared = client._shared
        shared.clock = lambda: self.now
        shared.call_later = self.call_later
        shared.random = lambda: 1.0
        return client

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> VirtualTimer:
        timer = VirtualTimer(self, self.now + max(0.0, seconds), function, arguments)
        self._timers.append(timer)
        self._changed.set()
        return timer

    def _forget(self, timer: VirtualTimer) -> None:
        if timer in self._timers:
            self._timers.remove(timer)
            self._changed.set()

    @property
    def pending(self) -> list[float]:
        """How many seconds from now each timer is set to, the earliest first."""
        return sorted(round(timer.at - self.now, 6) for timer in self._timers)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until the timers make ``true`` true."""
        while not true():
            self._changed.clear()
            await self._changed.wait()

    async def set_to(self, *seconds: float) -> None:
        """Wait until there are exactly these timers, by seconds from now."""
        await self.until(lambda: self.pending == sorted(seconds))

    async def pass_by(self, seconds: float) -> None:
        """Let time pass; each timer finds the clock at its time, and what it wakes runs before the next one."""
        until = self.now + seconds
        while due := [timer for timer in self._timers if timer.at <= until]:
            timer = min(due, key=lambda timer: timer.at)
            self.now = timer.at
            self._forget(timer)
            timer.function(*timer.arguments)
            await asyncio.sleep(0)
        self.now = until
