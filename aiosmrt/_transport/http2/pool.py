"""The connections to one HTTP/2 server, each of them shared by as many streams as the server allows.

Those who find no room share one attempt to connect. An idle connection is closed after `IDLE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from aiohappyeyeballs import AddrInfoType as AddressInfo
from aiohappyeyeballs import start_connection

from aiosmrt._transport.base import IDLE_SECONDS
from aiosmrt._transport.failures import bad_certificate, closed_during_call
from aiosmrt._transport.http2.connection import PING_AFTER_SECONDS, PING_LIMIT_SECONDS, Connection, Link
from aiosmrt._transport.sockets import create_socket
from aiosmrt._wire.http1 import DEFAULT_PORTS
from aiosmrt._wire.http2 import header_fields
from aiosmrt.errors import (
    AiosmrtError,
    ConnectTimeoutError,
    EndpointConnectionError,
    SSLError,
    fresh_copy,
)

__all__ = ["Http2Pool", "Lease"]

# Why a connection is of no use from the beginning.
_REASONS: Final[Mapping[str | None, str]] = {
    None: "it allows no streams",
    "lost": "it closed the connection",
    "malformed": "it does not speak HTTP/2",
}
# RFC 8305 has 250 ms
_HAPPY_EYEBALLS_DELAY: Final = 0.25


class Lease:
    """Room for one stream on a connection; use it once, by `open` or `release`.

    Args:
        connection: the connection.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        connection.reserved += 1
        self._connection: Connection | None = connection

    def open(self, headers: list[tuple[str, str]], on_change: Callable[[], object]) -> Link | None:
        """Begin a request; None if the connection takes no more streams by now.

        Args:
            headers: the pseudo-header fields, then the others.
            on_change: as in `aiosmrt._transport.http2.connection.Link`.
        """
        try:
            return None if self._connection is None else self._connection.open(header_fields(headers), on_change)
        finally:
            self.release()

    def release(self) -> None:
        """Give the room back. May be called more than once."""
        if self._connection is not None:
            self._connection.give_back()
            self._connection = None


