"""The local runtime under the JavaScript client of AWS: its signatures, its parsing and its stream reader."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiosmrt._wire.operations import BY_NAME
from aiosmrt.local import (
    ContainerFailure,
    Credentials,
    EndpointConfiguration,
    Invocation,
    LocalRuntime,
    MultiContainer,
    ProductionVariant,
    faults,
)
from tests.support.javascript_sdk import (
    JAVASCRIPT_DIRECTORY,
    JavaScriptClient,
    JavaScriptError,
    javascript_client,
)
from tests.support.peers import CREDENTIALS, REGION
from tests.support.recording_server import RecordingServer, respond
from tests.support.signatures import verify_signature


class Model:
    """Endpoints whose behaviour a test steers while the JavaScript process looks on."""

    def __init__(self) -> None:
        self.seen: list[Invocation] = []
        self.go_on = asyncio.Event()
        self.stream_closed = asyncio.Event()

    async def echo(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        self.seen.append(invocation)
        return invocation.body, {
            "Content-Type": invocation.accept or "application/octet-stream",
            "X-Amzn-SageMaker-Custom-Attributes": invocation.custom_attributes or "",
        }

    async def count(self, invocation: Invocation) -> AsyncIterator[bytes]:
        """One part, then, once the test has seen it arrive, the next."""
        try:
            for part in (b"one", b"two", b"three"):
                yield part
                await self.go_on.wait()
                self.go_on.clear()
        finally:
            self.stream_closed.set()

    async def many(self, invocation: Invocation) -> AsyncIterator[bytes]:
        for number in range(int(invocation.body)):
            yield b"%d\n" % number

    async def fails(self, invocation: Invocation) -> bytes:
        raise ContainerFailure(500, "no such feature")

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
        "targets": EndpointConfiguration([ProductionVariant(MultiContainer({"host-1": model.echo}))], multi_model=True),
        "count": model.count,
        "many": model.many,
        "fails": model.fails,
        "breaks-off": model.breaks_off,
    }
    credentials = Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)
    async with LocalRuntime(endpoints, credentials=credentials, region=REGION) as runtime:
        yield runtime


@pytest.fixture
async def javascript(
    node: str, runtime: LocalRuntime, aws_variables: dict[str, str]
) -> AsyncIterator[JavaScriptClient]:
    async with javascript_client(
        node, endpoint=runtime.url, region=REGION, environment=aws_variables, maxAttempts=2
    ) as client:
        yield client


async def test_invoke_endpoint(javascript: JavaScriptClient, runtime: LocalRuntime, model: Model) -> None:
    output = await javascript.call(
        "InvokeEndpoint",
        EndpointName="targets",
        Body=bytes(range(256)),
        ContentType="text/csv",
        Accept="application/x-npy",
        CustomAttributes="trace=7, user=o'neill",
        TargetVariant="AllTraffic",
        TargetModel="model-1.tar.gz",
        TargetContainerHostname="host-1",
        InferenceId="request 1",
    )
    assert output["Body"] == bytes(range(256))
    assert output["ContentType"] == "application/x-npy"
    assert output["CustomAttributes"] == "trace=7, user=o'neill"
    assert output["InvokedProductionVariant"] == "AllTraffic"
    assert output["$metadata"]["httpStatusCode"] == 200
    assert output["$metadata"]["attempts"] == 1

    (seen,) = model.seen
    assert seen.content_type == "text/csv"
    assert seen.target_model == "model-1.tar.gz"
    assert seen.target_container_hostname == "host-1"
    assert seen.inference_id == "request 1"

    (record,) = await runtime.wait_for_requests(1)
    assert record.operation == "InvokeEndpoint"
    assert record.access_key_id == CREDENTIALS.access_key
    assert record.request_id == output["$metadata"]["requestId"]
    assert record.user_agent is not None
    assert "aws-sdk-js" in record.user_agent


@pytest.mark.parametrize("size_bytes", [0, 1, 5 * 1024 * 1024])
async def test_bodies_of_any_size(javascript: JavaScriptClient, size_bytes: int) -> None:
    body = bytes(range(251)) * (size_bytes // 251) + b"x" * (size_bytes % 251)
    output = await javascript.call("InvokeEndpoint", EndpointName="echo", Body=body)
    # The client leaves an empty body out.
    assert output.get("Body", b"") == body


async def test_concurrent_calls_on_one_client(javascript: JavaScriptClient) -> None:
    bodies = [b"%d" % number for number in range(40)]
    outputs = await asyncio.gather(
        *(javascript.call("InvokeEndpoint", EndpointName="echo", Body=body) for body in bodies)
    )
    assert [output["Body"] for output in outputs] == bodies


async def test_parts_arrive_while_the_model_is_still_at_work(javascript: JavaScriptClient, model: Model) -> None:
    call = javascript.start("InvokeEndpointWithResponseStream", EndpointName="count", Body=b"")
    output = await call.output()
    assert output["InvokedProductionVariant"] == "AllTraffic"
    for expected in (b"one", b"two", b"three"):
        # The model gives its next part only after this one was seen here: no part can have waited for another.
        assert await call.part() == expected
        assert call.events.empty()
        model.go_on.set()
    assert await call.part() is None


async def test_a_long_stream_arrives_whole_and_in_order(javascript: JavaScriptClient) -> None:
    call = javascript.start("InvokeEndpointWithResponseStream", EndpointName="many", Body=b"2000")
    await call.output()
    parts = []
    while (part := await call.part()) is not None:
        parts.append(part)
    assert parts == [b"%d\n" % number for number in range(2000)]


async def test_an_aborted_stream_ends_the_model(
    javascript: JavaScriptClient, runtime: LocalRuntime, model: Model
) -> None:
    call = javascript.start("InvokeEndpointWithResponseStream", EndpointName="count", Body=b"")
    await call.output()
    assert await call.part() == b"one"
    javascript.cancel(call)
    with pytest.raises(JavaScriptError):
        await call.part()
    await model.stream_closed.wait()
    # The client goes on working.
    assert (await javascript.call("InvokeEndpoint", EndpointName="echo", Body=b"after"))["Body"] == b"after"
    assert (await runtime.wait_for_requests(2))[0].outcome == "disconnected"


async def failure(call: Any) -> JavaScriptError:
    with pytest.raises(JavaScriptError) as caught:
        await call
    return caught.value


async def test_model_error(javascript: JavaScriptClient) -> None:
    error = await failure(javascript.call("InvokeEndpoint", EndpointName="fails", Body=b""))
    assert error.name == "ModelError"
    assert error.details["isServiceException"]
    assert error.details["status"] == 424
    assert error.details["OriginalStatusCode"] == 500
    assert error.details["OriginalMessage"] == "no such feature"
    assert "/aws/sagemaker/Endpoints/fails" in error.details["LogStreamArn"]
    assert error.details["attempts"] == 1


async def test_unknown_endpoint(javascript: JavaScriptClient) -> None:
    for operation in ("InvokeEndpoint", "InvokeEndpointWithResponseStream"):
        error = await failure(javascript.call(operation, EndpointName="nowhere", Body=b""))
        assert error.name == "ValidationError"
        assert error.details["status"] == 400
        assert str(error).endswith("not found.")
        assert "nowhere" in str(error)


async def test_parameters_that_only_the_service_checks(javascript: JavaScriptClient) -> None:
    error = await failure(javascript.call("InvokeEndpoint", EndpointName="echo", Body=b"", TargetVariant="-no-"))
    assert error.name == "ValidationError"
    error = await failure(javascript.call("InvokeEndpoint", EndpointName="echo", Body=b"", TargetVariant="Other"))
    assert error.name == "ValidationError"
    assert "Other" in str(error)


async def test_an_error_inside_a_stream(javascript: JavaScriptClient) -> None:
    call = javascript.start("InvokeEndpointWithResponseStream", EndpointName="breaks-off", Body=b"")
    await call.output()
    assert await call.part() == b"first"
    error = await failure(call.part())
    assert error.name == "ModelStreamError"
    assert error.details["ErrorCode"] == "StreamBroken"


async def test_throttling_is_recognised_and_retried(javascript: JavaScriptClient, runtime: LocalRuntime) -> None:
    runtime.inject("echo", faults.throttling().next(1))
    output = await javascript.call("InvokeEndpoint", EndpointName="echo", Body=b"again")
    assert output["Body"] == b"again"
    assert output["$metadata"]["attempts"] == 2
    assert [record.error_code for record in await runtime.wait_for_requests(2)] == [
        "ThrottlingException",
        None,
    ]


async def test_a_reset_connection_is_retried(javascript: JavaScriptClient, runtime: LocalRuntime) -> None:
    runtime.inject("echo", faults.ResetBeforeHeaders().next(1))
    assert (await javascript.call("InvokeEndpoint", EndpointName="echo", Body=b"again"))["Body"] == b"again"
    assert [record.outcome for record in await runtime.wait_for_requests(2)] == ["cut", "answered"]


async def test_sessions(javascript: JavaScriptClient, model: Model) -> None:
    opened = await javascript.call("InvokeEndpoint", EndpointName="echo", Body=b"", SessionId="NEW_SESSION")
    session_id, _, expires = opened["NewSessionId"].partition("; Expires=")
    assert expires.endswith("Z")
    await javascript.call("InvokeEndpoint", EndpointName="echo", Body=b"", SessionId=session_id)
    assert [seen.session_id for seen in model.seen] == [session_id, session_id]
    assert [seen.new_session for seen in model.seen] == [True, False]


async def test_a_wrong_secret_is_refused(node: str, runtime: LocalRuntime, aws_variables: dict[str, str]) -> None:
    variables = {**aws_variables, "AWS_SECRET_ACCESS_KEY": "another-fake-secret"}
    async with javascript_client(node, endpoint=runtime.url, region=REGION, environment=variables) as client:
        error = await failure(client.call("InvokeEndpoint", EndpointName="echo", Body=b""))
    assert error.name == "InvalidSignatureException"
    assert error.details["status"] == 403


async def test_asynchronous_inference(node: str, javascript: JavaScriptClient, aws_variables: dict[str, str]) -> None:
    """The endpoint is not asynchronous, so the runtime refuses; a recorder shows the operation's request."""
    error = await failure(javascript.call("InvokeEndpointAsync", EndpointName="echo", InputLocation="s3://bucket/key"))
    assert error.name == "ValidationError"

    members: dict[str, Any] = {
        "EndpointName": "echo",
        "InputLocation": "s3://bucket/in.csv",
        "ContentType": "text/csv",
        "Accept": "application/json",
        "CustomAttributes": "c=1",
        "InferenceId": "id-1",
        "RequestTTLSeconds": 60,
        "InvocationTimeoutSeconds": 3600,
        "Filename": "in.csv",
        "S3OutputPathExtension": "out/1",
    }
    answer = respond(
        202,
        b'{"InferenceId": "id-1"}',
        [
            ("X-Amzn-SageMaker-OutputLocation", "s3://bucket/out"),
            ("X-Amzn-SageMaker-FailureLocation", "s3://bucket/failed"),
        ],
    )
    async with (
        RecordingServer(answer) as server,
        javascript_client(node, endpoint=server.url, region=REGION, environment=aws_variables) as client,
    ):
        output = await client.call("InvokeEndpointAsync", **members)
        request = server.last
    assert output["InferenceId"] == "id-1"
    assert output["OutputLocation"] == "s3://bucket/out"
    assert output["FailureLocation"] == "s3://bucket/failed"
    verify_signature(request, CREDENTIALS.secret_key)
    # AWS's own JavaScript client puts each member where our table puts it.
    for member in BY_NAME["InvokeEndpointAsync"].members:
        if member.header is not None and member.name in members:
            assert request.header(member.header) == str(members[member.name])


def test_the_lock_file_names_no_registry() -> None:
    """An install takes the packages from the registry that is configured there."""
    lock = json.loads((JAVASCRIPT_DIRECTORY / "package-lock.json").read_text())
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert len(packages) > 10
    assert all("integrity" in package and "resolved" not in package for package in packages.values())
    assert "omit-lockfile-registry-resolved=true" in (JAVASCRIPT_DIRECTORY / ".npmrc").read_text().splitlines()
