"""What happens at the same moment: an answer and a timer, an end and a pause, a connection and its client's closing."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from aiosmrt._transport.connection import Connection
from aiosmrt._transport.pooled import PooledTransport
from aiosmrt.errors import ClientStateError, ReadTimeoutError, ResponseStreamingError
from tests.support.raw_server import BODY, EARLY, RawServer, chunk, response
from tests.support.seams import connections_in_use
from tests.support.tls import client_context, server_context
from tests.support.virtual_time import VirtualTime
from tests.transport.carrying import MakeTransport, Wire, only_pooled, request

DATA = bytes(range(256)) * 1800  # more than a stream keeps, and then more than one read of it
PIECES = [DATA[start : start + 8000] for start in range(0, len(DATA), 8000)]
TLS_ENDINGS = {
    "until-the-end": [b"HTTP/1.1 200 OK\r\n\r\n", *PIECES],
    "cut": [b"HTTP/1.1 200 OK\r\n\r\n", *PIECES],
    "length": [response(200, length=len(DATA), headers=[("Connection", "close")]), *PIECES],
    "chunks": [response(200, chunked=True, headers=[("Connection", "close")]), *map(chunk, PIECES), b"0\r\n\r\n"],
}


@pytest.fixture
async def pooled(make_transport: MakeTransport, server: RawServer) -> PooledTransport:
    return make_transport(server.url)  # type: ignore[return-value]


def serve_and_go(listening: socket.socket, pieces: list[bytes], announces: bool) -> None:
    """Answer one request over TLS and end without waiting for the client's part of it, as most servers do."""
    connection, _ = listening.accept()
    with server_context().wrap_socket(connection, server_side=True) as secured:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += secured.recv(65536)
        for piece in pieces:
            secured.sendall(piece)
        if announces:
            secured.setblocking(False)
            with suppress(ssl.SSLWantReadError):
                secured.unwrap()
        socket.socket.shutdown(secured, socket.SHUT_WR)
        os.set_blocking(secured.fileno(), True)
        # until the client has gone
        while os.read(secured.fileno(), 65536):
            pass


async def read_into(pieces: list[bytes], stream: Any) -> None:
    while data := await stream.read():
        pieces.append(data)


@only_pooled
@pytest.mark.parametrize("ending", TLS_ENDINGS)
async def test_a_tls_stream_that_ends_while_nobody_reads(
    ending: str, wire: Wire, make_transport: MakeTransport
) -> None:
    """asyncio reads once more, when reading goes on after the other side has ended, and then closes."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(asyncio.to_thread(serve_and_go, listening, TLS_ENDINGS[ending], ending != "cut"))
        transport = make_transport(f"https://127.0.0.1:{listening.getsockname()[1]}", verify=client_context())
        wire.cut(then=8192)  # so that the receive buffer does not grow
        stream = await transport.send_streaming(request())
        while 0 not in wire.reads:
            await asyncio.sleep(0)
        received: list[bytes] = []
        if ending == "cut":
            with pytest.raises(ResponseStreamingError):
                await read_into(received, stream)
        else:
            await read_into(received, stream)
        same = b"".join(received) == DATA
        assert same
        stream.close()
        await serving
        assert connections_in_use(transport) == 0
    assert complaints == []


@only_pooled
async def test_a_head_ends_the_silence_before_it(
    clock: VirtualTime, wire: Wire, pooled: PooledTransport, server: RawServer
) -> None:
    head, rest = response(200, length=5), b"hello"
    gates = [asyncio.Event(), asyncio.Event()]
    server.play([gates[0], head, gates[1], rest])
    wire.cut()
    call = asyncio.ensure_future(pooled.send(request(read_timeout=10.0)))
    await server.received(1)
    await clock.advance(7.0)
    gates[0].set()
    await wire.has_received(len(head))
    await clock.advance(7.0)
    assert not call.done()
    gates[1].set()
    assert (await call).body == b"hello"


@only_pooled
async def test_a_reader_whose_data_came_in_time_is_not_late(
    clock: VirtualTime, pooled: PooledTransport, server: RawServer
) -> None:
    """The loop was held up: the data and the timer meet in one turn, before the reader has its own."""
    gates = [asyncio.Event(), asyncio.Event()]
    server.play([response(200, length=10), gates[0], b"hello", gates[1], b"world"])
    loop = asyncio.get_running_loop()
    stream = await pooled.send_streaming(request(read_timeout=10.0))
    taken: list[bytes] = []

    def take(data: bytes | memoryview) -> None:
        taken.append(bytes(data))
        clock.now += 100.0
        loop.call_soon(clock.fire_due)

    waiting = asyncio.ensure_future(stream.receive(take))
    await asyncio.sleep(0)
    gates[0].set()
    assert await waiting
    assert taken == [b"hello"]
    gates[1].set()
    assert await stream.read() == b"world"
    stream.close()


@only_pooled
async def test_a_stream_that_begins_during_an_upload_is_watched_while_somebody_reads(
    clock: VirtualTime, pooled: PooledTransport, server: RawServer
) -> None:
    go_on = asyncio.Event()
    server.play([EARLY, response(200, b"abc", length=6), BODY, go_on, b"def"])
    stream = await pooled.send_streaming(request(bytes(2**24), read_timeout=10.0))
    assert await stream.read() == b"abc"
    await server.until(lambda: len(server.requests[-1].body) == 2**24)
    await clock.advance(100.0)
    go_on.set()
    assert await stream.read() == b"def"
    stream.close()


@only_pooled
async def test_closing_when_a_connection_has_just_come_up(
    pooled: PooledTransport, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = aiohttp.TCPConnector.connect
    closing: list[asyncio.Task[None]] = []

    async def connect_and_close(*arguments: Any) -> Any:
        lease = await connect(*arguments)
        # Runs before the one who waits for the connection, and not at once, whatever makes the loop's tasks.
        closing.append(asyncio.Task(pooled.close()))
        return lease

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_and_close)
    with pytest.raises(ClientStateError):
        await pooled.send(request())
    await closing[0]
    assert connections_in_use(pooled) == 0
    await server.until(lambda: server.connections_open == 0)


class SlowTransport:
    """A transport whose peer takes a little at a time."""

    def __init__(self) -> None:
        self.left = 0
        self.aborted = False

    def get_protocol(self) -> asyncio.Protocol:
        return asyncio.Protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.left += len(data)
        if self.left > 2**16:
            self.protocol.pause_writing()  # type: ignore[attr-defined]

    def get_write_buffer_size(self) -> int:
        return self.left

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def abort(self) -> None:
        self.aborted = True


class Lease:
    def close(self) -> None:
        """Does nothing."""


async def test_a_slow_upload_is_no_silence_until_it_stands_still() -> None:
    """The timer expires within one slice of a body; progress shows in how much of the slice is left."""
    owner = PooledTransport("http://127.0.0.1:9")
    slow: Any = SlowTransport()
    connection = Connection(owner, owner._receiver, Lease(), slow, owner.origin)  # type: ignore[arg-type]
    waiter = connection.send(b"head", bytes(2**20), False, False, 10.0, 0.0)
    for _ in range(20):
        slow.left -= 1000
        connection.expire()
        assert not waiter.done()
        assert connection.silent_until < math.inf
    connection.expire()
    assert slow.aborted
    with pytest.raises(ReadTimeoutError):
        await waiter
    await owner.close()
