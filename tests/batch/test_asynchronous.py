"""Jobs through an asynchronous endpoint: answers out of a real S3, and none paid for twice."""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client, ParamValidationError
from aiosmrt.batch import ANY_ANSWER, Report, score
from aiosmrt.batch.asynchronous import JobsUnderWay, Place, jobs_file
from aiosmrt.endpoint import Endpoint, JobHandle
from aiosmrt.errors import BatchOutputError, BatchStoppedError, ObjectStoreError
from aiosmrt.local import (
    AsyncInferenceConfig,
    ContainerFailure,
    EndpointConfiguration,
    Invocation,
    LocalRuntime,
    ObjectServer,
    ObjectStorage,
    ProductionVariant,
    faults,
)
from aiosmrt.serializers import JSON
from tests.support.command_line import PROGRAM, environment, started, unless_ended
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import local_runtime
from tests.support.scoring import doubled, files_that_end_at, lines_of, write_rows
from tests.support.seaweed import OWNER, s3_client


class Model:
    """Doubles the n of rows, alone or in lists, and refuses negative ones.

    Attributes:
        calls: what it was sent.
        gate: lets answers go.
        holds: the n of rows whose answers wait for the gate. If None, those of all.
    """

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.holds: set[int] | None = None
        self.arrived = asyncio.Condition()

    async def __call__(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        body = json.loads(invocation.body)
        self.calls.append(body)
        async with self.arrived:
            self.arrived.notify_all()
        rows = body if isinstance(body, list) else [body]
        if self.holds is None or any(row["n"] in self.holds for row in rows):
            await self.gate.wait()
        if any(row["n"] < 0 for row in rows):
            raise ContainerFailure(400, "negative")
        values = [2 * row["n"] for row in rows]
        answer = values if isinstance(body, list) else values[0]
        return json.dumps(answer).encode(), {"Content-Type": "application/json"}

    async def has(self, calls: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.calls) >= calls)

    def rows(self) -> list[int]:
        """The n of all rows that it was sent, as often as it was."""
        return sorted(row["n"] for body in self.calls for row in (body if isinstance(body, list) else [body]))


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def runtime(
    model: Model, object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LocalRuntime]:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_server.url)
    # Short polls: the pauses have their own tests.
    monkeypatch.setattr("aiosmrt.endpoint.jobs.next_pause", lambda pause: 0.02)
    storage = ObjectStorage(endpoint_url=object_server.url, credentials=OWNER, buckets=[bucket], region="us-east-1")
    config = AsyncInferenceConfig(
        f"s3://{bucket}/out", f"s3://{bucket}/failed", max_concurrent_invocations_per_instance=100
    )
    endpoints = {"queued": EndpointConfiguration(variants=[ProductionVariant(model)], async_inference=config)}
    async with local_runtime(endpoints, object_storage=storage) as running:
        yield running


@pytest.fixture
async def client(runtime: LocalRuntime) -> AsyncIterator[Client]:
    async with Client(endpoint_url=runtime.url, max_concurrency=8, **CLIENT_ARGUMENTS) as client:
        yield client


