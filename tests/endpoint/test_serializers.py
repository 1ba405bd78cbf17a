"""Serializers and deserializers: round trips, other libraries as the judges, refusals, and what must not be said.

What a codec writes is read back by the library that the format belongs to, and the reverse, so that two mistakes of
ours cannot cancel out.
"""

import copy
import csv
import dataclasses
import decimal
import doctest
import enum
import inspect
import io
import json
import math
import pickle
import struct
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from aiosmrt import serializers
from aiosmrt.errors import DeserializationError, ParamValidationError, SerializationError
from aiosmrt.serializers import (
    ARROW,
    BYTES,
    CSV,
    JSON,
    JSON_LINES,
    NPY,
    NPZ,
    OFF_LOOP_BYTES,
    PARQUET,
    TEXT,
    ArrowCodec,
    BytesCodec,
    CSVCodec,
    Deserializer,
    JSONCodec,
    JSONLinesCodec,
    NPYCodec,
    NPZCodec,
    ParquetCodec,
    Serializer,
    TextCodec,
    weight,
)

ROOT = Path(__file__).parents[2]

CODECS: dict[str, Any] = {
    "JSON": JSON,
    "JSON_LINES": JSON_LINES,
    "CSV": CSV,
    "TEXT": TEXT,
    "BYTES": BYTES,
    "NPY": NPY,
    "NPZ": NPZ,
    "ARROW": ARROW,
    "PARQUET": PARQUET,
}
# As the SageMaker Python SDK has them, where it has them; IANA's for Arrow.
HEADERS = {
    "JSON": ("application/json", "application/json"),
    "JSON_LINES": ("application/jsonlines", "application/jsonlines"),
    "CSV": ("text/csv", "text/csv"),
    "TEXT": ("text/plain", "text/plain"),
    "BYTES": ("application/octet-stream", "*/*"),
    "NPY": ("application/x-npy", "application/x-npy"),
    "NPZ": ("application/x-npz", "application/x-npz"),
    "ARROW": ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.stream"),
    "PARQUET": ("application/x-parquet", "application/x-parquet"),
}
SAMPLES: dict[str, Any] = {
    "JSON": {"scores": [0.5, None, "é"]},
    "JSON_LINES": [{"score": 0.5}, [1, 2], "é"],
    "CSV": [["0.5", "yes"], ["é", 'a "b", c']],
    "TEXT": "naïve",
    "BYTES": b"\x00\xff",
    "NPY": np.arange(6.0).reshape(2, 3),
    "NPZ": {"x": np.arange(3), "y": np.ones((2, 2))},
    "ARROW": pa.table({"age": [29, None], "name": ["é", ""]}),
    "PARQUET": pa.table({"age": [29, None], "name": ["é", ""]}),
}
OTHERS = [
    JSONCodec(default=str, allow_nan=True, content_type="application/vnd.model+json"),
    JSONLinesCodec(default=repr),
    CSVCodec(delimiter="\t", content_type="text/tab-separated-values", accept="text/tab-separated-values"),
    TextCodec(content_type="text/plain; charset=utf-16"),
    BytesCodec(content_type="application/x-image"),
    NPYCodec(dtype="float32"),
    NPZCodec(compress=True),
    ArrowCodec(compression="zstd"),
    ParquetCodec(compression=None),
]

every_codec = pytest.mark.parametrize("name", CODECS)


def same(left: Any, right: Any) -> bool:
    """Equality that knows arrays, and that NaN is what it was."""
    if isinstance(left, np.ndarray):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def refused(data: object, codec: Any = JSON) -> str:
    """What a serializer says against data."""
    with pytest.raises(SerializationError) as caught:
        codec.serialize(data)
    return str(caught.value)


def unreadable(body: bytes, codec: Any = JSON, content_type: str = "") -> str:
    """What a deserializer says against a body."""
    with pytest.raises(DeserializationError) as caught:
        codec.deserialize(body, content_type)
    return str(caught.value)


def attempted(call: Callable[[], Any]) -> Any:
    """What a call gives, or the one kind of exception that it may raise."""
    try:
        return call()
    except DeserializationError as error:
        return error


def says(error: BaseException) -> list[str]:
    """The messages of an error and of all that hangs on it."""
    return [str(one) for one in chain(error)]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_examples_in_docstrings() -> None:
    failed, tried = doctest.testmod(serializers, optionflags=doctest.ELLIPSIS)
    assert tried > 20
    assert not failed


# --- all codecs alike -------------------------------------------------------------------------------------------------


@every_codec
def test_headers_are_those_that_containers_know(name: str) -> None:
    assert (CODECS[name].content_type, CODECS[name].accept) == HEADERS[name]


@every_codec
def test_what_was_written_is_read(name: str) -> None:
    codec = CODECS[name]
    body = codec.serialize(SAMPLES[name])
    assert type(body) is bytes
    assert same(codec.deserialize(body, codec.content_type), SAMPLES[name])


def test_types_are_known_to_a_type_checker() -> None:
    to_json: Serializer[dict[str, list[float]]] = JSON
    from_csv: Deserializer[list[list[str]]] = CSV
    rows: Serializer[list[list[float]]] = CSV
    text: Serializer[str] = TEXT
    assert to_json.serialize({"x": [0.5]}) == b'{"x":[0.5]}'
    assert from_csv.deserialize(rows.serialize([[0.5]]), "") == [["0.5"]]
    assert text.content_type == "text/plain"


