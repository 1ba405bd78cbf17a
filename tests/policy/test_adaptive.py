"""The adaptive limit: bounds that hold for every input, each rule by itself, and what it reaches in a closed loop."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiosmrt._policy.adaptive import AdaptiveLimit, AdaptiveRule
from aiosmrt._policy.limit import FIRST_WINDOW, ConcurrencyLimit
from aiosmrt._policy.target_health import AdmissionState
from aiosmrt.errors import ParamValidationError
from benchmarks.limiter_simulation import (
    RANDOM,
    REGULAR,
    SERVICES,
    AllKnowing,
    Cell,
    Fixed,
    Service,
    measure,
    moved,
    simulate,
)

BY_NAME = {service.name: service for service in (*SERVICES, *REGULAR, *RANDOM)}


def lognormal(seed: int, mean: float = 0.1, sigma: float = 0.3) -> Callable[[], float]:
    randomness = random.Random(seed)
    return lambda: mean * randomness.lognormvariate(-(sigma**2) / 2, sigma)


def succeed(rule: AdaptiveRule, seconds: Callable[[], float], number: int, *, in_use: float = 1.0) -> None:
    """Report successes, with this share of the limit in use."""
    for _ in range(number):
        rule.on_success(0.0, seconds(), max(1, round(in_use * rule.limit)))


# Settings


def test_the_defaults_make_a_low_limit() -> None:
    rule: ConcurrencyLimit = AdaptiveLimit().new()
    assert (rule.limit, rule.reason, rule.round_trip) == (4, "start", None)
    assert repr(rule) == "<AdaptiveRule limit=4 minimum=1 maximum=1000 reason=start>"


@pytest.mark.parametrize(("minimum", "maximum", "initial"), [(1, 2, 2), (8, 100, 8), (1, 100, 4)])
def test_the_initial_limit_is_within_the_bounds(minimum: int, maximum: int, initial: int) -> None:
    assert AdaptiveLimit(minimum=minimum, maximum=maximum).new().limit == initial


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minimum": 0}, "minimum must be an integer >= 1; got 0"),
        ({"maximum": 1.5}, "maximum must be an integer >= 1; got 1.5"),
        ({"initial": True}, "initial must be an integer >= 1; got True"),
        ({"minimum": 9, "maximum": 8}, "minimum must be <= maximum 8; got 9"),
        ({"initial": 9, "maximum": 8}, "initial must be from 1 to 8; got 9"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ParamValidationError, match=message):
        AdaptiveLimit(**settings)


def test_a_rule_needs_bounds_in_order() -> None:
    with pytest.raises(ValueError, match="1 <= minimum <= initial <= maximum"):
        AdaptiveRule(initial=0, minimum=0, maximum=8)


# Each rule


def test_a_limit_in_use_grows_while_nothing_waits() -> None:
    rule = AdaptiveLimit().new()
    succeed(rule, lognormal(1), 400)
    assert rule.limit >= 16
    assert rule.reason == "growth"
    assert rule.round_trip == pytest.approx(0.1, rel=0.2)


def test_a_limit_that_is_not_in_use_does_not_move() -> None:
    rule = AdaptiveLimit(initial=20).new()
    succeed(rule, lognormal(1), 1_000, in_use=0.5)
    assert (rule.limit, rule.reason) == (20, "start")


def test_the_same_time_on_top_of_every_round_trip_lowers_it() -> None:
    rule = AdaptiveLimit(initial=50).new()
    seconds = lognormal(1)
    succeed(rule, seconds, 400)
    before = rule.limit
    succeed(rule, lambda: 0.4 + seconds(), 400)
    assert rule.limit < 0.6 * before
    assert rule.reason == "waiting"


def test_round_trips_that_are_all_longer_by_a_factor_do_not_lower_it() -> None:
    rule = AdaptiveLimit(initial=50).new()
    seconds = lognormal(1)
    succeed(rule, seconds, 400)
    before = rule.limit
    succeed(rule, lambda: 5 * seconds(), 400)
    assert rule.limit >= before


def test_round_trips_that_come_back_in_the_order_of_their_lengths_do_not_lower_it() -> None:
    """As of calls that were sent together: each is like the one before, but all together they vary as ever."""
    rule = AdaptiveLimit(initial=50).new()
    seconds = lognormal(1)
    succeed(rule, seconds, 400)
    for _ in range(40):
        before = rule.limit
        sent_together = iter(sorted(seconds() for _ in range(12)))
        succeed(rule, lambda: next(sent_together), 12)  # noqa: B023
        assert rule.limit >= before


def test_a_queue_is_seen_while_it_grows() -> None:
    """Longer and longer round trips differ much, but each hardly from the one before."""
    rule = AdaptiveLimit(initial=50, maximum=60).new()
    seconds = lognormal(1)
    succeed(rule, seconds, 400)
    assert rule.limit == 60
    waits = iter([0.0125 * number for number in range(60)])
    succeed(rule, lambda: next(waits) + seconds(), 60)
    assert rule.limit < 60
    assert rule.reason == "waiting"


def test_refusals_lower_it_by_exactly_the_excess() -> None:
    rule = AdaptiveLimit(initial=64).new()
    for in_flight in range(64, 8, -1):
        rule.on_throttle(0.0, 0.001, in_flight)
    assert (rule.limit, rule.reason) == (8, "refusal")


def stand_still(rule: AdaptiveRule, seconds: Callable[[], float], round_trips: int) -> None:
    """Let so many round trips pass with half of the limit in use."""
    succeed(rule, seconds, round_trips * rule.limit, in_use=0.5)


def fall(rule: AdaptiveRule, seconds: Callable[[], float], limit: int, *, round_trips: int) -> None:
    """Report refusals down to this limit, with so many round trips after each."""
    while rule.limit > limit:
        rule.on_throttle(0.0, 0.001, rule.limit)
        stand_still(rule, seconds, round_trips)


def is_cut_where_calls_wait(rule: AdaptiveRule, seconds: Callable[[], float]) -> bool:
    """Whether a little waiting lowers the limit, as it does not among other clients, whose queue it may be."""
    before = rule.limit
    succeed(rule, lambda: 0.03 + seconds(), 300)
    assert rule.limit != before
    return rule.limit < before


def test_a_limit_that_falls_slowly_shows_other_clients_and_one_that_falls_at_a_stroke_less_capacity() -> None:
    for round_trips, is_cut in ((1, False), (0, True)):
        rule, seconds = AdaptiveLimit(initial=100).new(), lognormal(1)
        stand_still(rule, seconds, 20)
        fall(rule, seconds, 50, round_trips=round_trips)
        assert is_cut_where_calls_wait(rule, seconds) is is_cut


def test_capacity_lost_at_a_stroke_does_not_show_other_clients_after_a_limit_a_little_below_the_largest() -> None:
    rule, seconds = AdaptiveLimit(initial=100).new(), lognormal(1)
    stand_still(rule, seconds, 20)
    fall(rule, seconds, 97, round_trips=0)
    stand_still(rule, seconds, 200)
    fall(rule, seconds, 50, round_trips=0)
    assert is_cut_where_calls_wait(rule, seconds)


@pytest.mark.parametrize(("further", "is_cut"), [(1, True), (3, False)])
def test_refusals_at_one_call_more_or_less_do_not_show_other_clients(further: int, is_cut: bool) -> None:
    rule, seconds = AdaptiveLimit(initial=60).new(), lognormal(1)
    stand_still(rule, seconds, 8)
    for number in range(24):
        rule.on_throttle(0.0, 0.001, 60 - further * (number % 2))
        succeed(rule, seconds, 48)
    assert is_cut_where_calls_wait(rule, seconds) is is_cut


@pytest.mark.parametrize(("in_flight", "is_cut"), [(45, True), (57, False)])
def test_refusals_while_calls_hold_their_slots_in_back_off_do_not_show_other_clients(
    in_flight: int, is_cut: bool
) -> None:
    rule, seconds = AdaptiveLimit(initial=60).new(), lognormal(1)
    stand_still(rule, seconds, 8)
    for number in range(6):
        # The number in flight goes up and down below the limit.
        rule.on_throttle(0.0, 0.001, in_flight + 3 * (number % 2))
        succeed(rule, seconds, 48)
    assert is_cut_where_calls_wait(rule, seconds) is is_cut


def test_clients_that_share_grow_by_the_same_step_whatever_their_limits() -> None:
    def gained(limit: int, round_trips: int) -> int:
        rule, seconds = AdaptiveLimit(initial=2 * limit).new(), lognormal(1)
        stand_still(rule, seconds, 20)
        fall(rule, seconds, limit, round_trips=round_trips)
        for _ in range(10):
            succeed(rule, seconds, 4 * rule.limit)
            rule.on_throttle(0.0, 0.001, rule.limit)
        return rule.limit - limit

    assert [gained(limit, 1) == pytest.approx(10, abs=2) for limit in (30, 50, 80)] == [True] * 3
    assert gained(80, 0) > 2 * gained(80, 1), "alone, by more"


def test_a_refusal_that_slots_still_held_explain_changes_nothing() -> None:
    rule = AdaptiveLimit(initial=8).new()
    rule.on_throttle(0.0, 0.001, 10)
    assert rule.limit == 8


def test_a_refusal_that_the_number_of_calls_does_not_explain_takes_off_about_a_quarter() -> None:
    rule = AdaptiveLimit(initial=8, maximum=8).new()
    for _ in range(40):
        rule.on_success(0.0, 0.1, 8, sent_among=8)
    for _ in range(3):
        rule.on_throttle(0.0, 0.1, 8, sent_among=8, strict=False)
    assert rule.limit == 7
    rule.on_throttle(0.0, 0.1, 8, sent_among=8, strict=True)
    assert rule.limit == 6


def test_a_limit_that_lost_part_of_a_call_is_in_use_with_the_whole_calls_that_are_left() -> None:
    rule = AdaptiveLimit(initial=2, maximum=2).new()
    for _ in range(8):
        rule.on_success(0.0, 0.1, 2, sent_among=2)
    rule.on_throttle(0.0, 0.1, 2, sent_among=2, strict=False)
    assert rule.limit == 1
    seconds = lognormal(1)
    for _ in range(400):
        rule.on_success(0.0, seconds(), rule.limit, sent_among=rule.limit)
    assert rule.limit > 1


def test_timeouts_count_once_per_round_trip() -> None:
    rule = AdaptiveLimit(initial=100).new()
    for _ in range(10):
        rule.on_timeout(1.0, 61.0, 100)
    assert (rule.limit, rule.reason) == (70, "timeout")
    rule.on_timeout(62.0, 122.0, 70)
    assert rule.limit == 49


def test_failed_models_say_nothing_about_load() -> None:
    rule = AdaptiveLimit(initial=8).new()
    for _ in range(100):
        rule.on_answer(0.0, 5.0, 8)
    assert (rule.limit, rule.reason, rule.round_trip) == (8, "start", None)


def test_after_an_outage_the_limit_from_before_is_back_after_as_many_successes() -> None:
    rule = AdaptiveLimit(initial=40).new()
    succeed(rule, lognormal(1), 16)
    before = rule.limit
    for in_flight in range(before, 0, -1):
        rule.on_throttle(0.0, 0.001, in_flight)
    assert rule.limit == 1
    rule.on_recovery(10.0)
    assert (rule.limit, rule.reason) == (FIRST_WINDOW, "recovery")
    succeed(rule, lognormal(2), before - FIRST_WINDOW)
    assert rule.limit >= 40


def test_a_target_with_an_adaptive_limit_is_told_of_every_success() -> None:
    state = AdmissionState(AdaptiveLimit(initial=8, maximum=8).new(), 8)
    assert not state.steady
    assert (state.learns, state.limit, state.slots) == (True, 8, 8)


reports = st.lists(
    st.tuples(
        st.sampled_from(["on_success", "on_throttle", "on_timeout", "on_answer", "on_recovery"]),
        st.floats(0, 1e6),
        st.integers(1, 300),
        st.integers(1, 60),
    ),
    max_size=40,
)


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 500), reports)
@settings(max_examples=150, deadline=None)
def test_it_stays_within_its_bounds_whatever_it_is_told(
    minimum: int, above: int, further: int, reports: list[tuple[str, float, int, int]]
) -> None:
    initial, maximum = minimum + above, minimum + above + further
    rule = AdaptiveRule(initial=initial, minimum=minimum, maximum=maximum)
    now = 0.0
    for what, seconds, in_flight, times in reports:
        started_at, now = now, now + seconds
        for _ in range(times):
            before = rule.limit
            if what == "on_recovery":
                rule.on_recovery(now)
            else:
                getattr(rule, what)(started_at, now, in_flight)
            assert minimum <= rule.limit <= maximum
            assert isinstance(rule.limit, int)
            if what == "on_throttle":
                assert before - 1 <= rule.limit <= before
            if what == "on_answer":
                assert rule.limit == before


@given(
    st.lists(st.tuples(st.sampled_from([0.0, -0.5, 1e-9, 0.015625]), st.integers(1, 300)), min_size=1, max_size=8),
    st.floats(0.5, 1.0),
)
@example([(0.0, 300)], 1.0)
@settings(max_examples=30, deadline=None)
def test_round_trips_that_a_coarse_clock_does_not_see_fail_nothing(
    stretches: list[tuple[float, int]], in_use: float
) -> None:
    rule = AdaptiveRule(initial=4, minimum=1, maximum=50)
    for seconds, number in stretches:
        succeed(rule, lambda: seconds, number, in_use=in_use)  # noqa: B023
        assert 1 <= rule.limit <= 50


@given(st.integers(4, 300), st.lists(st.floats(0, 1e4), min_size=1, max_size=400))
@settings(max_examples=50, deadline=None)
def test_a_limit_of_which_half_is_in_use_never_grows(initial: int, round_trips: list[float]) -> None:
    rule = AdaptiveRule(initial=initial, minimum=1, maximum=1000)
    for seconds in round_trips:
        rule.on_success(0.0, seconds, initial // 2)
        assert rule.limit <= initial


# Regular service times


def in_turn(rule: AdaptiveRule, seconds: Callable[[int], float], number: int) -> list[int]:
    """Let calls succeed in the order in which they are sent, as many in flight as the limit allows.

    Args:
        rule: the limit.
        seconds: the round trip of a call that is sent among so many.
        number: how many succeed.

    Returns:
        The limit after each.
    """
    under_way: deque[int] = deque()
    limits = []
    for _ in range(number):
        while len(under_way) < rule.limit:
            under_way.append(len(under_way) + 1)
        among = under_way.popleft()
        rule.on_success(0.0, seconds(among), len(under_way) + 1, sent_among=among)
        limits.append(rule.limit)
    return limits


def regular(seed: int, seconds: Callable[[int], float]) -> Callable[[int], float]:
    randomness = random.Random(seed)
    return lambda among: seconds(among) * randomness.lognormvariate(0.0, 0.01)


def queue_for(workers: int) -> Callable[[int], float]:
    """Round trips where calls wait in turn for so many workers."""
    return lambda among: 0.1 * max(1.0, among / workers)


def test_regular_calls_are_sent_until_more_would_wait_and_hardly_more() -> None:
    rule = AdaptiveLimit().new()
    in_turn(rule, regular(1, queue_for(50)), 4_000)
    later = in_turn(rule, regular(2, queue_for(50)), 8_000)
    assert min(later) >= 46
    assert sorted(later)[len(later) // 2] <= 52
    assert max(later) <= 75


def test_a_regular_server_that_batches_is_filled() -> None:
    rule = AdaptiveLimit().new()
    in_turn(rule, regular(1, lambda among: 0.1 * (1 + among / 20) * max(1.0, among / 100)), 6_000)
    assert 70 <= rule.limit <= 150


def test_less_capacity_is_followed_within_what_was_in_flight() -> None:
    rule = AdaptiveLimit().new()
    in_turn(rule, regular(1, queue_for(60)), 6_000)
    in_turn(rule, regular(2, queue_for(10)), 250)
    assert 8 <= rule.limit <= 14
    assert rule.reason == "waiting"


def test_more_capacity_is_found() -> None:
    rule = AdaptiveLimit().new()
    in_turn(rule, regular(1, queue_for(10)), 3_000)
    assert rule.limit <= 16
    in_turn(rule, regular(2, queue_for(80)), 2_500)
    assert rule.limit >= 72


def test_a_service_that_becomes_slower_by_itself_gets_its_calls_back() -> None:
    rule = AdaptiveLimit(maximum=60).new()
    in_turn(rule, regular(1, lambda among: 0.1), 4_000)
    assert rule.limit == 60
    limits = in_turn(rule, regular(2, lambda among: 0.4), 4_000)
    assert min(limits) < 40, "it looks like a queue at first"
    assert limits[-1] == 60


def test_round_trips_that_are_no_longer_regular_are_judged_by_their_spread() -> None:
    rule = AdaptiveLimit(maximum=60).new()
    in_turn(rule, regular(1, lambda among: 0.1), 3_000)
    seconds = lognormal(2)
    in_turn(rule, lambda among: seconds(), 4_000)
    # All longer by the same factor: a rate that falls would have lowered it.
    assert min(in_turn(rule, lambda among: 3 * seconds(), 1_000)) == 60


# Closed loops


def figures(name: str, seed: int, seconds: float | None = None) -> Cell:
    service = BY_NAME[name]
    if seconds is not None:
        service = replace(service, seconds=seconds)
    return measure(simulate(service, AdaptiveLimit().new, seed), simulate(service, AllKnowing, seed))


def variant(name: str, seed: int, number: int) -> Cell:
    """The figures of the simulator's variant with this number and seed."""
    service = moved(BY_NAME[name], random.Random(f"{seed} {name} {number}"))
    seed += number
    return measure(simulate(service, AdaptiveLimit().new, seed), simulate(service, AllKnowing, seed))


