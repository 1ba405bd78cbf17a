"""Whatever ends a call, nothing of it stays: no slot, no request, no frame that holds it."""

from __future__ import annotations

import asyncio
import gc
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiosmrt import Client, Credentials, DeadlineExceededError, errors
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallStarted,
    CapacityWaited,
    Event,
    LimiterWaited,
    RetryScheduled,
    StreamEnded,
)
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.recording_server import RecordingServer, Response, respond_in_turn


class Stop(BaseException):
    """A BaseException that is not an Exception, such as one that ends the program."""


OK = Response(200, [], b"ok")
PARTS = Response(200, [], encode_payload_part(b"ok"))
UNAVAILABLE = Response(503, [("x-amzn-errortype", "ServiceUnavailable")], b"{}")
NO_CAPACITY = Response(
    400,
    [("x-amzn-errortype", "ValidationError")],
    b'{"Message": "Inference Component has no capacity to process this request. Wait."}',
)
BROKEN = Response(200, [], encode_exception("InternalStreamFailure", b'{"Message": "ill"}'))


async def plain(client: Client) -> bytes:
    result = await client.invoke_endpoint(EndpointName="churn", Body=b"1")
    return await result["Body"].read()


async def stream(client: Client) -> bytes:
    result = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=b"1")
    async with result["Body"] as parts:
        return b"".join([part["PayloadPart"]["Bytes"] async for part in parts])


async def is_usable(client: Client, server: RecordingServer) -> bool:
    """Whether the client's only slot is free."""
    server.answer = respond_in_turn(OK)
    assert await plain(client) == b"ok"
    statistics = client.statistics()
    return (statistics.in_use, statistics.waiting) == (0, 0)


@pytest.mark.parametrize(
    "kind", [CallStarted, AttemptStarted, AttemptEnded, RetryScheduled, CallEnded, StreamEnded, LimiterWaited]
)
@pytest.mark.parametrize("call", [plain, stream])
async def test_an_observer_that_stops_the_program_holds_no_slot(
    make_client: MakeClient, server: RecordingServer, call: Callable[[Client], Any], kind: type[Event]
) -> None:
    struck = False

    def observe(event: Event) -> None:
        nonlocal struck
        if isinstance(event, kind) and not struck:
            struck = True
            raise Stop

    client = make_client(max_concurrency=1, observers=[observe])
    quiet = client.with_options(observers=[])
    server.answer = respond_in_turn(UNAVAILABLE, PARTS if call is stream else OK)
    other = asyncio.create_task(plain(quiet)) if kind is LimiterWaited else None
    await asyncio.sleep(0)
    try:
        await call(client)
    except Stop:
        pass
    else:
        assert kind is StreamEnded
        assert call is plain
    assert struck or kind is StreamEnded
    if other is not None:
        await asyncio.wait([other])
    assert await is_usable(quiet, server)


async def test_an_observer_of_an_abandoned_wait_for_capacity_holds_no_slot(
    make_client: MakeClient, server: RecordingServer
) -> None:
    def observe(event: Event) -> None:
        if isinstance(event, CapacityWaited):
            raise Stop

    client = make_client(max_concurrency=1, wait_for_capacity=60.0, observers=[observe])
    quiet = client.with_options(observers=[])
    asked = asyncio.Event()

    async def answer(request: Any) -> Response:
        if len(server.requests) > 1:
            asked.set()
            await asyncio.Event().wait()
        return NO_CAPACITY

    server.answer = answer
    call = asyncio.create_task(plain(client))
    await asked.wait()
    call.cancel()
    with pytest.raises(Stop):
        await call
    assert await is_usable(quiet, server)


async def test_an_observer_that_stops_the_program_behind_a_success_leaves_the_count_of_requests_right(
    make_client: MakeClient, server: RecordingServer
) -> None:
    def observe(event: Event) -> None:
        if isinstance(event, CallEnded):
            raise Stop

    client = make_client(observers=[observe])
    server.answer = lambda request: OK
    for _ in range(3):
        with pytest.raises(Stop):
            await plain(client)
    assert seams.admission_of(client, "churn").outstanding == 0


