"""Who sends to a target now, and who waits: asyncio's side of `aiosmrt._policy.target_health`.

An `Admission` stands before one target. It counts slots, keeps the line of those that wait, and reports every outcome
to its pure `AdmissionState`, which decides how many slots there are and when a target that is ill is probed.
Invariants, at every suspension point:

1. ``in_use`` counts the slots that are held or granted. It grows when a slot is *granted*, so a newcomer cannot take
   it between a release and the waiter's wake-up.
2. No waiter sleeps while a slot is free for it: every event that could break this (a release, a larger limit, a
   recovery) grants slots at once, in order. Calls that were sent before and failed come first, then newcomers in the
   order of their arrival.
3. While the target is ill and calls wait for it, exactly one of them probes: either its probe is under way, or a timer
   is set for the next one. In an outage they take turns; a prober that leaves without an answer is followed at once.
4. A cancelled waiter leaves the line. If its slot had been granted already (the grant and the cancellation met in one
   turn of the loop), the slot goes to the next one.

Calls that do not wait for a target that is ill (``patience=0``, no ``wait_for_capacity``) form their own line and
need only a slot below the ceiling; their outcomes count like all others.

All state changes are synchronous; the one ``await`` is on the waiter's own future. An admission belongs to one event
loop and needs no lock. Lines are ``OrderedDict``s because a waiter leaves from the middle when it is cancelled: both
that and taking the first are O(1).
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias
from weakref import WeakValueDictionary

from aiosmrt._core.log import LOGGER
from aiosmrt._policy.adaptive import AdaptiveLimit
from aiosmrt._policy.limit import ConcurrencyLimit, Reason, WorkingLimit
from aiosmrt._policy.target_health import AdmissionState, Illness
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    NoCapacityError,
    ParamValidationError,
    TransportError,
    fresh_copy,
)

__all__ = [
    "Admission",
    "Admissions",
    "CallLater",
    "Caller",
    "Clockwork",
    "LimiterStatistics",
    "MaxConcurrency",
    "Timer",
    "target_of",
]

# Up to this many targets, all admissions are kept while no call uses them; beyond it, only those that know of a limit
# or of failures, most recently used first.
_MAX_IDLE = 1024

# as the log names them
_ILLNESSES: Final = {"outage": "outage", "capacity": "lack of capacity"}

# Seconds without an outcome after which what an adaptive limit has learned may be forgotten.
_KNOWN_FOR = 300.0

# A loop's timer may strike this many seconds early, by its clock's resolution.
_EARLY = 1e-6


MaxConcurrency: TypeAlias = int | Literal["adaptive"] | AdaptiveLimit
"""What a client may be given as ``max_concurrency``."""


class Timer(Protocol):
    """What a `CallLater` returns."""

    def cancel(self) -> None:
        """Call nothing any more."""
        ...


CallLater: TypeAlias = Callable[..., Timer]
"""Calls a function with arguments after so many seconds, as ``loop.call_later``."""


class Clockwork(Protocol):
    """Time and randomness, as an admission's client has them."""

    clock: Callable[[], float]
    random: Callable[[], float]
    call_later: CallLater


class Caller(Protocol):
    """What an admission asks of a call that waits."""

    def waits_out(self, illness: Illness) -> bool:
        """Whether it waits while the target is ill with this."""
        ...

    def waits_until(self, illness: Illness, since: float) -> float | None:
        """When it stops waiting for a target that is ill, in seconds of the client's clock; if None, never.

        Args:
            illness: what the target is ill with.
            since: since when the call waits for that.
        """
        ...


