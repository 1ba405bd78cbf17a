"""Work that a cancellation must not interrupt half way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["finish"]

_T = TypeVar("_T")


def _ignore() -> None:
    pass


async def finish(work: Coroutine[Any, Any, _T] | asyncio.Future[_T], on_cancel: Callable[[], object] = _ignore) -> _T:
    """Await work to its end even if cancelled, and only then raise the cancellation.

    Args:
        work: a coroutine, task or future.
        on_cancel: called at each cancellation, to hasten the work. Defaults to no effect.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it: the cancellation wins
        raise cancelled
    return task.result()
