"""The fast transport: aiohttp's connector makes the connections, this module keeps and uses them.

Name resolution, happy eyeballs, TLS, socket options and connect timeouts are ``aiohttp.TCPConnector.connect()``'s. What
it gives is put under a protocol of our own (`aiosmrt._transport.connection`) for as long as it lives, and waits for its
next exchange here and not in aiohttp's pool: the connector belongs to this transport alone and has no limit, so nobody
else could want the connection. A call so costs a third of what it costs through ``aiohttp.ClientSession``
(benchmarks/overhead.py), which creates some thirty objects for it.

The connection that was used last is used next: those that a burst of calls needed stay unused, and are closed after
`IDLE_SECONDS`.

The service closes idle connections as well. When that is noticed only after a request was written to one, and no byte
of a response came, the request goes out again on a fresh connection. That repeats a POST of which the service may, in
theory, have taken notice; ``Request.resend`` switches it off.

What is used of aiohttp: ``ClientSession`` with a client middleware, once, for a request object as the connector wants
it (so that aiohttp decides what a URL and ``ssl`` mean); ``TCPConnector.connect(request, traces, timeout)`` and
``close()``; a connection's ``transport`` and ``close()``. `check_aiohttp` and `PooledTransport.prepare` look whether it
is there.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import ssl
from collections.abc import Coroutine
from functools import cache
from typing import Any, NoReturn, cast

import aiohttp
from aiohttp.connector import Connection as Lease

from aiosmrt._transport import IDLE_SECONDS, Reply, ReplyStream, Request
from aiosmrt._transport.connection import Answer, Connection, Receiver
from aiosmrt._transport.failures import closed_during_call, connect_error, connection_closed, is_being_cancelled
from aiosmrt._transport.sockets import open_socket
from aiosmrt.errors import ClientStateError

__all__ = ["PooledTransport", "UnsupportedError", "check_aiohttp"]


class PooledTransport:
    """Carries requests over connections of its own. Made on the event loop that uses it.

    Args:
        origin: scheme, host and port of the service, without a path.
        verify: whether certificates are checked, or the context to check them with.

    >>> from aiosmrt.errors import EndpointConnectionError
    >>> async def main():
    ...     transport = PooledTransport("http://127.0.0.1:9")
    ...     try:
    ...         await transport.exchange(Request("/", "", b"", 1.0, 1.0))
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
        self._connector = aiohttp.TCPConnector(limit=0, socket_factory=open_socket)
        self._receiver = Receiver()
        # what the connector makes connections for
        self._request: aiohttp.ClientRequest | None = None
        self._timeouts: dict[float | None, aiohttp.ClientTimeout] = {}
        # the next time at which a connection may have been silent for too long
        self._next_look = math.inf
        self._looker: asyncio.TimerHandle | None = None
        # all of them, and of these the idle ones with the time since when; the last one was used last
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, float] = {}
        self._connecting: set[asyncio.Task[Lease]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<PooledTransport {self.origin} connections={len(self._connections)} idle={len(self._idle)}>"

    def exchange(self, request: Request) -> Coroutine[Any, Any, Reply]:
        """Send a request and receive its whole response; see `aiosmrt._transport.Transport.exchange`."""
        return self._carry(request, False)

    def open(self, request: Request) -> Coroutine[Any, Any, ReplyStream]:
        """Send a request and receive its response's head; see `aiosmrt._transport.Transport.open`."""
        return self._carry(request, True)

    async def _carry(self, request: Request, streams: bool) -> Any:
        target, headers, body, connect_timeout, read_timeout, resend = request
        head = f"POST {target} HTTP/1.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode()
        # Many wait here at the same time: what they hold goes through the processor's caches, and the collector.
        del request, headers, target
        silence = math.inf if read_timeout is None else read_timeout
        now = self._loop.time()
        connection = self._take(now) if self._idle else None
        while True:
            if connection is None:
                connection = await self._connect(connect_timeout)
                now = self._loop.time()
            if now + silence < self._next_look:
                self._look_at(now + silence)
            waiter = connection.send(head, body, streams, resend, silence, now)
            try:
                answer: Answer = await waiter
            except (asyncio.CancelledError, GeneratorExit):
                connection.abandon(waiter)
                raise
            finally:
                # An error's traceback holds this frame, and the future holds the error.
                del waiter
            if answer is not None:
                return answer
            connection = None

    async def prepare(self) -> None:
        """Have aiohttp make the request object that connections are made for; no I/O.

        Raises:
            ClientStateError: closed.
            UnsupportedError: aiohttp does not do it the way that it was known to.
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
        # somebody took the session's place, such as aioresponses
        raise UnsupportedError("aiohttp's client does not ask its middlewares")

    async def close(self) -> None:
        """Close all connections; exchanges and streams under way fail."""
        self._closed = True
        if self._looker is not None:
            self._looker.cancel()
            self._looker = None
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._connections):
            connection.fail(closed_during_call())
        for connecting in self._connecting:
            connecting.cancel()
        await self._connector.close()

    # Connections

    def _take(self, now: float) -> Connection | None:
        """An idle connection that was not idle for too long."""
        while self._idle:
            connection, since = self._idle.popitem()
            if now - since <= IDLE_SECONDS:
                return connection
            connection.discard()
        return None

    async def _connect(self, connect_timeout: float | None) -> Connection:
        if self._closed or self._request is None:
            await self.prepare()
        timeout = self._timeouts.get(connect_timeout)
        if timeout is None:
            timeout = self._timeouts[connect_timeout] = aiohttp.ClientTimeout(
                total=None, connect=connect_timeout, sock_connect=connect_timeout
            )
        # A task of its own, because aiohttp's connector, when it is closed, goes on with connections that it is making.
        connecting = self._loop.create_task(
            self._connector.connect(cast("aiohttp.ClientRequest", self._request), [], timeout), name="aiosmrt-connect"
        )
        self._connecting.add(connecting)
        failure: Exception
        try:
            lease = await connecting
        except asyncio.CancelledError:
            if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
                connecting.result().close()
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
            failure = closed_during_call() if self._closed else connection_closed(self.origin, None)
        finally:
            self._connecting.discard(connecting)
            del connecting
        # Behind the handler, so that the foreign error does not hang on as the context; and without a reference from
        # this frame, which the error's traceback holds.
        try:
            raise failure
        finally:
            del failure

    def released(self, connection: Connection) -> None:
        """A connection is idle."""
        self._idle[connection] = self._loop.time()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(IDLE_SECONDS, self._sweep)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)

    def expects(self, connection: Connection) -> None:
        """A connection must not be silent beyond its ``silent_until``."""
        if connection.silent_until < self._next_look:
            self._look_at(connection.silent_until)

    def _look_at(self, when: float) -> None:
        self._next_look = when
        if self._looker is not None:
            self._looker.cancel()
        self._looker = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """End exchanges whose connections were silent for too long.

        One timer serves them all, and an exchange that ends in time costs it nothing: it is set to the earliest end of
        all, and where it strikes in vain, because that one was heard of since, to the then earliest one.
        """
        self._looker = None
        now = self._loop.time()
        earliest = math.inf
        for connection in list(self._connections):
            if connection.silent_until <= now:
                connection.expire()
            earliest = min(earliest, connection.silent_until)
        self._next_look = math.inf
        if earliest < math.inf:
            self._look_at(earliest)

    def _sweep(self) -> None:
        """Close what was idle for too long."""
        self._sweeper = None
        since = self._loop.time() - IDLE_SECONDS
        for connection in [connection for connection, idle_since in self._idle.items() if idle_since <= since]:
            connection.discard()
        if self._idle:
            self._sweeper = self._loop.call_at(next(iter(self._idle.values())) + IDLE_SECONDS, self._sweep)


class UnsupportedError(Exception):
    """This aiohttp cannot be used in this way."""


class _Captured(Exception):
    def __init__(self, request: aiohttp.ClientRequest) -> None:
        super().__init__()
        self.request = request


@cache
def check_aiohttp() -> None:
    """Look whether the installed aiohttp has what this transport needs.

    Raises:
        UnsupportedError: it has not.
    """
    missing = [
        what
        for what, there in (
            (
                "TCPConnector.connect(req, traces, timeout)",
                _takes(aiohttp.TCPConnector.connect, ["self", "req", "traces", "timeout"]),
            ),
            ("a connection's transport", isinstance(getattr(Lease, "transport", None), property)),
            ("a connection's close()", _takes(getattr(Lease, "close", None), ["self"])),
            ("client middlewares", "middlewares" in inspect.signature(aiohttp.ClientSession.__init__).parameters),
        )
        if not there
    ]
    if missing:
        raise UnsupportedError(f"aiohttp {aiohttp.__version__} lacks {', '.join(missing)}")


def _takes(function: Any, names: list[str]) -> bool:
    return callable(function) and list(inspect.signature(function).parameters) == names
