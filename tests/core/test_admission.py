"""Admissions: order, cancellation at every moment, targets that are ill, and a model of the whole."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiosmrt._core.admission import Admission, Admissions, CallLater, LimiterStatistics, Waiter
from aiosmrt._policy.adaptive import AdaptiveLimit
from aiosmrt._policy.limit import FIRST_WINDOW
from aiosmrt._policy.target_health import (
    FIRST_CAPACITY_PAUSE,
    FIRST_PAUSE,
    LET_IN_AFTER,
    Illness,
)
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    EndpointConnectionError,
    ModelError,
    NoCapacityError,
    ParamValidationError,
    ReadTimeoutError,
    ThrottlingError,
)
from tests.support.virtual_time import VirtualTime

Wait: TypeAlias = "asyncio.Task[bool]"

# Timers may strike this many seconds early.
EARLY = 1e-5

FIRST_PAUSES: dict[Illness, float] = {"outage": FIRST_PAUSE, "capacity": FIRST_CAPACITY_PAUSE}


class FakeClockwork:
    """A client's clock, random numbers and timers in virtual time; pauses last as long as they may."""

    def __init__(self, time: VirtualTime) -> None:
        self.clock = lambda: time.now
        self.random = lambda: 1.0
        self.call_later: CallLater = time.call_later


@dataclass(eq=False)
class FakeCaller:
    """A call that waits.

    Args:
        time: the time that it lives in.
        patience: seconds for which it waits for the end of an outage. If None, no limit.
        capacity: seconds for which it waits for capacity; None when it does not.
        failed_at: when it failed first; its patience begins then.
    """

    time: VirtualTime
    patience: float | None = 20.0
    capacity: float | None = 60.0
    failed_at: float | None = None

    def waits_out(self, illness: Illness) -> bool:
        return self.capacity is not None if illness == "capacity" else self.patience != 0

    def waits_until(self, illness: Illness, since: float) -> float | None:
        if illness == "capacity":
            return None if self.capacity is None else since + self.capacity
        if self.patience is None:
            return None
        return self.patience + (since if self.failed_at is None else self.failed_at)


def refused() -> AiosmrtError:
    return EndpointConnectionError("refused")


def throttled() -> AiosmrtError:
    return ThrottlingError({"Error": {"Code": "ThrottlingException"}}, "InvokeEndpoint")


def no_capacity() -> AiosmrtError:
    return NoCapacityError({"Error": {"Code": "ValidationError"}}, "InvokeEndpoint")


def model_error() -> AiosmrtError:
    return ModelError({"Error": {"Code": "ModelError"}}, "InvokeEndpoint")


async def settle() -> None:
    """Let every task run as far as it can without I/O or timers: a grant wakes its task in the next turn."""
    for _ in range(4):
        await asyncio.sleep(0)


class Target:
    """A target in virtual time, and what calls do there.

    Args:
        maximum: its ceiling.
    """

    def __init__(self, maximum: int = 64) -> None:
        self.time = VirtualTime()
        self.admission = Admission(FakeClockwork(self.time), maximum)

    def call(self, patience: float | None = 20.0, capacity: float | None = 60.0) -> FakeCaller:
        return FakeCaller(self.time, patience, capacity)

    def take(self, count: int = 1) -> list[FakeCaller]:
        """Calls that have taken free slots."""
        calls = [self.call() for _ in range(count)]
        assert all(self.admission.try_acquire() for _ in calls)
        return calls

    async def line_up(self, *calls: FakeCaller, returning: bool = False, front: bool = False) -> list[Wait]:
        """Let calls acquire slots, in order."""
        waits = []
        for call in calls:
            waits.append(asyncio.create_task(self.admission.acquire(call, returning=returning, front=front)))
            await settle()
        return waits

    async def advance(self, seconds: float) -> None:
        await self.time.advance(seconds)
        await settle()

    def answer(self, call: FakeCaller, started_at: float | None = None) -> None:
        """Report a success, and keep the slot; all that have a slot have sent their requests."""
        admission = self.admission
        admission.outstanding = admission.in_use
        admission.on_success(call, self.time.now if started_at is None else started_at, admission.in_use)

    def succeed(self, call: FakeCaller, started_at: float | None = None) -> None:
        self.answer(call, started_at)
        self.admission.release(call)

    def report(self, call: FakeCaller, error: AiosmrtError) -> bool:
        """Report a failure, and keep the slot; return whether that is right."""
        waits_for_capacity = isinstance(error, NoCapacityError) and call.capacity is not None
        if call.failed_at is None:
            call.failed_at = self.time.now
        admission = self.admission
        admission.outstanding = admission.in_use
        return admission.on_failure(call, self.time.now, admission.in_use, error, waits_for_capacity=waits_for_capacity)

    def answer_with(self, call: FakeCaller, error: AiosmrtError, started_at: float) -> None:
        """Report a failure of a request that was sent alone, and keep the slot."""
        self.admission.outstanding = 1
        self.admission.on_failure(call, started_at, 1, error, waits_for_capacity=False)

    def fail(self, call: FakeCaller, error: AiosmrtError) -> None:
        self.report(call, error)
        self.admission.release(call)

    def fall_ill(self, illness: Illness = "outage") -> None:
        """Let a call find out that the target is ill, at whatever has to be reported for that."""
        (call,) = self.take()
        for _ in range(10):
            if self.admission.illness is None:
                self.report(call, refused() if illness == "outage" else no_capacity())
        self.admission.release(call)
        assert self.admission.illness == illness

    def statistics(self) -> tuple[int, int, int]:
        """Slots in use, calls that wait for one, calls that wait for the target to recover."""
        statistics = self.admission.statistics()
        return statistics.in_use, statistics.waiting, statistics.held_back


def done(waits: list[Wait]) -> list[bool]:
    return [wait.done() for wait in waits]


# Slots of a healthy target


async def test_slots_are_taken_without_suspending_while_they_are_free() -> None:
    target = Target(2)
    (first,) = target.take()
    second = target.call()
    assert not target.admission.must_wait(second)
    acquire = target.admission.acquire(second)
    with pytest.raises(StopIteration) as stop:
        acquire.send(None)
    assert stop.value.value is True
    assert target.admission.must_wait(target.call())
    assert not target.admission.try_acquire()
    assert target.admission.statistics() == LimiterStatistics(in_use=2, waiting=0, max_concurrency=2)
    target.admission.release(first)
    target.admission.release(second)
    assert target.admission.is_idle


async def test_calls_are_served_in_the_order_of_arrival() -> None:
    target = Target(1)
    (holder,) = target.take()
    served = []

    async def run(number: int) -> None:
        call = target.call()
        assert await target.admission.acquire(call)
        served.append(number)
        await asyncio.sleep(0)
        target.admission.release(call)

    tasks = []
    for number in range(20):
        tasks.append(asyncio.create_task(run(number)))
        await asyncio.sleep(0)
    assert target.statistics() == (1, 20, 0)
    target.admission.release(holder)
    await asyncio.gather(*tasks)
    assert served == list(range(20))
    assert target.statistics() == (0, 0, 0)


async def test_calls_that_return_go_before_newcomers() -> None:
    target = Target(1)
    (holder,) = target.take()
    newcomers = [target.call(), target.call()]
    returned = [target.call(), target.call()]
    new = await target.line_up(*newcomers)
    returning = await target.line_up(*returned, returning=True)
    for call, wait in zip([holder, *returned, *newcomers], [*returning, *new, None], strict=True):
        target.admission.release(call)
        if wait is not None:
            assert await wait
            assert target.admission.in_use == 1