@pytest.mark.parametrize("codec", [*CODECS.values(), *OTHERS], ids=repr)
def test_codecs_are_values(codec: Any) -> None:
    twin = pickle.loads(pickle.dumps(codec))
    assert twin is not codec
    assert twin == codec == dataclasses.replace(codec) == copy.deepcopy(codec)
    assert hash(twin) == hash(codec)
    assert dataclasses.replace(codec, accept="text/x-other") != codec
    with pytest.raises(dataclasses.FrozenInstanceError):
        codec.accept = "text/x-other"
    others = [other for other in [*CODECS.values(), *OTHERS] if other is not codec]
    assert codec not in others


def test_repr_shows_the_options() -> None:
    assert repr(CSVCodec(delimiter=";")) == "CSVCodec(content_type='text/csv', accept='text/csv', delimiter=';')"
    # A function may hold anything, and a partial or a bound method shows it.
    assert repr(JSONCodec(default={"key": "MARK"}.get)) == (
        "JSONCodec(content_type='application/json', accept='application/json', allow_nan=False)"
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: JSONCodec(content_type=""), "JSONCodec.content_type must be a header value"),
        (lambda: JSONCodec(accept="a/b\r\nX-Header: c"), "JSONCodec.accept must be a header value"),
        (lambda: TextCodec(content_type="text/plän"), "TextCodec.content_type must be a header value"),
        (lambda: BytesCodec(content_type=None), "BytesCodec.content_type must be a header value"),  # type: ignore[arg-type]
        (lambda: TextCodec(content_type="text/plain; charset=klingon"), "content_type names a charset"),
        (lambda: TextCodec(accept="text/plain; charset=hex"), "accept names a charset"),
        (lambda: TextCodec(accept="text/plain; charset=idna"), "accept names a charset"),
        (lambda: JSONCodec(default="str"), "JSONCodec.default must be a function or None; got a str"),  # type: ignore[arg-type]
        (lambda: JSONLinesCodec(allow_nan=1), "JSONLinesCodec.allow_nan must be True or False"),  # type: ignore[arg-type]
        (lambda: CSVCodec(delimiter=""), "CSVCodec.delimiter must be one character"),
        (lambda: CSVCodec(delimiter=", "), "CSVCodec.delimiter must be one character"),
        (lambda: CSVCodec(delimiter='"'), "CSVCodec.delimiter must be one character"),
        (lambda: CSVCodec(delimiter="\n"), "CSVCodec.delimiter must be one character"),
        (lambda: NPYCodec(dtype=float), "NPYCodec.dtype must be a name"),  # type: ignore[arg-type]
        (lambda: NPZCodec(compress="yes"), "NPZCodec.compress must be True or False"),  # type: ignore[arg-type]
        (lambda: ArrowCodec(compression="gzip"), "ArrowCodec.compression must be one of None, 'lz4', 'zstd'"),  # type: ignore[arg-type]
        (lambda: ParquetCodec(compression=9), "ParquetCodec.compression must be one of"),  # type: ignore[arg-type]
    ],
)
def test_options_are_checked(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ParamValidationError) as caught:
        make()
    assert said in str(caught.value)


def test_all_faults_of_the_options_are_told_at_once() -> None:
    with pytest.raises(ParamValidationError) as caught:
        CSVCodec(delimiter="", accept="", content_type="")
    assert len(caught.value.faults) == 3


# --- types of responses -----------------------------------------------------------------------------------------------

# What is read beside the codec's own type.
READ = {
    "JSON": [
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "text/json",
        "application/problem+json",
        "text/plain",
    ],
    "JSON_LINES": ["application/x-ndjson", "application/jsonl", "text/plain; charset=UTF-8"],
    "CSV": ["Text/CSV;charset=utf-8", "application/csv", "text/plain", "text/csv, text/csv"],
    "TEXT": ["text/html", "application/json", "application/xml", "image/svg+xml", "application/jsonlines"],
    "BYTES": ["image/png", "text/html", "no type at all"],
    "NPY": ["application/npy", "application/x-npy;version=1"],
    "NPZ": ["application/zip"],
    "ARROW": ["application/vnd.apache.arrow", "application/x-apache-arrow-stream"],
    "PARQUET": ["application/vnd.apache.parquet", "application/parquet"],
}
REFUSED = {
    "JSON": ["text/html", "text/csv", "application/jsonlines", "image/png", "json"],
    "JSON_LINES": ["text/html", "application/json", "text/csv"],
    "CSV": ["text/html", "application/json", "text/tab-separated-values"],
    "TEXT": ["image/png", "application/x-npy", "application/pdf"],
    "BYTES": [],
    "NPY": ["text/html", "application/x-npz", "text/plain", "application/json"],
    "NPZ": ["text/html", "application/x-npy", "text/plain"],
    "ARROW": ["text/html", "application/x-parquet", "application/vnd.apache.arrow.file", "text/plain"],
    "PARQUET": ["text/html", "application/vnd.apache.arrow.stream", "text/plain"],
}
UNTYPED = ["", "application/octet-stream", "binary/octet-stream", "Application/Octet-Stream; a=b"]


