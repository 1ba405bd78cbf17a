"""Which number of calls in flight serves best, over sockets: fixed ones, the adaptive limit, or AWS's adaptive mode?

    python benchmarks/limiter.py [--quick] [--clients ...] [--services ...] [--json FILE]
                                 [--plot docs/images/limiter.svg]

The local runtime (``aiosmrt.local``) runs in another process on another core than the clients, with a scripted
``Capacity`` for each service. `CALLERS` callers call without pause for `SECONDS`; each client has its own process and
endpoint, so that it meets the script from its beginning. Runs are one after the other.

- ``fixed 8``, ``fixed 64``, ``fixed 256``: ``max_concurrency`` as a number. That is not lowered below the number for
  good, but for a while where calls are refused.
- ``right number``: the same with the number that the service can take at its best moment, which a user would have to
  know.
- ``adaptive``: ``max_concurrency="adaptive"``.
- ``aiobotocore``: its retry mode ``adaptive``, with as many connections as callers.

Columns: ``calls/s`` carried out, from the beginning and from `WARM_UP` seconds on; their share of the best client's;
``p95`` of the round trips of attempts that succeeded (of whole calls for aiobotocore, which does not show attempts),
from `WARM_UP` on; ``refused`` attempts per call carried out; ``failed`` calls.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiobotocore.config
import aiobotocore.session
from botocore.exceptions import BotoCoreError, ClientError
from plot import Line, Panel, drawing
from reporting import cores, environment, print_table, stay_on, write_json

import aiosmrt
from aiosmrt.events import AttemptEnded, LimitMoved
from aiosmrt.local import serve

CALLERS = 256
SECONDS = 24.0
WARM_UP = 6.0
WHO: dict[str, Any] = {
    "region_name": "us-east-1",
    "aws_access_key_id": "AKIDEXAMPLE",
    "aws_secret_access_key": "not-a-real-secret",
}


@dataclass(frozen=True)
class Service:
    """A service: its ``Capacity`` in TOML, and the largest number of calls that do not wait."""

    name: str
    capacity: str
    right: int


SERVICES = (
    Service("healthy", "workers = 32\nqueue = 32\nseconds = 0.1\nsigma = 0.3", 32),
    Service("batching", "workers = 64\nseconds = 0.15\nsigma = 0.2\nbatch = 32", 64),
    Service("scaling", "workers = [[0, 8], [10, 32]]\nqueue = 8\nseconds = 0.1\nsigma = 0.3", 32),
    Service("steps, silent", "workers = [[0, 48], [9, 6], [16, 48]]\nseconds = 0.1\nsigma = 0.3", 48),
)
CLIENTS = ("fixed 8", "fixed 64", "fixed 256", "right number", "adaptive", "aiobotocore")


async def answer(invocation: Any) -> bytes:
    """What every endpoint serves."""
    return b"[0.25]"


@dataclass
class Figures:
    """What came of a client at a service."""

    begun: float
    calls: list[float] = field(default_factory=list)
    trips: list[tuple[float, float]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def report(self, seconds: float) -> dict[str, Any]:
        """Return the figures by column, and the calls of each second."""
        late = sorted(trip for second, trip in self.trips if WARM_UP <= second < seconds)
        per_second = Counter(int(second) for second in self.calls if second < seconds)
        return {
            "calls_per_second": sum(second < seconds for second in self.calls) / seconds,
            "calls_per_second_warm": sum(WARM_UP <= second < seconds for second in self.calls) / (seconds - WARM_UP),
            "p95_seconds": late[int(0.95 * len(late))] if late else None,
            "refused_per_call": self.refused / max(len(self.calls), 1),
            "failed": dict(self.failed),
            "calls_of_second": [per_second[second] for second in range(int(seconds))],
            "limits": self.limits,
        }


def endpoint_name(service: Service, client: str) -> str:
    return f"{service.name} {client}".replace(", ", "-").replace(" ", "-")


@contextlib.contextmanager
def runtime(services: Sequence[Service], clients: Sequence[str], core: int) -> Iterator[str]:
    """Run the local runtime in a child process; yields its URL."""
    parts = ["verify_signatures = false\nseed = 7\n"]
    for service in services:
        parts += [
            f'[endpoints.{endpoint_name(service, client)}]\nhandler = "limiter:answer"\n'
            f"[endpoints.{endpoint_name(service, client)}.capacity]\n{service.capacity}\n"
            for client in clients
        ]
    with tempfile.TemporaryDirectory(prefix="limiter-") as folder:
        config = Path(folder) / "services.toml"
        config.write_text("\n".join(parts))
        command = [sys.executable, str(Path(__file__)), "--serve", str(config), "--core", str(core)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().split()[-1]
            finally:
                process.send_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def aiosmrt_caller(
    url: str, name: str, limit: Any, figures: Figures
) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    clock = time.perf_counter

    def observe(event: object) -> None:
        if isinstance(event, AttemptEnded):
            if event.error is None:
                figures.trips.append((clock() - figures.begun, event.duration))
            else:
                figures.refused += 1
        elif isinstance(event, LimitMoved):
            figures.limits.append((clock() - figures.begun, event.limit))

    async with aiosmrt.Client(**WHO, endpoint_url=url, max_concurrency=limit, observers=[observe]) as client:

        async def call() -> None:
            response = await client.invoke_endpoint(EndpointName=name, Body=b"[1, 2]")
            await response["Body"].read()

        yield call


@contextlib.asynccontextmanager
async def aiobotocore_caller(url: str, name: str, figures: Figures) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    clock = time.perf_counter
    config = aiobotocore.config.AioConfig(
        max_pool_connections=CALLERS, retries={"mode": "adaptive", "total_max_attempts": 10}
    )
    session = aiobotocore.session.get_session()
    async with session.create_client("sagemaker-runtime", **WHO, endpoint_url=url, config=config) as client:

        async def call() -> None:
            begun = clock()
            response = await client.invoke_endpoint(EndpointName=name, Body=b"[1, 2]")
            await response["Body"].read()
            now = clock()
            figures.trips.append((now - figures.begun, now - begun))
            figures.refused += response["ResponseMetadata"]["RetryAttempts"]

        yield call


async def measure(url: str, service: Service, client: str, seconds: float) -> None:
    """Call one service with one client, print the figures as JSON, and end the process."""
    figures = Figures(time.perf_counter())
    name = endpoint_name(service, client)
    if client == "aiobotocore":
        opened = aiobotocore_caller(url, name, figures)
    else:
        limits: dict[str, Any] = {"adaptive": "adaptive", "right number": service.right}
        opened = aiosmrt_caller(url, name, limits.get(client) or int(client.split()[1]), figures)
    async with opened as call:
        figures.begun = time.perf_counter()

        async def caller() -> None:
            while True:
                try:
                    await call()
                except (aiosmrt.AiosmrtError, ClientError, BotoCoreError) as error:
                    figures.failed[type(error).__name__] += 1
                else:
                    figures.calls.append(time.perf_counter() - figures.begun)

        tasks = [asyncio.ensure_future(caller()) for _ in range(CALLERS)]
        ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in ended:
            task.result()
        print(json.dumps(figures.report(seconds)), flush=True)
        # Calls in aiobotocore's rate limiter may go on after their cancellation, and would keep this process waiting.
        os._exit(0)


def measured(url: str, service: Service, client: str, seconds: float) -> dict[str, Any]:
    """Call one service with one client, in its own process."""
    command = [sys.executable, str(Path(__file__)), "--measure", url, "--services", service.name, "--clients", client]
    done = subprocess.run([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(report: dict[str, Any]) -> None:
    for result in report["results"]:
        by_client = result["clients"]
        best = max(figures["calls_per_second"] for figures in by_client.values())
        warm = max(figures["calls_per_second_warm"] for figures in by_client.values())
        rows = [
            [
                name,
                f"{figures['calls_per_second']:.0f}",
                f"{figures['calls_per_second'] / best:.0%}",
                f"{figures['calls_per_second_warm']:.0f}",
                f"{figures['calls_per_second_warm'] / warm:.0%}",
                "" if figures["p95_seconds"] is None else f"{1000 * figures['p95_seconds']:.0f} ms",
                f"{figures['refused_per_call']:.2f}",
                f"{sum(figures['failed'].values())}",
            ]
            for name, figures in by_client.items()
        ]
        heads = ["", "calls/s", "of best", f"from {WARM_UP:.0f} s on", "of best", "p95", "refused", "failed"]
        print_table(f"{result['service']}: {result['capacity']}", heads, rows)


def picture(report: dict[str, Any]) -> str:
    """Draw the calls of each second, a panel for each service."""
    seconds = report["seconds"]
    panels = [
        Panel(
            result["service"],
            [
                Line(
                    name,
                    [(second + 0.5, calls) for second, calls in enumerate(figures["calls_of_second"])],
                    width=4 if name == "adaptive" else 1.5,
                )
                for name, figures in result["clients"].items()
            ],
            {float(second): f"{second} s" for second in range(0, int(seconds) + 1, 6)},
            is_linear=True,
        )
        for result in report["results"]
    ]
    where = report["environment"]
    note = f"Python {where['python']}, local runtime in another process, {CALLERS} callers"
    return drawing("Calls carried out per second", note, panels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare limits of calls in flight at services with scripted capacity."
    )
    parser.add_argument(
        "--quick", action="store_true", help="a third of the time; the capacity's later steps are missed"
    )
    parser.add_argument("--clients", default=",".join(CLIENTS), help="comma-separated")
    parser.add_argument(
        "--services", default=";".join(service.name for service in SERVICES), help="with ; between them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the calls of each second here, as SVG")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        stay_on(arguments.core)
        asyncio.run(serve(config=arguments.serve))
        return
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        del os.environ[variable]
    clients = arguments.clients.split(",")
    services = [service for service in SERVICES if service.name in arguments.services.split(";")]
    if arguments.measure is not None:
        stay_on(cores()[0])
        asyncio.run(measure(arguments.measure, services[0], clients[0], arguments.seconds))
    seconds = SECONDS / 3 if arguments.quick else SECONDS
    available = cores()
    report: dict[str, Any] = {
        "environment": {**environment(), "aiosmrt": importlib.metadata.version("aiosmrt")},
        "seconds": seconds,
        "results": [],
    }
    with runtime(services, clients, available[-1]) as url:
        for service in services:
            found = {client: measured(url, service, client, seconds) for client in clients}
            capacity = service.capacity.replace("\n", ", ")
            report["results"].append({"service": service.name, "capacity": capacity, "clients": found})
    show(report)
    write_json(arguments.json, report)
    if arguments.plot:
        arguments.plot.write_text(picture(report), encoding="utf-8")


if __name__ == "__main__":
    main()
