"""Tables of pandas, polars and pyarrow: their rows in CSV and JSON, and slices of them."""

import io
import json
import math
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from importlib import import_module
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
import pytest

from aiosmrt.endpoint import batches
from aiosmrt.errors import ParamValidationError
from aiosmrt.serializers import ARROW, CSV, JSON, JSON_LINES, PARQUET, CSVCodec, JSONCodec
from tests.endpoint.serializers.samples import refused

Make = Callable[[dict[str, Any]], Any]


def pandas_frame(columns: dict[str, Any]) -> Any:
    return import_module("pandas").DataFrame(columns)


def polars_frame(columns: dict[str, Any]) -> Any:
    return import_module("polars").DataFrame(columns)


def record_batch(columns: dict[str, Any]) -> Any:
    return pa.record_batch(columns)


def makers(*makes: Make) -> list[Any]:
    """Test parameters, skipped if their library is not installed; pyarrow always is."""
    names = {pandas_frame: "pandas", polars_frame: "polars"}
    return [pytest.param(make, id=make.__name__, marks=[skip_without(names.get(make, "pyarrow"))]) for make in makes]


def skip_without(module: str) -> pytest.MarkDecorator:
    try:
        import_module(module)
    except ImportError:
        return pytest.mark.skip(f"{module} is not installed")
    return pytest.mark.skipif(False, reason="installed")


ARROW_LIKE = [pa.table, record_batch, polars_frame]
every_frame = pytest.mark.parametrize("make", makers(pandas_frame, *ARROW_LIKE))
every_arrow_like_frame = pytest.mark.parametrize("make", makers(*ARROW_LIKE))
with_pandas = skip_without("pandas")

COLUMNS = {"age": [29, 31, 37], "income": [3.5, 4.0, 0.1], "name": ["a", 'b, "c"', "é"]}
ROWS = [[29, 3.5, "a"], [31, 4.0, 'b, "c"'], [37, 0.1, "é"]]


@every_frame
def test_csv_of_a_frame_is_that_of_its_rows(make: Make) -> None:
    body = CSV.serialize(make(COLUMNS))
    assert body.removesuffix(b"\n") == CSV.serialize(ROWS)
    assert CSV.deserialize(body, "text/csv") == [[str(value) for value in row] for row in ROWS]
    assert CSVCodec(delimiter=";").serialize(make({"a": [1], "b": [2]})).removesuffix(b"\n") == b"1;2"


@with_pandas
def test_csv_of_pandas_is_what_the_sagemaker_sdk_sends() -> None:
    import pandas as pd  # type: ignore[import-not-found, import-untyped, unused-ignore]

    frame = pd.DataFrame(
        {
            "float": [1.5, math.nan, -math.inf],
            "short": pd.Series([0.1, 0.2, 1e10], dtype="float32"),
            "text": ["a", None, 'b,"c"\nd'],
            "time": pd.to_datetime(["2020-01-01", None, "2020-01-02"]),
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "flag": [True, False, True],
            "kind": pd.Categorical(["x", "y", "x"]),
            "object": [Decimal("1.5"), None, date(2020, 1, 1)],
        },
        index=[7, 8, 9],
    )
    # This is how its CSVSerializer makes the body of a DataFrame.
    assert CSV.serialize(frame) == frame.to_csv(header=False, index=False).encode()
    assert CSV.serialize(frame[frame["flag"]]) == frame[frame["flag"]].to_csv(header=False, index=False).encode()


@every_arrow_like_frame
def test_csv_of_missing_and_short_values(make: Make) -> None:
    frame = make(
        {
            "a": pa.array([0.1, None, math.nan], pa.float32()).to_pylist()
            if make is polars_frame
            else pa.array([0.1, None, math.nan], pa.float32()),
            "b": [True, None, False],
        }
    )
    if make is polars_frame:
        import polars  # type: ignore[import-not-found, unused-ignore]

        frame = frame.with_columns(polars.col("a").cast(polars.Float32))
    first, *others = CSV.deserialize(CSV.serialize(frame), "text/csv")
    assert first == ["0.1", "True"]
    assert [[value.lower() for value in row] for row in others] == [["", ""], ["nan", "false"]]


