"""Cancellation at every await of an endpoint's calls: one, many, streamed, in a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import aiosmrt
from aiosmrt._wire.eventstream import encode_payload_part
from aiosmrt.endpoint import Endpoint
from aiosmrt.serializers import JSON, OFF_LOOP_BYTES
from tests.cancellation.leftovers import nothing_is_held
from tests.support.cancellation import Moment, cancel_everywhere
from tests.support.clients import MakeClient
from tests.support.raw_server import LAST_CHUNK, RawServer, chunk, response

each_moment = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)

JSON_TYPE = [("Content-Type", "application/json")]
HEAD = response(200, b"", [("X-Amzn-SageMaker-Content-Type", "application/json")], chunked=True)


def part(payload: bytes) -> bytes:
    return chunk(encode_payload_part(payload))


def endpoint_of(client: aiosmrt.Client) -> Endpoint[Any, Any]:
    return client.endpoint("churn", serializer=JSON, deserializer=JSON)


async def answers(client: aiosmrt.Client, server: RawServer) -> None:
    """Nothing is held, and the client makes the next call as if nothing had been."""
    await nothing_is_held(client, server)
    server.forget_scripts()
    server.otherwise = [response(200, b"[1]", JSON_TYPE)]
    assert await endpoint_of(client).predict({}) == [1]
    await nothing_is_held(client, server)


@each_moment
@pytest.mark.parametrize("method", [Endpoint.predict, Endpoint.invoke], ids=["predict", "invoke"])
async def test_one_call(
    method: Callable[..., Coroutine[Any, Any, Any]], moment: Moment, make_client: MakeClient, server: RawServer
) -> None:
    client = make_client()
    await answers(client, server)

    async def prepare() -> Coroutine[Any, Any, Any]:
        return method(endpoint_of(client), {"rows": [1, 2]})

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 1


@each_moment
async def test_predict_with_large_bodies(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    """A thread makes the request body, another the answer's value."""
    client = make_client()
    await answers(client, server)
    large = b'"' + b"x" * OFF_LOOP_BYTES + b'"'

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.otherwise = [response(200, large, JSON_TYPE)]
        return endpoint_of(client).predict(large.decode())

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 3


@each_moment
@pytest.mark.parametrize("limits", [{}, {"first_part_timeout": 60.0, "part_timeout": 60.0}], ids=["plain", "limited"])
async def test_stream(moment: Moment, limits: dict[str, float], make_client: MakeClient, server: RawServer) -> None:
    client = make_client()
    await answers(client, server)

    async def read(gates: list[asyncio.Event]) -> None:
        async with endpoint_of(client).stream({}, **limits) as stream:  # type: ignore[arg-type]
            gates[0].set()
            values = []
            async for value in stream.json():
                values.append(value)
                gates[len(values)].set()
            assert values == [1, 2]

    async def prepare() -> Coroutine[Any, Any, Any]:
        first, second, end = gates = [asyncio.Event() for _ in range(3)]
        server.play([HEAD, first, part(b"1\n"), second, part(b"2\n"), end, LAST_CHUNK])
        return read(gates)

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 4


@each_moment
@pytest.mark.parametrize("asynchronous", [True, False], ids=["asynchronous items", "items"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_map(
    moment: Moment, ordered: bool, asynchronous: bool, make_client: MakeClient, server: RawServer
) -> None:
    client = make_client()
    await answers(client, server)

    async def five() -> AsyncIterator[int]:
        async with asyncio.timeout(60):
            for number in range(5):
                yield number

    async def read() -> None:
        items = five() if asynchronous else range(5)
        async with endpoint_of(client).map(items, concurrency=2, ordered=ordered) as results:
            assert [result.value async for result in results] == [[1]] * 5

    async def prepare() -> Coroutine[Any, Any, Any]:
        return read()

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 3


@each_moment
async def test_session(moment: Moment, make_client: MakeClient, server: RawServer) -> None:
    client = make_client()
    await answers(client, server)
    opening = [*JSON_TYPE, ("X-Amzn-SageMaker-New-Session-Id", "s-1; Expires=2999-01-01T00:00:00Z")]

    async def talk() -> None:
        async with endpoint_of(client).session(open_with="open", close_with="close") as session:
            assert await session.predict("hello") == [1]

    async def prepare() -> Coroutine[Any, Any, Any]:
        server.play([response(200, b"[0]", opening)])
        return talk()

    assert await cancel_everywhere(prepare, moment, after=lambda: answers(client, server)) >= 3
