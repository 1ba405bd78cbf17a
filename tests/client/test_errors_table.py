"""The table of errors, row by row, through the client against a server that sends exactly what the row describes.

Each row: what the service (or the network) does, the type that is raised, the number of requests that the server has
counted, and the waits between them. The random number of the back-off is 0.5 and waits are noted instead of waited.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
import pytest

import aiosmrt
from aiosmrt import RetryPolicy, errors
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.events import ClockSkewCorrected, RetryScheduled
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.eventstream import encode_error
from tests.support.peers import CLIENT_ARGUMENTS, isolate_aws
from tests.support.raw_server import (
    CLOSE,
    LAST_CHUNK,
    OK,
    RESET,
    RawServer,
    Script,
    chunk,
    error_response,
    response,
)
from tests.support.virtual_time import VirtualTime

PAYLOAD = b"payload-that-must-not-leak"
ATTRIBUTES = "custom-attributes-that-must-not-leak"


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate_aws(monkeypatch, tmp_path)


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer() as server:
        yield server


@dataclass
class Clock:
    """A clock that only sleeping moves."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, delay: float) -> None:
        self.now += delay
        self.slept.append(delay)
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make_client(server: RawServer, clock: Clock) -> AsyncIterator[MakeClient]:
    clients = []

    def make(**arguments: Any) -> aiosmrt.Client:
        defaults: dict[str, Any] = {"endpoint_url": server.url, "retry": RetryPolicy(max_attempts=3)}
        client = aiosmrt.Client(**(defaults | CLIENT_ARGUMENTS | arguments))
        seams.set_clock(client, clock)
        seams.set_sleep(client, clock.sleep)
        seams.set_random(client, lambda: 0.5)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


Invoke = Callable[[aiosmrt.Client], Awaitable[Any]]


async def invoke_endpoint(client: aiosmrt.Client) -> Any:
    result = await client.invoke_endpoint(EndpointName="churn", Body=PAYLOAD, CustomAttributes=ATTRIBUTES)
    return await result["Body"].read()


async def invoke_endpoint_async(client: aiosmrt.Client) -> Any:
    return await client.invoke_endpoint_async(EndpointName="churn", Body=PAYLOAD, CustomAttributes=ATTRIBUTES)


async def invoke_stream(client: aiosmrt.Client) -> list[bytes]:
    result = await client.invoke_endpoint_with_response_stream(
        EndpointName="churn", Body=PAYLOAD, CustomAttributes=ATTRIBUTES
    )
    async with result["Body"] as stream:
        return [event["PayloadPart"]["Bytes"] async for event in stream]


OPERATIONS: dict[str, Invoke] = {
    "InvokeEndpoint": invoke_endpoint,
    "InvokeEndpointAsync": invoke_endpoint_async,
    "InvokeEndpointWithResponseStream": invoke_stream,
}

NO_CAPACITY = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress "
    "(if configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)
NOT_FOUND = "Endpoint churn of account 123456789012 not found."
HTML = b"<html><body>Bad Gateway</body></html>"
MODEL_ERROR: dict[str, Any] = {"OriginalStatusCode": 503, "OriginalMessage": "busy", "LogStreamArn": "arn:aws:logs:x"}

TRANSIENT = [0.025, 0.05]
THROTTLED = [0.125, 0.125]
LOADING = [0.5, 1.0]


@dataclass
class Row:
    """A service's error: what is answered, and what must follow from it."""

    answer: bytes
    error: type[errors.ServiceError]
    code: str
    cause: str
    waits: list[float]
    message: str | None = "for a test"


