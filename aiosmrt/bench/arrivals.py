"""When the calls of an open model begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias

__all__ = ["ARRIVALS", "Arrivals", "arrivals", "doubling"]

Arrivals: TypeAlias = Literal["poisson", "constant"]

ARRIVALS: Final[tuple[Arrivals, ...]] = ("poisson", "constant")


def arrivals(kind: Arrivals, rate: float, seconds: float, random: Callable[[], float]) -> Iterator[float]:
    """The times at which calls begin, in seconds from the beginning.

    Args:
        kind: ``"constant"`` for equal gaps; ``"poisson"`` for those of callers who know nothing of each other, which
            are random with an exponential distribution.
        rate: calls per second, on average.
        seconds: all times are before this.
        random: random numbers in [0, 1).

    >>> list(arrivals("constant", 4, 1, random=lambda: 0.0))
    [0.0, 0.25, 0.5, 0.75]
    >>> [round(time, 3) for time in arrivals("poisson", 2, 1, random=lambda: 0.5)]
    [0.347, 0.693]
    """
    if kind == "constant":
        number = 0
        # Multiplied, because a sum of gaps would drift.
        while (time := number / rate) < seconds:
            yield time
            number += 1
        return
    time = 0.0
    while (time := time - math.log1p(-random()) / rate) < seconds:
        yield time


def doubling(most: int) -> list[int]:
    """Steps of concurrency from 1, each twice the one before, to a largest.

    >>> doubling(12)
    [1, 2, 4, 8, 12]
    """
    steps = [1]
    while steps[-1] < most:
        steps.append(min(2 * steps[-1], most))
    return steps
