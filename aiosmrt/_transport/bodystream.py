"""A response body that is received piece by piece on a connection.

While its reader waits, data goes to the reader straight from the receive buffer. Otherwise it is copied and kept, up to
`_HIGH_BYTES`; beyond that the socket is not read until the reader has received what is kept.
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Protocol

from aiosmrt._transport.base import OnData
from aiosmrt._wire.http1 import ResponseHead

__all__ = ["BodySource", "BodyStream"]

# Pieces that are smaller on average are joined, which costs less than to decode each by itself.
_SMALL_PIECE_BYTES = 2**12

# How much is kept for a reader that does not wait; 1 MiB was slower (benchmarks/stream.py).
_HIGH_BYTES = 2**18


class BodySource(Protocol):
    """The connection that a `BodyStream` receives from."""

    def watch(self) -> asyncio.Future[bool]:
        """Start the read timeout, and return the future that the reader waits for."""
        ...

    def unwatch(self) -> None:
        """Stop the read timeout."""
        ...

    def pause_reading(self) -> None:
        """Stop reading from the socket."""
        ...

    def resume_reading(self) -> None:
        """Read from the socket again."""
        ...

    def discard(self) -> None:
        """Close the connection."""
        ...


class BodyStream:
    """A response whose body is received piece by piece; implements `aiosmrt._transport.base.ReplyStream`.

    Args:
        source: the connection.
        head: the response's head.
    """

    __slots__ = ("_failure", "_on_data", "_paused", "_pieces", "_size", "_source", "_waiter", "headers", "status")

    def __init__(self, source: BodySource, head: ResponseHead) -> None:
        self.status = head.status
        self.headers = head.headers
        # None once the body is complete, has failed, or was closed
        self._source: BodySource | None = source
        # received while the reader was not waiting
        self._pieces: list[bytes] = []
        self._size = 0
        self._paused = False
        self._failure: Exception | None = None
        # set while a reader waits; the future's result is whether it got data
        self._on_data: OnData | None = None
        self._waiter: asyncio.Future[bool] | None = None

    async def receive(self, on_data: OnData) -> bool:
        """Wait for data and pass it to a callback; see `aiosmrt._transport.base.ReplyStream.receive`."""
        source = self._source
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            if self._paused:
                self._paused = False
                if source is not None:
                    source.resume_reading()
            _deliver(pieces, on_data)
            return True
        if source is not None:
            waiter = self._waiter = source.watch()
            self._on_data = on_data
            try:
                if await waiter:
                    return True
            finally:
                self._on_data = self._waiter = None
                # Once the body has ended or failed, the connection may already be serving another request.
                if self._source is not None:
                    source.unwatch()
        if self._failure is None:
            return False
        # Raising the same object twice would tie the frames of both readers together.
        another = copy(self._failure)
        another.__cause__ = self._failure.__cause__
        try:
            raise another
        finally:
            del another

    async def read(self) -> bytes:
        """Wait for data and return it; see `aiosmrt._transport.base.ReplyStream.read`."""
        pieces: list[bytes] = []
        await self.receive(lambda piece: pieces.append(bytes(piece)))
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection unless the body was received completely."""
        source, self._source = self._source, None
        self._pieces.clear()
        if source is not None:
            source.discard()
            self._wake(False)

    # Called by the connection

    def data_arrived(self, parts: list[memoryview]) -> None:
        """Deliver or keep new data, which is valid only during this call."""
        if self._on_data is not None:
            if self._source is not None:
                self._source.unwatch()
            _deliver(parts, self._on_data)
            self._wake(True)
            return
        piece = b"".join(parts)
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= _HIGH_BYTES and not self._paused and self._source is not None:
            self._paused = True
            self._source.pause_reading()

    def completed(self) -> None:
        """The body is complete."""
        source, self._source = self._source, None
        if self._paused and source is not None:
            # Under TLS, decrypted data arrives even while reading is paused. The next request needs to read.
            self._paused = False
            source.resume_reading()
        self._wake(False)

    def failed(self, error: Exception) -> None:
        """The rest of the body will not arrive."""
        self._source = None
        self._failure = error
        self._wake(False)

    def _wake(self, received: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(received)


def _deliver(parts: list[memoryview] | list[bytes], on_data: OnData) -> None:
    """Pass pieces on, joined if they are small."""
    if len(parts) > 1 and sum(map(len, parts)) < _SMALL_PIECE_BYTES * len(parts):
        on_data(b"".join(parts))
    else:
        for part in parts:
            on_data(part)
