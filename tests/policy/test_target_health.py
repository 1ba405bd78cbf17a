"""When a target is ill, when it is asked again, and what lets the others in: decisions as numbers."""

from __future__ import annotations

import copy
import math
import random
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aiosmrt._policy.limit import FIRST_WINDOW, WorkingLimit
from aiosmrt._policy.retry import MAX_HINT_EXTRA, RetryBucketStatistics
from aiosmrt._policy.target_health import (
    FIRST_CAPACITY_PAUSE,
    FIRST_PAUSE,
    LET_IN_AFTER,
    MAX_CAPACITY_PAUSE,
    MAX_PAUSE,
    AdmissionState,
    Illness,
    ProbeSchedule,
    is_sign_of_life,
)
from aiosmrt.errors import Cause

# Beyond any wait: schedules are asked about an end in the far future.
NEVER = 1e9

ILLNESSES: tuple[Illness, ...] = get_args(Illness)
FIRST_PAUSES: dict[Illness, float] = {"outage": FIRST_PAUSE, "capacity": FIRST_CAPACITY_PAUSE}

SIGNS_OF_LIFE: dict[Illness, set[Cause]] = {
    "outage": {"model", "none", "model_not_ready", "clock_skew"},
    "capacity": {"model", "none", "model_not_ready", "read_timeout", "truncated"},
}

# Refusals without a success between them that lower the limit whatever they look like.
IN_A_ROW = 8

unit = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("illness", ILLNESSES)
def test_every_cause_is_a_sign_of_life_or_is_not(illness: Illness) -> None:
    causes: tuple[Cause, ...] = get_args(Cause)
    assert {cause for cause in causes if is_sign_of_life(cause, illness)} == SIGNS_OF_LIFE[illness]


def test_an_unanswered_probe_counts_as_let_in_after_some_seconds_in_every_illness() -> None:
    assert LET_IN_AFTER == {"outage": 6.0, "capacity": 10.0}
    assert set(LET_IN_AFTER) == set(ILLNESSES)


# When to probe


def probes(illness: Illness, rand: float | random.Random, seconds: float = NEVER, count: int = 10**6) -> list[float]:
    """When a target is probed that is ill from 0 on and refuses at once, in seconds.

    Args:
        illness: what it is ill with.
        rand: the random number of every pause, or where they come from.
        seconds: until when it refuses.
        count: how many probes are of interest.

    Returns:
        The times of all probes, the last of which is the first from ``seconds`` on.
    """
    schedule = ProbeSchedule(illness, now=0.0)
    now, found = 0.0, []
    while now < seconds and len(found) < count:
        schedule.refused(now, rand if isinstance(rand, float) else rand.random())
        probe_at = schedule.next_probe(NEVER)
        assert probe_at is not None
        now = probe_at
        found.append(now)
    return found


def pauses(illness: Illness, rand: float, count: int) -> list[float]:
    return [later - earlier for earlier, later in pairwise([0.0, *probes(illness, rand, count=count)])]


def test_a_target_that_was_never_refused_is_asked_at_once() -> None:
    for illness in ILLNESSES:
        assert ProbeSchedule(illness, now=100.0).next_probe(NEVER) == 100.0


def test_pauses_without_capacity_double_up_to_15_seconds() -> None:
    assert pauses("capacity", 1.0, 7) == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert pauses("capacity", 0.0, 6) == [0.5, 1.0, 2.0, 4.0, 7.5, 7.5]


@given(rand=unit, count=st.integers(1, 200))
def test_a_pause_without_capacity_is_between_half_and_all_of_what_it_may_be(rand: float, count: int) -> None:
    for number, pause in enumerate(pauses("capacity", rand, count)):
        longest = min(FIRST_CAPACITY_PAUSE * 2.0 ** min(number, 10), MAX_CAPACITY_PAUSE)
        assert longest / 2 - 1e-9 <= pause <= longest + 1e-9


def test_pauses_of_an_outage_are_a_quarter_of_its_age() -> None:
    schedule = ProbeSchedule("outage", now=100.0)
    for now, pause in [(100.0, 0.1), (100.4, 0.1), (101.0, 0.25), (108.0, 2.0), (120.0, 5.0), (400.0, 5.0)]:
        schedule.refused(now, 1.0)
        assert schedule.next_probe(NEVER) == pytest.approx(now + pause)


@given(since=st.floats(0, 1e6), age=st.floats(0, 1e4), rand=unit, refusals=st.integers(1, 50))
def test_a_pause_of_an_outage_is_between_half_and_all_of_what_it_may_be(
    since: float, age: float, rand: float, refusals: int
) -> None:
    schedule = ProbeSchedule("outage", since)
    for _ in range(refusals):
        schedule.refused(since + age, rand)
    probe_at = schedule.next_probe(NEVER)
    assert probe_at is not None
    longest = min(max(FIRST_PAUSE, age / 4), MAX_PAUSE)
    assert longest / 2 - 1e-6 <= probe_at - (since + age) <= longest + 1e-6


