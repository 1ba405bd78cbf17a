"""How many calls to one target may be in flight: the number, apart from the waiting.

Theory of operation
-------------------
A caller gives a ceiling. What the service can take at the moment may be less, and only a refusal for load
(throttling) shows it. `WorkingLimit` finds the number below the ceiling from that:

- A refusal with n other calls in flight means that the service takes n, so the limit drops to n, but to no less
  than half of what it was, in one round trip; by one where less than half of it is in use. A burst of 64 that meets a
  service for 8 settles at 8 within three round trips, and a refusal of a quiet client does not cost it its ceiling.
- Some services refuse a share of all calls, whatever their number, and fewer calls would not be refused less. So a
  refusal counts only if calls that were sent among as many others were mostly refused lately, and calls among fewer
  were not; or if it is one of many in a row, or the caller is `strict` about it.
- Successes raise the limit by half a call per round trip, faster the longer nothing was refused (by the square of the
  number of round trips, as CUBIC does, RFC 9438), and only while the limit is in use: what is not tested does not grow,
  and is forgotten after some 64 round trips. At a hard capacity that makes one or two refusals in a round trip.
- After an outage the limit that was known before is approached from `FIRST_WINDOW`, by one for each success, so it
  doubles in a round trip (the slow start of RFC 5681). A refusal on the way ends that.

A round trip needs no clock: as many successes as the limit are one, and a refusal of a call that was sent
after the last drop began belongs to the next one.

Times are seconds of whichever monotonic clock the caller uses throughout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final, Literal, Protocol, TypeAlias

__all__ = ["FIRST_WINDOW", "REMEMBERED", "ConcurrencyLimit", "Reason", "WorkingLimit", "is_accident"]

Reason: TypeAlias = Literal["start", "growth", "waiting", "refusal", "timeout", "recovery"]
"""Why an adaptive limit moved last: it has not; nothing waits; calls wait in a queue; a refusal; a timeout; an outage
is over."""

FIRST_WINDOW: Final = 4
"""Calls in flight with which a target that was ill begins again."""

# What successes add in a round trip right after a refusal, and the round trips after which that has doubled.
_STEP: Final = 0.5
_ROUND_TRIPS_TO_DOUBLE: Final = 8.0
# A limit of which less is in use is not being tested.
_TESTED: Final = 0.7
# Round trips after which a limit that is not in use is out of date.
_ROUND_TRIPS_TO_FORGET: Final = 64.0
# Refusals without a success between them that are not accidental.
_IN_A_ROW: Final = 8
# Answers that are remembered; the share of successes among as many calls or more, or of refusals among fewer, in a
# sample of so many, that makes a refusal an accident.
REMEMBERED: Final = 64
_GETS_THROUGH: Final = 0.4
_FAILS_ANYWAY: Final = 0.25
_SAMPLE: Final = 8


class ConcurrencyLimit(Protocol):
    """A number of calls that may be in flight, and what moves it."""

    @property
    def limit(self) -> int:
        """Calls that may be in flight now, at least 1. Read for every call, so an attribute and not a computation."""
        ...

    @property
    def learns(self) -> bool:
        """Whether it has to be told of every success, and not only below its ceiling."""
        ...

    @property
    def reason(self) -> Reason | None:
        """Why it moved last; None where it does not tell."""
        ...

    @property
    def round_trip(self) -> float | None:
        """The present round trip in seconds, where it looks at that; None where it does not, and before the first."""
        ...

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Take note of a call that the service carried out.

        Args:
            started_at: when its request was sent, in seconds.
            now: when its answer was complete, in seconds of the same clock.
            in_flight: calls in flight at ``now``, this one included.
            sent_among: calls in flight when it was sent, this one included; 0 when unknown.
        """
        ...

    def on_throttle(
        self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0, strict: bool = True
    ) -> None:
        """Take note of a call that the service refused for load.

        Args:
            started_at, now, in_flight, sent_among: as in `on_success`.
            strict: whether it counts even if it looks like an accident.
        """
        ...

    def on_timeout(self, started_at: float, now: float, in_flight: int) -> None:
        """Take note of a call without an answer in time; the arguments are those of `on_success`."""
        ...

    def on_answer(self, started_at: float, now: float, in_flight: int) -> None:
        """Take note of a call that got through and failed in its model; the arguments are those of `on_success`."""
        ...

    def on_recovery(self, now: float) -> None:
        """Take note of a first sign of life after an outage, in which nothing got through.

        Args:
            now: the time in seconds.
        """
        ...


def is_accident(recent: Collection[int], sent_among: int) -> bool:
    """Tell whether the number of calls in flight does not explain a refusal.

    Args:
        recent: among how many calls those were sent that were answered last; negative for those that were refused.
        sent_among: among how many the refused one was sent; 0 when unknown.

    >>> is_accident([8, 9, 8, 9, -8], sent_among=8), is_accident([7, 7, -8, -8], sent_among=8)
    (True, False)
    """
    if not sent_among:
        return False
    above = [others > 0 for others in recent if abs(others) >= sent_among]
    below = [others > 0 for others in recent if abs(others) < sent_among]
    # Calls among more get through, or calls among fewer do not.
    return sum(above) >= _GETS_THROUGH * len(above) or (
        len(below) >= _SAMPLE and sum(below) <= (1 - _FAILS_ANYWAY) * len(below)
    )


