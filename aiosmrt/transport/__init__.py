"""How bytes reach the service: the Transport protocol and what implements it on aiohttp.

A transport carries one signed request to one origin and brings its response, or raises an error of
`aiosmrt.errors.TransportError`'s branch. It knows nothing of operations, signatures or retries. After an exchange
that was cancelled or failed it holds no connection; after one that ended at its boundary the connection is pooled.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Reply", "ReplyStream", "Request", "Transport"]


class Request(NamedTuple):
    """A POST request, ready to be sent.

    Args:
        target: path and query, percent-encoded.
        headers: all headers but ``Content-Length``, in order.
        body: the body; not changed by anybody until the exchange is over.
        connect_timeout: seconds for a new connection, TLS included; None for no limit.
        read_timeout: seconds that the service may be silent; None for no limit.
    """

    target: str
    headers: list[tuple[str, str]]
    body: bytes | memoryview
    connect_timeout: float | None
    read_timeout: float | None


class Reply(NamedTuple):
    """A whole response.

    Args:
        status: the HTTP status.
        headers: the headers, names in lower case, repeated ones joined by ``", "``.
        body: the body, content encoding untouched.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class ReplyStream(Protocol):
    """A response whose body is read as it arrives."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """The headers, names in lower case, repeated ones joined by ``", "``."""
        ...

    async def read(self) -> bytes:
        """Whatever has arrived, at least one byte; empty at the body's proper end, and from then on.

        Raises:
            ReadTimeoutError: silence for longer than the request's ``read_timeout``.
            ResponseStreamingError: the connection was lost before the body's end.
        """
        ...

    def close(self) -> None:
        """Give the connection up unless the body was read to its end; may be called more than once."""
        ...


class Transport(Protocol):
    """Carries requests to one origin over a pool of connections."""

    async def exchange(self, request: Request) -> Reply:
        """Send a request and receive its whole response.

        Raises:
            TransportError: no connection, no response, or one that broke off.
        """
        ...

    async def open(self, request: Request) -> ReplyStream:
        """Send a request and receive its response's head; the caller closes the stream.

        Raises:
            TransportError: no connection or no response.
        """
        ...

    async def close(self) -> None:
        """Close the pool, if it is the transport's own."""
        ...
