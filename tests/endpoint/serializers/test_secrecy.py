"""No error quotes the data, whatever is wrong with it."""

import json
import math
import pickle
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest

from aiosmrt.errors import DeserializationError, SerializationError
from aiosmrt.serializers import (
    ARROW,
    BYTES,
    CSV,
    JSON,
    JSON_LINES,
    NPY,
    NPZ,
    PARQUET,
    TEXT,
    CSVCodec,
    JSONCodec,
    NPYCodec,
    NPZCodec,
)
from tests.endpoint.serializers.samples import CIRCLE, chain, header, says

MARK = "MARKpayload"


def leaks(error: BaseException) -> bool:
    """Whether the mark is in anything that an error holds or prints, or in a local variable of a frame in it."""
    texts = ["".join(traceback.format_exception(error)), repr(pickle.dumps(error))]
    for one in chain(error):
        frames = [
            frame for frame, _ in traceback.walk_tb(one.__traceback__) if "/tests/" not in frame.f_code.co_filename
        ]
        texts += [repr(value) for frame in frames for value in frame.f_locals.values()]
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
