"""Calls to an ill service wait, give up in time, and do not flood it.

The sockets are real, the time is virtual. It stands still while anything happens, a request on its way included, and
then jumps to the next timer. So an answer takes no time unless the service's model is given some.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import pytest

from aiosmrt import Client, DeadlineExceededError, RetryPolicy, errors
from aiosmrt._transport.base import Reply
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.events import Event, OutageWaited, RetryScheduled
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.recording_server import RecordedRequest, RecordingServer, Response
from tests.support.virtual_time import VirtualTime

pytestmark = pytest.mark.long

T = TypeVar("T")

Call = Callable[[Client], Coroutine[Any, Any, bytes]]
Key = tuple[str, str | None, str | None]
LLM: Key = ("llm", None, None)

PATIENCE = 20.0
# What a float clock may be off after some sums.
EXACT = 1e-6


# The service


def error(status: int, code: str, **headers: str) -> Response:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Response(status, [("x-amzn-errortype", code), *named], json.dumps({"Message": "ill"}).encode())


async def no_chunks() -> AsyncIterator[bytes]:
    return
    yield b""


UNAVAILABLE = error(503, "ServiceUnavailable")
THROTTLING = error(400, "ThrottlingException")
NOT_READY = error(429, "ModelNotReadyException")
BROKEN_STREAM = Response(200, (), encode_exception("InternalStreamFailure", b'{"Message": "ill"}'))

# Answers of an ill service; None resets the connection. With "refused", nothing listens.
ILLNESSES: dict[str, Callable[[], Response | None]] = {
    "503": lambda: UNAVAILABLE,
    "500": lambda: error(500, "InternalFailure"),
    "502": lambda: Response(502, [("Content-Type", "text/html")], b"<html><h1>502 Bad Gateway</h1></html>"),
    "530": lambda: error(530, "InternalDependencyException"),
    "ThrottlingException": lambda: THROTTLING,
    "429": lambda: Response(429),
    "ModelNotReadyException": lambda: NOT_READY,
    "refused": lambda: None,
    "reset": lambda: None,
}
STREAM_ILLNESSES: dict[str, Callable[[], Response | None]] = {
    **ILLNESSES,
    "failure as first event": lambda: BROKEN_STREAM,
    "reset after the head": lambda: Response(200, (), no_chunks(), reset=True),
}

HEALTHY: dict[str, Response] = {
    "invocations": Response(200, (), b"ok"),
    "invocations-response-stream": Response(200, (), encode_payload_part(b"ok")),
}


@dataclass
class Service:
    """Answers requests, and is ill when a test makes it.

    Args:
        time: its clock.
        server: what listens for it.
        model_seconds: how long a healthy service takes to answer.
        refusal_seconds: how long an ill one does.
    """

    time: VirtualTime
    server: RecordingServer
    model_seconds: float = 0.0
    refusal_seconds: float = 0.0
    # answers for the next requests, before all else; a number delays the answer by so many seconds
    instead: list[Response | float] = field(default_factory=list)
    # requests and refusals by target, requests in flight, those of them that wait for time to pass
    seen: Counter[Key] = field(default_factory=Counter)
    refused: Counter[Key] = field(default_factory=Counter)
    in_flight: int = 0
    asleep: int = 0
    # the time and the number in flight whenever that has grown
    load: list[tuple[float, int]] = field(default_factory=list)
    _illness: str | None = None
    _ill_targets: frozenset[Key] | None = None

    @property
    def requests(self) -> int:
        return self.seen.total()

    def fall_ill(self, illness: str, seconds: float | None = None, *targets: Key) -> None:
        """Fall ill now.

        Args:
            illness: a key of `STREAM_ILLNESSES`.
            seconds: for how long. If None, until `recover`.
            targets: what is ill; all if none is named.
        """
        self._illness = illness
        self._ill_targets = frozenset(targets) or None
        if illness == "refused":
            self.server.stop_listening()
        if seconds is not None:
            self.time.call_later(seconds, self.recover)

    def recover(self) -> None:
        if self._illness == "refused":
            self._listening = asyncio.get_running_loop().create_task(self.server.listen_again())
        self._illness = None

    def forget(self) -> None:
        """Begin to count anew."""
        self.seen.clear()
        self.refused.clear()
        self.load.clear()

    async def __call__(self, request: RecordedRequest) -> Response | None:
        _, _, name, operation = request.path.split("/")
        key = (
            name,
            request.header("X-Amzn-SageMaker-Inference-Component"),
            request.header("X-Amzn-SageMaker-Target-Variant"),
        )
        self.seen[key] += 1
        self.in_flight += 1
        self.load.append((self.time.now, self.in_flight))
        try:
            if self.instead:
                answer = self.instead.pop(0)
                if isinstance(answer, Response):
                    return answer
                await self._pause(answer)
            elif self._illness is not None and (self._ill_targets is None or key in self._ill_targets):
                self.refused[key] += 1
                refusal = STREAM_ILLNESSES[self._illness]()
                await self._pause(self.refusal_seconds)
                return refusal
            await self._pause(self.model_seconds)
            return HEALTHY[operation]
        finally:
            self.in_flight -= 1

    async def _pause(self, seconds: float) -> None:
        if seconds:
            self.asleep += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self.asleep -= 1


class Outcome(NamedTuple):
    """How a call ended, and when.

    Args:
        result: the result, or the error.
        seconds: how long it took, in virtual time.
    """

    result: Any
    seconds: float

    @property
    def failed(self) -> bool:
        return isinstance(self.result, BaseException)


class Traffic:
    """Counts what a client's transport is waiting for: connections, heads, bodies."""

    def __init__(self) -> None:
        self.under_way = 0

    def watch(self, client: Client) -> None:
        transport: Any = seams.transport_of(client)
        transport.send = self._counted(transport.send)
        opens = self._counted(transport.send_streaming)

        async def open_watched(request: Any) -> Any:
            stream: Any = await opens(request)
            if isinstance(stream, Reply):
                return stream
            return WatchedStream(stream, self._counted(stream.receive), self._counted(stream.read))

        transport.send_streaming = open_watched

    def _counted(self, wait: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*arguments: Any) -> Any:
            self.under_way += 1
            try:
                return await wait(*arguments)
            finally:
                self.under_way -= 1

        return counted


