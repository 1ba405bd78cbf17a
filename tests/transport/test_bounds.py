"""What a server can make a client hold: endless framing, large errors, large responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from aiosmrt._transport.base import MAX_ERROR_BYTES
from aiosmrt.errors import ReadTimeoutError, ResponseStreamingError
from tests.support.raw_server import CLOSE, LAST_CHUNK, RawServer, Script, chunk, response
from tests.support.seams import connections_idle, connections_in_use
from tests.support.tls import client_context, server_context
from tests.transport.carrying import (
    Carry,
    MakeTransport,
    Transport,
    each_way,
    request,
    whole,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def flood() -> AsyncIterator[Callable[[bytes, bytes], asyncio.Future[str]]]:
    """Serves a beginning and then the same bytes again and again; the future is the server's URL."""
    servers: list[asyncio.Server] = []

    async def serve(beginning: bytes, again: bytes) -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(beginning)
            try:
                while True:
                    writer.write(again)
                    await writer.drain()
                    await asyncio.sleep(0)  # the client's turn
            except ConnectionError:
                writer.close()

        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield lambda beginning, again: asyncio.ensure_future(serve(beginning, again))
    for server in servers:
        server.close()


ENDLESS = {
    "extensions of chunks with a byte": (CHUNKED, b"1;x=" + b"a" * 900 + b"\r\na\r\n"),
    "zeros before sizes": (CHUNKED, b"0" * 14 + b"1;" + b"a" * 100 + b"\r\na\r\n"),
    "an extension without end": (CHUNKED + b"1;", b"a" * 1000),
    "a trailer without end": (CHUNKED + b"0\r\n", b"a" * 1000),
    "trailers without end": (CHUNKED + b"0\r\n", b"X-A: a\r\n" * 1000),
    "interim responses": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "a head without end": (b"HTTP/1.1 200 OK\r\n", b"X-A: a\r\n" * 1000),
}


@pytest.mark.parametrize("name", ENDLESS)
@each_way
async def test_endless_framing(
    name: str,
    carry: Carry,
    transport_name: str,
    make_transport: MakeTransport,
    flood: Callable[[bytes, bytes], asyncio.Future[str]],
) -> None:
    """The pooled transport refuses it; aiohttp's parser does not, so that the read timeout ends it."""
    transport = make_transport(await flood(*ENDLESS[name]))
    expected = (ResponseStreamingError,) if transport_name == "pooled" else (ResponseStreamingError, ReadTimeoutError)
    if transport_name == "session" and "chunks with a byte" in name:
        pytest.skip("a byte with each extension is a slow body to aiohttp")
    if transport_name == "session" and "zeros" in name:
        pytest.skip("a byte with each extension is a slow body to aiohttp")
    with pytest.raises(expected):
        await carry(transport, request(read_timeout=30.0 if transport_name == "pooled" else 0.1))
    assert connections_in_use(transport) == 0
    await transport.close()


@each_way
async def test_extensions_within_reason(carry: Carry, transport: Transport, server: RawServer) -> None:
    """An extension per chunk, as some servers sign them."""
    signed = b";chunk-signature=" + b"a" * 64
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (64, signed, b"b" * 64) for _ in range(2000))
    server.play([CHUNKED, chunks + LAST_CHUNK], [CHUNKED, b"1\r\na\r\n" * 50_000 + LAST_CHUNK])
    assert len((await carry(transport, request())).body) == 128_000
    assert len((await carry(transport, request())).body) == 50_000
    assert server.connections_made == 1


# Errors


