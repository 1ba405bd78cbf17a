"""What does a batch job cost on top of its calls, and does its memory stay flat?

    python benchmarks/batch.py [--rows 1000000] [--peer-rows 20000] [--in-flight 64] [--rounds 1] [--json FILE]
                               [--profile FILE]

Rows of 120 bytes of JSON in a file, an answer of 33 bytes to each. Every job is a separate process on one core, the
server another on another core:

- calls: bare ``invoke_endpoint`` with the same bodies from memory, ``--in-flight`` workers; nothing is read or written;
- score: ``aiosmrt.batch.score`` from the file into a file;
- reopen: the same job again, which finds all rows done;
- script: what people write: aiobotocore, a semaphore, ``gather``, then one write of all answers, with ``--peer-rows``
  rows.

Memory is the growth of the resident set from a tenth of the rows to the end of the job.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiobotocore.config
import aiobotocore.session
from loopback_server import raise_descriptor_limit, running
from reporting import cores, environment, print_table, stay_on, write_json

import aiosmrt
from aiosmrt.batch import ANY_ANSWER, Progress, score
from aiosmrt.serializers import JSON

ENDPOINT = "batch"
CONTENT_TYPE = "application/json"
WHO = {"region_name": "us-east-1", "aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "not-a-real-secret"}
MEBIBYTE = 1 << 20
# The issue's targets: the share of the bare calls' rate, the growth of memory, the seconds to reopen a million rows.
LEAST_SHARE, MOST_GROWTH, MOST_SECONDS = 0.7, 100 * MEBIBYTE, 1.0

Figures = dict[str, float]


def row(number: int) -> bytes:
    """A row of 120 bytes and its line end."""
    start = b'{"id": %d, "inputs": "' % number
    return start + b"x" * (118 - len(start)) + b'"}\n'


def resident_bytes() -> int:
    """This process's resident set, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Memory:
    """The resident set's growth from the time it was first asked for."""

    def __init__(self) -> None:
        self._first: int | None = None
        self.growth = 0

    def look(self) -> None:
        now = resident_bytes()
        if self._first is None:
            self._first = now
        self.growth = max(self.growth, now - self._first)


async def calls(folder: Path, url: str, in_flight: int, rows: int) -> Figures:
    body = row(0).rstrip()
    remaining = iter(range(rows))
    async with aiosmrt.Client(**WHO, endpoint_url=url, max_concurrency=in_flight) as client:

        async def worker() -> None:
            for _ in remaining:
                response = await client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=body)
                await response["Body"].read()

        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return {}


async def scored(folder: Path, url: str, in_flight: int, rows: int) -> Figures:
    memory = Memory()

    def on_progress(progress: Progress) -> None:
        if progress.scored >= rows // 10:
            memory.look()

    async with aiosmrt.Client(**WHO, endpoint_url=url, max_concurrency=in_flight) as client:
        endpoint = client.endpoint(ENDPOINT, serializer=JSON, deserializer=ANY_ANSWER)
        report = await score(
            endpoint, folder / "rows.jsonl", folder / "out.jsonl", on_progress=on_progress, progress_interval=0.5
        )
    memory.look()
    if not report.finished or report.scored != rows or report.failed:
        raise RuntimeError(f"{report.scored} of {rows} rows were scored, {report.failed} failed")
    return {"growth": memory.growth}


async def script(folder: Path, url: str, in_flight: int, rows: int) -> Figures:
    memory = Memory()
    memory.look()
    config = aiobotocore.config.AioConfig(max_pool_connections=in_flight)
    limit = asyncio.Semaphore(in_flight)
    with (folder / "rows.jsonl").open("rb") as file:
        bodies = [line.rstrip() for line, _ in zip(file, range(rows), strict=False)]
    session = aiobotocore.session.get_session()
    async with session.create_client("sagemaker-runtime", **WHO, endpoint_url=url, config=config) as client:

        async def one(body: bytes) -> Any:
            async with limit:
                response = await client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=body)
                return json.loads(await response["Body"].read())

        answers = await asyncio.gather(*map(one, bodies))
    lines = [json.dumps({"index": number, "value": value}) + "\n" for number, value in enumerate(answers)]
    (folder / "script.jsonl").write_text("".join(lines))
    memory.look()
    return {"growth": memory.growth}


JOBS: dict[str, Callable[[Path, str, int, int], Awaitable[Figures]]] = {
    "calls": calls,
    "score": scored,
    "reopen": scored,
    "script": script,
}


