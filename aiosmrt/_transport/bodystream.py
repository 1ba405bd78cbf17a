"""A response's body that is read as it arrives, on a connection of `aiosmrt._transport.connection`.

While its reader waits, what arrives is handed on straight from the receive buffer. Otherwise it is copied and kept, up
to `_HIGH_BYTES`; then the socket is not read until the reader has taken it.
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import TYPE_CHECKING

from aiosmrt._transport import Take
from aiosmrt._wire.http1 import ResponseHead

if TYPE_CHECKING:
    from aiosmrt._transport.connection import Connection

__all__ = ["BodyStream"]

# Pieces of a stream that are smaller on average are joined, which costs less than to decode each on its own.
_SMALL_PIECE_BYTES = 2**12

# A stream's pieces that nobody has taken yet; 1 MiB was slower (docs/design/architecture.md, Transport).
_HIGH_BYTES = 2**18


class BodyStream:
    """A response whose body is read as it arrives; see `aiosmrt._transport.ReplyStream`.

    Args:
        connection: where it arrives.
        head: the response's head.
    """

    __slots__ = ("_connection", "_failure", "_paused", "_pieces", "_size", "_take", "_waiter", "headers", "status")

    def __init__(self, connection: Connection, head: ResponseHead) -> None:
        self.status = head.status
        self.headers = head.headers
        # None once the body has ended, has failed or is given up
        self._connection: Connection | None = connection
        # what nobody has taken yet, and how many bytes it is
        self._pieces: list[bytes] = []
        self._size = 0
        self._paused = False
        self._failure: Exception | None = None
        # of the one who waits; the future says whether something was handed on
        self._take: Take | None = None
        self._waiter: asyncio.Future[bool] | None = None

    async def receive(self, take: Take) -> bool:
        """Hand on what has arrived; see `aiosmrt._transport.ReplyStream.receive`."""
        connection = self._connection
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            if self._paused:
                self._paused = False
                if connection is not None:
                    connection.resume_reading()
            _hand_on(pieces, take)
            return True
        if connection is not None:
            waiter = self._waiter = connection.watch()
            self._take = take
            try:
                if await waiter:
                    return True
            finally:
                self._take = self._waiter = None
                # at the end or after a failure, the connection has seen to it, and may be carrying another exchange
                if self._connection is not None:
                    connection.unwatch()
        if self._failure is None:
            return False
        # An error that was raised twice would hold the frames of both.
        another = copy(self._failure)
        another.__cause__ = self._failure.__cause__
        try:
            raise another
        finally:
            del another

    async def read(self) -> bytes:
        """Whatever has arrived; empty at the end. See `aiosmrt._transport.ReplyStream.read`."""
        pieces: list[bytes] = []
        await self.receive(lambda piece: pieces.append(bytes(piece)))
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection up unless the body was received to its end."""
        connection, self._connection = self._connection, None
        self._pieces.clear()
        if connection is not None:
            connection.discard()
            self._wake(False)

    # What the connection does

    def arrived(self, parts: list[memoryview]) -> None:
        """There are new pieces, in the receive buffer."""
        if self._take is not None:
            if self._connection is not None:
                self._connection.unwatch()
            _hand_on(parts, self._take)
            self._wake(True)
            return
        piece = b"".join(parts)
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= _HIGH_BYTES and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause_reading()

    def ended(self) -> None:
        """The body is here to its end."""
        connection, self._connection = self._connection, None
        if self._paused and connection is not None:
            # TLS hands out what it has decrypted although reading is paused; the next exchange wants to read.
            self._paused = False
            connection.resume_reading()
        self._wake(False)

    def failed(self, error: Exception) -> None:
        """There will be no more."""
        self._connection = None
        self._failure = error
        self._wake(False)

    def _wake(self, received: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(received)


def _hand_on(parts: list[memoryview] | list[bytes], take: Take) -> None:
    """Hand pieces on, small ones together."""
    if len(parts) > 1 and sum(map(len, parts)) < _SMALL_PIECE_BYTES * len(parts):
        take(b"".join(parts))
    else:
        for part in parts:
            take(part)