async def test_an_observer_that_stops_the_program_behind_a_stream_closes_it(
    make_client: MakeClient, server: RecordingServer
) -> None:
    def observe(event: Event) -> None:
        if isinstance(event, CapacityWaited):
            raise Stop

    client = make_client(wait_for_capacity=60.0, observers=[observe])
    server.answer = respond_in_turn(NO_CAPACITY, PARTS)
    with pytest.raises(Stop):
        await stream(client)
    transport = seams.transport_of(client)
    assert transport is not None
    assert seams.connections_in_use(transport) == 0
    assert seams.admission_of(client, "churn").outstanding == 0


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("answer", [Response(400, [("x-amzn-errortype", "ValidationError")], b"{}"), None])
async def test_a_failed_call_with_a_deadline_in_a_task_is_freed_at_once(
    make_client: MakeClient, server: RecordingServer, no_collector: None, answer: Response | None
) -> None:
    client = make_client(deadline=30.0 if answer else 0.05)
    if answer is None:

        async def silent(request: Any) -> Response:
            await asyncio.Event().wait()
            return OK

        server.answer = silent
    else:
        server.answer = lambda request: answer
    body = bytes(1000)
    before = sys.getrefcount(body)
    task = asyncio.create_task(client.invoke_endpoint(EndpointName="churn", Body=body))
    await asyncio.wait([task])
    assert isinstance(task.exception(), DeadlineExceededError if answer is None else errors.ValidationError)
    del task
    await asyncio.sleep(0)
    assert sys.getrefcount(body) == before


async def test_a_stream_that_is_closed_while_it_is_to_be_sent_again_is_not(
    make_client: MakeClient, server: RecordingServer
) -> None:
    """Its reader waits for credentials, for which the first attempt did not have to."""
    wanted, released = asyncio.Event(), asyncio.Event()

    async def renew() -> Credentials:
        wanted.set()
        await released.wait()
        return Credentials("AKID", "secret")

    server.answer = lambda request: BROKEN
    client = make_client(max_concurrency=1)
    result = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=b"1")
    seams.expire_credentials(client, renew)
    reader = asyncio.create_task(anext(aiter(result["Body"])))
    await wanted.wait()
    result["Body"].close()
    sent = len(server.requests)
    released.set()
    with pytest.raises(StopAsyncIteration):
        await reader
    assert len(server.requests) == sent == 1
    assert await is_usable(client, server)


async def test_the_reader_of_a_stream_that_is_closed_does_not_sleep_on(
    make_client: MakeClient, server: RecordingServer
) -> None:
    server.answer = lambda request: BROKEN
    retrying = asyncio.Event()

    def observe(event: Event) -> None:
        if isinstance(event, RetryScheduled):
            retrying.set()

    client = make_client(max_concurrency=1, observers=[observe], patience=600.0)
    seams.set_random(client, lambda: 0.999)
    result = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=b"1")
    reader = asyncio.create_task(anext(aiter(result["Body"])))
    await retrying.wait()
    result["Body"].close()
    with pytest.raises(StopAsyncIteration):
        await reader
    assert await is_usable(client.with_options(observers=[]), server)


async def test_what_a_call_waited_for_names_its_body(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = lambda request: UNAVAILABLE

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size:
                never.wait(0.05)
            return super().read(size)

    never = threading.Event()
    client = make_client(patience=0)
    with pytest.raises(errors.ServiceUnavailable) as caught:
        await client.invoke_endpoint(EndpointName="churn", Body=Slow(b"1"))
    assert caught.value.waited.body >= 0.04
    assert set(client.statistics().waited) <= {"slot", "probe", "capacity", "back_off", "rate"}