class Http2Pool:
    """Connections to one origin.

    Args:
        origin: scheme, host and port. ``http`` means HTTP/2 without TLS, with prior knowledge.
        context: for ``https``, how to verify certificates; it must offer ``h2`` (ALPN). If None, no TLS.
        ping_after: as in `aiosmrt._transport.http2.connection.Connection`.
        ping_limit: as there.
    """

    def __init__(
        self,
        origin: str,
        *,
        context: ssl.SSLContext | None,
        ping_after: float = PING_AFTER_SECONDS,
        ping_limit: float = PING_LIMIT_SECONDS,
    ) -> None:
        self.origin = origin
        self._context = context
        self._ping_after = ping_after
        self._ping_limit = ping_limit
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._idle_timers: dict[Connection, asyncio.TimerHandle] = {}
        self._connecting: asyncio.Task[Connection] | None = None
        self._waiting = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Http2Pool {self.origin} connections={len(self._connections)}>"

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    async def acquire(self, connect_timeout: float | None) -> Lease:
        """Room for one stream.

        Args:
            connect_timeout: limit for making a connection, TLS and the server's SETTINGS included, seconds. If None, no
                limit.

        Raises:
            TransportError: no connection could be made.
            ClientStateError: the pool was closed.
        """
        while True:
            if self._closed:
                raise closed_during_call()
            for connection in self._connections:
                if connection.has_room():
                    timer = self._idle_timers.pop(connection, None)
                    if timer is not None:
                        timer.cancel()
                    return Lease(connection)
            await self._connect(connect_timeout)

    async def close(self) -> None:
        """Close all connections; their streams fail."""
        self._closed = True
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
        for timer in self._idle_timers.values():
            timer.cancel()
        self._idle_timers.clear()
        for connection in list(self._connections):
            connection.close()
        if connecting is not None:
            await asyncio.wait({connecting})
        # An aborted connection tells its protocol in the next iteration of the loop, and closes its socket then.
        for _ in range(2):
            await asyncio.sleep(0)

    async def _connect(self, connect_timeout: float | None) -> None:
        """Wait for the one attempt to connect that is under way, or is begun here."""
        connecting = self._connecting
        if connecting is None:
            connecting = self._connecting = self._loop.create_task(
                self._new_connection(connect_timeout), name="aiosmrt-http2-connect"
            )
            connecting.add_done_callback(self._connected)
        self._waiting += 1
        try:
            await asyncio.wait({connecting})
        finally:
            self._waiting -= 1
            if not self._waiting and not connecting.done():
                # The last one who wanted it is gone.
                self._connecting = None
                connecting.cancel()
        try:
            if connecting.cancelled():
                raise closed_during_call()
            error = connecting.exception()
            if isinstance(error, AiosmrtError):
                raise fresh_copy(error)
            if error is not None:
                raise error
        finally:
            error = None
            del connecting

    def _connected(self, connecting: asyncio.Task[Connection]) -> None:
        if self._connecting is connecting:
            self._connecting = None
        if not connecting.cancelled():
            # Calls that waited raise it; if all are gone, it is marked as seen.
            connecting.exception()

    async def _new_connection(self, connect_timeout: float | None) -> Connection:
        parts = urlsplit(self.origin)
        host = parts.hostname or ""
        made: list[Connection] = []
        sockets: list[socket.socket] = []

        def create(address: AddressInfo) -> socket.socket:
            sockets.append(create_socket(address))
            return sockets[-1]

        def protocol() -> Connection:
            connection = Connection(
                self.origin, self._changed, ping_after=self._ping_after, ping_limit=self._ping_limit
            )
            made.append(connection)
            return connection

        failure: AiosmrtError
        try:
            async with asyncio.timeout(connect_timeout):
                addresses = await self._loop.getaddrinfo(
                    host, parts.port or DEFAULT_PORTS[parts.scheme], type=socket.SOCK_STREAM
                )
                sock = await start_connection(
                    addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY, interleave=1, socket_factory=create
                )
                transport, connection = await self._loop.create_connection(
                    protocol, sock=sock, ssl=self._context, server_hostname=None if self._context is None else host
                )
                if self._context is not None:
                    negotiated = transport.get_extra_info("ssl_object").selected_alpn_protocol()
                    if negotiated != "h2":
                        raise _NoHttp2Error  # noqa: TRY301 (the connection is closed below)
                await connection.ready()
        except BaseException as error:
            # Once there is a protocol, the loop or the protocol closes the socket. Before, a race of addresses that is
            # cancelled may forget the one that has just won.
            for connection in made:
                connection.close()
            if not made:
                for sock in sockets:
                    sock.close()
            if not isinstance(error, (OSError, _NoHttp2Error)):
                raise
            failure = self._connect_error(error)
        else:
            if connection.has_room():
                self._connections.add(connection)
                self._watch(connection)
                return connection
            reason = _REASONS[None if connection.failure is None else connection.failure.reason]
            connection.close()
            failure = EndpointConnectionError(
                f'Could not connect to endpoint URL: "{self.origin}" ({reason})', endpoint_url=self.origin
            )
        # Outside the handler, so that the system's error, whose frames hold this, does not become the context.
        try:
            raise failure
        finally:
            made.clear()
            sockets.clear()
            del failure

    def _connect_error(self, error: Exception) -> AiosmrtError:
        origin = self.origin
        error.__traceback__ = None
        ours: AiosmrtError
        if isinstance(error, _NoHttp2Error):
            return SSLError(f'No HTTP/2 at endpoint URL: "{origin}"', endpoint_url=origin, cause="none")
        if isinstance(error, ssl.SSLCertVerificationError):
            ours = bad_certificate(origin)
        elif isinstance(error, ssl.SSLError):
            ours = SSLError(f'TLS failed with endpoint URL: "{origin}"', endpoint_url=origin)
        elif isinstance(error, TimeoutError) and not isinstance(error, socket.gaierror):
            ours = ConnectTimeoutError(f'Connect timeout on endpoint URL: "{origin}"', endpoint_url=origin)
        else:
            ours = EndpointConnectionError(f'Could not connect to endpoint URL: "{origin}"', endpoint_url=origin)
        ours.__cause__ = error
        return ours

    def _changed(self, connection: Connection) -> None:
        """Forget a connection that is of no use, and close one that is idle for too long."""
        if connection not in self._connections:
            return
        if connection.is_lost:
            self._connections.discard(connection)
            timer = self._idle_timers.pop(connection, None)
            if timer is not None:
                timer.cancel()
        elif connection.is_draining and not connection.open_streams:
            connection.close()
        else:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        if connection.open_streams or connection.reserved:
            timer = self._idle_timers.pop(connection, None)
            if timer is not None:
                timer.cancel()
        elif connection not in self._idle_timers:
            self._idle_timers[connection] = self._loop.call_later(IDLE_SECONDS, self._close_idle, connection)

    def _close_idle(self, connection: Connection) -> None:
        self._idle_timers.pop(connection, None)
        if not connection.open_streams and not connection.reserved:
            connection.close()


class _NoHttp2Error(Exception):
    """TLS was established, and the server did not choose HTTP/2."""
