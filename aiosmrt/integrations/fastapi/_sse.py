"""A response of server-sent events, made from a stream."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, overload

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from aiosmrt._frames import clear_locals
from aiosmrt._wire.decoders.event import ServerSentEvent
from aiosmrt.config import faulty_limits
from aiosmrt.endpoint import PredictionStream
from aiosmrt.errors import AiosmrtError, ParamValidationError
from aiosmrt.integrations.fastapi._disconnect import CancelWhenDone, ClientDisconnectedError, wait_for_disconnect
from aiosmrt.integrations.fastapi._encoding import COMMENT, EventEncoder
from aiosmrt.integrations.fastapi._errors import INTERNAL_ERROR, exception_handler_for, http_exception, log_failure
from aiosmrt.serializers import JSON

__all__ = ["SSEResponse", "sse_response"]

T = TypeVar("T")


@overload
def sse_response(
    stream: PredictionStream,
    view: Callable[[PredictionStream], AsyncIterable[Any]] | None = None,
    *,
    heartbeat: float | None = None,
    on_error: Callable[[Exception], Any] | None = None,
) -> "SSEResponse": ...
@overload
def sse_response(
    stream: AsyncIterable[Any],
    *,
    heartbeat: float | None = None,
    on_error: Callable[[Exception], Any] | None = None,
) -> "SSEResponse": ...
def sse_response(
    stream: PredictionStream | AsyncIterable[Any],
    view: Callable[[PredictionStream], AsyncIterable[Any]] | None = None,
    *,
    heartbeat: float | None = None,
    on_error: Callable[[Exception], Any] | None = None,
) -> "SSEResponse":
    """Respond with server-sent events, one for each item of a stream.

    ::

        return sse_response(endpoint.stream(data), PredictionStream.jsonl, heartbeat=15.0)

    A ``str`` is the data of an event, a `ServerSentEvent` is an event, and any other value becomes JSON. Every line end
    in the data of an event arrives as LF; send text as JSON to preserve it. In JSON, NaN and infinities become null.

    An error before the first event is raised if the application has an exception handler for it; otherwise it becomes
    the response of `http_exception`. A later error is the last event, of type ``error``, with data such as
    ``{"type": "ModelStreamError"}``. A caller that disconnects ends the stream at once.

    Args:
        stream: an endpoint's stream that was not entered yet, or any asynchronous iterable.
        view: makes the items of an endpoint's stream: a view, such as ``PredictionStream.sse``, or an async generator
            function that takes the stream and iterates over one of its views. Defaults to ``PredictionStream.text``.
        heartbeat: seconds without an event after which a comment is sent, which keeps proxies from closing a silent
            connection. If None, no comments are sent. The first comment starts the response, so that a later error is
            an event.
        on_error: makes the last event from an error after the response has started: a function, or a coroutine
            function, that takes the exception and returns an item to send, or None to send nothing. Unlike the default,
            it may tell the caller more than the error's class. The application's own faults are raised after it.

    Raises:
        ParamValidationError: ``stream`` is not a stream, ``view`` is given without an endpoint's stream, ``heartbeat``
            is not a positive number of seconds, or ``on_error`` is not callable.
    """
    if isinstance(stream, PredictionStream):
        stream = _items(stream, view or PredictionStream.text)
    elif view is not None:
        raise ParamValidationError([f"view requires the stream of an endpoint; got {type(stream)}"])
    return SSEResponse(stream, heartbeat=heartbeat, on_error=on_error)


class SSEResponse(StreamingResponse):
    """A response of server-sent events; see `sse_response`.

    Args:
        items: the items to send.
        heartbeat: seconds without an event after which a comment is sent. If None, no comments are sent.
        on_error: makes the last event from an error. Defaults to an event of type ``error`` with the error's class.

    Raises:
        ParamValidationError: ``items`` is not an asynchronous iterable, ``heartbeat`` is not a positive number of
            seconds, or ``on_error`` is not callable.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        items: AsyncIterable[Any],
        *,
        heartbeat: float | None = None,
        on_error: Callable[[Exception], Any] | None = None,
    ) -> None:
        faults = faulty_limits(heartbeat=heartbeat)
        if not isinstance(items, AsyncIterable):
            faults.append(f"stream must be an endpoint's stream or an asynchronous iterable; got {type(items)}")
        if on_error is not None and not callable(on_error):
            faults.append(f"on_error must be callable; got {type(on_error)}")
        if faults:
            raise ParamValidationError(faults)
        self._on_error = on_error
        self._events = _encoded(items)
        self._heartbeat = heartbeat
        # The second header keeps nginx from buffering the response.
        super().__init__(self._events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            HTTPException: the stream failed, or the caller disconnected, before the response started.
            Exception: the stream failed before the response started and the application has a handler for that error,
                or the failure is the application's own.
        """
        writer = _Writer(send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        companions = [wait_for_disconnect(receive)]
        if self._heartbeat is not None:
            companions.append(writer.send_comments(self._heartbeat))
        with suppress(ClientDisconnect):
            async with CancelWhenDone(*companions):
                await self._send_events(writer, scope)
        if not writer.started:
            raise ClientDisconnectedError
        if self.background is not None:
            await self.background()

    async def _send_events(self, writer: "_Writer", scope: Scope) -> None:
        try:
            async with _closing(self._events) as events:
                async for event in events:
                    await writer.write(event)
                    # Neither buffered events nor a server that drops them yield to the loop, which must get to see a
                    # disconnect.
                    await asyncio.sleep(0)
        except ClientDisconnect:
            raise
        except BaseException as error:
            # Error reports show the values of local variables.
            event = b""
            clear_locals(error)
            if not isinstance(error, Exception):
                raise
            await self._handle(error, writer, scope)
        await writer.write(b"", more=False)

    async def _handle(self, error: Exception, writer: "_Writer", scope: Scope) -> None:
        """Send an error as the last event; raise it if the response has not started or must not end cleanly."""
        try:
            if not isinstance(error, AiosmrtError) or http_exception(error).status_code == 500:
                if writer.started:
                    await self._send_error(error, INTERNAL_ERROR, writer)
                raise error
            answer = http_exception(error)
            if writer.started:
                # First, because a disconnect may cancel the rest.
                log_failure(error, "answered with an error event")
                await self._send_error(error, answer.detail, writer)
            elif exception_handler_for(scope, error) is not None:
                raise error
            else:
                log_failure(error, f"answered with {answer.status_code}")
                raise answer from error
        finally:
            del error

    async def _send_error(self, error: Exception, detail: str, writer: "_Writer") -> None:
        item: Any = None
        try:
            if self._on_error is None:
                event = _error_event(detail)
            else:
                item = self._on_error(error)
                if inspect.isawaitable(item):
                    item = await item
                if item is None:
                    return
                event = EventEncoder().encode(item)
        except Exception as failure:
            del error
            item = None
            clear_locals(failure)
            with suppress(ClientDisconnect):
                await writer.write(_error_event(INTERNAL_ERROR))
            raise
        # The error counts even if its event cannot be sent.
        with suppress(ClientDisconnect):
            await writer.write(event)


def _error_event(detail: str) -> bytes:
    data = JSON.serialize({"type": detail}).decode()
    return EventEncoder().encode(ServerSentEvent(event="error", data=data))


async def _items(
    stream: PredictionStream, view: Callable[[PredictionStream], AsyncIterable[Any]]
) -> AsyncGenerator[Any, None]:
    async with stream, _closing(view(stream)) as items:
        async for item in items:
            yield item


async def _encoded(items: AsyncIterable[Any]) -> AsyncGenerator[bytes, None]:
    encoder = EventEncoder()
    async with _closing(items) as iterator:
        async for item in iterator:
            yield encoder.encode(item)


@asynccontextmanager
async def _closing(items: AsyncIterable[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Iterate, and close the iterator at the end if it is a generator, which may hold resources when left early."""
    iterator = aiter(items)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


class _Writer:
    """Writes the body of a response, and its head before the first chunk.

    Args:
        send: the server's callable.
        head: the message with status and headers.

    Attributes:
        started: whether the head was sent.
    """

    def __init__(self, send: Send, head: Message) -> None:
        self.started = False
        self._send = send
        self._head = head
        self._clock = asyncio.get_running_loop().time
        self._written_at = self._clock()
        self._lock = asyncio.Lock()

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """Send a chunk of the body.

        Args:
            body: the chunk.
            more: whether more chunks follow.

        Raises:
            ClientDisconnect: the server reports that the caller has disconnected.
        """
        async with self._lock:
            try:
                if not self.started:
                    self.started = True
                    await self._send(self._head)
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
            except OSError:
                raise ClientDisconnect from None
            self._written_at = self._clock()

    async def send_comments(self, interval: float) -> None:
        """Send a comment after each interval, in seconds, without a write; return when the caller has disconnected."""
        with suppress(ClientDisconnect):
            while True:
                due = self._written_at + interval - self._clock()
                if due > 0:
                    await asyncio.sleep(due)
                else:
                    await self.write(COMMENT)
