"""The transport over ``aiohttp.ClientSession``.

aiohttp's connector owns the connections; this module gives it sockets that notice a dead peer, switches off what a
signed API call must not have (redirects, cookies, decompression, invented headers), and maps aiohttp's errors.

The pool has no limit of its own: the client's limiter decides how many calls run, and a second queue behind it would
be neither fair nor visible. A pooled connection is dropped after `IDLE_SECONDS` unused, well before NAT gateways and
VPC endpoints forget it after 350 s.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from aiosmrt._transport import IDLE_SECONDS, Reply, Request, Take
from aiosmrt._transport.failures import body_error, closed_during_call, head_error, is_being_cancelled, timed_out
from aiosmrt._transport.reading import OpenResponses
from aiosmrt._transport.sockets import open_socket
from aiosmrt._transport.watchdog import ReadWatchdog, Watched
from aiosmrt.errors import ClientStateError

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

__all__ = ["SessionTransport"]

# aiohttp pauses reading at twice this: 256 KiB were the fastest mark for streams (docs/design/architecture.md).
_READ_BUFFER_BYTES = 2**17

# Up to here a body goes out in one write with the head; above it in slices, so that the loop runs in between.
_WHOLE_BODY_BYTES = 2**16
_SLICE_BYTES = 2**18

# Distinct request targets (endpoint and operation) whose URL objects are kept.
_MAX_URLS = 1024

# HttpProcessingError comes from aiohttp's parser in Python, which is no ClientError there.
_BODY_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError)

# What a payload of aiohttp's says of itself; the request's own headers go before.
_BODY_HEADERS: CIMultiDict[str] = CIMultiDict({"Content-Type": "application/octet-stream"})

# aiohttp would say application/octet-stream where the caller said nothing.
_NO_CONTENT_TYPE = ("Content-Type",)


class _WholeBody(aiohttp.Payload):
    """A small body of a session of our own: as aiohttp sends bytes, without making headers and a slice for each."""

    _autoclose = True

    def __init__(self, body: bytes | memoryview) -> None:
        self._body = body

    @property
    def size(self) -> int:
        return len(self._body)

    @property
    def headers(self) -> CIMultiDict[str]:
        return _BODY_HEADERS

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._body).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await writer.write(self._body)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await writer.write(self._body)


class _SlicedBody(aiohttp.Payload):
    """A large body as aiohttp's payload: written in slices under back-pressure, neither copied nor warned about."""

    # nothing to close, which aiohttp wants to know
    _autoclose = True
    _value: bytes | memoryview

    def __init__(self, value: bytes | memoryview, watched: Watched | None) -> None:
        super().__init__(value)
        self._size = len(value)
        self._watched = watched

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        view = memoryview(self._value)[:content_length]
        for start in range(0, len(view), _SLICE_BYTES):
            await writer.write(view[start : start + _SLICE_BYTES])
        if self._watched is not None:
            self._watched.watchdog.begin(self._watched)


