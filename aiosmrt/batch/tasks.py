"""Work that is finished whatever happens, and work in threads that ends when it is no longer wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["JobStoppedError", "check_wanted", "close_all", "note_failed_close", "uninterrupted"]

T = TypeVar("T")


class JobStoppedError(Exception):
    """The job was told to stop while a thread waited for something, or made it."""


def check_wanted(is_unwanted: Callable[[], bool]) -> None:
    """Raise `JobStoppedError` if what a thread makes is no longer wanted."""
    if is_unwanted():
        raise JobStoppedError


async def uninterrupted(work: Awaitable[T], on_cancel: Callable[[], object] | None = None) -> T:
    """Finish something whatever happens; a cancellation is passed on afterwards.

    Args:
        work: what is finished.
        on_cancel: called when a cancellation comes, so that the work ends early.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as again:
            cancelled = again
            if on_cancel is not None:
                on_cancel()
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()


def close_all(*steps: Callable[[], object]) -> None:
    """Take all steps of closing something, in this order, whichever of them fail.

    Args:
        steps: what releases a part of it.

    Raises:
        BaseException: what the first step raised that failed; its notes have what later ones raised.
    """
    first: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            if first is None:
                first = error
            else:
                note_failed_close(first, error)
    if first is not None:
        try:
            raise first
        finally:
            del first


def note_failed_close(error: BaseException, failure: BaseException) -> None:
    """Note on an error that closing failed as well, which would otherwise hide the error, or be hidden by it.

    Args:
        error: the error that is raised.
        failure: why closing failed.
    """
    error.add_note(f"closing also failed: {str(failure) or type(failure).__name__}")
