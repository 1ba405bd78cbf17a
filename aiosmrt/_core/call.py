"""One call, from its checked parameters to its result.

::

    Call.run                      deadline, observers
      Call._make_ready            configuration, body                      aiosmrt._core.client_core, body
      Call._attempts              credentials, signature, send             aiosmrt._transport
        Call._admitted            a slot, or a wait at the target          aiosmrt._core.admission
        Call._refusal             reply -> typed error                     aiosmrt._core.outcome
        Call._wait_after          again after d seconds, or the error      aiosmrt._policy.retry
    Call.result                   reply -> result dictionary               aiosmrt._wire.replies

A call takes a slot of its target before its first attempt. A plain call releases it with its result, a stream when it
ends. A call that fails keeps it through back-off, so that no other call takes it to be refused as well. It returns the
slot at once if its target has fewer slots now, or is ill, and goes before newcomers when it takes one again.
The call's ``deadline`` spans everything up to the result; for a stream, everything up to the response's head.

An error that leaves a call is deleted from the frames that raised it. Its traceback holds those frames, so that they,
the call and its body would otherwise stay until the garbage collector finds them. Neither headers nor bodies stand in a
local variable where an error passes, because error trackers report locals.

What a plain call costs that succeeds at once is what the client costs (benchmarks/overhead.py), so `_attempts` has the
steps of that in one coroutine, and everything else out of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from logging import DEBUG
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from aiosmrt._core.admission import Admission
from aiosmrt._core.body import HASH_INLINE_BYTES, body_bytes, body_digest
from aiosmrt._core.configure import trace_line
from aiosmrt._core.deadline import OverdueError, within
from aiosmrt._core.log import KNOWN_LEVELS, LOGGER, log_event, log_failure, logs_debug
from aiosmrt._core.observe import emit, report, with_observers_headers
from aiosmrt._core.outcome import refusal, stream_error
from aiosmrt._core.response_bodies import EventStream, StreamingBody
from aiosmrt._core.template import RequestTemplate, template_of
from aiosmrt._policy.clockskew import correct_offset
from aiosmrt._policy.retry import RetryState, StopReason, sdk_request
from aiosmrt._policy.target_health import Illness, is_sign_of_life
from aiosmrt._transport.base import Reply, ReplyStream, Request
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    DeadlineExceededError,
    ModelError,
    NoCapacityError,
    ServiceError,
    TooManyWaitingError,
    TransportError,
    Waited,
    fresh_copy,
)
from aiosmrt.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallStarted,
    CapacityWaited,
    ClockSkewCorrected,
    FirstPart,
    LimiterWaited,
    LimitMoved,
    OutageOutcome,
    OutageWaited,
    RetryScheduled,
    StreamEnded,
    WaitOutcome,
)

if TYPE_CHECKING:
    from aiosmrt._core.body import DeferredBody
    from aiosmrt._core.client_core import ClientCore
    from aiosmrt._core.template import OperationCodec
    from aiosmrt._core.view import View
    from aiosmrt._policy.send_rate import SendRate
    from aiosmrt._wire.eventstream import EventHeaders
    from aiosmrt._wire.params import Head
    from aiosmrt.types import Body

__all__ = ["NO_WAITS", "Call", "deadline_exceeded"]

T = TypeVar("T")

# A call that was throttled this often did not just have bad luck.
_NO_ACCIDENT: Final = 6

# A call that failed more often than this may be the reason itself.
_REPEATED_AFTER: Final = 2

# Failures of which the next call might die as well, if it took the slot at once.
_KEEPS_SLOT: Final = frozenset({"throttling", "transient", "connection", "truncated", "clock_skew"})

# What a client's statistics count as waiting, rather than as work.
_COUNTED_WAITS: Final = frozenset({"slot", "probe", "capacity", "back_off", "rate"})

# The phases of a call that waits at its target.
_IN_LINE: Final = frozenset({"slot", "probe", "capacity"})

NO_WAITS: Final = Waited()
"""Of a call that waited for nothing but the answers to its requests."""

# What a transport returns: a whole reply for a plain call, an open one for a stream.
AnyReply: TypeAlias = Reply | ReplyStream


def deadline_exceeded(deadline: float | None, waited: Waited) -> AiosmrtError:
    """The error of a call that is not done at its deadline.

    Args:
        deadline: the call's, seconds.
        waited: what it has waited for.
    """
    error = DeadlineExceededError(f"The call did not finish within its deadline of {deadline} s: it waited {waited}")
    error.waited = waited
    return error


class _History:
    """What a call remembers if it waits, fails, or streams.

    Attributes:
        state: what decides about retries, from the first failure on.
        refusals: requests that were throttled.
        last_error: the last failure, for the error at the deadline.
        waits: what was waited for, in seconds by reason.
        capacity_since: since when it waits for capacity. None while it does not.
        capacity_left: seconds left for such waits. None before the first.
        outage_since: since when it waits for its target to recover, itself refused or not.
        finished: whether the call's stream is over.
        pausing: a stream's back-off, while that lasts.
        stream_error: the class of the stream's error.
    """

    state: RetryState | None = None
    refusals = 0
    last_error: AiosmrtError | None = None
    waits: dict[str, float] | None = None
    capacity_since: float | None = None
    capacity_left: float | None = None
    outage_since: float | None = None
    finished = False
    pausing: asyncio.Timeout | None = None
    stream_error: str | None = None


class _NoHistory(_History):
    """That of a call to which nothing has happened yet. Calls share it, and none may write to it."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: write to the call's own history")


