"""One suite for two clients, ours and aiobotocore's: code moves between them by changing the constructor.

`client` runs a test once with each, against the same expectations. `both` makes the same call with each, and returns
the results and the requests for comparison.
"""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, cast

import aiobotocore
import aiohttp
import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    EventStreamError,
    OperationNotPageableError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.session import get_session
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosmrt import Client, EventStreamFormatError
from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt._wire.operations import EVENT_STREAM, OPERATIONS, Operation
from tests.support import seams
from tests.support.eventstream import encode
from tests.support.members import full_of
from tests.support.peers import CREDENTIALS, REGION, aiobotocore_client, aiosmrt_client
from tests.support.recording_server import (
    Answer,
    RecordedRequest,
    RecordingServer,
    Response,
    respond,
    respond_in_turn,
)
from tests.support.signatures import verify_signature

CLIENTS: dict[str, Callable[..., Any]] = {"aiosmrt": aiosmrt_client, "aiobotocore": aiobotocore_client}

AIOBOTOCORE = tuple(int(part) for part in aiobotocore.__version__.split(".")[:2])

# One request a call: what is compared is one answer, not who tries how often.
ONCE = {"total_max_attempts": 1, "mode": "standard"}

# An older botocore does not know every member; what it does not know cannot be compared.
MODEL = get_session().get_service_model("sagemaker-runtime")
UNKNOWN = {
    operation.name: frozenset(
        {member.name for member in operation.members}
        - set(getattr(MODEL.operation_model(operation.name).input_shape, "members", ()))
    )
    for operation in OPERATIONS
}


@pytest.fixture
async def server() -> AsyncIterator[RecordingServer]:
    async with RecordingServer() as server:
        yield server


@pytest.fixture(params=CLIENTS)
async def client(request: pytest.FixtureRequest, server: RecordingServer) -> AsyncIterator[Any]:
    async with CLIENTS[request.param](server.url, retries=ONCE) as client:
        yield client


@dataclass
class Outcome:
    """What a call gave, or raised, and the request that it sent."""

    result: Any
    error: Exception | None
    request: RecordedRequest | None


class Both:
    """Our client and aiobotocore's on the same server."""

    def __init__(self, server: RecordingServer, clients: list[Any]) -> None:
        self.server = server
        self.clients = clients

    async def call(self, method: str, **members: Any) -> tuple[Outcome, Outcome]:
        ours, theirs = [await self._call(client, method, members) for client in self.clients]
        return ours, theirs

    async def _call(self, client: Any, method: str, members: dict[str, Any]) -> Outcome:
        before = len(self.server.requests)
        result, error = None, None
        try:
            result = await getattr(client, method)(**members)
            # botocore sets it after every single attempt, successful or not; ours sets it where it explains a failure.
            result["ResponseMetadata"].pop("MaxAttemptsReached", None)
            body = result.get("Body")
            if hasattr(body, "read"):
                async with body:
                    result["Body"] = await body.read()
            elif body is not None:
                try:
                    result["Body"] = [event async for event in body]
                finally:
                    body.close()
        except Exception as raised:
            error = raised
        sent = self.server.requests[before:]
        assert len(sent) <= 1
        return Outcome(result, error, sent[0] if sent else None)


@pytest.fixture
async def both(server: RecordingServer) -> AsyncIterator[Both]:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(make(server.url, retries=ONCE)) for make in CLIENTS.values()]
        yield Both(server, clients)


# Results


