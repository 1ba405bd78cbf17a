"""Parquet and zstd in and out; tables and iterables as the source; functions as the sink."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import math
import tempfile
import threading
import tracemalloc
import uuid
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aiosmrt import Client
from aiosmrt.batch import ANY_ANSWER, Progress, Report, score
from aiosmrt.batch.tables import records_of, write_parquet
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import BatchInputError, BatchOutputError, BatchStoppedError, ParamValidationError
from aiosmrt.local import ContainerFailure, Invocation
from aiosmrt.serializers import BYTES, JSON
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import local_runtime
from tests.support.scoring import Models, doubled, lines_of

ROWS = 1100


@pytest.fixture
def echo(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("echo", serializer=JSON, deserializer=ANY_ANSWER)


@pytest.fixture
def double(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("double", serializer=JSON, deserializer=JSON)


def written(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def typed(rows: int) -> pa.Table:
    """A table with the types that JSON lacks."""
    start = datetime.datetime(2024, 1, 1, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
    return pa.table(
        {
            "n": range(rows),
            "short": pa.array([0.1 * number for number in range(rows)], pa.float32()),
            "at": pa.array([start + datetime.timedelta(days=number) for number in range(rows)]),
            "day": [datetime.date(2024, 2, 29)] * rows,
            "price": [decimal.Decimal("12.50")] * rows,
            "raw": [b"\xff\x00"] * rows,
            "list": [[1, 2], *[None] * (rows - 1)],
            "kind": pa.array(["a", "b"] * (rows // 2)).dictionary_encode(),
        }
    )


# Parquet out of values that fit no type


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (r'"\ud83d"', r"\ud83d"),
        (r'{"a": "\ud83d"}', r'{"a":"\ud83d"}'),
        (r'{"\ud83d": 1}', r'{"\ud83d":1}'),
        ("[1152921504606846977, 0.5]", "[1152921504606846977,0.5]"),
    ],
)
async def test_an_answer_that_no_type_of_parquet_has_is_text(
    client: Client, tmp_path: Path, answer: str, read: str
) -> None:
    rows, out = tmp_path / "rows.txt", tmp_path / "out.parquet"
    rows.write_text(f"{answer}\n")
    endpoint = client.endpoint("echo", serializer=BYTES, deserializer=JSON)
    await score(endpoint, rows, out)
    assert pq.read_table(out).column("value").to_pylist() == [read]


async def test_ids_and_names_with_lone_surrogates_reach_parquet(double: Endpoint[Any, Any], tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.parquet"
    rows.write_text(r'{"n": 1, "id": "\ud83d", "\ud83d": 2}' + "\n")
    await score(double, rows, out, id_field="id")
    assert pq.read_table(out).to_pylist() == [{"index": 0, "id": r"\ud83d", "value": 2}]
    await score(double, rows, out, join_source="Input", fresh=True)
    assert pq.read_table(out).to_pylist() == [{"n": 1, "id": r"\ud83d", r"\ud83d": 2, "prediction": 2}]


@pytest.mark.parametrize("shape", ['{{"a":{}}}', "[{}]"])
def test_values_that_do_not_fit_a_type_that_was_widened_behind_them_are_text(tmp_path: Path, shape: str) -> None:
    large, small = shape.format(2**60 + 1), shape.format(0.5)
    # More than a group of rows, so that the type is widened by another one.
    records = tmp_path / "records.jsonl"
    records.write_text(f'{{"value":{large}}}\n' * (1 << 15) + f'{{"value":{small}}}\n')
    out = tmp_path / "out.parquet"
    write_parquet(records, out, columns=["value"], hints={}, facts={})
    values = pq.read_table(out).column("value").to_pylist()
    assert (len(values), values[0], values[-1]) == ((1 << 15) + 1, large, small)


async def test_decimals_keep_their_digits_from_parquet_to_parquet(echo: Endpoint[Any, Any], tmp_path: Path) -> None:
    exact = decimal.Decimal("9" * 74 + ".99")
    prices = pa.array([exact, None], pa.decimal256(76, 2))
    rows, out = written(tmp_path / "rows.parquet", pa.table({"price": prices})), tmp_path / "out.parquet"
    await score(echo, rows, out, column="price", join_source="Input")
    found = pq.read_table(out)
    assert found.schema.field("price").type == pa.decimal256(76, 2)
    assert found.to_pylist() == [{"price": exact, "prediction": 1e74}, {"price": None, "prediction": None}]
    lines = tmp_path / "out.jsonl"
    await score(echo, rows, lines, column="price", join_source="Input")
    assert lines_of(lines)[0] == {"price": 1e74, "prediction": 1e74}


def test_a_number_that_its_decimal_type_is_too_small_for_is_text(tmp_path: Path) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "out.parquet"
    records.write_text('{"price":1e74}\n{"price":null}\n')
    write_parquet(records, out, columns=["price"], hints={"price": pa.decimal256(75, 2)}, facts={})
    assert pq.read_table(out).to_pylist() == [{"price": "1e+74"}, {"price": None}]


@pytest.mark.parametrize(("answer", "kind"), [("high", pa.string()), (3, pa.int64())])
async def test_a_member_of_the_answer_has_its_own_type_whatever_the_column_of_its_name_has(
    echo: Endpoint[Any, Any], tmp_path: Path, answer: Any, kind: Any
) -> None:
    prices = pa.array([decimal.Decimal("1.50")], pa.decimal128(10, 2))
    rows, out = written(tmp_path / "rows.parquet", pa.table({"x": prices})), tmp_path / "out.parquet"
    template = {"x": answer, "was": "{x}"}
    await score(echo, rows, out, template=template, join_source="Input", output_filter="$.prediction")
    found = pq.read_table(out)
    assert found.to_pylist() == [{"x": answer, "was": 1.5}]
    assert found.schema.field("x").type == kind


def test_what_parquet_cannot_have_is_an_error_of_the_output(tmp_path: Path) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "out.parquet"
    records.write_text('{"secret\n')
    with pytest.raises(BatchOutputError, match="do not fit into Parquet") as caught:
        write_parquet(records, out, columns=["value"], hints={}, facts={})
    assert "secret" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


# Records of Python


OBJECTS = {
    "id": uuid.UUID(int=7),
    "price": decimal.Decimal("12.5"),
    "at": datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
    "shape": (2, 3),
}
PLAIN = {
    "id": "00000000-0000-0000-0000-000000000007",
    "price": 12.5,
    "at": "2024-02-29T12:00:00+00:00",
    "shape": [2, 3],
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
async def test_objects_of_records_are_repeated_as_json_has_them(
    double: Endpoint[Any, Any], tmp_path: Path, suffix: str
) -> None:
    records = [{"n": number, "rest": OBJECTS} for number in range(2)]
    out = tmp_path / f"out.{suffix}"
    report = await score(double, records, out, column=None, template={"n": "{n}"}, join_source="Input")
    assert (report.scored, report.failed) == (2, 0)
    written = pq.read_table(out).to_pylist() if suffix == "parquet" else lines_of(out)
    assert written == [{"n": number, "rest": PLAIN, "prediction": 2 * number} for number in range(2)]


@pytest.mark.parametrize("name", OBJECTS)
async def test_an_id_may_be_an_object_with_a_json_value(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path, name: str
) -> None:
    models.refused.add(b'{"n":1}')
    records = [{"n": number, "key": OBJECTS[name]} for number in range(2)]
    report = await score(double, records, tmp_path / "out.jsonl", template={"n": "{n}"}, id_field="key")
    assert (report.scored, report.failed) == (1, 1)
    assert lines_of(tmp_path / "out.jsonl")[0]["id"] == PLAIN[name]
    assert lines_of(tmp_path / "out.jsonl.errors.jsonl")[0]["id"] == PLAIN[name]


@pytest.mark.parametrize("arguments", [{"id_field": "key"}, {"join_source": "Input"}])
async def test_a_row_that_could_not_be_written_is_not_sent(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path, arguments: Any
) -> None:
    records = [{"n": 0, "key": "a"}, {"n": 1, "key": object()}, {"n": 2, "key": "c"}]
    report = await score(double, records, tmp_path / "out.jsonl", template={"n": "{n}"}, **arguments)
    assert (report.scored, report.failed) == (2, 1)
    assert models.seen.total() == 2
    (error,) = lines_of(tmp_path / "out.jsonl.errors.jsonl")
    assert (error["index"], error["attempts"]) == (1, 0)
    assert "cannot be written as JSON (TypeError)" in error["message"]


def deepest_json() -> int:
    """How deep JSON may be nested that this Python reads from here."""

    def is_too_deep(depth: int) -> bool:
        try:
            json.loads("[" * depth + "]" * depth)
        except RecursionError:
            return True
        return False

    return bisect_left(range(1_000_000), True, key=is_too_deep) - 1


class DeepThreads(ThreadPoolExecutor):
    """Threads in which less of the stack is left than on the loop, both Python's and C's."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Any:
        def deep(levels: int) -> Any:
            return next(map(deep, [levels - 1])) if levels else function(*arguments, **named)

        return super().submit(deep, 50)


