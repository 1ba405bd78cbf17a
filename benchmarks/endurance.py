"""What happens to calls while the service is ill?

    python benchmarks/endurance.py [--part outages,jobs] [--quick] [--clients aiosmrt,aiobotocore-legacy] [--json FILE]
                                   [--seconds 0.3,1,3,10] [--rows 3000] [--peers] [--callers 5000] [--late 5000]

Every client has its default options; aiobotocore's retry mode is set by ``Config(retries={"mode": ...})``. The service
is `faulty_server.py`, on another core. Three parts:

- outages: 12 calls at once, after one good call, against each illness, for each length. How many succeed, and how long
  after the end of the illness the last of them ended (negative: before it). "stream" calls read a response stream; the
  illness strikes before its first part. The reset comes after the stream's head, all others replace it. Cells have
  their own client and service and start one after the other, many at a time; "late" is how late timers were.
- jobs: 3,000 rows with 64 calls in flight, 50 ms each: through `Endpoint.map`, or a semaphore and ``gather`` for
  aiobotocore, whose pool is raised from 10 to 64 connections. An outage begins after 500 good answers and lasts 5 s.
  Requests are counted by the server, so refused connections are not among them.
- storm: 5,000 calls at once against 503 for 60 s, then 50 ms each. As many late callers come 5 s before its end, so
  that some are waiting when the service returns. The requests of the first 2 s after that are listed. Runs only with
  ``--part storm``.

"!" marks a missed target, for aiosmrt only. Targets are: all calls succeed; and for jobs, see `JOBS`. With other than
3,000 rows, the limits on seconds are scaled. The exit status is always 0.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import aiobotocore.config
import aiobotocore.session
from botocore.exceptions import ClientError
from faulty_server import LATE, STREAM_PARTS
from harness import WHO
from loopback_server import JSON_BODY, raise_descriptor_limit
from reporting import cores, environment, print_table, stay_on, write_json
from uploads import Lateness

import aiosmrt
from aiosmrt.serializers import JSON

ENDPOINT = "endurance"
BODY = b'{"instances": [1]}'
ROW = json.loads(BODY)

CALLS = 12
ILLNESSES = ("503", "500", "502 HTML", "530", "ThrottlingException", "bare 429", "ModelNotReady", "refused", "reset")
# Between the starts of two cells, so that their bursts of calls rarely meet.
SPACING_SECONDS = 0.1
# A call that has not ended by then, counted from the end of the illness, is "unfinished".
GRACE_SECONDS = 60.0

ROWS = 3_000
CONCURRENCY = 64
MODEL_SECONDS = 0.05
ILL_AFTER = 500
ILL_SECONDS = 5.0
# A job, or a storm's call after the storm, that takes longer is "unfinished".
LIMIT_SECONDS = 180.0

STORM_CALLERS = 5_000
STORM_SECONDS = 60.0
LATE_SECONDS = 5.0
LISTED_BUCKETS = 20

UNFINISHED = "unfinished"


class Job(NamedTuple):
    """A job's service, and its targets for 3,000 rows."""

    name: str
    service: dict[str, Any]
    requests_per_row: float
    seconds: float | None

    def seconds_for(self, rows: int) -> float | None:
        """The limit for another number of rows: the outage stays, the work is scaled."""
        if self.seconds is None:
            return None
        if "slots" in self.service:
            return self.seconds * rows / ROWS
        return self.seconds - (ROWS - rows) / CONCURRENCY * MODEL_SECONDS


def outage(illness: str) -> dict[str, Any]:
    return {"illness": illness, "ill_after": ILL_AFTER, "ill_seconds": ILL_SECONDS}


JOBS = (
    Job("healthy", {"illness": "503"}, 1.15, 11.0),
    Job("throttled for 5 s", outage("throttled"), 1.15, 11.0),
    Job("503 for 5 s", outage("503"), 1.15, 11.0),
    Job("gone for 5 s", outage("refused"), 1.15, 11.0),
    Job("8 at a time, else 429", {"illness": "throttled", "slots": 8}, 1.3, 28.2),
    Job("half throttled", {"illness": "throttled", "refused_share": 0.5}, 2.4, None),
)


