"""One call, from its checked head to its result: limiter, signature, attempts, back-off.

::

    limiter ──► ┌─► credentials ─► sign ─► transport ─► success ─► result
                └── back-off ◄── decide ◄── failure ──► error

A call takes a place under ``max_concurrency`` before its first attempt and keeps it through back-off, so that a service
that throttles is called by fewer. A plain call gives it back with its result, a stream when it ends. The call's
``deadline`` spans everything up to the result; for a stream, everything up to the response's head.

An error that leaves a call is deleted from the frames that raised it. Its traceback holds those frames, so that they,
the call and its body would otherwise stay until the garbage collector finds them.

What a plain call costs that succeeds at once is what the client costs (benchmarks/overhead.py). `exchange` has that
path in one piece; a `Call` goes on with it after a failure, and makes those with a deadline, observers or a stream. The
two stand in one module, long as it is, because what is changed in one has to be looked at in the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

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
    is_endpoint_not_found,
    is_no_capacity,
    parse_retry_after,
    sdk_request,
)
from aiosmrt.shared import HASH_INLINE_BYTES, Options, Plan, Shared, body_digest, emit, with_max_attempts
from aiosmrt.streams import EventStream, StreamingBody
from aiosmrt.transport import Reply, ReplyStream, Request, header_lines
from aiosmrt.wire.params import MAX_HEADS, Head
from aiosmrt.wire.replies import failure as error_response
from aiosmrt.wire.replies import stream_failure
from aiosmrt.wire.sigv4 import SignedRequest

if TYPE_CHECKING:
    from aiosmrt.wire.eventstream import EventHeaders

__all__ = ["Call", "Prepared", "exchange"]

# What a transport brings: a whole reply for `Call.exchange`, an open one for `Call.open`.
AnyReply: TypeAlias = Reply | ReplyStream


async def exchange(shared: Shared, options: Options, plan: Plan, head: Head, body: bytes | memoryview) -> Any:
    """Make a plain call and give its result dictionary.

    Args:
        shared: the client's.
        options: the client's or view's.
        plan: the operation.
        head: the checked request head.
        body: the request body.
    """
    counters = shared.counters
    if options.deadline is not None or options.observers:
        call = Call(shared, options, plan, head, body)
        reply = await call.exchange()
        sent = call.sent
    else:
        counters.calls += 1
        digest = ""
        if options.sign:
            digest = body_digest(body) if len(body) <= HASH_INLINE_BYTES else await shared.off_loop(body_digest, body)
        limiter = options.limiters.of(head.endpoint_name)
        if not limiter.try_acquire():
            _check_open(shared)
            await limiter.acquire()
        try:
            if not shared.ready_in:
                _check_open(shared)
            credentials = None
            if options.sign:
                credentials = shared.credentials.current() or await shared.credentials.get()
            # By identity, which is faster than by value; the head is kept with it, so that its identity stays its own.
            prepared = options.prepared.get(id(head))
            if prepared is None or prepared.head is not head:
                prepared = _prepare(shared, options, head)
            invocation_id = shared.next_invocation_id()
            sent_at = shared.wall_clock()
            offset = shared.clock_offset
            headers = f"{prepared.first_lines}amz-sdk-invocation-id: {invocation_id}\r\n"
            if credentials is not None:
                headers += shared.signer.sign_lines(credentials, sent_at + offset, prepared.signed, digest)
            sent = 1
            counters.attempts += 1
            counters.bytes_sent += len(body)
            outcome: Reply | AiosmrtError
            sending = shared.transport.exchange(prepared.request(options, headers, body))
            # What waits with many others had better be small.
            del headers
            try:
                outcome = await sending
            except AiosmrtError as error:
                outcome = error
            if isinstance(outcome, Reply) and outcome.status < 300:
                reply = outcome
                options.bucket.on_success()
            else:
                call = Call(shared, options, plan, head, body)
                call.first_attempt_was(invocation_id, digest, limiter, sent_at, offset)
                try:
                    reply = await call.go_on_after(call.refusal(outcome) if isinstance(outcome, Reply) else outcome)
                finally:
                    del outcome
                sent = call.sent
        finally:
            limiter.release()
    counters.bytes_received += len(reply.body)
    result_body: object = StreamingBody(reply.body) if plan.operation.status == 200 else reply.body
    return plan.reader.result(reply.status, reply.headers, result_body, sent)


class Prepared:
    """What all requests of a client or view with the same head have in common.

    Args:
        shared: the client's.
        options: the client's or view's.
        head: the checked request head.
    """

    __slots__ = ("first_lines", "head", "lines", "signed")

    def __init__(self, shared: Shared, options: Options, head: Head) -> None:
        self.head = head
        host = shared.endpoint.host
        self.signed = SignedRequest("POST", host, shared.base_path + head.path, "", head.headers)
        self.lines = header_lines(
            [
                ("Host", host),
                ("Accept-Encoding", "identity"),
                ("User-Agent", options.user_agent + shared.user_agent_app),
                *head.headers,
            ]
        )
        first = sdk_request(1, options.retry.max_attempts or shared.max_attempts)
        self.first_lines = f"{self.lines}amz-sdk-request: {first}\r\n"

    def request(self, options: Options, headers: str, body: bytes | memoryview) -> Request:
        """A request for this head."""
        # Request's own constructor is a function in Python, which takes twice as long.
        return tuple.__new__(
            Request,
            (
                self.signed.path,
                headers,
                body,
                options.connect_timeout,
                options.read_timeout,
                options.retry.retry_stale_connections,
            ),
        )


def _prepare(shared: Shared, options: Options, head: Head) -> Prepared:
    kept = options.prepared
    known = kept.get(id(head))
    if known is not None and known.head is head:
        return known
    prepared = Prepared(shared, options, head)
    if head.lasting:
        if len(kept) >= MAX_HEADS:
            kept.clear()
        kept[id(head)] = prepared
    return prepared


def _check_open(shared: Shared) -> None:
    if not shared.ready_in:
        # those who waited were told when it was closed, nobody will tell this one
        raise ClientStateError("the client was closed during the call")


class Call:
    """A call under way.

    Args:
        shared: the client's.
        options: the client's or view's.
        plan: the operation.
        head: the checked request head.
        body: the request body.
    """

    def __init__(self, shared: Shared, options: Options, plan: Plan, head: Head, body: bytes | memoryview) -> None:
        self._shared = shared
        self._options = options
        self._plan = plan
        self._head = head
        self._body = body
        self._invocation_id = shared.next_invocation_id()
        self._digest = ""
        self._send: Callable[[Request], Awaitable[AnyReply]] = shared.transport.exchange
        self._limiter: Limiter
        self._state: RetryState | None = None
        self._started = 0.0
        self._deadline: float | None = None
        self._last_error: AiosmrtError | None = None
        self._request_id: str | None = None
        # of the last attempt
        self._sent_at = 0.0
        self._signed_offset = 0.0
        # whether the call's stream is over
        self._finished = False
        # requests
        self.sent = 0

    # The kinds of call

    async def exchange(self) -> Reply:
        """Make the call and bring its reply."""
        reply: Reply = await self._observed()
        self._limiter.release()
        return reply

    def first_attempt_was(
        self, invocation_id: str, digest: str, limiter: Limiter, sent_at: float, signed_offset: float
    ) -> None:
        """Take over from the function `exchange`, which keeps the place.

        Args:
            invocation_id: the call's.
            digest: the body's hash.
            limiter: who gave the place.
            sent_at: the wall clock's time of the first attempt.
            signed_offset: what was added to it for the signature.
        """
        self._invocation_id = invocation_id
        self._digest = digest
        self._limiter = limiter
        self._sent_at = sent_at
        self._signed_offset = signed_offset
        self.sent = 1

    async def open(self) -> dict[str, Any]:
        """Make the call and give its result dictionary, with an open stream under ``"Body"``."""
        self._send = self._shared.transport.open
        options = self._options
        reply = await (self._run() if options.deadline is None and not options.observers else self._observed())
        self._request_id = reply.headers.get("x-amzn-requestid")
        stream = EventStream(self, reply)
        return self._plan.reader.result(reply.status, reply.headers, stream, self.sent)

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
            self._emit(CallEnded, self.sent, clock() - self._started, error)

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
        if self._options.sign:
            large = len(body) > HASH_INLINE_BYTES
            self._digest = await shared.off_loop(body_digest, body) if large else body_digest(body)
        limiter = self._limiter = self._options.limiters.of(self._head.endpoint_name)
        if not limiter.try_acquire():
            await self._wait_for_turn()
        try:
            try:
                return await self._attempt()
            except AiosmrtError as error:
                failure = error
            try:
                return await self.go_on_after(failure)
            finally:
                del failure
        except BaseException:
            limiter.release()
            raise

    async def go_on_after(self, error: AiosmrtError, *, stream_started: bool = False) -> Any:
        """Make further attempts until one succeeds; raises the error where there are no more."""
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

    async def _wait_for_turn(self) -> None:
        _check_open(self._shared)
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
        _check_open(shared)
        credentials = None
        if options.sign:
            credentials = shared.credentials.current() or await shared.credentials.get()
        attempt = 1 if self._state is None else self._state.attempt
        request = self._request(credentials, attempt)
        self.sent += 1
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
            if not isinstance(reply, Reply):
                reply = Reply(reply.status, reply.headers, await _drain(reply))
        except BaseException as error:
            if observed:
                self._emit_attempt(attempt, began, None, type(error).__name__, None)
            raise
        refusal = self.refusal(reply)
        if observed:
            self._emit_attempt(attempt, began, reply.status, refusal.code, reply.headers)
        try:
            raise refusal
        finally:
            del refusal

    def _request(self, credentials: Any, attempt: int) -> Request:
        shared = self._shared
        options = self._options
        prepared = _prepare(shared, options, self._head)
        self._sent_at = now = shared.wall_clock()
        self._signed_offset = shared.clock_offset
        now += self._signed_offset
        if attempt == 1 and self._deadline is None:
            headers = prepared.first_lines
        else:
            expires_at = None if self._deadline is None else now + self._deadline - shared.clock()
            max_attempts = options.retry.max_attempts or shared.max_attempts
            headers = f"{prepared.lines}amz-sdk-request: {sdk_request(attempt, max_attempts, expires_at)}\r\n"
        headers += f"amz-sdk-invocation-id: {self._invocation_id}\r\n"
        if credentials is not None:
            headers += shared.signer.sign_lines(credentials, now, prepared.signed, self._digest)
        return prepared.request(options, headers, self._body)

    # Failures

    def refusal(self, reply: Reply) -> ServiceError:
        """The error that a reply reports; a clock found wrong is corrected on the way."""
        shared = self._shared
        status, headers, body = reply
        shared.counters.bytes_received += len(body)
        response = error_response(status, headers, body, self.sent)
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
        error.attempts = self.sent
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
            stream: ReplyStream = await self._before_deadline(self.go_on_after(error, stream_started=stream_started))
        finally:
            del error
        return stream

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
