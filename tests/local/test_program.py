"""``serve`` as a process: its output, its signals, its end."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiosmrt.errors import ConfigurationError
from aiosmrt.local import serve
from tests.support.peers import CREDENTIALS, REGION
from tests.support.runtime import Draft, InProcessContainer, RawConnection, echo

PROGRAM = Path(__file__).with_name("serve_program.py")
ROOT = PROGRAM.parents[2]


@asynccontextmanager
async def served(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key,
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key,
        "AWS_REGION": REGION,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def announced(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", line)
    return line.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_announces_serves_and_ends(number: signal.Signals) -> None:
    async with InProcessContainer() as container, served("echo=echo", f"far={container.url}") as process:
        url = await announced(process)
        async with RawConnection.to(url) as connection:
            for path in ("/endpoints/echo/invocations", "/endpoints/far/invocations"):
                answer = await connection.exchange(Draft(url, path).sign().encode())
                assert (answer.status, answer.body) == (200, b"1,2,3")
            assert (await connection.exchange(Draft(url).encode())).status == 403
            process.send_signal(number)
            assert await connection.rest() == (b"", "closed")
        output, errors = await process.communicate()
        assert process.returncode == 0
        assert output == b""
        assert errors == b"ended in order\n"


async def test_second_signal_ends_at_once() -> None:
    async with served("held=held") as process:
        url = await announced(process)
        async with RawConnection.to(url) as connection:
            await connection.write(Draft(url, "/endpoints/held/invocations").sign().encode())
            draft = Draft(url, "/endpoints/none/invocations").sign()
            async with RawConnection.to(url) as other:
                assert (await other.exchange(draft.encode())).status == 400
                process.send_signal(signal.SIGTERM)
                # The idle connection ends first; the call in flight is still awaited.
                assert await other.rest() == (b"", "closed")
            process.send_signal(signal.SIGTERM)
            assert await connection.rest() == (b"", "closed")
        _, errors = await process.communicate()
        assert process.returncode == 0
        assert errors == b"ended in order\n"


async def test_file_and_arguments(tmp_path: Path) -> None:
    program = ROOT / "tests" / "local" / "container_program.py"
    assert program.exists()
    path = tmp_path / "runtime.toml"
    path.write_text(f'region = "{REGION}"\n[endpoints.filed]\nhandler = "tests.support.runtime:echo"\n')
    async with served("--config", str(path), "echo=echo") as process:
        url = await announced(process)
        async with RawConnection.to(url) as connection:
            for name in ("filed", "echo"):
                draft = Draft(url, f"/endpoints/{name}/invocations").sign()
                assert (await connection.exchange(draft.encode())).status == 200
        process.terminate()
        await process.communicate()
        assert process.returncode == 0


async def test_no_endpoint_and_duplicate_endpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no endpoint to serve; at least one"):
        await serve({})
    path = tmp_path / "runtime.toml"
    path.write_text('[endpoints.echo]\nurl = "http://127.0.0.1:9"\n')
    with pytest.raises(ConfigurationError, match="endpoint echo is configured both"):
        await serve({"echo": echo}, config=path)


async def test_cancellation_is_raised() -> None:
    lines: list[str] = []
    ready = asyncio.Event()

    def announce(line: str) -> None:
        lines.append(line)
        ready.set()

    task = asyncio.create_task(serve({"echo": echo}, verify_signatures=False, announce=announce))
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionRefusedError):
        async with RawConnection.to(lines[0]):
            pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_signal_while_a_container_starts() -> None:
    starting = asyncio.Event()

    class Slow(InProcessContainer):
        async def start(self) -> None:
            starting.set()
            await asyncio.Event().wait()

    async def terminate() -> None:
        await starting.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    lines: list[str] = []
    killer = asyncio.create_task(terminate())
    await serve({"slow": Slow()}, verify_signatures=False, announce=lines.append)
    await killer
    assert lines == []