class WatchedStream:
    """A `ReplyStream` whose waits are counted."""

    def __init__(self, stream: Any, receive: Callable[..., Any], read: Callable[..., Any]) -> None:
        self.status, self.headers, self.close = stream.status, stream.headers, stream.close
        self.receive, self.read = receive, read


@dataclass
class World:
    """A service, its clients, and the time in which they live."""

    time: VirtualTime
    service: Service
    make_client: MakeClient
    traffic: Traffic = field(default_factory=Traffic)

    async def client(self, *, seed: int = 0, **arguments: Any) -> Client:
        """A client that has made a call to another endpoint, so that it is configured and has a connection.

        Args:
            seed: of its random numbers.
            arguments: the client's own.
        """
        client = self.time.drive(self.make_client(**arguments))
        seams.set_random(client, random.Random(seed).random)
        await invoke(client, ("warm-up", None, None))
        self.traffic.watch(client)
        self.service.forget()
        return client

    def start(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Outcome]:
        """Make a call in a new task."""

        async def ends() -> Outcome:
            began = self.time.now
            try:
                result: Any = await call
            except Exception as error:
                result = error.with_traceback(None)
            return Outcome(result, self.time.now - began)

        return asyncio.create_task(ends())

    def is_busy(self) -> bool:
        """Whether anything is on its way, and not held by a service that waits for time to pass."""
        return self.traffic.under_way > self.service.asleep

    async def settle(self) -> None:
        """Wait until nothing happens any more, while time stands still."""
        await self.time.settle(self.is_busy)

    async def outcomes(self, *tasks: asyncio.Task[T]) -> list[T]:
        """Let time pass until these are done."""
        return await self.time.run(asyncio.gather(*tasks), self.is_busy)

    async def outcome(self, call: Coroutine[Any, Any, Any]) -> Outcome:
        """Let time pass until a call ends."""
        (outcome,) = await self.outcomes(self.start(call))
        return outcome

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.outcomes(asyncio.create_task(asyncio.sleep(seconds)))


@pytest.fixture
async def time(server: RecordingServer) -> AsyncIterator[VirtualTime]:
    time = VirtualTime()
    with time.drive_loop():
        yield time


@pytest.fixture
async def world(time: VirtualTime, server: RecordingServer, make_client: MakeClient) -> AsyncIterator[World]:
    server.answer = service = Service(time, server)
    world = World(time, service, make_client)
    yield world
    service.recover()
    await world.time.settle(lambda: False)


async def invoke(client: Client, key: Key = LLM) -> bytes:
    name, component, variant = key
    result = await client.invoke_endpoint(
        EndpointName=name, InferenceComponentName=component, TargetVariant=variant, Body=b"1,2"
    )
    return await result["Body"].read()


async def read_stream(client: Client, key: Key = LLM) -> bytes:
    name, component, variant = key
    result = await client.invoke_endpoint_with_response_stream(
        EndpointName=name, InferenceComponentName=component, TargetVariant=variant, Body=b"1,2"
    )
    async with result["Body"] as stream:
        return b"".join([event["PayloadPart"]["Bytes"] async for event in stream])


def nothing_is_left(client: Client) -> bool:
    statistics = client.statistics()
    endpoints = statistics.endpoints.values()
    return (statistics.in_use, statistics.waiting, sum(endpoint.held_back for endpoint in endpoints)) == (0, 0, 0)


# Short outages

SECONDS = [0.3, 1.0, 3.0, 10.0]


async def all_twelve_succeed(world: World, call: Call, illness: str) -> None:
    """Outages of all lengths, each with its own client."""
    lost = {}
    for seconds in SECONDS:
        client = await world.client(seed=int(10 * seconds))
        world.service.fall_ill(illness, seconds)
        outcomes = await world.outcomes(*(world.start(call(client)) for _ in range(12)))
        lost[seconds] = sum(outcome.result != b"ok" for outcome in outcomes)
        # The end of an outage is noticed after another quarter of it, and calls on their own back off for longer.
        assert seconds <= max(outcome.seconds for outcome in outcomes) <= PATIENCE + EXACT
        assert nothing_is_left(client)
        assert client.statistics().endpoints["llm"].illness is None
        await world.settle()
    assert lost == dict.fromkeys(SECONDS, 0)


@pytest.mark.parametrize("illness", ILLNESSES)
async def test_a_short_outage_fails_no_call(world: World, illness: str) -> None:
    await all_twelve_succeed(world, invoke, illness)


@pytest.mark.parametrize("illness", STREAM_ILLNESSES)
async def test_a_short_outage_fails_no_stream_before_its_first_part(world: World, illness: str) -> None:
    await all_twelve_succeed(world, read_stream, illness)


# Patience

