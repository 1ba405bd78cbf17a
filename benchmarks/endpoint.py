"""What do Python objects cost on top of bytes?

    python benchmarks/endpoint.py [--quick] [--rounds 15] [--json FILE]

Two tables, each with its lower bound in the same run:

- calls, 64 in flight: `Endpoint.predict` and `Endpoint.invoke` with JSON in both directions, `Endpoint.map` over the
  same data, beside `invoke_endpoint` with prepared bytes. "json alone" is `json.dumps` and `json.loads`.
- streams of 64-byte parts: the views of `Endpoint.stream`, beside `async for` over the raw parts. Every item is
  touched. A part is one whole JSON document or server-sent event; "json alone" parses the same documents one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from harness import Target, aiosmrt_client, arguments_of, median_ratio, opened, report_of, seconds_and_cpu, take_turns
from loopback_server import JSON_BODY, JSON_PART, SMALL_PART_BYTES
from reporting import print_table, write_json

from aiosmrt.serializers import JSON

IN_FLIGHT = 64
# A typical request to a tabular model.
DATA = {"instances": [{"features": [0.5, 1.25, -3.0, 42]}]}
BODY = json.dumps(DATA).encode()
ANSWER = json.loads(JSON_BODY)

Work = Callable[[int], Awaitable[None]]


def check(found: object, expected: object) -> None:
    """Check that what is measured returned the right result."""
    if found != expected:
        raise RuntimeError(f"got {found!r}, expected {expected!r}")


def in_flight(call: Callable[[], Awaitable[Any]], expected: object) -> Work:
    async def work(count: int) -> None:
        remaining = iter(range(count))

        async def worker() -> None:
            for _ in remaining:
                check(await call(), expected)

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))

    return work


@asynccontextmanager
async def invoking(target: Target) -> AsyncIterator[Work]:
    async with aiosmrt_client(target) as client:

        async def call() -> bytes:
            response = await client.invoke_endpoint(
                EndpointName="json", Body=BODY, ContentType="application/json", Accept="application/json"
            )
            body: bytes = await response["Body"].read()
            return body

        yield in_flight(call, JSON_BODY)


@asynccontextmanager
async def predicting(target: Target) -> AsyncIterator[Work]:
    async with aiosmrt_client(target) as client:
        endpoint = client.endpoint("json", serializer=JSON, deserializer=JSON)
        yield in_flight(lambda: endpoint.predict(DATA), ANSWER)


@asynccontextmanager
async def asking(target: Target) -> AsyncIterator[Work]:
    async with aiosmrt_client(target) as client:
        endpoint = client.endpoint("json", serializer=JSON, deserializer=JSON)

        async def call() -> Any:
            return (await endpoint.invoke(DATA)).value

        yield in_flight(call, ANSWER)


@asynccontextmanager
async def mapping(target: Target) -> AsyncIterator[Work]:
    async with aiosmrt_client(target) as client:
        endpoint = client.endpoint("json", serializer=JSON, deserializer=JSON)

        async def work(count: int) -> None:
            async with endpoint.map((DATA for _ in range(count)), concurrency=IN_FLIGHT) as results:
                async for result in results:
                    check(result.value, ANSWER)

        yield work


@asynccontextmanager
async def json_alone(target: Target) -> AsyncIterator[Work]:
    async def work(count: int) -> None:
        for _ in range(count):
            json.dumps(DATA).encode()
            check(json.loads(JSON_BODY), ANSWER)

    yield work


CALLS = {
    "invoke_endpoint": invoking,
    "predict": predicting,
    "invoke": asking,
    "map": mapping,
    "json alone": json_alone,
}


class View(NamedTuple):
    """A way to read a stream: its kind, and the expected total per part."""

    kind: str
    per_part: int


VIEWS = {
    "raw parts": View("small", SMALL_PART_BYTES),
    "bytes": View("small", SMALL_PART_BYTES),
    "text": View("small", SMALL_PART_BYTES),
    "lines": View("json", 2),
    "jsonl": View("json", 1),
    "json": View("json", 1),
    "sse": View("sse", 1),
    "json of sse": View("sse", 1),
    "json alone": View("json", 1),
}


def reading(name: str) -> Callable[[Target], Any]:
    """Return the work of reading a stream in one of these ways."""
    kind, per_part = VIEWS[name]

    @asynccontextmanager
    async def opening(target: Target) -> AsyncIterator[Work]:
        async with aiosmrt_client(target) as client:

            async def work(count: int) -> None:
                total = 0
                if name == "json alone":
                    document = JSON_PART.decode()
                    for _ in range(count):
                        total += len(json.loads(document))
                elif name == "raw parts":
                    response = await client.invoke_endpoint_with_response_stream(
                        EndpointName=f"small-{count}", Body=b"{}"
                    )
                    async for event in response["Body"]:
                        total += len(event["PayloadPart"]["Bytes"])
                else:
                    endpoint = client.endpoint(f"{kind}-{count}", serializer=JSON, deserializer=JSON)
                    async with endpoint.stream({}) as stream:
                        if name in ("bytes", "text"):
                            async for piece in getattr(stream, name)():
                                total += len(piece)
                        else:
                            async for item in getattr(stream, name.partition(" ")[0])():
                                total += item is not None
                check(total, count * per_part)

            yield work

    return opening


READERS = {name: reading(name) for name in VIEWS}


async def measured(
    target: Target, works: dict[str, Callable[[Target], Any]], rounds: int, count: int
) -> dict[str, dict[str, list[float]]]:
    """Measure seconds and CPU seconds per unit, for each work and round."""
    async with opened(works, list(works), target) as ready:

        async def sample(point: None, name: str) -> tuple[float, float]:
            seconds, cpu = await seconds_and_cpu(lambda: ready[name](count))
            return seconds / count, cpu / count

        for work in ready.values():
            await work(count // 10)
        (taken,) = await take_turns(rounds, [None], list(works), sample)
    return {
        name: {"seconds": [seconds for seconds, _ in samples], "cpu_seconds": [cpu for _, cpu in samples]}
        for name, samples in taken.items()
    }


def summary(taken: dict[str, dict[str, list[float]]], bound: str, what: str) -> dict[str, dict[str, float]]:
    """Compute medians, and the medians of the rounds' ratios and differences to a bound."""
    return {
        name: {
            "median": statistics.median(found[what]),
            "ratio": median_ratio(found[what], taken[bound][what]),
            "extra": statistics.median(
                mine - theirs for mine, theirs in zip(found[what], taken[bound][what], strict=True)
            ),
        }
        for name, found in taken.items()
    }


