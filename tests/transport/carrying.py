"""Carrying requests over either transport, on wires that a test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest

from aiosmrt._transport import pooled as pooled_module
from aiosmrt._transport.aiohttp_session import connector as session_module
from aiosmrt._transport.aiohttp_session.transport import SessionTransport
from aiosmrt._transport.base import Reply, ReplyStream, Request, Transport, header_lines
from aiosmrt._transport.pooled import PooledTransport

MakeTransport: TypeAlias = Callable[..., Transport]
Carry: TypeAlias = Callable[[Transport, Request], Awaitable[Reply]]

MODULES: dict[str, Any] = {"pooled": pooled_module, "session": session_module}
CLASSES: dict[str, Any] = {"pooled": PooledTransport, "session": SessionTransport}

only_pooled = pytest.mark.parametrize("transport_name", ["pooled"], indirect=True)
only_session = pytest.mark.parametrize("transport_name", ["session"], indirect=True)


def request(
    body: bytes | memoryview = b"1,2",
    *,
    target: str = "/endpoints/e/invocations",
    connect_timeout: float | None = 30.0,
    read_timeout: float | None = 30.0,
    **more: Any,
) -> Request:
    """A request whose timeouts are too long to matter unless a test sets them."""
    headers = header_lines([("Content-Type", "text/csv")])

    async def renew_headers() -> str:
        return headers

    more.setdefault("renew_headers", renew_headers)
    return Request(target, headers, body, connect_timeout, read_timeout, **more)


async def whole(stream: ReplyStream) -> bytes:
    """A stream's body; its end stays the end."""
    pieces = []
    while data := await stream.read():
        pieces.append(data)
    assert await stream.read() == b""
    return b"".join(pieces)


async def read_through(transport: Transport, request: Request) -> Reply:
    """A reply by way of a stream."""
    stream = await transport.send_streaming(request)
    if isinstance(stream, Reply):
        return stream
    try:
        return Reply(stream.status, stream.headers, await whole(stream))
    finally:
        stream.close()


async def send(transport: Transport, request: Request) -> Reply:
    """A whole reply."""
    return await transport.send(request)


each_way = pytest.mark.parametrize("carry", [send, read_through], ids=["send", "send_streaming"])


class Wire:
    """The transports' sockets under a test's control: how much each read returns at most, and what was read.

    asyncio asks for the rest of what has arrived in the loop's next turn, so a response that is on its way as a whole
    is received in exactly the pieces that `cut` says.
    """

    def __init__(self) -> None:
        self.reads: list[int] = []
        # bytes that the kernel takes from the client ahead of the server, about; if None, the system decides
        self.send_buffer: int | None = None
        self._pieces: Iterator[int] = iter(())
        self._next: int | None = None

    def cut(self, *pieces: int, then: int | None = None) -> None:
        """Forget what was read, and limit the reads that follow.

        Args:
            pieces: the most bytes that each of the next reads returns.
            then: the most bytes of every read after these; if None, no limit.
        """
        self.reads.clear()

        def limits() -> Iterator[int]:
            yield from pieces
            while then is not None:
                yield then

        self._pieces = limits()
        self._next = next(self._pieces, None)

    @property
    def received(self) -> int:
        """Bytes that were read since the last `cut`."""
        return sum(self.reads)

    async def has_received(self, count: int) -> None:
        """Wait until so many bytes were read since the last `cut`, and what follows from them has been done."""
        while self.received < count:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    def limit(self, size: int) -> int:
        return size if self._next is None else min(size, self._next)

    def note(self, count: int) -> None:
        self.reads.append(count)
        self._next = next(self._pieces, None)
