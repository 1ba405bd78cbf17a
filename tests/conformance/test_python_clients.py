"""The local runtime under boto3 and aiobotocore, operation by operation."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import ClientError, EventStreamError

from aiosmrt.local import ContainerFailure, Credentials, Invocation, LocalRuntime, faults
from tests.support.peers import CREDENTIALS, REGION, aiobotocore_client, boto3_client


class Peer:
    """boto3's or aiobotocore's client behind one awaitable face; boto3's calls run in a thread."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.is_async = inspect.iscoroutinefunction(type(client)._make_api_call)

    async def call(self, method: str, **members: Any) -> Any:
        function = getattr(self.client, method)
        if self.is_async:
            return await function(**members)
        return await asyncio.to_thread(function, **members)

    async def read(self, body: Any) -> bytes:
        if self.is_async:
            async with body:
                content: bytes = await body.read()
                return content
        try:
            return await asyncio.to_thread(body.read)
        finally:
            body.close()

    @asynccontextmanager
    async def events(self, stream: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The stream's events as an async iterator, and the stream closed afterwards."""
        iterator: Any = aiter(stream) if self.is_async else self._in_thread(iter(stream))
        try:
            yield iterator
        finally:
            await iterator.aclose()
            stream.close()

    async def _in_thread(self, iterator: Any) -> AsyncIterator[dict[str, Any]]:
        while (event := await asyncio.to_thread(next, iterator, None)) is not None:
            yield event

    def presigned(self, *arguments: Any, **options: Any) -> Any:
        return self.client.generate_presigned_url(*arguments, **options)


class Model:
    def __init__(self) -> None:
        self.seen: list[Invocation] = []
        self.go_on = asyncio.Event()

    async def echo(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        self.seen.append(invocation)
        return invocation.body, {"Content-Type": "text/csv", "X-Amzn-SageMaker-Custom-Attributes": "out"}

    async def count(self, invocation: Invocation) -> AsyncIterator[bytes]:
        self.seen.append(invocation)
        for part in (b"one", b"", b"two"):
            yield part
            await self.go_on.wait()

    async def fails(self, invocation: Invocation) -> bytes:
        raise ContainerFailure(409, "conflict")

    async def breaks_off(self, invocation: Invocation) -> AsyncIterator[bytes]:
        yield b"first"
        raise ContainerFailure(500, "out of memory")


@pytest.fixture
async def model() -> Model:
    return Model()


@pytest.fixture
async def runtime(model: Model) -> AsyncIterator[LocalRuntime]:
    endpoints: dict[str, Any] = {
        "echo": model.echo,
        "count": model.count,
        "fails": model.fails,
        "breaks-off": model.breaks_off,
    }
    credentials = Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)
    async with LocalRuntime(endpoints, credentials=credentials, region=REGION) as runtime:
        yield runtime


MAKERS: dict[str, Callable[..., Any]] = {"boto3": boto3_client, "aiobotocore": aiobotocore_client}


@pytest.fixture(params=MAKERS)
async def peer(request: pytest.FixtureRequest, runtime: LocalRuntime) -> AsyncIterator[Peer]:
    async with MAKERS[request.param](runtime.url, retries={"total_max_attempts": 2, "mode": "standard"}) as client:
        yield Peer(client)


async def test_invoke_endpoint(peer: Peer, runtime: LocalRuntime, model: Model) -> None:
    body = bytes(range(256)) * 2000
    result = await peer.call(
        "invoke_endpoint",
        EndpointName="echo",
        Body=body,
        ContentType="text/csv",
        Accept="text/csv",
        CustomAttributes="in",
        InferenceId="id 1",
    )
    assert await peer.read(result["Body"]) == body
    assert result["ContentType"] == "text/csv"
    assert result["CustomAttributes"] == "out"
    assert result["InvokedProductionVariant"] == "AllTraffic"
    assert result["ResponseMetadata"]["RequestId"] == (await runtime.wait_for_requests(1))[0].request_id
    assert model.seen[0].custom_attributes == "in"
    assert model.seen[0].inference_id == "id 1"
    assert runtime.requests[0].access_key_id == CREDENTIALS.access_key


async def test_response_stream(peer: Peer, model: Model) -> None:
    result = await peer.call(
        "invoke_endpoint_with_response_stream", EndpointName="count", Body=b"", Accept="text/plain"
    )
    assert model.seen[0].accept == "text/plain"
    async with peer.events(result["Body"]) as events:
        # The model waits: this part arrived before the next one existed.
        assert await anext(events) == {"PayloadPart": {"Bytes": b"one"}}
        model.go_on.set()
        rest = [event["PayloadPart"]["Bytes"] async for event in events]
    assert b"".join(rest) == b"two"


async def test_errors(peer: Peer) -> None:
    with pytest.raises(ClientError) as caught:
        await peer.call("invoke_endpoint", EndpointName="nowhere", Body=b"")
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    with pytest.raises(peer.client.exceptions.ModelError) as caught:
        await peer.call("invoke_endpoint", EndpointName="fails", Body=b"")
    response: Any = caught.value.response
    assert response["OriginalStatusCode"] == 409
    assert response["OriginalMessage"] == "conflict"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    with pytest.raises(ClientError, match="ValidationError"):
        await peer.call("invoke_endpoint_async", EndpointName="echo", InputLocation="s3://bucket/key")


async def test_an_error_inside_a_stream(peer: Peer) -> None:
    result = await peer.call("invoke_endpoint_with_response_stream", EndpointName="breaks-off", Body=b"")
    async with peer.events(result["Body"]) as events:
        assert await anext(events) == {"PayloadPart": {"Bytes": b"first"}}
        with pytest.raises(EventStreamError, match="ModelStreamError"):
            await anext(events)


async def test_throttling_is_recognised_and_retried(peer: Peer, runtime: LocalRuntime) -> None:
    runtime.inject("echo", faults.throttling().next(1))
    result = await peer.call("invoke_endpoint", EndpointName="echo", Body=b"again")
    assert await peer.read(result["Body"]) == b"again"
    assert [record.error_code for record in await runtime.wait_for_requests(2)] == [
        "ThrottlingException",
        None,
    ]


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
async def test_a_wrong_secret_is_refused(
    maker: Callable[..., Any], runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import peers

    monkeypatch.setitem(peers.CLIENT_ARGUMENTS, "aws_secret_access_key", "another-fake-secret")
    async with maker(runtime.url) as client:
        with pytest.raises(ClientError) as caught:
            await Peer(client).call("invoke_endpoint", EndpointName="echo", Body=b"")
    assert caught.value.response["Error"]["Code"] == "InvalidSignatureException"


async def test_presigned_url(peer: Peer, runtime: LocalRuntime) -> None:
    url = peer.presigned("invoke_endpoint", Params={"EndpointName": "echo", "Body": b""}, ExpiresIn=60)
    if inspect.isawaitable(url):
        url = await url
    async with aiohttp.ClientSession() as session:
        async with session.post(url, skip_auto_headers=["Content-Type"]) as response:
            assert response.status == 200
            assert await response.read() == b""
        forged = url.replace("/echo/", "/count/")
        async with session.post(forged, skip_auto_headers=["Content-Type"]) as response:
            assert response.status == 403
            assert response.headers["x-amzn-errortype"].startswith("InvalidSignatureException")
    assert [record.presigned for record in await runtime.wait_for_requests(2)] == [True, False]
