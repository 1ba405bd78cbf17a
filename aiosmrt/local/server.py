"""The HTTP side of the local runtime: one request, its response, and its record.

A request passes these steps, each of which may end it: the request line selects an operation; without signatures, a
request from another origin is rejected; the scripted faults of the endpoint are drawn; the body is read up to the
service's limit; the signature is verified over what arrived; a fault may replace the model's response; members are
validated; the backend is invoked and its reply sent, through a fault on the body if one was drawn. In every case the
record is added to the log once the exchange has released everything.

A handler is cancelled when its client disconnects, and with it the invocation.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from email.utils import formatdate
from hashlib import sha256
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from aiosmrt._wire.operations import INVOKE_ENDPOINT_ASYNC, Operation
from aiosmrt.local.asynchronous import AsyncInference
from aiosmrt.local.backends import ContainerFailure, single
from aiosmrt.local.error_responses import (
    CallContext,
    ErrorAnswer,
    ErrorReply,
    body_too_large,
    openai_answer,
    origin_rejected,
)
from aiosmrt.local.fault_schedule import Effect, Stage
from aiosmrt.local.faults import (
    CloseBeforeHeaders,
    ErrorEffect,
    IdleClose,
    ResetBeforeHeaders,
    SkewedClock,
    Stall,
    Truncate,
)
from aiosmrt.local.invocation import MAX_RESPONSE_BYTES, Reply
from aiosmrt.local.origins import foreign_origin
from aiosmrt.local.parameters import is_openai_path, openai_route_of, read_parameters, route_of
from aiosmrt.local.requestlog import RequestRecord
from aiosmrt.local.response_body import Cut, cut_connection, shaped
from aiosmrt.local.service import Service

__all__ = ["MAX_BODY_BYTES", "RequestServer"]

MAX_BODY_BYTES: Final = 25 * 1024 * 1024  # AWS's documented limit for real-time endpoints

# Above this a hash takes more than a millisecond, too long for an event loop that the client may share.
_HASH_IN_THREAD_BYTES: Final = 1024 * 1024

_ABSOLUTE_FORM = re.compile(r"^https?://([^/?]*)", re.IGNORECASE)
_SDK_REQUEST = re.compile(r"\b(attempt|max)=(\d{1,9})")


class RequestServer:
    """Handles the requests of a local runtime.

    Args:
        service: what answers the calls.
        jobs: accepts asynchronous inferences.
        max_body_bytes: the largest request body. Defaults to 25 MiB.
        max_recorded_bytes: how much of a response body is recorded. Defaults to 25 MiB.
        record_bodies: whether records contain headers and bodies. Defaults to False.
    """

    def __init__(
        self,
        service: Service,
        *,
        jobs: AsyncInference,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_recorded_bytes: int = MAX_RESPONSE_BYTES,
        record_bodies: bool = False,
    ) -> None:
        self.service = service
        self._jobs = jobs
        self._max_body_bytes = max_body_bytes
        self._max_recorded_bytes = max_recorded_bytes
        self._record_bodies = record_bodies
        self._handlers: dict[asyncio.Task[object], RequestHandler] = {}
        self._gate = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._connections: dict[RequestHandler, int] = {}
        self._connections_seen = 0
        self.stalled: int = 0

    @property
    def in_flight(self) -> int:
        """The number of requests being handled."""
        return len(self._handlers)

    @property
    def closes_to_come(self) -> int:
        """The number of scripted idle closes that are pending."""
        return len(self._timers)

    @property
    def connections_seen(self) -> int:
        """The number of connections that have sent a request."""
        return self._connections_seen

    def busy(self, protocol: RequestHandler) -> bool:
        """Return whether a request of this connection is being handled."""
        return protocol in self._handlers.values()

    def release_stalled(self) -> None:
        """Let every stalled call continue."""
        self._gate.set()
        self._gate = asyncio.Event()

    def cancel_timers(self) -> None:
        """Cancel the pending idle closes."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def cancel_handlers(self) -> None:
        """Cancel the requests being handled and wait until they have ended."""
        tasks = set(self._handlers)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle one request; aiohttp's handler."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None or request.transport is None:
            raise ConnectionResetError("the client has disconnected")
        started = loop.time()
        record = self._new_record(request)
        self._handlers[task] = request.protocol
        self.service.progress.changed()
        try:
            return await _Exchange(self, request, record).answer()
        except Cut as cut:
            record.outcome = "cut"
            if request.transport is not None:
                cut_connection(request.transport, reset=cut.reset)
            return await _until_cancelled(loop)
        except ContainerFailure:
            # Of the OpenAI route, whose streams have no message for it: the response breaks off.
            record.outcome = "cut"
            record.error_code = "ContainerFailure"
            if request.transport is not None:
                cut_connection(request.transport, reset=False)
            return await _until_cancelled(loop)
        except ConnectionResetError:  # the client disconnected while its response was being written
            return await _until_cancelled(loop)
        finally:
            del self._handlers[task]
            record.seconds = loop.time() - started
            self.service.log.add(record)

    async def stall(self, seconds: float | None) -> None:
        """Wait for this many seconds, or until released."""
        self.stalled += 1
        self.service.progress.changed()
        try:
            async with asyncio.timeout(seconds):
                await self._gate.wait()
        except TimeoutError:
            pass  # the end of the pause
        finally:
            self.stalled -= 1

    def close_later(self, request: web.BaseRequest, seconds: float) -> None:
        """Close a connection after this many seconds if it is idle then."""
        transport, protocol = request.transport, request.protocol

        def close() -> None:
            self._timers.discard(timer)
            if transport is not None and not self.busy(protocol):
                transport.close()

        timer = asyncio.get_running_loop().call_later(seconds, close)
        self._timers.add(timer)

    def _new_record(self, request: web.BaseRequest) -> RequestRecord:
        protocol = request.protocol
        if protocol not in self._connections:
            self._connections = {one: number for one, number in self._connections.items() if one.transport is not None}
            self._connections_seen += 1
            self._connections[protocol] = self._connections_seen
        numbers = {
            name: int(number) for name, number in _SDK_REQUEST.findall(request.headers.get("amz-sdk-request", ""))
        }
        record = RequestRecord(
            request_id=str(uuid.UUID(int=self.service.chance.getrandbits(128), version=4)),
            method=request.method,
            path=_target(request)[0],
            outcome="disconnected",
            attempt=numbers.get("attempt"),
            max_attempts=numbers.get("max"),
            invocation_id=request.headers.get("amz-sdk-invocation-id"),
            user_agent=request.headers.get("User-Agent"),
            connection=self._connections[protocol],
            started_at=self.service.clock(),
        )
        if self._record_bodies:
            record.headers = {
                name.lower(): value for name, value in request.headers.items() if name.lower() != "authorization"
            }
        return record


