"""Client spans and metrics of calls, under OpenTelemetry's semantic conventions 1.44.0; needs the extra ``otel``.

::

    SageMaker Runtime.InvokeEndpoint   from the start of the call to its result, or to the end of its stream
     ├── POST                          an attempt: a request and its response, or the head of a streamed response
     └── POST

A call is an AWS SDK client span ("Semantic conventions for AWS SDK client spans"), completed by the conventions for
RPC: one span covers the whole call, retries included, and its duration is the metric ``rpc.client.call.duration``. The
two disagree about ``rpc.method``, which is the bare operation here, as in AWS's; ``rpc.system`` (AWS) and
``rpc.system.name`` (RPC) are both set. ``rpc.response.status_code`` is omitted, because it is not yet defined for AWS.
An attempt is an HTTP client span, and counts in ``http.client.request.duration``. ``gen_ai.*`` mostly describes
payloads and is omitted, but for a stream's time to its first chunk: the metric
``gen_ai.client.operation.time_to_first_chunk`` and the span's attribute ``gen_ai.response.time_to_first_chunk``. Calls
of OpenAI clients (`aiosmrt.integrations.openai`) count in ``gen_ai.client.operation.duration``, and in
``gen_ai.client.token.usage`` where the answer names its tokens.
Attributes without a convention are under ``aiosmrt.*``.

``error.type`` is the class that was raised, or AWS's code if that is just `ServiceError`; for an attempt, AWS's code. A
call whose task was cancelled, or whose stream was closed before its end, did not fail ("Semantic conventions for HTTP
spans", Status): it has ``aiosmrt.abandoned`` instead of an error. A failed attempt whose retry succeeds is not an error
of the call.

All data comes from `aiosmrt.events`. Its records, and so the spans, contain no payloads, custom attributes, credentials
or error messages.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiosmrt._policy.retry import classify
from aiosmrt._version import __version__
from aiosmrt._wire.http1 import DEFAULT_PORTS
from aiosmrt._wire.operations import INVOKE_ENDPOINT, OPENAI_OPERATIONS, OPERATIONS, SERVICE_ID
from aiosmrt.errors import ParamValidationError
from aiosmrt.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallStarted,
    CapacityWaited,
    Event,
    FirstPart,
    GenerationEnded,
    LimiterWaited,
    OutageWaited,
    RetryScheduled,
    StreamEnded,
)
from aiosmrt.integrations._extras import extra

with extra("otel"):
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from opentelemetry.util.types import AttributeValue

__all__ = ["OpenTelemetryObserver"]

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

_STREAMING: Final = frozenset(one.name for one in (*OPERATIONS, *OPENAI_OPERATIONS) if one.streams)

_SYSTEM: Final = "aws-api"
# The conventions list no name for SageMaker; Bedrock's is aws.bedrock.
_PROVIDER: Final = "aws.sagemaker"

# Histogram boundaries in seconds; those for durations are the conventions'. During an outage, a call waits 20 s by
# default and a call of a map 600 s; endpoints scale out in minutes.
_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_OUTAGES: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_MINUTES: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0, 1800.0)
_FIRST_PARTS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_ATTEMPTS: Final = (0, 1, 2, 3, 4, 5, 10)

# The exceptions that end a call from outside.
_CANCELLED: Final = frozenset({"CancelledError", "GeneratorExit"})

# A gateway in front of the service may return anything as the code.
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}|[1-5][0-9]{2}")

_W3C: Final = TraceContextTextMapPropagator()
# All operations have the same member.
_CUSTOM_ATTRIBUTES: Final = next(m for m in INVOKE_ENDPOINT.members if m.name == "CustomAttributes")


@dataclass(slots=True)
class _Call:
    """A call in progress.

    Args:
        span: its span.
        context: the context in which the span is current.
        attributes: the common attributes of its metrics.
        attempt_attributes: the common attributes of the spans and metrics of its attempts.
        url: its URL.
        attempt: the span of the current attempt; None between attempts, or if attempts are not traced.
        limiter_wait: seconds spent waiting for a slot.
        capacity_wait: seconds spent waiting for capacity.
        outage_wait: seconds spent waiting for an unhealthy target.
        sent: the number of requests sent so far.
        status: the HTTP status of the last attempt; None without a response.
        error: the error of the last attempt; None if it succeeded.
        request_id: the last request id from the service.
    """

    span: trace.Span
    context: Context
    attributes: dict[str, AttributeValue]
    attempt_attributes: dict[str, AttributeValue]
    url: str
    attempt: trace.Span | None = None
    limiter_wait: float = 0.0
    capacity_wait: float = 0.0
    outage_wait: float = 0.0
    sent: int = 0
    status: int | None = None
    error: str | None = None
    request_id: str | None = None


class OpenTelemetryObserver:
    """An observer that records spans and metrics of calls; one observer serves any number of clients and views.

    The parent of a call's span is the caller's current span. See docs/opentelemetry.md for all names.

    Args:
        tracer_provider: creates the spans. Defaults to the global provider.
        meter_provider: creates the metrics. Defaults to the global provider.
        attempt_spans: whether each attempt has a child span.
        propagator: injects the context of a call's span into the headers of its requests, for gateways; SageMaker does
            not forward them to a model. If None, nothing is injected.
        custom_attributes_separator: separates the CustomAttributes of a call from a ``traceparent=…`` that is appended
            for the model's container, such as ``";"`` or ``","``. Nothing is appended if there already is a
            ``traceparent``, or if the result exceeds the service's 1,024 characters. If None, CustomAttributes are sent
            unchanged.

    Raises:
        ParamValidationError: an argument has the wrong type, or the separator is not printable ASCII.

    >>> from aiosmrt import Client
    >>> client = Client("eu-central-1", observers=[OpenTelemetryObserver()])
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        attempt_spans: bool = True,
        propagator: TextMapPropagator | None = None,
        custom_attributes_separator: str | None = None,
    ) -> None:
        faults = [
            f"{name} must be a {kind.__name__}{' or None' if optional else ''}; got {type(value)}"
            for name, value, kind, optional in (
                ("tracer_provider", tracer_provider, trace.TracerProvider, True),
                ("meter_provider", meter_provider, metrics.MeterProvider, True),
                ("attempt_spans", attempt_spans, bool, False),
                ("propagator", propagator, TextMapPropagator, True),
                ("custom_attributes_separator", custom_attributes_separator, str, True),
            )
            if not isinstance(value, kind) and not (optional and value is None)
        ]
        separator = custom_attributes_separator
        if isinstance(separator, str) and not (separator and separator.isascii() and separator.isprintable()):
            faults.append(f"custom_attributes_separator must be printable ASCII; got {separator!r:.80}")
        if faults:
            raise ParamValidationError(faults)
        self._tracer = trace.get_tracer("aiosmrt", __version__, tracer_provider, SCHEMA_URL)
        self._attempt_spans = attempt_spans
        self._propagator = propagator
        self._separator = separator
        self._calls: dict[str, _Call] = {}
        meter = metrics.get_meter("aiosmrt", __version__, meter_provider, SCHEMA_URL)

        def histogram(name: str, unit: str, description: str, boundaries: tuple[float, ...]) -> metrics.Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=boundaries)

        self._call_duration = histogram(
            "rpc.client.call.duration",
            "s",
            "Measures the duration of an outgoing Remote Procedure Call (RPC).",
            _DURATIONS,
        )
        self._attempt_duration = histogram(
            "http.client.request.duration", "s", "Duration of HTTP client requests.", _DURATIONS
        )
        self._attempts = histogram("aiosmrt.client.attempts", "{attempt}", "Requests sent per call.", _ATTEMPTS)
        self._limiter_wait_duration = histogram(
            "aiosmrt.client.limiter_wait.duration",
            "s",
            "Time that calls waited for a slot under max_concurrency.",
            _DURATIONS,
        )
        self._capacity_wait_duration = histogram(
            "aiosmrt.client.capacity_wait.duration",
            "s",
            "Time that calls waited while their target scaled out from zero.",
            _MINUTES,
        )
        self._outage_wait_duration = histogram(
            "aiosmrt.client.outage_wait.duration", "s", "Time that calls waited for an unhealthy target.", _OUTAGES
        )
        self._first_part_duration = histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time to receive the first chunk, measured from when the client issues the generation request to when the "
            "first chunk is received in the response stream.",
            _FIRST_PARTS,
        )
        self._generation_duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_FIRST_PARTS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._active = meter.create_up_down_counter(
            "aiosmrt.client.active_calls", "{call}", "Calls and streams in progress."
        )
        self._retries = meter.create_counter(
            "aiosmrt.client.retries", "{retry}", "Retries scheduled after failed attempts."
        )
        self._throttles = meter.create_counter(
            "aiosmrt.client.throttles", "{throttle}", "Throttling responses of the service."
        )

    def __repr__(self) -> str:
        return f"<OpenTelemetryObserver calls={len(self._calls)}>"

    def __call__(self, event: Event) -> None:
        """Record an event."""
        if isinstance(event, CallStarted):
            self._begin(event)
            return
        if isinstance(event, GenerationEnded):
            self._measure(event)
            return
        call = self._calls.get(getattr(event, "invocation_id", ""))
        if call is None:
            return  # The event is about credentials or the clock, or CallStarted has failed here.
        match event:
            case LimiterWaited():
                call.limiter_wait += event.duration
                call.span.set_attribute("aiosmrt.limiter_wait.duration", call.limiter_wait)
                self._limiter_wait_duration.record(event.duration, call.attributes, call.context)
            case CapacityWaited():
                call.capacity_wait += event.duration
                outcome = {"aiosmrt.capacity_wait.outcome": event.outcome}
                call.span.set_attributes({"aiosmrt.capacity_wait.duration": call.capacity_wait, **outcome})
                self._capacity_wait_duration.record(event.duration, {**call.attributes, **outcome}, call.context)
            case OutageWaited():
                call.outage_wait += event.duration
                ending = {"aiosmrt.outage_wait.outcome": event.outcome}
                call.span.set_attributes({"aiosmrt.outage_wait.duration": call.outage_wait, **ending})
                self._outage_wait_duration.record(event.duration, {**call.attributes, **ending}, call.context)
            case FirstPart():
                call.span.set_attribute("gen_ai.response.time_to_first_chunk", event.duration)
                generation = {"gen_ai.operation.name": event.operation, "gen_ai.provider.name": _PROVIDER}
                self._first_part_duration.record(event.duration, {**call.attributes, **generation}, call.context)
            case AttemptStarted():
                self._begin_attempt(call, event)
            case AttemptEnded():
                self._end_attempt(call, event)
            case RetryScheduled():
                self._retries.add(1, {**call.attributes, "aiosmrt.retry.cause": event.cause}, call.context)
            case CallEnded():
                # A stream that has started ends with StreamEnded.
                if event.error is not None or event.operation not in _STREAMING:
                    # ServiceError is the class of all codes without their own class, so the code is more precise.
                    error = call.error if event.error == "ServiceError" else event.error
                    self._end(event.invocation_id, event.duration, _outcome(error))
            case StreamEnded():
                call.span.set_attributes(
                    {
                        "aiosmrt.stream.parts": event.parts,
                        "aiosmrt.stream.payload.size": event.payload_bytes,
                        "aiosmrt.stream.complete": event.complete,
                    }
                )
                abandoned = not event.complete and event.error is None
                self._end(event.invocation_id, event.duration, _abandoned() if abandoned else _outcome(event.error))

    def _measure(self, event: GenerationEnded) -> None:
        """Record what OpenTelemetry's conventions for generative AI measure of a call."""
        url = urlsplit(event.url)
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": event.kind,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": event.model,
            "server.address": url.hostname or "",
            "server.port": url.port or DEFAULT_PORTS[url.scheme],
            "aiosmrt.endpoint.name": event.endpoint_name,
        }
        if event.response_model is not None:
            attributes["gen_ai.response.model"] = event.response_model
        self._generation_duration.record(event.duration, {**attributes, **_outcome(event.error)})
        for kind, count in (("input", event.input_tokens), ("output", event.output_tokens)):
            if count is not None:
                self._tokens.record(count, {**attributes, "gen_ai.token.type": kind})

    def request_headers(self, started: CallStarted, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers that propagate a call's context; see `aiosmrt.events.HeaderSource`."""
        added: dict[str, str] = {}
        call = self._calls.get(started.invocation_id)
        if call is None:
            return added
        if self._propagator is not None:
            # The type of its default setter has a free type variable.
            self._propagator.inject(added, call.context)  # pyright: ignore[reportArgumentType]
        if self._separator is not None:
            carrier: dict[str, str] = {}
            _W3C.inject(carrier, call.context)
            name = str(_CUSTOM_ATTRIBUTES.header)
            attributes = _appended(headers.get(name), self._separator, carrier)
            if attributes is not None:
                added[name] = attributes
        return added

    def _begin(self, event: CallStarted) -> None:
        url = urlsplit(event.url)
        server: dict[str, AttributeValue] = {
            "server.address": url.hostname or "",
            "server.port": url.port or DEFAULT_PORTS[url.scheme],
            "aiosmrt.endpoint.name": event.endpoint_name,
        }
        attributes: dict[str, AttributeValue] = {
            "rpc.system.name": _SYSTEM,
            "rpc.service": SERVICE_ID,
            "rpc.method": event.operation,
            **server,
        }
        span = self._tracer.start_span(
            f"{SERVICE_ID}.{event.operation}",
            kind=trace.SpanKind.CLIENT,
            attributes={
                **attributes,
                "rpc.system": _SYSTEM,
                **({} if event.region_name is None else {"cloud.region": event.region_name}),
                "aiosmrt.request.body.size": event.body_bytes,
            },
        )
        context = trace.set_span_in_context(span)
        attempt_attributes = {"http.request.method": "POST", "rpc.method": event.operation, **server}
        self._calls[event.invocation_id] = _Call(span, context, attributes, attempt_attributes, event.url)
        self._active.add(1, attributes, context)

    def _begin_attempt(self, call: _Call, event: AttemptStarted) -> None:
        call.sent += 1
        if self._attempt_spans and call.span.is_recording():
            resent: dict[str, AttributeValue] = {} if call.sent == 1 else {"http.request.resend_count": call.sent - 1}
            call.attempt = self._tracer.start_span(
                "POST",
                call.context,
                trace.SpanKind.CLIENT,
                {**call.attempt_attributes, "url.full": call.url, **resent},
            )

    def _end_attempt(self, call: _Call, event: AttemptEnded) -> None:
        call.status, call.error = event.status, event.error
        call.request_id = event.request_id or call.request_id
        outcome = _outcome(event.error)
        if event.status is not None:
            outcome["http.response.status_code"] = event.status
            if event.error is not None and classify(event.status, event.error) == "throttling":
                self._throttles.add(1, call.attributes, call.context)
        span, call.attempt = call.attempt, None
        if span is not None:
            if event.request_id is not None:
                span.set_attribute("aws.request_id", event.request_id)
            _finish(span, outcome)
        self._attempt_duration.record(event.duration, {**call.attempt_attributes, **outcome}, call.context)

    def _end(self, invocation_id: str, duration: float, outcome: dict[str, AttributeValue]) -> None:
        call = self._calls.pop(invocation_id)
        call.span.set_attribute("aiosmrt.attempts", call.sent)
        if call.status is not None:
            call.span.set_attribute("http.response.status_code", call.status)
        if call.request_id is not None:
            call.span.set_attribute("aws.request_id", call.request_id)
        _finish(call.span, outcome)
        attributes = {**call.attributes, **outcome}
        self._call_duration.record(duration, attributes, call.context)
        self._attempts.record(call.sent, attributes, call.context)
        self._active.add(-1, call.attributes, call.context)


def _appended(attributes: str | None, separator: str, carrier: Mapping[str, str]) -> str | None:
    """Append a trace's parent to custom attributes; None if it does not fit or they already have one.

    >>> _appended("accept_eula=true", ";", {"traceparent": "00-ab-cd-01"})
    'accept_eula=true;traceparent=00-ab-cd-01'
    """
    given = [attributes] if attributes is not None else []
    if "traceparent" not in carrier or any("traceparent=" in text for text in given):
        return None
    text = separator.join([*given, f"traceparent={carrier['traceparent']}"])
    return text if len(text) <= (_CUSTOM_ATTRIBUTES.rule.max or 0) else None


def _outcome(error: str | None) -> dict[str, AttributeValue]:
    """Return the attributes for the outcome of a call or an attempt; none if it succeeded.

    >>> _outcome("ThrottlingException"), _outcome("CancelledError"), _outcome("the model: 1,2,3")
    ({'error.type': 'ThrottlingException'}, {'aiosmrt.abandoned': True}, {'error.type': '_OTHER'})
    """
    if error is None:
        return {}
    if error in _CANCELLED:
        return _abandoned()
    return {"error.type": error if _CODE.fullmatch(error) else "_OTHER"}


def _abandoned() -> dict[str, AttributeValue]:
    return {"aiosmrt.abandoned": True}


def _finish(span: trace.Span, outcome: dict[str, AttributeValue]) -> None:
    span.set_attributes(outcome)
    if "error.type" in outcome:
        # Without a description, because an error message may quote a payload.
        span.set_status(trace.StatusCode.ERROR)
    span.end()
