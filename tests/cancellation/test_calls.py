"""Cancellation at every await of a plain call, on every way that a call can take."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import random
from collections.abc import Coroutine
from typing import Any

import pytest

import aiosmrt
from aiosmrt._core.body import HASH_INLINE_BYTES
from tests.cancellation.leftovers import nothing_is_held
from tests.support import seams
from tests.support.cancellation import Moment, after_the_first, cancel_everywhere
from tests.support.clients import MakeClient
from tests.support.probes import Pauses
from tests.support.raw_server import OK, RESET, RawServer, error_response, response

each_moment = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)

# Waits in back-off last a millisecond at most.
QUICK = aiosmrt.RetryPolicy(base_delay=0.001, throttling_base_delay=0.001)


def invoke(client: aiosmrt.Client, body: Any = b"1,2,3") -> Coroutine[Any, Any, Any]:
    return client.invoke_endpoint(EndpointName="churn", Body=body, ContentType="text/csv")


async def answers(client: aiosmrt.Client, server: RawServer) -> None:
    """Nothing is held, and the client makes the next call as if nothing had been."""
    await nothing_is_held(client, server)
    server.forget_scripts()
    result = await invoke(client)
    assert await result["Body"].read() == b"ok"
    await nothing_is_held(client, server)


@each_moment
async def test_first_call_of_a_client(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    """Configuration, credentials, connecting: each run has its own client."""
    clients: list[aiosmrt.Client] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        clients.append(make_client())
        return invoke(clients[-1])

    async def after() -> None:
        await answers(clients[-1], server)
        await clients[-1].close()

    assert await cancel_everywhere(prepare, moment, after=after) >= 3


@each_moment
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"deadline": 60.0},
        {"observers": (lambda event: None,)},
        {"deadline": 60.0, "observers": (lambda event: None,)},
    ],
    ids=["plain", "deadline", "observed", "deadline and observed"],
)
async def test_call_on_a_pooled_connection(
    moment: Moment, options: dict[str, Any], make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(**options)
    await invoke(client)

    async def prepare() -> Coroutine[Any, Any, Any]:
        return invoke(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 1
    if moment is Moment.EARLY:
        assert server.connections_made > 1, "a cancelled exchange must not leave its connection in the pool"


@each_moment
async def test_body_that_arrives_in_pieces(
    moment: Moment, transport_name: str, make_client: MakeClient, server: RawServer
) -> None:
    client = make_client()
    await invoke(client)
    gates: list[asyncio.Event] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        gates.append(asyncio.Event())
        server.play([response(200, b"o", length=2), gates[-1], b"k"])
        return invoke(client)

    async def after() -> None:
        gates[-1].set()
        await answers(client, server)

    def move_on() -> None:
        gates[-1].set()

    # A session suspends for the head, then for the rest of the body; a pooled connection once for both.
    twice = transport_name == "session"
    suspensions = await cancel_everywhere(
        prepare, moment, after=after, on_suspend=after_the_first(move_on) if twice else lambda _: move_on()
    )
    assert suspensions >= (2 if twice else 1)


@each_moment
async def test_waiting_for_a_slot(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    waits: list[aiosmrt.events.LimiterWaited] = []

    def observe(event: aiosmrt.events.Event) -> None:
        if isinstance(event, aiosmrt.events.LimiterWaited):
            waits.append(event)

    client = make_client(max_concurrency=1, observers=(observe,))
    await invoke(client)
    gates: list[asyncio.Event] = []
    holders: list[asyncio.Task[Any]] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        gates.append(asyncio.Event())
        server.play([gates[-1], *OK])
        count = len(server.requests)
        holders.append(asyncio.create_task(invoke(client)))
        await server.received(count + 1)
        return invoke(client)

    async def after() -> None:
        gates[-1].set()
        await holders[-1]
        await answers(client, server)

    # The call is in the queue when it suspends first; then the holder of the slot may end.
    assert await cancel_everywhere(prepare, moment, after=after, on_suspend=lambda _: gates[-1].set()) >= 2
    assert waits


@each_moment
@pytest.mark.parametrize(
    "failure",
    [
        [error_response(503, "ServiceUnavailable")],
        [error_response(400, "ThrottlingException", None)],
        [RESET],
        [response(200, b"o", length=2), RESET],
    ],
    ids=["transient", "throttling", "reset", "truncated"],
)
async def test_back_off(moment: Moment, failure: Any, make_client: MakeClient, server: RawServer) -> None:
    client = make_client(retry=dataclasses.replace(QUICK, retry_stale_connections=False))
    await invoke(client)

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play(failure)
        return invoke(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 3
    assert client.statistics().retries


NO_CAPACITY = error_response(
    400, "ValidationError", "Inference Component has no capacity to process this request. Wait."
)


@each_moment
@pytest.mark.parametrize(
    "options", [{}, {"deadline": 60.0}, {"observers": (lambda event: None,)}], ids=["plain", "deadline", "observed"]
)
async def test_asking_for_capacity(
    moment: Moment, options: dict[str, Any], make_client: MakeClient, server: RawServer
) -> None:
    client = make_client(wait_for_capacity=60.0, **options)
    await invoke(client)

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play([NO_CAPACITY], [NO_CAPACITY])
        return invoke(client)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 3
    assert client.statistics().retries["no_capacity"] >= 2


@each_moment
@pytest.mark.parametrize("prober", ["succeeds", "is refused", "fails", "is cancelled"])
@pytest.mark.parametrize("max_concurrency", [1, 100])
async def test_waiting_for_capacity(
    moment: Moment, prober: str, max_concurrency: int, make_client: MakeClient, server: RawServer
) -> None:
    """Behind a prober that goes on at the call's first suspension: the gate opens, or the call has to probe itself."""
    client = make_client(
        wait_for_capacity=60.0, max_concurrency=max_concurrency, retry=aiosmrt.RetryPolicy(max_attempts=1)
    )
    pauses = Pauses(client)
    probers: list[asyncio.Task[Any]] = []
    await invoke(client)

    async def prepare() -> Coroutine[Any, Any, Any]:
        pauses.hold()
        server.play([NO_CAPACITY])
        count = len(server.requests)
        probers.append(asyncio.create_task(invoke(client)))
        await server.received(count + 1)
        # The refusal is read and the pause has begun when no slot is held any more.
        while client.statistics().in_use:
            await asyncio.sleep(0)
        if prober == "is refused":
            server.play([NO_CAPACITY], [NO_CAPACITY])
        elif prober == "fails":
            server.play([error_response(503, "ServiceUnavailable")])
        return invoke(client)

    def move_on(number: int) -> None:
        pauses.release()
        if prober == "is cancelled":
            probers[-1].cancel()

    async def after() -> None:
        pauses.release()
        await asyncio.wait([probers[-1]])
        await answers(client, server)

    assert await cancel_everywhere(prepare, moment, after=after, on_suspend=move_on) >= 2
    for task in probers:
        assert task.cancelled() or isinstance(task.exception(), aiosmrt.ServiceUnavailable | None)


