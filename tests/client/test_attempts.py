"""How often and how long a call is tried: settings from everywhere, and the caller's deadline over all of it.

The table of errors has its own test; here it is one kind of failure, and who decides on the number and the time.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
import pytest

from aiosmrt import Client, Credentials, DeadlineExceededError, RetryPolicy, ServiceError, errors
from tests.support import seams
from tests.support.clients import MakeClient, no_sleep
from tests.support.peers import REGION
from tests.support.recording_server import RecordedRequest, RecordingServer, Response, respond, respond_in_turn
from tests.support.virtual_time import VirtualTime

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}
UNAVAILABLE = respond(503, b"{}", [("x-amzn-errortype", "ServiceUnavailable")])
UNAVAILABLE_RESPONSE = Response(503, [("x-amzn-errortype", "ServiceUnavailable")], b"{}")


async def attempts_of(client: Client, server: RecordingServer) -> int:
    """How many requests one failing call sends."""
    server.answer = UNAVAILABLE
    seams.set_sleep(client, no_sleep)
    before = len(server.requests)
    with pytest.raises(ServiceError) as caught:
        await client.invoke_endpoint(**CALL)
    sent = server.requests[before:]
    assert caught.value.attempts == len(sent)
    assert caught.value.response["ResponseMetadata"]["RetryAttempts"] == len(sent) - 1
    assert {str(request.header("amz-sdk-request")).partition("; ")[2] for request in sent} == {f"max={len(sent)}"}
    return len(sent)


async def test_time_alone_bounds_attempts_by_default(client: Client, server: RecordingServer) -> None:
    seams.set_sleep(client, no_sleep)
    seams.set_call_later(client, lambda seconds, *call: asyncio.get_running_loop().call_soon(*call))
    server.answer = respond_in_turn(*[UNAVAILABLE_RESPONSE] * 7, Response())
    result = await client.invoke_endpoint(**CALL)
    assert result["ResponseMetadata"]["RetryAttempts"] == 7
    counted = [request.header("amz-sdk-request") for request in server.requests]
    assert counted == [f"attempt={number}" for number in range(1, 9)]


async def test_no_patience_is_one_attempt(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = UNAVAILABLE
    client = make_client(patience=0)
    for _ in range(5):
        with pytest.raises(ServiceError) as caught:
            await client.invoke_endpoint(**CALL)
        assert caught.value.attempts == 1
    assert len(server.requests) == 5


async def test_aws_max_attempts(make_client: MakeClient, server: RecordingServer, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    assert await attempts_of(make_client(), server) == 5
    # A policy without max_attempts leaves them to the environment; one with it wins.
    assert await attempts_of(make_client(retry=RetryPolicy(base_delay=0.1)), server) == 5
    assert await attempts_of(make_client(retry=RetryPolicy(max_attempts=2)), server) == 2
    assert await attempts_of(make_client().with_options(retry={"total_max_attempts": 4}), server) == 4


async def test_max_attempts_of_the_profile(
    make_client: MakeClient, server: RecordingServer, monkeypatch: Any, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nmax_attempts = 4\n[profile patient]\nmax_attempts = 6\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert await attempts_of(make_client(), server) == 4
    assert await attempts_of(make_client(profile_name="patient"), server) == 6
    monkeypatch.setenv("AWS_PROFILE", "patient")
    assert await attempts_of(make_client(), server) == 6
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert await attempts_of(make_client(), server) == 1


@pytest.mark.parametrize("value", ["0", "-1", "many"])
async def test_an_invalid_aws_max_attempts(make_client: MakeClient, monkeypatch: Any, value: str) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", value)
    with pytest.raises(errors.ConfigurationError, match="AWS_MAX_ATTEMPTS"):
        await make_client().invoke_endpoint(**CALL)


@pytest.mark.parametrize(
    ("retries", "attempts"),
    [
        ({"max_attempts": 0}, 1),
        ({"max_attempts": 3}, 4),
        ({"total_max_attempts": 2}, 2),
        ({"total_max_attempts": 2, "max_attempts": 9, "mode": "standard"}, 2),
        ({"mode": "standard"}, 3),
        ({"mode": "adaptive"}, 3),
        ({"mode": "legacy"}, 5),
    ],
)
async def test_botocores_retries_dictionary(
    make_client: MakeClient, server: RecordingServer, retries: dict[str, Any], attempts: int
) -> None:
    assert await attempts_of(make_client(retry=retries), server) == attempts


@pytest.mark.parametrize(("mode", "retries"), [("standard", 35), ("legacy", 80)])
async def test_a_client_and_its_views_share_the_bucket_of_their_mode(
    make_client: MakeClient, server: RecordingServer, mode: str, retries: int
) -> None:
    """500 tokens pay for 35 retries at 14 each, from client and view alike; mode legacy makes 4 retries a call."""
    client = make_client(retry={"mode": mode})
    view = client.with_options(read_timeout=5.0)
    seams.set_sleep(client, no_sleep)
    server.answer = UNAVAILABLE
    for caller in [client, view] * 10:
        with pytest.raises(ServiceError):
            await caller.invoke_endpoint(**CALL)
    assert len(server.requests) == 20 + retries


@pytest.mark.parametrize(("mode", "attempts"), [("standard", 3), ("legacy", 5), ("adaptive", 3)])
@pytest.mark.parametrize("source", ["environment", "profile"])
async def test_the_retry_mode_of_environment_and_profile(
    make_client: MakeClient,
    server: RecordingServer,
    monkeypatch: Any,
    tmp_path: Path,
    mode: str,
    attempts: int,
    source: str,
) -> None:
    if source == "environment":
        monkeypatch.setenv("AWS_RETRY_MODE", mode)
    else:
        config = tmp_path / "config"
        config.write_text(f"[default]\nretry_mode = {mode}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert await attempts_of(make_client(), server) == attempts
    # What the client is given counts more.
    assert await attempts_of(make_client(retry={"mode": "legacy", "total_max_attempts": 2}), server) == 2
    with pytest.raises(ServiceError) as caught:
        await make_client(patience=0).invoke_endpoint(**CALL)
    assert caught.value.attempts == 1


async def test_an_unknown_retry_mode_is_botocores_error(make_client: MakeClient, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_RETRY_MODE", "standart")
    with pytest.raises(boto.InvalidRetryModeError):
        await make_client().invoke_endpoint(**CALL)
    with pytest.raises(boto.InvalidRetryModeError):
        make_client(retry={"mode": "standart"})


def test_a_patience_does_not_go_with_a_retry_mode() -> None:
    with pytest.raises(errors.ParamValidationError, match="patience"):
        Client("eu-central-1", patience=20.0, retry={"mode": "standard"})
    assert Client("eu-central-1", patience=None, retry={"mode": "standard"}).with_options(patience=None)
    # A view that names a mode drops its client's patience.
    Client("eu-central-1", patience=5.0).with_options(retry={"mode": "standard"})


# The deadline


class Silence:
    """A service that never answers, and hears when its callers leave."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def __call__(self, request: RecordedRequest) -> Response:
        await self.over.wait()
        return Response()


