"""What does one call cost the client, and how many calls per second can it make?

    python benchmarks/overhead.py [--quick] [--in-flight 1,64,256] [--body-bytes 1024] [--loop uvloop] [--tls]
                                  [--clients aiosmrt,aiobotocore,floor] [--rounds 15] [--calls 2000] [--json FILE]

A call is a signed ``invoke_endpoint``, including the result dictionary and reading the body. Peers and bounds:

- aiosmrt-session: aiosmrt through aiohttp's ClientSession;
- aiobotocore, and boto3 with one thread per call in flight: the clients in use today;
- aiohttp: an unsigned ``async with session.post(...)`` and ``read()`` on a default ``ClientSession`` without a limit on
  connections: the hand-written call, without signature, checks or retries;
- aiohttp-tuned: the same with the cheapest public options (no total timeout, no cookies, no decompression);
- floor: asyncio alone, one write of prepared bytes and one future per call on a connection made beforehand.

Ratios are this client's CPU per call divided by the other's, and by its own at 64 in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import aiohttp
from harness import (
    CONTENT_TYPE,
    FloorProtocol,
    Target,
    aiobotocore_client,
    aiohttp_session,
    aiosmrt_client,
    arguments_of,
    boto3_client,
    connect,
    median_ratio,
    opened,
    report_of,
    seconds_and_cpu,
    session_client,
    take_turns,
)
from loopback_server import JSON_BODY
from reporting import print_table, write_json

ENDPOINT = "overhead"
PATH = f"/endpoints/{ENDPOINT}/invocations"

Call = Callable[[bytes], Awaitable[bytes]]
# Makes calls: the body, the number of calls, the number in flight.
Work = Callable[[bytes, int, int], Awaitable[None]]


class Point(NamedTuple):
    """A point of measurement: the calls in flight and the size of their bodies."""

    in_flight: int
    body_bytes: int = 1024


def check(body: bytes) -> None:
    """Check that a client received the whole response."""
    if body != JSON_BODY:
        raise RuntimeError(f"the response has {len(body)} bytes, expected {len(JSON_BODY)}")


def sharing_out(call: Call) -> Work:
    """Spread calls over as many tasks as are in flight; each starts its next call when its last one is done."""

    async def work(body: bytes, calls: int, in_flight: int) -> None:
        remaining = iter(range(calls))

        async def worker() -> None:
            for _ in remaining:
                check(await call(body))

        await asyncio.gather(*(worker() for _ in range(in_flight)))

    return work


def invoking(client_of: Callable[[Target], Any]) -> Callable[[Target], Any]:
    """Return the work of a client with ``invoke_endpoint``."""

    @asynccontextmanager
    async def opening(target: Target) -> AsyncIterator[Work]:
        async with client_of(target) as client:

            async def call(body: bytes) -> bytes:
                response = await client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=body)
                return await response["Body"].read()

            yield sharing_out(call)

    return opening


@asynccontextmanager
async def boto3s(target: Target) -> AsyncIterator[Work]:
    loop = asyncio.get_running_loop()
    with boto3_client(target) as client, ThreadPoolExecutor(target.max_in_flight) as threads:

        def worker(body: bytes, remaining: Any) -> None:
            for _ in remaining:
                response = client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=body)
                check(response["Body"].read())

        async def work(body: bytes, calls: int, in_flight: int) -> None:
            remaining = iter(range(calls))
            await asyncio.gather(*(loop.run_in_executor(threads, worker, body, remaining) for _ in range(in_flight)))

        yield work


@asynccontextmanager
async def aiohttps(target: Target) -> AsyncIterator[Work]:
    url = target.url + PATH
    async with aiohttp_session(target) as session:

        async def call(body: bytes) -> bytes:
            async with session.post(url, data=body, headers={"Content-Type": CONTENT_TYPE}) as response:
                response.raise_for_status()
                return await response.read()

        yield sharing_out(call)


@asynccontextmanager
async def tuned_aiohttps(target: Target) -> AsyncIterator[Work]:
    url = target.url + PATH
    async with aiohttp_session(
        target,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:

        async def call(body: bytes) -> bytes:
            response = await session.post(url, data=body, headers={"Content-Type": CONTENT_TYPE}, allow_redirects=False)
            response.raise_for_status()
            return await response.read()

        yield sharing_out(call)


class FloorConnection(FloorProtocol):
    """Writes a prepared request and finds the end of the response by its Content-Length; nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = bytearray(65536)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._loop = asyncio.get_running_loop()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        head_end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if head_end < 0 or self.waiter is None:
            return
        start = self._buffer.index(b"Content-Length: ", 0, head_end) + 16
        end = head_end + 4 + int(self._buffer[start : self._buffer.index(b"\r\n", start)])
        if self._filled >= end:
            self._filled = 0
            self.waiter.set_result(bytes(self._view[head_end + 4 : end]))

    async def exchange(self, request: bytes) -> bytes:
        self.waiter = self._loop.create_future()
        if len(request) <= SLICE_BYTES:
            self.transport.write(request)
        else:
            # In one write it would be copied into the transport's buffer.
            view = memoryview(request)
            for start in range(0, len(request), SLICE_BYTES):
                self.transport.write(view[start : start + SLICE_BYTES])
                await self._writable.wait()
        return await self.waiter

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


