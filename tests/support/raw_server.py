"""An HTTP/1.1 server on loopback that plays a script, byte by byte and event by event.

A script is a sequence of steps for one request: bytes are written as they stand, an ``asyncio.Event`` is waited for,
`RESET` aborts the connection with a TCP reset, `CLOSE` ends it with a FIN. A connection outlives its script unless one
of the two ended it. The server takes the scripts in order, one per request, whichever connection the request comes on;
when they are used up it plays ``otherwise``. What a client did can be read off ``requests`` and ``connections_made``.

A script that begins with `EARLY` is played as soon as a request's head is in. In it a number receives so many bytes of
the request's body and `BODY` the rest of it, in pieces and slower than a client writes.

Nothing in here sleeps: a test decides by events when the next byte goes out.
"""

from __future__ import annotations

import asyncio
import enum
import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self, TypeAlias


class End(enum.Enum):
    """How a script ends its connection."""

    RESET = enum.auto()
    CLOSE = enum.auto()


RESET: Final = End.RESET
CLOSE: Final = End.CLOSE


class Receipt(enum.Enum):
    """When the server receives a request's body."""

    EARLY = enum.auto()
    BODY = enum.auto()


EARLY: Final = Receipt.EARLY
BODY: Final = Receipt.BODY

# Connections that come in at once; one beyond these would be made a second later.
BACKLOG = 1024

# What the server reads at a time of a body that a script receives.
PIECE_BYTES = 2**15

Step: TypeAlias = bytes | int | asyncio.Event | End | Receipt
Script: TypeAlias = Sequence[Step]


def response(
    status: int = 200,
    body: bytes = b"",
    headers: Iterable[tuple[str, str]] = (),
    *,
    length: int | None = None,
    chunked: bool = False,
) -> bytes:
    """A response's bytes.

    Args:
        status: the HTTP status.
        body: the body, or its first part when ``length`` or ``chunked`` announces more.
        headers: headers besides the framing.
        length: the ``Content-Length`` to claim. Defaults to the body's length.
        chunked: write the body as the first chunk of a chunked one, without the ending.
    """
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers)]
    lines.append(
        "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body) if length is None else length}"
    )
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head + (chunk(body) if chunked else body)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; none at all for no data."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK: Final = b"0\r\n\r\n"
OK: Final = (response(200, b"ok", [("Content-Type", "text/plain")]),)


def error_response(
    status: int,
    code: str | None,
    message: str | None = "for a test",
    headers: Iterable[tuple[str, str]] = (),
    **members: object,
) -> bytes:
    """A service error as SageMaker Runtime frames it: the type in a header, the message and members as JSON."""
    type_header = [] if code is None else [("x-amzn-errortype", f"{code}:http://internal.amazon.com/coral/")]
    body = json.dumps({"message": message, **members}).encode()
    return response(status, body, [*type_header, ("Content-Type", "application/json"), *headers])


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request as it came; header names in lower case, ``connection`` counted from 0."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


class RawServer:
    """``async with RawServer([script, …]) as server:`` listens on a loopback port until the block ends.

    Args:
        scripts: what to play, one script per request.
        otherwise: what to play when they are used up, or what makes it of the request.
        tls: serve HTTPS with this. If None, plain HTTP.
        receive_buffer: bytes that the kernel takes in ahead of the server, about. Defaults to the system's choice.
    """

    def __init__(
        self,
        scripts: Iterable[Script] = (),
        *,
        otherwise: Script | Callable[[RawRequest], Script] = OK,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.otherwise = otherwise
        self.body_bytes = 0
        self._tls = tls
        self._receive_buffer = receive_buffer
        self.requests: list[RawRequest] = []
        self.connections_made = 0
        self.connections_open = 0
        self._scripts: deque[Script] = deque(scripts)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    def play(self, *scripts: Script) -> None:
        """Append scripts for the next requests."""
        self._scripts.extend(scripts)

    def forget_scripts(self) -> None:
        """Drop the scripts that were not played yet."""
        self._scripts.clear()

    @property
    def url(self) -> str:
        """The server's origin."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{'http' if self._tls is None else 'https'}://{host}:{port}"

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """The server's own tasks, which no client has leaked."""
        return frozenset(self._tasks)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition on the server's record holds."""
        async with self._changed:
            await self._changed.wait_for(holds)

    async def received(self, count: int) -> None:
        """Wait until ``count`` requests came in whole."""
        await self.until(lambda: len(self.requests) >= count)

    async def __aenter__(self) -> Self:
        # With the protocol named, asyncio switches Nagle's algorithm off.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if self._receive_buffer is not None:
            # Accepted connections inherit it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._connected, sock=sock, backlog=BACKLOG, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = self.connections_made
        self.connections_made += 1
        self.connections_open += 1
        await self._note()
        try:
            # A client that goes away ends its connection here; what it did is in the record.
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    request = await _receive_head(reader, number)
                    early = bool(self._scripts) and self._scripts[0][:1] in ([EARLY], (EARLY,))
                    if not early:
                        request = replace(request, body=await reader.readexactly(_length(request)))
                    self.requests.append(request)
                    await self._note()
                    script = self._next_script(request)
                    if not await self._play(script, request, reader, writer):
                        break
        except asyncio.CancelledError:
            # asyncio's streams report a handler that ends cancelled; this is how the server stops.
            pass
        finally:
            self._tasks.discard(task)
            self.connections_open -= 1
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            await self._note()

    def _next_script(self, request: RawRequest) -> Script:
        if self._scripts:
            return self._scripts.popleft()
        return self.otherwise(request) if callable(self.otherwise) else self.otherwise

    async def _play(
        self, script: Script, request: RawRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Play a script; whether the connection goes on."""
        body = bytearray()
        for step in script:
            if isinstance(step, int):
                await self._receive(body, len(body) + step, reader)
            elif isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, asyncio.Event):
                if script[0] is EARLY:
                    # What there is to read is the request's body, so a read would not notice that the client has gone.
                    await step.wait()
                elif not await _set_or_gone(step, reader):
                    return False
            elif step is CLOSE:
                return False
            elif step is RESET:
                sock = writer.get_extra_info("socket")
                # No linger: the kernel answers with RST instead of FIN.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return False
            elif step is BODY:
                await self._receive(body, _length(request), reader)
                at = next(at for at, recorded in enumerate(self.requests) if recorded is request)
                self.requests[at] = replace(request, body=bytes(body))
                await self._note()
        return True

    async def _receive(self, body: bytearray, until: int, reader: asyncio.StreamReader) -> None:
        while len(body) < until:
            body += await reader.readexactly(min(PIECE_BYTES, until - len(body)))
            self.body_bytes = len(body)
            await self._note()
            # A turn of the loop for the client, in which it may write more than a piece.
            await asyncio.sleep(0)


@contextmanager
def busy_listener() -> Iterator[str]:
    """The URL of a listener whose queue is full, so that it answers no further handshake."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(50):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        else:
            raise AssertionError("the queue does not fill")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def refusing_url() -> Iterator[str]:
    """The URL of a port that refuses connections, which no other program gets before the block ends."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


async def _set_or_gone(event: asyncio.Event, reader: asyncio.StreamReader) -> bool:
    """Wait for the event, or for the client to go away; whether it was the event."""
    waits = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(reader.read(1))}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return event.is_set()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _receive_head(reader: asyncio.StreamReader, number: int) -> RawRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.split("\r\n")[:-2]
    method, target, _ = request_line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RawRequest(method, target, headers, b"", number)


def _length(request: RawRequest) -> int:
    return int(request.headers.get("content-length", "0"))
