"""What the local runtime makes of HTTP/2 that is wrong or rare: the cases of RFC 9113 and RFC 7541, by section.

The choice of cases is h2spec's. A connection error is a GOAWAY and the end of the connection, a stream error a
RST_STREAM; where the RFC lets a server choose, the test does.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import pytest
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder

from aiosmrt.local import Invocation
from tests.support.runtime import local_runtime

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED = 0x4, 0x8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW = 2**31 - 1
MAX_FRAME_BYTES = 2**14
MAX_STREAMS = 3
GREETING = b"a greeting that comes before any message"

PROTOCOL = {ErrorCodes.PROTOCOL_ERROR}
FRAME_SIZE = {ErrorCodes.FRAME_SIZE_ERROR}
FLOW_CONTROL = {ErrorCodes.FLOW_CONTROL_ERROR}
COMPRESSION = {ErrorCodes.COMPRESSION_ERROR}
STREAM_CLOSED = {ErrorCodes.STREAM_CLOSED}
# 5.1: a closed stream may be forgotten, and is then an error of the connection.
CLOSED_OR_FORGOTTEN = STREAM_CLOSED | PROTOCOL

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    (":path", "/endpoints/echo/invocations-bidirectional-stream"),
]


class Frame(NamedTuple):
    """A frame as it comes."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(fields: Sequence[tuple[str, str]] = REQUEST) -> bytes:
    """A header block that needs no table."""
    return Encoder().encode([(name, value, True) for name, value in fields], huffman=False)


def head(
    fields: Sequence[tuple[str, str]] = REQUEST, *, stream: int = 1, flags: int = END_HEADERS, end: bool = False
) -> bytes:
    return frame(HEADERS, block(fields), stream=stream, flags=flags | (END_STREAM if end else 0))


def setting(code: int, value: int) -> bytes:
    return frame(SETTINGS, struct.pack(">HI", code, value))


def window(increment: int, stream: int = 0) -> bytes:
    return frame(WINDOW_UPDATE, struct.pack(">I", increment), stream=stream)


def reset(stream: int, code: int = ErrorCodes.CANCEL) -> bytes:
    return frame(RST_STREAM, struct.pack(">I", code), stream=stream)


def data(payload: bytes = b"x", *, stream: int = 1, flags: int = 0) -> bytes:
    return frame(DATA, payload, stream=stream, flags=flags)


def changed(name: str, *values: str) -> list[tuple[str, str]]:
    """The request with other values of a field, or without it."""
    found = [field for field in REQUEST if field[0] != name]
    return [*((name, value) for value in values), *found] if name.startswith(":") else [*found, (name, values[0])]


async def echo(invocation: Invocation) -> AsyncIterator[bytes]:
    assert invocation.messages is not None
    yield GREETING
    async for message in invocation.messages:
        assert isinstance(message.data, bytes)
        yield message.data


class Wire:
    """A connection to the runtime, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def write(self, octets: bytes) -> None:
        self._writer.write(octets)

    async def frame(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        try:
            start = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(start[:3]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        kind, flags, stream = struct.unpack(">BBI", start[3:])
        return Frame(kind, flags, stream, payload)

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The next frame that is wanted; a GOAWAY fails the test."""
        while True:
            found = await self.frame()
            assert found is not None, "the connection was ended"
            if wanted(found):
                return found
            assert found.kind != GOAWAY, found

    async def pong(self, payload: bytes = b"in order") -> None:
        """Ask for a sign of life, behind which everything before has been dealt with."""
        self.write(frame(PING, payload))
        await self.until(lambda found: found == Frame(PING, ACK, 0, payload))

    async def failure(self) -> Frame:
        """The frame that tells of an error; after a GOAWAY, the connection must end."""
        while (found := await self.frame()) is not None:
            if found.kind == RST_STREAM:
                return found
            if found.kind == GOAWAY and int.from_bytes(found.payload[4:8]) != ErrorCodes.NO_ERROR:
                while await self.frame() is not None:
                    pass
                return found
        raise AssertionError("the connection was ended without a word")