ROWS = {
    "ThrottlingException, type in the header alone": Row(
        response(400, b'{"message":null}', [("x-amzn-ErrorType", "ThrottlingException:http://internal/coral/")]),
        errors.ThrottlingError,
        "ThrottlingException",
        "throttling",
        THROTTLED,
        None,
    ),
    "bare 429": Row(response(429), errors.ThrottlingError, "429", "throttling", THROTTLED, ""),
    "TooManyRequestsException in the body": Row(
        response(400, b'{"__type":"com.amazon#TooManyRequestsException","message":"slow"}'),
        errors.ThrottlingError,
        "TooManyRequestsException",
        "throttling",
        THROTTLED,
        "slow",
    ),
    "ModelNotReadyException": Row(
        error_response(429, "ModelNotReadyException"),
        errors.ModelNotReadyException,
        "ModelNotReadyException",
        "model_not_ready",
        LOADING,
    ),
    "InternalFailure": Row(
        error_response(500, "InternalFailure"), errors.InternalFailure, "InternalFailure", "transient", TRANSIENT
    ),
    "ServiceUnavailable": Row(
        error_response(503, "ServiceUnavailable"),
        errors.ServiceUnavailable,
        "ServiceUnavailable",
        "transient",
        TRANSIENT,
    ),
    "502 of a proxy": Row(response(502, HTML), errors.ServiceError, "502", "transient", TRANSIENT, "Bad Gateway"),
    "504 without a body": Row(response(504), errors.ServiceError, "504", "transient", TRANSIENT, "Gateway Timeout"),
    "InternalDependencyException": Row(
        error_response(530, "InternalDependencyException"),
        errors.InternalDependencyException,
        "InternalDependencyException",
        "transient",
        TRANSIENT,
    ),
    "408 of a proxy": Row(response(408), errors.ServiceError, "408", "transient", TRANSIENT, ""),
    "421 of a proxy": Row(response(421), errors.ServiceError, "421", "transient", TRANSIENT, ""),
    "bare 530": Row(response(530), errors.ServiceError, "530", "transient", TRANSIENT, ""),
    "ModelError": Row(error_response(424, "ModelError", **MODEL_ERROR), errors.ModelError, "ModelError", "model", []),
    "no capacity": Row(
        error_response(400, "ValidationError", NO_CAPACITY),
        errors.NoCapacityError,
        "ValidationError",
        "none",
        [],
        NO_CAPACITY,
    ),
    "endpoint not found": Row(
        error_response(400, "ValidationError", NOT_FOUND),
        errors.EndpointNotFoundError,
        "ValidationError",
        "none",
        [],
        NOT_FOUND,
    ),
    "ValidationError that quotes the others": Row(
        error_response(400, "ValidationError", f"Value '{NO_CAPACITY} {NOT_FOUND}' is too long"),
        errors.ValidationError,
        "ValidationError",
        "none",
        [],
        f"Value '{NO_CAPACITY} {NOT_FOUND}' is too long",
    ),
    "AccessDeniedException": Row(
        error_response(403, "AccessDeniedException"), errors.ServiceError, "AccessDeniedException", "none", []
    ),
    "404 of a proxy": Row(response(404, HTML), errors.ServiceError, "404", "none", [], HTML.decode()),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_service_errors(
    row: Row, operation: str, make_client: MakeClient, server: RawServer, clock: Clock
) -> None:
    client = make_client()
    attempts = len(row.waits) + 1
    server.play(*[[row.answer]] * 10)
    with pytest.raises(boto.ClientError) as caught:
        await OPERATIONS[operation](client)
    error = caught.value
    assert type(error) is row.error
    assert isinstance(error, errors.AiosmrtError)
    assert len(server.requests) == attempts
    assert clock.slept == pytest.approx(row.waits)

    assert error.response["Error"] == {"Code": row.code, "Message": row.message}
    metadata = error.response["ResponseMetadata"]
    assert metadata["RetryAttempts"] == attempts - 1
    assert metadata.get("MaxAttemptsReached", False) is (attempts == 3)
    assert (error.operation_name, error.operation, error.endpoint_name) == (operation, operation, "churn")
    assert (error.attempts, error.cause, error.retry_after) == (attempts, row.cause, None)
    assert error.throttling is (row.cause == "throttling")
    assert error.retry_safe is (row.cause in ("throttling", "model_not_ready", "transient"))
    for shown in (str(error), repr(error)):
        assert PAYLOAD.decode() not in shown
        assert ATTRIBUTES not in shown

    statistics = client.statistics()
    assert (statistics.in_use, statistics.waiting) == (0, 0)
    assert statistics.attempts == attempts
    assert statistics.retries == ({row.cause: attempts - 1} if attempts > 1 else {})
    assert statistics.throttles == (attempts if row.cause == "throttling" else 0)


@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if row.waits], ids=[n for n, r in ROWS.items() if r.waits]
)
async def test_a_retry_that_succeeds(row: Row, make_client: MakeClient, server: RawServer, clock: Clock) -> None:
    client = make_client()
    server.play([row.answer], OK)
    result = await client.invoke_endpoint(EndpointName="churn", Body=PAYLOAD)
    assert await result["Body"].read() == b"ok"
    assert result["ResponseMetadata"]["RetryAttempts"] == 1
    assert clock.slept == pytest.approx(row.waits[:1])
    assert [request.body for request in server.requests] == [PAYLOAD] * 2
    assert len({request.headers["amz-sdk-invocation-id"] for request in server.requests}) == 1
    assert [request.headers["amz-sdk-request"] for request in server.requests] == [
        "attempt=1; max=3",
        "attempt=2; max=3",
    ]


