"""Ctrl-C and SIGTERM for a job: the first stops it, a second one ends it at once, whatever hangs."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Final, Self

__all__ = ["INTERRUPTED", "Interrupts"]

INTERRUPTED: Final = 130
"""The exit status of a command that a signal ended."""

# How long a job may take to end in good order once it has been told to end at once.
_GRACE_SECONDS: Final = 2.0

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)

# DECTCEM of ECMA-48 terminals: the cursor is visible.
_SHOW_CURSOR: Final = b"\x1b[?25h"


class Interrupts:
    """Handles both signals while its ``with`` block runs, around `asyncio.run`.

    The handlers are Python's own, because those of an event loop wait for the loop. After a second signal, a thread
    ends the process if the block does not: nothing else ends threads that hang, in a name look-up or on a disk.
    """

    def __init__(self) -> None:
        self._count = 0
        self._stop: Callable[[], object] | None = None
        self._end: Callable[[], object] | None = None
        self._leaving = ExitStack()
        # A signal handler may put, even while the same queue is put to.
        self._told: SimpleQueue[bool] = SimpleQueue()

    def __enter__(self) -> Self:
        # Python has signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            try:
                self._leaving.callback(self._told.put, False)
                threading.Thread(target=self._end_process, name="aiosmrt-interrupts", daemon=True).start()
                for number in _NUMBERS:
                    # A handler that is not Python's own could not be put back, so it stays.
                    if (before := signal.getsignal(number)) is not None:
                        self._leaving.callback(signal.signal, number, before)
                        signal.signal(number, self._received)
            except BaseException:
                # A signal raises here, between the first handler and the second.
                self._leave()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        # What raises now would leave handlers behind.
        if self._stop is None:
            self._stop = _nothing
        self._leaving.close()

    def watch(self, stop: Callable[[], object]) -> None:
        """Have the first signal call a function, and the second cancel the current task.

        Args:
            stop: called on the event loop, which runs now.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        self._stop = lambda: loop.call_soon_threadsafe(stop)
        if task is not None:
            self._end = lambda: loop.call_soon_threadsafe(task.cancel)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._stop is None:
            # Nothing has begun that could be stopped.
            raise KeyboardInterrupt
        self._count += 1
        # A loop that is closed raises: its block is about to end.
        with suppress(RuntimeError):
            if self._count == 1:
                self._stop()
            elif self._count == 2:
                self._told.put(True)
                if self._end is not None:
                    self._end()

    def _end_process(self) -> None:
        if self._told.get():
            try:
                self._told.get(timeout=_GRACE_SECONDS)
            except Empty:
                try:
                    _show_cursor()
                finally:
                    os._exit(INTERRUPTED)


def _nothing() -> None:
    pass


def _show_cursor() -> None:
    """Undo on the terminal what no exit handler will: a progress bar hides the cursor."""
    with suppress(OSError, ValueError):
        # Not through sys.stderr, whose lock a thread that hangs may hold.
        error = sys.__stderr__.fileno() if sys.__stderr__ is not None else -1
        # A terminal that was stopped takes nothing.
        if os.isatty(error) and select.select([], [error], [], 0)[1]:
            os.write(error, _SHOW_CURSOR)
