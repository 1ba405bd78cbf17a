"""HTTP/2: flow control in both directions, what breaks a stream, limits, and what is left afterwards."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import GoAwayFrame
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._transport.http2.connection import Connection, Link
from aiosmrt._transport.http2.core import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, Core
from aiosmrt._transport.http2.pool import Http2Pool
from aiosmrt._wire.http2 import FRAME_HEAD, LAST_STREAM_ID, MAX_FRAME_BYTES, header_fields
from aiosmrt._wire.http2 import Connection as Repaired
from aiosmrt.errors import (
    ClientStateError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ResponseStreamingError,
    SSLError,
    TransportError,
)
from tests.support.http2_peer import Http2Server, http2_server
from tests.support.tls import client_context, server_context
from tests.support.virtual_time import VirtualTime

HEADERS = [(":method", "POST"), (":path", "/x"), (":scheme", "http"), (":authority", "x")]


@asynccontextmanager
async def pool_of(
    server: Http2Server, context: ssl.SSLContext | None = None, **arguments: Any
) -> AsyncIterator[Http2Pool]:
    pool = Http2Pool(server.origin, context=context, **arguments)
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.connections == 0


async def begin(pool: Http2Pool, on_change: Callable[[], object] = lambda: None) -> Link:
    link = (await pool.acquire(20.0)).open(HEADERS, on_change)
    assert link is not None
    return link


def frame_of(kind: int, payload: bytes, flags: int = 0, stream: int = 1) -> bytes:
    return FRAME_HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


async def everything(link: Link) -> bytes:
    data = b""
    while chunk := await link.read():
        data += chunk
    return data


async def test_both_directions_at_once() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        assert link.write(memoryview(b"up")) == 2
        assert await peer.data(stream, 2) == b"up"
        peer.answer(stream, x_name="value")
        await link.wait_for_head()
        assert (link.status, link.headers) == (200, {"x-name": "value"})
        for word in (b"one", b"two"):
            peer.send(stream, word)
            assert await link.read() == word
            assert link.write(memoryview(word)) == len(word)
            assert await peer.data(stream, len(word)) == word
        link.end_input()
        await peer.end(stream)
        peer.send(stream, b"last", end=True)
        assert await everything(link) == b"last"
        link.close()
        # The same connection serves the next one.
        await begin(pool)
        assert await peer.request() == 3
        assert pool.connections == 1


async def test_the_request_waits_for_the_servers_window() -> None:
    changes = asyncio.Event()
    async with http2_server(window=1000) as server, pool_of(server) as pool:
        link = await begin(pool, changes.set)
        peer = await server.peer()
        stream = await peer.request()
        data = memoryview(bytes(range(250)) * 20)
        sent = link.write(data)
        assert sent == 1000
        assert link.write(data[sent:]) == 0
        found = b""
        while sent < len(data):
            found += await peer.data(stream, 1000)
            while not (step := link.write(data[sent:])):
                changes.clear()
                await changes.wait()
            sent += step
        found += await peer.data(stream, len(data) - len(found))
        assert found == data


async def test_a_fast_server_fills_one_window_and_no_more() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        slow, other = await begin(pool), await begin(pool)
        peer = await server.peer()
        first, second = await peer.request(), await peer.request()
        peer.answer(first)
        peer.answer(second)
        total = 3 * STREAM_WINDOW_BYTES

        async def fill() -> None:
            left = total
            while left:
                room = min(peer.h2.local_flow_control_window(first), peer.h2.max_outbound_frame_size, left)
                if room:
                    peer.send(first, bytes(room))
                    left -= room
                else:
                    await peer.event(WindowUpdated)
            peer.h2.end_stream(first)
            peer.flush()

        filling = asyncio.create_task(fill())
        await slow.wait_for_head()
        # A message on the other stream comes through while this one is full: the connection's window is open.
        while peer.h2.local_flow_control_window(first):
            await asyncio.sleep(0)
        peer.send(second, b"through")
        assert await other.read() == b"through"
        assert not filling.done()
        received = bytearray()
        while chunk := await slow.read():
            assert len(chunk) <= STREAM_WINDOW_BYTES
            received += chunk
        assert len(received) == total
        await filling


BREAKS: dict[str, tuple[Callable[[Any, int], object], str]] = {
    "reset": (lambda peer, stream: peer.h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR), "INTERNAL_ERROR"),
    "cut": (lambda peer, stream: peer.abort(), "lost"),
    "closed": (lambda peer, stream: peer.transport.close(), "lost"),
    "goaway": (
        lambda peer, stream: peer.write_raw(GoAwayFrame(0, last_stream_id=0, error_code=2).serialize()),
        "begun",
    ),
    "malformed": (lambda peer, stream: peer.write_raw(b"\0\0\x01\x00\x00\0\0\0\0x"), "violated"),
}


@pytest.mark.parametrize("after_head", [False, True])
@pytest.mark.parametrize("name", BREAKS)
async def test_what_breaks_a_stream_is_an_error_and_never_its_end(name: str, after_head: bool) -> None:
    act, text = BREAKS[name]
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        if after_head:
            peer.answer(stream)
            await link.wait_for_head()
            peer.send(stream, b"before")
            assert await link.read() == b"before"
        act(peer, stream)
        peer.flush()
        with pytest.raises(ResponseStreamingError if after_head else ConnectionClosedError, match=text):
            await (link.read() if after_head else link.wait_for_head())
        assert link.is_over
        assert link.write(memoryview(b"x")) == 0


async def test_what_came_before_a_break_is_read_first() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        peer.answer(stream)
        await link.wait_for_head()
        peer.h2.send_data(stream, b"before")
        peer.h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
        peer.flush()
        assert await link.read() == b"before"
        with pytest.raises(ResponseStreamingError):
            await link.read()


async def test_an_end_before_the_head_is_an_error() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        peer.answer(stream, 204, end=True)
        await link.wait_for_head()
        assert await everything(link) == b""


@pytest.mark.parametrize("code", ErrorCodes)
async def test_a_reset_after_the_end_is_an_end_unless_its_code_is_a_failure(code: ErrorCodes) -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        peer.answer(stream)
        await link.wait_for_head()
        peer.h2.send_data(stream, b"all", end_stream=True)
        peer.h2.reset_stream(stream, code)
        peer.flush()
        assert await link.read() == b"all"
        if code in (ErrorCodes.NO_ERROR, ErrorCodes.CANCEL):
            assert await everything(link) == b""
        else:
            with pytest.raises(ResponseStreamingError):
                await link.read()
        link.close()


async def test_a_graceful_goaway_lets_streams_finish_and_takes_no_more() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        peer.answer(stream)
        peer.write_raw(GoAwayFrame(0, last_stream_id=LAST_STREAM_ID).serialize())
        peer.send(stream, b"one")
        await link.wait_for_head()
        assert await link.read() == b"one"
        assert link.write(memoryview(b"up")) == 2
        assert await peer.data(stream, 2) == b"up"
        await begin(pool)
        assert await (await server.peer(1)).request() == 1
        peer.send(stream, b"two", end=True)
        assert await everything(link) == b"two"
        link.end_input()
        link.close()
        await peer.lost.wait()


@pytest.mark.parametrize("status", [408, 421])
async def test_a_status_that_asks_for_another_connection_lets_other_streams_finish(status: int) -> None:
    async with http2_server() as server, pool_of(server) as pool:
        refused, other = await begin(pool), await begin(pool)
        peer = await server.peer()
        first, second = await peer.request(), await peer.request()
        peer.answer(first, status, end=True)
        await refused.wait_for_head()
        refused.close()
        await begin(pool)
        assert await (await server.peer(1)).request() == 1
        peer.answer(second)
        peer.send(second, b"two", end=True)
        assert await everything(other) == b"two"
        other.end_input()
        other.close()
        await peer.lost.wait()


async def test_a_limit_of_streams_opens_another_connection() -> None:
    async with http2_server(max_streams=2) as server, pool_of(server) as pool:
        links = await asyncio.gather(*(begin(pool) for _ in range(7)))
        assert len(links) == 7
        assert pool.connections == 4
        links[0].close()
        await begin(pool)
        assert pool.connections == 4


async def test_a_server_that_allows_no_stream_is_an_error() -> None:
    async with http2_server(max_streams=0) as server, pool_of(server) as pool:
        with pytest.raises(EndpointConnectionError, match="allows no streams"):
            await pool.acquire(20.0)


@pytest.mark.parametrize(
    ("answer", "closes", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", False, "does not speak HTTP/2"),
        (b"HTTP/1.1 400", True, "does not speak HTTP/2"),
        (b"", True, "closed the connection"),
    ],
)
async def test_a_server_of_another_protocol_is_an_error_at_once(answer: bytes, closes: bool, text: str) -> None:
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        writer.write(answer)
        if not closes:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        pool = Http2Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", context=None)
        with pytest.raises(EndpointConnectionError, match=text):
            await pool.acquire(None)
        done.set()
        await pool.close()


async def test_leaving_early_resets_the_stream() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        link.close()
        assert (await peer.event(StreamReset, stream_id=stream)).error_code == ErrorCodes.CANCEL
        assert await link.read() == b""


async def test_closing_fails_streams_and_says_goodbye() -> None:
    async with http2_server() as server:
        async with pool_of(server) as pool:
            link = await begin(pool)
            peer = await server.peer()
            await peer.request()
            waiting = asyncio.create_task(link.wait_for_head())
            await asyncio.sleep(0)
        await peer.event(ConnectionTerminated)
        with pytest.raises(ClientStateError, match="closed during the call"):
            await waiting
        with pytest.raises(ClientStateError):
            await pool.acquire(20.0)


async def test_a_dead_peer_is_noticed(virtual_time: VirtualTime) -> None:
    async with http2_server() as server, pool_of(server, ping_after=5.0, ping_limit=3.0) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        peer.answer(stream)
        await link.wait_for_head()
        # A peer that answers PINGs may be silent for as long as it likes. What it sends afterwards shows that its
        # answer has arrived.
        for _ in range(3):
            await virtual_time.advance(5.0)
            await peer.event(PingReceived)
            peer.send(stream, b"x")
            assert await link.read() == b"x"
        waiting = asyncio.create_task(link.read())
        peer.is_silent = True
        await virtual_time.advance(5.0)
        await virtual_time.advance(3.1)
        with pytest.raises(ResponseStreamingError, match="dead"):
            await waiting


async def test_no_settings_in_time_is_a_connect_timeout() -> None:
    async with http2_server(withholds_settings=True) as server, pool_of(server) as pool:
        with pytest.raises(ConnectTimeoutError):
            await pool.acquire(0.05)


async def test_refused_connections_are_an_error_for_all_who_wait() -> None:
    async with http2_server() as server:
        origin = server.origin
    pool = Http2Pool(origin, context=None)
    outcomes = await asyncio.gather(*(pool.acquire(20.0) for _ in range(5)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EndpointConnectionError}
    assert len({id(outcome) for outcome in outcomes}) == 5
    await pool.close()


@pytest.mark.parametrize("waiters", [1, 3])
async def test_cancelled_connecting_leaves_nothing(waiters: int) -> None:
    async with http2_server(withholds_settings=True) as server, pool_of(server) as pool:
        tasks = [asyncio.create_task(pool.acquire(None)) for _ in range(waiters)]
        peer = await server.peer()
        for task in tasks[1:]:
            task.cancel()
        await asyncio.sleep(0)
        assert not peer.lost.is_set()
        tasks[0].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await peer.lost.wait()
        assert pool.connections == 0


@pytest.mark.parametrize("wait", [Link.wait_for_head, Link.read])
async def test_a_cancelled_wait_leaves_a_stream_that_can_be_closed(wait: Callable[[Link], Awaitable[object]]) -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        waiting = asyncio.ensure_future(wait(link))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        link.close()
        await peer.event(StreamReset, stream_id=stream)


async def test_tls_with_alpn() -> None:
    async with (
        http2_server(context=server_context(protocol="h2")) as server,
        pool_of(server, context=client_context(protocol="h2")) as pool,
    ):
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        peer.answer(stream, end=True)
        await link.wait_for_head()
        assert await everything(link) == b""


async def test_an_unknown_authority_and_a_server_without_http2_fail_at_once() -> None:
    async with (
        http2_server(context=server_context(protocol="h2")) as server,
        pool_of(server, context=client_context("others", protocol="h2")) as pool,
    ):
        with pytest.raises(SSLError, match="certificate"):
            await pool.acquire(20.0)
    async with http2_server(context=server_context()) as server, pool_of(server, context=client_context()) as pool:
        with pytest.raises(SSLError, match="HTTP/2"):
            await pool.acquire(20.0)


class Sink(asyncio.Transport):
    """Takes what a connection sends."""

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False


async def outcomes(pieces: list[bytes]) -> None:
    """Have a server send these bytes on a connection with two streams; raises what is no `TransportError`."""
    connection = Connection("http://x", lambda _: None)
    connection.connection_made(Sink())
    links = [connection.open(header_fields(HEADERS), lambda: None) for _ in range(2)]
    for piece in pieces:
        connection.data_received(piece)
    connection.connection_lost(None)
    for link in links:
        assert link is not None
        with suppress(TransportError):
            await link.wait_for_head()
            while await link.read():
                pass
        assert link.is_over
        link.close()


SETTINGS = frame_of(4, b"", stream=0)
FRAMES = st.builds(
    frame_of,
    st.integers(0, 10),
    st.binary(max_size=40),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 + 1]),
)


@given(greets=st.booleans(), pieces=st.lists(FRAMES | st.binary(max_size=64), max_size=8))
def test_whatever_bytes_a_server_sends_the_outcome_is_an_answer_or_a_typed_error(
    greets: bool, pieces: list[bytes]
) -> None:
    asyncio.run(outcomes([SETTINGS, *pieces] if greets else pieces))


@given(
    damage=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 1000), max_size=4),
)
def test_whatever_damage_a_servers_bytes_take_the_outcome_is_an_answer_or_a_typed_error(
    damage: list[tuple[int, int]], cuts: list[int]
) -> None:
    octets = bytearray(GOOD)
    for place, value in damage:
        octets[place % len(octets)] = value
    places = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    asyncio.run(outcomes([bytes(octets[start:end]) for start, end in pairwise(places)]))


def _good() -> bytes:
    """Two responses, with all that may come between."""
    core = Core()
    for _ in range(2):
        core.open(header_fields(HEADERS))
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(core.output())
    server.send_headers(1, [(":status", "100")])
    server.send_headers(1, [(":status", "200"), ("x-name", "value")])
    server.send_headers(3, [(":status", "400"), ("content-length", "4")])
    server.send_data(1, b"some data", pad_length=3)
    server.ping(b"12345678")
    server.increment_flow_control_window(1000)
    server.increment_flow_control_window(1000, 1)
    server.send_data(3, b"body", end_stream=True)
    server.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    server.send_headers(1, [("x-trailer", "value")], end_stream=True)
    return bytes(server.data_to_send()) + GoAwayFrame(0, last_stream_id=3).serialize()


GOOD = _good()


async def test_the_answers_that_are_damaged_are_whole_before() -> None:
    connection = Connection("http://x", lambda _: None)
    connection.connection_made(Sink())
    links = [connection.open(header_fields(HEADERS), lambda: None) for _ in range(2)]
    connection.data_received(GOOD)
    found = [(link.status, await everything(link), link.failure()) for link in links if link is not None]
    assert found == [(200, b"some data", None), (400, b"body", None)]
    connection.close()


async def test_what_is_written_in_one_turn_of_the_loop_goes_out_in_one_frame() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link = await begin(pool)
        peer = await server.peer()
        stream = await peer.request()
        for _ in range(10):
            assert link.write(memoryview(b"0123456789")) == 10
        assert (await peer.event(DataReceived, stream_id=stream)).data == b"0123456789" * 10


async def test_closing_drops_what_was_written_and_not_sent() -> None:
    async with http2_server() as server:
        async with pool_of(server) as pool:
            link, other = await begin(pool), await begin(pool)
            peer = await server.peer()
            for one in (link, other):
                await peer.request()
                assert one.write(memoryview(b"unsent")) == 6
            link.close()
        assert (await peer.event(StreamReset)).error_code == ErrorCodes.CANCEL
        await peer.event(ConnectionTerminated)


# DATA that goes past h2


def core_and_server(*fields: tuple[str, str]) -> tuple[Core, H2Connection, Any]:
    """A connection with one stream whose head has come."""
    core = Core()
    stream = core.open(header_fields(HEADERS))
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(core.output())
    server.send_headers(1, [(":status", "200"), *fields])
    core.feed(server.data_to_send())
    server.receive_data(core.output())
    return core, server, stream


def goaway_code(core: Core) -> int:
    """The code of the GOAWAY at the end of what is sent."""
    return int.from_bytes(core.output()[-4:])


@given(
    parts=st.lists(st.tuples(st.binary(max_size=300), st.none() | st.integers(0, 255)), max_size=8),
    cuts=st.lists(st.integers(0, 3000), max_size=8),
    ends=st.booleans(),
)
def test_data_is_the_same_wherever_the_network_cuts_it(
    parts: list[tuple[bytes, int | None]], cuts: list[int], ends: bool
) -> None:
    core, server, stream = core_and_server()
    for number, (part, padding) in enumerate(parts):
        server.send_data(1, part, pad_length=padding)
        if number == 1:
            server.ping(b"in order")
    if ends:
        server.send_data(1, b"last", end_stream=True)
    octets = server.data_to_send()
    places = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    for start, end in pairwise(places):
        core.feed(octets[start:end])
    assert core.failure is None
    assert core.take(stream) == b"".join(part for part, _ in parts) + (b"last" if ends else b"")
    assert (stream.ended, stream.failure) == (ends, None)


def test_windows_are_opened_for_ever() -> None:
    core, server, stream = core_and_server()
    for _ in range(3 * CONNECTION_WINDOW_BYTES // 2**16):
        for _ in range(8):
            server.send_data(1, bytes(2**13), pad_length=None)
        core.feed(server.data_to_send())
        assert len(core.take(stream)) == 2**16
        server.receive_data(core.output())
    assert core.failure is None


def test_padding_opens_a_streams_window_without_its_reader() -> None:
    core, server, stream = core_and_server()
    for _ in range(2 * STREAM_WINDOW_BYTES // 256):
        assert server.local_flow_control_window(1) >= 256
        server.send_data(1, b"", pad_length=255)
        core.feed(server.data_to_send())
        server.receive_data(core.output())
    server.send_data(1, b"the data")
    core.feed(server.data_to_send())
    assert (core.failure, core.take(stream)) == (None, b"the data")


def test_padding_opens_no_window_for_what_waits_to_be_taken() -> None:
    core, server, stream = core_and_server()
    room = server.local_flow_control_window(1)
    while room >= 512:
        server.send_data(1, bytes(256), pad_length=255)
        core.feed(server.data_to_send())
        server.receive_data(core.output())
        room = server.local_flow_control_window(1)
    assert STREAM_WINDOW_BYTES // 2 < stream.received_bytes <= STREAM_WINDOW_BYTES
    core.take(stream)
    server.receive_data(core.output())
    assert server.local_flow_control_window(1) > STREAM_WINDOW_BYTES // 2
    core.feed(frame_of(0, bytes(2**14)) * 17)
    assert goaway_code(core) == ErrorCodes.FLOW_CONTROL_ERROR


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (frame_of(0, bytes(2**14)) * 17, ErrorCodes.FLOW_CONTROL_ERROR),
        (frame_of(0, bytes(2**14 + 1))[:9], ErrorCodes.FRAME_SIZE_ERROR),
        (frame_of(0, b"\x09x", 0x8), ErrorCodes.PROTOCOL_ERROR),
        (frame_of(0, b"", 0x8), ErrorCodes.FRAME_SIZE_ERROR),
        (frame_of(1, b"", 0x1) + frame_of(0, b"x"), ErrorCodes.PROTOCOL_ERROR),
        (frame_of(1, b"", 0x1) + frame_of(9, b"") + frame_of(0, b"x"), ErrorCodes.PROTOCOL_ERROR),
        (frame_of(5, (2).to_bytes(4)) + frame_of(0, b"x"), ErrorCodes.PROTOCOL_ERROR),
    ],
    ids=[
        "more than the window",
        "too large",
        "too much padding",
        "no padding",
        "inside a head",
        "inside a head of several frames",
        "inside a promise",
    ],
)
def test_data_that_violates_the_protocol_breaks_the_connection(octets: bytes, code: ErrorCodes) -> None:
    core, _, stream = core_and_server()
    assert core.feed(octets) == [stream]
    assert core.failure is not None
    assert goaway_code(core) == code


def test_nothing_is_raised_or_sent_after_a_violation_when_a_window_is_due() -> None:
    core, server, stream = core_and_server()
    # The window is opened once a quarter of it is used up, and one more byte.
    for _ in range(CONNECTION_WINDOW_BYTES // 4 // 2**14):
        server.send_data(1, bytes(2**14))
        core.feed(server.data_to_send())
        core.take(stream)
        server.receive_data(core.output())
    assert core.feed(frame_of(0, b"x") + frame_of(0, b"x", stream=2)) == [stream]
    assert core.failure is not None
    assert goaway_code(core) == ErrorCodes.PROTOCOL_ERROR
    assert (core.take(stream), core.output()) == (b"x", b"")


def test_the_connections_window_is_opened_for_what_all_kinds_of_streams_have_received_together() -> None:
    core, server, past = core_and_server()
    opened = [core.open(header_fields(HEADERS)) for _ in range(3)]
    counted, left, ended = (stream for stream in opened if stream is not None)
    server.receive_data(core.output())
    for number in (3, 5, 7):
        fields = [("content-length", str(2**40))] if number == 3 else []
        server.send_headers(number, [(":status", "200"), *fields])
    core.feed(server.data_to_send() + frame_of(0, b"", 0x1, stream=7))
    core.close(left)
    room = CONNECTION_WINDOW_BYTES
    lowest = room
    # A server that sends on what has ended counts, too.
    for stream, bytes_in_all in ((past, 2**22), (counted, 2**22), (left, 2**23), (ended, 2**23)):
        for _ in range(bytes_in_all // 2**14):
            core.feed(frame_of(0, bytes(2**14), stream=stream.stream_id))
            room -= 2**14
            core.take(stream)
            room += sum(opened_windows(core.output()))
            lowest = min(lowest, room)
    assert core.failure is None
    assert lowest >= CONNECTION_WINDOW_BYTES // 4 * 3 - 2**14


def opened_windows(octets: bytes) -> list[int]:
    """The increments of the connection's window among frames."""
    found = []
    while octets:
        high, low, kind, _, stream = FRAME_HEAD.unpack_from(octets)
        end = FRAME_HEAD.size + (high << 8 | low)
        if kind == 8 and stream == 0:
            found.append(int.from_bytes(octets[FRAME_HEAD.size : end]))
        octets = octets[end:]
    return found


