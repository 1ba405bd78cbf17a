"""Idle connections: which of them may be used again.

What arrives on a connection while no request is under way is no answer (RFC 9112, 9.2). If such a connection were used
again, it would become the next request's: after one repeated response, every call gets its predecessor's. So whatever
has arrived on an idle connection, an end included, whether it was read or not, the connection is closed.

aiohttp's pools (3.12 to 3.14) do not look. Those that are made here get this check: `aiosmrt._transport` has its own
pool and the connector of its session, `check_idle_connections` and `checked_session` are for the others.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

__all__ = [
    "IdleChecks",
    "UnreadCheck",
    "check_idle_connections",
    "checked_session",
    "close_at_once",
    "may_be_used_again",
    "unread_check",
]

UnreadCheck = Callable[[], object]


def unread_check(transport: asyncio.BaseTransport) -> UnreadCheck:
    """Create a function that returns a true value if data or an end waits to be read from a connection.

    It looks at the socket, which costs one system call, and works on every loop that reads from sockets when they are
    readable. Two things go unnoticed, like data that is still on its way: under TLS, the beginning of a record that the
    loop has read already; on Windows's proactor loop, which reads ahead, data that has arrived since the loop last ran.

    Args:
        transport: the connection's transport.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return bool
    if not hasattr(select, "poll"):
        return lambda: select.select([sock], [], [], 0)[0]
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return partial(poller.poll, 0)


class IdleChecks:
    """The connections that a connector of aiohttp has lent, and the checks of those that come back."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # for as long as their protocols live
        self._known: WeakKeyDictionary[Any, tuple[asyncio.Transport, UnreadCheck]] = WeakKeyDictionary()

    def of(self, connection: Any) -> tuple[UnreadCheck, bool]:
        """Return a connection's check for data that was not read, and whether the connection was used before.

        Args:
            connection: an open connection, as the connector's ``connect()`` returned it.
        """
        protocol, transport = connection.protocol, connection.transport
        if (known := self._known.get(protocol)) is not None:
            return known[1], True
        # Data on a fresh connection is the server's part of the TLS handshake.
        has_unread = unread_check(transport)
        self._known[protocol] = transport, has_unread
        return has_unread, False

    def transports(self) -> list[asyncio.Transport]:
        """The transports of the connections that were lent and still exist."""
        return [transport for transport, _ in self._known.values()]


def may_be_used_again(protocol: Any, has_unread: UnreadCheck) -> bool:
    """Tell whether nothing has arrived on an idle connection of aiohttp's.

    Args:
        protocol: the connection's ``ResponseHandler``, before its next request.
        has_unread: the connection's check.
    """
    # The former is true once a response was read, the latter after half of one.
    return not (protocol.should_close or has_unread() or _is_inside_response(protocol))


def _is_inside_response(protocol: Any) -> bool:
    """Tell whether a protocol's parser, which the next request replaces, has taken in the beginning of a response."""
    parser = getattr(protocol, "_parser", None)
    if parser is None:
        return False
    if getattr(parser, "_tail", b"") or getattr(parser, "_lines", ()):
        return True  # of the parser that is written in Python
    try:
        return parser.feed_eof() is not None
    except Exception:  # aiohttp has a dozen of them for half a head
        return True


def close_at_once(connection: Any) -> None:
    """Close a connection of aiohttp's without waiting for the server's part of it."""
    if (transport := connection.transport) is not None:
        transport.abort()
    connection.close()


def check_idle_connections(connector: Any) -> None:
    """Have a connector of aiohttp's close idle connections on which something has arrived, and use others.

    Args:
        connector: a ``TCPConnector`` that belongs to this package; it may have been given before.
    """
    if "connect" in vars(connector):
        return
    connect, checks = connector.connect, IdleChecks()

    async def connect_checked(req: Any, traces: Any, timeout: Any) -> Any:
        while True:
            connection = await connect(req, traces, timeout)
            if connection.protocol is None or connection.transport is None:
                return connection  # it was lost, which aiohttp reports
            has_unread, used = checks.of(connection)
            if not used or may_be_used_again(connection.protocol, has_unread):
                return connection
            close_at_once(connection)

    connector.connect = connect_checked


@cache
def checked_session(session_class: Any) -> Any:
    """Make a class whose connections get `check_idle_connections`, for ``AioConfig(http_session_cls=…)``.

    Args:
        session_class: aiobotocore's (2.13 to 3) ``AIOHTTPSession``.
    """

    class CheckedSession(session_class):  # type: ignore[misc]
        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            check_idle_connections(session.connector)
            return session

    return CheckedSession
