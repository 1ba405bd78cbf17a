"""The testing kit: the fake client, streams and errors without a server, the pytest plugin."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aiosmrt
from aiosmrt import errors
from aiosmrt.serializers import JSON
from aiosmrt.testing import FakeClient, FakeResponse, RecordedCall, make_error, make_event_stream
from tests.support.plugin import plugin_options

ROOT = Path(__file__).parents[2]
CALL: dict[str, Any] = {"EndpointName": "churn", "Body": b"1,2"}

ERRORS = [
    value
    for name in errors.__all__
    if inspect.isclass(value := getattr(errors, name)) and issubclass(value, errors.AiosmrtError)
]


# The fake client


async def test_bidirectional_streams_are_refused() -> None:
    async with FakeClient({"speech": b"x"}) as client:
        with pytest.raises(errors.ClientStateError, match="LocalRuntime"):
            async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="speech"):
                pass
        assert (client.calls, client.statistics().in_use) == ([], 0)


async def test_a_fake_client_answers_and_records() -> None:
    answer = FakeResponse(b"0.25", "text/csv", custom_attributes="seen=1")
    async with FakeClient({"churn": answer}) as client:
        response = await client.invoke_endpoint(**CALL, ContentType="text/csv", CustomAttributes="tenant=7")
    assert await response["Body"].read() == b"0.25"
    assert (response["ContentType"], response["CustomAttributes"]) == ("text/csv", "seen=1")
    assert response["InvokedProductionVariant"] == "AllTraffic"
    params = {"ContentType": "text/csv", "CustomAttributes": "tenant=7"}
    assert client.calls == [RecordedCall("InvokeEndpoint", "churn", params, b"1,2")]
    assert "tenant" not in repr(client.calls)
    assert "1,2" not in repr(client.calls)


@pytest.mark.parametrize(
    ("answer", "body", "content_type"),
    [
        (b"raw", b"raw", "application/octet-stream"),
        ("süß", "süß".encode(), "text/plain; charset=utf-8"),
        ({"a": 1}, b'{"a": 1}', "application/json"),
        ([1, 2], b"[1, 2]", "application/json"),
        (FakeResponse([b"1", b"2"]), b"12", "application/octet-stream"),
    ],
)
async def test_what_can_be_an_answer(answer: Any, body: bytes, content_type: str) -> None:
    async def later(call: RecordedCall) -> Any:
        return answer

    async with FakeClient({"churn": answer, "function": lambda call: answer, "coroutine": later}) as client:
        for name in ("churn", "function", "coroutine"):
            response = await client.invoke_endpoint(EndpointName=name, Body=b"")
            assert await response["Body"].read() == body
            assert response["ContentType"] == content_type


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (b"0.25", "answers must map the names of endpoints to their answers; got <class 'bytes'>"),
        ({"churn": None}, "the answer of 'churn' is None"),
        ({"churn": object()}, "the answer of 'churn' must be bytes, text, JSON, .*; got <class 'object'>"),
        ({"churn": {"a": {1}}}, "the answer of 'churn' must be bytes, text, JSON, .*set is not JSON serializable"),
        ({"churn": errors.ModelError}, r"'churn' is the class of an error; give an error: make_error\(ModelError\)"),
        ({"churn": TimeoutError}, r"'churn' is the class of an error; give an error: TimeoutError\(...\)"),
    ],
)
async def test_what_cannot_be_an_answer(answers: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        FakeClient(answers)
    if isinstance(answers, dict):
        async with FakeClient({"churn": lambda call: answers["churn"]}) as client:
            with pytest.raises(TypeError, match=problem):
                await client.invoke_endpoint(**CALL)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("0.25",), "body must be bytes, or a sequence of bytes .*; got <class 'str'>"),
        ((3,), "body must be bytes, or a sequence of bytes .*; got <class 'int'>"),
        (([b"a", "b"],), "body must be bytes, or a sequence of bytes .*; got <class 'str'>"),
        ((b"", None), "content_type must be a string; got <class 'NoneType'>"),
        ((b"", "text/csv", {"a": 1}), "custom_attributes must be a string; got <class 'dict'>"),
        (
            (b"", "text/csv", None, errors.ModelStreamError),
            "error must be an exception; got <class '.*ModelStreamError'>",
        ),
    ],
)
def test_what_cannot_be_a_response(arguments: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        FakeResponse(*arguments)


async def test_a_function_answers_by_the_call() -> None:
    async with FakeClient({"*": lambda call: {"endpoint": call.endpoint_name, "given": call.json()}}) as client:
        endpoint = client.endpoint("any", serializer=JSON, deserializer=JSON)
        assert await endpoint.predict([1]) == {"endpoint": "any", "given": [1]}
        async with endpoint.map([1, 2, 3]) as mapped:
            results = [result.unwrap() async for result in mapped]
    assert sorted(result["given"] for result in results) == [1, 2, 3]
    assert len(client.calls) == 4


async def test_streams_and_asynchronous_inference() -> None:
    async with FakeClient({"llm": FakeResponse([b'{"a": 1}\n', b'{"a": 2}\n'])}) as client:
        async with client.endpoint("llm", serializer=JSON, deserializer=JSON).stream({}) as stream:
            assert [value async for value in stream.jsonl()] == [{"a": 1}, {"a": 2}]
        assert stream.timing.parts == 2
        queued = await client.invoke_endpoint_async(EndpointName="llm", InputLocation="s3://bucket/key")
    assert queued["InferenceId"]
    assert queued["OutputLocation"] == "s3://fake/output"
    assert client.calls[-1].params["InputLocation"] == "s3://bucket/key"


async def test_a_stream_that_fails() -> None:
    broken = FakeResponse([b"one", b"two"], error=make_error(errors.ModelStreamError, ErrorCode="StreamBroken"))
    async with FakeClient({"llm": broken}) as client:
        response = await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"")
        parts = []
        async with response["Body"] as stream:
            with pytest.raises(errors.ModelStreamError) as caught:
                async for event in stream:
                    parts.append(event["PayloadPart"]["Bytes"])
    assert parts == [b"one", b"two"]
    assert caught.value.error_code == "StreamBroken"
    assert client.statistics().in_use == 0


@pytest.mark.parametrize(
    "kind", [errors.ModelError, errors.ThrottlingError, errors.ReadTimeoutError, errors.EndpointConnectionError]
)
async def test_errors_are_raised_at_once_and_afresh(kind: type[errors.AiosmrtError]) -> None:
    error = make_error(kind)
    async with FakeClient({"churn": error}) as client:
        raised = []
        for _ in range(2):
            with pytest.raises(kind) as caught:
                await client.invoke_endpoint(**CALL)
            raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert error not in raised
    assert (raised[0].endpoint_name, raised[0].attempts, len(client.calls)) == ("churn", 1, 2)


async def test_retries_are_the_clients_with_patience() -> None:
    answers = iter([make_error(errors.ThrottlingError), b"ok"])
    policy = aiosmrt.RetryPolicy(throttling_base_delay=0.001)
    async with FakeClient({"churn": lambda call: next(answers)}, patience=60.0, retry=policy) as client:
        await client.invoke_endpoint(**CALL)
    assert (len(client.calls), client.statistics().throttles) == (2, 1)


async def test_what_the_real_client_refuses_is_refused() -> None:
    async with FakeClient({"churn": b""}) as client:
        with pytest.raises(errors.ParamValidationError):
            await client.invoke_endpoint(EndpointName="not a name", Body=b"")
        with pytest.raises(errors.EndpointNotFoundError):
            await client.invoke_endpoint(EndpointName="another", Body=b"")
    assert [call.endpoint_name for call in client.calls] == ["another"]


async def test_views_record_in_the_same_list() -> None:
    seen: list[aiosmrt.Event] = []
    async with FakeClient({"churn": b""}) as client:
        await client.with_options(observers=[seen.append]).invoke_endpoint(**CALL)
    assert len(client.calls) == 1
    assert type(seen[-1]).__name__ == "CallEnded"


# Streams and errors without a client


async def test_an_event_stream() -> None:
    async with make_event_stream([b"one", b"two"]) as stream:
        assert [event["PayloadPart"]["Bytes"] async for event in stream] == [b"one", b"two"]
    assert (stream.timing.parts, stream.timing.payload_bytes) == (2, 6)


async def test_an_event_stream_whose_parts_come_when_a_test_says() -> None:
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await go_on.wait()
        yield b"two"

    async with make_event_stream(parts(), error=make_error(errors.ResponseStreamingError)) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not waiting.done()
        go_on.set()
        assert await waiting == {"PayloadPart": {"Bytes": b"two"}}
        with pytest.raises(errors.ResponseStreamingError):
            await anext(stream)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_can_be_made(kind: type[errors.AiosmrtError]) -> None:
    error = make_error(kind, "words", operation="InvokeEndpointAsync", endpoint_name="churn", attempts=3)
    assert type(error) is kind
    assert (error.operation, error.endpoint_name, error.attempts) == ("InvokeEndpointAsync", "churn", 3)
    if kind not in (errors.TooManyWaitingError, errors.TooManyFailuresError):
        assert "words" in str(error)
    if isinstance(error, errors.ServiceError):
        assert error.code
        assert error.response["ResponseMetadata"]["RetryAttempts"] == 2


def test_facts_of_an_error() -> None:
    error = make_error(errors.ModelError, OriginalStatusCode=500, OriginalMessage="boom", LogStreamArn="arn")
    assert (error.status, error.original_status_code, error.original_message) == (424, 500, "boom")
    denied = make_error(errors.ServiceError, code="ExpiredTokenException", status=403)
    assert (denied.code, denied.status) == ("ExpiredTokenException", 403)
    assert make_error(errors.ThrottlingError).throttling
    assert make_error(errors.TooManyWaitingError, max_waiting=7).max_waiting == 7
    assert make_error(errors.ObjectStoreError, code="NoSuchKey", status=404).status == 404


@pytest.mark.parametrize(
    ("kind", "facts", "problem"),
    [
        (ValueError, {}, "kind must be a class of aiosmrt.errors, such as ModelError; got <class 'ValueError'>"),
        ("ModelError", {}, "kind must be a class of aiosmrt.errors, such as ModelError; got 'ModelError'"),
        (
            errors.ModelError,
            {"OriginalStatus": 500},
            "ModelError has no OriginalStatus; known are: OriginalStatusCode, ",
        ),
        (errors.ModelError, {"OriginalStatusCode": "500"}, "OriginalStatusCode must be of type int; got <class 'str'>"),
        (
            errors.ThrottlingError,
            {"OriginalStatusCode": 429},
            "ThrottlingError has no OriginalStatusCode; known are: none",
        ),
    ],
)
def test_an_error_that_cannot_be(kind: Any, facts: dict[str, Any], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        make_error(kind, **facts)


# The pytest plugin

PROGRAM = """
import asyncio
import boto3
import aiosmrt
import pytest
from aiosmrt.local import Credentials, faults