def test_a_minute_of_an_outage_costs_some_40_probes() -> None:
    counts = [len(probes("outage", random.Random(seed), seconds=60.0)) for seed in range(50)]
    assert 30 <= sum(counts) / len(counts) <= 42
    assert max(counts) <= 50
    # with the longest and the shortest pauses that chance may bring
    assert len(probes("outage", 1.0, seconds=60.0)) <= 32
    assert len(probes("outage", 0.0, seconds=60.0)) <= 64


@given(seconds=st.floats(0, 1000), rand=unit)
def test_the_end_of_an_outage_is_noticed_after_a_quarter_more(seconds: float, rand: float) -> None:
    noticed_after = probes("outage", rand, seconds)[-1] - seconds if seconds else 0.0
    assert noticed_after <= min(max(FIRST_PAUSE, seconds / 4), MAX_PAUSE) + 1e-9


@pytest.mark.parametrize(
    ("illness", "retry_after", "pause"),
    [
        ("capacity", None, 1.0),
        ("capacity", 0.0, 1.0),
        ("capacity", 3.0, 3.0),
        ("capacity", 6.0, 6.0),
        ("capacity", 60.0, 6.0),
        ("capacity", 1e15, 6.0),
        ("outage", None, 0.1),
        ("outage", 0.05, 0.1),
        ("outage", 3.0, 3.0),
        ("outage", 60.0, 5.1),
    ],
)
def test_the_services_hint_lengthens_a_pause_by_5_seconds_at_most(
    illness: Illness, retry_after: float | None, pause: float
) -> None:
    schedule = ProbeSchedule(illness, now=100.0)
    schedule.refused(100.0, 1.0, retry_after)
    assert schedule.next_probe(NEVER) == 100.0 + pause
    # and holds for a last probe too
    assert schedule.next_probe(100.0 + pause - 0.01) is None


@pytest.mark.parametrize(
    ("until", "probe_at"),
    [
        (100.0, None),  # no time at all
        (100.99, None),  # the refusal is too fresh to ask again
        (101.0, 101.0),  # a last time
        (103.5, 103.5),
        (103.99, 103.99),
        (104.0, 104.0),  # when it is due anyway
        (200.0, 104.0),
    ],
)
def test_a_prober_asks_once_more_when_its_time_ends_before_the_pause(until: float, probe_at: float | None) -> None:
    schedule = ProbeSchedule("capacity", now=100.0)
    for _ in range(3):
        schedule.refused(100.0, 1.0)
    assert schedule.next_probe(until) == probe_at


@pytest.mark.parametrize(
    ("until", "probe_at"), [(104.05, None), (104.1, 104.1), (104.6, 104.6), (105.0, 105.0), (200.0, 105.0)]
)
def test_a_prober_of_an_outage_asks_once_more_as_well(until: float, probe_at: float | None) -> None:
    schedule = ProbeSchedule("outage", now=100.0)
    schedule.refused(104.0, 1.0)
    assert schedule.next_probe(until) == probe_at


@given(
    illness=st.sampled_from(ILLNESSES),
    ends=st.lists(st.floats(100, 200), min_size=1, max_size=50),
    rand=unit,
)
def test_however_many_run_out_of_time_two_probes_are_half_a_first_pause_apart(
    illness: Illness, ends: list[float], rand: float
) -> None:
    """One after the other probes until its time is up, as in line."""
    schedule = ProbeSchedule(illness, now=100.0)
    schedule.refused(100.0, rand)
    now = 100.0
    asked = [now]
    for end in sorted(ends):
        while (probe_at := schedule.next_probe(end)) is not None:
            assert probe_at <= end
            now = max(now, probe_at)
            asked.append(now)
            schedule.refused(now, rand)
        now = max(now, end)
    assert all(later - earlier >= FIRST_PAUSES[illness] / 2 - 1e-9 for earlier, later in pairwise(asked))


def test_the_repr_of_a_schedule_counts() -> None:
    schedule = ProbeSchedule("outage", now=0.0)
    schedule.refused(0.0, 0.0)
    assert repr(schedule) == "<ProbeSchedule outage refusals=1>"


# What makes a target ill


def admission(maximum: int = 64) -> AdmissionState:
    return AdmissionState(WorkingLimit(maximum), maximum)


def fail(state: AdmissionState, count: int = 1, *, now: float = 1.0, in_flight: int = 1) -> None:
    for _ in range(count):
        state.on_failure(now, now, in_flight, 0.5)


def throttle(
    state: AdmissionState, count: int = 1, *, now: float = 1.0, in_flight: int = 1, strict: bool = False
) -> None:
    for _ in range(count):
        state.on_throttle(now, now, in_flight, 0.5, strict=strict)


