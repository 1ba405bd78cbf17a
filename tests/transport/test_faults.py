"""Failures at every byte of a response: a typed error at once, and the connection is closed."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

import aiohttp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiosmrt._transport.aiohttp_session.transport import SessionTransport
from aiosmrt._transport.base import Reply, ReplyStream, Request, Transport
from aiosmrt.errors import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    TransportError,
)
from tests.support.blocking_server import BlockingServer, Conversation
from tests.support.raw_server import (
    CLOSE,
    EARLY,
    LAST_CHUNK,
    RESET,
    End,
    RawRequest,
    RawServer,
    Step,
    chunk,
    response,
)
from tests.support.seams import connections_idle, connections_in_use
from tests.support.tls import client_context, server_context
from tests.support.virtual_time import VirtualTime
from tests.transport.carrying import (
    CLASSES,
    Carry,
    MakeTransport,
    Wire,
    each_way,
    only_pooled,
    only_session,
    read_through,
    request,
    send,
    whole,
)

T = TypeVar("T")

BODY = b"hello, world"
HEADERS = [("x-amzn-RequestId", "1"), ("Content-Type", "text/csv")]
HEAD = "".join(f"{name}: {value}\r\n" for name, value in HEADERS).encode()

RESPONSES = {
    "length": b"HTTP/1.1 200 OK\r\n" + HEAD + b"Content-Length: 12\r\n\r\n" + BODY,
    "chunks": b"HTTP/1.1 200 OK\r\n"
    + HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n6;a=b\r\nhello,\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n",
    "until-the-end": b"HTTP/1.1 200 OK\r\n" + HEAD + b"\r\n" + BODY,
    "after-100": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY,
}


def head_end(sent: bytes) -> int:
    """Where a response's body begins."""
    return sent.index(b"\r\n\r\n", sent.index(b"HTTP/1.1 200")) + 4


def at(number: int, **arguments: Any) -> Request:
    """A request whose number `number_of` finds."""
    return request(target=f"/{number}", **arguments)


def number_of(sent: RawRequest) -> int:
    return int(sent.target.removeprefix("/"))


async def until_given_up(transport: Transport, server: RawServer) -> None:
    """No connection is held, and the server has seen the end of all that were not pooled."""
    assert connections_in_use(transport) == 0
    await server.until(lambda: server.connections_open <= connections_idle(transport))


# Ends


@pytest.mark.parametrize("end", [CLOSE, RESET], ids=["fin", "reset"])
@pytest.mark.parametrize("framing", RESPONSES)
async def test_an_end_at_every_byte_of_an_exchange(
    framing: str, end: End, transport: Transport, server: RawServer
) -> None:
    sent = RESPONSES[framing]
    server.otherwise = lambda asked: [sent[: number_of(asked)], end]
    for count in range(len(sent)):
        if ends_well(framing, end, count):
            reply = await transport.send(at(count))
            assert reply.body == sent[head_end(sent) : count]
            continue
        with pytest.raises(TransportError) as caught:
            await transport.send(at(count))
        assert type(caught.value) is (ConnectionClosedError if count < head_end(sent) else ResponseStreamingError), (
            count
        )
    assert [asked.connection for asked in server.requests] == list(range(len(sent)))
    await until_given_up(transport, server)


@pytest.mark.parametrize("end", [CLOSE, RESET], ids=["fin", "reset"])
@pytest.mark.parametrize("framing", RESPONSES)
async def test_an_end_at_every_byte_of_a_stream(
    framing: str, end: End, transport: Transport, server: RawServer
) -> None:
    """Data that arrived before it is delivered first."""
    sent = RESPONSES[framing]
    server.otherwise = lambda asked: [sent[: number_of(asked)], end]
    for count in range(len(sent)):
        if count < head_end(sent):
            with pytest.raises(ConnectionClosedError):
                await transport.send_streaming(at(count))
            continue
        stream = await transport.send_streaming(at(count))
        pieces: list[bytes] = []
        if ends_well(framing, end, count):
            pieces.append(await whole(stream))
        else:
            with pytest.raises(ResponseStreamingError):
                await read_into(pieces, stream)
            # It stays broken off.
            with pytest.raises(ResponseStreamingError):
                await stream.read()
        stream.close()
        received = b"".join(pieces)
        assert BODY.startswith(received)
        if framing != "chunks":
            assert received == sent[head_end(sent) : count]
    assert len(server.requests) == len(sent)
    await until_given_up(transport, server)


