"""The only module of the suite that knows private attributes of a client and of the local runtime.

A test reads results, statistics, events and what its server has recorded. Where none of them can show or decide what
it needs, such as the time, random numbers or the connections in a pool, it goes through a function of this module.
"""

from __future__ import annotations

import asyncio
import gc
import select
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client, Credentials, EventStream
from aiosmrt._core import client_core
from aiosmrt._core.admission import Admission, CallLater
from aiosmrt._transport.aiohttp_session.transport import SessionTransport
from aiosmrt._transport.base import Transport
from aiosmrt._transport.bodystream import BodyStream
from aiosmrt._transport.connection import Connection
from aiosmrt._transport.factory import TransportName, create_transport
from aiosmrt._transport.pooled import PooledTransport
from aiosmrt.config import UNSET, Unset
from aiosmrt.endpoint import Endpoint
from aiosmrt.local import LocalRuntime, ObjectServer

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
    cache.current = lambda now=None: None
    cache.get = renew


def replace_credentials(client: Client, credentials: Credentials) -> None:
    """Have a client sign with other credentials from now on, as after a refresh.

    Args:
        client: the client.
        credentials: the new ones.
    """
    cache: Any = client._core.credentials
    cache.current = lambda now=None: credentials


# Settings


def limits_of(endpoint: Endpoint[Any, Any]) -> tuple[float | None, float | None]:
    """The ``deadline`` and the ``wait_for_capacity`` of an endpoint's calls."""
    client = endpoint._client
    assert isinstance(client, Client)
    return client._view.deadline, client._view.wait_for_capacity


def patience_of_map(client: Client, patience: float | Unset | None = UNSET) -> float | None:
    """The patience of the calls of a map, seconds; None if it does not end.

    Args:
        client: the client.
        patience: as the map's. Defaults to none given.
    """
    view = client._for_job(patience)._view
    view.settle(None, None, 0.0)
    return view.patience_seconds


async def s3_url_of(client: Client) -> str:
    """The URL of the S3 in which a client's jobs look for their answers."""
    store = await client._object_store()
    url: str = (await store._opened()).meta.endpoint_url
    return url


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


def bodies_arriving(transport: SessionTransport) -> int:
    """Count the responses whose bodies have not arrived in full."""
    return len(transport._open_responses)


def connections_remembered(transport: PooledTransport) -> int:
    """Count the connections that a transport or aiohttp's connector below it still knows."""
    connector = _connector(transport)
    by_key = (*connector._conns.values(), *connector._acquired_per_host.values())
    return len(transport._connections) + len(connector._acquired) + sum(map(len, by_key))


def connection_objects(transport: PooledTransport) -> list[Connection]:
    """The connections of a transport that the garbage collector knows."""
    return [one for one in gc.get_objects() if type(one) is Connection and one._owner is transport]


def watches_idle(transport: PooledTransport) -> bool:
    """Whether a timer runs that will close connections which are idle for too long."""
    return transport._idle_timer is not None


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


# The local runtime


def abort_connection(runtime: LocalRuntime) -> None:
    """Have the server lose its only connection now, before it has read that its client went away."""
    assert runtime._web is not None
    (served,) = runtime._web.connections
    assert served.transport is not None
    served.transport.abort()


def data_folder(server: ObjectServer) -> Path:
    """Where an object server keeps its objects, identities and certificate."""
    assert server._run is not None
    return server._run.folder


def kill_supervisor(server: ObjectServer) -> None:
    """Kill the process that ends an object server with its owner."""
    assert server._run is not None
    server._run.process.kill()