@pytest.fixture
async def silence(server: RecordingServer) -> AsyncIterator[Silence]:
    silence = Silence()
    server.answer = silence
    yield silence
    silence.over.set()


async def heard(server: RecordingServer, count: int = 1) -> None:
    await server.until(lambda server: len(server.requests) == count)


async def test_the_deadline_ends_an_attempt(
    make_client: MakeClient, server: RecordingServer, silence: Silence, virtual_time: VirtualTime
) -> None:
    client = virtual_time.drive(make_client(deadline=30.0))
    call = asyncio.create_task(client.invoke_endpoint(**CALL))
    await heard(server)
    await virtual_time.advance(29.9)
    assert not call.done()
    await virtual_time.advance(0.1)
    with pytest.raises(DeadlineExceededError) as caught:
        await call
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.attempts, caught.value.operation, caught.value.endpoint_name) == (1, "InvokeEndpoint", "e")
    assert "30.0" in str(caught.value)
    assert client.statistics().in_use == 0
    silence.over.set()
    await server.until(lambda server: server.connections_open == 0)


async def test_the_deadline_covers_the_wait_for_a_slot(
    make_client: MakeClient, server: RecordingServer, silence: Silence, virtual_time: VirtualTime
) -> None:
    client = virtual_time.drive(make_client(max_concurrency=1))
    holder = asyncio.create_task(client.invoke_endpoint(**CALL))
    await heard(server)
    call = asyncio.create_task(client.with_options(deadline=30.0).invoke_endpoint(**CALL))
    await asyncio.sleep(0)
    assert client.statistics().waiting == 1
    await virtual_time.advance(30.0)
    with pytest.raises(DeadlineExceededError) as caught:
        await call
    assert caught.value.attempts == 0
    assert client.statistics().waiting == 0
    assert client.statistics().in_use == 1
    silence.over.set()
    await holder
    assert len(server.requests) == 1


async def test_no_back_off_goes_past_the_deadline(
    make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime
) -> None:
    """A wait that cannot be followed by an attempt is not begun: the last error comes at once."""
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)

    server.answer = UNAVAILABLE
    client = virtual_time.drive(make_client(deadline=5.0, retry=RetryPolicy(max_attempts=3, base_delay=10.0)))
    seams.set_sleep(client, sleep)
    with pytest.raises((ServiceError, DeadlineExceededError)) as caught:
        await client.invoke_endpoint(**CALL)
    assert slept == []
    assert len(server.requests) == 1
    last = caught.value if isinstance(caught.value, ServiceError) else caught.value.__cause__
    assert isinstance(last, errors.ServiceUnavailable)