def run_job(arguments: argparse.Namespace) -> None:
    """Run one job in this process, and print its figures as JSON."""
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        del os.environ[variable]
    raise_descriptor_limit()
    stay_on(cores()[0])
    job = JOBS[arguments.job]

    async def timed() -> Figures:
        start, start_cpu = time.perf_counter(), time.process_time()
        figures = await job(arguments.folder, arguments.url, arguments.in_flight, arguments.rows)
        return {**figures, "seconds": time.perf_counter() - start, "cpu": time.process_time() - start_cpu}

    if arguments.profile is None:
        figures = asyncio.run(timed())
    else:
        import cProfile

        profile = cProfile.Profile()
        figures = profile.runcall(asyncio.run, timed())
        profile.dump_stats(arguments.profile)
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(figures))


def figures_of(name: str, folder: Path, url: str, arguments: argparse.Namespace, rows: int) -> Figures:
    """Run one job in a separate process."""
    command = [sys.executable, str(Path(__file__)), "--job", name, "--folder", str(folder), "--url", url]
    command += ["--rows", str(rows), "--in-flight", str(arguments.in_flight)]
    if arguments.profile is not None and name == "score":
        command += ["--profile", str(arguments.profile)]
    figures: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {**figures, "rows": rows}


def show(taken: dict[str, list[Figures]]) -> dict[str, Any]:
    """Print the medians of the rounds and the targets; returns them."""
    medians = {
        name: {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        for name, samples in taken.items()
    }
    print_table(
        "Batch jobs",
        ["", "rows", "rows/s", "CPU, µs a row", "seconds", "peak, MiB", "growth, MiB"],
        [
            [
                name,
                f"{found['rows']:,.0f}",
                f"{found['rows'] / found['seconds']:,.0f}",
                f"{found['cpu'] / found['rows'] * 1e6:.1f}",
                f"{found['seconds']:.2f}",
                f"{found['peak'] / MEBIBYTE:.0f}",
                f"{found['growth'] / MEBIBYTE:.0f}" if "growth" in found else "",
            ]
            for name, found in medians.items()
        ],
    )
    # Of jobs that ran beside each other: the median of the rounds' ratios.
    share = statistics.median(
        bare["seconds"] / whole["seconds"] for bare, whole in zip(taken["calls"], taken["score"], strict=True)
    )
    millions = medians["reopen"]["rows"] / 1e6
    targets = [
        ("calls/s of score / of bare calls", f">= {LEAST_SHARE}", share, share >= LEAST_SHARE),
        (
            "growth of memory, MiB",
            f"<= {MOST_GROWTH / MEBIBYTE:.0f}",
            medians["score"]["growth"] / MEBIBYTE,
            medians["score"]["growth"] <= MOST_GROWTH,
        ),
        (
            f"seconds to reopen {millions:g} million rows, process included",
            f"< {MOST_SECONDS:g} a million",
            medians["reopen"]["seconds"],
            medians["reopen"]["seconds"] < MOST_SECONDS * max(millions, 1),
        ),
    ]
    print_table(
        "Targets",
        ["", "target", "measured", "met"],
        [[what, target, f"{value:.2f}", "yes" if met else "NO"] for what, target, value, met in targets],
    )
    return {"jobs": medians, "share": share, "met": {what: met for what, _, _, met in targets}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure batch jobs beside bare calls and the usual script.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the file (default 1,000,000)")
    parser.add_argument("--peer-rows", type=int, default=20_000, help="rows of the usual script (default 20,000)")
    parser.add_argument("--in-flight", type=int, default=64, help="calls in flight (default 64)")
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write cProfile's statistics of score to this file"
    )
    for name, kind in (("--job", str), ("--folder", Path), ("--url", str)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job is not None:
        run_job(arguments)
        return
    taken: dict[str, list[Figures]] = {}
    available = cores()
    with tempfile.TemporaryDirectory(prefix="batch-") as name, running(core=available[-1]) as (url, _):
        folder = Path(name)
        with (folder / "rows.jsonl").open("wb") as file:
            file.writelines(map(row, range(arguments.rows)))
        for _ in range(arguments.rounds):
            for job in JOBS:
                rows = min(arguments.peer_rows, arguments.rows) if job == "script" else arguments.rows
                taken.setdefault(job, []).append(figures_of(job, folder, url, arguments, rows))
            for path in folder.glob("out.jsonl*"):
                path.unlink()
    results = show(taken)
    write_json(arguments.json, {"environment": environment(), "rounds": arguments.rounds, "results": results})


if __name__ == "__main__":
    main()
