"""One HTTP/2 connection on asyncio, and the streams on it.

`Connection` moves bytes between its transport and `aiosmrt._transport.http2.core`, wakes those who wait for a stream,
and notices a peer that has died: while streams are open and nothing arrives for `PING_AFTER_SECONDS`, it sends a PING,
and when `PING_LIMIT_SECONDS` later nothing has arrived still, every stream fails. TCP alone would take minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from aiosmrt._transport.base import MAX_ERROR_BYTES, OnData
from aiosmrt._transport.failures import closed_during_call
from aiosmrt._transport.http2.core import Core, Failure, Stream
from aiosmrt._wire.http2 import FLUSH_BYTES
from aiosmrt.errors import AiosmrtError, ClientStateError, ConnectionClosedError, ResponseStreamingError

if TYPE_CHECKING:
    from hpack import HeaderTuple

__all__ = ["PING_AFTER_SECONDS", "PING_LIMIT_SECONDS", "Connection", "Link"]

PING_AFTER_SECONDS: Final = 5.0
PING_LIMIT_SECONDS: Final = 5.0

_REASONS: Final = {
    "reset": "The stream was reset by",
    "refused": "The stream was not begun by",
    "lost": "The connection was lost to",
    "malformed": "HTTP/2 was violated by",
    "silent": "The connection is dead to",
}


class Link:
    """A stream with those who wait for it: the request's bytes go out, the response's come in.

    It has the interface of `aiosmrt._transport.base.ReplyStream` once its head is there.

    Args:
        connection: the connection.
        stream: the stream's state.
        on_change: called when the stream may take more of the request, or is over. It must not raise.
    """

    def __init__(self, connection: Connection, stream: Stream, on_change: Callable[[], object]) -> None:
        self._connection = connection
        self._stream = stream
        self._on_change = on_change
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Link {self._stream!r}>"

    @property
    def status(self) -> int:
        """The HTTP status, once `wait_for_head` has returned."""
        return cast("int", self._stream.status)

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers; names in lower case, repeated ones joined by ``", "``."""
        return self._stream.headers

    @property
    def is_over(self) -> bool:
        """Whether the server has ended the stream, or something has broken it."""
        return self._closed or self._stream.is_over

    def failure(self) -> AiosmrtError | None:
        """The error of a stream that something has broken."""
        failure = self._stream.failure
        if failure is None:
            return None
        origin = self._connection.origin
        if failure.reason == "closed":
            return closed_during_call()
        error_class = ConnectionClosedError if self._stream.status is None else ResponseStreamingError
        code = f" ({failure.code})" if failure.code else ""
        text = f'{_REASONS[failure.reason]} endpoint URL: "{origin}"{code}'
        return error_class(text, endpoint_url=origin)

    # The request

    def write(self, data: memoryview) -> int:
        """Send as much as flow control and the socket take, and return how many bytes that is."""
        if self._closed:
            return 0
        return self._connection.write(self._stream, data)

    def end_input(self) -> bool:
        """End the request; return False if that has to wait for room."""
        return self._closed or self._connection.end_input(self._stream)

    # The response

    async def wait_for_head(self) -> None:
        """Wait for status and headers.

        Raises:
            ConnectionClosedError: the stream broke before.
            ClientStateError: the client was closed.
        """
        while self._stream.status is None:
            self._raise_failure()
            if self._stream.ended:
                raise ConnectionClosedError(
                    f'The stream ended before a response from endpoint URL: "{self._connection.origin}"',
                    endpoint_url=self._connection.origin,
                )
            await self._changed()

    async def receive(self, on_data: OnData) -> bool:
        """Wait for data and pass it on; see `aiosmrt._transport.base.ReplyStream`."""
        while not self._stream.received_bytes:
            if self._closed:
                return False
            self._raise_failure()
            if self._stream.ended:
                return False
            await self._changed()
        self.take(on_data)
        return True

    def take(self, on_data: OnData) -> None:
        """Pass on what has arrived, without waiting."""
        if not self._closed and self._stream.received_bytes:
            on_data(self._connection.take(self._stream))

    async def read(self) -> bytes:
        """Wait for data and return it; empty once the response is complete."""
        chunks: list[bytes] = []
        await self.receive(lambda data: chunks.append(bytes(data)))
        return b"".join(chunks)

    async def read_error(self) -> bytes:
        """The body of an error response: at most `aiosmrt._transport.base.MAX_ERROR_BYTES` of it."""
        body = bytearray()
        while len(body) < MAX_ERROR_BYTES and (chunk := await self.read()):
            body += chunk
        return bytes(body[:MAX_ERROR_BYTES])

    def close(self) -> None:
        """Reset the stream unless both sides have ended it. May be called more than once."""
        if not self._closed:
            self._closed = True
            self._connection.close_link(self._stream)
            self.wake()

    def _raise_failure(self) -> None:
        error = self.failure()
        if error is not None:
            try:
                raise error
            finally:
                del error

    async def _changed(self) -> None:
        if self._waiter is not None:
            raise ClientStateError("another task is waiting for this stream")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Tell those who wait that something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._on_change()


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        origin: scheme, host and port, for errors.
        on_change: called when streams have ended, or it takes no more of them. It must not raise.
        ping_after: seconds of silence after which a sign of life is asked for. Defaults to `PING_AFTER_SECONDS`.
        ping_limit: seconds to wait for one. Defaults to `PING_LIMIT_SECONDS`.
    """

    def __init__(
        self,
        origin: str,
        on_change: Callable[[Connection], object],
        *,
        ping_after: float = PING_AFTER_SECONDS,
        ping_limit: float = PING_LIMIT_SECONDS,
    ) -> None:
        self.origin = origin
        self._on_change = on_change
        self._ping_after = ping_after
        self._ping_limit = ping_limit
        self._loop = asyncio.get_running_loop()
        self._core = Core()
        self._links: dict[int, Link] = {}
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        self._flushes = False
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        self._pings = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.reserved = 0
        self.is_lost = False

    def __repr__(self) -> str:
        return f"<Connection {self.origin} {self._core!r}>"

    # For the pool

    @property
    def open_streams(self) -> int:
        """How many streams are open."""
        return self._core.open_streams

    @property
    def is_draining(self) -> bool:
        """Whether it takes no more streams."""
        return self.is_lost or self._core.is_draining

    @property
    def failure(self) -> Failure | None:
        """What has broken the connection."""
        return self._core.failure

    def has_room(self) -> bool:
        """Whether it takes another stream, those that are reserved aside."""
        return not self.is_draining and self._core.open_streams + self.reserved < self._core.max_streams

    def give_back(self) -> None:
        """Take back room that was reserved."""
        self.reserved -= 1
        self._on_change(self)

    async def ready(self) -> None:
        """Wait for the server's SETTINGS, without which its limit of streams is unknown."""
        await self._ready

    def open(self, headers: list[HeaderTuple], on_change: Callable[[], object]) -> Link | None:
        """Begin a request; None if the connection takes no more.

        Args:
            headers: the pseudo-header fields, then the others.
            on_change: as in `Link`.
        """
        if self.is_draining:
            return None
        stream = self._core.open(headers)
        if stream is None:
            return None
        link = self._links[stream.stream_id] = Link(self, stream, on_change)
        if self._timer is None:
            self._heard_at = self._loop.time()
            self._timer = self._loop.call_later(self._ping_after, self._check_silence)
        self._flush()
        return link

    def close(self) -> None:
        """Close the connection; its streams fail as those of a closed client."""
        if not self.is_lost:
            self._core.goodbye()
            self._end(Failure("closed"))

    # For its links

    def write(self, stream: Stream, data: memoryview) -> int:
        """See `Link.write`."""
        if self._is_full or self.is_lost:
            return 0
        if not self._flushes:
            # What is written in one turn of the loop is sent together.
            self._flushes = True
            self._loop.call_soon(self._flush)
        taken = self._core.write(stream, data)
        if self._core.pending_bytes >= FLUSH_BYTES:
            # A caller that waits for nothing else keeps the loop from it, and must learn when the socket is full.
            self._flush()
        return taken

    def end_input(self, stream: Stream) -> bool:
        """See `Link.end_input`."""
        ended = self._core.end_input(stream)
        self._flush()
        return ended

    def take(self, stream: Stream) -> bytes:
        """What has arrived; the server may send as much again."""
        data = self._core.take(stream)
        self._flush()
        return data

    def close_link(self, stream: Stream) -> None:
        """See `Link.close`."""
        self._links.pop(stream.stream_id, None)
        self._core.close(stream)
        self._flush()
        self._on_change(self)

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the server."""
        self._transport = cast("asyncio.Transport", transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Process what has arrived, and wake those who wait for it."""
        if self.is_lost:
            return
        self._heard_at = self._loop.time()
        self._pinged_at = None
        changed = self._core.feed(data)
        self._flush()
        if self._core.failure is not None:
            self._wake(changed)
            self._end(self._core.failure)
            return
        if self._core.has_settings and not self._ready.done():
            self._ready.set_result(None)
        self._wake(changed)
        if self._core.is_draining:
            self._on_change(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is open."""
        self._end(Failure("lost"))

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._is_full = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._is_full = False
        for link in list(self._links.values()):
            link.wake()

    def _flush(self) -> None:
        self._flushes = False
        if (data := self._core.output()) and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _wake(self, changed: list[Stream]) -> None:
        for stream in changed:
            link = self._links.get(stream.stream_id)
            if link is not None:
                link.wake()

    def _end(self, failure: Failure) -> None:
        if self.is_lost:
            return
        self._flush()
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        broken = self._core.fail(failure)
        if self._transport is not None:
            self._transport.abort()
        if not self._ready.done():
            self._ready.set_result(None)
        self._wake(broken)
        self._on_change(self)

    def _check_silence(self) -> None:
        """Ask for a sign of life, or give up on one."""
        self._timer = None
        if not self._core.open_streams:
            return
        now = self._loop.time()
        if self._pinged_at is None:
            due = self._heard_at + self._ping_after
            if now >= due:
                self._pings += 1
                self._core.ping(self._pings.to_bytes(8))
                self._flush()
                self._pinged_at = now
                due = now + self._ping_limit
        else:
            due = self._pinged_at + self._ping_limit
            if now >= due:
                # The loop may have been held up, with the answer in the socket: it reads before this comes up.
                self._timer = self._loop.call_later(0, self._give_up)
                return
        self._timer = self._loop.call_at(due, self._check_silence)

    def _give_up(self) -> None:
        self._timer = None
        if self._pinged_at is None:
            self._check_silence()
        else:
            self._end(Failure("silent"))
