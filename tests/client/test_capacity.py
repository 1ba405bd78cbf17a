"""Waiting for capacity: one call asks and the others wait for it. Time is virtual."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

import aiosmrt
from aiosmrt import Client, NoCapacityError, RetryPolicy, errors
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.events import AttemptStarted, CapacityWaited, Event
from aiosmrt.local import EndpointConfiguration, InferenceComponent, LocalRuntime, faults
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.recording_server import RecordedRequest, RecordingServer, Response
from tests.support.runtime import echo, local_runtime
from tests.support.virtual_time import VirtualTime

MESSAGE = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress "
    "(if configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)


def refusal(code: str, message: str | None, status: int = 400, **headers: str) -> Response:
    return Response(
        status,
        [("x-amzn-errortype", code), *((name.replace("_", "-"), value) for name, value in headers.items())],
        json.dumps({"Message": message}).encode(),
    )


NO_CAPACITY = refusal("ValidationError", MESSAGE, x_amzn_requestid="of-the-refusal")
SUCCESS = {
    "invocations": Response(200, (), b"ok"),
    "async-invocations": Response(202, (), b'{"InferenceId": "1"}'),
    "invocations-response-stream": Response(200, (), encode_payload_part(b"ok")),
}

Key = tuple[str, str | None, str | None]
ADAPTER: Key = ("llm", "adapter", None)


@dataclass
class Service:
    """Refuses calls to targets that are scaled to zero, and counts the calls to each target.

    ``instead`` holds answers for the next requests of any kind; an event among them is waited for.
    """

    scaled_to_zero: set[Key] = field(default_factory=set)
    instead: list[Response | asyncio.Event | None] = field(default_factory=list)
    seen: Counter[Key] = field(default_factory=Counter)

    async def __call__(self, request: RecordedRequest) -> Response | None:
        _, _, name, operation = request.path.split("/")
        key = (
            name,
            request.header("X-Amzn-SageMaker-Inference-Component"),
            request.header("X-Amzn-SageMaker-Target-Variant"),
        )
        self.seen[key] += 1
        if self.instead:
            answer = self.instead.pop(0)
            if not isinstance(answer, asyncio.Event):
                return answer
            await answer.wait()
        return NO_CAPACITY if key in self.scaled_to_zero else SUCCESS[operation]


@pytest.fixture
def service(server: RecordingServer) -> Service:
    server.answer = service = Service({ADAPTER})
    return service


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


def call(client: Client, key: Key = ADAPTER, body: bytes = b"1,2") -> Coroutine[Any, Any, Any]:
    name, component, variant = key
    return client.invoke_endpoint(EndpointName=name, InferenceComponentName=component, TargetVariant=variant, Body=body)


Task = asyncio.Task[Any]


def start(client: Client, count: int = 1, key: Key = ADAPTER) -> list[Task]:
    return [asyncio.create_task(call(client, key)) for _ in range(count)]


async def prober_of(client: Client, time: VirtualTime) -> Task:
    """A call that was refused once and is in its first pause."""
    (prober,) = start(client)
    await time.set_to(1.0)
    return prober


async def waiters_of(client: Client, time: VirtualTime, count: int, seconds: float) -> list[Task]:
    """Calls that wait in line behind it."""
    before = time.pending
    waiters = start(client, count)
    await time.set_to(*before, *[seconds] * count)
    return waiters


def nothing_waits(client: Client, time: VirtualTime) -> bool:
    statistics = client.statistics()
    held_back = {endpoint.held_back for endpoint in statistics.endpoints.values()} - {0}
    return (statistics.in_use, statistics.waiting, held_back, time.pending) == (0, 0, set(), [])


# Alone


async def test_no_call_waits_unless_asked_to(client: Client, service: Service, server: RecordingServer) -> None:
    with pytest.raises(NoCapacityError) as caught:
        await call(client)
    assert caught.value.attempts == len(server.requests) == 1
    assert client.statistics().endpoints["llm"].illness is None


async def read(client: Client) -> bytes:
    return await (await call(client))["Body"].read()


async def queue(client: Client) -> str:
    result = await client.invoke_endpoint_async(EndpointName="llm", Body=b"1,2")
    return result["InferenceId"]


async def read_stream(client: Client, key: Key = ADAPTER) -> list[bytes]:
    name, component, variant = key
    result = await client.invoke_endpoint_with_response_stream(
        EndpointName=name, InferenceComponentName=component, TargetVariant=variant, Body=b"1,2"
    )
    async with result["Body"] as stream:
        return [event["PayloadPart"]["Bytes"] async for event in stream]


@pytest.mark.parametrize(
    ("invoke", "result"), [(read, b"ok"), (queue, "1"), (read_stream, [b"ok"])], ids=["plain", "async", "stream"]
)
@pytest.mark.parametrize(
    "options", [{}, {"deadline": 3600.0}, {"observers": [lambda event: None]}], ids=["", "deadline", "observed"]
)
async def test_a_call_asks_again_until_there_is_capacity(
    make_client: MakeClient,
    server: RecordingServer,
    service: Service,
    time: VirtualTime,
    invoke: Callable[[Client], Coroutine[Any, Any, Any]],
    result: Any,
    options: dict[str, Any],
) -> None:
    service.scaled_to_zero.add(("llm", None, None))
    client = time.drive(make_client(wait_for_capacity=600.0, **options))
    under_way = asyncio.create_task(invoke(client))
    for pause in (1.0, 2.0, 4.0, 8.0, 15.0, 15.0):
        await time.set_to(pause)
        assert client.statistics().in_use == 0, "a call that waits holds no slot"
        await time.advance(pause)
    await time.set_to(15.0)
    service.scaled_to_zero.clear()
    await time.advance(15.0)
    assert await under_way == result
    assert nothing_waits(client, time)
    # Each is an attempt to the service, and none to the retry policy.
    counted = [str(request.header("amz-sdk-request")).partition("attempt=")[2] for request in server.requests]
    assert counted == [str(number) for number in range(1, 9)]
    assert len({request.header("amz-sdk-invocation-id") for request in server.requests}) == 1
    statistics = client.statistics()
    assert (statistics.calls, statistics.attempts, statistics.retries) == (1, 8, {"no_capacity": 7})


async def test_the_result_counts_the_attempts(make_client: MakeClient, service: Service, time: VirtualTime) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    service.scaled_to_zero.clear()
    await time.advance(1.0)
    assert (await prober)["ResponseMetadata"]["RetryAttempts"] == 1


async def test_pauses_are_random_and_heed_the_services_hint(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    seams.set_random(client, lambda: 0.5)
    service.instead = [NO_CAPACITY, refusal("ValidationError", MESSAGE, x_amz_retry_after="4000")]
    (prober,) = start(client)
    await time.set_to(0.75)
    await time.advance(0.75)
    await time.set_to(4.0)
    service.scaled_to_zero.clear()
    await time.advance(4.0)
    await prober


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "60", True])
def test_an_invalid_wait_is_refused(value: Any) -> None:
    with pytest.raises(errors.ParamValidationError, match="wait_for_capacity must be a positive number of seconds"):
        Client("eu-central-1", wait_for_capacity=value)
    with pytest.raises(errors.ParamValidationError, match="wait_for_capacity"):
        Client("eu-central-1").with_options(wait_for_capacity=value)


async def test_a_view_has_its_own_wait(make_client: MakeClient, service: Service, time: VirtualTime) -> None:
    client = time.drive(make_client())
    patient = client.with_options(wait_for_capacity=600.0)
    prober = await prober_of(patient, time)
    # Neither the client nor a view that no longer waits is held back, and their answers change nothing.
    for impatient in (client, patient.with_options(wait_for_capacity=None)):
        with pytest.raises(NoCapacityError) as caught:
            await call(impatient)
        assert caught.value.attempts == 1
    assert time.pending == [1.0]
    service.scaled_to_zero.clear()
    await time.advance(1.0)
    await prober


# Together


async def test_one_asks_and_the_others_wait(make_client: MakeClient, service: Service, time: VirtualTime) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 50, 600.0)
    assert (client.statistics().in_use, client.statistics().waiting) == (0, 0)
    for pause in (1.0, 2.0, 4.0, 8.0, 15.0):
        assert time.pending[0] == pause
        await time.advance(pause)
        await time.set_to(min(2 * pause, 15.0), *[600.0 - (time.now - 1000.0)] * 50)
    assert service.seen[ADAPTER] == 6
    service.scaled_to_zero.clear()
    await time.advance(15.0)
    for result in await asyncio.gather(prober, *waiters):
        assert await result["Body"].read() == b"ok"
    assert service.seen[ADAPTER] == 7 + 50
    assert client.statistics().retries == {"no_capacity": 6}
    assert nothing_waits(client, time)


async def test_of_many_refused_together_only_one_asks_again(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    all_are_there = asyncio.Event()
    service.instead = [all_are_there] * 30
    callers = start(client, 30)
    await _seen(service, 30)
    all_are_there.set()
    await time.set_to(1.0, *[600.0] * 29)
    await time.advance(1.0)
    await time.set_to(2.0, *[599.0] * 29)
    assert service.seen[ADAPTER] == 31
    service.scaled_to_zero.clear()
    await time.advance(2.0)
    await asyncio.gather(*callers)
    assert service.seen[ADAPTER] == 31 + 30
    assert client.statistics().retries == {"no_capacity": 1 + 30}
    assert nothing_waits(client, time)


async def test_queued_calls_send_nothing_once_capacity_is_missing(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    """A map over very many items: all of its calls were in the queue before the first one was refused."""
    client = time.drive(make_client(wait_for_capacity=600.0, max_concurrency=2))
    callers = start(client, 40)
    await time.set_to(1.0, *[600.0] * 39)
    assert service.seen[ADAPTER] == 2
    service.scaled_to_zero.clear()
    await time.advance(1.0)
    await asyncio.gather(*callers)
    assert service.seen[ADAPTER] == 2 + 40
    assert nothing_waits(client, time)


async def test_streams_and_calls_wait_for_each_other(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    stream = asyncio.create_task(read_stream(client))
    await time.set_to(1.0)
    (plain,) = await waiters_of(client, time, 1, 600.0)
    stream.cancel()
    await time.set_to(1.0)
    waiting = asyncio.create_task(read_stream(client))
    await time.set_to(1.0, 600.0)
    service.scaled_to_zero.clear()
    await time.advance(1.0)
    assert await (await plain)["Body"].read() == b"ok"
    assert await waiting == [b"ok"]
    assert nothing_waits(client, time)


OTHERS: dict[str, Key] = {
    "component": ("llm", "other", None),
    "variant": ("llm", "adapter", "blue"),
    "endpoint": ("churn", "adapter", None),
    "none": ("llm", None, None),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_what_has_capacity_is_not_held_back(
    make_client: MakeClient, service: Service, time: VirtualTime, other: Key
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0, max_concurrency=1))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 3, 600.0)
    for result in await asyncio.gather(*start(client, 5, other)):
        assert await result["Body"].read() == b"ok"
    assert await read_stream(client, other) == [b"ok"]
    assert service.seen[ADAPTER] == 1
    service.scaled_to_zero.clear()
    await time.advance(1.0)
    await asyncio.gather(prober, *waiters)
    assert nothing_waits(client, time)


async def test_each_target_has_a_prober(make_client: MakeClient, service: Service, time: VirtualTime) -> None:
    service.scaled_to_zero.update(OTHERS.values())
    client = time.drive(make_client(wait_for_capacity=600.0))
    callers = [caller for key in (ADAPTER, *OTHERS.values()) for caller in start(client, 2, key)]
    await time.set_to(*[1.0] * 5, *[600.0] * 5)
    service.scaled_to_zero.remove(ADAPTER)
    await time.advance(1.0)
    await asyncio.gather(*callers[:2])
    await time.set_to(*[2.0] * 4, *[599.0] * 4)
    service.scaled_to_zero.clear()
    await time.advance(2.0)
    await asyncio.gather(*callers)
    assert nothing_waits(client, time)


async def test_a_retry_waits_too(make_client: MakeClient, service: Service, time: VirtualTime) -> None:
    """Between two attempts of a throttled call, another call learns that capacity is missing."""
    client = time.drive(make_client(wait_for_capacity=600.0, retry=RetryPolicy(throttling_base_delay=30.0)))
    service.instead = [refusal("ThrottlingException", None)]
    (throttled,) = start(client)
    await time.set_to(20.0)
    (prober,) = start(client)
    await time.set_to(1.0, 20.0)
    for pause, next_pause, throttled_for in ((1.0, 2.0, 19.0), (2.0, 4.0, 17.0), (4.0, 8.0, 13.0), (8.0, 15.0, 5.0)):
        await time.advance(pause)
        await time.set_to(next_pause, throttled_for)
    await time.advance(5.0)
    await time.set_to(10.0, 600.0)
    assert service.seen[ADAPTER] == 1 + 5
    assert client.statistics().in_use == 0
    service.scaled_to_zero.clear()
    await time.advance(10.0)
    await asyncio.gather(throttled, prober)
    assert client.statistics().retries == {"throttling": 1, "no_capacity": 5}
    assert nothing_waits(client, time)


# Time that is up


async def test_a_prober_uses_all_of_its_time(make_client: MakeClient, service: Service, time: VirtualTime) -> None:
    client = time.drive(make_client(wait_for_capacity=10.0))
    prober = await prober_of(client, time)
    # at 1, 3 and 7 s; then once more at the end of its time, where the pause would have been 8 s
    for pause in (1.0, 2.0, 4.0, 3.0):
        await time.set_to(pause)
        await time.advance(pause)
    with pytest.raises(NoCapacityError) as caught:
        await prober
    error = caught.value
    assert time.now == 1010.0
    assert (error.operation, error.endpoint_name, error.attempts) == ("InvokeEndpoint", "llm", 5)
    assert (error.code, error.status, error.message) == ("ValidationError", 400, MESSAGE)
    assert error.response["ResponseMetadata"]["RetryAttempts"] == 4
    assert "MaxAttemptsReached" not in error.response["ResponseMetadata"]
    assert error.__context__ is None
    assert nothing_waits(client, time)


async def test_a_call_that_sent_nothing_raises_the_probers_error(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    hurried = client.with_options(wait_for_capacity=0.5)
    first, second = await waiters_of(hurried, time, 2, 0.5)
    await time.advance(0.5)
    found = []
    for waiter in (first, second):
        with pytest.raises(NoCapacityError) as caught:
            await waiter
        found.append(caught.value)
    for error in found:
        assert (error.operation, error.endpoint_name, error.attempts) == ("InvokeEndpoint", "llm", 0)
        assert (error.code, error.status, error.message) == ("ValidationError", 400, MESSAGE)
        assert error.request_id == "of-the-refusal"
        assert error.response["ResponseMetadata"]["RetryAttempts"] == 0
    assert found[0].response is not found[1].response
    assert service.seen[ADAPTER] == 1
    service.scaled_to_zero.clear()
    await time.advance(0.5)
    await prober
    assert nothing_waits(client, time)


async def test_a_call_that_was_refused_raises_its_own_error(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    hurried = client.with_options(wait_for_capacity=0.5)
    let_in = asyncio.Event()
    service.instead = [let_in]
    (late,) = start(hurried)
    await _seen(service, 1)
    prober = await prober_of(client, time)
    let_in.set()
    await time.set_to(0.5, 1.0)
    await time.advance(0.5)
    with pytest.raises(NoCapacityError) as caught:
        await late
    assert caught.value.attempts == 1
    assert caught.value.response["ResponseMetadata"]["RetryAttempts"] == 0
    prober.cancel()
    await asyncio.wait([prober])
    assert nothing_waits(client, time)


async def _seen(service: Service, count: int) -> None:
    while service.seen[ADAPTER] < count:
        await asyncio.sleep(0)


async def test_when_a_probers_time_is_up_the_next_one_goes_on(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client.with_options(wait_for_capacity=3.5), time)
    waiters = await waiters_of(client, time, 2, 600.0)
    for pause in (1.0, 2.0):
        await time.advance(pause)
        await time.set_to(0.5 if pause == 2.0 else 2.0, *[600.0 - (time.now - 1000.0)] * 2)
    # Half a second after the last refusal is too early to ask once more.
    assert service.seen[ADAPTER] == 3
    await time.advance(0.5)
    with pytest.raises(NoCapacityError) as caught:
        await prober
    assert caught.value.attempts == 3
    # The pause of 4 s goes on from where it was.
    await time.set_to(3.5, 596.5)
    service.scaled_to_zero.clear()
    await time.advance(3.5)
    await asyncio.gather(*waiters)
    assert service.seen[ADAPTER] == 5
    assert nothing_waits(client, time)


async def test_calls_whose_time_ends_together_do_not_ask_one_by_one(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=2.5))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 19, 2.5)
    await time.advance(1.0)
    await time.set_to(*[1.5] * 20)
    assert service.seen[ADAPTER] == 2
    await time.advance(1.5)
    outcomes = await asyncio.gather(prober, *waiters, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {NoCapacityError}
    # the prober's last one
    assert service.seen[ADAPTER] == 3
    assert nothing_waits(client, time)


async def test_the_time_is_that_of_all_waits_together(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    """A call that was let in once, and then is refused again, has what it did not use."""
    client = time.drive(make_client(wait_for_capacity=10.0, retry=RetryPolicy(throttling_base_delay=100.0)))
    prober = await prober_of(client, time)
    (waiter,) = await waiters_of(client, time, 1, 10.0)
    # The probe succeeds; the other one is throttled, and 20 s later the component is scaled in again.
    service.instead = [SUCCESS["invocations"], refusal("ThrottlingException", None)]
    await time.advance(1.0)
    await prober
    await time.set_to(20.0)
    await time.advance(20.0)
    for pause in (1.0, 2.0, 4.0, 2.0):
        await time.set_to(pause)
        await time.advance(pause)
    with pytest.raises(NoCapacityError):
        await waiter
    assert time.now == 1000.0 + 1.0 + 20.0 + 9.0
    assert nothing_waits(client, time)


# Probers that leave


async def test_a_cancelled_prober_is_replaced_at_once(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    first, second = await waiters_of(client, time, 2, 600.0)
    await time.advance(0.25)
    prober.cancel()
    # the rest of the pause, and the one who still waits in line
    await time.set_to(0.75, 599.75)
    first.cancel()
    await time.set_to(0.75)
    service.scaled_to_zero.clear()
    await time.advance(0.75)
    await second
    assert service.seen[ADAPTER] == 2
    assert nothing_waits(client, time)


async def test_a_probe_that_is_cancelled_is_sent_by_the_next(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 2, 600.0)
    never = asyncio.Event()
    service.instead = [never]
    await time.advance(1.0)
    await _seen(service, 2)
    service.scaled_to_zero.clear()
    prober.cancel()
    # Nothing is known yet of what was asked last, so it is asked again without a pause.
    await asyncio.gather(*waiters)
    assert service.seen[ADAPTER] == 4
    never.set()
    assert nothing_waits(client, time)


async def _seen_of(service: Service, key: Key) -> None:
    while not service.seen[key]:
        await asyncio.sleep(0)


@pytest.mark.parametrize("pending", ["pause", "probe"])
async def test_closing_the_client_ends_every_wait(
    make_client: MakeClient, service: Service, time: VirtualTime, pending: str
) -> None:
    seen: list[Event] = []
    client = time.drive(make_client(wait_for_capacity=600.0, observers=[seen.append]))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client.with_options(read_timeout=1.0), time, 3, 600.0)
    waiters.append(asyncio.create_task(read_stream(client)))
    await time.set_to(1.0, *[600.0] * 4)
    never = asyncio.Event()
    if pending == "probe":
        service.instead = [never]
        await time.advance(1.0)
        await _seen(service, 2)
    await client.close()
    for task in (prober, *waiters):
        with pytest.raises(aiosmrt.ClientStateError, match="closed"):
            await task
    assert service.seen[ADAPTER] == (2 if pending == "probe" else 1)
    never.set()
    assert [event.outcome for event in seen if isinstance(event, CapacityWaited)] == ["abandoned"] * 5
    assert nothing_waits(client, time)


async def test_closing_the_client_while_a_prober_lets_its_time_pass(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=0.75))
    (prober,) = start(client)
    await time.set_to(0.75)
    await client.close()
    with pytest.raises(aiosmrt.ClientStateError, match="closed"):
        await prober
    assert nothing_waits(client, time)


# What a probe is answered

ENDS_THE_WAIT: dict[str, tuple[Response, type[errors.AiosmrtError]]] = {
    "model error": (refusal("ModelError", "bad input", 424), errors.ModelError),
    "no such component": (
        refusal("ValidationError", "Inference Component adapter of account 123456789012 not found."),
        errors.ValidationError,
    ),
    "no such endpoint": (
        refusal("ValidationError", "Endpoint llm of account 123456789012 not found."),
        errors.EndpointNotFoundError,
    ),
    "access denied": (refusal("AccessDeniedException", "no", 403), errors.ServiceError),
    "broken off": (Response(declared_length=9, cut=True), errors.ResponseStreamingError),
    "loading": (refusal("ModelNotReadyException", "wait", 429), errors.ModelNotReadyException),
}
INCONCLUSIVE: dict[str, tuple[Response | None, type[errors.AiosmrtError]]] = {
    "throttling": (refusal("ThrottlingException", None), errors.ThrottlingError),
    "unavailable": (refusal("ServiceUnavailable", "later", 503), errors.ServiceUnavailable),
    "bad gateway": (Response(502, (), b"<html></html>"), errors.ServiceError),
    "reset": (None, errors.TransportError),
}
ONCE = RetryPolicy(max_attempts=1, retry_stale_connections=False)


@pytest.mark.parametrize(("answer", "error"), ENDS_THE_WAIT.values(), ids=ENDS_THE_WAIT)
async def test_an_answer_that_lets_the_others_go_on(
    make_client: MakeClient,
    service: Service,
    time: VirtualTime,
    answer: Response,
    error: type[errors.AiosmrtError],
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0, retry=ONCE))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 3, 600.0)
    service.scaled_to_zero.clear()
    all_are_there = asyncio.Event()
    service.instead = [answer, *[all_are_there] * 3]
    await time.advance(1.0)
    with pytest.raises(error) as caught:
        await prober
    assert caught.value.attempts == 2
    # together, and not one after the other
    await _seen(service, 2 + 3)
    all_are_there.set()
    await asyncio.gather(*waiters)
    assert service.seen[ADAPTER] == 2 + 3
    assert nothing_waits(client, time)


@pytest.mark.parametrize(("answer", "error"), INCONCLUSIVE.values(), ids=INCONCLUSIVE)
async def test_an_inconclusive_answer_makes_the_next_call_ask(
    make_client: MakeClient,
    service: Service,
    time: VirtualTime,
    answer: Response | None,
    error: type[errors.AiosmrtError],
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0, retry=ONCE))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 3, 600.0)
    service.instead = [answer]
    await time.advance(1.0)
    with pytest.raises(error):
        await prober
    # The next one asks after a pause; two wait for it.
    await time.set_to(2.0, 599.0, 599.0)
    assert service.seen[ADAPTER] == 2
    service.scaled_to_zero.clear()
    await time.advance(2.0)
    await asyncio.gather(*waiters)
    assert nothing_waits(client, time)


async def test_a_prober_goes_on_whatever_else_it_is_answered(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    """No other call asks in the meantime, and its patience is that of waiting for capacity."""
    unavailable = refusal("ServiceUnavailable", "later", 503)
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 3, 600.0)
    service.instead = [NO_CAPACITY, unavailable, NO_CAPACITY, unavailable, unavailable]
    for pause in (1.0, 2.0, 4.0, 8.0, 15.0):
        await time.until(lambda pause=pause: time.pending[0] == pause)
        await time.advance(pause)
    await time.until(lambda: time.pending[0] == 15.0)
    service.scaled_to_zero.clear()
    await time.advance(15.0)
    assert (await prober)["ResponseMetadata"]["RetryAttempts"] == 6
    await asyncio.gather(*waiters)
    assert client.statistics().retries == {"no_capacity": 3, "transient": 3}
    assert nothing_waits(client, time)


async def test_a_prober_out_of_attempts_leaves_it_to_the_next(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    unavailable = refusal("ServiceUnavailable", "later", 503)
    client = time.drive(make_client(wait_for_capacity=600.0, retry=RetryPolicy(max_attempts=2)))
    prober = await prober_of(client, time)
    (waiter,) = await waiters_of(client, time, 1, 600.0)
    service.instead = [unavailable, unavailable]
    for pause in (1.0, 2.0):
        await time.until(lambda pause=pause: time.pending[0] == pause)
        await time.advance(pause)
    with pytest.raises(errors.ServiceUnavailable) as caught:
        await prober
    assert caught.value.response["ResponseMetadata"]["MaxAttemptsReached"]
    await time.set_to(4.0)
    service.scaled_to_zero.clear()
    await time.advance(4.0)
    await waiter
    assert nothing_waits(client, time)


async def test_a_probe_that_is_not_refused_soon_was_let_in(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    """A new copy's first inference may take a minute, and the others need not wait for its end."""
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    waiters = await waiters_of(client, time, 3, 600.0)
    service.scaled_to_zero.clear()
    slow = asyncio.Event()
    service.instead = [slow]
    await time.advance(1.0)
    await time.set_to(10.0, *[599.0] * 3)
    await time.advance(10.0)
    await asyncio.gather(*waiters)
    assert not prober.done()
    slow.set()
    assert await (await prober)["Body"].read() == b"ok"
    assert nothing_waits(client, time)


