"""`Timeline`: what happened over time, in a bounded number of slices.

Slices are a second long at first. When there are too many, neighbours are merged, so that a job of a day takes as much
memory as one of ten minutes, and is drawn as finely as a page can show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from aiosmrt._report.histogram import Histogram

__all__ = ["OTHER_CAUSES", "Slice", "Timeline"]

_FIRST_SECONDS = 1.0
# Causes that are told apart; the rest of them count together.
_CAUSES = 12
OTHER_CAUSES = "other"


class Slice:
    """What happened in a stretch of time.

    Attributes:
        done: successes that ended in it.
        latency: how long they took.
        failures: failures by cause.
        in_flight: most calls in flight that were seen; None if that was not recorded.
        limit: least limit of calls in flight that was seen; None if that was not recorded.
        waiting: most calls that were seen waiting; None if that was not recorded.
        rows: rows that were done in it.
        reason: what calls were seen waiting for; None if nothing.
    """

    __slots__ = ("done", "failures", "in_flight", "latency", "limit", "reason", "rows", "waiting")

    def __init__(self) -> None:
        self.done = 0
        self.latency: Histogram = Histogram()
        self.failures: Counter[str] = Counter()
        self.in_flight: int | None = None
        self.limit: int | None = None
        self.waiting: int | None = None
        self.rows = 0
        self.reason: str | None = None

    def merge(self, other: Slice) -> None:
        """Take in the slice that follows."""
        self.done += other.done
        self.latency.merge(other.latency)
        self.failures.update(other.failures)
        self.rows += other.rows
        self.see(other.in_flight, other.limit, other.waiting, other.reason)

    def see(self, in_flight: int | None, limit: int | None, waiting: int | None, reason: str | None) -> None:
        """Take note of what holds at a moment."""
        self.in_flight = _either(max, self.in_flight, in_flight)
        self.limit = _either(min, self.limit, limit)
        self.waiting = _either(max, self.waiting, waiting)
        self.reason = reason or self.reason


def _either(choose: Callable[[int, int], int], one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return choose(one, other)


class Timeline:
    """Slices of equal length, from 0 s on.

    Args:
        most: slices that are kept, an even number.

    Attributes:
        seconds: the length of a slice.
        latency: how long all successes took.
        failures: all failures by cause.

    >>> timeline = Timeline(most=4)
    >>> for second in range(6):
    ...     timeline.succeeded(second, 0.25)
    >>> timeline.seconds, [part.done for part in timeline.slices()]
    (2.0, [2, 2, 2])
    """

    def __init__(self, most: int = 240) -> None:
        self._most = most
        self._slices: list[Slice] = []
        self.seconds: float = _FIRST_SECONDS
        self.latency: Histogram = Histogram()
        self.failures: Counter[str] = Counter()

    def succeeded(self, at: float, seconds: float) -> None:
        """Take note of a success.

        Args:
            at: when it ended, in seconds since the beginning.
            seconds: how long it took.
        """
        part = self._slice(at)
        part.done += 1
        part.latency.add(seconds)
        self.latency.add(seconds)

    def failed(self, at: float, cause: str) -> None:
        """Take note of a failure.

        Args:
            at: when, in seconds since the beginning.
            cause: a name for why; of many different ones, later ones count as `OTHER_CAUSES`.
        """
        if cause not in self.failures and len(self.failures) >= _CAUSES:
            cause = OTHER_CAUSES
        self.failures[cause] += 1
        self._slice(at).failures[cause] += 1

    def see(
        self,
        at: float,
        *,
        in_flight: int,
        limit: int | None = None,
        waiting: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Take note of what holds at a moment.

        Args:
            at: when, in seconds since the beginning.
            in_flight: calls in flight.
            limit: how many may be; None if there is no limit.
            waiting: calls that wait; None if that is not known.
            reason: what they wait for; None if that is nothing that the target is to blame for.
        """
        self._slice(at).see(in_flight, limit, waiting, reason)

    def rows_done(self, at: float, rows: int) -> None:
        """Take note of rows that are done.

        Args:
            at: when, in seconds since the beginning.
            rows: how many more.
        """
        self._slice(at).rows += rows

    def slices(self) -> list[Slice]:
        """The slices, empty ones among them."""
        return list(self._slices)

    def _slice(self, at: float) -> Slice:
        number = int(max(at, 0.0) / self.seconds)
        while number >= self._most:
            self._merge()
            number = int(max(at, 0.0) / self.seconds)
        while number >= len(self._slices):
            self._slices.append(Slice())
        return self._slices[number]

    def _merge(self) -> None:
        merged = self._slices[::2]
        for one, other in zip(merged, self._slices[1::2], strict=False):
            one.merge(other)
        self._slices = merged
        self.seconds *= 2
