"""How many calls to one endpoint may be in flight: the arithmetic, apart from the waiting.

`aiosmrt.limiter.Limiter` keeps the queue and asks a `Capacity` one question, "how many may be in flight now?", by
reading ``limit``.  After every call it tells the capacity how the call went.  A fixed capacity ignores that; an
adaptive one (additive increase and multiplicative decrease, or CUBIC, as in RFC 9438) moves ``limit``.  What an
adaptive rule needs is therefore in the hooks already:

- ``started_at`` and ``now`` give the call's duration, and tell a throttle that answers a call sent before the last
  decrease from one sent after it (a window is cut once per round trip, not once per refused call);
- ``in_flight`` tells a full window from an idle one, which must not grow on the strength of calls that never
  tested it.

Nothing here reads a clock: times are seconds of whichever monotonic clock the caller uses throughout.
"""

from __future__ import annotations

from typing import Protocol


class Capacity(Protocol):
    """What a limiter asks about the number of calls in flight.

    ``limit`` is read on every call, so it is an attribute and not a computation.
    """

    @property
    def limit(self) -> int:
        """The number of calls that may be in flight now, at least 1."""
        ...

    def on_success(self, started_at: float, now: float, in_flight: int) -> None:
        """Take note of a call that the service carried out.

        Args:
            started_at: when the call was sent, in seconds.
            now: when its answer was complete, in seconds of the same clock.
            in_flight: calls in flight at ``now``, this one included.
        """
        ...

    def on_throttle(self, started_at: float, now: float, in_flight: int) -> None:
        """Take note of a call that the service refused for load; the arguments are those of `on_success`."""
        ...


class FixedCapacity:
    """A capacity that stays where it was set.

    Args:
        limit: calls that may be in flight, at least 1.

    Raises:
        ValueError: ``limit`` is below 1.

    Example:
        >>> capacity = FixedCapacity(100)
        >>> capacity.on_throttle(0.0, 0.2, 100)
        >>> capacity.limit
        100
    """

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a capacity must let at least 1 call through, not {limit}")
        self.limit = limit

    def on_success(self, started_at: float, now: float, in_flight: int) -> None:
        """Do nothing: a fixed capacity does not learn."""

    def on_throttle(self, started_at: float, now: float, in_flight: int) -> None:
        """Do nothing: a fixed capacity does not learn."""

    def __repr__(self) -> str:
        return f"FixedCapacity({self.limit})"