TYPES: dict[str, type[errors.AiosmrtError]] = {
    "503": errors.ServiceUnavailable,
    "500": errors.InternalFailure,
    "502": errors.ServiceError,
    "530": errors.InternalDependencyException,
    "ThrottlingException": errors.ThrottlingError,
    "429": errors.ThrottlingError,
    "ModelNotReadyException": errors.ModelNotReadyException,
    "refused": errors.EndpointConnectionError,
    "reset": errors.ConnectionClosedError,
}
each_illness = pytest.mark.parametrize("illness", ILLNESSES)
each_operation = pytest.mark.parametrize("call", [invoke, read_stream], ids=["plain", "stream"])


@each_illness
@each_operation
async def test_a_call_without_patience_fails_at_once(world: World, call: Call, illness: str) -> None:
    client = await world.client(patience=0)
    world.service.fall_ill(illness)
    await world.settle()
    for _ in range(12):
        outcome = await world.outcome(call(client))
        assert (type(outcome.result), outcome.seconds) == (TYPES[illness], 0.0)
        assert (outcome.result.attempts, outcome.result.waited.total_waiting) == (1, 0.0)
        assert "gave up" not in str(outcome.result)
    assert client.statistics().attempts == 1 + 12
    world.service.recover()
    await world.settle()
    assert await world.outcome(call(client)) == (b"ok", 0.0)


@each_illness
@each_operation
async def test_a_call_gives_up_when_its_patience_is_over(world: World, call: Call, illness: str) -> None:
    client = await world.client(patience=7.5)
    world.service.fall_ill(illness)
    outcome = await world.outcome(call(client))
    failure = outcome.result
    assert type(failure) is TYPES[illness]
    assert outcome.seconds == pytest.approx(7.5, abs=EXACT)
    assert failure.attempts == client.statistics().attempts - 1 > 1
    waited = failure.waited
    assert waited.probe + waited.back_off == pytest.approx(7.5, abs=EXACT)
    # A model that is being loaded is not an outage: each of its calls backs off by itself.
    assert (waited.probe == 0) == (illness == "ModelNotReadyException")
    assert str(failure).endswith(f" (gave up after waiting {waited})")
    named = {"for the service to recover": waited.probe, "in back-off between attempts": waited.back_off}
    for text, seconds in named.items():
        assert (f"{seconds:.3f} s {text}" in str(failure)) == (seconds > 0)
    assert isinstance(failure, errors.TransportError) or failure.response["ResponseMetadata"]["RetryAttempts"] == (
        failure.attempts - 1
    )
    assert nothing_is_left(client)


async def test_the_default_is_twenty_seconds(world: World) -> None:
    client = await world.client()
    world.service.fall_ill("503")
    outcome = await world.outcome(invoke(client))
    assert type(outcome.result) is errors.ServiceUnavailable
    assert outcome.seconds == pytest.approx(PATIENCE, abs=EXACT)


async def test_a_service_that_answered_once_is_known_to_exist(world: World) -> None:
    """So that a map waits for it, and does not give up as if there was no such endpoint."""
    client = await world.client(patience=0)
    world.service.fall_ill("refused")
    await world.settle()
    outcome = await world.outcome(invoke(client))
    assert type(outcome.result) is errors.EndpointConnectionError
    assert not outcome.result.never_reached


async def test_patience_begins_with_the_first_failure(world: World) -> None:
    client = await world.client(patience=5.0)
    world.service.refusal_seconds = 2.0
    world.service.fall_ill("503")
    outcome = await world.outcome(invoke(client))
    # An attempt that is under way at the end is waited for.
    assert 2.0 + 5.0 - EXACT <= outcome.seconds <= 2.0 + 5.0 + 2.0 + EXACT
    assert outcome.result.waited.attempt == pytest.approx(2.0 * outcome.result.attempts)


async def test_refusals_that_take_long_do_not_pass_for_a_model_at_work(world: World) -> None:
    """A load balancer in front of a dead backend answers 504 after half a minute."""
    client = await world.client(max_concurrency=20)
    world.service.refusal_seconds = 29.0
    world.service.fall_ill("503")
    tasks = [world.start(invoke(client)) for _ in range(200)]
    outcomes = await world.outcomes(*tasks)
    assert {type(outcome.result) for outcome in outcomes} == {errors.ServiceUnavailable}
    # The first refusals, patience, and a probe that is under way then.
    assert max(outcome.seconds for outcome in outcomes) <= 29.0 + PATIENCE + 29.0 + EXACT
    assert min(outcome.seconds for outcome in outcomes) >= 29.0 + PATIENCE - EXACT
    assert world.service.requests <= 20 + 3
    assert nothing_is_left(client)


async def test_a_call_that_becomes_the_prober_has_no_more_patience_than_before(world: World) -> None:
    client = await world.client()
    world.service.fall_ill("503")
    tasks = [world.start(invoke(client.with_options(patience=4.0)))]
    await world.advance(1.0)
    tasks += [world.start(invoke(client.with_options(patience=patience))) for patience in (6.0, 9.0, 20.0)]
    outcomes = await world.outcomes(*tasks)
    assert [outcome.seconds for outcome in outcomes] == [
        pytest.approx(seconds, abs=EXACT) for seconds in (4.0, 6.0, 9.0, 20.0)
    ]


@each_operation
async def test_a_deadline_leaves_time_for_one_more_attempt(world: World, call: Call) -> None:
    client = await world.client(deadline=10.0)
    world.service.fall_ill("ModelNotReadyException", 6.0)
    outcomes = await world.outcomes(*[world.start(call(client)) for _ in range(12)])
    assert [outcome.result for outcome in outcomes] == [b"ok"] * 12


