"""Response bodies: what stands under ``"Body"`` in a result.

`StreamingBody` holds a body that was received whole inside its attempt, behind the interface that aiobotocore's body
has: reading it cannot fail any more, and nothing leaks when nobody reads it.

`EventStream` hands out parts as they arrive. It holds a connection and a place under ``max_concurrency`` until it
ends, fails, is closed, or its reader is cancelled. Parts that were complete before a failure are handed out before the
failure is raised. A failure before the first part is not raised when the call's retry policy allows another attempt:
the request is sent again and the new response takes the old one's place.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from aiosmrt._transport import ReplyStream
from aiosmrt.errors import AiosmrtError, ClientStateError, EventStreamFormatError, TransportError

if TYPE_CHECKING:
    from aiosmrt._wire.eventstream import Decoder, EventHeaders
    from aiosmrt.types import ResponseStreamEvent

__all__ = ["EventStream", "StreamOwner", "StreamingBody"]

_CHUNK_BYTES = 1024
# A batch whose values stay in the processor's cache until they are used: JSON comes a third faster than by thousands.
_BATCH_PARTS = 256


class StreamingBody:
    """A received response body.

    Args:
        data: the body.

    >>> import asyncio
    >>> body = StreamingBody(b"0.25\\n0.75\\n")
    >>> asyncio.run(body.readlines())
    [b'0.25', b'0.75']
    """

    __slots__ = ("_closed", "_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<StreamingBody size_bytes={len(self._data)} position={self._position}>"

    async def read(self, amt: int | None = None) -> bytes:
        """Read on.

        Args:
            amt: most bytes to read; None or a negative number for all that is left.

        Raises:
            ValueError: the body was closed.
        """
        return self._read(amt)

    async def readinto(self, b: bytearray | memoryview) -> int:
        """Read into a writable buffer and return how many bytes were read."""
        chunk = self._read(len(b))
        b[: len(chunk)] = chunk
        return len(chunk)

    async def readlines(self) -> list[bytes]:
        """The lines that are left, without their ends."""
        return [line async for line in self.iter_lines()]

    async def iter_chunks(self, chunk_size: int = _CHUNK_BYTES) -> AsyncIterator[bytes]:
        """Iterate over what is left in pieces of ``chunk_size`` bytes."""
        while chunk := self._read(chunk_size):
            yield chunk

    async def iter_lines(self, chunk_size: int = _CHUNK_BYTES, keepends: bool = False) -> AsyncIterator[bytes]:
        """Iterate over the lines that are left.

        Args:
            chunk_size: taken for aiobotocore's sake; the lines do not depend on it.
            keepends: whether a line keeps its end.
        """
        for line in self._read(None).splitlines(keepends):
            yield line

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.iter_chunks()

    async def __anext__(self) -> bytes:
        if chunk := self._read(_CHUNK_BYTES):
            return chunk
        raise StopAsyncIteration

    def readable(self) -> bool:
        """Whether anything is left."""
        return not self._closed and self._position < len(self._data)

    def tell(self) -> int:
        """How many bytes were read."""
        return self._position

    def close(self) -> None:
        """Let go of the data."""
        self._closed = True
        self._data = b""

    async def aclose(self) -> None:
        """The same as `close`."""
        self.close()

    async def __aenter__(self) -> StreamingBody:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, amt: int | None) -> bytes:
        if self._closed:
            raise ValueError("read from a closed body")
        start = self._position
        end = len(self._data) if amt is None or amt < 0 else min(start + amt, len(self._data))
        self._position = end
        # a slice of everything is the same object
        return self._data[start:end]


class StreamOwner(Protocol):
    """What an `EventStream` needs of the call that it belongs to."""

    sent: int

    def stream_error(self, headers: EventHeaders, payload: bytes) -> AiosmrtError:
        """The error for an ``exception`` or ``error`` message."""
        ...

    async def recover(self, error: AiosmrtError, *, stream_started: bool) -> ReplyStream:
        """Send the request again where the policy allows it, or raise ``error``."""
        ...

    def finish_stream(self, parts: int, payload_bytes: int, *, complete: bool) -> None:
        """Give the call's slot back; called once."""
        ...


