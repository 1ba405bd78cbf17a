"""What ends a map before its items: failures that every call would have, and too many of them."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from aiosmrt import Client, errors
from aiosmrt.endpoint import Endpoint, Result
from aiosmrt.local import faults
from aiosmrt.serializers import JSON
from tests.endpoint.test_map import square
from tests.support.clients import Serve
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.raw_server import RawServer, error_response, response
from tests.support.seams import patience_of_map
from tests.support.tls import server_context

ROWS = 1000
CONCURRENCY = 8


def endpoint_of(client: Client, name: str = "square") -> Endpoint[Any, Any]:
    return client.endpoint(name, serializer=JSON, deserializer=JSON)


async def results_of(
    endpoint: Endpoint[Any, Any], rows: Any = range(ROWS), **options: Any
) -> tuple[list[Result[Any, Any]], Exception | None]:
    """The results of a map, and the error at their end."""
    found = []
    try:
        async with endpoint.map(rows, concurrency=CONCURRENCY, **options) as results:
            async for result in results:
                found.append(result)
    except errors.AiosmrtError as error:
        return found, error
    return found, None


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "UnrecognizedClientException"),
        (403, "InvalidSignatureException"),
        (403, "AccessDeniedException"),
        (403, "ExpiredTokenException"),
        (400, "ExpiredToken"),
        (403, "MissingAuthenticationToken"),
        (401, ""),
    ],
)
async def test_a_refused_caller_ends_the_map(status: int, code: str) -> None:
    async with RawServer() as server, Client(**{"endpoint_url": server.url, **CLIENT_ARGUMENTS}) as client:
        server.otherwise = [error_response(status, code) if code else response(status)]
        found, raised = await results_of(endpoint_of(client))
        assert isinstance(raised, errors.ServiceError)
        assert raised.status == status
        assert len(server.requests) == len(found) <= CONCURRENCY
        assert all(isinstance(result.error, errors.ServiceError) for result in found)


async def test_an_endpoint_that_does_not_exist_ends_the_map(serve: Serve) -> None:
    client = await serve(square=square)
    _, raised = await results_of(endpoint_of(client, "sqare"))
    assert isinstance(raised, errors.EndpointNotFoundError)
    assert client.statistics().attempts <= CONCURRENCY


async def test_a_certificate_that_does_not_verify_ends_the_map() -> None:
    async with (
        RawServer(tls=server_context()) as server,
        Client(**{"endpoint_url": server.url, **CLIENT_ARGUMENTS}) as client,
    ):
        found, raised = await results_of(endpoint_of(client))
        assert isinstance(raised, errors.SSLError)
        assert len(found) <= CONCURRENCY


async def test_other_refusals_fail_only_their_item(serve: Serve) -> None:
    client = await serve(square=square)
    found, raised = await results_of(endpoint_of(client), [1, -1, 2, -2, 3])
    assert raised is None
    assert [type(result.error) for result in found] == [
        type(None),
        errors.ModelError,
        type(None),
        errors.ModelError,
        type(None),
    ]


@pytest.mark.parametrize("patience", [0.05, 600.0])
async def test_a_service_that_was_never_reached_ends_the_map(patience: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a call's default patience at the latest, however long the map's is."""
    monkeypatch.setattr("aiosmrt.client.DEFAULT_PATIENCE", 0.05)
    with socket.socket() as bound:  # and never listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with Client(**{"endpoint_url": url, **CLIENT_ARGUMENTS}) as client:
            found, raised = await results_of(endpoint_of(client), patience=patience)
    assert isinstance(raised, errors.EndpointConnectionError)
    assert raised.never_reached
    assert len(found) <= CONCURRENCY + 1


async def test_a_service_that_goes_away_does_not_end_the_map() -> None:
    """Once the service was reached, items fail one by one: it may come back for the next."""
    async with RawServer() as server:
        server.otherwise = [response(200, b"1", [("Content-Type", "application/json")])]
        client = Client(**{"endpoint_url": server.url, **CLIENT_ARGUMENTS, "patience": 0})
        assert await endpoint_of(client).predict(1) == 1
    async with client:
        found, raised = await results_of(endpoint_of(client), range(20))
    assert raised is None
    assert len(found) == 20
    for result in found:
        assert isinstance(result.error, errors.TransportError)
        assert not result.error.never_reached


@pytest.mark.parametrize(("max_failures", "rows", "calls"), [(0, 30, 1), (3, 30, 4), (0.25, 100, 20), (0.25, 8, 8)])
async def test_too_many_failures_end_the_map(serve: Serve, max_failures: float, rows: int, calls: int) -> None:
    client = await serve(square=square)
    found = []
    with pytest.raises(errors.TooManyFailuresError) as caught:
        async with endpoint_of(client).map([-1] * rows, concurrency=1, max_failures=max_failures) as results:
            async for result in results:
                found.append(result)
    assert (caught.value.failures, caught.value.calls) == (calls, calls)
    assert len(found) == calls


async def test_as_many_failures_as_allowed_do_not_end_the_map(serve: Serve) -> None:
    client = await serve(square=square)
    rows = [-1 if number % 4 == 0 else number for number in range(1, 101)]
    for max_failures in (25, 0.25, 1.0, None):
        found, raised = await results_of(endpoint_of(client), rows, max_failures=max_failures)
        assert raised is None
        assert sum(result.error is not None for result in found) == 25


@pytest.mark.parametrize("max_failures", [-1, 1.5, -0.1, "3", True, float("nan")])
async def test_faulty_max_failures(max_failures: Any) -> None:
    with pytest.raises(errors.ParamValidationError, match="max_failures"):
        endpoint_of(Client("eu-central-1")).map([], max_failures=max_failures)


async def test_results_have_attempts_and_waiting_time(serve: Serve, running: list[Any]) -> None:
    client = await serve(square=square)
    running[0].inject("square", faults.internal_failure().next(1))
    found, raised = await results_of(endpoint_of(client), [3, -1])
    assert raised is None
    assert sorted(result.attempts for result in found) == [1, 2]
    (repeated,) = (result for result in found if result.attempts == 2)
    assert repeated.waited > 0


def test_patience_of_a_map() -> None:
    """600 s, unless the client or the map has a patience; a retry mode does not use it."""

    assert patience_of_map(Client("eu-central-1")) == 600.0
    assert patience_of_map(Client("eu-central-1", patience=5.0)) == 5.0
    assert patience_of_map(Client("eu-central-1", patience=5.0), 7.0) == 7.0
    assert patience_of_map(Client("eu-central-1", deadline=5.0)) is None
    assert patience_of_map(Client("eu-central-1", retry={"mode": "standard"})) is None


class Stop(BaseException):
    """What ends a program is an exception too, and no Exception."""


class Stopping:
    """A deserializer that ends the program."""

    accept = "application/json"

    def deserialize(self, body: bytes, content_type: str) -> Any:
        raise Stop


async def test_what_ends_the_program_ends_the_map(serve: Serve) -> None:
    client = await serve(square=square)
    endpoint = client.endpoint("square", serializer=JSON, deserializer=Stopping())
    with pytest.raises(Stop):
        async with endpoint.map([1, 2, 3]) as results:
            async for _ in results:
                pass
    assert client.statistics().in_use == 0
