"""What happened, as frozen records handed to observers.

An observer is a plain callable. It runs on the event loop between two steps of a call, so it must be quick; what it
raises goes to the loop's exception handler and never into the call. Records hold sizes and names, never a payload,
a custom attribute or a credential. Nothing is made or called when a client has no observer.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from aiosmrt.errors import Cause

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "CallEnded",
    "ClockSkewCorrected",
    "CredentialsRefreshFailed",
    "CredentialsRefreshed",
    "Event",
    "LimiterWaited",
    "Observer",
    "RetryScheduled",
    "StreamEnded",
]


class LimiterWaited(NamedTuple):
    """A call waited for its turn under ``max_concurrency``; ``duration`` in seconds."""

    operation: str
    endpoint_name: str
    duration: float


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
    """Another attempt follows after ``delay`` seconds; ``attempt`` is the one that failed."""

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


class StreamEnded(NamedTuple):
    """A response stream is over; ``complete`` is False when it was left early or failed."""

    operation: str
    endpoint_name: str
    invocation_id: str
    parts: int
    payload_bytes: int
    duration: float
    complete: bool


class CredentialsRefreshed(NamedTuple):
    """Credentials were obtained; ``expires_at`` in seconds since the epoch, None when they do not expire."""

    source: str
    expires_at: float | None


class CredentialsRefreshFailed(NamedTuple):
    """An early refresh failed, and the credentials at hand are still valid; ``error`` is the error's class name."""

    source: str
    error: str


class ClockSkewCorrected(NamedTuple):
    """The local clock is ``offset`` seconds behind the service's, and signatures take that into account from now on."""

    offset: float


Event: TypeAlias = (
    LimiterWaited
    | AttemptStarted
    | AttemptEnded
    | RetryScheduled
    | CallEnded
    | StreamEnded
    | CredentialsRefreshed
    | CredentialsRefreshFailed
    | ClockSkewCorrected
)

Observer: TypeAlias = Callable[[Event], None]
