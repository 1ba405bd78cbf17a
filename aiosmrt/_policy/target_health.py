"""Who may send to one target now, and when it is asked again after it has fallen ill: decisions without waiting.

Theory of operation
-------------------
A target is an endpoint, or one of its inference components or variants. It is *healthy*, and then as many calls are in
flight as its `aiosmrt._policy.limit.ConcurrencyLimit` allows; or it is *ill*, and then one call at a time probes it
after growing pauses while all others hold no slot and send nothing. The service is protected by calls that do not send,
so no call has to fail for its sake.

::

            a streak of failures with nothing else in flight, or a long one
    healthy ───────────────────────────────────────────────────────────────► ill: outage
       ▲    no capacity, told by a call that waits for it                      ▲ │
       ├─────────────────────────────────────────────────────────────────► ill: capacity
       └── the probe was answered: a slow start to the limit known before ◄──────┘

What counts as a failure here is what says something about the service: throttling (which lowers the limit as well),
5xx, refused and broken connections. A single 503 among successes says nothing about the target: its call is sent
again. Only a streak without a success in between makes an outage. Calls that fail or are refused now and then, never in
a streak, cost a token of the target's `aiosmrt._policy.retry.RetryBucket` each, and a success returns one: retries may
be half of all requests, and 500 more. Where they are more than that, each failure lowers the limit.

Pauses of an outage are a quarter of its age, between `FIRST_PAUSE` and `MAX_PAUSE`: whatever it lasts, its end is
noticed after a quarter more, and a minute of it costs some forty probes. A component that scales out from zero takes
minutes anyway, and is asked after pauses that double from `FIRST_CAPACITY_PAUSE` to `MAX_CAPACITY_PAUSE`.

Everything is a function of its arguments: the clock and the random numbers are the caller's. `aiosmrt._core.admission`
keeps the slots and the line.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from aiosmrt._policy.limit import ConcurrencyLimit, Reason
from aiosmrt._policy.retry import MAX_HINT_EXTRA, RetryBucket
from aiosmrt.errors import Cause

__all__ = ["LET_IN_AFTER", "AdmissionState", "Illness", "ProbeSchedule", "is_sign_of_life"]

Illness: TypeAlias = Literal["outage", "capacity"]
"""What a target is ill with: nothing gets through, or its inference component is scaled to zero."""

FIRST_PAUSE: Final = 0.1
MAX_PAUSE: Final = 5.0
"""Seconds between which the pauses of an outage are."""

FIRST_CAPACITY_PAUSE: Final = 1.0
MAX_CAPACITY_PAUSE: Final = 15.0
"""Seconds of the longest first and of the longest pause while a component is scaled to zero."""

LET_IN_AFTER: Final[dict[Illness, float]] = {"outage": 6.0, "capacity": 10.0}
"""Seconds after which an unanswered probe counts as let in. Most refusals come at once, or when a connection was not
made within 5 s, while a model's first inference may take a minute: the others should not wait for its end."""

# Where refusals take longer than that, as a load balancer's 504 after 29 s, so many times the slowest one.
_LONGER_THAN_REFUSALS: Final = 1.5

# Failures in a row, without a success between them, that make an outage: with nothing else in flight, and in any case.
# Throttling, which may strike calls at random, takes as many as the latter, and nothing else in flight.
_STREAK_ALONE: Final = 3
_STREAK: Final = 8

# A pause of an outage as a share of its age.
_PAUSE_SHARE: Final = 0.25

_SIGNS_OF_LIFE: Final[dict[Illness, frozenset[Cause]]] = {
    "outage": frozenset({"model", "none", "model_not_ready", "clock_skew"}),
    # The request got to a model there, whatever came of it.
    "capacity": frozenset({"model", "none", "model_not_ready", "read_timeout", "truncated"}),
}