@pytest.mark.parametrize("seed", range(4))
async def test_many_calls_cancelled_while_there_is_no_capacity(
    seed: int, make_client: MakeClient, server: RawServer
) -> None:
    """Whichever calls are cancelled, one of the rest asks, so all of them get through."""
    client = make_client(max_concurrency=3, wait_for_capacity=60.0)
    await invoke(client)
    server.play(*([NO_CAPACITY] if n % 4 else OK for n in range(200)))
    chance = random.Random(seed)
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
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    cancelled = sum(call.cancelled() for call in calls)
    assert 10 < cancelled < 90
    for call in calls:
        assert call.cancelled() or isinstance(call.result(), dict)
    await answers(client, server)


@each_moment
@pytest.mark.parametrize("kind", ["large body", "file"])
async def test_work_off_the_loop(moment: Moment, kind: str, make_client: MakeClient, server: RawServer) -> None:
    client = make_client()
    await invoke(client)
    size = HASH_INLINE_BYTES + 1
    files: list[io.BytesIO] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        if kind == "file":
            files.append(io.BytesIO(bytes(size)))
        return invoke(client, files[-1] if files else bytes(size))

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= (2 if files else 1) + 1
    assert max(len(request.body) for request in server.requests) == size
    assert not any(file.closed for file in files), "a caller's file is the caller's to close"


