"""What do large request bodies cost, and how long do they block the event loop?

    python benchmarks/uploads.py [--quick] [--in-flight 4] [--body-bytes 6291456] [--loop uvloop] [--tls] [--json FILE]

Calls with bodies of 6 MiB, four at once, through the clients of overhead.py, beside a timer that is due every
millisecond. Its lateness is the time from due to run. Every millisecond in which the loop was busy counts, although the
timer could not run in it: percentiles are over time, and over all rounds. asyncio rounds waits up to milliseconds, so
an idle loop is up to one late ("nothing"). "sha256" hashes the bodies on the loop and sends nothing: every client that
signs needs that on top of the floor.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import overhead
from harness import Target, arguments_of, median_ratio, opened, report_of, seconds_and_cpu, take_turns
from reporting import print_table, write_json

PERIOD = 0.001
NOTHING_SECONDS = 0.1


class Lateness:
    """Records, inside its ``with`` block, for every millisecond how late a timer due then ran."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> Lateness:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + PERIOD
        self._timer = self._loop.call_at(self._due, self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        while self._due <= now:
            self.seconds.append(now - self._due)
            self._due += PERIOD
        self._timer = self._loop.call_at(self._due, self._tick)


@asynccontextmanager
async def nothing(target: Target) -> AsyncIterator[overhead.Work]:
    """Make no calls, to measure the lateness of the timer itself."""

    async def work(body: bytes, calls: int, in_flight: int) -> None:
        await asyncio.sleep(NOTHING_SECONDS)

    yield work


@asynccontextmanager
async def hashing(target: Target) -> AsyncIterator[overhead.Work]:
    async def work(body: bytes, calls: int, in_flight: int) -> None:
        for _ in range(calls):
            hashlib.sha256(body).digest()
            await asyncio.sleep(0)

    yield work


CLIENTS = {**overhead.CLIENTS, "sha256": hashing, "nothing": nothing}
DEFAULT = ("aiosmrt", "aiosmrt-session", "aiobotocore", "aiohttp", "floor", "sha256", "nothing")


async def run(
    target: Target, names: Sequence[str], points: Sequence[overhead.Point], rounds: int, calls: int
) -> list[dict[str, Any]]:
    async with opened(CLIENTS, names, target) as works:

        async def sample(point: overhead.Point, name: str) -> tuple[float, list[float]]:
            lateness = Lateness()

            async def work() -> None:
                with lateness:
                    await works[name](overhead.body_of(point.body_bytes), calls, point.in_flight)

            _, cpu = await seconds_and_cpu(work)
            return cpu / calls, lateness.seconds

        for point in points:
            for name in names:
                await sample(point, name)
        taken = await take_turns(rounds, points, names, sample)
    return [
        {**point._asdict(), "clients": {name: summary(name, measured) for name in names}}
        for point, measured in zip(points, taken, strict=True)
    ]


def summary(name: str, measured: dict[str, list[tuple[float, list[float]]]]) -> dict[str, Any]:
    late = sorted(seconds for _, round_ in measured[name] for seconds in round_)
    found: dict[str, Any] = {
        "lateness_seconds": {"p50": late[len(late) // 2], "p99": late[len(late) * 99 // 100], "max": late[-1]}
    }
    if name != "nothing":
        cpu = {of: [seconds for seconds, _ in samples] for of, samples in measured.items()}
        found["cpu_seconds_per_call"] = statistics.median(cpu[name])
        if "aiobotocore" in cpu:
            found["cpu_lead"] = median_ratio(cpu["aiobotocore"], cpu[name])
    return found


def show(results: list[dict[str, Any]]) -> None:
    for result in results:
        rows = [
            [
                name,
                *(f"{found['lateness_seconds'][part] * 1e3:.1f}" for part in ("p50", "p99", "max")),
                f"{found['cpu_seconds_per_call'] * 1e3:.2f}" if "cpu_seconds_per_call" in found else "",
                f"{found['cpu_lead']:.2f}" if "cpu_lead" in found else "",
            ]
            for name, found in result["clients"].items()
        ]
        heads = ["client", "late ms, p50", "p99", "max", "CPU ms/call", "aiobotocore's CPU / this"]
        print_table(f"{result['in_flight']} in flight, bodies of {result['body_bytes']:,} bytes", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure large request bodies: CPU, and how late timers get.")
    parser.add_argument("--calls", type=int, default=24, help="calls per round (default 24)")
    parser.add_argument("--in-flight", type=overhead.numbers, default=[4], help="calls in flight, comma-separated")
    parser.add_argument("--body-bytes", type=overhead.numbers, default=[6 * 2**20], help="body sizes, comma-separated")
    arguments = arguments_of(parser, CLIENTS, DEFAULT)
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    points = [overhead.Point(in_flight, size) for size in arguments.body_bytes for in_flight in arguments.in_flight]
    report = report_of(
        arguments,
        max(arguments.in_flight),
        rounds,
        lambda target: run(target, arguments.clients, points, rounds, arguments.calls),
    )
    show(report["results"])
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