async def test_answers_nested_as_deep_as_python_reads_fail_at_most_their_rows(tmp_path: Path) -> None:
    """Wherever an answer is read, some depth is the first that is too deep there."""
    asyncio.get_running_loop().set_default_executor(DeepThreads())
    depths = range(deepest_json() - 200, deepest_json() + 100)

    async def nested(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        depth = int(invocation.body)
        return b"[" * depth + b"]" * depth, {"Content-Type": "application/json"}

    async with local_runtime({"nested": nested}) as runtime, Client(**runtime.client_settings) as caller:
        taken: list[dict[str, Any]] = []
        endpoint = caller.endpoint("nested", serializer=JSON, deserializer=JSON)
        rows = [{"depth": depth} for depth in depths]
        report = await score(endpoint, rows, taken.extend, column="depth", spool=tmp_path)
    assert report.scored + report.failed == len(depths)
    errors = lines_of(Path(report.errors))
    assert len(taken) == report.scored > 0
    assert {error["message"] for error in errors} == {
        "the response is nested too deeply (InvokeEndpoint of endpoint nested)",
        "the answer cannot be read: it is nested too deeply",
    }


async def test_an_answer_that_raises_when_it_is_written_fails_its_row_alone(client: Client, tmp_path: Path) -> None:
    class Broken:
        def tolist(self) -> object:
            raise LookupError("secret")

    class Reader:
        accept = "*/*"

        def deserialize(self, body: bytes, content_type: str, /) -> object:
            return Broken() if body == b"1" else 0

    endpoint = client.endpoint("echo", serializer=JSON, deserializer=Reader())
    report = await score(endpoint, [0, 1, 2], tmp_path / "out.jsonl")
    assert (report.scored, report.failed) == (2, 1)
    assert "secret" not in (tmp_path / "out.jsonl.errors.jsonl").read_text()


# Parquet in


async def test_parquet_is_scored_row_by_row_over_files_and_row_groups(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    table = pa.table({"n": range(100)})
    written(folder / "a.parquet", table.slice(0, 60), row_group_size=7)
    written(folder / "b.parquet", table.slice(60))
    out = tmp_path / "out.jsonl"
    report = await score(double, folder, out, limit=70)
    assert report.scored == 70
    report = await score(double, folder, out)
    assert (report.scored, report.resumed) == (100, 70)
    assert lines_of(out) == doubled(100)
    assert set(models.seen.values()) == {1}


async def test_values_of_parquet_are_sent_as_json_has_them(
    echo: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    rows = written(tmp_path / "rows.parquet", typed(2).drop(["raw"]))
    await score(echo, rows, tmp_path / "out.jsonl")
    assert json.loads(min(models.seen)) == {
        "n": 0,
        "short": 0.0,
        "at": "2024-01-01T12:00:00.250000+00:00",
        "day": "2024-02-29",
        "price": 12.5,
        "list": [1, 2],
        "kind": "a",
    }
    # As a double, the nearest float of 32 bits would be 0.10000000149011612.
    assert json.loads(max(models.seen))["short"] == 0.1


async def test_nested_values_of_parquet_are_json_and_come_back_as_they_were(
    echo: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    amount = decimal.Decimal("1.5")
    counts, amounts = pa.map_(pa.string(), pa.int64()), pa.map_(pa.int64(), pa.decimal128(5, 1))
    table = pa.table(
        {
            # Whole numbers of 38 digits, as databases export identifiers.
            "id": pa.array([10**37 + 1, -7], pa.decimal128(38, 0)),
            "counts": pa.array([[("k", 1)], []], counts),
            "in_list": pa.array([[{"counts": [("k", None)]}, None], []], pa.list_(pa.struct([("counts", counts)]))),
            "kind": pa.array(["a", None]).dictionary_encode(),
        }
    )
    rows, out = written(tmp_path / "rows.parquet", table), tmp_path / "out.parquet"
    await score(echo, rows, out, join_source="Input", template={"sent": "{}"})
    assert sorted((json.loads(body)["sent"] for body in models.seen), key=lambda sent: len(sent["in_list"])) == [
        {"id": -7, "counts": {}, "in_list": [], "kind": None},
        {"id": 10**37 + 1, "counts": {"k": 1}, "in_list": [{"counts": {"k": None}}, None], "kind": "a"},
    ]
    assert pq.read_table(out).drop(["prediction"]).equals(table)
    keyed = pa.record_batch({"amounts": pa.array([[(7, amount)], []], amounts)})
    assert records_of(keyed) == [{"amounts": [[7, 1.5]]}, {"amounts": []}]
    await score(echo, rows, tmp_path / "ids.jsonl", id_field="id", column="kind")
    assert [line["id"] for line in lines_of(tmp_path / "ids.jsonl")] == [10**37 + 1, -7]


def in_runs(values: pa.Array) -> pa.Array:
    """Two values, the first of them twice."""
    return pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), values)


def union_of(*members: pa.Array) -> pa.Array:
    """The first values of arrays, each with its own type."""
    return pa.UnionArray.from_dense(
        pa.array(range(len(members)), pa.int8()), pa.array([0] * len(members), pa.int32()), list(members)
    )


DAY = datetime.date(2024, 2, 29)
# Columns, their JSON values, and their type in Parquet.
RARE_TYPES: dict[str, tuple[Any, list[Any], Any]] = {
    "texts in runs": (in_runs(pa.array(["a", None])), ["a", "a", None], pa.string()),
    "floats in runs": (in_runs(pa.array([0.1, 2], pa.float32())), [0.1, 0.1, 2.0], pa.float32()),
    "times in runs": (
        in_runs(pa.array([1_000, None], pa.timestamp("ns"))),
        ["1970-01-01T00:00:00.000001"] * 2 + [None],
        pa.timestamp("ns"),
    ),
    "lists in runs": (in_runs(pa.array([[DAY], None])), [["2024-02-29"]] * 2 + [None], pa.string()),
    "union": (union_of(pa.array([1]), pa.array([DAY]), pa.array(["x"])), [1, "2024-02-29", "x"], pa.string()),
    "lists of unions": (
        pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), union_of(pa.array([1]), pa.array([DAY]))),
        [[1, "2024-02-29"]],
        pa.string(),
    ),
    "map of views": (
        pa.array([[("k", DAY)], None], pa.map_(pa.string_view(), pa.date32())),
        [{"k": "2024-02-29"}, None],
        pa.string(),
    ),
    "map of a dictionary": (
        pa.MapArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["k"]).dictionary_encode(), pa.array([1])),
        [{"k": 1}],
        pa.map_(pa.dictionary(pa.int32(), pa.string()), pa.int64()),
    ),
    "list views": (pa.array([[DAY], None], pa.list_view(pa.date32())), [["2024-02-29"], None], pa.string()),
    "fixed lists": (pa.array([[DAY]], pa.list_(pa.date32(), 1)), [["2024-02-29"]], pa.string()),
    "months": (pa.array([None], pa.month_day_nano_interval()), [None], pa.string()),
}


