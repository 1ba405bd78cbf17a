"""A response stream as text, lines, server-sent events or JSON values.

Parts are decoded in batches: those that have arrived since the last read are joined and passed to the view's decoder
(`aiosmrt._wire.decoders`) in one call. So a view costs less per part than reading the parts one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from aiosmrt._core.body import DeferredBody
from aiosmrt._core.deadline import OverdueError, within
from aiosmrt._core.response_bodies import EventStream, StreamTiming
from aiosmrt._frames import clear_locals
from aiosmrt._one_process import OneProcess
from aiosmrt._wire.decoders.base import StreamDecoder
from aiosmrt._wire.decoders.charset import TranscodingDecoder
from aiosmrt._wire.decoders.event import ServerSentEvent
from aiosmrt._wire.decoders.json import JSONDecoder, JSONLinesDecoder
from aiosmrt._wire.decoders.sse import SSEDecoder
from aiosmrt._wire.decoders.text import LineDecoder, TextDecoder
from aiosmrt._wire.operations import INVOKE_ENDPOINT_WITH_RESPONSE_STREAM
from aiosmrt.config import faulty_limits, shown
from aiosmrt.endpoint.protocols import Requester
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    DeserializationError,
    ParamValidationError,
    StreamTimeoutError,
)
from aiosmrt.serializers.codec import check_type, encoding_of_response

__all__ = ["PredictionStream", "TimeoutsCount", "View"]

TimeoutsCount: TypeAlias = Literal["parts", "values"]

_EVENTS: Final = "text/event-stream"

_UTF_8: Final = "utf-8"
# ASCII is part of it.
_LIKE_UTF_8: Final = (_UTF_8, "ascii")

T = TypeVar("T")
R = TypeVar("R")
# Inside a class with a method of that name, `bytes` is the method.
Payload: TypeAlias = bytes


class PredictionStream(OneProcess):
    """A model's answer as it arrives; made by `Endpoint.stream`, to be used with ``async with``.

    Iterate over one of its views, once. Leaving the block closes the connection at once, wherever the view is.

    Attributes, from when the block is entered:
        content_type: the answer's media type, if the model named one.
        variant: the production variant that answers, if the service named it.
        custom_attributes: the CustomAttributes that the model set, if any.
        request_id: the service's request id, if it sent one.
        attempts: how many requests were sent up to the response's head.
        left: whether the block has exited.
    """

    def __init__(
        self,
        client: Requester,
        body: Callable[[], Awaitable[Payload]],
        params: dict[str, Any],
        first_part_timeout: float | None,
        part_timeout: float | None,
        timeouts_count: TimeoutsCount = "parts",
    ) -> None:
        faults = faulty_limits(first_part_timeout=first_part_timeout, part_timeout=part_timeout)
        if timeouts_count not in ("parts", "values"):
            faults.append(f"timeouts_count must be 'parts' or 'values'; got {shown(timeouts_count)}")
        if faults:
            raise ParamValidationError(faults)
        self._counts_values = timeouts_count == "values"
        self._client = client
        self._body = body
        self._params = params
        self._first_part_timeout = first_part_timeout
        self._part_timeout = part_timeout
        # When the first part is due, in the loop's time; None without a limit.
        self._first_part_due: float | None = None
        self._began = False
        self._entered = False
        self._closed = False
        self.left: bool = False
        self._parts: EventStream | None = None
        # known after the stream is closed, too
        self._timed: EventStream | None = None
        self._viewed = False
        self.content_type: str | None = None
        self.variant: str | None = None
        self.custom_attributes: str | None = None
        self.request_id: str | None = None
        self.attempts: int = 0

    def __repr__(self) -> str:
        state = repr(self._parts) if self._parts is not None else "closed" if self._entered else "not entered"
        return f"<PredictionStream {self._params['EndpointName']} {state}>"

    @property
    def timing(self) -> StreamTiming:
        """Seconds to the first part and between parts so far; see `aiosmrt.StreamTiming`.

        Raises:
            ClientStateError: the stream has not been entered.
        """
        if self._timed is None:
            raise self.located(ClientStateError("a stream has timing once its `async with` block is entered"))
        return self._timed.timing

    async def __aenter__(self) -> PredictionStream:
        if self._entered:
            raise self.located(ClientStateError("a stream can be entered only once; get another one from the endpoint"))
        self._entered = True
        if self._first_part_timeout is not None:
            self._first_part_due = asyncio.get_running_loop().time() + self._first_part_timeout
        try:
            response = await self._within(self._first_part_due, self._open())
        except BaseException as error:
            clear_locals(error)
            raise
        if self._closed:
            response["Body"].close()
            raise self.located(ClientStateError("the stream was closed while it was being opened"))
        metadata = response["ResponseMetadata"]
        self._parts = self._timed = response["Body"]
        self.content_type = response.get("ContentType")
        self.variant = response.get("InvokedProductionVariant")
        self.custom_attributes = response.get("CustomAttributes")
        self.request_id = metadata.get("RequestId")
        self.attempts = metadata["RetryAttempts"] + 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.left = True
        self.close()

    def close(self) -> None:
        """Close the connection, unless the stream was read to its end; end a view that is waiting."""
        self._closed = True
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    async def _open(self) -> dict[str, Any]:
        body, self._body = self._body, _no_body
        # Made within the call's deadline.
        deferred = DeferredBody(body)
        del body
        return await self._client.make_request(
            INVOKE_ENDPOINT_WITH_RESPONSE_STREAM.name, {**self._params, "Body": deferred}
        )

    # The views

    def bytes(self) -> View[Payload]:
        """Iterate over bytes as they arrive: parts that arrived together are one item, cut anywhere."""
        return self._view(_Whole())

    def text(self) -> View[str]:
        """Iterate over text as it arrives: pieces of at least one whole character.

        Text, lines and JSON are in the charset that the answer's type names, or else the request's ``Accept``; by
        default, and in server-sent events always, in UTF-8. Iterating raises `DeserializationError` at bytes that are
        not in that charset.

        Raises:
            DeserializationError: the charset is unknown.
        """
        return self._text_view(TextDecoder())

    def lines(self) -> View[str]:
        """Iterate over lines, without their ends (LF or CRLF); the last one may lack its end.

        Iterating raises `DeserializationError` at bytes that are not in the charset; see `text`.
        """
        return self._text_view(LineDecoder())

    def jsonl(self) -> View[Any]:
        """Iterate over JSON Lines: one value for each line that is not blank.

        Iterating raises `DeserializationError` at a line that is not JSON. The charset is that of `text`.
        """
        return self._text_view(JSONLinesDecoder())

    def sse(self, *, accept: str = _EVENTS) -> View[ServerSentEvent]:
        """Iterate over server-sent events as the WHATWG defines them: ``event``, ``data``, ``id`` and ``retry``.

        They are in UTF-8, whatever charset the answer names; malformed UTF-8 becomes U+FFFD. Iterating raises
        `DeserializationError` at a line that is not a field of such an event, and if the stream ends inside a line.

        Args:
            accept: the answer's type, for a model that labels its events otherwise; a list and wildcards are allowed.
                An answer without a type, or with a general one, is always read.

        Raises:
            DeserializationError: the answer has another type, such as ``application/json`` for an error message.
        """
        view = self._view(SSEDecoder())
        try:
            check_type(self.content_type or "", accept, "text/plain")
        except DeserializationError as error:
            self._refused(error)
            raise
        return view

    def json(self) -> View[Any]:
        """Iterate over JSON values: one after the other, one on each line, or the data of server-sent events.

        Iterating raises `DeserializationError` at bytes that are not JSON, or if the stream ends inside a value. The
        charset is that of `text`.
        """
        return self._text_view(JSONDecoder())

    def _encoding(self) -> str:
        """Python's name for the answer's charset."""
        content_type = self.content_type or ""
        if content_type.partition(";")[0].strip().lower() == _EVENTS:
            return _UTF_8  # whatever their type says (WHATWG HTML, 9.2.5)
        try:
            return encoding_of_response(content_type, self._params.get("Accept") or "")
        except DeserializationError as error:
            self._refused(error)
            raise

    def _refused(self, error: DeserializationError) -> None:
        """Close the stream, whose answer cannot be read."""
        self.close()
        self.located(error)

    def _text_view(self, decoder: StreamDecoder[T]) -> View[T]:
        """A view of text in the charset of the answer."""
        self._check_unread()
        encoding = self._encoding()
        return self._view(decoder if encoding in _LIKE_UTF_8 else TranscodingDecoder(decoder, encoding))

    def _view(self, decoder: StreamDecoder[T]) -> View[T]:
        self._check_unread()
        self._viewed = True
        return View(self, decoder)

    def _check_unread(self) -> None:
        if self._parts is None:
            raise self.located(ClientStateError("a stream can be read only inside its `async with` block"))
        if self._viewed:
            raise self.located(ClientStateError("a stream can be read only once, and this one has a view already"))

    # For a view

    def has_begun(self) -> None:
        """Take note of the first value."""
        self._began = True

    async def receive(self, waiting_since: float) -> list[Payload] | None:
        """Return the parts that have arrived, at least one; none at the end, and None if the stream was closed.

        Args:
            waiting_since: when the reader began to wait for its next value, in the loop's time.
        """
        parts = self._parts
        if parts is None:
            return None
        due = self._first_part_due
        if self._began:
            # Counted from when the reader waits: a slow reader is not a slow model.
            due = None
            if self._part_timeout is not None:
                since = waiting_since if self._counts_values else asyncio.get_running_loop().time()
                due = since + self._part_timeout
        received = await (parts.receive() if due is None else self._within(due, parts.receive()))
        if not self._counts_values:
            self._began = True
        return None if self._parts is None else received

    async def _within(self, due: float | None, work: Coroutine[Any, Any, R]) -> R:
        """Return the result of some work; at ``due``, close the stream and raise instead."""
        try:
            return await within(None if due is None else due - asyncio.get_running_loop().time(), work)
        except OverdueError:
            pass
        if self._parts is not None:
            self.attempts = self._parts.attempts
        self.close()
        what, limit = ("next", self._part_timeout) if self._began else ("first", self._first_part_timeout)
        kind = "value" if self._counts_values else "part"
        raise self.located(StreamTimeoutError(f"the {what} {kind} of the stream did not arrive within {limit} s"))

    def located(self, error: AiosmrtError) -> AiosmrtError:
        """Attach operation, endpoint, request id and attempt count to an error."""
        error.operation = INVOKE_ENDPOINT_WITH_RESPONSE_STREAM.name
        error.endpoint_name = self._params["EndpointName"]
        error.request_id = self.request_id
        error.attempts = self.attempts
        return error


async def _no_body() -> bytes:
    """Replaces the body once it is sent, so that the data is not held while the answer is read."""
    return b""


class _Whole:
    """The decoder of the `bytes` view."""

    failure = None

    def feed(self, data: bytes, /) -> list[bytes]:
        return [data]

    def finish(self) -> list[bytes]:
        return []


class View(OneProcess, Generic[T]):
    """Iterates over the items of a stream; made by the methods of `PredictionStream`.

    Iterating raises `StreamTimeoutError` and what iterating over `aiosmrt.EventStream` raises. Items before an error
    come first; after it, the stream is closed. A cancelled ``anext``, such as by `asyncio.wait_for`, closes the stream
    too: reading on raises `ClientStateError`, because parts may be missing.
    """

    __slots__ = ("_cancelled", "_decoder", "_items", "_over", "_reading", "_stream")

    def __init__(self, stream: PredictionStream, decoder: StreamDecoder[T]) -> None:
        self._stream = stream
        self._decoder = decoder
        self._items: list[T] = []
        self._over = False
        self._reading = False
        # A cancelled reader has lost parts: decoding later ones would give wrong items.
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<View of {self._stream!r} with {type(self._decoder).__name__}>"

    def __aiter__(self) -> View[T]:
        return self

    async def __anext__(self) -> T:
        if not self._items and not await self._more():
            raise StopAsyncIteration
        return self._items.pop()

    async def _more(self) -> bool:
        """Get at least one item, or raise; return False at the end."""
        if self._reading:
            raise self._stream.located(ClientStateError("another task is waiting for this view's next item"))
        if self._cancelled:
            raise self._stream.located(
                ClientStateError("a read of this view was cancelled, which has closed the stream")
            )
        if self._stream.left and not self._over:
            # An end would look like the end of the answer.
            raise self._stream.located(ClientStateError("a stream can be read only inside its `async with` block"))
        decoder = self._decoder
        began = asyncio.get_running_loop().time()
        self._reading = True
        try:
            while not self._over:
                if (failure := decoder.failure) is not None:
                    # Found after the items that were returned before.
                    try:
                        raise self._stream.located(failure)
                    finally:
                        del failure
                parts = await self._stream.receive(began)
                self._over = not parts
                if parts is None:
                    break
                try:
                    items = decoder.feed(b"".join(parts)) if parts else decoder.finish()
                except AiosmrtError as error:
                    self._stream.located(error)
                    raise
                if items:
                    self._stream.has_begun()
                    # In reverse, as in EventStream.
                    self._items = list(reversed(items))
                    return True
        except BaseException as error:
            self._over = True
            self._cancelled = not isinstance(error, Exception)
            self._stream.close()
            # The decoder's frames hold what was received, and so does this one.
            parts = None
            clear_locals(error)
            raise
        finally:
            self._reading = False
        return False