SIZES = [0, MAX_ERROR_BYTES - 1, MAX_ERROR_BYTES, MAX_ERROR_BYTES + 1, 2**23]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", ["length", "chunks", "until-the-end"])
@pytest.mark.parametrize("status", [300, 500])
@each_way
async def test_the_body_of_an_error(
    size: int, framing: str, status: int, carry: Carry, transport: Transport, server: RawServer
) -> None:
    """64 KiB of it are kept, and a connection with more to come is closed."""
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    script: Script = {
        "length": [response(status, body)],
        "chunks": [response(status, chunked=True) + chunk(body[:1000]) + chunk(body[1000:]) + LAST_CHUNK],
        "until-the-end": [b"HTTP/1.1 %d x\r\n\r\n" % status + body, CLOSE],
    }[framing]
    server.play(script)
    reply = await carry(transport, request())
    same = reply.body == body[:MAX_ERROR_BYTES]
    assert same
    assert reply.status == status
    await server.until(lambda: server.connections_open <= connections_idle(transport))
    assert connections_in_use(transport) == 0
    assert (await carry(transport, request())).body == b"ok"
    if framing != "until-the-end" and size <= MAX_ERROR_BYTES:
        assert server.connections_made == 1


@each_way
async def test_an_error_without_end(carry: Carry, transport: Transport, server: RawServer) -> None:
    """The rest is not waited for."""
    never = asyncio.Event()
    server.play([response(500, b"x" * (MAX_ERROR_BYTES + 1), length=2**40), never])
    reply = await carry(transport, request())
    assert (reply.status, len(reply.body)) == (500, MAX_ERROR_BYTES)
    await server.until(lambda: server.connections_open == 0)


@each_way
async def test_an_error_that_breaks_off(carry: Carry, transport: Transport, server: RawServer) -> None:
    server.play([response(500, b"x" * 100, length=200), CLOSE])
    with pytest.raises(ResponseStreamingError):
        await carry(transport, request())


# Responses


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000, 100_001, 2**20, 2**23])
@pytest.mark.parametrize("framing", ["length", "chunks", "until-the-end"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_largest_response(size: int, framing: str, tls: bool, make_transport: MakeTransport) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    script: Script = {
        "length": [response(200, body)],
        "chunks": [response(200, chunked=True) + chunk(body[:1000]) + chunk(body[1000:]) + LAST_CHUNK],
        "until-the-end": [b"HTTP/1.1 200 x\r\n\r\n" + body, CLOSE],
    }[framing]
    async with RawServer(otherwise=script, tls=server_context() if tls else None) as server:
        transport = make_transport(server.url, **({"verify": client_context()} if tls else {}))
        for _ in range(2):
            sending = transport.send(request(max_response_bytes=100_000))
            if size <= 100_000:
                same = (await sending).body == body
                assert same
            else:
                with pytest.raises(ResponseStreamingError, match="exceeds max_response_bytes of 100000") as caught:
                    await sending
                assert caught.value.cause == "none"
        await asyncio.sleep(0)
        assert connections_in_use(transport) == 0
        await server.until(lambda: server.connections_open <= connections_idle(transport))
        if size <= 100_000 and framing != "until-the-end":
            assert server.connections_made == 1
        await transport.close()


@pytest.mark.parametrize("limit", [0, 1])
async def test_hardly_anything(limit: int, transport: Transport, server: RawServer) -> None:
    server.play([response(200, b"")], [response(204)], [response(200, b"ab")])
    for _ in range(2):
        assert (await transport.send(request(max_response_bytes=limit))).body == b""
    with pytest.raises(ResponseStreamingError):
        await transport.send(request(max_response_bytes=limit))


async def test_it_is_refused_by_its_length(transport: Transport, server: RawServer) -> None:
    """Before any of it has come."""
    server.play([response(200, b"", length=2**40), asyncio.Event()])
    with pytest.raises(ResponseStreamingError, match="exceeds"):
        await transport.send(request(max_response_bytes=2**30))
    await server.until(lambda: server.connections_open == 0)


async def test_streams_and_errors_are_not_limited_by_it(transport: Transport, server: RawServer) -> None:
    server.play([response(200, b"hello")], [response(500, b"hello")])
    stream = await transport.send_streaming(request(max_response_bytes=1))
    assert await whole(stream) == b"hello"  # type: ignore[arg-type]
    stream.close()  # type: ignore[union-attr]
    assert (await transport.send(request(max_response_bytes=1))).body == b"hello"
