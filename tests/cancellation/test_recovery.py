"""Cancellation at every await of a call that waits for a target that is ill, or for AWS's retry mode adaptive."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import aiosmrt
from aiosmrt._core.admission import Admission
from aiosmrt._core.body import HASH_INLINE_BYTES
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from tests.cancellation.leftovers import nothing_is_held
from tests.support import seams
from tests.support.cancellation import Moment, cancel_everywhere
from tests.support.clients import MakeClient
from tests.support.probes import Pauses
from tests.support.raw_server import (
    LAST_CHUNK,
    OK,
    RESET,
    RawRequest,
    RawServer,
    Script,
    chunk,
    error_response,
    response,
)

each_moment = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
each_option = pytest.mark.parametrize(
    "options",
    [{}, {"deadline": 60.0}, {"observers": (lambda event: None,)}],
    ids=["plain", "deadline", "observed"],
)

AT_ONCE = aiosmrt.RetryPolicy(base_delay=0.0)
# Of a call that gives up after two requests.
TWICE = aiosmrt.RetryPolicy(base_delay=0.0, max_attempts=2)

UNAVAILABLE: Script = [error_response(503, "ServiceUnavailable")]
HEAD = response(200, b"", [("X-Amzn-SageMaker-Content-Type", "text/plain")], chunked=True)
PARTS: Script = [HEAD, chunk(encode_payload_part(b"ok")), LAST_CHUNK]
FAILURE = chunk(encode_exception("InternalStreamFailure", b'{"Message":"again"}'))
FAILED_STREAM: Script = [HEAD, FAILURE, LAST_CHUNK]


def healthy(request: RawRequest) -> Script:
    return PARTS if request.target.endswith("-stream") else OK


async def invoke(client: aiosmrt.Client, body: Any = b"1,2,3") -> bytes:
    result = await client.invoke_endpoint(EndpointName="churn", Body=body, ContentType="text/csv")
    return await result["Body"].read()


async def opened(client: aiosmrt.Client) -> Any:
    result = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=b"hello")
    return result["Body"]


async def parts_of(stream: Any) -> bytes:
    async with stream:
        return b"".join([event["PayloadPart"]["Bytes"] async for event in stream])


async def read(client: aiosmrt.Client) -> bytes:
    return await parts_of(await opened(client))


Call = Callable[[aiosmrt.Client], Coroutine[Any, Any, bytes]]
each_call = pytest.mark.parametrize("call", [invoke, read], ids=["plain", "stream"])


@pytest.fixture
async def client(make_client: MakeClient) -> aiosmrt.Client:
    return make_client(retry=AT_ONCE)


@pytest.fixture(autouse=True)
def healthy_server(server: RawServer) -> None:
    server.otherwise = healthy


def held_back(client: aiosmrt.Client) -> int:
    return client.statistics().endpoints["churn"].held_back


async def nothing_is_left(client: aiosmrt.Client, server: RawServer) -> None:
    """Nothing is held; no request counts as outstanding, and no timer of an admission is set."""
    await nothing_is_held(client, server)
    assert seams.admission_of(client, "churn").outstanding == 0
    loop: Any = asyncio.get_running_loop()
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    assert not [timer for timer in timers if isinstance(getattr(timer._callback, "__self__", None), Admission)]


async def answers(client: aiosmrt.Client, server: RawServer) -> None:
    """Nothing is left, and the next calls succeed as if nothing had been."""
    await nothing_is_left(client, server)
    server.forget_scripts()
    for call in (invoke, read):
        assert await call(client) == b"ok"
    assert client.statistics().endpoints["churn"].illness is None
    await nothing_is_left(client, server)


async def fall_ill(client: aiosmrt.Client, server: RawServer) -> None:
    """Have calls fail that do not wait, until the target is ill."""
    hasty = client.with_options(patience=0)
    while client.statistics().endpoints["churn"].illness is None:
        server.play(UNAVAILABLE)
        with pytest.raises(aiosmrt.errors.ServiceUnavailable):
            await invoke(hasty)


async def start_prober(
    client: aiosmrt.Client, server: RawServer, pauses: Pauses, prober: aiosmrt.Client | None = None
) -> asyncio.Task[bytes]:
    """Start a call to a target that is ill, and have it refused; it waits until the pauses move on."""
    server.play(UNAVAILABLE)
    count = len(server.requests)
    task = asyncio.create_task(invoke(client if prober is None else prober))
    pauses.hold()
    while len(server.requests) == count or client.statistics().in_use:
        pauses.release()
        pauses.hold()
        await asyncio.sleep(0)
    assert held_back(client) == 1
    return task


# At the head of the line


@each_moment
@each_call
@each_option
async def test_a_call_that_probes(
    moment: Moment, call: Call, options: dict[str, Any], make_client: MakeClient, server: RawServer
) -> None:
    """It makes its target ill, waits, probes without success, waits again, and gets through."""
    client = make_client(retry=AT_ONCE, **options)
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(*[UNAVAILABLE] * 5)
        return call(client)

    # Six requests, two back-offs and three waits.
    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 11
    assert client.statistics().waited["probe"] > 0


@each_moment
@each_call
async def test_a_newcomer_that_probes(moment: Moment, call: Call, client: aiosmrt.Client, server: RawServer) -> None:
    """The target is ill already, and no other call waits for it."""
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        await fall_ill(client, server)
        server.play(UNAVAILABLE)
        return call(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 2


@each_moment
@pytest.mark.parametrize("failure", [[RESET], [response(200, b"o", length=2), RESET]], ids=["reset", "truncated"])
async def test_a_call_whose_connections_break(
    moment: Moment, failure: Script, make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(retry=aiosmrt.RetryPolicy(base_delay=0.0, retry_stale_connections=False))
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(*[failure] * 5)
        return invoke(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 8
    assert client.statistics().waited["probe"] > 0


@each_moment
@pytest.mark.parametrize("size", [100, HASH_INLINE_BYTES + 1], ids=["small", "large"])
async def test_a_body_from_a_file(moment: Moment, size: int, client: aiosmrt.Client, server: RawServer) -> None:
    await answers(client, server)
    files: list[io.BytesIO] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(*[UNAVAILABLE] * 4)
        files.append(io.BytesIO(bytes(size)))
        return invoke(client, files[-1])

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 1 + 7
    assert not any(file.closed for file in files), "a caller's file is the caller's to close"
    # Each attempt sends all of it; the others are those that come after each run.
    assert {len(request.body) for request in server.requests} == {size, len(b"1,2,3")}


# Behind another call


@each_moment
@each_call
@pytest.mark.parametrize("prober", ["succeeds", "is refused", "gives up", "is cancelled"])
async def test_a_call_behind_the_one_that_probes(
    moment: Moment, call: Call, prober: str, make_client: MakeClient, server: RawServer
) -> None:
    """The one ahead goes on at the call's first suspension: the target recovers, or the call has to probe itself."""
    client = make_client(retry=AT_ONCE, max_concurrency=1 if call is invoke else 100)
    pauses = Pauses(client)
    probers: list[asyncio.Task[Any]] = []
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        await fall_ill(client, server)
        other = client.with_options(retry=TWICE) if prober == "gives up" else None
        probers.append(await start_prober(client, server, pauses, other))
        if prober in ("is refused", "gives up"):
            # The two take turns.
            server.play(UNAVAILABLE, UNAVAILABLE)
        return call(client)

    def move_on(number: int) -> None:
        if number == 0:
            assert held_back(client) == 2
        pauses.release()
        if prober == "is cancelled":
            probers[-1].cancel()

    async def after() -> None:
        pauses.release()
        await asyncio.wait([probers[-1]])
        await answers(client, server)

    assert await cancel_everywhere(prepare, moment, after=after, on_suspend=move_on) >= 2
    for task in probers:
        if prober == "is cancelled":
            assert task.cancelled()
        elif prober == "gives up":
            assert isinstance(task.exception(), aiosmrt.errors.ServiceUnavailable)
        else:
            assert task.result() == b"ok"


