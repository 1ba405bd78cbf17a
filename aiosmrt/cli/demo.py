"""``aiosmrt demo``: classify real input through a local SageMaker Runtime.

A model container (`aiosmrt.cli.digits`) runs in a separate process behind a `LocalRuntime`, which throttles some of the
requests. All of scikit-learn's 1,797 digits are classified: with one call per row, concurrently under the client's
limiter; with a single call whose response is streamed; as an asynchronous inference, with input and output in a real S3
server; and as a file, by ``aiosmrt score``, which is killed half way and resumes. Each prediction is compared with the
true label, and a failed call ends the demo with an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiosmrt.client import Client, ClientStatistics
from aiosmrt.config import RetryPolicy
from aiosmrt.errors import AiosmrtError, ConfigurationError
from aiosmrt.events import AttemptEnded, Event

if TYPE_CHECKING:
    from aiosmrt.endpoint import Endpoint

__all__ = ["demo"]

ENDPOINT = "digits"
QUEUED_ENDPOINT = "digits-queued"  # as in the service, an asynchronous endpoint takes no other calls
REGION = "us-east-1"
BUCKET = "demo"
# The inference takes about a second.
JOB_SECONDS = 60.0
# Only used between the client and the runtime of the demo.
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE", "not-a-real-secret"
# How many rows of the file are scored when the process is killed.
KILLED_AFTER = 600
# The probability that all attempts of a call are throttled is 0.02**8.
MAX_ATTEMPTS = 8


@dataclass(slots=True)
class Scores:
    """The results of one call per row."""

    labels: list[int]
    seconds: float
    latencies: list[float]
    statistics: ClientStatistics


@dataclass(slots=True)
class StreamedScores:
    """The results of the streamed call."""

    labels: list[int]
    first_seconds: float
    seconds: float


@dataclass(slots=True)
class QueuedScores:
    """The results of the asynchronous inference."""

    labels: list[int]
    output_location: str
    seconds: float


@dataclass(slots=True)
class FileScores:
    """The results of the file."""

    labels: list[int]
    killed_after: int
    seconds: float
    page: Path | None


@click.command(short_help="Classify 1,797 handwritten digits through a local SageMaker Runtime.")
@click.option(
    "--max-concurrency", type=click.IntRange(1), default=32, show_default=True, metavar="N", help="Calls in flight."
)
@click.option(
    "--throttle-every",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    metavar="N",
    help="Throttle every N-th request; 0 for none.",
)
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="Keep the report page of the file's job."
)
def demo(max_concurrency: int, throttle_every: int, report: Path | None) -> None:
    """Classify 1,797 handwritten digits through a local SageMaker Runtime."""
    try:
        import rich  # noqa: F401
        import sklearn  # noqa: F401 - for the container's process
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; run: pip install 'aiosmrt[demo]'") from None
    _isolate_environment()
    asyncio.run(_demo(max_concurrency, throttle_every, report))


def _isolate_environment() -> None:
    """Remove AWS settings and proxies, as the demo only calls servers that it starts."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "all_proxy"):
            del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


async def _demo(max_concurrency: int, throttle_every: int, page: Path | None) -> None:
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
    from aiosmrt.serializers import JSON, TEXT

    console = Console()
    key = Credentials(ACCESS_KEY, SECRET_KEY)
    faults = {ENDPOINT: throttling().every(throttle_every, operation="InvokeEndpoint")} if throttle_every else {}
    container = ModelContainer([sys.executable, "-m", "aiosmrt.cli.digits"])
    async with AsyncExitStack() as stack:
        with console.status("starting an S3 server, training the model and starting its container"):
            loading = asyncio.ensure_future(asyncio.to_thread(digits))
            s3 = await stack.enter_async_context(ObjectServer(key, buckets=[BUCKET]))
            queued_endpoint = EndpointConfiguration(
                [ProductionVariant(container)],
                async_inference=AsyncInferenceConfig(f"s3://{BUCKET}/out", f"s3://{BUCKET}/failed"),
            )
            runtime = await stack.enter_async_context(
                LocalRuntime(
                    {ENDPOINT: container, QUEUED_ENDPOINT: queued_endpoint},
                    credentials=key,
                    region=REGION,
                    faults=faults,
                    object_storage=ObjectStorage(endpoint_url=s3.url, credentials=key, buckets=[BUCKET]),
                )
            )
            images, expected = await loading
        console.print(f"SageMaker Runtime on {runtime.url}, model container on {container.url}", soft_wrap=True)
        rows = [",".join(f"{pixel:g}" for pixel in image) for image in images]
        latencies: list[float] = []

        def record_latency(event: Event) -> None:
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
            observers=(record_latency,),
        ) as client:
            scores = await _score(client, rows, latencies, console)
            streaming, queueing = (
                client.endpoint(
                    name,
                    serializer=TEXT,
                    deserializer=JSON,
                    content_type="text/csv",
                    upload_to=f"s3://{BUCKET}/in",
                )
                for name in (ENDPOINT, QUEUED_ENDPOINT)
            )
            streamed = await _stream(streaming, rows, console)
            queued = await _submit(queueing, rows, console)
        filed = await _score_file(runtime.url, rows, page, console)
    for what, found in (("streamed", streamed.labels), ("asynchronous", queued.labels), ("file's", filed.labels)):
        if found != scores.labels:
            raise AiosmrtError(f"the {what} labels differ from those of the single calls")
    _report(console, scores, streamed, queued, filed, [int(label) for label in expected])