class Observed(NamedTuple):
    """What callers of a target notice of its state."""

    illness: Illness | None
    slots: int
    limit: int
    steady: bool
    tokens: RetryBucketStatistics


def observed(state: AdmissionState) -> Observed:
    return Observed(state.illness, state.slots, state.limit, state.steady, state.bucket.statistics())


def everything(thing: Any) -> Any:
    """All that an object of this module knows, to be compared."""
    if hasattr(thing, "__slots__"):
        return {name: everything(getattr(thing, name)) for name in thing.__slots__}
    return thing


def test_a_new_target_is_healthy_and_takes_all() -> None:
    state = admission()
    assert (state.illness, state.slots, state.limit) == (None, 64, 64)
    assert state.steady
    assert repr(state) == "<AdmissionState healthy limit=64 maximum=64>"


def test_three_failures_with_nothing_else_in_flight_make_an_outage() -> None:
    state = admission()
    fail(state, 2)
    assert (state.illness, state.slots) == (None, 64)
    fail(state, now=3.0)
    assert (state.illness, state.slots, state.ill_since) == ("outage", 0, 3.0)
    assert repr(state) == "<AdmissionState outage limit=64 maximum=64>"


def test_with_others_in_flight_it_takes_eight() -> None:
    state = admission()
    fail(state, 7, in_flight=20)
    assert state.illness is None
    fail(state, in_flight=20)
    assert state.illness == "outage"


def test_failures_with_others_in_flight_count_when_the_last_one_was_alone() -> None:
    state = admission()
    fail(state, 4, in_flight=20)
    fail(state, in_flight=2)
    assert state.illness is None
    fail(state, in_flight=1)
    assert state.illness == "outage"


def test_a_success_ends_a_streak() -> None:
    state = admission()
    for _ in range(20):
        fail(state, 2)
        state.on_success(1.0, 1.1, 1)
        fail(state, 7, in_flight=30)
        state.on_success(1.0, 1.1, 30)
    assert state.illness is None
    assert state.slots == 64


@pytest.mark.parametrize("cause", sorted(SIGNS_OF_LIFE["outage"]))
def test_an_answer_of_the_model_or_about_the_request_ends_a_streak(cause: Cause) -> None:
    state = admission()
    fail(state, 2)
    state.on_answer(cause, 1.0, 1.1, 1, 0.5)
    fail(state, 2)
    assert state.illness is None
    state.on_answer(cause, 1.0, 1.1, 1, 0.5)
    fail(state, 7, in_flight=20)
    state.on_answer(cause, 1.0, 1.1, 20, 0.5)
    fail(state, 7, in_flight=20)
    assert state.illness is None


@pytest.mark.parametrize("cause", ["read_timeout", "truncated"])
def test_other_answers_do_not_end_a_streak(cause: Cause) -> None:
    state = admission()
    fail(state, 2)
    state.on_answer(cause, 1.0, 1.1, 1, 0.5)
    fail(state, 1)
    assert state.illness == "outage"


@pytest.mark.parametrize("strict", [False, True])
def test_throttling_makes_no_outage_while_others_are_in_flight(strict: bool) -> None:
    state = admission()
    for number in range(600):
        throttle(state, now=float(number), in_flight=2, strict=strict)
    assert state.illness is None
    assert state.slots == 1


def test_eight_failures_make_an_outage_whatever_is_throttled_between_them() -> None:
    state = admission()
    for _ in range(7):
        throttle(state, 5, in_flight=20)
        fail(state, in_flight=20)
    throttle(state, 5, in_flight=20)
    assert state.illness is None
    fail(state, in_flight=20)
    assert state.illness == "outage"


def test_failures_and_throttling_are_one_streak_when_the_last_one_was_alone() -> None:
    for last, streak in ((fail, 3), (throttle, 8)):
        state = admission()
        fail(state, in_flight=20)
        throttle(state, streak - 2, in_flight=20)
        assert state.illness is None
        last(state, in_flight=1)
        assert state.illness == "outage"


def test_throttling_with_nothing_else_in_flight_makes_an_outage() -> None:
    state = admission()
    throttle(state, 7)
    assert state.illness is None
    throttle(state)
    assert (state.illness, state.slots) == ("outage", 0)


def test_a_burst_that_is_refused_to_the_last_call_makes_an_outage() -> None:
    state = admission()
    for in_flight in range(64, 1, -1):
        state.on_throttle(0.0, 1.0, in_flight, 0.5)
    assert state.illness is None
    state.on_throttle(0.0, 1.0, 1, 0.5)
    assert state.illness == "outage"