async def model(invocation):
    return b"0.25", {"Content-Type": "text/csv"}


def test_synchronous(sagemaker_runtime):
    runtime = sagemaker_runtime({"churn": model})
    client = boto3.client("sagemaker-runtime", **runtime.client_settings)
    assert client.invoke_endpoint(EndpointName="churn", Body=b"1")["Body"].read() == b"0.25"
    client.close()
    (request,) = asyncio.run(runtime.wait_for_requests(1))
    assert request.endpoint == "churn"
    assert runtime.statistics()["requests"] == 1


async def call(**arguments):
    async with aiosmrt.Client(**arguments) as client:
        response = await client.invoke_endpoint(EndpointName="churn", Body=b"1")
        return await response["Body"].read(), response["ResponseMetadata"]["RetryAttempts"]


async def test_asyncio(sagemaker_runtime):
    runtime = sagemaker_runtime({"churn": model}, region="eu-central-1")
    runtime.inject("churn", faults.throttling().next(1))
    assert await call(**runtime.client_settings) == (b"0.25", 1)
    await runtime.wait_for_requests(2)
    runtime.clear_faults()
    runtime.clear_requests()
    assert list(runtime.requests) == []
    runtime.close_idle_connections()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio(sagemaker_runtime, monkeypatch, anyio_backend):
    key = Credentials("AKIDEXAMPLE", "not-a-real-secret", "token")
    runtime = sagemaker_runtime({"churn": model}, credentials=key)
    for name, value in runtime.environment.items():
        monkeypatch.setenv(name, value)
    assert await call() == (b"0.25", 0)


def test_two_runtimes(sagemaker_runtime):
    first, second = sagemaker_runtime({"a": model}), sagemaker_runtime({"b": model}, verify_signatures=False)
    assert first.url != second.url
    assert first.port
"""


@pytest.mark.long
def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_program.py").write_text(PROGRAM)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *plugin_options()),
            *("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "test_program.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_plugin_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"aiosmrt": "aiosmrt.testing.plugin"}
