"""An event loop in its own thread, for synchronous callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

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
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="aiosmrt-local", daemon=True)
        self._thread.start()
        self._running.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and return its result; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread and return its result."""
        if threading.current_thread() is self._thread:
            return function(*arguments)

        async def called() -> T:
            return function(*arguments)

        return self.run(called())

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread, and wait for its result in the caller's event loop."""
        if threading.current_thread() is self._thread:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._running.set()
        await self._stop.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_GRACE)
