"""The local variables that an error's traceback still holds, which may be a caller's data."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["clear_locals"]

_PACKAGE = str(Path(__file__).parents[1])


def clear_locals(error: BaseException) -> None:
    """Clear the local variables of this package's frames that an error has left.

    Error trackers report locals, and those of serializers and their callers are what a caller wants scored.

    Args:
        error: the error; its causes and contexts, and the members of a group, are included.
    """
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
        trace = one.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            if frame.f_code.co_filename.startswith(_PACKAGE):
                with suppress(RuntimeError):  # a frame that is still running
                    frame.clear()
            trace = trace.tb_next
