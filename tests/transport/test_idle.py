"""Data and ends that arrive on idle connections, in particular while the event loop does not run."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from aiosmrt._transport.base import Transport
from aiosmrt.errors import ReadTimeoutError, ResponseStreamingError
from tests.support.blocking_server import BlockingServer, Conversation, Handler
from tests.support.raw_server import chunk, response
from tests.support.seams import connections_in_use, unread, until_read
from tests.support.tls import client_context, server_context
from tests.transport.carrying import (
    CLASSES,
    Carry,
    MakeTransport,
    each_way,
    request,
)

LATE_408 = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
LATE_400 = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def echo(talk: Conversation) -> None:
    """Answer each request with its body."""
    while True:
        talk.send(response(200, b"answer to " + talk.request()))


class Intrusion:
    """What the first connection's server does once it has answered, and the client's loop does not run."""

    def __init__(self, act: Callable[[Conversation], None]) -> None:
        self.go_on, self.acted = threading.Event(), threading.Event()
        self._act = act

    def __call__(self, talk: Conversation) -> None:
        talk.send(response(200, b"answer to " + talk.request()))
        self.go_on.wait(20)
        self._act(talk)
        self.acted.set()
        echo(talk)

    def happen(self, transport: Transport) -> None:
        """Let it happen, without a turn of the loop."""
        self.go_on.set()
        assert self.acted.wait(20)
        assert unread(transport, 20.0)


def late(talk: Conversation, data: bytes) -> None:
    talk.send(data)
    talk.end()


INTRUSIONS: dict[str, Callable[[Conversation], None]] = {
    "a second response": lambda talk: talk.send(response(200, b"answer to ONE")),
    "a second response in chunks": lambda talk: talk.send(response(200, chunked=True), chunk(b"x"), b"0\r\n\r\n"),
    "half a head": lambda talk: talk.send(b"HTTP/1.1 200 OK\r\nContent-"),
    "an empty line": lambda talk: talk.send(b"\r\n"),
    "a late 408": lambda talk: late(talk, LATE_408),
    "a late 400": lambda talk: late(talk, LATE_400),
    "an interim response": lambda talk: talk.send(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "an end": lambda talk: talk.end(),
    "a reset": lambda talk: talk.reset(),
}

each_intrusion = pytest.mark.parametrize("name", INTRUSIONS)


@each_intrusion
@each_way
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_what_arrived_unnoticed(name: str, carry: Carry, tls: bool, make_transport: MakeTransport) -> None:
    """The loop was busy, so nothing was read: the next request goes to a fresh connection, and only there."""
    intrusion = Intrusion(INTRUSIONS[name])
    with BlockingServer([intrusion, echo], tls=server_context() if tls else None) as server:
        transport = make_transport(server.url, **({"verify": client_context()} if tls else {}))
        assert (await carry(transport, request(b"ONE"))).body == b"answer to ONE"
        intrusion.happen(transport)
        assert (await carry(transport, request(b"TWO"))).body == b"answer to TWO"
        assert (await carry(transport, request(b"THREE"))).body == b"answer to THREE"
        assert server.connections_made == 2
        assert connections_in_use(transport) == 0
        await transport.close()


@each_intrusion
@each_way
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_what_arrived_while_the_loop_ran(
    name: str, carry: Carry, tls: bool, make_transport: MakeTransport
) -> None:
    """The same, read by the loop."""
    intrusion = Intrusion(INTRUSIONS[name])
    with BlockingServer([intrusion, echo], tls=server_context() if tls else None) as server:
        transport = make_transport(server.url, **({"verify": client_context()} if tls else {}))
        assert (await carry(transport, request(b"ONE"))).body == b"answer to ONE"
        intrusion.go_on.set()
        await until_read(transport)
        assert (await carry(transport, request(b"TWO"))).body == b"answer to TWO"
        assert (await carry(transport, request(b"THREE"))).body == b"answer to THREE"
        await transport.close()


HALVES = {
    "half a head": response(200, b"answer to ONE")[:30],
    "half a status line": b"HTTP/1.",
    "a byte": b"H",
    "half a field": b"HTTP/1.1 200 OK\r\nX-Note: ",
    "half a body": response(200, b"answer to ONE")[:-1],
}


@pytest.mark.parametrize("name", HALVES)
@each_way
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_half_of_it_is_read_and_the_rest_comes_with_the_answer(
    name: str, carry: Carry, tls: bool, make_transport: MakeTransport
) -> None:
    """Half of something is read while the connection is idle: it is not used, so that nothing can be its other half."""

    def act(talk: Conversation) -> None:
        talk.send(HALVES[name])

    intrusion = Intrusion(act)
    with BlockingServer([intrusion, echo], tls=server_context() if tls else None) as server:
        transport = make_transport(server.url, **({"verify": client_context()} if tls else {}))
        assert (await carry(transport, request(b"ONE"))).body == b"answer to ONE"
        intrusion.go_on.set()
        await until_read(transport)
        assert (await carry(transport, request(b"TWO"))).body == b"answer to TWO"
        assert (await carry(transport, request(b"THREE"))).body == b"answer to THREE"
        assert server.connections_made == 2
        await transport.close()


WITH_IT = {
    "a second response": response(200, b"answer to ONE"),
    "a second response after an empty line": b"\r\n" + response(200, b"answer to ONE"),
    "a late 408": LATE_408,
    "an interim response": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "a byte of a head": b"H",
    "empty lines": b"\r\n\r\n",
}
LARGE = b"answer to ONE".ljust(200_000)
ANSWERS = {
    "length": (response(200, b"answer to ONE"), b"answer to ONE"),
    "large": (response(200, LARGE), LARGE),
    "chunks": (response(200, b"answer to ONE", chunked=True) + b"0\r\n\r\n", b"answer to ONE"),
    "trailers": (response(200, b"answer to ONE", chunked=True) + b"0\r\nX-Sum: 1\r\n\r\n", b"answer to ONE"),
    "nothing": (response(200, b""), b""),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "500": (response(500, b"answer to ONE"), b"answer to ONE"),
}


@pytest.mark.parametrize("follows", WITH_IT)
@pytest.mark.parametrize("framing", ANSWERS)
@each_way
async def test_what_comes_with_the_answer(
    follows: str, framing: str, carry: Carry, make_transport: MakeTransport
) -> None:
    """The beginning of another response shows that the first one is whole. It is the last one on its connection."""
    answer, body = ANSWERS[framing]

    def twice(talk: Conversation) -> None:
        talk.request()
        talk.send(answer + WITH_IT[follows])
        echo(talk)

    with BlockingServer([twice, echo]) as server:
        transport = make_transport(server.url)
        same = (await carry(transport, request(b"ONE"))).body == body
        assert same
        assert (await carry(transport, request(b"TWO"))).body == b"answer to TWO"
        assert (await carry(transport, request(b"THREE"))).body == b"answer to THREE"
        await transport.close()


@pytest.mark.parametrize("follows", [b"x", b"\0", b"\r\nx", b"0\r\n\r\n", b"HTTP/2", b"<html>"])
@pytest.mark.parametrize("framing", ["length", "large", "chunks", "204"])
@each_way
async def test_bytes_beyond_the_answer(
    follows: bytes, framing: str, carry: Carry, transport_name: str, make_transport: MakeTransport
) -> None:
    """Bytes that begin no response may be the body's: it is refused, and none of them is another request's."""

    def too_long(talk: Conversation) -> None:
        talk.request()
        talk.send(ANSWERS[framing][0] + follows)
        echo(talk)

    with BlockingServer([too_long, echo]) as server:
        transport = make_transport(server.url)
        # aiohttp has delivered some bodies before it sees the rest.
        with pytest.raises(ResponseStreamingError) if transport_name == "pooled" else suppress(ResponseStreamingError):
            await carry(transport, request(b"ONE"))
        assert (await carry(transport, request(b"TWO"))).body == b"answer to TWO"
        await transport.close()


@each_way
async def test_one_loop_turn_between_head_and_body(carry: Carry, make_transport: MakeTransport) -> None:
    """Half of a second response is read while the connection is idle, the rest is not."""
    read, rest = threading.Event(), threading.Event()

    def act(talk: Conversation) -> None:
        second = response(200, b"answer to ONE")
        talk.send(second[:20])
        read.wait(20)
        talk.send(second[20:])
        rest.set()

    intrusion = Intrusion(act)
    with BlockingServer([intrusion, echo]) as server:
        transport = make_transport(server.url)
        assert (await carry(transport, request(b"ONE"))).body == b"answer to ONE"
        intrusion.go_on.set()
        await until_read(transport)
        read.set()
        assert rest.wait(20)
        assert (await carry(transport, request(b"TWO"))).body == b"answer to TWO"
        await transport.close()


@each_way
async def test_all_idle_connections_have_ended(carry: Carry, make_transport: MakeTransport) -> None:
    go_on, ended = threading.Barrier(9), threading.Barrier(9)

    def end_together(talk: Conversation) -> None:
        body = talk.request()
        go_on.wait(20)
        talk.send(response(200, b"answer to " + body))
        ended.wait(20)
        talk.end()

    handlers: list[Handler] = [end_together] * 8
    with BlockingServer([*handlers, echo]) as server:
        transport = make_transport(server.url)
        calls = [asyncio.ensure_future(carry(transport, request(b"ONE"))) for _ in range(8)]
        await asyncio.to_thread(go_on.wait, 20)
        await asyncio.gather(*calls)
        ended.wait(20)
        while unread(transport, 20.0) < 8:
            pass
        assert (await carry(transport, request(b"TWO"))).body == b"answer to TWO"
        assert server.connections_made == 9
        await transport.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("transport_name", CLASSES)
@each_intrusion
def test_what_arrived_unnoticed_by_uvloop(name: str, transport_name: str, tls: bool) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        intrusion = Intrusion(INTRUSIONS[name])
        with BlockingServer([intrusion, echo], tls=server_context() if tls else None) as server:
            verify = client_context() if tls else True
            transport: Transport = CLASSES[transport_name](server.url, verify=verify)
            assert (await transport.send(request(b"ONE"))).body == b"answer to ONE"
            intrusion.happen(transport)
            assert (await transport.send(request(b"TWO"))).body == b"answer to TWO"
            assert (await transport.send(request(b"THREE"))).body == b"answer to THREE"
            await transport.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("state", ["idle", "stale", "silent"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_closing_waits_for_no_server(state: str, tls: bool, make_transport: MakeTransport) -> None:
    """Sockets are closed when close() returns, though the server does not answer TLS's close_notify."""
    intrude, intruded, ended = threading.Event(), threading.Event(), threading.Event()

    def never_close(talk: Conversation) -> None:
        body = talk.request()
        if state != "silent":
            talk.send(response(200, b"answer to " + body))
            intrude.wait(20)
        if state == "stale":
            talk.send(response(200, b"answer to ONE"))
        intruded.set()
        with socket.socket(fileno=talk.sock.detach()) as plain:
            plain.settimeout(20)
            with suppress(ConnectionResetError):
                while plain.recv(2**16):
                    pass
        ended.set()

    with BlockingServer([never_close, echo], tls=server_context() if tls else None) as server:
        transport = make_transport(server.url, **({"verify": client_context()} if tls else {}))
        if state == "silent":
            with pytest.raises(ReadTimeoutError):
                await transport.send(request(b"ONE", read_timeout=0.1))
        else:
            assert (await transport.send(request(b"ONE"))).body == b"answer to ONE"
            intrude.set()
            assert intruded.wait(20)
        if state == "stale":
            assert unread(transport, 20.0)
            assert (await transport.send(request(b"TWO"))).body == b"answer to TWO"
        await transport.close()
        assert ended.wait(10)


@each_way
async def test_connections_in_use_are_left_alone(carry: Carry, make_transport: MakeTransport) -> None:
    """A hundred requests in turn, each with a pause in the server, on one connection over TLS with its tickets."""
    with BlockingServer([echo], tls=server_context()) as server:
        transport = make_transport(server.url, verify=client_context())
        for number in range(100):
            assert (await carry(transport, request(b"%d" % number))).body == b"answer to %d" % number
        # The server's session tickets may arrive after the first response, and close that connection.
        assert server.connections_made <= 2
        await transport.close()
