"""How a stream ends when its connection breaks between reads, or when another task closes it."""

import asyncio
import gc
import warnings
from typing import Any

import pytest

from aiosmrt import Client, ClientStateError, EventStream, ResponseStreamingError
from aiosmrt._wire.eventstream import encode_payload_part
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.raw_server import CLOSE, RESET, RawServer, Script, chunk, response
from tests.support.recording_server import RecordingServer, respond

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}
ONE, TWO = encode_payload_part(b"one"), encode_payload_part(b"two")


async def open_stream(client: Client) -> EventStream:
    return (await client.invoke_endpoint_with_response_stream(**CALL))["Body"]


async def part(stream: EventStream) -> bytes:
    return (await anext(stream))["PayloadPart"]["Bytes"]


@pytest.mark.parametrize("end", [RESET, CLOSE])
async def test_parts_that_arrived_before_the_connection_broke_are_yielded(make_client: MakeClient, end: Any) -> None:
    go_on = asyncio.Event()
    script: Script = [response(200, ONE, chunked=True), go_on, chunk(TWO), end]
    async with RawServer([script]) as server:
        client = make_client(endpoint_url=server.url)
        async with await open_stream(client) as stream:
            assert await part(stream) == b"one"
            go_on.set()
            # The next read comes after both the part and the end have arrived.
            await server.until(lambda: server.connections_open == 0)
            while not seams.has_broken(stream):
                await asyncio.sleep(0)
            assert await part(stream) == b"two"
            with pytest.raises(ResponseStreamingError):
                await part(stream)
        assert len(server.requests) == 1


async def test_closing_a_stream_ends_the_task_that_reads_it(make_client: MakeClient) -> None:
    async with RawServer([[response(200, b"", chunked=True), asyncio.Event()]]) as server:
        client = make_client(endpoint_url=server.url)
        stream = await open_stream(client)

        async def read() -> list[Any]:
            return [event async for event in stream]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        stream.close()
        # It has ended without failing, so no other attempt is made although no part was read.
        assert await reader == []
        await server.until(lambda: server.connections_open == 0)
        assert len(server.requests) == 1
        assert client.statistics().in_use == 0
        assert client.statistics().retries == {}


async def test_a_second_reader_is_refused(make_client: MakeClient) -> None:
    go_on = asyncio.Event()
    script: Script = [response(200, b"", chunked=True), go_on, chunk(ONE), CLOSE]
    async with RawServer([script]) as server:
        client = make_client(endpoint_url=server.url)
        async with await open_stream(client) as stream:
            first = asyncio.create_task(part(stream))
            await asyncio.sleep(0)
            with pytest.raises(ClientStateError, match="another task"):
                await part(stream)
            go_on.set()
            # The first one has not noticed.
            assert await first == b"one"


async def test_closing_a_stream_during_back_off_sends_nothing_more(client: Client, server: RecordingServer) -> None:
    backing_off, go_on = asyncio.Event(), asyncio.Event()

    async def wait(delay: float) -> None:
        backing_off.set()
        await go_on.wait()

    seams.set_sleep(client, wait)
    server.answer = respond(200, ONE[:-1])
    stream = await open_stream(client)

    async def read() -> list[Any]:
        return [event async for event in stream]

    reader = asyncio.create_task(read())
    await backing_off.wait()
    stream.close()
    go_on.set()
    assert await reader == []
    assert len(server.requests) == 1
    assert client.statistics().in_use == 0


async def test_a_forgotten_stream_is_closed_where_warnings_are_errors(
    client: Client, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda event: unraisable.append(event.exc_type))
    server.answer = respond(200, ONE)
    stream: EventStream | None = await open_stream(client)
    assert stream is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = None
        gc.collect()
    assert unraisable == [ResourceWarning]
    assert client.statistics().in_use == 0
