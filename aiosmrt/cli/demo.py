"""``aiosmrt demo``: the main job on real input, against a local SageMaker Runtime.

A model container (`aiosmrt.cli.digits`) runs in a process of its own behind a `LocalRuntime`, which throttles every
so many requests on purpose. All of scikit-learn's 1,797 digits are classified, a call each, concurrently under the
client's limiter; then once more in a single call whose answer is streamed, and once as an asynchronous inference, whose
input and answer go through a real S3 server. Nothing is taken on trust: each prediction is compared with the true
label, and a call that fails ends the demonstration with an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import click

from aiosmrt.client import Client, ClientStatistics
from aiosmrt.config import RetryPolicy
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import AiosmrtError, ConfigurationError
from aiosmrt.events import AttemptEnded, Event
from aiosmrt.serializers import JSON, TEXT

__all__ = ["demo"]

ENDPOINT = "digits"
REGION = "us-east-1"
BUCKET = "demonstration"
# The answer takes about a second.
JOB_SECONDS = 60.0
# Both ends of the demonstration use these, and nobody else.
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE", "not-a-real-secret"
# So many that one call is practically never throttled to its end: 0.02**8 for each.
MAX_ATTEMPTS = 8


@dataclass(slots=True)
class Scores:
    """What one pass over the digits gave."""

    labels: list[int]
    seconds: float
    latencies: list[float]
    statistics: ClientStatistics


@dataclass(slots=True)
class StreamedScores:
    """The same from one streamed call."""

    labels: list[int]
    first_seconds: float
    seconds: float


@dataclass(slots=True)
class QueuedScores:
    """The same from one asynchronous inference."""

    labels: list[int]
    output_location: str
    seconds: float


@click.command
@click.option("--max-concurrency", type=click.IntRange(1), default=32, show_default=True, help="Calls in flight.")
@click.option(
    "--throttle-every",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    metavar="N",
    help="Refuse every N-th request as too many; 0 for none.",
)
def demo(max_concurrency: int, throttle_every: int) -> None:
    """Classify 1,797 handwritten digits through a local SageMaker Runtime."""
    try:
        import sklearn  # noqa: F401 - the container process needs it, and this is the time to say so
    except ModuleNotFoundError:
        raise ConfigurationError("the demonstration needs scikit-learn: pip install 'aiosmrt[demo]'") from None
    _shut_out_surroundings()
    asyncio.run(_demo(max_concurrency, throttle_every))


def _shut_out_surroundings() -> None:
    """The demonstration calls nobody but itself: no AWS setting and no proxy of this machine has a say in it."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "all_proxy"):
            del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


async def _demo(max_concurrency: int, throttle_every: int) -> None:
    from rich.console import Console

    from aiosmrt.cli.digits import digits
    from aiosmrt.local import (
        AsyncInferenceConfig,
        Credentials,
        EndpointConfiguration,
        LocalRuntime,
        ModelContainer,
        ObjectServer,
        ObjectStorage,
        ProductionVariant,
    )
    from aiosmrt.local.faults import throttling

    console = Console()
    key = Credentials(ACCESS_KEY, SECRET_KEY)
    faults = {ENDPOINT: throttling().every(throttle_every, operation="InvokeEndpoint")} if throttle_every else {}
    container = ModelContainer([sys.executable, "-m", "aiosmrt.cli.digits"])
    async with AsyncExitStack() as stack:
        with console.status("starting an S3 server, training the model and starting its container"):
            reading = asyncio.ensure_future(asyncio.to_thread(digits))
            s3 = await stack.enter_async_context(ObjectServer(key, buckets=[BUCKET]))
            endpoint = EndpointConfiguration(
                [ProductionVariant(container)],
                async_inference=AsyncInferenceConfig(f"s3://{BUCKET}/out", f"s3://{BUCKET}/failed"),
            )
            runtime = await stack.enter_async_context(
                LocalRuntime(
                    {ENDPOINT: endpoint},
                    credentials=key,
                    region=REGION,
                    faults=faults,
                    object_storage=ObjectStorage(endpoint_url=s3.url, credentials=key, buckets=[BUCKET]),
                )
            )
            images, truth = await reading
        console.print(f"SageMaker Runtime on {runtime.url}, model container on {container.url}", soft_wrap=True)
        rows = [",".join(f"{pixel:g}" for pixel in image) for image in images]
        latencies: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, AttemptEnded) and event.error is None:
                latencies.append(event.duration)

        async with Client(
            REGION,
            endpoint_url=runtime.url,
            s3_endpoint_url=s3.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            max_concurrency=max_concurrency,
            retry=RetryPolicy(max_attempts=MAX_ATTEMPTS),
            observers=(note,),
        ) as client:
            scores = await _score(client, rows, latencies, console)
            digits_endpoint = client.endpoint(
                ENDPOINT,
                serializer=TEXT,
                deserializer=JSON,
                content_type="text/csv",
                upload_to=f"s3://{BUCKET}/in",
            )
            streamed = await _stream(digits_endpoint, rows, console)
            queued = await _submit(digits_endpoint, rows, console)
    for what, found in (("streamed", streamed.labels), ("asynchronous", queued.labels)):
        if found != scores.labels:
            raise AiosmrtError(f"the {what} labels differ from those of the single calls")
    _report(console, scores, streamed, queued, [int(label) for label in truth])


