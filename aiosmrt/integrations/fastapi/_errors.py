"""Errors as HTTP statuses, and the exception handlers of an application."""

import inspect
import logging
import math
import re
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

from fastapi.exception_handlers import http_exception_handler
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from aiosmrt.errors import (
    AiosmrtError,
    DeserializationError,
    EventStreamError,
    EventStreamFormatError,
    InternalDependencyException,
    InternalFailure,
    JobFailedError,
    ModelError,
    ModelNotReadyException,
    ModelStreamError,
    NoCapacityError,
    ObjectStoreError,
    ServiceError,
    ServiceUnavailable,
    SessionClosedError,
    ThrottlingError,
    TooManyFailuresError,
    TooManyWaitingError,
    TransportError,
)

__all__ = ["INTERNAL_ERROR", "exception_handler_for", "http_exception", "install_exception_handlers", "log_failure"]

# The name of the package is the name of its logger.
_logger = logging.getLogger(__name__.rpartition(".")[0])

# What json, str.encode and pydantic report for values that a JSON response cannot contain.
_NOT_JSON: Final = re.compile(
    r"^Out of range float values are not JSON compliant|\bsurrogates not allowed$|\bserialization depth exceeded$"
)

# Modules that make a response from what a handler returns.
_WRITERS: Final = frozenset({"fastapi.encoders", "starlette.datastructures", "starlette.responses"})

_Handler: TypeAlias = Callable[[Any, Any], Response | Awaitable[Response]]

INTERNAL_ERROR: Final = "InternalServerError"

_STATUSES: Final[tuple[tuple[int, tuple[type[BaseException], ...]], ...]] = (
    (429, (ThrottlingError,)),
    (503, (ModelNotReadyException, NoCapacityError, ServiceUnavailable, TooManyWaitingError)),
    (504, (TimeoutError,)),
    (410, (SessionClosedError,)),
    (502, (ModelError, InternalFailure, InternalDependencyException, EventStreamError, JobFailedError)),
    (502, (TransportError, EventStreamFormatError, DeserializationError, ObjectStoreError, TooManyFailuresError)),
)


def http_exception(error: AiosmrtError) -> HTTPException:
    """Map an error to the response for the caller of the application: a status, with the error's class as the detail.

    ===  ==================================================================================
    429  `ThrottlingError`, or the container's own 429; with ``Retry-After``
    503  `ModelNotReadyException`, `NoCapacityError`, `ServiceUnavailable`, a gateway's or the container's own 503, and
         `TooManyWaitingError` when ``max_waiting`` sheds load; with ``Retry-After``
    504  timeouts, including a model that exceeds SageMaker's limits
    410  `SessionClosedError`
    502  the model, the service or the network failed, a map had too many failures, or a response was malformed
    500  the application's own fault: invalid requests, configuration, permissions
    ===  ==================================================================================

    Args:
        error: the error.

    >>> from aiosmrt.errors import EndpointConnectionError
    >>> response = http_exception(EndpointConnectionError("Could not connect to the endpoint URL"))
    >>> response.status_code, response.detail
    (502, 'EndpointConnectionError')
    """
    status = _status(error)
    if status == 500:
        return HTTPException(status, INTERNAL_ERROR)
    headers = None
    if status in (429, 503):
        # An integer (RFC 9110, section 10.2.3). Without the service's hint, the delay that AWS's SDKs start with.
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after or 1)))}
    return HTTPException(status, type(error).__name__, headers)


def _status(error: AiosmrtError) -> int:
    if isinstance(error, (ModelError, EventStreamError)):
        # "Come back later" from the container reaches the caller as such; its other statuses concern this application.
        container_status = error.response.get("OriginalStatusCode")
        if container_status in (429, 503):
            return cast("int", container_status)
        if container_status == 0:
            return 504
    if isinstance(error, EventStreamError):
        # The service's own refusals, inside a stream whose status was 200.
        if error.throttling:
            return 429
        if error.cause == "model_not_ready" or error.code.startswith(ServiceUnavailable.__name__):
            return 503
    if isinstance(error, ModelStreamError) and error.error_code == "ModelInvocationTimeExceeded":
        return 504
    for status, classes in _STATUSES:
        if isinstance(error, classes):
            return status
    if isinstance(error, ServiceError) and error.status is not None and error.status >= 500:
        # The service model does not name it: it comes from a gateway in front of the service.
        return error.status if error.status in (503, 504) else 502
    return 500


