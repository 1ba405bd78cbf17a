"""Blocking work in a daemon thread, for which no one waits once its caller is cancelled.

It is for work that may block for minutes and cannot be interrupted: finding credentials, reading from a terminal. A
thread of a pool would delay the end of the program, which joins it; and a shared pool may be full of the application's
own work.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_in_daemon_thread"]

T = TypeVar("T")


async def run_in_daemon_thread(function: Callable[[], T], name: str = "aiosmrt-blocking") -> T:
    """Call a function in a new thread.

    When cancelled, this ends at once. The function then runs to its end in the thread, and its result is dropped; the
    end of the program does not wait for it.

    Args:
        function: the work.
        name: the thread's name. Defaults to ``"aiosmrt-blocking"``.

    Raises:
        Exception: what the function raised; a StopIteration and what is no Exception, as a RuntimeError.

    >>> asyncio.run(run_in_daemon_thread(lambda: threading.current_thread().daemon))
    True
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def succeed(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def fail(error: Exception) -> None:
        if not future.done():
            future.set_exception(error)

    def work() -> None:
        try:
            result = context.run(function)
        except StopIteration:
            # A future does not take it.
            failure: Exception = RuntimeError("StopIteration")
        except Exception as error:
            failure = error
        except BaseException as error:
            # On the loop, it would end the program or look like a cancellation.
            failure = RuntimeError(type(error).__name__)
        else:
            _call_soon(loop, succeed, result)
            return
        _call_soon(loop, fail, failure)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[T], None], argument: T) -> None:
    try:
        loop.call_soon_threadsafe(callback, argument)
    except RuntimeError:
        if not loop.is_closed():
            raise