async def test_request_id_and_members_of_a_model_error(make_client: MakeClient, server: RawServer) -> None:
    server.play([error_response(424, "ModelError", headers=[("x-amzn-RequestId", "id-1")], **MODEL_ERROR)])
    with pytest.raises(errors.ModelError) as caught:
        await invoke_endpoint(make_client())
    error = caught.value
    assert error.request_id == "id-1"
    assert {name: error.response[name] for name in MODEL_ERROR} == MODEL_ERROR
    assert (error.original_status_code, error.original_message, error.log_stream_arn) == (503, "busy", "arn:aws:logs:x")


@pytest.mark.parametrize("status", [0, 429, 503, 504])
async def test_model_errors_are_repeated_for_the_statuses_opted_into(
    status: int, make_client: MakeClient, server: RawServer, clock: Clock
) -> None:
    client = make_client(retry=RetryPolicy(retry_model_statuses=frozenset({status})))
    other = error_response(424, "ModelError", OriginalStatusCode=500)
    server.play([error_response(424, "ModelError", OriginalStatusCode=status)], [other], OK)
    with pytest.raises(errors.ModelError):
        await invoke_endpoint(client)
    assert len(server.requests) == 2
    assert clock.slept == [0.5]


async def test_a_model_that_is_loading_is_waited_for_until_the_deadline(
    make_client: MakeClient, server: RawServer, clock: Clock
) -> None:
    loading = [error_response(429, "ModelNotReadyException")]
    server.play(*[loading] * 5, OK)
    client = make_client(deadline=60.0)
    assert await invoke_endpoint(client) == b"ok"
    assert clock.slept == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0])
    assert len(server.requests) == 6
    # The header's maximum keeps up with the attempts.
    assert [r.headers["amz-sdk-request"].partition("; ")[2] for r in server.requests][2:4] == [
        "attempt=3; max=3",
        "attempt=4; max=4",
    ]

    clock.slept.clear()
    server.play(*[loading] * 20)
    with pytest.raises(errors.ModelNotReadyException) as caught:
        await invoke_endpoint(client)
    # The last waits are half of what is left.
    assert clock.slept == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0, 2.25, 1.125])
    assert caught.value.attempts == 12


async def test_the_deadline_is_sent_as_ttl(make_client: MakeClient, server: RawServer) -> None:
    client = make_client(deadline=60.0)
    seams.set_wall_clock(client, lambda: 1_700_000_000.0)
    await invoke_endpoint(client)
    assert server.requests[0].headers["amz-sdk-request"] == "ttl=20231114T221420Z; attempt=1; max=3"


async def test_a_retry_that_would_end_past_the_deadline_is_not_made(
    make_client: MakeClient, server: RawServer, clock: Clock, virtual_time: VirtualTime
) -> None:
    server.play(*[[error_response(400, "ThrottlingException", None)]] * 3)
    with pytest.raises(errors.ThrottlingError) as caught:
        await invoke_endpoint(make_client(deadline=0.3))
    assert clock.slept == [0.125, 0.125]
    assert caught.value.attempts == 3


