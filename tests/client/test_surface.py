"""The client's own surface beside the operations: calls by name, views, numbers, observers, identification, signing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiosmrt import Client, ParamValidationError, RetryPolicy, ServiceError, StreamTiming, errors, events
from aiosmrt._wire.operations import EVENT_STREAM
from tests.support.clients import MakeClient, no_sleep
from tests.support.peers import CREDENTIALS, REGION
from tests.support.recording_server import RecordedRequest, RecordingServer, Response, respond, respond_in_turn
from tests.support.seams import set_clock, set_sleep
from tests.support.signatures import verify_signature

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}
OK = {"HTTPStatusCode": 200}


# Calls by name


async def test_make_request(client: Client, server: RecordingServer) -> None:
    server.answer = respond(200, b"answer", [("Content-Type", "text/csv")])
    members = {**CALL, "TargetVariant": "blue", "ContentType": "text/csv"}
    by_name = await client.make_request("InvokeEndpoint", members)
    by_method = await client.invoke_endpoint(**members)
    assert await by_name["Body"].read() == await by_method["Body"].read() == b"answer"
    assert by_name["ContentType"] == by_method["ContentType"] == "text/csv"
    first, second = server.requests
    assert (first.target, first.body) == (second.target, second.body)
    assert first.header("X-Amzn-SageMaker-Target-Variant") == "blue"


async def test_make_request_for_the_other_operations(client: Client, server: RecordingServer) -> None:
    server.answer = respond(202, b'{"InferenceId": "id-1"}')
    queued = await client.make_request("InvokeEndpointAsync", {"EndpointName": "e", "InputLocation": "s3://b/k"})
    assert queued["InferenceId"] == "id-1"
    server.answer = respond(200, b"", [("Content-Type", EVENT_STREAM)])
    streamed = await client.make_request("InvokeEndpointWithResponseStream", CALL)
    async with streamed["Body"] as stream:
        assert [event async for event in stream] == []


@pytest.mark.parametrize(
    ("operation", "params", "names"),
    [
        ("InvokeEndpoit", CALL, ["InvokeEndpoit", "InvokeEndpoint"]),
        ("invoke_endpoint", CALL, ["invoke_endpoint"]),
        ("InvokeEndpoint", {**CALL, "TargetVarient": "x"}, ["TargetVarient"]),
        ("InvokeEndpoint", None, ["EndpointName", "Body"]),
        ("InvokeEndpoint", {"Body": 3, "TargetVariant": "-", "Nonsense": 1}, ["EndpointName", "Body", "Nonsense"]),
    ],
)
async def test_make_request_names_every_fault(
    client: Client, server: RecordingServer, operation: str, params: Any, names: list[str]
) -> None:
    with pytest.raises(ParamValidationError) as caught:
        await client.make_request(operation, params)
    assert all(name in str(caught.value) for name in names)
    assert server.requests == []


# Identification and signing


async def test_the_user_agent(make_client: MakeClient, server: RecordingServer) -> None:
    client = make_client(user_agent_extra="scoring/1.2 (nightly)")
    await client.invoke_endpoint(**CALL)
    agent = str(server.last.header("User-Agent"))
    assert agent.startswith("aiosmrt/")
    assert agent.endswith(" scoring/1.2 (nightly)")
    await client.with_options(user_agent_extra=None).invoke_endpoint(**CALL)
    assert agent.startswith(str(server.last.header("User-Agent")))


async def test_unsigned_calls_need_neither_credentials_nor_region(server: RecordingServer) -> None:
    async with Client(endpoint_url=server.url, sign=False) as client:
        await client.invoke_endpoint(**CALL)
        names = {name.lower() for name, _ in server.last.headers}
        assert not names & {"authorization", "x-amz-date", "x-amz-security-token"}
        assert client.meta.region_name is None


async def test_a_view_may_sign_or_not(client: Client, server: RecordingServer) -> None:
    await client.with_options(sign=False).invoke_endpoint(**CALL)
    assert server.last.header("Authorization") is None
    await client.invoke_endpoint(**CALL)
    assert verify_signature(server.last, CREDENTIALS.secret_key).region == REGION


async def test_credentials_from_an_async_callable(server: RecordingServer) -> None:
    from aiosmrt import Credentials

    asked = 0

    async def provide() -> Credentials:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return Credentials("AKIDOTHER", "another-fake-secret", "fake-token")

    async with Client(REGION, endpoint_url=server.url, credentials=provide) as client:
        await asyncio.gather(*(client.invoke_endpoint(**CALL) for _ in range(10)))
    assert asked == 1
    assert {verify_signature(request, "another-fake-secret").access_key for request in server.requests} == {"AKIDOTHER"}
    assert server.last.header("X-Amz-Security-Token") == "fake-token"


async def test_presigning_is_checked_as_calls_are(client: Client) -> None:
    for method, params in (("invoke_endpont", CALL), ("invoke_endpoint", {"EndpointName": "-"})):
        with pytest.raises(ParamValidationError):
            await client.generate_presigned_url(method, params)
    for expires in (0, 604_801, True, 1.5):
        with pytest.raises(ParamValidationError, match="ExpiresIn"):
            await client.generate_presigned_url("invoke_endpoint", CALL, ExpiresIn=expires)  # type: ignore[arg-type]


# Views


async def test_views_share_connections(client: Client, server: RecordingServer) -> None:
    await client.invoke_endpoint(**CALL)
    for view in (client.with_options(read_timeout=5.0), client.with_options(retry={"max_attempts": 1})):
        await view.invoke_endpoint(**CALL)
    assert [request.connection for request in server.requests] == [0, 0, 0]
    assert server.connections_made == 1


async def test_a_view_changes_what_it_names_and_nothing_else(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = respond(500, b"{}")
    client = make_client(retry=RetryPolicy(max_attempts=2, base_delay=0.0), user_agent_extra="app/1")
    view = client.with_options(retry=RetryPolicy(max_attempts=1))
    of_view = view.with_options(user_agent_extra="app/2")
    for caller, attempts, agent in ((view, 1, "app/1"), (of_view, 1, "app/2"), (client, 2, "app/1")):
        before = len(server.requests)
        with pytest.raises(ServiceError):
            await caller.invoke_endpoint(**CALL)
        assert len(server.requests) - before == attempts
        assert str(server.last.header("User-Agent")).endswith(agent)


async def waiting_calls(client: Client, count: int) -> None:
    """Let the calls run until this many of them wait for a slot."""
    while client.statistics().waiting < count:
        await asyncio.sleep(0)


class Gate:
    """An answer that is held back until it is opened, and counts who waits behind it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside = 0
        self.most = 0

    async def __call__(self, request: RecordedRequest) -> Response:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.open.wait()
        self.inside -= 1
        return Response()