async def test_a_call_that_sends_nothing_waits_as_long(world: World) -> None:
    """It raises what the service answers the one that probes."""
    client = await world.client(patience=None)
    world.service.fall_ill("503")
    prober = world.start(invoke(client))
    tasks = []
    for _ in range(4):
        await world.advance(1.5)
        tasks += [world.start(invoke(client.with_options(patience=10.0))) for _ in range(50)]
    outcomes = await world.outcomes(*tasks)
    # They take turns in probing, and there are more calls than turns.
    unsent = [outcome for outcome in outcomes if not outcome.result.attempts]
    assert len(unsent) >= 150
    for outcome in outcomes:
        assert type(outcome.result) is errors.ServiceUnavailable
        assert outcome.seconds == pytest.approx(10.0, abs=EXACT)
        assert outcome.result.waited == pytest.approx(errors.Waited(probe=10.0), abs=EXACT)
        assert str(outcome.result).endswith("(gave up after waiting 10.000 s for the service to recover)")
        assert outcome.result.response["ResponseMetadata"]["RetryAttempts"] == max(0, outcome.result.attempts - 1)
    assert len({id(outcome.result) for outcome in outcomes}) == 200
    world.service.recover()
    assert (await world.outcomes(prober))[0].result == b"ok"


@pytest.mark.parametrize("patience", [20.0, None])
@each_operation
async def test_the_deadline_wins_where_it_is_sooner(world: World, call: Call, patience: float | None) -> None:
    client = await world.client(patience=patience, deadline=6.0)
    world.service.fall_ill("503")
    outcome = await world.outcome(call(client))
    assert type(outcome.result) is DeadlineExceededError
    assert outcome.seconds == pytest.approx(6.0, abs=EXACT)


async def test_patience_wins_where_it_is_sooner(world: World) -> None:
    client = await world.client(patience=6.0, deadline=20.0)
    world.service.fall_ill("503")
    outcome = await world.outcome(invoke(client))
    assert type(outcome.result) is errors.ServiceUnavailable
    assert outcome.seconds == pytest.approx(6.0, abs=EXACT)


# Model and throttling errors back off for up to 20 s, so that a call may not have the time for one more.
AT_THE_TARGET = [illness for illness in ILLNESSES if illness != "ModelNotReadyException"]


@pytest.mark.parametrize("illness", AT_THE_TARGET)
async def test_a_deadline_alone_is_the_patience(world: World, illness: str) -> None:
    """A call waits until its deadline, however long that is, and reports how."""
    client = await world.client(deadline=100.0)
    world.service.fall_ill(illness)
    first, second = await world.outcomes(*[world.start(invoke(client)) for _ in range(2)])
    for outcome in (first, second):
        late = outcome.result
        assert type(late) is DeadlineExceededError
        assert outcome.seconds == pytest.approx(100.0, abs=EXACT)
        assert type(late.__cause__) is TYPES[illness]
        assert late.attempts == late.__cause__.attempts
        assert str(late).startswith("The call did not finish within its deadline of 100.0 s: it waited ")
        assert f"it waited {late.waited} (" in str(late)
        assert f"{late.waited.probe:.3f} s for the service to recover" in str(late)
        assert late.waited.probe + late.waited.back_off == pytest.approx(100.0, abs=EXACT)
    assert first.result.attempts + second.result.attempts == client.statistics().attempts - 1
    assert nothing_is_left(client)


async def test_a_call_that_sent_nothing_names_what_the_service_answered_others(world: World) -> None:
    client = await world.client(patience=None)
    world.service.fall_ill("503")
    other = world.start(invoke(client))
    await world.advance(1.0)
    outcomes = await world.outcomes(*[world.start(invoke(client.with_options(deadline=4.0))) for _ in range(50)])
    unsent = [outcome for outcome in outcomes if not outcome.result.attempts]
    assert len(unsent) >= 30, "they take turns in probing"
    for late, seconds in unsent:
        assert (type(late), type(late.__cause__)) == (DeadlineExceededError, errors.ServiceUnavailable)
        assert seconds == pytest.approx(4.0, abs=EXACT)
        assert "it waited 4.000 s for the service to recover (" in str(late)
    world.service.recover()
    assert (await world.outcomes(other))[0].result == b"ok"


async def test_the_deadline_names_a_wait_for_a_slot(world: World) -> None:
    client = await world.client(max_concurrency=1)
    world.service.model_seconds = 30.0
    holder = world.start(invoke(client))
    await world.settle()
    outcome = await world.outcome(invoke(client.with_options(deadline=4.0)))
    assert (type(outcome.result), outcome.result.__cause__) == (DeadlineExceededError, None)
    assert outcome.seconds == pytest.approx(4.0, abs=EXACT)
    assert "it waited 4.000 s for a slot (" in str(outcome.result)
    assert (await world.outcomes(holder))[0] == (b"ok", pytest.approx(30.0))


async def test_the_deadline_names_back_off_and_answers(world: World) -> None:
    client = await world.client(deadline=5.0)
    world.service.instead = [NOT_READY, NOT_READY, 60.0]
    outcome = await world.outcome(invoke(client))
    late = outcome.result
    assert (type(late), type(late.__cause__)) == (DeadlineExceededError, errors.ModelNotReadyException)
    assert (late.attempts, late.__cause__.attempts) == (3, 2)
    assert outcome.seconds == pytest.approx(5.0, abs=EXACT)
    waited = late.waited
    assert waited.back_off > 0.1
    assert waited.back_off + waited.attempt == pytest.approx(5.0, abs=EXACT)
    said = f"{waited.back_off:.3f} s in back-off between attempts, {waited.attempt:.3f} s for an answer to its request"
    assert f" {said} (" in str(late)