async def test_a_probe_that_is_refused_late_begins_anew(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    prober = await prober_of(client, time)
    slow = asyncio.Event()
    service.instead = [slow]
    await time.advance(1.0)
    await time.set_to(10.0)
    await time.advance(10.0)
    # Another one, let go on, is refused first and probes; the late one lines up behind it with what time it has left.
    waiter = await prober_of(client, time)
    slow.set()
    await time.set_to(1.0, 589.0)
    service.scaled_to_zero.clear()
    await time.advance(1.0)
    await asyncio.gather(prober, waiter)
    assert nothing_waits(client, time)


# Deadlines


@pytest.mark.parametrize("role", ["prober", "waiter"])
async def test_the_deadline_holds(
    make_client: MakeClient, service: Service, time: VirtualTime, virtual_time: VirtualTime, role: str
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0))
    others = []
    if role == "waiter":
        others.append(await prober_of(client, time))
    hurried = client.with_options(deadline=30.0)
    late = await prober_of(hurried, time) if role == "prober" else (await waiters_of(hurried, time, 1, 600.0))[0]
    await virtual_time.advance(30.0)
    with pytest.raises(errors.DeadlineExceededError) as caught:
        await late
    assert isinstance(caught.value.__cause__, NoCapacityError)
    assert caught.value.attempts == (1 if role == "prober" else 0)
    assert service.seen[ADAPTER] == 1
    for other in others:
        other.cancel()
        await asyncio.wait([other])
    assert nothing_waits(client, time)


