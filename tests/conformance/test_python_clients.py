"""boto3 and aiobotocore: the local runtime under them, operation by operation, and what the documentation says of them.

The second half holds README.md and docs/migrating.md to their word. Where a release of a peer behaves differently, the
test fails and the sentence changes with it.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    EventStreamError,
    HTTPClientError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.retries.standard import ExponentialBackoff, RetryContext
from botocore.session import Session

from aiosmrt import ParamValidationError
from aiosmrt._wire.eventstream import encode_payload_part
from aiosmrt.local import ContainerFailure, Credentials, Invocation, LocalRuntime, faults
from tests.support.peers import CREDENTIALS, REGION, aiobotocore_client, aiosmrt_client, boto3_client
from tests.support.raw_server import CLOSE, LAST_CHUNK, OK, RawServer, Script, error_response, response
from tests.support.tls import server_context


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


# What README.md and docs/migrating.md say of boto3 and aiobotocore

DEFAULT = None
MODES = [DEFAULT, "legacy", "standard", "adaptive"]

MODEL_NOT_READY: Script = [error_response(429, "ModelNotReadyException")]
INTERNAL_DEPENDENCY: Script = [error_response(530, "InternalDependencyException")]
UNAVAILABLE: Script = [error_response(503, "ServiceUnavailable")]


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return MAKERS[request.param]


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's handlers decide as ever, and wait for no time."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda base, growth_factor, attempts: 0.0)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.0)


def in_mode(mode: str | None) -> dict[str, Any]:
    return {} if mode is DEFAULT else {"retries": {"mode": mode}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("answer", "legacy", "standard"),
    [
        pytest.param(MODEL_NOT_READY, 5, 1, id="ModelNotReadyException"),
        pytest.param(INTERNAL_DEPENDENCY, 1, 1, id="530"),
        pytest.param(UNAVAILABLE, 5, 3, id="503"),
    ],
)
async def test_requests_for_an_error(
    make: Callable[..., Any], mode: str | None, answer: Script, legacy: int, standard: int, no_back_off: None
) -> None:
    assert await requests_for(answer, make, mode) == (legacy if mode in (DEFAULT, "legacy") else standard)


async def requests_for(answer: Script, make: Callable[..., Any], mode: str | None) -> int:
    async with RawServer(otherwise=answer) as server, make(server.url, **in_mode(mode)) as client:
        with pytest.raises(ClientError):
            await Peer(client).call("invoke_endpoint", EndpointName="echo", Body=b"")
        return len(server.requests)


@pytest.mark.parametrize("mode", [DEFAULT, "standard"])
@pytest.mark.parametrize(
    ("status", "code", "legacy", "standard"),
    [(408, None, 1, 1), (408, "RequestTimeout", 1, 3), (421, None, 1, 1), (429, None, 5, 1)],
)
async def test_requests_for_a_status(
    make: Callable[..., Any],
    mode: str | None,
    status: int,
    code: str | None,
    legacy: int,
    standard: int,
    no_back_off: None,
) -> None:
    answer: Script = [error_response(status, code)]
    assert await requests_for(answer, make, mode) == (legacy if mode is DEFAULT else standard)


async def test_a_certificate_that_is_not_valid_is_tried_again(make: Callable[..., Any], no_back_off: None) -> None:
    handshakes = []
    context = server_context("127.0.0.1", authority="unknown")
    context.sni_callback = lambda *_: handshakes.append(1)
    async with RawServer(tls=context) as server:
        async with make(server.url) as client:
            with pytest.raises(SSLError):
                await Peer(client).call("invoke_endpoint", EndpointName="echo", Body=b"")
        assert len(handshakes) == 5
        async with aiosmrt_client(server.url) as ours:
            with pytest.raises(SSLError):
                await ours.invoke_endpoint(EndpointName="echo", Body=b"")
        assert len(handshakes) == 6


async def test_an_asynchronous_call_without_input_is_sent(make: Callable[..., Any]) -> None:
    async with RawServer(otherwise=[response(202, b"{}")]) as server:
        async with make(server.url) as client:
            operation = client.meta.service_model.operation_model("InvokeEndpointAsync")
            if "InputLocation" in operation.input_shape.required_members:
                pytest.skip("this release's model has no Body for it")
            await Peer(client).call("invoke_endpoint_async", EndpointName="echo")
        assert len(server.requests) == 1
        async with aiosmrt_client(server.url) as client:
            with pytest.raises(ParamValidationError):
                await client.invoke_endpoint_async(EndpointName="echo")
        assert len(server.requests) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_requests_for_a_read_timeout(make: Callable[..., Any], mode: str | None, no_back_off: None) -> None:
    expected = 5 if mode in (DEFAULT, "legacy") else 3
    async with RawServer(otherwise=[asyncio.Event()]) as server:
        async with make(server.url, read_timeout=0.2, **in_mode(mode)) as client:
            with pytest.raises(ReadTimeoutError):
                await Peer(client).call("invoke_endpoint", EndpointName="echo", Body=b"")
        await server.received(expected)
        assert len(server.requests) == expected


@pytest.mark.parametrize(
    ("value", "senders"),
    [
        pytest.param("a\nb", set(), id="line break"),
        pytest.param("a\r\nX-Added: 1", set(), id="another header"),
        pytest.param("a\n b", {"boto3"}, id="line break before a space"),
        pytest.param("a\x01b", {"boto3"}, id="control character"),
    ],
)
async def test_who_sends_control_characters_in_a_header(value: str, senders: set[str]) -> None:
    for name, maker in MAKERS.items():
        async with RawServer() as server, maker(server.url) as client:
            call = Peer(client).call("invoke_endpoint", EndpointName="echo", Body=b"", CustomAttributes=value)
            if name in senders:
                result = await call
                assert await Peer(client).read(result["Body"]) == b"ok"
            else:
                with pytest.raises(HTTPClientError):
                    await call
            assert len(server.requests) == (name in senders)
    async with RawServer() as server, aiosmrt_client(server.url) as client:
        with pytest.raises(ParamValidationError, match="CustomAttributes: control characters"):
            await client.invoke_endpoint(EndpointName="echo", Body=b"", CustomAttributes=value)
        assert not server.requests


async def test_peers_send_a_name_that_its_pattern_excludes(make: Callable[..., Any]) -> None:
    async with RawServer() as server:
        async with make(server.url) as client:
            result = await Peer(client).call("invoke_endpoint", EndpointName="no_name", TargetVariant="-a", Body=b"")
            assert await Peer(client).read(result["Body"]) == b"ok"
            assert len(server.requests) == 1
        async with aiosmrt_client(server.url) as client:
            with pytest.raises(ParamValidationError, match=r"(?s)EndpointName.*TargetVariant"):
                await client.invoke_endpoint(EndpointName="no_name", TargetVariant="-a", Body=b"")
        assert len(server.requests) == 1


async def test_a_stream_cut_inside_a_frame_ends_normally(make: Callable[..., Any]) -> None:
    frame = encode_payload_part(b"one")
    cut: Script = [response(200, frame + frame[:7], chunked=True), LAST_CHUNK]
    async with RawServer([cut]) as server, make(server.url) as client:
        result = await Peer(client).call("invoke_endpoint_with_response_stream", EndpointName="count", Body=b"")
        async with Peer(client).events(result["Body"]) as events:
            assert [event["PayloadPart"]["Bytes"] async for event in events] == [b"one"]


async def test_a_body_that_breaks_off_is_not_repeated(make: Callable[..., Any]) -> None:
    cut: Script = [response(200, b"half", length=8), CLOSE]
    async with RawServer(otherwise=cut) as server, make(server.url) as client:
        result = await Peer(client).call("invoke_endpoint", EndpointName="echo", Body=b"")
        with pytest.raises((ResponseStreamingError, aiohttp.ClientPayloadError)):
            await Peer(client).read(result["Body"])
        assert len(server.requests) == 1


async def test_aiobotocore_streams_have_no_anext_and_no_context() -> None:
    stream: Script = [response(200, encode_payload_part(b"one"))]
    async with RawServer([stream]) as server, aiobotocore_client(server.url) as client:
        result = await client.invoke_endpoint_with_response_stream(EndpointName="count", Body=b"")
        with pytest.raises(TypeError):
            await anext(result["Body"])
        with pytest.raises(TypeError):
            async with result["Body"]:
                pass
        result["Body"].close()


async def test_aiobotocore_has_one_pool_for_all_endpoints() -> None:
    go_on = asyncio.Event()
    async with (
        RawServer([[go_on, *OK], OK]) as server,
        aiobotocore_client(server.url, max_pool_connections=1) as client,
    ):

        async def invoke(name: str) -> None:
            result = await client.invoke_endpoint(EndpointName=name, Body=b"")
            async with result["Body"] as body:
                await body.read()

        slow = asyncio.create_task(invoke("slow"))
        await server.received(1)
        other = asyncio.create_task(invoke("other"))
        done, _ = await asyncio.wait({slow, other}, timeout=0.2)
        assert not done
        go_on.set()
        await asyncio.gather(slow, other)
        assert [request.target for request in server.requests] == [
            "/endpoints/slow/invocations",
            "/endpoints/other/invocations",
        ]
        assert server.connections_made == 1


def test_botocore_has_not_switched_to_revision_2_1() -> None:
    back_off = ExponentialBackoff(random=lambda: 1.0)
    assert [back_off.delay_amount(RetryContext(attempt_number=attempt)) for attempt in (1, 2, 3)] == [1, 2, 4]


def test_botocores_defaults() -> None:
    config = Config()
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (60, 60, 10)


def test_botocores_sources_of_credentials() -> None:
    """In the order of docs/credentials.md."""
    providers = Session().get_component("credential_provider").providers
    # Older releases lack the console's login.
    assert [provider.METHOD for provider in providers if provider.METHOD != "login"] == [
        "env",
        "assume-role",
        "assume-role-with-web-identity",
        "sso",
        "shared-credentials-file",
        "custom-process",
        "config-file",
        "ec2-credentials-file",
        "boto-config",
        "container-role",
        "iam-role",
    ]
    names = [provider.METHOD for provider in providers]
    assert "login" not in names or names.index("login") == names.index("shared-credentials-file") + 1