STREAM = b"".join(encode_payload_part(part) for part in (b"one", b"", b"two\n"))
ANSWERS: dict[str, Response] = {
    "InvokeEndpoint": Response(
        200,
        [
            ("Content-Type", "application/json"),
            ("x-Amzn-Invoked-Production-Variant", "blue"),
            ("X-Amzn-SageMaker-Custom-Attributes", "a=1, b=2"),
            ("x-amzn-RequestId", "0f3f3f0e-4d4c-4b6b-8a43-3d2c1b0a9f8e"),
            ("Date", "Sat, 21 Nov 2026 03:00:00 GMT"),
        ],
        b'{"score": 0.25}\n',
    ),
    "InvokeEndpointAsync": Response(
        202,
        [
            ("X-Amzn-SageMaker-OutputLocation", "s3://bucket/out"),
            ("X-Amzn-SageMaker-FailureLocation", "s3://bucket/failed"),
            ("x-amzn-RequestId", "r-2"),
        ],
        b'{"InferenceId": "id-1"}',
    ),
    "InvokeEndpointWithResponseStream": Response(
        200,
        [
            ("Content-Type", "application/vnd.amazon.eventstream"),
            ("X-Amzn-SageMaker-Content-Type", "text/plain"),
            ("x-Amzn-Invoked-Production-Variant", "blue"),
            ("X-Amzn-SageMaker-Custom-Attributes", "a=1"),
            ("x-amzn-RequestId", "r-3"),
        ],
        STREAM,
    ),
}
CALLS: dict[str, dict[str, Any]] = {
    "InvokeEndpoint": {"EndpointName": "e", "Body": b"1,2"},
    "InvokeEndpointAsync": {"EndpointName": "e", "InputLocation": "s3://bucket/in"},
    "InvokeEndpointWithResponseStream": {"EndpointName": "e", "Body": b"1,2"},
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_results_are_equal(both: Both, operation: Operation) -> None:
    both.server.answer = lambda request: ANSWERS[operation.name]
    ours, theirs = await both.call(operation.method, **CALLS[operation.name])
    assert ours.error is theirs.error is None
    assert ours.result == theirs.result
    # All that the operation can bring is in there, so the comparison is not one of empty dictionaries.
    known = {member.name for member in operation.results} - {"NewSessionId", "ClosedSessionId"}
    assert set(ours.result) == known | {"ResponseMetadata"}
    assert set(ours.result["ResponseMetadata"]) == {"RequestId", "HTTPStatusCode", "HTTPHeaders", "RetryAttempts"}
    assert type(ours.result["ResponseMetadata"]["HTTPHeaders"]) is dict


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_a_bare_answer_gives_equal_results(both: Both, operation: Operation) -> None:
    both.server.answer = bare(operation)
    ours, theirs = await both.call(operation.method, **CALLS[operation.name])
    assert ours.error is theirs.error is None
    assert ours.result == theirs.result


def bare(operation: Operation) -> Answer:
    """As little as the operation can be answered with."""
    return respond(operation.status, b"", [("Content-Type", EVENT_STREAM)] if operation.streams else ())


async def test_an_empty_answer_is_a_stream_for_aiobotocore_alone(both: Both) -> None:
    both.server.answer = respond(200)
    ours, theirs = await both.call("invoke_endpoint_with_response_stream", EndpointName="e", Body=b"")
    assert isinstance(ours.error, EventStreamFormatError)
    assert theirs.error is None


async def test_repeated_response_headers(both: Both) -> None:
    both.server.answer = respond(200, b"", [("X-Twice", "1"), ("X-Twice", "2"), ("Content-Type", "a/b")])
    ours, theirs = await both.call("invoke_endpoint", **CALLS["InvokeEndpoint"])
    mine, others = (outcome.result["ResponseMetadata"].pop("HTTPHeaders") for outcome in (ours, theirs))
    assert mine.keys() == others.keys()
    # aiobotocore keeps one of the two and loses the other.
    assert mine.pop("x-twice") == "1, 2"
    assert others.pop("x-twice") in ("1", "2", "1, 2")
    assert mine == others
    assert ours.result == theirs.result


# Bodies


@pytest.fixture
async def body(client: Any, server: RecordingServer) -> AsyncIterator[Any]:
    server.answer = respond(200, b"first\nsecond\r\n\nlast")
    response = await client.invoke_endpoint(EndpointName="e", Body=b"")
    yield response["Body"]
    response["Body"].close()


async def test_body_read(body: Any) -> None:
    assert await body.read() == b"first\nsecond\r\n\nlast"
    assert await body.read() == b""
    assert body.tell() == 19


async def test_body_read_amount(body: Any) -> None:
    assert body.tell() == 0
    assert await body.read(5) == b"first"
    assert body.tell() == 5
    assert await body.read(0) == b""
    assert await body.read(1000) == b"\nsecond\r\n\nlast"
    assert await body.read(1) == b""
    assert body.tell() == 19


async def test_body_readable(body: Any) -> None:
    if AIOBOTOCORE < (2, 20) and type(body).__module__.startswith("aiobotocore"):
        pytest.skip("this aiobotocore's body fails on readable()")
    assert body.readable()
    await body.read()
    assert not body.readable()


async def test_body_read_all_by_negative_amount(body: Any) -> None:
    assert await body.read(-1) == b"first\nsecond\r\n\nlast"


async def test_body_iter_chunks(body: Any) -> None:
    assert [chunk async for chunk in body.iter_chunks(8)] == [b"first\nse", b"cond\r\n\nl", b"ast"]
    assert [chunk async for chunk in body.iter_chunks()] == []


async def test_body_iteration(body: Any) -> None:
    assert [chunk async for chunk in body] == [b"first\nsecond\r\n\nlast"]
    with pytest.raises(StopAsyncIteration):
        await anext(body)


async def test_body_anext(body: Any) -> None:
    assert await anext(body) == b"first\nsecond\r\n\nlast"
    with pytest.raises(StopAsyncIteration):
        await anext(body)


@pytest.mark.parametrize("chunk_size", [1024, 7])
async def test_body_iter_lines(body: Any, chunk_size: int) -> None:
    assert [line async for line in body.iter_lines(chunk_size)] == [b"first", b"second", b"", b"last"]


async def test_body_iter_lines_keepends(body: Any) -> None:
    lines = [line async for line in body.iter_lines(keepends=True)]
    assert lines == [b"first\n", b"second\r\n", b"\n", b"last"]


async def test_body_readlines(body: Any) -> None:
    assert await body.readlines() == [b"first", b"second", b"", b"last"]


async def test_body_as_context_manager(body: Any) -> None:
    async with body as stream:
        assert await stream.read() == b"first\nsecond\r\n\nlast"


async def test_body_readinto(body: Any) -> None:
    if AIOBOTOCORE < (2, 20) and type(body).__module__.startswith("aiobotocore"):
        pytest.skip("this aiobotocore's body lacks readinto")
    buffer = bytearray(8)
    assert await body.readinto(buffer) == 8
    assert buffer == b"first\nse"


async def test_empty_body(client: Any, server: RecordingServer) -> None:
    server.answer = respond(200, b"")
    response = await client.invoke_endpoint(EndpointName="e", Body=b"")
    async with response["Body"] as stream:
        assert await stream.read() == b""
        assert [line async for line in response["Body"].iter_lines()] == []


async def test_chunked_body(client: Any, server: RecordingServer) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in (b"a" * 10, b"b" * 100_000, b"c"):
            yield piece

    server.answer = lambda request: Response(200, (), chunks())
    response = await client.invoke_endpoint(EndpointName="e", Body=b"")
    async with response["Body"] as stream:
        assert await stream.read() == b"a" * 10 + b"b" * 100_000 + b"c"


async def test_a_compressed_body_stays_compressed(client: Any, server: RecordingServer) -> None:
    import gzip

    packed = gzip.compress(b"content")
    server.answer = respond(200, packed, [("Content-Encoding", "gzip")])
    response = await client.invoke_endpoint(EndpointName="e", Body=b"", Accept="application/json")
    assert server.last.header("Accept-Encoding") == "identity"
    async with response["Body"] as stream:
        assert await stream.read() == packed


# Streams


async def open_stream(client: Any, server: RecordingServer, *messages: bytes) -> Any:
    server.answer = respond(200, b"".join(messages), [("Content-Type", "application/vnd.amazon.eventstream")])
    response = await client.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"")
    return response["Body"]