def ends_well(framing: str, end: End, count: int) -> bool:
    """Whether a response that ends after so many bytes is whole."""
    return framing == "until-the-end" and count >= head_end(RESPONSES[framing]) and end is CLOSE


async def read_into(pieces: list[bytes], stream: ReplyStream) -> None:
    while data := await stream.read():
        pieces.append(data)


@each_way
@pytest.mark.parametrize("end", [CLOSE, RESET], ids=["fin", "reset"])
async def test_an_end_while_a_large_request_is_written(
    carry: Carry, end: End, transport: Transport, server: RawServer
) -> None:
    """The server goes away with the head alone."""
    server.play([EARLY, end])
    with pytest.raises(ConnectionClosedError):
        await carry(transport, request(bytes(2**24)))
    await until_given_up(transport, server)
    assert (await carry(transport, request())).status == 200


FRAMINGS = {
    "length": [response(200, b"hello", length=9)],
    "chunks": [response(200, b"hello", chunked=True)],
    "until-the-end": [b"HTTP/1.1 200 OK\r\n\r\nhello"],
    "nothing of it": [b"HTTP/1.1 200 OK\r\n\r\n"],
    "in an error": [b"HTTP/1.1 500 x\r\n\r\nhello"],
    "http-1.0": [b"HTTP/1.0 200 OK\r\n\r\nhello"],
    "another transfer coding": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello"],
}


