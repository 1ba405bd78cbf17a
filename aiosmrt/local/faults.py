"""Scripted faults: failures of an endpoint, and the calls that they apply to.

A ``Fault`` joins an effect with a schedule, a set of calls. Effects apply at one of four stages of an exchange, and at
most one effect applies at each, the first in the script whose schedule includes the call:

- ``clock``: the server's time is off (``SkewedClock``);
- ``answer``: an error replaces the model's response, or nothing is sent (``ErrorAnswer`` and its named forms,
  ``ModelFailure``, ``ResetBeforeHeaders``, ``CloseBeforeHeaders``, ``Stall``);
- ``body``: the response's body breaks, stops or crawls (``ResetAfterHeaders``, ``Truncate``, ``Corrupt``,
  ``StallInBody``, ``Drip``, ``StreamFailure``);
- ``connection``: the connection closes afterwards (``IdleClose``).

Of these, ``Corrupt``, ``Drip`` and ``IdleClose`` do nothing to bidirectional streams, for which ``ResetStream`` and
``GoAway`` are, at the stage of the body.

Every call that names the endpoint counts, whether its signature is valid or not; each attempt of a retried call is a
call. ``next`` counts the calls to which a fault applied, ``every`` counts all calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from aiosmrt._wire.sigv4.canonical import amz_date
from aiosmrt.errors import ConfigurationError
from aiosmrt.local.authentication import signature_expired
from aiosmrt.local.error_responses import CallContext, ErrorAnswer, model_error, throttled, validation_error
from aiosmrt.local.error_responses import model_not_ready as not_ready
from aiosmrt.local.fault_schedule import Effect, Fault, Schedule, Stage
from aiosmrt.local.routing import NO_CAPACITY

__all__ = [
    "CloseBeforeHeaders",
    "Corrupt",
    "Drip",
    "Effect",
    "ErrorAnswer",
    "ErrorEffect",
    "Fault",
    "GoAway",
    "IdleClose",
    "ModelFailure",
    "Replaced",
    "ResetAfterHeaders",
    "ResetBeforeHeaders",
    "ResetStream",
    "Schedule",
    "SignatureExpired",
    "SkewedClock",
    "Stage",
    "Stall",
    "StallInBody",
    "StreamFailure",
    "Truncate",
    "bad_gateway",
    "gateway_timeout",
    "internal_dependency",
    "internal_failure",
    "model_not_ready",
    "no_capacity",
    "service_unavailable",
    "throttling",
    "too_many_requests",
    "validation_failure",
]


class ErrorEffect(Effect, ABC):
    """An effect that replaces the model's response with an error."""

    __slots__ = ()
    stage: ClassVar[Stage] = "answer"

    @abstractmethod
    def error(self, context: CallContext) -> ErrorAnswer:
        """Return the error response."""


@dataclass(frozen=True, slots=True)
class SkewedClock(Effect):
    """The server's clock is off, in its ``Date`` header and in its verification of signatures.

    Args:
        seconds: how far it is ahead; negative for behind.
    """

    seconds: float
    stage: ClassVar[Stage] = "clock"


@dataclass(frozen=True, slots=True)
class Replaced(ErrorEffect):
    """An error response replaces the model's.

    Args:
        answer: the error response.
        label: its name in the request log. Defaults to ``replaced``.
    """

    answer: ErrorAnswer
    label: str = "replaced"

    @property
    def name(self) -> str:
        """The error's name."""
        return self.label

    def error(self, context: CallContext) -> ErrorAnswer:
        """Return the error response."""
        return self.answer


@dataclass(frozen=True, slots=True)
class ModelFailure(ErrorEffect):
    """The container fails: a ModelError.

    Args:
        status: the container's HTTP status; 0 for a container that did not answer. Defaults to 500.
        message: the container's error text. Defaults to ``Internal Server Error``.
    """

    status: int = 500
    message: str = "Internal Server Error"

    def error(self, context: CallContext) -> ErrorAnswer:
        """Return the error response."""
        return model_error(context, self.status, self.message)