class LimiterStatistics(NamedTuple):
    """What holds for one endpoint at one moment, its inference components and variants together.

    Args:
        in_use: slots held, or granted to a waiter that is about to wake.
        waiting: calls that wait for a slot.
        max_concurrency: slots that may be in use now, one target like the other: below the client's ``max_concurrency``
            after throttling. ``in_use`` is above it for a while after it was lowered.
        held_back: calls that wait for a target that is ill.
        illness: what a target is ill with: ``"outage"`` or ``"capacity"``; None while all are healthy.
        reason: why an adaptive limit moved last: ``"start"`` (not yet), ``"growth"``, ``"waiting"`` (calls wait in the
            service's queue), ``"refusal"``, ``"timeout"`` or ``"recovery"``. None where it is fixed. Of several
            targets, the one with the lowest limit.
        round_trip: the seconds of a call that an adaptive limit sees at present; None where it is fixed, and before the
            first success.
    """

    in_use: int
    waiting: int
    max_concurrency: int
    held_back: int = 0
    illness: Illness | None = None
    reason: Reason | None = None
    round_trip: float | None = None


class Waiter:
    """A place in line.

    Args:
        caller: who waits.
        home: the line in which it waits out an illness.
        granted: gets True with a slot, False when the caller's time is up.
        ill_before: for how many seconds the target was ill before the wait began, by illness.
        has_probed: whether the caller was refused as a prober.
    """

    __slots__ = ("caller", "granted", "has_probed", "home", "ill_before", "line", "timer")

    def __init__(
        self,
        caller: Caller,
        home: Line,
        granted: asyncio.Future[bool],
        ill_before: dict[Illness, float],
        *,
        has_probed: bool,
    ) -> None:
        self.caller = caller
        self.home = home
        self.granted = granted
        self.ill_before = ill_before
        self.has_probed = has_probed
        self.line: Line | None = None
        self.timer: Timer | None = None

    def stop_timer(self) -> None:
        """Let its time pass unnoticed."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _was_granted(slot: asyncio.Future[bool]) -> bool:
    return slot.done() and not slot.cancelled() and slot.exception() is None and slot.result()


Line: TypeAlias = "OrderedDict[Waiter, None]"


class Admission:
    """Slots for the calls to one target, and the line of those that wait.

    Args:
        clockwork: the client's clock, random numbers and timers.
        maximum: the ceiling of calls in flight, at least 1.
        target: its name, as `target_of` makes it, for the log.
        limit: what moves below it. Defaults to a `WorkingLimit`.
    """

    __slots__ = (
        "__weakref__",
        "_arriving",
        "_clockwork",
        "_head",
        "_hurried",
        "_ill_seconds",
        "_let_in_timer",
        "_maximum",
        "_probe_timer",
        "_prober",
        "_returning",
        "_target",
        "failure",
        "in_use",
        "outstanding",
        "state",
        "used_at",
        "waiting",
    )

    def __init__(
        self, clockwork: Clockwork, maximum: int, target: str = "", limit: ConcurrencyLimit | None = None
    ) -> None:
        self._clockwork = clockwork
        self._maximum = maximum
        self._target = target
        self.state = AdmissionState(WorkingLimit(maximum) if limit is None else limit, maximum)
        # the last outcome, in seconds
        self.used_at = clockwork.clock()
        # Slots held or granted; requests with the service, which those in back-off do not have; and calls in line.
        self.in_use = 0
        self.outstanding = 0
        self.waiting = 0
        self._returning: Line = OrderedDict()
        self._arriving: Line = OrderedDict()
        self._hurried: Line = OrderedDict()
        self._prober: Caller | None = None
        # who probes next: the admission's timer is its timer
        self._head: Waiter | None = None
        self._probe_timer: Timer | None = None
        self._let_in_timer: Timer | None = None
        # by illness, without the present one
        self._ill_seconds: dict[Illness, float] = {"outage": 0.0, "capacity": 0.0}
        # what the target answered last when it was ill, for calls that never sent anything
        self.failure: AiosmrtError | None = None

    # Slots

    @property
    def illness(self) -> Illness | None:
        """What the target is ill with; None while it is healthy."""
        return self.state.illness

    @property
    def is_overdrawn(self) -> bool:
        """Whether more slots are in use than there are now, or calls have to wait for the target to recover."""
        return self.in_use > self.state.slots

    @property
    def is_full(self) -> bool:
        """Whether a call that lines up now waits for a slot."""
        return self.in_use >= self.state.slots or self.waiting > 0

    @property
    def is_idle(self) -> bool:
        """Whether no call uses it, and little would be forgotten with it."""
        if self.in_use or self.waiting:
            return False
        state = self.state
        if state.learns and self._clockwork.clock() - self.used_at > _KNOWN_FOR:
            return True
        return state.steady or state.illness is not None

    def try_acquire(self) -> bool:
        """Take a slot if one is free and no call waits for it, without suspending.

        Returns:
            Whether the slot was taken; if so, `release` must be called once.
        """
        in_use = self.in_use
        if in_use < self.state.slots and not self.waiting:
            self.in_use = in_use + 1
            return True
        return False

    def must_wait(self, caller: Caller) -> bool:
        """Whether `acquire` would suspend."""
        illness = self.state.illness
        if illness is None:
            return self.is_full
        if not caller.waits_out(illness):
            return self.in_use >= self._maximum or bool(self._hurried)
        # The first to come when a probe is due is the prober.
        if self.waiting or self._prober is not None or self.in_use >= self._maximum:
            return True
        due = self.state.next_probe(math.inf)
        return due is None or due > self._clockwork.clock() + _EARLY

    def dismiss(self, caller: Caller) -> None:
        """End a caller's wait, if it waits, as if its time were up."""
        for line in (self._returning, self._arriving, self._hurried):
            for waiter in line:
                if waiter.caller is caller:
                    self._dismiss(waiter)
                    self._attend()
                    return

    async def acquire(self, caller: Caller, *, returning: bool = False, front: bool = False) -> bool:
        """Wait for a slot, or for the target to recover.

        When the wait is cancelled, no slot is held.

        Args:
            caller: who waits.
            returning: whether it was sent before, and goes before those that were not.
            front: whether it has probed, and keeps its place in line.

        Returns:
            True with a slot, for which `release` must be called once; False when the caller's time was up.
        """
        illness = self.state.illness
        hurried = illness is not None and not caller.waits_out(illness)
        if hurried:
            if self.in_use < self._maximum and not self._hurried:
                self.in_use += 1
                return True
        elif self.try_acquire():
            return True
        home = self._returning if returning else self._arriving
        ill_before = self._ill_seconds if illness is None else self.seconds_ill(self._clockwork.clock())
        waiter = Waiter(caller, home, asyncio.get_running_loop().create_future(), ill_before, has_probed=front)
        self._line_up(waiter, self._hurried if hurried else home)
        if front and not hurried:
            self._returning.move_to_end(waiter, last=False)
        if not hurried:
            self._watch(waiter)
        self._attend()
        try:
            return await waiter.granted
        except BaseException:
            if waiter.line is not None:
                self._withdraw(waiter)
                self._attend()
            elif _was_granted(waiter.granted):
                self.release(caller)
            raise
        finally:
            waiter.stop_timer()

    def release(self, caller: Caller) -> None:
        """Return a slot, to the first in line if there is one.

        Args:
            caller: who held it; a prober that returns its slot without an outcome is followed by the next one.

        Raises:
            RuntimeError: more slots were released than acquired.
        """
        in_use = self.in_use
        if in_use < 1:
            raise RuntimeError("a slot was released that was never acquired")
        self.in_use = in_use - 1
        if self.waiting or self.state.illness is not None:
            if caller is self._prober:
                self._probe_ended()
            self._attend()

    @property
    def waiting_or_probing(self) -> int:
        """Calls in line, and the prober, which has a place there until its request has succeeded."""
        return self.waiting + (self._prober is not None)

    def is_prober(self, caller: Caller) -> bool:
        """Whether a call is the one that probes a target that is ill."""
        return caller is self._prober

    def probe_sent(self, caller: Caller) -> None:
        """Take note that a request is on its way, if it is the prober's.

        Args:
            caller: whose request it is.
        """
        if caller is self._prober and self._let_in_timer is None:
            self._let_in_timer = self._clockwork.call_later(self.state.let_in_after, self._let_in)

    def abandoned(self) -> None:
        """Take note that a call has ended, which may have been the last one that cares when the target is probed."""
        if self._prober is None and not self.waiting:
            self.state.on_abandoned()

    # Outcomes, reported while the slot is held

    def on_success(self, caller: Caller, started_at: float, sent_among: int) -> None:
        """Report a call that the service carried out.

        Args:
            caller: the call.
            started_at: when its request was sent, in seconds of the client's clock.
            sent_among: requests that were outstanding when it was sent, this one included.
        """
        self.used_at = now = self._clockwork.clock()
        state = self.state
        if state.illness is None and caller is not self._prober:
            # It does not make a healthy target ill: all that may follow is more slots.
            state.on_success(started_at, now, self.in_use, sent_among=sent_among)
            if self.waiting:
                self._attend()
            return
        probe = self._probe_answered(caller)
        before, ill_before = state.illness, self.seconds_ill(now)
        state.on_success(started_at, now, self.in_use, sent_among=sent_among, probe=probe)
        if state.illness is not None:
            # It has made the next probe due.
            self._stop_probe_timer()
        self._changed(before, ill_before)

    def on_failure(
        self,
        caller: Caller,
        started_at: float,
        sent_among: int,
        error: AiosmrtError,
        *,
        waits_for_capacity: bool,
        strict: bool = False,
        repeated: bool = False,
    ) -> bool:
        """Report a call that failed.

        Args:
            caller, started_at, sent_among: as in `on_success`.
            error: why it failed.
            waits_for_capacity: whether the call goes on to wait for capacity that the error says is missing.
            strict: whether its being throttled counts even if it looks like an accident.
            repeated: whether the same call has failed a few times before.

        Returns:
            Whether the call may keep its slot through back-off; it may not if there are fewer slots now.
        """
        probe = self._probe_answered(caller)
        clockwork = self._clockwork
        self.used_at = now = clockwork.clock()
        state = self.state
        before, ill_before, slots, limit = state.illness, self.seconds_ill(now), state.slots, state.limit
        cause, hint = error.cause, error.retry_after
        if waits_for_capacity or (before == "capacity" and isinstance(error, NoCapacityError)):
            state.on_no_capacity(started_at, now, clockwork.random(), probe=probe, retry_after=hint)
        elif cause == "throttling":
            state.on_throttle(
                started_at,
                now,
                self.outstanding,
                clockwork.random(),
                sent_among=sent_among,
                probe=probe,
                retry_after=hint,
                strict=strict,
            )
        elif cause in ("transient", "connection") or (cause == "truncated" and before != "capacity"):
            state.on_failure(
                started_at, now, self.outstanding, clockwork.random(), probe=probe, retry_after=hint, repeated=repeated
            )
        elif cause == "none" and isinstance(error, TransportError):
            state.on_no_answer(now, clockwork.random(), probe=probe)
        else:
            state.on_answer(cause, started_at, now, self.outstanding, clockwork.random(), probe=probe)
        if state.illness is not None and (probe or before != state.illness):
            self.failure = fresh_copy(error)
        if state.illness is None and state.limit < limit:
            LOGGER.info(
                "%s: %d calls in flight at most, %d before: %s (%s)",
                _shown(self._target),
                state.limit,
                limit,
                type(error).__name__,
                cause,
            )
        self._changed(before, ill_before)
        return state.illness is None and state.slots >= slots

    def seconds_ill(self, now: float) -> dict[Illness, float]:
        """For how many seconds the target has been ill so far, by illness; not to be changed.

        Args:
            now: the time in seconds.
        """
        illness = self.state.illness
        if illness is None:
            return self._ill_seconds
        return {**self._ill_seconds, illness: self._ill_seconds[illness] + now - self.state.ill_since}

    # What is left at the end

    def close(self) -> None:
        """Fail all that wait, because the client is closed."""
        self._stop_probing()
        for line in (self._returning, self._arriving, self._hurried):
            while line:
                waiter = next(iter(line))
                self._leave(waiter)
                if not waiter.granted.done():
                    waiter.granted.set_exception(ClientStateError("the client was closed during the call"))

    def statistics(self) -> LimiterStatistics:
        """Count what is held and who waits."""
        illness = self.state.illness
        # A cancelled waiter stays in line until its task has run once more; it no longer waits.
        waiting, hurried = (
            sum(not waiter.granted.done() for line in lines for waiter in line)
            for lines in ((self._returning, self._arriving), (self._hurried,))
        )
        held_back = 0 if illness is None else waiting
        state = self.state
        return LimiterStatistics(
            self.in_use,
            waiting + hurried - held_back,
            state.limit,
            held_back,
            illness,
            state.reason,
            state.round_trip,
        )

    # Inside

    def _line_up(self, waiter: Waiter, line: Line) -> None:
        waiter.line = line
        line[waiter] = None
        self.waiting += 1

    def _leave(self, waiter: Waiter) -> None:
        if waiter.line is not None:
            del waiter.line[waiter]
            waiter.line = None
            self.waiting -= 1
        waiter.stop_timer()
        if waiter is self._head:
            self._head = None
            self._stop_probe_timer()

    def _next_prober(self) -> Waiter | None:
        """The first in line; in an outage, the first that has not probed, or else the one that did so the longest ago.

        A call may fail for its own sake, and all others would wait for it.
        """
        take_turns = self.state.illness == "outage"
        longest = None
        for line in (self._returning, self._arriving):
            for waiter in line:
                if not (take_turns and waiter.has_probed):
                    return waiter
                # Probers return to the front.
                longest = waiter
        return longest

    def _grant(self, waiter: Waiter) -> bool:
        self._leave(waiter)
        # A cancelled waiter stays in line until its task has run once more.
        if waiter.granted.done():
            return False
        self.in_use += 1
        waiter.granted.set_result(True)
        return True

    def _attend(self) -> None:
        """Grant what there is, and see to the next probe."""
        state = self.state
        if state.illness is None:
            slots = state.slots
            for line in (self._hurried, self._returning, self._arriving):
                while line and self.in_use < slots:
                    self._grant(next(iter(line)))
            return
        # The probe first: calls that do not wait for it may keep all slots in use.
        self._set_probe()
        while self._hurried and self.in_use < self._maximum:
            self._grant(next(iter(self._hurried)))

    def _changed(self, before: Illness | None, ill_before: dict[Illness, float]) -> None:
        """Apply the consequences of an outcome.

        Args:
            before: the illness until now.
            ill_before: for how many seconds the target had been ill, by illness.
        """
        illness = self.state.illness
        if illness != before:
            began_at, self._ill_seconds = self._ill_seconds, ill_before
            if before is not None:
                self._stop_probing()
                seconds = self._ill_seconds[before] - began_at[before]
                LOGGER.info("%s: %s is over after %.3f s", _shown(self._target), _ILLNESSES[before], seconds)
            if illness is None:
                self.failure = None
            else:
                name = "unknown" if self.failure is None else type(self.failure).__name__
                LOGGER.warning(
                    "%s: %s (%s); one call probes, the others wait", _shown(self._target), _ILLNESSES[illness], name
                )
                self._fell_ill(illness)
        if illness is not None or self.waiting:
            self._attend()

    def _fell_ill(self, illness: Illness) -> None:
        """Let those that wait for a slot wait for the target from now on, and those that do not go on."""
        # They did not wait out the illness before, and came before those in their own line.
        for waiter in reversed([waiter for waiter in self._hurried if waiter.caller.waits_out(illness)]):
            self._leave(waiter)
            self._line_up(waiter, waiter.home)
            waiter.home.move_to_end(waiter, last=False)
        for line in (self._returning, self._arriving):
            for waiter in [waiter for waiter in line if not waiter.caller.waits_out(illness)]:
                self._leave(waiter)
                self._line_up(waiter, self._hurried)
            for waiter in [*line]:
                self._watch(waiter)

    def _watch(self, waiter: Waiter) -> None:
        """Have a waiter's time end; on a healthy target it does not pass."""
        waiter.stop_timer()
        illness = self.state.illness
        if illness is None or waiter.line is None or waiter is self._head:
            return
        now = self._clockwork.clock()
        until = self._time_of(waiter, illness)
        if until <= now + _EARLY:
            self._dismiss(waiter)
        elif until < math.inf:
            waiter.timer = self._clockwork.call_later(until - now, self._look_at, waiter)

    def _look_at(self, waiter: Waiter) -> None:
        self._watch(waiter)
        self._attend()

    def _time_of(self, waiter: Waiter, illness: Illness) -> float:
        # What counts is for how long the target was ill, which may have been in several stretches.
        now = self._clockwork.clock()
        since = now - (self.seconds_ill(now)[illness] - waiter.ill_before[illness])
        until = waiter.caller.waits_until(illness, since)
        return math.inf if until is None else until

    def _withdraw(self, waiter: Waiter) -> None:
        self._leave(waiter)
        self.abandoned()

    def _dismiss(self, waiter: Waiter) -> None:
        self._withdraw(waiter)
        if not waiter.granted.done():
            waiter.granted.set_result(False)

    # Probes

    def _set_probe(self) -> None:
        """Have the head of the line probe when it is time to."""
        if self._prober is not None:
            return
        head = self._next_prober()
        if head is not self._head:
            self._stop_probe_timer()
            former, self._head = self._head, head
            if former is not None:
                self._watch(former)
        elif self._probe_timer is not None:
            return
        illness = self.state.illness
        while head is not None and illness is not None:
            head.stop_timer()
            now = self._clockwork.clock()
            until = self._time_of(head, illness)
            at = self.state.next_probe(until)
            if at is not None and at <= now + _EARLY:
                if self.in_use < self._maximum:
                    self._prober = head.caller
                    if self._grant(head):
                        return
                    self._prober = None
                elif until <= now + _EARLY:
                    self._dismiss(head)
                else:
                    # The next slot that is released is the probe's.
                    if until < math.inf:
                        head.timer = self._clockwork.call_later(until - now, self._look_at, head)
                    return
            elif at is None and until <= now + _EARLY:
                self._dismiss(head)
            else:
                self._probe_timer = self._clockwork.call_later(
                    (until if at is None else at) - now, self._probe_timer_struck
                )
                return
            self._head = head = self._next_prober()

    def _probe_timer_struck(self) -> None:
        self._probe_timer = None
        if self.state.illness is not None:
            self._set_probe()

    def _probe_answered(self, caller: Caller) -> bool:
        """Whether an outcome is that of the probe, which is over with it."""
        if caller is not self._prober:
            return False
        self._probe_ended()
        return True

    def _probe_ended(self) -> None:
        self._prober = None
        if self._let_in_timer is not None:
            self._let_in_timer.cancel()
            self._let_in_timer = None

    def _let_in(self) -> None:
        self._let_in_timer = None
        self._prober = None
        now = self._clockwork.clock()
        before, ill_before = self.state.illness, self.seconds_ill(now)
        self.state.on_let_in(now)
        self._changed(before, ill_before)

    def _stop_probe_timer(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None

    def _stop_probing(self) -> None:
        self._stop_probe_timer()
        self._probe_ended()
        self._head = None

    def __repr__(self) -> str:
        state = self.statistics()
        return (
            f"<Admission {state.illness or 'healthy'} in_use={state.in_use} "
            f"waiting={state.waiting + state.held_back} limit={state.max_concurrency}>"
        )


class Admissions:
    """The admissions of a client or view, one for each target.

    Args:
        clockwork: the client's clock, random numbers and timers.
        max_concurrency: calls in flight for each target, at least 1; ``"adaptive"`` or an `AdaptiveLimit` to find out.

    Raises:
        ParamValidationError: ``max_concurrency`` is something else.
    """

    def __init__(self, clockwork: Clockwork, max_concurrency: MaxConcurrency) -> None:
        if isinstance(max_concurrency, str) and max_concurrency == "adaptive":
            max_concurrency = AdaptiveLimit()
        self._adaptive = max_concurrency if isinstance(max_concurrency, AdaptiveLimit) else None
        ceiling = max_concurrency.maximum if isinstance(max_concurrency, AdaptiveLimit) else max_concurrency
        if isinstance(ceiling, str) or not is_whole(ceiling, 1):
            raise ParamValidationError(
                [f'max_concurrency must be an integer >= 1, "adaptive" or an AdaptiveLimit; got {shown(ceiling)}']
            )
        self._clockwork = clockwork
        self.max_concurrency = ceiling
        self.by_target: dict[str, Admission] = {}
        # those that were idle, as long as a call in back-off goes on with one
        self._dropped: WeakValueDictionary[str, Admission] = WeakValueDictionary()
        self._drop_at = _MAX_IDLE

    def of(self, target: str) -> Admission:
        """The target's admission.

        Args:
            target: its name, as `target_of` makes it.
        """
        admission = self.by_target.get(target)
        if admission is None:
            if len(self.by_target) >= self._drop_at:
                self._drop_idle()
            admission = self._dropped.pop(target, None)
            if admission is None:
                limit = None if self._adaptive is None else self._adaptive.new()
                admission = Admission(self._clockwork, self.max_concurrency, target, limit)
            self.by_target[target] = admission
        return admission

    def statistics(self) -> dict[str, LimiterStatistics]:
        """What holds for each endpoint, its components and variants together."""
        endpoints: dict[str, LimiterStatistics] = {}
        for target, admission in (*self.by_target.items(), *self._dropped.items()):
            name = target.partition("\n")[0]
            found = admission.statistics()
            if (known := endpoints.get(name)) is not None:
                lowest = min(found, known, key=lambda each: each.max_concurrency)
                found = LimiterStatistics(
                    found.in_use + known.in_use,
                    found.waiting + known.waiting,
                    lowest.max_concurrency,
                    found.held_back + known.held_back,
                    found.illness or known.illness,
                    lowest.reason,
                    lowest.round_trip,
                )
            endpoints[name] = found
        return endpoints

    def close(self) -> None:
        """Fail the calls that wait, because the client is closed."""
        for admission in (*self.by_target.values(), *self._dropped.values()):
            admission.close()

    def _drop_idle(self) -> None:
        unused = []
        for target, admission in [*self.by_target.items()]:
            if admission.is_idle:
                self._dropped[target] = self.by_target.pop(target)
            elif not (admission.in_use or admission.waiting):
                unused.append((admission.used_at, target))
        for _, target in sorted(unused)[: max(0, len(unused) - _MAX_IDLE)]:
            self._dropped[target] = self.by_target.pop(target)
        # What a look at all of them costs is shared by as many new ones.
        self._drop_at = max(_MAX_IDLE, 2 * len(self.by_target))


def _shown(target: str) -> str:
    """A target's name in a line of the log.

    >>> _shown("llm"), _shown("llm\\nadapter\\n")
    ('llm', 'llm/adapter')
    """
    return target.rstrip("\n").replace("\n", "/")


def target_of(endpoint_name: str, component: str | None, variant: str | None) -> str:
    """A target's name: an endpoint's alone, or with an inference component or a variant.

    >>> target_of("llm", None, None)
    'llm'
    >>> target_of("llm", "adapter", None)
    'llm\\nadapter\\n'
    """
    if component is None and variant is None:
        return endpoint_name
    return f"{endpoint_name}\n{component or ''}\n{variant or ''}"