async def run(target: Target, rounds: int, scale: int) -> dict[str, Any]:
    calls = summary(await measured(target, CALLS, rounds, 2_000 * scale), "invoke_endpoint", "cpu_seconds")
    views = summary(await measured(target, READERS, rounds, 20_000 * scale), "raw parts", "seconds")
    return {"calls": calls, "views": views}


def show(results: dict[str, Any]) -> None:
    rows: list[Sequence[str]] = [
        [name, f"{found['median'] * 1e6:.1f}", f"{found['extra'] * 1e6:+.1f}"]
        for name, found in results["calls"].items()
    ]
    print_table(f"calls, {IN_FLIGHT} in flight", ["", "CPU µs/call", "on top of invoke_endpoint"], rows)
    rows = [
        [name, f"{1 / found['median']:,.0f}", f"{1 / found['ratio']:.2f}"] for name, found in results["views"].items()
    ]
    print_table(f"one stream of parts of {SMALL_PART_BYTES} bytes", ["", "parts/s", "speed / raw parts"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what Python objects cost on top of bytes.")
    arguments = arguments_of(parser, {"aiosmrt": None})
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    scale = 1 if arguments.quick else 4
    report = report_of(arguments, IN_FLIGHT, rounds, lambda target: run(target, rounds, scale))
    show(report["results"])
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