@each_moment
@each_option
async def test_a_call_behind_the_one_that_probes_with_options(
    moment: Moment, options: dict[str, Any], make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(retry=AT_ONCE, **options)
    pauses = Pauses(client)
    probers: list[asyncio.Task[Any]] = []
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        await fall_ill(client, server)
        probers.append(await start_prober(client, server, pauses))
        server.play(UNAVAILABLE)
        return invoke(client)

    async def after() -> None:
        pauses.release()
        assert await probers[-1] == b"ok"
        await answers(client, server)

    suspensions = await cancel_everywhere(prepare, moment, after=after, on_suspend=lambda _: pauses.release())
    assert suspensions >= 2


@each_moment
@each_call
@pytest.mark.parametrize("probe", ["succeeds", "is refused"])
async def test_a_call_that_probes_before_another(
    moment: Moment, call: Call, probe: str, client: aiosmrt.Client, server: RawServer
) -> None:
    """Wherever it is cancelled, the one behind it goes on."""
    await answers(client, server)
    others: list[asyncio.Task[bytes]] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        await fall_ill(client, server)
        if probe == "is refused":
            server.play(UNAVAILABLE, UNAVAILABLE)
        return call(client)

    def another_call(number: int) -> None:
        if number == 0:
            others.append(asyncio.create_task(invoke(client)))

    async def after() -> None:
        assert await others[-1] == b"ok"
        await answers(client, server)

    suspensions = await cancel_everywhere(prepare, moment, after=after, on_suspend=another_call)
    assert suspensions >= (1 if probe == "succeeds" else 3)


# Streams before their first part


@each_moment
@each_option
async def test_a_stream_that_fails_before_its_first_part_and_probes(
    moment: Moment, options: dict[str, Any], make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(retry=AT_ONCE, **options)
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(FAILED_STREAM, *[UNAVAILABLE] * 5)
        return read(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 9
    assert client.statistics().waited["probe"] > 0


@each_moment
@pytest.mark.parametrize("prober", ["succeeds", "is refused", "is cancelled"])
async def test_a_stream_that_fails_before_its_first_part_behind_a_call_that_probes(
    moment: Moment, prober: str, client: aiosmrt.Client, server: RawServer
) -> None:
    pauses = Pauses(client)
    probers: list[asyncio.Task[Any]] = []
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        breaks = asyncio.Event()
        server.play([HEAD, breaks, FAILURE, LAST_CHUNK])
        stream = await opened(client)
        await fall_ill(client, server)
        server.play(UNAVAILABLE)
        count = len(server.requests)
        probers.append(asyncio.create_task(invoke(client)))
        pauses.hold()
        # The stream has the one slot that is in use then.
        while len(server.requests) == count or client.statistics().in_use > 1:
            pauses.release()
            pauses.hold()
            await asyncio.sleep(0)
        if prober == "is refused":
            server.play(UNAVAILABLE, UNAVAILABLE)
        breaks.set()
        return parts_of(stream)

    waited = []

    def move_on(number: int) -> None:
        # Not before the stream has failed, and waits as well.
        if held_back(client) == 2:
            waited.append(number)
            pauses.release()
            if prober == "is cancelled":
                probers[-1].cancel()

    async def after() -> None:
        pauses.release()
        await asyncio.wait([probers[-1]])
        await answers(client, server)

    assert await cancel_everywhere(prepare, moment, after=after, on_suspend=move_on) >= 3
    assert waited


# All at once


async def progress(calls: set[asyncio.Task[Any]], server: RawServer) -> None:
    """Wait until one of the calls ends, or the server receives another request."""
    count = len(server.requests)
    request = asyncio.create_task(server.received(count + 1))
    await asyncio.wait({*calls, request}, return_when=asyncio.FIRST_COMPLETED)
    request.cancel()
    await asyncio.wait({request})


@pytest.mark.parametrize("seed", range(4))
async def test_many_calls_cancelled_while_the_service_is_ill(
    seed: int, make_client: MakeClient, server: RawServer
) -> None:
    """Whichever are cancelled, one of those that are left probes, so that all of them get through."""
    client = make_client(retry=AT_ONCE, max_concurrency=3)
    await answers(client, server)
    chance = random.Random(seed)
    server.play(*(UNAVAILABLE if n % 40 < 30 else OK for n in range(200)))
    calls = [asyncio.create_task(invoke(client)) for _ in range(100)]
    pending = set(calls)
    while pending:
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        pending = {call for call in pending if not call.done()}
        for call in chance.sample(sorted(pending, key=calls.index), min(len(pending), 2)):
            if chance.random() < 0.3:
                call.cancel()
        if pending:
            await progress(pending, server)
    cancelled = sum(call.cancelled() for call in calls)
    assert 10 < cancelled < 100
    for call in calls:
        assert call.cancelled() or call.result() == b"ok"
    await answers(client, server)


# AWS's retry mode adaptive


@each_moment
@each_option
async def test_waiting_for_the_rate(
    moment: Moment, options: dict[str, Any], make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(retry={"mode": "adaptive"}, max_concurrency=1, **options)
    Pauses(client, longest=60.0)
    seams.set_random(client, lambda: 0.0)
    await answers(client, server)
    throttled: Script = [error_response(400, "ThrottlingException", None)]

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(throttled, throttled)
        return invoke(client)

    # Three requests, two back-offs, and a wait for the rate before each request, once one was throttled.
    suspensions = await cancel_everywhere(prepare, moment, after=lambda: answers(client, server))
    assert suspensions >= 3 + 2 + 2
    assert client.statistics().waited["rate"] > 1.0
