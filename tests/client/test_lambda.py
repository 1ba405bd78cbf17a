"""In AWS Lambda, calls belong to the trace of the invocation, as with botocore."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.handlers import add_recursion_detection_header

import aiosmrt
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.peers import CREDENTIALS
from tests.support.recording_server import RecordingServer
from tests.support.signatures import verify_signature

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}
TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"


def botocores() -> str | None:
    params: dict[str, dict[str, str]] = {"headers": {}}
    add_recursion_detection_header(params)
    return params["headers"].get("X-Amzn-Trace-Id")


@pytest.mark.parametrize("trace", [TRACE, "first\nsecond", "a b/c?d%20", "[{\"'&,+:}]", "\u00e9\u20ac", "", None])
@pytest.mark.parametrize("function", ["scorer", "", None])
async def test_the_trace_is_passed_on_as_by_botocore(
    make_client: MakeClient,
    server: RecordingServer,
    monkeypatch: pytest.MonkeyPatch,
    trace: str | None,
    function: str | None,
) -> None:
    for name, value in (("AWS_LAMBDA_FUNCTION_NAME", function), ("_X_AMZN_TRACE_ID", trace)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    await make_client().invoke_endpoint(**CALL)
    assert server.last.header("X-Amzn-Trace-Id") == botocores()
    verify_signature(server.last, CREDENTIALS.secret_key)


async def test_calls_of_all_operations_have_the_trace(
    make_client: MakeClient, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "scorer")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", TRACE)
    client = make_client()
    await client.invoke_endpoint_async(EndpointName="e", InputLocation="s3://bucket/key")
    (await client.invoke_endpoint_with_response_stream(**CALL))["Body"].close()
    await client.with_options(deadline=60.0).invoke_endpoint(**CALL)
    await client.make_request("InvokeEndpoint", CALL)
    assert [request.header("X-Amzn-Trace-Id") for request in server.requests] == [TRACE] * 4
    url = await client.generate_presigned_url("invoke_endpoint", CALL)
    assert "trace" not in url.lower()


async def test_each_invocation_has_its_own_trace(
    make_client: MakeClient, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "scorer")
    client = make_client()
    for trace in ("Root=1", "Root=2", None):
        if trace is None:
            monkeypatch.delenv("_X_AMZN_TRACE_ID")
        else:
            monkeypatch.setenv("_X_AMZN_TRACE_ID", trace)
        await client.invoke_endpoint(**CALL)
        assert server.last.header("X-Amzn-Trace-Id") == trace


async def test_a_repeated_request_has_the_trace_too(
    make_client: MakeClient, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.recording_server import Response

    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "scorer")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", TRACE)
    statuses = [503, 200]
    server.answer = lambda request: Response(statuses.pop(0), (), b"")
    client = make_client()
    seams.set_sleep(client, no_sleep)
    await client.invoke_endpoint(**CALL)
    assert [request.header("X-Amzn-Trace-Id") for request in server.requests] == [TRACE, TRACE]


async def no_sleep(seconds: float) -> None:
    """A back-off without the wait."""


class Tracer:
    def __call__(self, event: aiosmrt.Event) -> None:
        """Take no notice of events."""

    def request_headers(self, started: object, headers: dict[str, str]) -> dict[str, str]:
        return {"x-amzn-trace-id": "Root=observer"}


async def test_an_observers_trace_takes_precedence(
    make_client: MakeClient, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "scorer")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", TRACE)
    await make_client(observers=[Tracer()]).invoke_endpoint(**CALL)
    assert [value for name, value in server.last.headers if name.lower() == "x-amzn-trace-id"] == ["Root=observer"]