async def test_stream_events(client: Any, server: RecordingServer) -> None:
    stream = await open_stream(client, server, STREAM)
    events = [event async for event in stream]
    assert events == [{"PayloadPart": {"Bytes": part}} for part in (b"one", b"", b"two\n")]
    stream.close()


async def test_an_unknown_event_is_skipped(client: Any, server: RecordingServer) -> None:
    unknown = encode({":message-type": "event", ":event-type": "Heartbeat"}, b"{}")
    stream = await open_stream(client, server, unknown, STREAM, unknown)
    parts = [event["PayloadPart"]["Bytes"] async for event in stream if "PayloadPart" in event]
    assert parts == [b"one", b"", b"two\n"]
    stream.close()


async def test_an_exception_in_a_stream(client: Any, server: RecordingServer) -> None:
    failure = encode_exception("ModelStreamError", json.dumps({"Message": "no", "ErrorCode": "StreamBroken"}).encode())
    stream = await open_stream(client, server, encode_payload_part(b"one"), failure, encode_payload_part(b"late"))
    events = aiter(stream)
    assert await anext(events) == {"PayloadPart": {"Bytes": b"one"}}
    with pytest.raises(EventStreamError) as caught:
        await anext(events)
    assert isinstance(caught.value, ClientError)
    assert caught.value.response["Error"] == {"Code": "ModelStreamError", "Message": "no"}
    assert str(caught.value) == (
        "An error occurred (ModelStreamError) when calling the InvokeEndpointWithResponseStream operation: no"
    )
    assert caught.value.operation_name == "InvokeEndpointWithResponseStream"
    stream.close()


