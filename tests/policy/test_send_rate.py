"""The adaptive mode's send rate: botocore's numbers at every step, and waits that end."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import pytest
from botocore.exceptions import CapacityNotAvailableError
from botocore.retries.adaptive import ClientRateLimiter, RateClocker
from botocore.retries.bucket import Clock, TokenBucket
from botocore.retries.throttling import CubicCalculator
from hypothesis import event, given, settings
from hypothesis import strategies as st

from aiosmrt._policy.send_rate import MIN_WAIT, SendRate

Action: TypeAlias = Literal["send", "success", "throttle"]


class FakeClock(Clock):
    """A clock for botocore that a test sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def current_time(self) -> float:
        return self.now


class Detector:
    """Takes a response's word for it that it is throttled."""

    def is_throttling_error(self, *, throttled: bool) -> bool:
        return throttled


class Oracle:
    """botocore's limiter, put together as its ``register_retry_handler`` does."""

    def __init__(self, now: float) -> None:
        self.clock = FakeClock(now)
        self.bucket: Any = TokenBucket(max_rate=1, clock=self.clock)
        self.limiter: Any = ClientRateLimiter(
            rate_adjustor=CubicCalculator(starting_max_rate=0, start_time=now),
            rate_clocker=RateClocker(self.clock),
            token_bucket=self.bucket,
            throttling_detector=Detector(),
            clock=self.clock,
        )

    def wait(self, now: float) -> float:
        self.clock.now = now
        if not self.limiter._enabled:
            return 0.0
        try:
            self.bucket.acquire(block=False)
        except CapacityNotAvailableError:
            return max(float(self.bucket._sleep_amount(1)), MIN_WAIT)
        return 0.0

    def on_response(self, now: float, *, throttled: bool) -> None:
        self.clock.now = now
        self.limiter.on_receiving_response(throttled=throttled)

    @property
    def rate(self) -> float | None:
        return float(self.bucket.max_rate) if self.limiter._enabled else None


# Monotonic clocks begin near 0, and time.time() has the coarser floats.
starts = st.one_of(st.floats(0.0, 1e6), st.floats(1.7e9, 1.9e9))
# One kind of step for a whole script, so that busy clients occur: bursts within one instant, milliseconds,
# exact half seconds, and hours without a request.
paces: list[st.SearchStrategy[float]] = [
    st.sampled_from([0.0, 0.001, 0.3]),
    st.floats(0.0, 0.05),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.floats(0.0, 3.0),
    st.floats(0.0, 1e4),
]
# "throttle" comes first: Hypothesis shrinks towards it, and nothing waits before it.
actions: st.SearchStrategy[Action] = st.sampled_from(["throttle", "send", "send", "success", "success"])
scripts = st.sampled_from(paces).flatmap(
    lambda steps: st.lists(st.tuples(steps, actions), min_size=1, max_size=120),
)


@settings(max_examples=300, deadline=None)
@given(starts, scripts)
def test_every_step_is_botocores(start: float, script: list[tuple[float, Action]]) -> None:
    ours, theirs, now = SendRate(start), Oracle(start), start
    for step, action in script:
        now += step
        if action == "send":
            wait = ours.wait(now)
            assert wait == theirs.wait(now)
            event("waits" if wait else "sends")
        else:
            ours.on_response(now, throttled=action == "throttle")
            theirs.on_response(now, throttled=action == "throttle")
        assert ours.rate == theirs.rate


@pytest.mark.parametrize("capacity", [3.0, 40.0, 2_000.0])
def test_a_service_with_a_limit_gets_the_load_it_gets_from_botocore(capacity: float) -> None:
    """A closed loop: the limiter decides when requests go out, and the service throttles what is over its limit."""
    runs = []
    for limiter in (SendRate(0.0), Oracle(0.0)):
        now, served, sent, rates = 0.0, 0.0, 0, []
        while now < 20.0:
            if wait := limiter.wait(now):
                now += wait
                continue
            sent += 1
            throttled = served > now * capacity
            served += not throttled
            now += 0.0005
            limiter.on_response(now, throttled=throttled)
            rates.append(limiter.rate)
        runs.append((sent, served, rates))
    assert runs[0] == runs[1]
    assert runs[0][2][-1] is not None


@settings(deadline=None)
@given(starts, scripts, st.integers(1, 20))
def test_who_sleeps_as_told_gets_a_token(start: float, script: list[tuple[float, Action]], requests: int) -> None:
    send_rate, now = SendRate(start), start
    for step, action in script:
        now += step
        send_rate.on_response(now, throttled=action == "throttle")
    for _ in range(requests):
        waits = []
        while wait := send_rate.wait(now):
            assert MIN_WAIT <= wait <= 2.0
            waits.append(wait)
            now += wait
        # Adding the wait to the clock may round it down, and the second wait makes up for that.
        assert len(waits) <= 2


def test_nothing_waits_before_the_first_throttled_response() -> None:
    send_rate = SendRate(100.0)
    for number in range(1000):
        assert send_rate.wait(100.0) == 0.0
        send_rate.on_response(100.0 + number / 1000, throttled=False)
    assert send_rate.rate is None


def test_throttling_cuts_the_rate_and_time_restores_it() -> None:
    send_rate, now = SendRate(0.0), 0.0
    while now < 10.0:
        now += 0.01
        send_rate.on_response(now, throttled=False)
    send_rate.on_response(now, throttled=True)
    assert send_rate.rate == pytest.approx(70.0, rel=0.01)
    rates = []
    while now < 20.0:
        now += 0.01
        send_rate.on_response(now, throttled=False)
        assert send_rate.rate is not None
        rates.append(send_rate.rate)
    assert rates == sorted(rates)
    # k = cbrt(0.3 * 100 / 0.4) seconds after the cut the rate is the old one again.
    assert rates[421] == pytest.approx(100.0, rel=0.01)
    assert rates[-1] == pytest.approx(100.0 + 0.4 * (10.0 - 4.217) ** 3, rel=0.01)


def test_a_refused_request_takes_nothing() -> None:
    send_rate = SendRate(0.0)
    send_rate.on_response(0.0, throttled=True)
    assert send_rate.rate == 0.5
    assert [send_rate.wait(0.0) for _ in range(3)] == [2.0] * 3
    assert send_rate.wait(1.0) == 1.0
    assert send_rate.wait(2.0) == 0.0
    assert send_rate.wait(2.0) == 2.0


def test_the_repr_names_rate_and_tokens() -> None:
    send_rate = SendRate(0.0)
    assert repr(send_rate) == "<SendRate rate=None tokens=0.0>"
    send_rate.on_response(0.25, throttled=True)
    assert repr(send_rate) == "<SendRate rate=0.5 tokens=0.25>"


def test_a_cut_also_removes_tokens() -> None:
    send_rate = SendRate(0.0)
    for number in range(1, 81):
        send_rate.on_response(number / 8, throttled=False)
    assert repr(send_rate).startswith("<SendRate rate=None tokens=15.9")
    send_rate.on_response(10.0, throttled=True)
    assert send_rate.rate == pytest.approx(5.6)
    assert repr(send_rate).endswith(f" tokens={send_rate.rate}>")
    assert [send_rate.wait(10.0) == 0.0 for _ in range(6)] == [True] * 5 + [False]
