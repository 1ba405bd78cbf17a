"""The local runtime's own connections, to containers and to S3, after data that no request asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from aiosmrt.local import ObjectStorage
from tests.support.blocking_server import BlockingServer, Conversation
from tests.support.raw_server import response
from tests.support.runtime import ACCEPTED, aiobotocore_client, local_runtime


class Repeating:
    """Handlers of a server that repeats a response on its first connection, once the test wants it.

    Args:
        answer: receives a request and returns its response.
        which: the number of the response to repeat, from 1.
    """

    def __init__(self, answer: Callable[[Conversation], bytes], which: int) -> None:
        self.go_on, self.repeated = threading.Event(), threading.Event()
        self._answer = answer
        self._which = which

    def first(self, talk: Conversation) -> None:
        sent = b""
        for _ in range(self._which):
            sent = self._answer(talk)
            talk.send(sent)
        self.go_on.wait(20)
        talk.send(sent)
        self.repeated.set()
        self.serve(talk)

    def serve(self, talk: Conversation) -> None:
        while True:
            talk.send(self._answer(talk))


def from_a_container(talk: Conversation) -> bytes:
    return response(200, b"answer to " + talk.request())


def from_s3(talk: Conversation) -> bytes:
    talk.request()
    return response(200, b"content of " + talk.target)


async def test_a_container_that_repeats_its_answer() -> None:
    repeating = Repeating(from_a_container, 2)  # the first one is for the ping
    with BlockingServer([repeating.first, repeating.serve]) as server:
        async with local_runtime({"churn": server.url}) as runtime, aiobotocore_client(runtime.url) as client:

            async def invoke(body: bytes) -> bytes:
                answer = await client.invoke_endpoint(EndpointName="churn", Body=body)
                content: bytes = await answer["Body"].read()
                return content

            assert await invoke(b"ONE") == b"answer to ONE"
            repeating.go_on.set()
            assert repeating.repeated.wait(20)
            assert await invoke(b"TWO") == b"answer to TWO"
            assert await invoke(b"THREE") == b"answer to THREE"
            assert server.connections_made == 2


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
async def test_an_s3_that_repeats_an_object(read: bool) -> None:
    repeating = Repeating(from_s3, 1)
    with BlockingServer([repeating.first, repeating.serve]) as server:
        storage = ObjectStorage(endpoint_url=server.url, credentials=ACCEPTED, buckets=["inputs"])
        async with storage.open() as objects:
            assert await objects.get("s3://inputs/1.csv") == b"content of /inputs/1.csv"
            repeating.go_on.set()
            if read:
                await asyncio.to_thread(repeating.repeated.wait, 20)
                await asyncio.sleep(0.05)  # the loop reads it in that time, unless it is too slow: then it is unread
            else:
                assert repeating.repeated.wait(20)
            assert await objects.get("s3://inputs/2.csv") == b"content of /inputs/2.csv"
            assert await objects.get("s3://inputs/3.csv") == b"content of /inputs/3.csv"
            assert server.connections_made == 2
