"""Response bodies: the ``"Body"`` of a result.

`StreamingBody` holds a body that was received whole inside its attempt, behind the interface of aiobotocore's body.
Reading it cannot fail, and a body that is not read holds no connection.

`EventStream` returns parts as they arrive. It holds a connection and a slot under ``max_concurrency`` until it ends,
fails, is closed, or its reader is cancelled. Parts that were complete before a failure come before its error. A failure
before the first part is not raised if the call's retry policy allows another attempt: the request is sent again, and
the stream continues with the new response.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from aiosmrt._one_process import OneProcess
from aiosmrt._transport.base import ReplyStream
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    EventStreamFormatError,
    ResponseStreamingError,
    TransportError,
)

if TYPE_CHECKING:
    from aiosmrt._wire.eventstream import Decoder, EventHeaders
    from aiosmrt._wire.openai_route import PlainParts
    from aiosmrt.types import ResponseStreamEvent

__all__ = ["EventStream", "StreamOwner", "StreamTiming", "StreamingBody", "decoded_parts"]

_CHUNK_BYTES = 1024
# Small enough that the values of a batch stay in the processor's cache: JSON is a third faster than in thousands.
_BATCH_PARTS = 256


class StreamingBody:
    """A received response body, with the interface of aiobotocore's.

    It is asynchronous; the methods that `io.IOBase` has besides raise what they raise there. After `close`, reading
    raises `ResponseStreamingError`.

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
        """Read the next bytes.

        Args:
            amt: most bytes to read. If None or negative, all that are left.

        Raises:
            ResponseStreamingError: the body was closed.
        """
        return self._read(amt)

    async def readinto(self, b: bytearray | memoryview) -> int:
        """Read into a writable buffer; return how many bytes were read."""
        chunk = self._read(len(b))
        b[: len(chunk)] = chunk
        return len(chunk)

    async def readlines(self) -> list[bytes]:
        """Return the lines that are left, without their ends."""
        return self._read(None).splitlines()

    async def iter_chunks(self, chunk_size: int = _CHUNK_BYTES) -> AsyncIterator[bytes]:
        """Iterate over the rest of the body in pieces of ``chunk_size`` bytes."""
        while chunk := self._read(chunk_size):
            yield chunk

    async def iter_lines(self, chunk_size: int = _CHUNK_BYTES, keepends: bool = False) -> AsyncIterator[bytes]:
        """Iterate over the lines that are left.

        Args:
            chunk_size: how many bytes are taken at a time. What was taken is not read again when the iteration ends
                early; what follows is. Defaults to 1,024.
            keepends: whether a line keeps its end. Defaults to False.
        """
        pieces: list[bytes] = []
        async for chunk in self.iter_chunks(chunk_size):
            within_line = not (b"\n" in chunk or b"\r" in chunk or (pieces and pieces[-1].endswith((b"\n", b"\r"))))
            pieces.append(chunk)
            if within_line:
                continue
            # The last one may go on: with the LF of a CRLF, at least.
            *lines, last = b"".join(pieces).splitlines(keepends=True)
            pieces = [last]
            for line in lines:
                yield line if keepends else line.rstrip(b"\r\n")
        if last_line := b"".join(pieces):
            yield last_line if keepends else last_line.rstrip(b"\r\n")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.iter_chunks()

    async def __anext__(self) -> bytes:
        if chunk := self._read(_CHUNK_BYTES):
            return chunk
        raise StopAsyncIteration

    async def anext(self) -> bytes:
        """Do the same as ``await anext(body)``."""
        return await self.__anext__()

    @property
    def closed(self) -> bool:
        """Whether the body was closed."""
        return self._closed

    @property
    def raw_stream(self) -> StreamingBody:
        """The body itself: it was received whole, and its HTTP response is done."""
        return self

    def readable(self) -> bool:
        """Return whether there are bytes left."""
        return not self._closed and self._position < len(self._data)

    def seekable(self) -> bool:
        """Return False, as for aiobotocore's body."""
        return False

    def writable(self) -> bool:
        """Return False."""
        return False

    def isatty(self) -> bool:
        """Return False."""
        return False

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def flush(self) -> None:
        """Do nothing, as for aiobotocore's body."""

    def set_socket_timeout(self, timeout: float) -> NoReturn:
        """Not supported; the body was received within the client's ``read_timeout``.

        Raises:
            NotImplementedError: always, as for aiobotocore's body.
        """
        raise NotImplementedError("set_socket_timeout() is not supported; the client has a read_timeout")

    def fileno(self) -> NoReturn:
        """Not supported, like the methods that follow.

        Raises:
            io.UnsupportedOperation: always.
        """
        raise io.UnsupportedOperation("a response body is not a file: use read(), readinto() or an iterator")

    def readline(self, size: int = -1, /) -> NoReturn:
        """Not supported; use `iter_lines`."""
        self.fileno()

    def seek(self, offset: int, whence: int = 0, /) -> NoReturn:
        """Not supported."""
        self.fileno()

    def truncate(self, size: int | None = None, /) -> NoReturn:
        """Not supported."""
        self.fileno()

    def writelines(self, lines: Any, /) -> NoReturn:
        """Not supported."""
        self.fileno()

    def next(self) -> NoReturn:
        """Not supported; use ``await anext(body)``.

        Raises:
            TypeError: always, as for aiobotocore's body.
        """
        raise TypeError("a response body is asynchronous: use `await anext(body)`")

    if not TYPE_CHECKING:  # type checkers would accept a loop or a block that raises

        def __iter__(self) -> NoReturn:
            raise TypeError("a response body is asynchronous: use `async for`")

        __next__ = next

        def __enter__(self) -> NoReturn:
            raise TypeError("a response body is asynchronous: use `async with`")

        def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
            """Required by `with`, so that its error is that of `__enter__`."""

    def close(self) -> None:
        """Release the data."""
        self._closed = True
        self._data = b""

    async def aclose(self) -> None:
        """Do the same as `close`."""
        self.close()

    async def __aenter__(self) -> StreamingBody:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def _read(self, amt: int | None) -> bytes:
        if self._closed:
            raise ResponseStreamingError("the response body is closed")
        start = self._position
        end = len(self._data) if amt is None or amt < 0 else min(start + amt, len(self._data))
        # A slice of everything is the same object.
        data = self._data[start:end]
        self._position = end
        return data


