"""Responses whose bodies are received through aiohttp."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from aiosmrt._idle import UnreadCheck, unread_check
from aiosmrt._transport.aiohttp_session.orphans import OpenResponses
from aiosmrt._transport.base import MAX_ERROR_BYTES, OnData, Reply
from aiosmrt._transport.failures import body_error, broken_off, too_large
from aiosmrt._transport.sockets import was_closed_properly
from aiosmrt._wire.http1 import ON_ANOTHER_CONNECTION

__all__ = ["Response", "SessionReplyStream"]

# HttpProcessingError comes from aiohttp's parser in Python and is not a ClientError. A RuntimeError means that the
# connection was closed before the read.
_BODY_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)

# How often an expired read is tried again within one more read timeout, while its connection has something to read.
_REPRIEVES = 10


class Response(aiohttp.ClientResponse):
    """A response that knows how its connection ended: a body without a length may be incomplete."""

    handler: Any = None
    tls: ssl.SSLObject | None = None

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        self.handler = connection.protocol
        if (transport := connection.transport) is not None:
            self.tls = transport.get_extra_info("ssl_object")
        return await super().start(connection)

    def __repr__(self) -> str:
        # aiohttp's shows the headers, which may hold custom attributes.
        return f"<Response status={self.status}>"


class SessionReplyStream:
    """A response of `SessionTransport` whose body is received piece by piece.

    Args:
        response: aiohttp's response.
        origin: scheme, host and port, for errors.
        open_responses: the transport's open responses; includes this one until it is closed.
        read_timeout: how long the service may be silent while data is awaited, seconds. If None, no limit.
    """

    __slots__ = (
        "_ends_with_connection",
        "_handler",
        "_has_unread",
        "_loop",
        "_open_responses",
        "_origin",
        "_read_timeout",
        "_reprieves",
        "_response",
        "_timer",
        "_tls",
        "headers",
        "status",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        origin: str,
        open_responses: OpenResponses,
        read_timeout: float | None = None,
    ) -> None:
        self._response = response
        self._origin = origin
        self._open_responses = open_responses
        self._read_timeout = read_timeout
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._reprieves = 0
        self.status = response.status
        self.headers = _headers(response)
        self._ends_with_connection = (
            # Other transfer codings than chunked end with the connection too (RFC 9112, 6.3).
            not self.headers.get("transfer-encoding", "").rstrip().lower().endswith("chunked")
            and ("content-length" not in self.headers or "transfer-encoding" in self.headers)
            and self.status not in (204, 304)
        )
        connection = response.connection
        transport = None if connection is None else connection.transport
        self._has_unread: UnreadCheck | None = None
        if transport is not None and read_timeout is not None:
            self._has_unread = unread_check(transport)
        if isinstance(response, Response):
            self._handler, self._tls = response.handler, response.tls
        else:
            # The session is the caller's. A response without a connection is a mock's.
            self._handler = None if connection is None else connection.protocol
            self._tls = None if transport is None else transport.get_extra_info("ssl_object")
        if self.status in ON_ANOTHER_CONNECTION and self._handler is not None:
            self._handler.force_close()
        open_responses.add(response)

    async def receive(self, on_data: OnData) -> bool:
        """Wait for data and pass it to a callback; see `aiosmrt._transport.base.ReplyStream.receive`."""
        data = await self.read()
        if data:
            on_data(data)
        return bool(data)

    async def read(self) -> bytes:
        """Wait for data and return it; see `aiosmrt._transport.base.ReplyStream.read`."""
        if self._read_timeout is not None:
            self._reprieves = 0
            self._timer = self._loop.call_later(self._read_timeout, self._expire)
        try:
            data = await self._response.content.readany()
            if data or not self._ends_with_connection or self._ended_properly():
                return data
            failure = broken_off(self._origin, None)
        except _BODY_ERRORS as error:
            if data := self._arrived_before(error):
                return data
            failure = body_error(error, self._origin)
            # A cycle otherwise: response, error, traceback, this frame.
            error.__traceback__ = None
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        try:
            raise failure
        finally:
            del failure

    async def read_whole(self, max_bytes: int | None) -> Reply:
        """Receive the whole body and close the response.

        Args:
            max_bytes: limit for the body, bytes. If None, no limit.

        Raises:
            TransportError: as `read`, or the body exceeds ``max_bytes``. An error's body is cut at `MAX_ERROR_BYTES`.
        """
        is_error = self.status >= 300
        if is_error:
            max_bytes = MAX_ERROR_BYTES
        pieces: list[bytes] = []
        size = 0
        try:
            announced = self.headers.get("content-length", "")
            if max_bytes is not None and not is_error and announced.isdecimal() and int(announced) > max_bytes:
                raise too_large(self._origin, max_bytes)
            while piece := await self.read():
                pieces.append(piece)
                size += len(piece)
                if max_bytes is not None and size > max_bytes:
                    if not is_error:
                        raise too_large(self._origin, max_bytes)
                    break
            return Reply(self.status, self.headers, b"".join(pieces)[:max_bytes])
        finally:
            self.close()

    async def read_at_once(self) -> Reply:
        """Receive the whole body as aiohttp does it, without limits but with the caller's traces.

        Raises:
            TransportError: as `read`.
        """
        try:
            response = self._response
            content = response.content
            if (
                isinstance(response, Response)
                and response.connection is None
                and content.is_eof()
                and content.exception() is None
            ):
                # It arrived with the head. Besides returning it, read() would only call traces, which are not used.
                body = content.read_nowait()
            else:
                body = await response.read()
            if not self._ends_with_connection or self._ended_properly():
                return Reply(self.status, self.headers, body)
            failure = broken_off(self._origin, None)
        except _BODY_ERRORS as error:
            failure = body_error(error, self._origin)
            # A cycle otherwise: response, error, traceback, this frame.
            error.__traceback__ = None
        finally:
            self._open_responses.discard(self._response)
        try:
            raise failure
        finally:
            del failure

    def close(self) -> None:
        """Close the connection unless the body was received completely."""
        self._open_responses.discard(self._response)
        self._response.close()

    def _arrived_before(self, error: BaseException) -> bytes:
        """Data that arrived before a failure: aiohttp (3.14) raises the failure first and keeps the data."""
        content = self._response.content
        content.set_exception(None)  # type: ignore[arg-type]
        try:
            return content.read_nowait()
        finally:
            content.set_exception(error)

    def _ended_properly(self) -> bool:
        """Whether the connection was closed by the service, rather than reset or cut on the way."""
        if self._handler is not None and isinstance(self._handler.exception(), aiohttp.ClientOSError):
            return False
        return was_closed_properly(self._tls)

    def _expire(self) -> None:
        """Fail the read for silence, unless the loop was busy and has not processed what arrived in time."""
        self._timer = None
        if self._has_unread is not None and self._has_unread() and self._reprieves < _REPRIEVES:
            self._reprieves += 1
            self._timer = self._loop.call_later((self._read_timeout or 0.0) / _REPRIEVES, self._expire)
        elif not self._reprieves:
            # What was read in this iteration of the loop reaches the task in the next one.
            self._reprieves = 1
            self._timer = self._loop.call_soon(self._expire)
        else:
            self._response.content.set_exception(aiohttp.SocketTimeoutError())


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    received = response.headers
    headers = {name.lower(): value for name, value in received.items()}
    if len(headers) != len(received):
        headers = {name: ", ".join(received.getall(name)) for name in headers}
    return headers
