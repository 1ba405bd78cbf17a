"""Bidirectional streams: a call whose request goes on while its response comes.

The call is an `aiosmrt._core.call.Call` like any other: slots, waits at an ill target, attempts and errors are the same
code. What differs is below: an attempt opens a stream over HTTP/2 and then waits for its head, which may come only
after the first message. So the attempts run in a separate task while the caller sends. That task ends with the
first part: up to there a failed attempt can be repeated, with what was sent so far sent again; from there on nothing
is.

`Outbox` holds the messages between the caller and the streams of one or several attempts. It never waits. It sends what
flow control takes at the moment, and goes on when its stream says that there is room.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from aiosmrt._core.call import AnyReply, Call
from aiosmrt._core.outcome import stream_error
from aiosmrt._core.response_bodies import decoded_parts
from aiosmrt._one_process import OneProcess
from aiosmrt._transport.base import Reply, Request
from aiosmrt._wire.eventstream import Decoder, encode_payload_part
from aiosmrt._wire.messages import COMPLETION_STATES, DATA_TYPES, MAX_PART_BYTES, Message, MessageJoiner, faulty_limit
from aiosmrt._wire.operations import EVENT_STREAM, STREAM_LIFETIME_SECONDS
from aiosmrt._wire.sigv4.events import EVENTS_PAYLOAD
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    DeserializationError,
    EventStreamFormatError,
    ModelError,
    ModelStreamError,
    ParamValidationError,
    ServiceError,
    TransportError,
    TruncatedStreamError,
    fresh_copy,
)
from aiosmrt.events import StreamExpiring
from aiosmrt.types import BidirectionalStreamEvent, CompletionState, DataType

if TYPE_CHECKING:
    from aiosmrt._core.client_core import ClientCore
    from aiosmrt._core.template import OperationCodec
    from aiosmrt._core.view import View
    from aiosmrt._transport.http2.connection import Link
    from aiosmrt._wire.eventstream import EventHeaders
    from aiosmrt._wire.params import Head
    from aiosmrt._wire.sigv4.events import EventSigner

__all__ = ["MAX_PART_BYTES", "BidirectionalStream", "DuplexCall", "duplex_faults"]

NOTICE_SECONDS: Final = 60.0
"""How long before its end a stream's observers are told."""

# Codes of WebSocket's Close frame (RFC 6455, 7.4.1, and IANA's registry) that say nothing about what was sent: going
# away, lost, an internal error, restarting, try again later, a bad gateway.
_TRANSIENT_CLOSURES: Final = frozenset({"1001", "1006", "1011", "1012", "1013", "1014"})

# Statuses by which a container refuses a WebSocket for good, such as 404 from one that does not serve WebSockets: those
# of a client's error, without the ones that ask to try again later.
_REFUSALS: Final = frozenset(range(400, 500)) - {408, 421, 425, 429}


def duplex_faults(unknown: Mapping[str, object], *, max_resend_bytes: object, pin_credentials: object) -> list[str]:
    """What is wrong with the arguments of a bidirectional stream that are not the service's.

    Args:
        unknown: parameters that the client's method does not have.
        max_resend_bytes: as there.
        pin_credentials: as there.
    """
    faults = []
    if "Body" in unknown:
        faults.append("Body is not a parameter of a bidirectional stream: send its messages with stream.send()")
    if not is_whole(max_resend_bytes, 0):
        faults.append(f"max_resend_bytes must be an integer >= 0; got {shown(max_resend_bytes)}")
    if not isinstance(pin_credentials, bool):
        faults.append(f"pin_credentials must be True or False; got {shown(pin_credentials)}")
    return faults


