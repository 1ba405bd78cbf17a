"""One call, from its checked head to its result: limiter, signature, attempts, back-off.

::

    Call.run ──► limiter ──► ┌─► credentials ─► sign ─► transport ─► success ─► result
                             └── back-off ◄── decide ◄── failure ──► error

A call takes a place under ``max_concurrency`` before its first attempt and keeps it through back-off, so that a service
that throttles is called by fewer. A plain call gives it back with its result, a stream when it ends. The call's
``deadline`` spans everything up to the result; for a stream, everything up to the response's head.

An error that leaves a call is deleted from the frames that raised it. Its traceback holds those frames, so that they,
the call and its body would otherwise stay until the garbage collector finds them.

The path of a call that succeeds at once, without observers and deadline, is kept short on purpose: it is what the
client costs (benchmarks/overhead.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from aiosmrt.errors import (
    AiosmrtError,
    Cause,
    ClientStateError,
    DeadlineExceededError,
    EndpointNotFoundError,
    ModelError,
    ModelStreamError,
    NoCapacityError,
    ServiceError,
    ThrottlingError,
    class_of,
)
from aiosmrt.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    ClockSkewCorrected,
    Event,
    LimiterWaited,
    RetryScheduled,
    StreamEnded,
)
from aiosmrt.limiter import Limiter
from aiosmrt.policy.clockskew import correct_offset
from aiosmrt.policy.retry import (
    RetryState,
    classify,
    invocation_id,
    is_endpoint_not_found,
    is_no_capacity,
    parse_retry_after,
    sdk_request,
)
from aiosmrt.shared import HASH_INLINE_BYTES, Options, Plan, Shared, body_digest, emit, with_max_attempts
from aiosmrt.streams import EventStream, StreamingBody
from aiosmrt.transport import Reply, ReplyStream, Request
from aiosmrt.wire.eventstream import EventHeaders
from aiosmrt.wire.params import Head
from aiosmrt.wire.replies import failure, stream_failure

__all__ = ["Call"]

# What a transport brings: a whole reply for `Call.exchange`, an open one for `Call.open`.
AnyReply: TypeAlias = Reply | ReplyStream


class Call:
    """A call under way.

    Args:
        shared: the client's.
        options: the client's or view's.
        plan: the operation.
        head: the checked request head.
        body: the request body.
    """

    # What a call that succeeds at once leaves as it is stands here and costs nothing.
    _digest = ""
    _state: RetryState | None = None
    _deadline: float | None = None
    _last_error: AiosmrtError | None = None
    _request_id: str | None = None
    _sent = 0
    _started = 0.0
    # whether the call's stream is over
    _finished = False
    _limiter: Limiter
    _send: Callable[[Request], Awaitable[AnyReply]]
    _sent_at: float
    _signed_offset: float

    def __init__(self, shared: Shared, options: Options, plan: Plan, head: Head, body: bytes | memoryview) -> None:
        self._shared = shared
        self._options = options
        self._plan = plan
        self._head = head
        self._body = body
        self._invocation_id = invocation_id(shared.random_bits(128))

    # The two kinds of call

    async def exchange(self) -> dict[str, Any]:
        """Make the call and give its result dictionary."""
        self._send = self._shared.transport.exchange
        options = self._options
        reply = await (self._run() if options.deadline is None and not options.observers else self._observed())
        self._limiter.release()
        self._shared.counters.bytes_received += len(reply.body)
        body: object = StreamingBody(reply.body) if self._plan.operation.status == 200 else reply.body
        return self._plan.reader.result(reply.status, reply.headers, body, self._sent)

    async def open(self) -> dict[str, Any]:
        """Make the call and give its result dictionary, with an open stream under ``"Body"``."""
        self._send = self._shared.transport.open
        options = self._options
        reply = await (self._run() if options.deadline is None and not options.observers else self._observed())
        self._request_id = reply.headers.get("x-amzn-requestid")
        stream = EventStream(self, reply)
        return self._plan.reader.result(reply.status, reply.headers, stream, self._sent)

    # From the limiter to a successful reply

    async def _observed(self) -> Any:
        """`_run` within the deadline and with a `CallEnded` after it."""
        options = self._options
        clock = self._shared.clock
        self._started = clock()
        error: str | None = None
        try:
            if options.deadline is None:
                return await self._run()
            self._deadline = self._started + options.deadline
            return await self._before_deadline(self._run())
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self._emit(CallEnded, self._sent, clock() - self._started, error)

    async def _before_deadline(self, work: Coroutine[Any, Any, Any]) -> Any:
        left = None if self._deadline is None else self._deadline - self._shared.clock()
        timer = asyncio.timeout(left)
        try:
            async with timer:
                return await work
        except TimeoutError as late:
            if isinstance(late, AiosmrtError) or not timer.expired():
                raise
            cause, self._last_error = self._last_error, None
            raise self._place(
                DeadlineExceededError(f"The call did not finish within its deadline of {self._options.deadline} s")
            ) from cause

    async def _run(self) -> Any:
        """Take a place and make attempts until one succeeds; the place is kept on success only."""
        shared = self._shared
        shared.counters.calls += 1
        body = self._body
        if self._options.sign and not self._digest:
            if len(body) > HASH_INLINE_BYTES:
                self._digest = await shared.off_loop(body_digest, body)
            else:
                self._digest = body_digest(body)
        limiter = self._limiter = self._options.limiters.of(self._head.endpoint_name)
        if not limiter.try_acquire():
            await self._wait_for_turn()
        try:
            while True:
                try:
                    return await self._attempt()
                except AiosmrtError as error:
                    delay = self._decide(error, stream_started=False)
                await shared.sleep(delay)
        except BaseException:
            limiter.release()
            raise

    async def _wait_for_turn(self) -> None:
        if self._shared.ready_on is None:
            # those who waited were told when it was closed, nobody will tell this one
            raise ClientStateError("the client was closed during the call")
        if not self._options.observers:
            await self._limiter.acquire()
            return
        clock = self._shared.clock
        began = clock()
        await self._limiter.acquire()
        self._observe(LimiterWaited(self._plan.operation.name, self._head.endpoint_name, clock() - began))

    async def _attempt(self) -> Any:
        """Sign and send once; a reply that reports an error is raised as one."""
        shared = self._shared
        options = self._options
        if shared.ready_on is None:
            raise ClientStateError("the client was closed during the call")
        credentials = None
        if options.sign:
            credentials = shared.credentials.current()
            if credentials is None:
                credentials = await shared.credentials.get()
        attempt = 1 if self._state is None else self._state.attempt
        request = self._request(credentials, attempt)
        self._sent += 1
        counters = shared.counters
        counters.attempts += 1
        counters.bytes_sent += len(self._body)
        observed = bool(options.observers)
        began = 0.0
        if observed:
            began = shared.clock()
            self._emit(AttemptStarted, attempt, len(self._body))
        try:
            reply = await self._send(request)
            if reply.status < 300:
                if self._state is None:
                    options.bucket.on_success()
                else:
                    self._state.on_success()
                    self._last_error = None
                if observed:
                    self._emit_attempt(attempt, began, reply.status, None, reply.headers)
                return reply
            body = reply.body if isinstance(reply, Reply) else await _drain(reply)
        except BaseException as error:
            if observed:
                self._emit_attempt(attempt, began, None, type(error).__name__, None)
            raise
        counters.bytes_received += len(body)
        refusal = self._service_error(reply.status, reply.headers, body)
        if observed:
            self._emit_attempt(attempt, began, reply.status, refusal.code, reply.headers)
        try:
            raise refusal
        finally:
            del refusal

    def _request(self, credentials: Any, attempt: int) -> Request:
        shared = self._shared
        options = self._options
        head = self._head
        path = shared.base_path + head.path
        self._sent_at = now = shared.wall_clock()
        self._signed_offset = offset = shared.clock_offset
        now += offset
        max_attempts = options.retry.max_attempts or shared.max_attempts
        if self._deadline is not None:
            progress = sdk_request(attempt, max_attempts, now + self._deadline - shared.clock())
        elif attempt == 1:
            known = shared.first_attempts
            progress = known.get(max_attempts) or known.setdefault(max_attempts, sdk_request(1, max_attempts))
        else:
            progress = sdk_request(attempt, max_attempts)
        headers = [
            ("Host", shared.endpoint.host),
            ("Accept-Encoding", "identity"),
            ("User-Agent", options.user_agent + shared.user_agent_app),
            ("amz-sdk-invocation-id", self._invocation_id),
            ("amz-sdk-request", progress),
            *head.headers,
        ]
        if credentials is not None:
            headers += shared.signer.sign(
                credentials,
                now,
                method="POST",
                host=shared.endpoint.host,
                path=path,
                query="",
                headers=head.headers,
                payload_sha256=self._digest,
            )
        return Request(path, headers, self._body, options.connect_timeout, options.read_timeout)

    # Failures

    def _service_error(self, status: int, headers: dict[str, str], body: bytes) -> ServiceError:
        """The error that a reply reports; a clock found wrong is corrected on the way."""
        shared = self._shared
        response = failure(status, headers, body, self._sent)
        code = response["Error"]["Code"]
        message = response["Error"]["Message"]
        offset = correct_offset(code, self._signed_offset, self._sent_at, shared.wall_clock(), headers.get("date"))
        if offset is not None and offset != shared.clock_offset:
            shared.clock_offset = offset
            if self._options.observers:
                self._observe(ClockSkewCorrected(offset))
        cause = classify(status, code, skew=None if offset is None else offset - self._signed_offset)
        cls: type[ServiceError]
        if not isinstance(message, str):
            message = ""
        if is_no_capacity(code, message):
            cls = NoCapacityError
        elif is_endpoint_not_found(code, message):
            cls = EndpointNotFoundError
        elif cause == "throttling":
            cls = ThrottlingError
        else:
            cls = class_of(code)
        return cls(
            response,
            self._plan.operation.name,
            cause=cause,
            retry_after=parse_retry_after(headers.get("x-amz-retry-after")),
        )

    def _place(self, error: AiosmrtError) -> AiosmrtError:
        """Say on the error where it happened."""
        error.operation = self._plan.operation.name
        error.endpoint_name = self._head.endpoint_name
        error.attempts = self._sent
        return error

    def _decide(self, error: AiosmrtError, *, stream_started: bool) -> float:
        """Seconds until the next attempt; raises the error where there is none."""
        shared = self._shared
        options = self._options
        counters = shared.counters
        if error.throttling:
            counters.throttles += 1
        state = self._state
        if state is None:
            state = self._state = RetryState(
                with_max_attempts(options.retry, shared.max_attempts), options.bucket, deadline=self._deadline
            )
        self._place(error)
        attempt = state.attempt
        decision = state.decide(
            error.cause,
            now=shared.clock(),
            rand=shared.random(),
            retry_after=error.retry_after,
            original_status=error.original_status_code if isinstance(error, ModelError) else None,
            stream_started=stream_started,
        )
        if isinstance(decision, str):
            if decision == "max_attempts" and isinstance(error, ServiceError):
                error.note_max_attempts()
            self._last_error = None
            try:
                raise error
            finally:
                del error
        self._last_error = error
        counters.retries[error.cause] = counters.retries.get(error.cause, 0) + 1
        if options.observers:
            self._emit(RetryScheduled, attempt, error.cause, decision)
        return decision

    # What an EventStream needs

    def stream_error(self, headers: EventHeaders, payload: bytes) -> AiosmrtError:
        """The error for an ``exception`` or ``error`` message of this call's stream."""
        response = stream_failure(headers.message_type or "", headers.exception_type, headers, payload)
        code = response["Error"]["Code"]
        cause: Cause = classify(200, code)
        # As with a read timeout, the model has had its time: another request would only double its load.
        if code == ModelStreamError.__name__ and response.get("ErrorCode") == "ModelInvocationTimeExceeded":
            cause = "model"
        error = class_of(code, in_stream=True)(response, self._plan.operation.name, cause=cause)
        error.request_id = self._request_id
        return self._place(error)

    async def recover(self, error: AiosmrtError, *, stream_started: bool) -> ReplyStream:
        """Make further attempts after a stream failed, where the policy allows; raises ``error`` where not."""
        try:
            stream: ReplyStream = await self._before_deadline(self._reopen(error, stream_started=stream_started))
        finally:
            del error
        return stream

    async def _reopen(self, error: AiosmrtError, *, stream_started: bool) -> Any:
        try:
            while True:
                await self._shared.sleep(self._decide(error, stream_started=stream_started))
                if self._finished:
                    raise error
                try:
                    return await self._attempt()
                except AiosmrtError as another:
                    error = another
        finally:
            del error

    def finish_stream(self, parts: int, payload_bytes: int, *, complete: bool) -> None:
        """Give the call's place back when its stream is over."""
        self._finished = True
        self._limiter.release()
        self._shared.counters.bytes_received += payload_bytes
        if self._options.observers:
            self._emit(StreamEnded, parts, payload_bytes, self._shared.clock() - self._started, complete)

    # Events

    def _observe(self, event: Event) -> None:
        emit(self._options.observers, event)

    def _emit(self, kind: Any, *facts: Any) -> None:
        """Hand out an event that begins with operation, endpoint and invocation id."""
        if self._options.observers:
            self._observe(kind(self._plan.operation.name, self._head.endpoint_name, self._invocation_id, *facts))

    def _emit_attempt(
        self, attempt: int, began: float, status: int | None, error: str | None, headers: dict[str, str] | None
    ) -> None:
        self._emit(
            AttemptEnded,
            attempt,
            self._shared.clock() - began,
            status,
            error,
            None if headers is None else headers.get("x-amzn-requestid"),
            len(self._body),
        )


async def _drain(stream: ReplyStream) -> bytes:
    """The whole body of an error that was the answer to a request for a stream."""
    chunks = []
    try:
        while chunk := await stream.read():
            chunks.append(chunk)
    finally:
        stream.close()
    return b"".join(chunks)
