"""The session that `SessionTransport` creates, and its connector."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from aiosmrt._idle import IdleChecks, close_at_once, may_be_used_again
from aiosmrt._transport.aiohttp_session.payloads import SlicedBody, WholeBody
from aiosmrt._transport.aiohttp_session.responses import Response
from aiosmrt._transport.aiohttp_session.watchdog import Watched
from aiosmrt._transport.base import IDLE_SECONDS
from aiosmrt._transport.sockets import create_socket

__all__ = ["RenewalFailedError", "close_session", "create_session"]

# aiohttp pauses reading at twice this: 256 KiB was the fastest mark for streams (docs/design/architecture.md).
_READ_BUFFER_BYTES = 2**17


class RenewalFailedError(Exception):
    """A request could not be signed again.

    aiohttp would take some errors for its own and change their class, so they pass through it in this one.

    Args:
        error: why.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Connector(aiohttp.TCPConnector):
    """Closes idle connections on which something has arrived, has requests signed again, and starts read timeouts.

    A request is signed again when a connection was made for it, because that takes time.

    Args:
        expected: the requests that wait for a connection, by task. The timeout of a small one starts when it has got
            one; making connections has a timeout itself.
    """

    def __init__(self, expected: dict[asyncio.Task[Any], Watched]) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE_SECONDS, socket_factory=create_socket)
        self._expected = expected
        self._checks = IdleChecks()

    async def connect(self, req: Any, traces: Any, timeout: Any) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None or connection.transport is None:
                return connection  # it was lost, which aiohttp reports
            has_unread, used = self._checks.of(connection)
            if may_be_used_again(protocol, has_unread) if used else await _renewed(req, connection):
                break
            close_at_once(connection)
        watched = self._expected.get(asyncio.current_task(asyncio.get_running_loop()))  # type: ignore[arg-type]
        if watched is not None:
            watched.has_unread = has_unread
            if not watched.large:
                watched.watchdog.begin(watched)
        return connection

    def abort(self) -> None:
        """Close the sockets of all connections.

        When asyncio closes a TLS connection, it waits up to 30 s for the server's part of that, and aiohttp does not
        keep track of such connections. Nothing is left to be sent or read on them.
        """
        for transport in self._checks.transports():
            transport.abort()


async def _renewed(request: Any, connection: aiohttp.connector.Connection) -> bool:
    """Sign a request again; return whether its connection is still open."""
    body = request.body
    if not isinstance(body, (WholeBody, SlicedBody)) or body.renewal is None:
        return True
    try:
        await body.renewal.apply(request.headers)
    except Exception as error:
        connection.release()
        failure = RenewalFailedError(error)
    except BaseException:
        connection.release()
        raise
    else:
        return not connection.closed
    # Outside the handler, so that what it carries does not become its context.
    try:
        raise failure
    finally:
        del failure


async def close_session(session: aiohttp.ClientSession) -> None:
    """Close a session that `create_session` has created, and its sockets."""
    connector = session.connector
    await session.close()
    if isinstance(connector, _Connector):
        connector.abort()
        # asyncio closes their sockets in the next iteration of the loop.
        await asyncio.sleep(0)


def create_session(expected: dict[asyncio.Task[Any], Watched]) -> aiohttp.ClientSession:
    """Create a session for signed API calls: no cookies, no decompression, no limit on connections.

    Args:
        expected: the requests that wait for a connection, by task.
    """
    return aiohttp.ClientSession(
        connector=_Connector(expected),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
        response_class=Response,
    )
