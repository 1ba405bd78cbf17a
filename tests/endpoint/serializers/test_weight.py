"""The estimate of how big a body will be."""

import inspect
import io
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given

from aiosmrt.serializers import ARROW, BYTES, CSV, JSON, JSON_LINES, NPY, NPZ, OFF_LOOP_BYTES, TEXT, weight
from tests.endpoint.serializers.samples import CIRCLE, JSON_VALUES, TABLE, Color, Frame, nested


class Counting(list[Any]):
    """A list that counts how often an item is looked at."""

    looked_at = 0

    def __getitem__(self, index: Any) -> Any:
        Counting.looked_at += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("walked through")


def test_weighing_looks_at_a_few_items_however_many_there_are() -> None:
    Counting.looked_at = 0
    rows = Counting([Counting([Counting([0.5] * 1000)] * 1000)] * 1000)
    assert weight(rows) > 1000**3
    assert 0 < Counting.looked_at < 1000


def numbers(size: int) -> list[float]:
    return [n / 7 for n in range(size)]


@pytest.mark.parametrize(
    ("data", "codec"),
    [
        ("x" * 1000, TEXT),
        (b"x" * 1000, BYTES),
        (bytearray(1000), BYTES),
        (memoryview(bytes(1000)), BYTES),
        (numbers(1000), JSON),
        ([numbers(30)] * 1000, JSON),
        ([numbers(30)] * 1000, CSV),
        ({"inputs": "x" * 10_000, "parameters": {"temperature": 0.5, "do_sample": True}}, JSON),
        ({"messages": [{"role": "user", "content": "x" * 500}] * 50}, JSON),
        ([{"id": n, "text": "x" * 50, "tags": ["a", "b"]} for n in range(500)], JSON_LINES),
        (list(range(10**6, 10**6 + 1000)), JSON),
        ([10**300] * 100, JSON),
        ((("x" * 100,) * 5,) * 100, CSV),
        ({f"key{n}": n for n in range(50)} | {"payload": "x" * 100_000}, JSON),
        (np.ones((300, 30)), NPY),
        (np.arange(3000) / 7, JSON),
        ({"x": np.ones(1000), "y": np.ones((2, 500))}, NPZ),
        (pa.table({"x": np.ones(1000)}), ARROW),
    ],
)
def test_the_estimate_is_of_the_right_order(data: Any, codec: Any) -> None:
    size = len(codec.serialize(data))
    assert size / 4 <= weight(data) <= size * 4


@pytest.mark.parametrize(
    "data",
    [
        (n for n in range(3)),
        io.BytesIO(b"abc"),
        io.StringIO("abc"),
        Frame(),
        pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches()),
    ],
)
def test_what_cannot_be_known_counts_as_large_and_is_left_alone(data: Any) -> None:
    assert weight(data) > OFF_LOOP_BYTES
    assert weight({"a": [data]}) > OFF_LOOP_BYTES
    if not isinstance(data, (Frame, pa.RecordBatchReader)):
        assert next(data) in (0, b"abc", "abc")


@pytest.mark.parametrize("data", [None, True, 0, -1.5, "", b"", [], {}, (), set(), Color.RED, datetime.now(UTC)])
def test_small_objects_are_small(data: Any) -> None:
    assert 0 < weight(data) < 50


def test_weighing_does_not_go_deep() -> None:
    everywhere: dict[str, Any] = {}
    everywhere.update({str(n): everywhere for n in range(10)})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        weights = [weight(data) for data in (CIRCLE, everywhere, nested(50, {"a": nested(50, 1)}))]
    finally:
        sys.setrecursionlimit(limit)
    assert min(weights) > 0


@given(JSON_VALUES)
def test_anything_has_a_weight(value: Any) -> None:
    assert weight(value) > 0
    items: Iterable[Any] = [value, {1, 2}, frozenset({"a"}), range(10**9)]
    assert weight(items) > 10**8
