"""An event loop in its own thread, for synchronous callers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiosmrt.errors import ClientStateError

__all__ = ["LoopThread"]

T = TypeVar("T")

# Seconds that what is cancelled at the end has for cleaning up.
_GRACE = 5.0


class LoopThread:
    """An event loop that runs in its own thread until `close`.

    >>> thread = LoopThread()
    >>> thread.run(asyncio.sleep(0, "done"))
    'done'
    >>> thread.close()
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        # Whether the loop takes nothing more. What it took before, it runs to an end.
        self._has_ended = False
        self._taking = threading.Lock()
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="aiosmrt-local", daemon=True)
        self._thread.start()
        self._running.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and return its result; an interrupt cancels it.

        Raises:
            ClientStateError: the thread ends, or has ended.
        """
        future = self._submitted(work)
        if future is None:
            raise _over()
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            # Only the end of the thread cancels it: this has not.
            raise _over() from None
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread, or here once that has ended, and return its result."""
        if threading.current_thread() is self._thread:
            return function(*arguments)

        async def called() -> T:
            return function(*arguments)

        future = self._submitted(called())
        if future is not None:
            return future.result()
        # Nothing else uses what the thread has used.
        self._thread.join()
        return function(*arguments)

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread, and wait for its result in the caller's event loop.

        Raises:
            ClientStateError: the thread ends, or has ended.
        """
        if threading.current_thread() is self._thread:
            return await work
        future = self._submitted(work)
        if future is None:
            raise _over()
        waiting = asyncio.wrap_future(future)
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            waiting.cancel()
            raise
        if waiting.cancelled():
            raise _over()
        return waiting.result()

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _submitted(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T] | None:
        """Have the loop run a coroutine; None if it takes nothing more."""
        with self._taking:
            if not self._has_ended:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        return None

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._running.set()
        await self._stop.wait()
        with self._taking:
            self._has_ended = True
        # What was submitted before becomes tasks, which end here or are cancelled.
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_GRACE)


def _over() -> ClientStateError:
    return ClientStateError("the local runtime was closed")
