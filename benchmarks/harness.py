"""What the benchmarks that call a server share: the clients, the cores they run on, rounds and samples.

All clients run in this process, on one core, in turns round by round; the server (loopback_server.py) runs on another
core. A round visits every point (calls in flight, size of the body, kind of stream) before the next begins, so that a
noisy minute affects all of them. A ratio is the median of the rounds' ratios. CPU time is this process's, including its
threads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import aiohttp
import boto3
from botocore.config import Config
from loopback_server import raise_descriptor_limit, running
from reporting import cores, environment, stay_on

import aiosmrt

CONTENT_TYPE = "application/octet-stream"
# Arguments that aiosmrt.Client, aiobotocore and boto3 share.
WHO = {"region_name": "us-east-1", "aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "not-a-real-secret"}
# Longer than a round, so that a client keeps its connections between its turns.
KEEP_ALIVE_SECONDS = 600.0
# Set by compare.py: the descriptors from which a process reads its turn and to which it passes it on.
TURNS_VARIABLE = "AIOSMRT_BENCHMARK_TURNS"

Point = TypeVar("Point")
AnyProtocol = TypeVar("AnyProtocol", bound=asyncio.BufferedProtocol)


@dataclass(frozen=True)
class Target:
    """The server, its certificate authority under TLS, and the largest number of calls in flight."""

    url: str
    certificate: Path | None
    max_in_flight: int


def tls_context(target: Target) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=target.certificate) if target.certificate else None


def aiosmrt_client(target: Target, **options: Any) -> aiosmrt.Client:
    return aiosmrt.Client(
        **WHO,
        endpoint_url=target.url,
        max_concurrency=target.max_in_flight,
        verify=target.certificate or True,
        **options,
    )


def session_client(target: Target) -> aiosmrt.Client:
    """A client whose calls go through aiohttp's ClientSession."""
    return aiosmrt_client(target, transport="session")


def aiobotocore_client(target: Target) -> Any:
    # here, because some environments with a benchmark lack it
    import aiobotocore.config
    import aiobotocore.session

    return aiobotocore.session.get_session().create_client(
        "sagemaker-runtime",
        **WHO,
        endpoint_url=target.url,
        verify=str(target.certificate) if target.certificate else None,
        config=aiobotocore.config.AioConfig(
            max_pool_connections=target.max_in_flight, connector_args={"keepalive_timeout": KEEP_ALIVE_SECONDS}
        ),
    )


@contextlib.contextmanager
def boto3_client(target: Target) -> Iterator[Any]:
    client: Any = boto3.client(
        "sagemaker-runtime",
        **WHO,
        endpoint_url=target.url,
        verify=str(target.certificate) if target.certificate else None,
        config=Config(max_pool_connections=target.max_in_flight),
    )
    with contextlib.closing(client):
        yield client


def aiohttp_session(target: Target, **options: Any) -> aiohttp.ClientSession:
    """Create a session without a limit on connections."""
    connector = aiohttp.TCPConnector(limit=0, ssl=tls_context(target) or True, keepalive_timeout=KEEP_ALIVE_SECONDS)
    return aiohttp.ClientSession(connector=connector, **options)


async def connect(target: Target, protocol: type[AnyProtocol]) -> AnyProtocol:
    """Connect an asyncio protocol to the server."""
    name, _, port = target.url.partition("://")[2].partition(":")
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(protocol, name, int(port), ssl=tls_context(target)))[1]


class FloorProtocol(asyncio.BufferedProtocol):
    """A connection that uses asyncio alone; losing it fails the waiting call with the reason."""

    def __init__(self) -> None:
        self.waiter: asyncio.Future[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(exc or ConnectionResetError("the server closed the connection"))


def arguments_of(
    parser: argparse.ArgumentParser, clients: Mapping[str, Any], default: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse the command line, adding the shared options; ``clients`` becomes the list of chosen names."""
    chosen = ",".join(default or clients)
    parser.add_argument("--quick", action="store_true", help="fewer calls, fewer rounds")
    parser.add_argument("--rounds", type=int, help="number of rounds")
    parser.add_argument("--clients", default=chosen, help=f"comma-separated, any of {', '.join(clients)}")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="the clients' event loop")
    parser.add_argument("--tls", action="store_true", help="call over TLS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    names = arguments.clients.split(",")
    if unknown := set(names) - set(clients):
        parser.error(f"unknown client: {', '.join(sorted(unknown))}")
    arguments.clients = [name for name in clients if name in names]
    return arguments


def report_of(
    arguments: argparse.Namespace, max_in_flight: int, rounds: int, run: Callable[[Target], Awaitable[Any]]
) -> dict[str, Any]:
    """Start the server, run the clients on their core, and return the report."""
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        del os.environ[variable]
    raise_descriptor_limit()
    report = {"environment": environment(), "loop": arguments.loop, "tls": arguments.tls, "rounds": rounds}
    factory = None
    if arguments.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    available = cores()

    async def results(target: Target) -> Any:
        return await run(target)

    with (
        running(core=available[-1], tls=arguments.tls) as (url, certificate),
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        stay_on(available[0])
        report["results"] = runner.run(results(Target(url, certificate, max_in_flight)))
    return report


async def take_turns(
    rounds: int, points: Sequence[Point], names: Sequence[str], sample: Callable[[Point, str], Awaitable[Any]]
) -> list[dict[str, list[Any]]]:
    """Take every client's samples at every point; each round begins with another client."""
    taken: list[dict[str, list[Any]]] = [{name: [] for name in names} for _ in points]
    for number in range(rounds):
        turn = number % len(names)
        for point, samples in zip(points, taken, strict=True):
            for name in (*names[turn:], *names[:turn]):
                samples[name].append(await sample(point, name))
    return taken


async def seconds_and_cpu(work: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Measure a piece of work, including the collection of the garbage that it leaves, but no other.

    Under compare.py it waits for this process's turn, so that two checkouts alternate sample by sample.
    """
    gc.collect()
    gc.freeze()
    with turn():
        start, start_cpu = time.perf_counter(), time.process_time()
        await work()
        gc.collect()
        return time.perf_counter() - start, time.process_time() - start_cpu


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Wait for the byte that the process before this one in the ring passes on; pass it on behind the block.

    A process that has ended has closed its pipe, which reads as its byte.
    """
    if TURNS_VARIABLE not in os.environ:
        yield
        return
    mine, following = (int(descriptor) for descriptor in os.environ[TURNS_VARIABLE].split(","))
    os.read(mine, 1)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(following, b".")


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(mine / yours for mine, yours in zip(ours, theirs, strict=True))


@contextlib.asynccontextmanager
async def opened(factories: Mapping[str, Any], names: Sequence[str], target: Target) -> AsyncIterator[dict[str, Any]]:
    """Open the chosen clients; yields them by name."""
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(factories[name](target)) for name in names}
