"""Work on a private loop blocks nobody, and nothing of it is left when it is cancelled."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from aiosmrt._aws.private_loop import run_on_private_loop


def worker_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("aiosmrt-credentials")]


async def threads_end() -> None:
    """A thread ends a moment after its result has arrived."""
    deadline = asyncio.get_running_loop().time() + 5
    while worker_threads():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)


async def test_the_result_comes_from_another_thread_and_loop() -> None:
    async def where() -> tuple[threading.Thread, asyncio.AbstractEventLoop]:
        return threading.current_thread(), asyncio.get_running_loop()

    thread, loop = await run_on_private_loop(where)
    assert thread is not threading.current_thread()
    assert loop is not asyncio.get_running_loop()
    assert loop.is_closed()
    await threads_end()


async def test_an_error_arrives_as_it_is() -> None:
    error = LookupError("lost")

    async def fail() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await run_on_private_loop(fail)
    assert caught.value is error


async def test_blocking_work_leaves_the_loop_free() -> None:
    entered, leave = threading.Event(), threading.Event()

    async def block() -> str:
        entered.set()
        leave.wait(10)
        return "done"

    task = asyncio.create_task(run_on_private_loop(block))
    await asyncio.to_thread(entered.wait, 10)
    # This line is reached while the work blocks.
    assert not task.done()
    leave.set()
    assert await task == "done"


async def test_cancelling_cancels_the_work_and_waits_for_its_end() -> None:
    entered, ended = threading.Event(), []

    async def work() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            await asyncio.sleep(0.01)
            ended.append("cleaned up")
            raise

    task = asyncio.create_task(run_on_private_loop(work))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cancelled", "cleaned up"]
    await threads_end()


async def test_cancelling_again_does_not_skip_the_clean_up() -> None:
    entered, cleaning, clean = threading.Event(), threading.Event(), threading.Event()
    ended = []

    async def work() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            clean.wait(10)
            ended.append("cleaned up")

    task = asyncio.create_task(run_on_private_loop(work))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    await asyncio.to_thread(cleaning.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    clean.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cleaned up"]


async def test_cancelling_before_the_thread_has_begun() -> None:
    began = []

    async def work() -> None:
        began.append(True)
        await asyncio.Event().wait()

    task = asyncio.create_task(run_on_private_loop(work))
    await asyncio.sleep(0)  # the task runs up to its first await, and the thread has not come far
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await threads_end()


async def test_work_that_cancels_itself_is_an_error_and_not_a_cancellation() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    outcome = (await asyncio.gather(run_on_private_loop(work), return_exceptions=True))[0]
    assert isinstance(outcome, Exception)  # which a CancelledError is not


async def test_cancellation_wins_over_what_the_work_ends_with() -> None:
    entered = threading.Event()

    async def work() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise LookupError from None

    task = asyncio.create_task(run_on_private_loop(work))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_process_does_not_outlive_cancelled_work(
    tmp_path: Path, open_descriptors: Callable[[], set[str]]
) -> None:
    started = threading.Event()
    pids: list[int] = []

    async def work() -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import time; time.sleep(600)", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        pids.append(child.pid)
        started.set()
        await child.communicate()

    before = open_descriptors()
    task = asyncio.create_task(run_on_private_loop(work))
    await asyncio.to_thread(started.wait, 10)
    assert alive(pids[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pids[0])  # killed and reaped
    assert open_descriptors() <= before


async def test_a_child_process_that_ended_is_left_alone() -> None:
    async def work() -> bytes:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print('out')", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        return (await child.communicate())[0]

    assert await run_on_private_loop(work) == b"out\n"
