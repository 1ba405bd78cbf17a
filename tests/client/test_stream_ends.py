"""How a stream ends when its connection breaks between reads, or when another task closes it."""

import asyncio
import gc
import json
import threading
import warnings
from typing import Any

import pytest

from aiosmrt import Client, ClientStateError, EventStream, ResponseStreamingError, RetryPolicy
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.errors import EventStreamError
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


@pytest.mark.parametrize("started", [True, False])
async def test_a_broken_stream_is_told_with_its_call_and_request_id(make_client: MakeClient, started: bool) -> None:
    def script(request_id: str) -> Script:
        return [response(200, ONE if started else b"", [("x-amzn-RequestId", request_id)], chunked=True), CLOSE]

    async with RawServer([script("the-first"), script("the-second")]) as server:
        client = make_client(endpoint_url=server.url, retry=RetryPolicy(max_attempts=2, base_delay=0.0))
        async with await open_stream(client) as stream:
            with pytest.raises(ResponseStreamingError) as raised:
                while True:
                    await part(stream)
    error = raised.value
    assert (error.operation, error.endpoint_name) == ("InvokeEndpointWithResponseStream", "e")
    assert (error.attempts, error.request_id) == ((1, "the-first") if started else (2, "the-second"))


@pytest.mark.parametrize("kind", ["ModelStreamError", "InternalStreamFailure", "SomethingNew"])
@pytest.mark.parametrize(
    "payload",
    [
        json.dumps({"Message": "x" * 2**22, "ErrorCode": "StreamBroken"}).encode(),
        json.dumps({"Message": {"quoted": "x" * 2**22}}).encode(),
        json.dumps({"ErrorCode": "x" * 2**22, "OriginalMessage": "x" * 2**22}).encode(),
        b"x" * 2**22,
    ],
    ids=["message", "object", "member", "text"],
)
async def test_64_kib_of_an_error_inside_a_stream_are_kept(make_client: MakeClient, kind: str, payload: bytes) -> None:
    """As of the body of an error response: it ends up in logs and error reports."""
    async with RawServer([[response(200, ONE + encode_exception(kind, payload))]]) as server:
        client = make_client(endpoint_url=server.url, retry=RetryPolicy(max_attempts=1))
        async with await open_stream(client) as stream:
            assert await part(stream) == b"one"
            with pytest.raises(EventStreamError) as raised:
                await part(stream)
    error = raised.value
    assert error.code == kind
    assert len(str(error)) < 2**16 + 1000
    assert len(repr(error.response)) < 2**17


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
    await asyncio.sleep(0)
    assert client.statistics().in_use == 0


def collect(elsewhere: bool) -> None:
    if not elsewhere:
        gc.collect()
        return
    collecting = threading.Thread(target=gc.collect)
    collecting.start()
    collecting.join()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the loop's thread", "in another thread"])
async def test_a_stream_that_the_collector_finds_wakes_the_call_behind_it(
    elsewhere: bool, make_client: MakeClient
) -> None:
    """The collector runs in whichever thread allocates, and nothing else wakes the loop."""
    never = asyncio.Event()
    async with RawServer([[response(200, ONE, chunked=True), never]]) as server:
        client = make_client(endpoint_url=server.url, max_concurrency=1)
        forgotten: dict[str, Any] = {"stream": await open_stream(client)}
        forgotten["itself"] = forgotten
        waiting = asyncio.create_task(client.invoke_endpoint(**CALL))
        await asyncio.sleep(0)
        assert client.statistics().waiting == 1
        del forgotten
        with pytest.warns(ResourceWarning, match="unclosed <EventStream"):
            collect(elsewhere)
        # Nothing but this timeout would wake the loop.
        assert await (await waiting)["Body"].read() == b"ok"
        await server.until(lambda: server.connections_open == 1)


def test_a_stream_that_is_forgotten_with_its_loop(make_client: MakeClient) -> None:
    """No call can wait for it any more."""
    forgotten: list[Any] = []

    async def main() -> None:
        async with RawServer([[response(200, ONE, chunked=True), asyncio.Event()]]) as server:
            client = make_client(endpoint_url=server.url)
            forgotten.append(await open_stream(client))
            await client.close()

    asyncio.run(main())
    with pytest.warns(ResourceWarning, match="unclosed <EventStream"):
        forgotten.clear()