async def test_the_deadline_names_what_went_before(
    make_client: MakeClient, service: Service, time: VirtualTime, virtual_time: VirtualTime
) -> None:
    client = time.drive(
        make_client(wait_for_capacity=600.0, deadline=30.0, retry=RetryPolicy(throttling_base_delay=0.1))
    )
    service.instead = [refusal("ThrottlingException", None)]
    (late,) = start(client)
    await time.set_to(0.1)
    await time.advance(0.1)
    await time.set_to(1.0)
    await virtual_time.advance(30.0)
    with pytest.raises(errors.DeadlineExceededError) as caught:
        await late
    assert isinstance(caught.value.__cause__, NoCapacityError)
    assert caught.value.attempts == caught.value.__cause__.attempts == 2
    assert nothing_waits(client, time)


# Streams that break


BROKEN = Response(200, (), encode_exception("InternalStreamFailure", b'{"Message": "again"}'))


@dataclass
class Reading:
    """A stream that broke off before its first part, and whose next attempt is refused for want of capacity."""

    stream: Any
    reader: asyncio.Task[list[bytes]]


async def parts_of(stream: Any) -> list[bytes]:
    return [event["PayloadPart"]["Bytes"] async for event in stream]


async def broken_stream(client: Client, service: Service, time: VirtualTime) -> Reading:
    service.scaled_to_zero.clear()
    service.instead = [BROKEN]
    result = await client.invoke_endpoint_with_response_stream(
        EndpointName="llm", InferenceComponentName="adapter", Body=b"1,2"
    )
    service.scaled_to_zero.add(ADAPTER)
    stream = result["Body"]
    return Reading(stream, asyncio.create_task(parts_of(stream)))