async def test_no_call_barges_between_a_release_and_the_wake_up() -> None:
    target = Target(1)
    (holder,) = target.take()
    waiter = target.call()
    (wait,) = await target.line_up(waiter)
    target.admission.release(holder)
    assert not wait.done()
    assert not target.admission.try_acquire()
    assert target.statistics() == (1, 0, 0)
    (newcomer,) = await target.line_up(target.call())
    assert await wait
    assert not newcomer.done()
    target.admission.release(waiter)
    assert await newcomer


async def test_a_smaller_limit_drains_and_a_larger_one_lets_more_in() -> None:
    target = Target(8)
    holders = target.take(8)
    waits = await target.line_up(*(target.call() for _ in range(3)))
    target.report(holders[0], throttled())
    assert target.admission.statistics() == LimiterStatistics(in_use=8, waiting=3, max_concurrency=7)
    target.admission.release(holders[0])
    await settle()
    assert target.statistics() == (7, 3, 0)
    target.admission.release(holders[1])
    assert await waits[0]
    for _ in range(50):
        if target.admission.in_use == 7:
            target.answer(holders[2])
    assert target.admission.statistics() == LimiterStatistics(in_use=8, waiting=1, max_concurrency=8)
    assert await waits[1]
    waits[2].cancel()
    await settle()


async def test_a_call_keeps_its_slot_through_back_off_unless_there_are_fewer() -> None:
    target = Target(8)
    assert not target.admission.is_full
    first, *others = target.take(8)
    assert target.admission.is_full
    assert target.report(first, refused()) is True
    assert target.report(first, model_error()) is True
    assert not target.admission.is_overdrawn
    assert target.report(first, throttled()) is False
    assert target.admission.is_overdrawn
    target.admission.release(first)
    assert not target.admission.is_overdrawn
    for call in others[1:]:
        target.admission.release(call)
    assert [target.report(others[0], refused()) for _ in range(2)] == [True, False]
    assert target.admission.illness == "outage"
    assert target.admission.is_overdrawn
    assert target.admission.is_full


async def test_a_cancelled_call_leaves_the_line() -> None:
    target = Target(1)
    (holder,) = target.take()
    calls = [target.call() for _ in range(3)]
    first, second, third = await target.line_up(*calls)
    second.cancel()
    assert target.statistics() == (1, 2, 0)
    await settle()
    assert second.cancelled()
    assert target.statistics() == (1, 2, 0)
    target.admission.release(holder)
    assert await first
    target.admission.release(calls[0])
    assert await third
    target.admission.release(calls[2])
    assert target.statistics() == (0, 0, 0)


@pytest.mark.parametrize("cancel_first", [False, True], ids=["granted then cancelled", "cancelled then granted"])
async def test_a_grant_that_meets_a_cancellation_is_passed_on(cancel_first: bool) -> None:
    target = Target(1)
    (holder,) = target.take()
    first, second = await target.line_up(target.call(), target.call())
    steps: list[Callable[[], object]] = [lambda: target.admission.release(holder), first.cancel]
    if cancel_first:
        steps.reverse()
    for step in steps:
        step()
    await settle()
    assert first.cancelled()
    assert await second
    assert target.statistics() == (1, 0, 0)


async def test_a_slot_is_free_again_when_all_waiters_are_cancelled() -> None:
    target = Target(1)
    (holder,) = target.take()
    waits = await target.line_up(*(target.call() for _ in range(3)))
    target.admission.release(holder)
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    assert target.statistics() == (0, 0, 0)
    assert target.admission.try_acquire()


async def test_a_discarded_wait_passes_its_slot_on() -> None:
    """As by a loop that is closed over pending tasks."""
    target = Target(1)
    (holder,) = target.take()
    abandoned = target.admission.acquire(target.call())
    granted = target.admission.acquire(target.call())
    for acquire in (abandoned, granted):
        acquire.send(None)
    (other,) = await target.line_up(target.call())
    abandoned.close()
    target.admission.release(holder)
    granted.close()
    assert await other
    assert target.statistics() == (1, 0, 0)


async def test_a_timeout_ends_the_wait() -> None:
    target = Target(1)
    (holder,) = target.take()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await target.admission.acquire(target.call())
    assert target.statistics() == (1, 0, 0)
    target.admission.release(holder)
    assert target.admission.try_acquire()


async def test_more_releases_than_acquires_are_an_error() -> None:
    target = Target()
    with pytest.raises(RuntimeError, match="never acquired"):
        target.admission.release(target.call())
    assert target.statistics() == (0, 0, 0)


async def test_a_caller_can_be_dismissed() -> None:
    target = Target(1)
    target.take()
    stranger, first, second = (target.call() for _ in range(3))
    waits = await target.line_up(first, second)
    target.admission.dismiss(stranger)
    target.admission.dismiss(second)
    target.admission.dismiss(second)
    await settle()
    assert done(waits) == [False, True]
    assert await waits[1] is False
    assert target.statistics() == (1, 1, 0)
    waits[0].cancel()
    await settle()


async def test_a_cancellation_that_meets_a_dismissal_returns_nothing() -> None:
    target = Target(1)
    target.take()
    call = target.call()
    (wait,) = await target.line_up(call)
    target.admission.dismiss(call)
    wait.cancel()
    await settle()
    assert wait.cancelled()
    assert target.statistics() == (1, 0, 0)


async def test_repr_names_the_state() -> None:
    target = Target(2)
    target.take(2)
    (wait,) = await target.line_up(target.call())
    assert repr(target.admission) == "<Admission healthy in_use=2 waiting=1 limit=2>"
    wait.cancel()
    await settle()
    ill = Target(2)
    ill.fall_ill()
    (wait,) = await ill.line_up(ill.call())
    assert repr(ill.admission) == "<Admission outage in_use=0 waiting=1 limit=2>"
    assert ill.admission.statistics() == LimiterStatistics(0, 0, 2, held_back=1, illness="outage")
    wait.cancel()
    await settle()


@pytest.mark.parametrize("sent", [False, True], ids=["before the probe", "during the probe"])
async def test_closing_leaves_no_timer(sent: bool) -> None:
    target = Target()
    target.fall_ill()
    calls = [target.call() for _ in range(3)]
    waits = await target.line_up(*calls)
    assert target.time.pending == [FIRST_PAUSE, 20.0, 20.0]
    if sent:
        await target.advance(FIRST_PAUSE)
        target.admission.probe_sent(calls[0])
        assert target.time.pending == [LET_IN_AFTER["outage"], 19.9, 19.9]
    target.admission.close()
    assert target.time.pending == []
    outcomes = await asyncio.gather(*waits, return_exceptions=True)
    assert [isinstance(outcome, ClientStateError) for outcome in outcomes] == [not sent, True, True]
    assert target.statistics() == (int(sent), 0, 0)


@pytest.mark.parametrize("cancel", [False, True], ids=["closed", "closed and cancelled"])
async def test_closing_fails_every_waiter(cancel: bool) -> None:
    target = Target(1)
    target.fall_ill()
    holder = target.call(patience=0)
    (held,) = await target.line_up(holder)
    assert await held
    waits = await target.line_up(target.call(), target.call(patience=0))
    waits += await target.line_up(target.call(), returning=True)
    assert target.statistics() == (1, 1, 2)
    target.admission.close()
    assert target.time.pending == []
    if cancel:
        for wait in waits:
            wait.cancel()
    for wait in waits:
        with pytest.raises(asyncio.CancelledError if cancel else ClientStateError):
            await wait
    target.admission.release(holder)
    assert target.statistics() == (0, 0, 0)
    assert target.time.pending == []