async def test_max_concurrency_is_per_endpoint_and_in_order(make_client: MakeClient, server: RecordingServer) -> None:
    gate = Gate()
    server.answer = gate
    client = make_client(max_concurrency=2)
    calls = [
        asyncio.create_task(client.invoke_endpoint(EndpointName=name, Body=b"%d" % number))
        for number in range(6)
        for name in ("a", "b")
    ]
    await server.until(lambda server: len(server.requests) == 4)
    await waiting_calls(client, 8)
    statistics = client.statistics()
    assert (statistics.in_use, statistics.waiting) == (4, 8)
    assert set(statistics.endpoints) == {"a", "b"}
    assert statistics.endpoints["a"].in_use == 2
    gate.open.set()
    await asyncio.gather(*calls)
    assert gate.most == 4
    for path in ("/endpoints/a/invocations", "/endpoints/b/invocations"):
        bodies = [request.body for request in server.requests if request.path == path]
        # Within a pair the two connections race; the pairs come in order.
        assert [set(bodies[i : i + 2]) for i in (0,)] == [{b"0", b"1"}]
        assert sorted(bodies) == [b"%d" % number for number in range(6)]
    assert client.statistics().in_use == client.statistics().waiting == 0


async def test_calls_come_in_the_order_in_which_they_were_made(
    make_client: MakeClient, server: RecordingServer
) -> None:
    client = make_client(max_concurrency=1)
    await asyncio.gather(*(client.invoke_endpoint(EndpointName="e", Body=b"%d" % number) for number in range(30)))
    assert [request.body for request in server.requests] == [b"%d" % number for number in range(30)]
    assert server.connections_made == 1


async def test_a_view_with_its_own_limit(make_client: MakeClient, server: RecordingServer) -> None:
    gate = Gate()
    server.answer = gate
    client = make_client(max_concurrency=1)
    same, other = client.with_options(deadline=30.0), client.with_options(max_concurrency=2)
    calls = [asyncio.create_task(caller.invoke_endpoint(**CALL)) for caller in (client, same, other, other, other)]
    await server.until(lambda server: len(server.requests) == 3)
    await waiting_calls(client, 1)
    await waiting_calls(other, 1)
    assert (client.statistics().in_use, client.statistics().waiting) == (1, 1)
    assert (same.statistics().in_use, same.statistics().waiting) == (1, 1)
    assert (other.statistics().in_use, other.statistics().waiting) == (2, 1)
    gate.open.set()
    await asyncio.gather(*calls)
    # What was sent is counted once for all of them.
    assert client.statistics().calls == other.statistics().calls == 5


