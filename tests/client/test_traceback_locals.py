"""Error trackers report the local variables of every frame in a traceback: those hold no secret, body or attribute."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiosmrt import Client, RetryPolicy
from aiosmrt.endpoint import Endpoint
from aiosmrt.serializers import JSON
from tests.support.clients import MakeClient
from tests.support.recording_server import RecordingServer, Response

SECRETS = {
    "access key": "AKIDMARKED",
    "secret key": "marked-secret-key",
    "session token": "marked-session-token",
    "request body": "marked-request",
    "custom attributes": "marked-attributes",
    "response body": "marked-response",
    "signature": "Signature=",
}
CREDENTIALS = {
    "aws_access_key_id": SECRETS["access key"],
    "aws_secret_access_key": SECRETS["secret key"],
    "aws_session_token": SECRETS["session token"],
}


def shown(error: BaseException) -> list[str]:
    """Which secrets stand in the locals of frames that are the package's."""
    found = set()
    reports = [traceback.TracebackException.from_exception(error, capture_locals=True)]
    while reports:
        report = reports.pop()
        reports += [other for other in (report.__cause__, report.__context__) if other is not None]
        for frame in report.stack:
            if "/aiosmrt/" in frame.filename and "/tests/" not in frame.filename:
                for name, text in (frame.locals or {}).items():
                    found |= {f"{what}: {frame.name}, {name}" for what in SECRETS if SECRETS[what] in text}
    return sorted(found)


async def plain(client: Client, **params: Any) -> None:
    await client.invoke_endpoint(
        EndpointName="churn",
        **{"Body": SECRETS["request body"].encode(), "CustomAttributes": SECRETS["custom attributes"], **params},
    )


async def stream(client: Client, **params: Any) -> None:
    result = await client.invoke_endpoint_with_response_stream(
        EndpointName="llm",
        **{"Body": SECRETS["request body"].encode(), "CustomAttributes": SECRETS["custom attributes"], **params},
    )
    async with result["Body"] as parts:
        async for _ in parts:
            pass


async def by_name(client: Client, **params: Any) -> None:
    given = {"Body": SECRETS["request body"].encode(), "CustomAttributes": SECRETS["custom attributes"], **params}
    await client.make_request("InvokeEndpoint", {"EndpointName": "churn", **given})


async def presigned(client: Client, **params: Any) -> None:
    given = {"Body": SECRETS["request body"], "CustomAttributes": SECRETS["custom attributes"], **params}
    await client.generate_presigned_url("invoke_endpoint", {"EndpointName": "churn", **given})


async def asynchronous(client: Client, **params: Any) -> None:
    given = {"CustomAttributes": SECRETS["custom attributes"], "Body": SECRETS["request body"].encode(), **params}
    await client.invoke_endpoint_async(EndpointName="churn", **given)


RESPONSE = SECRETS["response body"].encode()

ANSWERS: dict[str, Response | None] = {
    "reset": None,
    "throttled": Response(400, [("x-amzn-errortype", "ThrottlingException")], RESPONSE),
    "unavailable": Response(503, [], RESPONSE),
    "malformed": Response(raw=b"HTTP/1.1 200 OK\r\nno header\r\n\r\n" + RESPONSE),
    "cut off": Response(200, [], RESPONSE, cut=True, declared_length=100),
}
CALLS = {"plain": plain, "stream": stream, "by name": by_name, "asynchronous": asynchronous}


@pytest.mark.parametrize("observed", [False, True], ids=["", "observed"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_failed_calls(
    make_client: MakeClient,
    server: RecordingServer,
    call: Callable[..., Awaitable[None]],
    answer: Response | None,
    observed: bool,
) -> None:
    server.answer = lambda request: answer
    observers = ({"observers": (lambda event: None,)},) if observed else ({},)
    client = make_client(retry=RetryPolicy(max_attempts=2, base_delay=0.0), **CREDENTIALS, **observers[0])
    with pytest.raises(Exception) as caught:
        await call(client)
    assert server.requests, "it was sent"
    assert shown(caught.value) == []


async def test_calls_that_run_out_of_time(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = lambda request: Response(503)
    client = make_client(deadline=0.2, **CREDENTIALS)
    for call in CALLS.values():
        with pytest.raises(Exception) as caught:
            await call(client)
        assert shown(caught.value) == []


FAULTS: dict[str, dict[str, Any]] = {
    "unknown parameter": {"Bogus": SECRETS["request body"]},
    "missing body": {"Body": None},
    "wrong type": {"ContentType": 1},
    "lone surrogate": {"Body": SECRETS["request body"] + "\ud800"},
    "control character": {"CustomAttributes": SECRETS["custom attributes"] + "\n"},
}


@pytest.mark.parametrize("call", [*CALLS.values(), presigned], ids=[*CALLS, "presigned"])
@pytest.mark.parametrize("params", FAULTS.values(), ids=FAULTS)
async def test_refused_parameters(
    make_client: MakeClient, call: Callable[..., Awaitable[None]], params: dict[str, Any]
) -> None:
    client = make_client(**CREDENTIALS)
    with pytest.raises(Exception, match="Parameter validation failed") as caught:
        await call(client, **params)
    assert shown(caught.value) == []


# Objects of an endpoint


def endpoint_of(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("churn", serializer=JSON, deserializer=JSON)


async def predict(endpoint: Endpoint[Any, Any], data: Any) -> None:
    await endpoint.predict(data, custom_attributes=SECRETS["custom attributes"])


async def invoke(endpoint: Endpoint[Any, Any], data: Any) -> None:
    await endpoint.invoke(data, custom_attributes=SECRETS["custom attributes"])


async def first_of_map(endpoint: Endpoint[Any, Any], data: Any) -> None:
    async with endpoint.map([data], custom_attributes=SECRETS["custom attributes"]) as results:
        result = await anext(results)
    if result.error is not None:
        raise result.error


async def submit(endpoint: Endpoint[Any, Any], data: Any) -> None:
    await endpoint.submit(data, custom_attributes=SECRETS["custom attributes"])


async def in_a_session(endpoint: Endpoint[Any, Any], data: Any) -> None:
    async with endpoint.session() as session:
        await session.predict(data, custom_attributes=SECRETS["custom attributes"])


OBJECT_CALLS = {"predict": predict, "invoke": invoke, "map": first_of_map, "submit": submit, "session": in_a_session}
DATA: dict[str, Any] = {
    "sent": {"text": SECRETS["request body"]},
    "large": {"text": SECRETS["request body"] + "x" * 1_000_000},
    "not serializable": {"text": SECRETS["request body"], "object": object()},
}


@pytest.mark.parametrize("answer", [ANSWERS["throttled"], ANSWERS["reset"], Response(200, [], RESPONSE)])
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("call", OBJECT_CALLS.values(), ids=OBJECT_CALLS)
async def test_objects(
    make_client: MakeClient,
    server: RecordingServer,
    call: Callable[..., Awaitable[None]],
    data: Any,
    answer: Response | None,
) -> None:
    server.answer = lambda request: answer
    client = make_client(retry=RetryPolicy(max_attempts=1), **CREDENTIALS)
    with pytest.raises(Exception) as caught:
        await call(endpoint_of(client), data)
    assert shown(caught.value) == []