async def test_without_a_limit_calls_wait_until_the_client_is_closed(world: World) -> None:
    client = await world.client(patience=None)
    world.service.fall_ill("503")
    tasks = [world.start(call(client)) for call in (invoke, read_stream) for _ in range(3)]
    await world.advance(3_600.0)
    assert not any(task.done() for task in tasks)
    # A probe every 2.5 to 5 s.
    assert 3_600 / 5 <= world.service.requests <= 3_600 / 2.5 + 50
    await client.close()
    for outcome in await world.outcomes(*tasks):
        assert type(outcome.result) is errors.ClientStateError
    assert nothing_is_left(client)


# No storm

CALLERS = 5_000


def most_in_flight(service: Service, since: float) -> list[int]:
    """The most requests in flight in each round trip from a time on."""
    most: Counter[int] = Counter()
    for at, in_flight in service.load:
        if at >= since:
            trip = int((at - since) / service.model_seconds + EXACT)
            most[trip] = max(most[trip], in_flight)
    return [most[trip] for trip in range(max(most) + 1)]


async def test_a_minutes_outage_makes_no_storm(world: World) -> None:
    """Calls of all kinds of patience to one target, and one at a time to another."""
    client = await world.client()
    limits: list[tuple[Client, float, type[errors.AiosmrtError]]] = [
        (client, 20.0, errors.ServiceUnavailable),
        (client.with_options(patience=5.0), 5.0, errors.ServiceUnavailable),
        (client.with_options(patience=40.0), 40.0, errors.ServiceUnavailable),
        (client.with_options(patience=7.0, deadline=50.0), 7.0, errors.ServiceUnavailable),
        (client.with_options(deadline=3.0), 3.0, DeadlineExceededError),
        (client.with_options(deadline=50.0), 50.0, DeadlineExceededError),
        (client.with_options(patience=30.0, deadline=12.0), 12.0, DeadlineExceededError),
    ]
    world.service.fall_ill("503", 60.0, LLM)
    kinds = [limits[number % len(limits)] for number in range(CALLERS)]
    random.Random(1).shuffle(kinds)
    tasks = [world.start(invoke(caller)) for caller, _, _ in kinds]
    healthy = []

    async def call_another() -> None:
        for _ in range(120):
            began = world.time.now
            assert await invoke(client, ("healthy", None, None)) == b"ok"
            healthy.append(world.time.now - began)
            await asyncio.sleep(0.5)

    others = asyncio.create_task(call_another())
    await world.settle()
    statistics = client.statistics()
    assert statistics.endpoints["llm"].held_back >= CALLERS - 100
    assert statistics.waiting == 0
    outcomes = await world.outcomes(*tasks)
    for outcome, (_, seconds, kind) in zip(outcomes, kinds, strict=True):
        assert type(outcome.result) is kind
        assert seconds - EXACT <= outcome.seconds <= seconds + 0.5
        if kind is DeadlineExceededError:
            assert type(outcome.result.__cause__) is errors.ServiceUnavailable
        assert outcome.result.waited.total_waiting == pytest.approx(outcome.seconds, abs=EXACT)
    sent = world.service.seen[LLM]
    assert sent <= 0.1 * CALLERS
    assert sum(outcome.result.attempts for outcome in outcomes) == sent
    assert nothing_is_left(client)
    await world.outcomes(others)
    assert healthy == [0.0] * 120
    # The time is past the outage's end, and the next call finds that out at once.
    assert await world.outcome(invoke(client)) == (b"ok", 0.0)


@pytest.mark.parametrize("illness", ["503", "ThrottlingException", "refused"])
async def test_the_load_returns_in_steps(world: World, illness: str) -> None:
    """15 s of outage; then all calls succeed, and the service is never asked for more than it took before."""
    client = await world.client()
    world.service.model_seconds = 0.05
    world.service.fall_ill(illness, 15.0)
    tasks = [world.start(invoke(client)) for _ in range(CALLERS if illness == "503" else 1_000)]
    recovered_at = world.time.now + 15.0
    outcomes = await world.outcomes(*tasks)
    assert {outcome.result for outcome in outcomes} == {b"ok"}
    sent = client.statistics().attempts - 1
    # Those that were sent before it was known, and the probes.
    assert sent - len(tasks) <= 250
    assert max(in_flight for _, in_flight in world.service.load) <= 100
    first = min(at for at, _ in world.service.load if at >= recovered_at)
    # The pauses between probes are a quarter of the outage's age, at most 5 s.
    assert first <= recovered_at + 15.0 / 4
    trips = most_in_flight(world.service, first)
    assert trips[0] == 1
    for before, after in pairwise(trips):
        assert after <= 2 * before + 4
    assert max(trips) == 100
    # The steps cost some ten round trips.
    assert world.time.now <= first + 0.05 * (len(tasks) / 100 + 10)
    assert nothing_is_left(client)


OTHERS: dict[str, Key] = {
    "endpoint": ("other", "adapter", "blue"),
    "component": ("llm", "other", "blue"),
    "variant": ("llm", "adapter", "other"),
    "no component": ("llm", None, "blue"),
    "no variant": ("llm", "adapter", None),
}


@each_operation
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_what_is_healthy_is_not_held_back(world: World, call: Callable[..., Any], other: Key) -> None:
    ill: Key = ("llm", "adapter", "blue")
    client = await world.client(max_concurrency=4, max_waiting=50)
    world.service.fall_ill("503", 10.0, ill)
    waiting = [world.start(invoke(client, ill)) for _ in range(50)]
    await world.settle()
    assert client.statistics().endpoints["llm"].held_back
    before = world.time.now
    healthy = [world.start(call(client, other)) for _ in range(20)]
    await world.settle()
    assert world.time.now == before
    assert [task.result() for task in healthy] == [(b"ok", 0.0)] * 20
    assert {outcome.result for outcome in await world.outcomes(*waiting)} == {b"ok"}


