"""Model containers as child processes, following the contract between SageMaker hosting and a container image.

Theory of operation. The contract, from "Custom Inference Code with Hosting Services" in SageMaker's Developer Guide:
the container listens on the port in ``SAGEMAKER_BIND_TO_PORT`` (8080 without it), answers ``GET /ping`` with 200 once
it can take requests and within 2 s each time, and answers ``POST /invocations``; to end it, the service sends SIGTERM
and, 30 s later, SIGKILL.

``supervisor.py`` runs between this process and the container. It stops the container with everything that it started
when our end of a pipe closes, which the kernel does even if this process crashes. So there is one way to stop, and
nothing to clean up after a crash. A stop lets the container end in order; if the stop is cancelled, the container is
killed at once, and the cancellation is raised when it is gone.

States: idle → starting → running → idle. ``start`` and ``stop`` are the only transitions; a container that ends by
itself is noticed at once by ``wait`` and by ``start``, and ``stop`` then only reaps it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp

from aiosmrt.errors import AiosmrtError, ClientStateError
from aiosmrt.local.lifecycle import Startable
from aiosmrt.local.tasks import finish

__all__ = ["ContainerError", "ModelContainer"]

PING_TIMEOUT = 2.0  # as in the service
PING_INTERVALS = (0.02, 0.05, 0.1, 0.25)  # the last one repeats
STOP_GRACE = 30.0  # as in the service
MAX_OUTPUT_LINES = 200
MAX_LINE_BYTES = 4096
LINES_IN_ERROR = 12
SUPERVISOR_MARGIN = 5.0  # seconds after the grace period until the supervisor is killed itself


class ContainerError(AiosmrtError):
    """A model container did not start, or did not become ready.

    Attributes:
        returncode: its exit code, negative for a signal as in ``subprocess``. None if it was still running.
        output: the last lines of its output, oldest first.
    """

    def __init__(self, message: str, *, returncode: int | None = None, output: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *(f"    {line}" for line in output[-LINES_IN_ERROR:]))))
        self.returncode = returncode
        self.output = output


class ModelContainer(Startable):
    """One model container: a command that serves ``/ping`` and ``/invocations``, run as a child process.

    The child's environment is this process's without its ``AWS_*`` variables, then ``environment``, then
    ``SAGEMAKER_BIND_TO_PORT`` and, with a ``model_dir``, ``SM_MODEL_DIR``. Its standard input is empty.

    Args:
        command: the program and its arguments; no shell is involved.
        environment: variables to add or replace. Defaults to none.
        inherit_aws: whether the child also gets this process's ``AWS_*`` variables, credentials included. Defaults to
            False.
        model_dir: folder of the unpacked model artifact, ``/opt/ml/model`` in the service. If None, not set.
        working_dir: folder to start in. Defaults to the current one.
        port: TCP port that the container is told to listen on. Defaults to a free one, chosen at each start.
        startup_timeout: seconds until ``/ping`` must answer 200. Defaults to 60 (in the service, 480).
        grace: seconds between SIGTERM and SIGKILL when it is stopped. Defaults to 30.
        on_output: called with each line of the container's output. If None, only the last 200 lines are kept, in
            ``output``.

    Raises:
        ContainerError: by ``start``: the container ended or did not become ready.

    >>> ModelContainer(["python", "serve.py"], port=8080)
    <ModelContainer 'python serve.py' idle>
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        inherit_aws: bool = False,
        model_dir: str | os.PathLike[str] | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        port: int = 0,
        startup_timeout: float = 60.0,
        grace: float = STOP_GRACE,
        on_output: Callable[[str], object] | None = None,
    ) -> None:
        if isinstance(command, str) or not command:
            raise ValueError("command must be a non-empty sequence of arguments, not a string")
        self._command = tuple(command)
        self._environment = dict(environment or {})
        self._inherit_aws = inherit_aws
        self._model_dir = model_dir
        self._working_dir = working_dir
        self._requested_port = port
        self._startup_timeout = startup_timeout
        self._grace = grace
        self._on_output = on_output
        self._output_error: Exception | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=MAX_OUTPUT_LINES)
        self._starts = 0
        self._port = 0
        self._starting = False
        self._run: _Run | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._returncode: int | None = None

    def __repr__(self) -> str:
        return f"<ModelContainer {shlex.join(self._command[:3])!r} {self._state()}>"

    def _state(self) -> str:
        if self._starting:
            return "starting"
        if self.running:
            return f"running on {self.url}"
        return "idle" if self._returncode is None else f"ended with {self._returncode}"

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._run is not None and not self._run.ended.done()

    @property
    def port(self) -> int:
        """The port that the container was told to listen on; 0 before the first start."""
        return self._port or self._requested_port

    @property
    def url(self) -> str:
        """The base URL of the container, ``http://127.0.0.1:PORT``, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def returncode(self) -> int | None:
        """The exit code of the last run, or the negative number of a signal. None until a run has ended."""
        return self._returncode

    @property
    def output(self) -> tuple[str, ...]:
        """The last 200 lines of standard output and error together, each truncated to 4096 bytes."""
        return tuple(self._lines)

    def statistics(self) -> dict[str, int | bool | None]:
        """Return counters: ``starts``, ``running``, ``port`` and the last ``returncode``."""
        return {
            "starts": self._starts,
            "running": self.running,
            "port": self.port,
            "returncode": self._returncode,
        }

    async def start(self) -> None:
        """Start the container and return when ``/ping`` answers 200.

        Raises:
            ContainerError: it ended before that, or was not ready within ``startup_timeout``; it is stopped then.
            ClientStateError: it is already running.
        """
        if self._starting or self.running:
            raise ClientStateError(f"the container is already {self._state()}")
        if os.name != "posix" or not sys.executable:
            raise ContainerError("model containers need a POSIX system and a Python interpreter to supervise them")
        self._starting = True
        try:
            await self.stop()  # reaps a run that ended by itself
            self._returncode = None
            self._lines.clear()
            self._port = self._requested_port or _free_port()
            # Not cancellable half way: a process is either not started, or started and assigned.
            run = await finish(self._spawn())
            await self._until_ready(run)
        except BaseException:
            await self.stop()
            raise
        finally:
            self._starting = False

    async def stop(self) -> None:
        """Stop the container and everything that it started; no effect if it is not running.

        SIGTERM, then SIGKILL after ``grace``. Cancelling this skips the rest of the grace period, and it still returns
        only when no process is left. An exception raised by ``on_output`` is raised here.
        """
        if self._run is None:
            return
        run = self._run
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._finish(run))
        await finish(self._stopping, lambda: run.signal(signal.SIGTERM))
        if self._output_error is not None:
            error, self._output_error = self._output_error, None
            raise error

    async def wait(self) -> int:
        """Wait until the process ends, by itself or through ``stop``; return its ``returncode``.

        Raises:
            ClientStateError: it has not been started.
        """
        if self._run is not None:
            return await asyncio.shield(self._run.ended)
        if self._returncode is None:
            raise ClientStateError("the container has not been started")
        return self._returncode

    def _child_environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if self._inherit_aws or name[:4] != "AWS_"}
        own = {"SAGEMAKER_BIND_TO_PORT": str(self._port)}
        if self._model_dir is not None:
            own["SM_MODEL_DIR"] = str(Path(self._model_dir).absolute())  # the container may start in another folder
        return inherited | self._environment | own

    async def _spawn(self) -> _Run:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-IS",
                str(Path(__file__).with_name("supervisor.py")),
                str(self._grace),
                str(os.getpid()),
                "0",
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._child_environment(),
                cwd=self._working_dir,
                start_new_session=True,
            )
        except OSError as error:
            raise ContainerError(f"the container could not be started: {error}") from error
        self._starts += 1
        self._stopping = None
        self._run = _Run(process, asyncio.get_running_loop().create_task(self._collect(process)))
        return self._run

    async def _collect(self, process: asyncio.subprocess.Process) -> int:
        """Read the container's output until it ends; return its exit code."""
        output = cast("asyncio.StreamReader", process.stdout)
        rest = b""
        while chunk := await output.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
            if len(rest) > MAX_LINE_BYTES:
                self._take(rest)
                rest = b""
        if rest:
            self._take(rest)
        self._returncode = await process.wait()
        return self._returncode

    def _take(self, raw: bytes) -> None:
        line = raw[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r")
        self._lines.append(line)
        if self._on_output is not None and self._output_error is None:
            try:
                self._on_output(line)
            except Exception as error:  # kept for stop(): the pipe must be drained, or the container blocks
                self._output_error = error

    async def _until_ready(self, run: _Run) -> None:
        answers = ["nothing"]
        ready = asyncio.get_running_loop().create_task(_answers_ping(self.url, answers))
        try:
            await asyncio.wait({ready, run.ended}, timeout=self._startup_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            await finish(asyncio.wait({ready}))
        if run.ended.done():
            code = run.ended.result()
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
            raise ContainerError(f"the container ended before it was ready: {how}", returncode=code, output=self.output)
        if ready.cancelled():
            raise ContainerError(
                f"the container did not answer GET /ping with 200 on port {self._port} "
                f"within {self._startup_timeout:g} s (last: {answers[-1]})",
                output=self.output,
            )
        ready.result()

    async def _finish(self, run: _Run) -> None:
        """Let the supervisor stop everything, and kill it if it fails to."""
        cast("asyncio.StreamWriter", run.process.stdin).close()
        done, _ = await asyncio.wait({run.ended}, timeout=self._grace + SUPERVISOR_MARGIN)
        if not done:
            run.signal(signal.SIGKILL)
            # Its death kills the main process (Linux); a process that escaped may still hold the pipe open.
            done, _ = await asyncio.wait({run.ended}, timeout=SUPERVISOR_MARGIN)
        if not done:
            run.ended.cancel()
            await asyncio.wait({run.ended})
        self._run = None


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One run of the process, from its start until it has been reaped."""

    process: asyncio.subprocess.Process
    ended: asyncio.Task[int]  # reads the output and waits for the exit code

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


async def _answers_ping(url: str, answers: list[str]) -> None:
    """Return when ``GET /ping`` answers 200; ``answers`` holds the last outcome."""
    timeout = aiohttp.ClientTimeout(total=PING_TIMEOUT)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        attempt = 0
        while True:
            try:
                async with session.get(f"{url}/ping", allow_redirects=False) as response:
                    if response.status == 200:
                        return
                    answers[:] = [f"HTTP {response.status}"]
            except TimeoutError:
                answers[:] = [f"no answer within {PING_TIMEOUT:g} s"]
            except aiohttp.ClientError as error:
                answers[:] = [type(error).__name__]
            await asyncio.sleep(PING_INTERVALS[min(attempt, len(PING_INTERVALS) - 1)])
            attempt += 1


def _free_port() -> int:
    """Return a TCP port of the loopback interface that is free now; the child must bind it itself.

    It is below the ephemeral ports (from 32768 on Linux, 49152 elsewhere), so that no connection and no other server
    gets it by chance before the container, which may take seconds to start, binds it.
    """
    for port in (*(20_000 + secrets.randbelow(12_000) for _ in range(50)), 0):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen: int = listener.getsockname()[1]
            return chosen
    raise ContainerError("no free TCP port was found")