async def test_a_stream_waits_before_its_first_part(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0, retry=RetryPolicy(base_delay=0.0)))
    reading = await broken_stream(client, service, time)
    await time.set_to(0.0)
    await time.advance(0.0)
    await time.set_to(1.0)
    assert client.statistics().in_use == 0
    service.scaled_to_zero.clear()
    await time.advance(1.0)
    assert await reading.reader == [b"ok"]
    assert nothing_waits(client, time)


@pytest.mark.parametrize("role", ["prober", "waiter"])
async def test_closing_a_stream_ends_its_wait(
    make_client: MakeClient, service: Service, time: VirtualTime, role: str
) -> None:
    client = time.drive(make_client(wait_for_capacity=600.0, retry=RetryPolicy(base_delay=0.0)))
    reading = await broken_stream(client, service, time)
    await time.set_to(0.0)
    other = await prober_of_behind(client, time) if role == "waiter" else None
    await time.advance(0.0)
    await time.until(lambda: 0.0 not in time.pending and len(time.pending) == (2 if other else 1))
    seen = service.seen[ADAPTER]
    reading.stream.close()
    if other is None:
        await time.advance(1.0)
    assert await reading.reader == []
    assert service.seen[ADAPTER] == seen
    if other is not None:
        other.cancel()
        await asyncio.wait([other])
    assert nothing_waits(client, time)


