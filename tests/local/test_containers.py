"""Model containers as child processes: readiness, environment, output, and the end of every process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiosmrt.errors import AiosmrtError, ClientStateError
from aiosmrt.local import containers
from aiosmrt.local.containers import ContainerError, ModelContainer
from tests.support.virtual_time import VirtualTime

PROGRAM = Path(__file__).with_name("container_program.py")
COMMAND = (sys.executable, "-I", str(PROGRAM))

pytestmark = pytest.mark.skipif(os.name != "posix", reason="model containers are POSIX processes")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's subreaper and pidfd")


def container(*flags: str, **options: Any) -> ModelContainer:
    return ModelContainer([*COMMAND, *flags], **options)


def pid_in(output: tuple[str, ...], name: str = "pid") -> int:
    return next(int(found[1]) for line in output if (found := re.fullmatch(rf"{name} (\d+)", line)))


def own_children() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(entry.parent.name))
    return found


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for_end(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process that is not our child ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


async def invoke(model: ModelContainer, body: bytes) -> bytes:
    async with aiohttp.ClientSession() as session, session.post(f"{model.url}/invocations", data=body) as response:
        assert response.status == 200
        return await response.read()


@pytest.fixture(autouse=True)
async def no_process_and_no_task_left() -> Any:
    children = own_children()
    yield
    assert own_children() == children
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_serves_inside_the_block_only() -> None:
    async with container() as model:
        assert model.running
        assert await invoke(model, b"echo") == b"echo"
        assert repr(model).endswith(f"running on http://127.0.0.1:{model.port}>")
        pid = pid_in(model.output)
    assert gone(pid)
    assert not model.running
    assert model.returncode == -signal.SIGTERM
    assert model.statistics() == {"starts": 1, "running": False, "port": model.port, "returncode": -signal.SIGTERM}


async def test_environment_omits_aws_variables(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-model")
    monkeypatch.setenv("INHERITED", "yes")
    async with container(environment={"MODEL": "digits"}, model_dir=tmp_path) as model:
        seen = json.loads(await invoke(model, b"environment"))
    assert [name for name in seen if name.startswith("AWS_")] == []
    assert seen["SAGEMAKER_BIND_TO_PORT"] == str(model.port)
    assert (seen["INHERITED"], seen["MODEL"], seen["SM_MODEL_DIR"]) == ("yes", "digits", str(tmp_path))


async def test_model_folder_is_absolute(monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with container(model_dir="model", working_dir="elsewhere") as model:
        seen = json.loads(await invoke(model, b"environment"))
    assert seen["SM_MODEL_DIR"] == str(tmp_path / "model")


async def test_inherit_aws_and_given_variables(monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    async with container(inherit_aws=True) as model:
        assert b"AKIDEXAMPLE" in await invoke(model, b"environment")
    async with container(environment={"AWS_REGION": "eu-central-1"}) as model:
        seen = await invoke(model, b"environment")
    assert b"eu-central-1" in seen
    assert b"AKIDEXAMPLE" not in seen


async def test_early_exit_is_reported_with_the_last_lines() -> None:
    model = container("--exit", "7", startup_timeout=600)
    with pytest.raises(
        ContainerError, match=r"before it was ready: exit code 7\n.*\n    cannot load the model"
    ) as caught:
        await model.start()
    assert caught.value.returncode == model.returncode == 7
    assert caught.value.output[-1] == "cannot load the model"
    assert isinstance(caught.value, AiosmrtError)


async def test_exit_by_a_signal() -> None:
    model = ModelContainer(["/bin/sh", "-c", "kill -ABRT $$"])
    with pytest.raises(ContainerError, match=f"signal {signal.SIGABRT.value}"):
        await model.start()
    assert model.returncode == -signal.SIGABRT


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [(["no-such-program"], 127, "No such file"), ([str(PROGRAM.parent)], 126, "Permission denied")],
)
async def test_invalid_command(command: list[str], code: int, reason: str) -> None:
    with pytest.raises(ContainerError, match=reason) as caught:
        await ModelContainer(command).start()
    assert caught.value.returncode == code


async def test_missing_working_folder(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="could not be started"):
        await container(working_dir=tmp_path / "missing").start()


async def start_until_it_is_late(model: ModelContainer, virtual_time: VirtualTime) -> None:
    """Start a container, and let the 0.3 seconds that it has pass once it was pinged."""
    starting = asyncio.create_task(model.start())
    # The pause between two pings.
    await virtual_time.until(lambda: any(seconds < 0.3 for seconds in virtual_time.pending))
    await virtual_time.advance(0.3)
    await starting


async def test_container_that_never_listens_is_stopped(virtual_time: VirtualTime) -> None:
    model = ModelContainer(["sleep", "3600"], startup_timeout=0.3)
    with pytest.raises(ContainerError, match=r"within 0\.3 s \(last: ClientConnectorError\)") as caught:
        await start_until_it_is_late(model, virtual_time)
    assert caught.value.returncode is None
    assert model.returncode == -signal.SIGTERM


async def test_container_that_stays_unready_is_stopped(virtual_time: VirtualTime) -> None:
    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # the last ping is given up
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(loading, "127.0.0.1", 0)
    async with server:
        model = ModelContainer(["sleep", "3600"], port=server.sockets[0].getsockname()[1], startup_timeout=0.3)
        with pytest.raises(ContainerError, match=r"within 0\.3 s \(last: HTTP 503\)"):
            await start_until_it_is_late(model, virtual_time)
    assert model.returncode == -signal.SIGTERM


@pytest.mark.parametrize("command", ["python serve.py", []])
def test_command_is_a_sequence(command: Any) -> None:
    with pytest.raises(ValueError, match="sequence of arguments"):
        ModelContainer(command)


async def test_start_twice() -> None:
    async with container() as model:
        with pytest.raises(ClientStateError, match="already running"):
            await model.start()
        assert await invoke(model, b"unharmed") == b"unharmed"


async def test_wait_needs_a_start_and_stop_does_not() -> None:
    model = container()
    await model.stop()
    with pytest.raises(ClientStateError, match="not been started"):
        await model.wait()


async def test_sigterm_allows_an_orderly_end() -> None:
    async with container("--farewell") as model:
        pass
    assert model.returncode == 0
    assert model.output[-1] == "farewell"
    assert await model.wait() == 0


async def test_sigkill_follows_after_the_grace_period() -> None:
    async with container("--ignore-sigterm", grace=0.1) as model:
        pass
    assert model.returncode == -signal.SIGKILL


@linux
@pytest.mark.parametrize("flags", [(), ("--ignore-sigterm",)])
async def test_processes_that_it_started_die_with_it(flags: tuple[str, ...]) -> None:
    async with container("--child", *flags, grace=0.1) as model:
        child = pid_in(model.output, "child")
        assert not gone(child)
    assert gone(child)


@linux
async def test_crash_ends_a_wait_and_allows_a_new_start() -> None:
    async with container("--child") as model:
        child = pid_in(model.output, "child")
        waiting = asyncio.create_task(model.wait())
        with pytest.raises(aiohttp.ClientError):
            await invoke(model, b"crash")
        assert await waiting == 3
        assert gone(child)
        assert repr(model).endswith("ended with 3>")
        await model.start()
        assert await invoke(model, b"again") == b"again"
    assert model.statistics()["starts"] == 2


async def test_fixed_port_is_used() -> None:
    async with container() as model:
        port = model.port
    async with container(port=port) as model:
        assert model.port == port


async def test_output_goes_to_the_callback_line_by_line() -> None:
    lines: list[str] = []
    async with container("--farewell", on_output=lines.append) as model:
        pass
    assert lines == list(model.output)
    assert lines[-1] == "farewell"


async def test_large_output_is_drained_and_truncated() -> None:
    async with container("--write", str(3 << 20)) as model:
        assert await invoke(model, b"alive") == b"alive"
    assert len(model.output) <= 200
    assert max(map(len, model.output)) == 4096
    assert model.output[-1] == "written"


async def test_exception_of_the_callback_is_raised_by_stop() -> None:
    def fail(line: str) -> None:
        raise OSError("disk full")

    model = container("--farewell", on_output=fail)
    await model.start()
    assert await invoke(model, b"drained on") == b"drained on"
    with pytest.raises(OSError, match="disk full"):
        await model.stop()
    assert model.returncode == 0
    await model.stop()


class CancelledAtAwait:
    """Runs a coroutine and cancels its task at the given suspension, as ``task.cancel()`` does."""

    def __init__(self, work: Coroutine[Any, Any, Any], suspension: int) -> None:
        self.work, self.suspension = work, suspension

    def __await__(self) -> Generator[Any, Any, Any]:
        count = 0
        send: Callable[..., Any] = self.work.send
        argument: Any = None
        while True:
            try:
                future = send(argument)
            except StopIteration as end:
                return end.value
            if count == self.suspension:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
            count += 1
            try:
                argument, send = (yield future), self.work.send
            except BaseException as error:
                argument, send = error, self.work.throw


async def run_cancelled_at(work: Coroutine[Any, Any, Any], suspension: int) -> bool:
    """Whether the cancellation took effect; False if the work has fewer suspensions."""

    async def body() -> None:
        await CancelledAtAwait(work, suspension)

    task = asyncio.create_task(body())
    await asyncio.wait({task})
    if task.cancelled():
        return True
    await task
    return False


async def every_cancellation(prepare: Callable[[], Awaitable[tuple[ModelContainer, Coroutine[Any, Any, Any]]]]) -> int:
    children = own_children()
    for suspension in range(50):
        model, work = await prepare()
        took_effect = await run_cancelled_at(work, suspension)
        if not took_effect:
            await model.stop()
            return suspension
        assert not model.running
        assert own_children() == children
        assert asyncio.all_tasks() == {asyncio.current_task()}
    raise AssertionError("the work never ran to its end")


async def test_cancel_start_at_every_await() -> None:
    async def prepare() -> tuple[ModelContainer, Coroutine[Any, Any, Any]]:
        model = container()
        return model, model.start()

    assert await every_cancellation(prepare) >= 2


async def test_cancel_stop_at_every_await() -> None:
    async def prepare() -> tuple[ModelContainer, Coroutine[Any, Any, Any]]:
        model = container()
        await model.start()
        return model, model.stop()

    assert await every_cancellation(prepare) >= 1


async def test_cancelled_stop_kills_at_once() -> None:
    model = container("--ignore-sigterm", grace=3600)
    await model.start()
    assert await run_cancelled_at(model.stop(), 0)
    assert model.returncode == -signal.SIGKILL


async def test_concurrent_stops() -> None:
    model = container("--farewell")
    await model.start()
    await asyncio.gather(model.stop(), model.stop())
    assert model.returncode == 0


PARENT = textwrap.dedent(
    """
    import asyncio, os, sys
    from aiosmrt.local.containers import ModelContainer

    async def main():
        model = ModelContainer(sys.argv[2:], grace=0.1)
        await model.start()
        if sys.argv[1] == "fork" and os.fork() == 0:
            os.closerange(1, 3)
            os.read(0, 1)  # ends with the test's own pipe
            os._exit(0)
        print(*model.output, sep="\\n", flush=True)
        await asyncio.sleep(3600)

    asyncio.run(main())
    """
)


@linux
@pytest.mark.parametrize("fork", ["alone", "fork"])
async def test_ends_when_its_parent_is_killed(fork: str) -> None:
    command = [sys.executable, "-c", PARENT, fork, *COMMAND, "--child", "--ignore-sigterm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        output = (parent.stdout.readline().strip(), parent.stdout.readline().strip())
        main, child = pid_in(output), pid_in(output, "child")
        parent.kill()
        parent.wait()
        assert wait_for_end(main)
        assert wait_for_end(child)


@linux
async def test_ends_when_its_supervisor_is_killed() -> None:
    children = set(own_children())
    async with container() as model:
        main = pid_in(model.output)
        (supervisor,) = set(own_children()) - children
        os.kill(supervisor, signal.SIGKILL)
        assert wait_for_end(main)
        assert await model.wait() == -signal.SIGKILL


# Runs the supervisor; the process that it forks may get a signal before anything else happens in it.
BEGINNING = """
import os, runpy, signal, sys

fork = os.fork


def stopped_at_once():
    pid = fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGTERM)
    return pid


if sys.argv.pop(1) == "stopped":
    os.fork = stopped_at_once
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
BLOCKED = "import signal, sys; sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"


@pytest.mark.parametrize(
    ("begins", "code", "status"),
    [("stopped", "", -signal.SIGTERM), ("unhindered", BLOCKED, 0)],
    ids=["a signal is not lost", "no signal is blocked"],
)
def test_a_command_has_its_own_signals_from_the_beginning(begins: str, code: str, status: int) -> None:
    supervisor = str(Path(containers.__file__).with_name("supervisor.py"))
    command = [sys.executable, "-ISc", BEGINNING, begins, supervisor, "60", str(os.getpid()), "0"]
    with subprocess.Popen([*command, sys.executable, "-ISc", code], stdin=subprocess.PIPE) as process:
        assert process.wait(60) == status
