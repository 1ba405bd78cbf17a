"""Sends requests through an ``aiohttp.ClientSession``.

aiohttp's connector owns the connections. This module supplies sockets that detect a dead peer, turns off what a signed
API call must not have (redirects, cookies, decompression, added headers), and maps aiohttp's errors.

The pool is unlimited: the client limits how many calls run, and a second queue behind that would be neither fair nor
visible. Connections idle for longer than `IDLE_SECONDS` are closed, and those on which something has arrived.

The caller's session uses its own connector, which this transport cannot change. aiohttp's pool (3.12 to 3.14) uses an
idle connection again without checking whether anything has arrived on it, so a server that repeats a response can give
one call the response of another. It also gives no hook between making a connection and sending a request, so such a
request keeps the signature that it had before; where that took too long, the call signs it again once it is refused
(`aiosmrt._policy.clockskew`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from aiosmrt._transport.aiohttp_session.connector import RenewalFailedError, close_session, create_session
from aiosmrt._transport.aiohttp_session.orphans import OpenResponses
from aiosmrt._transport.aiohttp_session.payloads import WHOLE_BODY_BYTES, Renewal, SlicedBody, WholeBody, header_map
from aiosmrt._transport.aiohttp_session.responses import SessionReplyStream
from aiosmrt._transport.aiohttp_session.watchdog import ReadWatchdog, Watched
from aiosmrt._transport.base import MAX_TIMEOUTS, Reply, Request
from aiosmrt._transport.failures import closed_during_call, head_error, is_being_cancelled, timed_out
from aiosmrt.errors import ClientStateError

__all__ = ["SessionTransport"]

T = TypeVar("T")

# Distinct request targets (endpoint and operation) whose URL objects are cached.
_MAX_URLS = 1024

# aiohttp would add application/octet-stream where the caller set no content type.
_NO_CONTENT_TYPE = ("Content-Type",)


class SessionTransport:
    """Sends requests through an ``aiohttp.ClientSession``. Must be created on the event loop that uses it.

    Args:
        origin: scheme, host and port of the service, without a path.
        session: the caller's session, which is neither configured nor closed here. If None, one is created.
        verify: whether to verify certificates, or the context to verify them with. Defaults to True.
        proxy: URL of an HTTP proxy. If None, connections are direct.

    >>> async def main():
    ...     async with aiohttp.ClientSession() as session:
    ...         transport = SessionTransport("http://127.0.0.1:9", session=session)
    ...         await transport.close()
    ...         return session.closed
    >>> asyncio.run(main())
    False
    """

    def __init__(
        self,
        origin: str,
        *,
        session: aiohttp.ClientSession | None = None,
        verify: bool | ssl.SSLContext = True,
        proxy: str | None = None,
    ) -> None:
        self.origin = origin
        self._owned = session is None
        # requests whose read timeout starts when they get a connection
        self._expected: dict[asyncio.Task[Any], Watched] = {}
        self._session = session if session is not None else create_session(self._expected)
        self._urls: dict[str, URL] = {}
        self._timeouts: dict[tuple[float | None, float | None], aiohttp.ClientTimeout] = {}
        self._watchdogs: dict[float, ReadWatchdog] = {}
        self._open_responses = OpenResponses()
        # Arguments of requests with and without a content type. Each argument costs time, so defaults are left out.
        self._typed: dict[str, Any] = {}
        if verify is not True:
            self._typed["ssl"] = verify
        if proxy is not None:
            self._typed["proxy"] = proxy
        if not self._owned:
            # The caller's session may be set to raise, and then the service's response would be lost.
            self._typed["raise_for_status"] = False
        self._untyped: dict[str, Any] = {**self._typed, "skip_auto_headers": _NO_CONTENT_TYPE}

    def __repr__(self) -> str:
        return f"<SessionTransport {self.origin} {'own' if self._owned else 'shared'} session>"

    async def send(self, request: Request) -> Reply:
        """Send a request and receive its whole response; see `aiosmrt._transport.base.Transport.send`."""
        watched = self._expect(request)
        read_timeout = request.read_timeout if watched is None else None
        posting = self._post(request, read_timeout, watched)
        max_bytes = request.max_response_bytes
        # The frames of an error are kept with it, and error reports show the values of their variables.
        del request
        return await self._guarded(self._receive(posting, max_bytes, read_timeout, watched), watched)

    async def send_streaming(self, request: Request) -> Reply | SessionReplyStream:
        """Send a request and receive its response's head; see `aiosmrt._transport.base.Transport.send_streaming`."""
        watched = self._expect(request)
        read_timeout = request.read_timeout
        posting = self._post(request, read_timeout if watched is None else None, watched)
        del request
        return await self._guarded(self._receive_head(posting, read_timeout, watched), watched)

    def _expect(self, request: Request) -> Watched | None:
        """Apply a request's read timeout; returns None where aiohttp has to do it.

        aiohttp's timer costs more and has a gap: after an interim response (1xx) it does not run.
        """
        # With the caller's session, this transport does not learn when a request has got its connection.
        if request.read_timeout is None or not self._owned:
            return None
        watchdog = self._watchdogs.get(request.read_timeout)
        if watchdog is None:
            if len(self._watchdogs) >= MAX_TIMEOUTS:
                self._drop_idle_watchdogs()
            watchdog = self._watchdogs[request.read_timeout] = ReadWatchdog(request.read_timeout)
        watched = watchdog.expect(large=len(request.body) > WHOLE_BODY_BYTES)
        self._expected[watched.task] = watched
        return watched

    def _drop_idle_watchdogs(self) -> None:
        for seconds, watchdog in [*self._watchdogs.items()]:
            if watchdog.is_idle:
                watchdog.close()
                del self._watchdogs[seconds]

    async def _guarded(self, receiving: Coroutine[Any, Any, T], watched: Watched | None) -> T:
        """Await a response, and translate cancellations that are not the caller's."""
        failure: Exception
        try:
            return await receiving
        except asyncio.CancelledError as cancelled:
            # aiohttp's frames hold headers and body.
            cancelled.__traceback__ = None
            # As in asyncio.timeout, a cancellation from elsewhere takes precedence.
            if watched is not None and watched.expired and watched.task.uncancel() <= watched.cancelling:
                failure = timed_out(self.origin)
            # When aiohttp is closed, it cancels name look-ups, and with them the tasks that wait for them.
            elif self._session.closed and not is_being_cancelled():
                failure = closed_during_call()
            else:
                raise
        finally:
            if watched is not None:
                self._expected.pop(watched.task, None)
                watched.watchdog.forget(watched)
        # Outside the handlers, so that foreign errors do not become the context. Without `del`, this frame and the
        # error's traceback would keep each other alive.
        try:
            raise failure
        finally:
            del failure

    async def _receive(
        self,
        posting: Awaitable[aiohttp.ClientResponse],
        max_bytes: int | None,
        read_timeout: float | None,
        watched: Watched | None,
    ) -> Reply:
        response = await self._posted(posting)
        if watched is not None:
            watched.watchdog.receive(watched, response)
        stream = SessionReplyStream(response, self.origin, self._open_responses, read_timeout)
        if max_bytes is None and stream.status < 300:
            return await stream.read_at_once()
        return await stream.read_whole(max_bytes)

    async def _receive_head(
        self, posting: Awaitable[aiohttp.ClientResponse], read_timeout: float | None, watched: Watched | None
    ) -> Reply | SessionReplyStream:
        response = await self._posted(posting)
        if watched is not None:
            # From here on, the stream applies the read timeout.
            watched.watchdog.forget(watched)
        stream = SessionReplyStream(response, self.origin, self._open_responses, read_timeout)
        return stream if stream.status < 300 else await stream.read_whole(None)

    async def _posted(self, posting: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        try:
            return await posting
        except RenewalFailedError as error:
            failure = error.error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            failure = self._head_failure(error)
        try:
            raise failure
        finally:
            del failure

    async def close(self) -> None:
        """Close the session, unless it is the caller's."""
        for watchdog in self._watchdogs.values():
            watchdog.close()
        if self._owned:
            self._open_responses.close()
            await close_session(self._session)

    def _post(
        self, request: Request, read_timeout: float | None, watched: Watched | None
    ) -> Awaitable[aiohttp.ClientResponse]:
        target, lines, body = request.target, request.headers, request.body
        connect_timeout, renew_headers = request.connect_timeout, request.renew_headers
        url = self._urls.get(target)
        if url is None:
            if len(self._urls) >= _MAX_URLS:
                self._urls.clear()
            # Exactly the bytes that were signed must be sent.
            url = self._urls[target] = URL(self.origin + target, encoded=True)
        timeout = self._timeouts.get((connect_timeout, read_timeout))
        if timeout is None:
            if len(self._timeouts) >= MAX_TIMEOUTS:
                self._timeouts.clear()
            timeout = self._timeouts[connect_timeout, read_timeout] = aiohttp.ClientTimeout(
                total=None,
                # Includes the wait for a connection from the pool, which the caller's session may limit.
                connect=connect_timeout if self._owned else None,
                sock_connect=connect_timeout,
                sock_read=read_timeout,
            )
        headers = header_map(lines)
        renewal = None if renew_headers is None else Renewal(renew_headers, headers)
        return self._session.post(
            url,
            data=SlicedBody(body, watched, renewal)
            if len(body) > WHOLE_BODY_BYTES
            else WholeBody(body, renewal)
            if self._owned  # middlewares of the caller's session may expect bytes
            else body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            **(self._typed if "Content-Type" in headers else self._untyped),
        )

    def _head_failure(self, error: Exception) -> Exception:
        if isinstance(error, RuntimeError) and not isinstance(error, OSError):
            if self._session.closed:
                return ClientStateError("the client's session is closed")
            return ClientStateError(f"the client's session cannot be used here: {error}")
        return head_error(error, self.origin)
