"""Request bodies as aiohttp's payloads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import aiohttp
from multidict import CIMultiDict

from aiosmrt._transport.aiohttp_session.watchdog import Watched

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

__all__ = ["WHOLE_BODY_BYTES", "Renewal", "SlicedBody", "WholeBody", "header_map"]

# A body up to this size is written together with the head; a larger one in slices, so that the loop runs in between.
WHOLE_BODY_BYTES = 2**16
_SLICE_BYTES = 2**18

# The headers of a payload; those of the request take precedence.
_HEADERS: CIMultiDict[str] = CIMultiDict({"Content-Type": "application/octet-stream"})


def header_map(lines: str) -> CIMultiDict[str]:
    """Parse headers as `aiosmrt._transport.base.header_lines` formats them."""
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines.split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        headers.add(name, value)
    return headers


class Renewal:
    """Signs a request again. Its body carries this to the connector, which makes the connection.

    Args:
        renew_headers: returns new header lines; see `aiosmrt._transport.base.Request`.
        headers: the headers that they replace.
    """

    __slots__ = ("_headers", "_renew_headers")

    def __init__(self, renew_headers: Callable[[], Awaitable[str]], headers: CIMultiDict[str]) -> None:
        self._renew_headers = renew_headers
        self._headers = headers

    async def apply(self, headers: CIMultiDict[str]) -> None:
        """Replace a request's headers; those that aiohttp has added stay.

        Args:
            headers: the request's.
        """
        renewed = header_map(await self._renew_headers())
        # New credentials may come without a session token.
        for name in self._headers:
            headers.popall(name, None)
        headers.extend(renewed)
        self._headers = renewed


class WholeBody(aiohttp.Payload):
    """A small body: sent as aiohttp sends bytes, without creating headers and a slice for each request."""

    # There is nothing to close.
    _autoclose = True

    def __init__(self, body: bytes | memoryview, renewal: Renewal | None) -> None:
        self._body = body
        self.renewal = renewal

    @property
    def size(self) -> int:
        return len(self._body)

    @property
    def headers(self) -> CIMultiDict[str]:
        return _HEADERS

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._body).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await writer.write(self._body)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await writer.write(self._body)


class SlicedBody(aiohttp.Payload):
    """A large body: written in slices under back-pressure, without a copy and without aiohttp's warning."""

    _autoclose = True
    _value: bytes | memoryview

    def __init__(self, value: bytes | memoryview, watched: Watched | None, renewal: Renewal | None) -> None:
        super().__init__(value)
        self._size = len(value)
        self.renewal = renewal
        self._watched = watched

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        view = memoryview(self._value)[:content_length]
        for start in range(0, len(view), _SLICE_BYTES):
            await writer.write(view[start : start + _SLICE_BYTES])
        if self._watched is not None:
            self._watched.watchdog.begin(self._watched)