class Outbox:
    """The messages of one call, on their way to the stream of its current attempt.

    Args:
        now: the time of signatures in seconds since 1970.
        max_resend_bytes: how much of what was sent is kept.
        count: called with how many bytes of the request's body have gone out.
    """

    def __init__(self, now: Callable[[], float], max_resend_bytes: int, count: Callable[[int], object]) -> None:
        self._now = now
        self._count = count
        self._max_resend_bytes = max_resend_bytes
        # The messages that are kept, by number and in order. Those below _next have gone out; numbers may be missing.
        self._messages: OrderedDict[int, bytes] = OrderedDict()
        self._added = self._next = 0
        self._kept_bytes = 0
        # the signed message that is half sent
        self._frame: memoryview | None = None
        self._is_last_frame = False
        self._end_wanted = self._end_sent = False
        self._waiters: set[asyncio.Future[None]] = set()
        self._signer: EventSigner | None = None
        self.link: Link | None = None
        self.can_resend = True

    def __repr__(self) -> str:
        return f"<Outbox messages={len(self._messages)} sent={self._next}>"

    def add(self, message: bytes) -> int:
        """Take a message, send what can be sent, and return its number."""
        number = self._added
        self._added += 1
        self._messages[number] = message
        self._kept_bytes += len(message)
        self.flush()
        return number

    def take_back(self, number: int) -> None:
        """Drop a message that is no longer wanted, unless it is being sent."""
        is_under_way = number < self._next or (number == self._next and self._frame is not None)
        if not is_under_way:
            self._kept_bytes -= len(self._messages.pop(number))

    def end(self) -> None:
        """Send nothing after the messages that are here."""
        self._end_wanted = True
        self.flush()

    @property
    def is_ended(self) -> bool:
        """Whether no message may follow."""
        return self._end_wanted

    def is_sent(self, number: int) -> bool:
        """Whether a message has gone out whole."""
        return self._next > number

    @property
    def is_end_sent(self) -> bool:
        """Whether the request has been ended."""
        return self._end_sent

    def attach(self, link: Link, signer: EventSigner | None) -> None:
        """Send everything from the beginning on a new stream."""
        self.link, self._signer = link, signer
        self._next = self._first()
        self._frame = None
        self._is_last_frame = self._end_sent = False
        self.flush()
        self.wake()

    def commit(self) -> None:
        """Keep nothing any more that was sent."""
        self.can_resend = False
        while self._first() < self._next:
            self._kept_bytes -= len(self._messages.popitem(last=False)[1])

    def _first(self) -> int:
        """The number of the first message that is kept, or of the one to come."""
        return next(iter(self._messages), self._added)

    def flush(self) -> None:
        """Send what can be sent; called whenever the stream may take more, or is over."""
        link = self.link
        if link is None:
            return
        if link.is_over:
            self.wake()
            return
        before = self._next
        while self._send_some(link):
            pass
        if self.can_resend and self._kept_bytes > self._max_resend_bytes:
            self.commit()
        if self._next != before or self._end_sent:
            self.wake()

    def _send_some(self, link: Link) -> bool:
        """Send the rest of a frame, or begin the next one; return whether to go on."""
        if self._frame is None:
            while self._next < self._added and self._next not in self._messages:
                self._next += 1  # taken back
            if self._next < self._added:
                message = self._messages[self._next]
            elif self._end_wanted and not self._end_sent:
                message = b""
                self._is_last_frame = True
            else:
                return False
            signer = self._signer
            # Unsigned, there is nothing to say at the end but the end.
            self._frame = memoryview(message if signer is None else signer.sign(self._now(), message))
        if self._frame:
            taken = link.write(self._frame)
            self._count(taken)
            self._frame = self._frame[taken:]
            if self._frame:
                return False
        if self._is_last_frame:
            # Until there is room for the end, the empty rest of its frame stays, so that this comes here again.
            if link.end_input():
                self._frame = None
                self._end_sent = True
            return False
        self._frame = None
        self._next += 1
        if not self.can_resend:
            self.commit()
        return True

    def wake(self) -> None:
        """Have those who wait look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Wait until something may have changed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


class DuplexCall(Call):
    """A call of a bidirectional stream; see `aiosmrt._core.call.Call` for its arguments.

    Args:
        max_resend_bytes: as the argument of `aiosmrt.Client.invoke_endpoint_with_bidirectional_stream`.
        pin_credentials: as there.
    """

    _over_http2 = True

    def __init__(
        self,
        core: ClientCore,
        view: View,
        codec: OperationCodec,
        head: Head,
        *,
        max_resend_bytes: int,
        pin_credentials: bool,
    ) -> None:
        signed = (("Content-Type", EVENT_STREAM), ("X-Amz-Content-Sha256", EVENTS_PAYLOAD), *head.headers)
        super().__init__(core, view, codec, head._replace(headers=signed, lasting=False), b"")
        self._digest = EVENTS_PAYLOAD
        self._pin_credentials = pin_credentials
        self.outbox: Outbox = Outbox(lambda: core.wall_clock() + core.clock_offset, max_resend_bytes, self._count_sent)
        # when the current attempt's stream was opened, by the client's clock
        self.opened_at: float = 0.0
        # when the credentials expire that sign the current attempt's messages, seconds since 1970
        self.expires_at: float | None = None

    def _count_sent(self, size: int) -> None:
        self._core.counters.bytes_sent += size

    @property
    def core(self) -> ClientCore:
        """The client's core."""
        return self._core

    @property
    def _send_streaming(self) -> Callable[[Request], Awaitable[AnyReply]]:
        return self._open_stream

    async def _open_stream(self, request: Request) -> AnyReply:
        """Open a stream, send on it what was sent before, and wait for its head."""
        pool = await self._core.http2_pool()
        while True:
            lease = await pool.acquire(request.connect_timeout)
            try:
                fields, signer = await self._signed_fields(request)
                link = lease.open(fields, self.outbox.flush)
            finally:
                lease.release()
                fields = []
            if link is not None:
                break
        self.opened_at = self._core.clock()
        try:
            self.outbox.attach(link, signer)
            await link.wait_for_head()
            if link.status < 300:
                return link
            body = await link.read_error()
        except BaseException:
            link.close()
            raise
        link.close()
        return Reply(link.status, link.headers, body)

    async def _signed_fields(self, request: Request) -> tuple[list[tuple[str, str]], EventSigner | None]:
        core = self._core
        lines, credentials = await self._signed_headers()
        pairs = [(name, value) for name, _, value in (line.partition(": ") for line in lines.split("\r\n")) if name]
        parts = core.http2_endpoint()
        fields = [
            (":method", "POST"),
            (":scheme", parts.url.partition(":")[0]),
            (":authority", parts.host),
            (":path", request.target),
            *((name.lower(), value) for name, value in pairs if name != "Host"),
        ]
        if credentials is None:
            return fields, None
        seed = dict(pairs)["Authorization"].rpartition("=")[2]
        pinned = credentials
        if self._pin_credentials:
            self.expires_at = pinned.expires_at
            return fields, core.signer.event_signer(lambda: pinned, seed)
        self.expires_at = None
        return fields, core.signer.event_signer(lambda: core.credentials.current() or pinned, seed)

    def _refusal(self, reply: Any) -> ServiceError:
        error = super()._refusal(reply)
        if isinstance(error, ModelError) and error.cause == "model" and error.original_status_code not in _REFUSALS:
            # No message has reached the model: its container could not be connected to.
            error.cause = "transient"
        return error

    async def _wait_after(self, error: AiosmrtError, *, stream_started: bool) -> None:
        await super()._wait_after(error, stream_started=stream_started or not self.outbox.can_resend)

    def first_part(self, seconds: float) -> None:
        """Take note of the first part: from here on nothing is repeated."""
        self.outbox.commit()
        super().first_part(seconds)

    def notify(self, kind: Any, *facts: Any) -> None:
        """Tell observers."""
        self._emit(kind, *facts)

    def response_of(self, reply: Any) -> dict[str, Any]:
        """The facts of a response: its metadata, and the variant that answers."""
        result = self._codec.reader.result(reply.status, reply.headers, None, self.sent)
        del result["Body"]
        return result

    def message_error(self, headers: EventHeaders, payload: bytes) -> ServiceError:
        """The error for an ``exception`` or ``error`` message."""
        error = stream_error(headers, payload, self._codec.operation.name)
        code = error.error_code if isinstance(error, ModelStreamError) else None
        if code is not None and code.isdecimal() and code not in _TRANSIENT_CLOSURES:
            # The container has closed on purpose, and would again.
            error.cause = "model"
        self.place(error)
        return error