@each_moment
async def test_first_credentials(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    clients: list[aiosmrt.Client] = []

    async def provide() -> aiosmrt.Credentials:
        await asyncio.sleep(0)
        return aiosmrt.Credentials("AKIDEXAMPLE", "fake-secret-key-for-tests")

    async def prepare() -> Coroutine[Any, Any, Any]:
        # Ready but for its credentials.
        clients.append(make_client(credentials=provide))
        await clients[-1].with_options(sign=False).invoke_endpoint(EndpointName="churn", Body=b"")
        return invoke(clients[-1])

    async def after() -> None:
        await answers(clients[-1], server)
        await clients[-1].close()

    assert await cancel_everywhere(prepare, moment, after=after) >= 2


@each_moment
async def test_credentials_that_others_wait_for_too(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    """Many calls share one request for credentials; it is not lost with the call that began it."""
    gates: list[asyncio.Event] = []
    clients: list[aiosmrt.Client] = []
    others: list[asyncio.Task[Any]] = []
    asked = 0

    async def provide() -> aiosmrt.Credentials:
        nonlocal asked
        asked += 1
        await gates[-1].wait()
        return aiosmrt.Credentials("AKIDEXAMPLE", "fake-secret-key-for-tests")

    async def prepare() -> Coroutine[Any, Any, Any]:
        gates.append(asyncio.Event())
        clients.append(make_client(credentials=provide))
        await clients[-1].with_options(sign=False).invoke_endpoint(EndpointName="churn", Body=b"")
        return invoke(clients[-1])

    def another_call(number: int) -> None:
        if number == 0:
            others.append(asyncio.create_task(invoke(clients[-1])))
            others[-1].get_loop().call_soon(gates[-1].set)

    async def after() -> None:
        assert await (await others[-1])["Body"].read() == b"ok"
        await answers(clients[-1], server)
        await clients[-1].close()

    assert await cancel_everywhere(prepare, moment, after=after, on_suspend=another_call) >= 2
    assert asked == len(clients)


@each_moment
async def test_close(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    clients: list[aiosmrt.Client] = []

    async def prepare() -> Coroutine[Any, Any, Any]:
        clients.append(make_client())
        await invoke(clients[-1])
        return clients[-1].close()

    async def after() -> None:
        await clients[-1].close()
        with pytest.raises(aiosmrt.ClientStateError):
            await invoke(clients[-1])
        await server.until(lambda: server.connections_open == 0)

    await cancel_everywhere(prepare, moment, after=after)


@pytest.mark.parametrize("seed", range(4))
async def test_many_calls_cancelled_at_random(seed: int, make_client: MakeClient, server: RawServer) -> None:
    """Half of 200 calls that share 5 slots are cancelled, each after a random number of turns of the loop."""
    client = make_client(max_concurrency=5, retry=QUICK)
    await invoke(client)
    server.play(*([error_response(503, "ServiceUnavailable")] if n % 3 == 0 else OK for n in range(200)))
    chance = random.Random(seed)
    calls = [asyncio.create_task(invoke(client)) for _ in range(200)]
    pending = set(calls)
    while pending:
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        pending = {call for call in pending if not call.done()}
        for call in chance.sample(sorted(pending, key=calls.index), min(len(pending), 2)):
            if chance.random() < 0.5:
                call.cancel()
        if pending:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    cancelled = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert 20 < cancelled < 180
    for outcome in outcomes:
        # A call that met the server's failing answers three times in a row has failed properly.
        expected = (dict, asyncio.CancelledError, aiosmrt.ServiceUnavailable)
        assert isinstance(outcome, expected), outcome
    await answers(client, server)


async def test_closing_the_client_ends_its_calls(make_client: MakeClient, server: RawServer) -> None:
    """One call waits for its response's head, one for the rest of its body, one for a slot."""
    client = make_client(max_concurrency=2, read_timeout=None)
    await invoke(client)
    server.play([asyncio.Event()], [response(200, b"o", length=2), asyncio.Event()])
    calls = [asyncio.create_task(invoke(client)) for _ in range(3)]
    await server.received(3)
    # Another round trip: by its end the half body has arrived too.
    await invoke(client.with_options(max_concurrency=1))
    assert client.statistics().waiting == 1
    await client.close()
    await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == [aiosmrt.ClientStateError] * 3
    await server.until(lambda: server.connections_open == 0)
    await nothing_is_held(client, server)


async def test_closing_the_client_ends_a_back_off(make_client: MakeClient, server: RawServer) -> None:
    """The back-off is an hour long, so only closing can end the call."""
    hour = aiosmrt.RetryPolicy(base_delay=3600.0, max_delay=3600.0)
    waiting = asyncio.Event()

    def observe(event: aiosmrt.Event) -> None:
        if type(event).__name__ == "RetryScheduled":
            waiting.set()

    client = make_client(retry=hour, observers=[observe])
    seams.set_random(client, lambda: 1.0)
    server.play([error_response(500, "InternalFailure")])
    call = asyncio.create_task(invoke(client))
    await waiting.wait()
    await client.close()
    with pytest.raises(aiosmrt.ClientStateError):
        await call
