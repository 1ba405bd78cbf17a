"""Response streams: a container's response re-framed as it arrives, and its failures."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ClientError, EventStreamError

from aiosmrt._wire.eventstream import Decoder
from aiosmrt.local import ContainerFailure, EndpointConfiguration, Invocation, LocalRuntime, ProductionVariant
from tests.support.progress import stands_still
from tests.support.runtime import (
    Draft,
    InProcessContainer,
    RawConnection,
    aiobotocore_client,
    echo,
    local_runtime,
    words,
)
from tests.support.virtual_time import VirtualTime

PATH = "/endpoints/llm/invocations-response-stream"


async def parts_of(runtime: LocalRuntime, **members: Any) -> tuple[dict[str, Any], list[bytes]]:
    """One streamed call through aiobotocore: its result and the parts."""
    async with aiobotocore_client(runtime.url) as client:
        result = await client.invoke_endpoint_with_response_stream(
            EndpointName="llm", **({"Body": b"one two three"} | members)
        )
        parts = [event["PayloadPart"]["Bytes"] async for event in result["Body"]]
        return result, parts


async def messages_of(runtime: LocalRuntime) -> list[tuple[dict[str, Any], bytes]]:
    """One streamed call over a socket: its decoded messages."""
    async with RawConnection.to(runtime.url) as connection:
        answer = await connection.exchange(Draft(runtime.url, PATH, body=b"one two three").sign().encode())
    assert answer.status == 200
    assert answer.ended == "complete"
    decoder = Decoder()
    messages = decoder.feed(answer.body)
    decoder.finish()
    return [(dict(headers), payload) for headers, payload in messages]


async def test_parts_of_a_callable() -> None:
    async with local_runtime({"llm": words}) as runtime:
        result, parts = await parts_of(runtime)
        assert parts == [b"one", b"two", b"three"]
        assert result["InvokedProductionVariant"] == "AllTraffic"
        assert runtime.requests[0].parts == 3
        assert await messages_of(runtime) == [
            (
                {
                    ":event-type": "PayloadPart",
                    ":content-type": "application/octet-stream",
                    ":message-type": "event",
                },
                word,
            )
            for word in (b"one", b"two", b"three")
        ]


async def test_invocation_and_headers_of_a_stream() -> None:
    seen: list[Invocation] = []

    async def model(invocation: Invocation) -> tuple[AsyncIterator[bytes], dict[str, str]]:
        seen.append(invocation)
        headers = {"Content-Type": "text/event-stream", "X-Amzn-SageMaker-Custom-Attributes": "out"}
        return words(invocation), headers

    async with local_runtime({"llm": model}) as runtime:
        result, parts = await parts_of(runtime, Accept="text/event-stream", ContentType="text/plain")
    assert parts == [b"one", b"two", b"three"]
    assert result["ContentType"] == "text/event-stream"
    assert result["CustomAttributes"] == "out"
    assert result["ResponseMetadata"]["HTTPHeaders"]["content-type"] == "application/vnd.amazon.eventstream"
    assert seen[0].streaming is True
    assert seen[0].accept == "text/event-stream"
    assert seen[0].headers["Accept"] == "text/event-stream"
    assert seen[0].headers["X-Amzn-SageMaker-Forwarded-Api"] == "InvokeEndpointWithResponseStream"


async def test_plain_response_is_one_part() -> None:
    async with local_runtime({"llm": echo}) as runtime:
        assert (await parts_of(runtime))[1] == [b"one two three"]
        assert (await parts_of(runtime, Body=b""))[1] == []


async def test_empty_parts_are_omitted() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        for part in (b"", b"a", b"", b"b"):
            yield part

    async with local_runtime({"llm": model}) as runtime:
        assert (await parts_of(runtime))[1] == [b"a", b"b"]


async def test_part_is_sent_before_the_next_exists() -> None:
    go_on = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"second")
        return response

    async with (
        InProcessContainer(serve) as container,
        local_runtime({"llm": container.url}) as runtime,
        aiobotocore_client(runtime.url) as client,
    ):
        result = await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
        events = aiter(result["Body"])
        assert await events.__anext__() == {"PayloadPart": {"Bytes": b"first"}}
        go_on.set()
        assert [event async for event in events] == [{"PayloadPart": {"Bytes": b"second"}}]
        assert container.received[0].headers["x-amzn-sagemaker-forwarded-api"] == "InvokeEndpointWithResponseStream"


async def test_large_chunk_is_split() -> None:
    payload = bytes(range(256)) * 40_000

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield payload

    async with local_runtime({"llm": model}) as runtime:
        _, parts = await parts_of(runtime)
    assert [len(part) for part in parts] == [4_194_304, 4_194_304, 1_851_392]
    assert b"".join(parts) == payload


@pytest.mark.parametrize("raises_at", ["call", "first part"])
async def test_failure_before_the_head_is_a_model_error(raises_at: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        raise ContainerFailure(503, "overloaded")
        yield b""

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        if raises_at == "call":
            raise ContainerFailure(503, "overloaded")
        return parts()

    async with local_runtime({"llm": model}) as runtime, aiobotocore_client(runtime.url) as client:
        with pytest.raises(client.exceptions.ModelError) as caught:
            await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
    assert caught.value.response["OriginalStatusCode"] == 503
    assert caught.value.response["OriginalMessage"] == "overloaded"


async def test_container_failure_before_the_head() -> None:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(status=400, text="bad prompt")

    async with (
        InProcessContainer(serve) as container,
        local_runtime({"llm": container.url}) as runtime,
        aiobotocore_client(runtime.url) as client,
    ):
        with pytest.raises(client.exceptions.ModelError) as caught:
            await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
    assert caught.value.response["OriginalStatusCode"] == 400


async def stream_error(runtime: LocalRuntime, count: int) -> tuple[str, dict[str, str]]:
    """The type and the document of the exception after this many parts."""
    *parts, (headers, payload) = await messages_of(runtime)
    assert [part[0][":event-type"] for part in parts] == ["PayloadPart"] * count
    assert headers[":message-type"] == "exception"
    assert headers[":content-type"] == "application/json"
    return headers[":exception-type"], json.loads(payload)


@pytest.mark.parametrize(
    "error", [ContainerFailure(500, "secret detail"), ValueError("secret detail"), TimeoutError("secret detail")]
)
async def test_failure_after_the_head(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"
        raise error

    async with local_runtime({"llm": model}) as runtime:
        kind, document = await stream_error(runtime, 2)
        (record,) = await runtime.wait_for_requests(1)
        with pytest.raises(EventStreamError, match="ModelStreamError"):
            await parts_of(runtime)
    assert kind == "ModelStreamError"
    assert document["ErrorCode"] == "StreamBroken"
    assert document["Message"].startswith("An error occurred while streaming")
    assert (record.status, record.error_code, record.parts, record.outcome) == (200, "ModelStreamError", 2, "answered")


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n", "Content-Length: 9\r\n\r\none"])
async def test_container_dies_during_its_stream(framing: str) -> None:
    async def serve(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.write(f"HTTP/1.1 200 OK\r\n{framing}".encode())
        request.transport.close()
        return web.Response()

    async with InProcessContainer(serve) as container, local_runtime({"llm": container.url}) as runtime:
        kind, document = await stream_error(runtime, 1)
    assert (kind, document["ErrorCode"]) == ("ModelStreamError", "StreamBroken")


async def test_stream_timeout(virtual_time: VirtualTime) -> None:
    silent, ended = asyncio.Event(), asyncio.Event()

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        try:
            yield b"one"
            silent.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    endpoint = EndpointConfiguration([ProductionVariant(model)], model_timeout=10.0)
    async with local_runtime({"llm": endpoint}, stream_timeout=20.0) as runtime:
        found = asyncio.create_task(stream_error(runtime, 1))
        await silent.wait()
        await virtual_time.advance(19.0)
        assert not ended.is_set()
        await virtual_time.advance(1.0)
        kind, document = await found
        assert ended.is_set()
    assert (kind, document["ErrorCode"]) == ("ModelStreamError", "ModelInvocationTimeExceeded")


async def test_stream_starts_too_late() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with local_runtime({"llm": model}, model_timeout=0.02) as runtime, aiobotocore_client(runtime.url) as client:
        with pytest.raises(client.exceptions.ModelError) as caught:
            await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
    assert caught.value.response["OriginalStatusCode"] == 0


async def test_disconnect_closes_the_models_stream() -> None:
    ended = asyncio.Event()

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            ended.set()

    async with local_runtime({"llm": model}) as runtime:
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(Draft(runtime.url, PATH).sign().encode())
            await connection.reader.readexactly(1_000_000)
        (record,) = await runtime.wait_for_requests(1)
        assert ended.is_set()
    assert record.outcome == "disconnected"
    assert record.status == 200
    assert record.parts >= 9


async def test_disconnect_ends_the_containers_request() -> None:
    ended = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await response.write(b"one")
            await asyncio.Event().wait()
        finally:
            ended.set()
        return response

    async with InProcessContainer(serve) as container, local_runtime({"llm": container.url}) as runtime:
        async with RawConnection.to(runtime.url) as connection:
            await connection.write(Draft(runtime.url, PATH).sign().encode())
            await connection.reader.readuntil(b"one")
        await ended.wait()
        assert (await runtime.wait_for_requests(1))[0].outcome == "disconnected"


async def test_slow_reader_applies_back_pressure() -> None:
    made = 0

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield b"x" * 100_000

    async with local_runtime({"llm": model}) as runtime, RawConnection.to(runtime.url) as connection:
        await connection.write(Draft(runtime.url, PATH).sign().encode())
        await connection.reader.readexactly(100_000)
        assert await stands_still(lambda: made) < 500


async def test_stream_of_an_unknown_endpoint() -> None:
    async with local_runtime({"other": words}) as runtime, aiobotocore_client(runtime.url) as client:
        with pytest.raises(ClientError, match="Endpoint llm of account 123456789012 not found"):
            await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
