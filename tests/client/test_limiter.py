"""The limiter: order, cancellation at every moment, changing limits, and a model of the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiosmrt.limiter import Limiter, LimiterStatistics
from aiosmrt.policy.capacity import FixedCapacity


async def settle() -> None:
    """Let every task run as far as it can without I/O or timers: a grant wakes its task in the next turn."""
    for _ in range(4):
        await asyncio.sleep(0)


async def queue(limiter: Limiter, count: int) -> list[asyncio.Task[None]]:
    """Start ``count`` waiters, in order."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(limiter.acquire()))
        await settle()
    return tasks


async def test_slots_are_taken_without_suspending_while_they_are_free() -> None:
    limiter = Limiter(2)
    assert limiter.try_acquire()
    acquire = limiter.acquire()
    with pytest.raises(StopIteration):
        acquire.send(None)
    assert not limiter.try_acquire()
    assert limiter.statistics() == LimiterStatistics(in_use=2, waiting=0, max_concurrency=2)
    limiter.release()
    limiter.release()
    assert limiter.statistics().in_use == 0


async def test_waiters_are_served_in_the_order_of_arrival() -> None:
    limiter = Limiter(1)
    assert limiter.try_acquire()
    served = []

    async def call(name: int) -> None:
        await limiter.acquire()
        served.append(name)
        await asyncio.sleep(0)
        limiter.release()

    tasks = []
    for name in range(20):
        tasks.append(asyncio.create_task(call(name)))
        await asyncio.sleep(0)
    assert limiter.statistics() == LimiterStatistics(in_use=1, waiting=20, max_concurrency=1)
    limiter.release()
    await asyncio.gather(*tasks)
    assert served == list(range(20))
    assert limiter.statistics() == LimiterStatistics(in_use=0, waiting=0, max_concurrency=1)


async def test_nobody_barges_between_a_release_and_the_wake_up() -> None:
    limiter = Limiter(1)
    assert limiter.try_acquire()
    (waiter,) = await queue(limiter, 1)
    limiter.release()
    assert not waiter.done()
    assert not limiter.try_acquire()
    assert limiter.statistics() == LimiterStatistics(in_use=1, waiting=0, max_concurrency=1)
    newcomer = asyncio.create_task(limiter.acquire())
    await waiter
    await settle()
    assert not newcomer.done()
    limiter.release()
    await newcomer
    limiter.release()


async def test_nobody_barges_while_others_wait_and_slots_are_free_for_a_moment() -> None:
    """A lowered limit that rises again silently must not let a newcomer pass the queue."""
    capacity = FixedCapacity(1)
    limiter = Limiter(capacity)
    assert limiter.try_acquire()
    (waiter,) = await queue(limiter, 1)
    capacity.limit = 2
    assert not limiter.try_acquire()
    limiter.capacity_changed()
    await waiter
    assert limiter.statistics().in_use == 2


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    limiter = Limiter(1)
    assert limiter.try_acquire()
    first, second, third = await queue(limiter, 3)
    second.cancel()
    assert limiter.statistics().waiting == 2
    await settle()
    assert second.cancelled()
    assert limiter.statistics() == LimiterStatistics(in_use=1, waiting=2, max_concurrency=1)
    limiter.release()
    await first
    limiter.release()
    await third
    limiter.release()
    assert limiter.statistics() == LimiterStatistics(in_use=0, waiting=0, max_concurrency=1)


@pytest.mark.parametrize("cancel_first", [False, True], ids=["granted then cancelled", "cancelled then granted"])
async def test_a_grant_that_meets_a_cancellation_is_passed_on(cancel_first: bool) -> None:
    limiter = Limiter(1)
    assert limiter.try_acquire()
    first, second = await queue(limiter, 2)
    steps: list[Callable[[], object]] = [limiter.release, first.cancel]
    if cancel_first:
        steps.reverse()
    for step in steps:
        step()
    await settle()
    assert first.cancelled()
    assert second.done()
    assert limiter.statistics() == LimiterStatistics(in_use=1, waiting=0, max_concurrency=1)
    limiter.release()
    assert limiter.try_acquire()


async def test_a_grant_is_given_back_when_every_waiter_is_cancelled() -> None:
    limiter = Limiter(1)
    assert limiter.try_acquire()
    waiters = await queue(limiter, 3)
    limiter.release()
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    assert limiter.statistics() == LimiterStatistics(in_use=0, waiting=0, max_concurrency=1)
    assert limiter.try_acquire()


async def test_a_timeout_ends_the_wait() -> None:
    capacity = FixedCapacity(1)
    limiter = Limiter(capacity)
    assert limiter.try_acquire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await limiter.acquire()
    assert limiter.statistics() == LimiterStatistics(in_use=1, waiting=0, max_concurrency=1)
    # Nothing of it is left in the queue to stand in a newcomer's way.
    capacity.limit = 2
    assert limiter.try_acquire()


