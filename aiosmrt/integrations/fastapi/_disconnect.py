"""Cancel work when the caller disconnects.

Starlette never cancels a handler, and cancels a `StreamingResponse` only under ASGI before 2.4. Under later versions it
waits until ``send`` fails, which a silent model delays and which a server need not do at all ("HTTP & WebSocket ASGI
Message Format", 2.4). Every server reports ``http.disconnect`` to an application that receives, so this module does.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Any, TypeVar, cast

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

__all__ = ["CancelWhenDone", "ClientDisconnectedError", "cancel_on_disconnect", "wait_for_disconnect"]

T = TypeVar("T")


class ClientDisconnectedError(HTTPException):
    """The caller disconnected before the response; its work was cancelled.

    The response, which never arrives, has nginx's status for this case: 499.
    """

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


async def cancel_on_disconnect(request: Request, awaitable: Awaitable[T]) -> T:
    """Await something, and cancel it as soon as the caller of the application disconnects.

    ::

        return await cancel_on_disconnect(request, endpoint.predict(data))

    Args:
        request: the current request. Its body is read first unless it was read before, and stays readable.
        awaitable: a coroutine, task or future.

    Raises:
        ClientDisconnectedError: the caller disconnected. Do not catch it, so that middleware such as an access log sees
            it.
    """
    try:
        try:
            await request.body()
        except RuntimeError as error:
            # Starlette's message when the handler has read the body as a stream.
            if str(error) != "Stream consumed":
                raise
    except BaseException as error:
        if isinstance(awaitable, asyncio.Future):
            awaitable.cancel()
        elif inspect.iscoroutine(awaitable):
            awaitable.close()
        if isinstance(error, ClientDisconnect):
            raise ClientDisconnectedError from None
        raise
    async with CancelWhenDone(wait_for_disconnect(request.receive)):
        return await awaitable
    raise ClientDisconnectedError


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the caller has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


class CancelWhenDone:
    """Run coroutines beside an ``async with`` block, and cancel the block when the first of them ends.

    The cancellation stops at the end of the block. An exception of the coroutine is raised there. If the block still
    returns or raises, that outcome wins, and asyncio reports the coroutine's exception as never retrieved. At the end
    of the block, the remaining coroutines are cancelled and awaited.

    The block stays in its task, as with `asyncio.timeout`, because a generator that holds a task group or a time limit
    requires that.

    Args:
        coroutines: the coroutines to run.
    """

    def __init__(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        self._coroutines = coroutines
        self._companions: list[asyncio.Task[None]] = []
        self._task: asyncio.Task[Any]
        self._cancelling = 0
        self._open = True
        self._first: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._companions = [asyncio.create_task(coroutine) for coroutine in self._coroutines]
        for companion in self._companions:
            companion.add_done_callback(self._on_done)

    def _on_done(self, companion: asyncio.Task[None]) -> None:
        if self._open and not companion.cancelled():
            self._open = False
            self._first = companion
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # Removing the callbacks is not enough: the callback of a companion that has just ended is already scheduled.
        self._open = False
        for companion in self._companions:
            # Cancelling a task that is done would keep asyncio from reporting its exception.
            if not companion.done():
                companion.cancel()
        first = self._first
        ours = first is not None and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        # If this wait is cancelled as well, the companions still end.
        await asyncio.wait(self._companions)
        if first is None or not ours:
            return False
        first.result()
        return True