@pytest.mark.parametrize("waiting", ["for the response", "for a slot"])
async def test_the_deadline_ends_a_call_wherever_it_is(
    waiting: str, make_client: MakeClient, server: RawServer, virtual_time: VirtualTime
) -> None:
    client = make_client(max_concurrency=1)
    gate = asyncio.Event()
    server.play([gate, *OK])
    holder = None
    if waiting == "for a slot":
        holder = asyncio.ensure_future(invoke_endpoint(client))
        await server.received(1)
    call = asyncio.ensure_future(invoke_endpoint(client.with_options(deadline=30.0)))
    await server.received(1)
    await asyncio.sleep(0)
    await virtual_time.advance(30.0)
    with pytest.raises(aiosmrt.DeadlineExceededError) as caught:
        await call
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.endpoint_name == "churn"
    assert len(server.requests) == 1
    gate.set()
    if holder is not None:
        assert await holder == b"ok"
    assert client.statistics().in_use == 0


@pytest.mark.parametrize(
    ("header", "waits"),
    [("1500", [1.5]), ("0", [0.025]), ("10000", [5.025]), ("-1", [0.025]), ("soon", [0.025])],
)
async def test_the_services_hint_moves_the_wait(
    header: str, waits: list[float], make_client: MakeClient, server: RawServer, clock: Clock
) -> None:
    busy = error_response(503, "ServiceUnavailable", headers=[("x-amz-retry-after", header)])
    server.play([busy], OK)
    await invoke_endpoint(make_client())
    assert clock.slept == pytest.approx(waits)


async def test_the_hint_is_on_the_error(make_client: MakeClient, server: RawServer) -> None:
    server.play([error_response(503, "ServiceUnavailable", headers=[("x-amz-retry-after", "1500")])])
    with pytest.raises(errors.ServiceUnavailable) as caught:
        await invoke_endpoint(make_client(retry=RetryPolicy(max_attempts=1)))
    assert caught.value.retry_after == 1.5


# The network


@dataclass
class Failure:
    """A failure below the service: what happens to the first two requests, and the errors raised."""

    script: Script
    error: type[errors.TransportError]
    boto: type[Exception]
    cause: str


HALF = response(200, b"12345", length=10)
FAILURES = {
    "reset before any byte": Failure([RESET], errors.ConnectionClosedError, boto.ConnectionClosedError, "connection"),
    "closed before any byte": Failure([CLOSE], errors.ConnectionClosedError, boto.ConnectionClosedError, "connection"),
    "reset inside the body": Failure(
        [HALF, RESET], errors.ResponseStreamingError, boto.ResponseStreamingError, "truncated"
    ),
    "closed inside the body": Failure(
        [HALF, CLOSE], errors.ResponseStreamingError, boto.ResponseStreamingError, "truncated"
    ),
    "closed inside a chunked body": Failure(
        [response(200, b"12345", chunked=True), CLOSE],
        errors.ResponseStreamingError,
        boto.ResponseStreamingError,
        "truncated",
    ),
}


@pytest.mark.parametrize("pooled", [False, True], ids=["new connection", "pooled connection"])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_lost_connections(
    failure: Failure, pooled: bool, make_client: MakeClient, server: RawServer, clock: Clock
) -> None:
    client = make_client(retry=RetryPolicy(max_attempts=3, retry_stale_connections=False))
    if pooled:
        await invoke_endpoint(client)
    before = len(server.requests)
    server.play(failure.script, failure.script, OK)
    assert await invoke_endpoint(client) == b"ok"
    assert len(server.requests) == before + 3
    assert clock.slept == pytest.approx(TRANSIENT)
    assert client.statistics().retries == {failure.cause: 2}

    server.play(*[failure.script] * 3)
    with pytest.raises(failure.boto) as caught:
        await invoke_endpoint(client)
    error = caught.value
    assert type(error) is failure.error
    assert isinstance(error, errors.AiosmrtError)
    assert (error.attempts, error.cause, error.retry_safe) == (3, failure.cause, True)
    assert error.endpoint_name == "churn"
    assert len(server.requests) == before + 6


async def test_refused_connections(make_client: MakeClient, clock: Clock, refusing_url: str) -> None:
    retries: list[RetryScheduled] = []

    def observe(event: aiosmrt.Event) -> None:
        if isinstance(event, RetryScheduled):
            retries.append(event)

    client = make_client(endpoint_url=refusing_url, observers=(observe,))
    with pytest.raises(boto.EndpointConnectionError) as caught:
        await invoke_endpoint(client)
    assert type(caught.value) is errors.EndpointConnectionError
    assert caught.value.attempts == 3
    assert [(event.cause, event.attempt) for event in retries] == [("connection", 1), ("connection", 2)]
    assert [event.delay for event in retries] == clock.slept == pytest.approx(TRANSIENT)