def test_what_came_before_a_frame_that_is_too_large_is_processed() -> None:
    core, server, _ = core_and_server()
    stream = core.open(header_fields(HEADERS))
    assert stream is not None
    server.receive_data(core.output())
    server.send_headers(3, [(":status", "201")], end_stream=True)
    core.feed(server.data_to_send() + frame_of(0, bytes(2**14 + 1)))
    assert goaway_code(core) == ErrorCodes.FRAME_SIZE_ERROR
    assert (stream.status, stream.ended, stream.failure) == (201, True, None)


def test_data_after_the_end_is_no_data() -> None:
    core, _, stream = core_and_server()
    core.feed(frame_of(0, b"x", 0x1) + frame_of(0, b"y"))
    assert core.take(stream) == b"x"
    reset = core.output()[-13:]
    assert (reset[3], int.from_bytes(reset[-4:])) == (3, ErrorCodes.STREAM_CLOSED)


def test_late_frames_of_a_stream_that_was_reset_are_dropped_in_silence() -> None:
    core, server, stream = core_and_server(("content-length", str(2**40)))
    other = core.open(header_fields(HEADERS))
    assert other is not None
    server.receive_data(core.output())
    server.send_headers(3, [(":status", "200")])
    core.feed(server.data_to_send())
    core.close(stream)
    assert core.output().count(frame_of(3, (8).to_bytes(4))) == 1
    for _ in range(2000):
        core.feed(frame_of(0, bytes(100)) + frame_of(0, b"\x01x\0", 0x8))
        assert core.output() == b""
    core.feed(head_of((":status", "100"), stream=1) + head_of(("x-late", "value"), stream=1))
    core.feed(frame_of(0, b"the end", 0x1))
    assert (core.output(), stream.received_bytes) == (b"", 0)
    server.send_data(3, b"the other's")
    core.feed(server.data_to_send())
    assert (core.failure, other.failure, core.take(other)) == (None, None, b"the other's")


