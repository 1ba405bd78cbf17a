"""Durations in fixed memory, beside all of them sorted."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._report.histogram import RELATIVE_ERROR, Histogram

DURATIONS = st.lists(st.floats(0, 4000), min_size=1, max_size=200)


def counted(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    return histogram


@given(DURATIONS, st.floats(0, 100))
def test_a_percentile_is_within_the_relative_error_of_the_exact_one(durations: list[float], percent: float) -> None:
    exact = sorted(durations)[max(math.ceil(len(durations) * percent / 100), 1) - 1]
    # Half a microsecond is what rounding to whole ones adds.
    assert counted(durations).percentile(percent) == pytest.approx(exact, rel=RELATIVE_ERROR, abs=0.6e-6)


@given(DURATIONS)
def test_count_mean_and_ends_are_exact(durations: list[float]) -> None:
    histogram = counted(durations)
    assert (histogram.count, histogram.minimum, histogram.maximum) == (len(durations), min(durations), max(durations))
    assert histogram.mean == pytest.approx(math.fsum(durations) / len(durations))
    assert histogram.percentile(100) == max(durations)


@given(DURATIONS, DURATIONS)
def test_merged_is_counted_together(one: list[float], other: list[float]) -> None:
    merged = counted(one)
    merged.merge(counted(other))
    together = counted(one + other)
    assert list(merged.buckets()) == list(together.buckets())
    assert merged.as_dict() == pytest.approx(together.as_dict())


@given(DURATIONS)
def test_buckets_do_not_overlap_and_hold_everything(durations: list[float]) -> None:
    buckets = list(counted(durations).buckets())
    assert sum(count for _, _, count in buckets) == len(durations)
    assert all(least < end for least, end, _ in buckets)
    assert all(one[1] <= other[0] + 1e-12 for one, other in pairwise(buckets))


@given(DURATIONS, st.floats(0, 4000))
def test_the_share_within_a_limit(durations: list[float], limit: float) -> None:
    share = counted(durations).share_within(limit)
    margin = 2 * RELATIVE_ERROR * limit + 1e-6
    least = sum(seconds <= limit - margin for seconds in durations) / len(durations)
    most = sum(seconds <= limit + margin for seconds in durations) / len(durations)
    assert least <= share <= most


def test_memory_is_bounded() -> None:
    histogram = Histogram()
    for exponent in range(-60, 130):
        for mantissa in range(128, 256):
            histogram.add(mantissa * 1.1**exponent * 1e-6)
    assert len(list(histogram.buckets())) <= 1792


def test_none() -> None:
    histogram = Histogram()
    assert math.isnan(histogram.percentile(50))
    assert math.isnan(histogram.mean)
    assert math.isnan(histogram.share_within(1))
    assert histogram.as_dict() == {"count": 0}


def test_a_clock_that_was_set_back() -> None:
    assert counted([-1.0]).percentile(50) == 0.0