@pytest.mark.parametrize("name", RARE_TYPES)
async def test_rare_types_of_tables_are_json_and_reach_parquet(
    echo: Endpoint[Any, Any], models: Models, tmp_path: Path, name: str
) -> None:
    column, values, kind = RARE_TYPES[name]
    table, out = pa.table({"x": column, "n": range(len(column))}), tmp_path / "out.parquet"
    await score(echo, table, out, join_source="Input")
    sent = sorted(map(json.loads, models.seen), key=lambda row: row["n"])
    assert sent == [{"x": value, "n": number} for number, value in enumerate(values)]
    found = pq.read_table(out)
    assert found.num_rows == len(values)
    assert found.schema.field("x").type.equals(kind)


async def test_a_column_of_bytes_is_a_body_as_it_is(client: Client, models: Models, tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.parquet", pa.table({"image": [b"\x89PNG", b"\xff\xd8"], "name": ["a", "b"]}))
    endpoint = client.endpoint("echo", serializer=BYTES, deserializer=ANY_ANSWER)
    await score(endpoint, rows, tmp_path / "out.jsonl", column="image", id_field="name")
    assert set(models.seen) == {b"\x89PNG", b"\xff\xd8"}
    assert [line["id"] for line in lines_of(tmp_path / "out.jsonl")] == ["a", "b"]


async def test_only_the_columns_that_are_sent_are_read(echo: Endpoint[Any, Any], tmp_path: Path) -> None:
    """A damaged page of another column does not matter."""
    wide = pa.table({"n": range(10), "unused": ["marker" * 50] * 10})
    rows = written(tmp_path / "rows.parquet", wide, compression="none", use_dictionary=False)
    data = rows.read_bytes()
    place = data.index(b"marker")
    # The length of the first text, which is read before it.
    rows.write_bytes(data[: place - 4] + b"\xff" * 4 + data[place:])
    with pytest.raises(BatchInputError, match=r"rows\.parquet is damaged, or not Parquet"):
        await score(echo, rows, tmp_path / "all.jsonl")
    report = await score(echo, rows, tmp_path / "out.jsonl", column="n")
    assert report.scored == 10


async def test_memory_does_not_grow_with_parquet(tmp_path: Path) -> None:
    """The row groups of a file are not held together."""
    from threading import Event

    from aiosmrt.batch.source import Source

    text = "x" * 10_000
    with pq.ParquetWriter(rows := tmp_path / "rows.parquet", pa.schema([("text", pa.string())])) as writer:
        for number in range(40):
            writer.write_table(pa.table({"text": [f"{number}{text}{row}" for row in range(200)]}))
    source = Source([str(rows)], input_format=None, header=True, stopped=Event())
    source.prepare()
    before = pa.total_allocated_bytes()
    most = count = 0
    tracemalloc.start()
    try:
        for _ in source.rows():
            count += 1
            most = max(most, pa.total_allocated_bytes() - before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        source.close()
    assert count == 8000
    # 80 MB in all
    assert most < 20_000_000
    assert peak < 30_000_000


@pytest.mark.parametrize(
    ("files", "arguments", "problem"),
    [
        ({"a.parquet": b"PAR1"}, {"source": "a.parquet"}, "a.parquet is damaged, or not Parquet"),
        ({"a.parquet": b""}, {"source": "a.parquet"}, "a.parquet is damaged, or not Parquet"),
        ({"a.parquet": b'{"n": 1}\n' * 9}, {"source": "a.parquet"}, "a.parquet is damaged, or not Parquet"),
        ({"a.parquet": ["n", "m"]}, {"source": "a.parquet", "column": "x"}, "no column 'x'; it has n, m"),
        ({"a.parquet": ["n"], "b.parquet": ["m"]}, {"source": "*.parquet"}, "columns of b.parquet are not those"),
        ({"a.parquet": ["n", "n"]}, {"source": "a.parquet"}, "a.parquet has two columns of the same name"),
        ({"a.parquet": 0}, {"source": "a.parquet"}, "the input is empty"),
        ({"a.jsonl": ["n"]}, {"source": "a.jsonl"}, "a.jsonl is Parquet"),
        ({"a.jsonl.zst": b"\x28\xb5\x2f\xfd" + b"x" * 99}, {"source": "a.jsonl.zst"}, "a.jsonl.zst is damaged"),
    ],
)
async def test_input_that_cannot_be_read(
    echo: Endpoint[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, Any],
    arguments: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        elif content == 0:
            written(Path(name), pa.table({"n": pa.array([], pa.int64())}))
        else:
            written(Path(name), pa.Table.from_arrays([pa.array([1])] * len(content), names=content))
    with pytest.raises(BatchInputError, match=problem):
        await score(echo, **{"sink": "out.jsonl", **arguments})


async def test_zstd_is_recognized_and_a_cut_is_noticed(double: Endpoint[Any, Any], tmp_path: Path) -> None:
    rows = "".join(f'{{"n": {number}}}\n' for number in range(400)).encode()
    data = pa.Codec("zstd").compress(rows, asbytes=True)
    # Two frames one after the other are one file, as `cat` makes them.
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(
        pa.Codec("zstd").compress(rows[:9], asbytes=True) + pa.Codec("zstd").compress(rows[9:], asbytes=True)
    )
    await score(double, path, tmp_path / "out.jsonl")
    assert lines_of(tmp_path / "out.jsonl") == doubled(400)
    # pzstd begins with a frame that is to be skipped.
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + data)
    await score(double, path, tmp_path / "skipped.jsonl")
    assert lines_of(tmp_path / "skipped.jsonl") == doubled(400)
    path.write_bytes(data[:-20])
    with pytest.raises(BatchInputError, match=r"rows\.jsonl\.zst is damaged, or cut short"):
        await score(double, path, tmp_path / "other.jsonl")


# Parquet out


async def test_parquet_out_has_types(echo: Endpoint[Any, Any], tmp_path: Path) -> None:
    rows = [{"id": "a", "v": 1}, {"id": "b", "v": 2.5}, {"id": "c", "v": None}, {"id": "d", "v": 4}]
    await score(echo, rows, tmp_path / "out.parquet", column="v", id_field="id")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["index", "id", "value"]
    assert [table.schema.field(name).type for name in table.schema.names] == [pa.int64(), pa.string(), pa.float64()]
    assert table["value"].to_pylist() == [1.0, 2.5, None, 4.0]


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([1, 2], pa.int64(), [1, 2]),
        ([[1, 2.5], [3]], pa.list_(pa.float64()), [[1.0, 2.5], [3.0]]),
        ([{"label": "a", "p": 0.5}, {"label": "b"}], None, [{"label": "a", "p": 0.5}, {"label": "b", "p": None}]),
        ([1, "a", [2], {"b": 3}], pa.string(), ["1", "a", "[2]", '{"b":3}']),
        ([{}, {}], pa.string(), ["{}", "{}"]),
        ([None, None], pa.string(), [None, None]),
        ([2**70, 1], pa.string(), [str(2**70), "1"]),
    ],
)
async def test_types_of_answers(
    echo: Endpoint[Any, Any], tmp_path: Path, values: list[Any], kind: Any, found: list[Any]
) -> None:
    await score(echo, [{"v": value} for value in values], tmp_path / "out.parquet", column="v")
    value = pq.read_table(tmp_path / "out.parquet")["value"]
    assert value.to_pylist() == found
    assert kind is None or value.type == kind