def test_a_stream_that_a_window_has_broken_drops_late_data_too() -> None:
    core, _, stream = core_and_server()
    core.feed(frame_of(8, (2**31 - 1).to_bytes(4)))
    assert stream.failure is not None
    assert core.output() == frame_of(3, ErrorCodes.FLOW_CONTROL_ERROR.to_bytes(4))
    core.feed(frame_of(0, b"late"))
    core.close(stream)
    core.feed(frame_of(0, b"later"))
    assert (core.failure, core.output(), stream.received_bytes) == (None, b"", 0)


@pytest.mark.parametrize(
    "octets",
    [frame_of(0, b"x", stream=5), frame_of(0, b"x", stream=2), frame_of(0, b"x", stream=0)],
    ids=["idle", "the server's", "0"],
)
def test_data_of_a_stream_that_never_was_breaks_the_connection(octets: bytes) -> None:
    core, _, _ = core_and_server()
    core.feed(octets)
    assert core.failure is not None
    assert goaway_code(core) == ErrorCodes.PROTOCOL_ERROR


def test_data_of_a_stream_that_a_goaway_has_refused_is_dropped() -> None:
    core, _, stream = core_and_server()
    core.feed(frame_of(0, b"before") + GoAwayFrame(0, last_stream_id=0).serialize() + frame_of(0, b"after"))
    assert core.take(stream) == b"before"
    core.close(stream)
    core.feed(frame_of(0, b"later"))
    assert (core.failure, core.output()) == (None, b"")


