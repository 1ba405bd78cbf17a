"""A loop that was busy for longer than the read timeout: what has arrived in time is not late."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiosmrt._transport.base import Reply, Transport
from aiosmrt.errors import AiosmrtError, ReadTimeoutError
from tests.support.blocking_server import BlockingServer, Conversation
from tests.support.raw_server import LAST_CHUNK, RawServer, Script, chunk, response
from tests.support.seams import connections_in_use
from tests.support.tls import client_context, server_context
from tests.transport.carrying import CLASSES, MakeTransport, request, whole

LARGE = bytes(range(256)) * 4096
ANSWERS: dict[str, tuple[list[bytes], bytes]] = {
    "at once": ([response(200, b"ok")], b"ok"),
    "head and body": ([response(200, length=2), b"ok"], b"ok"),
    "chunks": ([response(200, b"one", chunked=True), chunk(b"two"), LAST_CHUNK], b"onetwo"),
    "interim": ([b"HTTP/1.1 103 x\r\n\r\n" + response(200, b"ok")], b"ok"),
    "large": ([response(200, length=len(LARGE)), LARGE], LARGE),
}


def run(loop: str, main: Callable[[], Awaitable[None]]) -> None:
    factory = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    async def run_main() -> None:
        await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run_main())


class Busy:
    """Keeps the loop from running for longer than the read timeout: asyncio's by its clock, uvloop's in fact."""

    def __init__(self, loop: str) -> None:
        self.read_timeout = 10.0 if loop == "asyncio" else 0.8
        self._ahead: float | None = None
        if loop == "asyncio":
            running: Any = asyncio.get_running_loop()
            measured = running.time
            self._ahead = 0.0
            running.time = lambda: measured() + self._ahead

    def be(self) -> None:
        if self._ahead is None:
            time.sleep(1.25 * self.read_timeout)
        else:
            self._ahead += 2 * self.read_timeout


CASES = [
    *((name, "asyncio", tls, streams) for name in ANSWERS for tls in (False, True) for streams in (False, True)),
    *(("at once", "uvloop", tls, streams) for tls in (False, True) for streams in (False, True)),
    ("large", "uvloop", False, False),
]


@pytest.mark.parametrize(("name", "loop", "tls", "streams"), CASES)
def test_a_response_to_a_busy_loop(name: str, loop: str, tls: bool, streams: bool, transport_name: str) -> None:
    pieces, body = ANSWERS[name]
    asked, go_on, arrived = threading.Event(), threading.Event(), threading.Event()

    def answer(talk: Conversation) -> None:
        talk.request()
        talk.send(*pieces)
        talk.request()
        asked.set()
        go_on.wait(20)
        talk.send(pieces[0])
        arrived.set()
        talk.send(*pieces[1:])

    async def main() -> None:
        busy = Busy(loop)
        with BlockingServer([answer], tls=server_context() if tls else None) as server:
            verify = client_context() if tls else True
            transport: Transport = CLASSES[transport_name](server.url, verify=verify)
            await carry(transport, streams, 30.0)
            call = asyncio.ensure_future(carry(transport, streams, busy.read_timeout))
            while not asked.is_set():
                await asyncio.sleep(0)
            # The loop stands still from here on.
            go_on.set()
            assert arrived.wait(20)
            busy.be()
            same = (await call).body == body
            assert same
            await transport.close()

    run(loop, main)


async def carry(transport: Transport, streams: bool, read_timeout: float) -> Reply:
    asked = request(read_timeout=read_timeout)
    if not streams:
        return await transport.send(asked)
    stream: Any = await transport.send_streaming(asked)
    try:
        return Reply(stream.status, stream.headers, await whole(stream))
    finally:
        stream.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nCont", response(200, b"o", length=2)])
@pytest.mark.parametrize("streams", [False, True], ids=["send", "send_streaming"])
def test_silence_before_a_busy_loop(loop: str, sent: bytes, streams: bool, transport_name: str) -> None:
    """What has not arrived in time is late, if only a little later."""
    arrived, never = threading.Event(), threading.Event()

    def answer(talk: Conversation) -> None:
        talk.request()
        talk.send(sent)
        arrived.set()
        never.wait(20)

    async def main() -> None:
        busy = Busy(loop)
        with BlockingServer([answer]) as server:
            transport: Transport = CLASSES[transport_name](server.url)
            call = asyncio.ensure_future(carry(transport, streams, busy.read_timeout))
            while not arrived.is_set():
                await asyncio.sleep(0)
            for _ in range(30):
                busy.be() if loop == "asyncio" else None
                await asyncio.sleep(0)
            with pytest.raises(ReadTimeoutError):
                await call
            assert connections_in_use(transport) == 0
            await transport.close()
            never.set()

    run(loop, main)


@pytest.mark.parametrize("streams", [False, True], ids=["send", "send_streaming"])
@pytest.mark.parametrize("first", [b"", response(200, b"o", length=2)], ids=["before the head", "in the body"])
async def test_a_tls_record_that_never_ends(first: bytes, streams: bool, make_transport: MakeTransport) -> None:
    """Its beginning has arrived, which is not data."""
    never = threading.Event()

    def answer(talk: Conversation) -> None:
        talk.request()
        talk.send(first)
        socket.socket.sendall(talk.sock, bytes.fromhex("1703030100") + b"a" * 10)
        never.wait(20)

    with BlockingServer([answer], tls=server_context()) as server:
        transport = make_transport(server.url, verify=client_context())
        with pytest.raises(ReadTimeoutError):
            await carry(transport, streams, 0.3)
        never.set()
        await transport.close()


BROKEN = {
    "no line break": b"5\r\nabcdeXXXX\r\n",
    "no size": b"zz\r\n",
    "a size too large": b"f" * 20 + b"\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_malformed_chunk_that_arrives_while_nothing_reads(
    name: str, transport: Transport, server: RawServer
) -> None:
    """aiohttp closes the connection, and a read that begins afterwards fails with a RuntimeError."""
    go_on = asyncio.Event()
    script: Script = [response(200, b"one", chunked=True), go_on, BROKEN[name]]
    server.play(script)
    stream: Any = await transport.send_streaming(request())
    assert await stream.read() == b"one"
    go_on.set()
    await server.until(lambda: server.connections_open == 0)
    with pytest.raises(AiosmrtError):
        await whole(stream)
    with pytest.raises(AiosmrtError):
        await stream.read()
    stream.close()
    assert connections_in_use(transport) == 0


async def test_reading_after_the_transport_was_closed(make_transport: MakeTransport, server: RawServer) -> None:
    transport = make_transport()
    server.play([response(200, b"one", chunked=True), asyncio.Event()])
    stream: Any = await transport.send_streaming(request())
    assert await stream.read() == b"one"
    await transport.close()
    with pytest.raises(AiosmrtError):
        await stream.read()
    stream.close()