def test_a_refusal_for_want_of_capacity_makes_a_target_ill_at_once() -> None:
    state = admission()
    state.on_no_capacity(5.0, 5.0, 1.0)
    assert (state.illness, state.slots, state.ill_since) == ("capacity", 0, 5.0)
    assert state.next_probe(NEVER) == 6.0


def test_want_of_capacity_replaces_an_outage() -> None:
    state = admission()
    fail(state, 3)
    for number in range(20):
        state.on_failure(1.0 + number, 1.0 + number, 1, 1.0, probe=True)
    state.on_no_capacity(30.0, 30.0, 1.0, probe=True)
    assert (state.illness, state.ill_since) == ("capacity", 30.0)
    assert state.next_probe(NEVER) == 31.0


def test_nothing_replaces_want_of_capacity() -> None:
    state = admission()
    state.on_no_capacity(5.0, 5.0, 1.0)
    fail(state, 20)
    throttle(state, 20)
    assert (state.illness, state.ill_since) == ("capacity", 5.0)


# Probing


def test_an_outage_is_probed_after_its_pause() -> None:
    state = admission()
    fail(state, 3, now=1.0)
    assert state.next_probe(NEVER) == 1.075
    state.on_failure(1.075, 9.0, 1, 1.0, probe=True)
    assert state.next_probe(NEVER) == 11.0
    state.on_throttle(11.0, 13.0, 1, 1.0, probe=True, retry_after=4.0)
    assert state.next_probe(NEVER) == 17.0
    assert state.next_probe(15.0) is None


def test_the_hint_of_the_failure_that_makes_an_outage_counts() -> None:
    state = admission()
    fail(state, 2)
    state.on_failure(1.0, 1.0, 1, 1.0, retry_after=2.0)
    assert state.next_probe(NEVER) == 3.0


@pytest.mark.parametrize("illness", ILLNESSES)
def test_only_the_probe_plans_the_next_one(illness: Illness) -> None:
    state = ill(illness)
    planned = state.next_probe(NEVER)
    fail(state, now=3.0)
    throttle(state, now=3.0)
    if illness == "capacity":
        state.on_no_capacity(3.0, 3.0, 0.5)
    assert state.next_probe(NEVER) == planned
    state.on_failure(3.0, 3.0, 1, 0.5, probe=True)
    assert state.next_probe(NEVER) != planned


def test_failures_of_a_target_that_is_ill_take_no_tokens() -> None:
    state = admission()
    fail(state, 3)
    tokens = state.bucket.statistics()
    assert tokens.tokens == 500 - 3
    for probe in (True, False):
        state.on_failure(2.0, 2.0, 1, 0.5, probe=probe)
        state.on_throttle(2.0, 2.0, 1, 0.5, probe=probe)
    # nor are they counted as retries that were stopped
    assert state.bucket.statistics() == tokens
    assert state.limit == 64


# What makes it well


def ill(illness: Illness, since: float = 2.0, maximum: int = 64) -> AdmissionState:
    state = admission(maximum)
    if illness == "capacity":
        state.on_no_capacity(since, since, 0.5)
    else:
        fail(state, 3, now=since)
    assert (state.illness, state.ill_since) == (illness, since)
    return state


@pytest.mark.parametrize("illness", ILLNESSES)
def test_an_unanswered_probe_counts_as_let_in_later_where_refusals_take_long(illness: Illness) -> None:
    """A load balancer's 504 comes after half a minute, and is a refusal all the same."""
    state = AdmissionState(WorkingLimit(32), 32)
    assert state.let_in_after == 0.0, "nothing is probed"
    for started_at in (1.0, 2.0, 3.0):
        state.on_failure(started_at, 30.0, 1, 0.5)
    assert state.let_in_after == 1.5 * 29.0
    if illness == "capacity":
        state.on_no_capacity(31.0, 32.0, 0.5)
        assert state.let_in_after == 1.5 * 29.0
        state.on_no_capacity(32.0, 64.0, 0.5, probe=True)
        assert state.let_in_after == 1.5 * 32.0
    state.on_success(70.0, 71.0, 1, probe=True)
    fail(state, 3, now=80.0)
    assert state.let_in_after == LET_IN_AFTER["outage"]


def test_a_probe_that_shows_nothing_is_followed_by_a_pause() -> None:
    state = ill("outage")
    state.on_answer("read_timeout", 10.0, 12.0, 1, 1.0, probe=True)
    assert state.illness == "outage"
    assert state.next_probe(NEVER) == 12.0 + 0.25 * (12.0 - 2.0)
    state.on_answer("read_timeout", 10.0, 15.0, 1, 1.0)
    assert state.next_probe(NEVER) == 12.0 + 0.25 * (12.0 - 2.0), "no probe"


@pytest.mark.parametrize("illness", ILLNESSES)
def test_the_success_of_the_probe_ends_an_illness(illness: Illness) -> None:
    state = ill(illness)
    state.on_success(2.1, 2.2, 1, probe=True)
    assert (state.illness, state.slots) == (None, FIRST_WINDOW)


