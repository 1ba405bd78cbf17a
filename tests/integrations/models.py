"""A model whose output a test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiosmrt.local import Invocation


class GatedModel:
    """Sends the parts that the test provides, when the test provides them."""

    def __init__(self) -> None:
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()

    def say(self, *parts: bytes, end: bool = False) -> None:
        """Send parts of a response stream.

        Args:
            parts: the parts.
            end: whether they are the last parts.
        """
        for part in parts:
            self._parts.put_nowait(part)
        if end:
            self._parts.put_nowait(None)

    def fall_silent(self) -> None:
        """Discard the parts that were not sent yet."""
        self._parts = asyncio.Queue()

    async def speak(self, invocation: Invocation) -> AsyncIterator[bytes]:
        """Handle an invocation."""
        while (part := await self._parts.get()) is not None:
            yield part
