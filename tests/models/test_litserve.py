"""LitServe's server: streams token by token, many at once, abandoned, and through a crash.

The model waits for the test before each of its words (see gated_words.py): a part that arrives before the next word
exists was not buffered anywhere.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aiosmrt import Client, ModelError, ModelNotReadyException, ModelStreamError, RetryPolicy
from aiosmrt.local import LocalRuntime, ModelContainer
from tests.support.peers import aiosmrt_client, boto3_client
from tests.support.runtime import local_runtime

APPLICATION = Path(__file__).with_name("gated_words.py")
CONCURRENCY = 50
WORDS = ["To", "be", "or", "not"]

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]


class Gate:
    """Holds models before each word."""

    def __init__(self, port: int, waiting: asyncio.Queue[asyncio.StreamWriter]) -> None:
        self.port = port
        self._waiting = waiting

    async def models(self, count: int = 1) -> list[asyncio.StreamWriter]:
        """The next models at the gate; each takes a byte for a word."""
        return [await self._waiting.get() for _ in range(count)]

    def call(self, *words: str) -> dict[str, Any]:
        """The members of a call for these words."""
        body = json.dumps({"words": words, "gate": self.port}).encode()
        return {"EndpointName": "words", "Body": body, "ContentType": "application/json"}


@pytest_asyncio.fixture(loop_scope="module")
async def gate() -> AsyncIterator[Gate]:
    waiting: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    opened: list[asyncio.StreamWriter] = []

    async def let_in(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        waiting.put_nowait(writer)

    async with await asyncio.start_server(let_in, "127.0.0.1", 0) as server:
        yield Gate(server.sockets[0].getsockname()[1], waiting)
        for writer in opened:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def serving(python: Path, folder: Path) -> AsyncIterator[tuple[LocalRuntime, ModelContainer]]:
    """A runtime whose endpoint ``words`` is the LitServe application."""
    container = ModelContainer([str(python), str(APPLICATION)], working_dir=folder)
    async with local_runtime({"words": container}) as runtime:
        yield runtime, container


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(
    models_python: Path, server_processes: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LocalRuntime]:
    async with serving(models_python, tmp_path_factory.mktemp("litserve")) as (runtime, _):
        yield runtime


@pytest_asyncio.fixture(loop_scope="module")
async def client(runtime: LocalRuntime) -> AsyncIterator[Client]:
    async with aiosmrt_client(runtime.url, max_concurrency=CONCURRENCY) as client:
        yield client


async def read_word_by_word(client: Client, gate: Gate) -> None:
    response = await client.invoke_endpoint_with_response_stream(**gate.call(*WORDS))
    (model,) = await gate.models()
    async with response["Body"] as stream:
        for word in WORDS:
            model.write(b".")
            assert await anext(stream) == {"PayloadPart": {"Bytes": f"{word} ".encode()}}
        assert await anext(stream, None) is None


async def test_word_arrives_before_the_next_exists(client: Client, gate: Gate) -> None:
    await read_word_by_word(client, gate)


async def test_word_arrives_at_boto3_before_the_next_exists(runtime: LocalRuntime, gate: Gate) -> None:
    async with boto3_client(runtime.url) as boto3:
        response = await asyncio.to_thread(boto3.invoke_endpoint_with_response_stream, **gate.call(*WORDS))
        (model,) = await gate.models()
        with closing(response["Body"]) as stream:
            events = iter(stream)
            for word in WORDS:
                model.write(b".")
                event = await asyncio.to_thread(next, events, None)
                assert event == {"PayloadPart": {"Bytes": f"{word} ".encode()}}
            assert await asyncio.to_thread(next, events, None) is None


async def test_fifty_streams_at_once(client: Client, gate: Gate) -> None:
    calls = [gate.call(f"first{number}", f"second{number}") for number in range(CONCURRENCY)]
    responses = await asyncio.gather(*(client.invoke_endpoint_with_response_stream(**call) for call in calls))
    models = await gate.models(CONCURRENCY)
    streams = [response["Body"] for response in responses]
    for turn in ("first", "second"):
        for model in models:
            model.write(b".")
        # All of them, before any model may continue with its next word.
        parts = await asyncio.gather(*(anext(stream) for stream in streams))
        assert [part["PayloadPart"]["Bytes"] for part in parts] == [
            f"{turn}{number} ".encode() for number in range(CONCURRENCY)
        ]
    assert await asyncio.gather(*(anext(stream, None) for stream in streams)) == [None] * CONCURRENCY


async def test_fifty_calls_at_once(client: Client, gate: Gate) -> None:
    async def whole(number: int) -> bytes:
        response = await client.invoke_endpoint(**gate.call("number", str(number)))
        return await response["Body"].read()

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(whole(number)) for number in range(CONCURRENCY)]
        for model in await gate.models(CONCURRENCY):
            model.write(b"..")
    assert [call.result() for call in calls] == [f"number {number} ".encode() for number in range(CONCURRENCY)]


async def test_abandoned_stream_does_not_affect_others(client: Client, runtime: LocalRuntime, gate: Gate) -> None:
    runtime.clear_requests()
    response = await client.invoke_endpoint_with_response_stream(**gate.call(*WORDS))
    (model,) = await gate.models()
    async with response["Body"] as stream:
        model.write(b".")
        await anext(stream)
    (record,) = await runtime.wait_for_requests(1)
    assert (record.outcome, runtime.statistics()["in_flight"]) == ("disconnected", 0)
    await read_word_by_word(client, gate)


async def test_unreadable_request(client: Client) -> None:
    with pytest.raises(ModelError) as caught:
        await client.invoke_endpoint(EndpointName="words", Body=b"{", ContentType="application/json")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert (caught.value.original_status_code, caught.value.original_message) == (
        500,
        '{"detail":"Internal server error"}',
    )


async def test_crash_breaks_the_stream(
    models_python: Path, server_processes: Callable[[], list[int]], tmp_path: Path, gate: Gate
) -> None:
    running_before = server_processes()
    async with (
        serving(models_python, tmp_path) as (runtime, container),
        aiosmrt_client(runtime.url, retries=RetryPolicy(max_attempts=1)) as client,
    ):
        response = await client.invoke_endpoint_with_response_stream(**gate.call("last", "crash"))
        (model,) = await gate.models()
        async with response["Body"] as stream:
            model.write(b".")
            assert await anext(stream) == {"PayloadPart": {"Bytes": b"last "}}
            model.write(b".")
            with pytest.raises(ModelStreamError) as caught:
                await anext(stream)
        assert caught.value.error_code == "StreamBroken"
        assert await container.wait() < 0
        with pytest.raises(ModelNotReadyException):
            await client.invoke_endpoint(**gate.call("more"))
        assert server_processes() == running_before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are counted in /proc")
async def test_processes_end_with_the_runtime(
    models_python: Path, server_processes: Callable[[], list[int]], tmp_path: Path, gate: Gate
) -> None:
    running_before = server_processes()
    with pytest.raises(RuntimeError, match="the test failed"):
        async with serving(models_python, tmp_path) as (runtime, _), aiosmrt_client(runtime.url) as client:
            response = await client.invoke_endpoint_with_response_stream(**gate.call(*WORDS))
            async with response["Body"]:
                await gate.models()
                # The supervisor, the application, LitServe's manager, its web server and its worker.
                assert len(server_processes()) >= len(running_before) + 5
                raise RuntimeError("the test failed")
    assert server_processes() == running_before
