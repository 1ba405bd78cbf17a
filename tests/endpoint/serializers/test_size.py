"""The estimated size of a body."""

import inspect
import io
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt.serializers import ARROW, BYTES, CSV, JSON, JSON_LINES, NPY, NPZ, OFF_LOOP_BYTES, TEXT, estimated_size
from tests.endpoint.serializers.samples import CIRCLE, JSON_VALUES, TABLE, Color, Frame, nested


class Counting(list[Any]):
    """A list that counts how often an item is looked at."""

    looked_at = 0

    def __getitem__(self, index: Any) -> Any:
        Counting.looked_at += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        Counting.looked_at += len(self)
        return super().__iter__()


@pytest.mark.parametrize(
    "lengths",
    [
        (1000, 1000, 1000),
        (300, 5000, 5000, 5000),
        (60, 8, 300, 60),
        (500, 500),
        (2000, 2, 2),
        (40, 50, 1, 1, 1),
        (60, 40, 1, 1, 1, 5000),
        (1,) * 50 + (3000,),
    ],
)
def test_estimating_looks_at_few_items_of_many(lengths: tuple[int, ...]) -> None:
    data: Any = 0.5
    size = 19
    for length in reversed(lengths):
        data = Counting([data] * length)
        size = size * length + 3
    Counting.looked_at = 0
    assert size / 2 <= estimated_size(data) <= size * 2
    assert 0 < Counting.looked_at < 3000


@pytest.mark.parametrize("length", [100, 768, 100_000])
@pytest.mark.parametrize("number", [0.5, 50_000, True])
def test_few_numbers_of_a_list_are_looked_at(number: float, length: int) -> None:
    Counting.looked_at = 0
    assert estimated_size({"inputs": Counting([number] * length)}) > length
    assert Counting.looked_at < 20


class Message(NamedTuple):
    role: str
    content: object


SHORT = {"role": "user", "content": "hello"}
LARGE = "x" * 10**6


@pytest.mark.parametrize(
    "last",
    [
        {"role": "user", "content": LARGE},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": LARGE}}]},
        OrderedDict(role="user", content=LARGE),
        Message("user", LARGE),
        {"role": "user", "content": b"x" * 10**6},
        {"role": "user", "content": np.ones(10**5)},
        [1, [(1, LARGE)], 1],
        LARGE,
    ],
)
@pytest.mark.parametrize("others", [0, 1, 15, 16, 40, 255, 600, 5000])
def test_the_last_item_is_looked_at(others: int, last: object) -> None:
    assert estimated_size({"messages": [SHORT] * others + [last], "stream": True}) > OFF_LOOP_BYTES
    assert estimated_size((*[SHORT] * others, last)) > OFF_LOOP_BYTES
    assert estimated_size(dict.fromkeys(range(others), SHORT) | {-1: last}) > OFF_LOOP_BYTES
    assert estimated_size([SHORT] * (others + 1)) < OFF_LOOP_BYTES


@pytest.mark.parametrize("large", [{"role": "user", "content": LARGE}, {"role": "user", LARGE: 1}, (1, (LARGE, 1), 1)])
@pytest.mark.parametrize("place", [0, 1, 20, 333, 498, 499])
def test_each_item_of_a_chat_is_looked_at(place: int, large: Any) -> None:
    messages: list[Any] = [SHORT] * 500
    assert estimated_size({"messages": messages}) < OFF_LOOP_BYTES
    messages[place] = large
    assert estimated_size({"messages": messages, "embedding": [0.5] * 5000}) > OFF_LOOP_BYTES
    assert estimated_size({"history": {"messages": tuple(messages)}}) > OFF_LOOP_BYTES


@pytest.mark.parametrize("place", [0, 50, 99])
def test_a_mixed_list_is_not_a_list_of_numbers(place: int) -> None:
    row: list[Any] = [1.5] * 100
    row[place] = "a"
    row[33] = LARGE
    assert estimated_size(row) > OFF_LOOP_BYTES