async def test_an_error_message_in_a_stream(client: Any, server: RecordingServer) -> None:
    failure = encode({":message-type": "error", ":error-code": "InternalError", ":error-message": "oh"})
    stream = await open_stream(client, server, failure)
    with pytest.raises(EventStreamError) as caught:
        await anext(aiter(stream))
    assert caught.value.response == {"Error": {"Code": "InternalError", "Message": "oh"}}
    stream.close()


async def test_closing_a_stream_early(client: Any, server: RecordingServer) -> None:
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield encode_payload_part(b"one")
        await go_on.wait()

    server.answer = lambda request: Response(200, (), parts())
    response = await client.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"")
    async for event in response["Body"]:
        assert event == {"PayloadPart": {"Bytes": b"one"}}
        break
    response["Body"].close()
    go_on.set()
    await server.until(lambda server: server.connections_open == 0)


# Errors

MODEL_ERROR = {
    "Message": "Received server error (500) from primary",
    "OriginalStatusCode": 500,
    "OriginalMessage": "boom",
    "LogStreamArn": "arn:aws:logs:eu-central-1:123456789012:log-group:/aws/sagemaker/Endpoints/e",
    "ErrorCode": "INTERNAL_FAILURE_FROM_MODEL",
}
HTML = b"<html><body><h1>503 Service Unavailable</h1></body></html>"
ERRORS: dict[str, tuple[int, str | None, bytes]] = {
    "ModelError": (424, "ModelError", json.dumps(MODEL_ERROR).encode()),
    "ModelError-sparse": (424, "ModelError", b'{"Message": "m"}'),
    "ValidationError": (400, "ValidationError", b'{"Message": "1 validation error detected"}'),
    "lower-case-message": (400, "ValidationError", b'{"message": "lower"}'),
    "both-messages": (400, "ValidationError", b'{"message": "lower", "Message": "upper"}'),
    "not-found": (400, "ValidationError", b'{"Message": "Endpoint e of account 123456789012 not found."}'),
    "colon": (400, "ValidationError:http://internal.amazon.com/coral/", b'{"Message": "m"}'),
    "throttling-null-message": (400, "ThrottlingException", b'{"message":null}'),
    "bare-429": (429, None, b""),
    "ModelNotReadyException": (429, "ModelNotReadyException", b'{"Message": "loading"}'),
    "InternalFailure": (500, "InternalFailure", b'{"Message": "oh"}'),
    "InternalFailure-empty": (500, "InternalFailure", b""),
    "InternalFailure-type-only": (500, "InternalFailure", b"{}"),
    "ServiceUnavailable": (503, "ServiceUnavailable", b'{"Message": "later"}'),
    "InternalDependencyException": (530, "InternalDependencyException", b'{"Message": "dep"}'),
    "body-__type": (400, None, b'{"__type": "com.amazon.coral#ValidationError", "message": "m"}'),
    "body-code": (400, None, b'{"code": "ValidationError", "message": "m"}'),
    "no-code": (400, None, b'{"message": "m"}'),
    "signature": (403, "InvalidSignatureException", b'{"message": "The request signature does not match"}'),
    "access-denied": (403, "AccessDeniedException", b'{"Message": "User: x is not authorized"}'),
    "html-502": (502, None, HTML),
    "html-503-leading-space": (503, None, b"  " + HTML),
    "html-400": (400, None, HTML),
    "empty-503": (503, None, b""),
    "empty-400": (400, None, b""),
    "text": (413, None, b"Request Entity Too Large"),
    "redirect": (301, None, b""),
}
# botocore 1.34 does not cut a namespace off the header's code.
if AIOBOTOCORE >= (2, 20):
    ERRORS["namespace"] = (424, "com.amazonaws.sagemaker#ModelError:http://x/", json.dumps(MODEL_ERROR).encode())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("case", ERRORS)