def _target(request: web.BaseRequest) -> tuple[str, str, str | None]:
    """The path and the query of a request line as they were sent, and the authority of a target in absolute form."""
    target, authority = request.raw_path, None
    # RFC 9112 requires servers to accept the absolute form.
    if not target.startswith("/") and (match := _ABSOLUTE_FORM.match(target)) is not None:
        authority, target = match[1], target[match.end() :]
    path, _, query = target.partition("?")
    return path, query, authority


async def _until_cancelled(loop: asyncio.AbstractEventLoop) -> web.StreamResponse:
    """Wait for the lost connection to cancel the handler; aiohttp logs any other end as an error."""
    gone: asyncio.Future[web.StreamResponse] = loop.create_future()
    return await gone


class _Exchange:
    """One request on its way through the steps."""

    def __init__(self, server: RequestServer, request: web.BaseRequest, record: RequestRecord) -> None:
        self._server = server
        self._request = request
        self._record = record
        self._effects: dict[Stage, Effect] = {}
        self._openai = False
        self._context = self._context_of("", record.started_at)

    def _context_of(self, endpoint: str, now: float) -> CallContext:
        server = self._server
        return CallContext(server.service.region, server.service.account_id, endpoint, now, self._record.request_id)

    async def answer(self) -> web.StreamResponse:
        async with AsyncExitStack() as stack:
            try:
                reply, operation = await self._reply(stack)
            except ErrorReply as error:
                return await self._send_error(error.answer)
            status = self._record_status(operation.status)
            framed = operation.streams and not operation.openai
            return await self._deliver(status, reply.headers, reply.body, streams=framed)

    async def _reply(self, stack: AsyncExitStack) -> tuple[Reply, Operation]:
        server, request, record = self._server, self._request, self._record
        path, query, authority = _target(request)
        if is_openai_path(path):
            self._openai = True
            return await self._openai_reply(stack, path, authority)
        try:
            operation, endpoint = route_of(request.method, path)
        except ErrorReply:
            self._check_origin(authority)
            raise
        record.operation, record.endpoint = operation.name, endpoint
        self._check_origin(authority)
        self._draw_effects(operation, endpoint)
        body = await self._read_body()
        await self._verify(path, query, body)
        await self._apply_answer_effect(after_model=False)
        headers = {name.lower(): value for name, value in reversed(list(request.headers.items()))}
        parameters = read_parameters(operation, endpoint, headers)
        self._note(parameters)
        if operation is INVOKE_ENDPOINT_ASYNC:
            reply = server._jobs.accept(parameters, body, self._context, record)
        else:
            reply = await stack.enter_async_context(
                server.service.invoker.invoke(operation, parameters, body, self._context, record)
            )
        await self._apply_answer_effect(after_model=True)
        return reply, operation

    async def _openai_reply(self, stack: AsyncExitStack, path: str, authority: str | None) -> tuple[Reply, Operation]:
        """The same for the OpenAI route, whose body has to be read to know the operation."""
        server, request, record = self._server, self._request, self._record
        self._check_origin(authority)
        body = await self._read_body()
        headers = {name.lower(): value for name, value in reversed(list(request.headers.items()))}
        operation, parameters = openai_route_of(request.method, path, headers, body)
        record.operation, record.endpoint = operation.name, parameters["EndpointName"]
        self._draw_effects(operation, parameters["EndpointName"])
        if server.service.verifier is not None:
            verified = server.service.verifier.verify_bearer(self._headers(), self._context.now)
            record.access_key_id = verified.access_key
        await self._apply_answer_effect(after_model=False)
        self._note(parameters)
        reply = await stack.enter_async_context(
            server.service.invoker.invoke(operation, parameters, body, self._context, record)
        )
        await self._apply_answer_effect(after_model=True)
        return reply, operation

    def _draw_effects(self, operation: Operation, endpoint: str) -> None:
        record = self._record
        self._effects = self._server.service.effects(endpoint, operation.name)
        record.fault = tuple(effect.name for effect in self._effects.values())
        now = record.started_at
        if isinstance(skew := self._effects.get("clock"), SkewedClock):
            now += skew.seconds
        self._context = self._context_of(endpoint, now)

    def _headers(self) -> list[tuple[str, str]]:
        return [(name.decode(), value.decode(errors="surrogateescape")) for name, value in self._request.raw_headers]

    def _note(self, parameters: Mapping[str, str]) -> None:
        record = self._record
        record.inference_component = parameters.get("InferenceComponentName")
        record.target_model = parameters.get("TargetModel")
        record.session_id = parameters.get("SessionId")
        record.inference_id = parameters.get("InferenceId")

    async def _read_body(self) -> bytes:
        request, limit = self._request, self._server._max_body_bytes
        too_large = ErrorReply(body_too_large(limit))
        if (request.content_length or 0) > limit:
            raise too_large
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunks, size = [], 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
        body = b"".join(chunks)
        self._record.request_bytes = size
        if self._server._record_bodies:
            self._record.request_body = body
        return body

    def _check_origin(self, authority: str | None) -> None:
        """Reject requests of other origins if signatures are not verified."""
        if self._server.service.verifier is not None:
            return
        headers: dict[str, list[str]] = {}
        for name, value in self._request.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        if (reason := foreign_origin(headers, authority)) is not None:
            raise ErrorReply(origin_rejected(reason))

    async def _verify(self, path: str, query: str, body: bytes) -> None:
        verifier = self._server.service.verifier
        if verifier is None:
            return
        if len(body) > _HASH_IN_THREAD_BYTES:
            payload_sha256 = await asyncio.to_thread(lambda: sha256(body).hexdigest())
        else:
            payload_sha256 = sha256(body).hexdigest()
        verified = verifier.verify(
            method=self._request.method,
            path=path,
            query=query,
            headers=self._headers(),
            payload_sha256=payload_sha256,
            now=self._context.now,
        )
        self._record.access_key_id, self._record.presigned = verified.access_key, verified.presigned

    async def _apply_answer_effect(self, *, after_model: bool) -> None:
        match self._effects.get("answer"):
            case ErrorEffect() as effect if not after_model:
                raise ErrorReply(effect.error(self._context))
            case Stall() as effect if not after_model:
                await self._server.stall(effect.seconds)
            case (ResetBeforeHeaders() | CloseBeforeHeaders()) as effect if effect.after_model == after_model:
                raise Cut(reset=isinstance(effect, ResetBeforeHeaders))

    async def _send_error(self, answer: ErrorAnswer) -> web.StreamResponse:
        self._record.error_code = (answer.code or str(answer.status)).partition(":")[0].rpartition("#")[2]
        if self._openai:
            answer = openai_answer(answer)
        return await self._deliver(
            self._record_status(answer.status), answer.headers(), answer.encoded(), streams=False
        )

    def _record_status(self, status: int) -> int:
        self._record.status = status
        return status

    async def _deliver(
        self, status: int, headers: list[tuple[str, str]], body: bytes | AsyncIterator[bytes], *, streams: bool
    ) -> web.StreamResponse:
        request, record, server = self._request, self._record, self._server
        effect = self._effects.get("body")
        response = web.StreamResponse(status=status)
        response.headers.extend(headers)
        response.headers["x-amzn-RequestId"] = record.request_id
        response.headers["Date"] = formatdate(self._context.now, usegmt=True)
        response.headers["Server"] = "aiosmrt-local"
        if isinstance(body, bytes) and not (isinstance(effect, Truncate) and effect.clean_ending):
            response.content_length = len(body)
        if effect is not None and request.transport is not None:
            # Each write is sent before the next, so that a cut happens at an exact byte.
            request.transport.set_write_buffer_limits(high=0)
        await response.prepare(request)
        if isinstance(body, bytes) and effect is None:
            await response.write_eof(body)
            record.response_bytes = len(body)
            record.response_body = body if server._record_bodies else None
        else:
            await self._write(response, body, effect, streams=streams)
        record.outcome = "answered"
        if isinstance(closing := self._effects.get("connection"), IdleClose):
            server.close_later(request, closing.seconds)
        return response

    async def _write(
        self, response: web.StreamResponse, body: bytes | AsyncIterator[bytes], effect: Effect | None, *, streams: bool
    ) -> None:
        record, server = self._record, self._server
        kept: list[bytes] = []
        ends: deque[int] = deque()
        pieces = single(body) if isinstance(body, bytes) else body
        async with aclosing(shaped(pieces, effect, server.stall, record, ends if streams else None)) as chunks:
            async for chunk in chunks:
                await response.write(chunk)
                record.response_bytes += len(chunk)
                while ends and ends[0] <= record.response_bytes:
                    ends.popleft()
                    record.parts += 1
                if server._record_bodies and record.response_bytes <= server._max_recorded_bytes:
                    kept.append(chunk)
        if server._record_bodies:
            record.response_body = b"".join(kept)
        await response.write_eof()