@pytest.mark.parametrize("moment", ["before the head", "inside the body"])
async def test_read_timeouts_are_repeated_only_when_asked_for(
    moment: str, make_client: MakeClient, server: RawServer, clock: Clock, virtual_time: VirtualTime
) -> None:
    never = asyncio.Event()
    silent: Script = [never] if moment == "before the head" else [HALF, never]
    server.play(*[silent] * 4)
    client = make_client(read_timeout=10.0)
    call = asyncio.ensure_future(invoke_endpoint(client))
    await server.received(1)
    with pytest.raises(boto.ReadTimeoutError) as caught:
        await virtual_time.run(call, lambda: False)
    error = caught.value
    assert type(error) is errors.ReadTimeoutError
    assert isinstance(error, TimeoutError)
    assert (error.attempts, error.cause, error.retry_safe) == (1, "read_timeout", False)
    assert len(server.requests) == 1

    patient = client.with_options(retry=RetryPolicy(max_attempts=3, retry_read_timeouts=True))
    call = asyncio.ensure_future(invoke_endpoint(patient))
    for count in (2, 3, 4):
        await server.received(count)
        # Once more where half a response lay in the socket unread: that is a busy client, and no silent server.
        while client.statistics().attempts == count and not call.done():
            await virtual_time.advance(12.0)
            await asyncio.sleep(0)
    with pytest.raises(errors.ReadTimeoutError) as caught:
        await call
    assert caught.value.attempts == 3
    assert len(server.requests) == 4
    assert clock.slept == pytest.approx(TRANSIENT)


# Streams

HEAD = response(200, b"", chunked=True)
INTERNAL = encode_exception("InternalStreamFailure", b'{"Message":"broken"}')
BROKEN = encode_exception("ModelStreamError", json.dumps({"Message": "gone", "ErrorCode": "StreamBroken"}).encode())
TOO_LONG = encode_exception(
    "ModelStreamError", json.dumps({"Message": "slow", "ErrorCode": "ModelInvocationTimeExceeded"}).encode()
)
UNKNOWN = encode_error("SomethingNew", "what")
FIRST = encode_payload_part(b"one")
WHOLE: Script = [HEAD, chunk(FIRST), LAST_CHUNK]


@dataclass
class StreamFailure:
    """How a stream fails, and the error; ``retried`` if it is retried before its first part."""

    ending: Script
    error: type[errors.AiosmrtError]
    cause: str
    retried: bool = True
    boto: type[Exception] = boto.BotoCoreError


STREAM_FAILURES = {
    "InternalStreamFailure": StreamFailure(
        [chunk(INTERNAL), LAST_CHUNK], errors.InternalStreamFailure, "transient", boto=boto.EventStreamError
    ),
    "ModelStreamError StreamBroken": StreamFailure(
        [chunk(BROKEN), LAST_CHUNK], errors.ModelStreamError, "transient", boto=boto.EventStreamError
    ),
    # The model has had its time: another request would only double its load.
    "ModelStreamError ModelInvocationTimeExceeded": StreamFailure(
        [chunk(TOO_LONG), LAST_CHUNK], errors.ModelStreamError, "model", retried=False, boto=boto.EventStreamError
    ),
    "an unknown error": StreamFailure(
        [chunk(UNKNOWN), LAST_CHUNK], errors.EventStreamError, "none", retried=False, boto=boto.EventStreamError
    ),
    "cut inside a frame, with a clean ending": StreamFailure(
        [chunk(FIRST[:-1]), LAST_CHUNK], errors.TruncatedStreamError, "truncated", boto=errors.EventStreamFormatError
    ),
    "a wrong checksum": StreamFailure(
        [chunk(FIRST[:-1] + bytes([FIRST[-1] ^ 1])), LAST_CHUNK],
        errors.ChecksumMismatchError,
        "truncated",
        boto=errors.EventStreamFormatError,
    ),
    "closed between frames": StreamFailure(
        [CLOSE], errors.ResponseStreamingError, "truncated", boto=boto.ResponseStreamingError
    ),
    "reset inside a frame": StreamFailure(
        [chunk(FIRST[:20]), RESET], errors.ResponseStreamingError, "truncated", boto=boto.ResponseStreamingError
    ),
}


