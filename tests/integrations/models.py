"""A model that a test can hold back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiosmrt.local import Invocation


class GatedModel:
    """Says what the test gives it, when the test gives it."""

    def __init__(self) -> None:
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()

    def say(self, *parts: bytes, end: bool = False) -> None:
        """Say parts of an answer, each a part of the response stream.

        Args:
            parts: the parts.
            end: whether the answer ends with them.
        """
        for part in parts:
            self._parts.put_nowait(part)
        if end:
            self._parts.put_nowait(None)

    def fall_silent(self) -> None:
        """Forget what was not said yet."""
        self._parts = asyncio.Queue()

    async def speak(self, invocation: Invocation) -> AsyncIterator[bytes]:
        """The handler of the endpoint."""
        while (part := await self._parts.get()) is not None:
            yield part