async def test_a_stream_holds_its_slot_until_it_ends(make_client: MakeClient, server: RecordingServer) -> None:
    client = make_client(max_concurrency=1)
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    assert client.statistics().in_use == 1
    waiting = asyncio.create_task(client.invoke_endpoint(**CALL))
    await waiting_calls(client, 1)
    async with response["Body"]:
        pass
    await waiting
    assert client.statistics().in_use == 0


async def test_an_unclosed_stream_warns_and_releases_its_slot(client: Client) -> None:
    response: Any = await client.invoke_endpoint_with_response_stream(**CALL)
    with pytest.warns(ResourceWarning, match="unclosed <EventStream"):
        del response
    await asyncio.sleep(0)
    assert client.statistics().in_use == 0


# Numbers


async def test_statistics(make_client: MakeClient, server: RecordingServer) -> None:
    hidden = [("x-amzn-errortype", "ThrottlingException")]
    server.answer = respond_in_turn(
        Response(400, hidden, b'{"message":null}'),
        None,
        Response(503, (), b"{}"),
        Response(200, (), b"0123456789"),
    )
    client = make_client(
        retry=RetryPolicy(max_attempts=4, base_delay=0.0, throttling_base_delay=0.0, retry_stale_connections=False)
    )
    before = client.statistics()
    assert (before.calls, before.attempts, before.retries, before.bytes_sent) == (0, 0, {}, 0)
    await client.invoke_endpoint(**CALL)
    after = client.statistics()
    assert (after.calls, after.attempts, after.throttles) == (1, 4, 1)
    assert after.retries == {"throttling": 1, "connection": 1, "transient": 1}
    assert after.bytes_sent == 4 * len(CALL["Body"])
    assert after.bytes_received == len(b'{"message":null}') + len(b"{}") + 10
    # A snapshot, not a window.
    assert before.calls == 0


# Observers


async def test_observers_see_every_step(make_client: MakeClient, server: RecordingServer) -> None:
    seen: list[events.Event] = []
    server.answer = respond_in_turn(Response(503, (), b"{}"), Response(200, [("x-amzn-RequestId", "r-1")], b"ok"))
    client = make_client(observers=[seen.append], retry=RetryPolicy(base_delay=0.0))
    await client.invoke_endpoint(**CALL)
    kinds = [type(event) for event in seen if not isinstance(event, events.CredentialsRefreshed)]
    assert kinds == [
        events.CallStarted,
        events.AttemptStarted,
        events.AttemptEnded,
        events.RetryScheduled,
        events.AttemptStarted,
        events.AttemptEnded,
        events.CallEnded,
    ]
    started = [event for event in seen if isinstance(event, events.AttemptStarted)]
    ended = [event for event in seen if isinstance(event, events.AttemptEnded)]
    (finished,) = [event for event in seen if isinstance(event, events.CallEnded)]
    assert [event.attempt for event in started] == [1, 2]
    assert [event.status for event in ended] == [503, 200]
    assert [event.error for event in ended] == ["503", None]
    assert ended[1].request_id == "r-1"
    assert (finished.attempts, finished.error) == (2, None)
    invocation = server.last.header("amz-sdk-invocation-id")
    assert {event.invocation_id for event in started} == {event.invocation_id for event in ended} == {invocation}
    assert finished.invocation_id == invocation
    assert all(event.body_bytes == len(CALL["Body"]) for event in started)
    assert finished.duration >= ended[1].duration >= 0