class BidirectionalStream(OneProcess):
    """A conversation with a model, from `aiosmrt.Client.invoke_endpoint_with_bidirectional_stream`.

    Enter it with ``async with``; leaving the block ends it at once, whatever is still under way. Send from one task and
    iterate in another, or take turns. What fails is raised by entering, by `send` and by the iteration, whichever comes
    first, and by each of them from then on. The slot under ``max_concurrency`` is held until the block is left.

    A silent model is not an error: ``read_timeout`` does not apply. A service that has died is noticed within some 10
    seconds, by HTTP/2's PING. The client's ``deadline`` covers everything up to the response's head, which a model may
    send only after the first message.

    Args:
        call: the client's call.
    """

    # Any, because users meet this class, and the types of the call are not for them.
    def __init__(self, call: Any) -> None:
        self._call: DuplexCall = call
        self._outbox: Outbox = call.outbox
        self._beginning: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._decoder: Decoder = Decoder()
        self._joiner: MessageJoiner = MessageJoiner()
        self._ready: deque[BidirectionalStreamEvent] = deque()
        self._failure: AiosmrtError | None = None
        self._error: AiosmrtError | None = None
        self._response: dict[str, Any] | None = None
        self._is_complete: bool = False
        self._is_closed: bool = False
        self._parts: int = 0
        self._payload_bytes: int = 0
        self._timers: list[Any] = []

    def __repr__(self) -> str:
        state = "idle" if self._beginning is None else "closed" if self._is_closed else "open"
        return f"<BidirectionalStream {state}{f' parts={self._parts}' if self._parts else ''}>"

    # Life

    async def __aenter__(self) -> Self:
        """Open the stream: wait for a slot and a connection, and send the request's head.

        Raises:
            ServiceError, TransportError, DeadlineExceededError: as `aiosmrt.Client.invoke_endpoint`.
            ConfigurationError: the extra ``http2`` is not installed, or the HTTP/2 endpoint is unknown.
            ClientStateError: it was entered before.
        """
        if self._beginning is not None:
            raise self._call.place(ClientStateError("a bidirectional stream can be entered once"))
        self._beginning = asyncio.get_running_loop().create_task(self._begin(), name="aiosmrt-bidirectional")
        self._beginning.add_done_callback(lambda _: self._outbox.wake())
        try:
            while self._outbox.link is None and not self._beginning.done():
                await self._outbox.changed()
            if self._beginning.done() and self._error is not None:
                # It is closed below.
                raise self._call.place(fresh_copy(self._error)) from self._error.__cause__  # noqa: TRY301
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream, and reset it unless both sides have ended it. May be called more than once."""
        if self._is_closed:
            return
        self._is_closed = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        link = self._outbox.link
        if link is not None:
            link.close()
        self._outbox.wake()
        beginning = self._beginning
        if beginning is None or beginning.done():
            self._finish()
            return
        # Its end returns the slot, even if the caller has left.
        beginning.add_done_callback(lambda _: self._finish())
        beginning.cancel()
        await asyncio.wait({beginning})

    def _finish(self) -> None:
        if self._response is not None:
            self._call.finish_stream(self._parts, self._payload_bytes, complete=self._is_complete)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_beginning", None) is not None and not self._is_closed:
            _warn(f"unclosed {self!r}: use `async with`", ResourceWarning, source=self)

    async def _begin(self) -> None:
        """Make attempts until the first part is there, or the end."""
        call = self._call
        try:
            link = cast("Link", await call.run())
            while True:
                self._adopt(link)
                try:
                    await self._receive()
                except (TransportError, EventStreamFormatError, ServiceError) as error:
                    link.close()
                    link = cast("Link", await call.retry_stream(error, stream_started=False))
                else:
                    break
        except Exception as error:
            if not isinstance(error, AiosmrtError):
                # A fault of this package: the caller gets it, and not silence.
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a bidirectional stream failed", "exception": error}
                )
                error = ClientStateError(f"the stream failed with {type(error).__name__}")
            self._error = error.with_traceback(None)

    def _adopt(self, link: Link) -> None:
        self._link = link
        self._decoder = Decoder()
        self._failure = None
        self._response = self._call.response_of(link)
        core = self._call.core
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        # The head may have come long after the beginning, because it may come with the model's first part.
        self._give_notice("lifetime", self._call.opened_at + STREAM_LIFETIME_SECONDS - core.clock())
        if self._call.expires_at is not None:
            self._give_notice("credentials", self._call.expires_at - core.wall_clock() - core.clock_offset)
        self._outbox.wake()

    def _give_notice(self, reason: Literal["lifetime", "credentials"], left: float) -> None:
        """Tell observers a minute before a time that is so many seconds away, or at once if it is nearer."""
        notice = max(0.0, min(NOTICE_SECONDS, left))
        self._timers.append(self._call.core.call_later(max(0.0, left - notice), self._expires, reason, notice))

    def _expires(self, reason: Literal["lifetime", "credentials"], seconds: float) -> None:
        self._call.notify(StreamExpiring, reason, seconds)

    # The request

    async def send(
        self,
        data: bytes | bytearray | memoryview | str,
        *,
        DataType: DataType | None = None,
        CompletionState: CompletionState | None = None,
    ) -> None:
        """Send a message, or a part of one; returns when HTTP/2's flow control has taken it.

        It becomes exactly one WebSocket frame at the container. A cancelled ``send`` may have sent its message, and
        never sends half of one.

        Args:
            data: the bytes, up to 16 MiB; a str is sent as UTF-8.
            DataType: ``"UTF8"`` for a text frame, ``"BINARY"`` for a binary one. Defaults to ``"UTF8"`` for a str; for
                bytes it is left out, which the service takes as binary.
            CompletionState: ``"PARTIAL"`` if the message goes on with the next part, ``"COMPLETE"`` if it ends here. If
                None, it is left out, which means complete.

        Raises:
            ParamValidationError: an argument is wrong; nothing was sent.
            ServiceError, TransportError: what the stream has failed with.
            ClientStateError: the input was ended, the service has ended the stream, or the block was left.
        """
        try:
            message = _encoded(data, DataType, CompletionState)
        finally:
            # error trackers report locals
            del data
        self.check_can_send()
        number = self._outbox.add(message)
        del message
        try:
            while not self._outbox.is_sent(number):
                self._raise_if_over()
                await self._outbox.changed()
        except asyncio.CancelledError:
            self._outbox.take_back(number)
            raise

    def check_can_send(self) -> None:
        """Raise what `send` would raise, whatever its arguments."""
        if self._outbox.is_ended:
            raise self._call.place(ClientStateError("the input of this stream was ended"))
        self._raise_if_over()

    async def end_input(self) -> None:
        """Tell the model that nothing follows; parts may still come. May be called more than once.

        Raises:
            ServiceError, TransportError: what the stream has failed with.
        """
        self._outbox.end()
        while not self._outbox.is_end_sent:
            if self._is_complete or (self._link is not None and self._link.is_over and self._link.failure() is None):
                return  # the service has ended the stream, and with it the input
            self._raise_if_over()
            await self._outbox.changed()

    def _raise_if_over(self) -> None:
        """Raise why nothing can be sent."""
        if self._beginning is None:
            raise self._call.place(ClientStateError("a bidirectional stream must be entered with `async with`"))
        if self._is_closed:
            raise self._call.place(ClientStateError("the stream is closed"))
        if self._error is not None:
            raise self._call.place(fresh_copy(self._error))
        link = self._link
        if link is None or not link.is_over or not self._beginning.done():
            return
        # What has not been read yet may contain the reason.
        link.take(self._take)
        error = self._failure or link.failure() or self._truncation(link)
        if error is None:
            raise self._call.place(ClientStateError("the service has ended the stream: nothing more can be sent"))
        try:
            raise self._call.place(fresh_copy(error))
        finally:
            del error

    def _truncation(self, link: Link) -> EventStreamFormatError | None:
        """The error of a stream that ended inside a frame, or of an empty answer of another content type."""
        try:
            self._decoder.finish(link.headers.get("content-type"))
        except EventStreamFormatError as error:
            return error.with_traceback(None)
        return None

    # The response

    async def response(self) -> dict[str, Any]:
        """The facts of the response: ``ResponseMetadata`` and ``InvokedProductionVariant``, once its head is there.

        Raises:
            ServiceError, TransportError, DeadlineExceededError: the request failed before a response.
        """
        while self._response is None:
            self._raise_if_over()
            await self._outbox.changed()
        return self._response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BidirectionalStreamEvent:
        """Return the next part, ``{"PayloadPart": {"Bytes": b"…"}}``.

        ``DataType`` and ``CompletionState`` are beside ``Bytes`` if the service sends them. Cancelling a wait loses
        nothing.

        Raises:
            ModelStreamError: the container closed its connection or failed; ``error_code`` has the reason.
            InternalStreamFailure: the service failed.
            EventStreamFormatError: a malformed frame, the stream ended inside one, or an empty answer without an event
                stream's content type.
            TransportError: the stream was reset, or its connection lost.
            ClientStateError: another task is waiting for the next part, or the block was left.
        """
        while not self._ready:
            if self._beginning is not None and not self._beginning.done() and not self._is_closed:
                await self._outbox.changed()
                continue
            if self._is_complete and not self._is_closed:
                raise StopAsyncIteration
            self._raise_if_read_out()
            try:
                await self._receive()
            except (TransportError, EventStreamFormatError, ServiceError) as error:
                await self._fail(error)
        return self._ready.popleft()

    def _raise_if_read_out(self) -> None:
        if self._beginning is None or self._is_closed or self._error is not None:
            self._raise_if_over()

    async def _fail(self, error: AiosmrtError) -> None:
        """Raise the error of a stream that had begun."""
        if self._link is not None:
            self._link.close()
        try:
            await self._call.retry_stream(error, stream_started=True)
        except AiosmrtError as failure:
            self._error = fresh_copy(failure)
            raise
        finally:
            del error

    async def _receive(self) -> None:
        """Wait until there is a part, or the end."""
        link = cast("Link", self._link)
        while not self._ready and not self._is_complete:
            if self._failure is not None:
                raise self._failure
            if not await link.receive(self._take):
                if self._is_closed:
                    return
                self._decoder.finish(link.headers.get("content-type"))
                self._is_complete = True
                self._outbox.wake()

    def _take(self, data: bytes | memoryview) -> None:
        """Decode what has arrived, up to the first failure."""
        if self._failure is not None:
            return
        parts, self._failure = decoded_parts(self._decoder, data, self._call.message_error)
        if parts and not self._parts:
            self._call.first_part(self._call.elapsed())
        self._parts += len(parts)
        for headers, payload in parts:
            part: dict[str, Any] = {"Bytes": payload}
            for name in ("DataType", "CompletionState"):
                value = headers.get(name)
                if isinstance(value, str):
                    part[name] = value
            self._ready.append(cast("BidirectionalStreamEvent", {"PayloadPart": part}))
            self._payload_bytes += len(payload)

    def messages(self, *, max_message_bytes: int = MAX_PART_BYTES) -> AsyncIterator[str | bytes]:
        """Iterate over whole messages: parts joined up to ``COMPLETE``, as str if they are UTF8, else as bytes.

        Cancelling a wait loses nothing, and after a `DeserializationError` the next message can be read.

        Args:
            max_message_bytes: the largest message, bytes. Defaults to 16 MiB.

        Raises:
            ParamValidationError: ``max_message_bytes`` is out of range.
            TruncatedStreamError: the stream ended inside a message.
            DeserializationError: a message exceeds ``max_message_bytes``, is said to be UTF8 and is not, or changes its
                type half way.
            AiosmrtError: as ``anext``.
        """
        if faults := faulty_limit(max_message_bytes):
            raise ParamValidationError(faults)
        return _Messages(self, max_message_bytes)

    async def next_message(self, max_message_bytes: int) -> Message | None:
        """The next whole message; None at the end. Otherwise as iterating over `messages`."""
        try:
            async for event in self:
                message = self._joiner.add(event["PayloadPart"], max_message_bytes)
                if message is not None:
                    return message
            self._joiner.finish()
        except (DeserializationError, TruncatedStreamError) as error:
            self.place(error)
            raise
        return None

    def place(self, error: AiosmrtError) -> AiosmrtError:
        """Attach operation, endpoint, attempt count and request id to an error about a message."""
        return self._call.place(error)


class _Messages(OneProcess):
    """Whole messages of a stream. Not a generator, which a cancelled wait or an error would end."""

    def __init__(self, stream: BidirectionalStream, max_message_bytes: int) -> None:
        self._stream = stream
        self._max_message_bytes = max_message_bytes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        message = await self._stream.next_message(self._max_message_bytes)
        if message is None:
            raise StopAsyncIteration
        if message.data_type == "BINARY":
            return message.data
        try:
            return message.data.decode()
        except UnicodeDecodeError:
            pass
        # Raised out here: the error above carries the message.
        del message
        raise self._stream.place(DeserializationError("a message of type UTF8 is not valid UTF-8"))


def _encoded(data: Any, data_type: Any, completion_state: Any) -> bytes:
    """A message for the wire, before it is signed."""
    faults = []
    octets: Any = b""
    if isinstance(data, str):
        try:
            octets = data.encode()
        except UnicodeEncodeError:
            faults.append("data: the text contains lone surrogates and cannot be encoded as UTF-8")
        data_type = "UTF8" if data_type is None else data_type
    elif isinstance(data, (bytes, bytearray)):
        octets = data
    elif isinstance(data, memoryview):
        octets = data.tobytes()
    else:
        faults.append(f"data must be bytes, a bytearray, a memoryview or a str; got {type(data)}")
    del data
    if len(octets) > MAX_PART_BYTES:
        faults.append(f"data must be at most {MAX_PART_BYTES} bytes; got {len(octets)}")
    if data_type is not None and data_type not in DATA_TYPES:
        faults.append(f"DataType must be one of {', '.join(DATA_TYPES)}; got {shown(data_type)}")
    if completion_state is not None and completion_state not in COMPLETION_STATES:
        faults.append(f"CompletionState must be one of {', '.join(COMPLETION_STATES)}; got {shown(completion_state)}")
    if faults:
        del octets
        raise ParamValidationError(faults)
    return encode_payload_part(octets, data_type, completion_state)
