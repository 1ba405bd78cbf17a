"""Text and bytes, which are sent as they are."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt.serializers import BYTES, TEXT
from tests.endpoint.serializers.samples import refused


@given(st.text())
def test_text_round_trip(text: str) -> None:
    assert TEXT.serialize(text) == text.encode()
    assert TEXT.deserialize(TEXT.serialize(text), TEXT.content_type) == text


@pytest.mark.parametrize("data", [b"a", bytearray(b"a"), 1, None, ["a"]])
def test_text_takes_only_text(data: Any) -> None:
    assert refused(data, TEXT) == f"data must be a str; got a {type(data).__name__}"


@given(st.binary())
def test_bytes_round_trip(data: bytes) -> None:
    for kind in (bytes, bytearray, memoryview):
        assert BYTES.serialize(kind(data)) == data
    assert BYTES.deserialize(data, "") is data
    assert BYTES.serialize(memoryview(data)[::2]) == data[::2]


@pytest.mark.parametrize("data", ["a", 1, None, [1], np.zeros(2), io.BytesIO(b"a")])
def test_bytes_takes_only_bytes(data: Any) -> None:
    assert refused(data, BYTES) == f"data must be bytes; got a {type(data).__name__}"
