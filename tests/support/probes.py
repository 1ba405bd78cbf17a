"""Pauses between the probes of a target that is ill: as short as can be, or as long as a test likes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import aiosmrt
from aiosmrt._policy import admission

PAUSE = 0.001


def shorten_probe_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every pause last `PAUSE` seconds at most."""
    for name in ("FIRST_PAUSE", "MAX_PAUSE", "FIRST_CAPACITY_PAUSE", "MAX_CAPACITY_PAUSE"):
        monkeypatch.setattr(admission, name, PAUSE)


class HeldPauses:
    """Holds the pauses between a client's probes until the test moves on; its other timers run as ever.

    Args:
        client: the client, whose pauses `shorten_probe_pauses` has shortened.
    """

    def __init__(self, client: aiosmrt.Client) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: list[tuple[HeldTimer, Callable[..., object], tuple[Any, ...]]] | None = None
        client._core.call_later = self._call_later

    def hold(self) -> None:
        """From now on."""
        self._held = []

    def move_on(self) -> None:
        """End the pauses that are held, and hold none any more."""
        held, self._held = self._held or [], None
        for timer, function, arguments in held:
            if not timer.cancelled:
                self._loop.call_soon(function, *arguments)

    def _call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Any:
        if self._held is None or seconds > PAUSE:
            return self._loop.call_later(seconds, function, *arguments)
        timer = HeldTimer()
        self._held.append((timer, function, arguments))
        return timer


class HeldTimer:
    """A timer that strikes when the test moves on."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
