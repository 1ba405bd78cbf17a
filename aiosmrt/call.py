"""One call, from its checked head to its result: limiter, signature, attempts, back-off.

::

    limiter ──► ┌─► credentials ─► sign ─► transport ─► success ─► result
                └── back-off ◄── decide ◄── failure ──► error

A call takes a place under ``max_concurrency`` before its first attempt and keeps it through back-off, so that a service
that throttles is called by fewer. A plain call gives it back with its result, a stream when it ends. The call's
``deadline`` spans everything up to the result; for a stream, everything up to the response's head.

A call that waits for capacity gives its place back, and takes one again before it sends. That wait takes minutes, and
places are counted per endpoint: inference components that are scaled to zero share theirs with components that are not,
whose calls would otherwise wait along. The price is that it lines up for its place once more.

An error that leaves a call is deleted from the frames that raised it. Its traceback holds those frames, so that they,
the call and its body would otherwise stay until the garbage collector finds them.

What a plain call costs that succeeds at once is what the client costs (benchmarks/overhead.py). `exchange` has that
path in one piece; a `Call` goes on with it after a failure, and makes those with a deadline, observers or a stream. The
two stand in one module, long as it is, because what is changed in one has to be looked at in the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from aiosmrt.capacitygate import CapacityGate, Visit
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
    CallStarted,
    CapacityWaited,
    ClockSkewCorrected,
    Event,
    LimiterWaited,
    Observer,
    RetryScheduled,
    StreamEnded,
    WaitOutcome,
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
from aiosmrt.policy.scaleout import ends_the_wait
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

# What a call may name besides its endpoint and has a capacity of its own (the operation table has them as members).
_COMPONENT_HEADER = "X-Amzn-SageMaker-Inference-Component"
_VARIANT_HEADER = "X-Amzn-SageMaker-Target-Variant"


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
    # While anything waits for capacity, it takes a `Call` to find out whether this one has to.
    if options.deadline is not None or options.observers or shared.gates:
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
        outcome: Reply | AiosmrtError | None = None
        try:
            if not shared.ready_in:
                _check_open(shared)
            credentials = None
            if options.sign:
                credentials = shared.credentials.current() or await shared.credentials.get()
            invocation_id = shared.next_invocation_id()
            sent_at = shared.wall_clock()
            offset = shared.clock_offset
            # Asked again, because this call may have been in the queue meanwhile.
            if not shared.gates:
                # By identity, which is faster than by value; the head is kept with it, so that its identity stays its
                # own.
                prepared = options.prepared.get(id(head))
                if prepared is None or prepared.head is not head:
                    prepared = _prepare(shared, options, head)
                headers = f"{prepared.first_lines}amz-sdk-invocation-id: {invocation_id}\r\n"
                if credentials is not None:
                    headers += shared.signer.sign_lines(credentials, sent_at + offset, prepared.signed, digest)
                counters.attempts += 1
                counters.bytes_sent += len(body)
                sending = shared.transport.exchange(prepared.request(options, headers, body))
                # What waits with many others had better be small.
                del headers
                try:
                    outcome = await sending
                except AiosmrtError as error:
                    outcome = error
        except BaseException:
            limiter.release()
            raise
        if isinstance(outcome, Reply) and outcome.status < 300:
            limiter.release()
            options.bucket.on_success()
            reply = outcome
            sent = 1
        else:
            call = Call(shared, options, plan, head, body)
            call.take_over(invocation_id, digest, limiter)
            if outcome is not None:
                call.first_attempt_was(sent_at, offset)
            try:
                reply = await call.go_on_after(call.refusal(outcome) if isinstance(outcome, Reply) else outcome)
            finally:
                del outcome
                call.let_go()
            sent = call.sent
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
        self._has_place = False
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
        # its error's class
        self._stream_error: str | None = None
        # its waits for capacity, from the first one on
        self._visit: Visit | None = None
        # requests
        self.sent = 0

    # The kinds of call

    async def exchange(self) -> Reply:
        """Make the call and bring its reply."""
        reply: Reply = await self._observed()
        self.let_go()
        return reply

    def take_over(self, invocation_id: str, digest: str, limiter: Limiter) -> None:
        """Take a call and its place over from the function `exchange`.

        Args:
            invocation_id: the call's.
            digest: the body's hash.
            limiter: who gave the place.
        """
        self._invocation_id = invocation_id
        self._digest = digest
        self._limiter = limiter
        self._has_place = True

    def first_attempt_was(self, sent_at: float, signed_offset: float) -> None:
        """Know of the attempt that the function `exchange` made.

        Args:
            sent_at: the wall clock's time then.
            signed_offset: what was added to it for the signature.
        """
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
        """`_run` within the deadline, between a `CallStarted` and a `CallEnded`."""
        options = self._options
        clock = self._shared.clock
        self._started = clock()
        if options.observers:
            self._begin()
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
        """Take a place and make attempts until one succeeds."""
        shared = self._shared
        shared.counters.calls += 1
        body = self._body
        if self._options.sign:
            large = len(body) > HASH_INLINE_BYTES
            self._digest = await shared.off_loop(body_digest, body) if large else body_digest(body)
        self._limiter = self._options.limiters.of(self._head.endpoint_name)
        self._has_place = self._limiter.try_acquire()
        return await self.go_on_after(None)

    async def go_on_after(self, error: AiosmrtError | None, *, stream_started: bool = False) -> Any:
        """Make attempts until one succeeds, and raise the error where there are no more; keep a place on success only.

        Args:
            error: why the last attempt failed; None before the first.
            stream_started: whether a part of the response stream was handed out.
        """
        shared = self._shared
        reply = None
        try:
            while reply is None:
                if isinstance(error, NoCapacityError) and (visit := self._waits_for_capacity()) is not None:
                    if not await self._wait_after(error, visit):
                        self._last_error = None
                        raise error
                elif error is not None:
                    if self._visit is not None and ends_the_wait(error.cause):
                        self._visit.end()
                    await shared.sleep(self._decide(error, stream_started=stream_started))
                if shared.gates or not self._has_place:
                    await self._take_place()
                if self._finished and error is not None:
                    raise error
                try:
                    reply = await self._attempt()
                except AiosmrtError as another:
                    error = another
            return reply
        finally:
            del error
            if reply is None:
                self.let_go()

    def let_go(self) -> None:
        """Give up what this call holds, a place or its part at a gate; may be called more than once."""
        visit = self._visit
        if visit is not None:
            if visit.gate is not None and self._deadline is not None and self._last_error is None:
                self._last_error = self._no_capacity(visit.gate)
            visit.leave()
        self._give_place_back()

    # Places, and gates before them

    async def _take_place(self) -> None:
        """Have a place, and no closed gate ahead; also return when the call's stream is over.

        Raises:
            NoCapacityError: ``wait_for_capacity`` passed at the gate.
        """
        gates = self._shared.gates
        while not self._finished:
            visit = self._waits_for_capacity() if gates else None
            gate = None if visit is None else visit.gate_ahead()
            if visit is not None and gate is not None:
                self._give_place_back()
                if not await visit.wait(gate) and not self._finished:
                    raise self._no_capacity(gate)
                _check_open(self._shared)
            elif self._has_place:
                return
            else:
                if not self._limiter.try_acquire():
                    await self._wait_for_turn()
                self._has_place = True

    def _give_place_back(self) -> None:
        if self._has_place:
            self._has_place = False
            self._limiter.release()

    def _waits_for_capacity(self) -> Visit | None:
        """This call's waits for capacity; None where it does not wait."""
        if self._visit is None and self._options.wait_for_capacity is not None:
            name, headers = self._head.endpoint_name, dict(self._head.headers)
            self._visit = Visit(
                self._shared,
                (name, headers.get(_COMPONENT_HEADER), headers.get(_VARIANT_HEADER)),
                self._options.wait_for_capacity,
                partial(_say_waited, self._options.observers, self._plan.operation.name, name, self._invocation_id),
            )
        return self._visit

    async def _wait_after(self, error: NoCapacityError, visit: Visit) -> bool:
        """Wait without a place after a refusal for want of capacity; False when the time for it is up."""
        self._place(error)
        if self._deadline is not None:
            self._last_error = error
        gate = visit.refused(error.response, error.retry_after)
        del error
        self._give_place_back()
        if not await visit.wait(gate):
            return False
        _check_open(self._shared)
        retries = self._shared.counters.retries
        retries["no_capacity"] = retries.get("no_capacity", 0) + 1
        return True

    async def _wait_for_turn(self) -> None:
        _check_open(self._shared)
        if not self._options.observers:
            await self._limiter.acquire()
            return
        clock = self._shared.clock
        began = clock()
        await self._limiter.acquire()
        self._emit(LimiterWaited, clock() - began)

    async def _attempt(self) -> Any:
        """Sign and send once; a reply that reports an error is raised as one."""
        shared = self._shared
        options = self._options
        _check_open(shared)
        credentials = None
        if options.sign:
            credentials = shared.credentials.current() or await shared.credentials.get()
        attempt = self.sent + 1
        request = self._request(credentials, attempt)
        self.sent = attempt
        counters = shared.counters
        counters.attempts += 1
        counters.bytes_sent += len(self._body)
        observed = bool(options.observers)
        began = 0.0
        if observed:
            began = shared.clock()
            self._emit(AttemptStarted, attempt, len(self._body))
        try:
            visit = self._visit
            reply = await (self._send(request) if visit is None else visit.answer(self._send(request)))
            if reply.status < 300:
                if self._state is None:
                    options.bucket.on_success()
                else:
                    self._state.on_success()
                self._last_error = None
                if observed:
                    self._emit_attempt(attempt, began, reply.status, None, reply.headers)
                if visit is not None:
                    visit.end()
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

    def _no_capacity(self, gate: CapacityGate) -> AiosmrtError:
        """The error of a call that waited in vain and was not refused itself: what the last prober was told."""
        response = deepcopy(gate.refusal)
        response["ResponseMetadata"]["RetryAttempts"] = max(0, self.sent - 1)
        return self._place(NoCapacityError(response, self._plan.operation.name))

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
            self._emit(RetryScheduled, self.sent, error.cause, decision)
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
        except AiosmrtError as failure:
            self._stream_error = type(failure).__name__
            raise
        finally:
            del error
        return stream

    def finish_stream(self, parts: int, payload_bytes: int, *, complete: bool) -> None:
        """Give the call's place back when its stream is over."""
        self._finished = True
        if self._visit is not None:
            self._visit.leave()
        self._give_place_back()
        self._shared.counters.bytes_received += payload_bytes
        if self._options.observers:
            duration = self._shared.clock() - self._started
            self._emit(StreamEnded, parts, payload_bytes, duration, complete, self._stream_error)

    # Events

    def _begin(self) -> None:
        """Say that the call begins, and take up the headers that observers have for it."""
        endpoint, head, observers = self._shared.endpoint, self._head, self._options.observers
        started = CallStarted(
            self._plan.operation.name,
            head.endpoint_name,
            self._invocation_id,
            endpoint.url + head.path,
            endpoint.signing_region,
            len(self._body),
        )
        emit(observers, started)
        for observer in observers:
            request_headers = getattr(observer, "request_headers", None)
            if request_headers is None:
                continue
            from aiosmrt.wire.headers import extend

            try:
                self._head = extend(self._head, request_headers(started, dict(self._head.headers)))
            except Exception as error:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "an observer's headers were left out", "exception": error}
                )

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


def _say_waited(
    observers: tuple[Observer, ...],
    operation: str,
    endpoint_name: str,
    invocation_id: str,
    duration: float,
    outcome: WaitOutcome,
) -> None:
    # apart from `Call`, which its own method would keep alive
    emit(observers, CapacityWaited(operation, endpoint_name, invocation_id, duration, outcome))


async def _drain(stream: ReplyStream) -> bytes:
    """The whole body of an error that was the answer to a request for a stream."""
    chunks = []
    try:
        while chunk := await stream.read():
            chunks.append(chunk)
    finally:
        stream.close()
    return b"".join(chunks)
