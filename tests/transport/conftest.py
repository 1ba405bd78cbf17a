"""Both transports, servers that play scripts, and what lets a test decide how bytes and time pass."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aiosmrt._transport.base import Transport
from aiosmrt._transport.sockets import create_socket
from tests.support.raw_server import RawServer
from tests.support.virtual_time import VirtualTime
from tests.transport.carrying import CLASSES, MODULES, MakeTransport, Wire


@pytest.fixture(params=list(CLASSES))
def transport_name(request: pytest.FixtureRequest) -> str:
    """The transport that a test runs on: each in turn, unless the test's parameters name some of them."""
    name: str = request.param
    return name


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer() as server:
        yield server


@pytest.fixture
async def make_transport(transport_name: str, server: RawServer) -> AsyncIterator[MakeTransport]:
    """Makes transports, to the fixture's server unless an origin is given; all are closed in the end."""
    async with AsyncExitStack() as stack:

        def make(origin: str | None = None, **arguments: Any) -> Transport:
            transport: Transport = CLASSES[transport_name](origin or server.url, **arguments)
            stack.push_async_callback(transport.close)
            return transport

        yield make


@pytest.fixture
async def transport(make_transport: MakeTransport) -> Transport:
    """A transport to the fixture's server."""
    return make_transport()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """The sockets of the transports that are made after this fixture; asked for before `make_transport`'s first use."""
    wire = Wire()

    def create_wired(address: tuple[Any, ...]) -> socket.socket:
        plain = create_socket(address)

        class Wired(type(plain)):  # type: ignore[misc]
            def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
                data: bytes = super().recv(wire.limit(bufsize), flags)
                wire.note(len(data))
                return data

            def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
                count: int = super().recv_into(buffer, wire.limit(nbytes or len(buffer)), flags)
                wire.note(count)
                return count

        wired = Wired(plain.family, plain.type, plain.proto, fileno=plain.detach())
        if wire.send_buffer is not None:
            wired.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.send_buffer)
        return wired

    for module in MODULES.values():
        monkeypatch.setattr(module, "create_socket", create_wired)
    return wire


@pytest.fixture
async def clock(virtual_time: VirtualTime) -> VirtualTime:
    """The running loop's clock."""
    return virtual_time
