"""Arrow and Parquet: round trips through pyarrow's own functions, refusals, and damaged tables."""

import io
import struct
from collections.abc import Callable
from datetime import UTC
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt.errors import DeserializationError
from aiosmrt.serializers import ARROW, PARQUET, ArrowCodec, ParquetCodec
from tests.endpoint.serializers.samples import TABLE, attempted, refused, unreadable

COLUMNS = st.one_of(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3),
    st.lists(st.none() | st.floats(allow_nan=False), min_size=3, max_size=3),
    st.lists(st.none() | st.text(), min_size=3, max_size=3),
    st.lists(st.none() | st.binary(), min_size=3, max_size=3),
    st.lists(st.none() | st.booleans(), min_size=3, max_size=3),
    st.lists(st.none() | st.lists(st.integers(0, 9)), min_size=3, max_size=3),
    st.lists(st.datetimes(timezones=st.just(UTC)), min_size=3, max_size=3),
)


def read_arrow(body: bytes) -> Any:
    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()


def read_parquet(body: bytes) -> Any:
    return pyarrow.parquet.read_table(io.BytesIO(body))


READERS: dict[Any, Callable[[bytes], Any]] = {
    ARROW: read_arrow,
    ArrowCodec(compression="lz4"): read_arrow,
    ArrowCodec(compression="zstd"): read_arrow,
    PARQUET: read_parquet,
    ParquetCodec(compression=None): read_parquet,
    ParquetCodec(compression="zstd"): read_parquet,
}
every_table_codec = pytest.mark.parametrize("codec", READERS, ids=repr)


@every_table_codec
@given(columns=st.dictionaries(st.text(), COLUMNS, min_size=1, max_size=4))
def test_tables_round_trip(codec: Any, columns: dict[str, list[Any]]) -> None:
    table = pa.table(columns)
    body = codec.serialize(columns)
    assert body == codec.serialize(table)
    assert READERS[codec](body).equals(table)
    assert codec.deserialize(body, codec.content_type).equals(table)


class Exported:
    """A table of another library, with only the Arrow interface."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


@every_table_codec
@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        TABLE.to_batches()[0],
        pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]),
        Exported(TABLE),
        {"age": np.array([29, 0, 31]), "name": pa.array(["a", "", None])},
        {"age": (29, None, 31), "name": pa.chunked_array([["a"], ["", None]])},
    ],
    ids=["table", "batch", "chunks", "capsule", "arrays", "sequences"],
)
def test_objects_that_convert_to_tables(codec: Any, data: Any) -> None:
    table = codec.deserialize(codec.serialize(data), "")
    assert table.column_names == ["age", "name"]
    assert table.column("name").to_pylist() == ["a", "", None]
    assert table.column("age").to_pylist() in ([29, None, 31], [29, 0, 31])


@every_table_codec
def test_a_reader_is_read_once(codec: Any) -> None:
    reader = pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(max_chunksize=1))
    assert codec.deserialize(codec.serialize(reader), "").equals(TABLE)
    columns = {"age": iter([29, None, 31]), "name": (name for name in ("a", "", None))}
    assert codec.deserialize(codec.serialize(columns), "").equals(TABLE)


@every_table_codec
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([[1, 2]], "data must be a table; got a list"),
        (b"bytes", "data must be a table; got a bytes"),
        ({"a": [1], "b": [1, "x"]}, "data[1] cannot be a column"),
        ({"a": [1], 2: [1]}, "data[1] cannot be a column"),
        ({"a": [10**30]}, "data[0] cannot be a column"),
        ({"a": ["\ud800"]}, "data[0] cannot be a column"),
        ({"\ud800": [1]}, "data[0] cannot be a column"),
        ({"a": np.zeros((2, 2))}, "data[0] cannot be a column"),
        ({"a": 7}, "data[0] cannot be a column"),
        ({"a": [1], "b": [1, 2]}, "data has columns of different lengths"),
    ],
)
def test_objects_that_do_not_convert_to_a_table(codec: Any, data: Any, said: str) -> None:
    assert refused(data, codec).startswith(said)


def test_types_that_parquet_lacks_are_refused() -> None:
    table = pa.table({"a": pa.array([None], pa.month_day_nano_interval())})
    assert "a type that the format lacks" in refused(table, PARQUET)
    assert ARROW.deserialize(ARROW.serialize(table), "").equals(table)


@every_table_codec
@given(data=st.data())
def test_damaged_tables_are_errors_or_tables(codec: Any, data: st.DataObject) -> None:
    body = bytearray(codec.serialize(TABLE))
    places = st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, max_size=3)):
        body[place] = value
    body = body[: data.draw(st.integers(0, len(body)))]
    outcome = attempted(lambda: codec.deserialize(bytes(body), ""))
    if not isinstance(outcome, DeserializationError):
        outcome.validate(full=True)


@pytest.mark.parametrize("codec", [ARROW, ParquetCodec(compression=None)], ids=repr)
def test_malformed_text_does_not_get_into_a_table(codec: Any) -> None:
    body = codec.serialize({"name": ["Ahnungslos"]})
    assert "the response is not a" in unreadable(body.replace(b"hnungslos", b"\xff" * 9), codec).lower()


def test_offsets_outside_a_table_are_refused() -> None:
    body = ARROW.serialize({"name": ["a" * 77, "b" * 155]})
    offsets = struct.Struct("<iii")
    assert body.count(offsets.pack(0, 77, 232)) == 1
    unreadable(body.replace(offsets.pack(0, 77, 232), offsets.pack(0, 77, 2**30)), ARROW)