# A target that is ill: who probes


async def test_only_the_head_of_the_line_probes_after_the_pause() -> None:
    target = Target()
    target.fall_ill()
    calls = [target.call() for _ in range(3)]
    waits = await target.line_up(*calls)
    assert target.statistics() == (0, 0, 3)
    assert not target.admission.try_acquire()
    assert all(target.admission.must_wait(call) for call in [*calls, target.call()])
    assert target.time.pending == [FIRST_PAUSE, 20.0, 20.0], "the head's time ends with a probe"
    await target.advance(FIRST_PAUSE - 0.01)
    assert done(waits) == [False, False, False]
    await target.advance(0.01)
    assert done(waits) == [True, False, False]
    assert [target.admission.is_prober(call) for call in calls] == [True, False, False]
    await target.advance(2.0)
    assert target.statistics() == (1, 0, 2)
    assert target.time.pending == [17.9, 17.9], "while a probe is under way none is planned"
    target.succeed(calls[0])
    assert await asyncio.gather(*waits) == [True, True, True]
    assert target.time.pending == []


async def test_a_newcomer_probes_at_once_when_the_pause_is_over() -> None:
    target = Target()
    target.fall_ill()
    await target.advance(5.0)
    call = target.call()
    (wait,) = await target.line_up(call)
    assert wait.done()
    assert target.admission.is_prober(call)
    assert target.time.pending == []


async def test_those_that_wait_take_turns_in_probing() -> None:
    """A call may be refused for its own sake, and must not keep the others from finding that the target is well."""
    target = Target()
    target.fall_ill()
    await target.advance(8.0)
    prober, newcomer, returned = (target.call() for _ in range(3))
    await target.line_up(prober)
    (other,) = await target.line_up(newcomer)
    (returning,) = await target.line_up(returned, returning=True)
    target.fail(prober, refused())
    assert not target.admission.is_prober(prober)
    (wait,) = await target.line_up(prober, returning=True, front=True)
    assert target.time.pending == [2.0, 20.0, 20.0], "a quarter of the outage's age"
    await target.advance(1.9)
    assert not wait.done()
    await target.advance(0.1)
    assert done([wait, returning, other]) == [False, True, False]
    assert target.admission.is_prober(returned)
    target.fail(returned, refused())
    (returning,) = await target.line_up(returned, returning=True, front=True)
    await target.advance(2.6)
    assert target.admission.is_prober(newcomer)
    target.fail(newcomer, refused())
    await target.line_up(newcomer, returning=True, front=True)
    await target.advance(4.0)
    assert target.admission.is_prober(prober), "it has waited longest since it probed"
    target.succeed(prober)
    await settle()
    assert target.admission.illness is None
    assert await returning


async def test_a_prober_that_does_not_come_back_is_followed_after_the_pause() -> None:
    target = Target()
    target.fall_ill()
    await target.advance(8.0)
    prober, next_one = target.call(), target.call()
    await target.line_up(prober)
    (wait,) = await target.line_up(next_one)
    assert target.report(prober, refused()) is False, "a prober does not keep its slot"
    target.admission.release(prober)
    await settle()
    assert not wait.done()
    assert target.time.pending == [2.0]
    await target.advance(2.0)
    assert await wait
    assert target.admission.is_prober(next_one)


@pytest.mark.parametrize("sent", [False, True])
async def test_a_prober_that_leaves_without_an_outcome_is_followed_at_once(sent: bool) -> None:
    target = Target()
    target.fall_ill()
    first, second = target.call(), target.call()
    _, wait = await target.line_up(first, second)
    await target.advance(1.0)
    if sent:
        target.admission.probe_sent(first)
    target.admission.release(first)
    assert await wait
    assert target.admission.is_prober(second)
    assert target.statistics() == (1, 0, 0)
    assert target.time.pending == []


async def test_a_lone_prober_that_leaves_without_an_outcome_is_followed_by_the_next_to_come() -> None:
    target = Target()
    target.fall_ill()
    first, second = target.call(), target.call()
    await target.line_up(first)
    await target.advance(FIRST_PAUSE)
    target.admission.probe_sent(first)
    target.admission.release(first)
    assert target.time.pending == []
    (wait,) = await target.line_up(second)
    assert wait.done()
    assert target.admission.is_prober(second)


@pytest.mark.parametrize("cancel_first", [False, True], ids=["granted then cancelled", "cancelled then granted"])
async def test_a_probe_that_meets_a_cancellation_is_passed_on(cancel_first: bool) -> None:
    target = Target()
    target.fall_ill()
    prober, first, second = target.call(), target.call(), target.call()
    _, wait, other = await target.line_up(prober, first, second)
    await target.advance(1.0)
    steps: list[Callable[[], object]] = [lambda: target.admission.release(prober), wait.cancel]
    if cancel_first:
        steps.reverse()
    for step in steps:
        step()
    await settle()
    assert wait.cancelled()
    assert await other
    assert target.admission.is_prober(second)
    assert target.statistics() == (1, 0, 0)
    assert target.time.pending == []


async def test_the_next_in_line_probes_when_the_head_leaves() -> None:
    target = Target()
    target.fall_ill()
    first, second, third = await target.line_up(*(target.call() for _ in range(3)))
    first.cancel()
    await settle()
    assert not second.done(), "the pause is not over"
    assert target.time.pending == [FIRST_PAUSE, 20.0]
    third.cancel()
    await target.advance(FIRST_PAUSE)
    assert await second
    assert target.time.pending == []


async def test_a_head_that_is_cancelled_when_it_should_probe_leaves_that_to_the_next_to_come() -> None:
    target = Target()
    target.fall_ill()
    (wait,) = await target.line_up(target.call())
    wait.cancel()
    await target.advance(FIRST_PAUSE)
    assert wait.cancelled()
    assert target.statistics() == (0, 0, 0)
    newcomer = target.call()
    (wait,) = await target.line_up(newcomer)
    assert wait.done()
    assert target.admission.is_prober(newcomer)


async def test_an_abandoned_target_is_probed_by_the_next_to_come() -> None:
    target = Target()
    target.fall_ill()
    await target.advance(40.0)
    prober = target.call()
    await target.line_up(prober)
    target.fail(prober, refused())
    (wait,) = await target.line_up(prober, returning=True, front=True)
    assert target.time.pending == [5.0]
    wait.cancel()
    await settle()
    assert target.time.pending == []
    await target.advance(FIRST_PAUSE)
    newcomer = target.call()
    (wait,) = await target.line_up(newcomer)
    assert wait.done()
    assert target.admission.is_prober(newcomer)


async def test_the_next_free_slot_is_the_probes_when_the_ceiling_is_reached() -> None:
    """Even though the head has an end of its time to wait for."""
    target = Target(1)
    target.fall_ill()
    hurried, head = target.call(patience=0), target.call()
    await target.line_up(hurried)
    (wait,) = await target.line_up(head)
    await target.advance(5.0)
    assert not wait.done()
    assert target.time.pending == [15.0]
    target.admission.release(hurried)
    await settle()
    assert wait.done()
    assert target.admission.is_prober(head)
    assert target.time.pending == []


async def test_a_head_whose_time_ends_at_the_ceiling_gives_up() -> None:
    target = Target(1)
    target.fall_ill()
    hurried = target.call(patience=0)
    await target.line_up(hurried)
    waits = await target.line_up(target.call(patience=5.0), target.call(patience=None))
    await target.advance(5.0)
    assert done(waits) == [True, False]
    assert await waits[0] is False
    assert target.time.pending == []
    target.admission.release(hurried)
    assert await waits[1]


