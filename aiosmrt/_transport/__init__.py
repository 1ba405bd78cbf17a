"""How bytes reach the service: the Transport protocol and what implements it on aiohttp.

A transport carries one signed request to one origin and brings its response, or raises an error of
`aiosmrt.errors.TransportError`'s branch. It knows nothing of operations, signatures or retries. After an exchange
that was cancelled or failed it holds no connection; after one that ended at its boundary the connection is pooled.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple, Protocol, TypeAlias

__all__ = ["IDLE_SECONDS", "Reply", "ReplyStream", "Request", "Take", "Transport", "header_lines"]

# A connection unused for longer is not used again: NAT gateways and VPC endpoints forget it after 350 s, many load
# balancers after 60.
IDLE_SECONDS: Final = 50.0


def header_lines(pairs: Iterable[tuple[str, str]]) -> str:
    """Headers as lines of HTTP/1.1.

    >>> header_lines([("Content-Type", "text/csv")])
    'Content-Type: text/csv\\r\\n'
    """
    return "".join([f"{name}: {value}\r\n" for name, value in pairs])


class Request(NamedTuple):
    """A POST request, ready to be sent.

    Args:
        target: path and query, percent-encoded.
        headers: all headers but ``Content-Length``, as `header_lines` writes them; without control characters, which
            is not checked again.
        body: the body; not changed by anybody until the exchange is over.
        connect_timeout: seconds for a new connection, TLS included; None for no limit.
        read_timeout: seconds that the service may be silent; None for no limit.
        resend: whether a pooled connection that was closed before a byte of the response came is replaced by a fresh
            one, on which the request is sent again. aiohttp's session does that for no POST.
    """

    target: str
    headers: str
    body: bytes | memoryview
    connect_timeout: float | None
    read_timeout: float | None
    resend: bool = True

    def __repr__(self) -> str:
        # the session token is among the headers
        return f"<Request {self.target} body_bytes={len(self.body)}>"


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

    def __repr__(self) -> str:
        return f"<Reply status={self.status} body_bytes={len(self.body)}>"


Take: TypeAlias = Callable[["bytes | memoryview"], None]


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

    async def receive(self, take: Take) -> bool:
        """Hand on what has arrived.

        Args:
            take: is called with the bytes, in one or more pieces of at least one byte; a memoryview is good during the
                call only. It must not raise.

        Returns:
            False at the body's proper end, and from then on, when there is nothing to hand on.

        Raises:
            ReadTimeoutError: silence for longer than the request's ``read_timeout``.
            ResponseStreamingError: the connection was lost before the body's end.
        """
        ...

    async def read(self) -> bytes:
        """Whatever has arrived, at least one byte; empty at the body's proper end. Raises as `receive`."""
        ...

    def close(self) -> None:
        """Give the connection up unless the body was read to its end; may be called more than once."""
        ...


class Transport(Protocol):
    """Carries requests to one origin over a pool of connections."""

    def exchange(self, request: Request) -> Awaitable[Reply]:
        """Send a request and receive its whole response.

        Raises:
            TransportError: no connection, no response, or one that broke off.
        """
        ...

    def open(self, request: Request) -> Awaitable[ReplyStream]:
        """Send a request and receive its response's head; the caller closes the stream.

        Raises:
            TransportError: no connection or no response.
        """
        ...

    async def close(self) -> None:
        """Close the pool, if it is the transport's own."""
        ...