def is_sign_of_life(cause: Cause, illness: Illness) -> bool:
    """Tell whether an error ends an illness: it was answered by what was ill, or waiting for that makes no sense.

    Args:
        cause: the error's.
        illness: what the target is ill with.

    >>> is_sign_of_life("model", "outage"), is_sign_of_life("transient", "outage")
    (True, False)
    >>> is_sign_of_life("read_timeout", "outage"), is_sign_of_life("read_timeout", "capacity")
    (False, True)
    """
    return cause in _SIGNS_OF_LIFE[illness]


class ProbeSchedule:
    """When a target that is ill may be asked again.

    Args:
        illness: what it is ill with.
        now: since when, in seconds.

    >>> schedule = ProbeSchedule("capacity", now=100.0)
    >>> schedule.refused(now=100.0, rand=0.5)
    >>> schedule.next_probe(until=130.0)
    100.75
    """

    __slots__ = ("_due", "_earliest", "_illness", "_refusals", "_since")

    def __init__(self, illness: Illness, now: float) -> None:
        self._illness = illness
        self._since = now
        self._refusals = 0
        self._due = now
        self._earliest = now

    def refused(self, now: float, rand: float, retry_after: float | None = None) -> None:
        """Plan the next probe after a refusal.

        Args:
            now: the time in seconds.
            rand: a random number in [0, 1); a pause is between half and all of what it may be, so that processes that
                began together do not ask together.
            retry_after: the service's hint in seconds, which lengthens the pause by at most 5 s; None without one.
        """
        if self._illness == "capacity":
            first = FIRST_CAPACITY_PAUSE
            longest = min(first * 2.0 ** min(self._refusals, 64), MAX_CAPACITY_PAUSE)
        else:
            first = FIRST_PAUSE
            longest = min(max(first, _PAUSE_SHARE * (now - self._since)), MAX_PAUSE)
        pause = longest * (1 + rand) / 2
        hinted = 0.0 if retry_after is None else min(retry_after, pause + MAX_HINT_EXTRA)
        self._due = now + max(pause, hinted)
        self._earliest = now + max(first, hinted)
        self._refusals += 1

    def next_probe(self, until: float) -> float | None:
        """When a call whose time is limited probes next.

        Where the pause would outlast its time, it asks once more at the end of it, unless the last refusal was less
        than a first pause (or the service's hint) ago: many whose time ends together do not all ask.

        Args:
            until: the end of its time, in seconds of the clock that `refused` was given.

        Returns:
            Seconds of that clock, which may be past; None if the time is too short for another probe.
        """
        if self._due <= until:
            return self._due
        return until if self._earliest <= until else None

    def abandon(self) -> None:
        """Cut the pause short: no call waits any more, or a call that was sent earlier has succeeded."""
        self._due = min(self._due, self._earliest)

    def __repr__(self) -> str:
        return f"<ProbeSchedule {self._illness} refusals={self._refusals}>"


