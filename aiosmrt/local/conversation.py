"""What serves a bidirectional stream: an async callable, or a container's WebSocket.

A message of the caller is a `StreamMessage`, and so is one of the model. One of them is one WebSocket frame: text or
binary by its type, and FIN only where it is complete.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import urlsplit

from aiosmrt._extras import installed
from aiosmrt.local.backends import CONTAINER_EXITED, ContainerFailure, Invocation, StreamMessage, handler_errors

__all__ = ["PartialText", "StreamClosedByContainer", "call_handler", "call_websocket"]

PATH: Final = "invocations-bidirectional-stream"
CONNECT_SECONDS: Final = 5.0
# By the contract of containers: a ping a minute, and the end after five without an answer.
PING_SECONDS: Final = 60.0
MAX_MISSED_PONGS: Final = 5
# Codes of RFC 6455, section 7.4.1.
NORMAL_CLOSURE: Final = 1000
_NOT_UTF8: Final = 1007
_LOST: Final = 1006
_READ_BYTES: Final = 2**16


class StreamClosedByContainer(ContainerFailure):
    """The container closed its WebSocket.

    Args:
        code: the code in its Close frame.
        reason: the text there.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(0, reason)
        self.code = code


@asynccontextmanager
async def call_handler(
    handler: Callable[[Invocation], object], invocation: Invocation
) -> AsyncIterator[AsyncIterator[StreamMessage]]:
    """Have an async generator function answer.

    Args:
        handler: takes the invocation, whose ``messages`` are the caller's, and yields bytes, text or `StreamMessage`.
        invocation: the call.

    Raises:
        ContainerFailure: the handler failed, or is not an async generator function.
    """
    with handler_errors():
        answers: Any = handler(invocation)
        if not inspect.isasyncgen(answers):
            if inspect.iscoroutine(answers):
                answers.close()
            # as from a container that does not serve WebSockets
            raise ContainerFailure(404, "a handler of a bidirectional stream must be an async generator function")
    try:
        async with aclosing(_as_messages(answers)) as messages:
            yield messages
    finally:
        with handler_errors():
            await answers.aclose()


async def _as_messages(answers: AsyncIterator[Any]) -> AsyncGenerator[StreamMessage, None]:
    with handler_errors():
        async for answer in answers:
            if isinstance(answer, StreamMessage):
                yield answer
            elif isinstance(answer, (str, bytes, bytearray, memoryview)):
                yield StreamMessage(answer if isinstance(answer, str) else bytes(answer))
            else:
                raise TypeError(f"a handler must yield bytes, text or StreamMessage; got {type(answer).__name__}")


@asynccontextmanager
async def call_websocket(
    url: str, invocation: Invocation, *, ping_seconds: float = PING_SECONDS
) -> AsyncIterator[AsyncIterator[StreamMessage]]:
    """Have a container's WebSocket answer, frame for frame.

    Args:
        url: the container's base URL.
        invocation: the call, whose ``messages`` are the caller's.
        ping_seconds: how often the container is pinged. Defaults to 60.

    Raises:
        ContainerFailure: it could not be connected to.
        ConfigurationError: the extra ``http2`` is not installed.
    """
    socket = _WebSocket(url, invocation.model_path or PATH, invocation.model_query)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await socket.connect()
    except (OSError, TimeoutError) as error:
        await socket.close()
        raise ContainerFailure(0, CONTAINER_EXITED) from error
    except BaseException:
        await socket.close()
        raise
    sending = asyncio.ensure_future(socket.send_all(invocation.messages))
    pinging = asyncio.ensure_future(socket.keep_alive(ping_seconds))
    try:
        async with aclosing(socket.frames()) as frames:
            yield frames
    finally:
        # First of all, because the caller may be cancelled in any of the waits below.
        socket.abort()
        sending.cancel()
        pinging.cancel()
        await asyncio.wait({sending, pinging})
        for task in (sending, pinging):
            if not task.cancelled():
                task.exception()  # the reader has told of it
        await socket.close()