async def test_observers_see_an_attempt_that_is_cancelled_end(make_client: MakeClient, server: RecordingServer) -> None:
    seen: list[events.Event] = []
    client = make_client(observers=[seen.append])
    gate = Gate()
    server.answer = gate
    call = asyncio.create_task(client.invoke_endpoint(**CALL))
    await server.until(lambda server: len(server.requests) == 1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    gate.open.set()
    ended = [event for event in seen if isinstance(event, events.AttemptEnded | events.CallEnded)]
    assert [(type(event), event.error) for event in ended] == [
        (events.AttemptEnded, "CancelledError"),
        (events.CallEnded, "CancelledError"),
    ]


async def test_observers_see_failures_streams_and_waits(make_client: MakeClient, server: RecordingServer) -> None:
    from aiosmrt._wire.eventstream import encode_payload_part

    seen: list[events.Event] = []
    client = make_client(observers=[seen.append], max_concurrency=1)
    server.answer = respond(424, b'{"OriginalStatusCode": 500}', [("x-amzn-errortype", "ModelError")])
    with pytest.raises(errors.ModelError):
        await client.invoke_endpoint(**CALL)
    assert isinstance(seen[-1], events.CallEnded)
    assert seen[-1].error == "ModelError"

    server.answer = respond(200, encode_payload_part(b"one") + encode_payload_part(b"twoo"))
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    waiting = asyncio.create_task(client.invoke_endpoint(**CALL))
    await waiting_calls(client, 1)
    async with response["Body"] as stream:
        assert len([event async for event in stream]) == 2
    (ended,) = [event for event in seen if isinstance(event, events.StreamEnded)]
    assert (ended.parts, ended.payload_bytes, ended.complete) == (2, 7, True)
    await waiting
    (waited,) = [event for event in seen if isinstance(event, events.LimiterWaited)]
    assert waited.endpoint_name == "e"
    assert waited.duration >= 0


async def test_the_first_part_of_a_stream(make_client: MakeClient, server: RecordingServer) -> None:
    from aiosmrt._wire.eventstream import encode_payload_part

    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield encode_payload_part(b"one")
        await go_on.wait()
        yield encode_payload_part(b"three")

    now = 100.0
    seen: list[events.Event] = []
    client = make_client(observers=[seen.append])
    set_clock(client, lambda: now)
    server.answer = lambda request: Response(200, [], parts())
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        assert stream.timing == StreamTiming(None, None, None, 0.0, 0, 0)
        now += 0.5
        await anext(stream)
        assert stream.timing == StreamTiming(0.5, None, None, 0.5, 1, 3)
        now += 2.0
        go_on.set()
        await anext(stream)
        now += 1.0
        assert stream.timing == StreamTiming(0.5, 2.0, 2.0, 3.5, 2, 8)
    now += 10.0
    assert stream.timing == StreamTiming(0.5, 2.0, 2.0, 3.5, 2, 8)
    (first,) = [event for event in seen if isinstance(event, events.FirstPart)]
    assert (first.operation, first.endpoint_name, first.duration) == ("InvokeEndpointWithResponseStream", "e", 0.5)


async def test_the_first_part_counts_from_the_first_attempt(make_client: MakeClient, server: RecordingServer) -> None:
    from aiosmrt._wire.eventstream import encode_payload_part

    now = 100.0

    def observe(event: events.Event) -> None:
        nonlocal now
        seen.append(event)
        if isinstance(event, events.RetryScheduled):
            now += 3.0

    seen: list[events.Event] = []
    client = make_client(observers=[observe])
    set_clock(client, lambda: now)
    set_sleep(client, no_sleep)
    server.answer = respond_in_turn(Response(503), Response(200, [], encode_payload_part(b"one")))
    response = await client.invoke_endpoint_with_response_stream(**CALL)
    async with response["Body"] as stream:
        assert len([event async for event in stream]) == 1
    assert [event.duration for event in seen if isinstance(event, events.FirstPart)] == [3.0]
    assert stream.timing.first_part == 3.0


async def test_statistics_as_dictionaries(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = respond_in_turn(Response(503), Response(200, [], b"ok"))
    client = make_client()
    set_sleep(client, no_sleep)
    await client.invoke_endpoint(**CALL)
    statistics = client.statistics()
    found = statistics.as_dict()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == set(statistics._fields)
    assert (found["calls"], found["attempts"], found["retries"]) == (1, 2, {"transient": 1})
    assert found["endpoints"]["e"] == {
        "in_use": 0,
        "waiting": 0,
        "max_concurrency": statistics.endpoints["e"].max_concurrency,
        "held_back": 0,
        "illness": None,
        "reason": None,
        "round_trip": None,
    }


async def test_a_failing_observer_does_not_affect_the_call(make_client: MakeClient, server: RecordingServer) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    seen: list[events.Event] = []

    def fails(event: events.Event) -> None:
        raise RuntimeError("observer")

    client = make_client(observers=[fails, seen.append])
    response = await client.invoke_endpoint(**CALL)
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert seen
    assert len(complaints) == len(seen)
    assert all(str(context["exception"]) == "observer" for context in complaints)


async def test_a_view_has_its_own_observers(make_client: MakeClient) -> None:
    of_client: list[events.Event] = []
    of_view: list[events.Event] = []
    client = make_client(observers=[of_client.append])
    view = client.with_options(observers=[of_view.append])
    await view.invoke_endpoint(**CALL)
    assert any(isinstance(event, events.CallEnded) for event in of_view)
    assert not any(isinstance(event, events.CallEnded) for event in of_client)
