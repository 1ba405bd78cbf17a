"""A request is signed when it is sent, not when it was first tried."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import pytest

from aiosmrt._transport.base import Request, Transport
from aiosmrt.errors import ConnectionClosedError
from tests.support.raw_server import CLOSE, RESET, End, RawServer, response
from tests.support.seams import connections_idle, connections_in_use, until_lost
from tests.transport.carrying import (
    Carry,
    MakeTransport,
    each_way,
    only_pooled,
    only_session,
    request,
)


class Signatures:
    """Counts how often a request was signed, and pauses or fails where a test wants it to."""

    def __init__(self) -> None:
        self.made = 0
        self.begun = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    def headers(self) -> str:
        self.made += 1
        return f"X-Signature: {self.made}\r\n"

    async def renew(self) -> str:
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.headers()

    def request(self, **more: bool) -> Request:
        return replace(request(renew_headers=self.renew, **more), headers=self.headers())


def signatures_of(server: RawServer) -> list[str]:
    return [asked.headers["x-signature"] for asked in server.requests]


@each_way
async def test_each_sending_has_its_signature(carry: Carry, transport: Transport, server: RawServer) -> None:
    """The first one is of the call; it is renewed for a fresh connection alone."""
    signatures = Signatures()
    await carry(transport, signatures.request())
    assert signatures_of(server) == ["2"]
    await carry(transport, signatures.request())
    assert signatures_of(server) == ["2", "3"]


@only_pooled  # aiohttp's session sends no POST again
@pytest.mark.parametrize("end", [CLOSE, RESET], ids=["fin", "reset"])
@each_way
async def test_a_stale_connection(end: End, carry: Carry, transport: Transport, server: RawServer) -> None:
    signatures = Signatures()
    await carry(transport, request())
    server.requests.clear()
    server.play([end])
    assert (await carry(transport, signatures.request())).body == b"ok"
    assert signatures_of(server) == ["1", "2"]


@each_way
async def test_without_resending(carry: Carry, transport: Transport, server: RawServer) -> None:
    signatures = Signatures()
    await carry(transport, request())
    server.play([CLOSE])
    with pytest.raises(ConnectionClosedError):
        await carry(transport, signatures.request(resend=False))
    assert signatures.made == 1


@each_way
async def test_a_signature_that_fails_leaves_the_connection(
    carry: Carry, transport: Transport, server: RawServer
) -> None:
    """Credentials that cannot be had: the connection was not used, so the next call may."""
    signatures = Signatures()
    signatures.error = ConnectionError("no credentials")
    with pytest.raises(ConnectionError, match="no credentials"):
        await carry(transport, signatures.request())
    assert connections_in_use(transport) == 0
    assert connections_idle(transport) == 1
    await carry(transport, request())
    assert server.connections_made == 1


@each_way
async def test_cancelling_a_signature(carry: Carry, transport: Transport, server: RawServer) -> None:
    signatures = Signatures()
    signatures.gate = asyncio.Event()
    call = asyncio.ensure_future(carry(transport, signatures.request()))
    await signatures.begun.wait()
    call.cancel()
    await asyncio.wait([call])
    assert connections_in_use(transport) == 0
    await carry(transport, request())
    assert server.connections_made == 1


@each_way
async def test_closing_during_a_signature(carry: Carry, make_transport: MakeTransport, server: RawServer) -> None:
    transport = make_transport()
    signatures = Signatures()
    signatures.gate = asyncio.Event()
    call = asyncio.ensure_future(carry(transport, signatures.request()))
    await signatures.begun.wait()
    await transport.close()
    signatures.gate.set()
    await asyncio.wait([call])
    assert call.exception() is not None
    await server.until(lambda: server.connections_open == 0)


@each_way
async def test_a_server_that_closes_during_a_signature(carry: Carry, make_transport: MakeTransport) -> None:
    """Another connection is made, and signed for."""
    signatures = Signatures()
    signatures.gate = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if len(writers) == 1:
            await signatures.begun.wait()
            writer.close()
            return
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response(200, b"ok"))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        transport = make_transport(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        call = asyncio.ensure_future(carry(transport, signatures.request()))
        await signatures.begun.wait()
        await until_lost(transport)
        signatures.gate.set()
        assert (await call).body == b"ok"
        assert b"X-Signature: 3\r\n" in heads[0]
        await transport.close()
        writers[1].close()


@pytest.mark.parametrize("size", [3, 2**20], ids=["small", "large"])
async def test_headers_that_came_and_went(size: int, transport: Transport, server: RawServer) -> None:
    """New credentials may have a session token where the old ones had none, and the other way round."""
    for old, new in (("", "X-Amz-Security-Token: new\r\n"), ("X-Amz-Security-Token: old\r\n", "")):

        async def renew(lines: str = new) -> str:
            return f"Content-Type: text/csv\r\n{lines}"

        server.play([response(200, b"ok", [("Connection", "close")])])
        asked = replace(request(bytes(size), renew_headers=renew), headers=f"Content-Type: text/csv\r\n{old}")
        await transport.send(asked)
        headers = server.requests.pop().headers
        assert headers.get("x-amz-security-token") == ("new" if new else None)
        assert (headers["content-type"], headers["content-length"]) == ("text/csv", str(size))


@only_session
@each_way
async def test_no_signature_in_a_session_of_the_caller(
    carry: Carry, make_transport: MakeTransport, server: RawServer
) -> None:
    """Its connector offers no time at which to sign again."""
    signatures = Signatures()
    async with aiohttp.ClientSession() as session:
        await carry(make_transport(session=session), signatures.request())
    assert signatures_of(server) == ["1"]