@pytest.mark.parametrize("failure", STREAM_FAILURES.values(), ids=STREAM_FAILURES)
async def test_streams_that_fail_before_their_first_part(
    failure: StreamFailure, make_client: MakeClient, server: RawServer, clock: Clock
) -> None:
    client = make_client()
    failing = [HEAD, *failure.ending]
    if failure.retried:
        server.play(failing, failing, WHOLE)
        assert await invoke_stream(client) == [b"one"]
        assert len(server.requests) == 3
        assert clock.slept == pytest.approx(TRANSIENT)
        server.requests.clear()
    server.play(*[failing] * 3)
    with pytest.raises(failure.boto) as caught:
        await invoke_stream(client)
    error = caught.value
    assert type(error) is failure.error
    assert isinstance(error, errors.AiosmrtError)
    assert (error.cause, error.attempts) == (failure.cause, 3 if failure.retried else 1)
    assert error.operation == "InvokeEndpointWithResponseStream"
    assert len(server.requests) == error.attempts
    assert client.statistics().in_use == 0


@pytest.mark.parametrize("failure", STREAM_FAILURES.values(), ids=STREAM_FAILURES)
async def test_streams_that_fail_after_a_part(
    failure: StreamFailure, make_client: MakeClient, server: RawServer
) -> None:
    client = make_client()
    gate = asyncio.Event()
    server.play([HEAD, chunk(FIRST), gate, *failure.ending], WHOLE)
    result = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=PAYLOAD)
    parts = []

    async def read() -> None:
        async with result["Body"] as stream:
            async for event in stream:
                parts.append(event["PayloadPart"]["Bytes"])
                gate.set()

    with pytest.raises(failure.boto) as caught:
        await read()
    assert type(caught.value) is failure.error
    assert parts == [b"one"]
    assert len(server.requests) == 1
    assert client.statistics().in_use == 0
    assert client.statistics().retries == {}


async def test_members_of_a_stream_error(make_client: MakeClient, server: RawServer) -> None:
    server.play([HEAD, chunk(TOO_LONG), LAST_CHUNK])
    with pytest.raises(errors.ModelStreamError) as caught:
        await invoke_stream(make_client())
    assert caught.value.error_code == caught.value.response["ErrorCode"] == "ModelInvocationTimeExceeded"
    assert caught.value.response["Error"] == {"Code": "ModelStreamError", "Message": "slow"}


async def test_a_silent_stream_is_not_repeated(
    make_client: MakeClient, server: RawServer, virtual_time: VirtualTime
) -> None:
    server.play([HEAD, asyncio.Event()])
    client = make_client(read_timeout=10.0)
    stream = (await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=PAYLOAD))["Body"]
    part = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await virtual_time.advance(12.0)
    with pytest.raises(boto.ReadTimeoutError):
        await part
    assert len(server.requests) == 1


# The clock


def signed_at(request: Any) -> float:
    return datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def refused(code: str, server_time: float | None) -> Script:
    date = [] if server_time is None else [("Date", format_datetime(datetime.fromtimestamp(server_time, UTC), True))]
    return [error_response(403, code, "Signature expired", date)]


