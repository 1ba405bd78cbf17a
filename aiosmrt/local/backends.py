"""Backends that serve invocations: an async Python callable, the URL of a model container, or a container to start.

All three follow SageMaker's container contract (``POST /invocations``, ``GET /ping``). Opening a backend for an
invocation yields a reply whose body is either complete or an iterator over the parts as they arrive; leaving the
context releases everything the invocation still holds. A backend reports only that a container failed, by
``ContainerFailure`` with its status (0 if it did not answer); what the caller sees is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import re
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, Self, cast, runtime_checkable
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_proto import ResponseHandler

from aiosmrt.errors import ConfigurationError
from aiosmrt.local.error_responses import PRIMARY, ErrorReply, model_not_ready, validation_error

__all__ = [
    "Backend",
    "BackendSource",
    "CallableBackend",
    "Container",
    "ContainerFailure",
    "ContainerReply",
    "Handler",
    "HandlerResult",
    "Invocation",
    "ModelTimeoutError",
    "Pipeline",
    "Route",
    "StreamMessage",
    "UrlBackend",
    "as_backend",
    "base_url",
    "handler_errors",
    "model_limit",
    "single",
    "whole_body",
]

logger: logging.Logger = logging.getLogger(__name__)

PING_TIMEOUT: Final = 2.0  # seconds, SageMaker's own limit for GET /ping
MAX_PIPELINE_BYTES: Final = 25 * 1024 * 1024  # between two containers; AWS's limit for the last one's response
MAX_ERROR_BYTES: Final = 64 * 1024  # more than enough of an error body for a message of 2,048 characters
_UNSENDABLE: Final = re.compile("[\x00-\x1f\x7f]")
CONTAINER_EXITED: Final = "An error occurred while handling request as the model process exited."


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message of a bidirectional stream, or a part of one.

    Args:
        data: its payload: a str for text, bytes for binary data.
        complete: whether the message ends here. Defaults to True.
    """

    data: bytes | str = field(repr=False)
    complete: bool = True


class _NoMessages:
    """The messages of any call but a bidirectional stream."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamMessage:
        raise StopAsyncIteration


NO_MESSAGES: Final = _NoMessages()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One call as a model container receives it.

    Args:
        body: the request's payload.
        headers: the headers that SageMaker passes on to a container, and no others.
        path: where the container is called: ``/invocations``, or ``/v1/chat/completions`` for calls of the OpenAI
            route.
        content_type: the payload's media type. None if the caller sent none.
        accept: the requested media type. None if the caller sent none.
        endpoint: the endpoint's name.
        variant: the production variant that was chosen.
        streaming: whether the response is sent as a response stream.
        custom_attributes: the caller's opaque value.
        target_model: the requested model of a multi-model endpoint.
        target_container_hostname: the requested container of a multi-container endpoint.
        inference_component: the requested inference component.
        inference_id: the caller's id for the inference.
        session_id: the session. For a new one, the id that the runtime assigns unless the callable names another.
        new_session: whether the caller asked for a new session.
        prefix_aware_id: the caller's hint for prefix-aware routing.
        enable_explanations: the caller's condition for explanations.
        messages: of a bidirectional stream, what the caller sends, until it ends its input; empty for other calls.
        model_path: of a bidirectional stream, the path at the container. None if the caller named none.
        model_query: of a bidirectional stream, the query at the container. None if the caller named none.
    """

    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    endpoint: str
    variant: str
    path: str = "/invocations"
    streaming: bool = False
    content_type: str | None = None
    accept: str | None = None
    custom_attributes: str | None = field(default=None, repr=False)
    target_model: str | None = None
    target_container_hostname: str | None = None
    inference_component: str | None = None
    inference_id: str | None = None
    session_id: str | None = None
    new_session: bool = False
    prefix_aware_id: str | None = None
    enable_explanations: str | None = None
    messages: AsyncIterator[StreamMessage] = field(default=NO_MESSAGES, repr=False)
    model_path: str | None = None
    model_query: str | None = field(default=None, repr=False)