class EventStream:
    """The parts of a streamed response, ``{"PayloadPart": {"Bytes": b"…"}}`` each.

    An asynchronous iterator and context manager. Leaving the ``async with`` block, `close`, the end, an error and
    cancellation all give the connection back or up at once.

    Args:
        owner: the call.
        stream: the response, its head received.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_decoder",
        "_failure",
        "_given_up",
        "_open",
        "_owner",
        "_parts",
        "_payload_bytes",
        "_ready",
        "_receiving",
        "_stream",
    )

    def __init__(self, owner: StreamOwner, stream: ReplyStream) -> None:
        self._owner = owner
        self._stream = stream
        self._decoder = _decoder()
        self._ready: list[bytes] = []
        # payloads as they come
        self._arrived: list[bytes] = []
        self._failure: AiosmrtError | None = None
        self._open = True
        # A cancelled reader has lost parts: those who read on must not take that for the end.
        self._given_up = False
        self._receiving = False
        self._parts = 0
        self._payload_bytes = 0

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<EventStream {state} parts={self._parts} payload_bytes={self._payload_bytes}>"

    @property
    def attempts(self) -> int:
        """How many requests were sent so far: a stream that fails before its first part may be asked for again."""
        return self._owner.sent

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> ResponseStreamEvent:
        """The next part.

        Raises:
            ModelStreamError, InternalStreamFailure: the service reported a failure inside the stream.
            EventStreamFormatError: a malformed frame, or the stream ended inside one.
            ReadTimeoutError: silence for longer than ``read_timeout``.
            ResponseStreamingError: the connection was lost.
            ClientStateError: another task is waiting for the next part, or an earlier wait for it was cancelled.
        """
        if not self._ready and not await self._receive():
            raise StopAsyncIteration
        return {"PayloadPart": {"Bytes": self._ready.pop()}}

    async def receive(self) -> list[bytes]:
        """The payloads of the next parts, waiting until one has arrived; empty at the stream's end.

        Raises as ``anext`` does.
        """
        if not self._ready and not await self._receive():
            return []
        ready = self._ready
        payloads = ready[: -_BATCH_PARTS - 1 : -1]
        del ready[-_BATCH_PARTS:]
        return payloads

    async def _receive(self) -> bool:
        """Fill ``_ready`` with at least one payload, or raise; False at the end."""
        if self._receiving:
            raise ClientStateError("another task is waiting for this stream's next part")
        self._receiving = True
        try:
            while self._open:
                failure, self._failure = self._failure, None
                try:
                    if failure is None:
                        try:
                            more = await self._stream.receive(self._take)
                            if not self._open:
                                break  # closed meanwhile, and what arrived at the same time is given up
                            if self._arrived:
                                # payloads in reverse: list.pop() from the end is the cheapest hand-over
                                self._arrived.reverse()
                                self._ready, self._arrived = self._arrived, self._ready
                                return True
                            if not more:
                                self._decoder.finish()
                                self._close(complete=True)
                            continue
                        except (TransportError, EventStreamFormatError) as error:
                            if not self._open:
                                break
                            failure = error
                    self._stream.close()
                    stream = await self._owner.recover(failure, stream_started=self._parts > 0)
                    self._stream = stream
                    if not self._open:
                        stream.close()
                    self._decoder = _decoder()
                except BaseException as error:
                    if not self._open and isinstance(error, AiosmrtError):
                        break  # closed by another task meanwhile: an end, not a failure
                    self._given_up = not isinstance(error, Exception)
                    self._close(complete=False)
                    self._decoder = _decoder()
                    raise
                finally:
                    del failure  # as in aiosmrt.call; the decoder keeps its own, too
            if self._given_up:
                raise ClientStateError("a read of this stream was cancelled, which has closed it")
            return False
        finally:
            self._receiving = False

    def _take(self, data: bytes | memoryview) -> None:
        """Decode what has arrived and keep its payloads, up to the first failure."""
        if self._failure is not None:
            return
        try:
            messages = self._decoder.feed(data)
        except EventStreamFormatError as error:
            self._failure = error
            return
        arrived = self._arrived
        for headers, payload in messages:
            if headers.event_type == "PayloadPart":
                arrived.append(payload)
                self._payload_bytes += len(payload)
                self._parts += 1
            elif headers.message_type != "event":
                self._failure = self._owner.stream_error(headers, payload)
                return
        self._failure = self._decoder.failure

    def close(self) -> None:
        """End the stream; what has not arrived is given up."""
        self._ready.clear()
        self._close(complete=False)

    def _close(self, *, complete: bool) -> None:
        if self._open:
            self._open = False
            self._stream.close()
            self._owner.finish_stream(self._parts, self._payload_bytes, complete=complete)

    async def aclose(self) -> None:
        """The same as `close`."""
        self.close()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_open", False):
            try:
                _warn(f"unclosed {self!r}: read it to its end, or use `async with`", ResourceWarning, source=self)
            finally:
                self._close(complete=False)


def _decoder() -> Decoder:
    # loaded with the first stream
    from aiosmrt._wire.eventstream import Decoder

    return Decoder()