@pytest.fixture
def endpoint(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("queued", serializer=JSON, deserializer=ANY_ANSWER)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.mark.parametrize("rows_per_request", [1, 7])
async def test_answers_come_out_of_s3(
    endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path, rows_per_request: int
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    report = await score(endpoint, rows, out, asynchronous=True, rows_per_request=rows_per_request)
    assert (report.scored, report.failed, report.finished) == (40, 0, True)
    assert lines_of(out) == doubled(40)
    assert model.rows() == list(range(40))
    assert len(model.calls) == (40 if rows_per_request == 1 else 6)
    assert not jobs_file(out).exists()


async def test_bad_rows_fail_alone(endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"n": {-1 if n == 5 else n}}}\n' for n in range(16)) + "{\n")
    report = await score(endpoint, rows, out, asynchronous=True, rows_per_request=16)
    assert (report.scored, report.failed) == (15, 2)
    assert lines_of(out) == [line for line in doubled(16) if line["index"] != 5]
    failed, unread = lines_of(out.with_name("out.jsonl.errors.jsonl"))
    assert (failed["index"], failed["error"]) == (5, "JobFailedError")
    assert (unread["index"], unread["error"]) == (16, "SerializationError")
    assert len(model.calls) == 1 + 2 * 4


async def stopped(endpoint: Endpoint[Any, Any], model: Model, rows: Path, out: Path, jobs: int, **more: Any) -> Report:
    """A job that is stopped while so many of its jobs are under way."""
    model.gate.clear()
    stop = asyncio.Event()
    job = asyncio.create_task(score(endpoint, rows, out, asynchronous=True, stop=stop, drain=0.01, **more))
    await model.has(jobs)
    # A job is noted once its answer has been read, which may be after the model has got it.
    while jobs_file(out).read_bytes().count(b"\n") < jobs + 1:
        await asyncio.sleep(0.001)
    stop.set()
    report = await job
    model.gate.set()
    return report


@pytest.mark.parametrize("rows_per_request", [1, 3])
async def test_jobs_under_way_are_picked_up_and_not_paid_for_twice(
    endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path, rows_per_request: int
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    report = await stopped(endpoint, model, rows, out, 8, rows_per_request=rows_per_request)
    assert (report.finished, report.rows) == (False, 0)
    assert len(model.calls) == 8
    # With another number of rows for those that are new.
    report = await score(endpoint, rows, out, asynchronous=True, rows_per_request=min(rows_per_request, 2))
    assert lines_of(out) == doubled(40)
    assert model.rows() == list(range(40))
    assert not jobs_file(out).exists()


async def test_a_job_whose_rows_are_partly_done_is_picked_up_for_the_others(
    endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path
) -> None:
    """As after a kill between two writes: the answer's values still go to their rows."""
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    await stopped(endpoint, model, rows, out, 2, rows_per_request=6)
    # Answers to some rows of both jobs are in the output.
    noted = jobs_file(out).read_bytes()
    await score(endpoint, rows, out, asynchronous=True, rows_per_request=6, limit=2)
    assert lines_of(out) == doubled(2)
    jobs_file(out).write_bytes(noted)
    report = await score(endpoint, rows, out, asynchronous=True, rows_per_request=6)
    assert report.resumed == 2
    assert lines_of(out) == doubled(12)
    assert len(model.calls) == 2


async def test_failed_rows_are_sent_again_on_request(
    endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"n": 1}\n{"n": -1}\n{"n": -2}\n')
    await score(endpoint, rows, out, asynchronous=True)
    assert len(model.calls) == 3
    report = await score(endpoint, rows, out, asynchronous=True, retry_failed=True)
    assert (report.scored, report.failed) == (1, 2)
    assert len(model.calls) == 5
    await score(endpoint, rows, out, asynchronous=True)
    assert len(model.calls) == 5


async def test_fresh_forgets_the_jobs_under_way(
    endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    await stopped(endpoint, model, rows, out, 4)
    await score(endpoint, rows, out, asynchronous=True, fresh=True)
    assert lines_of(out) == doubled(4)
    assert model.rows() == sorted([*range(4), *range(4)])


async def test_large_bodies_go_through_s3(
    client: Client, model: Model, object_server: ObjectServer, bucket: str, tmp_path: Path, out: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"n": {n}, "pad": "{"x" * 50_000}"}}\n' for n in range(6)))
    plain = client.endpoint("queued", serializer=JSON, deserializer=ANY_ANSWER)
    await score(plain, rows, out, asynchronous=True, rows_per_request=None)
    # Two rows fit into a request.
    assert [len(body) for body in model.calls] == [2, 2, 2]
    model.calls.clear()
    uploading = client.endpoint("queued", serializer=JSON, deserializer=ANY_ANSWER, upload_to=f"s3://{bucket}/in")
    await score(uploading, rows, out, asynchronous=True, rows_per_request=None, fresh=True)
    assert [len(body) for body in model.calls] == [6]
    assert lines_of(out) == doubled(6)
    keys = s3_client(object_server.url).list_objects_v2(Bucket=bucket, Prefix="in/")["Contents"]
    assert len(keys) == 1


async def test_a_store_that_refuses_stops_the_job_and_fails_no_row(
    endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    # Of another account: nothing there may be read.
    monkeypatch.setattr("aiosmrt.endpoint.jobs._output_location", lambda response: "s3://no-such-bucket/key")
    with pytest.raises(BatchStoppedError) as caught:
        await score(endpoint, rows, out, asynchronous=True)
    assert isinstance(caught.value.__cause__, ObjectStoreError)
    assert not out.with_name("out.jsonl.errors.jsonl").exists()
    assert len(model.calls) <= 9


@pytest.mark.parametrize("rows_per_request", [1, 2])
async def test_a_file_of_jobs_that_cannot_grow_ends_the_job_and_fails_no_row(
    endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path, rows_per_request: int
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 100)
    with files_that_end_at(8000), pytest.raises(BatchOutputError, match=r"cannot write .*\.jobs: File too large"):
        await score(endpoint, rows, out, asynchronous=True, rows_per_request=rows_per_request)
    assert model.calls
    report = await score(endpoint, rows, out, asynchronous=True, rows_per_request=rows_per_request)
    assert (report.scored, report.failed) == (100, 0)
    assert lines_of(out) == doubled(100)


async def test_custom_ids_are_inference_ids(endpoint: Endpoint[Any, Any], tmp_path: Path, out: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"custom_id": "row-7", "method": "POST", "url": "/v1/x", "body": {"n": 4}}\n')
    await score(endpoint, rows, out, asynchronous=True, input_format="openai-batch", output_format="openai-batch")
    (line,) = lines_of(out)
    assert line["custom_id"] == "row-7"
    assert line["response"]["body"] == 8
    assert line["response"]["request_id"] == "row-7"


async def test_members_that_the_operation_does_not_accept(client: Client, tmp_path: Path, out: Path) -> None:
    endpoint = client.endpoint("queued", serializer=JSON, deserializer=JSON, target_variant="blue")
    with pytest.raises(ParamValidationError, match="does not accept target_variant"):
        await score(endpoint, write_rows(tmp_path / "rows.jsonl", 1), out, asynchronous=True)
    assert not out.exists()


async def test_progress_counts_jobs(endpoint: Endpoint[Any, Any], tmp_path: Path, out: Path) -> None:
    seen: list[int] = []
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    await score(
        endpoint,
        rows,
        out,
        asynchronous=True,
        on_progress=lambda progress: seen.append(progress.in_flight),
        progress_interval=0.005,
    )
    assert 0 < max(seen) <= 8


@pytest.fixture
def command(runtime: LocalRuntime, object_server: ObjectServer, tmp_path: Path) -> Callable[[], Any]:
    """Starts ``aiosmrt score`` with 24 rows, two a request, four requests at a time."""
    rows = write_rows(tmp_path / "rows.jsonl", 24)
    arguments = (*PROGRAM, "score", str(rows), "--endpoint-name", "queued", "--output", "out.jsonl", "--asynchronous")
    arguments += ("--max-concurrency", "4", "--rows-per-request", "2", "--quiet")
    env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url, AWS_ENDPOINT_URL_S3=object_server.url)
    return lambda: started(*arguments, env=env, cwd=tmp_path)


async def kill_once_noted(command: Callable[[], Any], model: Model, out: Path, jobs: int) -> None:
    """Kill the command once the model has four requests, of which so many are noted."""
    model.gate.clear()
    async with command() as process:
        await unless_ended(process, model.has(4))
        while not jobs_file(out).exists() or jobs_file(out).read_bytes().count(b'"handle"') < jobs:
            assert process.returncode is None
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
    # They end while no process waits for them.
    model.gate.set()


@pytest.mark.timeout(300)
async def test_a_command_that_is_killed_pays_for_no_job_twice(
    command: Callable[[], Any], model: Model, out: Path
) -> None:
    await kill_once_noted(command, model, out, jobs=4)
    async with command() as process:
        assert await process.wait() == 0
    assert lines_of(out) == doubled(24)
    assert model.rows() == list(range(24))


@pytest.mark.timeout(300)
async def test_what_was_accepted_unheard_is_found_and_not_paid_for_twice(
    runtime: LocalRuntime, command: Callable[[], Any], model: Model, out: Path
) -> None:
    """The acceptance of two jobs of four does not reach the process that is killed."""
    runtime.inject("queued", faults.StallInBody().every(2))
    await kill_once_noted(command, model, out, jobs=2)
    runtime.clear_faults()
    runtime.release_stalled()
    async with command() as process:
        assert await process.wait() == 0
    assert lines_of(out) == doubled(24)
    assert model.rows() == list(range(24))


async def cancelled(endpoint: Endpoint[Any, Any], rows: Path, out: Path, requests: int, **more: Any) -> None:
    """A job that is cancelled once so many requests are noted and half of them accepted."""
    job = asyncio.create_task(score(endpoint, rows, out, asynchronous=True, **more))
    path = jobs_file(out)
    while not path.exists() or [path.read_bytes().count(name) for name in (b'"name"', b'"handle"')] != [
        requests,
        requests // 2,
    ]:
        await asyncio.sleep(0.01)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_what_was_not_accepted_is_sent_again(
    runtime: LocalRuntime,
    endpoint: Endpoint[Any, Any],
    model: Model,
    tmp_path: Path,
    out: Path,
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 30)
    model.gate.clear()
    runtime.inject("queued", faults.Stall().every(2))
    await cancelled(endpoint, rows, out, 8)
    runtime.clear_faults()
    model.gate.set()
    report = await score(endpoint, rows, out, asynchronous=True, doubt=0)
    assert (report.scored, report.failed) == (30, 0)
    assert lines_of(out) == doubled(30)
    assert model.rows() == list(range(30))
    assert not jobs_file(out).exists()


@pytest.mark.parametrize("names_answers", [True, False])
async def test_what_was_accepted_unheard_and_cannot_be_used_is_sent_again(
    runtime: LocalRuntime,
    endpoint: Endpoint[Any, Any],
    model: Model,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    names_answers: bool,
) -> None:
    """It failed, or the service does not give answers the names that they should have."""
    if not names_answers:
        monkeypatch.setattr("aiosmrt.batch.asynchronous.Place.of", lambda name, handle: None)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"n": {-7 if number == 1 else number}}}\n' for number in range(8)))
    runtime.inject("queued", faults.StallInBody().every(2))
    model.gate.clear()
    await cancelled(endpoint, rows, out, 8)
    runtime.clear_faults()
    runtime.release_stalled()
    model.gate.set()
    report = await score(endpoint, rows, out, asynchronous=True)
    assert (report.scored, report.failed) == (7, 1)
    assert lines_of(out) == [line for line in doubled(8) if line["index"] != 1]
    assert model.rows().count(-7) == 2
    assert len(model.calls) == 8 + (1 if names_answers else 4)


