"""What does one call cost the client, and how many fit into a second?

    python benchmarks/overhead.py [--quick] [--in-flight 1,64,256] [--loop uvloop] [--tls] [--json FILE]

A call is a signed ``invoke_endpoint`` with a body of 1 KiB, result dictionary and body read included. Peers and bounds:

- aiobotocore, and boto3 with one thread per call in flight: what people use now;
- aiohttp: an unsigned ``async with session.post(...)`` and ``read()`` on a ``ClientSession`` as it comes, with its
  limit on connections lifted: what one would write by hand, without signature, checks or retries;
- aiohttp, tuned: the same with the cheapest public options (no total timeout, no cookies, no decompression);
- floor: asyncio alone, one write of ready bytes and one future per call on a connection of its own.

All clients run in this process, which stays on one core, in turns round by round; the server (loopback_server.py) runs
on another core. CPU is this process's, threads included. The figures are medians over the rounds; a ratio is the median
of the rounds' ratios, so that a noisy minute counts on both sides of it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiobotocore.config
import aiobotocore.session
import aiohttp
import boto3
from botocore.config import Config
from loopback_server import JSON_BODY, running
from reporting import cores, environment, print_table, stay_on, write_json

import aiosmrt

REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE", "not-a-real-secret"
ENDPOINT = "overhead"
PATH = f"/endpoints/{ENDPOINT}/invocations"
BODY = random.Random(1).randbytes(1024)
CONTENT_TYPE = "application/octet-stream"

# Makes so many calls with so many in flight.
Work = Callable[[int, int], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    """The server, and the authority file that vouches for it under TLS."""

    url: str
    certificate: Path | None
    max_in_flight: int


def check(body: bytes) -> None:
    """Every client must have the whole answer in hand."""
    if body != JSON_BODY:
        raise RuntimeError(f"an answer of {len(body)} bytes where {len(JSON_BODY)} were expected")


async def share_out(call: Callable[[], Awaitable[bytes]], calls: int, in_flight: int) -> None:
    """Make calls from ``in_flight`` tasks, each taking the next one as soon as its last is done."""
    remaining = iter(range(calls))

    async def worker() -> None:
        for _ in remaining:
            check(await call())

    await asyncio.gather(*(worker() for _ in range(in_flight)))


@asynccontextmanager
async def work_of_aiosmrt(target: Target) -> AsyncIterator[Work]:
    async with aiosmrt.Client(
        region_name=REGION,
        endpoint_url=target.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        max_concurrency=target.max_in_flight,
        verify=target.certificate or True,
    ) as client:

        async def call() -> bytes:
            response = await client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=BODY)
            return await response["Body"].read()

        yield lambda calls, in_flight: share_out(call, calls, in_flight)


@asynccontextmanager
async def work_of_aiobotocore(target: Target) -> AsyncIterator[Work]:
    async with aiobotocore.session.get_session().create_client(
        "sagemaker-runtime",
        region_name=REGION,
        endpoint_url=target.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        verify=str(target.certificate) if target.certificate else None,
        config=aiobotocore.config.AioConfig(max_pool_connections=target.max_in_flight),
    ) as client:

        async def call() -> bytes:
            response = await client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=BODY)
            return cast("bytes", await response["Body"].read())

        yield lambda calls, in_flight: share_out(call, calls, in_flight)


@asynccontextmanager
async def work_of_boto3(target: Target) -> AsyncIterator[Work]:
    client: Any = boto3.client(
        "sagemaker-runtime",
        region_name=REGION,
        endpoint_url=target.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        verify=str(target.certificate) if target.certificate else None,
        config=Config(max_pool_connections=target.max_in_flight),
    )
    loop = asyncio.get_running_loop()

    def worker(remaining: Any) -> None:
        for _ in remaining:
            response = client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=BODY)
            check(response["Body"].read())

    with ThreadPoolExecutor(target.max_in_flight) as threads:

        async def work(calls: int, in_flight: int) -> None:
            remaining = iter(range(calls))
            await asyncio.gather(*(loop.run_in_executor(threads, worker, remaining) for _ in range(in_flight)))

        yield work
    client.close()


def tls_context(target: Target) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cafile=target.certificate) if target.certificate else True


@asynccontextmanager
async def work_of_aiohttp(target: Target) -> AsyncIterator[Work]:
    url = target.url + PATH
    connector = aiohttp.TCPConnector(limit=0, ssl=tls_context(target))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call() -> bytes:
            async with session.post(url, data=BODY, headers={"Content-Type": CONTENT_TYPE}) as response:
                response.raise_for_status()
                return await response.read()

        yield lambda calls, in_flight: share_out(call, calls, in_flight)


@asynccontextmanager
async def work_of_tuned_aiohttp(target: Target) -> AsyncIterator[Work]:
    url = target.url + PATH
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls_context(target)),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:

        async def call() -> bytes:
            response = await session.post(url, data=BODY, headers={"Content-Type": CONTENT_TYPE}, allow_redirects=False)
            response.raise_for_status()
            return await response.read()

        yield lambda calls, in_flight: share_out(call, calls, in_flight)


class FloorConnection(asyncio.BufferedProtocol):
    """Writes a request made beforehand and finds the end of the answer by its Content-Length; nothing else."""

    def __init__(self) -> None:
        self._buffer = bytearray(65536)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        head_end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if head_end < 0 or self._answer is None:
            return
        start = self._buffer.index(b"Content-Length: ", 0, head_end) + 16
        end = head_end + 4 + int(self._buffer[start : self._buffer.index(b"\r\n", start)])
        if self._filled >= end:
            self._filled = 0
            self._answer.set_result(bytes(self._view[head_end + 4 : end]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    async def exchange(self, request: bytes) -> bytes:
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


@asynccontextmanager
async def work_of_floor(target: Target) -> AsyncIterator[Work]:
    loop = asyncio.get_running_loop()
    scheme, _, host = target.url.partition("://")
    name, _, port = host.partition(":")
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    request = head.encode() + BODY
    context = tls_context(target) if scheme == "https" else None
    idle: list[FloorConnection] = []

    async def work(calls: int, in_flight: int) -> None:
        while len(idle) < in_flight:
            idle.append((await loop.create_connection(FloorConnection, name, int(port), ssl=context))[1])
        remaining = iter(range(calls))

        async def worker(connection: FloorConnection) -> None:
            for _ in remaining:
                check(await connection.exchange(request))

        await asyncio.gather(*(worker(connection) for connection in idle[:in_flight]))

    try:
        yield work
    finally:
        for connection in idle:
            connection.close()


CLIENTS = {
    "aiosmrt": work_of_aiosmrt,
    "aiobotocore": work_of_aiobotocore,
    "boto3": work_of_boto3,
    "aiohttp": work_of_aiohttp,
    "aiohttp, tuned": work_of_tuned_aiohttp,
    "floor": work_of_floor,
}
# These get a quarter of the calls, so that a round takes every client about as long.
SLOW = ("aiobotocore", "boto3")
BOUNDS = ("aiobotocore", "aiohttp", "aiohttp, tuned", "floor")


async def measure(work: Work, calls: int, in_flight: int) -> dict[str, float]:
    """One round of one client, which pays for the garbage that it leaves and for nobody else's."""
    gc.collect()
    gc.freeze()
    start, start_cpu = time.perf_counter(), time.process_time()
    await work(calls, in_flight)
    gc.collect()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {"calls_per_second": calls / seconds, "cpu_seconds_per_call": cpu / calls}


