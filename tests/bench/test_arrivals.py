"""When the calls of an open model begin."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt.bench.arrivals import arrivals, doubling


@given(st.floats(0.1, 1000), st.floats(0.01, 10))
def test_constant_arrivals_have_equal_gaps(rate: float, seconds: float) -> None:
    times = list(arrivals("constant", rate, seconds, random.random))
    assert times == pytest.approx([number / rate for number in range(len(times))])
    assert times[-1] < seconds <= len(times) / rate


def test_poisson_arrivals_have_exponential_gaps() -> None:
    numbers = random.Random(13)
    times = list(arrivals("poisson", 100.0, 1000.0, numbers.random))
    assert len(times) == pytest.approx(100_000, rel=0.02)
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    # The mean is 1 / rate, the median ln 2 / rate, and the share beyond the mean 1 / e.
    assert sum(gaps) / len(gaps) == pytest.approx(0.01, rel=0.02)
    assert gaps[len(gaps) // 2] == pytest.approx(0.00693, rel=0.02)
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.3679, rel=0.02)


@given(st.integers(1, 10_000))
def test_doubling_ends_at_the_largest(most: int) -> None:
    steps = doubling(most)
    assert (steps[0], steps[-1]) == (1, most)
    assert all(earlier < later <= 2 * earlier for earlier, later in pairwise(steps))