async def test_what_is_in_doubt_is_found_for_the_first_of_its_rows(
    runtime: LocalRuntime, endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path
) -> None:
    """A smaller limit leaves rows of a request out, whose answer is to all of them."""
    rows = write_rows(tmp_path / "rows.jsonl", 16)
    runtime.inject("queued", faults.StallInBody().every(2))
    model.gate.clear()
    await cancelled(endpoint, rows, out, 4, rows_per_request=4)
    runtime.clear_faults()
    runtime.release_stalled()
    model.gate.set()
    for limit in (6, None):
        report = await score(endpoint, rows, out, asynchronous=True, rows_per_request=4, limit=limit)
        assert report.failed == 0
    assert lines_of(out) == doubled(16)
    assert model.rows() == list(range(16))


async def test_what_was_accepted_unheard_before_it_was_refused_is_found(
    runtime: LocalRuntime, endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path
) -> None:
    """The first request of the second row's call is accepted, but its connection breaks; the next one is refused."""
    runtime.inject("queued", faults.Truncate().every(2), faults.validation_failure("not this one").every(3))
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    report = await score(endpoint, rows, out, asynchronous=True, max_concurrency=1, doubt=math.inf)
    assert (report.scored, report.failed) == (2, 0)
    assert lines_of(out) == doubled(2)
    assert model.rows() == [0, 1]
    assert len(runtime.requests) == 3
    assert not jobs_file(out).exists()