# A target that is ill: for how long calls wait


async def test_calls_whose_time_is_up_give_up_while_a_probe_is_under_way() -> None:
    target = Target()
    target.fall_ill()
    waits = await target.line_up(target.call(), target.call(patience=2.0), target.call(patience=None))
    await target.advance(1.9)
    assert done(waits) == [True, False, False]
    await target.advance(0.1)
    assert done(waits) == [True, True, False]
    assert await waits[1] is False
    assert target.statistics() == (1, 0, 1)
    assert target.time.pending == []
    waits[2].cancel()
    await settle()


async def test_the_head_probes_once_more_at_the_end_of_its_time() -> None:
    target = Target()
    target.fall_ill()
    await target.advance(40.0)
    call = target.call(patience=3.0)
    await target.line_up(call)
    target.fail(call, refused())
    (wait,) = await target.line_up(call, returning=True, front=True)
    assert target.time.pending == [3.0], "the pause would be 5 s"
    await target.advance(3.0)
    assert await wait
    assert target.admission.is_prober(call)
    target.fail(call, refused())
    (wait,) = await target.line_up(call, returning=True, front=True)
    assert await wait is False
    assert target.time.pending == []


async def test_there_is_no_last_probe_right_after_a_refusal() -> None:
    target = Target()
    target.fall_ill()
    await target.advance(40.0)
    prober = target.call()
    await target.line_up(prober)
    waits = await target.line_up(*(target.call(patience=2.0) for _ in range(3)))
    await target.advance(2.0 - FIRST_PAUSE / 2)
    target.fail(prober, refused())
    await settle()
    assert not any(done(waits))
    await target.advance(FIRST_PAUSE / 2)
    assert await asyncio.gather(*waits) == [False, False, False]
    assert target.statistics() == (0, 0, 0)
    assert target.time.pending == []


async def test_of_many_whose_time_ends_together_one_probes_last() -> None:
    target = Target()
    target.fall_ill()
    await target.advance(40.0)
    prober = target.call()
    await target.line_up(prober)
    calls = [target.call(patience=2.0) for _ in range(3)]
    waits = await target.line_up(*calls)
    target.fail(prober, refused())
    await target.advance(2.0)
    assert [await wait for wait in waits] == [True, False, False]
    assert target.admission.is_prober(calls[0])
    assert target.time.pending == []


async def test_no_time_passes_at_a_healthy_target() -> None:
    target = Target(1)
    (holder,) = target.take()
    (wait,) = await target.line_up(target.call())
    await target.advance(1000.0)
    for _ in range(3):
        target.report(holder, refused())
    assert target.statistics() == (1, 0, 1)
    await target.advance(19.9)
    assert not wait.done()
    await target.advance(0.1)
    assert await wait is False
    target.admission.release(holder)
    assert target.time.pending == []


async def test_a_call_that_gave_up_before_a_target_fell_ill_does_not_wait_for_it() -> None:
    target = Target(1)
    (holder,) = target.take()
    returned = target.call()
    returned.failed_at = target.time.now
    (wait,) = await target.line_up(returned, returning=True)
    await target.advance(30.0)
    for _ in range(3):
        target.report(holder, refused())
    assert await wait is False
    assert target.time.pending == []


# A target that is ill: calls that do not wait for that


async def test_calls_that_do_not_wait_for_an_illness_get_a_slot_below_the_ceiling() -> None:
    target = Target(3)
    target.fall_ill()
    patient = await target.line_up(target.call(patience=None))
    calls = [target.call(patience=0) for _ in range(5)]
    assert not target.admission.must_wait(calls[0])
    waits = await target.line_up(*calls)
    assert done(waits) == [True, True, True, False, False]
    assert not any(target.admission.is_prober(call) for call in calls)
    assert target.admission.must_wait(target.call(patience=0))
    assert target.statistics() == (3, 2, 1)
    target.fail(calls[0], refused())
    await settle()
    assert done(waits) == [True, True, True, True, False]
    target.fail(calls[1], refused())
    assert await waits[4]
    assert not any(done(patient))
    for call in calls[2:]:
        target.fail(call, refused())
    await target.advance(FIRST_PAUSE)
    assert all(done(patient))
    assert target.time.pending == []


async def test_queued_calls_that_do_not_wait_for_an_illness_go_on_when_it_begins() -> None:
    target = Target(8)
    holders = target.take(8)
    calls = [target.call(patience=0), target.call(), target.call(patience=0), target.call(), target.call(patience=0)]
    waits = await target.line_up(*calls)
    while target.admission.illness is None:
        target.report(holders[0], refused())
    assert target.statistics() == (8, 3, 2)
    for holder in holders[:2]:
        target.admission.release(holder)
    await settle()
    assert done(waits) == [True, False, True, False, False], "in order, and below the ceiling"
    assert target.admission.waiting == 3
    target.admission.release(holders[2])
    assert await waits[4]
    assert target.statistics() == (8, 0, 2)
    for wait in waits:
        wait.cancel()
    await settle()
    assert target.time.pending == []


async def test_calls_that_did_not_wait_for_one_illness_may_wait_for_the_next() -> None:
    target = Target(1)
    target.fall_ill()
    holder, *calls = (target.call(patience=0) for _ in range(3))
    await target.line_up(holder)
    later = await target.line_up(target.call())
    waits = await target.line_up(*calls)
    assert target.statistics() == (1, 2, 1)
    target.fail(holder, no_capacity())
    await settle()
    assert target.admission.illness == "capacity"
    assert not any(done([*waits, *later]))
    assert target.statistics() == (0, 0, 3)
    assert target.admission.waiting == 3
    await target.advance(FIRST_CAPACITY_PAUSE)
    assert done([*waits, *later]) == [True, False, False]
    assert target.admission.is_prober(calls[0])
    target.admission.close()
    await asyncio.wait([*waits, *later])
    assert [wait.exception() is None for wait in [*waits, *later]] == [True, False, False]


async def test_the_time_for_one_illness_does_not_end_a_wait_for_a_slot_in_the_next() -> None:
    target = Target(1)
    target.fall_ill("capacity")
    prober, call = target.call(), target.call(patience=0, capacity=5.0)
    _, wait = await target.line_up(prober, call)
    await target.advance(FIRST_CAPACITY_PAUSE)
    target.answer(prober)
    for _ in range(3):
        target.report(prober, refused())
    assert target.admission.illness == "outage"
    assert target.statistics() == (1, 1, 0)
    assert target.time.pending == []
    await target.advance(30.0)
    assert not wait.done()
    target.admission.release(prober)
    assert await wait


# The end of an illness


@pytest.mark.parametrize("illness", ["outage", "capacity"])
async def test_a_probe_without_an_answer_opens_the_target(illness: Illness) -> None:
    target = Target()
    target.fall_ill(illness)
    calls = [target.call() for _ in range(3)]
    waits = await target.line_up(*calls)
    await target.advance(FIRST_PAUSES[illness])
    await target.advance(LET_IN_AFTER[illness] + 1.0)
    assert done(waits) == [True, False, False], "it was not sent yet"
    target.admission.probe_sent(calls[0])
    await target.advance(LET_IN_AFTER[illness] - 0.1)
    assert done(waits) == [True, False, False]
    await target.advance(0.1)
    assert done(waits) == [True, True, True]
    assert target.admission.illness is None
    assert not target.admission.is_prober(calls[0])
    assert target.statistics() == (3, 0, 0)
    assert target.time.pending == []
    target.fail(calls[0], refused())
    assert target.admission.illness is None, "a failure like others"