async def test_numbers_that_json_lacks_stay_numbers(client: Client, tmp_path: Path) -> None:
    # Python's json reads them.
    endpoint = client.endpoint("echo", serializer=BYTES, deserializer=JSON, content_type="application/json")
    await score(endpoint, [b"NaN", b"1.5", b"-Infinity"], tmp_path / "out.parquet")
    nan, number, infinite = pq.read_table(tmp_path / "out.parquet")["value"].to_pylist()
    assert math.isnan(nan)
    assert (number, infinite) == (1.5, -math.inf)


async def test_joined_parquet_keeps_the_types_of_the_input(echo: Endpoint[Any, Any], tmp_path: Path) -> None:
    table = typed(ROWS)
    rows = written(tmp_path / "rows.parquet", table)
    await score(echo, rows, tmp_path / "out.parquet", template={"x": "{n}"}, join_source="Input")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.drop(["prediction"]).equals(table)
    assert found["prediction"].to_pylist() == [{"x": number} for number in range(ROWS)]


async def test_a_prediction_takes_the_place_of_a_column_of_that_name(
    double: Endpoint[Any, Any], tmp_path: Path
) -> None:
    rows = written(tmp_path / "rows.parquet", pa.table({"n": [1, 2], "prediction": ["old", "older"]}))
    await score(double, rows, tmp_path / "out.parquet", template={"n": "{n}"}, join_source="Input")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [{"n": 1, "prediction": 2}, {"n": 2, "prediction": 4}]


