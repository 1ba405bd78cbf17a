"""Scripted faults: what goes wrong at an endpoint, and when.

A ``Fault`` joins an effect with a schedule, a set of calls. Effects act at one of four stages of an exchange, and at
most one effect acts at each, the first in the script whose schedule says so:

- ``clock``: the server's time is off (``SkewedClock``);
- ``answer``: something other than the model answers, or nothing does (``ErrorAnswer`` and its named forms,
  ``ModelFailure``, ``ResetBeforeHeaders``, ``CloseBeforeHeaders``, ``Stall``);
- ``body``: what happens to the answer's body (``ResetAfterHeaders``, ``Truncate``, ``Corrupt``, ``StallInBody``,
  ``Drip``, ``StreamFailure``);
- ``connection``: what happens to the connection afterwards (``IdleClose``).

Every call that names the endpoint counts, whether its signature holds or not; each attempt of a retried call is a call.
``next`` counts the calls on which it acted, ``every`` counts all calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from aiosmrt._wire.sigv4.canonical import amz_date
from aiosmrt.errors import ConfigurationError
from aiosmrt.local.answers import AnswerContext, ErrorAnswer, model_error, validation_error
from aiosmrt.local.answers import model_not_ready as not_ready
from aiosmrt.local.faultscript import Effect, Fault, Schedule, Stage
from aiosmrt.local.routing import NO_CAPACITY
from aiosmrt.local.verify import signature_expired

__all__ = [
    "CloseBeforeHeaders",
    "Corrupt",
    "Drip",
    "Effect",
    "ErrorAnswer",
    "ErrorEffect",
    "Fault",
    "IdleClose",
    "ModelFailure",
    "Replaced",
    "ResetAfterHeaders",
    "ResetBeforeHeaders",
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
    """An effect that answers with an error in the model's place."""

    __slots__ = ()
    stage: ClassVar[Stage] = "answer"

    @abstractmethod
    def error(self, context: AnswerContext) -> ErrorAnswer:
        """What is answered."""


@dataclass(frozen=True, slots=True)
class SkewedClock(Effect):
    """The server's clock is off, in its ``Date`` header and in its check of signatures.

    Args:
        seconds: how far ahead it is; negative for behind.
    """

    seconds: float
    stage: ClassVar[Stage] = "clock"


@dataclass(frozen=True, slots=True)
class Replaced(ErrorEffect):
    """Something answers in the model's place.

    Args:
        answer: the answer.
        label: its name in the request log.
    """

    answer: ErrorAnswer
    label: str = "replaced"

    @property
    def name(self) -> str:
        """The error's own name."""
        return self.label

    def error(self, context: AnswerContext) -> ErrorAnswer:
        """What is answered."""
        return self.answer


@dataclass(frozen=True, slots=True)
class ModelFailure(ErrorEffect):
    """The container fails: a ModelError.

    Args:
        status: the container's HTTP status; 0 for a container that gave no answer.
        message: the container's error text.
    """

    status: int = 500
    message: str = "Internal Server Error"

    def error(self, context: AnswerContext) -> ErrorAnswer:
        """What is answered."""
        return model_error(context, self.status, self.message)


@dataclass(frozen=True, slots=True)
class SignatureExpired(ErrorEffect):
    """The signature is refused as too old, whatever its date.

    Args:
        seconds: how old it is said to be.
    """

    seconds: float = 900.0

    def error(self, context: AnswerContext) -> ErrorAnswer:
        """What is answered."""
        return signature_expired(amz_date(context.now - self.seconds), context.now)


@dataclass(frozen=True, slots=True)
class ResetBeforeHeaders(Effect):
    """The connection is reset (TCP RST) before any byte of the answer.

    Args:
        after_model: whether the model runs first, so that its work is done and the answer lost.
    """

    after_model: bool = False
    stage: ClassVar[Stage] = "answer"


@dataclass(frozen=True, slots=True)
class CloseBeforeHeaders(Effect):
    """The connection is closed in order (TCP FIN) before any byte of the answer.

    Args:
        after_model: whether the model runs first.
    """

    after_model: bool = False
    stage: ClassVar[Stage] = "answer"


