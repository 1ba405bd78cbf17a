"""How fast do the parts of a response stream reach the caller, and what do they cost?

    python benchmarks/stream.py [--quick] [--loop uvloop] [--json FILE]

Each client calls ``invoke_endpoint_with_response_stream`` and walks through the events, touching every part's bytes:

- small: one stream of 64-byte parts, as fast as it comes;
- large: one stream of 64 KiB parts;
- tokens: 64 streams at once, each with a part of 64 bytes every 5 ms, so one part per read.  Here the pace is the
  server's, and the figure is CPU per event.

``bare aiohttp`` reads the same responses as bytes and decodes nothing: no client on aiohttp can do better.  All clients
run in this process, in turns, round by round; the server runs in a process of its own on another core.  The figures
are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiobotocore.session
import aiohttp
import boto3
from botocore.config import Config
from loopback_server import LARGE_PART_BYTES, PACE_SECONDS, SMALL_PART_BYTES, running
from reporting import cores, environment, print_table, stay_on, write_json

import aiosmrt

REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE", "not-a-real-secret"
STREAMS = 64

Totals = tuple[int, int]
Read = Callable[[str], Awaitable[Totals]]


@dataclass(frozen=True)
class Shape:
    """What is streamed.  A slow client gets fewer parts, so that a round takes all of them about as long."""

    name: str
    kind: str
    part_bytes: int
    parts: int
    parts_for_slow: int
    streams: int = 1


def shapes(quick: bool) -> list[Shape]:
    scale = 1 if quick else 4
    return [
        Shape("64 B parts", "small", SMALL_PART_BYTES, 50_000 * scale, 10_000 * scale),
        Shape("64 KiB parts", "large", LARGE_PART_BYTES, 500 * scale, 500 * scale),
        Shape("tokens", "paced", SMALL_PART_BYTES, 60 * scale, 60 * scale, STREAMS),
    ]


@asynccontextmanager
async def read_with_aiosmrt(url: str) -> AsyncIterator[Read]:
    async with aiosmrt.Client(
        region_name=REGION, endpoint_url=url, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY
    ) as client:

        async def read(endpoint: str) -> Totals:
            events = size = 0
            response = await client.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b"{}")
            async for event in response["Body"]:
                events += 1
                size += len(event["PayloadPart"]["Bytes"])
            return events, size

        yield read


@asynccontextmanager
async def read_with_aiobotocore(url: str) -> AsyncIterator[Read]:
    async with aiobotocore.session.get_session().create_client(
        "sagemaker-runtime",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=aiobotocore.config.AioConfig(max_pool_connections=STREAMS),
    ) as client:

        async def read(endpoint: str) -> Totals:
            events = size = 0
            response = await client.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b"{}")
            async for event in response["Body"]:
                events += 1
                size += len(event["PayloadPart"]["Bytes"])
            return events, size

        yield read


@asynccontextmanager
async def read_with_boto3(url: str) -> AsyncIterator[Read]:
    client: Any = boto3.client(
        "sagemaker-runtime",
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(max_pool_connections=STREAMS),
    )
    loop = asyncio.get_running_loop()

    def read_in_thread(endpoint: str) -> Totals:
        events = size = 0
        response = client.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b"{}")
        for event in response["Body"]:
            events += 1
            size += len(event["PayloadPart"]["Bytes"])
        return events, size

    with ThreadPoolExecutor(STREAMS) as threads:

        async def read(endpoint: str) -> Totals:
            return await loop.run_in_executor(threads, read_in_thread, endpoint)

        yield read
    client.close()


@asynccontextmanager
async def read_with_bare_aiohttp(url: str) -> AsyncIterator[Read]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**17, auto_decompress=False
    ) as session:

        async def read(endpoint: str) -> Totals:
            size = 0
            async with session.post(f"{url}/endpoints/{endpoint}/invocations-response-stream", data=b"{}") as response:
                async for chunk in response.content.iter_any():
                    size += len(chunk)
            return 0, size

        yield read


CLIENTS = {
    "aiosmrt": read_with_aiosmrt,
    "aiobotocore": read_with_aiobotocore,
    "boto3": read_with_boto3,
    "bare aiohttp": read_with_bare_aiohttp,
}
SLOW = ("aiobotocore", "boto3")


async def measure(name: str, read: Read, shape: Shape) -> dict[str, float]:
    """One round of one client: seconds and CPU seconds per event."""
    parts = shape.parts_for_slow if name in SLOW else shape.parts
    endpoint = f"{shape.kind}-{parts}"
    gc.collect()
    start, start_cpu = time.perf_counter(), time.process_time()
    totals = await asyncio.gather(*(read(endpoint) for _ in range(shape.streams)))
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    for events, size in totals:
        if name == "bare aiohttp":
            complete = size > parts * shape.part_bytes
        else:
            complete = (events, size) == (parts, parts * shape.part_bytes)
        if not complete:
            raise RuntimeError(f"{name} read {events} events and {size} bytes of {parts} parts")
    events = parts * shape.streams
    return {"seconds_per_event": seconds / events, "cpu_seconds_per_event": cpu / events}


def summary(shape: Shape, rounds: list[dict[str, float]]) -> dict[str, float]:
    seconds = statistics.median(result["seconds_per_event"] for result in rounds)
    cpu = statistics.median(result["cpu_seconds_per_event"] for result in rounds)
    return {
        "events_per_second": 1 / seconds,
        "payload_bytes_per_second": shape.part_bytes / seconds,
        "cpu_seconds_per_event": cpu,
        "rounds": len(rounds),
    }


async def run(url: str, names: list[str], rounds: int, quick: bool) -> list[dict[str, Any]]:
    results = []
    async with AsyncExitStack() as stack:
        readers = {name: await stack.enter_async_context(CLIENTS[name](url)) for name in names}
        for read in readers.values():
            await read("small-100")
        for shape in shapes(quick):
            measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for round_number in range(rounds):
                turn = round_number % len(names)
                for name in names[turn:] + names[:turn]:
                    measured[name].append(await measure(name, readers[name], shape))
            clients = {name: summary(shape, measured[name]) for name in names}
            results.append({"shape": shape.name, "streams": shape.streams, "clients": clients})
    return results


def show(results: list[dict[str, Any]]) -> None:
    for result in results:
        clients = result["clients"]
        ours = clients.get("aiosmrt")
        rows = []
        for name, found in clients.items():
            if ours is None:
                lead = ""
            elif result["streams"] == 1:
                lead = f"{ours['events_per_second'] / found['events_per_second']:.2f}"
            else:  # the pace is the server's, and what differs is the CPU that the events cost
                lead = f"{found['cpu_seconds_per_event'] / ours['cpu_seconds_per_event']:.2f}"
            rows.append(
                [
                    name,
                    f"{found['events_per_second']:,.0f}",
                    f"{found['payload_bytes_per_second'] / 1e6:,.1f}",
                    f"{found['cpu_seconds_per_event'] * 1e6:,.2f}",
                    lead,
                ]
            )
        title = f"{result['shape']}, {result['streams']} stream{'s' if result['streams'] > 1 else ''} at once"
        if result["streams"] > 1:
            title += f", a part every {PACE_SECONDS * 1e3:g} ms each"
        print_table(title, ["client", "events/s", "MB/s", "CPU µs/event", "aiosmrt's lead"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure response streams against boto3, aiobotocore and aiohttp.")
    parser.add_argument("--quick", action="store_true", help="shorter streams, fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds per shape (default 9, quick 3)")
    parser.add_argument("--clients", default=",".join(CLIENTS), help="which of them, with commas between")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="the clients' event loop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    arguments = parser.parse_args()
    names = arguments.clients.split(",")
    if unknown := set(names) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    factory = None
    if arguments.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        del os.environ[variable]
    report: dict[str, Any] = {"environment": environment(), "rounds": rounds, "loop": arguments.loop}
    available = cores()
    with running(core=available[0]) as (url, _), asyncio.Runner(loop_factory=factory) as runner:
        stay_on(available[-1])
        report["results"] = runner.run(run(url, names, rounds, arguments.quick))
    show(report["results"])
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
