"""Properties of the event-stream framing on generated input, with botocore's decoder as the oracle."""

import struct
import zlib
from itertools import pairwise
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import example, given
from hypothesis import strategies as st

from aiosmrt._wire.eventheaders import HeaderValue
from aiosmrt._wire.eventstream import Decoder, encode_exception, encode_payload_part
from aiosmrt.errors import EventStreamFormatError
from tests.fuzz.eventstream import check
from tests.support.eventstream import encode


def _signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _fits(text: str) -> bool:
    return len(text.encode()) <= 255


NAMES = st.sampled_from([":event-type", ":message-type", ":content-type"]) | st.text(min_size=1, max_size=255).filter(
    _fits
)
VALUES: st.SearchStrategy[HeaderValue] = st.one_of(
    st.booleans(),
    _signed(64),
    st.binary(max_size=300),
    st.text(max_size=100),
)
HEADERS = st.dictionaries(NAMES, VALUES, max_size=5)
PAYLOADS = st.binary(max_size=200) | st.integers(0, 20_000).map(bytes)
MESSAGES = st.lists(st.tuples(HEADERS, PAYLOADS), max_size=5)


def _decode(chunks: list[bytes]) -> list[Any]:
    decoder = Decoder()
    messages = [message for chunk in chunks for message in decoder.feed(chunk)]
    decoder.finish()
    return messages


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


@given(MESSAGES, st.lists(st.integers(0, 3000), max_size=10))
def test_round_trip_wherever_it_is_cut(messages: list[tuple[dict[str, HeaderValue], bytes]], cuts: list[int]) -> None:
    stream = b"".join(encode(headers, payload) for headers, payload in messages)
    decoded = _decode(_cut(stream, cuts))
    assert decoded == messages
    for (found, _), (expected, _) in zip(decoded, messages, strict=True):
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in expected.items()
        }


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 300))
def test_parts_of_varying_length(parts: list[bytes], chunk_bytes: int) -> None:
    stream = b"".join(map(encode_payload_part, parts * 2))
    chunks = [stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes)]
    assert [payload for _, payload in _decode(chunks)] == parts * 2


@given(st.lists(PAYLOADS, max_size=5), st.from_regex("[A-Za-z]{1,60}", fullmatch=True))
def test_botocore_reads_what_we_write(payloads: list[bytes], exception_type: str) -> None:
    buffer: Any = EventStreamBuffer()
    for payload in payloads:
        buffer.add_data(encode_payload_part(payload))
    buffer.add_data(encode_exception(exception_type, b"{}"))
    *parts, last = [(message.headers, message.payload) for message in buffer]
    assert [payload for _, payload in parts] == payloads
    assert {headers[":event-type"] for headers, _ in parts} <= {"PayloadPart"}
    assert (last[0][":exception-type"], last[1]) == (exception_type, b"{}")


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
@example(b"\0" * 16, [])
def test_nothing_else_escapes(octets: bytes, cuts: list[int]) -> None:
    check(octets, sorted(min(cut, len(octets)) for cut in cuts))


@given(st.binary(max_size=60), st.binary(max_size=20), st.integers(-3, 3), st.lists(st.integers(0, 90), max_size=3))
def test_any_header_block_with_good_checksums(block: bytes, payload: bytes, shift: int, cuts: list[int]) -> None:
    lengths = struct.pack(">II", 16 + len(block) + len(payload), max(0, len(block) + shift))
    before = lengths + struct.pack(">I", zlib.crc32(lengths)) + block + payload
    frame = before + struct.pack(">I", zlib.crc32(before))
    check(frame * 2, sorted(min(cut, len(frame)) for cut in cuts))


@given(HEADERS, st.binary(max_size=50), st.data())
def test_damage_is_noticed(headers: dict[str, HeaderValue], payload: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode(headers, payload))
    index = data.draw(st.integers(0, len(frame) - 1))
    frame[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EventStreamFormatError):
        _decode([bytes(frame)])