async def test_errors_are_equal(both: Both, operation: Operation, case: str) -> None:
    status, code, body = ERRORS[case]
    headers = [("x-amzn-RequestId", "r-1"), ("Date", "Sat, 21 Nov 2026 03:00:00 GMT")]
    if code is not None:
        headers.append(("x-amzn-errortype", code))
    both.server.answer = respond(status, body, headers)
    ours, theirs = await both.call(operation.method, **CALLS[operation.name])
    assert isinstance(ours.error, ClientError)
    assert isinstance(theirs.error, ClientError)
    mine, others = cast("Any", ours.error), cast("Any", theirs.error)
    # botocore sets it whenever its only attempt is used up, even where it would not have tried again.
    for error in (mine, others):
        error.response["ResponseMetadata"].pop("MaxAttemptsReached", None)
    if "RequestId" not in others.response["ResponseMetadata"]:
        # botocore drops the request id beside a proxy's HTML; it helps in a support case all the same.
        assert mine.response["ResponseMetadata"].pop("RequestId") == "r-1"
    assert mine.response == others.response
    assert mine.operation_name == others.operation_name == operation.name
    assert _without_count(str(mine)) == _without_count(str(others))
    # The same handlers catch it.
    client, peer = both.clients
    for name in ("ModelError", "ValidationError", "InternalFailure", "ServiceUnavailable", "ModelNotReadyException"):
        assert isinstance(mine, getattr(client.exceptions, name)) == isinstance(others, getattr(peer.exceptions, name))


def _without_count(message: str) -> str:
    return message.replace(" (reached max retries: 0)", "")


async def test_a_reset_connection(both: Both) -> None:
    both.server.answer = lambda request: None
    ours, theirs = await both.call("invoke_endpoint", **CALLS["InvokeEndpoint"])
    # As boto3 has it; aiobotocore takes a reset for a refused connection.
    assert isinstance(ours.error, ConnectionClosedError)
    assert isinstance(theirs.error, ConnectionClosedError | EndpointConnectionError)


async def test_a_body_that_breaks_off(both: Both) -> None:
    both.server.answer = lambda request: Response(200, (), b"half", declared_length=8, cut=True)
    ours, theirs = await both.call("invoke_endpoint", **CALLS["InvokeEndpoint"])
    # As boto3 has it; aiobotocore lets aiohttp's error through.
    assert isinstance(ours.error, ResponseStreamingError)
    assert isinstance(theirs.error, ResponseStreamingError | aiohttp.ClientPayloadError)


async def test_a_silent_service_is_a_read_timeout_for_both(server: RecordingServer) -> None:
    heard = asyncio.Event()

    async def silence(request: RecordedRequest) -> Response:
        await heard.wait()
        return Response()

    server.answer = silence
    for make, arguments in ((aiosmrt_client, {"read_timeout": 0.05}), (aiobotocore_client, {"read_timeout": 0.05})):
        async with make(server.url, retries=ONCE, **arguments) as client:
            with pytest.raises(ReadTimeoutError):
                await client.invoke_endpoint(EndpointName="e", Body=b"")
    heard.set()


async def test_a_refused_connection(server: RecordingServer) -> None:
    async with RecordingServer() as closed:
        url = closed.url
    for make in CLIENTS.values():
        async with make(url, retries=ONCE) as client:
            with pytest.raises(EndpointConnectionError) as caught:
                await client.invoke_endpoint(EndpointName="e", Body=b"")
        assert url in str(caught.value)


@pytest.mark.parametrize("failures", [1, 2])
async def test_retries_are_counted_alike(server: RecordingServer, failures: int, monkeypatch: Any) -> None:
    counts = []
    for name, make in CLIENTS.items():
        server.answer = respond_in_turn(*[Response(500, (), b"{}")] * failures, Response(200))
        async with make(server.url, retries={"total_max_attempts": 3, "mode": "standard"}) as client:
            if name == "aiobotocore":
                monkeypatch.setattr("aiobotocore.endpoint.asyncio.sleep", _no_sleep)
            else:
                seams.set_sleep(client, _no_sleep)
            response = await client.invoke_endpoint(EndpointName="e", Body=b"")
            monkeypatch.undo()
            async with response["Body"] as stream:
                await stream.read()
            counts.append(response["ResponseMetadata"]["RetryAttempts"])
    assert counts == [failures, failures]
    first, second = server.requests[: failures + 1], server.requests[failures + 1 :]
    assert len(first) == len(second)
    # Each attempt of a call has its invocation id, and each is signed anew.
    for requests in (first, second):
        assert len({request.header("amz-sdk-invocation-id") for request in requests}) == 1
        for request in requests:
            verify_signature(request, CREDENTIALS.secret_key)
    assert [request.header("amz-sdk-request") for request in first] == [
        f"attempt={number}; max=3" for number in range(1, failures + 2)
    ]
    numbers = [str(request.header("amz-sdk-request")).partition(";")[0] for request in second]
    assert numbers == [f"attempt={number}" for number in range(1, failures + 2)]


