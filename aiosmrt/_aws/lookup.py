"""What a look-up of credentials starts and must not leave behind: a prompt for an MFA code, a credential process."""

from __future__ import annotations

import atexit
import getpass
import os
import select
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["LookUp"]

# Where getpass reads, even if standard input is redirected.
_TERMINAL = Path("/dev/tty")


class LookUp:
    """A look-up in a thread that can be abandoned, but not ended."""

    def __init__(self) -> None:
        self._abandoned = False
        self._terminal_attributes: list[Any] | None = None
        self._process: subprocess.Popen[Any] | None = None
        # Closed when the look-up is abandoned, so that no thread waits at the terminal as the program ends.
        self._waking: int | None = None
        self._lock = threading.Lock()

    def ask(self, prompt: str) -> str:
        """Ask for an MFA code on the terminal; blocks.

        Raises:
            RuntimeError: the look-up was abandoned.
        """
        with self.prompting():
            if self._terminal_attributes is None:
                return getpass.getpass(prompt)
            return self._ask_at_terminal(prompt)

    def _ask_at_terminal(self, prompt: str) -> str:
        """The same as getpass, which would keep its thread there until Enter is pressed."""
        import termios

        terminal = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY)
        try:
            attributes = termios.tcgetattr(terminal)
            silent = attributes[:]
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
            try:
                os.write(terminal, prompt.encode(errors="replace"))
                self._wait_for(terminal)
                line = os.read(terminal, 4096)
            finally:
                termios.tcsetattr(terminal, termios.TCSANOW, attributes)
            os.write(terminal, b"\n")
        finally:
            os.close(terminal)
        if not line:
            raise EOFError
        return line.decode(errors="replace").rstrip("\n")

    def _wait_for(self, terminal: int) -> None:
        """Wait until the terminal has a line.

        Raises:
            RuntimeError: the look-up was abandoned.
        """
        woken, self._waking = os.pipe()
        try:
            self._check()
            with suppress(ValueError):  # select does not take the 1,025th file: then reading waits, as in getpass
                select.select([terminal, woken], [], [])
            self._check()
        finally:
            os.close(woken)
            self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._waking is not None:
                os.close(self._waking)
            self._waking = None

    @contextmanager
    def prompting(self) -> Iterator[None]:
        """A block that may turn the terminal's echo off, and may never end.

        If the look-up is abandoned or the program ends before, the terminal is returned to its state.

        Raises:
            RuntimeError: the look-up was abandoned.
        """
        self._terminal_attributes = _terminal_attributes()
        # A KeyboardInterrupt may end the program without cancelling anything.
        atexit.register(self._restore_terminal)
        try:
            self._check()
            yield
        finally:
            atexit.unregister(self._restore_terminal)
            self._terminal_attributes = None

    def start_process(self, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a credential process.

        Raises:
            OSError: it cannot be started.
            RuntimeError: the look-up was abandoned.
        """
        self._check()
        self._process = process = subprocess.Popen(command, **options)  # noqa: S603 - the user's configuration
        if self._abandoned:
            process.kill()
        return process

    def abandon(self) -> None:
        """Kill the process under way, return the terminal to its state before the prompt, and allow no further one."""
        self._abandoned = True
        if self._process is not None and self._process.returncode is None:
            # The thread is waiting for its end.
            self._process.kill()
        self._wake()
        self._restore_terminal()

    def _restore_terminal(self) -> None:
        if self._terminal_attributes is not None:
            _set_terminal_attributes(self._terminal_attributes)

    def _check(self) -> None:
        if self._abandoned:
            raise RuntimeError("the look-up was abandoned")


def _terminal_attributes() -> list[Any] | None:
    try:
        import termios
    except ImportError:  # Windows, where getpass leaves the console as it is
        return None
    try:
        with _TERMINAL.open("rb", buffering=0) as terminal:
            return termios.tcgetattr(terminal)
    except (OSError, termios.error):
        return None


def _set_terminal_attributes(attributes: list[Any]) -> None:
    import termios

    # The terminal may have been closed, and the cancellation goes on.
    with suppress(OSError, termios.error), _TERMINAL.open("rb", buffering=0) as terminal:
        termios.tcsetattr(terminal, termios.TCSANOW, attributes)
