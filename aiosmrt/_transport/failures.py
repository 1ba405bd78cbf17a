"""Maps errors of aiohttp and the operating system to `aiosmrt.errors`."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp

from aiosmrt.errors import (
    ClientStateError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    TransportError,
)

__all__ = [
    "bad_certificate",
    "body_error",
    "broken_off",
    "closed_during_call",
    "connect_error",
    "connection_closed",
    "head_error",
    "is_being_cancelled",
    "malformed",
    "timed_out",
    "too_large",
]


def head_error(error: Exception, origin: str) -> TransportError:
    """The error for a request that failed before the head of its response; the first row that matches counts."""
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)):
        return _caused(bad_certificate(origin), error)
    for foreign, ours, text in (
        (aiohttp.ConnectionTimeoutError, ConnectTimeoutError, "Connect timeout on"),
        (aiohttp.ClientSSLError, SSLError, "TLS failed with"),
        (aiohttp.ClientProxyConnectionError, ProxyConnectionError, "Could not reach the proxy for"),
        (aiohttp.ClientHttpProxyError, ProxyConnectionError, "The proxy refused a tunnel to"),
        (aiohttp.ClientConnectorError, EndpointConnectionError, "Could not connect to"),
        (aiohttp.SocketTimeoutError, ReadTimeoutError, "Read timeout on"),
        (aiohttp.ServerDisconnectedError, ConnectionClosedError, "Connection was closed before a response from"),
        (aiohttp.ClientOSError, ConnectionClosedError, "Connection was closed before a response from"),
        (aiohttp.ClientResponseError, ResponseStreamingError, "Malformed response from"),
        (ssl.SSLError, SSLError, "TLS failed with"),
        (TimeoutError, ReadTimeoutError, "Read timeout on"),
        (OSError, ConnectionClosedError, "Connection was closed before a response from"),
    ):
        if isinstance(error, foreign):
            return _caused(ours(f'{text} endpoint URL: "{origin}"', endpoint_url=origin), error)
    return ConnectionClosedError(
        f'No response from endpoint URL: "{origin}" ({type(error).__name__})', endpoint_url=origin
    )


def bad_certificate(origin: str) -> SSLError:
    """The error for a certificate that does not verify; another attempt would get the same one."""
    text = f'The certificate is not valid for endpoint URL: "{origin}"'
    return SSLError(text, endpoint_url=origin, cause="none")


def connect_error(error: Exception, origin: str) -> TransportError:
    """The error for a connection that could not be made."""
    if isinstance(error, TimeoutError):
        return _caused(ConnectTimeoutError(f'Connect timeout on endpoint URL: "{origin}"', endpoint_url=origin), error)
    return head_error(error, origin)


def connection_closed(origin: str, error: Exception | None) -> TransportError:
    """The error for a connection that was closed before the head of a response."""
    text = f'Connection was closed before a response from endpoint URL: "{origin}"'
    return _caused(ConnectionClosedError(text, endpoint_url=origin), error)


def body_error(error: Exception, origin: str) -> TransportError:
    """The error for a response that failed after its head."""
    if isinstance(error, TimeoutError):
        return _caused(timed_out(origin), error)
    return broken_off(origin, error)


def broken_off(origin: str, error: Exception | None) -> TransportError:
    """The error for a body that is incomplete when its connection ends."""
    why = "" if error is None else f" ({type(error).__name__})"
    text = f'The response broke off from endpoint URL: "{origin}"{why}'
    return _caused(ResponseStreamingError(text, endpoint_url=origin), error)


def malformed(origin: str, what: str) -> TransportError:
    """The error for a response that is not valid HTTP/1.1; ``what`` must not quote it."""
    return ResponseStreamingError(f'Malformed response from endpoint URL: "{origin}" ({what})', endpoint_url=origin)


def too_large(origin: str, limit: int) -> TransportError:
    """The error for a response whose body exceeds ``max_response_bytes``; another attempt would receive it too."""
    text = f'The response from endpoint URL: "{origin}" exceeds max_response_bytes of {limit}'
    return ResponseStreamingError(text, endpoint_url=origin, cause="none")


def _caused(ours: TransportError, error: Exception | None) -> TransportError:
    """Set an error's cause if the cause holds no secrets.

    aiohttp's errors hold the request's headers (session token, custom attributes), a part of the malformed response, or
    the proxy's password; the operating system's hold a number and a text. The frames of both may hold headers and body.
    """
    cause: Exception | None = None
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    elif isinstance(error, OSError):
        cause = error
    if cause is not None:
        cause.__traceback__ = cause.__context__ = cause.__cause__ = None
    ours.__cause__ = cause
    return ours


def timed_out(origin: str) -> ReadTimeoutError:
    """The error for a connection that was silent for too long."""
    return ReadTimeoutError(f'Read timeout on endpoint URL: "{origin}"', endpoint_url=origin)


def closed_during_call() -> ClientStateError:
    """The error for a request that was in progress when its client was closed."""
    return ClientStateError("the client was closed during the call")


def is_being_cancelled() -> bool:
    """Whether the current task was cancelled, as opposed to the future that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