async def test_only_the_probers_request_opens_a_target_unanswered() -> None:
    """A call that was the prober, and is not any more because the illness changed before it was sent."""
    target = Target()
    target.fall_ill()
    prober, other = target.call(), target.call(patience=0)
    await target.line_up(prober, other)
    await target.advance(FIRST_PAUSE)
    assert target.admission.is_prober(prober)
    target.fail(other, no_capacity())
    assert not target.admission.is_prober(prober)
    target.admission.probe_sent(prober)
    assert target.time.pending == []
    await target.advance(60.0)
    assert target.admission.illness == "capacity"


async def test_an_answered_probe_opens_nothing_later() -> None:
    target = Target()
    target.fall_ill()
    prober = target.call()
    await target.line_up(prober)
    await target.advance(FIRST_PAUSE)
    target.admission.probe_sent(prober)
    await target.advance(1.0)
    target.fail(prober, refused())
    assert target.time.pending == []
    await target.advance(60.0)
    assert target.admission.illness == "outage"


async def test_a_probe_waits_longer_than_refusals_take_before_it_counts_as_let_in() -> None:
    """A load balancer's 504 comes after half a minute, and is a refusal all the same."""
    target = Target()
    (call,) = target.take()
    target.time.now = 29.0
    for _ in range(3):
        target.answer_with(call, refused(), started_at=0.0)
    assert target.admission.illness == "outage"
    target.admission.release(call)
    prober = target.call()
    await target.line_up(prober)
    await target.advance(FIRST_PAUSE)
    target.admission.probe_sent(prober)
    await target.advance(29.0)
    assert target.admission.is_prober(prober)
    await target.advance(20.0)
    assert target.admission.illness is None


async def test_the_probe_goes_before_calls_that_do_not_wait_for_it() -> None:
    """Otherwise they would keep every slot, and the target would never be probed."""
    target = Target(1)
    target.fall_ill()
    patient, holder, impatient = target.call(), target.call(patience=0), target.call(patience=0)
    await target.line_up(patient, holder)
    (wait,) = await target.line_up(impatient)
    await target.advance(5.0)
    assert not target.admission.is_prober(patient)
    target.fail(holder, refused())
    await settle()
    assert target.admission.is_prober(patient)
    assert not wait.done()
    target.fail(patient, refused())
    await settle()
    assert wait.done()


async def test_stretches_of_illness_add_up_for_a_call_that_waits() -> None:
    target = Target(1)
    target.fall_ill()
    prober, waiter = target.call(patience=None), target.call()
    _, wait = await target.line_up(prober, waiter)
    for stretch in range(3):
        await target.advance(6.0)
        assert target.admission.is_prober(prober)
        target.answer(prober)
        assert target.admission.illness is None
        # It keeps the only slot, on a target that is healthy again: this is a wait of another kind.
        await target.advance(10.0)
        assert not wait.done()
        for _ in range(10):
            if target.admission.illness is None:
                target.report(prober, refused())
        if stretch < 2:
            target.admission.release(prober)
            prober = target.call(patience=None)
            (prober_wait,) = await target.line_up(prober, returning=True)
            assert not prober_wait.done()
    await target.advance(1.9)
    assert not wait.done()
    await target.advance(0.2)
    assert await wait is False


async def test_a_prober_that_gives_up_leaves_no_long_pause_behind() -> None:
    """A call that lined up nowhere and raised what it was answered: the next one to come probes soon."""
    target = Target()
    target.fall_ill("capacity")
    prober = target.call()
    await target.line_up(prober)
    for _ in range(6):
        await target.advance(20.0)
        assert target.admission.is_prober(prober)
        target.fail(prober, no_capacity())
        await target.line_up(prober, returning=True, front=True)
    await target.advance(20.0)
    target.fail(prober, no_capacity())
    target.admission.abandoned()
    newcomer = target.call()
    await target.line_up(newcomer)
    assert target.time.pending == [FIRST_CAPACITY_PAUSE]


async def test_recovery_is_a_slow_start_to_the_limit_known_before() -> None:
    target = Target(32)
    holders = target.take(17)
    target.report(holders[0], throttled())
    for call in holders:
        target.succeed(call)
    known = target.admission.statistics().max_concurrency
    assert FIRST_WINDOW < known < 32
    target.fall_ill()
    calls = [target.call() for _ in range(100)]
    waits = await target.line_up(*calls)
    await target.advance(FIRST_PAUSE)
    assert sum(done(waits)) == 1
    target.succeed(calls[0])
    await settle()
    assert sum(done(waits)) == 1 + FIRST_WINDOW
    assert target.admission.in_use == FIRST_WINDOW
    for successes in range(1, known + 2):
        target.succeed(calls[successes])
        await settle()
        assert target.admission.in_use == min(FIRST_WINDOW + successes, known)
        assert sum(done(waits)) == 1 + successes + target.admission.in_use, "in order, and no slot is idle"
    target.admission.close()
    await asyncio.wait(waits)
    assert sum(wait.exception() is not None for wait in waits) == 100 - 2 - successes - known + 1


async def test_recovery_grants_no_more_than_a_small_ceiling() -> None:
    target = Target(2)
    target.fall_ill()
    calls = [target.call() for _ in range(4)]
    waits = await target.line_up(*calls)
    await target.advance(FIRST_PAUSE)
    target.succeed(calls[0])
    await settle()
    assert done(waits) == [True, True, True, False]
    assert target.statistics() == (2, 1, 0)
    target.succeed(calls[1])
    assert await waits[3]


async def test_an_answer_to_a_call_that_was_sent_before_the_illness_does_not_end_it() -> None:
    target = Target()
    (before,) = target.take()
    sent_at = target.time.now
    await target.advance(1.0)
    target.fall_ill()
    (wait,) = await target.line_up(target.call())
    await target.advance(0.05)
    during = target.call(patience=0)
    await target.line_up(during)
    target.succeed(before, sent_at)
    assert target.admission.illness == "outage"
    assert not wait.done()
    target.succeed(during)
    assert target.admission.illness is None
    assert await wait
    assert target.time.pending == []


async def test_a_model_error_proves_a_target_healthy_and_a_timeout_does_not() -> None:
    target = Target()
    target.fall_ill()
    first, second = target.call(), target.call()
    waits = await target.line_up(first, second)
    await target.advance(FIRST_PAUSE)
    target.fail(first, ReadTimeoutError("silent"))
    await settle()
    assert not target.admission.is_prober(second)
    await target.advance(FIRST_PAUSE)
    assert target.admission.is_prober(second)
    target.fail(second, model_error())
    assert target.admission.illness is None
    assert await asyncio.gather(*waits) == [True, True]


async def test_an_outage_turns_out_to_be_missing_capacity() -> None:
    target = Target()
    target.fall_ill()
    prober, hurried, waits_for_both, briefly = (
        target.call(),
        target.call(capacity=None),
        target.call(),
        target.call(capacity=3.0),
    )
    _, *waits = await target.line_up(prober, hurried, waits_for_both, briefly)
    await target.advance(FIRST_PAUSE)
    assert isinstance(target.admission.failure, EndpointConnectionError)
    assert target.time.pending == [19.9, 19.9, 19.9]
    target.fail(prober, no_capacity())
    assert target.admission.illness == "capacity"
    assert isinstance(target.admission.failure, NoCapacityError)
    await settle()
    assert done(waits) == [True, False, False], "who does not wait for capacity goes on"
    assert target.time.pending == [FIRST_CAPACITY_PAUSE, 3.0]
    (again,) = await target.line_up(prober, returning=True, front=True)
    await target.advance(FIRST_CAPACITY_PAUSE)
    assert await again
    target.fail(prober, no_capacity())
    (again,) = await target.line_up(prober, returning=True, front=True)
    await target.advance(2.0)
    assert again.done(), "the second pause is twice the first"
    assert await waits[2] is False
    target.succeed(prober)
    assert await waits[1]
    assert target.admission.failure is None
    assert target.admission.seconds_ill(target.time.now) == pytest.approx({"outage": FIRST_PAUSE, "capacity": 3.0})
    assert target.time.pending == []


