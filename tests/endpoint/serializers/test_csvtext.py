"""CSV: round trips through Python's csv, rows and fields, and error messages."""

import csv
import decimal
import io
import math
from collections.abc import Iterator
from datetime import date
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from aiosmrt.serializers import CSV, JSON_LINES, CSVCodec
from tests.endpoint.serializers.samples import Frame, refused, unreadable

# A leading byte order mark is dropped, which test_codecs.py tests.
FIELDS = st.text(st.characters(exclude_characters="\ufeff", exclude_categories=["Cs"])) | st.text('",;\t\r\n ab')
ROWS = st.lists(st.lists(FIELDS, min_size=1), min_size=1)


@given(ROWS, st.sampled_from([",", ";", "\t", "|", " ", "é"]))
def test_csv_round_trip(rows: list[list[str]], delimiter: str) -> None:
    codec = CSVCodec(delimiter=delimiter)
    body = codec.serialize(rows)
    assert list(csv.reader(io.StringIO(body.decode(), newline=""), delimiter=delimiter)) == rows
    assert codec.deserialize(body, "text/csv") == rows


@given(ROWS)
def test_csv_of_other_writers_is_read(rows: list[list[str]]) -> None:
    for dialect in ("excel", "unix"):
        written = io.StringIO(newline="")
        csv.writer(written, dialect).writerows(rows)
        assert CSV.deserialize(written.getvalue().encode(), "text/csv") == rows


@given(st_numpy.arrays(st.sampled_from(["f2", "f4", "f8", "i8", "u1"]), st_numpy.array_shapes(min_dims=2, max_dims=2)))
def test_csv_of_an_array_has_all_its_digits(array: Any) -> None:
    body = CSV.serialize(array)
    read = np.loadtxt(io.BytesIO(body), delimiter=",", dtype=array.dtype, ndmin=2)
    assert np.array_equal(read, array, equal_nan=array.dtype.kind == "f")
    assert CSV.serialize(list(array)) == CSV.serialize(iter(array)) == body


def test_csv_of_short_floats_is_short() -> None:
    assert CSV.serialize(np.array([[0.1, 0.2]], "f4")) == b"0.1,0.2"
    assert CSV.serialize(np.ma.masked_array([[0.1, 0.2]], [[False, True]], dtype="f4")).endswith(b",")


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([1, 2.5, "a", None, True, math.nan], b"1,2.5,a,,True,nan"),
        ((n for n in (1, 2)), b"1,2"),
        ((iter(row) for row in ([1, 2], [3])), b"1,2\n3"),
        (["a", "b"], b"a,b"),
        ([[""]], b'""'),
        ([[None]], b'""'),
        ([decimal.Decimal("1.10"), Fraction(1, 3), date(2020, 1, 2), Text("a,b")], b'1.10,1/3,2020-01-02,"a,b"'),
        (range(3), b"0,1,2"),
        (np.array([1, 2]), b"1,2"),
        (np.array([(1, 0.5), (2, 0.25)], [("a", "i4"), ("b", "f8")]), b"1,0.5\n2,0.25"),
        (np.array([["a", None]], dtype=object), b"a,"),
        ([np.array([1, 2]), [3, 4]], b"1,2\n3,4"),
        ([np.float32(0.1), np.int8(3), np.str_("a")], b"0.1,3,a"),
        ({"a": 1, "b": 2}.values(), b"1,2"),
        ("1,2\n", b"1,2\n"),
        (b"1,2\n", b"1,2\n"),
        (bytearray(b"1"), b"1"),
    ],
)
def test_csv_of_other_objects(data: Any, expected: bytes) -> None:
    assert CSV.serialize(data) == expected


class Tensor:
    """An array of another library, whose items are arrays too, those of a single axis included."""

    def __init__(self, values: Any, *, converts: bool = True) -> None:
        self._values = np.asarray(values)
        self._converts = converts

    @property
    def ndim(self) -> int:
        return self._values.ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if not self._converts:
            raise RuntimeError("secret")
        return self._values

    def __iter__(self) -> Iterator[Any]:
        if not self.ndim:
            raise TypeError("iteration over a tensor without axes")
        return (Tensor(values, converts=self._converts) for values in self._values)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (Tensor([[1, 2], [3, 4]]), b"1,2\n3,4"),
        (Tensor([1, 2]), b"1,2"),
        ([Tensor([1, 2]), Tensor([3, 4])], b"1,2\n3,4"),
        (Tensor(np.array([[0.1]], "f4")), b"0.1"),
    ],
)
def test_arrays_of_other_libraries_are_read_as_those_of_numpy(data: Any, expected: bytes) -> None:
    assert CSV.serialize(data) == expected