class ContainerFailure(Exception):
    """The container failed. An async callable raises it to fail like a container.

    Args:
        status: the HTTP status, other than 2xx; 0 for a container that did not answer.
        message: the error's text, which the caller sees as ``OriginalMessage``. Defaults to an empty string.
    """

    container: str | None = None
    """The hostname of the container that failed, in a pipeline of several."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"container status {self.status}"


@dataclass(frozen=True, slots=True)
class ContainerReply:
    """A container's response with status 2xx.

    Args:
        headers: the response headers, with names in lower case.
        body: the complete body, or an iterator over its parts as they arrive.
    """

    headers: Mapping[str, str]
    body: bytes | AsyncIterator[bytes] = field(repr=False)


Body = bytes | bytearray | memoryview | str | AsyncIterator[bytes]
HandlerResult = Body | tuple[Body, Mapping[str, str]]
StreamHandler = Callable[[Invocation], AsyncIterator[StreamMessage | str | bytes]]
"""Answers a bidirectional stream: an async generator function."""
Handler = Callable[[Invocation], Awaitable[HandlerResult] | HandlerResult] | StreamHandler


class Backend(Protocol):
    """Something that serves invocations."""

    @property
    def makes_sessions(self) -> bool:
        """Whether the runtime creates the session if the reply to ``NEW_SESSION`` does not announce one."""
        ...

    def open(self, invocation: Invocation) -> AbstractAsyncContextManager[ContainerReply]:
        """Send an invocation to the backend.

        Raises:
            ContainerFailure: the container failed, on entering or while the body is iterated.
            ErrorReply: on entering: the container is not ready.
        """
        ...

    def converse(self, invocation: Invocation) -> AbstractAsyncContextManager[AsyncIterator[StreamMessage]]:
        """Have the backend answer a bidirectional stream.

        Raises:
            ContainerFailure: the container failed, on entering or while its messages are iterated.
            ErrorReply: on entering: the container is not ready.
        """
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """The backend that serves a call.

    Args:
        variant: the production variant's name.
        backend: serves the call.
        inference_component: the inference component's name. Defaults to none.
        container: the container's hostname on a multi-container endpoint. Defaults to none.
    """

    variant: str
    backend: Backend
    inference_component: str | None = None
    container: str | None = None


@runtime_checkable
class Container(Protocol):
    """A model container that the runtime starts and stops, such as ``ModelContainer``."""

    @property
    def url(self) -> str:
        """The base URL of the container once it has started."""
        ...

    @property
    def running(self) -> bool:
        """Whether the container's process is running."""
        ...

    async def start(self) -> None:
        """Start the container and return when it answers its pings."""
        ...

    async def stop(self) -> None:
        """Stop the container and every process that it started."""
        ...


BackendSource = Handler | str | Container


class CallableBackend:
    """An async Python callable as a model container.

    Args:
        handler: takes an ``Invocation`` and returns bytes, text, or an async iterator of bytes for a response in
            parts, optionally in a tuple with a mapping of response headers (``Content-Type``, custom attributes,
            session headers). An async generator function works too. It raises ``ContainerFailure`` to fail like a
            container; any other exception is logged (its type and location) and becomes a container's 500.
    """

    makes_sessions = True

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def __repr__(self) -> str:
        return f"<CallableBackend {getattr(self._handler, '__qualname__', type(self._handler).__name__)}>"

    @asynccontextmanager
    async def open(self, invocation: Invocation) -> AsyncIterator[ContainerReply]:
        """Call the handler; a response in parts starts once its first part is available."""
        with handler_errors():
            result: object = self._handler(invocation)
            if inspect.isawaitable(result):
                result = await result
            body, headers = _unpack(result)
        if isinstance(body, bytes):
            yield ContainerReply(headers, body)
            return
        try:
            with handler_errors():
                first = await anext(body, None)
            async with aclosing(_in_parts(first, body)) as parts:
                yield ContainerReply(headers, parts)
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    def converse(self, invocation: Invocation) -> AbstractAsyncContextManager[AsyncIterator[StreamMessage]]:
        """Call the handler, which must be an async generator function."""
        from aiosmrt.local.conversation import call_handler

        return call_handler(self._handler, invocation)


def _unpack(result: object) -> tuple[bytes | AsyncIterator[bytes], dict[str, str]]:
    headers: dict[str, str] = {}
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        result, given = result
        headers = {str(name).lower(): str(value) for name, value in given.items()}
        if any(_UNSENDABLE.search(text) for header in headers.items() for text in header):
            raise ValueError("a response header contains a control character")
    if isinstance(result, AsyncIterator):
        return result, headers
    return _as_bytes(result), headers


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise TypeError(
        "a handler must return bytes, text or an async iterator of bytes, optionally with a mapping of headers; "
        f"got {type(value).__name__}"
    )


async def _in_parts(first: object, rest: AsyncIterator[object]) -> AsyncGenerator[bytes, None]:
    if first is None:
        return
    with handler_errors():
        yield _as_bytes(first)
        async for part in rest:
            yield _as_bytes(part)


