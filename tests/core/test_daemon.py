"""Work in a daemon thread blocks neither the loop nor the end of the program."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time

import pytest

from aiosmrt._daemon import run_in_daemon_thread


async def test_the_result_comes_from_another_thread_with_the_callers_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    thread, value = await run_in_daemon_thread(lambda: (threading.current_thread(), variable.get()))
    assert thread is not threading.current_thread()
    assert (thread.daemon, thread.name) == (True, "aiosmrt-blocking")
    assert value == "mine"


async def test_an_error_arrives_as_it_is() -> None:
    error = LookupError("lost")

    def fail() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await run_in_daemon_thread(fail)
    assert caught.value is error


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, StopIteration])
async def test_exceptions_that_would_end_the_program_or_cancel_become_ordinary_errors(
    kind: type[BaseException],
) -> None:
    def fail() -> None:
        raise kind

    with pytest.raises(RuntimeError, match=kind.__name__):
        await run_in_daemon_thread(fail)


async def test_blocking_work_leaves_the_loop_free() -> None:
    entered, leave = threading.Event(), threading.Event()

    def block() -> str:
        entered.set()
        leave.wait(10)
        return "done"

    task = asyncio.create_task(run_in_daemon_thread(block))
    await asyncio.to_thread(entered.wait, 10)
    assert not task.done()
    leave.set()
    assert await task == "done"


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelling_ends_the_wait_at_once_and_the_thread_by_itself(fails: bool) -> None:
    noise: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    entered, leave = threading.Event(), threading.Event()
    threads = []

    def block() -> None:
        threads.append(threading.current_thread())
        entered.set()
        leave.wait(10)
        if fails:
            raise LookupError

    task = asyncio.create_task(run_in_daemon_thread(block))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert threads[0].is_alive()
    leave.set()
    await asyncio.to_thread(threads[0].join, 10)
    assert not threads[0].is_alive()
    await asyncio.sleep(0)
    assert noise == []


PROGRAM = """
import asyncio, threading
from aiosmrt._daemon import run_in_daemon_thread

entered = threading.Event()

def block():
    entered.set()
    {work}

async def main():
    task = asyncio.create_task(run_in_daemon_thread(block))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    await asyncio.wait((task,))

asyncio.run(main())
{after}
print("ended")
"""


@pytest.mark.parametrize(
    ("work", "after"),
    [
        ("threading.Event().wait(600)", ""),
        ("closed.wait(10)", "closed.set(); [t.join(10) for t in threading.enumerate() if t.daemon]"),
    ],
    ids=["blocked for good", "ends after its loop"],
)
def test_the_program_ends_silently_while_the_thread_blocks(work: str, after: str) -> None:
    program = PROGRAM.format(work=work, after=after).replace("entered = ", "closed = threading.Event()\nentered = ")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)
    assert time.monotonic() - began < 90
