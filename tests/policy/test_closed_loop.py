"""Callers, the policies, and a service that refuses: what comes of it, in virtual time."""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import pytest

from aiosmrt._policy.limit import WorkingLimit
from aiosmrt._policy.retry import RetryState
from aiosmrt._policy.target_health import AdmissionState, Illness
from aiosmrt.config import RetryPolicy

SUCCESS_SECONDS = 0.05
REFUSAL_SECONDS = 0.001

# From this one on, a call's refusals do not count as accidents (aiosmrt._core.call).
NO_ACCIDENT = 6

Service: TypeAlias = Callable[[float, int], bool]
"""Whether a service takes a request, by the time in seconds and the number that it works on."""


class Moment(NamedTuple):
    """What held after an answer.

    Args:
        time: seconds since the beginning.
        refused: whether the answer was a refusal.
        limit: the working limit.
        illness: what the target is ill with.
        in_flight: slots in use.
    """

    time: float
    refused: bool
    limit: int
    illness: Illness | None
    in_flight: int


class Run(NamedTuple):
    """The result of a simulation.

    Args:
        seconds: when the last call was over.
        requests: how many were sent.
        failed: calls that gave up.
        longest: seconds of the longest call, from its beginning to its end.
        moments: every answer, in order.
    """

    seconds: float
    requests: int
    failed: int
    longest: float
    moments: list[Moment]

    @property
    def refusals(self) -> int:
        return sum(moment.refused for moment in self.moments)

    def since(self, time: float) -> list[Moment]:
        return [moment for moment in self.moments if moment.time > time]


class Call:
    """One call, with what `aiosmrt._core.call` keeps of it."""

    def __init__(self, policy: RetryPolicy, patience: float | None, now: float) -> None:
        self.state = RetryState(policy, patience=patience)
        self.began_at = now
        self.refusals = 0
        self.started_at = 0.0
        self.sent_among = 0
        self.holds_slot = False
        self.taken = False