class AdmissionState:
    """What is known of one target: its working limit, whether it is ill, and when it is asked again.

    Args:
        limit: how many calls may be in flight while it is healthy.
        maximum: the limit's ceiling.

    >>> from aiosmrt._policy.limit import WorkingLimit
    >>> state = AdmissionState(WorkingLimit(64), 64)
    >>> for number in range(3):
    ...     state.on_failure(started_at=1.0, now=1.0, in_flight=1, rand=0.5)
    >>> state.illness, state.slots
    ('outage', 0)
    >>> state.next_probe(until=21.0)
    1.075
    >>> state.on_success(started_at=1.075, now=1.125, in_flight=1, probe=True)
    >>> state.illness, state.slots
    (None, 4)
    """

    __slots__ = (
        "_failures",
        "_ill_since",
        "_limit",
        "_maximum",
        "_schedule",
        "_slowest_refusal",
        "_streak",
        "bucket",
        "illness",
        "learns",
        "slots",
        "steady",
    )

    def __init__(self, limit: ConcurrencyLimit, maximum: int) -> None:
        self._limit = limit
        # whether the limit is told of every success
        self.learns = limit.learns
        self._maximum = maximum
        self.bucket = RetryBucket()
        # Failures and refusals in a row, and the failures among them.
        self._streak = 0
        self._failures = 0
        # seconds, since the last success
        self._slowest_refusal = 0.0
        self.illness: Illness | None = None
        self._ill_since = 0.0
        self._schedule = ProbeSchedule("outage", 0.0)
        # calls that may be in flight now; none of those that wait while the target is ill
        self.slots = limit.limit
        # whether a success changes nothing, so that it need not be reported
        self.steady = False
        self._settle()

    @property
    def limit(self) -> int:
        """The working limit, which is the one known before while the target is ill."""
        return self._limit.limit

    @property
    def reason(self) -> Reason | None:
        """Why the limit moved last; see `ConcurrencyLimit.reason`."""
        return self._limit.reason

    @property
    def round_trip(self) -> float | None:
        """The present round trip in seconds; see `ConcurrencyLimit.round_trip`."""
        return self._limit.round_trip

    @property
    def ill_since(self) -> float:
        """When the illness began, in seconds of the caller's clock; that of the last one while healthy."""
        return self._ill_since

    @property
    def let_in_after(self) -> float:
        """Seconds after which an unanswered probe counts as let in, while the target is ill."""
        at_least = 0.0 if self.illness is None else LET_IN_AFTER[self.illness]
        return max(at_least, _LONGER_THAN_REFUSALS * self._slowest_refusal)

    def next_probe(self, until: float) -> float | None:
        """When a call may probe; see `ProbeSchedule.next_probe`."""
        return self._schedule.next_probe(until)

    def on_success(
        self,
        started_at: float,
        now: float,
        in_flight: int,
        *,
        sent_among: int = 0,
        probe: bool = False,
    ) -> None:
        """Take note of a call that the service carried out.

        Args:
            started_at: when its request was sent, in seconds.
            now: when its answer was complete, in seconds of the same clock.
            in_flight: calls in flight at ``now``, this one included.
            sent_among: calls in flight when it was sent, this one included; 0 when unknown.
            probe: whether it was the probe of a target that is ill.
        """
        self._streak = self._failures = 0
        self._slowest_refusal = 0.0
        if not self.bucket.is_full:
            self.bucket.on_success()
        if self.illness is None:
            limit = self._limit
            limit.on_success(started_at, now, in_flight, sent_among)
            if self.learns:
                # Every call under an adaptive limit comes here; there is nothing else to settle.
                self.slots = limit.limit
                return
        elif probe or started_at > self._ill_since:
            self._recover(now)
        else:
            # It was sent before the illness and says nothing about its end, but something gets through.
            self._schedule.abandon()
            return
        self._settle()

    def on_throttle(
        self,
        started_at: float,
        now: float,
        in_flight: int,
        rand: float,
        *,
        sent_among: int = 0,
        probe: bool = False,
        retry_after: float | None = None,
        strict: bool = False,
    ) -> None:
        """Take note of a call that the service refused for load.

        Args:
            started_at, now, in_flight, sent_among, probe: as in `on_success`.
            rand: a random number in [0, 1).
            retry_after: the service's hint in seconds; None when it gave none.
            strict: whether it counts even if it looks like an accident; it does anyway when the bucket is empty.
        """
        if self.illness is None:
            strict = not self.bucket.withdraw(1) or strict
            self._limit.on_throttle(started_at, now, in_flight, sent_among=sent_among, strict=strict)
        # Others in flight that were not refused show that some get through.
        self._failed(_STREAK if in_flight <= 1 else None, started_at, now, rand, probe, retry_after)

    def on_failure(
        self,
        started_at: float,
        now: float,
        in_flight: int,
        rand: float,
        *,
        probe: bool = False,
        retry_after: float | None = None,
        repeated: bool = False,
    ) -> None:
        """Take note of a call that failed for a reason of the service's or the network's.

        Args:
            started_at, now, in_flight, rand, probe, retry_after: as in `on_throttle`.
            repeated: whether the same call has failed a few times before. While others are in flight, that does not
                count towards a streak: the request itself may be at fault.
        """
        if repeated and in_flight > 1 and self.illness is None:
            self.bucket.withdraw(1)
            self._settle()
            return
        if self.illness is None:
            self._failures += 1
            if not self.bucket.withdraw(1):
                self._limit.on_throttle(started_at, now, in_flight)
        long = self._failures >= _STREAK
        streak = _STREAK_ALONE if in_flight <= 1 else 1 if long else None
        self._failed(streak, started_at, now, rand, probe, retry_after)

    def on_no_capacity(
        self, started_at: float, now: float, rand: float, *, probe: bool = False, retry_after: float | None = None
    ) -> None:
        """Take note of a refusal for want of capacity, met by a call that waits for it; arguments as `on_throttle`."""
        self._slowest_refusal = max(self._slowest_refusal, now - started_at)
        if self.illness != "capacity":
            self._fall_ill("capacity", now)
            probe = True
        if probe:
            self._schedule.refused(now, rand, retry_after)

    def on_answer(
        self, cause: Cause, started_at: float, now: float, in_flight: int, rand: float, *, probe: bool = False
    ) -> None:
        """Take note of any other failure: the model's, the request's, or a response that did not come in time.

        Args:
            cause: the error's.
            started_at, now, in_flight, rand, probe: as in `on_throttle`.
        """
        if self.illness is not None:
            if (probe or started_at > self._ill_since) and is_sign_of_life(cause, self.illness):
                self._recover(now)
            elif probe:
                self._schedule.refused(now, rand)
        elif is_sign_of_life(cause, "outage"):
            self._streak = self._failures = 0
            self.bucket.on_success()
            self._limit.on_answer(started_at, now, in_flight)
        elif cause == "read_timeout":
            self._limit.on_timeout(started_at, now, in_flight)
        self._settle()

    def on_no_answer(self, now: float, rand: float, *, probe: bool) -> None:
        """Take note of a call that could not be sent, for a reason that sending it again would not change.

        Args:
            now, rand, probe: as in `on_throttle`.
        """
        if probe:
            self._schedule.refused(now, rand)

    def on_abandoned(self) -> None:
        """Take note that no call waits for the target any more."""
        self._schedule.abandon()

    def on_let_in(self, now: float) -> None:
        """Take note that a probe was not refused for so long that it must have been let in."""
        if self.illness is not None:
            self._recover(now)
            self._settle()

    def _failed(
        self, streak: int | None, started_at: float, now: float, rand: float, probe: bool, retry_after: float | None
    ) -> None:
        self._slowest_refusal = max(self._slowest_refusal, now - started_at)
        if self.illness is not None:
            if probe:
                self._schedule.refused(now, rand, retry_after)
            return
        self._streak += 1
        if streak is not None and self._streak >= streak:
            self._fall_ill("outage", now)
            self._schedule.refused(now, rand, retry_after)
        self._settle()

    def _fall_ill(self, illness: Illness, now: float) -> None:
        self.illness = illness
        self._ill_since = now
        self._schedule = ProbeSchedule(illness, now)
        self._settle()

    def _recover(self, now: float) -> None:
        self.illness = None
        self._streak = self._failures = 0
        self._limit.on_recovery(now)

    def _settle(self) -> None:
        limit = self._limit.limit
        self.slots = limit if self.illness is None else 0
        self.steady = (
            self.illness is None
            and not self._streak
            and limit >= self._maximum
            and self.bucket.is_full
            and not self.learns
        )

    def __repr__(self) -> str:
        return f"<AdmissionState {self.illness or 'healthy'} limit={self.limit} maximum={self._maximum}>"
