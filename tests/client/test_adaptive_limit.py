"""Clients and views with an adaptive limit, against a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiosmrt import AdaptiveLimit, Client, ParamValidationError, RetryPolicy, ThrottlingError, events
from aiosmrt.serializers import JSON
from tests.support.clients import MakeClient
from tests.support.recording_server import RecordingServer, respond, respond_in_turn

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}
THROTTLED = respond(429, b"{}", [("x-amzn-errortype", "ThrottlingException")])


async def calls(client: Client, number: int, **members: Any) -> None:
    await asyncio.gather(*(client.invoke_endpoint(**{**CALL, **members}) for _ in range(number)))


async def test_the_limit_of_each_target_grows_with_its_own_successes(make_client: MakeClient) -> None:
    client = make_client(max_concurrency="adaptive")
    await calls(client, 64)
    await calls(client, 1, EndpointName="other")
    used, other = (client.statistics().endpoints[name] for name in ("e", "other"))
    assert used.max_concurrency > 4
    assert used.reason == "growth"
    assert used.round_trip is not None
    assert 0 < used.round_trip < 60
    assert (other.max_concurrency, other.reason, other.round_trip) == (4, "start", None)
    assert client.max_concurrency == 1000


async def test_no_more_calls_are_in_flight_than_it_allows(make_client: MakeClient, server: RecordingServer) -> None:
    client = make_client(max_concurrency=AdaptiveLimit(initial=2, maximum=3))
    seen = 0

    def answer(request: object) -> Any:
        nonlocal seen
        seen = max(seen, client.statistics().in_use)
        return ok(request)  # type: ignore[arg-type]

    ok = respond()
    server.answer = answer
    await calls(client, 100)
    assert 2 <= seen <= 3
    assert client.statistics().endpoints["e"].max_concurrency == 3


async def test_a_refusal_lowers_it_and_observers_are_told(make_client: MakeClient, server: RecordingServer) -> None:
    seen: list[events.Event] = []
    client = make_client(
        max_concurrency=AdaptiveLimit(initial=2), observers=[seen.append], patience=0, retry=RetryPolicy(max_attempts=1)
    )
    server.answer = THROTTLED
    results = await asyncio.gather(*(client.invoke_endpoint(**CALL) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [ThrottlingError] * 2
    (moved,) = [event for event in seen if isinstance(event, events.LimitMoved)]
    assert (moved.operation, moved.endpoint_name) == ("InvokeEndpoint", "e")
    assert (moved.limit, moved.reason, moved.round_trip) == (1, "refusal", None)
    assert client.statistics().endpoints["e"].max_concurrency == 1


async def test_observers_of_a_fixed_limit_see_no_such_event(make_client: MakeClient, server: RecordingServer) -> None:
    seen: list[events.Event] = []
    client = make_client(max_concurrency=2, observers=[seen.append])
    throttled, ok = THROTTLED(None), respond()(None)  # type: ignore[arg-type]
    server.answer = respond_in_turn(throttled, throttled, ok)
    await calls(client, 4)
    assert client.statistics().throttles == 2
    assert [event for event in seen if isinstance(event, events.LimitMoved)] == []
    assert client.statistics().endpoints["e"].reason is None


async def test_a_view_has_its_own(make_client: MakeClient) -> None:
    client = make_client(max_concurrency=8)
    view = client.with_options(max_concurrency=AdaptiveLimit(initial=5, maximum=50))
    await calls(client, 1)
    await calls(view, 1)
    assert client.statistics().endpoints["e"].max_concurrency == 8
    assert view.statistics().endpoints["e"].max_concurrency == 5
    assert (client.max_concurrency, view.max_concurrency) == (8, 50)


async def test_a_map_under_an_adaptive_limit_has_every_result(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = respond(200, b"1", [("Content-Type", "application/json")])
    endpoint = make_client(max_concurrency="adaptive").endpoint("e", serializer=JSON, deserializer=JSON)
    async with endpoint.map(range(300)) as results:
        assert [result.value async for result in results] == [1] * 300  # type: ignore[union-attr]
    assert len(server.requests) == 300


async def test_the_default_stays_fixed(client: Client) -> None:
    assert client.max_concurrency == 100
    await calls(client, 1)
    assert client.statistics().endpoints["e"].reason is None


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "8", "automatic", None, [4]])
def test_anything_else_is_refused(wrong: Any) -> None:
    message = 'max_concurrency must be an integer >= 1, "adaptive" or an AdaptiveLimit; got'
    with pytest.raises(ParamValidationError, match=message):
        Client("eu-central-1", max_concurrency=wrong)
    with pytest.raises(ParamValidationError, match=message):
        Client("eu-central-1").with_options(max_concurrency=wrong)
