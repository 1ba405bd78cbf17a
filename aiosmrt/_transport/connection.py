"""One HTTP/1.1 connection: writes a request, finds its response's end in what arrives, and is used again or not.

::

              send()                 head                       the body's last byte
    IDLE ──────────────► HEAD ──────────────► IN_PLACE ────────────────────────────────► IDLE or GONE
                                              COUNTED | CHUNKED | UNTIL_CLOSE

    GONE: lost, failed, cancelled, or not to be used again

- Everything happens in asyncio's callbacks, up to the one future that the caller waits for. When the last byte of a
  response has come, the connection is its owner's again before the caller wakes up. So nothing may be done to it on
  the caller's behalf afterwards: `abandon` looks whose it is.
- A small response is cut out of the receive buffer, which all connections of a client share: it is filled and read
  within one callback. A body of known length is received into its own memory; others in pieces.
- A connection goes back only when its response ended exactly where the head or the chunks said, nothing came after it,
  and the request had been sent in full.
- What a stream's reader has not taken yet is in `aiosmrt._transport.bodystream`.

The module is long because the states of one connection do not come apart.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol, TypeAlias

from aiosmrt._transport import Reply
from aiosmrt._transport.bodystream import BodyStream
from aiosmrt._transport.failures import broken_off, connection_closed, malformed, timed_out
from aiosmrt._wire.http1 import (
    ChunkedBody,
    HeadParser,
    HTTPResponseError,
    ResponseHead,
    check_partial_head,
)

if TYPE_CHECKING:
    from aiohttp.connector import Connection as Lease

__all__ = ["Answer", "Connection", "Owner", "Receiver"]

# The receive buffer grows when a piece of a body fills it: with fast streams of large parts, 512 KiB cost a quarter
# less CPU than 128 KiB (benchmarks/stream.py, "large"), and a client without them does not have the memory.
_MIN_RECEIVE_BYTES = 2**16
_MAX_RECEIVE_BYTES = 2**19

# Up to here a body goes out in one write with the head; above it in slices, one per turn of the loop. Slices of 256 KiB
# cost 6 MiB bodies 7 % more CPU, and keep the loop no less (benchmarks/uploads.py).
_WHOLE_BODY_BYTES = 2**16
_SLICE_BYTES = 2**20

# A body that claims to be longer is received in pieces: nobody can make a client reserve memory by a header alone.
_IN_PLACE_BYTES = 2**26

_TLS_RECORD_BYTES = 2**14

_IDLE, _HEAD, _IN_PLACE, _COUNTED, _CHUNKED, _UNTIL_CLOSE, _GONE = range(7)


class Receiver:
    """What all connections of a client receive with."""

    __slots__ = ("buffer", "parser", "view")

    def __init__(self) -> None:
        self.parser = HeadParser()
        self.buffer = bytearray(_MIN_RECEIVE_BYTES)
        self.view = memoryview(self.buffer)

    def grow(self, size_bytes: int) -> None:
        """Be larger, between two reads."""
        self.buffer = bytearray(size_bytes)
        self.view = memoryview(self.buffer)


class Owner(Protocol):
    """Who has the connections."""

    def released(self, connection: Connection) -> None:
        """It can carry another exchange."""
        ...

    def expects(self, connection: Connection) -> None:
        """It is to be watched for silence; its ``silent_until`` was set."""
        ...

    def lost(self, connection: Connection) -> None:
        """It cannot carry anything any more."""
        ...


class Connection(asyncio.BufferedProtocol):
    """A connection made by aiohttp's connector, from now on under this protocol.

    Args:
        owner: whose it is when it carries nothing.
        receiver: the client's.
        lease: aiohttp's hold on it, given back when the connection is gone.
        transport: the lease's.
        origin: scheme, host and port, for errors.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_buffered",
        "_chunks",
        "_handler",
        "_head",
        "_lease",
        "_left",
        "_loop",
        "_origin",
        "_owner",
        "_partial",
        "_pieces",
        "_read_timeout",
        "_receiver",
        "_resend",
        "_rest",
        "_state",
        "_stream",
        "_streams",
        "_transport",
        "_under_tls",
        "_unsent",
        "_used",
        "_waiter",
        "_write_paused",
        "silent_until",
    )

    def __init__(
        self, owner: Owner, receiver: Receiver, lease: Lease, transport: asyncio.Transport, origin: str
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._receiver = receiver
        self._lease = lease
        self._transport = transport
        self._origin = origin
        self._under_tls = origin.startswith("https:")
        # aiohttp's, which wants to know when the connection is lost
        self._handler = transport.get_protocol()
        self._state = _IDLE
        self._used = False
        self._write_paused = False
        # bytes that a large body had left in the transport when that was last looked at
        self._buffered = 0
        self._unsent: memoryview | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._stream: BodyStream | None = None
        self._partial = bytearray()
        self._body: bytearray | None = None
        self._rest: memoryview | None = None
        self._pieces: list[bytes] = []
        # When its owner calls `expire`, in the loop's time.
        self.silent_until = math.inf
        transport.set_protocol(self)

    def __repr__(self) -> str:
        return f"<Connection {self._origin} {'gone' if self._state == _GONE else 'open'}>"

    # What the transport does

    def send(
        self,
        head: bytes,
        body: bytes | memoryview,
        streams: bool,
        resend: bool,
        read_timeout: float,
        now: float,
    ) -> asyncio.Future[Answer]:
        """Begin an exchange.

        Args:
            head: the request's head.
            body: its body.
            streams: whether the response's body is wanted as a stream.
            resend: whether the answer may be None, for a connection used before that was closed in the meantime.
            read_timeout: seconds of silence that end it; infinite for no limit.
            now: the loop's time.

        Returns:
            A future of the `Reply` or the `BodyStream`.
        """
        self._state = _HEAD
        self._streams = streams
        self._resend = resend and self._used
        self._used = True
        self._answered = False
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._read_timeout = read_timeout
        self.silent_until = now + read_timeout
        if len(body) <= _WHOLE_BODY_BYTES:
            self._transport.write(b"".join((head, body)))
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._send_on()
        return waiter

    def abandon(self, waiter: asyncio.Future[Answer]) -> None:
        """The one who waited for an answer was cancelled. The connection may be carrying somebody else's by now."""
        if self._waiter is waiter:
            self.discard()
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            answer = waiter.result()
            if isinstance(answer, BodyStream):
                answer.close()

    def discard(self) -> None:
        """Close the connection at once; whoever waits is left to the caller."""
        if self._state == _GONE:
            return
        self._state = _GONE
        self._forget_body()
        self._unsent = self._waiter = None
        self.silent_until = math.inf
        self._owner.lost(self)
        if self._under_tls:
            # asyncio's TLS protocol may be in the middle of handing something to this one, and does not expect an end.
            self._loop.call_soon(self._close)
        else:
            self._close()

    def _close(self) -> None:
        self._transport.abort()
        self._lease.close()

    def fail(self, error: Exception) -> None:
        """Close the connection at once and tell whoever waits for the exchange.

        Args:
            error: what the exchange raises; a stream's reader gets a copy.
        """
        waiter, stream = self._waiter, self._stream
        self.discard()
        if stream is not None:
            stream.failed(error)
        elif waiter is not None and not waiter.done():
            waiter.set_exception(error)

    # What asyncio calls

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive: into the body itself when its length is known."""
        rest = self._rest
        if rest is not None:
            return rest
        receiver = self._receiver
        if sizehint > len(receiver.buffer) - _TLS_RECORD_BYTES:
            # Under TLS, so much has come and is not decrypted yet. asyncio asks once more when the other side has ended
            # while reading was paused, and drops what does not fit.
            receiver.grow(sizehint + _TLS_RECORD_BYTES)
        return receiver.view

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with what has arrived."""
        state = self._state
        if state == _HEAD:
            self._head_received(nbytes)
        elif state == _IN_PLACE:
            self._heard()
            rest = self._rest = self._rest[nbytes:]  # type: ignore[index]
            if len(rest) == 1:
                self._complete(self._head, bytes(memoryview(self._body)[:-1]))  # type: ignore[arg-type]
            elif not rest:
                self.fail(malformed(self._origin, "data after its end"))
        elif state == _IDLE:
            self.discard()  # an answer to nothing
        elif state != _GONE:
            if self._stream is None:
                self._heard()
            receiver = self._receiver
            full = nbytes == len(receiver.buffer)
            self._body_received(0, nbytes)
            if full and nbytes < _MAX_RECEIVE_BYTES:
                receiver.grow(_MAX_RECEIVE_BYTES)

    def eof_received(self) -> None:
        """The service sends no more."""
        if self._state == _UNTIL_CLOSE:
            self._body_ended()
        else:
            self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._handler.connection_lost(exc)
        self._lost(exc)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._write_paused = False
        self._send_on()

    # What its owner does

    def expire(self) -> None:
        """The read timeout has passed since something was heard; a large body may still be on its way."""
        buffered = self._transport.get_write_buffer_size()
        if 0 < buffered < self._buffered:
            self._buffered = buffered
            self._heard()
        else:
            self.fail(timed_out(self._origin))

    # What a stream does

    def watch(self) -> asyncio.Future[bool]:
        """From now on somebody waits for the next piece, on this future."""
        self._heard()
        self._owner.expects(self)
        return self._loop.create_future()

    def unwatch(self) -> None:
        """It came, or nobody waits any more."""
        self.silent_until = math.inf

    def pause_reading(self) -> None:
        """Let the socket fill up."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Empty the socket again."""
        if self._state != _GONE:
            self._transport.resume_reading()

    def _heard(self) -> None:
        """The connection was not silent just now."""
        self.silent_until = self._loop.time() + self._read_timeout

    # The request

    def _send_on(self) -> None:
        """Write the next slice of a large body, unless the socket is full; others have their turn in between."""
        unsent = self._unsent
        if unsent is None or self._write_paused or self._state == _GONE:
            return
        rest = unsent[_SLICE_BYTES:]
        self._unsent = rest if len(rest) else None
        self._transport.write(unsent[:_SLICE_BYTES])
        self._buffered = self._transport.get_write_buffer_size()
        if self.silent_until < math.inf:
            self._heard()
        if self._unsent is not None and not self._write_paused:
            self._loop.call_soon(self._send_on)

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
                        self._heard()
                        return
                    text = bytes(partial[:end])
                    start += end + 4 - had
                    partial.clear()
                else:
                    end = receiver.buffer.find(b"\r\n\r\n", start, nbytes)
                    if end < 0:
                        self._answered = True
                        partial += receiver.view[start:nbytes]
                        check_partial_head(partial, 0)
                        self._heard()
                        return
                    text = bytes(receiver.view[start:end])
                    start = end + 4
                head = receiver.parser.parse(text)
                if head.status >= 200:
                    break
                self._answered = True
                if start == nbytes:
                    self._heard()
                    return
        except HTTPResponseError as error:
            what = str(error)
        else:
            if head.length == nbytes - start and not self._streams and nbytes < len(receiver.buffer):
                self._complete(head, bytes(receiver.view[start:nbytes]))
            else:
                self._begin_body(head, start, nbytes)
            return
        self.fail(malformed(self._origin, what))

    def _begin_body(self, head: ResponseHead, start: int, end: int) -> None:
        """Choose how the rest is received; ``start`` to ``end`` in the receive buffer is what came with the head."""
        self._head = head
        self._heard()
        length = head.length
        if self._streams:
            if not self._begin_stream(head):
                return
        elif length is not None and end - start < length <= _IN_PLACE_BYTES:
            came = end - start
            # One byte more: without it, what comes after the body in the same read would wait in the socket, and be
            # taken for the next exchange's response.
            body = self._body = bytearray(length + 1)
            body[:came] = self._receiver.view[start:end]
            self._rest = memoryview(body)[came:]
            self._state = _IN_PLACE
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
            # cancelled; its task has not run yet
            self.discard()
            return False
        self.unwatch()
        self._stream = BodyStream(self, head)
        waiter.set_result(self._stream)
        return True

    def _body_received(self, start: int, end: int) -> None:
        """Take in pieces of a body."""
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
            if self._stream is None:
                self._pieces += [bytes(part) for part in parts]
            else:
                self._stream.arrived(parts)
        if fault is None and start < end and ended:
            # The server takes this response to be longer than it says it is: who knows what else is missing.
            fault = "data after its end"
        if fault is not None:
            self.fail(malformed(self._origin, fault))
        elif ended:
            if end == len(receiver.buffer):
                # Full: whether more came after the response is not known.
                self._head = self._head._replace(persistent=False)
            self._body_ended()

    def _body_ended(self) -> None:
        if self._stream is None:
            self._complete(self._head, b"".join(self._pieces))
        else:
            self._stream.ended()
            self._release(self._head)

    def _complete(self, head: ResponseHead, body: bytes) -> None:
        """The whole response is here: the connection is free before the caller wakes up."""
        waiter = self._waiter
        self._release(head)
        if waiter is not None and not waiter.done():
            # Reply's own constructor is a function in Python, which takes twice as long.
            waiter.set_result(tuple.__new__(Reply, (head.status, head.headers, body)))

    def _release(self, head: ResponseHead) -> None:
        if head.persistent and self._unsent is None and not self._transport.get_write_buffer_size():
            if self._state != _HEAD:
                self._forget_body()
            self._state = _IDLE
            self._waiter = None
            self.silent_until = math.inf
            self._owner.released(self)
        else:
            self.discard()

    def _forget_body(self) -> None:
        self._body = self._rest = self._stream = None
        self._pieces.clear()

    def _lost(self, error: Exception | None) -> None:
        """The service closed the connection, or the network did."""
        if self._state == _GONE:
            return
        if self._state == _IDLE:
            self.discard()
        elif self._state == _HEAD:
            if self._resend and not self._answered:
                waiter = self._waiter
                self.discard()
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            else:
                self.fail(connection_closed(self._origin, error))
        else:
            self.fail(broken_off(self._origin, error))


# None: the connection had been closed before it could carry the request.
Answer: TypeAlias = Reply | BodyStream | None