@pytest.mark.parametrize("gives_up", [True, False])
async def test_what_was_perhaps_accepted_fails_once_it_was_looked_for(
    runtime: LocalRuntime, endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path, gives_up: bool
) -> None:
    """Or, if the run ends before, it is found by the next one."""
    model.holds = {1}
    model.gate.clear()
    runtime.inject("queued", faults.Truncate().every(2), faults.validation_failure("not this one").every(3))
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    doubt = 0.0 if gives_up else math.inf
    job = asyncio.create_task(score(endpoint, rows, out, asynchronous=True, max_concurrency=1, doubt=doubt))
    while len(runtime.requests) < 3:
        await asyncio.sleep(0.001)
    if gives_up:
        report = await job
        assert (report.scored, report.failed) == (1, 1)
        (failed,) = lines_of(out.with_name("out.jsonl.errors.jsonl"))
        assert (failed["error"], failed["attempts"]) == ("ValidationError", 2)
    else:
        await asyncio.wait([job], timeout=0.2)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        runtime.clear_faults()
        model.gate.set()
        report = await score(endpoint, rows, out, asynchronous=True, doubt=math.inf)
        assert (report.scored, report.failed) == (2, 0)
    model.gate.set()
    assert model.rows() == [0, 1]
    assert not jobs_file(out).exists()


