"""A bidirectional stream of Python objects: `aiosmrt.BidirectionalStream` between a serializer and a deserializer."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, overload

from aiosmrt._frames import clear_locals
from aiosmrt._one_process import OneProcess
from aiosmrt._wire.messages import DATA_TYPES, Message, faulty_limit
from aiosmrt._wire.operations import INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM as OPERATION
from aiosmrt.config import shown
from aiosmrt.endpoint.bodies import in_thread, serialized
from aiosmrt.endpoint.fanout import mistaken_items
from aiosmrt.errors import AiosmrtError, ClientStateError, ParamValidationError, SerializationError
from aiosmrt.serializers import OFF_LOOP_BYTES, Deserializer, Serializer
from aiosmrt.serializers.codec import is_text
from aiosmrt.serializers.objects import type_name
from aiosmrt.types import DataType

if TYPE_CHECKING:
    from aiosmrt._core.duplex import BidirectionalStream

__all__ = ["DuplexStream", "check_messages"]

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")

# What a deserializer is told of a message, which has a type, and no content type.
_CONTENT_TYPES: Final = {"UTF8": "text/plain; charset=utf-8", "BINARY": "application/octet-stream"}


class DuplexStream(OneProcess, Generic[In, Out]):
    """A conversation with a model, objects in and objects out; made by `Endpoint.duplex`.

    Enter it with ``async with``. Each object is one message. Send from one task and iterate in another, or take turns.
    What fails is raised by entering the block, by `send` and by the iteration, whichever comes first. Leaving the block
    ends the stream at once, whatever is still under way.

    Args:
        stream: the stream below.
        endpoint_name: the endpoint, for errors.
        serializer: makes messages of what is sent.
        deserializer: makes values of what arrives.
        content_type: what decides whether ``serializer`` makes text or binary messages.
        data_type: the type of all messages, whatever their content type. If None, that decides.
        max_message_bytes: the largest message that is read.
    """

    def __init__(
        self,
        stream: BidirectionalStream,
        endpoint_name: str,
        serializer: Serializer[In],
        deserializer: Deserializer[Out],
        *,
        content_type: str,
        data_type: DataType | None,
        max_message_bytes: int,
    ) -> None:
        self._stream = stream
        self._endpoint_name = endpoint_name
        self._serializer = serializer
        self._deserializer = deserializer
        self._content_type = content_type
        self._data_type: DataType | None = data_type
        self._max_message_bytes = max_message_bytes
        # A message whose value has not been returned yet: a wait that is cancelled loses nothing.
        self._unread: Message | None = None
        self._reads = False

    def __repr__(self) -> str:
        return f"<DuplexStream {self._endpoint_name} {self._stream!r}>"

    @property
    def stream(self) -> BidirectionalStream:
        """The stream below, whose messages are bytes and text."""
        return self._stream

    async def response(self) -> dict[str, Any]:
        """The facts of the response; see `aiosmrt.BidirectionalStream.response`."""
        return await self._stream.response()

    async def __aenter__(self) -> Self:
        """Open the stream; see `aiosmrt.BidirectionalStream`."""
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream. May be called more than once."""
        self._unread = None
        await self._stream.aclose()

    # The request

    @overload
    async def send(self, data: In, *, serializer: None = None) -> None: ...

    @overload
    async def send(self, data: T, *, serializer: Serializer[T]) -> None: ...

    async def send(self, data: Any, *, serializer: Serializer[Any] | None = None) -> None:
        """Send an object as one message; returns when HTTP/2's flow control has taken it.

        It is a text message if the serializer's content type is text in UTF-8, such as JSON or CSV, and otherwise a
        binary one. A cancelled ``send`` may have sent its message, and never sends half of one.

        Args:
            data: what the serializer takes.
            serializer: for this object, in place of the endpoint's: JSON for a command between frames of audio, for
                example.

        Raises:
            SerializationError: the serializer cannot express the data, or makes text that is not UTF-8; nothing was
                sent, and the stream goes on.
            ParamValidationError: ``serialize()`` is missing from ``serializer``, or the message exceeds 16 MiB; nothing
                was sent, and the stream goes on.
            ServiceError, TransportError: what the stream has failed with.
            ClientStateError: the input was ended, the service has ended the stream, or the block was left.
        """
        body = b""
        try:
            codec: Serializer[Any] = self._serializer
            content_type = self._content_type
            if serializer is not None:
                codec, content_type = _checked(serializer), serializer.content_type
            data_type: DataType = self._data_type or ("UTF8" if is_text(content_type) else "BINARY")
            self._stream.check_can_send()
            body = await serialized(codec, data, OPERATION.name, self._endpoint_name)
            if data_type == "UTF8":
                self._check_utf8(body)
            await self._stream.send(body, DataType=data_type)
        except BaseException as error:
            del data, body
            clear_locals(error)
            raise

    def _check_utf8(self, body: bytes) -> None:
        try:
            body.decode()
        except UnicodeDecodeError as error:
            position = error.start
        else:
            return
        # Raised out here: the error above carries the message.
        fault = SerializationError(
            f"a text message must be UTF-8, and this one is not at byte {position}; "
            "with data_type='BINARY', it is sent as it is"
        )
        fault.note_call(OPERATION.name, self._endpoint_name)
        raise fault

    async def send_all(
        self,
        items: Iterable[In] | AsyncIterable[In],
        *,
        end_input: bool = True,
    ) -> None:
        """Send one object after the other, then end the input.

        Args:
            items: an iterable or an asynchronous iterable, such as a microphone's frames; the next one is taken when
                flow control has taken the last. A generator that is not read to its end is the caller's to close.
            end_input: whether to end the input after the last. Defaults to True.

        Raises:
            ParamValidationError: ``items`` cannot be iterated, or into something else than objects.
            AiosmrtError: as `send`. What iterating over ``items`` raises is passed on; the input is not ended then.
        """
        fault = mistaken_items(items, "pass batches(frame, rows)")
        if fault is None and not isinstance(items, (AsyncIterable, Iterable)):
            fault = f"items must be an iterable or an asynchronous iterable; got a {type_name(items)}"
        if fault is not None:
            del items
            raise ParamValidationError([fault])
        item: Any = None
        try:
            if isinstance(items, AsyncIterable):
                async for item in items:
                    await self.send(item)
            else:
                for item in items:
                    await self.send(item)
        except BaseException:
            # error trackers report locals
            del items, item
            raise
        if end_input:
            await self.end_input()

    async def end_input(self) -> None:
        """Tell the model that nothing follows; values may still come. May be called more than once.

        Raises:
            ServiceError, TransportError: what the stream has failed with.
        """
        await self._stream.end_input()

    # The response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Out:
        """Return the value of the next message. Cancelling a wait loses nothing.

        The deserializer is told ``text/plain; charset=utf-8`` for a text message, and ``application/octet-stream`` for
        a binary one.

        Raises:
            DeserializationError: the deserializer cannot read the message, or the message is too large; the next one
                can be read.
            TruncatedStreamError: the stream ended inside a message.
            ModelStreamError, InternalStreamFailure, EventStreamFormatError, TransportError: as for
                `aiosmrt.BidirectionalStream`.
            ClientStateError: another task is waiting for the next value, or the block was left.
        """
        if self._reads:
            raise ClientStateError("another task is waiting for this stream's next value")
        self._reads = True
        try:
            if self._unread is None:
                self._unread = await self._stream.next_message(self._max_message_bytes)
            if self._unread is not None:
                return await self._value(self._unread)
        except AiosmrtError as error:
            if error.operation is None:
                self._stream.place(error)
            clear_locals(error)
            raise
        except BaseException as error:
            clear_locals(error)
            raise
        finally:
            self._reads = False
        raise StopAsyncIteration

    async def _value(self, message: Message) -> Out:
        deserialize = self._deserializer.deserialize
        content_type = _CONTENT_TYPES[message.data_type]
        try:
            if len(message.data) > OFF_LOOP_BYTES:
                value = await in_thread(deserialize, message.data, content_type)
            else:
                value = deserialize(message.data, content_type)
        except Exception:
            self._unread = None
            raise
        self._unread = None
        return value


def _checked(serializer: Serializer[Any]) -> Serializer[Any]:
    if isinstance(serializer, type) or not callable(getattr(serializer, "serialize", None)):
        raise ParamValidationError([f"serializer must have serialize(); got {type(serializer)}"])
    return serializer


def check_messages(data_type: object, max_message_bytes: object) -> None:
    """Check the arguments of `Endpoint.duplex` about messages.

    Raises:
        ParamValidationError: one of them is wrong.
    """
    faults = faulty_limit(max_message_bytes)
    if data_type not in (None, *DATA_TYPES):
        faults.append(f"data_type must be {', '.join(map(repr, DATA_TYPES))} or None; got {shown(data_type)}")
    if faults:
        raise ParamValidationError(faults)
