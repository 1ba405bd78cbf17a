"""The `aiosmrt` command as a process, the way a shell starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import aiosmrt
from tests.support.peers import CREDENTIALS, REGION

# A warning would stand on standard error, which the tests compare.
PROGRAM = (sys.executable, "-W", "error", "-m", "aiosmrt.cli")


T = TypeVar("T")


class Ended(NamedTuple):
    """A finished process."""

    code: int
    stdout: bytes
    stderr: bytes


# Runs `aiosmrt` with these arguments.
Cli: TypeAlias = Callable[..., Awaitable[Ended]]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """What a process needs, with fake credentials and nothing of the machine's AWS settings."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(Path(aiosmrt.__file__).parent.parent),
        "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key,
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": REGION,
        **variables,
    }


@asynccontextmanager
async def started(
    *command: str, env: Mapping[str, str], cwd: Path | None = None, stdout: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with pipes, or another standard output, which does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        # A shell that starts the tests in the background has them ignore interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@contextmanager
def limited(process: asyncio.subprocess.Process, seconds: float = 90.0) -> Iterator[None]:
    """Kill a process that is still there after a time, whatever the loop's clock says, so that no read of it hangs.

    Args:
        process: the process; it must have ended at the end of the block.
        seconds: how long it may take. Defaults to less than a test may.

    Raises:
        AssertionError: it was killed.
    """
    timer = threading.Timer(seconds, os.kill, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    assert process.returncode != -signal.SIGKILL, f"a program did not end within {seconds:g} s"


async def unless_ended(process: asyncio.subprocess.Process, awaited: Awaitable[T]) -> T:
    """Wait for something that a process is to bring about.

    Args:
        process: the process.
        awaited: what is waited for.

    Returns:
        Its result.

    Raises:
        AssertionError: the process ended before.
    """
    waiting, ending = asyncio.ensure_future(awaited), asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({waiting, ending}, return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done(), f"the process has ended with {process.returncode}"
        return waiting.result()
    finally:
        waiting.cancel()
        ending.cancel()
        await asyncio.wait({waiting, ending})


async def run(*command: str, env: Mapping[str, str], stdin: bytes = b"", cwd: Path | None = None) -> Ended:
    """Run a process to its end."""
    async with started(*command, env=env, cwd=cwd) as process:
        stdout, stderr = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, stdout, stderr)