class WorkingLimit:
    """A limit below a fixed ceiling: throttling lowers it, success raises it again.

    Args:
        maximum: the ceiling, at least 1; the limit begins there.

    Raises:
        ValueError: ``maximum`` is below 1.

    >>> limit = WorkingLimit(64)
    >>> for in_flight in range(64, 8, -1):  # a burst of 64 that meets a service for 8
    ...     limit.on_throttle(started_at=0.0, now=0.001, in_flight=in_flight)
    >>> limit.limit
    32
    >>> for in_flight in range(32, 8, -1):
    ...     limit.on_throttle(started_at=0.002, now=0.003, in_flight=in_flight)
    >>> limit.limit
    16
    """

    __slots__ = (
        "_cut_at",
        "_floor",
        "_good",
        "_grown",
        "_recent",
        "_refusals",
        "_round_trips",
        "_threshold",
        "_untested",
        "limit",
        "maximum",
    )

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError(f"a limit must let at least 1 call through; got {maximum}")
        self.maximum = maximum
        self.limit = maximum
        # at the last success
        self._good = maximum
        # where a slow start ends; 0 outside of one
        self._threshold = 0
        # when the round trip of the last drops began, and how far they may go
        self._cut_at = float("-inf")
        self._floor = 1
        # since the last refusal, with the limit in use and without
        self._round_trips = 0.0
        self._untested = 0.0
        # what successes have added that is not a whole call yet
        self._grown = 0.0
        # without a success between them
        self._refusals = 0
        # Among how many calls those were sent that were answered last; of those that were refused as a negative number.
        self._recent: deque[int] = deque(maxlen=REMEMBERED)

    @property
    def learns(self) -> bool:
        """False: at the maximum, successes change nothing."""
        return False

    @property
    def reason(self) -> None:
        """None: it does not tell."""
        return None

    @property
    def round_trip(self) -> None:
        """None: it does not look at that."""
        return None

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Raise the limit, if it is in use; see `ConcurrencyLimit.on_success`."""
        limit = self.limit
        self._refusals = 0
        if sent_among:
            self._recent.append(sent_among)
        if limit < self._threshold:
            self.limit = limit = limit + 1
        elif limit < self.maximum:
            self._threshold = 0
            if in_flight >= _TESTED * limit:
                self._untested = 0.0
                self._round_trips += 1 / limit
                step = _STEP * (1 + (self._round_trips / _ROUND_TRIPS_TO_DOUBLE) ** 2)
                self._grown += step / limit
                if self._grown >= 1:
                    self._grown -= 1
                    self.limit = limit = limit + 1
            else:
                self._untested += 1 / limit
                if self._untested >= _ROUND_TRIPS_TO_FORGET:
                    self.limit = limit = self.maximum
        self._good = max(limit, self._threshold)

    def on_throttle(
        self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0, strict: bool = True
    ) -> None:
        """Lower the limit to what else is in flight, by half in a round trip at most; see `ConcurrencyLimit`."""
        self._refusals += 1
        if sent_among:
            self._recent.append(-sent_among)
        says_nothing = self._refusals < _IN_A_ROW and is_accident(self._recent, sent_among)
        if says_nothing and not strict:
            return
        self._round_trips = self._grown = self._untested = 0.0
        if started_at > self._cut_at:
            self._cut_at = now
            self._floor = (self.limit + 1) // 2
        # Where few of the slots are in use, as by a quiet client, it says little about all of them.
        says_little = says_nothing or 2 * in_flight < self.limit
        lowered = max(self._floor, self.limit - 1 if says_little else in_flight - 1)
        # A call that was sent before an outage does not raise the limit of a slow start, nor end it.
        if lowered < self.limit:
            self.limit = lowered
            self._threshold = 0

    def on_timeout(self, started_at: float, now: float, in_flight: int) -> None:
        """Do nothing: a model that took too long says nothing about how many calls the service takes."""

    def on_answer(self, started_at: float, now: float, in_flight: int) -> None:
        """Raise the limit as a success does: what counts here is that the call was let in."""
        self.on_success(started_at, now, in_flight)

    def on_recovery(self, now: float) -> None:
        """Begin a slow start to the limit that was known at the last success."""
        self._threshold = self._good = max(self._good, self.limit)
        self.limit = min(FIRST_WINDOW, self._threshold)
        self._round_trips = self._grown = self._untested = 0.0
        self._refusals = 0

    def __repr__(self) -> str:
        return f"<WorkingLimit limit={self.limit} maximum={self.maximum}>"