class Loop:
    """So many callers with one call after the other, and what stands between them and the service.

    Args:
        takes: the service.
        calls: how many there are in all.
        callers: how many make them.
        policy: their back-off.
        patience: seconds for which a call is repeated. If None, no limit.
        seed: of all random numbers.
        spread: sigma of the logarithm of what requests take; the mean is the same for each.
    """

    def __init__(
        self,
        takes: Service,
        *,
        calls: int = 3_000,
        callers: int = 64,
        maximum: int = 64,
        policy: RetryPolicy | None = None,
        patience: float | None = None,
        seed: int = 0,
        spread: float = 0.0,
    ) -> None:
        self.takes = takes
        self.policy = policy or RetryPolicy()
        self.patience = patience
        self.randomness = random.Random(seed)
        self.random = self.randomness.random
        self.spread = spread
        self.maximum = maximum
        self.state = AdmissionState(WorkingLimit(maximum), maximum)
        self.to_come = calls
        self.now = 0.0
        self.in_use = self.outstanding = self.served = self.requests = self.failed = self.over = 0
        self.longest = 0.0
        self.returning: deque[Call] = deque()
        self.arriving: deque[Call] = deque()
        self.prober: Call | None = None
        self.events: list[tuple[float, int, Literal["answer", "back", "probe"], Call | None]] = []
        self.number = 0
        self.moments: list[Moment] = []
        for _ in range(min(callers, calls)):
            self.next_call()

    def run(self, until: float = math.inf) -> Run:
        """Go on until all calls are over, or until this time in seconds."""
        self.attend()
        while self.events and self.events[0][0] <= until:
            self.now, _, kind, call = heapq.heappop(self.events)
            if kind == "answer":
                assert call is not None
                self.answered(call)
            elif kind == "back":
                assert call is not None
                self.back(call)
            self.attend()
        # What is not over yet has waited too.
        waiting = {*self.returning, *self.arriving, *(call for *_, call in self.events if call is not None)}
        longest = max([self.longest, *(self.now - call.began_at for call in waiting)])
        return Run(self.now, self.requests, self.failed, longest, self.moments)

    def at(self, time: float, kind: Literal["answer", "back", "probe"], call: Call | None) -> None:
        self.number += 1
        heapq.heappush(self.events, (time, self.number, kind, call))

    def next_call(self) -> None:
        if self.to_come:
            self.to_come -= 1
            self.arriving.append(Call(self.policy, self.patience, self.now))

    def attend(self) -> None:
        """Send what may be sent."""
        if self.state.illness is None:
            while self.in_use < self.state.slots and (line := self.returning or self.arriving):
                self.send(line.popleft())
        elif self.prober is None and self.in_use < self.maximum and (line := self.returning or self.arriving):
            probe_at = self.state.next_probe(math.inf)
            assert probe_at is not None
            if probe_at <= self.now + 1e-9:
                self.prober = line.popleft()
                self.send(self.prober)
            else:
                self.at(probe_at, "probe", None)

    def send(self, call: Call) -> None:
        if not call.holds_slot:
            call.holds_slot = True
            self.in_use += 1
        self.outstanding += 1
        self.requests += 1
        call.started_at, call.sent_among = self.now, self.outstanding
        call.taken = self.takes(self.now, self.served)
        self.served += call.taken
        seconds = SUCCESS_SECONDS if call.taken else REFUSAL_SECONDS
        seconds *= self.randomness.lognormvariate(-(self.spread**2) / 2, self.spread)
        self.at(self.now + seconds, "answer", call)

    def answered(self, call: Call) -> None:
        """As `aiosmrt._core.call` reports it: with the slot still held, and of a steady target no first success."""
        state, probe = self.state, call is self.prober
        if probe:
            self.prober = None
        if call.taken:
            self.served -= 1
            if call.refusals or not state.steady:
                state.on_success(call.started_at, self.now, self.in_use, sent_among=call.sent_among, probe=probe)
        else:
            call.refusals += 1
            slots = state.slots
            state.on_throttle(
                call.started_at,
                self.now,
                self.outstanding,
                self.random(),
                sent_among=call.sent_among,
                probe=probe,
                strict=call.refusals >= NO_ACCIDENT,
            )
        self.moments.append(Moment(self.now, not call.taken, state.limit, state.illness, self.in_use))
        self.outstanding -= 1
        if call.taken:
            self.ended(call)
            return
        if state.illness is not None or state.slots < slots:
            self.return_slot(call)
        # It has no slot and none is free, so it waits in line.
        at_target = state.illness is not None or (not call.holds_slot and self.is_full)
        delay = call.state.decide("throttling", now=self.now, rand=self.random(), at_target=at_target)
        if isinstance(delay, str):
            self.failed += 1
            self.ended(call)
        elif not at_target:
            self.at(self.now + delay, "back", call)
        elif probe:
            self.returning.appendleft(call)
        else:
            self.returning.append(call)

    def back(self, call: Call) -> None:
        """After its back-off it still has its slot, unless there are fewer now."""
        if call.holds_slot and self.in_use > self.state.slots:
            self.return_slot(call)
        if call.holds_slot:
            self.send(call)
        else:
            self.returning.append(call)

    @property
    def is_full(self) -> bool:
        return self.in_use >= self.state.slots or bool(self.returning or self.arriving)

    def return_slot(self, call: Call) -> None:
        if call.holds_slot:
            call.holds_slot = False
            self.in_use -= 1
            # It goes to those in line, before the call does anything else.
            self.attend()

    def ended(self, call: Call) -> None:
        self.return_slot(call)
        self.over += 1
        self.longest = max(self.longest, self.now - call.began_at)
        self.next_call()


def refusing_at_random(share: float, seed: int, until: float = math.inf) -> Service:
    """A service that refuses a share of all requests, whatever their number."""
    rand = random.Random(1000 + seed).random
    return lambda now, _: rand() >= share or now >= until


