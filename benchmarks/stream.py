"""How fast do the parts of a response stream reach the caller, and at what cost?

    python benchmarks/stream.py [--quick] [--loop uvloop] [--tls] [--clients aiosmrt,aiobotocore] [--json FILE]

Each client calls ``invoke_endpoint_with_response_stream`` and iterates over the events, touching every part's bytes:

- small: one stream of 64-byte parts, as fast as possible;
- large: one stream of 64 KiB parts;
- tokens: 64 streams at once, each with a part of 64 bytes about every 5 ms. The server sets the pace. The figure is CPU
  per event: whole streams minus streams of one part, so that making 64 calls does not count. A client that keeps up
  finds one part per read; the bounds count their reads to show it.

Bounds, which read the same responses and decode no events:

- aiohttp: reads the body with ``iter_any``, which parses HTTP's chunks: reading bytes, written by hand;
- floor: asyncio alone, reading into one buffer until all bytes that the server sends have arrived;
- floor-crc32: the floor with a checksum over all bytes, which every decoder needs;
- floor-wake: the floor with a task woken for every read, which every client needs that returns parts as they arrive.

aiosmrt computes checksums with isal if it is installed (the extra ``speedups``).

Ratios are this client's events per second divided by the other's; for tokens, its CPU per event divided by the other's.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from harness import (
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
from loopback_server import LARGE_PART_BYTES, PACE_SECONDS, SMALL_PART_BYTES, response_bytes
from reporting import print_table, write_json

STREAMS = 64


class Totals(NamedTuple):
    """One response: parts and their bytes or, if nothing is decoded, bytes of the body or of the whole response."""

    events: int
    size: int
    reads: int = 0


Read = Callable[[str], Awaitable[Totals]]


class Shape(NamedTuple):
    """A stream to read. Slow clients get fewer parts, so that a round takes all clients about as long."""

    name: str
    kind: str
    part_bytes: int
    parts: int
    parts_for_slow: int
    streams: int = 1


def shapes(quick: bool) -> list[Shape]:
    scale = 1 if quick else 4
    return [
        Shape("small", "small", SMALL_PART_BYTES, 50_000 * scale, 10_000 * scale),
        Shape("large", "large", LARGE_PART_BYTES, 1_000 * scale, 1_000 * scale),
        Shape("tokens", "paced", SMALL_PART_BYTES, 60 * scale, 60 * scale, STREAMS),
    ]


def path_of(endpoint: str) -> str:
    return f"/endpoints/{endpoint}/invocations-response-stream"


def decoding(client_of: Callable[[Target], Any]) -> Callable[[Target], Any]:
    """Return a reader that uses a client's ``invoke_endpoint_with_response_stream``."""

    @asynccontextmanager
    async def opening(target: Target) -> AsyncIterator[Read]:
        async with client_of(target) as client:

            async def read(endpoint: str) -> Totals:
                events = size = 0
                response = await client.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b"{}")
                async for event in response["Body"]:
                    events += 1
                    size += len(event["PayloadPart"]["Bytes"])
                return Totals(events, size)

            yield read

    return opening


@asynccontextmanager
async def boto3s(target: Target) -> AsyncIterator[Read]:
    loop = asyncio.get_running_loop()
    with boto3_client(target) as client, ThreadPoolExecutor(STREAMS) as threads:

        def read_in_thread(endpoint: str) -> Totals:
            events = size = 0
            response = client.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b"{}")
            for event in response["Body"]:
                events += 1
                size += len(event["PayloadPart"]["Bytes"])
            return Totals(events, size)

        async def read(endpoint: str) -> Totals:
            return await loop.run_in_executor(threads, read_in_thread, endpoint)

        yield read


@asynccontextmanager
async def aiohttps(target: Target) -> AsyncIterator[Read]:
    async with aiohttp_session(target, read_bufsize=2**17, auto_decompress=False) as session:

        async def read(endpoint: str) -> Totals:
            size = reads = 0
            async with session.post(target.url + path_of(endpoint), data=b"{}") as response:
                async for chunk in response.content.iter_any():
                    reads += 1
                    size += len(chunk)
            return Totals(0, size, reads)

        yield read


class FloorReader(FloorProtocol):
    """Reads a given number of bytes into one buffer and ignores them."""

    buffer = memoryview(bytearray(256 * 1024))

    def __init__(self) -> None:
        super().__init__()
        self.size = self.reads = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.size += nbytes
        self.reads += 1
        if self.size >= self.expected and self.waiter is not None:
            self.waiter.set_result(None)

    async def read(self, request: bytes, expected: int) -> Totals:
        self.size = self.reads = 0
        self.expected = expected
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self.waiter
        return Totals(0, self.size, self.reads)


class CheckingReader(FloorReader):
    """A floor with a checksum over all bytes."""

    checksum = 0

    def buffer_updated(self, nbytes: int) -> None:
        self.checksum = zlib.crc32(self.buffer[:nbytes], self.checksum)
        super().buffer_updated(nbytes)


class WakingReader(FloorReader):
    """A floor that wakes the task for every read, as returning parts as they arrive does."""

    def buffer_updated(self, nbytes: int) -> None:
        self.size += nbytes
        self.reads += 1
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def read(self, request: bytes, expected: int) -> Totals:
        self.size = self.reads = 0
        self.transport.write(request)
        loop = asyncio.get_running_loop()
        while self.size < expected:
            self.waiter = loop.create_future()
            await self.waiter
        return Totals(0, self.size, self.reads)