@asynccontextmanager
async def wire(*, preface: bytes = PREFACE + frame(SETTINGS)) -> AsyncIterator[Wire]:
    async with local_runtime(
        {"echo": echo}, http2_port=0, http2_max_streams=MAX_STREAMS, verify_signatures=False, drain_timeout=0.0
    ) as runtime:
        host, port = runtime.http2_url.partition("//")[2].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(preface)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


HALF_CLOSED = head(end=True)
CLOSED = head() + reset(1)
LITERAL = b"\x00\x01a\x01b"

CONNECTION_ERRORS: dict[str, tuple[bytes, set[ErrorCodes]]] = {
    "4.2 a frame that is too large": (head() + data(bytes(MAX_FRAME_BYTES + 1)), FRAME_SIZE),
    "4.2 a head that is too large": (
        frame(HEADERS, block() + LITERAL * 4000, stream=1, flags=END_HEADERS),
        FRAME_SIZE,
    ),
    "4.3 a header block that cannot be decoded": (
        frame(HEADERS, b"\x40\x01\xff", stream=1, flags=END_HEADERS),
        COMPRESSION,
    ),
    "4.3 another frame inside a header block": (
        frame(HEADERS, block(), stream=1) + frame(PRIORITY, bytes(5), stream=1),
        PROTOCOL,
    ),
    "4.3 another stream inside a header block": (frame(HEADERS, block(), stream=1) + head(stream=3), PROTOCOL),
    "5.1 DATA on an idle stream": (data(), PROTOCOL),
    "5.1 RST_STREAM on an idle stream": (reset(1), PROTOCOL),
    "5.1 WINDOW_UPDATE on an idle stream": (window(100, 1), PROTOCOL),
    "5.1 CONTINUATION on an idle stream": (frame(CONTINUATION, block(), stream=1, flags=END_HEADERS), PROTOCOL),
    "5.1 CONTINUATION after the head": (head() + frame(CONTINUATION, LITERAL, stream=1, flags=END_HEADERS), PROTOCOL),
    "5.1.1 an even stream": (head(stream=2), PROTOCOL),
    "5.1.1 a smaller stream": (head(stream=5) + head(stream=3), PROTOCOL | STREAM_CLOSED),
    "5.5 an unknown frame inside a header block": (
        frame(HEADERS, block(), stream=1) + frame(0x16, b"x", stream=1),
        PROTOCOL,
    ),
    "6.1 DATA on stream 0": (head() + data(stream=0), PROTOCOL),
    "6.1 more padding than frame": (head() + data(b"\x09x", flags=PADDED), PROTOCOL),
    "6.2 HEADERS on stream 0": (head(stream=0), PROTOCOL),
    "6.2 more padding than head": (
        frame(HEADERS, b"\xff" + block(), stream=1, flags=END_HEADERS | PADDED),
        PROTOCOL,
    ),
    "6.3 PRIORITY on stream 0": (frame(PRIORITY, bytes(5)), PROTOCOL),
    "6.4 RST_STREAM on stream 0": (reset(0), PROTOCOL),
    "6.4 RST_STREAM of another length": (head() + frame(RST_STREAM, bytes(3), stream=1), FRAME_SIZE),
    "6.5 an acknowledgement with settings": (
        frame(SETTINGS, struct.pack(">HI", 4, 1), flags=ACK),
        # h2 has another code for it than the RFC.
        FRAME_SIZE | PROTOCOL,
    ),
    "6.5 SETTINGS on a stream": (frame(SETTINGS, b"", stream=1), PROTOCOL),
    "6.5 SETTINGS of another length": (frame(SETTINGS, bytes(3)), FRAME_SIZE),
    "6.5.2 ENABLE_PUSH of 2": (setting(2, 2), PROTOCOL),
    "6.5.2 a window that is too large": (setting(4, MAX_WINDOW + 1), FLOW_CONTROL),
    "6.5.2 MAX_FRAME_SIZE below the least": (setting(5, MAX_FRAME_BYTES - 1), PROTOCOL),
    "6.5.2 MAX_FRAME_SIZE above the most": (setting(5, 2**24), PROTOCOL),
    "6.7 PING on a stream": (frame(PING, bytes(8), stream=1), PROTOCOL),
    "6.7 PING of another length": (frame(PING, bytes(6)), FRAME_SIZE),
    "6.8 GOAWAY on a stream": (frame(GOAWAY, bytes(8), stream=1), PROTOCOL),
    "6.9 WINDOW_UPDATE of 0": (window(0), PROTOCOL),
    "6.9 WINDOW_UPDATE of another length": (frame(WINDOW_UPDATE, bytes(3)), FRAME_SIZE),
    "6.9.1 a window above the most": (window(MAX_WINDOW) + window(MAX_WINDOW), FLOW_CONTROL),
    "6.9.2 a first window above the most, by SETTINGS": (
        head() + window(MAX_WINDOW - 100_000, 1) + setting(4, 200_000),
        FLOW_CONTROL,
    ),
    "6.10 CONTINUATION on stream 0": (
        frame(HEADERS, block(), stream=1) + frame(CONTINUATION, LITERAL, flags=END_HEADERS),
        PROTOCOL,
    ),
    "6.10 CONTINUATION after DATA": (
        head() + data() + frame(CONTINUATION, LITERAL, stream=1, flags=END_HEADERS),
        PROTOCOL,
    ),
    "8.4 PUSH_PROMISE": (
        head() + frame(PUSH_PROMISE, struct.pack(">I", 2) + block(), stream=1, flags=END_HEADERS),
        PROTOCOL,
    ),
    "HPACK 6.1 index 0": (frame(HEADERS, block() + b"\x80", stream=1, flags=END_HEADERS), COMPRESSION),
    "HPACK 2.3.3 an index beyond the table": (
        frame(HEADERS, block() + b"\xff\x0a", stream=1, flags=END_HEADERS),
        COMPRESSION,
    ),
    "HPACK 4.2 a new table size after fields": (
        frame(HEADERS, block() + b"\x21", stream=1, flags=END_HEADERS),
        COMPRESSION,
    ),
    "HPACK 6.3 a table above the setting": (
        frame(HEADERS, b"\x3f\xe2\x1f" + block(), stream=1, flags=END_HEADERS),
        COMPRESSION,
    ),
    "HPACK 5.2 padding that is longer than 7 bits": (
        frame(HEADERS, block() + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff", stream=1, flags=END_HEADERS),
        COMPRESSION,
    ),
    "HPACK 5.2 the end of a string inside it": (
        frame(HEADERS, block() + b"\x00\x87\xff\xff\xff\xfd\xab\x24\xa9\x01b", stream=1, flags=END_HEADERS),
        COMPRESSION,
    ),
}

STREAM_ERRORS: dict[str, tuple[bytes, set[ErrorCodes]]] = {
    "5.1 DATA after the end": (HALF_CLOSED + data(), CLOSED_OR_FORGOTTEN),
    "5.1 HEADERS after the end": (HALF_CLOSED + head([("x-more", "y")], end=True), CLOSED_OR_FORGOTTEN),
    "5.1.2 more streams than allowed": (
        b"".join(head(stream=number * 2 + 1) for number in range(MAX_STREAMS + 1)),
        PROTOCOL | {ErrorCodes.REFUSED_STREAM},
    ),
    "6.3 PRIORITY of another length": (head() + frame(PRIORITY, bytes(4), stream=1), FRAME_SIZE),
    "6.9 WINDOW_UPDATE of 0 on a stream": (head() + window(0, 1), PROTOCOL),
    "6.9.1 a stream's window above the most": (
        head() + window(MAX_WINDOW, 1) + window(MAX_WINDOW, 1),
        FLOW_CONTROL,
    ),
    "8.1 a second head without an end": (head() + head([("x-more", "y")]), PROTOCOL),
    "8.1.1 less DATA than content-length": (
        head(changed("content-length", "2")) + data(flags=END_STREAM),
        PROTOCOL,
    ),
    "8.1.1 more DATA than content-length": (
        head(changed("content-length", "1")) + data(b"xy", flags=END_STREAM),
        PROTOCOL,
    ),
    "8.2.1 a name with a capital": (head(changed("X-Name", "value")), PROTOCOL),
    "8.2.2 a field of the connection": (head(changed("connection", "keep-alive")), PROTOCOL),
    "8.2.2 TE that is not trailers": (head(changed("te", "trailers, deflate;q=0.5")), PROTOCOL),
    "8.3 an unknown pseudo-header": (head(changed(":unknown", "value")), PROTOCOL),
    "8.3 a response's pseudo-header": (head(changed(":status", "200")), PROTOCOL),
    "8.3 an informational response's pseudo-header": (head(changed(":status", "100")), PROTOCOL),
    "8.3 a pseudo-header after another field": (head([("x-name", "value"), *REQUEST]), PROTOCOL),
    "8.3 a pseudo-header in trailers": (head() + head([(":method", "GET")], end=True), PROTOCOL),
    "8.3.1 an empty path": (head(changed(":path", "")), PROTOCOL),
    **{f"8.3.1 no {name}": (head(changed(name)), PROTOCOL) for name in (":method", ":scheme", ":path")},
    **{
        f"8.3.1 {name} twice": (head(changed(name, value, value)), PROTOCOL)
        for name, value in REQUEST
        if name != ":authority"
    },
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
async def test_a_connection_error(name: str) -> None:
    octets, codes = CONNECTION_ERRORS[name]
    async with wire() as connection:
        connection.write(octets)
        found = await connection.failure()
        assert found.kind == GOAWAY
        assert int.from_bytes(found.payload[4:8]) in codes


@pytest.mark.parametrize("name", STREAM_ERRORS)
async def test_a_stream_error(name: str) -> None:
    octets, codes = STREAM_ERRORS[name]
    async with wire() as connection:
        connection.write(octets)
        found = await connection.failure()
        # A server may take any stream error for one of the connection (5.4.2).
        code, stream = (found.payload[4:8], 0) if found.kind == GOAWAY else (found.payload, 1)
        assert int.from_bytes(code) in codes
        assert found.stream == stream


@pytest.mark.parametrize("name", [name for name in STREAM_ERRORS if name.startswith("8.")])
async def test_a_malformed_request_ends_its_stream_and_no_other(name: str) -> None:
    async with wire() as connection:
        connection.write(STREAM_ERRORS[name][0])
        found = await connection.until(lambda frame: frame.kind == RST_STREAM)
        assert (found.stream, int.from_bytes(found.payload)) == (1, ErrorCodes.PROTOCOL_ERROR)
        connection.write(head(stream=3))
        await greeting(connection, 3)


@pytest.mark.parametrize("octets", [bytes(24), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE + frame(PING, bytes(8))])
async def test_another_preface_ends_the_connection(octets: bytes) -> None:
    async with wire(preface=octets) as connection:
        while (found := await connection.frame()) is not None:
            assert found.kind in (SETTINGS, GOAWAY, WINDOW_UPDATE)
            assert found.kind != GOAWAY or int.from_bytes(found.payload[4:8]) != 0


# What is rare, and right


async def greeting(connection: Wire, stream: int = 1) -> bytes:
    """What the stream brings, up to the whole of the model's first message."""
    found = b""
    while GREETING not in found:
        found += (await connection.until(lambda frame: frame.kind == DATA and frame.stream == stream)).payload
    return found


async def _pings(connection: Wire) -> None:
    """6.7: a PING is acknowledged, and an acknowledgement is not."""
    connection.write(frame(PING, b"unasked.", flags=ACK))
    await connection.pong(b"12345678")


async def _unknown(connection: Wire) -> None:
    """4.1, 5.5, 6.5.2, 7: frames, flags, settings and codes that are unknown mean nothing."""
    connection.write(frame(0x16, b"anything", stream=0) + setting(0xFF, 1))
    connection.write(frame(PING, b"flagged.", flags=0xFE))
    await connection.until(lambda found: found == Frame(PING, ACK, 0, b"flagged."))
    connection.write(head(stream=1) + frame(0x16, b"anything", stream=1))
    await greeting(connection)
    connection.write(reset(1, 0xFF) + frame(GOAWAY, struct.pack(">II", 0, 0xFF)) + head(stream=3))
    await greeting(connection, 3)


async def _continuations(connection: Wire) -> None:
    """6.10: a head in several frames."""
    first, second = block()[:5], block()[5:]
    connection.write(frame(HEADERS, first, stream=1) + frame(CONTINUATION, b"", stream=1))
    connection.write(frame(CONTINUATION, second, stream=1, flags=END_HEADERS))
    await greeting(connection)


async def _padding(connection: Wire) -> None:
    """6.1, 6.2: padding is no part of what is sent."""
    connection.write(frame(HEADERS, b"\x05" + block() + bytes(5), stream=1, flags=END_HEADERS | PADDED))
    connection.write(data(b"\x03" + bytes(3), flags=PADDED | END_STREAM))
    await greeting(connection)
    await connection.until(lambda found: found.kind == DATA and bool(found.flags & END_STREAM))


async def _settings(connection: Wire) -> None:
    """6.5.3: SETTINGS are acknowledged, in their order."""
    await connection.until(lambda found: found.kind == SETTINGS and found.flags == ACK)
    connection.write(frame(SETTINGS, struct.pack(">HIHI", 4, 100, 4, 1)) + head())
    await connection.until(lambda found: found.kind == SETTINGS and found.flags == ACK)
    # The last value holds.
    first = await connection.until(lambda found: found.kind == DATA)
    assert len(first.payload) == 1
    await connection.pong()
    connection.write(setting(4, 2))
    assert len((await connection.until(lambda found: found.kind == DATA)).payload) == 1


async def _negative_window(connection: Wire) -> None:
    """6.9.2: a window that has become negative is filled up first."""
    connection.write(setting(4, 3) + head())
    assert len((await connection.until(lambda found: found.kind == DATA)).payload) == 3
    connection.write(setting(4, 2) + window(1, 1))
    await connection.pong()
    connection.write(window(2, 1))
    assert len((await connection.until(lambda found: found.kind == DATA)).payload) == 2


async def _closed_streams(connection: Wire) -> None:
    """5.1: WINDOW_UPDATE, PRIORITY and RST_STREAM may come for a stream that was reset."""
    connection.write(CLOSED + window(100, 1) + frame(PRIORITY, bytes(4) + b"\1", stream=1) + reset(1))
    await connection.pong()
    connection.write(head(stream=3))
    await greeting(connection, 3)


async def _trailers(connection: Wire) -> None:
    """8.1: a second head that ends the request."""
    connection.write(head() + head([("x-trailer", "value")], end=True))
    await greeting(connection)
    await connection.until(lambda found: found.kind == DATA and bool(found.flags & END_STREAM))


@pytest.mark.parametrize(
    "talk", [_pings, _unknown, _continuations, _padding, _settings, _negative_window, _closed_streams, _trailers]
)
async def test_what_is_rare_and_right(talk: Callable[[Wire], Awaitable[None]]) -> None:
    async with wire() as connection:
        await talk(connection)


# Not of the RFC: without signatures, what a web page may have sent is refused, as over HTTP/1.1.


async def status_of(fields: Sequence[tuple[str, str]]) -> str:
    async with wire() as connection:
        connection.write(head(fields))
        answer = await connection.until(lambda found: found.kind == HEADERS)
        return dict(Decoder().decode(answer.payload))[":status"]


@pytest.mark.parametrize(
    "fields",
    [
        changed(":authority", "evil.example"),
        changed("origin", "https://evil.example"),
        changed("origin", "null"),
        changed("origin", "https://localhost"),
        changed("sec-fetch-site", "cross-site"),
        [(":path", "/"), *changed(":authority", "evil.example")[:1], (":method", "POST"), (":scheme", "http")],
    ],
    ids=lambda fields: " ".join(value for _, value in fields[:1] + fields[-1:]),
)
async def test_other_origins_are_refused(fields: list[tuple[str, str]]) -> None:
    assert await status_of(fields) == "403"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]", "LOCALHOST:80"])
async def test_the_own_origin_is_accepted(host: str) -> None:
    own = [*changed(":authority", host), ("origin", f"http://{host}"), ("sec-fetch-site", "same-origin")]
    assert await status_of(own) == "200"