def median_limit(moments: list[Moment]) -> float:
    return statistics.median(moment.limit for moment in moments)


@pytest.mark.parametrize(
    ("capacity", "requests_per_call", "highest"),
    [(1, 1.6, 2), (2, 1.35, 3), (4, 1.2, 6), (8, 1.15, 14), (32, 1.1, 48), (60, 1.1, 64)],
)
@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_service_that_takes_few_at_a_time_is_kept_busy_with_few_refusals(
    capacity: int, requests_per_call: float, highest: int, spread: float, seed: int
) -> None:
    result = Loop(lambda _, served: served < capacity, seed=seed, spread=spread, patience=20.0).run()
    assert result.failed == 0
    assert result.requests - result.refusals == 3_000
    assert result.requests <= requests_per_call * 3_000
    assert result.seconds <= 1.15 * 3_000 * SUCCESS_SECONDS / capacity
    settled = result.since(1.0)
    assert all(capacity <= moment.limit <= highest for moment in settled)
    assert all(moment.illness is None for moment in settled)
    # No call is passed by for long: the 64 callers have their turns.
    assert result.longest <= 1.25 * 64 * SUCCESS_SECONDS / capacity + 1.0


@pytest.mark.parametrize("base_delay", [None, 0.1])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_a_service_that_takes_less_for_a_while_gets_less_for_that_while(
    base_delay: float | None, spread: float
) -> None:
    """Of 64 calls at a time it takes 8 from 3 s to 13 s."""
    result = Loop(
        lambda now, served: served < (8 if 3.0 <= now < 13.0 else 64),
        calls=1_000_000,
        policy=RetryPolicy(throttling_base_delay=base_delay),
        spread=spread,
    ).run(until=16.0)
    assert result.refusals <= 350
    in_between = [moment for moment in result.moments if 3.0 < moment.time <= 13.0]
    assert sum(not moment.refused for moment in in_between) >= 0.95 * 10.0 * 8 / SUCCESS_SECONDS
    back_at = next(moment.time for moment in result.since(13.0) if moment.limit >= 58)
    assert (back_at - 13.0) / SUCCESS_SECONDS <= 40
    assert result.moments[-1].limit == 64
    assert result.longest <= 2.0


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_a_few_refusals_at_random_do_not_make_a_service_slow(spread: float, seed: int) -> None:
    """One in twenty is refused. If each of them lowered the limit, it would take 15 s."""
    result = Loop(refusing_at_random(0.05, seed), seed=seed, spread=spread).run()
    assert result.requests <= 1.1 * 3_000
    assert result.seconds <= 7.0
    assert median_limit(result.moments) >= 24


@pytest.mark.parametrize(("share", "seconds"), [(0.01, 4.0), (0.1, 15.0), (0.2, 30.0), (0.33, 35.0), (0.5, 80.0)])
@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_no_call_waits_long_or_fails_while_half_of_all_requests_get_through(
    share: float, seconds: float, spread: float, seed: int
) -> None:
    result = Loop(refusing_at_random(share, seed), seed=seed, spread=spread, patience=20.0).run()
    assert result.failed == 0
    assert result.longest <= 20.0
    assert result.requests <= 1.05 * 3_000 / (1 - share)
    assert result.seconds <= seconds


@pytest.mark.parametrize(("share", "lowest", "highest"), [(0.5, 8, 32), (0.6, 1, 8), (0.8, 1, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_the_limit_is_low_while_more_than_half_is_refused_and_back_at_once(
    share: float, lowest: int, highest: int, seed: int
) -> None:
    result = Loop(refusing_at_random(share, seed, until=40.0), calls=1_000_000, seed=seed, spread=0.3).run(until=50.0)
    while_ill = [moment for moment in result.moments if 10.0 < moment.time < 40.0]
    assert lowest <= median_limit(while_ill) <= highest
    back_at = next(moment.time for moment in result.since(40.0) if moment.limit >= 58)
    assert back_at <= 44.0
    assert result.moments[-1].limit == 64
