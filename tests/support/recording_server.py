"""A raw HTTP/1.1 server that stores what arrives, byte for byte, and answers as a test decides.

Nothing is normalised: header names keep their case and order (values are read as UTF-8), the request target stays as
it was sent, and the body is what its framing delimits. So two clients can be compared by what they put on the wire,
and signatures can be verified over exactly what was received.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

_REASONS = {200: "OK", 202: "Accepted", 400: "Bad Request", 403: "Forbidden", 424: "Failed Dependency", 429: "Slow"}


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as it arrived; `connection` counts the server's connections from 0."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a header that may be sent once at most."""
        found = self.values(name)
        if len(found) > 1:
            raise AssertionError(f"header {name} was sent {len(found)} times")
        return found[0] if found else None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]


@dataclass(frozen=True, slots=True)
class Response:
    """What to answer: a whole body, or chunks written one by one as they are produced.

    `cut` closes the connection after the last byte without ending the framing; `reset` does so with a TCP reset.
    `raw` is sent as it stands, in place of all the rest.
    """

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | AsyncIterator[bytes] = b""
    cut: bool = False
    reset: bool = False
    close: bool = False
    declared_length: int | None = None
    raw: bytes | None = None


Answer: TypeAlias = Callable[[RecordedRequest], Response | Awaitable[Response | None] | None]


def respond(
    status: int = 200, body: bytes = b"", headers: Sequence[tuple[str, str]] = (), *, close: bool = False
) -> Answer:
    """An answer that is the same for every request."""
    response = Response(status, headers, body, close=close)
    return lambda request: response


def respond_in_turn(*responses: Response | None) -> Answer:
    """One response per request, the last one again for all that follow."""
    remaining = list(responses)
    return lambda request: remaining.pop(0) if len(remaining) > 1 else remaining[0]


@dataclass(slots=True)
class RecordingServer:
    """`async with RecordingServer(answer) as server:` listens on loopback; `server.requests` holds what came.

    `answer` may be replaced while the server runs. A None in place of a response resets the connection.
    """

    answer: Answer = field(default_factory=respond)
    tls: ssl.SSLContext | None = None
    requests: list[RecordedRequest] = field(default_factory=list)
    connections_made: int = 0
    connections_open: int = 0
    _server: asyncio.Server | None = None
    _reserved: socket.socket | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def host(self) -> str:
        return f"localhost:{self.port}" if self.tls else f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def last(self) -> RecordedRequest:
        return self.requests[-1]

    def stop_listening(self) -> None:
        """Close every connection, and refuse new ones until `listen_again`; no other program gets the port."""
        assert self._server is not None
        port = self.port
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", port))

    async def listen_again(self) -> None:
        """Accept connections again, on the same port."""
        assert self._reserved is not None
        port = self._reserved.getsockname()[1]
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, ssl=self.tls, limit=1 << 16)
        self._reserved.close()
        self._reserved = None

    async def until(self, true: Callable[["RecordingServer"], bool]) -> None:
        """Wait until the server's record makes `true` true."""
        async with self._changed:
            await self._changed.wait_for(lambda: true(self))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self.tls, limit=1 << 16)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        if self._reserved is not None:
            self._reserved.close()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = self.connections_made
        self.connections_made += 1
        self.connections_open += 1
        await self._notify()
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer, number):
                    pass
        except asyncio.CancelledError:
            # asyncio's streams log a handler that ends cancelled; here it is how the server stops.
            pass
        finally:
            self.connections_open -= 1
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError, ssl.SSLError, TimeoutError):
                await writer.wait_closed()
            await self._notify()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        request = await _receive(reader, writer, number)
        self.requests.append(request)
        await self._notify()
        response = self.answer(request)
        if isinstance(response, Awaitable):
            response = await response
        if response is None:
            _reset(writer)
            return False
        await _send(writer, response)
        if response.reset:
            _reset(writer)
        return not (response.reset or response.cut or response.close)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset: linger 0 drops what was not acknowledged."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> RecordedRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
    request_line, *lines = head.split("\r\n")[:-2]
    method, target, _ = request_line.split(" ")
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    lowered = {name.lower(): value for name, value in headers}
    if lowered.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in lowered.get("transfer-encoding", ""):
        body = await _chunked(reader)
    else:
        body = await reader.readexactly(int(lowered.get("content-length", "0")))
    return RecordedRequest(method, target, headers, body, number)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass
    return bytes(body)


async def _send(writer: asyncio.StreamWriter, response: Response) -> None:
    if response.raw is not None:
        writer.write(response.raw)
        await writer.drain()
        return
    headers = list(response.headers)
    whole = isinstance(response.body, bytes)
    if isinstance(response.body, bytes):
        length = len(response.body) if response.declared_length is None else response.declared_length
        headers.append(("Content-Length", str(length)))
    else:
        headers.append(("Transfer-Encoding", "chunked"))
    if response.close:
        headers.append(("Connection", "close"))
    reason = _REASONS.get(response.status, "Status")
    head = f"HTTP/1.1 {response.status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
    writer.write(head.encode("latin-1") + b"\r\n")
    if isinstance(response.body, bytes):
        writer.write(response.body)
    else:
        async for chunk in response.body:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
    if not (whole or response.cut or response.reset):
        writer.write(b"0\r\n\r\n")
    await writer.drain()
