"""Short pauses, such as those between the probes of an unhealthy target, that do not depend on the machine's speed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import aiosmrt
from aiosmrt._policy import target_health
from tests.support import seams

PAUSE = 0.001


def shorten_probe_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit every pause between probes to `PAUSE` seconds."""
    for name in ("FIRST_PAUSE", "MAX_PAUSE", "FIRST_CAPACITY_PAUSE", "MAX_CAPACITY_PAUSE"):
        monkeypatch.setattr(target_health, name, PAUSE)


class Pauses:
    """A client's clock, which short pauses alone move: each takes one turn of the event loop, or lasts until released.

    So a pause never ends before the call that waits for it has suspended. Longer timers, such as deadlines, run in real
    time.

    Args:
        client: the client.
        longest: seconds up to which a pause is short. Defaults to `PAUSE`.
    """

    def __init__(self, client: aiosmrt.Client, longest: float = PAUSE) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest = longest
        self._now = 1000.0
        self._held: list[Pause] | None = None
        seams.set_clock(client, lambda: self._now)
        seams.set_call_later(client, self._call_later)

    def hold(self) -> None:
        """Keep every pause that begins from now on."""
        self._held = []

    def release(self) -> None:
        """End the pauses that are held, and hold no further ones."""
        held, self._held = self._held or [], None
        for pause in held:
            self._loop.call_soon(pause.end)

    def _call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Any:
        if seconds > self._longest:
            return self._loop.call_later(seconds, function, *arguments)
        pause = Pause(self, self._now + seconds, function, arguments)
        if self._held is None:
            self._loop.call_soon(pause.end)
        else:
            self._held.append(pause)
        return pause

    def _move_to(self, now: float) -> None:
        self._now = max(self._now, now)


class Pause:
    """A pause that has begun."""

    def __init__(
        self, pauses: Pauses, until: float, function: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        self._pauses = pauses
        self._until = until
        self._function = function
        self._arguments = arguments
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def end(self) -> None:
        if not self._cancelled:
            self._pauses._move_to(self._until)
            self._function(*self._arguments)
