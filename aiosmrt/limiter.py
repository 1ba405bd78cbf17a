"""Who may call an endpoint now, and who waits: asyncio's side of `aiosmrt.policy.capacity`.

A limiter counts slots.  Its invariants, at every suspension point:

1. ``in_use`` counts the slots that are held or granted.  The slot is counted by whoever *grants* it, so there is no
   moment between a release and the waiter's wake-up at which a newcomer could take it (no barging).
2. While somebody waits, ``in_use >= capacity.limit``: every event that could break this (a release, a larger limit)
   grants slots at once, in the order of arrival.
3. A cancelled waiter leaves the queue.  If its slot had been granted already (the grant and the cancellation met in
   one turn of the loop), the slot is handed on to the next in line, so no wake-up is lost.

All state changes are synchronous; the one ``await`` is on the waiter's own future.  A limiter belongs to one event
loop, as the futures do, and needs no lock.

The queue is an ``OrderedDict`` because a waiter leaves from the middle when it is cancelled: both that and taking the
first are O(1), while a deque would search, and a plain dict would walk over its deleted front.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from aiosmrt.policy.capacity import Capacity, FixedCapacity


class LimiterStatistics(NamedTuple):
    """A limiter's state at one moment.

    Args:
        in_use: slots held, or granted to a waiter that is about to wake.
        waiting: callers in the queue.
        max_concurrency: slots that may be in use now; ``in_use`` is above it for a while after it was lowered.
    """

    in_use: int
    waiting: int
    max_concurrency: int


class Limiter:
    """Let a bounded number of calls through at once, first come, first served.

    Args:
        max_concurrency: calls that may be in flight together, at least 1; or a `Capacity` that says so call by call.

    Raises:
        ValueError: ``max_concurrency`` is below 1.

    Example:
        >>> async def call(limiter):
        ...     if not limiter.try_acquire():
        ...         await limiter.acquire()
        ...     try:
        ...         return limiter.statistics()
        ...     finally:
        ...         limiter.release()
        >>> asyncio.run(call(Limiter(2)))
        LimiterStatistics(in_use=1, waiting=0, max_concurrency=2)
    """

    __slots__ = ("_capacity", "_in_use", "_waiters")

    def __init__(self, max_concurrency: int | Capacity) -> None:
        self._capacity: Capacity = (
            FixedCapacity(max_concurrency) if isinstance(max_concurrency, int) else max_concurrency
        )
        self._in_use = 0
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def capacity(self) -> Capacity:
        """The arithmetic behind this limiter; call `capacity_changed` after changing its limit from outside."""
        return self._capacity

    def try_acquire(self) -> bool:
        """Take a slot if one is free and nobody waits for it, without suspending.

        Returns:
            Whether the slot was taken; if so, `release` must be called once.
        """
        in_use = self._in_use
        if in_use < self._capacity.limit and not self._waiters:
            self._in_use = in_use + 1
            return True
        return False

    async def acquire(self) -> None:
        """Take a slot, waiting in the order of arrival until one is free; `release` must be called once.

        When the wait is cancelled, no slot is held. Bound it with ``asyncio.timeout_at``.
        """
        if self.try_acquire():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._waiters.pop(waiter, None)
            elif waiter.exception() is None:
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back, to the first in the queue if there is one.

        Raises:
            RuntimeError: more slots were released than acquired.
        """
        in_use = self._in_use
        if in_use < 1:
            raise RuntimeError("a slot was released that was never acquired")
        self._in_use = in_use - 1
        if self._waiters:
            self._grant()

    def on_success(self, started_at: float, now: float) -> None:
        """Tell the capacity of a call that the service carried out; call it before `release`.

        Args:
            started_at: when the call was sent, in seconds of the caller's monotonic clock.
            now: when its answer was complete, in seconds of the same clock.
        """
        self._capacity.on_success(started_at, now, self._in_use)
        if self._waiters:
            self._grant()

    def on_throttle(self, started_at: float, now: float) -> None:
        """Tell the capacity of a call that the service refused for load; the arguments are those of `on_success`."""
        self._capacity.on_throttle(started_at, now, self._in_use)
        if self._waiters:
            self._grant()

    def capacity_changed(self) -> None:
        """Admit waiters that a larger limit has room for, after the capacity was changed from outside."""
        self._grant()

    def refuse_waiters(self, error: Callable[[], Exception]) -> None:
        """Raise an error in everybody who waits, because no slot will be granted to them any more.

        Args:
            error: makes an error, one for each.
        """
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(error())

    def statistics(self) -> LimiterStatistics:
        """Count what is held and who waits."""
        # A cancelled waiter stays in the queue until its task has run once more; it no longer waits.
        waiting = sum(not waiter.done() for waiter in self._waiters)
        return LimiterStatistics(self._in_use, waiting, self._capacity.limit)

    def _grant(self) -> None:
        waiters = self._waiters
        while waiters and self._in_use < self._capacity.limit:
            waiter, _ = waiters.popitem(last=False)
            if not waiter.done():
                self._in_use += 1
                waiter.set_result(None)

    def __repr__(self) -> str:
        state = self.statistics()
        return f"<Limiter in_use={state.in_use} waiting={state.waiting} max_concurrency={state.max_concurrency}>"
