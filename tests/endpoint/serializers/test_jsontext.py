"""JSON and JSON Lines: round trips through Python's json, and error messages."""

import io
import json
import math
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from aiosmrt.serializers import CSV, JSON, JSON_LINES, JSONCodec, JSONLinesCodec
from tests.endpoint.serializers.samples import CIRCLE, JSON_VALUES, Color, nested, refused, unreadable


@given(JSON_VALUES)
def test_json_round_trip(value: Any) -> None:
    body = JSON.serialize(value)
    assert json.loads(body) == value
    assert JSON.deserialize(body, "application/json") == value
    assert JSON.deserialize(json.dumps(value, indent=2).encode(), "application/json; charset=utf-8") == value


TEXT = st.text(st.characters(exclude_categories=[]) | st.sampled_from(["\ud83d", "\ude00", '"', "\\", "é"]))
CHARSETS = st.sampled_from(["", "; charset=ascii", "; charset=iso-8859-1", "; charset=utf-16", "; charset=koi8-r"])


@given(TEXT, TEXT, CHARSETS)
def test_every_text_is_sent_and_read(key: str, value: str, charset: str) -> None:
    """JSON has escapes for lone surrogates (RFC 8259, section 8.2), and for characters that a charset lacks."""
    data = {key: [value, {"x": value}]}
    expected = json.loads(json.dumps(data))  # two lone surrogates in a row become one character
    codec = JSONCodec(content_type=f"application/json{charset}")
    assert codec.deserialize(codec.serialize(data), codec.content_type) == expected
    lines = JSONLinesCodec(content_type=f"application/jsonlines{charset}")
    assert lines.deserialize(lines.serialize([data, data]), lines.content_type) == [expected] * 2


def test_json_in_text_and_files_with_lone_surrogates() -> None:
    text = '{"a": "é\ud83d"}'
    assert JSON_LINES.deserialize(JSON_LINES.serialize(text), "application/jsonlines") == [{"a": "é\ud83d"}]
    assert JSON.deserialize(JSON.serialize(io.StringIO(text)), "application/json") == {"a": "é\ud83d"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", ""])
@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[Infinity, -Infinity, NaN]", '{"p": [1.5, NaN]}', "1e999"])
def test_numbers_that_a_model_wrote_are_read(text: str, content_type: str) -> None:
    assert repr(JSON.deserialize(text.encode(), content_type)) == repr(json.loads(text))
    assert repr(JSON_LINES.deserialize(f"{text}\n{text}".encode(), content_type)) == repr([json.loads(text)] * 2)


@given(
    st_numpy.arrays(
        st_numpy.integer_dtypes() | st_numpy.floating_dtypes(sizes=(16, 32, 64)) | st_numpy.boolean_dtypes(),
        st_numpy.array_shapes(min_dims=0, min_side=0),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_json_of_an_array_is_that_of_its_list(array: Any) -> None:
    assert json.loads(JSON.serialize(array)) == array.tolist()
    assert json.loads(JSON.serialize({"instances": [array]})) == {"instances": [array.tolist()]}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (np.float32(0.5), "0.5"),
        ([np.int64(7), np.bool_(True), np.str_("a"), np.float64(0.25)], '[7,true,"a",0.25]'),
        (np.array([[1, 2], [3, 4]]).T, "[[1,3],[2,4]]"),
        (np.array(["a", None], dtype=object), '["a",null]'),
        (np.ma.masked_array([1, 2], [False, True]), "[1,null]"),
        ((1, (2, 3)), "[1,[2,3]]"),
        ({1: "a", None: "b", False: "c"}, '{"1":"a","null":"b","false":"c"}'),
        ("é\u2028", '"é\u2028"'),
        ("hi \ud83d", '"hi \\ud83d"'),
        ({"a\udc00": ["é", "\ud800b"]}, '{"a\\udc00":["é","\\ud800b"]}'),
        ("\ude00\ud83d", '"\\ude00\\ud83d"'),
    ],
)
def test_json_of_other_objects(data: Any, expected: str) -> None:
    assert JSON.serialize(data).decode() == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({1, 2}, "data is of type set, which JSON lacks"),
        ({"a": [0, {"b": [1, b"x"]}]}, "data[0][1][0][1] is of type bytes, which JSON lacks"),
        ([[1.0, 2.0], [3.0, math.nan]], "data[1][1] is NaN or infinite"),
        ({"scores": np.array([[0.0, math.inf]])}, "data[0][0][1] is NaN or infinite"),
        ([np.float32("nan")], "data[0] is NaN or infinite"),
        ([1, np.datetime64("2020-01-01")], "data[1] is of type datetime64, which JSON lacks"),
        ([1, np.longdouble(1)], "data[1] is of type longdouble, which JSON lacks"),
        (np.array([1, 1j]), "data[0] is of type complex, which JSON lacks"),
        ([{"a": 1, (1, 2): 3}], "data[0] has an invalid JSON key: number 1 is of type tuple"),
        ([0, 10**5000], "data[1] is an integer with more digits than Python writes"),
        (CIRCLE, "data contains itself, or has a fault more than 100 levels down"),
        (Color.RED, "data is of type Color, which JSON lacks"),
        ((i for i in range(3)), "data is of type generator, which JSON lacks"),
    ],
)
def test_json_errors_name_the_fault_and_its_position(data: Any, said: str) -> None:
    assert refused(data).startswith(said)