async def test_another_calls_missing_capacity_is_the_targets_illness() -> None:
    target = Target()
    target.fall_ill()
    hurried = target.call(patience=0)
    await target.line_up(hurried)
    target.fail(hurried, no_capacity())
    assert target.admission.illness == "capacity"
    assert isinstance(target.admission.failure, NoCapacityError)


async def test_the_first_to_come_when_a_probe_is_due_does_not_wait() -> None:
    target = Target()
    target.fall_ill()
    caller = target.call()
    assert target.admission.must_wait(caller)
    await target.advance(FIRST_PAUSE)
    assert not target.admission.must_wait(caller)
    assert await target.admission.acquire(caller)
    assert target.admission.is_prober(caller)
    assert target.admission.must_wait(target.call())
    target.succeed(caller)


async def test_seconds_of_illness_add_up() -> None:
    target = Target()
    assert target.admission.seconds_ill(target.time.now) == {"outage": 0.0, "capacity": 0.0}
    for _ in range(2):
        await target.advance(10.0)
        target.fall_ill()
        await target.advance(5.0)
        prober = target.call()
        await target.line_up(prober)
        await target.advance(1.0)
        target.succeed(prober)
    await target.advance(10.0)
    assert target.admission.seconds_ill(target.time.now) == pytest.approx({"outage": 12.0, "capacity": 0.0})
    target.fall_ill("capacity")
    await target.advance(0.5)
    assert target.admission.seconds_ill(target.time.now) == pytest.approx({"outage": 12.0, "capacity": 0.5})


# Targets


@pytest.fixture
def admissions() -> Admissions:
    return Admissions(FakeClockwork(VirtualTime()), 2)


def test_every_target_has_its_admission(admissions: Admissions) -> None:
    first = admissions.of("llm")
    assert admissions.of("llm") is first
    assert admissions.of("llm\nadapter\n") is not first
    assert admissions.by_target.keys() == {"llm", "llm\nadapter\n"}


@pytest.mark.parametrize("maximum", [0, -1, 1.5, True, "8"])
def test_a_limit_below_one_is_refused(maximum: int) -> None:
    with pytest.raises(ParamValidationError, match="max_concurrency must be an integer >= 1"):
        Admissions(FakeClockwork(VirtualTime()), maximum)


def test_what_an_adaptive_limit_has_learned_is_kept_for_five_minutes() -> None:
    time = VirtualTime()
    target = Admissions(FakeClockwork(time), "adaptive").of("llm")
    caller = FakeCaller(time)
    assert target.try_acquire()
    target.on_success(caller, time.now, 1)
    assert not target.is_idle
    target.release(caller)
    assert not target.is_idle
    time.now += 299.0
    assert not target.is_idle
    time.now += 2.0
    assert target.is_idle


def test_statistics_show_the_lowest_adaptive_limit_of_an_endpoint() -> None:
    time = VirtualTime()
    admissions = Admissions(FakeClockwork(time), AdaptiveLimit(initial=3))
    first, second = admissions.of("llm"), admissions.of("llm\nadapter\n")
    caller = FakeCaller(time)
    assert second.try_acquire()
    second.outstanding = 1
    second.on_failure(caller, time.now, 1, throttled(), waits_for_capacity=False)
    assert first.state.limit == 3
    assert admissions.statistics()["llm"].max_concurrency == 2
    assert admissions.statistics()["llm"].reason == "refusal"


async def test_statistics_count_the_targets_of_an_endpoint_together(admissions: Admissions) -> None:
    assert admissions.of("llm").try_acquire()
    assert admissions.of("churn").try_acquire()
    adapter = admissions.of("llm\nadapter\n")
    call = FakeCaller(VirtualTime())
    assert adapter.try_acquire()
    adapter.on_failure(call, 1000.0, 1, no_capacity(), waits_for_capacity=True)
    wait = asyncio.create_task(adapter.acquire(FakeCaller(VirtualTime())))
    await settle()
    assert admissions.statistics() == {
        "llm": LimiterStatistics(2, 0, 2, held_back=1, illness="capacity"),
        "churn": LimiterStatistics(1, 0, 2),
    }
    admissions.close()
    with pytest.raises(ClientStateError):
        await wait


async def test_idle_targets_are_dropped_where_there_are_many_and_others_are_not(admissions: Admissions) -> None:
    call = FakeCaller(VirtualTime())
    in_use, throttled_before, in_line = (admissions.of(name) for name in ("in use", "throttled", "in line"))
    for admission in (in_use, throttled_before, in_line):
        assert admission.try_acquire()
    throttled_before.on_failure(call, 1000.0, 1, throttled(), waits_for_capacity=False)
    in_line.on_failure(call, 1000.0, 1, no_capacity(), waits_for_capacity=True)
    wait = asyncio.create_task(in_line.acquire(call))
    await settle()
    for admission in (throttled_before, in_line):
        admission.release(call)
    idle, used_later = admissions.of("idle"), admissions.of("used later")
    is_dropped = weakref.ref(idle)
    for number in range(1018):
        admissions.of(f"endpoint-{number}")
    assert admissions.of("idle") is idle
    assert len(admissions.by_target) == 1023
    del idle
    for number in range(2000, 4000):
        admissions.of(f"endpoint-{number}")
    assert len(admissions.by_target) <= 1024
    assert admissions.of("in use") is in_use
    assert admissions.of("throttled") is throttled_before
    assert admissions.of("in line") is in_line
    assert is_dropped() is None
    assert admissions.of("used later") is used_later, "a call in back-off may go on with it"
    admissions.close()
    assert isinstance((await asyncio.gather(wait, return_exceptions=True))[0], ClientStateError)


@pytest.mark.parametrize("limit", [8, "adaptive"])
async def test_targets_that_were_refused_once_are_not_kept_for_ever(limit: Any) -> None:
    """What is known of them is forgotten, of the ones first that nobody has called for longest."""
    time = VirtualTime()
    admissions = Admissions(FakeClockwork(time), limit)
    caller = FakeCaller(time)
    in_use = admissions.of("in use")
    assert in_use.try_acquire()
    for number in range(10_000):
        time.now += 0.001
        admission = admissions.of(f"endpoint-{number}")
        assert admission.try_acquire()
        admission.outstanding = 1
        admission.on_failure(caller, time.now, 1, throttled(), waits_for_capacity=False)
        admission.release(caller)
        assert len(admissions.by_target) <= 2050
    assert admissions.by_target["in use"] is in_use
    in_use.release(caller)
    assert admissions.by_target.keys() >= {f"endpoint-{number}" for number in range(10_000 - 1024, 10_000)}