@contextmanager
def handler_errors() -> Iterator[None]:
    """Turn a handler's own exceptions into a container's 500, as a serving toolkit does."""
    try:
        yield
    except (ContainerFailure, GeneratorExit):
        raise
    except Exception as error:
        # The text goes to the caller, like a container's, but not into the log: it may quote the payload.
        where = traceback.extract_tb(error.__traceback__)[-1]
        logger.error(  # noqa: TRY400 - a traceback would quote the payload too
            "The handler of a local endpoint failed: %s at %s:%s", type(error).__name__, where.filename, where.lineno
        )
        raise ContainerFailure(500, f"{type(error).__name__}: {error}") from error


class ModelTimeoutError(Exception):
    """The time for a model's answer is over."""


@asynccontextmanager
async def model_limit(at: float | None) -> AsyncIterator[asyncio.Timeout]:
    """Limit the time of what a model does; yields the limit, which can be moved.

    Args:
        at: when its time is over, by the loop's clock. If None, not yet.

    Raises:
        ModelTimeoutError: the time is over. A TimeoutError of another origin is passed on.
    """
    limit = asyncio.timeout_at(at)
    try:
        async with limit:
            yield limit
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ModelTimeoutError from error


class UrlBackend:
    """A model container that is reached over HTTP.

    The container must answer ``GET /ping`` with 200 once before its first invocation, and again after a lost
    connection; until then callers get ModelNotReadyException.

    Args:
        url: where it listens, ``http://host:port`` with an optional path, or a function that returns it, or None while
            the container is not running.
        session: returns the runtime's HTTP session.

    Raises:
        ConfigurationError: not an HTTP URL.
    """

    makes_sessions = False

    def __init__(self, url: str | Callable[[], str | None], session: Callable[[], aiohttp.ClientSession]) -> None:
        self._url = (lambda: base_url(url)) if isinstance(url, str) else url
        if isinstance(url, str):
            base_url(url)
        self._session = session
        self._ready_at: str | None = None

    def __repr__(self) -> str:
        return f"<UrlBackend {self._url()}>"

    async def _ready(self) -> str:
        """Return the container's base URL if it has answered a ping.

        Raises:
            ErrorReply: the container did not answer a ping with 200.
        """
        url = self._url()
        if url is None:
            raise ErrorReply(model_not_ready())
        if url != self._ready_at:
            try:
                async with self._session().get(
                    f"{url}/ping", timeout=aiohttp.ClientTimeout(total=PING_TIMEOUT), allow_redirects=False
                ) as response:
                    ready = response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                ready = False
            if not ready:
                raise ErrorReply(model_not_ready())
            self._ready_at = url
        return url

    @asynccontextmanager
    async def open(self, invocation: Invocation) -> AsyncIterator[ContainerReply]:
        """Post the invocation to the container."""
        url = await self._ready()
        try:
            response = await self._session().post(
                f"{url}{invocation.path}",
                data=io.BytesIO(invocation.body),  # written in chunks, so that other requests make progress
                headers=invocation.headers,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                allow_redirects=False,
            )
        except aiohttp.ClientError as error:
            self._ready_at = None
            raise ContainerFailure(0, CONTAINER_EXITED) from error
        try:
            if not 200 <= response.status < 300:
                raise ContainerFailure(response.status, await _error_text(response))
            headers = {name.lower(): value for name, value in response.headers.items()}
            # A body without a length ends with the connection, and aiohttp takes a reset for such an end.
            ends_with_connection = "content-length" not in headers and "transfer-encoding" not in headers
            protocol = response.connection.protocol if ends_with_connection and response.connection else None
            async with aclosing(_arriving(response, protocol)) as parts:
                yield ContainerReply(headers, parts)
        finally:
            response.close() if not response.content.at_eof() else response.release()

    @asynccontextmanager
    async def converse(self, invocation: Invocation) -> AsyncIterator[AsyncIterator[StreamMessage]]:
        """Connect to the container's WebSocket."""
        from aiosmrt.local.conversation import call_websocket

        async with call_websocket(await self._ready(), invocation) as messages:
            yield messages


async def _arriving(response: aiohttp.ClientResponse, protocol: ResponseHandler | None) -> AsyncGenerator[bytes, None]:
    """The body's parts.

    Args:
        response: the container's response.
        protocol: its connection's, if that ends the body.
    """
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except aiohttp.ClientError as error:
        raise ContainerFailure(0, CONTAINER_EXITED) from error
    if protocol is not None and isinstance(protocol.exception(), OSError):
        raise ContainerFailure(0, CONTAINER_EXITED)