async def _score(client: Client, rows: list[str], latencies: list[float], console: Any) -> Scores:
    """Classify every row with a call of its own."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    labels = [-1] * len(rows)

    async def score(index: int) -> None:
        response = await client.invoke_endpoint(
            EndpointName=ENDPOINT, Body=rows[index], ContentType="text/csv", Accept="application/json"
        )
        labels[index] = json.loads(await response["Body"].read())["predictions"][0]
        progress.advance(bar)

    with Progress(
        *Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        bar = progress.add_task("invoke_endpoint", total=len(rows))
        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as calls:
                for index in range(len(rows)):
                    calls.create_task(score(index))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # one is enough to say what is wrong
        seconds = time.perf_counter() - began
    return Scores(labels, seconds, latencies, client.statistics())


async def _stream(endpoint: Endpoint[str, Any], rows: list[str], console: Any) -> StreamedScores:
    """Classify all rows in one call, and read its answer value by value, as it comes."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    began = time.perf_counter()
    labels: list[int] = []
    first = 0.0
    with Progress(
        *Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        bar = progress.add_task("response stream", total=len(rows))
        async with endpoint.stream("\n".join(rows), accept="application/jsonlines") as stream:
            async for value in stream.json():
                first = first or time.perf_counter() - began
                labels.append(value["label"])
                progress.update(bar, completed=len(labels))
    return StreamedScores(labels, first, time.perf_counter() - began)


async def _submit(endpoint: Endpoint[str, Any], rows: list[str], console: Any) -> QueuedScores:
    """Queue all rows as one request, too large to travel with it, and wait for the answer in S3."""
    began = time.perf_counter()
    with console.status("asynchronous inference"):
        job = await endpoint.submit("\n".join(rows))
        answer = await job.result(timeout=JOB_SECONDS, cleanup=True)
    return QueuedScores(answer["predictions"], job.handle.output_location, time.perf_counter() - began)


def _report(console: Any, scores: Scores, streamed: StreamedScores, queued: QueuedScores, truth: list[int]) -> None:
    from rich.table import Table

    from aiosmrt.cli.digits import TRAINING_ROWS

    held_out = len(truth) - TRAINING_ROWS
    p50, p95, p99 = (1000 * _percentile(scores.latencies, share) for share in (50, 95, 99))
    retries = ", ".join(f"{count} after {cause}" for cause, count in scores.statistics.retries.items() if count)
    table = Table(
        title="Handwritten digits through invoke_endpoint",
        caption=f"The model was trained on the first {TRAINING_ROWS} rows and has not seen the other {held_out}. "
        "Latency is of answered requests, without back-off.",
        show_header=False,
    )
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("rows", f"{len(truth):,}")
    table.add_row("accuracy, all rows", f"{_accuracy(scores.labels, truth):.2%}")
    table.add_row(
        f"accuracy, {held_out} unseen rows", f"{_accuracy(scores.labels[TRAINING_ROWS:], truth[TRAINING_ROWS:]):.2%}"
    )
    table.add_row("calls/s", f"{len(truth) / scores.seconds:,.0f}")
    table.add_row("latency p50 / p95 / p99", f"{p50:.1f} / {p95:.1f} / {p99:.1f} ms")
    table.add_row("retries", retries or "0")
    table.add_row(
        "streamed in one call",
        f"{len(streamed.labels):,} rows\n"
        f"first after {1000 * streamed.first_seconds:.0f} ms, last after {1000 * streamed.seconds:.0f} ms",
    )
    table.add_row(
        "asynchronous inference",
        f"{len(queued.labels):,} rows through S3\nanswer after {1000 * queued.seconds:.0f} ms",
    )
    console.print(table)


def _accuracy(labels: list[int], truth: list[int]) -> float:
    return sum(label == true for label, true in zip(labels, truth, strict=True)) / len(truth)


def _percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]
