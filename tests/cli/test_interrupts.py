"""Signals while the loop is not running, and what an immediate end leaves behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosmrt.cli.interrupts import Interrupts
from tests.support.command_line import environment, run

# The console's escapes for the cursor.
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"

BAR_THAT_HANGS = """
import asyncio, threading
from aiosmrt.cli.interrupts import Interrupts
from aiosmrt.cli.progress import shown_progress

async def main():
    with shown_progress(as_json=False, quiet=False) as shown:
        interrupts.watch(lambda: shown.tell("stopping"))
        shown.tell("running")
        try:
            await asyncio.Event().wait()
        finally:
            threading.Event().wait()

with Interrupts() as interrupts:
    asyncio.run(main())
"""

LOOP_THAT_HAS_ENDED = """
import asyncio, signal, threading
from aiosmrt.cli.interrupts import Interrupts

async def main():
    interrupts.watch(lambda: None)

with Interrupts() as interrupts:
    asyncio.run(main())
    signal.raise_signal(signal.SIGINT)
    print("once", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("twice", flush=True)
    threading.Event().wait()
"""

HANDLER_OF_C = """
import ctypes, os, signal, sys

@ctypes.CFUNCTYPE(None, ctypes.c_int)
def handler(number):
    os.write(1, b"called ")

c = ctypes.CDLL(None).signal
c.restype, c.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
c(signal.SIGTERM, ctypes.cast(handler, ctypes.c_void_p))
# Python looks at the handlers there are when the module begins, as in a process that embeds it.
del sys.modules["_signal"]
import _signal
assert signal.getsignal(signal.SIGTERM) is None

from aiosmrt.cli.interrupts import Interrupts
with Interrupts():
    signal.raise_signal(signal.SIGTERM)
signal.raise_signal(signal.SIGTERM)
"""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: the descriptors of its reader and of the terminal."""
    reader, slave = os.openpty()
    try:
        yield reader, slave
    finally:
        os.close(reader)
        os.close(slave)


def read_until(reader: int, text: bytes) -> bytes:
    read = b""
    while text not in read:
        assert select.select([reader], [], [], 60)[0], read
        read += os.read(reader, 1 << 16)
    return read


@pytest.mark.parametrize("takes_output", [True, False])
def test_an_end_at_once_gives_the_terminal_its_cursor_back_unless_it_was_stopped(
    tmp_path: Path, terminal: tuple[int, int], takes_output: bool
) -> None:
    reader, slave = terminal
    env = environment(tmp_path, TERM="xterm-256color")
    with subprocess.Popen([sys.executable, "-c", BAR_THAT_HANGS], env=env, stderr=slave) as process:
        try:
            read = read_until(reader, b"running")
            process.send_signal(signal.SIGINT)
            read += read_until(reader, b"stopping")
            if not takes_output:
                # As by Ctrl-S.
                termios.tcflow(slave, termios.TCOOFF)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
    if not takes_output:
        termios.tcflow(slave, termios.TCOON)
    # The terminal stays open here.
    os.write(slave, b"the end")
    read += read_until(reader, b"the end")
    assert (SHOW in read.rpartition(HIDE)[2]) == takes_output


async def test_signals_after_the_loop_has_ended_end_the_process(tmp_path: Path) -> None:
    ended = await run(sys.executable, "-c", LOOP_THAT_HAS_ENDED, env=environment(tmp_path))
    assert ended == (130, b"once\ntwice\n", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="how C's handlers are told from Python's is CPython's own")
async def test_a_handler_that_is_not_of_python_stays(tmp_path: Path) -> None:
    ended = await run(sys.executable, "-c", HANDLER_OF_C, env=environment(tmp_path))
    assert ended == (0, b"called called ", b"")


@pytest.mark.parametrize("last", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_handlers_are_set_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch, last: signal.Signals
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = set(threading.enumerate())
    real = signal.signal

    def set_and_interrupted(number: int, handler: Any) -> Any:
        previous = real(number, handler)
        if number == last and handler not in before:
            signal.raise_signal(number)
        return previous

    monkeypatch.setattr(signal, "signal", set_and_interrupted)
    with pytest.raises(KeyboardInterrupt), Interrupts():
        pytest.fail("the block has begun")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    for thread in set(threading.enumerate()) - threads:
        thread.join(60)
        assert not thread.is_alive()