def test_a_new_target_costs_the_same_however_many_are_in_use(
    admissions: Admissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    is_idle: property = vars(Admission)["is_idle"]

    def look(admission: Admission) -> Any:
        nonlocal looks
        looks += 1
        return is_idle.__get__(admission)

    def count(admission: Admission) -> LimiterStatistics:
        raise AssertionError("nothing needs to be counted")

    monkeypatch.setattr(Admission, "is_idle", property(look))
    monkeypatch.setattr(Admission, "statistics", count)
    for number in range(20_000):
        assert admissions.of(f"endpoint-{number}").try_acquire()
    assert looks <= 2 * 20_000
    assert len(admissions.by_target) == 20_000


# A model of the whole


@dataclass(eq=False, repr=False)
class ModelCall(FakeCaller):
    """A call of the model: whether it waits, and what it holds.

    Args:
        state: ``"new"`` until its task runs; ``"waiting"`` in line; ``"granted"`` a slot, or ``"dismissed"``, and not
            awake yet; ``"holding"`` a slot; ``"failed"`` between two attempts; ``"over"``.
        order: its number in the order of arrival, of the present wait.
        joined: when the present wait began.
        returning, front: as passed to `Admission.acquire`.
        probes: whether it was the prober when it woke up with its slot.
        unanswered: the number of the illness for whose probe no outcome was reported yet; 0 for none.
        sent_at, sent_among: when its request was sent, and among how many; None before.
    """

    state: str = "new"
    order: int = 0
    joined: float = 0.0
    returning: bool = False
    front: bool = False
    probes: bool = False
    unanswered: int = 0
    sent_at: float | None = None
    sent_among: int = 0

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis shows of it."""
        printer.text(repr(self))

    @property
    def kind(self) -> tuple[bool, bool]:
        """Which illnesses it waits out; calls of one kind stand in one line."""
        return self.waits_out("outage"), self.waits_out("capacity")

    @property
    def has_slot(self) -> bool:
        return self.state in ("granted", "holding")

    def __repr__(self) -> str:
        return f"<{self.order} patience={self.patience} capacity={self.capacity} {self.state} since {self.joined}>"


class WatchedAdmission(Admission):
    """Tells the model of every grant and dismissal in the moment it is made."""

    def __init__(self, machine: AdmissionMachine, clockwork: FakeClockwork, maximum: int) -> None:
        super().__init__(clockwork, maximum)
        self.machine = machine

    def _grant(self, waiter: Waiter) -> bool:
        granted = super()._grant(waiter)
        if granted:
            self.machine.on_grant(cast("ModelCall", waiter.caller))
        return granted

    def _dismiss(self, waiter: Waiter) -> None:
        if not waiter.granted.done():
            self.machine.on_dismissal(cast("ModelCall", waiter.caller))
        super()._dismiss(waiter)

    def _changed(self, before: Illness | None, ill_before: dict[Illness, float]) -> None:
        if self.illness != before:
            self.machine.on_change(self.illness)
        super()._changed(before, ill_before)


OUTCOMES: dict[str, Callable[[], AiosmrtError]] = {
    "throttle": throttled,
    "failure": refused,
    "model error": model_error,
    "timeout": lambda: ReadTimeoutError("silent"),
    "no capacity": no_capacity,
}


class AdmissionMachine(RuleBasedStateMachine):
    """Any interleaving of arrivals, cancellations, outcomes and the passing of time against a few sets of calls.

    ``turn`` lets the loop run; without it several events meet in one turn, which is where wake-ups get lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.time = VirtualTime()
        self.calls: list[ModelCall] = []
        self.tasks: dict[ModelCall, asyncio.Task[None]] = {}
        self.arrivals = 0
        self.illnesses = 0
        # every illness so far: which, from when, until when
        self.stretches: list[tuple[Illness, float, float]] = []
        # since when a prober may be sent, by the shortest pause after the last refusal
        self.probe_from = 0.0
        self.dismissing: ModelCall | None = None
        self.problems: list[str] = []

    @initialize(maximum=st.sampled_from([1, 2, 3, 5, 8]), ending=st.sampled_from(["answers", "cancellations", "close"]))
    def begin(self, maximum: int, ending: str) -> None:
        self.maximum = maximum
        self.ending = ending
        self.admission = WatchedAdmission(self, FakeClockwork(self.time), maximum)

    # What the admission does

    def on_grant(self, call: ModelCall) -> None:
        admission = self.admission
        illness = admission.illness
        if illness is not None and call.waits_out(illness):
            if not admission.is_prober(call):
                self.problems.append(f"{call} was sent to a target that is ill, and does not probe")
            if any(
                other.unanswered == self.illnesses and other.has_slot for other in self.calls if not self._leaves(other)
            ):
                self.problems.append(f"{call} probes beside another one")
            if self.time.now < self.probe_from - EARLY:
                self.problems.append(f"{call} probes too soon after a refusal")
            if (
                call.front
                and illness == "outage"
                and any(
                    other.state == "waiting"
                    and not other.front
                    and other.waits_out(illness)
                    and other.kind == call.kind
                    and not self._leaves(other)
                    for other in self.calls
                )
            ):
                self.problems.append(f"{call} probes again before others have")
            call.unanswered = self.illnesses
        self._check_slot(call)
        self._check_order(call)
        call.state = "granted"

    def on_dismissal(self, call: ModelCall) -> None:
        illness = self.admission.illness
        if call is not self.dismissing and (illness is None or self._time_of(call, illness) > self.time.now + EARLY):
            self.problems.append(f"{call} was dismissed before its time was up")
        call.state = "dismissed"

    def on_change(self, illness: Illness | None) -> None:
        now = self.time.now
        if self.stretches:
            former, began, ended = self.stretches[-1]
            self.stretches[-1] = (former, began, min(now, ended))
        if illness is not None:
            self.illnesses += 1
            self.stretches.append((illness, now, math.inf))
            self.probe_from = now + FIRST_PAUSES[illness]

    def _check_slot(self, call: ModelCall) -> None:
        """There was one for it when it got it; later there may be fewer."""
        admission = self.admission
        there_are = self.maximum if admission.illness is not None else admission.statistics().max_concurrency
        if admission.in_use > there_are:
            self.problems.append(f"{call} got slot {admission.in_use} of {there_are}")

    def _check_order(self, call: ModelCall) -> None:
        always_patient = (True, True)
        for other in self.calls:
            if other is call or other.state != "waiting" or other.kind != call.kind or self._leaves(other):
                continue
            if other.front and not call.front and call.kind == always_patient and self.admission.illness != "outage":
                self.problems.append(f"{call} went before {other}, which had probed")
            elif call.front or other.front:
                continue
            elif other.order < call.order and other.returning >= call.returning:
                self.problems.append(f"{call} went before {other}, which came before it")
            elif other.returning and not call.returning and call.kind == always_patient:
                self.problems.append(f"{call} went before {other}, which was sent before")

    def _leaves(self, call: ModelCall) -> bool:
        """Whether it was cancelled while it waits, which it does not know of yet."""
        return call in self.tasks and self.tasks[call].cancelling() > 0

    def _time_of(self, call: ModelCall, illness: Illness) -> float:
        now = self.time.now
        ill_seconds = sum(
            max(0.0, min(now, ended) - max(call.joined, began))
            for kind, began, ended in self.stretches
            if kind == illness
        )
        until = call.waits_until(illness, now - ill_seconds)
        return math.inf if until is None else until

    # What calls do

    async def _wait(self, call: ModelCall) -> None:
        call.state = "waiting"
        call.joined = self.time.now
        self.arrivals += 1
        call.order = self.arrivals
        try:
            granted = await self.admission.acquire(call, returning=call.returning, front=call.front)
        except BaseException:
            call.state = "over"
            raise
        if granted and call.state == "waiting":
            self._check_slot(call)
            self._check_order(call)
        call.state = "holding" if granted else "over"
        call.probes = granted and self.admission.is_prober(call)
        call.sent_at = None

    def _start(self, call: ModelCall) -> None:
        call.state = "new"
        self.tasks[call] = self.loop.create_task(self._wait(call))

    def _settle(self) -> None:
        self.loop.run_until_complete(settle())
        for call, task in [*self.tasks.items()]:
            if task.done():
                del self.tasks[call]
                if task.cancelled():
                    call.state = "over"
                elif not isinstance(task.exception(), ClientStateError):
                    task.result()
        self.calls = [call for call in self.calls if call.state != "over"]

    def _in(self, *states: str) -> list[ModelCall]:
        return [call for call in self.calls if call.state in states]

    def _is_answered(self, call: ModelCall) -> None:
        call.unanswered = 0
        if call.sent_at is not None:
            call.sent_at = None
            self.admission.outstanding -= 1

    def _release(self, call: ModelCall, state: str) -> None:
        self._is_answered(call)
        call.state = state
        self.admission.release(call)

    @property
    def unsent(self) -> list[ModelCall]:
        return [call for call in self._in("holding") if call.sent_at is None]

    @rule(
        patience=st.sampled_from([20.0, 0.0, 0.5, None]),
        capacity=st.sampled_from([None, 60.0, 3.0]),
        count=st.sampled_from([1, 2, 12]),
        at_once=st.booleans(),
    )
    def arrive(self, patience: float | None, capacity: float | None, count: int, at_once: bool) -> None:
        for _ in range(count):
            call = ModelCall(self.time, patience=patience, capacity=capacity)
            self.calls.append(call)
            self._start(call)
        if at_once:
            self.turn()

    @precondition(lambda self: self._in("failed"))
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        self._come_back(data.draw(st.sampled_from(self._in("failed"))))

    def _come_back(self, call: ModelCall) -> None:
        call.returning, call.front = True, call.probes
        self._start(call)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([*self.tasks.values()])).cancel()

    @precondition(lambda self: self._in("waiting"))
    @rule(data=st.data())
    def dismiss(self, data: st.DataObject) -> None:
        self.dismissing = data.draw(st.sampled_from(self._in("waiting")))
        self.admission.dismiss(self.dismissing)
        self.dismissing = None

    @precondition(lambda self: self.unsent)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        self._send(data.draw(st.sampled_from(self.unsent)))

    def _send(self, call: ModelCall) -> None:
        if call.sent_at is not None:
            return
        call.sent_at = self.time.now
        self.admission.outstanding += 1
        call.sent_among = self.admission.outstanding
        self.admission.probe_sent(call)

    @precondition(lambda self: self._in("holding"))
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self._succeed(data.draw(st.sampled_from(self._in("holding"))))

    def _succeed(self, call: ModelCall) -> None:
        self._answer(call)
        self._release(call, "over")

    @precondition(lambda self: self._in("holding"))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Succeed and keep the slot, as a stream does until its end; those who may go on now do so."""
        self._answer(data.draw(st.sampled_from(self._in("holding"))))
        self.turn()

    def _answer(self, call: ModelCall) -> None:
        self._send(call)
        assert call.sent_at is not None
        if not self.admission.state.steady:
            self.admission.on_success(call, call.sent_at, call.sent_among)
        call.unanswered = 0

    @precondition(lambda self: self._in("holding"))
    @rule(
        data=st.data(),
        outcome=st.sampled_from([*OUTCOMES]),
        times=st.sampled_from([1, 3, 8]),
        then=st.sampled_from(["again", "again", "failed", "over", "holding"]),
    )
    def fail(self, data: st.DataObject, outcome: str, times: int, then: str) -> None:
        """Report a failure, several times as if others had failed too.

        The call returns its slot, and may line up again at once or later; or it keeps it through back-off.
        """
        call = data.draw(st.sampled_from(self._in("holding")))
        self._send(call)
        assert call.sent_at is not None
        waits_for_capacity = outcome == "no capacity" and call.capacity is not None
        for _ in range(times):
            if call.unanswered and call.unanswered == self.illnesses and outcome in ("throttle", "failure"):
                self.probe_from = self.time.now + FIRST_PAUSES[self.admission.illness or "outage"]
            if call.unanswered and call.unanswered == self.illnesses and waits_for_capacity:
                self.probe_from = self.time.now + FIRST_PAUSES["capacity"]
            call.unanswered = 0
            call.failed_at = self.time.now if call.failed_at is None else call.failed_at
            self.admission.on_failure(
                call, call.sent_at, call.sent_among, OUTCOMES[outcome](), waits_for_capacity=waits_for_capacity
            )
        if then == "holding":
            self._is_answered(call)
        elif then == "again":
            self._release(call, "failed")
            self._come_back(call)
        else:
            self._release(call, then)

    @precondition(lambda self: self._in("holding"))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """End without an outcome, as by a cancellation during the attempt."""
        self._release(data.draw(st.sampled_from(self._in("holding"))), "over")

    @rule(seconds=st.sampled_from([0.05, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(self.time.advance(seconds))
        self.turn()

    # What holds

    @rule()
    def turn(self) -> None:
        self._settle()
        admission = self.admission
        illness = admission.illness
        statistics = admission.statistics()
        waiting = self._in("waiting")
        assert statistics.waiting + statistics.held_back == len(waiting) == admission.waiting
        timers = [timer for timer in self.time._timers if timer.function != admission._look_at]
        assert all(
            timer.arguments[0].line is not None for timer in self.time._timers if timer.function == admission._look_at
        )
        assert all(timer.function in (admission._probe_timer_struck, admission._let_in) for timer in timers)
        probe_timers = [timer for timer in timers if timer.function == admission._probe_timer_struck]
        if illness is None:
            assert not waiting or statistics.in_use >= statistics.max_concurrency, "a slot is free, and calls wait"
            assert not timers
            return
        patient = [call for call in waiting if call.waits_out(illness)]
        assert len(patient) == len(waiting) or statistics.in_use >= self.maximum
        assert all(self._time_of(call, illness) > self.time.now for call in patient)
        probers = [call for call in self.calls if call.unanswered == self.illnesses]
        assert len(probers) <= 1
        assert [call for call in self.calls if admission.is_prober(call)] == probers
        if probers:
            assert not probe_timers
        else:
            assert len(timers) == len(probe_timers) <= bool(patient)
            if patient and statistics.in_use < self.maximum:
                due = admission.state.next_probe(math.inf)
                assert due is not None
                assert [timer.at <= due + EARLY for timer in probe_timers] == [True]

    @invariant()
    def every_slot_is_someones(self) -> None:
        assert not self.problems, self.problems
        assert self.admission.in_use == len(self._in("granted", "holding"))
        assert self.admission.statistics().max_concurrency <= self.maximum

    def teardown(self) -> None:
        try:
            if hasattr(self, "admission") and not self.problems:
                self._end()
        finally:
            for task in self.tasks.values():
                task.cancel()
            self.loop.run_until_complete(settle())
            self.loop.close()

    def _end(self) -> None:
        self._settle()
        if self.ending == "close":
            self.admission.close()
            for call in self.calls:
                call.unanswered = 0
        elif self.ending == "cancellations":
            for task in self.tasks.values():
                task.cancel()
        self.turn()
        while self._in("waiting", "holding"):
            for call in self._in("holding"):
                self._succeed(call)
            self.turn()
            if self._in("waiting") and not self._in("holding"):
                self.loop.run_until_complete(self.time.advance(self.time.pending[0]))
                self.turn()
        self.every_slot_is_someones()
        assert self._in("new", "granted", "dismissed") == []
        assert self.admission.in_use == 0
        assert self.time.pending == []


AdmissionMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestAdmissionMachine = AdmissionMachine.TestCase