@pytest.mark.parametrize("illness", ILLNESSES)
@pytest.mark.parametrize(("started_at", "ends"), [(1.0, False), (2.0, False), (2.001, True)])
def test_a_success_ends_an_illness_only_if_it_was_sent_after_its_beginning(
    illness: Illness, started_at: float, ends: bool
) -> None:
    state = ill(illness)
    state.on_success(started_at, 2.5, 3)
    assert (state.illness is None) is ends
    assert (state.slots > 0) is ends


@pytest.mark.parametrize("illness", ILLNESSES)
@pytest.mark.parametrize("cause", [cause for cause in get_args(Cause) if cause not in ("throttling", "transient")])
@pytest.mark.parametrize("probe", [True, False])
def test_an_answer_ends_an_illness_if_it_is_a_sign_of_life(illness: Illness, cause: Cause, probe: bool) -> None:
    state = ill(illness)
    state.on_answer(cause, 1.0 if probe else 2.1, 2.2, 1, 0.5, probe=probe)
    assert (state.illness is None) is (cause in SIGNS_OF_LIFE[illness])
    assert (state.slots > 0) is (cause in SIGNS_OF_LIFE[illness])


@pytest.mark.parametrize("illness", ILLNESSES)
def test_an_answer_to_what_was_sent_before_the_illness_says_nothing(illness: Illness) -> None:
    state = ill(illness)
    state.on_answer("model", 2.0, 2.2, 3, 0.5)
    assert state.illness == illness


@pytest.mark.parametrize("illness", ILLNESSES)
def test_a_probe_that_is_not_refused_for_long_ends_an_illness(illness: Illness) -> None:
    state = ill(illness)
    state.on_let_in(12.0)
    assert (state.illness, state.slots) == (None, FIRST_WINDOW)
    before = everything(state)
    state.on_let_in(13.0)
    assert everything(state) == before


@pytest.mark.parametrize("how", ["success", "answer", "let in"])
def test_a_target_that_was_well_again_needs_a_new_streak(how: str) -> None:
    state = ill("outage")
    if how == "success":
        state.on_success(2.1, 2.2, 1, probe=True)
    elif how == "answer":
        state.on_answer("model", 2.1, 2.2, 1, 0.5, probe=True)
    else:
        state.on_let_in(6.0)
    fail(state, 2, now=7.0)
    assert state.illness is None
    fail(state, now=7.0)
    assert state.illness == "outage"


# The slow start


@pytest.mark.parametrize("illness", ILLNESSES)
def test_a_slow_start_adds_one_for_each_success_up_to_the_limit_known_before(illness: Illness) -> None:
    state = ill(illness, maximum=12)
    state.on_success(2.1, 2.2, 1, probe=True)
    slots = [state.slots]
    for number in range(10):
        state.on_success(3.0, 3.1 + number, 2)
        slots.append(state.slots)
    assert slots == [4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 12]


def test_a_slow_start_leads_to_a_limit_that_throttling_had_lowered() -> None:
    state = admission()
    state.on_throttle(0.0, 0.1, 41, 0.5)
    assert state.slots == 40
    state.on_success(0.1, 0.2, 10)
    fail(state, 3)
    assert (state.slots, state.limit) == (0, 40)
    state.on_success(1.1, 1.2, 1, probe=True)
    for _ in range(100):
        state.on_success(2.0, 2.1, 10)
    assert state.slots == 40


def test_a_slow_start_goes_on_whatever_models_say() -> None:
    state = ill("outage", maximum=8)
    state.on_success(2.1, 2.2, 1, probe=True)
    slots = []
    for cause in ("model", "none", "model_not_ready", "clock_skew", "model", "model"):
        state.on_answer(cause, 3.0, 3.1, 4, 0.5)
        slots.append(state.slots)
    assert slots == [5, 6, 7, 8, 8, 8]


@pytest.mark.parametrize("cause", sorted(SIGNS_OF_LIFE["outage"]))
def test_answers_of_models_raise_the_limit_outside_of_a_slow_start_too(cause: Cause) -> None:
    answered, succeeded = admission(), admission()
    for state in (answered, succeeded):
        state.on_throttle(0.0, 0.1, 33, 0.5)
    slots = []
    for _ in range(1000):
        answered.on_answer(cause, 1.0, 1.1, answered.slots, 0.5)
        succeeded.on_success(1.0, 1.1, succeeded.slots)
        assert observed(answered) == observed(succeeded)
        slots.append(answered.slots)
    assert (slots[60], slots[64], slots[-1]) == (32, 33, 64)


