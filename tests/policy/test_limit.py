"""The working limit: bounds that hold for every input, and its worked examples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aiosmrt._policy.limit import FIRST_WINDOW, ConcurrencyLimit, WorkingLimit

# Refusals without a success between them that count whatever they look like.
IN_A_ROW = 8
# Answers of which it is remembered among how many calls they were sent.
REMEMBERED = 64
# Round trips without a test after which a limit is out of date.
UNTESTED = 64


def lowered(limit: int, maximum: int = 64) -> WorkingLimit:
    """A working limit that one round trip of throttling has lowered, to no less than half the maximum."""
    working = WorkingLimit(maximum)
    working.on_throttle(0.0, 0.001, limit + 1)
    assert working.limit == limit
    return working


def round_trip(working: WorkingLimit) -> int:
    """As many successes as the limit is, all of it in use.

    Returns:
        By how much the limit grew.
    """
    before = working.limit
    for _ in range(before):
        working.on_success(1.0, 1.05, before)
    return working.limit - before


def test_the_limit_begins_at_its_maximum() -> None:
    working: ConcurrencyLimit = WorkingLimit(8)
    assert working.limit == 8
    working.on_success(0.0, 1.0, 8)
    assert working.limit == 8
    assert repr(working) == "<WorkingLimit limit=8 maximum=8>"


@pytest.mark.parametrize("maximum", [0, -1])
def test_a_limit_lets_at_least_one_call_through(maximum: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        WorkingLimit(maximum)


def test_a_timeout_changes_nothing() -> None:
    working = WorkingLimit(8)
    for _ in range(20):
        working.on_timeout(0.0, 60.0, 8)
    assert working.limit == 8


# Throttling


def test_a_refusal_lowers_the_limit_to_what_else_is_in_flight() -> None:
    working = WorkingLimit(64)
    working.on_throttle(0.0, 0.001, 51)
    assert working.limit == 50
    working.on_throttle(0.0, 0.001, 50)
    assert working.limit == 49


def test_a_refusal_with_more_in_flight_than_the_limit_changes_nothing() -> None:
    working = lowered(40)
    working.on_throttle(0.0, 0.001, 60)
    assert working.limit == 40


@pytest.mark.parametrize(("in_flight", "limit"), [(1, 63), (31, 63), (32, 32), (33, 32), (34, 33)])
def test_a_refusal_costs_half_at_most_and_a_quiet_client_one(in_flight: int, limit: int) -> None:
    working = WorkingLimit(64)
    working.on_throttle(0.0, 0.001, in_flight)
    assert working.limit == limit


def test_a_burst_of_64_that_meets_a_service_for_8_settles_at_8_in_three_round_trips() -> None:
    working = WorkingLimit(64)
    limits = []
    for trip in range(5):
        sent_at = float(trip)
        for in_flight in range(working.limit, 8, -1):
            working.on_throttle(sent_at, sent_at + 0.001, in_flight)
        limits.append(working.limit)
    assert limits == [32, 16, 8, 8, 8]


def test_a_refusal_of_a_call_sent_before_the_drop_belongs_to_the_same_round_trip() -> None:
    working = WorkingLimit(64)
    working.on_throttle(0.0, 10.0, 32)
    working.on_throttle(9.9, 11.0, 16)
    working.on_throttle(10.0, 12.0, 16)
    assert working.limit == 32
    working.on_throttle(10.1, 13.0, 16)
    assert working.limit == 16


@given(
    maximum=st.integers(1, 200),
    in_flight=st.lists(st.integers(1, 300), min_size=1, max_size=80),
    successes=st.sets(st.integers(0, 79)),
)
def test_no_burst_of_refusals_takes_more_than_half(maximum: int, in_flight: list[int], successes: set[int]) -> None:
    working = WorkingLimit(maximum)
    for number, others in enumerate(in_flight):
        if number in successes:
            working.on_success(0.0, 0.5 + number, others)
        working.on_throttle(0.0, 0.5 + number, others)
        assert 2 * working.limit >= maximum


def test_a_refusal_from_before_an_outage_does_not_raise_the_limit_of_the_slow_start() -> None:
    working = WorkingLimit(64)
    working.on_throttle(0.0, 0.001, 64)
    working.on_recovery(1.0)
    working.on_throttle(0.0, 1.5, 3)
    assert working.limit <= FIRST_WINDOW


# Accidents


def with_successes(*sent_among: int, maximum: int = 64) -> WorkingLimit:
    """A working limit after calls that got through, of which this many were in flight when each was sent."""
    working = WorkingLimit(maximum)
    for others in sent_among:
        working.on_success(0.0, 0.05, 1, sent_among=others)
    return working


def refuse(working: WorkingLimit, sent_among: int, count: int = 1, *, strict: bool = False) -> list[int]:
    """Refusals one after the other of calls that were sent among so many.

    Returns:
        The limit after each.
    """
    limits = []
    for _ in range(count):
        working.on_throttle(1.0, 1.001, sent_among, sent_among=sent_among, strict=strict)
        limits.append(working.limit)
    return limits


MANY = [40] * 16


@pytest.mark.parametrize("sent_among", [1, 7, 40])
def test_a_refusal_among_as_many_as_get_through_is_an_accident(sent_among: int) -> None:
    assert refuse(with_successes(*MANY), sent_among, IN_A_ROW - 1) == [64] * 7


@pytest.mark.parametrize("successes", [1, 2, 3, 4])
def test_a_refusal_is_an_accident_if_two_in_five_get_through_among_as_many(successes: int) -> None:
    """The refusal itself counts, and what is sent among fewer does not."""
    accidents = successes * 3 // 2
    assert refuse(with_successes(*[39] * 5, *[40] * successes), 40, accidents + 1) == [*[64] * accidents, 39]


def test_eight_refusals_in_a_row_are_no_accident() -> None:
    assert refuse(with_successes(*MANY), 40, IN_A_ROW + 1) == [*[64] * 7, 39, 39]


def test_a_success_between_refusals_begins_a_new_row() -> None:
    working = with_successes(*[40] * 64)
    for _ in range(2):
        assert refuse(working, 40, IN_A_ROW - 1) == [64] * 7
        working.on_success(1.0, 1.05, 40, sent_among=10)
    assert refuse(working, 33, IN_A_ROW) == [*[64] * 7, 32]


def test_refusals_that_count_are_of_the_row_too() -> None:
    working = with_successes(*MANY)
    assert refuse(working, 41) == [40]
    assert refuse(working, 30, IN_A_ROW - 2) == [40] * 6
    assert refuse(working, 35) == [34]


def test_a_refusal_among_more_than_got_through_counts() -> None:
    assert refuse(with_successes(39, 40, 3), 41) == [40]
    assert refuse(with_successes(*MANY), 41) == [40]


@pytest.mark.parametrize(
    ("successes", "refusals", "limit"), [(6, 2, 64), (7, 1, 40), (7, 2, 40), (5, 2, 40), (3, 5, 64)]
)
def test_a_refusal_is_an_accident_if_a_quarter_is_refused_among_fewer(
    successes: int, refusals: int, limit: int
) -> None:
    """Of eight at least, since chance makes a quarter of a few."""
    working = with_successes(*[20] * successes)
    refuse(working, 20, refusals)
    working.limit = 64
    assert refuse(working, 41) == [limit]


def test_a_refusal_counts_as_long_as_nothing_got_through() -> None:
    assert refuse(WorkingLimit(64), 60) == [59]


def test_a_refusal_counts_if_nobody_knows_among_how_many_it_was_sent() -> None:
    working = with_successes(*MANY)
    working.on_throttle(1.0, 1.001, 50, strict=False)
    assert working.limit == 49


@pytest.mark.parametrize("sent_among", [1, 20, 50])
def test_what_got_through_among_nobody_knows_how_many_excuses_no_refusal(sent_among: int) -> None:
    """Nor does it count as refused, or make what is known forgotten."""
    for outcomes in (1, 3, 100):
        working = with_successes(*[20] * 5, *[0] * outcomes)
        for _ in range(outcomes):
            working.on_answer(0.0, 0.05, 1)
        working.on_throttle(1.0, 1.001, 41, sent_among=sent_among, strict=False)
        assert working.limit == (64 if sent_among <= 20 else 40)


def test_a_refusal_among_nobody_knows_how_many_excuses_no_other() -> None:
    working = with_successes(*[20] * 8)
    for _ in range(5):
        working.on_throttle(1.0, 1.001, 64)
    assert working.limit == 63
    assert refuse(working, 41) == [40]


def test_what_looks_like_an_accident_costs_a_strict_caller_one() -> None:
    assert refuse(with_successes(*MANY), 36, 3, strict=True) == [63, 62, 61]
    working = with_successes(*MANY)
    working.on_throttle(1.0, 1.001, 36, sent_among=36)
    assert working.limit == 63


def test_strict_or_not_what_does_not_look_like_one_costs_all() -> None:
    for strict in (False, True):
        assert refuse(with_successes(*[35] * 16), 36, strict=strict) == [35]
        assert refuse(with_successes(*MANY), 40, IN_A_ROW, strict=strict)[-1] == 39


def test_64_answers_are_remembered() -> None:
    limits = {}
    for successes_after in (0, 47, 62, 63, 100):
        working = with_successes(*MANY, *[2] * successes_after)
        limits[successes_after] = refuse(working, 33)[0]
    assert limits == {0: 64, 47: 64, 62: 64, 63: 32, 100: 32}


def test_an_accident_does_not_slow_growth_down() -> None:
    growth = []
    for accidents in (0, 1):
        working = lowered(512, maximum=1024)
        for _ in range(16):
            working.on_success(1.0, 1.05, working.limit, sent_among=working.limit)
            refuse(working, working.limit, accidents)
            round_trip(working)
        growth.append(working.limit)
    assert growth[0] == growth[1] > 520


def test_an_accident_begins_no_round_trip_of_drops() -> None:
    working = with_successes(*MANY)
    assert refuse(working, 40, IN_A_ROW - 1) == [64] * 7
    # Sent before those refusals, and the first that counts: half is what it may cost.
    working.on_throttle(0.5, 1.002, 32, sent_among=32, strict=False)
    assert working.limit == 32
    working.on_throttle(0.5, 1.003, 16, sent_among=16, strict=False)
    assert working.limit == 32


def test_an_accident_does_not_end_a_slow_start() -> None:
    working = WorkingLimit(64)
    working.on_recovery(1.0)
    for _ in range(60):
        working.on_success(1.0, 1.05, 4, sent_among=4)
        refuse(working, 4)
    assert working.limit == 64


def test_an_outage_does_not_make_forgotten_what_got_through() -> None:
    working = with_successes(*MANY)
    working.on_recovery(2.0)
    assert refuse(working, 3) == [FIRST_WINDOW]


def test_a_row_of_refusals_ends_with_an_outage() -> None:
    working = with_successes(*MANY)
    refuse(working, 40, IN_A_ROW - 1)
    working.on_recovery(2.0)
    assert refuse(working, 3, IN_A_ROW) == [*[FIRST_WINDOW] * 7, 2]


# Growth


def test_successes_raise_the_limit_by_half_a_call_per_round_trip_at_first() -> None:
    for limit in (32, 40, 62):
        working = lowered(limit)
        assert [round_trip(working), round_trip(working)] == [0, 1]


def test_growth_speeds_up_while_nothing_is_refused() -> None:
    """The step is half a call at first, one after 8 round trips, two and a half after 16."""
    working = lowered(512, maximum=1024)
    growth = [round_trip(working) for _ in range(33)]
    assert sum(growth[:8]) == pytest.approx(8 * 0.5 * (1 + 1 / 3), abs=1)
    assert sum(growth[7:10]) == pytest.approx(3 * 1.0, abs=1)
    assert sum(growth[15:18]) == pytest.approx(3 * 2.5, abs=1)
    assert sum(growth[31:33]) == pytest.approx(2 * 8.5, abs=2)


def test_a_refusal_makes_growth_slow_again() -> None:
    working = lowered(512, maximum=1024)
    for _ in range(24):
        round_trip(working)
    assert round_trip(working) >= 4
    working.on_throttle(2.0, 2.001, working.limit)
    assert round_trip(working) <= 1


def test_a_round_trip_adds_a_quarter_at_most() -> None:
    working = lowered(32)
    while working.limit < 64:
        before = working.limit
        assert round_trip(working) <= before / 4 + 1


@given(limit=st.integers(32, 63), share=st.floats(0, 0.69), successes=st.integers(1, 500))
def test_a_limit_that_is_not_in_use_does_not_grow(limit: int, share: float, successes: int) -> None:
    working = lowered(limit)
    for _ in range(successes):
        working.on_success(1.0, 1.05, max(1, int(share * limit)))
    assert working.limit == limit


def test_a_limit_of_which_seven_tenths_are_in_use_grows() -> None:
    working = lowered(40)
    for _ in range(80):
        working.on_success(1.0, 1.05, 28)
    assert working.limit > 40


Report = Callable[[WorkingLimit, int], None]


def success(working: WorkingLimit, in_flight: int) -> None:
    working.on_success(1.0, 1.05, in_flight)


def answer(working: WorkingLimit, in_flight: int) -> None:
    working.on_answer(1.0, 1.05, in_flight)


@pytest.mark.parametrize("limit", [32, 40, 63])
@pytest.mark.parametrize("report", [success, answer])
def test_a_limit_that_is_not_in_use_is_forgotten_after_64_round_trips(limit: int, report: Report) -> None:
    working = lowered(limit)
    for _ in range(UNTESTED * limit - 1):
        report(working, 1)
        assert working.limit == limit
    # one more, for the sum of fractions
    report(working, 1)
    report(working, 1)
    assert working.limit == 64


def test_a_limit_that_was_forgotten_is_found_again() -> None:
    working = lowered(32)
    for _ in range(UNTESTED * 32 + 1):
        success(working, 1)
    assert working.limit == 64
    working.on_throttle(2.0, 2.001, 41)
    assert working.limit == 40
    for _ in range(UNTESTED * 40 - 1):
        success(working, 1)
        assert working.limit == 40


@pytest.mark.parametrize("interruption", ["a test", "a refusal", "an outage"])
def test_round_trips_without_a_test_count_from_the_last_test_refusal_or_outage_on(interruption: str) -> None:
    working = lowered(32)
    for _ in range(UNTESTED * 32 - 1):
        success(working, 1)
    if interruption == "a test":
        success(working, 32)
    elif interruption == "a refusal":
        # of which it need not be lowered
        working.on_throttle(2.0, 2.001, 40)
    else:
        working.on_recovery(2.0)
        for _ in range(32 - FIRST_WINDOW):
            success(working, 1)
    for _ in range(UNTESTED * 32 - 1):
        success(working, 1)
        assert working.limit == 32


@given(
    maximum=st.integers(1, 70),
    outcomes=st.lists(st.tuples(st.sampled_from(["success", "refusal", "outage"]), st.integers(1, 80))),
)
def test_an_answer_of_a_model_raises_the_limit_as_a_success_does(maximum: int, outcomes: list[tuple[str, int]]) -> None:
    """What got through and then failed in its model was let in as well."""
    limits = WorkingLimit(maximum), WorkingLimit(maximum)
    for number, (outcome, in_flight) in enumerate(outcomes):
        for working, report in zip(limits, (success, answer), strict=True):
            if outcome == "success":
                report(working, in_flight)
            elif outcome == "refusal":
                working.on_throttle(number, number + 0.5, in_flight, sent_among=in_flight, strict=False)
            else:
                working.on_recovery(number)
        assert limits[0].limit == limits[1].limit


def test_an_answer_of_a_model_ends_a_row_of_refusals() -> None:
    working = with_successes(*MANY)
    assert refuse(working, 40, IN_A_ROW - 1) == [64] * 7
    answer(working, 40)
    assert refuse(working, 40, IN_A_ROW) == [*[64] * 7, 39]


# Slow start


def test_a_slow_start_adds_one_for_each_success_up_to_the_limit_known_before() -> None:
    working = lowered(33)
    working.on_success(0.5, 1.0, 33)
    working.on_recovery(2.0)
    limits = [working.limit]
    for _ in range(31):
        working.on_success(2.0, 2.05, 1)
        limits.append(working.limit)
    assert limits == [*range(FIRST_WINDOW, 34), 33, 33]


def test_throttling_since_the_last_success_is_forgotten_by_a_slow_start() -> None:
    """An outage that begins with throttling says nothing about what the service takes when it is well."""
    working = WorkingLimit(64)
    working.on_success(0.0, 0.05, 64)
    for trip in range(6):
        working.on_throttle(1.0 + trip, 1.5 + trip, working.limit // 2)
    assert working.limit == 1
    working.on_recovery(20.0)
    assert working.limit == FIRST_WINDOW
    for _ in range(100):
        working.on_success(20.0, 20.05, 1)
    assert working.limit == 64


def test_a_refusal_ends_a_slow_start() -> None:
    working = WorkingLimit(64)
    working.on_recovery(1.0)
    for _ in range(6):
        working.on_success(1.0, 1.05, 10)
    working.on_throttle(2.0, 2.001, 9)
    assert working.limit == 8
    for _ in range(16):
        working.on_success(2.0, 2.05, 8)
    assert working.limit == 9


@pytest.mark.parametrize("in_flight", [11, 12, 60])
def test_a_refusal_that_does_not_lower_the_limit_does_not_end_a_slow_start(in_flight: int) -> None:
    """It was sent before the outage: how many were in flight then says nothing about now."""
    working = WorkingLimit(64)
    working.on_recovery(1.0)
    for _ in range(6):
        working.on_success(1.0, 1.05, 10)
    assert working.limit == 10
    working.on_throttle(0.5, 1.1, in_flight)
    assert working.limit == 10
    for _ in range(54):
        working.on_success(1.0, 1.15, 10)
    assert working.limit == 64


def test_a_slow_start_of_a_quiet_client_forgets_nothing() -> None:
    """Nothing is forgotten while a slow start lasts, whatever is in use: it leads to what was known."""
    working = lowered(40)
    working.on_success(0.5, 1.0, 40)
    working.on_recovery(2.0)
    limits = []
    for _ in range(100):
        working.on_success(2.0, 2.05, 1)
        limits.append(working.limit)
    assert limits == [*range(FIRST_WINDOW + 1, 41), *[40] * 64]


def test_a_second_outage_during_a_slow_start_does_not_forget_the_limit() -> None:
    working = WorkingLimit(64)
    for _ in range(2):
        working.on_recovery(1.0)
        assert working.limit == FIRST_WINDOW
        working.on_success(1.0, 1.05, 1)
    for _ in range(64):
        working.on_success(1.0, 1.05, 1)
    assert working.limit == 64


@pytest.mark.parametrize("maximum", [1, 2, 3, 4, 5])
def test_a_slow_start_never_begins_above_the_limit(maximum: int) -> None:
    working = WorkingLimit(maximum)
    working.on_recovery(1.0)
    assert working.limit == min(FIRST_WINDOW, maximum)
    for _ in range(10):
        working.on_success(1.0, 1.05, 1)
    assert working.limit == maximum


class LimitMachine(RuleBasedStateMachine):
    """Any outcomes in any order, of calls that were sent at any time before."""

    @initialize(maximum=st.integers(1, 100))
    def begin(self, maximum: int) -> None:
        self.now = 0.0
        # when the round trip of the last drops began
        self.throttled_at = float("-inf")
        self.maximum = maximum
        self.working = WorkingLimit(maximum)
        # at the last success, and what a slow start leads to
        self.known = maximum
        self.target = 0
        # round trips without a test, at most
        self.untested = 0.0
        self.in_a_row = 0
        # what was answered last: among how many it was sent, and whether it got through
        self.recent: deque[tuple[int, bool]] = deque(maxlen=REMEMBERED)

    def started_at(self, ago: float) -> float:
        return self.now - ago

    among = st.integers(0, 150)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(ago=st.floats(0, 10), in_flight=st.integers(1, 150), sent_among=among, count=st.integers(1, 100))
    def successes(self, ago: float, in_flight: int, sent_among: int, count: int) -> None:
        for _ in range(count):
            before = self.working.limit
            self.working.on_success(self.started_at(ago), self.now, in_flight, sent_among=sent_among)
            self.got_through(before, in_flight)
            if sent_among:
                self.recent.append((sent_among, True))

    @rule(ago=st.floats(0, 10), in_flight=st.integers(1, 150), count=st.integers(1, 100))
    def answers(self, ago: float, in_flight: int, count: int) -> None:
        for _ in range(count):
            before = self.working.limit
            self.working.on_answer(self.started_at(ago), self.now, in_flight)
            self.got_through(before, in_flight)

    def got_through(self, before: int, in_flight: int) -> None:
        limit = self.working.limit
        self.in_a_row = 0
        if before < self.target:
            event("slow start")
            assert limit == before + 1
        else:
            self.target = 0
            if in_flight >= 0.7 * before:
                self.untested = 0.0
                assert before <= limit <= min(before + 1, self.maximum)
            else:
                self.untested += 1 / before
                if limit != before:
                    event("forgotten")
                    assert limit == self.maximum
                    assert self.untested == pytest.approx(UNTESTED) or self.untested > UNTESTED
        self.known = max(limit, self.target)

    @rule(
        ago=st.floats(0, 10),
        in_flight=st.integers(1, 150),
        sent_among=among,
        strict=st.booleans(),
        count=st.integers(1, 20),
    )
    def throttles(self, ago: float, in_flight: int, sent_among: int, strict: bool, count: int) -> None:
        for _ in range(count):
            before = self.working.limit
            self.working.on_throttle(self.started_at(ago), self.now, in_flight, sent_among=sent_among, strict=strict)
            self.in_a_row += 1
            assert self.working.limit <= before
            if self.working.limit < before:
                self.target = 0
                self.untested = 0.0
            accident = self.is_accident(sent_among)
            if accident and not strict:
                event("an accident")
                assert self.working.limit == before
                continue
            if self.started_at(ago) > self.throttled_at:
                event(f"an accident: {accident}; strict: {strict}")
                says_little = accident or 2 * in_flight < before
                down_to = max((before + 1) // 2, before - 1 if says_little else in_flight - 1)
                assert self.working.limit == min(before, down_to)
                self.throttled_at = self.now

    def is_accident(self, sent_among: int) -> bool:
        """Whether a refusal is an accident, itself counted."""
        if sent_among:
            self.recent.append((sent_among, False))
        if self.in_a_row >= IN_A_ROW or not sent_among:
            return False
        among_more = [got_through for among, got_through in self.recent if among >= sent_among]
        among_fewer = [got_through for among, got_through in self.recent if among < sent_among]
        return 5 * sum(among_more) >= 2 * len(among_more) or (
            len(among_fewer) >= 8 and 4 * sum(among_fewer) <= 3 * len(among_fewer)
        )

    @rule(ago=st.floats(0, 10), in_flight=st.integers(1, 150))
    def timeout(self, ago: float, in_flight: int) -> None:
        before = self.working.limit
        self.working.on_timeout(self.started_at(ago), self.now, in_flight)
        assert self.working.limit == before

    @rule()
    def recovery(self) -> None:
        self.target = self.known = max(self.known, self.working.limit)
        self.working.on_recovery(self.now)
        assert self.working.limit == min(FIRST_WINDOW, self.known)
        self.untested = 0.0
        self.in_a_row = 0

    @invariant()
    def is_within_its_bounds(self) -> None:
        assert 1 <= self.working.limit <= self.maximum == self.working.maximum


TestLimitMachine = LimitMachine.TestCase
