"""Finds responses that aiohttp has abandoned, and wakes their readers.

In two cases, aiohttp (3.12 to 3.14) closes a connection without waking the task that reads the body, and stops its own
read timeout, so that the task would wait indefinitely:

- a chunk is malformed (with aiohttp's parser in C);
- the session is closed.

The second case is visible when it happens. For the first, a timer checks the open responses: one whose connection is
closed while its body is neither complete nor failed is an orphan. It fails at the second such check, because a body
that ends with its connection is complete only one iteration of the loop later.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

__all__ = ["OpenResponses"]

# Seconds between two checks.
CHECK_SECONDS: Final = 1.0


class OpenResponses:
    """The responses of a session whose bodies are being received."""

    __slots__ = ("_loop", "_responses", "_suspects", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._responses: set[aiohttp.ClientResponse] = set()
        self._suspects: set[aiohttp.ClientResponse] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._responses)

    def add(self, response: aiohttp.ClientResponse) -> None:
        """Check a response from now on."""
        self._responses.add(response)
        if self._timer is None:
            self._timer = self._loop.call_later(CHECK_SECONDS, self._check)

    def discard(self, response: aiohttp.ClientResponse) -> None:
        """Stop checking a response."""
        self._responses.discard(response)

    def close(self) -> None:
        """Fail all open responses, before the session is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for response in self._responses:
            response.content.set_exception(aiohttp.ClientConnectionError("the session was closed"))
        self._responses.clear()
        self._suspects.clear()

    def _check(self) -> None:
        suspects = {response for response in self._responses if _is_orphan(response)}
        for response in suspects & self._suspects:
            response.content.set_exception(aiohttp.ClientPayloadError("the connection was closed on a malformed body"))
        self._suspects = suspects
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(CHECK_SECONDS, self._check) if self._responses else None


def _is_orphan(response: aiohttp.ClientResponse) -> bool:
    connection, content = response.connection, response.content
    return connection is not None and connection.closed and not content.is_eof() and content.exception() is None