def test_json_lines_of_an_array_of_another_library() -> None:
    assert JSON_LINES.serialize(Tensor([[1, 2], [3, 4]])) == b"[1,2]\n[3,4]"
    assert JSON_LINES.serialize(Tensor([1, 2])) == b"1\n2"


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (np.array([["2020-01-01", "NaT"]], "M8[ns]"), b"2020-01-01T00:00:00.000000000,NaT"),
        (np.array(["2020-01-01"], "M8[s]"), b"2020-01-01T00:00:00"),
        (np.array(["2020-01-01"], "M8[D]"), b"2020-01-01"),
        (np.array([[1]], "m8[ns]"), b"1 nanoseconds"),
        (np.array([[0.1, 0.2]], "f2"), b"0.1,0.2"),
        (np.array([[0.1]], "f4"), b"0.1"),
        (np.array([[1 + 2j]]), b"(1+2j)"),
        (np.array([[True, False]]), b"True,False"),
        (np.array([[math.nan, math.inf]]), b"nan,inf"),
        (np.array([["a", "b"]]), b"a,b"),
        (np.arange(8).reshape(2, 4)[:, ::2], b"0,2\n4,6"),
        (np.array([[1, 2]], ">i4"), b"1,2"),
        ([True, None, 1.0], b"True,,1.0"),
    ],
    ids=str,
)
def test_csv_is_what_the_sagemaker_sdk_sends(data: Any, sent: bytes) -> None:
    """The bytes are those of CSVSerializer of sagemaker 2.257.7."""
    assert CSV.serialize(data) == sent


class Plain:
    """An object without a text form."""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "data must have fields or rows; got an empty list"),
        (np.zeros((0, 3)), "data must have fields or rows; got an empty ndarray"),
        ([[1], []], "data[1] must have fields; got an empty list"),
        (np.zeros((3, 0)), "data[0] must have fields; got an empty list"),
        (7, "data must be an ordered iterable of fields or rows; got a int"),
        (np.array(7), "data must be an ordered iterable of fields or rows; got a ndarray"),
        ({"a": 1}, "data must be an ordered iterable of fields or rows; got a dict"),
        ({1, 2}, "data must be an ordered iterable of fields or rows; got a set"),
        (Frame(), "data must be an ordered iterable of fields or rows; got a Frame"),
        ([[1], 2], "data[1] must be an ordered iterable of fields; got a int"),
        ([[1], "a,b"], "data[1] must be an ordered iterable of fields; got a str"),
        ([1, [2]], "data[1] must have a text form; got a list"),
        ([{"a": 1}], "data[0] must have a text form; got a dict"),
        ([[1, b"a"]], "data[0][1] must have a text form; got a bytes"),
        ([[1, 2], [3, Plain()]], "data[1][1] must have a text form; got a Plain"),
        (np.zeros((2, 2, 2)), "data[0][0] must have a text form; got a list"),
        (np.array([b"a"]), "data[0] must have a text form; got a bytes"),
        (pa.table({"a": [1]}).to_reader(), "data[0] must have a text form; got a RecordBatch"),
        (pa.array([{"a": 1}]), "data[0] must have a text form; got a StructScalar"),
        ([np.array([(1, 0.5)], [("a", "i4"), ("b", "f8")])[0]], "data[0] must have a text form; got a void"),
        ([Tensor(1), Tensor(2)], "data[0] must have a text form; got a Tensor"),
        (Tensor(1), "data must be an ordered iterable of fields or rows; got a Tensor"),
        (Tensor([1], converts=False), "data cannot be converted to an array of NumPy; got a Tensor"),
        ([[1], [2, 10**5000]], "data[1] contains an integer with more digits than Python writes"),
        ([10**5000], "data contains an integer with more digits than Python writes"),
    ],
)
def test_csv_errors_name_the_fault_and_its_position(data: Any, said: str) -> None:
    assert refused(data, CSV) == said


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"", []),
        (b"0.5", [["0.5"]]),
        (b"a,b\r\n\r\nc,\r\n", [["a", "b"], ["c", ""]]),
        (b"a\rb", [["a"], ["b"]]),
        (b'"a\n\nb",""\n', [["a\n\nb", ""]]),
        (b'""\n', [[""]]),
    ],
)
def test_csv_is_read(body: bytes, rows: list[list[str]]) -> None:
    assert CSV.deserialize(body, "text/csv") == rows


@pytest.mark.parametrize(("body", "line"), [(b'a,b\n"c', 2), (b'"a"b,c\n', 1), (b"a\n" + b"x" * 200_000, 2)])
def test_malformed_csv_is_reported_by_line(body: bytes, line: int) -> None:
    assert f"not CSV at line {line}," in unreadable(body, CSV)