async def _error_text(response: aiohttp.ClientResponse) -> str:
    """The first `MAX_ERROR_BYTES` of an error response, as far as they arrive."""
    text = bytearray()
    # If the body breaks off, the status is still the container's answer.
    with suppress(aiohttp.ClientError):
        while len(text) < MAX_ERROR_BYTES and (chunk := await response.content.read(MAX_ERROR_BYTES - len(text))):
            text += chunk
    return text.decode("utf-8", "replace")


async def whole_body(body: bytes | AsyncIterator[bytes], max_bytes: int, container: str | None = None) -> bytes:
    """Collect a container's response body.

    Args:
        body: the complete body, or an iterator over its parts.
        max_bytes: the size limit in bytes.
        container: the container's hostname. If None, ``primary``.

    Raises:
        ContainerFailure: the body exceeds the limit, or the container failed while sending it.
    """
    # AWS documents the limit but not the error; the wording is ours.
    too_large = f"The response from container {container or PRIMARY} exceeded the limit of {max_bytes} bytes."
    if isinstance(body, bytes):
        if len(body) > max_bytes:
            raise ContainerFailure(0, too_large)
        return body
    collected = bytearray()
    async for part in body:
        if len(collected) + len(part) > max_bytes:
            raise ContainerFailure(0, too_large)
        collected += part
    return bytes(collected)


class Pipeline:
    """Containers in serial invocation mode: each gets the response of the one before it, the first one the request.

    Args:
        stages: the containers by hostname, in their order.
    """

    makes_sessions: bool = False

    def __init__(self, stages: Mapping[str, Backend]) -> None:
        self._stages = stages

    def __repr__(self) -> str:
        return f"<Pipeline {list(self._stages)}>"

    @asynccontextmanager
    async def open(self, invocation: Invocation) -> AsyncIterator[ContainerReply]:
        """Send an invocation through all containers; the reply is the last one's.

        Raises:
            ContainerFailure: one of them failed; ``container`` says which.
            ErrorReply: one of them is not ready.
        """
        *earlier, (last_name, last) = self._stages.items()
        for hostname, backend in earlier:
            with _failing_in(hostname):
                async with backend.open(replace(invocation, streaming=False)) as reply:
                    body = await whole_body(reply.body, MAX_PIPELINE_BYTES, hostname)
            content_type = reply.headers.get("content-type")
            headers = {name: value for name, value in invocation.headers.items() if name.lower() != "content-type"}
            if content_type is not None:
                headers["Content-Type"] = content_type
            invocation = replace(invocation, body=body, content_type=content_type, headers=headers)
        with _failing_in(last_name):
            async with last.open(invocation) as reply:
                yield reply

    @asynccontextmanager
    async def converse(self, invocation: Invocation) -> AsyncIterator[AsyncIterator[StreamMessage]]:
        """Refuse a bidirectional stream; the wording is ours.

        Raises:
            ErrorReply: always.
        """
        raise ErrorReply(
            validation_error(f"Endpoint {invocation.endpoint} has several containers and no bidirectional streams.")
        )
        yield invocation.messages  # makes it a generator


@contextmanager
def _failing_in(hostname: str) -> Iterator[None]:
    try:
        yield
    except ContainerFailure as failure:
        failure.container = hostname
        raise


async def single(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a complete body as its only part."""
    yield body


def base_url(url: str) -> str:
    """Return the part of a container's URL before ``/invocations``.

    Raises:
        ConfigurationError: not an HTTP URL with a host.

    >>> base_url("http://127.0.0.1:8080/invocations")
    'http://127.0.0.1:8080'
    """
    parts = None
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if parts is None or not valid or parts.query or parts.fragment:
        raise ConfigurationError(f"a model container's URL must have the form http://host:port; got {url!r}")
    return url.rstrip("/").removesuffix("/invocations").rstrip("/")


def as_backend(source: Any, session: Callable[[], aiohttp.ClientSession]) -> Backend:
    """Return the backend for a callable, a URL or a container.

    Args:
        source: what the user configured.
        session: returns the runtime's HTTP session.

    Raises:
        ConfigurationError: the source is not one of these.
    """
    if isinstance(source, str):
        return UrlBackend(source, session)
    if isinstance(source, Container):
        container = source
        return UrlBackend(lambda: container.url if container.running else None, session)
    if callable(source):
        return CallableBackend(cast("Handler", source))
    raise ConfigurationError(
        "an endpoint must be an async callable, the URL of a model container or a ModelContainer; "
        f"got {type(source).__name__}"
    )
