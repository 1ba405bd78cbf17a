"""A response stream as text, lines, server-sent events or JSON values.

What arrives is decoded batch by batch: parts that have come since the last look are joined and go through the view's
decoder (`aiosmrt._wire.decoders`) at once. A view so costs less per part than taking the parts one by one does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from aiosmrt._core.body import DeferredBody
from aiosmrt._wire.decoders.base import StreamDecoder
from aiosmrt._wire.decoders.event import ServerSentEvent
from aiosmrt._wire.decoders.json import JSONDecoder, JSONLinesDecoder
from aiosmrt._wire.decoders.sse import SSEDecoder
from aiosmrt._wire.decoders.text import LineDecoder, TextDecoder
from aiosmrt.config import faulty_limits
from aiosmrt.errors import AiosmrtError, ClientStateError, ParamValidationError, StreamTimeoutError

if TYPE_CHECKING:
    from aiosmrt._core.streams import EventStream
    from aiosmrt.client import Client

__all__ = ["PredictionStream", "View"]

T = TypeVar("T")
R = TypeVar("R")
# Inside a class with a method of that name, `bytes` is the method.
Payload: TypeAlias = bytes

_OPERATION = "InvokeEndpointWithResponseStream"


class PredictionStream:
    """A model's answer as it comes; made by `Endpoint.stream`, to be used with ``async with``.

    One of its views is iterated over, once. Leaving the block closes the connection at once, wherever the view is.

    Attributes, from when the block is entered:
        content_type: the answer's media type; None when the model named none.
        variant: the production variant that answers; None when the service did not say.
        custom_attributes: what the model put into CustomAttributes; None for nothing.
        request_id: the service's request id; None when it gave none.
        attempts: how many requests were sent up to the response's head.
        left: whether the block was left.
    """

    def __init__(
        self,
        client: Client,
        body: Callable[[], Awaitable[Payload]],
        params: dict[str, Any],
        first_part_timeout: float | None,
        part_timeout: float | None,
    ) -> None:
        if faults := faulty_limits(first_part_timeout=first_part_timeout, part_timeout=part_timeout):
            raise ParamValidationError(faults)
        self._client = client
        self._body = body
        self._params = params
        self._first_part_timeout = first_part_timeout
        self._part_timeout = part_timeout
        # until when the first part has to be there, in the loop's time; None without a limit, or when it is there
        self._first_part_due: float | None = None
        self._began = False
        self._entered = False
        self._closed = False
        self.left: bool = False
        self._parts: EventStream | None = None
        self._viewed = False
        self.content_type: str | None = None
        self.variant: str | None = None
        self.custom_attributes: str | None = None
        self.request_id: str | None = None
        self.attempts: int = 0

    def __repr__(self) -> str:
        state = repr(self._parts) if self._parts is not None else "closed" if self._entered else "not entered"
        return f"<PredictionStream {self._params['EndpointName']} {state}>"

    async def __aenter__(self) -> PredictionStream:
        if self._entered:
            raise ClientStateError("a stream is entered once: ask the endpoint for another one")
        self._entered = True
        if self._first_part_timeout is not None:
            self._first_part_due = asyncio.get_running_loop().time() + self._first_part_timeout
        response = await self._within(self._first_part_due, self._open())
        if self._closed:
            response["Body"].close()
            raise ClientStateError("the stream was closed while it was being opened")
        metadata = response["ResponseMetadata"]
        self._parts = response["Body"]
        self.content_type = response.get("ContentType")
        self.variant = response.get("InvokedProductionVariant")
        self.custom_attributes = response.get("CustomAttributes")
        self.request_id = metadata.get("RequestId")
        self.attempts = metadata["RetryAttempts"] + 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left = True
        self.close()

    def close(self) -> None:
        """Close the connection unless the stream was read to its end; a view that is waiting ends."""
        self._closed = True
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    async def _open(self) -> dict[str, Any]:
        body, self._body = self._body, _nothing_more
        # made within the call's deadline
        deferred = DeferredBody(partial(self._serialized, body))
        del body
        return await self._client.make_request(_OPERATION, {**self._params, "Body": deferred})

    async def _serialized(self, body: Callable[[], Awaitable[Payload]]) -> Payload:
        try:
            return await body()
        except AiosmrtError as error:
            self.placed(error)
            raise

    # The views

    def bytes(self) -> View[Payload]:
        """Bytes as they come: parts that came together are one item, and where they are cut means nothing."""
        return self._view(_Whole())

    def text(self) -> View[str]:
        """Text as it comes, in pieces of at least one character; a character is never cut. UTF-8.

        Iterating raises `DeserializationError` where the bytes are no UTF-8.
        """
        return self._view(TextDecoder())

    def lines(self) -> View[str]:
        """Lines without their ends (LF or CRLF); the last one counts without an end, too. UTF-8.

        Iterating raises `DeserializationError` where the bytes are no UTF-8.
        """
        return self._view(LineDecoder())

    def jsonl(self) -> View[Any]:
        """JSON Lines: one value for each line that is not blank.

        Iterating raises `DeserializationError` at a line that is no JSON.
        """
        return self._view(JSONLinesDecoder())

    def sse(self) -> View[ServerSentEvent]:
        """Server-sent events by the WHATWG's rules: ``event``, ``data``, ``id`` and ``retry``."""
        return self._view(SSEDecoder())

    def json(self) -> View[Any]:
        """JSON values, however they are split over parts: one after the other, a line each, or as server-sent events.

        Iterating raises `DeserializationError` where the bytes are no JSON, or end inside a value.
        """
        return self._view(JSONDecoder())

    def _view(self, decoder: StreamDecoder[T]) -> View[T]:
        if self._parts is None:
            raise ClientStateError("a stream is read inside its `async with` block")
        if self._viewed:
            raise ClientStateError("a stream is read once, and this one has a view already")
        self._viewed = True
        return View(self, decoder)

    # What a view needs

    async def receive(self) -> list[Payload] | None:
        """Parts that have arrived, at least one; none at the end, and None when the stream was closed."""
        parts = self._parts
        if parts is None:
            return None
        due = self._first_part_due
        if self._began:
            # From when the reader waits: its own slowness is not the model's.
            due = None if self._part_timeout is None else asyncio.get_running_loop().time() + self._part_timeout
        received = await (parts.receive() if due is None else self._within(due, parts.receive()))
        self._began = True
        return None if self._parts is None else received

    async def _within(self, due: float | None, work: Coroutine[Any, Any, R]) -> R:
        """What a piece of work gives; when it takes until after ``due``, the stream is closed and an error raised."""
        timer = asyncio.timeout_at(due)
        try:
            async with timer:
                return await work
        except TimeoutError as late:
            if isinstance(late, AiosmrtError) or not timer.expired():
                raise
        if self._parts is not None:
            self.attempts = self._parts.attempts
        self.close()
        what, limit = ("next", self._part_timeout) if self._began else ("first", self._first_part_timeout)
        raise self.placed(StreamTimeoutError(f"The {what} part of the stream did not come within {limit} s"))

    def placed(self, error: AiosmrtError) -> AiosmrtError:
        """The error, with where it happened."""
        error.operation = _OPERATION
        error.endpoint_name = self._params["EndpointName"]
        error.request_id = self.request_id
        error.attempts = self.attempts
        return error