@pytest.mark.parametrize("skew", [-3600.0, 900.0])
@pytest.mark.parametrize("code", ["InvalidSignatureException", "RequestExpired", "SignatureDoesNotMatch"])
async def test_a_wrong_clock_is_corrected_once(
    code: str, skew: float, make_client: MakeClient, server: RawServer, clock: Clock
) -> None:
    corrections: list[ClockSkewCorrected] = []

    def observe(event: aiosmrt.Event) -> None:
        if isinstance(event, ClockSkewCorrected):
            corrections.append(event)

    client = make_client(observers=(observe,))
    local = float(int(time.time()))
    seams.set_wall_clock(client, lambda: local)
    server.play(refused(code, local + skew), OK)
    assert await invoke_endpoint(client) == b"ok"
    assert [signed_at(request) - local for request in server.requests] == [0.0, skew]
    assert clock.slept == [0.0]
    assert corrections == [ClockSkewCorrected(skew)]
    # The next call is signed with the right time at once; if it is refused all the same, that has another reason.
    server.play(refused(code, local + skew), OK)
    with pytest.raises(boto.ClientError) as caught:
        await invoke_endpoint(client)
    assert [signed_at(request) - local for request in server.requests[2:]] == [skew]
    assert caught.value.response["Error"]["Code"] == code
    assert len(corrections) == 1


@pytest.mark.parametrize("year", ["0000", "1000", "2016", "2100", "9999"])
async def test_a_wild_date_leaves_the_clock_alone(year: str, make_client: MakeClient, server: RawServer) -> None:
    client = make_client()
    local = float(int(time.time()))
    seams.set_wall_clock(client, lambda: local)
    weekday = {"0000": "Sat", "1000": "Wed", "2016": "Fri", "2100": "Fri", "9999": "Fri"}[year]
    wild = [("Date", f"{weekday}, 01 Jan {year} 00:00:00 GMT")]
    server.play([error_response(403, "InvalidSignatureException", "no", wild)], OK)
    with pytest.raises(errors.ServiceError) as caught:
        await invoke_endpoint(client)
    assert (caught.value.attempts, caught.value.cause) == (1, "none")
    assert await invoke_endpoint(client) == b"ok"
    assert [signed_at(request) - local for request in server.requests] == [0.0, 0.0]


async def test_a_plausible_but_wrong_date_is_not_kept_after_it_is_refused(
    make_client: MakeClient, server: RawServer
) -> None:
    """A proxy has written its own wrong time into the refusals of a wrong key; later the key is right."""
    client = make_client()
    local = float(int(time.time()))
    seams.set_wall_clock(client, lambda: local)
    wrong = refused("SignatureDoesNotMatch", local + 3600)
    server.play(wrong, wrong, OK)
    with pytest.raises(errors.ServiceError):
        await invoke_endpoint(client)
    assert await invoke_endpoint(client) == b"ok"
    assert [signed_at(request) - local for request in server.requests] == [0.0, 3600.0, 0.0]


@pytest.mark.parametrize("dated", [False, True], ids=["undated", "dated"])
async def test_a_signature_that_expired_on_the_way_is_made_again_once(
    dated: bool, make_client: MakeClient, server: RawServer
) -> None:
    """The clock is right, but the machine slept after signing."""
    corrections: list[aiosmrt.Event] = []
    client = make_client(observers=(lambda event: isinstance(event, ClockSkewCorrected) and corrections.append(event),))
    local = float(int(time.time()))
    naps = 1
    seams.set_wall_clock(client, lambda: local + 600.0 * min(naps, len(server.requests)))
    server.play(refused("InvalidSignatureException", local + 600.0 if dated else None), OK)
    assert await invoke_endpoint(client) == b"ok"
    assert [signed_at(request) - local for request in server.requests] == [0.0, 600.0]
    assert corrections == []
    # It sleeps each time.
    server.requests.clear()
    naps = 99
    server.play(*(refused("InvalidSignatureException", None) for _ in range(3)))
    with pytest.raises(errors.ServiceError) as caught:
        await invoke_endpoint(client)
    assert (caught.value.attempts, caught.value.cause) == (2, "clock_skew")


@pytest.mark.parametrize("date", ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "", "Son, 06 Nov 1994"])
async def test_an_unusable_date_leaves_the_clock_alone(date: str, make_client: MakeClient, server: RawServer) -> None:
    server.play([error_response(403, "RequestExpired", "no", [("Date", date)])], OK)
    client = make_client()
    with pytest.raises(errors.ServiceError) as caught:
        await invoke_endpoint(client)
    assert caught.value.attempts == 1
    assert await invoke_endpoint(client) == b"ok"
    assert len({request.headers["x-amz-date"][:11] for request in server.requests}) == 1


