"""Which transport a client gets."""

from __future__ import annotations

import ssl
import warnings
from typing import TYPE_CHECKING, Literal, TypeAlias

from aiosmrt._transport.pooled import PooledTransport, UnsupportedError
from aiosmrt.errors import InvalidConfigError, ParamValidationError

if TYPE_CHECKING:
    import aiohttp

    from aiosmrt._transport import Transport

__all__ = ["TransportName", "check_choice", "open_transport"]

TransportName: TypeAlias = Literal["pooled", "session"]


def check_choice(name: TransportName | None, session: aiohttp.ClientSession | None) -> None:
    """Check a choice before there is a loop.

    Raises:
        ParamValidationError: there is no such transport, or it cannot use the session.
    """
    if name not in (None, "pooled", "session"):
        raise ParamValidationError([f"transport must be 'pooled', 'session' or None; got {name!r:.80}"])
    if name == "pooled" and session is not None:
        raise ParamValidationError(["transport='pooled' has connections of its own and takes no session"])


async def open_transport(
    name: TransportName | None,
    origin: str,
    *,
    session: aiohttp.ClientSession | None,
    verify: bool | ssl.SSLContext,
    proxy: str | None,
) -> Transport:
    """Make a transport on the running loop; no I/O.

    Args:
        name: which one; None for the pooled one where that can do it.
        origin: scheme, host and port of the service.
        session: the caller's own; None for none.
        verify: whether certificates are checked, or the context to check them with.
        proxy: URL of an HTTP proxy; None for a direct connection.

    Raises:
        InvalidConfigError: the pooled transport was asked for, and there is a proxy.
    """
    if name == "pooled" and proxy is not None:
        raise InvalidConfigError("transport='pooled' does not go through the proxy that the environment names")
    if name != "session" and session is None and proxy is None:
        transport = PooledTransport(origin, verify=verify)
        try:
            await transport.prepare()
        except UnsupportedError as error:
            await transport.close()
            warnings.warn(f"{error}: calls take the slower transport", RuntimeWarning, stacklevel=2)
        else:
            return transport
    # Not loaded by clients that have no use for it.
    from aiosmrt._transport.session import SessionTransport

    return SessionTransport(origin, session=session, verify=verify, proxy=proxy)
