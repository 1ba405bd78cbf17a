"""The default transport: aiohttp's connector makes the connections, this module pools and uses them.

``aiohttp.TCPConnector.connect()`` does name resolution, happy eyeballs, TLS, socket options and connect timeouts. Each
connection it returns gets our protocol (`aiosmrt._transport.connection`) for its whole life and is pooled here, not by
aiohttp: the connector belongs to this transport and is unlimited, so it needs no pool. A call costs a third of what it
costs through ``aiohttp.ClientSession`` (benchmarks/overhead.py), which creates some thirty objects for it.

The connection that was used last is used next, so that connections which only a burst of calls needed stay idle and are
closed after `IDLE_SECONDS`.

The service closes idle connections too. A connection is used again only if nothing waits to be read from it, not even
its end. If it turns out to be closed all the same, before the first byte of a response, the request is signed and sent
again on a fresh connection. In theory the service may have processed the first one; ``Request.resend`` turns this off.

What this uses of aiohttp: ``ClientSession`` with a client middleware, once, to obtain a request object for the
connector (so that aiohttp interprets URL and ``ssl``); ``TCPConnector.connect(request, traces, timeout)`` and
``close()``; a connection's ``transport`` and ``close()``. `check_aiohttp` and `PooledTransport.prepare` check for them.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import ssl
from collections.abc import Awaitable, Coroutine
from functools import cache
from typing import Any, NoReturn, cast

import aiohttp
from aiohttp.connector import Connection as Lease

from aiosmrt._transport.base import IDLE_SECONDS, MAX_TIMEOUTS, Reply, ReplyStream, Request
from aiosmrt._transport.connection import Connection, Receiver, Response
from aiosmrt._transport.failures import closed_during_call, connect_error, connection_closed, is_being_cancelled
from aiosmrt._transport.loops import clock_of
from aiosmrt._transport.sockets import create_socket
from aiosmrt.errors import ClientStateError

__all__ = ["PooledTransport", "UnsupportedError", "check_aiohttp"]


class PooledTransport:
    """Sends requests over its own pool of connections. Must be created on the event loop that uses it.

    Args:
        origin: scheme, host and port of the service, without a path.
        verify: whether to verify certificates, or the context to verify them with. Defaults to True.

    >>> from aiosmrt.errors import EndpointConnectionError
    >>> async def main():
    ...     transport = PooledTransport("http://127.0.0.1:9")
    ...     try:
    ...         await transport.send(Request("/", "", b"", 1.0, 1.0))
    ...     except EndpointConnectionError as error:
    ...         return error.endpoint_url
    ...     finally:
    ...         await transport.close()
    >>> asyncio.run(main())
    'http://127.0.0.1:9'
    """

    def __init__(self, origin: str, *, verify: bool | ssl.SSLContext = True) -> None:
        self.origin = origin
        self._verify = verify
        self._loop = asyncio.get_running_loop()
        self._time = clock_of(self._loop)
        self._connector = aiohttp.TCPConnector(limit=0, socket_factory=create_socket)
        self._receiver = Receiver()
        # the request that the connector makes connections for
        self._request: aiohttp.ClientRequest | None = None
        self._timeouts: dict[float | None, aiohttp.ClientTimeout] = {}
        # the earliest time at which a connection may have been silent for too long
        self._next_check = math.inf
        self._silence_timer: asyncio.TimerHandle | None = None
        # All connections, and the idle ones with the time at which they became idle, the most recent one last.
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, float] = {}
        self._connecting: set[asyncio.Task[Lease]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<PooledTransport {self.origin} connections={len(self._connections)} idle={len(self._idle)}>"

    def send_streaming(self, request: Request) -> Coroutine[Any, Any, Reply | ReplyStream]:
        """Send a request and receive its response's head; see `aiosmrt._transport.base.Transport.send_streaming`."""
        # Not `self.send`: a method that replaces it need not know of streams.
        return PooledTransport.send(self, request, streams=True)

    async def send(self, request: Request, *, streams: bool = False) -> Any:
        """Send a request and receive its whole response; see `aiosmrt._transport.base.Transport.send`.

        Args:
            request: the request.
            streams: whether to return a `ReplyStream` when the head has arrived. Defaults to False.
        """
        target, headers, body, renew_headers = request.target, request.headers, request.body, request.renew_headers
        connect_timeout, silence = request.connect_timeout, request.read_timeout
        resend, max_bytes = request.resend and renew_headers is not None, request.max_response_bytes
        # Many calls wait below at the same time, so they should hold few objects.
        del request
        if silence is None:
            silence = math.inf
        now = self._time()
        connection: Connection | None = None
        idle = self._idle
        while idle:
            connection, since = idle.popitem()
            # A connection with something to read has ended, or would give this call what is not its response.
            if now - since <= IDLE_SECONDS and not connection.has_unread():
                break
            connection.discard()
            connection = None
        try:
            while True:
                if connection is None:
                    connection = await self._connect(connect_timeout)
                    if renew_headers is not None:
                        headers = await self._while_unused(connection, renew_headers())
                        if connection.closed:
                            connection = None
                            continue
                    now = self._time()
                if now + silence < self._next_check:
                    self._schedule_check(now + silence)
                waiter = connection.send(
                    f"POST {target} HTTP/1.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode(),
                    body,
                    streams,
                    resend,
                    silence,
                    now,
                    max_bytes,
                )
                headers = ""
                try:
                    response: Response = await waiter
                except (asyncio.CancelledError, GeneratorExit):
                    connection.abandon(waiter)
                    raise
                finally:
                    # A cycle otherwise: the error's traceback holds this frame, and the future holds the error.
                    del waiter
                if response is not None:
                    return response
                connection = None
        finally:
            # An error's traceback holds this frame, and error reports show the values of its variables.
            del headers, body

    async def _while_unused(self, connection: Connection, renewing: Awaitable[str]) -> str:
        """Await new headers for a connection; if that fails, pool the connection."""
        try:
            return await renewing
        except BaseException:
            if not connection.closed:
                self.released(connection)
            raise

    async def prepare(self) -> None:
        """Obtain the request object that aiohttp's connector needs. Does no I/O.

        Raises:
            ClientStateError: the transport is closed.
            UnsupportedError: the installed aiohttp does not work as expected.
        """
        check_aiohttp()
        if self._closed:
            raise ClientStateError("the transport is closed")
        if self._request is not None:
            return

        async def capture(request: aiohttp.ClientRequest, handler: Any) -> NoReturn:
            raise _Captured(request)

        arguments: dict[str, Any] = {} if self._verify is True else {"ssl": self._verify}
        async with aiohttp.ClientSession(
            connector=self._connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(capture,),
        ) as session:
            try:
                await session.post(self.origin, **arguments)
            except _Captured as captured:
                self._request = captured.request
                return
            except aiohttp.ClientError:
                pass
        # A mock such as aioresponses has replaced the session's methods.
        raise UnsupportedError("aiohttp's client does not call its middlewares")

    async def close(self) -> None:
        """Close all connections. Requests and streams in progress fail."""
        self._closed = True
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        for connection in list(self._connections):
            connection.fail(closed_during_call())
        for connecting in self._connecting:
            connecting.cancel()
        await self._connector.close()
        # TLS connections are aborted in the next iteration of the loop, their sockets are closed in the one after.
        for _ in range(2):
            await asyncio.sleep(0)

    # Connections

    async def _connect(self, connect_timeout: float | None) -> Connection:
        if self._closed or self._request is None:
            await self.prepare()
        timeout = self._timeouts.get(connect_timeout)
        if timeout is None:
            if len(self._timeouts) >= MAX_TIMEOUTS:
                self._timeouts.clear()
            timeout = self._timeouts[connect_timeout] = aiohttp.ClientTimeout(
                total=None, connect=connect_timeout, sock_connect=connect_timeout
            )
        # In a task, so that close() can cancel it: aiohttp's connector finishes connections that it has begun to make.
        connecting = self._loop.create_task(
            self._connector.connect(cast("aiohttp.ClientRequest", self._request), [], timeout), name="aiosmrt-connect"
        )
        self._connecting.add(connecting)
        failure: Exception
        try:
            lease = await connecting
        except asyncio.CancelledError:
            if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
                late = connecting.result()
                if late.transport is not None:
                    late.transport.abort()
                late.close()
                del late
            if not self._closed or is_being_cancelled():
                raise
            failure = closed_during_call()
        except (aiohttp.ClientError, OSError) as error:
            failure = closed_during_call() if self._closed else connect_error(error, self.origin)
        else:
            transport = lease.transport
            if not self._closed and transport is not None:
                connection = Connection(self, self._receiver, lease, transport, self.origin)
                self._connections.add(connection)
                return connection
            lease.close()
            if transport is not None:
                # A connector that has been closed does not close what comes up afterwards.
                transport.abort()
            failure = closed_during_call() if self._closed else connection_closed(self.origin, None)
        finally:
            self._connecting.discard(connecting)
            del connecting
        # Outside the handler, so that aiohttp's error does not become the context. Without `del`, the error's traceback
        # and this frame would keep each other alive.
        try:
            raise failure
        finally:
            del failure

    def released(self, connection: Connection) -> None:
        """Pool a connection."""
        self._idle[connection] = self._time()
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(IDLE_SECONDS, self._close_idle)

    def lost(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)

    def watch(self, connection: Connection) -> None:
        """Expire a connection when its ``silent_until`` has passed."""
        if connection.silent_until < self._next_check:
            self._schedule_check(connection.silent_until)

    def _schedule_check(self, when: float) -> None:
        self._next_check = when
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        self._silence_timer = self._loop.call_at(when, self._check_silence)

    def _check_silence(self) -> None:
        """Fail the requests whose connections were silent for too long.

        One timer serves all requests, and a request that ends in time does not touch it: the timer is set to the
        earliest expiry. If that request has ended or made progress by then, it is set to the next earliest expiry.
        """
        self._silence_timer = None
        now = self._time()
        earliest = math.inf
        for connection in list(self._connections):
            if connection.silent_until <= now:
                connection.expire()
            earliest = min(earliest, connection.silent_until)
        self._next_check = math.inf
        if earliest < math.inf:
            self._schedule_check(earliest)

    def _close_idle(self) -> None:
        """Close the connections that were idle for too long."""
        self._idle_timer = None
        since = self._time() - IDLE_SECONDS
        for connection in [connection for connection, idle_since in self._idle.items() if idle_since <= since]:
            connection.discard()
        if self._idle:
            self._idle_timer = self._loop.call_at(next(iter(self._idle.values())) + IDLE_SECONDS, self._close_idle)


class UnsupportedError(Exception):
    """The installed aiohttp cannot be used by the pooled transport."""


class _Captured(Exception):
    def __init__(self, request: aiohttp.ClientRequest) -> None:
        super().__init__()
        self.request = request


@cache
def check_aiohttp() -> None:
    """Check that the installed aiohttp has everything that this transport uses.

    Raises:
        UnsupportedError: something is missing.
    """
    missing = [
        what
        for what, found in (
            (
                "TCPConnector.connect(req, traces, timeout)",
                _has_parameters(aiohttp.TCPConnector.connect, ["self", "req", "traces", "timeout"]),
            ),
            ("a connection's transport", isinstance(getattr(Lease, "transport", None), property)),
            ("a connection's close()", _has_parameters(getattr(Lease, "close", None), ["self"])),
            ("client middlewares", "middlewares" in inspect.signature(aiohttp.ClientSession.__init__).parameters),
        )
        if not found
    ]
    if missing:
        raise UnsupportedError(f"aiohttp {aiohttp.__version__} lacks {', '.join(missing)}")


def _has_parameters(function: Any, names: list[str]) -> bool:
    return callable(function) and list(inspect.signature(function).parameters) == names
