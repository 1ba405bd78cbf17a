"""The interfaces of response bodies and streams beside aiobotocore's: the same names, results and errors."""

import asyncio
import inspect
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiobotocore.eventstream import AioEventStream
from botocore.eventstream import NoInitialResponseError
from botocore.exceptions import HTTPClientError, ResponseStreamingError

import aiosmrt
from aiosmrt import Client, EventStream, StreamingBody
from aiosmrt._wire.eventstream import encode_payload_part
from tests.support.peers import CLIENT_ARGUMENTS, aiobotocore_client
from tests.support.recording_server import RecordingServer, respond

AIOBOTOCORE = tuple(int(number) for number in __import__("aiobotocore").__version__.split(".")[:2])
CONTENT = b"abc\ndef\n"


@pytest.fixture
async def server() -> AsyncIterator[RecordingServer]:
    async with RecordingServer(respond(200, CONTENT, [("Content-Type", "text/csv")])) as server:
        yield server


@pytest.fixture
async def client(server: RecordingServer) -> AsyncIterator[Client]:
    async with Client(endpoint_url=server.url, **CLIENT_ARGUMENTS) as client:
        yield client


async def body_of(client: Any) -> Any:
    return (await client.invoke_endpoint(EndpointName="e", Body=b""))["Body"]


async def outcome(body: Any, call: Callable[[Any], Any]) -> object:
    """What a call gives, or the class of its error."""
    try:
        given = call(body)
        return await given if inspect.isawaitable(given) else given
    except Exception as error:
        return type(error)


CALLS: dict[str, Callable[[Any], Any]] = {
    "closed": lambda body: body.closed,
    "seekable": lambda body: body.seekable(),
    "writable": lambda body: body.writable(),
    "readable": lambda body: body.readable(),
    "isatty": lambda body: body.isatty(),
    "tell": lambda body: body.tell(),
    "flush": lambda body: body.flush(),
    "set_socket_timeout": lambda body: body.set_socket_timeout(1),
    "next": lambda body: body.next(),
    "iter()": iter,
    "list()": list,
    "next()": next,
    "anext": lambda body: body.anext(),
    "anext()": anext,
    "read": lambda body: body.read(),
    "read(3)": lambda body: body.read(3),
    "fileno": lambda body: body.fileno(),
    "seek": lambda body: body.seek(0),
    "truncate": lambda body: body.truncate(),
}


@pytest.mark.skipif(AIOBOTOCORE < (3, 10), reason="its body has this interface from 3.10 on")
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
async def test_the_interface_of_a_body(client: Client, server: RecordingServer, call: Callable[[Any], Any]) -> None:
    async with aiobotocore_client(server.url) as peer:
        expected = await outcome(await body_of(peer), call)
    assert await outcome(await body_of(client), call) == expected


async def test_no_name_of_a_body_is_missing(client: Client, server: RecordingServer) -> None:
    async with aiobotocore_client(server.url) as peer:
        theirs = await body_of(peer)
        names = {name for name in dir(type(theirs)) if not name.startswith("_")}
        await theirs.read()
    body = await body_of(client)
    assert [name for name in sorted(names) if not hasattr(body, name)] == []
    assert [name for name in dir(AioEventStream) if not name.startswith("_") and not hasattr(EventStream, name)] == []


async def test_a_body_cannot_be_entered_without_async(client: Client) -> None:
    body = await body_of(client)
    with pytest.raises(TypeError, match="async with"), body:
        raise AssertionError("entered")
    for name in ("readline", "writelines"):
        with pytest.raises(io.UnsupportedOperation):
            getattr(body, name)(*([[b"x"]] if name == "writelines" else []))


async def test_the_raw_stream_of_a_body_can_be_read(client: Client) -> None:
    body = await body_of(client)
    assert await body.raw_stream.read() == CONTENT
    assert body.tell() == len(CONTENT)


READS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "read()": lambda body: body.read(),
    "read(5)": lambda body: body.read(5),
    "read(0)": lambda body: body.read(0),
    "readinto": lambda body: body.readinto(bytearray(4)),
    "readlines": lambda body: body.readlines(),
    "iter_chunks": lambda body: anext(body.iter_chunks()),
    "iter_lines": lambda body: anext(body.iter_lines()),
    "aiter": lambda body: anext(aiter(body)),
    "anext": lambda body: body.__anext__(),
}


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
@pytest.mark.parametrize("before", [0, 2, 100])
@pytest.mark.parametrize("leave", ["close", "aclose", "block"])
async def test_reading_after_close(
    client: Client, server: RecordingServer, read: Callable[[Any], Awaitable[Any]], before: int, leave: str
) -> None:
    body = await body_of(client)
    assert not body.closed
    await body.read(before)
    if leave == "block":
        async with body:
            pass
    elif leave == "aclose":
        await body.aclose()
    else:
        body.close()
    assert body.closed
    assert not body.readable()
    with pytest.raises(aiosmrt.ResponseStreamingError, match="closed") as error:
        await read(body)
    assert isinstance(error.value, ResponseStreamingError)
    assert isinstance(error.value, HTTPClientError)