class StreamTiming(NamedTuple):
    """How long a response stream took so far; in seconds, from when the call began.

    Times are taken when a reader gets what has arrived. The gap between parts that arrived together is 0.

    Args:
        first_part: until the first part, waits and attempts before it included. None before the first part.
        longest_gap: the longest wait from one part to the next. None before the second part.
        mean_gap: the mean wait from one part to the next. None before the second part.
        total: until the stream's end, or until now.
        parts: parts so far.
        payload_bytes: bytes in them.
    """

    first_part: float | None
    longest_gap: float | None
    mean_gap: float | None
    total: float
    parts: int
    payload_bytes: int


class StreamOwner(Protocol):
    """What an `EventStream` needs of its call."""

    sent: int

    def stream_error(self, headers: EventHeaders, payload: bytes) -> AiosmrtError:
        """Return the error for an ``exception`` or ``error`` message."""
        ...

    async def retry_stream(self, error: AiosmrtError, *, stream_started: bool) -> ReplyStream:
        """Send the request again if the policy allows it; raise ``error`` otherwise."""
        ...

    def place(self, error: AiosmrtError) -> AiosmrtError:
        """Attach to an error which call it is of."""
        ...

    def elapsed(self) -> float:
        """Seconds since the call began."""
        ...

    def first_part(self, seconds: float) -> None:
        """Take note of the first part, which came after so many seconds; called once."""
        ...

    def finish_stream(self, parts: int, payload_bytes: int, *, complete: bool) -> None:
        """Release the call's slot; called once."""
        ...