async def test_a_clock_that_was_set_right_during_a_call_is_left_alone(
    make_client: MakeClient, server: RawServer
) -> None:
    """It was an hour ahead when the request was signed."""
    corrections: list[aiosmrt.Event] = []
    client = make_client(observers=(lambda event: isinstance(event, ClockSkewCorrected) and corrections.append(event),))
    right = float(int(time.time()))
    seams.set_wall_clock(client, lambda: right if server.requests else right + 3600.0)
    server.play(refused("InvalidSignatureException", right), OK)
    assert await invoke_endpoint(client) == b"ok"
    assert [signed_at(request) - right for request in server.requests] == [3600.0, 0.0]
    assert corrections == []


@pytest.mark.parametrize("age", ["0", "28800"])
async def test_an_answer_from_a_cache_leaves_the_clock_alone(
    age: str, make_client: MakeClient, server: RawServer
) -> None:
    """Its date is that of the call that filled the cache (RFC 9111, 4.2.3)."""
    local = float(int(time.time()))
    [cached] = refused("InvalidSignatureException", local - 28800)
    assert isinstance(cached, bytes)
    server.play([cached.replace(b"Date:", f"Age: {age}\r\nDate:".encode())], OK)
    client = make_client()
    seams.set_wall_clock(client, lambda: local)
    with pytest.raises(errors.ServiceError):
        await invoke_endpoint(client)
    assert await invoke_endpoint(client) == b"ok"
    assert [signed_at(request) - local for request in server.requests] == [0.0, 0.0]


async def test_a_refusal_of_an_unsigned_call_leaves_the_clock_alone(make_client: MakeClient, server: RawServer) -> None:
    client = make_client(sign=False)
    local = float(int(time.time()))
    seams.set_wall_clock(client, lambda: local)
    server.play(refused("InvalidSignatureException", local + 3600), OK)
    with pytest.raises(errors.ServiceError) as caught:
        await invoke_endpoint(client)
    assert (caught.value.attempts, caught.value.cause) == (1, "none")


async def test_calls_with_old_and_new_offsets_all_succeed(make_client: MakeClient, server: RawServer) -> None:
    """A hundred are refused, while the first of them corrects the clock; later ones are signed right at once."""
    client = make_client(max_concurrency=100)
    local = float(int(time.time()))
    seams.set_wall_clock(client, lambda: local)

    def judge(request: Any) -> Script:
        return OK if abs(signed_at(request) - local - 3600.0) < 300 else refused("RequestExpired", local + 3600.0)

    server.otherwise = judge
    calls = [invoke_endpoint(client) for _ in range(100)]
    assert await asyncio.gather(*calls) == [b"ok"] * 100
    assert len(server.requests) <= 200
    before = len(server.requests)
    assert await asyncio.gather(*(invoke_endpoint(client) for _ in range(10))) == [b"ok"] * 10
    assert len(server.requests) == before + 10


async def test_a_service_whose_clock_jumps_is_followed_once_a_call(make_client: MakeClient, server: RawServer) -> None:
    client = make_client(retry=RetryPolicy(max_attempts=5))
    local = float(int(time.time()))
    seams.set_wall_clock(client, lambda: local)
    server.play(*(refused("InvalidSignatureException", local + skew) for skew in (900.0, 1800.0, 2700.0)))
    with pytest.raises(errors.ServiceError) as caught:
        await invoke_endpoint(client)
    assert (caught.value.attempts, caught.value.cause) == (2, "clock_skew")
    assert len(server.requests) == 2


@pytest.mark.parametrize("skew", [None, 0.0, 240.0, -240.0])
async def test_a_signature_is_not_repeated_for_a_clock_that_is_right(
    skew: float | None, make_client: MakeClient, server: RawServer
) -> None:
    client = make_client()
    local = float(int(time.time()))
    seams.set_wall_clock(client, lambda: local)
    server.play(refused("InvalidSignatureException", None if skew is None else local + skew))
    with pytest.raises(errors.ServiceError) as caught:
        await invoke_endpoint(client)
    assert (caught.value.attempts, caught.value.cause) == (1, "none")
    # Nor does it change the clock by which the next call is signed.
    assert await invoke_endpoint(client) == b"ok"
    assert [signed_at(request) - local for request in server.requests] == [0.0, 0.0]
