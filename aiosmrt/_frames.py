"""The frames that an error's traceback holds: error trackers report their local variables.

Those of this package's frames, and of the libraries that it calls, are what a caller wants scored, and what signs it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

__all__ = ["clear_locals", "without_frames"]

Error = TypeVar("Error", bound=BaseException)

_PACKAGE: Final = f"{Path(__file__).parent}{os.sep}"

# Clearing the frame of one of these that waits would end it.
_MAY_WAIT: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def clear_locals(error: BaseException) -> None:
    """Clear the local variables of the frames that an error has left.

    These are the frames of this package, and those of functions of libraries that it has called.

    Args:
        error: the error; its causes and contexts, and the members of a group, are included.
    """
    for one in _linked(error):
        trace = one.__traceback__
        called = False
        while trace is not None:
            frame = trace.tb_frame
            own = frame.f_code.co_filename.startswith(_PACKAGE)
            called = called or own
            if own or (called and _is_function_of_library(frame)):
                with suppress(RuntimeError):  # a frame that is still running
                    frame.clear()
            trace = trace.tb_next


def without_frames(error: Error) -> Error:
    """An error from which every frame is removed, because those of a library hold what was sent; to be raised again.

    Args:
        error: the error; its causes are included. Its context is removed: a library's may quote what it has received.
    """
    error.__context__ = None
    for one in _linked(error):
        one.__traceback__ = None
    return error


def _linked(error: BaseException) -> Iterator[BaseException]:
    """An error, its causes and contexts, and the members of groups."""
    seen: set[int] = set()
    remaining: list[BaseException | None] = [error]
    while remaining:
        one = remaining.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        remaining += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            remaining += one.exceptions
        yield one


def _is_function_of_library(frame: FrameType) -> bool:
    code = frame.f_code
    return not code.co_flags & _MAY_WAIT and code.co_filename.startswith(_libraries())


@cache
def _libraries() -> tuple[str, ...]:
    """The folders of libraries."""
    import sysconfig  # only errors need it

    return tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
