"""Cancellation at every await of a response stream, and the ways of leaving one early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import aiosmrt
from aiosmrt._transport.aiohttp_session.transport import SessionTransport
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.errors import ResponseStreamingError
from tests.cancellation.leftovers import nothing_is_held
from tests.support.cancellation import Moment, after_the_first, cancel_everywhere
from tests.support.clients import MakeClient
from tests.support.raw_server import CLOSE, LAST_CHUNK, RawServer, Script, chunk, error_response, response
from tests.support.seams import transport_of

each_moment = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)

QUICK = aiosmrt.RetryPolicy(base_delay=0.001)

HEADERS = [("X-Amzn-SageMaker-Content-Type", "text/plain")]
HEAD = response(200, b"", HEADERS, chunked=True)


def part(payload: bytes) -> bytes:
    return chunk(encode_payload_part(payload))


WHOLE: Script = [HEAD, part(b"one"), part(b"two"), LAST_CHUNK]


async def opened(client: aiosmrt.Client) -> Any:
    result = await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"hello")
    return result["Body"]


async def read_whole(client: aiosmrt.Client) -> list[bytes]:
    async with await opened(client) as stream:
        return [event["PayloadPart"]["Bytes"] async for event in stream]


async def answers(client: aiosmrt.Client, server: RawServer) -> None:
    """Nothing is held, and the client reads the next stream as if nothing had been."""
    await nothing_is_held(client, server)
    server.forget_scripts()
    server.otherwise = WHOLE
    assert await read_whole(client) == [b"one", b"two"]
    await nothing_is_held(client, server)


async def read_stepwise(stream: Any, gates: list[asyncio.Event]) -> None:
    """Let the server write each part after the reader has the one before it, so that each has its own await."""
    gates[0].set()
    payloads = []
    async for event in stream:
        payloads.append(event["PayloadPart"]["Bytes"])
        gates[len(payloads)].set()
    assert payloads == [b"one", b"two"]


async def read_in_a_block(client: aiosmrt.Client, gates: list[asyncio.Event]) -> None:
    async with await opened(client) as stream:
        await read_stepwise(stream, gates)


async def read_without_a_block(client: aiosmrt.Client, gates: list[asyncio.Event]) -> None:
    await read_stepwise(await opened(client), gates)


@each_moment
@pytest.mark.parametrize("first_call", [False, True], ids=["pooled connection", "first call"])
@pytest.mark.parametrize("read", [read_in_a_block, read_without_a_block])
async def test_opening_reading_and_closing(
    moment: Moment,
    first_call: bool,
    read: Callable[[aiosmrt.Client, list[asyncio.Event]], Coroutine[Any, Any, None]],
    make_client: MakeClient,
    server: RawServer,
) -> None:
    """A cancelled reader cannot close its stream, so the stream closes itself."""
    clients = [make_client()]
    if not first_call:
        await answers(clients[0], server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        if first_call:
            await clients[-1].close()
            clients.append(make_client())
        first, second, end = gates = [asyncio.Event() for _ in range(3)]
        server.play([HEAD, first, part(b"one"), second, part(b"two"), end, LAST_CHUNK])
        return read(clients[-1], gates)

    suspensions = await cancel_everywhere(prepare, moment, after=lambda: answers(clients[-1], server))
    assert suspensions >= (6 if first_call else 4)


@each_moment
@pytest.mark.parametrize(
    "failed",
    [
        [HEAD, CLOSE],
        [HEAD, part(b"one")[:20], CLOSE],
        [HEAD, chunk(encode_exception("InternalStreamFailure", b'{"Message":"again"}')), LAST_CHUNK],
        [response(503, b"<html>busy</html>")],
    ],
    ids=["no part", "inside a frame", "exception", "before the head"],
)
async def test_another_attempt_before_the_first_part(
    moment: Moment, failed: Script, make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(retry=QUICK)
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(failed)
        return read_whole(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 3
    assert sum(client.statistics().retries.values()) >= 2


@each_moment
@pytest.mark.parametrize("before", [[], [[HEAD, CLOSE]]], ids=["before the head", "before the first part"])
async def test_waiting_for_capacity(
    moment: Moment, before: list[Script], make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(retry=QUICK, wait_for_capacity=60.0)
    await answers(client, server)
    no_capacity = error_response(
        400, "ValidationError", "Inference Component has no capacity to process this request. Wait."
    )

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(*before, [no_capacity], [no_capacity])
        return read_whole(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 5 + len(before)
    assert client.statistics().retries["no_capacity"] > 2


@each_moment
async def test_an_error_whose_body_is_slow(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    client = make_client(retry=QUICK)
    await answers(client, server)
    gates: list[asyncio.Event] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        gates.append(asyncio.Event())
        server.play([response(503, b"<htm", length=6), gates[-1], b"l>"])
        return read_whole(client)

    def move_on() -> None:
        gates[-1].set()

    # A session suspends for the head, then for the rest of the body; a pooled connection once for both.
    twice = isinstance(transport_of(client), SessionTransport)
    suspensions = await cancel_everywhere(
        prepare,
        moment,
        after=lambda: answers(client, server),
        on_suspend=after_the_first(move_on) if twice else lambda _: move_on(),
    )
    assert suspensions >= (4 if twice else 3)
    assert client.statistics().retries["transient"] >= 2


@each_moment
async def test_waiting_for_a_slot_behind_a_stream(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    client = make_client(max_concurrency=1)
    await answers(client, server)
    holders: list[Any] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play([HEAD, asyncio.Event()])
        holders.append(await opened(client))
        return read_whole(client)

    async def after() -> None:
        holders[-1].close()
        await answers(client, server)

    suspensions = await cancel_everywhere(prepare, moment, after=after, on_suspend=lambda _: holders[-1].close())
    assert suspensions >= 2


async def leave_by_return(stream: Any) -> None:
    async with stream:
        async for _ in stream:
            return


async def leave_by_error(stream: Any) -> None:
    async def fail() -> None:
        async with stream:
            async for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def leave_by_close(stream: Any) -> None:
    await anext(stream)
    stream.close()
    stream.close()
    with pytest.raises(ResponseStreamingError):
        await anext(stream)


async def leave_unread(stream: Any) -> None:
    async with stream:
        pass


@pytest.mark.parametrize("leave", [leave_by_return, leave_by_error, leave_by_close, leave_unread])
async def test_leaving_early_releases_everything(
    leave: Callable[[Any], Coroutine[Any, Any, None]], make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(max_concurrency=1)
    server.play([HEAD, part(b"one"), part(b"two"), asyncio.Event()])
    stream = await opened(client)
    assert client.statistics().in_use == 1
    await leave(stream)
    # The rest of the response is still to come, so the connection cannot be reused: the server sees it end.
    await server.until(lambda: server.connections_open == 0)
    await answers(client, server)


async def test_a_stream_read_to_its_end_leaves_its_connection_in_the_pool(
    make_client: MakeClient, server: RawServer
) -> None:
    client = make_client()
    for _ in range(3):
        await answers(client, server)
    assert server.connections_made == 1


async def test_a_dropped_stream_warns_and_releases_everything(make_client: MakeClient, server: RawServer) -> None:
    client = make_client(max_concurrency=1)
    server.play([HEAD, part(b"one"), asyncio.Event()])
    stream = await opened(client)
    await anext(stream)
    with pytest.warns(ResourceWarning, match="unclosed <EventStream open parts=1"):
        del stream
    await server.until(lambda: server.connections_open == 0)
    await answers(client, server)


async def test_a_reader_that_times_out_ends_the_stream(make_client: MakeClient, server: RawServer) -> None:
    client = make_client(max_concurrency=1)
    server.play([HEAD, part(b"one"), asyncio.Event()])
    stream = await opened(client)
    await anext(stream)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.01)
    for read in (stream.__anext__, stream.receive):
        with pytest.raises(aiosmrt.ClientStateError, match="cancelled"):
            await read()
    await server.until(lambda: server.connections_open == 0)
    await answers(client, server)


async def test_closing_the_client_ends_its_streams(make_client: MakeClient, server: RawServer) -> None:
    client = make_client(max_concurrency=1)
    server.play([HEAD, part(b"one"), asyncio.Event()])
    stream = await opened(client)
    await anext(stream)
    reader = asyncio.ensure_future(anext(stream))
    waiter = asyncio.ensure_future(read_whole(client))
    await asyncio.sleep(0)
    await client.close()
    outcomes = await asyncio.gather(reader, waiter, return_exceptions=True)
    assert isinstance(outcomes[0], aiosmrt.TransportError | aiosmrt.ClientStateError)
    assert isinstance(outcomes[1], aiosmrt.ClientStateError)
    await server.until(lambda: server.connections_open == 0)
    await nothing_is_held(client, server)
