"""Clients, endpoints and their objects cannot be pickled: the error is clear, and a secret never leaves."""

import copy
import pickle
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest

from aiosmrt import Client, Credentials
from aiosmrt.endpoint import JobHandle
from aiosmrt.integrations.openai import async_openai, http_client
from aiosmrt.local import LocalRuntime, ObjectServer
from aiosmrt.serializers import JSON

SECRET = "not-a-real-secret-1234567890"
HANDLE = JobHandle("churn", None, "s3://bucket/1.out")


def fresh() -> Client:
    return Client(
        "eu-central-1", aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key=SECRET, aws_session_token=SECRET
    )


THINGS: dict[str, tuple[Callable[[Client], Any], str]] = {
    "client": (lambda client: client, "make a client in each process"),
    "view": (lambda client: client.with_options(deadline=1.0), "make a client in each process"),
    "method": (lambda client: client.invoke_endpoint, "make a client in each process"),
    "partial": (lambda client: partial(client.make_request, "InvokeEndpoint"), "make a client in each process"),
    "meta": (lambda client: client.meta, "make a client in each process"),
    "container": (lambda client: {"clients": [client]}, "make a client in each process"),
    "endpoint": (lambda client: endpoint_of(client), "make a client in each process"),
    "endpoint's method": (lambda client: endpoint_of(client).predict, "make a client in each process"),
    "session": (lambda client: endpoint_of(client).session(), "make a client in each process"),
    "job": (lambda client: endpoint_of(client).job(HANDLE), "pickle its handle"),
    "stream": (lambda client: endpoint_of(client).stream(1), "make a client in each process"),
    "map": (lambda client: endpoint_of(client).map([1]), "make a client in each process"),
    "map in groups": (lambda client: endpoint_of(client).map([1], batch_size=2), "make a client in each process"),
    "duplex": (lambda client: endpoint_of(client).duplex(), "make a client in each process"),
    "bidirectional stream": (
        lambda client: client.invoke_endpoint_with_bidirectional_stream(EndpointName="speech"),
        "make a client in each process",
    ),
    "bearer token": (lambda client: client.bearer_token(), "make a client in each process"),
    "OpenAI's client": (lambda client: async_openai(client), "make a client in each process"),
    "an HTTP client": (lambda client: http_client(client), "make a client in each process"),
}


def endpoint_of(client: Client) -> Any:
    return client.endpoint("churn", serializer=JSON, deserializer=JSON)


def check_refused(thing: Any, message: str) -> None:
    ways: list[Callable[[Any], Any]] = [partial(pickle.dumps, protocol=number) for number in range(6)]
    for way in [*ways, copy.copy, copy.deepcopy]:
        if way is copy.copy and isinstance(thing, (dict, partial, MethodType)):
            continue  # a shallow copy does not copy the client
        with pytest.raises(TypeError, match=message) as error:
            way(thing)
        assert SECRET not in f"{error.value!r}"


@pytest.mark.parametrize(("make", "message"), THINGS.values(), ids=list(THINGS))
async def test_objects_of_a_fresh_client(make: Callable[[Client], Any], message: str) -> None:
    check_refused(make(fresh()), message)


@pytest.mark.parametrize(("make", "message"), THINGS.values(), ids=list(THINGS))
async def test_objects_of_a_used_client(make: Callable[[Client], Any], message: str, serve: Any) -> None:
    async def model(invocation: Any) -> bytes:
        return b"1"

    client = await serve(churn=model)
    assert await endpoint_of(client).predict(1) == 1
    check_refused(make(client), message)


async def test_streams_under_way(serve: Any) -> None:
    async def model(invocation: Any) -> AsyncIterator[bytes]:
        yield b"1"

    client = await serve(churn=model)
    async with endpoint_of(client).stream(1) as stream:
        check_refused(stream, "make a client in each process")
        view = stream.bytes()
        check_refused(view, "make a client in each process")
        assert [part async for part in view] == [b"1"]
    response = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=b"1")
    check_refused(response["Body"], "make a client in each process")
    response["Body"].close()


def test_servers() -> None:
    credentials = Credentials("AKIDEXAMPLE", SECRET)
    check_refused(LocalRuntime({}, credentials=credentials), "start one in each process")
    check_refused(ObjectServer(credentials), "start one in each process")


def test_credentials_are_values_that_their_owner_may_hand_to_a_process() -> None:
    credentials = Credentials("AKIDEXAMPLE", SECRET, SECRET, 4e9)
    assert copy.copy(credentials) == copy.deepcopy(credentials) == credentials
    for number in range(6):
        assert pickle.loads(pickle.dumps(credentials, number)) == credentials


def test_a_handle_and_codecs_are_pickled() -> None:
    assert pickle.loads(pickle.dumps((HANDLE, JSON))) == (HANDLE, JSON)