@pytest.mark.parametrize("cause", ["read_timeout", "truncated"])
def test_timeouts_and_broken_answers_raise_no_limit(cause: Cause) -> None:
    state = admission()
    state.on_throttle(0.0, 0.1, 33, 0.5)
    before = observed(state)
    for _ in range(5000):
        state.on_answer(cause, 1.0, 1.1, 32, 0.5)
    assert observed(state) == before


def test_a_limit_that_is_not_in_use_is_forgotten_whatever_the_model_says() -> None:
    for cause in (None, "model"):
        state = admission()
        state.on_throttle(0.0, 0.1, 33, 0.5)
        slots = []
        for _ in range(64 * 32 + 1):
            if cause is None:
                state.on_success(1.0, 1.1, 5)
            else:
                state.on_answer("model", 1.0, 1.1, 5, 0.5)
            slots.append(state.slots)
        assert set(slots[: 64 * 32 - 1]) == {32}
        assert (slots[-1], state.steady) == (64, True)


def test_timeouts_and_broken_answers_do_not_help_a_slow_start() -> None:
    state = ill("outage")
    state.on_success(2.1, 2.2, 1, probe=True)
    for cause in ("read_timeout", "truncated"):
        state.on_answer(cause, 3.0, 3.1, 4, 0.5)
    assert state.slots == FIRST_WINDOW


def test_throttling_ends_a_slow_start() -> None:
    state = ill("outage")
    state.on_success(2.1, 2.2, 1, probe=True)
    for _ in range(8):
        state.on_success(3.0, 3.1, 12)
    assert state.slots == 12
    state.on_throttle(3.05, 3.2, 11, 0.5)
    assert state.slots == 10
    # From now on a round trip adds half a call, and not a call each.
    for _ in range(10):
        state.on_answer("model", 3.1, 3.3, 10, 0.5)
    assert state.slots == 10
    for _ in range(10):
        state.on_success(3.3, 3.4, 10)
    assert state.slots == 11


@pytest.mark.parametrize("illness", ILLNESSES)
@pytest.mark.parametrize("how", ["success", "answer", "let in"])
def test_model_errors_alone_carry_a_slow_start_on_to_the_limit_known_before(illness: Illness, how: str) -> None:
    state = admission()
    state.on_throttle(0.0, 0.1, 41, 0.5)
    state.on_success(0.1, 0.2, 10)
    if illness == "capacity":
        state.on_no_capacity(2.0, 2.0, 0.5)
    else:
        fail(state, 3, now=2.0)
    if how == "success":
        state.on_success(2.1, 2.2, 1, probe=True)
    elif how == "answer":
        state.on_answer("model", 2.1, 2.2, 1, 0.5, probe=True)
    else:
        state.on_let_in(12.0)
    slots = [state.slots]
    for _ in range(100):
        state.on_answer("model", 13.0, 13.1, 4, 0.5)
        slots.append(state.slots)
    assert slots[:37] == [*range(FIRST_WINDOW, 41)]
    assert set(slots[37:]) == {40}


def test_a_refusal_that_does_not_lower_the_limit_does_not_end_a_slow_start() -> None:
    state = ill("outage")
    state.on_let_in(5.0)
    state.on_success(5.0, 5.1, 4, sent_among=4)
    state.on_throttle(5.1, 5.2, 4, 0.5, sent_among=4)
    for _ in range(58):
        state.on_answer("model", 5.2, 5.3, 4, 0.5)
    assert state.slots == 63
    state.on_success(5.3, 5.4, 4, sent_among=4)
    assert state.slots == 64


@pytest.mark.parametrize("maximum", [1, 2, 3])
def test_a_slow_start_never_begins_above_the_maximum(maximum: int) -> None:
    state = ill("outage", maximum=maximum)
    state.on_let_in(3.0)
    assert state.slots == maximum


# The bucket


def test_a_failure_takes_a_token_and_a_success_returns_one() -> None:
    state = admission()
    for report in (state.on_failure, state.on_throttle):
        report(1.0, 1.1, 10, 0.5)
        assert state.bucket.statistics().tokens == 499
        state.on_success(1.2, 1.3, 10)
        assert state.bucket.is_full


@pytest.mark.parametrize("cause", get_args(Cause))
def test_an_answer_of_a_model_returns_a_token_as_well(cause: Cause) -> None:
    state = admission()
    fail(state, 3, in_flight=10)
    state.on_answer(cause, 1.2, 1.3, 10, 0.5)
    assert state.bucket.statistics().tokens == (498 if cause in SIGNS_OF_LIFE["outage"] else 497)


def test_failures_lower_the_limit_once_the_bucket_is_empty() -> None:
    """Two of three calls fail, so that there is never a streak."""
    state = admission()
    now, found = 0.0, []
    for _ in range(505):
        now += 1.0
        for _ in range(2):
            state.on_failure(now - 0.1, now, 40, 0.5)
        found.append((state.bucket.statistics().tokens, state.limit))
        state.on_success(now - 0.05, now, 10)
    # Each success returns the token of one of its two failures.
    assert found[:499] == [(498 - number, 64) for number in range(499)]
    assert found[499:] == [(0, 39)] * 6
    assert state.illness is None


