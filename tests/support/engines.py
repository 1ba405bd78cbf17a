"""For the tests of the engines: a service that counts, and jobs as programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from aiosmrt.local import ContainerFailure, Invocation
from tests.support.command_line import environment, started
from tests.support.runtime import local_runtime

MARK = "AIOSMRT_TEST_MARK"
ROWS = 400
TOTAL = 8
PROGRAMS = Path(__file__).parents[1] / "engines" / "programs"

# The row whose call the model refuses.
REFUSED = 77

# JSON that the model answers with for each type.
ANSWERS = {"binary": '"raw"', "bool": "true", "list<float64>": "[[0.5,1]]"}

JSON = {"Content-Type": "application/json"}


class Outcome(NamedTuple):
    """What came of a job.

    Args:
        code: the exit status of its program.
        stderr: what it wrote there.
        times: seconds in which the engine started, and the rows were scored.
        calls: how often each row was sent to the service ``double``.
        peak: the most of these calls that were in flight at once.
        resumed_calls: the same as ``calls`` for a job that was run twice.
        lists: how many rows each call of ``lists`` had.
        written_before: rows of that job that were written before it failed.
        killed: the worker that was killed.
        lost: how many calls of ``double`` ended without an answer, because their caller was gone.
        folder: where the output is.
    """

    code: int
    stderr: str
    times: dict[str, float]
    calls: Counter[int]
    peak: int
    resumed_calls: Counter[int]
    lists: list[int]
    written_before: set[int]
    killed: int | None
    lost: int
    folder: Path

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of an output."""
        return rows_in(self.folder / name)

    @property
    def repeated(self) -> int:
        """Calls beyond one for each row."""
        return self.calls.total() - len(self.calls)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in sorted(folder.glob("*.parquet")):
        rows += pyarrow.parquet.read_table(part).to_pylist()
    return rows


