"""The arithmetic of a fixed capacity."""

from __future__ import annotations

import pytest

from aiosmrt.policy.capacity import Capacity, FixedCapacity


def test_a_fixed_capacity_does_not_learn() -> None:
    capacity: Capacity = FixedCapacity(8)
    capacity.on_success(0.0, 1.0, 8)
    capacity.on_throttle(0.0, 1.0, 8)
    assert capacity.limit == 8
    assert repr(capacity) == "FixedCapacity(8)"


@pytest.mark.parametrize("limit", [0, -1])
def test_a_capacity_lets_at_least_one_through(limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FixedCapacity(limit)