@every_frame
def test_json_of_a_frame_is_a_list_of_its_rows(make: Make) -> None:
    records = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    frame = make(COLUMNS)
    assert json.loads(JSON.serialize(frame)) == records
    assert json.loads(JSON.serialize({"instances": frame, "parts": [frame]})) == {
        "instances": records,
        "parts": [records],
    }
    assert JSON_LINES.deserialize(JSON_LINES.serialize(frame), "application/jsonlines") == records


@every_frame
def test_json_of_missing_values_is_null(make: Make) -> None:
    frame = make({"a": [1.5, None], "b": ["x", None]})
    assert json.loads(JSON.serialize(frame)) == [{"a": 1.5, "b": "x"}, {"a": None, "b": None}]


@every_frame
def test_infinity_is_found_in_a_frame(make: Make) -> None:
    frame = make({"a": [1.5, math.inf]})
    assert refused({"x": frame}, JSON).startswith("data[0][1][0] is NaN or infinite")
    assert json.loads(JSONCodec(allow_nan=True).serialize(frame)) == [{"a": 1.5}, {"a": math.inf}]


@every_frame
def test_json_lines_are_not_made_of_an_empty_frame(make: Make) -> None:
    frame = make({"a": [1]})
    empty = frame[:0] if make is pandas_frame else frame.slice(0, 0)
    assert refused(empty, JSON_LINES) == "data must have values; got an empty list"
    assert JSON.serialize(empty) == b"[]"


OUT_OF_RANGE = [
    pa.array([10**7], pa.date32()),
    pa.array([2**62], pa.timestamp("s")),
    pa.array([2**62], pa.duration("s")),
    pa.array([1], pa.timestamp("s", "No/Zone")),
    pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]),
]


@pytest.mark.parametrize("values", OUT_OF_RANGE, ids=["date", "timestamp", "duration", "zone", "text"])
@pytest.mark.parametrize("codec", [CSV, JSON, JSON_LINES])
def test_a_value_that_python_cannot_express(values: Any, codec: Any) -> None:
    table = pa.table({"secret": ["a"], "t": values})
    said = "column 1 of data has a value that Python cannot express"
    assert refused(table, codec) == refused(table.to_batches()[0], codec) == said
    if codec is JSON:
        assert refused({"x": table}, JSON) == said


@skip_without("polars")
@pytest.mark.parametrize("codec", [CSV, JSON, JSON_LINES])
def test_a_value_of_polars_that_python_cannot_express(codec: Any, capfd: pytest.CaptureFixture[str]) -> None:
    import polars

    for values in (
        polars.Series([10**7]).cast(polars.Date),
        polars.Series([2**62]).cast(polars.Datetime("ms")),  # polars panics, which is no Exception
    ):
        frame = polars.DataFrame({"t": values})
        assert refused(frame, codec) == "column 0 of data has a value that Python cannot express"


@with_pandas
@pytest.mark.parametrize("codec", [CSV, JSON, JSON_LINES])
def test_a_value_of_pandas_that_python_cannot_express(codec: Any) -> None:
    import pandas as pd

    for values in (OUT_OF_RANGE[0], OUT_OF_RANGE[4]):
        frame = pd.DataFrame({"t": pd.Series(pd.arrays.ArrowExtensionArray(values))})
        assert refused(frame, codec) == "data has a value that Python cannot express"


@with_pandas
@pytest.mark.parametrize("codec", [ARROW, PARQUET])
def test_the_index_of_pandas_is_not_sent(codec: Any) -> None:
    import pandas as pd

    frame = pandas_frame(COLUMNS)
    for index in (["x", "y", "z"], [7, 3, 5], pd.MultiIndex.from_tuples([(1, 2), (3, 4), (5, 6)])):
        sent = codec.deserialize(codec.serialize(frame.set_axis(index)), codec.content_type)
        assert sent.to_pydict() == COLUMNS