class Service:
    """Models that count their calls.

    Args:
        total: calls that must be in flight at once before the first is answered, so that all workers take part.
        kill_after: calls after which none is answered any more until `killed` is set, and `due` is set as soon as the
            most that are allowed are in flight: every worker has part in them. It must be so few that no worker comes
            to the end of its batch before. If None, never.
        folder: where a job writes.
    """

    def __init__(self, total: int, kill_after: int | None, folder: Path) -> None:
        self._total = total
        self._kill_after = kill_after
        self._folder = folder
        self.calls: Counter[int] = Counter()
        self.in_flight = 0
        self.peak = 0
        self.lost = 0
        self.due = asyncio.Event()
        self.killed = asyncio.Event()
        self._complete = asyncio.Event()
        self.resumed_calls: Counter[int] = Counter()
        self.lists: list[int] = []
        self.written_before: set[int] = set()
        self._has_refused = False

    async def double(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Doubles n, once as many calls as are allowed were in flight together; refuses one row."""
        n = json.loads(invocation.body)["n"]
        self.calls[n - 1] += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if self.in_flight >= self._total:
            self._complete.set()
        if self._is_time_to_kill() and self.in_flight >= self._total:
            self.due.set()
        try:
            await self._complete.wait()
            # Time for a call too many to come.
            await asyncio.sleep(0.02)
            if self._is_time_to_kill():
                await self.killed.wait()
        except asyncio.CancelledError:
            self.lost += 1
            raise
        finally:
            self.in_flight -= 1
        if n - 1 == REFUSED:
            raise ContainerFailure(400, "not this one")
        return json.dumps(2 * n).encode(), JSON

    def _is_time_to_kill(self) -> bool:
        return self._kill_after is not None and self.calls.total() >= self._kill_after

    async def parsed(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Returns text as the JSON that it is."""
        return invocation.body, JSON

    async def churn(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """The share of a row's fields that are odd numbers."""
        fields = [int(field) for field in invocation.body.split(b",")]
        return str(sum(field % 2 for field in fields) / len(fields)).encode(), {"Content-Type": "text/csv"}

    async def double_lists(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Doubles the n of several rows; refuses those with a 7."""
        rows = [row["n"] for row in json.loads(invocation.body)]
        self.lists.append(len(rows))
        if 7 in rows:
            raise ContainerFailure(400, "not this one")
        return json.dumps([2 * n for n in rows]).encode(), JSON

    async def refuses_once(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Doubles n; refuses the last row the first time, once another one was written."""
        n = json.loads(invocation.body)["n"]
        self.resumed_calls[n - 1] += 1
        if n == ROWS and not self._has_refused:
            while not (self._folder / "resumed").is_dir() or not rows_in(self._folder / "resumed"):
                await asyncio.sleep(0.05)
            self._has_refused = True
            raise ContainerFailure(400, "not now")
        return json.dumps(2 * n).encode(), JSON


async def run_engine(python: Path, program: Path, folder: Path, kill_after: int | None) -> Outcome:
    service = Service(TOTAL, kill_after, folder)
    mark = str(uuid.uuid4())
    endpoints = {
        "double": service.double,
        "parsed": service.parsed,
        "refuses-once": service.refuses_once,
        "churn": service.churn,
        "lists": service.double_lists,
    }
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="ray-") as sockets:
        async with local_runtime(endpoints, model_timeout=600.0) as runtime:
            env = {
                **environment(folder, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url),
                MARK: mark,
                "PYTHONPATH": f"{Path(__file__).parents[2]}",
                "PYSPARK_PYTHON": str(python),
                "SPARK_LOCAL_IP": "127.0.0.1",
                "RAY_TMPDIR": sockets,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_prestart_worker_first_driver": "0",
                "DO_NOT_TRACK": "1",
                **{name: os.environ[name] for name in ("JAVA_HOME",) if name in os.environ},
            }
            command = [str(python), str(program), str(ROWS), str(TOTAL), str(folder), json.dumps(ANSWERS)]
            try:
                async with started(*command, env=env, cwd=folder) as process:
                    killing = asyncio.create_task(_kill_a_worker(service, runtime.port))
                    stdout, stderr = await process.communicate()
                    killing.cancel()
                    await asyncio.wait([killing])
            finally:
                await _ended(mark)
    killed = None if killing.cancelled() else killing.result()
    lines = stdout.decode().splitlines()
    return Outcome(
        code=process.returncode if process.returncode is not None else -1,
        stderr=stderr.decode(errors="replace"),
        times=next((json.loads(line) for line in lines if line.startswith("{")), {}),
        calls=service.calls,
        peak=service.peak,
        resumed_calls=service.resumed_calls,
        lists=service.lists,
        written_before=service.written_before,
        killed=killed,
        lost=service.lost,
        folder=folder,
    )


async def _kill_a_worker(service: Service, port: int) -> int:
    """Kill a process that has connections to the service, while its calls are in flight."""
    await service.due.wait()
    worker = _connected_to(port)[0]
    try:
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(60):
            while service.lost < TOTAL // 2:
                await asyncio.sleep(0.01)
    finally:
        service.killed.set()
    return worker


def _connected_to(port: int) -> list[int]:
    """Processes with an open connection to a port of this machine, from /proc."""
    sockets = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and int(fields[2].partition(":")[2], 16) == port:
            sockets.add(f"socket:[{fields[9]}]")
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(entry.readlink()) in sockets:
                found.add(int(entry.parts[2]))
        except OSError:
            continue  # it has just ended
    return sorted(found - {os.getpid()})


def _marked(mark: str) -> list[int]:
    """Processes by a variable in their initial environment (Linux)."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended, or is not ours
        if wanted in variables:
            found.append(int(entry.parent.name))
    return found


async def _ended(mark: str) -> None:
    """Wait for a job's processes to end; what is left after a minute is killed, and an error."""
    until = time.monotonic() + 60
    while left := _marked(mark):
        if time.monotonic() > until:
            for process in left:
                os.kill(process, signal.SIGKILL)
            raise AssertionError(f"processes are left: {left}")
        await asyncio.sleep(0.05)
