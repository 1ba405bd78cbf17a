"""Error trackers report the local variables of every frame in a traceback: those hold no secret, body or attribute."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from aiosmrt import Client, Credentials, RetryPolicy
from aiosmrt.batch import Scorer
from aiosmrt.endpoint import Endpoint, JobHandle, PredictionStream
from aiosmrt.errors import AiosmrtError, DeserializationError
from aiosmrt.serializers import JSON
from tests.support.clients import MakeClient
from tests.support.eventstream import encode
from tests.support.recording_server import RecordedRequest, RecordingServer, Response
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


async def opened_with(endpoint: Endpoint[Any, Any], data: Any) -> None:
    async with endpoint.session(open_with=data):
        pass


async def closed_with(endpoint: Endpoint[Any, Any], data: Any) -> None:
    async with endpoint.session(close_with=data) as session:
        session.id = "1"


async def in_groups(endpoint: Endpoint[Any, Any], data: Any) -> None:
    async with endpoint.map([data] * 3, batch_size=2, custom_attributes=SECRETS["custom attributes"]) as results:
        async for result in results:
            result.unwrap()


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
    "session opened with": opened_with,
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


@pytest.mark.parametrize("answer", [ANSWERS["throttled"], ANSWERS["reset"]], ids=["throttled", "reset"])
async def test_the_end_of_a_session(make_client: MakeClient, server: RecordingServer, answer: Response | None) -> None:
    server.answer = lambda request: answer
    endpoint = endpoint_of(make_client(retry=RetryPolicy(max_attempts=1), **CREDENTIALS))
    with pytest.raises(AiosmrtError) as caught:
        await closed_with(endpoint, {"text": SECRETS["request body"]})
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
    "a map's groups": lambda endpoint: endpoint.map([SECRETS["request body"]], batch_size=0, **ATTRIBUTES),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
async def test_refused_options(make_client: MakeClient, call: Callable[[Endpoint[Any, Any]], Any]) -> None:
    endpoint = endpoint_of(make_client(**CREDENTIALS))
    with pytest.raises(Exception, match="Parameter validation failed") as caught:
        call(endpoint)
    assert shown_locals(caught.value, SECRETS) == []


MISUSED: dict[str, Callable[[Endpoint[Any, Any]], Any]] = {
    "a session that is not entered": lambda endpoint: endpoint.session().predict(SECRETS["request body"], **ATTRIBUTES),
    "a stream of it": lambda endpoint: endpoint.session().stream(SECRETS["request body"], **ATTRIBUTES),
    "a job of two bodies": lambda endpoint: endpoint.submit(SECRETS["request body"], input_location="s3://b/k"),
    "a job's place": lambda endpoint: endpoint.submit(SECRETS["request body"], upload_to="nowhere", **ATTRIBUTES),
    "a job's time": lambda endpoint: endpoint.submit(SECRETS["request body"], request_ttl=1, **ATTRIBUTES),
    "an unknown option": lambda endpoint: endpoint.with_options(bogus=1, **ATTRIBUTES),  # type: ignore[call-arg]
    "an unknown option of a client's": lambda endpoint: endpoint.client.endpoint(  # type: ignore[attr-defined]
        "churn", serializer=JSON, deserializer=JSON, bogus=1, **ATTRIBUTES
    ),
}


@pytest.mark.parametrize("call", MISUSED.values(), ids=MISUSED)
async def test_misuse(make_client: MakeClient, call: Callable[[Endpoint[Any, Any]], Any]) -> None:
    endpoint = endpoint_of(make_client(**CREDENTIALS))
    with pytest.raises((AiosmrtError, TypeError)) as caught:
        await call(endpoint)
    assert shown_locals(caught.value, SECRETS) == []


class Leaving:
    """A codec that ends the program."""

    content_type = accept = "application/json"

    def serialize(self, data: Any) -> bytes:
        raise GeneratorExit

    def deserialize(self, body: bytes, content_type: str) -> Any:
        raise GeneratorExit


@pytest.mark.parametrize("batch_size", [None, 2])
async def test_what_ends_a_map(make_client: MakeClient, batch_size: Any) -> None:
    endpoint = make_client(**CREDENTIALS).endpoint("churn", serializer=Leaving(), deserializer=Leaving())
    with pytest.raises(GeneratorExit) as caught:
        async with endpoint.map([{"text": SECRETS["request body"]}] * 2, batch_size=batch_size) as results:
            await anext(results)
    assert shown_locals(caught.value, SECRETS) == []


async def test_items_that_raise(make_client: MakeClient, server: RecordingServer) -> None:
    def items() -> Iterator[str]:
        yield SECRETS["request body"]
        raise RuntimeError("no more")

    endpoint = endpoint_of(make_client(**CREDENTIALS))
    with pytest.raises(RuntimeError, match="no more") as caught:
        async with endpoint.map(items(), batch_size=2) as results:
            async for _ in results:
                pass
    assert shown_locals(caught.value, SECRETS) == []


# Clients and their credentials

UNUSABLE: dict[str, dict[str, Any]] = {
    "API version": {"api_version": "1"},
    "region": {"region_name": 1},
    "observers": {"observers": 1},
    "authorities": {"verify": 1},
    "transport": {"transport": "pigeon"},
    "deadline": {"deadline": -1},
    "retry": {"retry": 1},
    "agent": {"user_agent_extra": "\n"},
    "concurrency": {"max_concurrency": 0},
    "type of a key": {"aws_secret_access_key": SECRETS["secret key"].encode()},
    "one key": {"aws_access_key_id": None},
    "line break": {"aws_session_token": SECRETS["session token"] + "\n"},
    "two sources": {"credentials": Credentials(SECRETS["access key"], SECRETS["secret key"])},
    "a secret in place of credentials": {**dict.fromkeys(CREDENTIALS), "credentials": SECRETS["secret key"]},
}


@pytest.mark.parametrize("arguments", UNUSABLE.values(), ids=UNUSABLE)
def test_a_clients_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(AiosmrtError) as caught:
        Client(**{"region_name": "us-east-1", **CREDENTIALS, **arguments})
    assert shown_locals(caught.value, SECRETS) == []


SCORERS: dict[str, dict[str, Any]] = {
    "secrets for its clients": {"client_options": CREDENTIALS},
    "attributes": {"custom_attributes": SECRETS["custom attributes"] + "\n"},
    "template": {"template": {"text": SECRETS["request body"]}, "column": "text"},
}


@pytest.mark.parametrize("arguments", SCORERS.values(), ids=SCORERS)
def test_a_scorers_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(AiosmrtError) as caught:
        Scorer("churn", **{"custom_attributes": SECRETS["custom attributes"], **arguments})
    assert shown_locals(caught.value, SECRETS) == []


@pytest.mark.parametrize("part", ["access_key", "secret_key", "token", "expires_at"])
def test_credentials_that_cannot_be(part: str) -> None:
    parts: dict[str, Any] = {
        "access_key": SECRETS["access key"],
        "secret_key": SECRETS["secret key"],
        "token": SECRETS["session token"],
    }
    with pytest.raises(ValueError, match=part) as caught:
        Credentials(**{**parts, part: b"bytes"})
    assert shown_locals(caught.value, SECRETS) == []


# S3, whose library keeps the signed request in its frames

HANDLE = JobHandle("churn", "1", "s3://results/1.out", "s3://results/1.err")
S3_CALLS: dict[str, Callable[[Endpoint[Any, Any]], Awaitable[Any]]] = {
    "result": lambda endpoint: endpoint.job(HANDLE).result(),
    "done": lambda endpoint: endpoint.job(HANDLE).done(),
    "delete": lambda endpoint: endpoint.job(HANDLE).delete(),
    "upload": lambda endpoint: endpoint.submit(SECRETS["request body"] * 10_000, upload_to="s3://requests"),
}


@pytest.mark.parametrize("call", S3_CALLS.values(), ids=S3_CALLS)
async def test_a_cancelled_wait_for_s3(
    make_client: MakeClient, server: RecordingServer, call: Callable[[Endpoint[Any, Any]], Awaitable[Any]]
) -> None:
    arrived = asyncio.Event()

    async def silent(request: RecordedRequest) -> Response:
        if arrived.is_set():
            return Response(204)  # what was uploaded is deleted
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    server.answer = silent
    endpoint = endpoint_of(make_client(s3_endpoint_url=server.url, **CREDENTIALS))
    calling = asyncio.ensure_future(call(endpoint))
    await arrived.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await calling
    assert shown_locals(caught.value, SECRETS) == []


@pytest.mark.parametrize("call", S3_CALLS.values(), ids=S3_CALLS)
async def test_credentials_that_fail_for_s3(
    make_client: MakeClient, server: RecordingServer, call: Callable[[Endpoint[Any, Any]], Awaitable[Any]]
) -> None:
    async def fail() -> Credentials:
        raise RuntimeError("no credentials")

    endpoint = endpoint_of(make_client(s3_endpoint_url=server.url, **dict.fromkeys(CREDENTIALS), credentials=fail))
    with pytest.raises(AiosmrtError, match="credentials") as caught:
        await call(endpoint)
    assert shown_locals(caught.value, SECRETS) == []


async def test_an_answer_in_s3_that_cannot_be_read(make_client: MakeClient, server: RecordingServer) -> None:
    written = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    server.answer = lambda request: Response(200, [("Last-Modified", written)], RESPONSE)
    endpoint = endpoint_of(make_client(s3_endpoint_url=server.url, **CREDENTIALS))
    with pytest.raises(DeserializationError) as caught:
        await endpoint.job(HANDLE).result()
    assert shown_locals(caught.value, SECRETS) == []


# Tasks under way, whose outermost frame `asyncio.Task.get_stack` gives


TASKS: dict[str, Callable[[Endpoint[Any, Any], Any], Awaitable[Any]]] = {
    **OBJECT_CALLS,
    "map in groups": in_groups,
    "itself": lambda endpoint, data: endpoint.predict(data, **ATTRIBUTES),
    "its inference": lambda endpoint, data: endpoint.invoke(data, **ATTRIBUTES),
    "its job": lambda endpoint, data: endpoint.submit(data, **ATTRIBUTES),
}


@pytest.mark.parametrize("call", TASKS.values(), ids=TASKS)
async def test_tasks_under_way(
    make_client: MakeClient, server: RecordingServer, call: Callable[..., Awaitable[None]]
) -> None:
    arrived = asyncio.Event()

    async def silent(request: Any) -> None:
        arrived.set()
        await asyncio.Event().wait()

    server.answer = silent
    calling = asyncio.ensure_future(call(endpoint_of(make_client(**CREDENTIALS)), {"text": SECRETS["request body"]}))
    await arrived.wait()
    found = [
        f"{what} in {frame.f_code.co_qualname}: {name}"
        for task in asyncio.all_tasks() - {asyncio.current_task()}
        for frame in task.get_stack()
        if "/tests/" not in frame.f_code.co_filename
        for name, value in frame.f_locals.items()
        for what, secret in SECRETS.items()
        if secret in repr(value)
    ]
    calling.cancel()
    await asyncio.wait({calling})
    assert found == []
