"""One HTTP/1.1 connection: writes a request, finds the exact end of its response, and becomes reusable or is closed.

::

              send()                 head                       last byte of the body
    IDLE ──────────────► HEAD ──────────────► DIRECT ─────────────────────────────────► IDLE or GONE
                                              COUNTED | CHUNKED | UNTIL_CLOSE

    GONE: lost, failed, cancelled, or not reusable

- All work happens in asyncio's callbacks; the caller waits for one future. When the last byte of a response arrives,
  the connection returns to its owner before the caller wakes up, and may be serving another request by then. So
  `abandon` checks which request the connection is serving.
- A small response is cut out of the receive buffer. All connections of a client share the buffer, as it is filled and
  parsed within one callback. A body of known length is received directly into its own memory, other bodies in pieces.
- A connection is reusable only if its response ended exactly where head or chunks announced it, no data followed, and
  the request was sent completely. If what follows begins another response, such as the same one again, the first one
  is whole; anything else shows that server and head disagree about the length, so that the body cannot be trusted. If
  anything arrives while it is idle, it is closed, and so are the ones of which the pool finds that something has
  arrived unread: what comes without a request must not become the next response.
- Data that the reader of a stream has not received yet is kept in `aiosmrt._transport.bodystream`.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

from aiosmrt._idle import UnreadCheck, unread_check
from aiosmrt._transport.base import MAX_ERROR_BYTES, Reply
from aiosmrt._transport.bodystream import BodyStream
from aiosmrt._transport.failures import broken_off, connection_closed, malformed, timed_out, too_large
from aiosmrt._transport.loops import clock_of, future_maker
from aiosmrt._transport.sockets import was_closed_properly
from aiosmrt._wire.http1 import (
    ChunkedBody,
    HeadParser,
    HTTPResponseError,
    ResponseHead,
    check_partial_head,
)

if TYPE_CHECKING:
    from aiohttp.connector import Connection as Lease

__all__ = ["Connection", "Owner", "Receiver", "Response"]

# The receive buffer grows when body data fills it: with fast streams of large parts, 512 KiB cost a quarter less CPU
# than 128 KiB (benchmarks/stream.py, "large"), and clients without such streams do without the memory.
_MIN_RECEIVE_BYTES = 2**16
_MAX_RECEIVE_BYTES = 2**19

# A body up to this size is written together with the head; a larger one in slices, one per iteration of the loop. With
# slices of 256 KiB, 6 MiB bodies cost 7 % more CPU and block the loop just as long (benchmarks/uploads.py).
_WHOLE_BODY_BYTES = 2**16
_SLICE_BYTES = 2**20

# How a response begins; the line ends before it are not part of it (RFC 9112, 2.2).
_RESPONSE = b"HTTP/1."
_LINE_ENDS = b"\r\n"

# How much data is seen after a body of known length.
_BEYOND_BYTES = 16

# A longer body is received in pieces, so that a header alone cannot make a client reserve memory.
_DIRECT_BYTES = 2**26

_TLS_RECORD_BYTES = 2**14

# They do not restart the read timeout, which a client may have set to none.
_MAX_INTERIM_RESPONSES = 1000

_new = object.__new__

_IDLE, _HEAD, _DIRECT, _COUNTED, _CHUNKED, _UNTIL_CLOSE, _GONE = range(7)


class Receiver:
    """The receive buffer and the parser that all connections of a client share."""

    __slots__ = ("buffer", "parser", "view")

    def __init__(self) -> None:
        self.parser = HeadParser()
        self.buffer = bytearray(_MIN_RECEIVE_BYTES)
        self.view = memoryview(self.buffer)

    def grow(self, size_bytes: int) -> None:
        """Grow the buffer. Must not be called while a view on it is in use."""
        self.buffer = bytearray(size_bytes)
        self.view = memoryview(self.buffer)


class Owner(Protocol):
    """The pool that a connection belongs to."""

    def released(self, connection: Connection) -> None:
        """The connection is reusable."""
        ...

    def watch(self, connection: Connection) -> None:
        """Call the connection's `expire` when its ``silent_until`` has passed."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection is closed."""
        ...


