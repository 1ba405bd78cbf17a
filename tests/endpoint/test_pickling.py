"""Clients, endpoints and their objects cannot be pickled: the error is clear, and a secret never leaves."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.endpoint import JobHandle
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
}


def endpoint_of(client: Client) -> Any:
    return client.endpoint("churn", serializer=JSON, deserializer=JSON)


def check_refused(thing: Any, message: str) -> None:
    ways: list[Callable[[Any], Any]] = [partial(pickle.dumps, protocol=number) for number in range(6)]
    for way in [*ways, copy.copy, copy.deepcopy]:
        if way is copy.copy and type(thing).__name__ not in ("Client", "Endpoint", "Job"):
            continue  # a shallow copy does not copy the client
        with pytest.raises(TypeError, match=message) as error:
            way(thing)
        assert SECRET not in f"{error.value!r}"


@pytest.mark.parametrize(("make", "message"), THINGS.values(), ids=list(THINGS))
async def test_objects_of_a_fresh_client(make: Callable[[Client], Any], message: str):
    check_refused(make(fresh()), message)


@pytest.mark.parametrize(("make", "message"), THINGS.values(), ids=list(THINGS))
async def test_objects_of_a_used_client(make: Callable[[Client], Any], message: str, serve: Any):
    async def model(invocation: Any) -> bytes:
        return b"1"

    client = await serve(churn=model)
    assert await endpoint_of(client).predict(1) == 1
    check_refused(make(client), message)


def test_a_handle_and_codecs_are_pickled():
    assert pickle.loads(pickle.dumps((HANDLE, JSON))) == (HANDLE, JSON)
