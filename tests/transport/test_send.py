"""What servers answer when nothing goes wrong, in whatever pieces it arrives, on both transports."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from typing import NamedTuple

import pytest

from aiosmrt._transport.base import MAX_TIMEOUTS, Reply, Request, Transport, header_lines
from tests.support.progress import stands_still
from tests.support.raw_server import BODY, CLOSE, EARLY, LAST_CHUNK, RawServer, Script, chunk, response
from tests.support.tls import client_context, server_context
from tests.support.virtual_time import VirtualTime
from tests.transport.carrying import Carry, MakeTransport, Wire, each_way, only_pooled, request, whole

ALPHABET = bytes(range(256))


def lines(*lines: str, body: bytes = b"") -> bytes:
    """A response of these lines."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Answer(NamedTuple):
    """Bytes from the server, what they mean, and whether the connection may carry another exchange."""

    sent: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    reusable: bool = True

    @property
    def reply(self) -> Reply:
        return Reply(self.status, self.headers, self.body)

    @property
    def script(self) -> Script:
        return [self.sent] if self.reusable else [self.sent, CLOSE]


CHUNKED = {"transfer-encoding": "chunked"}

ANSWERS = {
    "length": Answer(
        lines("HTTP/1.1 200 OK", "Content-Type: text/csv", "Content-Length: 5", body=b"hello"),
        200,
        {"content-type": "text/csv", "content-length": "5"},
        b"hello",
    ),
    "no-body": Answer(lines("HTTP/1.1 200 OK", "Content-Length: 0"), 200, {"content-length": "0"}, b""),
    "error": Answer(
        lines("HTTP/1.1 503 Service Unavailable", "Content-Length: 2", body=b"{}"), 503, {"content-length": "2"}, b"{}"
    ),
    "no-reason": Answer(lines("HTTP/1.1 200 ", "content-length:1", body=b"a"), 200, {"content-length": "1"}, b"a"),
    "unknown-status": Answer(
        lines("HTTP/1.1 599 X", "Content-Length: 1", body=b"a"), 599, {"content-length": "1"}, b"a"
    ),
    "body-like-a-head": Answer(
        lines("HTTP/1.1 200 OK", "Content-Length: 19", body=b"HTTP/1.1 200 OK\r\n\r\n"),
        200,
        {"content-length": "19"},
        b"HTTP/1.1 200 OK\r\n\r\n",
    ),
    "chunks": Answer(
        lines(
            "HTTP/1.1 200 OK",
            "Transfer-Encoding: chunked",
            body=b"1\r\na\r\n00C\r\nbcdefghijklm\r\n2\r\n\r\n\r\n0\r\n\r\n",
        ),
        200,
        CHUNKED,
        b"abcdefghijklm\r\n",
    ),
    "chunks-each-byte": Answer(
        lines("HTTP/1.1 200 OK", "Transfer-Encoding: Chunked", body=b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"),
        200,
        {"transfer-encoding": "Chunked"},
        b"abc",
    ),
    "chunks-none": Answer(lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=LAST_CHUNK), 200, CHUNKED, b""),
    "chunk-extensions": Answer(
        lines(
            "HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b'5;n=v;m\r\nhello\r\n1;q="a b"\r\n!\r\n0;x\r\n\r\n'
        ),
        200,
        CHUNKED,
        b"hello!",
    ),
    "trailers": Answer(
        lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"),
        200,
        CHUNKED,
        b"hello",
    ),
    "204": Answer(lines("HTTP/1.1 204 No Content", "X-A: 1"), 204, {"x-a": "1"}, b""),
    "304": Answer(lines("HTTP/1.1 304 Not Modified", "Content-Length: 5"), 304, {"content-length": "5"}, b""),
    "100": Answer(
        lines("HTTP/1.1 100 Continue", body=lines("HTTP/1.1 200 OK", "Content-Length: 1", body=b"a")),
        200,
        {"content-length": "1"},
        b"a",
    ),
    "100-and-103": Answer(
        lines(
            "HTTP/1.1 100 Continue",
            body=lines(
                "HTTP/1.1 103 Early Hints",
                "Link: </a>",
                body=lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"1\r\na\r\n0\r\n\r\n"),
            ),
        ),
        200,
        CHUNKED,
        b"a",
    ),
    "repeated-headers": Answer(
        lines("HTTP/1.1 200 OK", "X-A: 1", "Content-Length: 0", "x-a: 2", "X-B: 3", "X-A: "),
        200,
        {"x-a": "1, 2, ", "content-length": "0", "x-b": "3"},
        b"",
    ),
    "spaces-before-values": Answer(
        lines("HTTP/1.1 200 OK", "X-A: \t a  b", "X-B:", "X-C:c", "Content-Length:  0"),
        200,
        {"x-a": "a  b", "x-b": "", "x-c": "c", "content-length": "0"},
        b"",
    ),
    # What is not UTF-8 is kept as surrogate escapes: botocore and aiobotocore have it so too.
    "beyond-ascii": Answer(
        lines("HTTP/1.1 200 OK", "X-A: \xc3\xa9", "X-B: \xe9", "Content-Length: 0"),
        200,
        {"x-a": "é", "x-b": "\udce9", "content-length": "0"},
        b"",
    ),
    "content-coding": Answer(
        lines("HTTP/1.1 200 OK", "Content-Encoding: gzip", "Content-Length: 25", body=gzip.compress(b"hello", mtime=0)),
        200,
        {"content-encoding": "gzip", "content-length": "25"},
        gzip.compress(b"hello", mtime=0),
    ),
    "connection-close": Answer(
        lines("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 1", body=b"a"),
        200,
        {"connection": "close", "content-length": "1"},
        b"a",
        reusable=False,
    ),
    "connection-close-chunks": Answer(
        lines("HTTP/1.1 200 OK", "Connection: Close", "Transfer-Encoding: chunked", body=b"1\r\na\r\n0\r\n\r\n"),
        200,
        {"connection": "Close", "transfer-encoding": "chunked"},
        b"a",
        reusable=False,
    ),
    "until-the-end": Answer(
        lines("HTTP/1.1 200 OK", "X-A: 1", body=b"hello"), 200, {"x-a": "1"}, b"hello", reusable=False
    ),
    "until-the-end-nothing": Answer(lines("HTTP/1.1 200 OK", "X-A: 1"), 200, {"x-a": "1"}, b"", reusable=False),
    "http-1.0": Answer(
        lines("HTTP/1.0 200 OK", "Content-Length: 1", body=b"a"), 200, {"content-length": "1"}, b"a", reusable=False
    ),
    "http-1.0-until-the-end": Answer(lines("HTTP/1.0 200 OK", body=b"a"), 200, {}, b"a", reusable=False),
}