async def prober_of_behind(client: Client, time: VirtualTime) -> Task:
    (prober,) = start(client)
    await time.set_to(0.0, 1.0)
    return prober


# What observers see


async def test_observers_hear_how_each_wait_ended(make_client: MakeClient, service: Service, time: VirtualTime) -> None:
    seen: list[Event] = []
    client = time.drive(make_client(wait_for_capacity=600.0, observers=[seen.append]))
    prober = await prober_of(client, time)
    cancelled, waiter = await waiters_of(client, time, 2, 600.0)
    (hurried,) = await waiters_of(client.with_options(wait_for_capacity=0.5), time, 1, 0.5)
    await time.advance(0.25)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await time.advance(0.25)
    await asyncio.wait([hurried])
    service.scaled_to_zero.clear()
    await time.advance(0.5)
    await asyncio.gather(prober, waiter)
    waits = [event for event in seen if isinstance(event, CapacityWaited)]
    assert [(wait.duration, wait.outcome) for wait in waits] == [
        (0.25, "abandoned"),
        (0.5, "timeout"),
        (1.0, "capacity"),
        (1.0, "capacity"),
    ]
    assert {(wait.operation, wait.endpoint_name) for wait in waits} == {("InvokeEndpoint", "llm")}
    assert len({wait.invocation_id for wait in waits}) == 4
    attempts = [event.attempt for event in seen if isinstance(event, AttemptStarted)]
    assert attempts == [1, 2, 1]


