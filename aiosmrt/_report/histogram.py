"""`Histogram`: durations in fixed memory, with a known relative error.

Durations are counted in buckets of which each factor of two has 64 of equal width (as in Gil Tene's HdrHistogram), in
whole microseconds. A bucket's middle is at most 1/128 away from what was counted there, and durations up to 128 µs are
exact to the microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

__all__ = ["RELATIVE_ERROR", "Histogram"]

_HALF_BITS = 6
_HALF = 1 << _HALF_BITS
_EXACT = 2 * _HALF
_MICROSECONDS = 1e6
# An hour and more; what takes longer counts as this.
_MOST = (1 << 32) - 1

RELATIVE_ERROR = 1 / (2 * _HALF)
"""The largest error of a percentile, as a share of it."""


def _bucket(microseconds: int) -> int:
    shift = max(microseconds.bit_length() - _HALF_BITS - 1, 0)
    return shift * _HALF + (microseconds >> shift)


def _edges(bucket: int) -> tuple[int, int]:
    """The microseconds at which a bucket begins, and at which the next one does."""
    if bucket < _EXACT:
        return bucket, bucket + 1
    shift = bucket // _HALF - 1
    least = (bucket - shift * _HALF) << shift
    return least, least + (1 << shift)


class Histogram:
    """Counts durations, in at most 1,792 buckets whatever their number.

    >>> histogram = Histogram()
    >>> for milliseconds in range(1, 1001):
    ...     histogram.add(milliseconds / 1000)
    >>> round(histogram.percentile(99), 2), histogram.maximum, round(histogram.mean, 4)
    (0.99, 1.0, 0.5005)
    """

    __slots__ = ("_buckets", "_sum", "count", "maximum", "minimum")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._sum = 0.0
        self.count: int = 0
        self.minimum: float = math.inf
        self.maximum: float = -math.inf

    def add(self, seconds: float) -> None:
        """Count a duration.

        Args:
            seconds: the duration; a negative one, as of a clock that was set back, counts as 0.
        """
        seconds = max(seconds, 0.0)
        bucket = _bucket(min(round(seconds * _MICROSECONDS), _MOST))
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._sum += seconds
        self.count += 1
        self.minimum = min(self.minimum, seconds)
        self.maximum = max(self.maximum, seconds)

    def merge(self, other: Histogram) -> None:
        """Count what another histogram has counted."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self._sum += other._sum
        self.count += other.count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    @property
    def mean(self) -> float:
        """The exact mean in seconds; NaN of none."""
        return self._sum / self.count if self.count else math.nan

    def percentile(self, percent: float) -> float:
        """The duration that this share of all does not exceed, in seconds; NaN of none.

        Args:
            percent: from 0 (the shortest) to 100 (the longest), both of which are exact.
        """
        if not self.count:
            return math.nan
        rank = max(math.ceil(self.count * percent / 100), 1)
        if rank >= self.count:
            return self.maximum
        seen = 0
        for least, end, count in self.buckets():
            seen += count
            if seen >= rank:
                return min(max((least + end) / 2, self.minimum), self.maximum)
        return self.maximum

    def percentiles(self, *percents: float) -> dict[str, float]:
        """Several percentiles by name, such as ``p99.9``."""
        return {f"p{percent:g}": self.percentile(percent) for percent in percents}

    def buckets(self) -> Iterator[tuple[float, float, int]]:
        """The buckets that are not empty, in order: where each begins and ends, in seconds, and its count."""
        for bucket in sorted(self._buckets):
            least, end = _edges(bucket)
            # Durations were rounded to whole microseconds.
            yield max(least - 0.5, 0.0) / _MICROSECONDS, (end - 0.5) / _MICROSECONDS, self._buckets[bucket]

    def share_within(self, seconds: float) -> float:
        """The share of durations up to a limit, from 0 to 1; NaN of none. Exact to the bucket."""
        if not self.count:
            return math.nan
        last = _bucket(min(round(seconds * _MICROSECONDS), _MOST))
        return sum(count for bucket, count in self._buckets.items() if bucket <= last) / self.count

    def as_dict(self) -> Mapping[str, float | int | None]:
        """Its figures, in seconds; only the count if nothing was recorded."""
        if not self.count:
            return {"count": 0}
        return {
            "count": self.count,
            "minimum": self.minimum,
            "mean": self.mean,
            "maximum": self.maximum,
            **self.percentiles(50, 90, 95, 99, 99.9),
        }
