"""Errors as an OpenAI client knows them: responses with an error's JSON, and errors of the SDK's own.

A response makes the SDK raise its error for that status, with the message in it. A failure without one, such as a
deadline or a lost connection, is raised here as the SDK's error, because the SDK replaces the message of any other.

Every response says ``x-should-retry: false``: the client has made its retries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil
from typing import Any, Final

import httpx2
import openai

from aiosmrt._frames import clear_locals
from aiosmrt.errors import (
    AiosmrtError,
    ConnectTimeoutError,
    DeadlineExceededError,
    EndpointNotFoundError,
    EventStreamError,
    EventStreamFormatError,
    ModelError,
    ModelNotReadyException,
    NoCapacityError,
    ParamValidationError,
    ReadTimeoutError,
    ServiceError,
    ThrottlingError,
    TooManyWaitingError,
    TransportError,
)
from aiosmrt.integrations.openai._requests import Refusal

__all__ = ["answer_for", "envelope", "envelope_of", "refusal_answer", "stream_failure"]

_TOO_MANY_REQUESTS: Final = 429
_BAD_GATEWAY: Final = 502
_UNAVAILABLE: Final = 503
_TIMEOUTS: Final = (DeadlineExceededError, ReadTimeoutError, ConnectTimeoutError)


def answer_for(error: AiosmrtError, request: httpx2.Request) -> httpx2.Response:
    """The response that stands for a call's error.

    Args:
        error: what the call raised.
        request: the request.

    Raises:
        openai.APITimeoutError: the call did not finish in time.
        openai.APIConnectionError: no usable answer came.
        AiosmrtError: the error itself, if it is the program's: a closed client, no region, no credentials.
    """
    status, code, message = _facts(error, request)
    if isinstance(error, ServiceError) and "OpenAI" in error.response:
        return _response(status, {"error": error.response["OpenAI"]}, request, error)
    if isinstance(error, ModelError):
        original = error.original_message or ""
        if (document := envelope(original)) is not None:
            return _response(status, document, request, error)
        message = original or message
    return _response(status, {"error": _error(code, message)}, request, error)


def refusal_answer(refusal: Refusal, request: httpx2.Request) -> httpx2.Response:
    """The response to a request that was not sent."""
    document = {"error": _error(refusal.code, refusal.message, refusal.param)}
    return _response(refusal.status, document, request)


def stream_failure(error: AiosmrtError, request: httpx2.Request) -> openai.OpenAIError | AiosmrtError:
    """The SDK's error for one inside a stream, with that as its cause; to be raised.

    Args:
        error: what reading the stream raised.
        request: the request.
    """
    failure: openai.OpenAIError
    if isinstance(error, _TIMEOUTS):
        failure = openai.APITimeoutError(request)
        _say(failure, str(error))
    elif isinstance(error, (TransportError, EventStreamFormatError)):
        failure = openai.APIConnectionError(message=str(error), request=request)
    elif isinstance(error, EventStreamError):
        message = error.message or str(error)
        code = getattr(error, "error_code", None) or error.code
        failure = openai.APIError(message, request, body=_error(code, message))
    else:
        clear_locals(error)
        return error
    clear_locals(error)
    failure.__cause__ = error
    return failure


def _facts(error: AiosmrtError, request: httpx2.Request) -> tuple[int, str, str]:
    """Status, code and message; raises the SDK's error for a failure without a status."""
    if isinstance(error, ServiceError):
        return _status(error), error.code, error.message or str(error)
    if isinstance(error, ParamValidationError):
        return 400, "invalid_request_error", str(error)
    if isinstance(error, TooManyWaitingError):
        return _TOO_MANY_REQUESTS, "too_many_waiting", str(error)
    failure = stream_failure(error, request)
    try:
        raise failure
    finally:
        del error, failure


def _status(error: ServiceError) -> int:
    if isinstance(error, ModelError):
        # Below 400: it did not answer, or not in time (0), or with something else than a response.
        original = error.original_status_code or 0
        return original if original >= 400 else _BAD_GATEWAY
    if isinstance(error, (NoCapacityError, ModelNotReadyException)):
        return _UNAVAILABLE
    if isinstance(error, ThrottlingError):
        return _TOO_MANY_REQUESTS
    if isinstance(error, EndpointNotFoundError):
        return 404
    status = error.status or 0
    return status if status >= 400 else 500


def envelope(text: str | bytes) -> dict[str, Any] | None:
    """The error of a container in OpenAI's form, if its body, or a line of it, can be read as one.

    >>> envelope('{"error": {"message": "too long", "type": "BadRequestError", "param": null, "code": 400}}')
    {'error': {'message': 'too long', 'type': 'BadRequestError', 'param': None, 'code': 400}}
    >>> envelope('{"object": "error", "message": "too long"}')
    {'error': {'object': 'error', 'message': 'too long'}}
    >>> envelope('{"error": "too long", "code": 400}')
    {'error': {'message': 'too long', 'type': None, 'code': 400}}
    >>> envelope("Internal Server Error") is None
    True
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return envelope_of(document)


def envelope_of(document: Any) -> dict[str, Any] | None:
    """The same of what was parsed.

    >>> envelope_of({"detail": "too long"}), envelope_of({"choices": [], "error": None})
    ({'error': {'message': 'too long', 'type': None, 'code': None}}, None)
    """
    if not isinstance(document, Mapping):
        return None
    error = document.get("error", document)
    if isinstance(error, Mapping) and isinstance(error.get("message"), str):
        return {"error": dict(error)}
    if isinstance(detail := document.get("detail"), str):  # FastAPI's
        return {"error": {"message": detail, "type": None, "code": None}}
    if isinstance(error, str) and error:
        return {"error": {"message": error, "type": document.get("error_type"), "code": document.get("code")}}
    return None


def _error(code: str, message: str, param: str | None = None) -> dict[str, str | None]:
    return {"message": message, "type": code, "param": param, "code": code}


def _response(
    status: int, document: dict[str, Any], request: httpx2.Request, error: AiosmrtError | None = None
) -> httpx2.Response:
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    if error is not None:
        if error.request_id is not None:
            headers["x-request-id"] = error.request_id
        if error.retry_after is not None or status in (_TOO_MANY_REQUESTS, _UNAVAILABLE):
            # In whole seconds (RFC 9110, 10.2.3). Without the service's hint, the delay that AWS's SDKs start with.
            headers["retry-after"] = str(max(1, ceil(error.retry_after or 1)))
    content = json.dumps(document).encode()
    headers["content-length"] = str(len(content))
    # As a stream, so that httpx2 reads it, which sets `elapsed`.
    return httpx2.Response(status, headers=headers, stream=httpx2.ByteStream(content), request=request)


def _say(failure: openai.APITimeoutError, message: str) -> None:
    """Give an error whose message is fixed one that says more."""
    failure.message = message
    failure.args = (message,)