class Server:
    """The server's process, and a way to command it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    async def ask(self, what: str, **members: Any) -> dict[str, Any]:
        """Send a command; returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps({"do": what, **members}).encode() + b"\n")
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @contextlib.asynccontextmanager
    async def service(self, **options: Any) -> AsyncIterator[tuple[int, str]]:
        """A service's number and URL."""
        opened = await self.ask("open", **options)
        try:
            yield opened["service"], f"http://127.0.0.1:{opened['port']}"
        finally:
            await self.ask("close", service=opened["service"])


@contextlib.asynccontextmanager
async def serving(core: int) -> AsyncIterator[Server]:
    """Run the server on a core."""
    program = str(Path(__file__).with_name("faulty_server.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        "--core",
        str(core),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    assert process.stdin is not None
    try:
        yield Server(process)
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


@lru_cache(maxsize=1)
def aiobotocore_session() -> Any:
    """One session for all clients, so that the service model is loaded once."""
    return aiobotocore.session.get_session()


def own(**fixed: Any) -> Callable[..., Any]:
    def client(url: str, connections: int | None, **options: Any) -> Any:
        every: dict[str, Any] = {**WHO, "endpoint_url": url, **fixed, **options}
        return aiosmrt.Client(**every)

    return client


def aiobotocores(mode: str) -> Callable[..., Any]:
    def client(url: str, connections: int | None, **options: Any) -> Any:
        pool = {} if connections is None else {"max_pool_connections": connections}
        config = aiobotocore.config.AioConfig(retries={"mode": mode}, **pool)
        return aiobotocore_session().create_client("sagemaker-runtime", **WHO, endpoint_url=url, config=config)

    return client


# Each is called with the URL, how many connections a peer's pool has (None: unlimited), and client options.
CLIENTS: dict[str, Callable[..., Any]] = {
    "aiosmrt": own(),
    "aiosmrt-session": own(transport="session"),
    "aiobotocore-legacy": aiobotocores("legacy"),
    "aiobotocore-standard": aiobotocores("standard"),
    "aiobotocore-adaptive": aiobotocores("adaptive"),
}
PEERS = ("aiobotocore-legacy", "aiobotocore-standard", "aiobotocore-adaptive")


def is_judged(client: str) -> bool:
    """Targets are this package's."""
    return client.startswith("aiosmrt")


def mark(text: str, *, missed: bool) -> str:
    return text + ("!" if missed else " ")


class End(NamedTuple):
    """How a call ended: the error's name, or None if it succeeded, and the loop's time."""

    error: str | None
    at: float


def name_of(error: Exception) -> str:
    """The error's class, or its code where the class is the general ClientError."""
    if type(error) is ClientError:
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__


async def ended(call: Awaitable[None], give_up_at: float) -> End:
    """Wait for a call, however it ends."""
    loop = asyncio.get_running_loop()
    error = None
    try:
        async with asyncio.timeout_at(give_up_at) as limit:
            await call
    except Exception as raised:
        error = UNFINISHED if limit.expired() else name_of(raised)
    return End(error, loop.time())


def errors_of(ends: Sequence[End]) -> dict[str, int]:
    return dict(collections.Counter(end.error for end in ends if end.error is not None).most_common())


def listed(errors: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in errors.items())


async def unary(client: Any, **params: Any) -> None:
    response = await client.invoke_endpoint(EndpointName=ENDPOINT, Body=BODY, ContentType="application/json", **params)
    body = await response["Body"].read()
    if body != JSON_BODY:
        raise RuntimeError(f"an answer of {len(body)} bytes, expected {len(JSON_BODY)}")


async def stream(client: Any) -> None:
    response = await client.invoke_endpoint_with_response_stream(EndpointName=ENDPOINT, Body=BODY)
    with contextlib.closing(response["Body"]) as body:
        parts = [event["PayloadPart"]["Bytes"] async for event in body]
    if len(parts) != STREAM_PARTS:
        raise RuntimeError(f"{len(parts)} parts, expected {STREAM_PARTS}")


KINDS: dict[str, Callable[[Any], Awaitable[None]]] = {"unary": unary, "stream": stream}


# Outages


class Cell(NamedTuple):
    """One entry of the table."""

    illness: str
    kind: str
    client: str
    seconds: float


async def visit(server: Server, cell: Cell, client: Any, service: int) -> dict[str, Any]:
    """One good call, then as many at once as there are, from the moment the illness begins."""
    call = KINDS[cell.kind]
    await call(client)
    until = (await server.ask("fall_ill", service=service, seconds=cell.seconds))["until"]
    ends = await asyncio.gather(*(ended(call(client), until + GRACE_SECONDS) for _ in range(CALLS)))
    counts = await server.ask("counts", service=service)
    return {
        **cell._asdict(),
        "calls": CALLS,
        "succeeded": sum(end.error is None for end in ends),
        "last_after_illness": max(end.at for end in ends) - until,
        "requests": counts["requests"] - 1,
        "errors": errors_of(ends),
    }


async def outages(server: Server, names: Sequence[str], lengths: Sequence[float], options: dict[str, Any]) -> Any:
    cells = [
        Cell(illness, kind, name, seconds)
        for seconds in sorted(lengths, reverse=True)
        for illness in ILLNESSES
        for kind in KINDS
        for name in names
    ]
    async with contextlib.AsyncExitStack() as stack:
        ready = []
        for cell in cells:
            service, url = await stack.enter_async_context(server.service(illness=cell.illness))
            made = options if is_judged(cell.client) else {}
            client = await stack.enter_async_context(CLIENTS[cell.client](url, None, **made))
            ready.append((cell, client, service))
        gc.collect()
        gc.freeze()
        with Lateness() as late:
            async with asyncio.TaskGroup() as group:
                visits = []
                for cell, client, service in ready:
                    visits.append(group.create_task(visit(server, cell, client, service)))
                    await asyncio.sleep(SPACING_SECONDS)
        gc.unfreeze()
    by_lateness = sorted(late.seconds)
    return {
        "cells": [task.result() for task in visits],
        "lateness_seconds": {"p99": by_lateness[len(by_lateness) * 99 // 100], "max": by_lateness[-1]},
    }


def show_outages(results: dict[str, Any]) -> None:
    lengths = sorted({cell["seconds"] for cell in results["cells"]})
    rows: dict[tuple[str, str, str], dict[float, str]] = {}
    for cell in results["cells"]:
        entry = f"{cell['succeeded']}/{cell['calls']} {cell['last_after_illness']:+.1f}s"
        missed = is_judged(cell["client"]) and cell["succeeded"] < cell["calls"]
        row = rows.setdefault((cell["illness"], cell["kind"], cell["client"]), {})
        row[cell["seconds"]] = mark(entry, missed=missed)
    late = results["lateness_seconds"]
    print_table(
        f"outages: {CALLS} calls at once; succeeded, and seconds from the end of the illness to the last call's end"
        f" (late: p99 {late['p99'] * 1e3:.0f} ms, max {late['max'] * 1e3:.0f} ms)",
        ["illness", "kind", "client", *(f"{seconds:g} s " for seconds in lengths)],
        [[*key, *(row[seconds] for seconds in lengths)] for key, row in rows.items()],
    )


# Jobs


async def mapped(client: Any, rows: int, ends: list[End]) -> None:
    loop = asyncio.get_running_loop()
    endpoint = client.endpoint(ENDPOINT, serializer=JSON, deserializer=JSON)
    async with endpoint.map((ROW for _ in range(rows)), concurrency=CONCURRENCY) as results:
        async for result in results:
            error = None if result.error is None else name_of(result.error)
            ends.append(End(error, loop.time()))


async def gathered(client: Any, rows: int, ends: list[End]) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)
    give_up_at = asyncio.get_running_loop().time() + 2 * LIMIT_SECONDS

    async def score() -> None:
        async with slots:
            ends.append(await ended(unary(client), give_up_at))

    await asyncio.gather(*(score() for _ in range(rows)))


async def run_job(server: Server, job: Job, name: str, rows: int, options: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    ends: list[End] = []
    made = options if is_judged(name) else {}
    async with (
        server.service(model_seconds=MODEL_SECONDS, **job.service) as (service, url),
        CLIENTS[name](url, CONCURRENCY, **made) as client,
    ):
        work = (mapped if is_judged(name) else gathered)(client, rows, ends)
        start = loop.time()
        whole = await ended(work, start + LIMIT_SECONDS)
        counts = await server.ask("counts", service=service)
    scored = sum(end.error is None for end in ends)
    return {
        "job": job.name,
        "client": name,
        "rows": rows,
        "scored": scored,
        "lost": rows - scored,
        "requests": counts["requests"],
        "requests_per_row": counts["requests"] / rows,
        "seconds": whole.at - start,
        "errors": errors_of(ends),
        "stopped_by": whole.error,
        "targets": {"lost": 0, "requests_per_row": job.requests_per_row, "seconds": job.seconds_for(rows)},
    }


async def jobs(server: Server, names: Sequence[str], rows: int, options: dict[str, Any]) -> Any:
    return [await run_job(server, job, name, rows, options) for job in JOBS for name in names]


def show_jobs(results: list[dict[str, Any]]) -> None:
    rows = []
    for found in results:
        judged, targets = is_judged(found["client"]), found["targets"]
        row = [found["job"], found["client"], f"{found['scored']:,}"]
        for what, form in (("lost", ",d"), ("requests_per_row", ".3f"), ("seconds", ".1f")):
            limit = targets[what]
            row.append(mark(format(found[what], form), missed=judged and limit is not None and found[what] > limit))
        limit = targets["seconds"]
        row.append(f"{targets['requests_per_row']:g}, {'any' if limit is None else f'{limit:.1f}'} s")
        stopped = [f"stopped by {found['stopped_by']}"] if found["stopped_by"] else []
        rows.append([*row, ", ".join([*stopped, *filter(None, [listed(found["errors"])])])])
    print_table(
        f"jobs: {results[0]['rows']:,} rows, {CONCURRENCY} in flight, {MODEL_SECONDS * 1e3:g} ms each",
        ["job", "client", "scored", "lost ", "requests/row ", "seconds ", "target", "errors"],
        rows,
    )


# Storm


async def run_storm(
    server: Server, name: str, callers: int, late: int, seconds: float, options: dict[str, Any]
) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    made = options if is_judged(name) else {}
    async with (
        server.service(illness="503", model_seconds=MODEL_SECONDS) as (service, url),
        CLIENTS[name](url, None, **made) as client,
    ):
        await unary(client)
        until = (await server.ask("fall_ill", service=service, seconds=seconds))["until"]
        give_up_at = until + LIMIT_SECONDS

        async def wave(count: int, delay: float, **params: Any) -> dict[str, Any]:
            await asyncio.sleep(delay)
            start = loop.time()
            ends = await asyncio.gather(*(ended(unary(client, **params), give_up_at) for _ in range(count)))
            return {
                "calls": count,
                "succeeded": sum(end.error is None for end in ends),
                "succeeded_seconds": spread([end.at - start for end in ends if end.error is None]),
                "failed_seconds": spread([end.at - start for end in ends if end.error is not None]),
                "errors": errors_of(ends),
            }

        waves = [wave(callers, 0.0)]
        if late:
            waves.append(wave(late, max(0.0, seconds - LATE_SECONDS), CustomAttributes=LATE))
        found = await asyncio.gather(*waves)
        counts = await server.ask("counts", service=service)
    requests = {"first": counts["requests"] - counts["late"] - 1, "late": counts["late"]}
    return {
        "client": name,
        "ill_seconds": seconds,
        "waves": {
            which: {**result, "requests_per_call": requests[which] / result["calls"]}
            for which, result in zip(requests, found, strict=False)
        },
        "requests_per_100_ms": {"while_ill": counts["while_ill"], "after": counts["after"]},
        "peak_in_model_after": counts["peak_in_model_after"],
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"min": min(values), "max": max(values)} if values else None


async def storm(
    server: Server, names: Sequence[str], callers: int, late: int, seconds: float, options: dict[str, Any]
) -> Any:
    return [await run_storm(server, name, callers, late, seconds, options) for name in names]


def show_storm(results: list[dict[str, Any]]) -> None:
    def between(times: dict[str, float] | None) -> str:
        return f"{times['min']:.1f} to {times['max']:.1f}" if times else ""

    rows = [
        [
            found["client"],
            which,
            f"{wave['calls']:,}",
            f"{wave['requests_per_call']:.3f}",
            f"{wave['succeeded']:,}",
            between(wave["succeeded_seconds"]),
            between(wave["failed_seconds"]),
            listed(wave["errors"]),
        ]
        for found in results
        for which, wave in found["waves"].items()
    ]
    print_table(
        f"storm: 503 for {results[0]['ill_seconds']:g} s; late callers come {LATE_SECONDS:g} s before its end",
        ["client", "callers", "calls", "requests/call", "succeeded", "after s", "failed after s", "errors"],
        rows,
    )
    for found in results:
        buckets = found["requests_per_100_ms"]
        print(f"\n{found['client']}: requests in 100 ms: at most {max(buckets['while_ill'], default=0):,} while ill.")
        if any(buckets["after"]):
            print(
                f"  After it: at most {max(buckets['after']):,}, and {found['peak_in_model_after']:,} in flight."
                f" From its end on:\n  {' '.join(str(count) for count in buckets['after'][:LISTED_BUCKETS])}"
            )
        else:
            print("  No call was left when the service returned.")


PARTS = ("outages", "jobs", "storm")


def names_in(text: str, known: Sequence[str], parser: argparse.ArgumentParser, what: str) -> list[str]:
    """The chosen names in their usual order."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(known):
        parser.error(f"unknown {what}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return [name for name in known if name in chosen]


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


async def run(arguments: argparse.Namespace, report: dict[str, Any], core: int) -> None:
    """Run the chosen parts; print each and add it to the report."""
    options = {} if arguments.patience is None else {"patience": arguments.patience}
    alone = arguments.clients or ["aiosmrt", *(PEERS if arguments.peers else ())]
    async with serving(core) as server:
        if "outages" in arguments.part:
            names = arguments.clients or ["aiosmrt", "aiobotocore-legacy", "aiobotocore-standard"]
            report["outages"] = await outages(server, names, arguments.seconds, options)
            show_outages(report["outages"])
        if "jobs" in arguments.part:
            report["jobs"] = await jobs(server, alone, arguments.rows, options)
            show_jobs(report["jobs"])
        if "storm" in arguments.part:
            report["storm"] = await storm(
                server, alone, arguments.callers, arguments.late, arguments.storm_seconds, options
            )
            show_storm(report["storm"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what happens to calls while the service is ill.")
    parser.add_argument("--part", default="outages,jobs", help=f"comma-separated, any of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="0.3 and 1 s, 1,000 rows, 1,000 callers for 10 s")
    parser.add_argument("--clients", help=f"comma-separated, any of {', '.join(CLIENTS)}")
    parser.add_argument("--seconds", type=numbers, help="lengths of the outages, comma-separated (default 0.3,1,3,10)")
    parser.add_argument("--rows", type=int, help=f"rows of a job (default {ROWS})")
    parser.add_argument("--peers", action="store_true", help="jobs and storm: aiobotocore's three modes beside aiosmrt")
    parser.add_argument("--callers", type=int, help=f"storm: calls at once (default {STORM_CALLERS})")
    parser.add_argument("--late", type=int, help="storm: late callers, 0 for none (default: as many as --callers)")
    parser.add_argument("--storm-seconds", type=float, help=f"storm: its length (default {STORM_SECONDS:g})")
    parser.add_argument("--patience", type=float, help="pass this to aiosmrt's clients (default: do not)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    arguments.part = names_in(arguments.part, PARTS, parser, "part")
    if arguments.clients is not None:
        arguments.clients = names_in(arguments.clients, list(CLIENTS), parser, "client")
    quick = arguments.quick
    arguments.seconds = arguments.seconds or ([0.3, 1.0] if quick else [0.3, 1.0, 3.0, 10.0])
    arguments.rows = arguments.rows or (1_000 if quick else ROWS)
    arguments.callers = arguments.callers or (1_000 if quick else STORM_CALLERS)
    arguments.late = arguments.callers if arguments.late is None else arguments.late
    arguments.storm_seconds = arguments.storm_seconds or (10.0 if quick else STORM_SECONDS)
    return arguments


def main() -> None:
    arguments = parse()
    for variable in list(os.environ):
        if variable.startswith("AWS_") or variable.lower().endswith(("_proxy", "_ca_bundle")):
            del os.environ[variable]
    # A profile's retry_mode would change what is measured.
    os.environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    raise_descriptor_limit()
    available = cores()
    stay_on(available[0])
    report: dict[str, Any] = {"benchmark": "endurance", "environment": environment()}
    asyncio.run(run(arguments, report, available[-1]))
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