def test_retries_may_be_half_of_all_requests() -> None:
    state = admission()
    for number in range(2000):
        state.on_success(1.0, 1.05, 40, sent_among=40)
        if number % 2:
            state.on_failure(9.0, 9.1, 40, 0.5)
        else:
            refuse(state, 40)
    assert (state.limit, state.illness) == (64, None)
    assert state.bucket.statistics().tokens == 499


def succeed(state: AdmissionState, count: int, among: int = 40) -> None:
    for _ in range(count):
        state.on_success(1.0, 1.05, among, sent_among=among)


def refuse(state: AdmissionState, sent_among: int, count: int = 1, *, strict: bool = False) -> None:
    """Refusals one after the other of calls that were sent among so many."""
    for _ in range(count):
        state.on_throttle(9.0, 9.001, sent_among, 0.5, sent_among=sent_among, strict=strict)


def test_a_refusal_among_as_many_as_get_through_is_an_accident() -> None:
    state = admission()
    succeed(state, 16)
    refuse(state, 33, IN_A_ROW - 1)
    assert (state.limit, state.slots, state.illness) == (64, 64, None)
    refuse(state, 33)
    assert (state.limit, state.slots, state.illness) == (32, 32, None)


def test_a_refusal_that_is_no_accident_to_its_call_costs_one() -> None:
    state = admission()
    succeed(state, 16)
    refuse(state, 40)
    assert (state.limit, state.slots) == (64, 64)
    refuse(state, 40, strict=True)
    assert (state.limit, state.slots) == (63, 63)
    # and takes a token like the others
    assert state.bucket.statistics().tokens == 498


def test_refusals_count_strictly_once_the_bucket_is_empty() -> None:
    """Four of seven calls are refused, so that there are never eight in a row and enough get through."""
    state = admission()
    found = []
    for _ in range(507):
        succeed(state, 3)
        refuse(state, 40, 4)
        found.append((state.bucket.statistics().tokens, state.limit))
    assert found[:497] == [(496 - number, 64) for number in range(497)]
    assert found[497:] == [(0, 63 - number) for number in range(10)]


def test_a_failure_without_tokens_is_no_accident() -> None:
    state = admission()
    while state.bucket.withdraw(1):
        pass
    state.on_success(1.0, 1.05, 60, sent_among=60)
    state.on_failure(9.0, 9.1, 40, 0.5)
    assert state.limit == 64
    state.on_failure(9.0, 9.1, 40, 0.5)
    assert state.limit == 39


# Whether a success changes anything


def test_a_success_of_a_steady_target_changes_nothing() -> None:
    state = admission()
    before = observed(state)
    for sent_among in (0, 1, 64):
        state.on_success(1.0, 1.1, 64, sent_among=sent_among)
        assert observed(state) == before


def test_a_target_is_not_steady_after_a_failure_until_its_tokens_are_back() -> None:
    state = admission()
    fail(state, 5, in_flight=10)
    for _ in range(5):
        assert not state.steady
        state.on_success(1.0, 1.1, 10)
    assert state.steady


def test_a_target_is_not_steady_after_an_accident_until_its_tokens_are_back() -> None:
    state = admission()
    succeed(state, 16)
    assert state.steady
    refuse(state, 40, 3)
    assert state.limit == 64
    for _ in range(3):
        assert not state.steady
        state.on_success(9.0, 9.1, 40)
    assert state.steady


def test_a_target_is_not_steady_while_it_is_ill_or_below_its_maximum() -> None:
    state = ill("capacity", maximum=5)
    assert not state.steady
    state.on_success(3.0, 3.1, 1, probe=True)
    assert not state.steady
    state.on_success(3.0, 3.1, 1)
    assert (state.slots, state.steady) == (5, True)


