"""When a target without capacity is asked again, as numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt.errors import Cause
from aiosmrt.policy.scaleout import FIRST_PAUSE, MAX_PAUSE, ProbeSchedule, ends_the_wait

# Beyond any wait: schedules are asked about an end in the far future.
NEVER = 1e9

ENDS = {"model", "model_not_ready", "read_timeout", "truncated", "none"}
SAYS_NOTHING = {"throttling", "transient", "connection", "clock_skew"}


def pauses(rand: float, count: int) -> list[float]:
    schedule = ProbeSchedule()
    found = []
    now = 100.0
    for _ in range(count):
        schedule.refused(now, rand)
        probe_at = schedule.next_probe(NEVER)
        assert probe_at is not None
        found.append(probe_at - now)
        now = probe_at
    return found


def test_pauses_double_up_to_15_seconds() -> None:
    assert pauses(1.0, 7) == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert pauses(0.0, 6) == [0.5, 1.0, 2.0, 4.0, 7.5, 7.5]


@given(rand=st.floats(0, 1, exclude_max=True), count=st.integers(1, 200))
def test_a_pause_is_between_half_and_all_of_what_it_may_be(rand: float, count: int) -> None:
    for number, pause in enumerate(pauses(rand, count)):
        longest = min(FIRST_PAUSE * 2.0 ** min(number, 10), MAX_PAUSE)
        assert longest / 2 - 1e-9 <= pause <= longest + 1e-9


@pytest.mark.parametrize(
    ("retry_after", "probe_at"),
    [(None, 101.0), (0.0, 101.0), (3.0, 103.0), (6.0, 106.0), (60.0, 106.0), (1e15, 106.0)],
)
def test_the_services_hint_lengthens_a_pause_by_5_seconds_at_most(retry_after: float | None, probe_at: float) -> None:
    schedule = ProbeSchedule()
    schedule.refused(100.0, 1.0, retry_after)
    assert schedule.next_probe(NEVER) == probe_at
    # and holds for a last probe too
    assert schedule.next_probe(probe_at - 0.01) is None


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
    schedule = ProbeSchedule()
    for _ in range(3):
        schedule.refused(100.0, 1.0)
    assert schedule.next_probe(until) == probe_at


@given(
    ends=st.lists(st.floats(100, 200), min_size=1, max_size=50),
    rand=st.floats(0, 1, exclude_max=True),
)
def test_however_many_run_out_of_time_two_probes_are_half_a_second_apart(ends: list[float], rand: float) -> None:
    """One after the other probes until its time is up, as behind a gate."""
    schedule = ProbeSchedule()
    schedule.refused(100.0, rand)
    now = 100.0
    probes = [now]
    for end in sorted(ends):
        while (probe_at := schedule.next_probe(end)) is not None:
            assert probe_at <= end
            now = max(now, probe_at)
            probes.append(now)
            schedule.refused(now, rand)
        now = max(now, end)
    assert all(later - earlier >= FIRST_PAUSE / 2 - 1e-9 for earlier, later in pairwise(probes))


def test_every_cause_either_ends_the_wait_or_says_nothing() -> None:
    assert {cause for cause in get_args(Cause) if ends_the_wait(cause)} == ENDS
    assert {cause for cause in get_args(Cause) if not ends_the_wait(cause)} == SAYS_NOTHING


def test_repr_counts() -> None:
    schedule = ProbeSchedule()
    schedule.refused(0.0, 0.0)
    assert repr(schedule) == "<ProbeSchedule refusals=1>"