class SessionTransport:
    """Carries requests through an ``aiohttp.ClientSession``. Made on the event loop that uses it.

    Args:
        origin: scheme, host and port of the service, without a path.
        session: the caller's own session, which is neither configured nor closed here; None for an own one.
        verify: whether certificates are checked, or the context to check them with.
        proxy: URL of an HTTP proxy; None for a direct connection.

    >>> from aiosmrt.errors import EndpointConnectionError
    >>> async def main():
    ...     transport = SessionTransport("http://127.0.0.1:9")
    ...     try:
    ...         await transport.exchange(Request("/", "", b"", 1.0, 1.0))
    ...     except EndpointConnectionError as error:
    ...         return error.endpoint_url
    ...     finally:
    ...         await transport.close()
    >>> asyncio.run(main())
    'http://127.0.0.1:9'
    """

    def __init__(
        self,
        origin: str,
        *,
        session: aiohttp.ClientSession | None = None,
        verify: bool | ssl.SSLContext = True,
        proxy: str | None = None,
    ) -> None:
        self.origin = origin
        self._owned = session is None
        # exchanges that are watched from the moment on that they have a connection
        self._expected: dict[asyncio.Task[Any], Watched] = {}
        self._session = session if session is not None else _new_session(self._expected)
        self._urls: dict[str, URL] = {}
        self._timeouts: dict[tuple[float | None, float | None], aiohttp.ClientTimeout] = {}
        self._watchdogs: dict[float, ReadWatchdog] = {}
        self._reading = OpenResponses()
        # Arguments of all requests, with a content type and without; each costs, so the defaults are left out.
        self._typed: dict[str, Any] = {}
        if verify is not True:
            self._typed["ssl"] = verify
        if proxy is not None:
            self._typed["proxy"] = proxy
        if not self._owned:
            # the caller's own session may want it, but then the service's answer would be lost
            self._typed["raise_for_status"] = False
        self._untyped: dict[str, Any] = {**self._typed, "skip_auto_headers": _NO_CONTENT_TYPE}

    def __repr__(self) -> str:
        return f"<SessionTransport {self.origin} {'own' if self._owned else 'shared'} session>"

    async def exchange(self, request: Request) -> Reply:
        """Send a request and receive its whole response; see `aiosmrt._transport.Transport.exchange`."""
        with self._watching(request) as watched:
            return await self._exchange(request, request.read_timeout if watched is None else None, watched)

    @contextmanager
    def _watching(self, request: Request) -> Iterator[Watched | None]:
        """Watch over the request's exchange; give nothing where aiohttp has to do it.

        aiohttp's own timer costs more, and has a hole: behind an interim response (1xx) it has ended.
        """
        # Of the caller's own session nobody says here when it has a connection.
        if request.read_timeout is None or not self._owned:
            yield None
            return
        watchdog = self._watchdogs.get(request.read_timeout)
        if watchdog is None:
            watchdog = self._watchdogs[request.read_timeout] = ReadWatchdog(request.read_timeout)
        watched = watchdog.expect()
        # A large upload is not silence: it begins to be watched with its last byte.
        if len(request.body) <= _WHOLE_BODY_BYTES:
            self._expected[watched.task] = watched
        try:
            yield watched
        except asyncio.CancelledError:
            # as asyncio.timeout does it: somebody else's cancellation at the same time goes first
            if watched.expired and watched.task.uncancel() <= watched.cancelling:
                raise timed_out(self.origin) from None
            raise
        finally:
            self._expected.pop(watched.task, None)
            watchdog.forget(watched)

    async def _exchange(self, request: Request, read_timeout: float | None, watched: Watched | None) -> Reply:
        failure: Exception
        try:
            response = await self._post(request, read_timeout, watched)
        except asyncio.CancelledError:
            # aiohttp cancels the look-up of a name when it is closed, and with it those who wait for it
            if not self._session.closed or is_being_cancelled():
                raise
            failure = closed_during_call()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            failure = self._head_failure(error)
        else:
            content = response.content
            # A small body has come with its head, and its connection is back in the pool: what read() would do beyond
            # this is to tell the trace configurations of a caller's session.
            if self._owned and response.connection is None and content.is_eof() and content.exception() is None:
                return Reply(response.status, _headers(response), content.read_nowait())
            if watched is not None:
                watched.response = response
            self._reading.add(response)
            try:
                return Reply(response.status, _headers(response), await response.read())
            except _BODY_ERRORS as error:
                failure = body_error(error, self.origin)
                # The response keeps its error, whose traceback would keep this frame and with it the response.
                error.__traceback__ = None
            finally:
                self._reading.discard(response)
        # Behind the handlers, so that the foreign error does not hang on as the context; and without a reference from
        # this frame, which the error's traceback holds.
        try:
            raise failure
        finally:
            del failure

    async def open(self, request: Request) -> SessionReplyStream:
        """Send a request and receive its response's head; see `aiosmrt._transport.Transport.open`."""
        with self._watching(request) as watched:
            return await self._open(request, watched)

    async def _open(self, request: Request, watched: Watched | None) -> SessionReplyStream:
        try:
            # aiohttp's own read timeout is for the body.
            response = await self._post(request, request.read_timeout, watched)
            return SessionReplyStream(response, self.origin, self._reading)
        except asyncio.CancelledError:
            if not self._session.closed or is_being_cancelled():
                raise
            failure: Exception = closed_during_call()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            failure = self._head_failure(error)
        try:
            raise failure
        finally:
            del failure

    async def close(self) -> None:
        """Close the session if it is the transport's own."""
        for watchdog in self._watchdogs.values():
            watchdog.close()
        if self._owned:
            self._reading.close()
            await self._session.close()

    def _post(
        self, request: Request, read_timeout: float | None, watched: Watched | None
    ) -> Awaitable[aiohttp.ClientResponse]:
        target, lines, body, connect_timeout, _, _ = request
        url = self._urls.get(target)
        if url is None:
            if len(self._urls) >= _MAX_URLS:
                self._urls.clear()
            # the very bytes that were signed must be sent
            url = self._urls[target] = URL(self.origin + target, encoded=True)
        timeout = self._timeouts.get((connect_timeout, read_timeout))
        if timeout is None:
            timeout = self._timeouts[connect_timeout, read_timeout] = aiohttp.ClientTimeout(
                total=None,
                # includes the wait for a place in the pool, which may be long where the caller's own session limits it
                connect=connect_timeout if self._owned else None,
                sock_connect=connect_timeout,
                sock_read=read_timeout,
            )
        headers: CIMultiDict[str] = CIMultiDict()
        for line in lines.split("\r\n")[:-1]:
            name, _, value = line.partition(": ")
            headers.add(name, value)
        return self._session.post(
            url,
            data=_SlicedBody(body, watched)
            if len(body) > _WHOLE_BODY_BYTES
            else _WholeBody(body)
            if self._owned  # middlewares of the caller's want what they know
            else body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            **(self._typed if "Content-Type" in headers else self._untyped),
        )

    def _head_failure(self, error: Exception) -> Exception:
        if isinstance(error, RuntimeError) and not isinstance(error, OSError):
            return ClientStateError("the client's session is closed") if self._session.closed else error
        return head_error(error, self.origin)


