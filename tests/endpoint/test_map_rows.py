"""`map` over objects that do not iterate over items, and `map_rows` over the rows of a table."""

import itertools
import mmap
from collections import UserDict, UserString
from collections.abc import Callable
from email.message import Message
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest

from aiosmrt import Client
from aiosmrt.endpoint import Endpoint, batches
from aiosmrt.errors import ParamValidationError
from aiosmrt.local import LocalRuntime
from aiosmrt.serializers import ARROW, CSV, JSON, PARQUET
from tests.endpoint.serializers.samples import Frame
from tests.endpoint.serializers.test_frames import (
    COLUMNS,
    ROWS,
    Make,
    every_frame,
    makers,
    pandas_frame,
    polars_frame,
    skip_without,
)
from tests.support.clients import Serve


async def echo(invocation: Any) -> tuple[bytes, dict[str, str]]:
    return invocation.body, {"Content-Type": invocation.content_type}


def endpoint_of(client: Client, codec: Any = CSV) -> Endpoint[Any, Any]:
    return client.endpoint("churn", serializer=codec, deserializer=codec)


class Rows:
    """A database result, which iterates over rows and has a method `columns`."""

    def columns(self) -> list[str]:
        return ["a"]

    def __iter__(self) -> Any:
        return iter([[1], [2]])


class OnlyGetitem:
    """An object that iterates by numbers, as sequences did before they had iterators."""

    def __getitem__(self, number: int) -> list[int]:
        return [[1], [2]][number]


def lazy_frame(columns: dict[str, Any]) -> Any:
    return polars_frame(columns).lazy()


MISTAKES: list[Any] = [
    ("1,2", "got a str, which iterates over characters"),
    (b"1,2", "got a bytes, which iterates over bytes"),
    (bytearray(b"1,2"), "got a bytearray, which iterates over bytes"),
    (memoryview(b"1,2"), "got a memoryview, which iterates over bytes"),
    (memoryview(b"1234").cast("B", (2, 2)), "got a memoryview, which iterates over bytes"),
    (mmap.mmap(-1, 4), "got a mmap, which iterates over bytes"),
    (np.str_("1,2"), "got a str_, which iterates over characters"),
    (UserString("1,2"), "got a UserString, which iterates over characters"),
    (Message(), "got a Message, which iterates over keys"),  # a mapping that is not registered as one
    (itertools.groupby([1, 1, 2]), "got a groupby, which iterates over pairs of a key and a group"),
    ({"age": [1, 2]}, r"got a dict, which iterates over keys; pass its values\(\)"),
    (UserDict(age=[1]), "got a UserDict, which iterates over keys"),
    (MappingProxyType({"age": [1]}), "got a mappingproxy, which iterates over keys"),
    (
        pa.table(COLUMNS),
        r"got a Table, which iterates over columns; use map_rows\(frame\), or map\(batches\(frame, rows\)\)",
    ),
    (pa.record_batch(COLUMNS), "got a RecordBatch, which iterates over columns; use map_rows"),
    (Frame(), "got a Frame, which iterates over columns; pass its rows"),
]


@pytest.mark.parametrize(("items", "message"), MISTAKES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("codec", [CSV, JSON])
async def test_map_over_something_that_does_not_iterate_over_items(
    serve: Serve, running: list[LocalRuntime], items: Any, message: str, codec: Any
):
    endpoint = endpoint_of(await serve(churn=echo), codec)
    with pytest.raises(ParamValidationError, match=f"items must be an iterable of items; {message}"):
        endpoint.map(items)
    assert running[0].statistics()["requests"] == 0


@pytest.mark.parametrize("make", makers(pandas_frame, polars_frame))
async def test_map_over_a_dataframe(make: Make):
    with pytest.raises(ParamValidationError, match="got a DataFrame, which iterates over columns; use map_rows"):
        endpoint_of(Client("eu-central-1")).map(make(COLUMNS))


@pytest.mark.parametrize("make", makers(pandas_frame, polars_frame))
async def test_map_over_groups_of_a_dataframe(make: Make):
    frame = make(COLUMNS)
    groups = frame.groupby("age") if make is pandas_frame else frame.group_by("age")
    with pytest.raises(ParamValidationError, match="which iterates over pairs of a key and a group; pass a list of"):
        endpoint_of(Client("eu-central-1")).map(groups)


@pytest.mark.parametrize("make", [pytest.param(lazy_frame, marks=[skip_without("polars")])])
async def test_map_over_a_lazy_frame(make: Make):
    with pytest.raises(ParamValidationError, match="items must be an iterable"):
        endpoint_of(Client("eu-central-1")).map(make(COLUMNS))


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: [[1], [2]], lambda: ([n] for n in (1, 2)), lambda: np.array([[1], [2]]), Rows),
        *(
            lambda: OnlyGetitem(),
            lambda: {"a": [1], "b": [2]}.values(),
            lambda: pa.table({"a": [1, 2]}).to_batches(max_chunksize=1),
        ),
        lambda: pa.RecordBatchReader.from_batches(
            pa.schema([("a", pa.int64())]), pa.table({"a": [1, 2]}).to_batches(max_chunksize=1)
        ),
    ],
)
async def test_map_over_items(serve: Serve, make: Callable[[], Any]):
    async with endpoint_of(await serve(churn=echo)).map(make()) as results:
        assert [result.unwrap() async for result in results] == [[["1"]], [["2"]]]


@every_frame
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
async def test_map_rows(serve: Serve, running: list[LocalRuntime], make: Make, rows: int):
    frame = make(COLUMNS)
    async with endpoint_of(await serve(churn=echo)).map_rows(frame, rows=rows) as results:
        got = [result async for result in results]
    assert [row for result in got for row in result.unwrap()] == [[str(value) for value in row] for row in ROWS]
    assert [len(result.item) for result in got] == [len(part) for part in batches(frame, rows)]
    assert {type(result.item) for result in got} == {type(frame)}
    assert running[0].statistics()["requests"] == len(got)


@every_frame
@pytest.mark.parametrize("codec", [JSON, ARROW, PARQUET])
async def test_map_rows_with_other_codecs(serve: Serve, make: Make, codec: Any):
    async with endpoint_of(await serve(churn=echo), codec).map_rows(make(COLUMNS), rows=2) as results:
        answers = [result.unwrap() async for result in results]
    records = [row for answer in answers for row in (answer if codec is JSON else answer.to_pylist())]
    assert records == [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]


async def test_map_rows_takes_the_arguments_of_map(serve: Serve):
    endpoint = endpoint_of(await serve(churn=echo))
    async with endpoint.map_rows(
        pa.table(COLUMNS), concurrency=1, ordered=False, patience=1.0, max_failures=0, inference_id="1"
    ) as results:
        assert len([result.unwrap() async for result in results]) == 3
    with pytest.raises(ParamValidationError, match="concurrency must be"):
        endpoint.map_rows(pa.table(COLUMNS), concurrency=0)


async def test_map_rows_of_something_else():
    endpoint = endpoint_of(Client("eu-central-1"))
    for frame in ([[1]], {"a": [1]}, Frame(), "a"):
        with pytest.raises(ParamValidationError, match="frame must be a DataFrame of pandas or polars"):
            endpoint.map_rows(frame)
    with pytest.raises(ParamValidationError, match="rows must be an integer >= 1; got 0"):
        endpoint.map_rows(pa.table(COLUMNS), rows=0)