@pytest.mark.parametrize(
    "second",
    [
        lambda: frame_of(3, ErrorCodes.INTERNAL_ERROR.to_bytes(4)),
        lambda: head_of(OK, ("content-length", "+1"), stream=1),
        lambda: head_of((":status", "20"), stream=1),
    ],
    ids=["a reset", "a malformed length", "a malformed status"],
)
def test_the_first_failure_of_a_stream_stays(second: Callable[[], bytes]) -> None:
    core = Core()
    stream = core.open(header_fields(HEADERS))
    assert stream is not None
    core.feed(SETTINGS + GoAwayFrame(0, last_stream_id=0).serialize())
    core.feed(GoAwayFrame(0, last_stream_id=0).serialize())
    core.feed(second())
    assert (stream.failure, core.failure) == (("refused", "NO_ERROR"), None)


def test_data_before_settings_breaks_the_connection() -> None:
    core = Core()
    stream = core.open(header_fields(HEADERS))
    core.output()
    assert core.feed(frame_of(0, b"x") + SETTINGS) == [stream]
    assert goaway_code(core) == ErrorCodes.PROTOCOL_ERROR


# Malformed responses


def head_of(*fields: tuple[str, str], end: bool = False, stream: int = 3) -> bytes:
    """HEADERS that need no table."""
    block = Encoder().encode([(name, value, True) for name, value in fields], huffman=False)
    return frame_of(1, block, 0x5 if end else 0x4, stream=stream)