# How many may wait


async def test_a_newcomer_fails_where_enough_calls_wait_for_the_service(world: World) -> None:
    client = await world.client(max_waiting=3)
    world.service.fall_ill("503", 10.0)
    tasks = [world.start(invoke(client)) for _ in range(10)]
    await world.advance(1.0)
    # All were sent before it was known. Those that may not wait raise what they were answered.
    ended = [task.result() for task in tasks if task.done()]
    assert len(ended) == 7
    for outcome in ended:
        assert type(outcome.result) is errors.ServiceUnavailable
        assert outcome.result.attempts >= 1
    assert client.statistics().endpoints["llm"].held_back == 3
    sent = world.service.requests
    for call in (invoke, read_stream):
        newcomer = world.start(call(client))
        await world.settle()
        outcome = newcomer.result()
        assert (type(outcome.result), outcome.seconds) == (errors.TooManyWaitingError, 0.0)
        assert (outcome.result.attempts, outcome.result.retry_safe) == (0, True)
        assert (outcome.result.operation is not None, outcome.result.endpoint_name) == (True, "llm")
        assert outcome.result.max_waiting == 3
    assert world.service.requests == sent
    # Another target has its own line.
    assert (await world.outcome(invoke(client, ("other", None, None)))).failed is False


async def test_a_newcomer_fails_where_enough_calls_wait_for_a_slot(world: World) -> None:
    client = await world.client(max_concurrency=1, max_waiting=2)
    world.service.model_seconds = 1.0
    tasks = [world.start(invoke(client)) for _ in range(3)]
    await world.settle()
    outcome = await world.outcome(invoke(client))
    assert (type(outcome.result), outcome.seconds) == (errors.TooManyWaitingError, 0.0)
    assert (outcome.result.attempts, outcome.result.retry_safe) == (0, True)
    # A view may have another bound for the same line.
    tasks.append(world.start(invoke(client.with_options(max_waiting=3))))
    outcomes = await world.outcomes(*tasks)
    assert outcomes == [(b"ok", pytest.approx(seconds)) for seconds in (1.0, 2.0, 3.0, 4.0)]
    assert (await world.outcome(invoke(client))).result == b"ok"


async def test_by_default_any_number_waits(world: World) -> None:
    client = await world.client(max_concurrency=1)
    world.service.model_seconds = 0.001
    outcomes = await world.outcomes(*[world.start(invoke(client)) for _ in range(300)])
    assert {outcome.result for outcome in outcomes} == {b"ok"}


async def test_no_call_waits_for_a_slot_where_none_may(world: World) -> None:
    client = await world.client(max_concurrency=1, max_waiting=0)
    world.service.model_seconds = 1.0
    holder = world.start(invoke(client))
    await world.settle()
    outcome = await world.outcome(invoke(client))
    assert (type(outcome.result), outcome.seconds) == (errors.TooManyWaitingError, 0.0)
    assert (await world.outcomes(holder))[0].result == b"ok"
    assert (await world.outcome(invoke(client))).result == b"ok"


async def test_no_call_waits_for_the_service_where_none_may(world: World) -> None:
    """A call backs off once or twice, as long as it has not found out that the service is ill."""
    client = await world.client(max_waiting=0)
    world.service.fall_ill("503")
    outcome = await world.outcome(invoke(client))
    assert (type(outcome.result), outcome.result.attempts) == (errors.ServiceUnavailable, 3)
    assert outcome.seconds < 1.0
    assert outcome.result.waited.probe == 0.0
    assert nothing_is_left(client)


async def test_a_client_in_which_none_may_wait_finds_out_that_the_service_is_back(world: World) -> None:
    client = await world.client(max_waiting=0)
    world.service.fall_ill("503", 10.0)
    assert (await world.outcome(invoke(client))).failed
    for _ in range(30):
        await world.advance(0.5)
        outcome = await world.outcome(invoke(client))
    assert outcome.result == b"ok"
    assert nothing_is_left(client)


async def test_newcomers_do_not_take_the_place_of_the_call_that_probes(world: World) -> None:
    client = await world.client(max_waiting=2)
    world.service.fall_ill("503", 10.0)
    first = [world.start(invoke(client)) for _ in range(2)]
    await world.advance(1.0)
    assert client.statistics().endpoints["llm"].held_back == 2
    # From now on a probe is under way most of the time.
    world.service.refusal_seconds = 3.0
    newcomers = []
    for _ in range(16):
        await world.advance(0.5)
        newcomers.append(await world.outcome(invoke(client)))
    assert {type(outcome.result) for outcome in newcomers} == {errors.TooManyWaitingError}
    assert [outcome.result for outcome in await world.outcomes(*first)] == [b"ok"] * 2


# Calls that fail for their own sake


def poison(service: Service, answer: Response) -> None:
    """Answer every request for one model so, and carry out all others."""

    async def answered(request: RecordedRequest) -> Response | None:
        if request.header("X-Amzn-SageMaker-Target-Model") == "poison":
            return answer
        return await service(request)

    service.server.answer = answered


def invoke_poison(client: Client) -> Coroutine[Any, Any, Any]:
    return client.invoke_endpoint(EndpointName="llm", TargetModel="poison", Body=b"1,2")


