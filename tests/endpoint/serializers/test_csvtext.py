"""CSV: round trips through Python's csv, rows and fields, and error messages."""

import csv
import decimal
import io
import math
from datetime import date
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from aiosmrt.serializers import CSV, CSVCodec
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