class SessionReplyStream:
    """A response of `SessionTransport` whose body is read as it arrives.

    Args:
        response: aiohttp's response, its head received.
        origin: the service's origin, for errors.
        reading: the transport's open responses, which this one is among until it is closed.
    """

    __slots__ = ("_origin", "_reading", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, origin: str, reading: OpenResponses) -> None:
        self._response = response
        self._origin = origin
        self._reading = reading
        reading.add(response)
        self.status = response.status
        self.headers = _headers(response)

    async def receive(self, take: Take) -> bool:
        """Hand on what has arrived; see `aiosmrt._transport.ReplyStream.receive`."""
        data = await self.read()
        if data:
            take(data)
        return bool(data)

    async def read(self) -> bytes:
        """Whatever has arrived; empty at the end. See `aiosmrt._transport.ReplyStream.read`."""
        try:
            return await self._response.content.readany()
        except _BODY_ERRORS as error:
            if data := self._arrived_before(error):
                return data
            failure = body_error(error, self._origin)
        try:
            raise failure
        finally:
            del failure

    def _arrived_before(self, error: BaseException) -> bytes:
        """What came before a failure and was not read yet: aiohttp (3.14) puts the failure first and keeps the data."""
        content = self._response.content
        content.set_exception(None)  # type: ignore[arg-type]
        try:
            return content.read_nowait()
        finally:
            content.set_exception(error)

    def close(self) -> None:
        """Give the connection up unless the body was read to its end."""
        self._reading.discard(self._response)
        self._response.close()


class _Connector(aiohttp.TCPConnector):
    """Begins to watch an exchange when it has its connection: making one has a time limit of its own."""

    def __init__(self, expected: dict[asyncio.Task[Any], Watched]) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE_SECONDS, socket_factory=open_socket)
        self._expected = expected

    async def connect(self, req: Any, traces: Any, timeout: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        watched = self._expected.get(asyncio.current_task(asyncio.get_running_loop()))  # type: ignore[arg-type]
        if watched is not None:
            watched.watchdog.begin(watched)
        return connection


def _new_session(expected: dict[asyncio.Task[Any], Watched]) -> aiohttp.ClientSession:
    connector = _Connector(expected)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
    )


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    received = response.headers
    headers = {name.lower(): value for name, value in received.items()}
    if len(headers) != len(received):
        headers = {name: ", ".join(received.getall(name)) for name in headers}
    return headers