async def _no_sleep(delay: float) -> None:
    pass


async def test_exceptions(client: Any) -> None:
    for operation in OPERATIONS:
        known = MODEL.operation_model(operation.name).error_shapes
        for code in [shape.name for shape in known if shape.name in operation.errors]:
            assert issubclass(getattr(client.exceptions, code), ClientError)
            assert client.exceptions.from_code(code) is getattr(client.exceptions, code)
    assert client.exceptions.ClientError is ClientError
    assert client.exceptions.from_code("SomethingElse") is ClientError
    with pytest.raises(AttributeError):
        client.exceptions.NoSuchError  # noqa: B018


# Parameters

BAD_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("invoke_endpoint", {}),
    "no-body": ("invoke_endpoint", {"EndpointName": "e"}),
    "no-name": ("invoke_endpoint_with_response_stream", {"Body": b""}),
    "number-for-name": ("invoke_endpoint", {"EndpointName": 3, "Body": b""}),
    "number-for-body": ("invoke_endpoint", {"EndpointName": "e", "Body": 3}),
    "dict-for-body": ("invoke_endpoint", {"EndpointName": "e", "Body": {}}),
    "empty-inference-id": ("invoke_endpoint", {"EndpointName": "e", "Body": b"", "InferenceId": ""}),
    "text-for-number": (
        "invoke_endpoint_async",
        {"EndpointName": "e", "InputLocation": "s3://b/k", "RequestTTLSeconds": "60"},
    ),
    "number-too-small": (
        "invoke_endpoint_async",
        {"EndpointName": "e", "InputLocation": "s3://b/k", "RequestTTLSeconds": 59},
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
async def test_faulty_parameters(both: Both, case: str) -> None:
    method, members = BAD_CALLS[case]
    ours, theirs = await both.call(method, **members)
    assert isinstance(theirs.error, ParamValidationError)
    # A required argument that is left out is Python's own error in an explicit signature.
    if case in ("nothing", "no-body", "no-name"):
        assert isinstance(ours.error, TypeError | ParamValidationError)
    else:
        assert isinstance(ours.error, ParamValidationError)
        assert str(ours.error).startswith("Parameter validation failed:\n")
    assert ours.request is theirs.request is None


async def test_operations_take_keywords_only(client: Any) -> None:
    for operation in OPERATIONS:
        with pytest.raises(TypeError):
            await getattr(client, operation.method)("e", b"")


# Around the operations


def test_methods_are_coroutine_functions() -> None:
    from aiosmrt.client import Client

    for operation in OPERATIONS:
        assert inspect.iscoroutinefunction(getattr(Client, operation.method))


async def test_no_pages_and_no_waiters(client: Any) -> None:
    for operation in OPERATIONS:
        assert client.can_paginate(operation.method) is False
        with pytest.raises(OperationNotPageableError) as caught:
            client.get_paginator(operation.method)
        assert str(caught.value) == f"Operation cannot be paginated: {operation.method}"
    with pytest.raises(ValueError, match="Waiter does not exist: endpoint_in_service"):
        client.get_waiter("endpoint_in_service")
    assert client.waiter_names == []


async def test_an_unknown_method_has_no_pages_either(client: Any) -> None:
    for ask in (client.can_paginate, client.get_paginator):
        with pytest.raises(KeyError):
            ask("invoke_endpint")


async def test_meta(client: Any, server: RecordingServer) -> None:
    assert client.meta.region_name == REGION
    assert client.meta.endpoint_url == server.url
    assert client.meta.service_model.service_name == "sagemaker-runtime"
    assert str(client.meta.service_model.service_id) == "SageMaker Runtime"
    assert client.meta.service_model.api_version == "2017-05-13"
    assert client.meta.service_model.signing_name == "sagemaker"
    assert client.meta.service_model.endpoint_prefix == "runtime.sagemaker"
    assert client.meta.service_model.signature_version == "v4"
    assert list(client.meta.service_model.operation_names) == list(MODEL.operation_names)
    assert dict(client.meta.method_to_api_mapping) == {op.method: op.name for op in OPERATIONS}
    assert client.meta.partition == "aws"
    assert client.meta.config.region_name == REGION
    assert client.meta.config.signature_version == "v4"
    assert client.meta.config.connect_timeout > 0
    assert client.meta.config.read_timeout > 0
    assert client.meta.config.max_pool_connections >= 1
    assert isinstance(client.meta.config.user_agent, str)


@pytest.mark.parametrize(
    "region", ["eu-central-1", "cn-north-1", "us-gov-west-1", "us-iso-east-1", "eusc-de-east-1", "xx-new-1"]
)
async def test_the_partition_of_a_region(region: str) -> None:
    theirs = boto3.client(
        "sagemaker-runtime", region, aws_access_key_id="AKID", aws_secret_access_key="secret"
    ).meta.partition
    async with Client(region, aws_access_key_id="AKID", aws_secret_access_key="secret") as client:
        assert client.meta.partition == theirs


# The wire

# Headers in which two clients may differ, and why.
MAY_DIFFER = {
    "user-agent": "names the client",
    "amz-sdk-invocation-id": "random",
    "amz-sdk-request": "ours also sends max=, as the AWS SDKs' specification has it",
    "x-amz-date": "the second may have passed",
    "authorization": "verified apart",
    "accept": "aiohttp adds */* to aiobotocore's request when no Accept is given",
    "connection": "keep-alive is HTTP/1.1's default",
}


def wire(request: RecordedRequest, *, accept: bool) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        lowered = name.lower()
        if lowered not in MAY_DIFFER or (lowered == "accept" and accept):
            headers.setdefault(lowered, []).append(value)
    return headers


def compare_wire(operation: Operation, members: dict[str, Any], ours: RecordedRequest, theirs: RecordedRequest) -> None:
    assert ours.method == theirs.method == "POST"
    assert ours.target == theirs.target
    assert ours.body == theirs.body
    accept = operation.name == "InvokeEndpoint" and "Accept" in members
    assert wire(ours, accept=accept) == wire(theirs, accept=accept)
    for member in operation.members:
        if member.header is not None and member.name in members:
            assert ours.header(member.header) == str(members[member.name])
    if not accept:
        assert ours.header("Accept") in (None, "*/*")
    verified = [verify_signature(request, CREDENTIALS.secret_key) for request in (ours, theirs)]
    assert {(one.access_key, one.region, one.service) for one in verified} == {
        (CREDENTIALS.access_key, REGION, "sagemaker")
    }
    # What we sign is what botocore signs.
    assert verified[0].signed_headers == verified[1].signed_headers
    assert ours.header("amz-sdk-request") == "attempt=1; max=1"
    invocation = ours.header("amz-sdk-invocation-id")
    assert invocation is not None
    assert len(invocation) == 36


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_each_member_goes_out_equally(both: Both, operation: Operation) -> None:
    unknown = UNKNOWN[operation.name]
    cases: list[dict[str, Any]] = []

    def collect(calls: st.SearchStrategy[dict[str, Any]], count: int) -> None:
        @settings(max_examples=count)
        @given(calls)
        def collected(members: dict[str, Any]) -> None:
            cases.append(members)

        collected()

    collect(full_of(operation, without=unknown), 30)
    collect(full_of(operation, without=unknown, everything=True), 5)
    # Body and InputLocation exclude each other.
    collect(full_of(operation, without=unknown | {"InputLocation"}, everything=True), 5)

    both.server.answer = bare(operation)
    seen: set[str] = set()
    for members in cases:
        if operation.name == "InvokeEndpointAsync" and "Body" in unknown:
            # Inline bodies came later; until then InputLocation was required.
            members.pop("Body", None)
            members.setdefault("InputLocation", "s3://bucket/key")
        ours, theirs = await both.call(operation.method, **members)
        assert ours.error is None
        assert theirs.error is None
        assert ours.request is not None
        assert theirs.request is not None
        compare_wire(operation, members, ours.request, theirs.request)
        seen |= members.keys()
    assert seen == {member.name for member in operation.members} - unknown


@pytest.mark.parametrize(
    "body",
    [b"", "text: größe", bytearray(b"array"), b"x" * 300_000, b"\r\n\r\n0\r\n\r\n"],
    ids=["empty", "str", "bytearray", "large", "looks-like-http"],
)
async def test_body_bytes_on_the_wire(both: Both, body: Any) -> None:
    ours, theirs = await both.call("invoke_endpoint", EndpointName="e", Body=body)
    assert ours.request is not None
    assert theirs.request is not None
    compare_wire(OPERATIONS[0], {}, ours.request, theirs.request)


async def test_a_file_goes_out_equally(both: Both, tmp_path: Any) -> None:
    import io

    for position in (0, 7):
        requests = []
        for client in both.clients:
            file = io.BytesIO(b"0123456789")
            file.seek(position)
            await client.invoke_endpoint(EndpointName="e", Body=file)
            requests.append(both.server.last)
        ours, theirs = requests
        assert ours.body == b"0123456789"[position:]
        compare_wire(OPERATIONS[0], {}, ours, theirs)


@pytest.mark.parametrize(
    ("values", "case"),
    [
        ({"CustomAttributes": "a  b   c"}, "inner-spaces"),
        ({"CustomAttributes": 'a,b;c="d" %20 ~\'()*!'}, "punctuation"),
        ({"EnableExplanations": "`probability>0.8`"}, "backticks"),
        # The model's patterns of the two allow it.
        ({"EnableExplanations": "größe > 3 ∧ ü"}, "not-ascii"),
        ({"InferenceComponentName": "component-1", "TargetVariant": "blue"}, "two-targets"),
        ({"ContentType": "text/csv; charset=utf-8", "Accept": "*/*"}, "types"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_values_that_are_hard_to_sign(both: Both, values: dict[str, Any], case: str) -> None:
    members = {**CALLS["InvokeEndpoint"], **values}
    if set(values) & UNKNOWN["InvokeEndpoint"]:
        pytest.skip("this botocore does not know the member")
    ours, theirs = await both.call("invoke_endpoint", **members)
    assert ours.request is not None
    assert theirs.request is not None
    compare_wire(OPERATIONS[0], members, ours.request, theirs.request)


async def test_a_location_that_is_not_ascii_goes_out_equally(both: Both) -> None:
    members = {"EndpointName": "e", "InputLocation": "s3://bucket/größe 1,2/入力.csv"}
    ours, theirs = await both.call("invoke_endpoint_async", **members)
    assert ours.request is not None
    assert theirs.request is not None
    compare_wire(OPERATIONS[1], members, ours.request, theirs.request)


async def test_a_session_token_goes_out_equally(server: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import peers

    monkeypatch.setitem(peers.CLIENT_ARGUMENTS, "aws_session_token", "fake/session+token==")
    requests = []
    for make in CLIENTS.values():
        async with make(server.url, retries=ONCE) as client:
            await client.invoke_endpoint(EndpointName="e", Body=b"")
            requests.append(server.last)
    for request in requests:
        assert request.header("X-Amz-Security-Token") == "fake/session+token=="
    compare_wire(OPERATIONS[0], {}, requests[0], requests[1])


async def test_a_url_with_a_path_keeps_it(server: RecordingServer) -> None:
    requests = []
    for make in CLIENTS.values():
        async with make(f"{server.url}/prefix/", retries=ONCE) as client:
            await client.invoke_endpoint(EndpointName="e", Body=b"")
            requests.append(server.last)
    assert requests[0].target == "/prefix/endpoints/e/invocations"
    compare_wire(OPERATIONS[0], {}, requests[0], requests[1])


# Presigned URLs


@pytest.mark.parametrize(
    "members",
    [
        {"EndpointName": "e", "Body": b""},
        {"EndpointName": "e", "Body": b"", "ContentType": "text/csv", "Accept": "a/b"},
        {"EndpointName": "e", "Body": b"", "CustomAttributes": "a b&c=d/é"[:8], "TargetVariant": "blue"},
    ],
    ids=["bare", "types", "attributes"],
)
async def test_presigned_urls_are_equal(both: Both, members: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    from botocore import auth

    ours, theirs = both.clients
    moment = datetime.datetime(2026, 11, 21, 4, 5, 6, tzinfo=datetime.UTC)
    # One moment for both. botocore's way to ask for the time has changed over its releases.
    if hasattr(auth, "get_current_datetime"):
        monkeypatch.setattr(auth, "get_current_datetime", lambda remove_tzinfo=True: moment.replace(tzinfo=None))
    else:

        class Clock(datetime.datetime):
            @classmethod
            def utcnow(cls) -> Any:
                return moment.replace(tzinfo=None)

        monkeypatch.setattr("botocore.auth.datetime.datetime", Clock)
    seams.set_wall_clock(ours, moment.timestamp)
    for expires in (1, 3600):
        mine = await ours.generate_presigned_url("invoke_endpoint", Params=members, ExpiresIn=expires)
        others = await theirs.generate_presigned_url("invoke_endpoint", Params=members, ExpiresIn=expires)
        assert mine == others
