"""What tests of and on the local runtime share: a runtime with fake credentials, signed raw requests, a container."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from time import time
from typing import Any, Self
from urllib.parse import urlsplit

from aiohttp import web

from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer
from aiosmrt.local import LocalRuntime, StreamMessage
from aiosmrt.local.conversation import StreamClosedByContainer
from tests.support.peers import CLIENT_ARGUMENTS, CREDENTIALS, REGION

ACCEPTED = Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)


def local_runtime(endpoints: Mapping[str, Any], **arguments: Any) -> LocalRuntime:
    """A runtime that plays the tests' region and accepts the tests' credentials."""
    defaults: dict[str, Any] = {"credentials": ACCEPTED, "region": REGION, "drain_timeout": 1.0}
    return LocalRuntime(endpoints, **(defaults | arguments))


async def echo(invocation: Any) -> tuple[bytes, dict[str, str]]:
    """A model that returns its payload."""
    return invocation.body, {"Content-Type": invocation.content_type or "application/octet-stream"}


async def words(invocation: Any) -> AsyncIterator[bytes]:
    """A model that returns its payload word by word."""
    for word in invocation.body.split():
        yield word


async def conversation(invocation: Any) -> AsyncIterator[StreamMessage]:
    """A model of bidirectional streams: it tells its path and query, returns messages, and closes when told to."""
    yield StreamMessage(f"{invocation.model_path} {invocation.model_query}")
    async for message in invocation.messages:
        if message.data == "close":
            raise StreamClosedByContainer(4000, "tired")
        yield message


@cache
def _aiobotocore_session() -> Any:
    from aiobotocore.session import get_session

    return get_session()


def aiobotocore_client(url: str, **config: Any) -> Any:
    """An aiobotocore client that does not retry; its data files are read once for all tests."""
    from aiobotocore.config import AioConfig

    return _aiobotocore_session().create_client(
        "sagemaker-runtime",
        endpoint_url=url,
        config=AioConfig(**({"retries": {"total_max_attempts": 1}} | config)),
        **CLIENT_ARGUMENTS,
    )


@dataclass
class Draft:
    """A request to be signed and written to a socket; tests change it before or after signing."""

    url: str
    path: str = "/endpoints/echo/invocations"
    query: str = ""
    method: str = "POST"
    body: bytes = b"1,2,3"
    headers: list[tuple[str, str]] = field(default_factory=list)
    host: str = ""

    def __post_init__(self) -> None:
        self.host = self.host or urlsplit(self.url).netloc

    def sign(
        self,
        credentials: Credentials = ACCEPTED,
        *,
        at: float | None = None,
        region: str = REGION,
        service: str = "sagemaker",
    ) -> Self:
        """Add the signature over everything that is there now."""
        self.headers += Signer(region=region, service=service).sign(
            credentials, time() if at is None else at, self._to_sign(), sha256(self.body).hexdigest()
        )
        return self

    def presign(
        self, credentials: Credentials = ACCEPTED, *, at: float | None = None, expires_in: int = 60, body: bytes = b""
    ) -> Self:
        """Put a signature over an empty payload, or ``body``, into the query."""
        self.query = Signer(region=REGION).presign(
            credentials,
            time() if at is None else at,
            self._to_sign(),
            sha256(body).hexdigest(),
            expires_in=expires_in,
        )
        return self

    def _to_sign(self) -> SignedRequest:
        return SignedRequest(self.method, self.host, self.path, self.query, tuple(self.headers))

    def replace_header(self, name: str, change: Callable[[str], str]) -> Self:
        assert any(key.lower() == name.lower() for key, _ in self.headers), f"no header {name}"
        self.headers = [(key, change(value) if key.lower() == name.lower() else value) for key, value in self.headers]
        return self

    def without_header(self, name: str) -> Self:
        self.headers = [(key, value) for key, value in self.headers if key.lower() != name.lower()]
        return self

    def encode(self) -> bytes:
        target = f"{self.path}?{self.query}" if self.query else self.path
        headers = [("Host", self.host), *self.headers, ("Content-Length", str(len(self.body)))]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"{self.method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + self.body


@dataclass(frozen=True)
class RawAnswer:
    """What came back on a socket until it ended, or until the answer was complete."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended: str  # "complete", "closed" or "reset"


class RawConnection:
    """A TCP connection to a runtime."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Self]:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):  # which is what some tests are about
                await writer.wait_closed()

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> tuple[bytes, str]:
        """Everything until the connection ends, and how it ends."""
        data = b""
        while True:
            try:
                chunk = await self.reader.read(65536)
            except ConnectionResetError:
                return data, "reset"
            if not chunk:
                return data, "closed"
            data += chunk

    async def exchange(self, request: bytes) -> RawAnswer:
        """Send a request and read its answer as far as it comes."""
        await self.write(request)
        return await self.answer()

    async def answer(self) -> RawAnswer:
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError as error:
            return RawAnswer(0, {}, error.partial, "closed")
        except ConnectionResetError:
            return RawAnswer(0, {}, b"", "reset")
        status_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        collected = bytearray()
        try:
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    await self._collect(size, collected)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            else:
                await self._collect(int(headers["content-length"]), collected)
            ended = "complete"
        except asyncio.IncompleteReadError:
            ended = "closed"
        except ConnectionResetError:
            ended = "reset"
        return RawAnswer(int(status_line.split()[1]), headers, bytes(collected), ended)

    async def _collect(self, size: int, into: bytearray) -> None:
        while size:
            # not readexactly: what comes before a cut counts
            chunk = await self.reader.read(size) or await self.reader.readexactly(size)
            into += chunk
            size -= len(chunk)


@dataclass
class ReceivedRequest:
    path: str
    headers: dict[str, str]
    body: bytes


class InProcessContainer:
    """A model container in this process: answers pings and hands invocations to a function.

    Args:
        serve: answers ``POST /invocations``; None echoes the payload.
    """

    def __init__(self, serve: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None) -> None:
        self._serve = serve
        self.ping_status = 200
        self.pings = 0
        self.received: list[ReceivedRequest] = []
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings += 1
        return web.Response(status=self.ping_status)

    async def _invoke(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(ReceivedRequest(request.path, headers, body))
        if self._serve is None:
            return web.Response(body=body, content_type=request.content_type)
        return await self._serve(request)

    async def start(self) -> None:
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await starting
            await self.stop()
            raise

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/ping", self._ping)
        app.router.add_post("/invocations", self._invoke)
        app.router.add_post("/v1/chat/completions", self._invoke)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        if self._runner is not None:
            try:
                await self._runner.cleanup()
            finally:
                self._runner = None

    @property
    def running(self) -> bool:
        return self._runner is not None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()