@pytest.mark.skipif(AIOBOTOCORE < (3, 10), reason="its body raises this from 3.10 on")
@pytest.mark.parametrize("read", [READS["read()"], READS["readinto"], READS["readlines"]])
async def test_reading_after_close_in_aiobotocore(
    server: RecordingServer, read: Callable[[Any], Awaitable[Any]]
) -> None:
    async with aiobotocore_client(server.url) as peer:
        body = await body_of(peer)
        await body.read(2)
        body.close()
        with pytest.raises(ResponseStreamingError):
            await read(body)


async def some(items: Any, count: int) -> list[bytes]:
    """The first items of an iteration that is left early."""
    found = []
    async for item in items:
        found.append(item)
        if len(found) == count:
            break
    return found


PARTIAL_READS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "a line": lambda body: some(body.iter_lines(), 1),
    "a line in small pieces": lambda body: some(body.iter_lines(chunk_size=3), 1),
    "lines in small pieces": lambda body: some(body.iter_lines(5, True), 3),
    "all lines in pieces": lambda body: some(body.iter_lines(2), -1),
    "two chunks": lambda body: some(body.iter_chunks(4), 2),
    "a chunk": lambda body: some(body, 1),
    "no chunk": lambda body: some(body.iter_chunks(0), 1),
}


@pytest.mark.parametrize("read", PARTIAL_READS.values(), ids=list(PARTIAL_READS))
@pytest.mark.parametrize(
    "content",
    [
        b"",
        CONTENT,
        b"a\r\nb\rc\n\n\nd",
        b"ab\n" + b"x" * 2000 + b"\r\nend",
        b"y" * 1023 + b"\r\n" + b"z" * 2000 + b"\r",
    ],
    ids=["empty", "lines", "ends", "long", "cut at an end"],
)
async def test_what_an_iteration_has_not_taken_can_be_read(
    client: Client, server: RecordingServer, read: Callable[[Any], Awaitable[Any]], content: bytes
) -> None:
    server.answer = respond(200, content, [("Content-Type", "text/csv")])

    async def outcomes(of: Any) -> list[Any]:
        body = await body_of(of)
        return [await read(body), body.tell(), await body.read(), body.tell()]

    async with aiobotocore_client(server.url) as peer:
        expected = await outcomes(peer)
    assert await outcomes(client) == expected


async def test_a_stream_that_was_closed_does_not_look_ended(client: Client, server: RecordingServer) -> None:
    """As in aiobotocore, where reading on raises aiohttp's ClientConnectionError."""
    parts = b"".join(encode_payload_part(part) for part in (b"To ", b"be"))
    server.answer = respond(200, parts, [("Content-Type", "application/vnd.amazon.eventstream")])

    async def opened(of: Any) -> Any:
        return (await of.invoke_endpoint_with_response_stream(EndpointName="e", Body=b""))["Body"]

    for leave in ("close", "aclose", "block"):
        stream = await opened(client)
        assert await some(stream, 1) == [{"PayloadPart": {"Bytes": b"To "}}]
        if leave == "block":
            async with stream:
                pass
        elif leave == "aclose":
            await stream.aclose()
        else:
            stream.close()
        with pytest.raises(ResponseStreamingError, match="closed") as raised:
            await some(stream, 1)
        assert isinstance(raised.value, aiosmrt.AiosmrtError)
        assert (raised.value.retry_safe, raised.value.endpoint_name) == (False, "e")
        with pytest.raises(ResponseStreamingError, match="closed"):
            await stream.receive()
    read_to_its_end = await opened(client)
    assert len(await some(read_to_its_end, -1)) == 2
    read_to_its_end.close()
    assert await some(read_to_its_end, 1) == []
    async with aiobotocore_client(server.url) as peer:
        theirs = await opened(peer)
        theirs.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await some(theirs, 1)


async def test_a_stream_has_no_initial_response(client: Client, server: RecordingServer) -> None:
    parts = b"".join(encode_payload_part(part) for part in (b"To ", b"be"))
    server.answer = respond(200, parts, [("Content-Type", "application/vnd.amazon.eventstream")])
    async with aiobotocore_client(server.url) as peer:
        response = await peer.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"")
        with pytest.raises(NoInitialResponseError):
            await response["Body"].get_initial_response()
        with pytest.raises(NotImplementedError):
            iter(response["Body"])
        response["Body"].close()
    streamed = await client.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"")
    async with streamed["Body"] as stream:
        for _ in range(2):
            with pytest.raises(NoInitialResponseError):
                await stream.get_initial_response()
        with pytest.raises(NotImplementedError, match="async for"):
            iter(stream)  # type: ignore[call-overload]
        # theirs has lost the first part by now
        assert [event["PayloadPart"]["Bytes"] async for event in stream] == [b"To ", b"be"]
    with pytest.raises(NoInitialResponseError):
        await stream.get_initial_response()


def test_a_body_of_its_own() -> None:
    assert asyncio.run(StreamingBody(b"a\nb").readlines()) == [b"a", b"b"]