async def test_a_call_that_always_fails_does_not_hold_back_the_others(world: World) -> None:
    client = await world.client()
    poison(world.service, error(500, "InternalFailure"))
    bad = world.start(invoke_poison(client.with_options(patience=60.0)))
    await world.advance(2.0)
    for _ in range(20):
        outcome = await world.outcome(invoke(client))
        assert outcome.result == b"ok"
        # The longest pause between two probes.
        assert outcome.seconds <= 5.0
        await world.advance(1.0)
    assert type((await world.outcomes(bad))[0].result) is errors.InternalFailure
    assert nothing_is_left(client)


async def test_a_call_that_always_fails_beside_others_that_are_at_work_makes_no_outage(world: World) -> None:
    client = await world.client()
    world.service.model_seconds = 30.0
    poison(world.service, error(500, "InternalFailure"))
    at_work = [world.start(invoke(client)) for _ in range(4)]
    bad = world.start(invoke_poison(client))
    await world.advance(5.0)
    assert client.statistics().endpoints["llm"].illness is None
    newcomers = [world.start(invoke(client)) for _ in range(30)]
    for outcome in await world.outcomes(*at_work, *newcomers):
        assert outcome == (b"ok", pytest.approx(30.0))
    assert (await world.outcomes(bad))[0].failed


async def test_a_success_of_a_call_that_was_sent_before_an_outage_has_the_target_probed(world: World) -> None:
    client = await world.client()
    world.service.model_seconds = 12.0
    at_work = world.start(invoke(client))
    await world.settle()
    world.service.fall_ill("503")
    waiting = [world.start(invoke(client)) for _ in range(20)]
    await world.advance(11.0)
    assert client.statistics().endpoints["llm"].illness == "outage"
    world.service.recover()
    world.service.model_seconds = 0.0
    assert (await world.outcomes(at_work))[0].result == b"ok"
    outcomes = await world.outcomes(*waiting)
    assert {outcome.result for outcome in outcomes} == {b"ok"}
    # The next probe would have come after a quarter of the outage's age.
    assert max(outcome.seconds for outcome in outcomes) <= 12.2


async def test_a_refusal_for_missing_capacity_is_not_a_recovery(world: World) -> None:
    """Calls that do not wait for capacity ask at the same time, and are refused like the probe."""
    client = await world.client(wait_for_capacity=60.0)
    message = "Inference Component has no capacity to process this request. Wait."
    body = json.dumps({"Message": message}).encode()
    world.service.server.answer = lambda request: Response(400, [("x-amzn-errortype", "ValidationError")], body)
    waiting = [world.start(invoke(client)) for _ in range(50)]
    impatient = client.with_options(wait_for_capacity=None)
    for _ in range(60):
        await world.advance(1.0)
        assert (await world.outcome(invoke(impatient))).failed
    outcomes = await world.outcomes(*waiting)
    assert {type(outcome.result) for outcome in outcomes} == {errors.NoCapacityError}
    assert client.statistics().attempts <= 1 + 50 + 60 + 12
    assert nothing_is_left(client)


async def test_successes_of_calls_that_count_attempts_raise_a_lowered_limit_again(world: World) -> None:
    client = await world.client(max_concurrency=64)
    world.service.model_seconds = 0.05
    world.service.fall_ill("503", 3.0)
    await world.outcomes(*[world.start(invoke(client)) for _ in range(10)])
    assert client.statistics().endpoints["llm"].max_concurrency < 64
    standard = client.with_options(retry=RetryPolicy(mode="standard"))
    await world.outcomes(*[world.start(invoke(standard)) for _ in range(640)])
    assert client.statistics().endpoints["llm"].max_concurrency == 64


async def test_a_call_that_becomes_the_prober_has_no_more_time_for_capacity_than_before(world: World) -> None:
    client = await world.client(wait_for_capacity=30.0)
    message = "Inference Component has no capacity to process this request. Wait."
    body = json.dumps({"Message": message}).encode()
    world.service.server.answer = lambda request: Response(400, [("x-amzn-errortype", "ValidationError")], body)
    first = world.start(invoke(client.with_options(wait_for_capacity=600.0)))
    await world.advance(1.0)
    second = world.start(invoke(client))
    await world.advance(10.0)
    first.cancel()
    (outcome,) = await world.outcomes(second)
    assert type(outcome.result) is errors.NoCapacityError
    assert outcome.seconds == pytest.approx(30.0, abs=EXACT)
    assert outcome.result.waited.capacity + (outcome.result.waited.attempt or 0.0) == pytest.approx(30.0, abs=0.01)


# What is counted, and what observers see


async def test_statistics_count_waits_and_failures(world: World) -> None:
    client = await world.client(max_concurrency=10)
    world.service.fall_ill("503", 5.0)
    tasks = [world.start(invoke(client)) for _ in range(30)]
    await world.advance(1.0)
    endpoint = client.statistics().endpoints["llm"]
    assert (endpoint.illness, endpoint.held_back, endpoint.in_use, endpoint.waiting) == ("outage", 30, 0, 0)
    world.service.model_seconds = 0.5
    outcomes = await world.outcomes(*tasks)
    assert {outcome.result for outcome in outcomes} == {b"ok"}
    statistics = client.statistics()
    endpoint = statistics.endpoints["llm"]
    assert (endpoint.illness, endpoint.held_back, endpoint.in_use, endpoint.waiting) == (None, 0, 0, 0)
    refused = world.service.refused[LLM]
    assert statistics.failures == {"ServiceUnavailable": refused}
    assert statistics.retries == {"transient": refused}
    assert (statistics.calls, statistics.attempts) == (1 + 30, 1 + 30 + refused)
    assert set(statistics.waited) == {"probe", "slot", "back_off"}
    # All that takes time here is waiting, and the answers of half a second.
    assert sum(statistics.waited.values()) + 30 * 0.5 == pytest.approx(sum(outcome.seconds for outcome in outcomes))
    # From five seconds on, and up to a probe later.
    assert 30 * 5.0 <= statistics.waited["probe"] + statistics.waited["back_off"] <= 30 * 6.5
    assert statistics.waited["slot"] > 10 * 0.5


