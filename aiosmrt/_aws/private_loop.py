"""Coroutines on an event loop of their own, in a thread of their own.

Resolving credentials is mostly not asynchronous, whatever its methods are called: botocore is imported, files are
read and parsed, service models are loaded and clients built from them, a code is asked for on the terminal. So
aiobotocore's provider chain is awaited on a loop in a worker thread, and the loop that serves calls never waits.

The thread is started for one piece of work and ends with it; it comes from no shared pool, which an application may
have filled with work of its own. Cancelling the waiting task cancels the coroutine in the thread and waits until it is
over, and child processes that it leaves behind are killed: afterwards nothing is held.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

__all__ = ["run_on_private_loop"]

T = TypeVar("T")

# Between looks at a killed child that has not been reaped yet.
_REAP_INTERVAL = 0.005

if TYPE_CHECKING or sys.platform != "win32":
    _EventLoop = asyncio.SelectorEventLoop
else:
    _EventLoop = asyncio.ProactorEventLoop


async def run_on_private_loop(function: Callable[[], Awaitable[T]]) -> T:
    """Await ``function()`` on another event loop, in another thread.

    Args:
        function: is called in the thread too, and may block there; only its awaits can be cancelled.

    Raises:
        Exception: what ``function`` raised.

    >>> async def where():
    ...     return threading.current_thread() is threading.main_thread()
    >>> asyncio.run(run_on_private_loop(where))
    False
    """
    work = _Work(function)
    executor = ThreadPoolExecutor(1, thread_name_prefix="aiosmrt-credentials")
    future = asyncio.get_running_loop().run_in_executor(executor, work.run)
    # Takes nothing more, and lets the thread end by itself.
    executor.shutdown(wait=False)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            # Unlike awaiting the future, this leaves it alone when cancelled.
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
            work.cancel()
    if cancelled is not None:
        future.exception()  # marks it as seen; whatever the work ended with, cancellation goes first
        raise cancelled
    return future.result()


class _Work(Generic[T]):
    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._cancelled = False
        self._interrupt: Callable[[], object] | None = None

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._interrupt is not None:
                self._interrupt()

    def run(self) -> T:
        with asyncio.Runner(loop_factory=_ChildKeepingLoop) as runner:
            try:
                return runner.run(self._main(runner.get_loop()))
            except asyncio.CancelledError:
                # As an exception of the thread's future it would look like a cancellation of that future.
                raise _InterruptedWorkError from None

    async def _main(self, loop: asyncio.AbstractEventLoop) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that a Runner runs is a task
        with self._lock:
            if self._cancelled:
                raise asyncio.CancelledError
            self._interrupt = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await self._function()
        finally:
            with self._lock:
                self._interrupt = None
            if isinstance(loop, _ChildKeepingLoop):
                await loop.end_children()


class _InterruptedWorkError(Exception):
    """The coroutine ended in a cancellation."""


class _ChildKeepingLoop(_EventLoop):
    """An event loop that remembers the child processes started on it.

    asyncio neither kills nor reaps the process of a cancelled ``communicate()``, and a loop that closes first leaves
    a zombie behind.
    """

    def __init__(self) -> None:
        super().__init__()
        self._children: list[asyncio.SubprocessTransport] = []

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        transport, protocol = await super().subprocess_exec(*args, **kwargs)
        self._children.append(transport)
        return transport, protocol

    async def end_children(self) -> None:
        for transport in self._children:
            if transport.get_returncode() is None:
                transport.kill()
            # Transports have no public way to wait for the end of their process.
            while transport.get_returncode() is None:  # noqa: ASYNC110
                await asyncio.sleep(_REAP_INTERVAL)
            transport.close()
        self._children.clear()
