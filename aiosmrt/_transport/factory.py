"""Chooses a client's transport and creates it."""

from __future__ import annotations

import ssl
import warnings
from typing import TYPE_CHECKING, Literal, TypeAlias

from aiosmrt._transport.pooled import PooledTransport, UnsupportedError
from aiosmrt.config import shown
from aiosmrt.errors import InvalidConfigError, ParamValidationError

if TYPE_CHECKING:
    import aiohttp

    from aiosmrt._transport.base import Transport

__all__ = ["TransportName", "check_transport", "create_transport"]

TransportName: TypeAlias = Literal["pooled", "session"]


def check_transport(name: TransportName | None, session: aiohttp.ClientSession | None) -> None:
    """Check a client's arguments; needs no running loop.

    Raises:
        ParamValidationError: the transport does not exist or cannot use the session.
    """
    if name not in (None, "pooled", "session"):
        raise ParamValidationError([f"transport must be 'pooled', 'session' or None; got {shown(name)}"])
    if name == "pooled" and session is not None:
        raise ParamValidationError(["transport='pooled' makes its own connections and does not accept a session"])


async def create_transport(
    name: TransportName | None,
    origin: str,
    *,
    session: aiohttp.ClientSession | None,
    verify: bool | ssl.SSLContext,
    proxy: str | None,
) -> Transport:
    """Create a transport on the running loop. Does no I/O.

    Args:
        name: which transport. Defaults to the pooled one unless there is a session or a proxy.
        origin: scheme, host and port of the service.
        session: the caller's session, if any.
        verify: whether to verify certificates, or the context to verify them with.
        proxy: URL of an HTTP proxy. If None, connections are direct.

    Raises:
        InvalidConfigError: ``transport='pooled'`` and a proxy are configured together.
    """
    if name == "pooled" and proxy is not None:
        raise InvalidConfigError("transport='pooled' does not support proxies, and the environment configures one")
    if name != "session" and session is None and proxy is None:
        transport = PooledTransport(origin, verify=verify)
        try:
            await transport.prepare()
        except UnsupportedError as error:
            await transport.close()
            warnings.warn(f"{error}: falling back to transport='session'", RuntimeWarning, stacklevel=2)
        else:
            return transport
    # Most clients never load it.
    from aiosmrt._transport.aiohttp_session.transport import SessionTransport

    return SessionTransport(origin, session=session, verify=verify, proxy=proxy)
