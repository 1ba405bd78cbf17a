"""The knee, and when there is no point in going on."""

from __future__ import annotations

from collections import Counter

import pytest

from aiosmrt.bench.steps import LoadReport, Model, Step, knee, over_saturation


def step(load: float, throughput: float, latency: float, model: Model = "closed", **facts: int) -> Step:
    """A step of 10 s with calls that all took as long."""
    made = Step(model=model, load=load, seconds=10.0, completed=round(throughput * 10), **facts)
    made.latency.add(latency)
    return made


def closed(capacity: int, loads: list[int], latency: float = 0.1) -> list[Step]:
    """The steps of a service that works on so many calls at a time, as Little's law has them."""
    return [
        step(load, min(load, capacity) / latency, latency * max(load / capacity, 1), sent=1, succeeded=1)
        for load in loads
    ]


@pytest.mark.parametrize("capacity", [1, 4, 16])
def test_the_knee_is_where_the_service_is_full(capacity: int) -> None:
    found = knee(closed(capacity, [1, 2, 4, 8, 16, 32, 64]))
    assert found is not None
    assert found.load == capacity


def test_no_knee_without_answers() -> None:
    assert knee([]) is None
    assert knee([Step(model="closed", load=1, seconds=10.0, sent=5, failures=Counter({"ModelError 500": 5}))]) is None


def test_no_load_that_the_service_cannot_keep_up_with_is_the_knee() -> None:
    kept = step(50, 50, 0.1, "open", sent=500, succeeded=500, in_flight_midway=5, in_flight_at_end=5)
    behind = step(2000, 1000, 0.2, "open", sent=20_000, in_flight_midway=1000, in_flight_at_end=10_000)
    full = step(4000, 1000, 0.05, "open", sent=10_000, in_flight_at_end=10_000)
    full.overflowed = True
    assert knee([kept, behind, full]) is kept
    assert knee([behind, full]) is None


def test_a_closed_test_ends_two_steps_beyond_the_capacity() -> None:
    steps = closed(8, [1, 2, 4, 8, 16, 32, 64])
    reasons = [over_saturation(steps[:count]) for count in range(1, len(steps) + 1)]
    assert [reason is not None for reason in reasons] == [False] * 5 + [True, True]
    assert reasons[5] == "more callers brought no more answers: 80 a second before, 80 now"


def test_one_step_that_brings_no_more_is_chance() -> None:
    steps = closed(64, [1, 2, 4, 8])
    steps[2].completed = steps[1].completed
    assert over_saturation(steps) is None


@pytest.mark.parametrize(("midway", "end", "stops"), [(5, 5, False), (5, 15, False), (40, 60, False), (250, 500, True)])
def test_an_open_test_ends_when_calls_in_flight_keep_growing(midway: int, end: int, stops: bool) -> None:
    last = step(100, 50, 0.1, "open", sent=1000, succeeded=1000, in_flight_midway=midway, in_flight_at_end=end)
    reason = over_saturation([last])
    assert (reason is not None) == stops
    if reason is not None:
        assert "250 were in flight after half of the step, 500 at its end" in reason


def test_too_many_in_flight_and_too_many_failures() -> None:
    full = step(100, 50, 0.1, "open", sent=100, in_flight_at_end=10_000)
    full.overflowed = True
    assert over_saturation([full]) == "too many calls were in flight at once: 10,000"
    failing = step(2, 5, 0.1, sent=100, succeeded=49)
    failing.failures["ThrottlingException"] = 51
    assert over_saturation([failing]) == "51% of the calls failed"
    failing.failures["ThrottlingException"] = 50
    assert over_saturation([failing]) is None


def test_json_has_no_measure_that_was_not_taken() -> None:
    made = step(4, 40, 0.1, sent=400, succeeded=400)
    report = LoadReport(steps=[made], knee=made, seconds=10.0).as_dict()
    assert report["knee"] == 4
    (figures,) = report["steps"]
    assert (figures["throughput"], figures["first_part"], figures["gaps"]) == (40.0, None, None)
    assert figures["latency"]["p99.9"] == 0.1