async def _nothing_more() -> bytes:
    """In the place of the data once it is sent, so that it is not held as long as the answer is read."""
    return b""


class _Whole:
    """The decoder of those who want bytes."""

    failure = None

    def feed(self, data: bytes, /) -> list[bytes]:
        return [data]

    def finish(self) -> list[bytes]:
        return []


class View(Generic[T]):
    """Iterates over what a stream's parts say; made by the methods of `PredictionStream`.

    Iterating raises `StreamTimeoutError` and what iterating over `aiosmrt.EventStream` raises. After an error the
    stream is closed; what came before it has been handed out. The same after a cancelled ``anext``, such as by
    `asyncio.wait_for`: reading on raises `ClientStateError`, because parts may be missing.
    """

    __slots__ = ("_decoder", "_given_up", "_items", "_over", "_reading", "_stream")

    def __init__(self, stream: PredictionStream, decoder: StreamDecoder[T]) -> None:
        self._stream = stream
        self._decoder = decoder
        self._items: list[T] = []
        self._over = False
        self._reading = False
        # A cancelled reader has lost parts: what is decoded after them would be wrong.
        self._given_up = False

    def __repr__(self) -> str:
        return f"<View of {self._stream!r} with {type(self._decoder).__name__}>"

    def __aiter__(self) -> View[T]:
        return self

    async def __anext__(self) -> T:
        if not self._items and not await self._more():
            raise StopAsyncIteration
        return self._items.pop()

    async def _more(self) -> bool:
        """Have at least one item, or raise; False at the end."""
        if self._reading:
            raise ClientStateError("another task is waiting for this view's next item")
        if self._given_up:
            raise ClientStateError("a read of this view was cancelled, which has closed the stream")
        if self._stream.left and not self._over:
            # An end would look as if that were all.
            raise ClientStateError("a stream is read inside its `async with` block")
        decoder = self._decoder
        self._reading = True
        try:
            while not self._over:
                if (failure := decoder.failure) is not None:
                    # Found behind the items that were handed out; there is nothing to wait for.
                    try:
                        raise self._stream.placed(failure)
                    finally:
                        del failure
                parts = await self._stream.receive()
                self._over = not parts
                if parts is None:
                    break
                try:
                    items = decoder.feed(b"".join(parts)) if parts else decoder.finish()
                except AiosmrtError as error:
                    self._stream.placed(error)
                    raise
                if items:
                    # in reverse, as in EventStream
                    self._items = list(reversed(items))
                    return True
        except BaseException as error:
            self._over = True
            self._given_up = not isinstance(error, Exception)
            self._stream.close()
            raise
        finally:
            self._reading = False
        return False