@asynccontextmanager
async def floors(target: Target) -> AsyncIterator[Work]:
    host = target.url.partition("://")[2]
    connections: list[FloorConnection] = []

    @lru_cache(maxsize=1)
    def ready(body: bytes) -> bytes:
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body

    async def work(body: bytes, calls: int, in_flight: int) -> None:
        while len(connections) < in_flight:
            connections.append(await connect(target, FloorConnection))
        request = ready(body)
        remaining = iter(range(calls))

        async def worker(connection: FloorConnection) -> None:
            for _ in remaining:
                check(await connection.exchange(request))

        await asyncio.gather(*(worker(connection) for connection in connections[:in_flight]))

    try:
        yield work
    finally:
        for connection in connections:
            connection.transport.close()


CLIENTS: dict[str, Callable[[Target], Any]] = {
    "aiosmrt": invoking(aiosmrt_client),
    "aiosmrt-session": invoking(session_client),
    "aiobotocore": invoking(aiobotocore_client),
    "boto3": boto3s,
    "aiohttp": aiohttps,
    "aiohttp-tuned": tuned_aiohttps,
    "floor": floors,
}
# Fast clients make more calls, so that no sample is short enough to measure the timers.
SHARES = {"aiosmrt": 2.0, "aiobotocore": 0.25, "boto3": 0.25, "floor": 4.0}
BOUNDS = ("aiobotocore", "aiohttp", "aiohttp-tuned", "floor")
OWN_IN_FLIGHT = 64
SLICE_BYTES = 512 * 1024
BYTES_PER_ROUND = 64 * 2**20


@lru_cache
def body_of(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def calls_at(point: Point, name: str, calls: int) -> int:
    """Return the calls per sample: fewer where a call takes longer, but enough to reach the number in flight."""
    share = int(min(calls, BYTES_PER_ROUND // point.body_bytes) * SHARES.get(name, 1.0))
    return max(share, 4 * point.in_flight)


def summary(name: str, measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Compute medians over the rounds, and the median ratio of CPU to each bound."""
    cpu = {of: [sample["cpu_seconds_per_call"] for sample in samples] for of, samples in measured.items()}
    return {
        "cpu_seconds_per_call": statistics.median(cpu[name]),
        "cpu_seconds_per_call_quartiles": statistics.quantiles(cpu[name], n=4) if len(cpu[name]) > 1 else None,
        "calls_per_second": statistics.median(sample["calls_per_second"] for sample in measured[name]),
        "cpu_ratio_to": {bound: median_ratio(cpu[name], cpu[bound]) for bound in BOUNDS if bound in measured},
        "cpu_seconds_per_call_by_round": cpu[name],
    }


async def run(
    target: Target, names: Sequence[str], points: Sequence[Point], rounds: int, calls: int
) -> list[dict[str, Any]]:
    """Measure each point."""
    async with opened(CLIENTS, names, target) as works:

        async def sample(point: Point, name: str) -> dict[str, float]:
            body, count = body_of(point.body_bytes), calls_at(point, name, calls)
            seconds, cpu = await seconds_and_cpu(lambda: works[name](body, count, point.in_flight))
            return {"calls_per_second": count / seconds, "cpu_seconds_per_call": cpu / count}

        for point in points:
            for work in works.values():
                await work(body_of(point.body_bytes), point.in_flight * 4, point.in_flight)
        taken = await take_turns(rounds, points, names, sample)
    results = [
        {**point._asdict(), "clients": {name: summary(name, measured) for name in names}}
        for point, measured in zip(points, taken, strict=True)
    ]
    for result in results:
        for reference in results:
            if (reference["in_flight"], reference["body_bytes"]) == (OWN_IN_FLIGHT, result["body_bytes"]):
                for name, found in result["clients"].items():
                    rounds_there = reference["clients"][name]["cpu_seconds_per_call_by_round"]
                    found["cpu_ratio_to_own"] = median_ratio(found["cpu_seconds_per_call_by_round"], rounds_there)
    return results


def show(results: list[dict[str, Any]]) -> None:
    for result in results:
        clients = result["clients"]
        bounds = [bound for bound in BOUNDS if bound in clients]
        rows = []
        for name, found in clients.items():
            row = [name, f"{found['cpu_seconds_per_call'] * 1e6:,.1f}", f"{found['calls_per_second']:,.0f}"]
            row += [f"{found['cpu_ratio_to'][bound]:.3f}" for bound in bounds]
            rows.append([*row, f"{found['cpu_ratio_to_own']:.2f}" if "cpu_ratio_to_own" in found else ""])
        heads = ["client", "CPU µs/call", "calls/s", *(f"/ {bound}" for bound in bounds), f"/ own at {OWN_IN_FLIGHT}"]
        print_table(f"{result['in_flight']} in flight, bodies of {result['body_bytes']:,} bytes", heads, rows)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a call costs, against boto3, aiobotocore and aiohttp.")
    parser.add_argument(
        "--calls", type=int, help="calls per round (default 2000, quick 800; slow clients make fewer, fast ones more)"
    )
    parser.add_argument("--in-flight", type=numbers, default=[1, 64, 256], help="calls in flight, comma-separated")
    parser.add_argument("--body-bytes", type=numbers, default=[1024], help="sizes of request bodies, comma-separated")
    arguments = arguments_of(parser, CLIENTS)
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    calls = arguments.calls or (800 if arguments.quick else 2000)
    points = [Point(in_flight, size) for size in arguments.body_bytes for in_flight in arguments.in_flight]
    report = report_of(
        arguments,
        max(arguments.in_flight),
        rounds,
        lambda target: run(target, arguments.clients, points, rounds, calls),
    )
    show(report["results"])
    write_json(arguments.json, report | {"calls_per_round": calls})


if __name__ == "__main__":
    main()