async def test_a_parquet_file_appears_when_all_rows_are_done(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    rows, out = written(tmp_path / "rows.parquet", pa.table({"n": range(50)})), tmp_path / "out.parquet"
    stop = asyncio.Event()

    async def stop_half_way(body: bytes) -> None:
        if models.seen.total() == 25:
            stop.set()

    models.before = stop_half_way
    report = await score(double, rows, out, stop=stop)
    assert not report.finished
    assert not out.exists()
    assert len(lines_of(tmp_path / "out.parquet.rows.jsonl")) == report.scored
    await score(double, rows, out)
    assert pq.read_table(out).to_pylist() == doubled(50)
    # Lost before it was finished, as after a kill, it is made again of what is there.
    out.unlink()
    (tmp_path / "out.parquet.partial").write_bytes(b"PAR1")
    await score(double, rows, out)
    assert pq.read_table(out).to_pylist() == doubled(50)
    assert models.seen.total() == 50
    made = out.stat().st_mtime_ns
    await score(double, rows, out)
    assert out.stat().st_mtime_ns == made


async def test_a_finished_job_makes_no_file_again_and_a_larger_limit_does(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    rows, out = written(tmp_path / "rows.parquet", pa.table({"n": range(50)})), tmp_path / "out.parquet"
    models.refused = {b'{"n":4}', b'{"n":21}'}
    made, done = 0, 0
    for limit, scored, failed in (
        (20, 19, 1),
        (20, 19, 1),
        (13, 19, 1),
        (43, 41, 2),
        (44, 42, 2),
        (None, 48, 2),
        (50, 48, 2),
    ):
        report = await score(double, rows, out, limit=limit)
        assert (report.scored, report.failed, report.resumed, report.finished) == (scored, failed, done, True)
        made, before = out.stat().st_mtime_ns, made
        assert (made == before) == (report.rows == done)
        done = report.rows
    # Nothing is left to try again among the first four.
    await score(double, rows, out, limit=4, retry_failed=True)
    assert out.stat().st_mtime_ns == made
    assert models.seen.total() == 50


async def test_a_retried_row_is_in_the_parquet_file(double: Endpoint[Any, Any], models: Models, tmp_path: Path) -> None:
    rows, out = written(tmp_path / "rows.parquet", pa.table({"n": range(9)})), tmp_path / "out.parquet"
    models.refused = {b'{"n":4}'}
    await score(double, rows, out)
    assert pq.read_table(out)["index"].to_pylist() == [0, 1, 2, 3, 5, 6, 7, 8]
    models.refused = set()
    await score(double, rows, out, retry_failed=True)
    assert pq.read_table(out).to_pylist() == doubled(9)


async def test_a_parquet_file_of_others_is_not_touched(double: Endpoint[Any, Any], tmp_path: Path) -> None:
    rows, out = written(tmp_path / "rows.parquet", pa.table({"n": range(9)})), tmp_path / "out.parquet"
    mine = written(out, pa.table({"mine": [1]})).read_bytes()
    with pytest.raises(BatchOutputError, match=r"out\.parquet exists without a journal"):
        await score(double, rows, out)
    assert out.read_bytes() == mine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "rows.parquet"]
    # A fresh job may replace it, also after it was interrupted.
    await score(double, rows, out, fresh=True, limit=4)
    await score(double, rows, out)
    assert pq.read_table(out).to_pylist() == doubled(9)
    out.write_bytes(mine)
    with pytest.raises(BatchOutputError, match="written by something else since the job began"):
        await score(double, rows, out)
    assert out.read_bytes() == mine


async def test_a_fresh_job_with_the_same_rows_makes_the_file_again(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    rows, out = written(tmp_path / "rows.parquet", pa.table({"n": [1, 2]})), tmp_path / "out.parquet"
    for _ in range(2):
        before = out.stat().st_mtime_ns if out.exists() else 0
        await score(double, rows, out, fresh=True)
        assert out.stat().st_mtime_ns > before
    assert models.seen.total() == 4


# Tables and iterables in


def records(count: int) -> Iterator[dict[str, int]]:
    for number in range(count):
        yield {"n": number}


async def records_later(count: int) -> AsyncIterator[dict[str, int]]:
    for number in range(count):
        if number % 100 == 0:
            await asyncio.sleep(0)
        yield {"n": number}


class Interchanged:
    """A table that has the DataFrame interchange protocol and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __dataframe__(self, **options: Any) -> Any:
        return self._table.__dataframe__(**options)


@pytest.mark.parametrize(
    "source",
    [
        lambda: pd.DataFrame({"n": range(ROWS)}),
        lambda: pl.DataFrame({"n": range(ROWS)}),
        lambda: pa.table({"n": range(ROWS)}),
        lambda: pa.record_batch({"n": range(ROWS)}),
        lambda: pa.table({"n": range(ROWS)}).to_reader(),
        lambda: Interchanged(pa.table({"n": range(ROWS)})),
        lambda: list(records(ROWS)),
        lambda: records(ROWS),
        lambda: records_later(ROWS),
    ],
    ids=["pandas", "polars", "arrow", "batch", "reader", "interchange", "list", "generator", "async"],
)
async def test_rows_from_python_are_scored_and_resumed(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path, source: Any
) -> None:
    out = tmp_path / "out.jsonl"
    report = await score(double, source(), out, limit=100)
    assert report.scored == 100
    report = await score(double, source(), out)
    assert (report.scored, report.resumed) == (ROWS, 100)
    assert lines_of(out) == doubled(ROWS)
    assert models.seen.total() == ROWS


async def test_missing_values_of_pandas_are_null(echo: Endpoint[Any, Any], models: Models, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, None], "b": ["x", None]}, index=["r", "s"])
    await score(echo, frame, tmp_path / "out.jsonl")
    assert set(models.seen) == {b'{"a":1.5,"b":"x"}', b'{"a":null,"b":null}'}


@pytest.mark.parametrize(
    "column",
    [
        lambda: pd.Series(["a", "b"], index=["r", "s"]),
        lambda: pl.Series(["a", "b"]),
        lambda: pa.array(["a", "b"]),
        lambda: pa.chunked_array([["a"], ["b"]]),
    ],
    ids=["pandas", "polars", "array", "chunked"],
)
async def test_a_column_is_an_iterable_of_its_values(
    echo: Endpoint[Any, Any], models: Models, tmp_path: Path, column: Any
) -> None:
    report = await score(echo, column(), tmp_path / "out.jsonl")
    assert report.scored == 2
    assert set(models.seen) == {b'"a"', b'"b"'}


class Cursor:
    """Documents of a database, of which `to_list` makes a list later."""

    def __aiter__(self) -> AsyncIterator[dict[str, int]]:
        return records_later(2)

    async def to_list(self) -> list[Any]:
        raise AssertionError("asked for a list")


async def test_what_can_become_a_list_is_not_always_a_column(double: Endpoint[Any, Any], tmp_path: Path) -> None:
    assert (await score(double, Cursor(), tmp_path / "out.jsonl")).scored == 2


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns of the same name"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), "two columns of the same name"),
        (pd.DataFrame({"a": [1, "secret"]}), "the table has a value that cannot be read"),
        (pa.table({"d": pa.array([10**7], pa.date32())}), "the table has a value that cannot be read"),
        (pa.array([10**7], pa.date32()), "the table has a value that cannot be read"),
    ],
    ids=["pandas-names", "arrow-names", "pandas-types", "arrow-date", "array-date"],
)
async def test_tables_that_cannot_be_read(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path, table: Any, said: str
) -> None:
    with pytest.raises(BatchInputError, match=said) as caught:
        await score(double, table, tmp_path / "out.jsonl")
    assert "secret" not in str(caught.value)
    assert not models.seen


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        ([{"n": 1}, {"n": 2}], [{"n": 1}, {"n": 3}], "last was"),
        ([{"n": 1}], [{"n": 1}, {"n": 2}], "rows was 1, is 2"),
        (pa.table({"n": [1]}), pa.table({"m": [1]}), "columns was"),
        (records(3), iter([{"n": 7}]), "first was"),
    ],
)
async def test_other_rows_are_refused(
    double: Endpoint[Any, Any], tmp_path: Path, before: Any, now: Any, difference: str
) -> None:
    await score(double, before, tmp_path / "out.jsonl", limit=1)
    with pytest.raises(BatchOutputError, match=f"belongs to another job: input .*{difference}"):
        await score(double, now, tmp_path / "out.jsonl")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_an_iterable_raises_ends_the_job_and_the_rows_before_are_kept(
    double: Endpoint[Any, Any], tmp_path: Path, asynchronous: bool
) -> None:
    def broken() -> Iterator[dict[str, int]]:
        yield from records(700)
        raise LookupError("the source broke")

    async def broken_later() -> AsyncIterator[dict[str, int]]:
        for record in broken():
            yield record

    source = broken_later() if asynchronous else broken()
    with pytest.raises(LookupError, match="the source broke"):
        await score(double, source, tmp_path / "out.jsonl")
    report = await score(double, records(700), tmp_path / "out.jsonl")
    assert report.resumed >= 256
    assert lines_of(tmp_path / "out.jsonl") == doubled(700)


async def test_a_row_does_not_wait_for_the_rows_behind_it(double: Endpoint[Any, Any], models: Models) -> None:
    """Each record is asked for when the one before was answered."""
    answered = asyncio.Event()

    async def one_by_one() -> AsyncIterator[dict[str, int]]:
        for number in range(3):
            answered.clear()
            yield {"n": number}
            await answered.wait()

    async def take(some: list[dict[str, Any]]) -> None:
        answered.set()

    report = await score(double, one_by_one(), take)
    assert report.scored == 3


async def test_a_stop_ends_an_iterable_that_waits(double: Endpoint[Any, Any], models: Models, tmp_path: Path) -> None:
    stop = asyncio.Event()
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[dict[str, int]]:
        try:
            yield {"n": 1}
            stop.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    report = await score(double, endless(), tmp_path / "out.jsonl", stop=stop)
    assert not report.finished
    assert ended.is_set()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"source": b"rows"}, "source must be files, a table, or an iterable of records; got <class 'bytes'>"),
        ({"source": {"n": [1]}}, "got <class 'dict'>"),
        ({"source": 7}, "got <class 'int'>"),
        ({"source": []}, "source must name at least one file"),
        ({"source": iter(()), "input_format": "csv"}, "input_format is for files; the source is an iterable"),
        ({"sink": 7}, "sink must be a path, a URI or a function; got <class 'int'>"),
        ({"sink": print, "output_format": "csv"}, "output_format must be jsonl, or left out, for a function"),
        ({"spool": "x"}, "spool is for output in S3 and for functions"),
        ({"sink": "out.jsonl.zst"}, "the output cannot be compressed"),
    ],
)
async def test_arguments_are_checked(
    echo: Endpoint[Any, Any], tmp_path: Path, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ParamValidationError, match=problem):
        await score(echo, **{"source": [{"n": 1}], "sink": tmp_path / "out.jsonl", **arguments})
    assert not list(tmp_path.iterdir())


# Functions


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_function_gets_every_record(double: Endpoint[Any, Any], asynchronous: bool) -> None:
    got: list[dict[str, Any]] = []

    async def take_later(some: list[dict[str, Any]]) -> None:
        await asyncio.sleep(0)
        got.extend(some)

    report = await score(double, records(500), take_later if asynchronous else got.extend)
    assert sorted(got, key=lambda record: record["index"]) == doubled(500)
    assert (report.scored, report.output) == (500, None)


async def test_rows_that_a_function_did_not_take_are_given_to_it_again(
    double: Endpoint[Any, Any], tmp_path: Path
) -> None:
    got: list[dict[str, Any]] = []

    def take(some: list[dict[str, Any]]) -> None:
        if len(got) > 200:
            raise LookupError("the database is gone")
        got.extend(some)

    with pytest.raises(LookupError, match="the database is gone"):
        await score(double, list(records(500)), take, spool=tmp_path)
    taken = len(got)
    report: Report = await score(double, list(records(500)), got.extend, spool=tmp_path)
    assert report.resumed == taken
    assert sorted(got, key=lambda record: record["index"]) == doubled(500)


@pytest.mark.parametrize("stopped_before", [False, True])
async def test_cancelling_does_not_wait_for_a_function_and_its_rows_stay_open(
    double: Endpoint[Any, Any], tmp_path: Path, stopped_before: bool
) -> None:
    taking, stop, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    got: list[dict[str, Any]] = []

    async def take(some: list[dict[str, Any]]) -> None:
        taking.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    job = asyncio.create_task(score(double, list(records(500)), take, spool=tmp_path, stop=stop, drain=0))
    await taking.wait()
    if stopped_before:
        stop.set()
        # The job ends its calls and then waits for the function.
        for _ in range(1000):
            await asyncio.sleep(0)
    job.cancel()
    await asyncio.wait([job], timeout=60)
    assert job.cancelled()
    assert ended.is_set()
    report = await score(double, list(records(500)), got.extend, spool=tmp_path)
    assert report.resumed == 0
    assert sorted(got, key=lambda record: record["index"]) == doubled(500)


async def test_answers_that_a_slow_function_kept_waiting_are_not_dropped_by_a_stop(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    stop, goes_on, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    got: list[dict[str, Any]] = []
    stalled: list[int] = []

    def take(some: list[dict[str, Any]]) -> None:
        assert goes_on.wait(60)
        got.extend(some)

    def see(progress: Progress) -> None:
        seen = models.seen.total()
        if progress.in_flight or stalled[-1:] != [seen]:
            stalled.clear()
        stalled.append(seen)
        if len(stalled) == 20 and not stop.is_set():
            stop.set()
            # After the calls' time limit.
            loop.call_later(0.3, goes_on.set)

    job = score(
        double, list(records(5000)), take, spool=tmp_path, stop=stop, drain=0.1, on_progress=see, progress_interval=0.01
    )
    report = await job
    assert not report.finished
    assert report.scored == len(got) == models.seen.total()


async def test_a_function_that_cancels_itself_ends_the_job(double: Endpoint[Any, Any], tmp_path: Path) -> None:
    async def take(some: list[dict[str, Any]]) -> None:
        raise asyncio.CancelledError

    with pytest.raises(BatchOutputError, match="what the sink returned was cancelled"):
        await score(double, list(records(2000)), take, spool=tmp_path)


async def test_a_function_whose_iterator_has_ended_ends_the_job(double: Endpoint[Any, Any], tmp_path: Path) -> None:
    def take(some: list[dict[str, Any]]) -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await score(double, list(records(2000)), take, spool=tmp_path)


async def test_the_reasons_of_failed_rows_outlive_a_job_that_calls_a_function(
    double: Endpoint[Any, Any], models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    await score(double, records(3), print)
    assert list(tmp_path.iterdir()) == []
    models.refused = {b'{"n":1}'}
    report = await score(double, records(3), print)
    assert [error["index"] for error in lines_of(Path(report.errors))] == [1]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [report.errors]
    with pytest.raises(BatchStoppedError) as caught:
        await score(double, records(1000), lambda written: None, max_failures=0)
    (note,) = caught.value.__notes__
    assert [error["index"] for error in lines_of(Path(note.removeprefix("rows that failed are listed in ")))] == [1]


# OpenAI's batch lines


def batch_line(custom_id: Any, **changes: Any) -> str:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {"n": 1}}
    return json.dumps({**line, **changes}) + "\n"


async def test_openai_batch_in_and_out(tmp_path: Path) -> None:
    asked: dict[str | None, bytes] = {}

    async def chat(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        asked[invocation.inference_id] = invocation.body
        if b"bad" in invocation.body:
            raise ContainerFailure(400, "not this one")
        return b'{"choices": []}', {"Content-Type": "application/json"}

    rows = tmp_path / "batch.jsonl"
    long = "x" * 65
    rows.write_text(
        batch_line("first")
        + batch_line("second", body={"bad": 1})
        + batch_line(long)
        + batch_line(7)
        + batch_line("get", method="GET")
        + batch_line("text", body="text")
    )
    async with (
        local_runtime({"chat": chat}) as runtime,
        Client(endpoint_url=runtime.url, **CLIENT_ARGUMENTS) as client,
    ):
        endpoint = client.endpoint("chat", serializer=JSON, deserializer=JSON)
        out = tmp_path / "out.jsonl"
        report = await score(endpoint, rows, out, input_format="openai-batch", output_format="openai-batch")
    assert (report.scored, report.failed) == (2, 4)
    # An id that is too long for the service is in the output alone.
    assert asked == {"first": b'{"n":1}', "second": b'{"bad":1}', None: b'{"n":1}'}
    first, third = lines_of(out)
    assert first["response"].pop("request_id")
    assert first == {
        "id": "batch_req_0",
        "custom_id": "first",
        "response": {"status_code": 200, "body": {"choices": []}},
        "error": None,
    }
    assert third["custom_id"] == long
    refused, *unreadable = lines_of(tmp_path / "out.jsonl.errors.jsonl")
    assert refused["response"]["status_code"] == 424
    assert (refused["custom_id"], refused["error"]["code"]) == ("second", "ModelError")
    assert [line["error"]["message"].partition(": ")[2] for line in unreadable] == [
        "custom_id must be text (InvokeEndpoint of endpoint chat)",
        "method must be POST (InvokeEndpoint of endpoint chat)",
        "body must be an object (InvokeEndpoint of endpoint chat)",
    ]