def summary(name: str, measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, and the median ratio of CPU to each bound."""

    def cpu(of: str) -> list[float]:
        return [result["cpu_seconds_per_call"] for result in measured[of]]

    return {
        "cpu_seconds_per_call": statistics.median(cpu(name)),
        "cpu_seconds_per_call_quartiles": statistics.quantiles(cpu(name), n=4) if len(cpu(name)) > 1 else None,
        "calls_per_second": statistics.median(result["calls_per_second"] for result in measured[name]),
        "cpu_ratio_to": {
            bound: statistics.median(ours / theirs for ours, theirs in zip(cpu(name), cpu(bound), strict=True))
            for bound in BOUNDS
            if bound in measured
        },
    }


async def run(target: Target, names: list[str], levels: list[int], rounds: int, calls: int) -> list[dict[str, Any]]:
    results = []
    async with AsyncExitStack() as stack:
        works = {name: await stack.enter_async_context(CLIENTS[name](target)) for name in names}
        for in_flight in levels:
            for work in works.values():
                await work(in_flight * 4, in_flight)
            measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for round_number in range(rounds):
                turn = round_number % len(names)
                for name in names[turn:] + names[:turn]:
                    measured[name].append(await measure(works[name], calls // 4 if name in SLOW else calls, in_flight))
            results.append({"in_flight": in_flight, "clients": {name: summary(name, measured) for name in names}})
    return results


def show(results: list[dict[str, Any]]) -> None:
    for result in results:
        rows = [
            [
                name,
                f"{found['cpu_seconds_per_call'] * 1e6:,.1f}",
                f"{found['calls_per_second']:,.0f}",
                *(f"{ratio:.2f}" for ratio in found["cpu_ratio_to"].values()),
            ]
            for name, found in result["clients"].items()
        ]
        bounds = [bound for bound in BOUNDS if bound in result["clients"]]
        heads = ["client", "CPU µs/call", "calls/s", *(f"CPU / {bound}" for bound in bounds)]
        print_table(f"{result['in_flight']} in flight", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a call costs, against boto3, aiobotocore and aiohttp.")
    parser.add_argument("--quick", action="store_true", help="fewer calls, fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds per level (default 15, quick 5)")
    parser.add_argument("--calls", type=int, help="calls per round (default 2000, quick 800; a quarter for botocore's)")
    parser.add_argument("--in-flight", default="1,64,256", help="how many calls at once, with commas between")
    parser.add_argument("--clients", default=",".join(c for c in CLIENTS if "," not in c) + ",tuned",
                        help="which of them, with commas between; tuned stands for aiohttp, tuned")  # fmt: skip
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="the clients' event loop")
    parser.add_argument("--tls", action="store_true", help="call over TLS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    arguments = parser.parse_args()
    chosen = ["aiohttp, tuned" if name == "tuned" else name for name in arguments.clients.split(",")]
    if unknown := set(chosen) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    names = [name for name in CLIENTS if name in chosen]
    levels = [int(level) for level in arguments.in_flight.split(",")]
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    calls = arguments.calls or (800 if arguments.quick else 2000)
    factory = None
    if arguments.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        del os.environ[variable]
    report: dict[str, Any] = {
        "environment": environment(),
        "loop": arguments.loop,
        "tls": arguments.tls,
        "rounds": rounds,
        "calls_per_round": calls,
    }
    available = cores()
    with (
        running(core=available[-1], tls=arguments.tls) as (url, certificate),
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        stay_on(available[0])
        target = Target(url, certificate, max(levels))
        report["results"] = runner.run(run(target, names, levels, rounds, calls))
    show(report["results"])
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