async def test_a_view_reports_the_end_of_its_time_once(
    make_client: MakeClient, service: Service, time: VirtualTime
) -> None:
    seen: list[Event] = []
    client = time.drive(make_client(wait_for_capacity=0.75, observers=[seen.append]))
    (prober,) = start(client)
    await time.set_to(0.75)
    await time.advance(0.75)
    with pytest.raises(NoCapacityError):
        await prober
    waits = [event for event in seen if isinstance(event, CapacityWaited)]
    assert [(wait.duration, wait.outcome) for wait in waits] == [(0.75, "timeout")]


# With a runtime


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    components = [InferenceComponent(echo, "busy"), InferenceComponent((), "idle")]
    endpoints = {"churn": echo, "llm": EndpointConfiguration(inference_components=components)}
    async with local_runtime(endpoints) as runtime:
        yield runtime


async def test_an_endpoint_that_scales_out(make_client: MakeClient, runtime: LocalRuntime, time: VirtualTime) -> None:
    client = time.drive(make_client(endpoint_url=runtime.url, wait_for_capacity=600.0))
    runtime.inject("churn", faults.no_capacity().next(3))
    callers = [asyncio.create_task(client.invoke_endpoint(EndpointName="churn", Body=b"%d" % n)) for n in range(1)]
    await time.set_to(1.0)
    callers += [asyncio.create_task(client.invoke_endpoint(EndpointName="churn", Body=b"%d" % n)) for n in range(1, 9)]
    await time.set_to(1.0, *[600.0] * 8)
    for pause in (1.0, 2.0):
        await time.advance(pause)
        await time.until(lambda pause=pause: time.pending[0] == 2 * pause)
    await time.advance(4.0)
    bodies = [await result["Body"].read() for result in await asyncio.gather(*callers)]
    assert bodies == [b"%d" % n for n in range(9)]
    assert sorted(record.attempt or 0 for record in runtime.requests) == [1] * 9 + [2, 3, 4]
    assert nothing_waits(client, time)


async def test_a_component_that_never_scales_out(
    make_client: MakeClient, runtime: LocalRuntime, time: VirtualTime
) -> None:
    client = time.drive(make_client(endpoint_url=runtime.url, wait_for_capacity=1.0, max_concurrency=1))
    (idle,) = start(client, key=("llm", "idle", None))
    await time.set_to(1.0)
    (busy,) = start(client, key=("llm", "busy", None))
    assert await (await busy)["Body"].read() == b"1,2"
    await time.advance(1.0)
    with pytest.raises(NoCapacityError) as caught:
        await idle
    assert caught.value.attempts == 2
    assert nothing_waits(client, time)