class _WebSocket:
    """The client's end of a WebSocket, with single frames, which aiohttp does not offer."""

    def __init__(self, url: str, path: str, query: str | None) -> None:
        client: Any = installed("websockets.client", "http2")
        uri: Any = installed("websockets.uri", "http2")
        parts = urlsplit(url)
        target = f"{url.replace('http', 'ws', 1)}/{path}" + (f"?{query}" if query else "")
        self._protocol: Any = client.ClientProtocol(uri.parse_uri(target), max_size=None)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = True if parts.scheme == "https" else None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._early: list[Any] = []
        self._missed_pongs = 0
        self._is_dead = False

    async def connect(self) -> None:
        """Connect and shake hands."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, ssl=self._ssl)
        self._protocol.send_request(self._protocol.connect())
        await self._flush()
        while not (events := self._protocol.events_received()):
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the container closed the connection")
            self._protocol.receive_data(data)
        # A frame may have come with the response.
        self._early = events[1:]
        failed = self._protocol.handshake_exc
        if failed is not None:
            response = getattr(failed, "response", None)
            raise ContainerFailure(getattr(response, "status_code", 0), "The container refused the WebSocket.")

    async def _flush(self) -> None:
        if self._writer is None:
            return
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
        with suppress(OSError):  # the reader sees it too
            await self._writer.drain()

    async def send_all(self, messages: AsyncIterator[StreamMessage]) -> None:
        """Send the caller's messages, then a Close frame."""
        goes_on = False
        async for message in messages:
            is_text = isinstance(message.data, str)
            data = message.data.encode() if isinstance(message.data, str) else message.data
            if goes_on:
                self._protocol.send_continuation(data, message.complete)
            elif is_text:
                self._protocol.send_text(data, message.complete)
            else:
                self._protocol.send_binary(data, message.complete)
            goes_on = not message.complete
            await self._flush()
        self._protocol.send_close(NORMAL_CLOSURE)
        await self._flush()

    async def keep_alive(self, seconds: float) -> None:
        """Ping the container, and give up on one that does not answer."""
        while True:
            await asyncio.sleep(seconds)
            if self._missed_pongs >= MAX_MISSED_PONGS:
                self._is_dead = True
                if self._writer is not None:
                    self._writer.transport.abort()
                return
            self._missed_pongs += 1
            self._protocol.send_ping(b"")
            await self._flush()

    async def frames(self) -> AsyncGenerator[StreamMessage, None]:
        """The container's frames, until it closes."""
        frame_types: Any = installed("websockets.frames", "http2")
        opcode = frame_types.Opcode
        is_text = False
        text = PartialText()
        while True:
            events, self._early = [*self._early, *self._protocol.events_received()], []
            for frame in events:
                if frame.opcode is opcode.PONG:
                    self._missed_pongs = 0
                if frame.opcode not in (opcode.TEXT, opcode.BINARY, opcode.CONT):
                    continue
                if frame.opcode is not opcode.CONT:
                    is_text = frame.opcode is opcode.TEXT
                data = bytes(frame.data)
                try:
                    whole = text.decode(data, is_last=frame.fin) if is_text else data
                except UnicodeDecodeError:
                    raise StreamClosedByContainer(_NOT_UTF8, "a text frame is not valid UTF-8") from None
                yield StreamMessage(whole, frame.fin)
            await self._flush()
            if self._protocol.close_rcvd is not None:
                code, reason = self._protocol.close_rcvd.code, self._protocol.close_rcvd.reason
                if code == NORMAL_CLOSURE and self._protocol.close_rcvd_then_sent is False:
                    return  # the answer to our own Close frame
                raise StreamClosedByContainer(code, reason)
            data = b"" if self._reader is None else await self._read()
            if not data:
                raise StreamClosedByContainer(_LOST, "no pongs" if self._is_dead else "the connection was lost")
            self._protocol.receive_data(data)

    async def _read(self) -> bytes:
        try:
            return b"" if self._reader is None else await self._reader.read(_READ_BYTES)
        except OSError:  # a ConnectionError, or a TimeoutError of TCP's
            return b""

    def abort(self) -> None:
        """End the connection at once."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def close(self) -> None:
        """End the connection, and wait until it is closed."""
        self.abort()
        if self._writer is not None:
            with suppress(OSError):
                await self._writer.wait_closed()


class PartialText:
    """Text in parts that may be cut inside a character, which then moves to the next part."""

    def __init__(self) -> None:
        self._left = b""

    def decode(self, data: bytes, *, is_last: bool) -> str:
        """The text of a part.

        Args:
            data: its bytes.
            is_last: whether the message ends with it.

        Raises:
            UnicodeDecodeError: it is not UTF-8.

        >>> text = PartialText()
        >>> text.decode(b"caf\\xc3", is_last=False), text.decode(b"\\xa9", is_last=True)
        ('caf', 'é')
        """
        data, self._left = self._left + data, b""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if is_last or error.reason != "unexpected end of data":
                raise
            self._left = data[error.start :]
            return data[: error.start].decode()
