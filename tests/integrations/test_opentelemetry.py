"""Spans and metrics of calls, as OpenTelemetry's SDK exports them, against a local runtime with faults."""

from __future__ import annotations

import asyncio
import doctest
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry import metrics, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.semconv import attributes as stable_attributes
from opentelemetry.semconv._incubating import attributes as incubating_attributes
from opentelemetry.semconv._incubating.metrics.gen_ai_metrics import (
    create_gen_ai_client_operation_duration,
    create_gen_ai_client_operation_time_to_first_chunk,
    create_gen_ai_client_token_usage,
)
from opentelemetry.semconv._incubating.metrics.http_metrics import create_http_client_request_duration
from opentelemetry.semconv._incubating.metrics.rpc_metrics import create_rpc_client_call_duration
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aiosmrt import Client, RetryPolicy, errors
from aiosmrt.events import GenerationEnded
from aiosmrt.integrations import opentelemetry as integration
from aiosmrt.integrations.openai import async_openai
from aiosmrt.integrations.opentelemetry import OpenTelemetryObserver
from aiosmrt.local import ContainerFailure, Invocation, LocalRuntime, faults
from tests.support.openai_models import MESSAGES, speaker
from tests.support.peers import CLIENT_ARGUMENTS, REGION, isolate_aws
from tests.support.probes import Pauses, shorten_probe_pauses
from tests.support.recording_server import RecordingServer, respond
from tests.support.runtime import echo, local_runtime, words
from tests.support.virtual_time import VirtualTime

ROOT = Path(__file__).parents[2]

CALL = "SageMaker Runtime.InvokeEndpoint"
STREAM = "SageMaker Runtime.InvokeEndpointWithResponseStream"

QUICK = RetryPolicy(base_delay=0.001, throttling_base_delay=0.001)
ONCE = RetryPolicy(max_attempts=1)


