"""The event-stream decoder and encoder, case by case."""

import copy
import io
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from aiosmrt._wire import eventstream
from aiosmrt._wire.eventheaders import EventHeaders, HeaderValue, parse_headers
from aiosmrt._wire.eventstream import (
    MAX_HEADERS_BYTES,
    MAX_PAYLOAD_BYTES,
    Decoder,
    encode_exception,
    encode_payload_part,
)
from aiosmrt.errors import (
    AiosmrtError,
    ChecksumMismatchError,
    EventStreamFormatError,
    FrameLengthError,
    HeaderFormatError,
    TruncatedStreamError,
)
from tests.support.eventstream import encode, encode_error, encode_headers, seal

PART = {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}


def decode(stream: bytes, chunk_bytes: int | None = None) -> list[Any]:
    decoder = Decoder()
    step = chunk_bytes or max(1, len(stream))
    messages = [message for at in range(0, len(stream), step) for message in decoder.feed(stream[at : at + step])]
    decoder.finish()
    return messages


# -- the format ------------------------------------------------------------------------------------------------------

# Written out byte for byte; the first three are vectors that AWS's SDKs share.
VECTORS: list[tuple[str, dict[str, Any], bytes]] = [
    ("00000010 00000000 05c248eb 7d98c8ff", {}, b""),
    ("0000001d 00000000 fd528c5a 7b27666f6f273a27626172277d c3653936", {}, b"{'foo':'bar'}"),
    (
        (
            "0000003d 00000020 07fd8396 0c636f6e74656e742d74797065 07 0010 6170706c69636174696f6e2f6a736f6e"
            "7b27666f6f273a27626172277d 8d9c08b1"
        ),
        {"content-type": "application/json"},
        b"{'foo':'bar'}",
    ),
]


@pytest.mark.parametrize(("frame", "headers", "payload"), VECTORS)
def test_vectors(frame: str, headers: dict[str, Any], payload: bytes) -> None:
    octets = bytes.fromhex(frame)
    assert decode(octets) == [(headers, payload)]


TYPES: list[tuple[str, bool | int | bytes | str]] = [
    ("00", True),
    ("01", False),
    ("02 80", -128),
    ("03 8000", -(2**15)),
    ("04 7fffffff", 2**31 - 1),
    ("05 8000000000000000", -(2**63)),
    ("05 0000000080000000", 2**31),
    ("06 0003 00ff80", b"\x00\xff\x80"),
    ("06 0000", b""),
    ("07 0005 c3a9e282ac", "é€"),
    ("07 0000", ""),
    ("08 00000173c4b6b6b4", 0x173C4B6B6B4),
    ("09 000102030405060708090a0b0c0d0e0f", bytes(range(16))),
]