@pytest.mark.parametrize(("name", "found"), [(name, t) for name in READ for t in [*READ[name], *UNTYPED]])
def test_careless_types_are_read(name: str, found: str) -> None:
    assert same(CODECS[name].deserialize(CODECS[name].serialize(SAMPLES[name]), found), SAMPLES[name])


@pytest.mark.parametrize(("name", "found"), [(name, t) for name in REFUSED for t in REFUSED[name]])
def test_other_types_are_refused_with_both_named(name: str, found: str) -> None:
    said = unreadable(CODECS[name].serialize(SAMPLES[name]), CODECS[name], f"{found}; charset=utf-8")
    assert said == f"the response is {found!r}, not {CODECS[name].accept!r}"


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        ("application/json, text/html", "text/html; charset=utf-8"),
        ("application/json;q=1, Text/HTML;q=0.5", "text/HTML"),
        ("text/*", "text/html"),
        ("*/*", "image/png"),
    ],
)
def test_what_was_asked_for_is_read(accept: str, found: str) -> None:
    assert JSONCodec(accept=accept).deserialize(b"[1]", found) == [1]


def test_a_range_of_types_covers_no_more_than_it_says() -> None:
    assert "'image/png'" in unreadable(b"[1]", JSONCodec(accept="text/*"), "image/png")
    assert "'textual/html'" in unreadable(b"[1]", JSONCodec(accept="text/*"), "textual/html")


def test_a_type_of_any_length_is_not_told_at_that_length() -> None:
    assert len(unreadable(b"[1]", JSON, f"text/{'x' * 10_000}")) < 200


# --- charsets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "encoding"),
    [
        ("{}", "utf-8"),
        ("{}; charset=utf-8", "utf-8"),
        ('{}; Charset="ISO-8859-1"', "latin-1"),
        ("{};charset=windows-1252;header=absent", "cp1252"),
        ("{}; header=absent; charset = 'utf-16'", "utf-16"),
    ],
)
@pytest.mark.parametrize("name", ["JSON", "JSON_LINES", "CSV", "TEXT"])
def test_the_charset_of_a_response_is_honoured(name: str, found: str, encoding: str) -> None:
    body = CODECS[name].serialize(SAMPLES[name]).decode().encode(encoding)
    assert CODECS[name].deserialize(body, found.format(CODECS[name].accept)) == SAMPLES[name]


@pytest.mark.parametrize(
    "charset", ["klingon", "hex", "rot13", "base64", "idna", "unicode_escape", "undefined", "a\0b"]
)
def test_an_unknown_charset_is_an_error(charset: str) -> None:
    assert "charset that Python does not know" in unreadable(b"a", TEXT, f"text/plain; charset={charset}")


def test_the_charset_that_was_asked_for_is_that_of_a_response_without_one() -> None:
    codec = TextCodec(accept="text/plain; charset=latin-1")
    assert codec.deserialize(b"na\xefve", "text/plain") == "naïve"
    assert codec.deserialize("naïve".encode(), "text/plain; charset=utf-8") == "naïve"


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (TextCodec(content_type="text/plain; charset=utf-16-le"), "é"),
        (CSVCodec(content_type="text/csv; charset=utf-16-le"), [["é"]]),
        (CSVCodec(content_type="text/csv; charset=utf-16-le"), "é"),
        (JSONLinesCodec(content_type="application/jsonlines; charset=utf-16-le"), io.StringIO("é")),
    ],
)
def test_requests_are_in_the_charset_that_their_type_has(codec: Any, data: Any) -> None:
    assert codec.serialize(data) == "é".encode("utf-16-le")


def test_bytes_that_are_not_in_the_charset_are_told_by_their_place() -> None:
    assert unreadable(b"abc\xff", TEXT) == "the response of 4 bytes is not utf-8 at byte 3"
    assert "byte 1" in unreadable(b'"\xff"', JSON)


def test_characters_that_the_charset_lacks_are_told_by_their_place() -> None:
    ascii_text = TextCodec(content_type="text/plain; charset=ascii")
    assert refused("naïve", ascii_text) == "character 2 of 5 cannot be expressed in ascii"
    assert refused("a\ud800", TEXT) == "character 1 of 2 cannot be expressed in utf-8"
    assert refused([["a\ud800"]], CSV) == "character 1 of 2 cannot be expressed in utf-8"


@pytest.mark.parametrize(("codec", "body"), [(JSON, b"[1]"), (JSON_LINES, b"1\n2"), (CSV, b"a,b")])
def test_a_byte_order_mark_is_no_data(codec: Any, body: bytes) -> None:
    assert codec.deserialize(b"\xef\xbb\xbf" + body, "") == codec.deserialize(body, "")


# --- text and bytes ---------------------------------------------------------------------------------------------------


@given(st.text())
def test_text_round_trip(text: str) -> None:
    assert TEXT.serialize(text) == text.encode()
    assert TEXT.deserialize(TEXT.serialize(text), TEXT.content_type) == text


@pytest.mark.parametrize("data", [b"a", bytearray(b"a"), 1, None, ["a"]])
def test_text_takes_text_alone(data: Any) -> None:
    assert refused(data, TEXT) == f"data is a {type(data).__name__}, not text"


