"""What happened, as frozen records handed to observers.

An observer is a plain callable. It runs on the event loop between two steps of a call, so it must be quick; what it
raises goes to the loop's exception handler and never into the call. Records hold sizes and names, never a payload,
a custom attribute or a credential. Without an observer, no record is made.

An observer may also have a say in what is sent: see `HeaderSource`.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias

from aiosmrt.errors import Cause

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "CallEnded",
    "CallStarted",
    "CapacityWaited",
    "ClockSkewCorrected",
    "CredentialsRefreshFailed",
    "CredentialsRefreshed",
    "Event",
    "FirstPart",
    "GenerationEnded",
    "HeaderSource",
    "LimitMoved",
    "LimiterWaited",
    "Observer",
    "OutageOutcome",
    "OutageWaited",
    "RetryScheduled",
    "StreamEnded",
    "StreamExpiring",
    "WaitOutcome",
]

WaitOutcome: TypeAlias = Literal[
    "capacity",  # there is some, or the service reports another problem
    "timeout",  # ``wait_for_capacity`` passed
    "abandoned",  # cancelled, the deadline, a closed client or stream, another error
]


OutageOutcome: TypeAlias = Literal[
    "recovered",  # the target has recovered
    "probe",  # this call is the one to probe it
    "timeout",  # the call's patience is over
    "abandoned",  # cancelled, the deadline, a closed client or stream
]


class CallStarted(NamedTuple):
    """A call begins, and takes or waits for a slot next.

    ``url`` is where it is posted to, ``region_name`` the region that it is signed for, None if it is unknown.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    url: str
    region_name: str | None
    body_bytes: int


class LimiterWaited(NamedTuple):
    """A call waited for a slot under ``max_concurrency``; ``duration`` in seconds."""

    operation: str
    endpoint_name: str
    invocation_id: str
    duration: float


class LimitMoved(NamedTuple):
    """An adaptive limit is another one after an attempt of this call.

    ``limit`` is the number of calls that may be in flight now, ``reason`` why it moved, as in
    `aiosmrt.LimiterStatistics`; ``round_trip`` the seconds of a call that it is based on, None before the first
    success.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    limit: int
    reason: str
    round_trip: float | None


class CapacityWaited(NamedTuple):
    """A call waited for capacity; ``duration`` in seconds, attempts that asked for it included.

    ``outcome`` is how the wait ended.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    duration: float
    outcome: WaitOutcome


class OutageWaited(NamedTuple):
    """A call sent nothing while its target was ill; ``duration`` in seconds, ``outcome`` is why the wait ended."""

    operation: str
    endpoint_name: str
    invocation_id: str
    duration: float
    outcome: OutageOutcome


class AttemptStarted(NamedTuple):
    """A request is about to be sent; ``attempt`` counts from 1."""

    operation: str
    endpoint_name: str
    invocation_id: str
    attempt: int
    body_bytes: int


class AttemptEnded(NamedTuple):
    """An attempt is over.

    ``status`` is None when no response head came, ``error`` the service's code or the error's class, None on success;
    ``duration`` in seconds. For a stream it ends with the response head.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    attempt: int
    duration: float
    status: int | None
    error: str | None
    request_id: str | None
    body_bytes: int


class RetryScheduled(NamedTuple):
    """Another attempt follows after ``delay`` seconds; ``attempt`` is the one that failed.

    It is 0 for a call that waits for a target that is ill; an `OutageWaited` follows.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    attempt: int
    cause: Cause
    delay: float


class CallEnded(NamedTuple):
    """A call is over, with all its attempts; ``error`` is the error's class name, None on success."""

    operation: str
    endpoint_name: str
    invocation_id: str
    attempts: int
    duration: float
    error: str | None


class FirstPart(NamedTuple):
    """The first part of a response stream is there, ``duration`` seconds after the call began.

    Waits and attempts before it are included. It is taken when a reader gets it, so a reader that waits before it reads
    counts as well.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    duration: float


class StreamEnded(NamedTuple):
    """A response stream is over; ``complete`` is False when it was left early or failed.

    ``error`` is the error's class name, None when it did not fail.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    parts: int
    payload_bytes: int
    duration: float
    complete: bool
    error: str | None


class StreamExpiring(NamedTuple):
    """A bidirectional stream will end in about ``seconds``.

    ``reason`` is ``"lifetime"``, the service's 30 minutes for a connection, or ``"credentials"``, which sign its
    messages and expire.
    """

    operation: str
    endpoint_name: str
    invocation_id: str
    reason: Literal["lifetime", "credentials"]
    seconds: float


class GenerationEnded(NamedTuple):
    """A call of an OpenAI client is over; `aiosmrt.integrations.openai` reports it, beside the events of the call.

    ``kind`` is OpenTelemetry's name of the operation (``chat``, ``text_completion``, ``embeddings``) or OpenAI's path,
    ``url`` the service's, ``model`` the name that the caller gave, ``response_model`` the one that the answer gives.
    Tokens are None where the answer does not name them; ``duration`` is in seconds, up to the end of a stream.
    ``error`` is the error's class name, ``CancelledError`` for a caller that has left, None on success.
    """

    kind: str
    endpoint_name: str
    url: str
    model: str
    response_model: str | None
    input_tokens: int | None
    output_tokens: int | None
    duration: float
    error: str | None


class CredentialsRefreshed(NamedTuple):
    """Credentials were obtained; ``expires_at`` in seconds since the epoch, None when they do not expire."""

    source: str
    expires_at: float | None


class CredentialsRefreshFailed(NamedTuple):
    """An early refresh failed, and the present credentials are still valid; ``error`` is the error's class name."""

    source: str
    error: str


class ClockSkewCorrected(NamedTuple):
    """The local clock is ``offset`` seconds behind the service's, and signatures take that into account from now on."""

    offset: float


Event: TypeAlias = (
    CallStarted
    | LimiterWaited
    | LimitMoved
    | CapacityWaited
    | OutageWaited
    | AttemptStarted
    | AttemptEnded
    | RetryScheduled
    | CallEnded
    | FirstPart
    | GenerationEnded
    | StreamEnded
    | StreamExpiring
    | CredentialsRefreshed
    | CredentialsRefreshFailed
    | ClockSkewCorrected
)

Observer: TypeAlias = Callable[[Event], None]


class HeaderSource(Protocol):
    """An observer that adds headers to the requests of the calls it sees, such as the context of a trace."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        ...

    def request_headers(self, started: CallStarted, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Headers for every request of a call, beside its own or in place of those with the same name.

        They are signed, except `aiosmrt._wire.sigv4.canonical.UNSIGNED_HEADERS`. Those that HTTP could not carry,
        and any exception, go to the loop's exception handler, and the call goes on without them.

        Args:
            started: the call, of which the observer has just been told.
            headers: those that the call's parameters stand for, custom attributes among them.
        """
        ...