def reading(reader: type[FloorReader]) -> Callable[[Target], Any]:
    """Return a reader that uses asyncio alone, on connections made beforehand."""

    @asynccontextmanager
    async def opening(target: Target) -> AsyncIterator[Read]:
        host = target.url.partition("://")[2]
        idle = [await connect(target, reader) for _ in range(STREAMS)]

        async def read(endpoint: str) -> Totals:
            request = f"POST {path_of(endpoint)} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}"
            connection = idle.pop()
            totals = await connection.read(request.encode(), response_bytes(endpoint))
            idle.append(connection)
            return totals

        try:
            yield read
        finally:
            for connection in idle:
                connection.transport.close()

    return opening


CLIENTS: dict[str, Callable[[Target], Any]] = {
    "aiosmrt": decoding(aiosmrt_client),
    "aiosmrt-session": decoding(session_client),
    "aiobotocore": decoding(aiobotocore_client),
    "boto3": boto3s,
    "aiohttp": aiohttps,
    "floor": reading(FloorReader),
    "floor-crc32": reading(CheckingReader),
    "floor-wake": reading(WakingReader),
}
SLOW = ("aiobotocore", "boto3")
UNDECODED = ("aiohttp", "floor", "floor-crc32", "floor-wake")
COMPARED = ("aiobotocore", *UNDECODED)


async def streamed(name: str, read: Read, shape: Shape, parts: int) -> tuple[float, float, int]:
    """Measure one round of one client, which must receive everything: seconds, CPU seconds and reads."""
    endpoint = f"{shape.kind}-{parts}"
    totals: list[Totals] = []

    async def work() -> None:
        totals.extend(await asyncio.gather(*(read(endpoint) for _ in range(shape.streams))))

    seconds, cpu = await seconds_and_cpu(work)
    for found in totals:
        if name in UNDECODED:
            complete = shape.part_bytes * parts < found.size <= response_bytes(endpoint)
        else:
            complete = (found.events, found.size) == (parts, parts * shape.part_bytes)
        if not complete:
            raise RuntimeError(f"{name} read {found.events} events and {found.size} bytes, expected {parts} parts")
    return seconds, cpu, sum(found.reads for found in totals)


async def run(target: Target, names: Sequence[str], chosen: Sequence[Shape], rounds: int) -> list[dict[str, Any]]:
    """Measure each shape."""
    async with opened(CLIENTS, names, target) as readers:

        async def sample(shape: Shape, name: str) -> dict[str, float]:
            parts = shape.parts_for_slow if name in SLOW else shape.parts
            seconds, cpu, reads = await streamed(name, readers[name], shape, parts)
            if shape.kind == "paced":
                less = await streamed(name, readers[name], shape, 1)
                seconds, cpu, reads, parts = seconds - less[0], cpu - less[1], reads - less[2], parts - 1
            events = parts * shape.streams
            return {
                "seconds_per_event": seconds / events,
                "cpu_seconds_per_event": cpu / events,
                "reads_per_event": reads / events,
            }

        for read in readers.values():
            await read("small-100")
        taken = await take_turns(rounds, chosen, names, sample)
    return [
        {
            "shape": shape.name,
            "streams": shape.streams,
            "clients": {name: summary(shape, name, measured) for name in names},
        }
        for shape, measured in zip(chosen, taken, strict=True)
    ]


def summary(shape: Shape, name: str, measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    def values(of: str, what: str) -> list[float]:
        return [sample[what] for sample in measured[of]]

    seconds = statistics.median(values(name, "seconds_per_event"))
    found: dict[str, Any] = {
        "events_per_second": 1 / seconds,
        "payload_bytes_per_second": shape.part_bytes / seconds,
        "cpu_seconds_per_event": statistics.median(values(name, "cpu_seconds_per_event")),
    }
    if name in UNDECODED:
        found["reads_per_event"] = statistics.median(values(name, "reads_per_event"))
    for other in COMPARED:
        if other in measured:
            what = "seconds_per_event"
            speed = median_ratio(values(other, what), values(name, what))
            cpu = median_ratio(values(name, "cpu_" + what), values(other, "cpu_" + what))
            found.setdefault("speed_ratio_to", {})[other] = speed
            found.setdefault("cpu_ratio_to", {})[other] = cpu
    return found


def show(results: list[dict[str, Any]]) -> None:
    for result in results:
        paced = result["streams"] > 1
        others = [other for other in COMPARED if other in result["clients"]]
        rows = []
        for name, found in result["clients"].items():
            row = [name, f"{found['events_per_second']:,.0f}", f"{found['payload_bytes_per_second'] / 1e6:,.1f}"]
            row.append(f"{found['cpu_seconds_per_event'] * 1e6:,.2f}")
            row.append(f"{found['reads_per_event']:.3f}" if "reads_per_event" in found else "")
            row += [f"{found['cpu_ratio_to' if paced else 'speed_ratio_to'][other]:.2f}" for other in others]
            rows.append(row)
        title = f"{result['shape']}, {result['streams']} stream{'s' if paced else ''} at once"
        if paced:
            title += f", a part about every {PACE_SECONDS * 1e3:g} ms each"
        ratios = [f"{'CPU' if paced else 'speed'} / {other}" for other in others]
        print_table(title, ["client", "events/s", "MB/s", "CPU µs/event", "reads/event", *ratios], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure response streams against boto3, aiobotocore and aiohttp.")
    every = {shape.name for shape in shapes(quick=True)}
    parser.add_argument("--shapes", default=",".join(sorted(every)), help="comma-separated")
    arguments = arguments_of(parser, CLIENTS)
    if unknown := set(arguments.shapes.split(",")) - every:
        parser.error(f"unknown shape: {', '.join(sorted(unknown))}")
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    chosen = [shape for shape in shapes(arguments.quick) if shape.name in arguments.shapes.split(",")]
    report = report_of(arguments, STREAMS, rounds, lambda target: run(target, arguments.clients, chosen, rounds))
    show(report["results"])
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
