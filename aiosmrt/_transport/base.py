"""The Transport protocol, and the requests and replies that it deals in.

A transport sends signed requests to one origin and returns their responses, or raises a subclass of
`aiosmrt.errors.TransportError`. It knows nothing of operations, signatures or retries. After a request fails or is
cancelled, its connection is closed; after a response was received to its exact end, the connection is pooled.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from aiosmrt._wire.operations import MAX_ERROR_BYTES

__all__ = [
    "IDLE_SECONDS",
    "MAX_ERROR_BYTES",
    "OnData",
    "Reply",
    "ReplyStream",
    "Request",
    "Transport",
    "header_lines",
]

# A connection that was idle for longer is closed: NAT gateways and VPC endpoints drop it after 350 s, many load
# balancers after 60 s.
MAX_TIMEOUTS: Final = 1024
"""Distinct timeouts for which a transport keeps what it has made; more are made anew."""

IDLE_SECONDS: Final = 50.0


def header_lines(pairs: Iterable[tuple[str, str]]) -> str:
    """Format headers as lines of HTTP/1.1.

    >>> header_lines([("Content-Type", "text/csv")])
    'Content-Type: text/csv\\r\\n'
    """
    return "".join([f"{name}: {value}\r\n" for name, value in pairs])


# These two have slots, because each call makes one and reads it: tuples with names take twice as long to do so.
@dataclass(slots=True, repr=False)
class Request:
    """A POST request, ready to be sent.

    Args:
        target: path and query, percent-encoded.
        headers: all headers but ``Content-Length``, as `header_lines` formats them. They must not contain control
            characters; the transport does not check.
        body: the body. It must not change until the response has arrived.
        connect_timeout: limit for making a connection, TLS handshake included, seconds. If None, no limit.
        read_timeout: how long the service may take for the whole head of its response, once the request is sent, and
            then be silent; seconds. What comes before the head's end, interim responses (1xx) included, does not extend
            it, except in the caller's session. If None, no limit.
        resend: whether to send the request again, on a fresh connection, if a pooled one turns out to be closed before
            the first byte of the response. Needs ``renew_headers``. aiohttp's session never resends a POST. Defaults
            to True.
        renew_headers: returns ``headers`` with a new signature. Called whenever a connection was made, because that
            takes time, and the machine may have been suspended; not in the caller's session, which gives no hook there.
        max_response_bytes: limit for the body of a whole response, bytes. If None, no limit.
    """

    target: str
    headers: str
    body: bytes | memoryview
    connect_timeout: float | None
    read_timeout: float | None
    resend: bool = True
    renew_headers: Callable[[], Awaitable[str]] | None = None
    max_response_bytes: int | None = None

    def __repr__(self) -> str:
        # the session token is among the headers
        return f"<Request {self.target} body_bytes={len(self.body)}>"


@dataclass(slots=True, repr=False)
class Reply:
    """A whole response.

    Args:
        status: the HTTP status.
        headers: the headers; names in lower case, repeated ones joined by ``", "``.
        body: the body as it was sent; content encodings are not decoded. If the status is 300 or above, at most
            `MAX_ERROR_BYTES` of it.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"<Reply status={self.status} body_bytes={len(self.body)}>"


OnData: TypeAlias = Callable[["bytes | memoryview"], None]


class ReplyStream(Protocol):
    """A response whose body is received piece by piece."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """The headers; names in lower case, repeated ones joined by ``", "``."""
        ...

    async def receive(self, on_data: OnData) -> bool:
        """Wait for data and pass it to a callback.

        Args:
            on_data: called once or more with at least one byte. A memoryview is valid only during the call. It must
                not raise.

        Returns:
            True if data was passed on; False once the body is complete.

        Raises:
            ReadTimeoutError: the service was silent for longer than ``read_timeout``.
            ResponseStreamingError: the connection was lost before the body was complete.
        """
        ...

    async def read(self) -> bytes:
        """Wait for data and return it; empty once the body is complete. Raises the same errors as `receive`."""
        ...

    def close(self) -> None:
        """Close the connection unless the body was received completely. May be called more than once."""
        ...


class Transport(Protocol):
    """Sends requests to one origin over a pool of connections."""

    def send(self, request: Request) -> Awaitable[Reply]:
        """Send a request and receive its whole response.

        Raises:
            TransportError: no connection could be made, no complete response arrived, or it is too large.
        """
        ...

    def send_streaming(self, request: Request) -> Awaitable[Reply | ReplyStream]:
        """Send a request and receive the head of its response.

        Returns:
            A stream, which the caller must close; the whole response if its status is 300 or above.

        Raises:
            TransportError: no connection could be made, or no response arrived.
        """
        ...

    async def close(self) -> None:
        """Close the pool, unless it belongs to the caller's session."""
        ...