@pytest.mark.parametrize("name", ["bounded queue", "silent queue", "wide, no queue", "wide, silent", "quota"])
def test_a_steady_service_is_used_without_a_queue(name: str) -> None:
    cell = figures(name, seed=11, seconds=20.0)
    assert cell.goodput >= 0.95
    assert cell.p95 <= 1.5
    assert cell.refused <= 0.1
    assert cell.start <= 5.0


def test_a_server_that_batches_is_filled() -> None:
    cell = figures("batching", seed=11)
    assert cell.goodput >= 0.95
    assert cell.p95 <= 1.5


@pytest.mark.parametrize("name", ["steps, refusing", "steps, silent", "autoscaling", "outage", "idle, burst"])
def test_a_change_of_capacity_is_followed(name: str) -> None:
    cell = figures(name, seed=12)
    assert cell.goodput >= 0.9
    assert cell.p95 <= (3.0 if name == "steps, silent" else 1.5)
    assert cell.refused <= 0.1
    assert cell.dropped is None or cell.dropped <= 1.0
    assert cell.up is None or cell.up <= 4.0
    assert cell.back is None or cell.back <= 4.0


def test_four_clients_that_start_one_after_the_other_come_to_the_same_limit() -> None:
    cell = figures("four clients", seed=13)
    assert cell.jain is not None
    assert cell.jain >= 0.95
    assert cell.goodput >= 0.95
    assert cell.refused <= 0.1


