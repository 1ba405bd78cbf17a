"""`Progress`: how far a job is, how fast it goes, and when it will end; a function of what is passed in."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from aiosmrt._core.admission import LimiterStatistics

__all__ = ["Pace", "Progress"]

# The time over which a rate is taken, and the least between two samples of it: a bounded number of them.
_WINDOW_SECONDS: Final = 30.0
_SAMPLE_SECONDS: Final = 1.0


class Progress(NamedTuple):
    """How far a job is.

    Args:
        scored: rows whose answers are in the output, those of earlier runs among them.
        failed: rows that failed, without those that are to be scored again.
        resumed: rows that earlier runs had done; those that are to be scored again are not among them.
        seconds: since the job was started.
        rows_per_second: rows done per second, over the last 30 s.
        in_flight: calls in flight.
        max_in_flight: how many may be now; fewer after throttling.
        waiting_for: what calls wait for: ``"outage"``, ``"capacity"``, ``"throttling"``; None while the endpoint is
            well.
        retries: requests of this run's calls that were sent again.
        fraction: the share of the input that was read, from 0 to 1; None for a stream.
        remaining: estimated seconds to the end; None while that is not known.
        waiting: calls that wait for a slot, or for the endpoint.
        rows: rows to be scored in all, earlier runs' among them; None while that is not known, as of a stream.
        is_estimate: whether ``rows`` is an estimate from the share of the input that was read.
    """

    scored: int
    failed: int
    resumed: int
    seconds: float
    rows_per_second: float
    in_flight: int
    max_in_flight: int
    waiting_for: str | None
    retries: int
    fraction: float | None
    remaining: float | None
    waiting: int = 0
    rows: int | None = None
    is_estimate: bool = True


class Pace:
    """How many rows are done per second, lately.

    Args:
        now: when the first row was sent, in seconds.
        done: rows that were done before.

    >>> pace = Pace(0.0, 1000)
    >>> [pace.at(now, 1000 + 20 * now) for now in (1, 2, 50)]
    [20.0, 20.0, 20.0]
    >>> pace.at(80, 2000)
    0.0
    """

    def __init__(self, now: float, done: int) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now, done)])

    def at(self, now: float, done: int) -> float:
        """Rows done per second over the last 30 s, or since the first row.

        Args:
            now: seconds of the same clock.
            done: rows that are done.
        """
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - _WINDOW_SECONDS:
            samples.popleft()
        since, before = samples[0]
        if now - samples[-1][0] >= _SAMPLE_SECONDS:
            samples.append((now, done))
        return max(done - before, 0) / (now - since) if now > since else 0.0


def progress_of(
    pace: Pace,
    now: float,
    *,
    started: float,
    scored: int,
    failed: int,
    resumed: int,
    limiter: LimiterStatistics | None,
    ceiling: int,
    retries: int,
    fraction: float | None,
    rows_read: int,
    rows_in_input: int | None,
    limit: int | None,
) -> Progress:
    """A job's progress.

    Args:
        pace: its pace, which takes note of what is done.
        now, started: seconds of one clock.
        scored, failed, resumed, retries, fraction: as in `Progress`.
        limiter: what holds for the endpoint; None before the first call.
        ceiling: how many calls may be in flight at most.
        rows_read: rows of the input that were read.
        rows_in_input: rows of the input; None if that is not known.
        limit: the number of rows that are scored at most. If None, all.
    """
    done = scored + failed
    rate = pace.at(now, done)
    rows: int | None = rows_in_input
    if rows is None and fraction and rows_read:
        rows = max(round(rows_read / fraction), rows_read)
    if limit is not None and (rows is None or rows >= limit):
        # An input that is read to the limit has as many rows; until then it may have fewer.
        is_estimate, rows = rows_in_input is None and rows_read < limit, limit
    else:
        is_estimate = rows_in_input is None
    if rows is not None:
        rows = max(rows, done)
    waiting_for: str | None = None
    if limiter is not None:
        waiting_for = limiter.illness
        is_lowered = limiter.max_concurrency < ceiling and limiter.reason in (None, "refusal")
        if waiting_for is None and is_lowered and limiter.waiting:
            waiting_for = "throttling"
    return Progress(
        scored=scored,
        failed=failed,
        resumed=resumed,
        seconds=now - started,
        rows_per_second=rate,
        in_flight=limiter.in_use if limiter is not None else 0,
        max_in_flight=limiter.max_concurrency if limiter is not None else ceiling,
        waiting_for=waiting_for,
        retries=retries,
        fraction=fraction,
        remaining=(rows - done) / rate if rows is not None and rate else None,
        waiting=limiter.waiting + limiter.held_back if limiter is not None else 0,
        rows=rows,
        is_estimate=is_estimate and rows is not None,
    )