async def test_a_failure_that_is_read_after_the_deadline(make_client: MakeClient, server: RecordingServer) -> None:
    """The loop was held up, and the deadline's timer has not fired yet."""
    client = make_client(deadline=30.0)
    now = 1000.0
    seams.set_clock(client, lambda: now)

    def late(request: RecordedRequest) -> Response:
        nonlocal now
        now += 31.0
        return UNAVAILABLE_RESPONSE

    server.answer = late
    with pytest.raises(DeadlineExceededError) as caught:
        await client.invoke_endpoint(**CALL)
    assert isinstance(caught.value.__cause__, errors.ServiceUnavailable)
    assert caught.value.attempts == 1


async def test_the_deadline_in_a_back_off_names_what_went_before(
    make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime
) -> None:
    backing_off = asyncio.Event()

    async def sleep(delay: float) -> None:
        backing_off.set()
        await asyncio.Event().wait()

    server.answer = UNAVAILABLE
    client = virtual_time.drive(make_client(deadline=30.0, retry=RetryPolicy(base_delay=0.0)))
    seams.set_sleep(client, sleep)
    call = asyncio.create_task(client.invoke_endpoint(**CALL))
    await backing_off.wait()
    await virtual_time.advance(30.0)
    with pytest.raises(DeadlineExceededError) as caught:
        await call
    assert isinstance(caught.value.__cause__, errors.ServiceUnavailable)
    assert caught.value.attempts == 1
    assert client.statistics().in_use == 0


async def test_a_request_names_the_deadline(
    make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime
) -> None:
    client = virtual_time.drive(make_client(deadline=30.0))
    seams.set_wall_clock(client, lambda: 1_800_000_000.0)
    await client.invoke_endpoint(**CALL)
    facts = dict(part.split("=") for part in str(server.last.header("amz-sdk-request")).split("; "))
    assert facts["attempt"] == "1"
    # 1,800,000,000 is 2027-01-15T08:00:00Z.
    assert facts["ttl"] == "20270115T080030Z"


async def test_a_streams_deadline_ends_with_its_head(
    make_client: MakeClient, server: RecordingServer, virtual_time: VirtualTime
) -> None:
    from aiosmrt._wire.eventstream import encode_payload_part

    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield encode_payload_part(b"one")
        await go_on.wait()
        yield encode_payload_part(b"two")

    server.answer = lambda request: Response(200, (), parts())
    client = virtual_time.drive(make_client(deadline=30.0))
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        assert await anext(stream) == {"PayloadPart": {"Bytes": b"one"}}
        # Longer than the deadline: what comes after the head has all the time it needs.
        await virtual_time.advance(60.0)
        go_on.set()
        assert await anext(stream) == {"PayloadPart": {"Bytes": b"two"}}


async def test_a_stream_whose_head_does_not_come(
    make_client: MakeClient, server: RecordingServer, silence: Silence, virtual_time: VirtualTime
) -> None:
    client = virtual_time.drive(make_client(deadline=30.0))
    call = asyncio.create_task(client.invoke_endpoint_with_response_stream(**CALL))
    await heard(server)
    await virtual_time.advance(30.0)
    with pytest.raises(DeadlineExceededError):
        await call
    assert client.statistics().in_use == 0


async def test_a_callers_own_timeout_stays_one(
    make_client: MakeClient, server: RecordingServer, silence: Silence, virtual_time: VirtualTime
) -> None:
    client = virtual_time.drive(make_client(deadline=30.0))
    call = asyncio.create_task(asyncio.wait_for(client.invoke_endpoint(**CALL), 10.0))
    await heard(server)
    await virtual_time.advance(10.0)
    with pytest.raises(TimeoutError) as caught:
        await call
    assert not isinstance(caught.value, DeadlineExceededError)
    assert client.statistics().in_use == 0


async def test_credentials_count_into_the_deadline(server: RecordingServer, virtual_time: VirtualTime) -> None:
    asked = asyncio.Event()

    async def never() -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with Client(REGION, endpoint_url=server.url, credentials=never, deadline=30.0) as client:
        virtual_time.drive(client)
        call = asyncio.create_task(client.invoke_endpoint(**CALL))
        await asked.wait()
        await virtual_time.advance(30.0)
        with pytest.raises(DeadlineExceededError, match=r"it waited 30\.000 s for credentials \(") as caught:
            await call
        assert caught.value.waited == pytest.approx(errors.Waited(credentials=30.0))
        assert client.statistics().in_use == 0
    assert server.requests == []


async def test_an_error_counts_the_wait_for_credentials(server: RecordingServer) -> None:
    now = 1000.0

    async def slow() -> Credentials:
        nonlocal now
        now += 3.0
        return Credentials("AKIDEXAMPLE", "not-a-real-secret")

    server.answer = UNAVAILABLE
    async with Client(REGION, endpoint_url=server.url, credentials=slow, patience=0) as client:
        seams.set_clock(client, lambda: now)
        with pytest.raises(ServiceError) as caught:
            await client.invoke_endpoint(**CALL)
        assert caught.value.waited == pytest.approx(errors.Waited(credentials=3.0))