@with_pandas
def test_json_of_every_kind_of_pandas_column() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "i": pd.Series([1, 2], dtype="int32"),
            "n": pd.array([1, None], dtype="Int64"),
            "f": pd.Series([0.5, math.nan], dtype="float32"),
            "b": [True, False],
            "s": pd.array(["x", None], dtype="string"),
            "o": [{"a": [1]}, None],
            "t": pd.to_datetime(["2020-01-01", None]),
        }
    )
    assert json.loads(JSONCodec(default=str).serialize(frame)) == [
        {"i": 1, "n": 1, "f": 0.5, "b": True, "s": "x", "o": {"a": [1]}, "t": "2020-01-01 00:00:00"},
        {"i": 2, "n": None, "f": None, "b": False, "s": None, "o": None, "t": None},
    ]
    assert refused(frame, JSON) == "data[0][6] is of type Timestamp, which JSON lacks"


@every_frame
@pytest.mark.parametrize("codec", [ARROW, PARQUET])
def test_tables_of_a_frame(make: Make, codec: Any) -> None:
    body = codec.serialize(make(COLUMNS))
    assert codec.deserialize(body, codec.content_type).to_pydict() == COLUMNS
    if codec is PARQUET:
        assert pyarrow.parquet.read_table(io.BytesIO(body)).to_pydict() == COLUMNS


@every_frame
def test_an_empty_frame_is_not_a_body_of_csv(make: Make) -> None:
    for empty in (make({"a": [1]})[:0] if make is pandas_frame else make({"a": [1]}).slice(0, 0), make({})):
        assert refused(empty, CSV).startswith("data must have rows and columns; got an empty ")


@every_frame
def test_a_cell_without_a_text_form(make: Make) -> None:
    assert "[1]" in refused(make({"a": [[1], [2]]}), CSV) or "[0]" in refused(make({"a": [[1], [2]]}), CSV)
    assert "got a bytes" in refused(make({"b": [b"secret"]}), CSV)


def test_columns_of_the_same_name_are_refused() -> None:
    frames = [pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])]
    frames.append(frames[0].to_batches()[0])
    for frame in frames:
        for codec in (JSON, JSON_LINES):
            assert refused(frame, codec) == "data has two columns of the same name"
        assert CSV.serialize(frame) == b"1,2"


@with_pandas
def test_columns_of_the_same_name_in_pandas() -> None:
    import pandas as pd

    frame = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert refused(frame, JSON) == "data has two columns of the same name"
    assert CSV.serialize(frame) == b"1,2\n"
    # As names in JSON, these are the same.
    frame = pd.DataFrame([[1, 2]], columns=[1, "1"])
    assert refused(frame, JSON) == refused(frame, JSON_LINES) == "data has two columns of the same name"


@every_frame
@pytest.mark.parametrize(("rows", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (100, [3])])
def test_batches(make: Make, rows: int, sizes: list[int]) -> None:
    frame = make(COLUMNS)
    parts = list(batches(frame, rows))
    assert [len(part) for part in parts] == sizes
    assert {type(part) for part in parts} == {type(frame)}
    assert b"\n".join(CSV.serialize(part).removesuffix(b"\n") for part in parts) == CSV.serialize(ROWS)
    assert list(batches(make({"a": [1]})[:0] if make is pandas_frame else frame.slice(0, 0), rows)) == []


@with_pandas
def test_batches_of_a_frame_with_an_index() -> None:
    frame = pandas_frame(COLUMNS).set_index("name").loc[["é", "a"]]
    assert [CSV.serialize(part) for part in batches(frame, 1)] == [b"37,0.1\n", b"29,3.5\n"]


@pytest.mark.parametrize("frame", [[[1, 2]], {"a": [1]}, "a", None, 7, pa.array([1])])
def test_batches_of_something_else(frame: Any) -> None:
    with pytest.raises(ParamValidationError, match=r"frame must be a DataFrame of pandas or polars.*; got <class"):
        batches(frame, 1)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, None, "1"])
def test_batches_of_a_faulty_size(rows: Any) -> None:
    with pytest.raises(ParamValidationError, match="rows must be an integer >= 1; got"):
        batches(pa.table({"a": [1]}), rows)