each_answer = pytest.mark.parametrize("name", ANSWERS)


@each_answer
@each_way
async def test_an_answer(name: str, carry: Carry, transport: Transport, server: RawServer) -> None:
    """Once and again: what may carry another exchange does, and nothing else."""
    answer = ANSWERS[name]
    server.play(answer.script, answer.script, answer.script)
    for _ in range(3):
        assert await carry(transport, request()) == answer.reply
    assert [sent.connection for sent in server.requests] == ([0, 0, 0] if answer.reusable else [0, 1, 2])
    assert server.requests[-1].method == "POST"
    assert server.requests[-1].body == b"1,2"


@each_answer
@each_way
async def test_an_answer_in_two_pieces(
    name: str, carry: Carry, wire: Wire, transport: Transport, server: RawServer
) -> None:
    """Cut at every byte."""
    answer = ANSWERS[name]
    server.otherwise = answer.script
    for at in range(1, len(answer.sent)):
        wire.cut(at)
        assert await carry(transport, request()) == answer.reply, at
        assert wire.reads[:2] == [at, len(answer.sent) - at]
    assert (server.connections_made == 1) is answer.reusable


@each_answer
@each_way
async def test_an_answer_byte_by_byte(
    name: str, carry: Carry, wire: Wire, transport: Transport, server: RawServer
) -> None:
    answer = ANSWERS[name]
    server.otherwise = answer.script
    for _ in range(2):
        wire.cut(then=1)
        assert await carry(transport, request()) == answer.reply
        assert len(wire.reads) >= len(answer.sent)
    assert (server.connections_made == 1) is answer.reusable


@each_way
@only_pooled
async def test_spaces_behind_values(carry: Carry, transport: Transport, server: RawServer) -> None:
    """They are not part of the value (RFC 9112, 5.1); aiohttp 3.12 keeps them."""
    server.play([lines("HTTP/1.1 200 OK", "X-A: a \t ", "X-B: ", "Content-Length: 0 ")])
    assert (await carry(transport, request())).headers == {"x-a": "a", "x-b": "", "content-length": "0"}


@each_way
@pytest.mark.parametrize("first", [1, 3, 70])
async def test_a_body_in_every_two_chunks(carry: Carry, first: int, transport: Transport, server: RawServer) -> None:
    """In chunks of every two sizes, in reads that end where the chunks do."""
    body = ALPHABET[:140]
    head = response(200, b"", chunked=True)
    for second in range(1, len(body) - first):
        pieces = (body[:first], body[first : first + second], body[first + second :])
        server.play([head, *map(chunk, pieces), LAST_CHUNK])
        assert await carry(transport, request()) == Reply(200, CHUNKED, body)
    assert server.connections_made == 1