@pytest.mark.parametrize("end", ["fin", "reset"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("carry", [send, read_through], ids=["send", "send_streaming"])
def test_an_end_that_tls_did_not_announce(framing: str, end: str, loop: str, carry: Carry, transport_name: str) -> None:
    """Anyone on the way can end a TCP connection: such a body is incomplete (RFC 9112, 9.8), whatever its framing."""
    made = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    def cut_off(talk: Conversation) -> None:
        talk.request()
        talk.send(*FRAMINGS[framing])
        talk.end() if end == "fin" else talk.reset()

    async def main() -> None:
        with BlockingServer([cut_off], tls=server_context()) as server:
            transport = CLASSES[transport_name](server.url, verify=client_context())
            with pytest.raises(ResponseStreamingError if end == "fin" else TransportError):
                await carry(transport, request())
            assert connections_in_use(transport) == 0
            await transport.close()

    with asyncio.Runner(loop_factory=made) as runner:
        runner.run(main())


@pytest.mark.parametrize("framing", ["until-the-end", "http-1.0"])
@pytest.mark.parametrize("end", ["tls", "reset"])
@pytest.mark.parametrize("carry", [send, read_through], ids=["send", "send_streaming"])
async def test_an_end_on_a_callers_session(framing: str, end: str, carry: Carry) -> None:
    """Its responses are aiohttp's own: TLS that ends without notice, and a reset, are an error there too."""
    received = threading.Event()

    def cut_off(talk: Conversation) -> None:
        talk.request()
        talk.send(*FRAMINGS[framing])
        if end == "tls":
            talk.end()
        else:
            received.wait(20)
            talk.reset()

    async def got_head(*_: Any) -> None:
        received.set()

    traces = aiohttp.TraceConfig()
    traces.on_request_end.append(got_head)
    with BlockingServer([cut_off], tls=server_context() if end == "tls" else None) as server:
        connector = aiohttp.TCPConnector(ssl=client_context())
        async with aiohttp.ClientSession(connector=connector, trace_configs=[traces]) as session:
            transport = SessionTransport(server.url, session=session)
            with pytest.raises(ResponseStreamingError):
                await carry(transport, request())
            await transport.close()


@pytest.mark.parametrize("framing", ["until-the-end", "nothing of it", "in an error", "http-1.0"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("carry", [send, read_through], ids=["send", "send_streaming"])
def test_an_end_that_tls_announced(framing: str, loop: str, waits: bool, carry: Carry, transport_name: str) -> None:
    """With or without the head in the same segment; the body is complete."""
    made = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    [sent] = FRAMINGS[framing]
    go_on = threading.Event()

    def announce(talk: Conversation) -> None:
        talk.request()
        talk.send(sent)
        if waits:
            go_on.wait(20)
        talk.announce_end()
        talk.end()

    async def main() -> None:
        with BlockingServer([announce], tls=server_context()) as server:
            transport = CLASSES[transport_name](server.url, verify=client_context())
            asyncio.get_running_loop().call_later(0.05, go_on.set)
            assert (await carry(transport, request())).body == sent.partition(b"\r\n\r\n")[2]
            await asyncio.sleep(0)
            assert connections_in_use(transport) == 0
            await transport.close()

    with asyncio.Runner(loop_factory=made) as runner:
        runner.run(main())


# Silence


@pytest.mark.parametrize("framing", RESPONSES)
@each_way
async def test_silence_at_every_byte(
    carry: Carry,
    framing: str,
    clock: VirtualTime,
    wire: Wire,
    transport: Transport,
    server: RawServer,
) -> None:
    """All requests at once: each has received what was sent, then the read timeout passes."""
    sent, never = RESPONSES[framing], asyncio.Event()
    server.otherwise = lambda asked: [sent[: number_of(asked)], never]
    wire.cut()
    counts = range(len(sent))
    calls = [asyncio.create_task(_as_task(carry(transport, at(count, read_timeout=20.0)))) for count in counts]
    await server.received(len(sent))
    await wire.has_received(sum(counts))
    await clock.advance(19.0)
    assert not [count for count, call in zip(counts, calls, strict=True) if call.done()]
    # A body that has grown since the last look is looked at again a tenth of the timeout later.
    await clock.advance(40.0)
    await asyncio.wait(calls)
    assert {type(call.exception()) for call in calls} == {ReadTimeoutError}
    await until_given_up(transport, server)


@each_way
async def test_silence_behind_an_interim_response(
    carry: Carry, clock: VirtualTime, wire: Wire, transport: Transport, server: RawServer
) -> None:
    """The request did not ask for it; aiohttp stops its own timer there."""
    interim = response(103)
    server.play([interim, asyncio.Event()])
    wire.cut()
    call = asyncio.create_task(_as_task(carry(transport, request(bytes(3_000_000), read_timeout=20.0))))
    await wire.has_received(len(interim))
    await clock.advance(19.0)
    assert not call.done()
    await clock.advance(21.0)
    with pytest.raises(ReadTimeoutError):
        await call
    await until_given_up(transport, server)


HEADS_WITHOUT_END = {
    "interim": [b"HTTP/1.1 102 Processing\r\n\r\n"] * 10,
    "bytes": [bytes([byte]) for byte in b"HTTP/1.1 2"],
    "lines": [b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n"] * 9],
}


@pytest.mark.parametrize("pieces", HEADS_WITHOUT_END.values(), ids=HEADS_WITHOUT_END)
@each_way
async def test_a_head_without_end_is_silence(
    carry: Carry, pieces: list[bytes], clock: VirtualTime, wire: Wire, transport: Transport, server: RawServer
) -> None:
    """Something comes every third of the read timeout."""
    gates = [asyncio.Event() for _ in pieces]
    server.play([*(step for pair in zip(gates, pieces, strict=True) for step in pair), asyncio.Event()])
    wire.cut()
    call = asyncio.create_task(_as_task(carry(transport, request(read_timeout=30.0))))
    await server.received(1)
    sent = 0
    for gate, each in zip(gates, pieces, strict=True):
        if call.done():
            break
        gate.set()
        sent += len(each)
        await wire.has_received(sent)
        await clock.advance(10.0)
    assert sent < sum(map(len, pieces)) / 2
    with pytest.raises(ReadTimeoutError):
        await call
    await until_given_up(transport, server)


async def _as_task(awaited: Awaitable[T]) -> T:
    return await awaited


@each_way
async def test_silence_by_the_clock(carry: Carry, transport: Transport, server: RawServer) -> None:
    """Measured by the machine's clock."""
    loop = asyncio.get_running_loop()
    for sent in ([asyncio.Event()], [response(200, b"he", length=5), asyncio.Event()]):
        server.play(sent)
        began = loop.time()
        with pytest.raises(ReadTimeoutError):
            await carry(transport, request(read_timeout=0.05))
        assert loop.time() - began >= 0.045
    await until_given_up(transport, server)


@pytest.mark.parametrize("framing", ["length", "chunks", "until-the-end"])
@each_way
async def test_a_drip_is_no_silence(
    carry: Carry, framing: str, clock: VirtualTime, wire: Wire, transport: Transport, server: RawServer
) -> None:
    """A body that comes byte by byte may take longer than the read timeout many times over."""
    body = bytes(range(60))
    if framing == "chunks":
        head = response(200, b"", chunked=True)
        rest = b"".join(chunk(body[at : at + 4]) for at in range(0, len(body), 4)) + LAST_CHUNK
    else:
        head, rest = (
            b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 60\r\n" if framing == "length" else b"") + b"\r\n",
            body,
        )
    gates = [asyncio.Event() for _ in rest]
    drips: list[Step] = [
        step for gate, at in zip(gates, range(len(rest)), strict=True) for step in (gate, rest[at : at + 1])
    ]
    server.play([head, *drips, *([CLOSE] if framing == "until-the-end" else [])])
    wire.cut()
    call = asyncio.create_task(_as_task(carry(transport, request(read_timeout=30.0))))
    for count, gate in enumerate(gates, len(head)):
        await wire.has_received(count)
        # Up to seven bytes in a row are framing, which aiohttp's count does not see.
        await clock.advance(3.0)
        gate.set()
    assert (await call).body == body


async def test_a_reader_that_takes_its_time_is_no_silence(
    clock: VirtualTime, wire: Wire, transport: Transport, server: RawServer
) -> None:
    go_on = asyncio.Event()
    server.play([response(200, b"hello", length=10), go_on, b"world"])
    wire.cut()
    stream = await transport.send_streaming(request(read_timeout=10.0))
    assert await stream.read() == b"hello"
    received = wire.received
    go_on.set()
    await wire.has_received(received + 5)
    await clock.advance(100.0)
    assert await stream.read() == b"world"
    assert await stream.read() == b""
    stream.close()


async def test_silence_that_begins_late(
    clock: VirtualTime, transport_name: str, transport: Transport, server: RawServer
) -> None:
    """A reader that comes long after the last piece waits for as long as any other."""
    server.play([response(200, b"hello", length=10), asyncio.Event()])
    stream = await transport.send_streaming(request(read_timeout=10.0))
    assert await stream.read() == b"hello"
    if transport_name == "pooled":
        await clock.advance(100.0)
    waiting = asyncio.create_task(_as_task(stream.read()))
    await asyncio.sleep(0)
    await clock.advance(9.0)
    assert not waiting.done()
    await clock.advance(2.0)
    with pytest.raises(ReadTimeoutError):
        await waiting
    stream.close()


async def test_silence_while_nothing_reads_does_not_count(
    clock: VirtualTime, wire: Wire, transport: Transport, server: RawServer
) -> None:
    """The timeout starts when a reader waits."""
    go_on = asyncio.Event()
    server.play([response(200, b"hello", length=10), go_on, b"world"])
    stream = await transport.send_streaming(request(read_timeout=10.0))
    assert await stream.read() == b"hello"
    await clock.advance(100.0)
    waiting = asyncio.create_task(_as_task(stream.read()))
    await asyncio.sleep(0)
    await clock.advance(9.0)
    go_on.set()
    assert await waiting == b"world"
    assert await stream.read() == b""
    stream.close()


async def test_no_read_timeout(clock: VirtualTime, transport: Transport, server: RawServer) -> None:
    go_on = asyncio.Event()
    server.play([response(200, b"hello", length=10), go_on, b"world"])
    call = asyncio.create_task(_as_task(transport.send(request(read_timeout=None))))
    await server.received(1)
    await clock.advance(1e6)
    go_on.set()
    assert (await call).body == b"helloworld"


@only_pooled
async def test_a_server_that_stops_receiving_is_silent(clock: VirtualTime, make_transport: MakeTransport) -> None:
    """aiohttp would wait forever."""
    async with RawServer([[EARLY, asyncio.Event()]], receive_buffer=2**16) as server:
        transport = make_transport(server.url)
        call = asyncio.create_task(_as_task(transport.send(request(bytes(2**24), read_timeout=10.0))))
        await server.received(1)
        for _ in range(50):
            await clock.advance(1.0)
        with pytest.raises(ReadTimeoutError):
            await call
        assert connections_in_use(transport) == 0
        await transport.close()


# Bytes that are not a response


MALFORMED = {
    "another-protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "http-2": bytes.fromhex("000012040000000000000300000080000400010000000502") + b"\0" * 40,
    "no-status": b"HTTP/1.1 OK\r\n\r\n",
    "status-of-two-digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length-no-number": b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
    "length-and-chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "nul-in-a-header": b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n",
    "space-before-colon": b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 0\r\n\r\n",
    "header-without-colon": b"HTTP/1.1 200 OK\r\nX-A\r\nContent-Length: 0\r\n\r\n",
    "long-header": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "many-headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 20_000 + b"Content-Length: 0\r\n\r\n",
    "endless-1xx": b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + b"HTTP/1.1 099 X\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "chunk-size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "chunk-size-negative": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    "chunk-size-enormous": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\na\r\n0\r\n\r\n",
    "chunk-end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "other-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
@each_way
@only_pooled
async def test_a_malformed_response(name: str, carry: Carry, transport: Transport, server: RawServer) -> None:
    """Refused as soon as it has arrived. aiohttp accepts some of these."""
    sent = MALFORMED[name]
    for piece in (len(sent), 7):
        pieces = [sent[at : at + piece] for at in range(0, len(sent), piece)] if len(sent) < 1000 else [sent]
        server.play([*pieces, asyncio.Event()])
        with pytest.raises(ResponseStreamingError) as caught:
            await carry(transport, request())
        # Nothing of what came is in the error: it may be a user's data.
        assert caught.value.__cause__ is None
        assert connections_in_use(transport) == 0
    await until_given_up(transport, server)
    assert (await carry(transport, request())).body == b"ok"


@pytest.mark.parametrize("framing", ["length", "chunks", "after-100"])
@pytest.mark.parametrize("extra", [b"x", b"\r\n", response(200, b"another's")], ids=["byte", "line", "response"])
@each_way
async def test_data_behind_a_response(
    framing: str, extra: bytes, carry: Carry, transport_name: str, transport: Transport, server: RawServer
) -> None:
    """The data must not become the next response. Unless they begin one themselves, the server counts differently."""
    server.play([RESPONSES[framing] + extra])
    if extra != b"x":
        assert (await carry(transport, request())).body == BODY
    elif transport_name == "pooled":
        with pytest.raises(ResponseStreamingError):
            await carry(transport, request())
    else:
        # It depends on how aiohttp receives it.
        with suppress(ResponseStreamingError):
            assert (await carry(transport, request())).body == BODY
    assert (await carry(transport, request())).body == b"ok"
    if transport_name == "pooled" or extra != b"\r\n":
        assert [asked.connection for asked in server.requests] == [0, 1]
        await server.until(lambda: server.connections_open == 1)


def mutated(sent: bytes, seed: int) -> bytes:
    """A response with some bytes changed, taken out or put in."""
    chance, changed = random.Random(seed), bytearray(sent)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(changed))
        kind = chance.randrange(3)
        if kind == 0:
            changed[at] = chance.choice(b"\r\n :;,0123456789abcxyz\x00\xff")
        elif kind == 1:
            del changed[at : at + chance.randrange(1, 6)]
        else:
            changed[at:at] = chance.choice([b"\r\n", b"\n", b"\r", b" ", b"0", b"\r\nContent-Length: 3"])
    return bytes(changed)


GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.builds(mutated, st.sampled_from(list(RESPONSES.values())), st.integers(0, 2**32)),
    st.binary(max_size=50).map(lambda data: RESPONSES["chunks"][: head_end(RESPONSES["chunks"])] + data),
)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("carry", [send, read_through], ids=["send", "send_streaming"])
@given(sent=GARBAGE, cut=st.integers(1, 300), end=st.sampled_from([CLOSE, RESET, None]))
@settings(max_examples=60)
@example(sent=b"", cut=1, end=None)
def test_garbage(name: str, carry: Carry, sent: bytes, cut: int, end: End | None) -> None:
    """Any bytes: a call ends in time, with a reply or a typed error, and asyncio logs nothing."""

    async def main() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        pieces = [piece for piece in (sent[:cut], sent[cut:]) if piece]
        async with RawServer([[*pieces, *([] if end is None else [end])]]) as server:
            transport: Transport = CLASSES[name](server.url)
            try:
                call = asyncio.create_task(_as_task(carry(transport, request(read_timeout=20.0))))
                await server.received(1)
                # Some end by their read timeout alone; what is on its way has many turns of the loop to arrive first.
                while not call.done():
                    for _ in range(20):
                        await asyncio.sleep(0)
                    await time.advance(1.0)
                reply = await call
            except TransportError:
                pass
            else:
                assert type(reply) is Reply
                assert type(reply.body) is bytes
            assert connections_in_use(transport) == 0
            if end is not None:
                # What aiohttp takes for a response leaves a connection in its pool, which the server closes.
                await server.until(lambda: server.connections_open == 0)
                while connections_idle(transport):
                    await asyncio.sleep(0)
            assert (await carry(transport, request())).body == b"ok"
            await transport.close()
            await server.until(lambda: server.connections_open == 0)
        assert not complaints

    async def in_virtual_time() -> None:
        with time.drive_loop():
            await main()

    time = VirtualTime()
    asyncio.run(in_virtual_time())


# No connection


@each_way
async def test_a_refused_connection(carry: Carry, make_transport: MakeTransport, refusing_url: str) -> None:
    transport = make_transport(refusing_url)
    for _ in range(2):
        with pytest.raises(EndpointConnectionError) as caught:
            await carry(transport, request())
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert connections_in_use(transport) == 0


@each_way
async def test_an_unknown_host(carry: Carry, make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*arguments: Any, **named: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    transport = make_transport("http://runtime.example:8080")
    with pytest.raises(EndpointConnectionError) as caught:
        await carry(transport, request())
    assert isinstance(caught.value.__cause__, OSError)
    assert connections_in_use(transport) == 0


@each_way
@pytest.mark.parametrize("read_timeout", [30.0, 0.01, None])
async def test_a_connection_that_takes_too_long(
    carry: Carry, read_timeout: float | None, busy_url: str, make_transport: MakeTransport
) -> None:
    transport = make_transport(busy_url)
    with pytest.raises(ConnectTimeoutError):
        await carry(transport, request(connect_timeout=0.05, read_timeout=read_timeout))
    assert connections_in_use(transport) == 0


# TLS


@each_way
async def test_a_handshake_that_takes_too_long(
    carry: Carry, clock: VirtualTime, make_transport: MakeTransport, server: RawServer
) -> None:
    """A server of plain HTTP waits for the rest of what it takes for a head."""
    transport = make_transport(server.url.replace("http", "https"), verify=client_context())
    call = asyncio.create_task(_as_task(carry(transport, request(connect_timeout=5.0))))
    await server.until(lambda: server.connections_made == 1)
    await clock.advance(6.0)
    with pytest.raises(ConnectTimeoutError):
        await call
    await until_given_up(transport, server)
    assert server.connections_made == 1


@each_way
async def test_a_server_without_tls(carry: Carry, make_transport: MakeTransport) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        transport = make_transport(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(SSLError):
            await carry(transport, request())
        assert connections_in_use(transport) == 0
        await transport.close()


@each_way
@pytest.mark.parametrize("fault", ["unknown authority", "another name", "another authority"])
async def test_a_certificate_that_does_not_hold(fault: str, carry: Carry, make_transport: MakeTransport) -> None:
    identity = server_context("somewhere.example") if fault == "another name" else server_context()
    verify = {
        "unknown authority": True,
        "another name": client_context(),
        "another authority": client_context("others"),
    }[fault]
    async with RawServer(tls=identity) as server:
        transport = make_transport(server.url, verify=verify)
        for _ in range(2):
            with pytest.raises(SSLError) as caught:
                await carry(transport, request())
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert server.requests == []
        await until_given_up(transport, server)
        await transport.close()


@each_way
async def test_a_certificate_that_nobody_checks(carry: Carry, make_transport: MakeTransport) -> None:
    async with RawServer(tls=server_context("somewhere.example")) as server:
        transport = make_transport(server.url, verify=False)
        assert (await carry(transport, request())).body == b"ok"
        await transport.close()


@each_way
async def test_the_name_that_is_asked_for(carry: Carry, make_transport: MakeTransport) -> None:
    """The host's name goes along with the handshake: load balancers choose the certificate by it."""
    names: list[str | None] = []
    identity = server_context("localhost")
    identity.sni_callback = lambda connection, name, context: names.append(name)
    async with RawServer(tls=identity) as server:
        transport = make_transport(server.url.replace("127.0.0.1", "localhost"), verify=client_context())
        assert (await carry(transport, request())).body == b"ok"
        assert names == ["localhost"]
        await transport.close()


# A proxy


@only_session
async def test_a_proxy(make_transport: MakeTransport, server: RawServer) -> None:
    """The target is absolute (RFC 9112, 3.2.2)."""
    transport = make_transport("http://runtime.example:8080", proxy=server.url)
    assert (await transport.send(request())).body == b"ok"
    assert server.requests[0].target == "http://runtime.example:8080/endpoints/e/invocations"


@only_session
async def test_a_proxy_that_is_not_there(make_transport: MakeTransport, refusing_url: str) -> None:
    transport = make_transport("http://runtime.example:8080", proxy=refusing_url)
    with pytest.raises(ProxyConnectionError):
        await transport.send(request())