def install_exception_handlers(app: Starlette) -> None:
    """Make an application answer with `http_exception` when a handler raises an `AiosmrtError`.

    The responses have the format of the application's own handlers for HTTP exceptions, if it has any. Its handlers for
    more specific errors, such as `ModelError`, and for other classes that these errors are, such as botocore's
    ``ClientError`` and ``TimeoutError``, take precedence. The application's own faults stay unhandled exceptions,
    which the server logs with a traceback.

    A handler that returns what a model sent may return NaN, an infinity or a lone surrogate, which a JSON response
    cannot contain, more levels of lists than FastAPI writes, or a header, such as ``CustomAttributes``, with characters
    that headers lack. Starlette raises a `ValueError` or a `RecursionError` for it; the caller gets 502, as for any
    malformed model output, and the log has the traceback. An application with its own handler for `ValueError`,
    `RecursionError` or `RuntimeError` keeps that one.

    Args:
        app: the application.
    """

    async def handle(connection: Request, error: Exception) -> Response:
        # A WebSocket cannot be answered with a status.
        if not isinstance(error, AiosmrtError) or connection.scope["type"] != "http":
            raise error
        if (own := _handler_of_another_base(connection.scope, error)) is not None:
            return await _called(own, connection, error)
        answer = http_exception(error)
        if answer.status_code == 500:
            raise error
        log_failure(error, f"answered with {answer.status_code}")
        return await _respond(connection, answer)

    async def handle_value_error(connection: Request, error: Exception) -> Response:
        unencodable = isinstance(error, UnicodeEncodeError) and _is_raised_by_a_writer(error)
        if connection.scope["type"] != "http" or not (unencodable or _NOT_JSON.search(str(error))):
            raise error
        return await respond_with_502(connection, error)

    async def handle_recursion_error(connection: Request, error: Exception) -> Response:
        if (own := _handler_of_class(connection.scope, RuntimeError)) is not None:
            return await _called(own, connection, error)
        if connection.scope["type"] != "http" or not _is_raised_by_a_writer(error):
            raise error
        return await respond_with_502(connection, error)

    async def respond_with_502(connection: Request, error: Exception) -> Response:
        answer = http_exception(DeserializationError("a value cannot be expressed in a response"))
        _logger.error("a value cannot be expressed in a response, answered with %d", answer.status_code, exc_info=error)
        return await _respond(connection, answer)

    app.add_exception_handler(AiosmrtError, handle)
    app.exception_handlers.setdefault(ValueError, handle_value_error)
    app.exception_handlers.setdefault(RecursionError, handle_recursion_error)


def _is_raised_by_a_writer(error: Exception) -> bool:
    """Return whether an error was raised while a response was made from what a handler returned."""
    return any(frame.f_globals.get("__name__") in _WRITERS for frame, _ in traceback.walk_tb(error.__traceback__))


def exception_handler_for(scope: Scope, error: Exception) -> _Handler | None:
    """Return the exception handler that Starlette would call for an error of this request, or None.

    That is one for ``Exception`` or 500 where no other handles the error.
    """
    by_status = scope.get("starlette.exception_handlers", ({}, {}))[1]
    if isinstance(error, HTTPException) and error.status_code in by_status:
        return by_status[error.status_code]  # type: ignore[no-any-return]
    if (handler := _handler_of_class(scope, type(error))) is not None:
        return handler
    # Starlette keeps these apart, for a middleware outside all others.
    own = getattr(scope.get("app"), "exception_handlers", {})
    return own.get(500) or own.get(Exception)


def _handler_of_class(scope: Scope, error_class: type[BaseException]) -> _Handler | None:
    """The handler for a class or one of its bases other than ``Exception``."""
    by_class: dict[type[BaseException], _Handler] = scope.get("starlette.exception_handlers", ({}, {}))[0]
    return next((by_class[cls] for cls in error_class.__mro__ if cls in by_class), None)


def _handler_of_another_base(scope: Scope, error: AiosmrtError) -> _Handler | None:
    """The application's handler for a class of botocore's that the error is too, or for timeouts.

    In the order of the error's bases, `AiosmrtError` comes first. Handlers for ``ValueError`` or ``RuntimeError`` are
    about the application's own errors, or a caller's.
    """
    by_class = scope["starlette.exception_handlers"][0]
    bases = [cls for cls in type(error).__mro__ if cls.__module__ == "botocore.exceptions" or cls is TimeoutError]
    return next((by_class[cls] for cls in bases if cls in by_class), None)


async def _respond(connection: Request, answer: HTTPException) -> Response:
    """Build the response in the application's format for HTTP exceptions."""
    return await _called(exception_handler_for(connection.scope, answer) or http_exception_handler, connection, answer)


async def _called(handler: _Handler, connection: Request, error: Exception) -> Response:
    if inspect.iscoroutinefunction(handler):
        return await handler(connection, error)  # type: ignore[no-any-return]
    response = await run_in_threadpool(handler, connection, error)
    return await response if inspect.isawaitable(response) else response


def log_failure(error: AiosmrtError, outcome: str) -> None:
    """Log an error, without its message, which may quote the model.

    Args:
        error: the error.
        outcome: how the application responded.
    """
    _logger.warning(
        "%s to %s failed (%s, request id %s), %s",
        *(error.operation, error.endpoint_name, type(error).__name__, error.request_id, outcome),
    )