class Telemetry:
    """An SDK that exports to memory.

    Args:
        sampler: decides what is recorded.
    """

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._metrics], shutdown_on_exit=False)

    def observer(self, **arguments: Any) -> OpenTelemetryObserver:
        return OpenTelemetryObserver(tracer_provider=self.tracers, meter_provider=self.meters, **arguments)

    def close(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()

    def spans(self, name: str) -> list[ReadableSpan]:
        """The ended spans with a name, ordered by start."""
        found = [span for span in self._spans.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found

    def metrics(self) -> dict[str, Any]:
        """The metrics, by name."""
        data = self._metrics.get_metrics_data()
        scopes = [] if data is None else [scope for part in data.resource_metrics for scope in part.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> list[Any]:
        metric = self.metrics().get(name)
        return [] if metric is None else list(metric.data.data_points)

    def point(self, name: str) -> Any:
        (found,) = self.points(name)
        return found

    def everything(self) -> str:
        """All exported data as text."""
        data = self._metrics.get_metrics_data()
        return "".join(
            [span.to_json() for span in self._spans.get_finished_spans()] + ([] if data is None else [data.to_json()])
        )


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolate the test from the AWS settings of the machine."""
    isolate_aws(monkeypatch, tmp_path)


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.close()


@dataclass
class Gated:
    """A model that responds when the test tells it to, and records its invocations."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Invocation] = field(default_factory=list)

    async def __call__(self, invocation: Invocation) -> bytes:
        self.asked.append(invocation)
        await self.open.wait()
        return b"ok"


async def fails(invocation: Invocation) -> bytes:
    raise ContainerFailure(400, f"cannot read {invocation.body.decode()}")


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
async def runtime(gated: Gated) -> AsyncIterator[LocalRuntime]:
    endpoints = {"echo": echo, "words": words, "gated": gated, "fails": fails}
    async with local_runtime(endpoints, record_bodies=True) as running:
        yield running


MakeClient = Callable[..., Client]


@pytest.fixture
async def make_client(runtime: LocalRuntime) -> AsyncIterator[MakeClient]:
    """Make clients of the runtime, which are closed after the test."""
    async with AsyncExitStack() as stack:

        def make(observer: OpenTelemetryObserver, **arguments: Any) -> Client:
            defaults = {"endpoint_url": runtime.url, "observers": [observer], "retry": QUICK}
            client = Client(**{**CLIENT_ARGUMENTS, **defaults, **arguments})
            stack.push_async_callback(client.close)
            return client

        yield make


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def until(true: Callable[[], bool]) -> None:
    """Run the event loop until a condition is true."""
    while not true():
        await asyncio.sleep(0)


# A call


async def test_call_is_a_child_span_of_the_callers(
    telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient
) -> None:
    client = make_client(telemetry.observer())
    tracer = telemetry.tracers.get_tracer("application")
    with tracer.start_as_current_span("caller") as caller:
        response = await client.invoke_endpoint(EndpointName="echo", Body=b"1,2,3")
    span, attempt = telemetry.span(CALL), telemetry.span("POST")
    server = {"server.address": "127.0.0.1", "server.port": runtime.port, "aiosmrt.endpoint.name": "echo"}
    assert attributes(span) == {
        "rpc.system": "aws-api",
        "rpc.system.name": "aws-api",
        "rpc.service": "SageMaker Runtime",
        "rpc.method": "InvokeEndpoint",
        "cloud.region": REGION,
        **server,
        "aws.request_id": response["ResponseMetadata"]["RequestId"],
        "http.response.status_code": 200,
        "aiosmrt.request.body.size": 5,
        "aiosmrt.attempts": 1,
    }
    assert attributes(attempt) == {
        "http.request.method": "POST",
        "url.full": f"{runtime.url}/endpoints/echo/invocations",
        "rpc.method": "InvokeEndpoint",
        **server,
        "aws.request_id": response["ResponseMetadata"]["RequestId"],
        "http.response.status_code": 200,
    }
    assert (span.kind, attempt.kind) == (SpanKind.CLIENT, SpanKind.CLIENT)
    assert (span.status.status_code, attempt.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)
    assert span.context is not None
    assert parent_of(span) == caller.get_span_context().span_id
    assert parent_of(attempt) == span.context.span_id
    assert span.start_time <= attempt.start_time <= attempt.end_time <= span.end_time
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "aiosmrt"
    assert span.instrumentation_scope.schema_url == integration.SCHEMA_URL == Schemas.V1_44_0.value


async def test_metrics_of_a_call(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer())
    began = time.monotonic()
    for _ in range(3):
        await client.invoke_endpoint(EndpointName="echo", Body=b"1,2,3")
    elapsed = time.monotonic() - began
    server = {"server.address": "127.0.0.1", "server.port": runtime.port, "aiosmrt.endpoint.name": "echo"}
    common = {
        "rpc.system.name": "aws-api",
        "rpc.service": "SageMaker Runtime",
        "rpc.method": "InvokeEndpoint",
        **server,
    }
    duration = telemetry.point("rpc.client.call.duration")
    assert (dict(duration.attributes), duration.count) == (common, 3)
    requests = telemetry.point("http.client.request.duration")
    assert requests.count == 3
    assert 0 < requests.sum < duration.sum < elapsed
    assert dict(requests.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "rpc.method": "InvokeEndpoint",
        **server,
    }
    attempts = telemetry.point("aiosmrt.client.attempts")
    assert (dict(attempts.attributes), attempts.count, attempts.sum) == (common, 3, 3)
    active = telemetry.point("aiosmrt.client.active_calls")
    assert (dict(active.attributes), active.value) == (common, 0)
    assert sorted(telemetry.metrics()) == [
        "aiosmrt.client.active_calls",
        "aiosmrt.client.attempts",
        "http.client.request.duration",
        "rpc.client.call.duration",
    ]


async def test_names_units_and_boundaries_follow_the_conventions(telemetry: Telemetry, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer())
    await client.invoke_endpoint(EndpointName="echo", Body=b"1,2,3")
    with pytest.raises(errors.ModelError):
        await client.invoke_endpoint(EndpointName="fails", Body=b"1,2,3")
    response = await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one")
    async with response["Body"] as stream:
        assert len([event async for event in stream]) == 1
    spans = [*telemetry.spans(CALL), *telemetry.spans(STREAM), *telemetry.spans("POST")]
    used = {name for span in spans for name in attributes(span)}
    used |= {
        name
        for metric in telemetry.metrics().values()
        for point in metric.data.data_points
        for name in point.attributes
    }
    assert {name for name in used if not name.startswith("aiosmrt.")} <= conventional_attributes()

    reference = Telemetry()
    meter = reference.meters.get_meter("reference")
    checked: set[str] = set()
    durations = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    boundaries = {
        create_rpc_client_call_duration: durations,
        create_http_client_request_duration: durations,
        create_gen_ai_client_operation_time_to_first_chunk: tuple(0.01 * 2**n for n in range(14)),
    }
    for create, bounds in boundaries.items():
        create(meter).record(1.0)
        (name,) = set(reference.metrics()) - checked
        convention, ours = reference.metrics()[name], telemetry.metrics()[name]
        assert (ours.unit, ours.description) == (convention.unit, convention.description)
        assert ours.data.data_points[0].explicit_bounds == bounds
        checked.add(name)
    reference.close()


def conventional_attributes() -> set[str]:
    """All attributes of the conventions."""
    names: set[str] = set()
    for package in (stable_attributes, incubating_attributes):
        for folder in package.__path__:
            for module in Path(folder).glob("*_attributes.py"):
                found: dict[str, Any] = vars(__import__(f"{package.__name__}.{module.stem}", fromlist=["*"]))
                names |= {value for name, value in found.items() if name.isupper() and isinstance(value, str)}
    assert "rpc.system.name" in names
    return names


async def test_concurrent_calls_have_separate_spans(telemetry: Telemetry, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer(), max_concurrency=3)
    tracer = telemetry.tracers.get_tracer("application")
    callers: dict[int, int] = {}

    async def call(size: int) -> None:
        with tracer.start_as_current_span("caller") as caller:
            callers[caller.get_span_context().span_id] = size
            await client.invoke_endpoint(EndpointName="echo", Body=bytes(size))

    await asyncio.gather(*(call(size) for size in range(1, 21)))
    assert {parent_of(span): attributes(span)["aiosmrt.request.body.size"] for span in telemetry.spans(CALL)} == callers
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


async def test_one_observer_serves_clients_and_views(telemetry: Telemetry, make_client: MakeClient) -> None:
    observer = telemetry.observer()
    unwatched = make_client(observer, observers=())
    await unwatched.invoke_endpoint(EndpointName="echo", Body=b"1")
    assert telemetry.spans(CALL) == []
    await unwatched.with_options(observers=[observer]).invoke_endpoint(EndpointName="echo", Body=b"22")
    await make_client(observer).invoke_endpoint(EndpointName="echo", Body=b"333")
    assert [attributes(span)["aiosmrt.request.body.size"] for span in telemetry.spans(CALL)] == [2, 3]
    assert repr(observer) == "<OpenTelemetryObserver calls=0>"


async def test_a_client_without_a_region(telemetry: Telemetry) -> None:
    async with (
        RecordingServer() as server,
        Client(endpoint_url=server.url, sign=False, observers=[telemetry.observer()]) as client,
    ):
        await client.invoke_endpoint(EndpointName="e", Body=b"1")
    assert "cloud.region" not in attributes(telemetry.span(CALL))


async def test_attempts_without_spans(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer(attempt_spans=False))
    runtime.inject("echo", faults.internal_failure().next(1))
    await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    assert telemetry.spans("POST") == []
    assert attributes(telemetry.span(CALL))["aiosmrt.attempts"] == 2
    assert sum(point.count for point in telemetry.points("http.client.request.duration")) == 2


# Retries and failures


async def test_successful_retry_is_not_an_error_of_the_call(
    telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient
) -> None:
    client = make_client(telemetry.observer(), retry=replace(QUICK, retry_stale_connections=False))
    runtime.inject("echo", faults.internal_failure().next(1), faults.CloseBeforeHeaders().next(1))
    response = await client.invoke_endpoint(EndpointName="echo", Body=b"1,2,3")
    span, attempts = telemetry.span(CALL), telemetry.spans("POST")
    assert span.status.status_code is StatusCode.UNSET
    found = attributes(span)
    assert "error.type" not in found
    assert (found["aiosmrt.attempts"], found["http.response.status_code"]) == (3, 200)
    assert found["aws.request_id"] == response["ResponseMetadata"]["RequestId"]
    assert [attributes(attempt).get("http.request.resend_count") for attempt in attempts] == [None, 1, 2]
    assert [attributes(attempt).get("http.response.status_code") for attempt in attempts] == [500, None, 200]
    assert [attributes(attempt).get("error.type") for attempt in attempts] == [
        "InternalFailure",
        "ConnectionClosedError",
        None,
    ]
    assert [attempt.status.status_code for attempt in attempts] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    retries = telemetry.points("aiosmrt.client.retries")
    assert {point.attributes["aiosmrt.retry.cause"]: point.value for point in retries} == {
        "transient": 1,
        "connection": 1,
    }
    assert telemetry.point("aiosmrt.client.attempts").sum == 3
    assert "error.type" not in telemetry.point("rpc.client.call.duration").attributes


async def test_persistent_throttling(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer(), retry=replace(QUICK, max_attempts=3))
    runtime.inject("echo", faults.throttling().next(2), faults.too_many_requests().next(1))
    with pytest.raises(errors.ThrottlingError):
        await client.invoke_endpoint(EndpointName="echo", Body=b"1,2,3")
    span, attempts = telemetry.span(CALL), telemetry.spans("POST")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert attributes(span)["error.type"] == "ThrottlingError"
    assert telemetry.point("rpc.client.call.duration").attributes["error.type"] == "ThrottlingError"
    assert [attributes(attempt)["error.type"] for attempt in attempts] == [
        "ThrottlingException",
        "ThrottlingException",
        "429",
    ]
    assert telemetry.point("aiosmrt.client.throttles").value == 3
    assert telemetry.point("aiosmrt.client.retries").value == 2


FAILURES: dict[str, tuple[Any, str, int | None]] = {
    "its own class": (faults.ModelFailure(500), "ModelError", 424),
    "a class for one of several causes": (faults.no_capacity(), "NoCapacityError", 400),
    "a signature too old": (faults.SignatureExpired(), "InvalidSignatureException", 403),
    "no code": (faults.bad_gateway(), "502", 502),
    "no response": (faults.ResetBeforeHeaders(), "ConnectionClosedError", None),
    "half a response": (faults.Truncate(after_bytes=1), "ResponseStreamingError", None),
    "a stalled service": (faults.Stall(), "ReadTimeoutError", None),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_error_type(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient, case: str) -> None:
    fault, error_type, status = FAILURES[case]
    runtime.inject("echo", fault)
    patience = 0.2 if error_type == "ReadTimeoutError" else 30.0
    client = make_client(telemetry.observer(), retry=ONCE, read_timeout=patience)
    with pytest.raises(errors.AiosmrtError):
        await client.invoke_endpoint(EndpointName="echo", Body=b"1,2,3")
    span = telemetry.span(CALL)
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == error_type
    assert attributes(span).get("http.response.status_code") == status
    assert telemetry.point("rpc.client.call.duration").attributes["error.type"] == error_type
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


async def test_a_call_that_is_never_sent(telemetry: Telemetry, runtime: LocalRuntime) -> None:
    async def locked() -> Any:
        raise errors.NoCredentialsError("there are none")

    async with Client(REGION, endpoint_url=runtime.url, credentials=locked, observers=[telemetry.observer()]) as client:
        with pytest.raises(errors.ConfigurationError):
            await client.invoke_endpoint(EndpointName="echo", Body=b"1")
        with pytest.raises(errors.ParamValidationError):
            await client.invoke_endpoint(EndpointName="-", Body=b"1")
    span = telemetry.span(CALL)  # refused parameters are no call
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["aiosmrt.attempts"] == 0
    assert telemetry.spans("POST") == []


async def test_a_deadline(telemetry: Telemetry, gated: Gated, make_client: MakeClient) -> None:
    time_of_client = VirtualTime()
    client = time_of_client.drive(make_client(telemetry.observer()))
    await client.invoke_endpoint(EndpointName="echo", Body=b"1")  # so that the next one has a connection
    hurried = client.with_options(deadline=0.3)
    call = asyncio.create_task(hurried.invoke_endpoint(EndpointName="gated", Body=b"1"))
    await until(lambda: len(gated.asked) == 1)
    await time_of_client.advance(0.3)
    with pytest.raises(errors.DeadlineExceededError):
        await call
    _, span = telemetry.spans(CALL)
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "DeadlineExceededError"
    # The attempt was abandoned, which is not a failure.
    _, attempt = telemetry.spans("POST")
    assert attributes(attempt)["aiosmrt.abandoned"] is True


async def test_malformed_codes_are_not_recorded(telemetry: Telemetry) -> None:
    async with (
        RecordingServer(respond(400, b'{"code": "cannot read 1,2,3"}')) as server,
        Client(endpoint_url=server.url, observers=[telemetry.observer()], **CLIENT_ARGUMENTS) as client,
    ):
        with pytest.raises(errors.ServiceError):
            await client.invoke_endpoint(EndpointName="e", Body=b"1,2,3")
    assert attributes(telemetry.span(CALL))["error.type"] == "_OTHER"
    assert attributes(telemetry.span("POST"))["error.type"] == "_OTHER"
    assert "1,2,3" not in telemetry.everything()


async def test_payloads_attributes_credentials_and_messages_are_not_recorded(
    telemetry: Telemetry, make_client: MakeClient
) -> None:
    client = make_client(telemetry.observer(custom_attributes_separator=";"))
    with pytest.raises(errors.ModelError, match="secret payload"):
        await client.invoke_endpoint(
            EndpointName="fails", Body=b"secret payload", CustomAttributes="secret=attribute", InferenceId="id-1"
        )
    async with (await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"secret payload"))[
        "Body"
    ] as stream:
        assert len([event async for event in stream]) == 2
    exported = telemetry.everything()
    assert "InvokeEndpointWithResponseStream" in exported
    assert "secret" not in exported
    assert CLIENT_ARGUMENTS["aws_access_key_id"] not in exported
    assert json.dumps(REGION) in exported


# Waiting


async def test_waiting_for_a_slot(telemetry: Telemetry, gated: Gated, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer(), max_concurrency=1)
    calls = [asyncio.create_task(client.invoke_endpoint(EndpointName="gated", Body=b"1")) for _ in range(3)]
    await until(lambda: len(gated.asked) == 1 and client.statistics().waiting == 2)
    assert telemetry.point("aiosmrt.client.active_calls").value == 3
    assert telemetry.spans(CALL) == []
    gated.open.set()
    await asyncio.gather(*calls)
    waits = [attributes(span).get("aiosmrt.limiter_wait.duration") for span in telemetry.spans(CALL)]
    assert waits[0] is None
    recorded = telemetry.point("aiosmrt.client.limiter_wait.duration")
    assert (recorded.count, recorded.sum) == (2, pytest.approx(waits[1] + waits[2]))
    assert min(waits[1:]) > 0
    for span in telemetry.spans(CALL)[1:]:
        assert seconds(span) > attributes(span)["aiosmrt.limiter_wait.duration"]
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


async def test_waiting_for_capacity(
    telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_probe_pauses(monkeypatch)
    client = make_client(telemetry.observer(), wait_for_capacity=60.0)
    runtime.inject("echo", faults.no_capacity().next(2))
    await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    span = telemetry.span(CALL)
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["aiosmrt.attempts"] == 3
    assert attributes(span)["aiosmrt.capacity_wait.outcome"] == "capacity"
    recorded = telemetry.point("aiosmrt.client.capacity_wait.duration")
    assert recorded.attributes["aiosmrt.capacity_wait.outcome"] == "capacity"
    assert (recorded.count, recorded.sum) == (1, attributes(span)["aiosmrt.capacity_wait.duration"])


async def test_capacity_timeout(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    runtime.inject("echo", faults.no_capacity())
    client = make_client(telemetry.observer(), wait_for_capacity=0.05)
    with pytest.raises(errors.NoCapacityError):
        await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    found = attributes(telemetry.span(CALL))
    assert (found["error.type"], found["aiosmrt.capacity_wait.outcome"]) == ("NoCapacityError", "timeout")
    assert found["aiosmrt.capacity_wait.duration"] >= 0.05
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


async def test_outage_waits_are_summed(
    telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_probe_pauses(monkeypatch)
    runtime.inject("echo", faults.internal_failure().next(4))  # the third makes it an outage, the fourth is a probe's
    client = make_client(telemetry.observer())
    Pauses(client)
    await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    span = telemetry.span(CALL)
    found = attributes(span)
    assert span.status.status_code is StatusCode.UNSET
    assert (found["aiosmrt.attempts"], found["aiosmrt.outage_wait.outcome"]) == (5, "probe")
    recorded = telemetry.point("aiosmrt.client.outage_wait.duration")
    assert recorded.attributes["aiosmrt.outage_wait.outcome"] == "probe"
    assert (recorded.count, recorded.sum) == (2, pytest.approx(found["aiosmrt.outage_wait.duration"]))
    assert 0 < recorded.sum < seconds(span)
    assert telemetry.point("aiosmrt.client.retries").value == 4


async def test_outcomes_of_outage_waits(
    telemetry: Telemetry,
    runtime: LocalRuntime,
    gated: Gated,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_probe_pauses(monkeypatch)
    runtime.inject("gated", faults.internal_failure().next(3))
    client = make_client(telemetry.observer())
    pauses = Pauses(client, longest=0.5)

    def begin(client: Client, size: int) -> asyncio.Task[Any]:
        return asyncio.create_task(client.invoke_endpoint(EndpointName="gated", Body=bytes(size)))

    prober = begin(client, 1)
    await until(lambda: len(gated.asked) == 1)
    waiting, leaving = begin(client, 2), begin(client, 3)
    pauses.hold()
    hurried = begin(client.with_options(patience=0.5), 4)
    await until(lambda: client.statistics().endpoints["gated"].held_back == 3)
    pauses.release()
    with pytest.raises(errors.InternalFailure):
        await hurried
    await until(lambda: client.statistics().endpoints["gated"].held_back == 2)
    await cancelled(leaving)
    gated.open.set()
    await asyncio.gather(prober, waiting)

    calls = {attributes(span)["aiosmrt.request.body.size"]: attributes(span) for span in telemetry.spans(CALL)}
    outcomes = {size: found["aiosmrt.outage_wait.outcome"] for size, found in calls.items()}
    assert outcomes == {1: "probe", 2: "recovered", 3: "abandoned", 4: "timeout"}
    assert [calls[size]["aiosmrt.attempts"] for size in (1, 2, 3, 4)] == [4, 1, 0, 0]
    assert calls[4]["error.type"] == "InternalFailure"
    assert calls[4]["aiosmrt.outage_wait.duration"] == pytest.approx(0.5)
    points = telemetry.points("aiosmrt.client.outage_wait.duration")
    assert {point.attributes["aiosmrt.outage_wait.outcome"]: point.sum for point in points} == {
        outcomes[size]: pytest.approx(calls[size]["aiosmrt.outage_wait.duration"]) for size in calls
    }
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


# Cancellation


async def cancelled(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def assert_abandoned(telemetry: Telemetry, span: ReadableSpan) -> None:
    assert span.end_time is not None
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["aiosmrt.abandoned"] is True
    assert "error.type" not in attributes(span)
    assert all(point.value == 0 for point in telemetry.points("aiosmrt.client.active_calls"))


async def test_cancelled_during_an_attempt(telemetry: Telemetry, gated: Gated, make_client: MakeClient) -> None:
    observer = telemetry.observer()
    client = make_client(observer)
    call = asyncio.create_task(client.invoke_endpoint(EndpointName="gated", Body=b"1"))
    await until(lambda: len(gated.asked) == 1)
    await cancelled(call)
    assert_abandoned(telemetry, telemetry.span(CALL))
    assert_abandoned(telemetry, telemetry.span("POST"))
    assert telemetry.point("rpc.client.call.duration").attributes["aiosmrt.abandoned"] is True
    assert telemetry.point("http.client.request.duration").attributes["aiosmrt.abandoned"] is True
    assert repr(observer) == "<OpenTelemetryObserver calls=0>"


async def test_cancelled_while_waiting_for_a_slot(telemetry: Telemetry, gated: Gated, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer(), max_concurrency=1)
    first = asyncio.create_task(client.invoke_endpoint(EndpointName="gated", Body=b"1"))
    second = asyncio.create_task(client.invoke_endpoint(EndpointName="gated", Body=b"22"))
    await until(lambda: len(gated.asked) == 1 and client.statistics().waiting == 1)
    await cancelled(second)
    gated.open.set()
    await first
    (span,) = [span for span in telemetry.spans(CALL) if attributes(span)["aiosmrt.request.body.size"] == 2]
    assert_abandoned(telemetry, span)
    assert attributes(span)["aiosmrt.attempts"] == 0


async def test_cancelled_during_back_off(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    runtime.inject("echo", faults.internal_failure(retry_after=5.0))
    client = make_client(telemetry.observer(), retry=RetryPolicy(base_delay=5.0))
    call = asyncio.create_task(client.invoke_endpoint(EndpointName="echo", Body=b"1"))
    await until(lambda: bool(telemetry.points("aiosmrt.client.retries")))
    await cancelled(call)
    assert_abandoned(telemetry, telemetry.span(CALL))
    assert attributes(telemetry.span("POST"))["error.type"] == "InternalFailure"


async def test_cancelled_while_reading_a_stream(
    telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient
) -> None:
    runtime.inject("words", faults.StallInBody(after_parts=1))
    client = make_client(telemetry.observer())
    parts = []

    async def read() -> None:
        response = await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one two")
        async with response["Body"] as stream:
            async for event in stream:
                parts.append(event)

    call = asyncio.create_task(read())
    await until(lambda: len(parts) == 1)
    await cancelled(call)
    span = telemetry.span(STREAM)
    assert_abandoned(telemetry, span)
    assert attributes(span)["aiosmrt.stream.parts"] == 1
    assert attributes(span)["aiosmrt.stream.complete"] is False
    runtime.release_stalled()


# Streams


async def test_span_of_a_stream_ends_with_the_stream(telemetry: Telemetry, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer())
    response = await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one two three")
    assert telemetry.spans(STREAM) == []
    assert len(telemetry.spans("POST")) == 1  # up to the response's head
    opened = telemetry.point("http.client.request.duration").sum
    assert telemetry.point("aiosmrt.client.active_calls").value == 1
    async with response["Body"] as stream:
        assert len([event async for event in stream]) == 3
    span = telemetry.span(STREAM)
    found = attributes(span)
    assert span.status.status_code is StatusCode.UNSET
    assert found["rpc.method"] == "InvokeEndpointWithResponseStream"
    assert found["aws.request_id"] == response["ResponseMetadata"]["RequestId"]
    assert found["aiosmrt.attempts"] == 1
    assert (found["aiosmrt.stream.parts"], found["aiosmrt.stream.payload.size"]) == (3, len("onetwothree"))
    assert found["aiosmrt.stream.complete"] is True
    assert "aiosmrt.abandoned" not in found
    duration = telemetry.point("rpc.client.call.duration")
    assert duration.count == 1
    assert duration.sum > opened
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


async def test_time_to_the_first_part_of_a_stream(telemetry: Telemetry, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer())
    await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    response = await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one two three")
    async with response["Body"] as stream:
        assert len([event async for event in stream]) == 3
    point = telemetry.point("gen_ai.client.operation.time_to_first_chunk")
    assert (point.count, point.sum) == (1, stream.timing.first_part)
    assert point.attributes["gen_ai.operation.name"] == "InvokeEndpointWithResponseStream"
    assert point.attributes["gen_ai.provider.name"] == "aws.sagemaker"
    assert point.attributes["aiosmrt.endpoint.name"] == "words"
    assert attributes(telemetry.span(STREAM))["gen_ai.response.time_to_first_chunk"] == stream.timing.first_part


async def test_stream_closed_early_has_not_failed(telemetry: Telemetry, make_client: MakeClient) -> None:
    client = make_client(telemetry.observer())
    response = await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one two three")
    async with response["Body"] as stream:
        await anext(stream)
    assert_abandoned(telemetry, telemetry.span(STREAM))


BREAKS: dict[str, tuple[Any, str]] = {
    "the model": (faults.StreamFailure(after_parts=1), "ModelStreamError"),
    "the service": (faults.StreamFailure(after_parts=1, exception="InternalStreamFailure"), "InternalStreamFailure"),
    "the connection": (faults.ResetAfterHeaders(after_parts=1), "ResponseStreamingError"),
    "a frame cut": (faults.Truncate(after_parts=1, after_bytes=5, clean_ending=True), "TruncatedStreamError"),
    "silence": (faults.StallInBody(after_parts=1), "ReadTimeoutError"),
}


@pytest.mark.parametrize("case", BREAKS)
async def test_failed_stream(
    telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient, case: str, virtual_time: VirtualTime
) -> None:
    fault, error_type = BREAKS[case]
    runtime.inject("words", fault)
    client = make_client(telemetry.observer(), read_timeout=30.0)
    response = await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one two three")
    parts = []

    async def read() -> None:
        async with response["Body"] as stream:
            async for event in stream:
                parts.append(event)

    reading = asyncio.create_task(read())
    if case == "silence":
        await until(lambda: len(parts) == 1)
        await virtual_time.advance(60.0)
    with pytest.raises(errors.AiosmrtError):
        await reading
    span = telemetry.span(STREAM)
    assert len(parts) == attributes(span)["aiosmrt.stream.parts"] == 1
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == error_type
    assert "aiosmrt.abandoned" not in attributes(span)
    assert telemetry.point("rpc.client.call.duration").attributes["error.type"] == error_type
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


async def test_retried_stream_is_one_call(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    runtime.inject("words", faults.ResetAfterHeaders().next(1))
    client = make_client(telemetry.observer())
    response = await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one two")
    async with response["Body"] as stream:
        assert len([event async for event in stream]) == 2
    span, attempts = telemetry.span(STREAM), telemetry.spans("POST")
    assert span.context is not None
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["aiosmrt.attempts"] == 2
    assert [parent_of(attempt) for attempt in attempts] == [span.context.span_id] * 2
    assert attributes(attempts[1])["http.request.resend_count"] == 1
    assert telemetry.point("aiosmrt.client.retries").attributes["aiosmrt.retry.cause"] == "truncated"


async def test_stream_that_never_starts(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    runtime.inject("words", faults.ModelFailure(500))
    client = make_client(telemetry.observer())
    with pytest.raises(errors.ModelError):
        await client.invoke_endpoint_with_response_stream(EndpointName="words", Body=b"one")
    assert attributes(telemetry.span(STREAM))["error.type"] == "ModelError"
    assert telemetry.point("aiosmrt.client.active_calls").value == 0


# Sampling


async def test_unsampled_calls_have_only_metrics(runtime: LocalRuntime, make_client: MakeClient) -> None:
    telemetry = Telemetry(ALWAYS_OFF)
    observer = telemetry.observer(propagator=TraceContextTextMapPropagator())
    runtime.inject("echo", faults.internal_failure().next(1))
    await make_client(observer).invoke_endpoint(EndpointName="echo", Body=b"1")
    assert telemetry.spans(CALL) == telemetry.spans("POST") == []
    assert telemetry.point("rpc.client.call.duration").count == 1
    assert sum(point.count for point in telemetry.points("http.client.request.duration")) == 2
    # Downstream learns that the trace is not sampled.
    for request in runtime.requests:
        assert not context_in(request.headers["traceparent"]).trace_flags.sampled
    telemetry.close()


async def test_nothing_is_recorded_without_an_sdk(runtime: LocalRuntime, make_client: MakeClient) -> None:
    observer = OpenTelemetryObserver(
        tracer_provider=trace.NoOpTracerProvider(),
        meter_provider=metrics.NoOpMeterProvider(),
        propagator=TraceContextTextMapPropagator(),
        custom_attributes_separator=";",
    )
    await make_client(observer).invoke_endpoint(EndpointName="echo", Body=b"1")
    (request,) = await runtime.wait_for_requests(1)
    assert "traceparent" not in request.headers
    assert "x-amzn-sagemaker-custom-attributes" not in request.headers


class BrokenSampler(Sampler):
    def should_sample(self, *arguments: Any, **named: Any) -> Any:
        raise RuntimeError("sampler")

    def get_description(self) -> str:
        return "broken"


async def test_failing_sdk_does_not_fail_calls(make_client: MakeClient) -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
    telemetry = Telemetry(BrokenSampler())
    client = make_client(telemetry.observer(propagator=TraceContextTextMapPropagator()))
    response = await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    assert await response["Body"].read() == b"1"
    # Logged once, not for every consequence.
    assert [str(context["exception"]) for context in said] == ["sampler"]
    telemetry.close()


# Propagation


def context_in(traceparent: str) -> trace.SpanContext:
    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    return trace.get_current_span(context).get_span_context()


async def test_context_is_propagated_in_headers(
    telemetry: Telemetry, runtime: LocalRuntime, gated: Gated, make_client: MakeClient
) -> None:
    gated.open.set()
    client = make_client(telemetry.observer(propagator=TraceContextTextMapPropagator()))
    runtime.inject("gated", faults.internal_failure().next(1))
    await client.invoke_endpoint(EndpointName="gated", Body=b"1", CustomAttributes="a=1")
    requests = await runtime.wait_for_requests(2)
    span = telemetry.span(CALL).context
    assert span is not None
    for request in requests:
        carried = context_in(request.headers["traceparent"])
        assert (carried.trace_id, carried.span_id) == (span.trace_id, span.span_id)
        assert request.headers["x-amzn-sagemaker-custom-attributes"] == "a=1"
    # Like SageMaker, the local runtime does not forward this header.
    (invocation,) = gated.asked
    assert "traceparent" not in {name.lower() for name in invocation.headers}


async def test_trace_headers_are_not_signed(telemetry: Telemetry) -> None:
    async with RecordingServer() as server:
        observer = telemetry.observer(propagator=TraceContextTextMapPropagator())
        async with Client(endpoint_url=server.url, observers=[observer], **CLIENT_ARGUMENTS) as client:
            await client.invoke_endpoint(EndpointName="e", Body=b"1", Accept="text/csv")
    assert server.last.header("traceparent") is not None
    signed = (server.last.header("authorization") or "").partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert signed == ["accept", "host", "x-amz-date"]


async def test_no_headers_by_default(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    await make_client(telemetry.observer()).invoke_endpoint(EndpointName="echo", Body=b"1")
    await make_client(telemetry.observer(), observers=()).invoke_endpoint(EndpointName="echo", Body=b"1")
    observed, unobserved = await runtime.wait_for_requests(2)
    assert set(observed.headers) == set(unobserved.headers)


class XRayLike(TextMapPropagator):
    """A propagator with AWS's header and one that is not a valid HTTP header."""

    def __init__(self, added: Mapping[str, str]) -> None:
        self.added = added

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        raise NotImplementedError

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        carrier.update(self.added)

    @property
    def fields(self) -> set[str]:
        return set(self.added)


async def test_custom_propagator(telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient) -> None:
    header = "Root=1-67891233-abcdef012345678912345678;Parent=463ac35c9f6413ad;Sampled=1"
    client = make_client(telemetry.observer(propagator=XRayLike({"X-Amzn-Trace-Id": header})))
    await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    (request,) = await runtime.wait_for_requests(1)
    assert request.headers["x-amzn-trace-id"] == header


@pytest.mark.parametrize(
    "added", [{"baggage": "a\r\nX-Evil: 1"}, {"two words": "1"}, {"Authorization": "mine"}, {"baggage": "ü"}]
)
async def test_invalid_headers_are_omitted(
    telemetry: Telemetry, runtime: LocalRuntime, make_client: MakeClient, added: dict[str, str]
) -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
    client = make_client(telemetry.observer(propagator=XRayLike(added)))
    await client.invoke_endpoint(EndpointName="echo", Body=b"1")
    (request,) = await runtime.wait_for_requests(1)
    assert not {"baggage", "two words", "x-evil"} & set(request.headers)
    assert [type(context["exception"]) for context in said] == [ValueError]


CUSTOM_ATTRIBUTES: dict[str, tuple[str, str | None, str | None]] = {
    "none of the caller's": (";", None, "{}"),
    "the caller's first": (";", "accept_eula=true", "accept_eula=true;{}"),
    "another separator": (", ", "tfs-method=predict", "tfs-method=predict, {}"),
    "one of the caller's": (";", "a=1;traceparent=mine", None),
    "just room enough": (";", "x" * (1024 - 68), "x" * (1024 - 68) + ";{}"),
    "no room": (";", "x" * (1024 - 67), None),
}


@pytest.mark.parametrize("case", CUSTOM_ATTRIBUTES)
async def test_context_is_appended_to_custom_attributes(
    telemetry: Telemetry, gated: Gated, make_client: MakeClient, case: str
) -> None:
    separator, given, expected = CUSTOM_ATTRIBUTES[case]
    gated.open.set()
    client = make_client(telemetry.observer(custom_attributes_separator=separator))
    arguments: dict[str, Any] = {} if given is None else {"CustomAttributes": given}
    await client.invoke_endpoint(EndpointName="gated", Body=b"1", **arguments)
    (invocation,) = gated.asked
    span = telemetry.span(CALL).context
    assert span is not None
    traceparent = f"traceparent=00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
    assert invocation.custom_attributes == (given if expected is None else expected.format(traceparent))


@pytest.mark.parametrize("method", ["invoke_endpoint", "invoke_endpoint_async", "invoke_endpoint_with_response_stream"])
async def test_every_operation_propagates_the_context(telemetry: Telemetry, method: str) -> None:
    async with RecordingServer(respond(202 if method == "invoke_endpoint_async" else 200, b"")) as server:
        observer = telemetry.observer(custom_attributes_separator=";", propagator=TraceContextTextMapPropagator())
        async with Client(endpoint_url=server.url, observers=[observer], **CLIENT_ARGUMENTS) as client:
            response = await getattr(client, method)(EndpointName="e", Body=b"1", CustomAttributes="a=1")
            if "stream" in method:
                response["Body"].close()
    assert (
        server.last.header("X-Amzn-SageMaker-Custom-Attributes")
        == f"a=1;traceparent={server.last.header('traceparent')}"
    )
    assert urlsplit(server.last.target).path.startswith("/endpoints/e/")


# Arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tracer_provider", "global"),
        ("meter_provider", TracerProvider),
        ("attempt_spans", None),
        ("attempt_spans", 1),
        ("propagator", True),
        ("custom_attributes_separator", ""),
        ("custom_attributes_separator", "\n"),
        ("custom_attributes_separator", "ü"),
        ("custom_attributes_separator", b";"),
    ],
)
def test_invalid_arguments(name: str, value: object) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(errors.ParamValidationError, match=name):
        OpenTelemetryObserver(**arguments)


def test_examples() -> None:
    failed, tried = doctest.testmod(integration)
    assert (failed, tried > 3) == (0, True)


# Without an observer


# The functions that a client calls without observers and with one.
UNWATCHED = """
import asyncio, sys
from aiosmrt import Client, events
from tests.support.probes import Pauses, shorten_probe_pauses
from tests.support.recording_server import RecordingServer, respond

RECORDS = {name for name in events.__all__ if hasattr(getattr(events, name), "_fields")}
EMPTY = respond(headers=[("Content-Type", "application/vnd.amazon.eventstream")])
made = set()

def note(frame, event, argument):
    # The name of the module in which a named tuple's constructor is defined.
    if event == "call" and frame.f_globals.get("__name__", "").startswith("namedtuple_"):
        made.add(frame.f_globals["__name__"].removeprefix("namedtuple_"))

async def work(**arguments):
    made.clear()
    async with RecordingServer(EMPTY) as server:
        async with Client("eu-central-1", endpoint_url=server.url, sign=False, **arguments) as client:
            await client.invoke_endpoint(EndpointName="e", Body=b"1")
            response = await client.invoke_endpoint_with_response_stream(EndpointName="e", Body=b"1")
            async with response["Body"] as stream:
                assert [event async for event in stream] == []
    return made & RECORDS

sys.setprofile(note)
assert asyncio.run(work()) == set(), made
assert asyncio.run(work(observers=[lambda event: None])) == {
    "CallStarted", "AttemptStarted", "AttemptEnded", "CallEnded", "StreamEnded"
}, made
sys.setprofile(None)
unwanted = ("aiosmrt.integrations", "aiosmrt._wire.observer_headers", "opentelemetry")
assert [name for name in sys.modules if name.startswith(unwanted)] == []
"""


def test_clients_without_observers_do_no_extra_work() -> None:
    done = subprocess.run([sys.executable, "-c", UNWATCHED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def generation(**changes: Any) -> GenerationEnded:
    """What `aiosmrt.integrations.openai` reports."""
    event = GenerationEnded("chat", "llm", "https://runtime.example", "qwen", "Qwen3", 3, 4, 1.5, None)
    return event._replace(**changes)


def test_generations_of_openai_clients(telemetry: Telemetry) -> None:
    telemetry.observer()(generation())
    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "aws.sagemaker",
        "gen_ai.request.model": "qwen",
        "gen_ai.response.model": "Qwen3",
        "server.address": "runtime.example",
        "server.port": 443,
        "aiosmrt.endpoint.name": "llm",
    }
    duration = telemetry.point("gen_ai.client.operation.duration")
    assert (dict(duration.attributes), duration.sum) == (common, 1.5)
    tokens = {point.attributes["gen_ai.token.type"]: point for point in telemetry.points("gen_ai.client.token.usage")}
    assert {kind: point.sum for kind, point in tokens.items()} == {"input": 3, "output": 4}
    assert dict(tokens["input"].attributes) == {**common, "gen_ai.token.type": "input"}
    assert set(tokens["input"].attributes) - {"aiosmrt.endpoint.name"} <= conventional_attributes()

    reference = Telemetry()
    meter = reference.meters.get_meter("reference")
    create_gen_ai_client_token_usage(meter).record(1)
    create_gen_ai_client_operation_duration(meter).record(1)
    bounds = {
        "gen_ai.client.token.usage": tuple(4**n for n in range(14)),
        "gen_ai.client.operation.duration": tuple(0.01 * 2**n for n in range(14)),
    }
    for name, convention in reference.metrics().items():
        ours = telemetry.metrics()[name]
        assert (ours.unit, ours.description) == (convention.unit, convention.description)
        assert ours.data.data_points[0].explicit_bounds == bounds.pop(name)
    reference.close()
    assert bounds == {}


def test_generation_without_usage_has_no_tokens(telemetry: Telemetry) -> None:
    observer = telemetry.observer()
    observer(generation(input_tokens=None, output_tokens=None, response_model=None, error="ModelError"))
    observer(generation(input_tokens=None, output_tokens=None, error="CancelledError"))
    assert telemetry.points("gen_ai.client.token.usage") == []
    outcomes = [dict(point.attributes) for point in telemetry.points("gen_ai.client.operation.duration")]
    assert [one.get("error.type") for one in outcomes] == ["ModelError", None]
    assert [one.get("aiosmrt.abandoned") for one in outcomes] == [None, True]
    assert "gen_ai.response.model" not in outcomes[0]


async def test_calls_of_the_openai_route_are_traced(telemetry: Telemetry) -> None:
    async with (
        local_runtime({"llm": speaker}) as runtime,
        Client(endpoint_url=runtime.url, observers=[telemetry.observer()], **CLIENT_ARGUMENTS) as client,
        async_openai(client, route="openai") as llm,
    ):
        await llm.chat.completions.create(model="llm", messages=MESSAGES)
        async for _ in await llm.chat.completions.create(model="llm", messages=MESSAGES, stream=True):
            pass
    assert [len(telemetry.spans(f"SageMaker Runtime.OpenAIChatCompletions{kind}")) for kind in ("", "Stream")] == [1, 1]
    assert {
        point.attributes["gen_ai.token.type"]: point.count for point in telemetry.points("gen_ai.client.token.usage")
    } == {
        "input": 2,
        "output": 2,
    }