class AdmissionMachine(RuleBasedStateMachine):
    """Any outcomes in any order, of calls that were sent at any time before."""

    @initialize(maximum=st.integers(1, 40), spent=st.sampled_from([0, 480, 500]))
    def begin(self, maximum: int, spent: int) -> None:
        self.now = 100.0
        self.maximum = maximum
        self.state = admission(maximum)
        self.planned_at = self.now
        if spent:
            throttle(self.state, spent, in_flight=1000)
            self.state.on_success(1.0, 1.1, 1)
        assert (self.state.limit, self.state.steady) == (maximum, not spent)

    def check_plan(self, illness_before: Illness | None, *, probe: bool) -> None:
        """An illness is probed within its longest pause, counted from its beginning or its last refused probe."""
        if self.state.illness is not None and (probe or illness_before != self.state.illness):
            self.planned_at = self.now

    @rule(seconds=st.floats(0, 60))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    outcome = {
        "ago": st.floats(0, 20),
        "in_flight": st.integers(1, 50),
        "probe": st.booleans(),
    }
    among = st.integers(0, 50)
    hint = st.none() | st.floats(0, 1e6)

    @rule(**outcome, sent_among=among, count=st.integers(1, 40))
    def success(self, ago: float, in_flight: int, probe: bool, sent_among: int, count: int) -> None:
        started_at = self.now - ago
        ended = self.state.illness is not None and (probe or started_at > self.state.ill_since)
        before = self.state.slots
        for _ in range(count):
            self.state.on_success(started_at, self.now, in_flight, sent_among=sent_among, probe=probe)
        if ended:
            assert self.state.illness is None
        assert self.state.slots >= before

    @rule(**outcome, sent_among=among, rand=unit, retry_after=hint, strict=st.booleans(), count=st.integers(1, 40))
    def throttling(
        self,
        ago: float,
        in_flight: int,
        probe: bool,
        sent_among: int,
        rand: float,
        retry_after: float | None,
        strict: bool,
        count: int,
    ) -> None:
        for _ in range(count):
            illness, slots, limit = self.state.illness, self.state.slots, self.state.limit
            tokens = self.state.bucket.statistics().tokens
            self.state.on_throttle(
                self.now - ago,
                self.now,
                in_flight,
                rand,
                sent_among=sent_among,
                probe=probe,
                retry_after=retry_after,
                strict=strict,
            )
            assert self.state.bucket.statistics().tokens == (tokens if illness else max(tokens - 1, 0))
            assert self.state.slots <= slots
            assert min(limit, in_flight) - 1 <= self.state.limit <= limit
            if illness is not None:
                assert self.state.limit == limit
            elif strict or not tokens:
                event("strict")
            if illness is not None or in_flight > 1:
                assert self.state.illness == illness
            self.check_plan(illness, probe=probe)

    @rule(**outcome, rand=unit, retry_after=hint, count=st.integers(1, 10))
    def failure(
        self, ago: float, in_flight: int, probe: bool, rand: float, retry_after: float | None, count: int
    ) -> None:
        for _ in range(count):
            illness, slots, limit = self.state.illness, self.state.slots, self.state.limit
            tokens = self.state.bucket.statistics().tokens
            self.state.on_failure(self.now - ago, self.now, in_flight, rand, probe=probe, retry_after=retry_after)
            assert self.state.bucket.statistics().tokens == (tokens if illness else max(tokens - 1, 0))
            assert self.state.slots <= slots
            if tokens:
                assert self.state.limit == limit
            if illness is not None:
                assert self.state.illness == illness
            self.check_plan(illness, probe=probe)

    @rule(probe=st.booleans(), rand=unit, retry_after=hint)
    def no_capacity(self, probe: bool, rand: float, retry_after: float | None) -> None:
        illness = self.state.illness
        self.state.on_no_capacity(self.now, self.now, rand, probe=probe, retry_after=retry_after)
        assert self.state.illness == "capacity"
        self.check_plan(illness, probe=probe)

    @rule(**outcome, rand=unit, cause=st.sampled_from(get_args(Cause)))
    def answer(self, ago: float, in_flight: int, probe: bool, rand: float, cause: Cause) -> None:
        before, illness = self.state.slots, self.state.illness
        self.state.on_answer(cause, self.now - ago, self.now, in_flight, rand, probe=probe)
        assert self.state.slots >= before
        self.check_plan(illness, probe=probe)

    @rule()
    def let_in(self) -> None:
        self.state.on_let_in(self.now)
        assert self.state.illness is None

    @invariant()
    def slots_are_within_their_bounds(self) -> None:
        state = self.state
        event(f"illness: {state.illness}")
        assert 1 <= state.limit <= self.maximum
        assert state.slots == (state.limit if state.illness is None else 0)
        assert state.ill_since <= self.now

    @invariant()
    def a_success_of_a_steady_target_changes_nothing(self) -> None:
        if self.state.steady:
            event("steady")
            assert self.state.illness is None
            after = copy.deepcopy(self.state)
            after.on_success(self.now, self.now + 1.0, self.maximum, sent_among=self.maximum)
            assert observed(after) == observed(self.state)

    @invariant()
    def a_target_that_is_ill_is_probed_before_long(self) -> None:
        if self.state.illness is not None:
            probe_at = self.state.next_probe(math.inf)
            assert probe_at is not None
            longest = MAX_PAUSE if self.state.illness == "outage" else MAX_CAPACITY_PAUSE
            assert self.planned_at < probe_at <= self.planned_at + longest + MAX_HINT_EXTRA + 1e-9


TestAdmissionMachine = AdmissionMachine.TestCase
