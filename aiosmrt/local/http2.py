"""The HTTP/2 side of the local runtime: bidirectional streams.

Each stream is a task that takes the steps of `aiosmrt.local.server`: the request line, the faults of the endpoint, the
signature, the members, the model. The signature of the request is verified first, and then that of every message before
it reaches the model. What arrives for a stream is acknowledged when the model has taken it.
"""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from email.utils import formatdate
from typing import Any, Final, cast

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from aiosmrt._wire.eventstream import Decoder, encode_exception, encode_payload_part
from aiosmrt._wire.http2 import DEFAULT_WINDOW_BYTES, FLUSH_BYTES, LAST_STREAM_ID, Connection, header_fields
from aiosmrt._wire.operations import EVENT_STREAM, STREAM_LIFETIME_SECONDS
from aiosmrt._wire.operations import INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM as OPERATION
from aiosmrt._wire.sigv4.canonical import SignatureFormatError
from aiosmrt._wire.sigv4.events import EVENTS_PAYLOAD, EventVerifier
from aiosmrt.errors import ConfigurationError, EventStreamFormatError
from aiosmrt.local.backends import ContainerFailure, ModelTimeoutError, StreamMessage, model_limit
from aiosmrt.local.conversation import PartialText, StreamClosedByContainer
from aiosmrt.local.error_responses import CallContext, ErrorAnswer, ErrorReply, access_denied, origin_rejected
from aiosmrt.local.fault_schedule import Effect, Stage
from aiosmrt.local.faults import (
    CloseBeforeHeaders,
    ErrorEffect,
    GoAway,
    ResetAfterHeaders,
    ResetBeforeHeaders,
    ResetStream,
    SkewedClock,
    Stall,
    StallInBody,
    StreamFailure,
    Truncate,
)
from aiosmrt.local.origins import foreign_origin
from aiosmrt.local.parameters import read_parameters, route_of
from aiosmrt.local.requestlog import RequestRecord
from aiosmrt.local.response_body import cut_connection
from aiosmrt.local.service import Service

__all__ = ["Http2Server"]

_LINGER_SECONDS: Final = 1.0
_CONNECTION_WINDOW_BYTES: Final = 2**24