@given(st.binary())
def test_bytes_round_trip(data: bytes) -> None:
    for kind in (bytes, bytearray, memoryview):
        assert BYTES.serialize(kind(data)) == data
    assert BYTES.deserialize(data, "") is data
    assert BYTES.serialize(memoryview(data)[::2]) == data[::2]


@pytest.mark.parametrize("data", ["a", 1, None, [1], np.zeros(2), io.BytesIO(b"a")])
def test_bytes_takes_bytes_alone(data: Any) -> None:
    assert refused(data, BYTES) == f"data is a {type(data).__name__}, not bytes"


# --- JSON -------------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON_VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(JSON_VALUES)
def test_json_round_trip(value: Any) -> None:
    body = JSON.serialize(value)
    assert json.loads(body) == value
    assert JSON.deserialize(body, "application/json") == value
    assert JSON.deserialize(json.dumps(value, indent=2).encode(), "application/json; charset=utf-8") == value


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
    ],
)
def test_json_of_other_objects(data: Any, expected: str) -> None:
    assert JSON.serialize(data).decode() == expected


class Color(enum.Enum):
    RED = 1


CIRCLE: list[Any] = []
CIRCLE.append([CIRCLE])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({1, 2}, "data is a set, which JSON does not have"),
        ({"a": [0, {"b": [1, b"x"]}]}, "data[0][1][0][1] is a bytes, which JSON does not have"),
        ([[1.0, 2.0], [3.0, math.nan]], "data[1][1] is NaN or infinite"),
        ({"scores": np.array([[0.0, math.inf]])}, "data[0][0][1] is NaN or infinite"),
        ([np.float32("nan")], "data[0] is NaN or infinite"),
        ([1, np.datetime64("2020-01-01")], "data[1] is a datetime64, which JSON does not have"),
        ([1, np.longdouble(1)], "data[1] is a longdouble, which JSON does not have"),
        (np.array([1, 1j]), "data[0] is a complex, which JSON does not have"),
        ([{"a": 1, (1, 2): 3}], "data[0] has a key that cannot be one in JSON: number 1, a tuple"),
        ({"a\ud800": 1}, "data has a key that cannot be one in JSON: number 0, a str"),
        (["a", "\ud800"], "data[1] has a character that cannot be expressed in utf-8"),
        ([0, 10**5000], "data[1] is an integer of more digits than Python writes"),
        (CIRCLE, "data contains itself, or is at fault more than 100 levels down"),
        (Color.RED, "data is a Color, which JSON does not have"),
        ((i for i in range(3)), "data is a generator, which JSON does not have"),
    ],
)
def test_json_says_what_is_at_fault_and_where(data: Any, said: str) -> None:
    assert refused(data).startswith(said)


def nested(levels: int, inner: Any) -> Any:
    for _ in range(levels):
        inner = [inner]
    return inner


def test_json_of_any_depth_is_written_or_refused() -> None:
    assert JSON.serialize(nested(90, 1)) == b"[" * 90 + b"1" + b"]" * 90
    assert refused(nested(90, {1})) == f"data{'[0]' * 90} is a set, which JSON does not have"
    assert "more than 100 levels down" in refused(nested(100_000, 1))
    assert "nested too deeply" in unreadable(b"[" * 200_000)


@given(st.integers(0, 60), st.integers(1, 60))
def test_json_finds_the_first_of_the_faults(first: int, more: int) -> None:
    values: list[Any] = list(range(200))
    values[first], values[first + more] = {1}, {2}
    assert refused({"a": 1, "b": values}).startswith(f"data[1][{first}] is a set")


def test_nan_is_sent_when_asked_for_and_always_read() -> None:
    values = [math.inf, -math.inf]
    assert JSONCodec(allow_nan=True).serialize([*values, math.nan]) == b"[Infinity,-Infinity,NaN]"
    assert JSON.deserialize(b"[Infinity, -Infinity]", "") == values
    assert math.isnan(JSON.deserialize(b"NaN", ""))


def test_default_is_asked_for_what_json_and_numpy_do_not_know() -> None:
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
def test_a_default_that_does_not_help_is_told(default: Callable[[Any], object]) -> None:
    said = refused([1, Color.RED], JSONCodec(default=default))
    assert said == "data[1] is a Color, for which default gives nothing that JSON has"


