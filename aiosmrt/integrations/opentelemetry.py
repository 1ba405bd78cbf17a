"""Client spans and metrics of calls, under OpenTelemetry's semantic conventions 1.44.0; needs the extra ``otel``.

::

    SageMaker Runtime.InvokeEndpoint   from the call's begin to its result, of a stream to its end
     ├── POST                          an attempt: a request and its response, of a stream up to the response's head
     └── POST

A call is an AWS SDK client span ("Semantic conventions for AWS SDK client spans"), with what those conventions leave to
the ones for RPC: the whole call is one span, retries included, and its duration is the metric
``rpc.client.call.duration``. The two differ about ``rpc.method``, which is the bare operation here as AWS's say, and
``rpc.system`` (AWS) stands beside ``rpc.system.name`` (RPC). ``rpc.response.status_code`` is left out: nobody has said
yet what it is for AWS. An attempt is an HTTP client span, and ``http.client.request.duration``. ``gen_ai.*`` is for
those who know what is in a payload. What has no convention is under ``aiosmrt.*``.

``error.type`` is the class that was raised, or AWS's code where that is just `ServiceError`; of an attempt, AWS's code.
A call whose task was cancelled, or whose stream was left before its end, did not fail ("Semantic conventions for HTTP
spans", Status): it has ``aiosmrt.abandoned`` in place of an error. Retries that helped are no errors of the call.

Everything is taken from `aiosmrt.events`, whose records hold no payload, custom attribute, credential or message of an
error; so neither do the spans.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiosmrt._policy.retry import classify
from aiosmrt._version import __version__
from aiosmrt._wire.operations import BY_NAME, INVOKE_ENDPOINT, SERVICE_ID
from aiosmrt.errors import ParamValidationError
from aiosmrt.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallStarted,
    CapacityWaited,
    Event,
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

_SYSTEM: Final = "aws-api"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# Boundaries of histograms. Those for durations are the conventions', in seconds. A call waits out an outage for 20 s by
# default and one of a map for 600 s; endpoints scale out in minutes.
_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_OUTAGES: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_MINUTES: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0, 1800.0)
_ATTEMPTS: Final = (0, 1, 2, 3, 4, 5, 10)

# What ends a call from outside.
_CANCELLED: Final = frozenset({"CancelledError", "GeneratorExit"})

# Codes are the service's words; a gateway between here and there may put anything in their place.
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}|[1-5][0-9]{2}")

_W3C: Final = TraceContextTextMapPropagator()
# The same member in every operation.
_CUSTOM_ATTRIBUTES: Final = next(m for m in INVOKE_ENDPOINT.members if m.name == "CustomAttributes")


@dataclass(slots=True)
class _Call:
    """A call under way.

    Args:
        span: the call's.
        context: the one in which that span is the current one.
        attributes: what the call's metrics have in common.
        attempt_attributes: what its attempts' metrics and spans have in common.
        url: where it is posted to.
        attempt: the span of the attempt under way; None outside of one, or without such spans.
        limiter_wait: seconds of waiting for a slot.
        capacity_wait: seconds of waiting for capacity.
        outage_wait: seconds of waiting for a target that was ill.
        sent: requests so far.
        status: the last attempt's HTTP status; None without a response.
        error: the last attempt's error; None without one.
        request_id: the service's last.
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
    """An observer that makes spans and metrics of what clients do; one serves any number of clients and views.

    A call's span has the caller's current span as its parent. See docs/opentelemetry.md for all names.

    Args:
        tracer_provider: makes the spans; None for the process's own.
        meter_provider: keeps the metrics; None for the process's own.
        attempt_spans: whether each attempt has a span below its call's.
        propagator: writes the context of a call's span into headers of its requests, for gateways on the way; SageMaker
            hands none of them on to a model. None writes nothing.
        custom_attributes_separator: what stands between the CustomAttributes of a call and a ``traceparent=…`` that is
            appended for the model's container, such as ``";"`` or ``","``. It is left out where there is one already,
            and where it would make more than the service's 1,024 characters. None leaves CustomAttributes alone.

    Raises:
        ParamValidationError: an argument is of a wrong type, or the separator is not printable ASCII.

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
        self._call_duration = meter.create_histogram(
            "rpc.client.call.duration",
            "s",
            "Measures the duration of an outgoing Remote Procedure Call (RPC).",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self._attempt_duration = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self._attempts = meter.create_histogram(
            "aiosmrt.client.attempts",
            "{attempt}",
            "Requests that a call sent.",
            explicit_bucket_boundaries_advisory=_ATTEMPTS,
        )
        self._limiter_wait_duration = meter.create_histogram(
            "aiosmrt.client.limiter_wait.duration",
            "s",
            "How long calls waited for a slot under max_concurrency, those that did.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self._capacity_wait_duration = meter.create_histogram(
            "aiosmrt.client.capacity_wait.duration",
            "s",
            "How long calls waited while their target scaled out from zero, those that did.",
            explicit_bucket_boundaries_advisory=_MINUTES,
        )
        self._outage_wait_duration = meter.create_histogram(
            "aiosmrt.client.outage_wait.duration",
            "s",
            "How long calls sent nothing while their target was ill, each wait of those that did wait.",
            explicit_bucket_boundaries_advisory=_OUTAGES,
        )
        self._active = meter.create_up_down_counter(
            "aiosmrt.client.active_calls", "{call}", "Calls and streams that have begun and not ended."
        )
        self._retries = meter.create_counter(
            "aiosmrt.client.retries", "{retry}", "Failed attempts that a retry was scheduled for."
        )
        self._throttles = meter.create_counter(
            "aiosmrt.client.throttles", "{throttle}", "Answers by which the service asked for less load."
        )

    def __repr__(self) -> str:
        return f"<OpenTelemetryObserver calls={len(self._calls)}>"

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, CallStarted):
            self._begin(event)
            return
        call = self._calls.get(getattr(event, "invocation_id", ""))
        if call is None:
            return  # it is about credentials or the clock, or about a call whose beginning failed here
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
            case AttemptStarted():
                self._begin_attempt(call, event)
            case AttemptEnded():
                self._end_attempt(call, event)
            case RetryScheduled():
                self._retries.add(1, {**call.attributes, "aiosmrt.retry.cause": event.cause}, call.context)
            case CallEnded():
                # the end of a stream that has begun is still to come
                if event.error is not None or not BY_NAME[event.operation].streams:
                    # a code says more than the class that stands for all codes without a class
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
                left = not event.complete and event.error is None
                self._end(event.invocation_id, event.duration, _abandoned() if left else _outcome(event.error))

    def request_headers(self, started: CallStarted, headers: Mapping[str, str]) -> Mapping[str, str]:
        """What a call's requests carry of its span's context; see `aiosmrt.events.HeaderSource`."""
        added: dict[str, str] = {}
        call = self._calls.get(started.invocation_id)
        if call is None:
            return added
        if self._propagator is not None:
            # its default setter has a type variable left open
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
            "server.port": url.port or _DEFAULT_PORTS[url.scheme],
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
    """Custom attributes with a trace's parent behind them; None where it does not fit or there is one already.

    >>> _appended("accept_eula=true", ";", {"traceparent": "00-ab-cd-01"})
    'accept_eula=true;traceparent=00-ab-cd-01'
    """
    given = [attributes] if attributes is not None else []
    if "traceparent" not in carrier or any("traceparent=" in text for text in given):
        return None
    text = separator.join([*given, f"traceparent={carrier['traceparent']}"])
    return text if len(text) <= (_CUSTOM_ATTRIBUTES.rule.max or 0) else None


def _outcome(error: str | None) -> dict[str, AttributeValue]:
    """The attributes that say how something ended; none for a success.

    >>> _outcome("ThrottlingException"), _outcome("CancelledError"), _outcome("it said: 1,2,3")
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
        # without a description: it would be a message that may quote a payload
        span.set_status(trace.StatusCode.ERROR)
    span.end()