@dataclass(frozen=True, slots=True)
class SignatureExpired(ErrorEffect):
    """The signature is rejected as too old, whatever its date.

    Args:
        seconds: the age in the error's message. Defaults to 900.
    """

    seconds: float = 900.0

    def error(self, context: CallContext) -> ErrorAnswer:
        """Return the error response."""
        return signature_expired(amz_date(context.now - self.seconds), context.now)


@dataclass(frozen=True, slots=True)
class ResetBeforeHeaders(Effect):
    """The connection is reset (TCP RST) before any byte of the response.

    Args:
        after_model: whether the model runs first, so that its response is lost. Defaults to False.
    """

    after_model: bool = False
    stage: ClassVar[Stage] = "answer"


@dataclass(frozen=True, slots=True)
class CloseBeforeHeaders(Effect):
    """The connection is closed in order (TCP FIN) before any byte of the response.

    Args:
        after_model: whether the model runs first. Defaults to False.
    """

    after_model: bool = False
    stage: ClassVar[Stage] = "answer"


@dataclass(frozen=True, slots=True)
class Stall(Effect):
    """The call waits, then continues to the model.

    Args:
        seconds: how long. If None, until the runtime's ``release_stalled``.
    """

    seconds: float | None = None
    stage: ClassVar[Stage] = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyEffect(Effect):
    """An effect in the body, ``after_bytes`` bytes behind the first ``after_parts`` messages of a response stream."""

    after_parts: int = 0
    after_bytes: int = 0
    stage: ClassVar[Stage] = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetAfterHeaders(BodyEffect):
    """The connection is reset (TCP RST) at an offset in the body.

    Args:
        after_parts: messages of a response stream that are sent whole first. Defaults to 0.
        after_bytes: bytes of the body after these messages. Defaults to 0.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate(BodyEffect):
    """The body ends early.

    Args:
        after_parts: messages of a response stream that are sent whole first. Defaults to 0.
        after_bytes: bytes of the body after these messages; inside a message they cut its frame. Defaults to 0.
        clean_ending: whether the HTTP framing ends as if the body were complete (a chunked body with its last chunk).
            If False, the connection is closed instead. Defaults to False.
    """

    clean_ending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt(BodyEffect):
    """One byte of the body is inverted.

    Args:
        after_parts: messages of a response stream that are sent whole first. Defaults to 0.
        after_bytes: bytes of the body between these messages and the inverted one. Defaults to 0.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StallInBody(BodyEffect):
    """The body stops for a while, then continues.

    Args:
        after_parts: messages of a response stream that are sent whole first. Defaults to 0.
        after_bytes: bytes of the body after these messages. Defaults to 0.
        seconds: how long. If None, until the runtime's ``release_stalled``.
    """

    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetStream(Effect):
    """A bidirectional stream is reset (RST_STREAM).

    Args:
        after_parts: parts that are sent first. Defaults to 0.
        error_code: HTTP/2's name for the error. Defaults to ``INTERNAL_ERROR``.
    """

    after_parts: int = 0
    error_code: Literal[
        "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "REFUSED_STREAM", "CANCEL", "ENHANCE_YOUR_CALM"
    ] = "INTERNAL_ERROR"
    stage: ClassVar[Stage] = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway(Effect):
    """The connection of a bidirectional stream takes no further streams (GOAWAY).

    Args:
        after_parts: parts that are sent first. Defaults to 0.
        graceful: whether the streams go on to their end; otherwise this one was not begun, and the connection is
            closed. Defaults to True.
    """

    after_parts: int = 0
    graceful: bool = True
    stage: ClassVar[Stage] = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drip(Effect):
    """The body is sent in small pieces with pauses between them.

    Args:
        piece_bytes: the size of a piece. Defaults to 1.
        seconds: the pause after each piece. Defaults to 0.01.
    """

    piece_bytes: int = 1
    seconds: float = 0.01
    stage: ClassVar[Stage] = "body"

    def __post_init__(self) -> None:
        if self.piece_bytes < 1:
            raise ConfigurationError(f"piece_bytes must be an integer >= 1; got {self.piece_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFailure(Effect):
    """A response stream ends with an exception message; other responses are unchanged.

    Args:
        after_parts: messages that are sent first, or as many as the model yields. Defaults to 0.
        exception: ``ModelStreamError`` or ``InternalStreamFailure``. Defaults to ``ModelStreamError``.
        error_code: the ``ErrorCode`` of a ModelStreamError: ``StreamBroken`` or ``ModelInvocationTimeExceeded``.
            Defaults to ``StreamBroken``.
        message: its text. Defaults to a general one.
    """

    after_parts: int = 0
    exception: Literal["ModelStreamError", "InternalStreamFailure"] = "ModelStreamError"
    error_code: str = "StreamBroken"
    message: str = "The response stream was interrupted."
    stage: ClassVar[Stage] = "body"

    def __post_init__(self) -> None:
        if self.exception not in ("ModelStreamError", "InternalStreamFailure"):
            raise ConfigurationError(
                f"exception must be ModelStreamError or InternalStreamFailure; got {self.exception!r}"
            )


@dataclass(frozen=True, slots=True)
class IdleClose(Effect):
    """The connection is closed without notice after the response, although the response kept it alive.

    Args:
        seconds: how long after. Defaults to 0.
    """

    seconds: float = 0.0
    stage: ClassVar[Stage] = "connection"


def throttling(retry_after: float | None = None) -> Replaced:
    """ThrottlingException: 400, the type only in the header, a null message; ``retry_after`` is in seconds."""
    return Replaced(throttled(retry_after), "throttling")


def too_many_requests(retry_after: float | None = None) -> Replaced:
    """A bare 429 with an empty body, as from a proxy."""
    return Replaced(ErrorAnswer(429, None, body=b"", retry_after=retry_after), "too_many_requests")


def model_not_ready() -> Replaced:
    """ModelNotReadyException, 429."""
    return Replaced(not_ready(), "model_not_ready")


def internal_failure(retry_after: float | None = None) -> Replaced:
    """InternalFailure, 500."""
    answer = ErrorAnswer(500, "InternalFailure", "An internal failure occurred.", retry_after=retry_after)
    return Replaced(answer, "internal_failure")


def service_unavailable(retry_after: float | None = None) -> Replaced:
    """ServiceUnavailable, 503."""
    message = "The service is unavailable. Try your call again."
    return Replaced(ErrorAnswer(503, "ServiceUnavailable", message, retry_after=retry_after), "service_unavailable")


def bad_gateway() -> Replaced:
    """502 with a load balancer's HTML page."""
    return Replaced(_page(502, "Bad Gateway"), "bad_gateway")


def gateway_timeout() -> Replaced:
    """504 with a load balancer's HTML page."""
    return Replaced(_page(504, "Gateway Time-out"), "gateway_timeout")


def internal_dependency() -> Replaced:
    """InternalDependencyException, 530."""
    answer = ErrorAnswer(530, "InternalDependencyException", "A dependency of the service failed.")
    return Replaced(answer, "internal_dependency")


def no_capacity() -> Replaced:
    """The ValidationError of an inference component that is scaled to zero."""
    return Replaced(validation_error(NO_CAPACITY), "no_capacity")


def validation_failure(message: str) -> Replaced:
    """A ValidationError with this text."""
    return Replaced(validation_error(message), "validation_error")


def _page(status: int, title: str) -> ErrorAnswer:
    page = f"<html>\n<head><title>{status} {title}</title></head>\n<body><h1>{status} {title}</h1></body>\n</html>\n"
    return ErrorAnswer(status, None, body=page.encode(), content_type="text/html")