def surrounded(data: object, places: list[tuple[object, int, object, int]]) -> object:
    """An object in a list in a tuple in a dictionary, and so on, with others before and after it in each."""
    for n, (before, some, after, more) in enumerate(places):
        items = [before] * some + [data] + [after] * more
        if n == 1:
            data = tuple(items)
        elif n == 2:
            data = {f"entry {place}": item for place, item in enumerate(items)}
        else:
            data = items
    return data


OTHERS: st.SearchStrategy[object] = st.sampled_from([None, "", "é" * 20, [], {}, {"a": 1}])
PLACES = st.tuples(OTHERS, st.integers(0, 100), OTHERS, st.integers(0, 100))


@given(JSON_VALUES | st.integers(0, 10**6).map("x".__mul__), st.lists(PLACES, max_size=4))
def test_nothing_large_is_missed_in_a_few_hundred_objects(
    payload: object, places: list[tuple[object, int, object, int]]
) -> None:
    data = surrounded(payload, places)
    # a control character is six bytes of JSON, and one in the estimate
    assert estimated_size(data) * 6 >= len(JSON.serialize(data))


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
def test_the_estimate_has_the_right_order_of_magnitude(data: Any, codec: Any) -> None:
    size = len(codec.serialize(data))
    assert size / 4 <= estimated_size(data) <= size * 4


def test_small_numbers_of_numpy_are_longer_in_text() -> None:
    assert estimated_size(np.zeros(20_000, np.uint8)) > OFF_LOOP_BYTES
    data = [np.float32(1 / 3)] * 10
    assert estimated_size(data) >= len(JSON.serialize(data))


@dataclass
class Row:
    values: object


@pytest.mark.parametrize(
    "data",
    [
        (n for n in range(3)),
        io.BytesIO(b"abc"),
        io.StringIO("abc"),
        Frame(),
        Row([[1.5] * 100] * 5000),
        SimpleNamespace(rows=[]),
        object(),
        {1, 2},
        np.array(["x" * 100, {}], dtype=object),
        pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches()),
    ],
)
def test_unknown_sizes_count_as_large_and_objects_are_not_consumed(data: Any) -> None:
    assert estimated_size(data) > OFF_LOOP_BYTES
    assert estimated_size({"a": [data]}) > OFF_LOOP_BYTES
    assert estimated_size({"a": [{"b": n} for n in range(5000)], "b": data}) > OFF_LOOP_BYTES
    assert estimated_size([data] * 5000) > OFF_LOOP_BYTES
    if isinstance(data, (Iterator, io.IOBase)) and not isinstance(data, pa.RecordBatchReader):
        assert next(data) in (0, b"abc", "abc")


@pytest.mark.parametrize(
    "data",
    [
        *(None, True, 0, -1.5, 1j, "", b"", [], {}, (), range(0)),
        *(OrderedDict(a=1), Message("user", "hello")),
        *(Decimal("1.5"), Fraction(1, 3), Color.RED, UUID(int=1)),
        *(datetime.now(UTC), date(2024, 1, 1), time(12), timedelta(1)),
        *(np.float32(1.5), np.int64(1), np.bool_(True), np.str_("a"), np.datetime64("2024-01-01"), np.float64(1.5)),
    ],
)
def test_small_objects_are_small(data: Any) -> None:
    assert 0 < estimated_size(data) < 50
    assert estimated_size({"a": [data] * 1000}) < 50_000
    assert estimated_size([[data]] * 5000) < OFF_LOOP_BYTES


def test_estimating_does_not_go_deep() -> None:
    everywhere: dict[str, Any] = {}
    everywhere.update({str(n): everywhere for n in range(10)})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        sizes = [estimated_size(data) for data in (CIRCLE, everywhere, nested(50, {"a": nested(50, 1)}))]
    finally:
        sys.setrecursionlimit(limit)
    assert min(sizes) > 0


@given(JSON_VALUES)
def test_anything_has_a_size(value: Any) -> None:
    assert estimated_size(value) > 0
    items: Iterable[Any] = [value, {1, 2}, frozenset({"a"}), range(10**9)]
    assert estimated_size(items) > 10**8