async def test_a_request_that_was_not_sent_is_not_in_doubt(
    runtime: LocalRuntime, client: Client, endpoint: Endpoint[Any, Any], model: Model, tmp_path: Path, out: Path
) -> None:
    """The run is cancelled while a call waits, all of whose requests were refused."""
    runtime.inject("queued", faults.throttling())
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    job = asyncio.create_task(score(endpoint, rows, out, asynchronous=True))
    # Refused, and no request is under way.
    while not client.statistics().attempts or client.statistics().in_use:
        await asyncio.sleep(0.001)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not jobs_file(out).exists()
    assert model.calls == []


async def test_a_refused_request_is_not_in_doubt(
    client: Client, runtime: LocalRuntime, tmp_path: Path, out: Path
) -> None:
    missing = client.endpoint("missing", serializer=JSON, deserializer=ANY_ANSWER)
    with pytest.raises(BatchStoppedError):
        await score(missing, write_rows(tmp_path / "rows.jsonl", 30), out, asynchronous=True)
    assert not jobs_file(out).exists()


# The file


HANDLE = JobHandle("queued", "42", "s3://bucket/out/42", None, None, 1.5, 2.5)


def under_way(path: Path, done: set[int] | None = None, **more: Any) -> JobsUnderWay:
    arguments: dict[str, Any] = {"fresh": False, "is_done": (done or set()).__contains__, **more}
    return JobsUnderWay(path, {"about": 1}, **arguments)


def jobs_in(path: Path, done: set[int] | None = None) -> dict[int, tuple[list[int], Any]]:
    jobs = under_way(path, done)
    found = {row: jobs.handle_of(job) for row in range(20) if (job := jobs.job_of(row)) is not None}
    jobs.close()
    return found


def test_the_last_job_of_a_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    jobs = under_way(path)
    jobs.record([0, 1, 2, 3], HANDLE)
    jobs.record([0, 1], HANDLE._replace(inference_id="43"))
    jobs.record([9], HANDLE)
    jobs.end([], [9])
    jobs.end([3], [])
    jobs.sync()
    jobs.close()
    found = jobs_in(path, {3})
    assert {row: (rows, handle.inference_id) for row, (rows, handle) in found.items()} == {
        0: ([0, 1], "43"),
        1: ([0, 1], "43"),
        2: ([0, 1, 2, 3], "42"),
    }
    assert found[2][1] == HANDLE


def test_torn_lines_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    jobs = under_way(path)
    jobs.record([0], HANDLE)
    jobs.record([1], HANDLE)
    jobs.close()
    whole = path.read_bytes()
    second = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for end in range(second, len(whole)):
        path.write_bytes(whole[:end])
        assert set(jobs_in(path)) == {0}
    path.write_bytes(whole)
    assert set(jobs_in(path)) == {0, 1}