OK = (":status", "200")
THREE = ("content-length", "3")
MALFORMED: dict[str, bytes] = {
    "more than its length": head_of(OK, THREE) + frame_of(0, b"four", stream=3),
    "more than its length, and the end": head_of(OK, THREE) + frame_of(0, b"four", 0x1, stream=3),
    "less than its length": head_of(OK, THREE) + frame_of(0, b"xx", 0x1, stream=3),
    "less than its length, in pieces": head_of(OK, THREE) + frame_of(0, b"x", stream=3) * 2 + frame_of(0, b"", 1, 3),
    "less than its length before trailers": head_of(OK, THREE) + head_of(("x-trailer", "value"), end=True),
    "no body, with a length": head_of(OK, THREE, end=True),
    "a length that is no number": head_of(OK, ("content-length", "three")),
    "a negative length": head_of(OK, ("content-length", "-3")),
    "an endless length": head_of(OK, ("content-length", "9" * 5000)),
    "two lengths": head_of(OK, THREE, ("content-length", "4")),
    "no status": head_of(("x-name", "value")),
    "no status, and the end": head_of(("x-name", "value"), end=True),
    "a status that is no number": head_of((":status", "ok")),
    "a status of two digits": head_of((":status", "20")),
    "a name with a capital": head_of(OK, ("X-Name", "value")),
    "a field of the connection": head_of(OK, ("connection", "close")),
    "a request's pseudo-header": head_of(OK, (":path", "/")),
    "a second head": head_of(OK) + head_of(OK),
    "an informational head after the final one": head_of(OK) + head_of((":status", "103")),
    "data before its head": frame_of(0, b"early", stream=3) + head_of(OK),
    "data after an informational head": head_of((":status", "100")) + frame_of(0, b"early", stream=3),
}