@pytest.mark.parametrize("seed", [1, 3])
def test_four_clients_that_are_hard_to_tell_apart_come_to_the_same_limit(seed: int) -> None:
    """The first takes the others for a queue that it cannot shorten; or calls come back in the order of their times."""
    service = moved(BY_NAME["four clients"], random.Random(f"{seed} four clients 6"))
    run = simulate(service, AdaptiveLimit().new, seed + 6)
    assert run.jain(service.seconds * 2 / 3, service.seconds) >= 0.95


def test_a_queue_of_refusals_after_lost_capacity_is_not_taken_for_other_clients() -> None:
    assert variant("steps, refusing", 1, 7).p95 <= 1.5


def test_a_few_refusals_at_random_do_not_make_a_service_slow() -> None:
    assert figures("refused at random", seed=15).goodput >= 0.85
    assert variant("refused at random", 161803, 2).goodput >= 0.8


def test_a_slow_server_that_batches_is_filled_though_its_calls_come_back_in_the_order_of_their_lengths() -> None:
    assert variant("batching", 161803, 2).goodput >= 0.95


@pytest.mark.parametrize("name", [service.name for service in REGULAR])
def test_service_times_that_hardly_vary_are_told_apart_too(name: str) -> None:
    cell = figures(name, seed=14)
    assert cell.goodput >= 0.9
    assert cell.p95 <= 2.0


def test_a_client_keeps_a_part_of_a_queue_that_another_one_fills() -> None:
    """Cuts do not shorten the round trips then: without looking at that, they would lead down to one call."""
    service = Service("filled", ((0.0, 64),), math.inf, clients=(0.0, 10.0), seconds=40.0)
    limits = iter([AdaptiveLimit().new(), Fixed(150)])
    run = simulate(service, lambda: next(limits), seed=1)
    served = [sum(outcome.success for outcome in client.outcomes if outcome.time >= 25.0) for client in run.clients]
    assert served[0] >= 0.05 * sum(served)
    # It does not fill the queue further, either.
    assert max(limit for time, limit in run.clients[0].limits if time >= 25.0) <= 250