def test_json_of_any_depth_is_written_or_refused() -> None:
    assert JSON.serialize(nested(90, 1)) == b"[" * 90 + b"1" + b"]" * 90
    assert refused(nested(90, {1})) == f"data{'[0]' * 90} is of type set, which JSON lacks"
    assert "more than 100 levels down" in refused(nested(100_000, 1))
    assert "nested too deeply" in unreadable(b"[" * 200_000)


@given(st.integers(0, 60), st.integers(1, 60))
def test_json_reports_the_first_fault(first: int, more: int) -> None:
    values: list[Any] = list(range(200))
    values[first], values[first + more] = {1}, {2}
    assert refused({"a": 1, "b": values}).startswith(f"data[1][{first}] is of type set")


def test_nan_is_sent_on_request_and_always_read() -> None:
    values = [math.inf, -math.inf]
    assert JSONCodec(allow_nan=True).serialize([*values, math.nan]) == b"[Infinity,-Infinity,NaN]"
    assert JSON.deserialize(b"[Infinity, -Infinity]", "") == values
    assert math.isnan(JSON.deserialize(b"NaN", ""))


def test_default_is_called_for_unknown_types() -> None:
    asked = []

    def default(value: Any) -> object:
        asked.append(value)
        return {"iso": value.isoformat()}

    codec = JSONCodec(default=default)
    assert codec.serialize([np.arange(2), date(2020, 1, 2)]) == b'[[0,1],{"iso":"2020-01-02"}]'
    assert asked == [date(2020, 1, 2)]
    assert JSONCodec(default=float).serialize([np.longdouble(0.5)]) == b"[0.5]"


@pytest.mark.parametrize(
    "default",
    [lambda value: value.missing, lambda value: {1, 2}, lambda value: value, lambda value: math.nan],
    ids=["raises", "gives a set", "gives the same", "gives NaN"],
)
def test_a_default_that_does_not_help(default: Callable[[Any], object]) -> None:
    said = refused([1, Color.RED], JSONCodec(default=default))
    assert said == "data[1] is of type Color, for which default returned nothing that JSON can express"


class Moody:
    """A function that fails on its first call."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, value: Any) -> str:
        if not self.called:
            self.called = True
            raise KeyError
        return "text"


def test_a_default_that_helps_only_the_second_time() -> None:
    assert refused({"a": Color.RED}, JSONCodec(default=Moody())) == (
        "data is of type dict, for which default returned nothing that JSON can express"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected JSON, got an empty response"),
        (b"  ", "the response is not JSON at line 1, column 3"),
        (b'{"a": 1,\n "b": }', "the response is not JSON at line 2, column 7"),
        (b"[1] [2]", "the response is not JSON at line 1, column 5"),
        (b"1" * 5000, "the response contains an integer with more digits than Python reads"),
    ],
)
def test_malformed_json_is_reported_by_position(body: bytes, said: str) -> None:
    assert unreadable(body) == said


# --- JSON Lines -------------------------------------------------------------------------------------------------------


@given(st.lists(JSON_VALUES, min_size=1))
def test_json_lines_round_trip(values: list[Any]) -> None:
    body = JSON_LINES.serialize(values)
    assert [json.loads(line) for line in body.split(b"\n")] == values
    assert JSON_LINES.deserialize(body, "application/jsonlines") == values
    assert JSON_LINES.deserialize(body.replace(b"\n", b"\r\n \n") + b"\n\n", "") == values


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ((n for n in (1, 2)), b"1\n2"),
        (np.array([[1, 2], [3, 4]]), b"[1,2]\n[3,4]"),
        (np.array([0.5, 0.25], "f4"), b"0.5\n0.25"),
        ({"a": 1, "b": 2}.values(), b"1\n2"),
        ('{"a":1}', b'{"a":1}'),
        (b'{"a":1}', b'{"a":1}'),
        ("", b""),
    ],
)
def test_json_lines_of_other_objects(data: Any, expected: bytes) -> None:
    assert JSON_LINES.serialize(data) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "data must have values; got an empty list"),
        ({"a": 1}, "data must be an ordered iterable of values; got a dict"),
        ({1, 2}, "data must be an ordered iterable of values; got a set"),
        (7, "data must be an ordered iterable of values; got a int"),
        (np.float64(7), "data must be an ordered iterable of values; got a float64"),
        (np.array(7), "data must be an ordered iterable of values; got a ndarray"),
        ([1, {"a": {2}}], "data[1][0] is of type set, which JSON lacks"),
        ([1, math.nan], "data[1] is NaN or infinite"),
    ],
)
def test_json_lines_errors_name_the_fault_and_its_position(data: Any, said: str) -> None:
    assert refused(data, JSON_LINES).startswith(said)


def test_errors_of_an_iterable_are_passed_on() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise TypeError("of the caller's own")

    for codec in (JSON_LINES, CSV):
        with pytest.raises(TypeError, match="of the caller's own"):
            codec.serialize(values())


def test_malformed_json_lines_are_reported_by_line() -> None:
    assert unreadable(b"1\n\n{]\n", JSON_LINES) == "the response is not JSON at line 3, column 2"
    assert unreadable(b"1\n\xe2\x80\xa8\n", JSON_LINES) == "the response is not JSON at line 2, column 1"
    assert JSON_LINES.deserialize(b"", "") == []