async def _score(client: Client, rows: list[str], latencies: list[float], console: Any) -> Scores:
    """Classify each row with its own call."""
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
            raise failures.exceptions[0] from None  # The first failure is enough.
        seconds = time.perf_counter() - began
    return Scores(labels, seconds, latencies, client.statistics())


async def _stream(endpoint: Endpoint[str, Any], rows: list[str], console: Any) -> StreamedScores:
    """Classify all rows in one call, and read its response value by value."""
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
    """Classify all rows with one asynchronous inference, whose input is uploaded to S3."""
    began = time.perf_counter()
    with console.status("asynchronous inference"):
        job = await endpoint.submit("\n".join(rows))
        result = await job.result(timeout=JOB_SECONDS, cleanup=True)
    return QueuedScores(result["predictions"], job.handle.output_location, time.perf_counter() - began)


async def _score_file(url: str, rows: list[str], page: Path | None, console: Any) -> FileScores:
    """Classify the rows of a file with the command line, in a process that is killed half way and started again."""
    with tempfile.TemporaryDirectory(prefix="aiosmrt-demo-") as name, console.status("aiosmrt score"):
        folder = Path(name)
        source, out = folder / "digits.csv", folder / "labels.jsonl"
        await asyncio.to_thread(source.write_text, "\n".join(rows))
        arguments = [str(source), "--no-header", "--endpoint-name", ENDPOINT, "--output", str(out), "--quiet"]
        arguments += ["--report", str(folder / "report.html" if page is None else page)]
        secrets = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": REGION}
        env = {**os.environ, **secrets, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url}
        command = (sys.executable, "-m", "aiosmrt.cli", "score", *arguments)

        def lines() -> int:
            return out.read_bytes().count(b"\n") if out.exists() else 0

        began = time.perf_counter()
        # Few calls at a time, to be killed half way.
        process = await asyncio.create_subprocess_exec(*command, "--max-concurrency", "4", env=env)
        try:
            # How far another process is can only be seen in its file.
            while (killed_after := await asyncio.to_thread(lines)) < KILLED_AFTER and process.returncode is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        process = await asyncio.create_subprocess_exec(*command, env=env)
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        seconds = time.perf_counter() - began
        if code:
            raise AiosmrtError(f"aiosmrt score ended with status {code}")
        records = [json.loads(line) for line in (await asyncio.to_thread(out.read_text)).splitlines()]
    labels = [record["value"]["predictions"][0] for record in records]
    return FileScores(labels, killed_after, seconds, page)


def _report(
    console: Any,
    scores: Scores,
    streamed: StreamedScores,
    queued: QueuedScores,
    filed: FileScores,
    expected: list[int],
) -> None:
    from rich.table import Table

    from aiosmrt.cli.digits import TRAINING_ROWS

    held_out = len(expected) - TRAINING_ROWS
    p50, p95, p99 = (1000 * _percentile(scores.latencies, share) for share in (50, 95, 99))
    retries = ", ".join(f"{count} after {cause}" for cause, count in scores.statistics.retries.items() if count)
    table = Table(
        title="Handwritten digits through invoke_endpoint",
        caption=f"The model was trained on the first {TRAINING_ROWS} rows; the other {held_out} are unseen. "
        "Latency is that of successful requests, without back-off.",
        show_header=False,
    )
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("rows", f"{len(expected):,}")
    table.add_row("accuracy, all rows", f"{_accuracy(scores.labels, expected):.2%}")
    table.add_row(
        f"accuracy, {held_out} unseen rows",
        f"{_accuracy(scores.labels[TRAINING_ROWS:], expected[TRAINING_ROWS:]):.2%}",
    )
    table.add_row("calls/s", f"{len(expected) / scores.seconds:,.0f}")
    table.add_row("latency p50 / p95 / p99", f"{p50:.1f} / {p95:.1f} / {p99:.1f} ms")
    table.add_row("retries", retries or "0")
    table.add_row(
        "streamed in one call",
        f"{len(streamed.labels):,} rows\n"
        f"first after {1000 * streamed.first_seconds:.0f} ms, last after {1000 * streamed.seconds:.0f} ms",
    )
    table.add_row(
        "asynchronous inference",
        f"{len(queued.labels):,} rows through S3\nresult after {1000 * queued.seconds:.0f} ms",
    )
    table.add_row(
        "a file, by aiosmrt score",
        f"{len(filed.labels):,} rows in {filed.seconds:.1f} s\n"
        f"killed after {filed.killed_after:,}, resumed, none lost or twice"
        + ("" if filed.page is None else f"\nreport: {filed.page}"),
    )
    console.print(table)


def _accuracy(labels: list[int], expected: list[int]) -> float:
    return sum(label == true for label, true in zip(labels, expected, strict=True)) / len(expected)


def _percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]