class EventStream(OneProcess):
    """The parts of a streamed response, ``{"PayloadPart": {"Bytes": b"…"}}`` each.

    An asynchronous iterator and context manager. Leaving the ``async with`` block, `close`, the end, an error and
    cancellation all return the connection to the pool, or close it, at once.

    Args:
        owner: the call.
        stream: the response, whose head was received.
        plain: whether the response is bytes without frames, of which each piece that arrives is a part. Defaults to
            False.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_cancelled",
        "_decoder",
        "_dropped",
        "_ended_at",
        "_failure",
        "_first_part_at",
        "_last_part_at",
        "_longest_gap",
        "_loop",
        "_open",
        "_owner",
        "_parts",
        "_payload_bytes",
        "_plain",
        "_ready",
        "_receiving",
        "_stream",
    )

    def __init__(self, owner: StreamOwner, stream: ReplyStream, *, plain: bool = False) -> None:
        self._owner = owner
        self._stream = stream
        self._plain = plain
        self._loop = asyncio.get_running_loop()
        self._decoder = _decoder(plain)
        self._ready: list[bytes] = []
        # Payloads as they arrive.
        self._arrived: list[bytes] = []
        self._failure: AiosmrtError | None = None
        self._open = True
        # A cancelled reader has lost parts, so that reading on must not look like the end.
        self._cancelled = False
        # Nor must reading on after `close`, which has dropped parts.
        self._dropped = False
        self._receiving = False
        self._parts = 0
        self._payload_bytes = 0
        # seconds since the call began
        self._first_part_at: float | None = None
        self._last_part_at = 0.0
        self._ended_at: float | None = None
        self._longest_gap = 0.0

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<EventStream {state} parts={self._parts} payload_bytes={self._payload_bytes}>"

    @property
    def attempts(self) -> int:
        """How many requests were sent so far: a stream that fails before its first part may be requested again."""
        return self._owner.sent

    @property
    def timing(self) -> StreamTiming:
        """Seconds to the first part and between parts so far; see `StreamTiming`."""
        first, gaps = self._first_part_at, self._parts - 1
        return StreamTiming(
            first_part=first,
            longest_gap=self._longest_gap if gaps > 0 else None,
            mean_gap=(self._last_part_at - first) / gaps if gaps > 0 and first is not None else None,
            total=self._owner.elapsed() if self._ended_at is None else self._ended_at,
            parts=self._parts,
            payload_bytes=self._payload_bytes,
        )

    def __aiter__(self) -> EventStream:
        return self

    if not TYPE_CHECKING:  # type checkers would accept a loop that raises

        def __iter__(self) -> NoReturn:
            raise NotImplementedError("a response stream is asynchronous: use `async for`")

    async def __anext__(self) -> ResponseStreamEvent:
        """Return the next part.

        Raises:
            ModelStreamError, InternalStreamFailure: the service reported a failure inside the stream.
            EventStreamFormatError: a malformed frame, the stream ended inside one, or an empty answer without an event
                stream's content type.
            ReadTimeoutError: silence for longer than ``read_timeout``.
            ResponseStreamingError: the connection was lost, or the stream was closed before its end.
            ClientStateError: another task is waiting for the next part, or an earlier wait for it was cancelled.
        """
        if not self._ready and not await self._receive():
            raise StopAsyncIteration
        return {"PayloadPart": {"Bytes": self._ready.pop()}}

    async def receive(self) -> list[bytes]:
        """Wait for the next parts and return their payloads; an empty list at the end.

        Raises as ``anext`` does.
        """
        if not self._ready and not await self._receive():
            return []
        ready = self._ready
        payloads = ready[: -_BATCH_PARTS - 1 : -1]
        del ready[-_BATCH_PARTS:]
        return payloads

    async def _receive(self) -> bool:
        """Fill ``_ready`` with at least one payload, or raise; return False at the end."""
        if self._receiving:
            raise ClientStateError("another task is waiting for this stream's next part")
        if self._dropped:
            raise self._owner.place(ResponseStreamingError("the response stream is closed", cause="none"))
        self._receiving = True
        try:
            while self._open:
                failure, self._failure = self._failure, None
                try:
                    if failure is None:
                        try:
                            more = await self._stream.receive(self._take)
                            if not self._open:
                                break  # closed by another task; what arrived with that is dropped
                            if self._arrived:
                                self._note_arrival()
                                # In reverse: list.pop() is cheapest at the end.
                                self._arrived.reverse()
                                self._ready, self._arrived = self._arrived, self._ready
                                return True
                            if not more:
                                self._decoder.finish(self._stream.headers.get("content-type"))
                                self._close(complete=True)
                            continue
                        except (TransportError, EventStreamFormatError) as error:
                            if not self._open:
                                break
                            failure = error
                    self._stream.close()
                    stream = await self._owner.retry_stream(failure, stream_started=self._parts > 0)
                    self._stream = stream
                    if not self._open:
                        stream.close()
                    self._decoder = _decoder(self._plain)
                except BaseException as error:
                    if not self._open and isinstance(error, AiosmrtError):
                        break  # closed by another task: an end, not a failure
                    self._cancelled = not isinstance(error, Exception)
                    self._close(complete=False)
                    self._decoder = _decoder(self._plain)
                    raise
                finally:
                    del failure  # as in aiosmrt._core.call
            if self._cancelled:
                raise ClientStateError("a read of this stream was cancelled, which has closed it")
            return False
        finally:
            self._receiving = False

    def _note_arrival(self) -> None:
        now = self._owner.elapsed()
        if self._first_part_at is None:
            self._first_part_at = self._last_part_at = now
            self._owner.first_part(now)
            return
        self._longest_gap = max(self._longest_gap, now - self._last_part_at)
        self._last_part_at = now

    def _take(self, data: bytes | memoryview) -> None:
        """Decode what has arrived and keep the payloads up to the first failure."""
        if self._failure is not None:
            return
        parts, self._failure = decoded_parts(self._decoder, data, self._owner.stream_error)
        self._parts += len(parts)
        for _, payload in parts:
            self._arrived.append(payload)
            self._payload_bytes += len(payload)

    async def get_initial_response(self) -> NoReturn:
        """Not supported; this service does not send an initial response. The parts stay to be read.

        Raises:
            botocore.eventstream.NoInitialResponseError: always, as in aiobotocore.
        """
        from aiosmrt._aws.initial_response import no_initial_response

        raise no_initial_response()

    def close(self) -> None:
        """End the stream; parts that were not read are dropped. A task that waits for one finds the stream ended."""
        self._dropped = self._dropped or self._open or bool(self._ready)
        self._ready.clear()
        self._close(complete=False)

    def _close(self, *, complete: bool) -> None:
        if self._open:
            self._open = False
            self._ended_at = self._owner.elapsed()
            self._stream.close()
            self._owner.finish_stream(self._parts, self._payload_bytes, complete=complete)

    async def aclose(self) -> None:
        """Do the same as `close`."""
        self.close()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_open", False):
            try:
                _warn(f"unclosed {self!r}: read it to its end, or use `async with`", ResourceWarning, source=self)
            finally:
                # The collector runs in any thread, and inside any other function of the loop's own.
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(
                        _close_forgotten, self._owner, self._stream, self._parts, self._payload_bytes
                    )


def decoded_parts(
    decoder: Decoder | PlainParts,
    data: bytes | memoryview,
    error_of: Callable[[EventHeaders, bytes], AiosmrtError],
) -> tuple[list[tuple[EventHeaders, bytes]], AiosmrtError | None]:
    """The parts that are complete with ``data``, up to the first failure, and that failure.

    Args:
        decoder: decodes the stream.
        data: what has arrived.
        error_of: makes the error of an ``exception`` or ``error`` message.
    """
    try:
        messages = decoder.feed(data)
    except EventStreamFormatError as error:
        # Its frames hold what was received.
        return [], error.with_traceback(None)
    parts = []
    for message in messages:
        headers = message[0]
        if headers.event_type == "PayloadPart":
            parts.append(message)
        elif headers.message_type != "event":
            return parts, error_of(*message)
    return parts, decoder.failure


def _close_forgotten(owner: StreamOwner, stream: ReplyStream, parts: int, payload_bytes: int) -> None:
    """Close a stream that the garbage collector has found open."""
    stream.close()
    owner.finish_stream(parts, payload_bytes, complete=False)


def _decoder(plain: bool) -> Decoder | PlainParts:
    # Loaded with the first stream.
    if plain:
        from aiosmrt._wire.openai_route import PlainParts

        return PlainParts()
    from aiosmrt._wire.eventstream import Decoder

    return Decoder()