def test_a_request_in_doubt_is_kept_with_the_place_of_answers(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    jobs = under_way(path)
    jobs.intend([0], "aa.out")
    jobs.intend([1, 2], "bb.out")
    jobs.intend([3], "cc.out")
    jobs.record(
        [0], HANDLE._replace(output_location="s3://b/out/aa.out", failure_location="s3://b/aa-error.out"), "aa.out"
    )
    jobs.withdraw([3])
    jobs.end([0], [])
    jobs.close()
    for _ in range(2):
        # Reading rewrites it.
        reopened = under_way(path, {0})
        assert [reopened.job_of(row) is None for row in range(4)] == [True, False, False, True]
        job = reopened.job_of(1)
        assert job is not None
        assert reopened.is_in_doubt(job)
        assert reopened.handle_of(job) == ([1, 2], "bb.out")
        (place,) = reopened.places
        assert place.at("bb.out") == ("s3://b/out/bb.out", "s3://b/bb-error.out")
        reopened.close()


def test_places_are_kept_when_answers_go_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    jobs = under_way(path)
    jobs.intend([0], "in-doubt.out")
    for number, folder in enumerate("aabbaacdefg"):
        name = f"{number}x.out"
        at = f"s3://b/{folder}/"
        jobs.record([1], HANDLE._replace(output_location=f"{at}{name}", failure_location=f"{at}failed/{name}"), name)
        latest = jobs.places[0].at("in-doubt.out")
        assert latest == (f"{at}in-doubt.out", f"{at}failed/in-doubt.out")
    jobs.close()
    reopened = under_way(path)
    assert [place.at("y")[0] for place in reopened.places] == [f"s3://b/{folder}/y.out" for folder in "gfed"]
    reopened.close()


def test_a_file_that_is_renamed_survives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is on the disk before its name is, and so is the name then."""
    told: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def renamed(path: Path, target: Path) -> Path:
        told.append(f"{path.name} is {target.name}")
        return replace(path, target)

    def synced(descriptor: int) -> None:
        told.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    under_way(tmp_path / "jobs").close()
    assert told == ["jobs.new", "jobs.new is jobs", tmp_path.name]


@pytest.mark.parametrize(
    ("answer", "failure", "found"),
    [
        ("s3://b/aa.out", None, ("s3://b/cc.out", None)),
        ("s3://b/x/aa.out", "s3://b/f/other.out", ("s3://b/x/cc.out", None)),
        ("s3://b/x/aa.out", "s3://c/aa.out", ("s3://b/x/cc.out", "s3://c/cc.out")),
        ("s3://b/x/42.out", "s3://b/f/aa.out", None),
    ],
)
def test_the_place_of_answers(answer: str, failure: str | None, found: tuple[str, str | None] | None) -> None:
    place = Place.of("aa.out", HANDLE._replace(output_location=answer, failure_location=failure))
    assert (place and place.at("cc.out")) == found


def test_another_jobs_file_is_started_over(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    jobs = under_way(path)
    jobs.record([0], HANDLE)
    jobs.close()
    other = JobsUnderWay(path, {"about": 2}, fresh=False, is_done=lambda row: False)
    assert len(other) == 0
    other.close()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"mine\n", b"\n", b'12345678 {"key": "x"}\n'])
def test_a_file_in_place_of_the_jobs_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs"
    path.write_bytes(content)
    with pytest.raises(BatchOutputError, match="jobs is not a job's"):
        under_way(path)
    assert path.read_bytes() == content
    under_way(path, fresh=True).close()


def test_a_line_that_is_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    jobs = under_way(path)
    jobs.record([0], HANDLE)
    with files_that_end_at(path.stat().st_size + 20), pytest.raises(BatchOutputError, match="File too large"):
        jobs.record([1], HANDLE)
    jobs.record([2], HANDLE)
    jobs.close()
    assert set(jobs_in(path)) == {0, 2}


def test_a_sync_without_a_free_descriptor_is_reported_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = under_way(tmp_path / "jobs")
    jobs.record([0], HANDLE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(BatchOutputError, match=r"cannot write .*jobs: Too many open files"):
            jobs.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    jobs.sync()
    jobs.sync()
    assert len(synced) == 1
    jobs.close()


def test_the_file_does_not_grow_with_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosmrt.batch.asynchronous._REWRITE_BYTES", 4000)
    path = tmp_path / "jobs"
    jobs = under_way(path)
    largest = 0
    for row in range(500):
        jobs.record([row], HANDLE)
        if row >= 3:
            jobs.end([row - 3], [])
        largest = max(largest, path.stat().st_size)
    jobs.sync()
    jobs.close()
    assert largest < 5000
    assert list(tmp_path.iterdir()) == [path]
    reopened = under_way(path, set(range(497)))
    assert [row for row in range(500) if reopened.job_of(row) is not None] == [497, 498, 499]
    reopened.close()