@pytest.mark.parametrize("input_ended", [False, True])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_response_breaks_its_stream_and_no_other(name: str, input_ended: bool) -> None:
    core, server, other = core_and_server()
    stream = core.open(header_fields(HEADERS))
    assert stream is not None
    if input_ended:
        core.end_input(stream)
    core.output()
    assert stream in core.feed(MALFORMED[name])
    assert stream.failure == ("malformed", "PROTOCOL_ERROR")
    assert not stream.ended
    assert core.failure is None
    sent = core.output()
    # It is closed where both sides have ended it.
    assert sent in (frame_of(3, ErrorCodes.PROTOCOL_ERROR.to_bytes(4), stream=3), b"" if input_ended else None)
    core.feed(frame_of(0, b"late", stream=3) + head_of(("x-late", "value"), end=True) if sent else b"")
    core.take(stream)
    core.close(stream)
    assert (core.open_streams, core.output()) == (1, b"")
    server.send_data(1, b"the other's", end_stream=True)
    core.feed(server.data_to_send())
    assert (core.take(other), other.ended, other.failure) == (b"the other's", True, None)
    # The number of open streams is h2's, too.
    for _ in range(core.max_streams - 1):
        assert core.open(header_fields(HEADERS)) is not None


@pytest.mark.parametrize("status", ["204", "304"])
def test_a_response_without_a_body_may_have_a_length(status: str) -> None:
    core, _, _ = core_and_server()
    stream = core.open(header_fields(HEADERS))
    assert stream is not None
    core.feed(head_of((":status", status), THREE, end=True))
    assert (stream.status, stream.ended, stream.failure) == (int(status), True, None)