async def test_failures_are_counted_by_their_class(world: World) -> None:
    client = await world.client(patience=0)
    counts: Counter[str] = Counter()
    for illness in [*ILLNESSES, "503", "reset"]:
        world.service.fall_ill(illness)
        outcome = await world.outcome(invoke(client))
        world.service.recover()
        await world.settle()
        counts[type(outcome.result).__name__] += 1
    statistics = client.statistics()
    assert statistics.failures == counts
    assert counts.total() == len(ILLNESSES) + 2
    assert statistics.throttles == 2
    assert statistics.waited == {}


async def test_observers_hear_how_each_wait_ended(world: World) -> None:
    seen: list[Event] = []
    client = await world.client(observers=[seen.append])
    seen.clear()
    world.service.fall_ill("503", 5.0)
    patient = [world.start(invoke(client)) for _ in range(3)]
    await world.advance(1.0)
    cancelled = asyncio.create_task(invoke(client))
    late = world.start(invoke(client.with_options(deadline=2.0)))
    impatient = world.start(invoke(client.with_options(patience=1.5)))
    await world.advance(1.0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await world.outcomes(*patient, late, impatient)
    waits = [event for event in seen if isinstance(event, OutageWaited)]
    durations = {outcome: [wait.duration for wait in waits if wait.outcome == outcome] for outcome in OUTCOMES}
    # Each takes its turn in probing and waits again; when one gets through, the others need not ask.
    assert sum(durations["timeout"]) <= 1.5
    assert len(durations["timeout"]) == 1
    assert len(durations["abandoned"]) == 2
    assert len(durations["recovered"]) == 2
    assert len(durations["probe"]) >= 5
    statistics = client.statistics()
    assert sum(wait.duration for wait in waits) == pytest.approx(statistics.waited["probe"])
    delays = [event.delay for event in seen if isinstance(event, RetryScheduled)]
    assert sum(delays) == pytest.approx(statistics.waited["back_off"])
    assert len(delays) == world.service.refused[LLM] == statistics.failures["ServiceUnavailable"]
    # Each call's own waits, from the first to the last.
    by_call: Counter[str] = Counter()
    for wait in waits:
        assert (wait.operation, wait.endpoint_name) == ("InvokeEndpoint", "llm")
        by_call[wait.invocation_id] += wait.duration
    assert len(by_call) == 6


OUTCOMES = ("recovered", "probe", "timeout", "abandoned")


async def test_observers_hear_of_waits_that_end_with_the_client(world: World) -> None:
    seen: list[Event] = []
    client = await world.client(observers=[seen.append])
    world.service.fall_ill("503")
    tasks = [world.start(call(client)) for call in (invoke, read_stream) for _ in range(10)]
    await world.advance(2.0)
    before = len(seen)
    await client.close()
    await world.outcomes(*tasks)
    waits = [event for event in seen[before:] if isinstance(event, OutageWaited)]
    assert [wait.outcome for wait in waits] == ["abandoned"] * 20
    assert nothing_is_left(client)


# AWS's retry modes


async def test_mode_adaptive_slows_calls_that_are_throttled(world: World) -> None:
    client = await world.client(retry={"mode": "adaptive"})
    world.service.fall_ill("ThrottlingException")
    outcomes = [await world.outcome(invoke(client)) for _ in range(10)]
    for outcome in outcomes:
        assert (type(outcome.result), outcome.result.attempts) == (errors.ThrottlingError, 3)
        waited = outcome.result.waited
        assert waited.rate + waited.back_off == pytest.approx(outcome.seconds, abs=EXACT)
        assert outcome.result.waited.rate > 0
    rates = [outcome.result.waited.rate for outcome in outcomes]
    assert client.statistics().waited["rate"] == pytest.approx(sum(rates))
    # The rate falls to half a request per second.
    assert sum(outcome.seconds for outcome in outcomes[5:]) >= 5 * (3 - 1) / 0.5
    assert client.statistics().throttles == world.service.requests == 30


@pytest.mark.parametrize(("mode", "attempts"), [("standard", 3), ("legacy", 5), ("adaptive", 3)])
@pytest.mark.parametrize("illness", ["503", "ThrottlingException", "refused"])
async def test_modes_that_count_attempts_do_not_wait_for_the_service(
    world: World, mode: str, attempts: int, illness: str
) -> None:
    client = await world.client(retry={"mode": mode}, max_concurrency=4)
    world.service.fall_ill(illness)
    tasks = [world.start(invoke(client)) for _ in range(12)]
    await world.settle()
    while not all(task.done() for task in tasks):
        endpoint = client.statistics().endpoints["llm"]
        assert (endpoint.illness, endpoint.held_back) == (None, 0)
        # A slot is kept through back-off.
        assert (endpoint.in_use, endpoint.waiting) == (
            min(4, left := sum(not task.done() for task in tasks)),
            max(0, left - 4),
        )
        await world.advance(0.2)
    for task in tasks:
        assert type(task.result().result) is TYPES[illness]
        assert task.result().result.attempts == attempts
    assert set(client.statistics().waited) - {"rate"} == {"back_off", "slot"}