class Moody:
    """A function that fails when it is called first."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, value: Any) -> str:
        if not self.called:
            self.called = True
            raise KeyError
        return "text"


def test_a_default_that_helps_the_second_time_only_does_not_confuse() -> None:
    assert refused({"a": Color.RED}, JSONCodec(default=Moody())) == (
        "data is a dict, for which default gives nothing that JSON has"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the response is empty, and no JSON"),
        (b"  ", "the response is not JSON at line 1, column 3"),
        (b'{"a": 1,\n "b": }', "the response is not JSON at line 2, column 7"),
        (b"[1] [2]", "the response is not JSON at line 1, column 5"),
        (b"1" * 5000, "the response has an integer of more digits than Python reads"),
    ],
)
def test_what_is_not_json_is_told_by_its_place(body: bytes, said: str) -> None:
    assert unreadable(body) == said


@pytest.mark.parametrize("codec", [JSON, JSON_LINES, CSV, NPY])
def test_files_are_sent_as_they_are(codec: Any, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes("é, anything\r\n".encode())
    with path.open("rb") as binary, path.open(encoding="utf-8", newline="") as text:
        assert codec.serialize(binary) == codec.serialize(text) == path.read_bytes()


def test_a_file_that_gives_neither_text_nor_bytes_is_refused(tmp_path: Path) -> None:
    class Odd:
        def read(self) -> Any:
            return [b"a"]

    assert refused(Odd()) == "the file gave a list, which is neither text nor bytes"
    path = tmp_path / "body"
    path.write_bytes(b"ab\xff")
    with path.open(encoding="utf-8") as text:
        assert refused(text) == "the file is not in its encoding around byte 2"


def test_errors_of_a_file_are_its_own(tmp_path: Path) -> None:
    with (tmp_path / "body").open("wb") as write_only, pytest.raises(OSError, match="read"):
        JSON.serialize(write_only)


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
        ([], "data has no values"),
        ({"a": 1}, "data is a dict, not an iterable of values"),
        ({1, 2}, "data is a set, not an iterable of values"),
        (7, "data is a int, not an iterable of values"),
        (np.float64(7), "data is a float64, not an iterable of values"),
        (np.array(7), "data is a ndarray, not an iterable of values"),
        ([1, {"a": {2}}], "data[1][0] is a set, which JSON does not have"),
        ([1, math.nan], "data[1] is NaN or infinite"),
    ],
)
def test_json_lines_says_what_is_at_fault_and_where(data: Any, said: str) -> None:
    assert refused(data, JSON_LINES).startswith(said)


def test_errors_of_an_iterable_are_its_own() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise TypeError("of the caller's own")

    for codec in (JSON_LINES, CSV):
        with pytest.raises(TypeError, match="of the caller's own"):
            codec.serialize(values())


def test_lines_that_are_not_json_are_told_by_their_place() -> None:
    assert unreadable(b"1\n\n{]\n", JSON_LINES) == "the response is not JSON at line 3, column 2"
    assert unreadable(b"1\n\xe2\x80\xa8\n", JSON_LINES) == "the response is not JSON at line 2, column 1"
    assert JSON_LINES.deserialize(b"", "") == []


# --- CSV --------------------------------------------------------------------------------------------------------------

# A leading byte order mark is no data, as tested above.
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


class Frame:
    """What iterates over the names of its columns, as DataFrames do."""

    columns = ("a", "b")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class Plain:
    """An object without a text of its own."""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "data has no fields or rows"),
        (np.zeros((0, 3)), "data has no fields or rows"),
        ([[1], []], "data[1] has no fields"),
        (np.zeros((3, 0)), "data[0] has no fields"),
        (7, "data is a int, not an iterable of fields or rows"),
        (np.array(7), "data is a ndarray, not an iterable of fields or rows"),
        ({"a": 1}, "data is a dict, not an iterable of fields or rows"),
        ({1, 2}, "data is a set, not an iterable of fields or rows"),
        (Frame(), "data is a Frame, not an iterable of fields or rows"),
        (pa.table({"a": [1]}), "data is a Table, not an iterable of fields or rows"),
        ([[1], 2], "data[1] is a int, not an iterable of fields"),
        ([[1], "a,b"], "data[1] is a str, not an iterable of fields"),
        ([1, [2]], "data[1] is a list, which is not text for a field"),
        ([{"a": 1}], "data[0] is a dict, which is not text for a field"),
        ([[1, b"a"]], "data[0][1] is a bytes, which is not text for a field"),
        ([[1, 2], [3, Plain()]], "data[1][1] is a Plain, which is not text for a field"),
        (np.zeros((2, 2, 2)), "data[0][0] is a list, which is not text for a field"),
        (np.array([b"a"]), "data[0] is a bytes, which is not text for a field"),
        ([[1], [2, 10**5000]], "data[1] has an integer of more digits than Python writes"),
        ([10**5000], "data has an integer of more digits than Python writes"),
    ],
)
def test_csv_says_what_is_at_fault_and_where(data: Any, said: str) -> None:
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
def test_what_is_not_csv_is_told_by_its_line(body: bytes, line: int) -> None:
    assert f"not CSV at line {line}," in unreadable(body, CSV)


# --- NumPy ------------------------------------------------------------------------------------------------------------

ARRAYS = st_numpy.arrays(
    st_numpy.scalar_dtypes()
    | st_numpy.byte_string_dtypes()
    | st_numpy.unicode_string_dtypes()
    | st_numpy.array_dtypes(allow_subarrays=False),
    st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4),
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(ARRAYS)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_npy_round_trip(array: Any) -> None:
    body = NPY.serialize(array)
    assert same(np.load(io.BytesIO(body), allow_pickle=False), array)
    assert same(NPY.deserialize(body, "application/x-npy"), array)
    saved = io.BytesIO()
    np.save(saved, array, allow_pickle=False)
    assert same(NPY.deserialize(saved.getvalue(), ""), array)


@given(st.dictionaries(NAMES, ARRAYS, max_size=3), st.booleans())
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_npz_round_trip(arrays: dict[str, Any], compress: bool) -> None:
    body = NPZCodec(compress=compress).serialize(arrays)
    assert same(NPZ.deserialize(body, "application/x-npz"), arrays)
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        assert len(archive.files) == len(arrays)
        assert all(same(archive[name], arrays[name]) for name in arrays)


def test_npz_of_numpy_is_read() -> None:
    for save in (np.savez, np.savez_compressed):
        saved = io.BytesIO()
        save(saved, x=np.arange(3), y=np.eye(2))
        assert same(NPZ.deserialize(saved.getvalue(), "application/zip"), {"x": np.arange(3), "y": np.eye(2)})


def test_equal_arrays_give_equal_archives() -> None:
    assert b"\x00\x00\x21\x00" in NPZ.serialize({"x": [1]})  # the first of January 1980, midnight
    assert NPZ.serialize({"x": [1]}) == NPZ.serialize({"x": np.array([1])})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        (1.5, np.array(1.5)),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T),
        (np.arange(10)[::3], np.array([0, 3, 6, 9])),
        (memoryview(b"ab"), np.array([97, 98], "u1")),
    ],
)
def test_npy_of_what_makes_an_array(data: Any, expected: Any) -> None:
    assert same(NPY.deserialize(NPY.serialize(data), ""), expected)


def test_arrays_are_sent_in_the_type_that_was_asked_for() -> None:
    assert NPY.deserialize(NPYCodec(dtype="float32").serialize([1, 2]), "").dtype == np.dtype("f4")
    assert NPZ.deserialize(NPZCodec(dtype="int8").serialize({"x": np.eye(2)}), "")["x"].dtype == np.dtype("i1")


NO_ARRAYS: list[tuple[Any, str]] = [
    (np.array([1, None]), "makes an array of Python objects, which would have to be pickled"),
    ([1, {"a": 2}], "makes an array of Python objects, which would have to be pickled"),
    ({"a": 1}, "makes an array of Python objects, which would have to be pickled"),
    (np.zeros(2, [("a", "O"), ("b", "i4")]), "makes an array of Python objects, which would have to be pickled"),
    ([[1, 2], [3]], "is a list that makes no array"),
    ("text", "is a str, not an array"),
    (b"\x93NUMPY", "is a bytes, not an array"),
    (np.ma.masked_array([1, 2], [False, True]), "is a masked array, whose mask NPY cannot express"),
]


@pytest.mark.parametrize(("data", "said"), NO_ARRAYS)
def test_what_makes_no_array_is_told_with_its_place(data: Any, said: str) -> None:
    assert refused(data, NPY) == f"data {said}"
    assert refused({"x": [1], "y": data}, NPZ) == f"data[1] {said}"


def test_a_type_that_arrays_cannot_have_is_named() -> None:
    assert refused(["a"], NPYCodec(dtype="float32")) == "data is a list that makes no array of float32"
    assert refused([1], NPYCodec(dtype="flaot32")) == "data is a list that makes no array of flaot32"
    assert refused([2**70], NPYCodec(dtype="int8")) == "data is a list that makes no array of int8"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([1, 2], "data is a list, not a mapping from names to arrays"),
        (np.arange(3), "data is a ndarray, not a mapping from names to arrays"),
        ({1: [1]}, "the name of data[0] cannot be a file's"),
        ({"a": [1], "b\0c": [1]}, "the name of data[1] cannot be a file's"),
        ({"\ud800": [1]}, "the name of data[0] cannot be a file's"),
    ],
)
def test_npz_takes_names_and_arrays(data: Any, said: str) -> None:
    assert refused(data, NPZ) == said


class Trap:
    """An object whose pickle, when it is loaded, leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    array = np.array([Trap(sprung)], dtype=object)
    saved, archived = io.BytesIO(), io.BytesIO()
    np.save(saved, array, allow_pickle=True)
    np.savez(archived, x=array)
    assert "without Python objects" in unreadable(saved.getvalue(), NPY)
    assert "its file 0 is no array, or one of Python objects" in unreadable(archived.getvalue(), NPZ)
    assert "without Python objects" in unreadable(pickle.dumps(array), NPY)
    assert not sprung.exists()
    np.load(io.BytesIO(saved.getvalue()), allow_pickle=True)
    assert sprung.exists()


