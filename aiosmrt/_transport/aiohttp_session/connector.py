"""The session that `SessionTransport` creates, and its connector."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp

from aiosmrt._transport.aiohttp_session.responses import Response
from aiosmrt._transport.aiohttp_session.watchdog import Watched
from aiosmrt._transport.base import IDLE_SECONDS
from aiosmrt._transport.sockets import UnreadCheck, create_socket, unread_check

__all__ = ["create_session"]

# aiohttp pauses reading at twice this: 256 KiB was the fastest mark for streams (docs/design/architecture.md).
_READ_BUFFER_BYTES = 2**17


class _Connector(aiohttp.TCPConnector):
    """Closes idle connections on which something has arrived, and starts read timeouts.

    aiohttp's pool (3.12 to 3.14) uses such a connection again, and what has arrived becomes the next call's response.

    Args:
        expected: the requests that wait for a connection, by task. The timeout of a small one starts when it has got
            one; making connections has a timeout itself.
    """

    def __init__(self, expected: dict[asyncio.Task[Any], Watched]) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE_SECONDS, socket_factory=create_socket)
        self._expected = expected
        # of the connections that were used before
        self._unread_checks: WeakKeyDictionary[Any, UnreadCheck] = WeakKeyDictionary()

    async def connect(self, req: Any, traces: Any, timeout: Any) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                return connection  # it was lost, which aiohttp reports
            has_unread = self._unread_checks.get(protocol)
            if has_unread is None:
                # Data on a fresh connection is the server's part of the TLS handshake.
                has_unread = self._unread_checks[protocol] = unread_check(transport)
                break
            if not (protocol.should_close or has_unread()):
                break
            connection.close()
        watched = self._expected.get(asyncio.current_task(asyncio.get_running_loop()))  # type: ignore[arg-type]
        if watched is not None:
            watched.has_unread = has_unread
            if not watched.large:
                watched.watchdog.begin(watched)
        return connection


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
