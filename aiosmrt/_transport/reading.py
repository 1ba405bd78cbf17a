"""The responses whose bodies are being received, and who wakes up their readers.

aiohttp (3.12 to 3.14) closes a connection in two cases without a word to the one who waits for the rest of the body,
and stops its own read timeout with it, so that the reader would wait for ever:

- a chunk is framed wrongly (with aiohttp's parser in C);
- the session is closed.

The second case is known when it happens. For the first one, a timer looks at the open responses now and then: one whose
connection is closed and whose body is neither complete nor failed has been forgotten. It is given one more interval,
because a body that ends with its connection is complete one turn of the loop after that.
"""

from __future__ import annotations

import asyncio

import aiohttp

__all__ = ["OpenResponses"]

LOOK_SECONDS = 1.0


class OpenResponses:
    """The responses of a session whose bodies are being received.

    Args:
        interval: seconds between two looks at them.
    """

    __slots__ = ("_interval", "_loop", "_lost", "_responses", "_timer")

    def __init__(self, interval: float = LOOK_SECONDS) -> None:
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._responses: set[aiohttp.ClientResponse] = set()
        self._lost: set[aiohttp.ClientResponse] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._responses)

    def add(self, response: aiohttp.ClientResponse) -> None:
        """A body is about to be received."""
        self._responses.add(response)
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._look)

    def discard(self, response: aiohttp.ClientResponse) -> None:
        """It was received, or nobody wants it any more."""
        self._responses.discard(response)

    def close(self) -> None:
        """The session is about to be closed: fail those who read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for response in self._responses:
            response.content.set_exception(aiohttp.ClientConnectionError("the session was closed"))
        self._responses.clear()
        self._lost.clear()

    def _look(self) -> None:
        lost = {response for response in self._responses if _is_lost(response)}
        for response in lost & self._lost:
            response.content.set_exception(aiohttp.ClientPayloadError("the connection was closed on a malformed body"))
        self._lost = lost
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._interval, self._look) if self._responses else None


def _is_lost(response: aiohttp.ClientResponse) -> bool:
    connection, content = response.connection, response.content
    return connection is not None and connection.closed and not content.is_eof() and content.exception() is None
