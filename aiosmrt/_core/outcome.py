"""From what came back to an error with its cause: pure, and the only place that decides what an answer means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiosmrt._policy.retry import classify, is_endpoint_not_found, is_no_capacity, parse_retry_after
from aiosmrt._wire.replies import failure as error_response
from aiosmrt._wire.replies import stream_failure
from aiosmrt.errors import (
    ERROR_CODES,
    Cause,
    ClientStateError,
    ConfigurationError,
    EndpointNotFoundError,
    EventStreamError,
    ModelStreamError,
    NoCapacityError,
    ObjectStoreError,
    ServiceError,
    SSLError,
    ThrottlingError,
    TransportError,
)

if TYPE_CHECKING:
    from aiosmrt._wire.eventstream import EventHeaders

__all__ = ["concerns_every_call", "refusal", "stream_error"]

# A caller that may not call, or may not call this: the next request will be refused like this one.
_REFUSES_THE_CALLER: Final = frozenset({401, 403})
_CALLER_CODES: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


def refusal(
    status: int,
    headers: dict[str, str],
    body: bytes,
    operation: str,
    attempts: int,
    *,
    skew: float | None = None,
    openai: bool = False,
) -> ServiceError:
    """The error that a reply reports.

    Args:
        status: the HTTP status.
        headers: the response headers, names in lower case.
        body: the response body.
        operation: the API operation.
        attempts: how many requests were sent.
        skew: for a refused signature, by how many seconds its time was off the service's clock; None when unknown.
        openai: whether the reply is one of the OpenAI route.
    """
    if openai:
        return _openai_refusal(status, headers, body, operation, attempts, skew)
    response = error_response(status, headers, body, attempts)
    code = response["Error"]["Code"]
    message = response["Error"]["Message"]
    if not isinstance(message, str):
        message = ""
    cause = classify(status, code, skew=skew)
    known = ERROR_CODES.get(code)
    cls: type[ServiceError]
    if is_no_capacity(code, message):
        cls = NoCapacityError
    elif is_endpoint_not_found(code, message):
        cls = EndpointNotFoundError
    elif cause == "throttling":
        cls = ThrottlingError
    else:
        cls = ServiceError if known is None else known.error_class
    return cls(response, operation, cause=cause, retry_after=parse_retry_after(headers.get("x-amz-retry-after")))


def _openai_refusal(
    status: int, headers: dict[str, str], body: bytes, operation: str, attempts: int, skew: float | None
) -> ServiceError:
    # needed by this route alone
    from aiosmrt._wire.openai_route import openai_failure, retry_after_of, says_no_capacity

    response = openai_failure(status, headers, body, attempts)
    code, message = response["Error"]["Code"], response["Error"]["Message"]
    cause = classify(status, code, skew=skew)
    known = ERROR_CODES.get(code)
    cls: type[ServiceError]
    if says_no_capacity(status, message):
        cls = NoCapacityError
    elif status in (400, 404) and is_endpoint_not_found("ValidationError", message):
        cls = EndpointNotFoundError
    elif cause == "throttling":
        cls = ThrottlingError
    else:
        cls = ServiceError if known is None else known.error_class
    retry_after = parse_retry_after(headers.get("x-amz-retry-after"))
    return cls(
        response,
        operation,
        cause=cause,
        retry_after=retry_after_of(headers) if retry_after is None else retry_after,
    )


def stream_error(headers: EventHeaders, payload: bytes, operation: str) -> ServiceError:
    """The error for an ``exception`` or ``error`` message of a stream.

    Args:
        headers: the message's headers.
        payload: its payload.
        operation: the API operation.
    """
    response: dict[str, Any] = stream_failure(headers.message_type or "", headers.exception_type, headers, payload)
    code = response["Error"]["Code"]
    cause: Cause = classify(200, code)
    # As with a read timeout, the model has had its time: another request would only double its load.
    if code == ModelStreamError.__name__ and response.get("ErrorCode") == "ModelInvocationTimeExceeded":
        cause = "model"
    known = ERROR_CODES.get(code)
    if known is None or not issubclass(known.error_class, EventStreamError):
        return EventStreamError(response, operation, cause=cause)
    return known.error_class(response, operation, cause=cause)


def concerns_every_call(error: BaseException) -> bool:
    """Tell whether calls to the same endpoint with the same client will all fail like this one.

    Refused credentials or signatures, an endpoint that does not exist, no credentials or region, a certificate that
    does not verify, a closed client, an S3 that refuses or fails: no trait of what the call sent.

    Args:
        error: what a call raised.

    >>> concerns_every_call(ClientStateError("the client is closed"))
    True
    """
    if isinstance(error, (ClientStateError, ConfigurationError, EndpointNotFoundError, ObjectStoreError)):
        return True
    if isinstance(error, SSLError) and error.cause == "none":
        return True
    if isinstance(error, ServiceError):
        return error.code in _CALLER_CODES or (error.cause == "none" and error.status in _REFUSES_THE_CALLER)
    return isinstance(error, TransportError) and error.cause == "connection" and error.never_reached
