"""Ctrl-C and SIGTERM for a job: the first stops it, a second one ends it at once, whatever hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, Self

__all__ = ["INTERRUPTED", "Interrupts"]

INTERRUPTED: Final = 130
"""The exit status of a command that a signal ended."""

# How long a job may take to end in good order once it has been told to end at once.
_GRACE_SECONDS: Final = 2.0

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handles both signals while its ``with`` block runs, around `asyncio.run`.

    The handlers are Python's own, because those of an event loop wait for the loop. After a second signal, a thread
    ends the process if the block does not: nothing else ends threads that hang, in a name look-up or on a disk.
    """

    def __init__(self) -> None:
        self._count = 0
        self._stop: Callable[[], object] | None = None
        self._end: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}
        # A signal handler may put, even while the same queue is put to.
        self._told: SimpleQueue[bool] = SimpleQueue()

    def __enter__(self) -> Self:
        # Python has signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._end_process, name="aiosmrt-interrupts", daemon=True).start()
            self._before = {number: signal.signal(number, self._received) for number in _NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._told.put(False)

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
        if self._count == 1:
            self._stop()
        elif self._count == 2:
            if self._end is not None:
                self._end()
            self._told.put(True)

    def _end_process(self) -> None:
        if self._told.get():
            try:
                self._told.get(timeout=_GRACE_SECONDS)
            except Empty:
                os._exit(INTERRUPTED)
