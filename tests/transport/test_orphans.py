"""Readers are woken up when the rest of a body will never come."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest

from aiosmrt._transport.aiohttp_session.orphans import CHECK_SECONDS
from aiosmrt._transport.aiohttp_session.transport import SessionTransport
from aiosmrt._transport.base import Reply, Request
from aiosmrt.errors import ResponseStreamingError
from tests.support.raw_server import CLOSE, RawServer, Script, chunk, response
from tests.support.seams import bodies_arriving
from tests.support.virtual_time import VirtualTime

T = TypeVar("T")

# Where the size of a chunk belongs, and where a chunk ends.
MALFORMED = [pytest.param(b"zz\r\n", id="no-size"), pytest.param(b"5\r\nhelloXX", id="no-end")]


def request(body: bytes = b"1,2") -> Request:
    return Request("/endpoints/e/invocations", "Content-Type: text/csv\r\n", body, 5.0, 1e9)


async def until_reading(transport: SessionTransport, exchange: asyncio.Task[Reply]) -> None:
    while not bodies_arriving(transport):
        assert not exchange.done()
        await asyncio.sleep(0)


async def looked_at(time: VirtualTime, reader: asyncio.Task[T]) -> asyncio.Task[T]:
    """A reader that has ended while open responses were looked at every few turns of the loop."""
    while not reader.done():
        await time.advance(CHECK_SECONDS)
        await asyncio.sleep(0)
    return reader


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize("size", [3, 1_000_000])
async def test_a_malformed_chunk_ends_an_exchange(malformed: bytes, size: int, virtual_time: VirtualTime) -> None:
    go_on, never = asyncio.Event(), asyncio.Event()
    script: Script = [response(200, b"one", chunked=True), go_on, malformed, never]
    async with RawServer([script]) as server:
        transport = SessionTransport(server.url)
        exchange = asyncio.create_task(transport.send(request(bytes(size))))
        await until_reading(transport, exchange)
        go_on.set()
        with pytest.raises(ResponseStreamingError):
            await (await looked_at(virtual_time, exchange))
        assert not bodies_arriving(transport)
        await transport.close()


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_chunk_ends_a_stream(malformed: bytes, virtual_time: VirtualTime) -> None:
    go_on, never = asyncio.Event(), asyncio.Event()
    script: Script = [response(200, b"one", chunked=True), go_on, malformed, never]

    async def read_on() -> bytes:
        """What comes before the failure, at most a part of the malformed chunk."""
        received = b""
        while data := await stream.read():
            received += data
        return received

    async with RawServer([script]) as server:
        transport = SessionTransport(server.url)
        stream = await transport.send_streaming(request())
        assert await stream.read() == b"one"
        go_on.set()
        with pytest.raises(ResponseStreamingError):
            await (await looked_at(virtual_time, asyncio.create_task(read_on())))
        stream.close()
        assert not bodies_arriving(transport)
        await transport.close()


async def test_a_slow_body_is_left_alone(virtual_time: VirtualTime) -> None:
    """Looks come again and again while a body arrives, and while one that ends with its connection is complete."""
    steps = [asyncio.Event(), asyncio.Event()]
    chunked: Script = [response(200, b"one", chunked=True), steps[0], chunk(b"two"), b"0\r\n\r\n"]
    until_the_end: Script = [b"HTTP/1.1 200 OK\r\n\r\none", steps[1], b"two", CLOSE]
    async with RawServer([chunked, until_the_end]) as server:
        transport = SessionTransport(server.url)
        for step in steps:
            exchange = asyncio.create_task(transport.send(request()))
            await until_reading(transport, exchange)
            step.set()
            assert (await (await looked_at(virtual_time, exchange))).body == b"onetwo"
        await transport.close()


def test_the_same_with_the_parser_in_python() -> None:
    """aiohttp's other parser, as on PyPy, fails in its own way; it is chosen when aiohttp is imported.

    Before 3.13, it waits for the end of a chunk that has ended.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "no-size", __file__],
        env=os.environ | {"AIOHTTP_NO_EXTENSIONS": "1"},
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert "3 passed" in ended.stdout
