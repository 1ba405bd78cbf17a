"""The only module of the suite that knows a client's private attributes.

A test reads results, statistics, events and what its server has recorded. Where none of them can show or decide what
it needs, such as the time, random numbers or the connections in a pool, it goes through a function of this module.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiosmrt import Client, Credentials, EventStream
from aiosmrt._core import client_core
from aiosmrt._core.admission import Admission, CallLater
from aiosmrt._transport.aiohttp_session.transport import SessionTransport
from aiosmrt._transport.base import Transport
from aiosmrt._transport.bodystream import BodyStream
from aiosmrt._transport.factory import TransportName, create_transport
from aiosmrt._transport.pooled import PooledTransport

# Time and chance. A client shares them with its views.


def set_clock(client: Client, clock: Callable[[], float]) -> None:
    """Set the clock by which a client measures deadlines, patience and pauses.

    Args:
        client: the client.
        clock: returns seconds; only differences count.
    """
    client._core.clock = clock


def set_wall_clock(client: Client, clock: Callable[[], float]) -> None:
    """Set the clock by which a client signs.

    Args:
        client: the client.
        clock: returns seconds since 1970.
    """
    client._core.wall_clock = clock


def set_call_later(client: Client, call_later: CallLater) -> None:
    """Set what a client's timers run on.

    Args:
        client: the client.
        call_later: as ``asyncio.AbstractEventLoop.call_later``.
    """
    client._core.call_later = call_later


def set_sleep(client: Client, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Set how a client waits in back-off.

    Args:
        client: the client.
        sleep: as ``asyncio.sleep``.
    """
    client._core.sleep = sleep


def set_random(client: Client, random: Callable[[], float]) -> None:
    """Set the source of a client's jitter.

    Args:
        client: the client.
        random: returns a number from 0.0 to 1.0.
    """
    client._core.random = random


# Credentials


def expire_credentials(client: Client, renew: Callable[[], Awaitable[Credentials]]) -> None:
    """Have a client's next request wait for new credentials.

    Args:
        client: the client.
        renew: returns the new credentials.
    """
    cache: Any = client._core.credentials
    cache.current = lambda: None
    cache.get = renew


# Admission


def admission_of(client: Client, endpoint: str) -> Admission:
    """What admits the calls to an endpoint, without inference component and variant."""
    return client._view.admissions.of(endpoint)


# Transport


def set_default_transport(monkeypatch: pytest.MonkeyPatch, name: TransportName | None) -> None:
    """Choose what carries the calls of clients that name neither a transport nor a session.

    Args:
        monkeypatch: undoes the choice.
        name: the transport; if None, the client's own choice.
    """

    async def create_chosen(asked: TransportName | None, origin: str, **arguments: Any) -> Transport:
        unnamed = asked is None and arguments["session"] is None
        return await create_transport(name if unnamed else asked, origin, **arguments)

    monkeypatch.setattr(client_core, "create_transport", create_chosen)


def transport_of(client: Client) -> Transport | None:
    """A client's transport; None before the first call and after closing."""
    return client._core.transport if client._core.ready_in else None


def connections_idle(transport: Transport) -> int:
    """Count the connections that wait for another request."""
    if isinstance(transport, PooledTransport):
        return len(transport._idle)
    assert isinstance(transport, SessionTransport)
    # aiohttp drops closed connections only when it looks for one to use.
    pooled = [entry[0] for connections in _connector(transport)._conns.values() for entry in connections]
    return sum(handler.is_connected() for handler in pooled)


def connections_in_use(transport: Transport) -> int:
    """Count the connections that serve a request; aiohttp offers no public count of them."""
    if isinstance(transport, PooledTransport):
        # Each connection is a lease from the connector, idle or not.
        assert len(_connector(transport)._acquired) == len(transport._connections)
        return len(transport._connections) - len(transport._idle)
    return len(_connector(transport)._acquired)


def unread(transport: Transport, timeout: float = 0.0) -> int:
    """Count the idle connections in whose sockets something waits; blocks the loop until that is so.

    Args:
        transport: the transport.
        timeout: how long to wait for one, seconds.
    """
    transports: list[Any]
    if isinstance(transport, PooledTransport):
        transports = [connection._transport for connection in transport._idle]
    else:
        transports = [entry[0].transport for idle in _connector(transport)._conns.values() for entry in idle]
    sockets = [one.get_extra_info("socket") for one in transports if one is not None]
    descriptors = [sock.fileno() for sock in sockets if sock is not None and sock.fileno() >= 0]
    return len(select.select(descriptors, [], [], timeout)[0])


async def until_read(transport: Transport) -> None:
    """Wait until the loop has read what arrives on idle connections."""
    assert unread(transport, 20.0)
    while unread(transport):
        await asyncio.sleep(0)
    await asyncio.sleep(0)


async def until_lost(transport: Transport) -> None:
    """Wait until the loop has noticed that all connections have ended."""
    while any(handler.is_connected() for handler in _connector(transport)._acquired):
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def _connector(transport: Transport) -> Any:
    if isinstance(transport, PooledTransport):
        return transport._connector
    assert isinstance(transport, SessionTransport)
    return transport._session.connector


def has_broken(stream: EventStream) -> bool:
    """Whether the connection under a stream has failed; its reader may not know yet."""
    below: Any = stream._stream
    if isinstance(below, BodyStream):
        return below._failure is not None
    return below._response.content.exception() is not None