def header(shape: str) -> bytes:
    """An NPY file that declares an array of bytes, and has none."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_an_array_that_is_not_there_in_full_is_an_error() -> None:
    body = NPY.serialize(np.arange(10))
    for size in range(len(body)):
        assert "the response is not an array" in unreadable(body[:size], NPY)
    assert "the response is not an array" in unreadable(body + b"\0", NPY)
    assert "not an array" in unreadable(NPZ.serialize({"x": [1]}), NPY)
    assert same(NPY.deserialize(header("(0,)"), ""), np.zeros(0, "u1"))
    for shape in ("(1,)", "(-1,)", "(2**70,)", f"({2**50},)"):
        assert unreadable(header(shape), NPY).startswith("the response ")


def test_an_archive_that_is_damaged_is_an_error() -> None:
    body = NPZ.serialize({"x": np.arange(10)})
    for size in range(len(body)):
        assert "the response is not an archive" in unreadable(body[:size], NPZ)
    assert "the response is not an archive" in unreadable(NPY.serialize([1]), NPZ)
    place = body.index(np.arange(10).tobytes()) + 8
    flipped = body[:place] + b"\x07" + body[place + 1 :]
    assert "its file 0 is no array" in unreadable(flipped, NPZ)


def test_an_archive_of_other_files_is_refused() -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("x.npy", NPY.serialize([1]))
        archive.writestr("readme.txt", "text")
    assert "its file 1 is no array" in unreadable(written.getvalue(), NPZ)


# --- Arrow and Parquet ------------------------------------------------------------------------------------------------

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
    """A table of another library, as far as Arrow is concerned."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