class Http2Server:
    """Handles the bidirectional streams of a local runtime.

    Args:
        service: what answers the calls.
        stall: waits for so many seconds, or until released.
        window_bytes: how much a client may send on a stream before the model has taken it.
        max_streams: streams that a connection may have at once.
        lifetime: seconds after which a stream is ended.

    Raises:
        ConfigurationError: ``lifetime`` is not a positive number.
    """

    def __init__(
        self,
        service: Service,
        *,
        stall: Callable[[float | None], Any],
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        max_streams: int = 100,
        lifetime: float = STREAM_LIFETIME_SECONDS,
    ) -> None:
        if not 0 < lifetime < math.inf:
            raise ConfigurationError(f"http2_stream_seconds must be a number > 0; got {lifetime}")
        self.service = service
        self.stall = stall
        self.window_bytes = window_bytes
        self.max_streams = max_streams
        self.lifetime = lifetime
        self.connections: set[_Connection] = set()
        self.connections_seen = 0

    @property
    def in_flight(self) -> int:
        """The number of open streams."""
        return sum(len(connection.exchanges) for connection in self.connections)

    def protocol(self) -> asyncio.Protocol:
        """A protocol for a new connection; what a listener needs."""
        return _Connection(self)

    def say_goodbye(self) -> None:
        """Have clients open no further streams."""
        for connection in self.connections:
            connection.go_away(LAST_STREAM_ID)

    async def close(self) -> None:
        """Cancel the open streams, and close the connections."""
        tasks = {exchange.task for connection in self.connections for exchange in connection.exchanges.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for connection in list(self.connections):
            connection.abort()
        for _ in range(2):  # the end of a transport takes an iteration of the loop
            await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self, server: Http2Server) -> None:
        self.server = server
        self.h2 = Connection(client_side=False, stream_window_bytes=server.window_bytes, max_streams=server.max_streams)
        self.transport: asyncio.Transport | None = None
        self.exchanges: dict[int, _Exchange] = {}
        self.number = 0
        self._is_full = False
        self._flushes = False
        self._unopened = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.server.connections.add(self)
        self.server.connections_seen += 1
        self.number = self.server.connections_seen
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except ProtocolError:
            self.flush()
            self.abort()
            return
        for event in events:
            self._handle(event)
        self.flush()

    def _handle(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            stream_id = event.stream_id or 0
            fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers or ()]
            self.exchanges[stream_id] = _Exchange(self, stream_id, fields)
            self.server.service.progress.changed()
            return
        if isinstance(event, RemoteSettingsChanged) or (isinstance(event, WindowUpdated) and not event.stream_id):
            for exchange in self.exchanges.values():
                exchange.room.set()
            return
        if isinstance(event, DataReceived) and event.flow_controlled_length:
            # The connection's window stays open; the stream's is opened when the model has taken what came.
            self._unopened += event.flow_controlled_length
            if self._unopened > _CONNECTION_WINDOW_BYTES // 4:
                self.h2.increment_flow_control_window(self._unopened)
                self._unopened = 0
        known = self.exchanges.get(getattr(event, "stream_id", None) or 0)
        if known is None:
            return
        if isinstance(event, DataReceived):
            known.arrived.append((event.data or b"", event.flow_controlled_length or 0))
            known.news.set()
        elif isinstance(event, StreamEnded):
            known.input_ended = True
            known.news.set()
        elif isinstance(event, StreamReset):
            known.task.cancel()
        elif isinstance(event, WindowUpdated):
            known.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        for exchange in list(self.exchanges.values()):
            exchange.task.cancel()
        self.server.service.progress.changed()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        for exchange in self.exchanges.values():
            exchange.room.set()

    @property
    def is_lost(self) -> bool:
        return self not in self.server.connections

    def flush_soon(self) -> None:
        """Send, together with whatever else is written in this turn of the loop."""
        if not self._flushes:
            self._flushes = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flushes = False
        data = self.h2.data_to_send()
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def room(self, stream_id: int) -> int:
        if self._is_full:
            return 0
        return min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)

    def go_away(self, last_stream_id: int, code: int = 0) -> None:
        # Not h2's close_connection(), after which it sends nothing more.
        from hyperframe.frame import GoAwayFrame

        self.flush()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(GoAwayFrame(0, last_stream_id=last_stream_id, error_code=code).serialize())

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def cut(self, *, reset: bool) -> None:
        if self.transport is not None:
            cut_connection(self.transport, reset=reset)


class _Cut(Exception):
    """The exchange ends without an end."""


