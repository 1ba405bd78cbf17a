"""Helpers of the serializers' tests: codecs, data, and ways to call them."""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import strategies as st

from aiosmrt.errors import DeserializationError, SerializationError
from aiosmrt.serializers import ARROW, BYTES, CSV, JSON, JSON_LINES, NPY, NPZ, PARQUET, TEXT

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

every_codec = pytest.mark.parametrize("name", CODECS)

TABLE = pa.table({"age": [29, None, 31], "name": ["a", "", None]})

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON_VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)

CIRCLE: list[Any] = []
CIRCLE.append([CIRCLE])


def same(left: Any, right: Any) -> bool:
    """Equality of values that may contain arrays and NaN."""
    if isinstance(left, np.ndarray):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def refused(data: object, codec: Any = JSON) -> str:
    """The message with which a serializer refuses data."""
    with pytest.raises(SerializationError) as caught:
        codec.serialize(data)
    return str(caught.value)


def unreadable(body: bytes, codec: Any = JSON, content_type: str = "") -> str:
    """The message with which a deserializer refuses a body."""
    with pytest.raises(DeserializationError) as caught:
        codec.deserialize(body, content_type)
    return str(caught.value)


def attempted(call: Callable[[], Any]) -> Any:
    """The result of a call, or the exception that it may raise."""
    try:
        return call()
    except DeserializationError as error:
        return error


def says(error: BaseException) -> list[str]:
    """The messages of an error, its causes and contexts."""
    return [str(one) for one in chain(error)]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Color(enum.Enum):
    RED = 1


class Frame:
    """A table that iterates over the names of its columns, as DataFrames do."""

    columns = ("a", "b")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


def nested(levels: int, inner: Any) -> Any:
    for _ in range(levels):
        inner = [inner]
    return inner


def header(shape: str) -> bytes:
    """An NPY file that declares an array of bytes but lacks its data."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
