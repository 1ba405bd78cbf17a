"""Errors as a client raises them, without a call."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from aiosmrt._policy.retry import classify
from aiosmrt.errors import (
    ERROR_CODES,
    AiosmrtError,
    EndpointNotFoundError,
    EventStreamError,
    InternalDependencyException,
    InternalFailure,
    ModelError,
    ModelNotReadyException,
    NoCapacityError,
    ObjectStoreError,
    ParamValidationError,
    ServiceError,
    ServiceUnavailable,
    ThrottlingError,
    TooManyFailuresError,
    TooManyWaitingError,
    ValidationError,
)

__all__ = ["REQUEST_ID", "make_error"]

E = TypeVar("E", bound=AiosmrtError)

REQUEST_ID: Final = "00000000-0000-4000-8000-000000000000"
_MESSAGE: Final = "made for a test"

# The service's code and HTTP status of each class that it has errors of; the nearest base counts.
_CODES: Final[dict[type[ServiceError], tuple[str, int | None]]] = {
    ServiceError: ("AccessDeniedException", 403),
    ValidationError: ("ValidationError", 400),
    EndpointNotFoundError: ("ValidationError", 400),
    NoCapacityError: ("ValidationError", 400),
    ThrottlingError: ("ThrottlingException", 400),
    ModelNotReadyException: ("ModelNotReadyException", 429),
    ModelError: ("ModelError", 424),
    InternalFailure: ("InternalFailure", 500),
    ServiceUnavailable: ("ServiceUnavailable", 503),
    InternalDependencyException: ("InternalDependencyException", 530),
}

_ARGUMENTS: Final[dict[type[AiosmrtError], dict[str, Any]]] = {
    ObjectStoreError: {"code": "AccessDenied"},
    TooManyFailuresError: {"failures": 1, "calls": 1},
    TooManyWaitingError: {"max_waiting": 0},
}


def make_error(
    kind: type[E],
    message: str = _MESSAGE,
    *,
    operation: str = "InvokeEndpoint",
    endpoint_name: str = "endpoint",
    attempts: int = 1,
    code: str | None = None,
    status: int | None = None,
    **facts: Any,
) -> E:
    """An error as a client raises it.

    Args:
        kind: its class, such as `aiosmrt.ModelError`.
        message: the message; of a ParamValidationError, its only fault. TooManyWaitingError and TooManyFailuresError
            make theirs of their facts.
        operation: the API operation that failed.
        endpoint_name: the endpoint that was called.
        attempts: requests that were sent.
        code: the code of an error of the service or of S3. Defaults to that of its class.
        status: the HTTP status of an error of the service or of S3. Defaults to that of its class.
        facts: what else the class has: of an error of the service, members of its response such as
            ``OriginalStatusCode`` and ``OriginalMessage``; otherwise arguments of its constructor.

    Raises:
        TypeError: ``kind`` is not a class of `aiosmrt.errors`, a fact is unknown to it, or a fact has the wrong type.

    >>> from aiosmrt import ModelError
    >>> error = make_error(ModelError, endpoint_name="churn", OriginalStatusCode=500)
    >>> error.endpoint_name, error.original_status_code, error.cause
    ('churn', 500, 'model')
    """
    error: AiosmrtError
    given_kind: object = kind
    if not isinstance(given_kind, type) or not issubclass(given_kind, AiosmrtError):
        raise TypeError(f"kind must be a class of aiosmrt.errors, such as ModelError; got {given_kind!r:.80}")
    if issubclass(kind, ServiceError):
        error = _service_error(kind, message, operation, attempts, code, status, facts)
    else:
        given = {"code": code, "status": status}
        arguments = _ARGUMENTS.get(kind, {}) | {name: value for name, value in given.items() if value is not None}
        constructor = cast("type[Any]", kind)
        if issubclass(kind, ParamValidationError):
            error = constructor([message], **arguments, **facts)
        elif issubclass(kind, (TooManyFailuresError, TooManyWaitingError)):
            error = constructor(**{**arguments, **facts})
        else:
            error = constructor(message, **{**arguments, **facts})
    error.operation = operation
    error.endpoint_name = endpoint_name
    error.attempts = attempts
    return cast("E", error)


def _service_error(
    kind: type[ServiceError],
    message: str,
    operation: str,
    attempts: int,
    code: str | None,
    status: int | None,
    members: dict[str, Any],
) -> ServiceError:
    if issubclass(kind, EventStreamError):
        # inside a stream, which began with a 200
        known_code, known_status = ("UnknownError" if kind is EventStreamError else kind.__name__), None
    else:
        known_code, known_status = next(_CODES[base] for base in kind.__mro__ if base in _CODES)
    code, status = code or known_code, status or known_status
    known = {
        name: of
        for entry in ERROR_CODES.values()
        if issubclass(kind, entry.error_class)
        for name, of in entry.members or ()
    }
    for name, value in members.items():
        if name not in known:
            raise TypeError(f"{kind.__name__} has no {name}; known are: {', '.join(known) or 'none'}")
        if not isinstance(value, known[name]):
            raise TypeError(f"{name} must be of type {known[name].__name__}; got {type(value)}")
    metadata: dict[str, Any] = {"RequestId": REQUEST_ID, "HTTPHeaders": {}, "RetryAttempts": max(0, attempts - 1)}
    if status is not None:
        metadata["HTTPStatusCode"] = status
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata, **members}
    return kind(response, operation, cause=classify(status or 200, code))