@pytest.mark.parametrize(("octets", "value"), TYPES)
def test_header_types(octets: str, value: HeaderValue) -> None:
    parsed = parse_headers(b"\x01n" + bytes.fromhex(octets))["n"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_payload_part() -> None:
    for payload in (b"", b"x", bytes(70_000)):
        assert encode_payload_part(payload) == encode(PART, payload)


def test_exception() -> None:
    frame = encode_exception("ModelStreamError", b'{"ErrorCode": "StreamBroken"}')
    headers = {
        ":exception-type": "ModelStreamError",
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    assert frame == encode(headers, b'{"ErrorCode": "StreamBroken"}')
    [(parsed, _)] = decode(frame)
    assert (parsed.message_type, parsed.exception_type, parsed.event_type) == ("exception", "ModelStreamError", None)
    assert parsed.content_type == "application/json"


def test_error() -> None:
    [(headers, payload)] = decode(encode_error("InternalError", "why"))
    assert (headers.message_type, headers.error_code, headers.error_message) == ("error", "InternalError", "why")
    assert payload == b""


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_payload_may_be_any_buffer(make: Callable[[bytes], Any]) -> None:
    assert encode_payload_part(make(b"abc")) == encode_payload_part(b"abc")


def test_payload_size_is_counted_in_bytes() -> None:
    words = memoryview(bytes(8)).cast("I")
    assert encode_payload_part(words) == encode_payload_part(bytes(8))


def test_encode_refuses_a_payload_over_the_limit() -> None:
    with pytest.raises(FrameLengthError, match="25165825"):
        encode_payload_part(bytes(MAX_PAYLOAD_BYTES + 1))


def test_largest_frame() -> None:
    headers: dict[str, bytes] = {str(index): b"x" * 32764 for index in range(4)}
    headers["0"] = b"x" * (32764 - len(encode_headers(headers)) + MAX_HEADERS_BYTES)
    payload = bytes(MAX_PAYLOAD_BYTES)
    frame = encode(headers, payload)
    assert len(frame) == 16 + MAX_HEADERS_BYTES + MAX_PAYLOAD_BYTES
    assert decode(frame) == [(headers, payload)]
    assert decode(frame, 1_000_000) == [(headers, payload)]


# -- headers ---------------------------------------------------------------------------------------------------------


def test_headers_are_shared_and_immutable() -> None:
    (first, _), (second, _), (third, _) = decode(encode_payload_part(b"a") * 2 + encode_payload_part(b"longer"))
    assert first is second is third
    assert first == PART
    assert dict(first) == PART
    assert first != {**PART, "more": True}
    for attribute in ("message_type", "_values", "other"):
        with pytest.raises(AttributeError):
            setattr(first, attribute, "x")
    with pytest.raises(AttributeError):
        del first.message_type
    assert not hasattr(first, "__setitem__")
    for again in (copy.copy(first), copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert again == first
        assert again.event_type == "PayloadPart"


def test_headers_do_not_follow_their_source() -> None:
    source: dict[str, HeaderValue] = {":event-type": "PayloadPart"}
    headers = EventHeaders(source)
    source["more"] = True
    assert list(headers) == [":event-type"]


def test_named_header_of_another_type_counts_as_missing() -> None:
    [(headers, _)] = decode(encode({":message-type": b"event", ":event-type": 3}))
    assert headers.message_type is None
    assert headers.event_type is None
    assert headers[":message-type"] == b"event"


HEADER_FAULTS: dict[str, bytes] = {
    "name over the end": b"\x05abc",
    "no type": b"\x03abc",
    "no name": b"\x00\x00",
    "type 10": b"\x01n\x0a",
    "type 255": b"\x01n\xff",
    "byte cut off": b"\x01n\x02",
    "short cut off": b"\x01n\x03\x00",
    "integer cut off": b"\x01n\x04\x00\x00\x00",
    "long cut off": b"\x01n\x05" + bytes(7),
    "bytes without a length": b"\x01n\x06\x00",
    "bytes cut off": b"\x01n\x06\x00\x02a",
    "string without a length": b"\x01n\x07",
    "string cut off": b"\x01n\x07\xff\xff" + b"a" * 100,
    "timestamp cut off": b"\x01n\x08" + bytes(7),
    "uuid cut off": b"\x01n\x09" + bytes(15),
    "name twice": b"\x01n\x00\x01n\x01",
    "name not UTF-8": b"\x01\xff\x00",
    "string not UTF-8": b"\x01n\x07\x00\x02\xc3\x28",
    "string a surrogate": b"\x01n\x07\x00\x03\xed\xa0\x80",
    "good header before": b"\x01a\x00\x05abc",
}


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("block", HEADER_FAULTS.values(), ids=list(HEADER_FAULTS))
def test_malformed_headers(block: bytes, chunk_bytes: int | None) -> None:
    with pytest.raises(HeaderFormatError):
        decode(seal(block, b"payload"), chunk_bytes)


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [None, 1, 7])
def test_every_flipped_byte_is_noticed(chunk_bytes: int | None) -> None:
    frame = encode_payload_part(b"twelve bytes")
    for index in range(len(frame)):
        damaged = bytearray(frame * 2)
        damaged[len(frame) + index] ^= 0x10
        decoder = Decoder()
        step = chunk_bytes or len(damaged)
        messages: list[Any] = []
        for at in range(0, len(damaged), step):
            if decoder.failure is None:
                try:
                    messages += decoder.feed(bytes(damaged[at : at + step]))
                except ChecksumMismatchError:
                    assert chunk_bytes is not None
        assert isinstance(decoder.failure, ChecksumMismatchError)
        assert messages == [(PART, b"twelve bytes")]


@pytest.mark.parametrize("chunk_bytes", [None, 1])
def test_every_cut_off_end_is_noticed(chunk_bytes: int | None) -> None:
    frames = [encode_payload_part(b"first"), encode({}), encode({}, b"x" * 30)]
    stream = b"".join(frames)
    boundaries = {0: 0, len(frames[0]): 1, len(frames[0]) + len(frames[1]): 2, len(stream): 3}
    for end in range(len(stream) + 1):
        decoder = Decoder()
        step = chunk_bytes or max(1, end)
        messages = [message for at in range(0, end, step) for message in decoder.feed(stream[at : min(end, at + step)])]
        whole = max(boundary for boundary in boundaries if boundary <= end)
        assert len(messages) == boundaries[whole]
        assert decoder.pending_bytes == end - whole
        if end == whole:
            decoder.finish()
        else:
            with pytest.raises(TruncatedStreamError, match=rf"after {end - whole} bytes"):
                decoder.finish()


LENGTH_FAULTS: dict[str, tuple[int, int]] = {
    "total 0": (0, 0),
    "total below the framing": (15, 0),
    "headers do not fit": (100, 85),
    "headers over the limit": (MAX_HEADERS_BYTES + 100, MAX_HEADERS_BYTES + 1),
    "payload over the limit": (16 + MAX_PAYLOAD_BYTES + 1, 0),
    "everything": (2**32 - 1, 2**32 - 1),
    "total only": (2**32 - 1, 0),
    "headers only": (16, 2**32 - 1),
}


@pytest.mark.parametrize("after", [0, 1, 300_000])
@pytest.mark.parametrize(("total", "headers"), LENGTH_FAULTS.values(), ids=list(LENGTH_FAULTS))
def test_length_is_refused_before_anything_is_held(total: int, headers: int, after: int) -> None:
    prelude = seal(b"", total=total, headers=headers)[:12]
    decoder = Decoder()
    with pytest.raises(FrameLengthError):
        decoder.feed(prelude + bytes(after))
    assert decoder.pending_bytes == 0

    decoder = Decoder()
    for octet in prelude[:-1]:
        assert decoder.feed(bytes((octet,))) == []
    with pytest.raises(FrameLengthError):
        decoder.feed(prelude[-1:])
    assert decoder.pending_bytes == 0


def test_failed_decoder_stays_failed() -> None:
    decoder = Decoder()
    good = encode_payload_part(b"good")
    broken = good[:-1] + bytes((good[-1] ^ 1,))
    with pytest.raises(ChecksumMismatchError) as first:
        decoder.feed(broken + good)
    for again in (lambda: decoder.feed(good), lambda: decoder.feed(b""), decoder.finish):
        with pytest.raises(ChecksumMismatchError) as later:
            again()
        # A new object each time: what a caller notes on one error does not show on the next.
        assert later.value is not first.value
        assert str(later.value) == str(first.value)
    assert decoder.pending_bytes == 0
    assert "failed" in repr(decoder)


def test_finish_inside_a_frame_fails_for_good() -> None:
    decoder = Decoder()
    frame = encode_payload_part(b"x" * 100)
    decoder.feed(frame[:150])
    for _ in range(2):
        with pytest.raises(TruncatedStreamError, match=f"150 bytes of a frame of {len(frame)} bytes"):
            decoder.finish()
    with pytest.raises(TruncatedStreamError):
        decoder.feed(frame[150:])


def test_messages_before_a_fault_are_not_lost() -> None:
    decoder = Decoder()
    assert decoder.failure is None
    good = encode_payload_part(b"good")
    messages: list[Any] = decoder.feed(good * 3 + b"\0" * 12)
    assert messages == [(PART, b"good")] * 3
    assert isinstance(decoder.failure, ChecksumMismatchError)
    with pytest.raises(ChecksumMismatchError):
        decoder.feed(b"")


def test_errors_and_reprs_quote_nothing() -> None:
    secret = b"secret"
    frame = encode({":error-message": "secret"}, secret * 10)
    corrupt = frame[:-1] + bytes((frame[-1] ^ 1,))
    faults = [
        corrupt,
        seal(b"\x06secret\x07\xff\xff"),
        seal(b"\x06secret\x00\x06secret\x00"),
        seal(b"\x07secret\xff\x00"),
    ]
    for fault in faults:
        decoder = Decoder()
        with pytest.raises(EventStreamFormatError) as caught:
            decoder.feed(fault)
        assert isinstance(caught.value, AiosmrtError)
        assert caught.value.__cause__ is None
        assert "secret" not in str(caught.value) + repr(caught.value)
    [(headers, _)] = decode(frame)
    assert ":error-message" in repr(headers)
    assert "secret" not in repr(headers)
    held = Decoder()
    held.feed(frame[:-1])
    assert "secret" not in repr(held)


# -- buffers and work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 11, 100, 169, 4000, 70_000])
def test_chunk_may_be_used_again(chunk_bytes: int) -> None:
    parts = [b"a" * 64] * 5 + [b"b" * 5000, b"", b"c" * 64, b"d" * 30_000] * 2
    stream = b"".join(map(encode_payload_part, parts))
    decoder = Decoder()
    buffer = bytearray(chunk_bytes)
    messages: list[Any] = []
    for at in range(0, len(stream), chunk_bytes):
        piece = stream[at : at + chunk_bytes]
        buffer[: len(piece)] = piece
        with memoryview(buffer) as view:
            messages += decoder.feed(view[: len(piece)])
        buffer[:] = bytes(chunk_bytes)
    decoder.finish()
    assert [payload for _, payload in messages] == parts
    assert all(type(payload) is bytes for _, payload in messages)
    buffer.extend(b"no view of it is left")


def test_odd_buffers() -> None:
    frame = encode_payload_part(b"x" * 67)  # 172 bytes
    words = memoryview(frame).cast("I")
    spread = memoryview(b"".join(bytes((octet, 0)) for octet in frame))[::2]
    for chunk in (bytearray(frame), words, spread, memoryview(frame).cast("B", (4, len(frame) // 4))):
        messages: list[Any] = Decoder().feed(chunk)
        assert messages == [(PART, b"x" * 67)]
    for empty in (b"", bytearray(), memoryview(b"")):
        assert Decoder().feed(empty) == []
    with pytest.raises(TypeError):
        Decoder().feed("text")  # type: ignore[arg-type]


def test_what_is_kept_is_bounded() -> None:
    decoder = Decoder()
    for index in range(2000):
        decoder.feed(encode({"index": index, "pad": b"x" * (index % 7)}, b"x" * (index % 500)))
        decoder.feed(encode({"large": b"x" * (2000 + index % 500)}))
    decoder.finish()
    assert 0 < len(decoder._heads) <= 256
    assert 0 < len(decoder._header_blocks) <= 256
    assert max(map(len, decoder._heads)) <= 1024
    assert max(map(len, decoder._header_blocks)) <= 1024


class Work:
    """Counts the bytes that go through the decoder's checksums and into its buffer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.summed = 0
        self.written = 0
        work = self

        class CountingBytesIO(io.BytesIO):
            def write(self, octets: Any, /) -> int:
                work.written += len(octets)
                return super().write(octets)

        def crc32(octets: Any, start: int = 0) -> int:
            work.summed += len(octets)
            return zlib.crc32(octets, start)

        monkeypatch.setattr(eventstream, "crc32", crc32)
        monkeypatch.setattr(eventstream, "BytesIO", CountingBytesIO)


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 8192, 2**20])
def test_work_is_linear(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = bytes(300_000)
    headers: dict[str, bytes] = {str(index): b"x" * 30_000 for index in range(4)}
    stream = encode(headers, payload)
    work = Work(monkeypatch)
    decoder = Decoder()
    chunks = [stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes)]
    largest = 0
    for chunk in chunks[:-1]:
        before = work.summed + work.written
        assert decoder.feed(chunk) == []
        largest = max(largest, work.summed + work.written - before)
    before = work.summed + work.written
    messages: list[Any] = decoder.feed(chunks[-1])
    assert messages == [(headers, payload)]
    last = work.summed + work.written - before
    # Each byte is summed once, the prelude twice or thrice, and each byte of a payload is written once at most.
    assert len(stream) - 4 <= work.summed <= len(stream) + 24
    assert work.written in (0, len(payload))
    # No chunk pays for those before it, but for the one that completes the headers.
    assert largest <= 2 * chunk_bytes + len(encode_headers(headers)) + 36
    if len(chunks) > 1:
        assert last <= 2 * chunk_bytes


def test_known_head_is_not_summed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = encode_payload_part(b"x" * 64)
    decoder = Decoder()
    decoder.feed(frame)
    work = Work(monkeypatch)
    for _ in range(10):
        decoder.feed(frame)
    assert work.summed == 10 * 64
    assert work.written == 0
