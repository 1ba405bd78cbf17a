"""Error trackers report the local variables of every frame in a traceback: those hold no secret, body or attribute."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from aiosmrt import Client, RetryPolicy
from aiosmrt.endpoint import Endpoint, PredictionStream
from aiosmrt.errors import DeserializationError
from aiosmrt.serializers import JSON
from tests.support.clients import MakeClient
from tests.support.eventstream import encode
from tests.support.recording_server import RecordingServer, Response
from tests.support.tracebacks import shown_locals

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
    assert shown_locals(caught.value, SECRETS) == []


async def test_calls_that_run_out_of_time(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = lambda request: Response(503)
    client = make_client(deadline=0.2, **CREDENTIALS)
    for call in CALLS.values():
        with pytest.raises(Exception) as caught:
            await call(client)
        assert shown_locals(caught.value, SECRETS) == []


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
    assert shown_locals(caught.value, SECRETS) == []


class BreaksInTheMiddle(io.BytesIO):
    """A file whose second read fails."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size != 0 and self.tell():
            raise OSError("the disk is gone")
        return super().read(size)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_file_that_fails_in_the_middle(make_client: MakeClient, call: Callable[..., Awaitable[None]]) -> None:
    with pytest.raises(OSError, match="the disk is gone") as caught:
        await call(make_client(**CREDENTIALS), Body=BreaksInTheMiddle(SECRETS["request body"].encode()))
    assert shown_locals(caught.value, SECRETS) == []


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


async def streamed(endpoint: Endpoint[Any, Any], data: Any) -> None:
    async with endpoint.stream(data, custom_attributes=SECRETS["custom attributes"]) as parts:
        async for _ in parts.jsonl():
            pass


OBJECT_CALLS = {
    "predict": predict,
    "invoke": invoke,
    "map": first_of_map,
    "submit": submit,
    "session": in_a_session,
    "stream": streamed,
}
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
    assert shown_locals(caught.value, SECRETS) == []


VIEWS: dict[str, Callable[[PredictionStream], AsyncIterator[Any]]] = {
    "text": PredictionStream.text,
    "lines": PredictionStream.lines,
    "jsonl": PredictionStream.jsonl,
    "json": PredictionStream.json,
    "sse": PredictionStream.sse,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
async def test_views_of_streams(
    make_client: MakeClient, server: RecordingServer, view: Callable[[PredictionStream], AsyncIterator[Any]]
) -> None:
    part = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}
    answer = encode(part, RESPONSE + b"\xff\n" + RESPONSE) + encode(part, RESPONSE)
    server.answer = lambda request: Response(200, [("Content-Type", "application/vnd.amazon.eventstream")], answer)
    endpoint = endpoint_of(make_client(**CREDENTIALS))
    with pytest.raises(DeserializationError) as caught:
        async with endpoint.stream({"text": SECRETS["request body"]}) as stream:
            async for _ in view(stream):
                pass
    assert shown_locals(caught.value, SECRETS) == []


ATTRIBUTES: dict[str, Any] = {"custom_attributes": SECRETS["custom attributes"]}
REFUSED: dict[str, Callable[[Endpoint[Any, Any]], Any]] = {
    "a stream's option": lambda endpoint: endpoint.stream(SECRETS["request body"], target_model="m", **ATTRIBUTES),
    "a stream's limit": lambda endpoint: endpoint.stream(SECRETS["request body"], part_timeout=-1, **ATTRIBUTES),
    "a map's option": lambda endpoint: endpoint.map([SECRETS["request body"]], target_variant="_", **ATTRIBUTES),
    "a map's limit": lambda endpoint: endpoint.map([SECRETS["request body"]], concurrency=0, **ATTRIBUTES),
    "a map's rows": lambda endpoint: endpoint.map_rows([SECRETS["request body"]], **ATTRIBUTES),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
async def test_refused_options(make_client: MakeClient, call: Callable[[Endpoint[Any, Any]], Any]) -> None:
    endpoint = endpoint_of(make_client(**CREDENTIALS))
    with pytest.raises(Exception, match="Parameter validation failed") as caught:
        call(endpoint)
    assert shown_locals(caught.value, SECRETS) == []