@each_way
@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 2**18, 25 * 2**20])
@pytest.mark.parametrize("framing", ["length", "chunks", "until-the-end"])
async def test_a_large_body(carry: Carry, size: int, framing: str, transport: Transport, server: RawServer) -> None:
    body = ALPHABET * (size // 256) + ALPHABET[: size % 256]
    if framing == "chunks":
        sizes = itertools.cycle([1, 2**16, 100, 2**20, 2**17 + 1])
        at, pieces = 0, []
        while at < size:
            step = next(sizes)
            pieces.append(chunk(body[at : at + step]))
            at += step
        script: Script = [response(200, b"", chunked=True) + b"".join(pieces) + LAST_CHUNK]
    elif framing == "length":
        script = [response(200, body)]
    else:
        script = [b"HTTP/1.1 200 OK\r\n\r\n" + body, CLOSE]
    server.otherwise = script
    for _ in range(2):
        reply = await carry(transport, request())
        assert reply.status == 200
        # not compared by pytest, whose description of a difference would take minutes
        same = reply.body == body
        assert same
        assert type(reply.body) is bytes
    assert server.connections_made == (2 if framing == "until-the-end" else 1)


async def test_a_stream_that_is_not_read_stops_its_server(wire: Wire, transport: Transport, server: RawServer) -> None:
    """At most 1 MiB is taken in ahead of a reader."""
    body = ALPHABET * (2**25 // 256)
    server.play([response(200, body)])
    stream = await transport.send_streaming(request())
    assert await stands_still(lambda: wire.received) < 2**20
    received = await stream.read()
    assert received
    received += await whole(stream)
    same = received == body
    assert same
    stream.close()
    await transport.send(request())
    assert server.connections_made == 1


async def test_a_stream_is_read_as_it_arrives(wire: Wire, transport: Transport, server: RawServer) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    head = response(200, b"", chunked=True)
    server.play([head, gates[0], chunk(b"one"), gates[1], chunk(b"two"), chunk(b"three"), gates[2], LAST_CHUNK])
    wire.cut()
    stream = await transport.send_streaming(request())
    assert (stream.status, stream.headers) == (200, CHUNKED)
    waiting = asyncio.create_task(stream.read())
    await wire.has_received(len(head))
    assert not waiting.done()
    gates[0].set()
    assert await waiting == b"one"
    gates[1].set()
    await wire.has_received(len(head + chunk(b"one") + chunk(b"two") + chunk(b"three")))
    assert await stream.read() == b"twothree"
    gates[2].set()
    assert await stream.read() == b""
    assert await stream.read() == b""
    stream.close()
    stream.close()
    await transport.send(request())
    assert server.connections_made == 1


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read in part"])
async def test_a_stream_that_is_closed_early_gives_its_connection_up(
    read: bool, transport: Transport, server: RawServer
) -> None:
    server.play([response(200, b"one", chunked=True), asyncio.Event()])
    stream = await transport.send_streaming(request())
    if read:
        assert await stream.read() == b"one"
    stream.close()
    stream.close()
    await server.until(lambda: server.connections_open == 0)
    await transport.send(request())
    assert [sent.connection for sent in server.requests] == [0, 1]


async def test_many_at_once_and_in_turn(transport: Transport, server: RawServer) -> None:
    """Each gets its own answer, and one round's connections serve the next."""
    server.otherwise = lambda sent: [response(200, sent.body)]
    for turn in range(3):
        bodies = [b"%d-%d" % (turn, number) for number in range(120)]
        replies = await asyncio.gather(*(transport.send(request(body)) for body in bodies))
        assert [reply.body for reply in replies] == bodies
    assert server.connections_made == 120


# Requests


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 2**20, 8 * 2**20])
@pytest.mark.parametrize("kind", [bytes, memoryview])
@each_way
async def test_a_request_body(carry: Carry, size: int, kind: type, transport: Transport, server: RawServer) -> None:
    body = (ALPHABET * (size // 256 + 1))[:size]
    for _ in range(2):
        await carry(transport, request(kind(body)))
        same = server.requests[-1].body == body
        assert same
        assert server.requests[-1].headers["content-length"] == str(size)
    assert server.connections_made == 1


async def test_a_request_as_it_is_sent(transport: Transport, server: RawServer) -> None:
    """The target's bytes and the headers are as they were signed; what is added is in the list."""
    target = "/endpoints/a%2Fb%C3%A9/invocations?x=%7E&y=a%20b+c"
    headers = [
        ("Host", server.url.removeprefix("http://")),
        ("X-Amz-Date", "1"),
        ("Authorization", "a, b=c"),
        ("X-A", "é"),
    ]
    await transport.send(Request(target, header_lines(headers), b"1", 30.0, 30.0))
    sent = server.requests[-1]
    assert sent.target == target
    expected = {name.lower(): value.encode().decode("latin-1") for name, value in headers}
    assert {name: sent.headers[name] for name in expected} == expected
    assert set(sent.headers) - set(expected) <= {"content-length", "accept", "accept-encoding", "user-agent"}


@pytest.mark.parametrize("kind", [bytes, memoryview])
async def test_a_request_body_that_is_received_slowly(
    kind: type, clock: VirtualTime, wire: Wire, make_transport: MakeTransport
) -> None:
    """No read timeout while the body is being received, however long that takes altogether."""
    # Far more than the kernel takes in ahead of the server, so that each step lets the client write.
    wire.send_buffer = 2**16
    body = ALPHABET * (2**24 // 256)
    step = 2**20
    gates = [asyncio.Event() for _ in range(3)]
    steps = [action for gate in gates for action in (gate, step)]
    async with RawServer([[EARLY, *steps, BODY, response(200, b"received")]], receive_buffer=2**16) as server:
        transport = make_transport(server.url)
        exchange = asyncio.create_task(transport.send(request(kind(body), read_timeout=10.0)))
        await server.received(1)
        for number, gate in enumerate(gates, 1):
            await clock.advance(6.0)
            gate.set()
            await server.until(lambda number=number: server.body_bytes >= number * step)  # type: ignore[misc]
        assert (await exchange).body == b"received"
        same = server.requests[0].body == body
        assert same
        assert (await transport.send(request())).status == 200
        assert server.connections_made == 1
        await transport.close()


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("size", [2**16, 2**24], ids=["in one write", "in slices"])
@each_way
async def test_an_answer_before_the_request_is_received(
    carry: Carry, kind: type, size: int, wire: Wire, transport_name: str, make_transport: MakeTransport
) -> None:
    """The server has read the head and reads no further: the answer counts, and the connection cannot be used again."""
    if (transport_name, size) == ("session", 2**16):
        pytest.skip("aiohttp (3.12 to 3.14) does not look whether what it wrote has left")
    look_again = asyncio.Event()
    wire.send_buffer = 2**12
    script: Script = [EARLY, response(413, b"too large"), look_again, BODY]
    async with RawServer([script], receive_buffer=2**12) as server:
        transport = make_transport(server.url)
        reply = await carry(transport, request(kind(bytes(size))))
        assert (reply.status, reply.body) == (413, b"too large")
        await transport.send(request())
        assert [sent.connection for sent in server.requests] == [0, 1]
        look_again.set()
        await server.until(lambda: server.connections_open == 1)
        assert server.body_bytes < size
        await transport.close()


# TLS


@pytest.mark.parametrize("name", ["length", "chunks", "100-and-103", "connection-close", "until-the-end"])
@each_way
async def test_an_answer_over_tls(name: str, carry: Carry, make_transport: MakeTransport) -> None:
    answer = ANSWERS[name]
    async with RawServer(otherwise=answer.script, tls=server_context()) as server:
        transport = make_transport(server.url, verify=client_context())
        for _ in range(3):
            assert await carry(transport, request()) == answer.reply
        assert [sent.connection for sent in server.requests] == ([0, 0, 0] if answer.reusable else [0, 1, 2])
        await transport.close()


@each_way
async def test_large_bodies_over_tls(carry: Carry, make_transport: MakeTransport) -> None:
    body = ALPHABET * (2**22 // 256)
    async with RawServer(otherwise=lambda sent: [response(200, sent.body)], tls=server_context()) as server:
        transport = make_transport(server.url, verify=client_context())
        for _ in range(2):
            reply = await carry(transport, request(memoryview(body)))
            same = reply.body == body
            assert same
        assert server.connections_made == 1
        await transport.close()


async def test_what_is_kept_for_timeouts_is_bounded(transport: Transport, server: RawServer) -> None:
    """A caller may compute a timeout for each call."""
    server.otherwise = [response(200, b"ok")]
    for number in range(MAX_TIMEOUTS + 50):
        await transport.send(request(read_timeout=1000.0 + number, connect_timeout=1000.0 + number))
    kept = [vars(transport).get(name, {}) for name in ("_timeouts", "_watchdogs")]
    assert max(map(len, kept)) <= MAX_TIMEOUTS