@pytest.mark.parametrize(
    "octets",
    [frame_of(1, b"\x40\x01\xff", 0x4, stream=3), head_of(OK, stream=2), head_of(OK, stream=5)],
    ids=["a block that cannot be decoded", "a stream that the server begins", "a stream that never was"],
)
def test_a_head_that_is_wrong_for_all_streams_breaks_the_connection(octets: bytes) -> None:
    core, _, other = core_and_server()
    stream = core.open(header_fields(HEADERS))
    assert set(core.feed(octets)) == {stream, other}
    assert core.failure is not None


async def test_a_malformed_response_is_an_error_of_its_call_alone() -> None:
    async with http2_server() as server, pool_of(server) as pool:
        link, other = await begin(pool), await begin(pool)
        peer = await server.peer()
        first, second = await peer.request(), await peer.request()
        peer.answer(second)
        peer.answer(first, content_length="3")
        # h2 would not send it.
        peer.write_raw(frame_of(0, b"four", stream=first))
        await link.wait_for_head()
        with pytest.raises(ResponseStreamingError, match=r"HTTP/2 was violated by .* \(PROTOCOL_ERROR\)"):
            await link.read()
        assert (await peer.event(StreamReset, stream_id=first)).error_code == ErrorCodes.PROTOCOL_ERROR
        peer.send(second, b"goes on", end=True)
        await other.wait_for_head()
        assert await everything(other) == b"goes on"
        assert pool.connections == 1


# The core beside h2, which sees every frame


def _conversation(parts: list[tuple[int, bytes, int | None]]) -> list[bytes]:
    """A server's frames on three streams, of which the second has a Content-Length and the third ends."""
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    core = Core()
    for _ in range(3):
        core.open(header_fields(HEADERS))
    server.receive_data(core.output())
    for number in (1, 3, 5):
        server.send_headers(number, [(":status", "200"), *([("content-length", "5000")] if number == 3 else [])])
    for number, part, padding in parts:
        server.send_data(number, part, pad_length=padding)
    server.ping(b"in order")
    server.increment_flow_control_window(1000, 1)
    server.end_stream(5)
    octets = server.data_to_send()
    found = []
    while octets:
        end = FRAME_HEAD.size + int.from_bytes(octets[:3])
        found.append(octets[:end])
        octets = octets[end:]
    return found


