"""Frames of errors hold neither head nor body: error reports show the values of local variables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from types import FrameType
from typing import Any

import pytest

from aiosmrt._transport.base import Reply, Request, Transport, header_lines
from aiosmrt.errors import AiosmrtError
from tests.support.raw_server import CLOSE, EARLY, RESET, RawServer, Script, Step, response
from tests.transport.carrying import Carry, MakeTransport, each_way, request

SECRET = "marked-session-token"
LARGE = 2**22

SCRIPTS: dict[str, Sequence[Step | None]] = {
    "closed": [CLOSE],
    "reset": [RESET],
    "closed early": [EARLY, CLOSE],
    "malformed": [b"HTTP/1.1 200 OK\r\nno header\r\n\r\n"],
    "malformed chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", CLOSE],
    "cut off": [response(200, b"ab", length=9), CLOSE],
    "cut off by a reset": [response(200, b"ab", length=9), RESET],
    "silence": [None],
    "silence in the body": [response(200, b"ab", length=9), None],
}


def script(name: str) -> Script:
    """One of `SCRIPTS`, with an event that never comes for None."""
    return [asyncio.Event() if step is None else step for step in SCRIPTS[name]]


def secret_request(size: int = 0) -> Request:
    """A request whose head, attributes and body are marked."""
    headers = header_lines([("X-Amz-Security-Token", SECRET), ("X-Amzn-SageMaker-Custom-Attributes", SECRET)])

    async def renew_headers() -> str:
        return headers

    return Request(
        "/endpoints/e/invocations", headers, SECRET.encode() + bytes(size), 5.0, 0.2, True, renew_headers, None
    )


def frames_of(error: BaseException | None, seen: set[int]) -> Iterator[FrameType]:
    """The frames of an error and of all errors behind it."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
    yield from frames_of(error.__cause__, seen)
    yield from frames_of(error.__context__, seen)


def leaks(error: BaseException) -> list[str]:
    """Variables of the package's and aiohttp's frames that hold the secret, also inside tuples and mappings."""
    return [
        f"{name} in {frame.f_code.co_qualname}"
        for frame in frames_of(error, set())
        if frame.f_code.co_filename != __file__ and "/tests/" not in frame.f_code.co_filename
        for name, value in frame.f_locals.items()
        if holds_secret(value)
    ]


def holds_secret(value: Any, depth: int = 3) -> bool:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return SECRET.encode() in bytes(value[:4096])
    if isinstance(value, (tuple, list, set)) and depth:
        return any(holds_secret(item, depth - 1) for item in value)
    if hasattr(value, "items") and callable(value.items) and depth:
        return any(holds_secret(item, depth - 1) for pair in list(value.items()) for item in pair)
    if is_dataclass(value) and depth:
        return any(holds_secret(getattr(value, field.name), depth - 1) for field in fields(value))
    return SECRET in repr(value)


@pytest.mark.parametrize("size", [0, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "pooled"])
@pytest.mark.parametrize("name", SCRIPTS)
@each_way
async def test_failures(
    name: str, size: int, warm: bool, carry: Carry, transport: Transport, server: RawServer
) -> None:
    if warm:
        await carry(transport, request())
    server.otherwise = script(name)
    with pytest.raises(AiosmrtError) as caught:
        await carry(transport, secret_request(size))
    assert leaks(caught.value) == []


@pytest.mark.parametrize("size", [0, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", ["silence", "silence in the body"])
@each_way
async def test_cancellation(name: str, size: int, carry: Carry, transport: Transport, server: RawServer) -> None:
    """A deadline is a cancellation that becomes the context of its error."""
    server.play(script(name))
    asked = replace(secret_request(size), read_timeout=None)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.1):
            await carry(transport, asked)
    assert leaks(caught.value) == []


@each_way
async def test_no_connection(carry: Carry, make_transport: MakeTransport, refusing_url: str) -> None:
    transport = make_transport(refusing_url)
    with pytest.raises(AiosmrtError) as caught:
        await carry(transport, secret_request())
    assert leaks(caught.value) == []


@each_way
async def test_cancellation_of_a_connection(carry: Carry, make_transport: MakeTransport, server: RawServer) -> None:
    """The server of plain HTTP does not answer the handshake."""
    transport = make_transport(server.url.replace("http", "https"))
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.1):
            await carry(transport, secret_request())
    assert leaks(caught.value) == []


@each_way
async def test_closing(carry: Carry, transport: Transport, server: RawServer) -> None:
    server.play([asyncio.Event()])
    call: asyncio.Task[Reply] = asyncio.ensure_future(carry(transport, replace(secret_request(), read_timeout=None)))  # type: ignore[assignment]
    await server.received(1)
    await transport.close()
    with pytest.raises(AiosmrtError) as caught:
        await call
    assert leaks(caught.value) == []


def test_the_search_finds_what_is_there() -> None:
    def fail(head: str) -> None:
        raise ValueError("no")

    assert holds_secret(secret_request())
    assert holds_secret({"headers": [(SECRET, 1)]})
    with pytest.raises(ValueError, match="no") as caught:
        fail(SECRET)
    assert any(holds_secret(frame.f_locals.get("head")) for frame in frames_of(caught.value, set()))
