"""Properties of all codecs: headers, types, charsets, and value semantics.

What a codec writes is read back by the library that the format belongs to, and the reverse, so that two mistakes of
ours cannot cancel out.
"""

import copy
import dataclasses
import doctest
import importlib
import io
import pickle
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt import serializers
from aiosmrt.errors import DeserializationError, ParamValidationError
from aiosmrt.serializers import (
    CSV,
    JSON,
    JSON_LINES,
    NPY,
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
)
from tests.endpoint.serializers.samples import CODECS, SAMPLES, attempted, every_codec, refused, same, says, unreadable

# Those of the SageMaker Python SDK where it has one; IANA's for Arrow.
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


def test_examples_in_docstrings() -> None:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.iter_modules(serializers.__path__, f"{serializers.__name__}.")
    ]
    failed, tried = map(
        sum, zip(*(doctest.testmod(module, optionflags=doctest.ELLIPSIS) for module in modules), strict=True)
    )
    assert tried > 20
    assert not failed


# --- all codecs alike -------------------------------------------------------------------------------------------------


@every_codec
def test_headers_that_containers_know(name: str) -> None:
    assert (CODECS[name].content_type, CODECS[name].accept) == HEADERS[name]


@every_codec
def test_every_codec_round_trips(name: str) -> None:
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
    # A function may contain anything, and the repr of a partial or a bound method shows it.
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
        (lambda: CSVCodec(delimiter=""), "CSVCodec.delimiter must be one character other than"),
        (lambda: CSVCodec(delimiter=", "), "CSVCodec.delimiter must be one character other than"),
        (lambda: CSVCodec(delimiter='"'), "CSVCodec.delimiter must be one character other than"),
        (lambda: CSVCodec(delimiter="\n"), "CSVCodec.delimiter must be one character other than"),
        (lambda: NPYCodec(dtype=float), "NPYCodec.dtype must be the name of a type"),  # type: ignore[arg-type]
        (lambda: NPZCodec(compress="yes"), "NPZCodec.compress must be True or False"),  # type: ignore[arg-type]
        (lambda: ArrowCodec(compression="gzip"), "ArrowCodec.compression must be one of None, 'lz4', 'zstd'"),  # type: ignore[arg-type]
        (lambda: ParquetCodec(compression=9), "ParquetCodec.compression must be one of"),  # type: ignore[arg-type]
    ],
)
def test_options_are_checked(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ParamValidationError) as caught:
        make()
    assert said in str(caught.value)


def test_all_faulty_options_are_reported_at_once() -> None:
    with pytest.raises(ParamValidationError) as caught:
        CSVCodec(delimiter="", accept="", content_type="")
    assert len(caught.value.faults) == 3


# --- types of responses -----------------------------------------------------------------------------------------------


# Types that are read besides the codec's own.
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
def test_general_types_are_read(name: str, found: str) -> None:
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
def test_accepted_types_are_read(accept: str, found: str) -> None:
    assert JSONCodec(accept=accept).deserialize(b"[1]", found) == [1]


def test_a_wildcard_covers_only_its_types() -> None:
    assert "'image/png'" in unreadable(b"[1]", JSONCodec(accept="text/*"), "image/png")
    assert "'textual/html'" in unreadable(b"[1]", JSONCodec(accept="text/*"), "textual/html")


def test_a_long_type_is_shortened_in_messages() -> None:
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
    assert "in an unknown charset" in unreadable(b"a", TEXT, f"text/plain; charset={charset}")


def test_the_charset_of_accept_is_the_default() -> None:
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
def test_requests_use_the_charset_of_their_type(codec: Any, data: Any) -> None:
    assert codec.serialize(data) == "é".encode("utf-16-le")


def test_malformed_bytes_are_reported_by_position() -> None:
    assert unreadable(b"abc\xff", TEXT) == "the response of 4 bytes is not utf-8 at byte 3"
    assert "byte 1" in unreadable(b'"\xff"', JSON)


def test_characters_that_the_charset_lacks_are_reported_by_position() -> None:
    ascii_text = TextCodec(content_type="text/plain; charset=ascii")
    assert refused("naïve", ascii_text) == "character 2 of 5 cannot be expressed in ascii"
    assert refused("a\ud800", TEXT) == "character 1 of 2 cannot be expressed in utf-8"
    assert refused([["a\ud800"]], CSV) == "character 1 of 2 cannot be expressed in utf-8"


@pytest.mark.parametrize(("codec", "body"), [(JSON, b"[1]"), (JSON_LINES, b"1\n2"), (CSV, b"a,b")])
def test_a_byte_order_mark_is_not_data(codec: Any, body: bytes) -> None:
    assert codec.deserialize(b"\xef\xbb\xbf" + body, "") == codec.deserialize(body, "")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [JSON, JSON_LINES, CSV, NPY])
def test_files_are_sent_as_they_are(codec: Any, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes("é, anything\r\n".encode())
    with path.open("rb") as binary, path.open(encoding="utf-8", newline="") as text:
        assert codec.serialize(binary) == codec.serialize(text) == path.read_bytes()


def test_a_file_that_returns_neither_text_nor_bytes(tmp_path: Path) -> None:
    class Odd:
        def read(self) -> Any:
            return [b"a"]

    assert refused(Odd()) == "the file must contain text or bytes; its read() returned a list"
    path = tmp_path / "body"
    path.write_bytes(b"ab\xff")
    with path.open(encoding="utf-8") as text:
        assert refused(text) == "the file is not in its encoding around byte 2"


def test_errors_of_a_file_are_passed_on(tmp_path: Path) -> None:
    with (tmp_path / "body").open("wb") as write_only, pytest.raises(OSError, match="read"):
        JSON.serialize(write_only)


# --- whatever comes ---------------------------------------------------------------------------------------------------


@every_codec
@given(body=st.binary(), content_type=st.text() | st.sampled_from(["", *UNTYPED]))
def test_any_response_is_read_or_refused(name: str, body: bytes, content_type: str) -> None:
    outcome = attempted(lambda: CODECS[name].deserialize(body, content_type))
    if isinstance(outcome, DeserializationError):
        assert says(outcome) == [str(outcome)]
