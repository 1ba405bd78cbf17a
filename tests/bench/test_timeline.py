"""What happened over time, in a bounded number of slices."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._report.timeline import OTHER_CAUSES, Timeline

TIMES = st.lists(st.floats(0, 1e5), min_size=1, max_size=60)


@given(TIMES, st.sampled_from(["a", "b"]))
def test_nothing_is_lost_when_slices_are_merged(times: list[float], cause: str) -> None:
    timeline = Timeline(most=8)
    for at in times:
        timeline.succeeded(at, 0.5)
        timeline.failed(at, cause)
    slices = timeline.slices()
    assert len(slices) <= 8
    assert sum(part.done for part in slices) == sum(part.latency.count for part in slices) == len(times)
    assert sum((part.failures for part in slices), Counter()) == timeline.failures == {cause: len(times)}
    assert timeline.latency.count == len(times)
    for number, part in enumerate(slices):
        begin, end = number * timeline.seconds, (number + 1) * timeline.seconds
        assert part.done == sum(begin <= at < end for at in times)


def test_merged_slices_keep_the_extremes_of_what_was_seen() -> None:
    timeline = Timeline(most=2)
    timeline.see(0, in_flight=3, limit=8)
    timeline.see(1, in_flight=7, limit=4, waiting=2)
    timeline.succeeded(2, 0.1)
    first, second = timeline.slices()
    assert (first.in_flight, first.limit, first.waiting) == (7, 4, 2)
    assert (second.in_flight, second.limit, second.waiting) == (None, None, None)


def test_many_causes_are_counted_together() -> None:
    timeline = Timeline()
    for number in range(100):
        timeline.failed(0, f"cause {number}")
    assert len(timeline.failures) == 13
    assert timeline.failures[OTHER_CAUSES] == 88