class Reference:
    """What h2 makes of a server's bytes when it is given one frame at a time."""

    def __init__(self) -> None:
        self.h2 = Repaired(client_side=True, stream_window_bytes=STREAM_WINDOW_BYTES)
        self.h2.initiate_connection()
        for number in (1, 3, 5):
            self.h2.send_headers(number, header_fields(HEADERS))
        self.received: dict[int, bytes] = dict.fromkeys((1, 3, 5), b"")
        self.over: set[int] = set()
        self.lengths: dict[int, int | None] = {}
        self._within_head = self._is_greeted = False
        self.ended: set[int] = set()
        self.has_failed = False
        self._rest = b""
        self.h2.data_to_send()

    def feed(self, octets: bytes) -> None:
        self._rest += octets
        while not self.has_failed and len(self._rest) >= FRAME_HEAD.size:
            end = FRAME_HEAD.size + int.from_bytes(self._rest[:3])
            if end > len(self._rest):
                # h2 would wait for the whole of a frame that is too large.
                self.has_failed = end > FRAME_HEAD.size + MAX_FRAME_BYTES
                return
            if self._is_early(self._rest[:end]) and self._is_greeted:
                self.reset(int.from_bytes(self._rest[5:9]) & 2**31 - 1)
                self._rest = self._rest[end:]
                continue
            try:
                events = self.h2.receive_data(self._rest[:end])
            except ProtocolError:
                self.has_failed = True
                return
            self._is_greeted = True
            self._rest = self._rest[end:]
            for event in events:
                self._handle(event)

    def _is_early(self, frame: bytes) -> bool:
        """Whether this is DATA before a head, which h2 takes for an error of the connection."""
        kind, flags = frame[3:5]
        if kind in (1, 5, 9):
            self._within_head = not flags & 0x4
        number = int.from_bytes(frame[5:9]) & 2**31 - 1
        is_padded_well = not flags & 0x8 or (len(frame) > 9 and frame[9] < len(frame) - 9)
        is_open = number in self.received and number not in self.over and number not in self.lengths
        return kind == 0 and not self._within_head and is_padded_well and is_open

    def _handle(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.over |= {number for number in self.received if number > (event.last_stream_id or 0)}
        number = int(getattr(event, "stream_id", None) or 0)
        if number in self.over or number not in self.received:
            return
        if isinstance(event, ResponseReceived):
            fields = dict(event.headers or ())
            length = fields.get(b"content-length")
            self.lengths[number] = None if length is None else int(length)
            if not re.fullmatch(b"[1-9][0-9]{2}", fields[b":status"]):
                self.reset(number)
        elif isinstance(event, DataReceived):
            self.received[number] += event.data or b""
        elif isinstance(event, StreamEnded):
            # h2 compares them when DATA ends the stream.
            if self.lengths[number] in (None, len(self.received[number])):
                self.ended.add(number)
                self.over.add(number)
            else:
                self.reset(number)
        elif isinstance(event, StreamReset):
            self.over.add(number)

    def goaway_code(self) -> int | None:
        """The code of the GOAWAY, if h2 sends one."""
        sent = self.h2.data_to_send()
        return int.from_bytes(sent[-4:]) if self.h2.state_machine.state is ConnectionState.CLOSED else None

    def reset(self, number: int) -> None:
        self.h2.reset_stream(number, ErrorCodes.CANCEL)
        self.over.add(number)


@given(
    parts=st.lists(
        st.tuples(st.sampled_from([1, 3, 5]), st.binary(max_size=40), st.none() | st.integers(0, 40)), max_size=8
    ),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["drop", "repeat", "swap", "head", "byte"]),
            st.integers(0, 20),
            st.integers(0, 60),
            st.sampled_from([0, 1, 3, 4, 5, 8, 9]) | st.integers(0, 255),
        ),
        max_size=4,
    ),
    cuts=st.lists(st.integers(0, 1000), max_size=6),
    closes=st.none() | st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 2])),
)
def test_the_core_takes_frames_as_h2_does(
    parts: list[tuple[int, bytes, int | None]],
    changes: list[tuple[str, int, int, int]],
    cuts: list[int],
    closes: tuple[int, int] | None,
) -> None:
    frames = _conversation(parts)
    for change, index, offset, value in changes:
        index %= len(frames)
        chosen = bytearray(frames[index])
        match change:
            case "drop" if len(frames) > 1:
                del frames[index]
            case "repeat":
                frames.insert(index, bytes(chosen))
            case "swap":
                frames[index], frames[index - 1] = frames[index - 1], frames[index]
            case "head" | "byte":
                chosen[3 + offset % 6 if change == "head" else offset % len(chosen)] = value
                frames[index] = bytes(chosen)
    octets = b"".join(frames)
    core, reference = Core(), Reference()
    streams = [stream for _ in range(3) if (stream := core.open(header_fields(HEADERS)))]
    received = {stream.stream_id: b"" for stream in streams}
    core.output()
    places = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    closed: set[int] = set()
    for count, (start, end) in enumerate(pairwise(places)):
        core.feed(octets[start:end])
        reference.feed(octets[start:end])
        assert (core.failure is not None) == reference.has_failed
        if reference.has_failed:
            break
        for stream in streams:
            if stream.stream_id not in closed:
                received[stream.stream_id] += core.take(stream)
                found, expected = received[stream.stream_id], reference.received[stream.stream_id]
                # h2 drops the last of a body that is too short.
                assert found == expected or (stream.failure is not None and found.startswith(expected))
                assert (stream.ended, stream.is_over) == (
                    stream.stream_id in reference.ended,
                    stream.stream_id in reference.over,
                )
        if closes is not None and closes[0] == count and not (leaving := streams[closes[1]]).is_over:
            closed.add(leaving.stream_id)
            core.close(leaving)
            reference.reset(leaving.stream_id)
            core.output()
    if core.failure is not None:
        code = reference.goaway_code()
        assert goaway_code(core) == (ErrorCodes.FRAME_SIZE_ERROR if code is None else code)