class Connection(asyncio.BufferedProtocol):
    """The protocol of a connection that aiohttp's connector has made.

    Args:
        owner: the pool.
        receiver: the client's receive buffer and parser.
        lease: aiohttp's handle on the connection; closed with the connection.
        transport: the lease's transport.
        origin: scheme, host and port, for errors.
    """

    __slots__ = (
        "_body",
        "_buffered",
        "_chunks",
        "_create_future",
        "_handler",
        "_head",
        "_interim_responses",
        "_lease",
        "_left",
        "_loop",
        "_max_bytes",
        "_origin",
        "_owner",
        "_partial",
        "_pieces",
        "_pieces_bytes",
        "_read_timeout",
        "_receiver",
        "_reprieved",
        "_resend",
        "_response_began",
        "_rest",
        "_state",
        "_stream",
        "_streams",
        "_time",
        "_transport",
        "_under_tls",
        "_unsent",
        "_used",
        "_waiter",
        "_write_paused",
        "has_unread",
        "silent_until",
    )

    def __init__(
        self, owner: Owner, receiver: Receiver, lease: Lease, transport: asyncio.Transport, origin: str
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._create_future = future_maker(loop)
        self._time = clock_of(loop)
        self._owner = owner
        self._receiver = receiver
        self._lease = lease
        self._transport = transport
        self._origin = origin
        self._under_tls = origin.startswith("https:")
        # aiohttp's protocol, which must learn when the connection is lost
        self._handler = transport.get_protocol()
        # Whether data or the connection's end has arrived that the loop has not read yet; any true value means yes.
        self.has_unread: UnreadCheck = unread_check(transport)
        self._state = _IDLE
        self._used = False
        self._write_paused = False
        # bytes of a large body that were in the transport's buffer at the last check
        self._buffered = 0
        self._unsent: memoryview | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._stream: BodyStream | None = None
        self._partial = bytearray()
        self._body: bytearray | None = None
        self._rest: memoryview | None = None
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        # when the owner calls `expire`, in the loop's time
        self.silent_until = math.inf
        transport.set_protocol(self)

    def __repr__(self) -> str:
        return f"<Connection {self._origin} {'gone' if self._state == _GONE else 'open'}>"

    # Called by the pool and by its callers

    @property
    def closed(self) -> bool:
        """Whether the connection cannot be used any more."""
        return self._state == _GONE

    def send(
        self,
        head: bytes,
        body: bytes | memoryview,
        streams: bool,
        resend: bool,
        read_timeout: float,
        now: float,
        max_bytes: int | None = None,
    ) -> asyncio.Future[Response]:
        """Send a request.

        Args:
            head: the request's head.
            body: the request's body.
            streams: whether the body of the response is received as a stream.
            resend: whether the result may be None, if the connection has been used before and turns out to be closed.
            read_timeout: how long the service may be silent, seconds; infinite for no limit.
            now: the loop's time.
            max_bytes: limit for the body of a whole response. If None, no limit.

        Returns:
            A future of the `Reply` or the `BodyStream`.
        """
        self._state = _HEAD
        self._streams = streams
        self._resend = resend and self._used
        self._used = True
        self._response_began = self._reprieved = False
        self._interim_responses = 0
        self._max_bytes = max_bytes
        waiter: asyncio.Future[Response] = self._create_future()
        self._waiter = waiter
        self._read_timeout = read_timeout
        self.silent_until = now + read_timeout
        if len(body) <= _WHOLE_BODY_BYTES:
            self._transport.write(b"".join((head, body)))
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._write_next_slice()
        return waiter

    def abandon(self, waiter: asyncio.Future[Response]) -> None:
        """End a request whose caller was cancelled; by now the connection may be serving another one."""
        if self._waiter is waiter:
            self.discard()
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            response = waiter.result()
            if isinstance(response, BodyStream):
                response.close()

    def discard(self) -> None:
        """Close the connection at once. Does not wake the caller or reader that waits."""
        if self._state == _GONE:
            return
        self._state = _GONE
        self._forget_body()
        self._unsent = self._waiter = None
        self.silent_until = math.inf
        self._owner.lost(self)
        if self._under_tls:
            # asyncio's TLS protocol may be calling this protocol right now and does not expect to be closed by it.
            self._loop.call_soon(self._close)
        else:
            self._close()

    def _close(self) -> None:
        self._transport.abort()
        self._lease.close()

    def fail(self, error: Exception) -> None:
        """Close the connection at once and fail its request.

        Args:
            error: what the request's caller gets; the reader of a stream gets a copy.
        """
        waiter, stream = self._waiter, self._stream
        self.discard()
        if stream is not None:
            stream.failed(error)
        elif waiter is not None and not waiter.done():
            waiter.set_exception(error)

    # Called by asyncio

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the memory to receive into: the body's own if its length is known."""
        rest = self._rest
        if rest is not None:
            return rest
        receiver = self._receiver
        if sizehint > len(receiver.buffer) - _TLS_RECORD_BYTES:
            # Under TLS, this is how much data is not decrypted yet. If the peer has closed while reading was paused,
            # asyncio reads only once more and drops what does not fit.
            receiver.grow(sizehint + _TLS_RECORD_BYTES)
        return receiver.view

    def buffer_updated(self, nbytes: int) -> None:
        """Process received data."""
        state = self._state
        if state == _HEAD:
            self._head_received(nbytes)
        elif state == _DIRECT:
            self._restart_silence()
            rest = self._rest = self._rest[nbytes:]  # type: ignore[index]
            beyond = _BEYOND_BYTES - len(rest)
            if beyond == 0:
                self._complete(self._head, bytes(memoryview(self._body)[:-_BEYOND_BYTES]))  # type: ignore[arg-type]
            elif beyond > 0:
                body = memoryview(self._body)  # type: ignore[arg-type]
                if self._is_whole_before(body[-_BEYOND_BYTES:][:beyond]):
                    self._complete(self._head, bytes(body[:-_BEYOND_BYTES]))
        elif state == _IDLE:
            self.discard()  # a response without a request
        elif state != _GONE:
            if self._stream is None:
                self._restart_silence()
            receiver = self._receiver
            full = nbytes == len(receiver.buffer)
            self._body_received(0, nbytes)
            if full and nbytes < _MAX_RECEIVE_BYTES:
                receiver.grow(_MAX_RECEIVE_BYTES)

    def eof_received(self) -> None:
        """The peer has closed its side."""
        if self._state == _UNTIL_CLOSE and was_closed_properly(self._transport.get_extra_info("ssl_object")):
            self._body_completed()
        else:
            self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._handler.connection_lost(exc)
        self._lost(exc)

    def pause_writing(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Continue writing."""
        self._write_paused = False
        self._write_next_slice()

    # Called by the pool's timer

    def expire(self) -> None:
        """Fail the request for silence, unless a large request body is still being sent."""
        buffered = self._transport.get_write_buffer_size()
        if 0 < buffered < self._buffered:
            self._buffered = buffered
            self._restart_silence()
        elif self.has_unread() and not self._reprieved:
            # The loop was busy for so long that it has not read yet what arrived in time. This is not repeated, so that
            # the request ends even if the loop does not read it.
            self._restart_silence()
            self._reprieved = True
        else:
            self.fail(timed_out(self._origin))

    # Called by a BodyStream

    def watch(self) -> asyncio.Future[bool]:
        """Start the read timeout, and return the future that the reader waits for."""
        self._restart_silence()
        self._owner.watch(self)
        return self._loop.create_future()

    def unwatch(self) -> None:
        """Stop the read timeout."""
        self.silent_until = math.inf

    def pause_reading(self) -> None:
        """Stop reading from the socket."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read from the socket again."""
        if self._state != _GONE:
            self._transport.resume_reading()

    def _restart_silence(self) -> None:
        """Start the read timeout anew: there was traffic."""
        self.silent_until = self._time() + self._read_timeout
        self._reprieved = False

    # The request

    def _write_next_slice(self) -> None:
        """Write the next slice of a large body, unless the transport's buffer is full."""
        unsent = self._unsent
        if unsent is None or self._write_paused or self._state == _GONE:
            return
        rest = unsent[_SLICE_BYTES:]
        self._unsent = rest if len(rest) else None
        self._transport.write(unsent[:_SLICE_BYTES])
        self._buffered = self._transport.get_write_buffer_size()
        if self.silent_until < math.inf:
            self._restart_silence()
        if self._unsent is not None and not self._write_paused:
            self._loop.call_soon(self._write_next_slice)

    # The response

    def _head_received(self, nbytes: int) -> None:
        receiver = self._receiver
        start = 0
        try:
            while True:
                partial = self._partial
                if partial:
                    had = len(partial)
                    partial += receiver.view[start:nbytes]
                    end = partial.find(b"\r\n\r\n", max(0, had - 3))
                    if end < 0:
                        check_partial_head(partial, had)
                        return
                    text = bytes(partial[:end])
                    start += end + 4 - had
                    partial.clear()
                else:
                    end = receiver.buffer.find(b"\r\n\r\n", start, nbytes)
                    if end < 0:
                        self._response_began = True
                        partial += receiver.view[start:nbytes]
                        check_partial_head(partial, 0)
                        return
                    text = receiver.view[start:end].tobytes()
                    start = end + 4
                head = receiver.parser.parse(text)
                if head.status >= 200:
                    break
                self._response_began = True
                self._interim_responses += 1
                if self._interim_responses > _MAX_INTERIM_RESPONSES:
                    raise HTTPResponseError("too many 1xx responses")  # noqa: TRY301
                if start == nbytes:
                    return
        except HTTPResponseError as error:
            what = str(error)
        else:
            if (
                head.length == nbytes - start <= MAX_ERROR_BYTES
                and not self._streams
                and self._max_bytes is None
                and nbytes < len(receiver.buffer)
            ):
                self._complete(head, receiver.view[start:nbytes].tobytes())
            else:
                self._begin_body(head, start, nbytes)
            return
        self.fail(malformed(self._origin, what))

    def _begin_body(self, head: ResponseHead, start: int, end: int) -> None:
        """Choose how the body is received; ``start`` to ``end`` in the receive buffer arrived with the head."""
        self._head = head
        self._restart_silence()
        length = head.length
        if head.status >= 300:
            self._streams = False
            self._max_bytes = MAX_ERROR_BYTES
        max_bytes = self._max_bytes
        if self._streams:
            if not self._begin_stream(head):
                return
        elif max_bytes is not None and length is not None and length > max_bytes:
            if head.status < 300:
                self.fail(too_large(self._origin, max_bytes))
                return
        elif length is not None and end - start < length <= _DIRECT_BYTES:
            arrived = end - start
            # Some bytes more, so that data after the body is noticed. It would become the next response otherwise.
            body = self._body = bytearray(length + _BEYOND_BYTES)
            body[:arrived] = self._receiver.view[start:end]
            self._rest = memoryview(body)[arrived:]
            self._state = _DIRECT
            return
        if length is not None:
            self._left = length
            self._state = _COUNTED
        elif head.chunked:
            self._chunks = ChunkedBody()
            self._state = _CHUNKED
        else:
            self._state = _UNTIL_CLOSE
        if start < end or length == 0:
            self._body_received(start, end)

    def _begin_stream(self, head: ResponseHead) -> bool:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            # The caller was cancelled, and its task has not run yet.
            self.discard()
            return False
        self.unwatch()
        self._stream = BodyStream(self, head)
        waiter.set_result(self._stream)
        return True

    def _body_received(self, start: int, end: int) -> None:
        """Process body data from ``start`` to ``end`` in the receive buffer."""
        receiver = self._receiver
        parts: list[memoryview] = []
        fault = None
        ended = False
        if self._state == _CHUNKED:
            try:
                start = self._chunks.feed(receiver.buffer, receiver.view, start, end, parts)
                ended = self._chunks.complete
            except HTTPResponseError as error:
                fault = str(error)
        elif self._state == _COUNTED:
            stop = min(end, start + self._left)
            if stop > start:
                parts.append(receiver.view[start:stop])
            self._left -= stop - start
            start = stop
            ended = not self._left
        else:
            parts.append(receiver.view[start:end])
            start = end
        if parts:
            if self._stream is not None:
                self._stream.data_arrived(parts)
            else:
                # Joined, because a piece of one byte takes the memory of forty.
                piece = b"".join(parts)
                self._pieces.append(piece)
                self._pieces_bytes += len(piece)
                if self._max_bytes is not None and self._pieces_bytes > self._max_bytes:
                    self._exceeded(self._max_bytes)
                    return
        if fault is not None:
            self.fail(malformed(self._origin, fault))
        elif ended and (start == end or self._is_whole_before(receiver.view[start:end][:_BEYOND_BYTES])):
            if end == len(receiver.buffer):
                # The buffer is full, so there may be more data that is not visible here.
                self._head = replace(self._head, persistent=False)
            self._body_completed()

    def _is_whole_before(self, beyond: memoryview) -> bool:
        """Tell whether a body is whole although data follow, the first bytes of which are given; fail if it is not."""
        follows = bytes(beyond).lstrip(_LINE_ENDS)
        if _RESPONSE.startswith(follows[: len(_RESPONSE)]):
            self._head = replace(self._head, persistent=False)
            return True
        self.fail(malformed(self._origin, "data after the end of the body"))
        return False

    def _exceeded(self, max_bytes: int) -> None:
        """Fail for a body that is too large; the beginning of an error's body is enough."""
        head = self._head
        if head.status < 300:
            self.fail(too_large(self._origin, max_bytes))
        else:
            self._complete(replace(head, persistent=False), b"".join(self._pieces)[:max_bytes])

    def _body_completed(self) -> None:
        if self._stream is None:
            self._complete(self._head, b"".join(self._pieces))
        else:
            self._stream.completed()
            # The caller has the stream already; this body is dropped.
            self._complete(self._head, b"")

    def _complete(self, head: ResponseHead, body: bytes) -> None:
        """Return the connection to the pool and the response to the caller, which wakes up later."""
        waiter = self._waiter
        if head.persistent and self._unsent is None and not self._transport.get_write_buffer_size():
            if self._state != _HEAD:
                self._forget_body()
            self._state = _IDLE
            self._waiter = None
            self.silent_until = math.inf
            self._owner.released(self)
        else:
            self.discard()
        if waiter is not None and not waiter.done():
            # Reply's constructor is a Python function and takes twice as long.
            reply = _new(Reply)
            reply.status = head.status
            reply.headers = head.headers
            reply.body = body
            waiter.set_result(reply)

    def _forget_body(self) -> None:
        self._body = self._rest = self._stream = None
        self._pieces.clear()
        self._pieces_bytes = 0

    def _lost(self, error: Exception | None) -> None:
        """The connection was closed by the service or lost by the network."""
        if self._state == _GONE:
            return
        if self._state == _IDLE:
            self.discard()
        elif self._state == _HEAD:
            if self._resend and not self._response_began:
                waiter = self._waiter
                self.discard()
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            else:
                self.fail(connection_closed(self._origin, error))
        else:
            self.fail(broken_off(self._origin, error))


# None: the connection had been closed before the request could be sent.
Response: TypeAlias = Reply | BodyStream | None