class _Exchange:
    """One stream on its way through the steps."""

    # for how long the model may go on; there as soon as it has begun
    _limit: asyncio.Timeout

    def __init__(self, connection: _Connection, stream_id: int, fields: list[tuple[str, str]]) -> None:
        self._connection = connection
        self._server = connection.server
        self._stream_id = stream_id
        self._fields = fields
        self._pseudo = {name: value for name, value in fields if name.startswith(":")}
        self.arrived: deque[tuple[bytes, int]] = deque()
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.input_ended = False
        self._has_head = False
        self._verifier: EventVerifier | None = None
        self._bad_input: _BadInputError | None = None
        server = self._server
        path = self._pseudo.get(":path", "")
        headers = dict(fields)
        self._record = RequestRecord(
            request_id=str(uuid.UUID(int=server.service.chance.getrandbits(128), version=4)),
            method=self._pseudo.get(":method", ""),
            path=path.partition("?")[0],
            outcome="disconnected",
            invocation_id=headers.get("amz-sdk-invocation-id"),
            user_agent=headers.get("user-agent"),
            connection=connection.number,
            started_at=server.service.clock(),
        )
        self._started = asyncio.get_running_loop().time()
        self.task = asyncio.ensure_future(self._run())
        # Not at the end of the coroutine: a reset that comes with the request cancels the task before its first step.
        self.task.add_done_callback(self._ended)

    async def _run(self) -> None:
        record = self._record
        try:
            # A model may fail as it is left, which is in the log and changes no outcome.
            with suppress(ContainerFailure):
                async with AsyncExitStack() as stack:
                    try:
                        await self._answer(stack)
                        record.outcome = "answered"
                    except _Cut:
                        record.outcome = "cut"
            if record.outcome == "answered" and not self.input_ended:
                await self._linger()
        except ProtocolError:
            pass  # the client has reset the stream, or its connection is lost

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connection.flush()
        self._connection.exchanges.pop(self._stream_id, None)
        self._record.seconds = asyncio.get_running_loop().time() - self._started
        self._server.service.log.add(self._record)

    async def _linger(self) -> None:
        """Wait a moment for the client to end its request, and then reset the rest of it (RFC 9113, 8.1).

        awscrt drops what it has received when a reset comes, even after the end of the response.
        """
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.input_ended:
                    self.arrived.clear()
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            self._connection.h2.reset_stream(self._stream_id, ErrorCodes.NO_ERROR)

    async def _answer(self, stack: AsyncExitStack) -> None:
        server, record = self._server, self._record
        path, _, query = self._pseudo.get(":path", "").partition("?")
        effects: dict[Stage, Effect] = {}
        context = CallContext(
            server.service.region, server.service.account_id, "", record.started_at, record.request_id
        )
        try:
            self._check_origin()
            operation, endpoint = route_of(record.method, path, (OPERATION,))
            record.operation, record.endpoint = operation.name, endpoint
            effects = server.service.effects(endpoint, OPERATION.name)
            record.fault = tuple(effect.name for effect in effects.values())
            now = record.started_at
            if isinstance(skew := effects.get("clock"), SkewedClock):
                now += skew.seconds
            context = CallContext(server.service.region, server.service.account_id, endpoint, now, record.request_id)
            self._verify(path, query, context)
            await self._act_before(effects.get("answer"), context)
            headers = {name: value for name, value in reversed(self._fields) if not name.startswith(":")}
            parameters = read_parameters(operation, endpoint, headers)
            answers, variant = await stack.enter_async_context(
                server.service.invoker.converse(parameters, self._messages(), context)
            )
        except ErrorReply as error:
            await self._send_error(error.answer, context)
            return
        record.variant = variant
        variant_header = OPERATION.results[1].header or ""
        self._send_head(200, [("Content-Type", EVENT_STREAM), (variant_header, variant)], context)
        try:
            async with model_limit(asyncio.get_running_loop().time() + server.lifetime) as self._limit:
                if self._bad_input is None:
                    await self._send_parts(answers, effects.get("body"))
        except (ModelTimeoutError, ContainerFailure) as error:
            await self._send(self._last_message(error))
        else:
            if self._bad_input is not None:
                await self._send(self._last_message(self._bad_input))
        await self._send(b"", end=True)

    def _last_message(self, error: Exception) -> bytes:
        """The message that ends a stream which has failed."""
        record = self._record
        if self._bad_input is not None:
            # Whatever the model made of it.
            record.error_code = "InputValidationError"
            return _failure("InputValidationError", str(self._bad_input))
        if isinstance(error, ContainerFailure):
            record.error_code = "ModelStreamError"
            code = str(error.code) if isinstance(error, StreamClosedByContainer) else "StreamBroken"
            return _failure("ModelStreamError", error.message, code)
        record.error_code = "InternalStreamFailure"
        limit = self._server.lifetime
        limit_text = f"{limit / 60:g} minutes" if limit >= 60 else f"{limit:g} seconds"
        return _failure("InternalStreamFailure", f"The stream has reached the limit of {limit_text}.")

    def _check_origin(self) -> None:
        """Reject requests of other origins if signatures are not verified."""
        if self._server.service.verifier is not None:
            return
        headers: dict[str, list[str]] = {}
        for name, value in self._fields:
            headers.setdefault(name, []).append(value)
        reason = foreign_origin(headers, self._pseudo.get(":authority"), self._pseudo.get(":scheme", "http"))
        if reason is not None:
            raise ErrorReply(origin_rejected(reason))

    def _verify(self, path: str, query: str, context: CallContext) -> None:
        verifier = self._server.service.verifier
        if verifier is None:
            return
        headers = [(name, value) for name, value in self._fields if name == ":authority" or not name.startswith(":")]
        if not any(name == "host" for name, _ in headers):
            # What HTTP/1.1 has as Host is :authority here. Clients sign it under either name.
            headers.append(("host", self._pseudo.get(":authority", "")))
        given = dict(self._fields).get("x-amz-content-sha256")
        if given != EVENTS_PAYLOAD:
            message = f"The header x-amz-content-sha256 must be {EVENTS_PAYLOAD}."
            raise ErrorReply(access_denied(403, "InvalidSignatureException", message))
        verified = verifier.verify(
            method=self._record.method,
            path=path,
            query=query,
            headers=headers,
            payload_sha256=EVENTS_PAYLOAD,
            now=context.now,
        )
        self._record.access_key_id = verified.access_key
        self._verifier = verifier.event_verifier(dict(self._fields)["authorization"])

    async def _act_before(self, effect: Effect | None, context: CallContext) -> None:
        match effect:
            case ErrorEffect():
                raise ErrorReply(effect.error(context))
            case Stall():
                await self._server.stall(effect.seconds)
            case ResetBeforeHeaders() | CloseBeforeHeaders():
                self._connection.cut(reset=isinstance(effect, ResetBeforeHeaders))
                raise _Cut

    # What arrives

    async def _messages(self) -> AsyncGenerator[StreamMessage, None]:
        """The caller's messages, verified, until it ends its input.

        Raises:
            _BadInputError: the input is not an event stream, or a signature is wrong; the stream ends with that,
                whatever the model does.
        """
        try:
            async for message in self._verified_messages():
                yield message
        except _BadInputError as error:
            self._bad_input = error
            self._limit.reschedule(0)
            raise

    async def _verified_messages(self) -> AsyncGenerator[StreamMessage, None]:
        outer, record = Decoder(), self._record
        ended = False
        unopened = 0
        text = PartialText()
        while True:
            while self.arrived:
                data, length = self.arrived.popleft()
                record.request_bytes += len(data)
                for message in self._decoded(outer, data):
                    if message is None:
                        ended = True
                    elif ended:
                        raise _BadInputError("A message follows the last one.")
                    else:
                        yield _message(text, *message)
                unopened += length
                if unopened >= self._server.window_bytes / 4 and not (self.input_ended or self._connection.is_lost):
                    self._connection.h2.increment_flow_control_window(unopened, self._stream_id)
                    self._connection.flush_soon()
                    unopened = 0
            if self.input_ended:
                if outer.pending_bytes or (self._verifier is not None and not ended):
                    raise _BadInputError("The input ended without an empty message at its end.")
                return
            self.news.clear()
            await self.news.wait()

    def _decoded(self, outer: Decoder, data: bytes) -> list[tuple[Mapping[str, Any], bytes] | None]:
        """The messages in the next bytes; None stands for the last, empty one."""
        found: list[tuple[Mapping[str, Any], bytes] | None] = []
        try:
            for headers, payload in outer.feed(data):
                if ":chunk-signature" in headers or self._verifier is not None:
                    if self._verifier is not None:
                        self._verifier.verify(headers, payload)
                    found += Decoder().feed(payload) if payload else [None]
                else:
                    found.append((headers, payload))
            if outer.failure is not None:
                raise outer.failure
        except (EventStreamFormatError, SignatureFormatError) as error:
            raise _BadInputError(f"{error}.".capitalize()) from error
        return found

    # What is sent

    def _send_head(self, status: int, headers: list[tuple[str, str]], context: CallContext) -> None:
        self._record.status = status
        self._has_head = True
        fields = [
            (":status", str(status)),
            *headers,
            ("x-amzn-RequestId", self._record.request_id),
            ("Date", formatdate(context.now, usegmt=True)),
            ("Server", "aiosmrt-local"),
        ]
        self._connection.h2.send_headers(self._stream_id, header_fields(fields))
        self._connection.flush()

    async def _send_error(self, answer: ErrorAnswer, context: CallContext) -> None:
        self._record.error_code = (answer.code or str(answer.status)).partition(":")[0].rpartition("#")[2]
        self._send_head(answer.status, answer.headers(), context)
        await self._send(answer.encoded(), end=True)

    async def _send_parts(self, answers: Any, effect: Effect | None) -> None:
        record = self._record
        after = getattr(effect, "after_parts", None)
        while True:
            if after is not None and record.parts >= after:
                await self._act_within(cast("Effect", effect))
                after = None
            message: StreamMessage | None = await anext(answers, None)
            if message is None:
                return
            is_text = isinstance(message.data, str)
            data = message.data.encode() if isinstance(message.data, str) else message.data
            frame = encode_payload_part(
                data, "UTF8" if is_text else "BINARY", "COMPLETE" if message.complete else "PARTIAL"
            )
            if isinstance(effect, Truncate) and record.parts >= effect.after_parts:
                await self._send(frame[: effect.after_bytes or len(frame) // 2], end=True)
                raise _Cut
            await self._send(frame)
            record.parts += 1

    async def _act_within(self, effect: Effect) -> None:
        connection = self._connection
        match effect:
            case ResetStream():
                connection.h2.reset_stream(self._stream_id, ErrorCodes[effect.error_code])
                raise _Cut
            case GoAway():
                last = LAST_STREAM_ID if effect.graceful else max(0, self._stream_id - 2)
                connection.go_away(last, 0 if effect.graceful else ErrorCodes.INTERNAL_ERROR)
                if not effect.graceful:
                    connection.cut(reset=False)
                    raise _Cut
            case ResetAfterHeaders():
                connection.flush()
                connection.cut(reset=True)
                raise _Cut
            case StallInBody():
                await self._server.stall(effect.seconds)
            case StreamFailure():
                self._record.error_code = effect.exception
                await self._send(_failure(effect.exception, effect.message, effect.error_code))
                await self._send(b"", end=True)
                raise _Cut

    async def _send(self, data: bytes, *, end: bool = False) -> None:
        """Send what flow control allows, and wait where it does not."""
        connection, stream_id = self._connection, self._stream_id
        left = memoryview(data)
        while left:
            size = connection.room(stream_id)
            if size <= 0:
                self.room.clear()
                await self.room.wait()
                continue
            piece = left[:size]
            connection.h2.send_data(stream_id, piece.tobytes())
            self._record.response_bytes += len(piece)
            left = left[size:]
            if connection.h2.waiting_bytes < FLUSH_BYTES:
                connection.flush_soon()
            else:
                # A model that waits for nothing keeps the loop from it, and from everything else.
                connection.flush()
                await asyncio.sleep(0)
        if end:
            connection.h2.end_stream(stream_id)
            connection.flush_soon()


class _BadInputError(Exception):
    """The caller's messages are malformed, or not signed as they must be."""


def _message(text: PartialText, headers: Mapping[str, Any], payload: bytes) -> StreamMessage:
    complete = headers.get("CompletionState") != "PARTIAL"
    if headers.get("DataType") != "UTF8":
        return StreamMessage(payload, complete)
    try:
        return StreamMessage(text.decode(payload, is_last=complete), complete)
    except UnicodeDecodeError:
        raise _BadInputError("A part of type UTF8 is not valid UTF-8.") from None


def _failure(exception: str, message: str, error_code: str | None = None) -> bytes:
    document = {"Message": message} | ({"ErrorCode": error_code} if exception == "ModelStreamError" else {})
    return encode_exception(exception, json.dumps(document).encode())