# Many calls wait at the same time: the less memory each needs, the more of it stays in the processor's cache.
_NO_HISTORY: Final[_History] = _NoHistory()


class Call:
    """A call under way.

    Args:
        core: the client's core.
        view: the client's or view's settings.
        codec: the operation.
        head: the checked request head.
        body: the request body as the caller gave it. If None, it is empty.
        began: when the call began, by the core's clock. Defaults to when it runs.
        before: what it has waited for since then, as a member of `Waited`.
    """

    # whether it goes to the HTTP/2 endpoint
    _over_http2 = False

    __slots__ = (
        "_admission",
        "_body",
        "_codec",
        "_core",
        "_deadline",
        "_digest",
        "_head",
        "_history",
        "_holds_slot",
        "_invocation_id",
        "_is_outstanding",
        "_observers",
        "_phase",
        "_phase_began",
        "_probes",
        "_ready",
        "_request_id",
        "_sent_among",
        "_sent_at",
        "_signed_offset",
        "_started",
        "_view",
        "sent",
    )

    # From the first attempt on: its target's admission, and of the last attempt its begin on both clocks, the offset
    # that was signed with, and how many requests were outstanding.
    _admission: Admission
    _phase_began: float
    _sent_at: float
    _signed_offset: float
    _sent_among: int

    def __init__(
        self,
        core: ClientCore,
        view: View,
        codec: OperationCodec,
        head: Head,
        body: Body | DeferredBody | None,
        began: float | None = None,
        before: str = "body",
    ) -> None:
        self._core = core
        self._view = view
        self._codec = codec
        self._head = head
        self._body: Any = body
        self._invocation_id = next(core.invocation_ids)
        # The first condition saves a function call while nothing is logged.
        self._observers = view.observers
        if KNOWN_LEVELS.get(DEBUG, True) and logs_debug():
            self._observers = (*view.observers, log_event)
        self._deadline: float | None = None
        # when it began, if there is a deadline or an observer, and of a stream
        self._started = began
        # the body's hash, as soon as it is known
        self._digest = ""
        self._history = _NO_HISTORY
        # of the response under way, if it streams
        self._request_id: str | None = None
        # whether configuration and body are there
        self._ready = False
        self._holds_slot = False
        # whether a request is with the service, or a stream not over
        self._is_outstanding = False
        # whether its next request, or the one under way, is the probe of a target that is ill
        self._probes = False
        # requests
        self.sent = 0
        # what is waited for now
        self._phase = ""
        if began is not None:
            self._account(before, core.clock() - began)

    # The call as a whole

    def run(self) -> Coroutine[Any, Any, Any]:
        """Make the call, and return the reply of the attempt that succeeded."""
        view = self._view
        if self._codec.streams and self._started is None:
            self._started = self._core.clock()
        return self._attempts(None) if view.deadline is None and not self._observers else self._observed()

    def result(self, reply: Any) -> Any:
        """The result dictionary for a reply, with an open stream under ``"Body"`` where the operation streams."""
        codec = self._codec
        body: Any
        if codec.streams:
            body = EventStream(self, reply, plain=codec.openai)
        else:
            body = reply.body
            if codec.has_payload:
                body = StreamingBody(body)
        return codec.reader.result(reply.status, reply.headers, body, self.sent)

    async def presigned_url(self, method: str, expires_in: int) -> str:
        """A URL with which the call can be made without credentials; nothing is sent.

        Args:
            method: the HTTP method.
            expires_in: seconds for which it is valid.
        """
        core, deadline = self._core, self._view.deadline
        if deadline is not None:
            self._deadline = core.clock() + deadline
        try:
            return await self._before_deadline(self._presigned(method, expires_in))
        except AiosmrtError as error:
            self._name_call(error)
            raise

    async def _presigned(self, method: str, expires_in: int) -> str:
        core = self._core
        await self._make_ready()
        path = core.base_path + self._head.path
        query = core.signer.presign(
            # Not a local variable, which error trackers report.
            await self._waiting("credentials", core.credentials.get()),
            core.wall_clock() + core.clock_offset,
            SignedRequest(method, core.endpoint.host, path, "", self._head.headers),
            await self._waiting("body", core.off_loop(body_digest, self._body)),
            expires_in=expires_in,
        )
        return f"{core.configuration().origin}{path}?{query}"

    @property
    def waited(self) -> Waited:
        """Seconds for which it has waited so far, by what for."""
        if self._history.waits is None and not self._phase:
            return NO_WAITS
        waits = {} if self._history.waits is None else dict(self._history.waits)
        if self._phase:
            waits[self._phase] = waits.get(self._phase, 0.0) + self._core.clock() - self._phase_began
        return Waited(**waits)

    def _own_history(self) -> _History:
        """Its history, to write to."""
        if self._history is _NO_HISTORY:
            self._history = _History()
        return self._history

    async def _observed(self) -> Any:
        """`_attempts` within the deadline, between a `CallStarted` and a `CallEnded`."""
        core, view = self._core, self._view
        started = core.clock() if self._started is None else self._started
        self._started = started
        if view.deadline is not None:
            self._deadline = started + view.deadline
        try:
            reply = await self._before_deadline(self._announced())
        except BaseException as raised:
            self._name_call(raised)
            if self._ready:
                self._emit(CallEnded, self.sent, core.clock() - started, type(raised).__name__)
            raise
        try:
            self._emit(CallEnded, self.sent, core.clock() - started, None)
        except BaseException:
            _close(reply)
            del reply
            self._let_go()
            raise
        return reply

    async def _announced(self) -> Any:
        await self._make_ready()
        if self._observers:
            self._announce()
        return await self._attempts(None)

    async def _before_deadline(self, work: Coroutine[Any, Any, T]) -> T:
        if self._deadline is None:
            return await work
        try:
            return await within(self._deadline - self._core.clock(), work)
        except OverdueError:
            pass
        finally:
            del work
        raise self._deadline_exceeded() from self._taken_last_error()

    def _check_deadline(self) -> None:
        """Raise if the deadline has passed but its timer has had no turn, because the program keeps the loop busy."""
        if self._deadline is not None and self._core.clock() >= self._deadline:
            raise self._deadline_exceeded() from self._taken_last_error()

    def _taken_last_error(self) -> AiosmrtError | None:
        """The last failure, which the history then forgets."""
        cause, self._own_history().last_error = self._history.last_error, None
        return cause

    def _deadline_exceeded(self) -> AiosmrtError:
        return self.place(deadline_exceeded(self._view.deadline, self.waited))

    async def _make_ready(self) -> None:
        """Have the client's configuration, and a body that does not change any more."""
        core = self._core
        if not core.is_ready():
            await self._waiting("preparation", core.prepare())
        self._body = await self._waiting("body", body_bytes(self._body, core.read_file))
        self._codec.heads.check_body_size(len(self._body))
        self._ready = True

    async def _waiting(self, reason: str, work: Awaitable[T]) -> T:
        """The result of some work, whose time is counted as a wait for that reason."""
        core = self._core
        self._phase = reason
        self._phase_began = began = core.clock()
        try:
            return await work
        finally:
            # An error's frames hold this one, and the work may hold the body.
            del work
            self._phase = ""
            self._account(reason, core.clock() - began)

    # From a slot to a reply

    async def _attempts(self, failure: AiosmrtError | None, *, stream_started: bool = False) -> Any:
        """Make attempts until one succeeds; raise the error of the last one.

        Args:
            failure: why a stream failed that was under way; None before the first attempt.
            stream_started: whether a part of that stream was returned.
        """
        core, view, codec = self._core, self._view, self._codec
        counters = core.counters
        try:
            if not self._ready:
                # The last two are core.is_ready(), without another function call.
                if (
                    type(self._body) is bytes
                    and codec.has_payload
                    and core.ready_in == get_ident()
                    and core.loop.is_running()
                ):
                    self._ready = True
                else:
                    await self._make_ready()
            size = len(self._body)
            if failure is None:
                counters.calls += 1
                if view.sign and not (self._digest or codec.openai):
                    if size > HASH_INLINE_BYTES:
                        self._digest = await self._waiting("body", core.off_loop(body_digest, self._body))
                    else:
                        # Not body_digest, which would be one function call more in each call.
                        self._digest = hashlib.sha256(self._body).hexdigest()
            elif stream_started:
                counters.count_failure(failure)
            else:
                self._report_failure(failure)
            head = self._head
            template = view.templates.get(id(head))
            if template is None or template.head is not head:
                template = template_of(core, view, head, over_http2=self._over_http2)
            del head
            admission = view.admissions.by_target.get(template.target)
            if admission is None:
                admission = view.admissions.of(template.target)
            self._admission = admission
            send = self._send_streaming if codec.streams else core.transport.send
            while True:
                if failure is not None:
                    await self._wait_after(failure, stream_started=stream_started)
                if not self._holds_slot:
                    if failure is not None or not admission.try_acquire():
                        await self._admitted(failure)
                    self._holds_slot = True
                if not view.is_patient and view.quota.send_rate is not None:
                    await self._wait_for_rate(view.quota.send_rate)
                now = core.wall_clock()
                credentials = None
                if view.sign and (credentials := core.credentials.current(now)) is None:
                    credentials = await self._waiting("credentials", core.credentials.get())
                    now = core.wall_clock()
                if failure is not None and self._history.finished:
                    raise failure  # noqa: TRY301 (it has ended the stream, which was closed since)
                if self._deadline is not None:
                    self._check_deadline()
                self.sent = attempt = self.sent + 1
                self._sent_at = now
                self._signed_offset = offset = core.clock_offset
                now += offset
                if (
                    attempt == 1
                    and credentials is not None
                    and self._deadline is None
                    and not (codec.openai or core.passes_trace)
                ):
                    headers = (
                        f"{template.first_lines}amz-sdk-invocation-id: {self._invocation_id}\r\n"
                        f"{core.signer.sign_lines(credentials, now, template.signed, self._digest)}"
                    )
                else:
                    headers = self._headers(template, credentials, now)
                counters.attempts += 1
                counters.bytes_sent += size
                self._is_outstanding = True
                admission.outstanding = self._sent_among = admission.outstanding + 1
                self._phase = "attempt"
                self._phase_began = core.clock()
                if self._probes:
                    admission.probe_sent(self)
                sending = send(template.request(headers, self._body, self._renew_headers))
                # Error reports show the locals of frames.
                del headers, credentials
                try:
                    reply = await (self._watched(sending) if self._observers else sending)
                    if reply.status < 300:
                        self._phase = ""
                        core.reached = True
                        if failure is not None or not (admission.state.steady and view.is_patient):
                            try:
                                self._succeeded()
                            except BaseException:
                                # An observer's.
                                _close(reply)
                                del reply
                                raise
                        if not codec.streams:
                            counters.bytes_received += len(reply.body)  # type: ignore[union-attr]
                            admission.outstanding -= 1
                            self._is_outstanding = self._holds_slot = False
                            admission.release(self)
                        else:
                            self._request_id = reply.headers.get("x-amzn-requestid")
                        return reply
                    failure = self._refusal(reply)
                    del reply
                except AiosmrtError as error:
                    failure = error
                self._report_failure(failure)
        except BaseException as raised:
            headers, credentials = "", None
            self._let_go()
            self._name_call(raised)
            raise
        finally:
            del failure

    def _headers(self, template: RequestTemplate, credentials: Credentials | None, now: float) -> str:
        """The headers of the request under way.

        Args:
            template: the request's.
            credentials: what signs it; None if nothing does.
            now: the service's time in seconds since 1970.
        """
        core = self._core
        expires_at = None if self._deadline is None else now + self._deadline - core.clock()
        sdk = sdk_request(self.sent, self._view.max_attempts, expires_at)
        lines = f"{template.lines}amz-sdk-request: {sdk}\r\namz-sdk-invocation-id: {self._invocation_id}\r\n"
        if core.passes_trace:
            lines += trace_line(template.head.headers)
        if credentials is None:
            return lines
        if self._codec.openai:
            return lines + core.bearer_line(credentials, now)
        return lines + core.signer.sign_lines(credentials, now, template.signed, self._digest)

    @property
    def _send_streaming(self) -> Callable[[Request], Awaitable[AnyReply]]:
        """What sends a request whose response is a stream."""
        return self._core.transport.send_streaming

    async def _renew_headers(self) -> str:
        """The headers of the request under way, signed again; see `aiosmrt._transport.base.Request`."""
        return (await self._signed_headers())[0]

    async def _signed_headers(self) -> tuple[str, Credentials | None]:
        """The headers of the request under way, signed now, and the credentials that signed them."""
        core, view = self._core, self._view
        template = template_of(core, view, self._head, over_http2=self._over_http2)
        credentials = None
        if view.sign:
            credentials = core.credentials.current() or await core.credentials.get()
        self._sent_at = now = core.wall_clock()
        self._signed_offset = core.clock_offset
        now += self._signed_offset
        return self._headers(template, credentials, now), credentials

    async def _watched(self, sending: Awaitable[AnyReply]) -> AnyReply:
        """Await a request's reply, and tell observers of the attempt."""
        attempt, size = self.sent, len(self._body)
        began = self._core.clock()
        try:
            self._emit(AttemptStarted, attempt, size)
        except BaseException:
            if isinstance(sending, Coroutine):
                sending.close()
            raise
        status: int | None = None
        error: str | None = None
        request_id: str | None = None
        refused: ServiceError | None = None
        try:
            reply = await sending
            if reply.status >= 300:
                refused = self._refusal(reply)
                error = refused.code
                status, request_id = reply.status, reply.headers.get("x-amzn-requestid")
                del reply
                raise refused  # noqa: TRY301 (the attempt is over here)
        except BaseException as raised:
            if raised is not refused:
                error = type(raised).__name__
            self._emit(AttemptEnded, attempt, self._core.clock() - began, status, error, request_id, size)
            raise
        finally:
            del refused
        status, request_id = reply.status, reply.headers.get("x-amzn-requestid")
        try:
            self._emit(AttemptEnded, attempt, self._core.clock() - began, status, None, request_id, size)
        except BaseException:
            _close(reply)
            del reply
            raise
        return reply

    # Slots, and targets that are ill

    async def _admitted(self, failure: AiosmrtError | None) -> None:
        """Have a slot.

        Args:
            failure: why the last attempt failed; None before the first.

        Raises:
            AiosmrtError: the last failure, of this call or of its target, when its time for waiting is up.
            TooManyWaitingError: ``max_waiting`` calls wait already.
        """
        core, admission = self._core, self._admission
        _check_open(core)
        front, self._probes = self._probes, False
        began = core.clock()
        waits = admission.must_wait(self)
        if waits:
            self._join_line(began, failure, probed=front)
        ill_before = admission.seconds_ill(began)
        outcome: OutageOutcome = "abandoned"
        try:
            granted = await admission.acquire(self, returning=failure is not None, front=front)
            self._holds_slot = granted
            self._probes = granted and admission.is_prober(self)
            outcome = "probe" if self._probes else "recovered" if granted else "timeout"
        except asyncio.CancelledError:
            if self._deadline is not None and self._history.last_error is None and admission.failure is not None:
                self._own_history().last_error = self._failure_of_target()
            raise
        finally:
            self._phase = ""
            if waits:
                now = core.clock()
                ill = admission.seconds_ill(now)
                outage = ill["outage"] - ill_before["outage"]
                capacity = ill["capacity"] - ill_before["capacity"]
                seconds = now - began
                self._account("slot", slot := max(0.0, seconds - outage - capacity))
                self._account("probe", outage)
                self._account("capacity", capacity)
                if outage:
                    self._emit(OutageWaited, outage, outcome)
                    self._log_wait("its target to recover", outage, outcome)
                if outcome in ("probe", "recovered") and (slot or not (outage or capacity)):
                    self._emit(LimiterWaited, slot)
        if granted:
            if not self._probes:
                if self._history.outage_since is not None:
                    self._history.outage_since = None
                self._end_capacity_wait("capacity")
            elif (illness := admission.illness) is not None:
                # It may have waited for a while behind another prober.
                now = core.clock()
                since = now - (admission.seconds_ill(now)[illness] - ill_before[illness])
                if illness == "outage" and self._history.outage_since is None:
                    self._own_history().outage_since = since
                elif illness == "capacity" and self._history.capacity_since is None:
                    self._own_history().capacity_since = since
            if isinstance(failure, NoCapacityError):
                self._count_retry("no_capacity")
            return
        if failure is None and admission.failure is None and not self._history.finished:
            # The target has recovered since the call's time was up, so there is nothing to raise.
            await self._admitted(None)
            return
        self._end_capacity_wait("timeout")
        try:
            self._time_is_up(failure)
        finally:
            del failure

    def _join_line(self, now: float, failure: AiosmrtError | None, *, probed: bool) -> None:
        """Begin to wait, unless too many do.

        Raises:
            AiosmrtError: the failure of a call that was sent before.
            TooManyWaitingError: of a call that was not.
        """
        view, admission = self._view, self._admission
        # A prober has kept its place in line.
        waiting = admission.waiting if probed else admission.waiting_or_probing
        if view.max_waiting is not None and waiting >= view.max_waiting:
            if failure is not None:
                try:
                    raise self._ended(failure)
                finally:
                    del failure
            raise self.place(TooManyWaitingError(view.max_waiting))
        if admission.illness == "capacity" and view.wait_for_capacity is not None:
            history = self._own_history()
            if history.capacity_since is None:
                history.capacity_since = now
        self._phase = {None: "slot", "outage": "probe", "capacity": "capacity"}[admission.illness]
        self._phase_began = now

    def _time_is_up(self, failure: AiosmrtError | None) -> None:
        """Raise what kept a call waiting until its time was up."""
        try:
            if self._history.finished and failure is not None:
                raise failure
            if failure is None:
                failure = self._failure_of_target()
            raise self._ended(failure, "patience")
        finally:
            del failure

    def _failure_of_target(self) -> AiosmrtError:
        """The error for a call that sent nothing: the one that its target has answered others."""
        known = self._admission.failure
        if known is None:
            raise RuntimeError("a target that is ill has failed")
        error = fresh_copy(known)
        if isinstance(error, ServiceError):
            metadata = error.response.setdefault("ResponseMetadata", {})
            metadata["RetryAttempts"] = max(0, self.sent - 1)
        return self.place(error)

    def waits_out(self, illness: Illness) -> bool:
        """Whether it waits while its target is ill with this; see `aiosmrt._core.admission.Caller`."""
        view = self._view
        if illness == "capacity":
            return view.wait_for_capacity is not None
        return view.is_patient and view.patience_seconds != 0

    def waits_until(self, illness: Illness, since: float) -> float | None:
        """When it stops waiting; see `aiosmrt._core.admission.Caller`."""
        if illness == "capacity":
            history = self._history
            began = since if history.capacity_since is None else history.capacity_since
            left = self._view.wait_for_capacity if history.capacity_left is None else history.capacity_left
            return None if left is None else began + left
        patience = self._patience()
        if patience is None:
            return None
        failed_at = None if self._history.state is None else self._history.state.failed_at
        return patience + min(bound for bound in (since, failed_at, self._history.outage_since) if bound is not None)

    def _patience(self) -> float | None:
        """Seconds for which it is repeated after its first failure; if None, until its deadline."""
        view = self._view
        if not view.is_patient:
            return None
        if self._core.reached or view.patience_until_reached is None:
            return view.patience_seconds
        return (
            view.patience_until_reached
            if view.patience_seconds is None
            else min(view.patience_until_reached, view.patience_seconds)
        )

    def _end_capacity_wait(self, outcome: WaitOutcome) -> None:
        history = self._history
        since = history.capacity_since
        if since is None:
            return
        history.capacity_since = None
        duration = self._core.clock() - since
        left = self._view.wait_for_capacity if history.capacity_left is None else history.capacity_left
        history.capacity_left = None if left is None else left - duration
        if self._core.closed:
            outcome = "abandoned"
        self._emit(CapacityWaited, duration, outcome)
        self._log_wait("capacity", duration, outcome)

    async def _wait_for_rate(self, send_rate: SendRate) -> None:
        """Wait as long as AWS's mode ``adaptive`` has it."""
        core = self._core
        while (seconds := send_rate.wait(core.clock())) > 0:
            operation, endpoint = self._codec.operation.name, self._head.endpoint_name
            LOGGER.debug("%s %s: waits %.3f s under retry mode adaptive", operation, endpoint, seconds)
            await self._pause("rate", seconds)
            _check_open(core)

    # Outcomes

    def _succeeded(self) -> None:
        """Report a success that changes something at its target."""
        view = self._view
        if view.sign:
            self._core.confirmed_clock_offset = self._signed_offset
        if self._history.last_error is not None:
            self._history.last_error = None
        before = self._admission.state.limit
        if view.is_patient:
            self._admission.on_success(self, self._phase_began, self._sent_among)
        else:
            self._succeeded_by_mode()
        if view.observers:
            self._limit_was(before)
        self._probes = False
        self._end_capacity_wait("capacity")

    def _succeeded_by_mode(self) -> None:
        quota = self._view.quota
        if self._history.state is not None:
            self._history.state.on_success()
        elif self._view.rules.mode != "legacy":
            quota.bucket.on_success()
        if quota.send_rate is not None:
            quota.send_rate.on_response(self._core.clock(), throttled=False)
        if not self._admission.state.steady:
            self._admission.on_success(self, self._phase_began, 0)

    def _limit_was(self, before: int) -> None:
        """Tell observers of an adaptive limit that an outcome has moved."""
        state = self._admission.state
        if state.limit != before and state.reason is not None:
            self._emit(LimitMoved, state.limit, state.reason, state.round_trip)

    def _report_failure(self, error: AiosmrtError) -> None:
        """Report a failed attempt, and return the slot where the call does not keep it through back-off."""
        core, view = self._core, self._view
        now = core.clock()
        if self._phase:
            self._account(self._phase, now - self._phase_began)
            self._phase = ""
        core.counters.count_failure(error)
        if error.throttling:
            core.counters.throttles += 1
            self._own_history().refusals += 1
        self.place(error)
        self._request_id = None
        if not self._holds_slot:
            return  # it failed before it was sent: no credentials, a closed client
        # not if it was let in since it was sent
        self._probes = self._probes and self._admission.is_prober(self)
        waits_for_capacity = isinstance(error, NoCapacityError) and view.wait_for_capacity is not None
        if waits_for_capacity and self._history.capacity_since is None:
            self._own_history().capacity_since = now
        keeps_slot = not (view.is_patient or waits_for_capacity)
        before = self._admission.state.limit
        if not keeps_slot or self._probes:
            may_keep = self._admission.on_failure(
                self,
                self._phase_began,
                self._sent_among,
                error,
                waits_for_capacity=waits_for_capacity,
                strict=self._history.refusals >= _NO_ACCIDENT,
                repeated=self.sent > _REPEATED_AFTER,
            )
            keeps_slot = keeps_slot or (may_keep and error.cause in _KEEPS_SLOT)
        if view.observers:
            self._limit_was(before)
        self._no_longer_outstanding()
        if not view.is_patient and view.quota.send_rate is not None:
            view.quota.send_rate.on_response(now, throttled=error.throttling)
        if not waits_for_capacity and is_sign_of_life(error.cause, "capacity"):
            self._end_capacity_wait("capacity")
        if not keeps_slot:
            self._return_slot()

    def _refusal(self, reply: Any) -> ServiceError:
        """The error that a reply reports; a clock found wrong is corrected on the way."""
        core = self._core
        status, headers, body = reply.status, reply.headers, reply.body
        core.reached = True
        core.counters.bytes_received += len(body)
        operation = self._codec.operation.name
        openai = self._codec.openai
        error = refusal(status, headers, body, operation, self.sent, openai=openai)
        if not self._view.sign:
            return error
        correction = correct_offset(
            error.code,
            self._signed_offset,
            self._sent_at,
            core.wall_clock(),
            # A cache's answer has the date of another call's.
            None if "age" in headers else headers.get("date"),
            confirmed_offset=core.confirmed_clock_offset,
        )
        if correction is None:
            return error
        if correction.offset is not None and correction.offset != core.clock_offset:
            core.clock_offset = correction.offset
            report(self._view.observers, ClockSkewCorrected(correction.offset))
        return refusal(status, headers, body, operation, self.sent, skew=correction.skew, openai=openai)

    async def _wait_after(self, error: AiosmrtError, *, stream_started: bool) -> None:
        """Wait until the next attempt may be made; raise the error if it was the last one."""
        core, view, admission = self._core, self._view, self._admission
        if isinstance(error, NoCapacityError) and self._history.capacity_since is not None:
            if self._deadline is not None:
                self._own_history().last_error = error
            self._log_failure(error, "waits for capacity")
            return
        state = self._history.state
        if state is None:
            state = self._own_history().state = RetryState(
                view.rules,
                max_attempts=view.max_attempts,
                bucket=None if view.rules.mode in (None, "legacy") else view.quota.bucket,
                deadline=self._deadline,
            )
            # A call that waited before it was sent has less patience left.
            state.failed_at = self._history.outage_since
        illness = admission.illness
        if illness is None:
            # It needs a slot and all are taken, so it waits in line.
            at_target = error.throttling and not self._holds_slot and error.retry_after is None and admission.is_full
        else:
            at_target = view.is_patient and self.waits_out(illness)
        # A wait for capacity has its own time limit.
        state.patience = None if at_target and illness == "capacity" else self._patience()
        decision = state.decide(
            error.cause,
            now=core.clock(),
            rand=core.random(),
            retry_after=error.retry_after,
            original_status=error.original_status_code if isinstance(error, ModelError) else None,
            stream_started=stream_started,
            at_target=at_target,
        )
        if isinstance(decision, str):
            try:
                if decision == "deadline" and self._deadline is not None and core.clock() >= self._deadline:
                    # The failure was read before the deadline's timer had its turn.
                    self._own_history().last_error = None
                    raise self._deadline_exceeded() from error
                raise self._ended(error, decision)
            finally:
                del error
        self._own_history().last_error = error
        self._count_retry(error.cause)
        self._emit(RetryScheduled, self.sent, error.cause, decision)
        self._log_failure(error, "waits for its target" if at_target else f"retry in {decision:.3f} s")
        if not at_target:
            await self._pause("back_off", decision)
            _check_open(core)
            if self._history.finished:
                try:
                    raise error
                finally:
                    del error
            if self._holds_slot and view.is_patient and admission.is_overdrawn:
                self._return_slot()

    async def _pause(self, reason: str, seconds: float) -> None:
        core = self._core
        self._phase = reason
        self._phase_began = began = core.clock()
        try:
            if self._codec.streams:
                await self._until_closed(core.sleep(seconds))
            else:
                await core.sleep(seconds)
        except BaseException:
            core.counters.count_wait(reason, core.clock() - began)
            raise
        self._account(reason, core.clock() - began)
        self._phase = ""

    async def _until_closed(self, sleeping: Awaitable[None]) -> None:
        """Sleep, but not beyond the moment at which another task closes the stream."""
        history = self._own_history()
        history.pausing = pausing = asyncio.timeout(None)
        try:
            async with pausing:
                await sleeping
        except TimeoutError:
            if not history.finished:
                raise
        finally:
            history.pausing = None

    def _ended(self, error: AiosmrtError, reason: StopReason | None = None) -> AiosmrtError:
        """An error that no attempt follows, with what the call has waited for; to be raised.

        Args:
            error: the error.
            reason: why no attempt follows; None where the line is full.
        """
        if self._history.last_error is not None:
            self._history.last_error = None
        error.waited = self.waited
        if reason == "max_attempts" and isinstance(error, ServiceError):
            error.note_max_attempts()
        elif reason == "patience" and error.waited.total_waiting:
            error.note_waited()
        waits = self._history.waits
        if self.sent > 1 or (waits is not None and not _COUNTED_WAITS.isdisjoint(waits)):
            self._log_failure(error, f"gives up; waited {error.waited}")
        return error

    def place(self, error: AiosmrtError) -> AiosmrtError:
        """Attach operation, endpoint, attempt count and request id."""
        if error.request_id is None:
            error.request_id = self._request_id
        error.note_call(self._codec.operation.name, self._head.endpoint_name)
        error.attempts = self.sent
        error.never_reached = not self._core.reached
        if isinstance(error, TransportError):
            error.note_path(self._core.base_path + self._head.path)
        return error

    def _name_call(self, error: BaseException) -> None:
        """Attach operation and endpoint to an error that is not an attempt's, such as that there are no credentials."""
        if isinstance(error, AiosmrtError) and error.operation is None:
            error.note_call(self._codec.operation.name, self._head.endpoint_name)

    def _account(self, reason: str, seconds: float) -> None:
        """Count what was waited for."""
        if seconds:
            waits = self._history.waits
            if waits is None:
                waits = self._own_history().waits = {}
            waits[reason] = waits.get(reason, 0.0) + seconds
            if reason in _COUNTED_WAITS:
                self._core.counters.count_wait(reason, seconds)

    def _count_retry(self, cause: str) -> None:
        retries = self._core.counters.retries
        retries[cause] = retries.get(cause, 0) + 1

    def _no_longer_outstanding(self) -> None:
        if self._is_outstanding:
            self._is_outstanding = False
            self._admission.outstanding -= 1

    def _return_slot(self) -> None:
        if self._holds_slot:
            self._holds_slot = False
            self._admission.release(self)

    def _let_go(self) -> None:
        """Return what this call holds; may be called more than once."""
        self._no_longer_outstanding()
        self._return_slot()
        if self.sent and self._admission.illness is not None:
            self._admission.abandoned()
        # Last, because observers may raise.
        self._end_capacity_wait("abandoned")

    # What an EventStream needs

    def stream_error(self, headers: EventHeaders, payload: bytes) -> AiosmrtError:
        """The error for an ``exception`` or ``error`` message of this call's stream."""
        return self.place(stream_error(headers, payload, self._codec.operation.name))

    async def retry_stream(self, error: AiosmrtError, *, stream_started: bool) -> ReplyStream:
        """Make further attempts after a stream failed, if the policy allows; otherwise raise ``error``."""
        self.place(error)
        try:
            stream: ReplyStream = await self._before_deadline(self._attempts(error, stream_started=stream_started))
        except AiosmrtError as failure:
            self._own_history().stream_error = type(failure).__name__
            raise
        finally:
            del error
        return stream

    def finish_stream(self, parts: int, payload_bytes: int, *, complete: bool) -> None:
        """Return the call's slot when its stream is over."""
        self._own_history().finished = True
        if self._history.pausing is not None:
            self._history.pausing.reschedule(0)
        if self._phase in _IN_LINE:
            self._admission.dismiss(self)
        self._let_go()
        self._core.counters.bytes_received += payload_bytes
        if self._observers:
            self._emit(StreamEnded, parts, payload_bytes, self.elapsed(), complete, self._history.stream_error)

    def elapsed(self) -> float:
        """Seconds since the call of a stream began."""
        return self._core.clock() - cast("float", self._started)

    def first_part(self, seconds: float) -> None:
        """Tell observers that a stream's first part is there.

        Args:
            seconds: since the call began.
        """
        self._emit(FirstPart, seconds)

    # Events

    def _announce(self) -> None:
        """Tell observers that the call begins, and add the headers that they have for it."""
        head, observers = self._head, self._observers
        endpoint = self._core.http2_endpoint() if self._over_http2 else self._core.endpoint
        started = CallStarted(
            self._codec.operation.name,
            head.endpoint_name,
            self._invocation_id,
            endpoint.url + head.path,
            endpoint.signing_region,
            len(self._body),
        )
        emit(observers, started)
        self._head = with_observers_headers(observers, started, head)

    def _log_failure(self, error: AiosmrtError, outcome: str) -> None:
        log_failure(self._codec.operation.name, self._head.endpoint_name, self.sent, error, outcome)

    def _log_wait(self, what_for: str, seconds: float, outcome: str) -> None:
        operation, endpoint = self._codec.operation.name, self._head.endpoint_name
        LOGGER.info("%s %s: waited %.3f s for %s, outcome: %s", operation, endpoint, seconds, what_for, outcome)

    def _emit(self, kind: Any, *facts: Any) -> None:
        """Pass on an event that begins with operation, endpoint and invocation id."""
        if self._observers:
            event = kind(self._codec.operation.name, self._head.endpoint_name, self._invocation_id, *facts)
            emit(self._observers, event)


def _check_open(core: ClientCore) -> None:
    if not core.ready_in:
        # Those that waited were told when it was closed; this one has to find out.
        raise ClientStateError("the client was closed during the call")


def _close(reply: AnyReply) -> None:
    if not isinstance(reply, Reply):
        reply.close()
