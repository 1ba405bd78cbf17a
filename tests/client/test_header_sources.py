"""Observers that add headers to the requests of the calls that they see begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from aiosmrt import Client, RetryPolicy, events
from aiosmrt._wire.operations import EVENT_STREAM
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.recording_server import RecordedRequest, RecordingServer, Response, respond, respond_in_turn
from tests.support.runtime import local_runtime

MakeClient = Callable[..., Client]

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@dataclass
class Source:
    """An observer that adds the given headers, or raises the given error."""

    added: Mapping[str, str] | Exception
    seen: list[events.Event] = field(default_factory=list)
    asked: list[tuple[events.CallStarted, dict[str, str]]] = field(default_factory=list)

    def __call__(self, event: events.Event) -> None:
        self.seen.append(event)

    def request_headers(self, started: events.CallStarted, headers: Mapping[str, str]) -> Mapping[str, str]:
        # it has seen this call begin
        assert self.seen[-1] is started
        self.asked.append((started, dict(headers)))
        if isinstance(self.added, Exception):
            raise self.added
        return self.added


def names(request: RecordedRequest) -> set[str]:
    return {name.lower() for name, _ in request.headers}


async def test_every_request_of_the_call_has_them(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = respond_in_turn(Response(503), Response(503), Response(200))
    source = Source({"traceparent": "00-1-2-01"})
    client = make_client(observers=[source], retry=RetryPolicy(base_delay=0.0))
    await client.invoke_endpoint(EndpointName="e", Body=b"1", CustomAttributes="a=1", Accept="text/csv")
    assert [request.header("traceparent") for request in server.requests] == ["00-1-2-01"] * 3
    ((started, headers),) = source.asked
    assert headers == {"Accept": "text/csv", ATTRIBUTES: "a=1"}
    assert started == events.CallStarted(
        "InvokeEndpoint",
        "e",
        server.last.header("amz-sdk-invocation-id") or "",
        f"{server.url}/endpoints/e/invocations",
        "eu-central-1",
        1,
    )


async def test_other_calls_do_not_have_them(make_client: MakeClient, server: RecordingServer) -> None:
    source = Source({"traceparent": "00-1-2-01"})
    client = make_client()
    for _ in range(2):
        await client.with_options(observers=[source]).invoke_endpoint(EndpointName="e", Body=b"1")
        await client.invoke_endpoint(EndpointName="e", Body=b"1")
    assert ["traceparent" in names(request) for request in server.requests] == [True, False, True, False]


async def test_a_source_sees_what_the_ones_before_it_added(make_client: MakeClient, server: RecordingServer) -> None:
    first, second = Source({"baggage": "a=1"}), Source({"Baggage": "a=1,b=2"})
    await make_client(observers=[first, print_nothing, second]).invoke_endpoint(EndpointName="e", Body=b"1")
    assert second.asked[0][1] == {"baggage": "a=1"}
    assert server.last.values("baggage") == ["a=1,b=2"]


def print_nothing(event: events.Event) -> None:
    """An observer without headers."""


async def test_a_replaced_parameter_is_signed() -> None:
    asked = []

    async def model(invocation: Any) -> bytes:
        asked.append(invocation.custom_attributes)
        return b""

    async with (
        local_runtime({"model": model}) as runtime,
        Client(
            endpoint_url=runtime.url,
            observers=[Source({ATTRIBUTES.lower(): "a=1;b=2", "traceparent": "00-1-2-01"})],
            **CLIENT_ARGUMENTS,
        ) as client,
    ):
        await client.invoke_endpoint(EndpointName="model", Body=b"1", CustomAttributes="a=1")
        await client.invoke_endpoint(EndpointName="model", Body=b"1")
    assert asked == ["a=1;b=2", "a=1;b=2"]


FAULTY: dict[str, Any] = {
    "it raises": RuntimeError("source"),
    "two headers in one": {"traceparent": "00-1-2-01", "baggage": "a\r\nX-Evil: 1"},
    "the client's own": {"traceparent": "00-1-2-01", "Host": "elsewhere"},
    "no text": {"traceparent": 1},
    "no mapping": ["traceparent"],
}


@pytest.mark.parametrize("case", FAULTY)
async def test_faulty_headers_are_left_out_and_the_call_goes_on(
    make_client: MakeClient, server: RecordingServer, case: str
) -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
    client = make_client(observers=[Source(FAULTY[case]), Source({"baggage": "b=2"})])
    await client.invoke_endpoint(EndpointName="e", Body=b"1")
    assert [context["message"] for context in said] == ["ignored invalid headers from an observer"]
    assert server.last.header("traceparent") is None
    assert server.last.header("baggage") == "b=2"
    assert server.last.header("host") == server.host


async def test_streams_and_deadlines(make_client: MakeClient, server: RecordingServer) -> None:
    source = Source({"traceparent": "00-1-2-01"})
    client = make_client(observers=[source], deadline=60.0)
    server.answer = respond(200, b"", [("Content-Type", EVENT_STREAM)])
    response = await client.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"1")
    async with response["Body"] as stream:
        assert [event async for event in stream] == []
    assert server.last.header("traceparent") == "00-1-2-01"
    assert isinstance(source.seen[0], events.CallStarted)
    assert source.seen[-1]._replace(duration=0.0) == events.StreamEnded(
        *("InvokeEndpointWithResponseStream", "e", source.asked[0][0].invocation_id, 0, 0, 0.0, True, None)
    )
