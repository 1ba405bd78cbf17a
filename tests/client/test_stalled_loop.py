"""A loop that was busy for longer than a call's deadline: an answer that lies in the socket by then is not late."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiosmrt import Client, DeadlineExceededError, RetryPolicy
from aiosmrt._wire.eventstream import encode_payload_part
from aiosmrt.errors import StreamTimeoutError
from aiosmrt.serializers import BYTES
from tests.support.blocking_server import BlockingServer, Conversation
from tests.support.clients import MakeClient
from tests.support.raw_server import error_response, response

SECONDS = 10.0
LARGE = b"x" * 2**20


async def plain(client: Client) -> bytes:
    result = await client.invoke_endpoint(EndpointName="e", Body=b"1")
    return await result["Body"].read()


async def stream(client: Client) -> bytes:
    result = await client.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"1")
    async with result["Body"] as parts:
        return b"".join([part["PayloadPart"]["Bytes"] async for part in parts])


async def predict(client: Client) -> bytes:
    return await client.endpoint("e", serializer=BYTES, deserializer=BYTES).predict(b"1")


async def view(client: Client) -> bytes:
    endpoint = client.endpoint("e", serializer=BYTES, deserializer=BYTES)
    async with endpoint.stream(b"1", first_part_timeout=SECONDS, part_timeout=SECONDS) as parts:
        return b"".join([part async for part in parts.bytes()])


def framed(body: bytes) -> bytes:
    return response(200, encode_payload_part(body), [("Content-Type", "application/vnd.amazon.eventstream")])


CALLS: dict[str, tuple[Callable[[Client], Awaitable[bytes]], bytes, bytes, dict[str, Any]]] = {
    "plain": (plain, response(200, b"ok"), b"ok", {"deadline": SECONDS}),
    "large": (plain, response(200, LARGE), LARGE, {"deadline": SECONDS}),
    "predict": (predict, response(200, b"ok"), b"ok", {"deadline": SECONDS}),
    "stream": (stream, framed(b"ok"), b"ok", {"deadline": SECONDS}),
    "view": (view, framed(b"ok"), b"ok", {}),
}


class Server:
    """Answers its first request at once, and the second when told."""

    def __init__(self, answer: bytes) -> None:
        self.asked, self.go_on, self.arrived = threading.Event(), threading.Event(), threading.Event()
        self._answer = answer

    def __call__(self, talk: Conversation) -> None:
        talk.request()
        talk.send(response(200, b"ok"))
        talk.request()
        self.asked.set()
        self.go_on.wait(20)
        talk.send(self._answer)
        self.arrived.set()
        talk.request()


def stand_still() -> None:
    """Put the loop's clock ahead, as if it had been busy."""
    loop: Any = asyncio.get_running_loop()
    measured = loop.time
    loop.time = lambda: measured() + 2 * SECONDS


@pytest.mark.parametrize("name", CALLS)
async def test_an_answer_that_is_there(make_client: MakeClient, name: str) -> None:
    call, answer, value, limits = CALLS[name]
    script = Server(answer)
    with BlockingServer([script]) as server:
        client = make_client(endpoint_url=server.url, **limits)
        await plain(client)
        calling = asyncio.ensure_future(call(client))
        while not script.asked.is_set():
            await asyncio.sleep(0)
        # The loop does not run from here on.
        script.go_on.set()
        # A large answer is more than the socket holds, and goes on when that is read.
        assert name == "large" or script.arrived.wait(20)
        stand_still()
        assert await calling == value
        await client.close()


@pytest.mark.parametrize("name", ["plain", "stream", "view"])
async def test_an_answer_that_is_not_there(make_client: MakeClient, name: str) -> None:
    call, answer, _, limits = CALLS[name]
    script = Server(answer)
    with BlockingServer([script]) as server:
        client = make_client(endpoint_url=server.url, **limits)
        await plain(client)
        calling = asyncio.ensure_future(call(client))
        while not script.asked.is_set():
            await asyncio.sleep(0)
        stand_still()
        with pytest.raises((DeadlineExceededError, StreamTimeoutError)):
            await calling
        script.go_on.set()
        await client.close()


async def test_nothing_is_sent_after_the_deadline(make_client: MakeClient) -> None:
    """The back-off has ended while the loop was busy, and so has the call's time."""
    requests = 0

    def refuse(talk: Conversation) -> None:
        nonlocal requests
        while talk.request():
            requests += 1
            talk.send(error_response(503, "ServiceUnavailable"))

    with BlockingServer([refuse]) as server:
        client = make_client(
            endpoint_url=server.url, deadline=0.2, retry=RetryPolicy(mode="standard", base_delay=0.1, max_delay=0.1)
        )
        calling = asyncio.ensure_future(plain(client))
        while not (calling.done() or client.statistics().failures):
            await asyncio.sleep(0)
        time.sleep(0.4)
        with pytest.raises(DeadlineExceededError):
            await calling
        assert requests == 1
        await client.close()