@dataclass(frozen=True, slots=True)
class Stall(Effect):
    """Nothing happens for a while; then the call goes on to the model.

    Args:
        seconds: how long; None until the runtime's ``release_stalled``.
    """

    seconds: float | None = None
    stage: ClassVar[Stage] = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetAfterHeaders(Effect):
    """The connection is reset (TCP RST) after the answer's head and part of its body.

    Args:
        after_parts: messages of a response stream that are sent whole first.
        after_bytes: bytes of the body that follow them.
    """

    after_parts: int = 0
    after_bytes: int = 0
    stage: ClassVar[Stage] = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate(Effect):
    """The body ends early.

    Args:
        after_parts: messages of a response stream that are sent whole first.
        after_bytes: bytes of the body that follow them; inside a message they cut its frame.
        clean_ending: whether the HTTP framing ends as if all were well (a chunked body with its last chunk); the
            connection is closed in the middle otherwise.
    """

    after_parts: int = 0
    after_bytes: int = 0
    clean_ending: bool = False
    stage: ClassVar[Stage] = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt(Effect):
    """One byte of the body arrives inverted.

    Args:
        after_parts: messages of a response stream that are sent whole first.
        after_bytes: bytes of the body between them and the damaged one.
    """

    after_parts: int = 0
    after_bytes: int = 0
    stage: ClassVar[Stage] = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class StallInBody(Effect):
    """The body stops for a while, then goes on.

    Args:
        after_parts: messages of a response stream that are sent whole first.
        after_bytes: bytes of the body that follow them.
        seconds: how long; None until the runtime's ``release_stalled``.
    """

    after_parts: int = 0
    after_bytes: int = 0
    seconds: float | None = None
    stage: ClassVar[Stage] = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drip(Effect):
    """The body comes in small pieces with pauses between them.

    Args:
        piece_bytes: the size of a piece.
        seconds: the pause after each.
    """

    piece_bytes: int = 1
    seconds: float = 0.01
    stage: ClassVar[Stage] = "body"

    def __post_init__(self) -> None:
        if self.piece_bytes < 1:
            raise ConfigurationError(f"a piece has at least one byte, not {self.piece_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFailure(Effect):
    """A response stream ends with an exception message; other answers are left alone.

    Args:
        after_parts: messages that are sent first; fewer if the model gives fewer.
        exception: ``ModelStreamError`` or ``InternalStreamFailure``.
        error_code: the ``ErrorCode`` of a ModelStreamError: ``StreamBroken`` or ``ModelInvocationTimeExceeded``.
        message: its text.
    """

    after_parts: int = 0
    exception: Literal["ModelStreamError", "InternalStreamFailure"] = "ModelStreamError"
    error_code: str = "StreamBroken"
    message: str = "The response stream was interrupted."
    stage: ClassVar[Stage] = "body"

    def __post_init__(self) -> None:
        if self.exception not in ("ModelStreamError", "InternalStreamFailure"):
            raise ConfigurationError(f"{self.exception!r} is neither ModelStreamError nor InternalStreamFailure")


@dataclass(frozen=True, slots=True)
class IdleClose(Effect):
    """The connection is closed without notice once the answer is out, though the answer kept it alive.

    Args:
        seconds: how long after.
    """

    seconds: float = 0.0
    stage: ClassVar[Stage] = "connection"


def throttling(retry_after: float | None = None) -> Replaced:
    """ThrottlingException: 400, the type only in the header, a null message; the hint is in seconds."""
    answer = ErrorAnswer(400, "ThrottlingException", None, retry_after=retry_after, message_key="message")
    return Replaced(answer, "throttling")


def too_many_requests(retry_after: float | None = None) -> Replaced:
    """A bare 429 with an empty body, as a proxy gives it."""
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
    answer = ErrorAnswer(503, "ServiceUnavailable", "The service is unavailable. Try your call again.")
    return Replaced(
        ErrorAnswer(answer.status, answer.code, answer.message, retry_after=retry_after), "service_unavailable"
    )


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