async def test_a_larger_limit_admits_waiters_and_a_smaller_one_drains() -> None:
    capacity = FixedCapacity(1)
    limiter = Limiter(capacity)
    assert limiter.capacity is capacity
    assert limiter.try_acquire()
    waiters = await queue(limiter, 4)
    capacity.limit = 3
    limiter.capacity_changed()
    await settle()
    assert [waiter.done() for waiter in waiters] == [True, True, False, False]
    capacity.limit = 1
    limiter.capacity_changed()
    assert limiter.statistics() == LimiterStatistics(in_use=3, waiting=2, max_concurrency=1)
    limiter.release()
    limiter.release()
    await settle()
    assert limiter.statistics() == LimiterStatistics(in_use=1, waiting=2, max_concurrency=1)
    limiter.release()
    await waiters[2]
    limiter.release()
    await waiters[3]
    limiter.release()


async def test_more_releases_than_acquires_are_a_bug() -> None:
    limiter = Limiter(1)
    with pytest.raises(RuntimeError, match="never acquired"):
        limiter.release()
    assert limiter.statistics().in_use == 0


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Limiter(0)


async def test_repr_names_the_state() -> None:
    limiter = Limiter(1)
    assert limiter.try_acquire()
    (waiter,) = await queue(limiter, 1)
    assert repr(limiter) == "<Limiter in_use=1 waiting=1 max_concurrency=1>"
    waiter.cancel()
    await settle()


@dataclass
class Stepwise:
    """An adaptive capacity in small: one more after every success, half after a throttle."""

    limit: int
    seen: list[tuple[str, float, float, int]]

    def on_success(self, started_at: float, now: float, in_flight: int) -> None:
        self.seen.append(("success", started_at, now, in_flight))
        self.limit += 1

    def on_throttle(self, started_at: float, now: float, in_flight: int) -> None:
        self.seen.append(("throttle", started_at, now, in_flight))
        self.limit = max(1, self.limit // 2)


async def test_an_adaptive_capacity_hears_of_every_call_and_moves_the_limit() -> None:
    capacity = Stepwise(2, [])
    limiter = Limiter(capacity)
    assert limiter.try_acquire()
    assert limiter.try_acquire()
    first, second = await queue(limiter, 2)
    limiter.on_success(0.0, 1.0)
    await first
    limiter.release()
    await second
    assert limiter.statistics() == LimiterStatistics(in_use=3, waiting=0, max_concurrency=3)
    limiter.on_throttle(1.0, 2.0)
    limiter.release()
    assert limiter.statistics() == LimiterStatistics(in_use=2, waiting=0, max_concurrency=1)
    assert not limiter.try_acquire()
    assert capacity.seen == [("success", 0.0, 1.0, 2), ("throttle", 1.0, 2.0, 3)]


class LimiterMachine(RuleBasedStateMachine):
    """Any interleaving of arrivals, cancellations, releases and limit changes against a list and a counter.

    ``turn`` lets the loop run; without it several events meet in one turn, which is where wake-ups get lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.capacity = FixedCapacity(2)
        self.limiter = Limiter(self.capacity)
        self.arrivals = 0
        self.served: list[int] = []
        self.queue: list[tuple[int, asyncio.Task[None]]] = []
        self.held = 0

    async def _wait(self, number: int) -> None:
        await self.limiter.acquire()
        self.served.append(number)
        self.held += 1

    def _run(self) -> None:
        self.loop.run_until_complete(settle())
        self.queue = [(number, task) for number, task in self.queue if not task.done()]

    @rule()
    def arrive(self) -> None:
        # Run at once, so that the order of arrival is the order of the queue; and before that, because one who finds a
        # free slot goes on at once, ahead of one who was given a slot earlier and has yet to wake up.
        self._run()
        self.queue.append((self.arrivals, self.loop.create_task(self._wait(self.arrivals))))
        self.arrivals += 1
        self._run()

    @rule()
    def try_to_take(self) -> None:
        free = self.limiter.statistics()
        taken = self.limiter.try_acquire()
        if free.waiting:
            assert not taken
        elif taken:
            assert free.in_use < self.capacity.limit
        self.held += taken

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.queue))[1].cancel()

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.limiter.release()
        self.held -= 1

    @rule(limit=st.integers(1, 4))
    def change(self, limit: int) -> None:
        self.capacity.limit = limit
        self.limiter.capacity_changed()

    @rule()
    def turn(self) -> None:
        self._run()
        state = self.limiter.statistics()
        assert state.in_use == self.held
        assert state.waiting == len(self.queue)
        # No lost wake-up: whoever waits, waits because the limit is reached.
        assert not self.queue or state.in_use >= state.max_concurrency

    @invariant()
    def in_order(self) -> None:
        assert self.served == sorted(self.served)

    def teardown(self) -> None:
        self._run()
        self.change(4)
        while self.held or self.queue:
            if self.held:
                self.release()
            self._run()
        assert self.limiter.statistics() == LimiterStatistics(in_use=0, waiting=0, max_concurrency=4)
        self.loop.close()


TestLimiterMachine = LimiterMachine.TestCase