TABLE = pa.table({"age": [29, None, 31], "name": ["a", "", None]})


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
def test_what_tables_are_made_of(codec: Any, data: Any) -> None:
    table = codec.deserialize(codec.serialize(data), "")
    assert table.column_names == ["age", "name"]
    assert table.column("name").to_pylist() == ["a", "", None]
    assert table.column("age").to_pylist() in ([29, None, 31], [29, 0, 31])


@every_table_codec
def test_what_can_be_read_once_is_read_once(codec: Any) -> None:
    reader = pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(max_chunksize=1))
    assert codec.deserialize(codec.serialize(reader), "").equals(TABLE)
    columns = {"age": iter([29, None, 31]), "name": (name for name in ("a", "", None))}
    assert codec.deserialize(codec.serialize(columns), "").equals(TABLE)


@every_table_codec
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([[1, 2]], "data is a list, not a table"),
        (b"bytes", "data is a bytes, not a table"),
        ({"a": [1], "b": [1, "x"]}, "data[1] makes no column"),
        ({"a": [1], 2: [1]}, "data[1] makes no column"),
        ({"a": [10**30]}, "data[0] makes no column"),
        ({"a": ["\ud800"]}, "data[0] makes no column"),
        ({"\ud800": [1]}, "data[0] makes no column"),
        ({"a": np.zeros((2, 2))}, "data[0] makes no column"),
        ({"a": 7}, "data[0] makes no column"),
        ({"a": [1], "b": [1, 2]}, "data has columns of different lengths"),
    ],
)
def test_what_makes_no_table_is_told_with_its_place(codec: Any, data: Any, said: str) -> None:
    assert refused(data, codec).startswith(said)


def test_what_parquet_cannot_express_is_refused() -> None:
    table = pa.table({"a": pa.array([None], pa.month_day_nano_interval())})
    assert "a type that the format does not have" in refused(table, PARQUET)
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
def test_text_that_is_not_utf8_does_not_get_into_a_table(codec: Any) -> None:
    body = codec.serialize({"name": ["Ahnungslos"]})
    assert "the response is not a" in unreadable(body.replace(b"hnungslos", b"\xff" * 9), codec).lower()


def test_what_points_outside_of_a_table_does_not_get_into_it() -> None:
    body = ARROW.serialize({"name": ["a" * 77, "b" * 155]})
    offsets = struct.Struct("<iii")
    assert body.count(offsets.pack(0, 77, 232)) == 1
    unreadable(body.replace(offsets.pack(0, 77, 232), offsets.pack(0, 77, 2**30)), ARROW)


# --- whatever comes ---------------------------------------------------------------------------------------------------


@every_codec
@given(body=st.binary(), content_type=st.text() | st.sampled_from(["", *UNTYPED]))
def test_any_response_is_read_or_refused(name: str, body: bytes, content_type: str) -> None:
    outcome = attempted(lambda: CODECS[name].deserialize(body, content_type))
    if isinstance(outcome, DeserializationError):
        assert says(outcome) == [str(outcome)]


# --- what is said -----------------------------------------------------------------------------------------------------

MARK = "MARKpayload"


def leaks(error: BaseException) -> bool:
    """Whether anything that an error holds, or that is printed of it, has the mark in it."""
    texts = ["".join(traceback.format_exception(error)), repr(pickle.dumps(error))]
    for one in chain(error):
        texts += [repr(one), *map(repr, one.args), repr(vars(one)), repr(getattr(one, "__notes__", ""))]
        texts += [repr(getattr(one, name, "")) for name in ("doc", "object", "msg", "reason")]
    return any(MARK in text for text in texts)


def raises(value: Any) -> object:
    raise KeyError(value)


class Marked:
    def __repr__(self) -> str:
        return MARK


SECRET_REQUESTS: list[tuple[str, Any, Any]] = [
    ("type", JSON, {MARK: [Marked()]}),
    ("key", JSON, {(MARK,): 1}),
    ("nan", JSON, {MARK: [MARK, math.nan]}),
    ("surrogate", JSON, [MARK + "\ud800"]),
    ("default", JSONCodec(default=raises), {MARK: Marked()}),
    ("circle", JSON, {MARK: CIRCLE}),
    ("line", JSON_LINES, [MARK, {MARK: {MARK}}]),
    ("field", CSV, [[MARK], [MARK.encode()]]),
    ("row", CSV, [[MARK], MARK]),
    ("digits", CSV, [[MARK, 10**5000]]),
    ("charset", CSVCodec(content_type="text/csv; charset=ascii"), [[MARK, "é"]]),
    ("text", TEXT, MARK + "\ud800"),
    ("bytes", BYTES, MARK),
    ("dtype", NPYCodec(dtype="float64"), [MARK]),
    ("ragged", NPY, [[MARK], [MARK, MARK]]),
    ("objects", NPY, Marked()),
    ("name", NPZ, {MARK + "\0": [1]}),
    ("archive", NPZCodec(dtype="float64"), {MARK: [MARK]}),
    ("column", ARROW, {MARK: [1, MARK]}),
    ("lengths", ARROW, {MARK: [1], "b": [1, 2]}),
    ("parquet", PARQUET, pa.table({MARK: pa.array([None], pa.month_day_nano_interval())})),
]


@pytest.mark.parametrize(("codec", "data"), [case[1:] for case in SECRET_REQUESTS], ids=[c[0] for c in SECRET_REQUESTS])
def test_a_refusal_does_not_quote_the_data(codec: Any, data: Any) -> None:
    with pytest.raises(SerializationError) as caught:
        codec.serialize(data)
    assert says(caught.value) == [str(caught.value)]
    assert not leaks(caught.value)


def damaged(body: bytes) -> bytes:
    return body[:-20] + bytes(20)


SECRET_RESPONSES: list[tuple[str, Any, bytes]] = [
    ("json", JSON, f'{{"{MARK}": }}'.encode()),
    ("escape", JSON, f'"{MARK}\\x"'.encode()),
    ("encoding", JSON, f'"{MARK}'.encode() + b'\xff"'),
    ("line", JSON_LINES, f'1\n"{MARK}'.encode()),
    ("csv", CSV, f'"{MARK}'.encode()),
    ("text", TEXT, MARK.encode() + b"\xff"),
    ("npy", NPY, header(f"('{MARK}',)")),
    ("npy header", NPY, header(f"{MARK} if")),
    ("npz", NPZ, MARK.encode()),
    ("npz member", NPZ, NPZ.serialize({MARK: [1]}).replace(b"NUMPY", b"NUMPX")),
    ("arrow", ARROW, damaged(ARROW.serialize({MARK: [MARK] * 9}))[:-200]),
    ("parquet", PARQUET, damaged(PARQUET.serialize({MARK: [MARK]}))),
]


@pytest.mark.parametrize(("codec", "body"), [c[1:] for c in SECRET_RESPONSES], ids=[c[0] for c in SECRET_RESPONSES])
def test_an_unreadable_response_is_not_quoted(codec: Any, body: bytes) -> None:
    assert MARK.encode() in body
    with pytest.raises(DeserializationError) as caught:
        codec.deserialize(body, "")
    assert says(caught.value) == [str(caught.value)]
    assert not leaks(caught.value)


def test_a_file_in_the_wrong_encoding_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(MARK.encode() + b"\xff")
    with path.open(encoding="utf-8") as text, pytest.raises(SerializationError) as caught:
        JSON.serialize(text)
    assert not leaks(caught.value)


def test_the_search_for_leaks_finds_them() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(f'"{MARK}')
    assert leaks(caught.value)


# --- what is imported -------------------------------------------------------------------------------------------------


def run(program: str) -> list[str]:
    """What a program prints in a fresh interpreter, line by line."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


EXTRAS = {"numpy", "pyarrow"}
LATER = {*EXTRAS, "csv", "zipfile"}


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("pass", set()),
        ("s.JSON.deserialize(s.JSON.serialize({'a': [1.5]}), ''); s.weight([1, object()])", set()),
        (
            "s.JSON_LINES.deserialize(s.JSON_LINES.serialize([1]), ''); s.TEXT.serialize('a'); s.BYTES.serialize(b'')",
            set(),
        ),
        ("import pickle; [pickle.loads(pickle.dumps(c)) for c in (s.NPY, s.NPZ, s.ARROW, s.PARQUET)]", set()),
        ("s.CSV.serialize([1])", {"csv"}),
        ("s.NPY.serialize([1])", {"numpy"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(statement: str, loaded: set[str]) -> None:
    modules = run(f"import sys; import aiosmrt.serializers as s; {statement}; print(*sys.modules, sep='\\n')")
    assert LATER.intersection(modules) == loaded


WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
import aiosmrt.serializers as s
from aiosmrt.errors import ConfigurationError

for call in (
    lambda: s.NPY.serialize([1]),
    lambda: s.NPY.deserialize(b"", ""),
    lambda: s.NPZ.serialize({{"a": [1]}}),
    lambda: s.NPZ.deserialize({npz!r}, ""),
    lambda: s.ARROW.serialize({{"a": [1]}}),
    lambda: s.ARROW.deserialize(b"", ""),
    lambda: s.PARQUET.serialize({{"a": [1]}}),
    lambda: s.PARQUET.deserialize(b"", ""),
):
    try:
        call()
    except ConfigurationError as error:
        print(error)
assert s.JSON.serialize([1]) == b"[1]"
assert s.CSV.serialize([[1]]) == b"1"
assert s.JSON_LINES.serialize([1]) == b"1"
"""


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    said = run(WITHOUT.format(blocked=EXTRAS, npz=NPZ.serialize({"a": [1]})))
    assert len(said) == 8
    for line in said[:4]:
        assert line.startswith("numpy")
        assert "pip install 'aiosmrt[numpy]'" in line
    for line in said[4:]:
        assert line.startswith("pyarrow")
        assert "pip install 'aiosmrt[arrow]'" in line


# --- how big ----------------------------------------------------------------------------------------------------------


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
