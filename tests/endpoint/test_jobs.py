"""Asynchronous inference as callers see it: a real S3, and a service that answers when the test tells it to."""

import asyncio
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.endpoint import Endpoint, Job, JobHandle
from aiosmrt.errors import (
    ClientStateError,
    ConfigurationError,
    DeadlineExceededError,
    DeserializationError,
    JobFailedError,
    JobTimeoutError,
    ObjectStoreError,
    ParamValidationError,
    ResponseStreamingError,
    ServiceError,
)
from aiosmrt.local.objectserver import ObjectServer
from aiosmrt.serializers import JSON
from tests.support.cancellation import Moment, cancel_everywhere
from tests.support.peers import CLIENT_ARGUMENTS, REGION
from tests.support.recording_server import RecordingServer, respond
from tests.support.seams import connections_in_use, s3_url_of, transport_of
from tests.support.seaweed import GUEST, GUEST_BUCKET, s3_client
from tests.support.virtual_time import VirtualTime

ROOT = Path(__file__).parents[2]


class Queue:
    """A bucket, and a service that names locations in it."""

    def __init__(self, server: RecordingServer, s3: Any, bucket: str) -> None:
        self.server = server
        self.s3 = s3
        self.bucket = bucket
        self.output = f"s3://{bucket}/out/42.out"
        self.failure = f"s3://{bucket}/fail/42.out"
        self.handle = JobHandle("documents", "42", self.output, self.failure)
        self.accept()

    def accept(self, *headers: tuple[str, str]) -> None:
        """Let the service accept all requests, with these headers besides those that name the locations."""
        places = [("X-Amzn-SageMaker-OutputLocation", self.output), ("X-Amzn-SageMaker-FailureLocation", self.failure)]
        self.server.answer = respond(202, b'{"InferenceId": "42"}', [*places, *headers])

    def succeed(self, body: bytes = b'{"answer": 1}', content_type: str = "application/json") -> None:
        self.s3.put_object(Bucket=self.bucket, Key="out/42.out", Body=body, ContentType=content_type)

    def fail(self, body: bytes = b'{"error": "the model ran out of memory"}') -> None:
        self.s3.put_object(Bucket=self.bucket, Key="fail/42.out", Body=body)

    def keys(self) -> list[str]:
        return [found["Key"] for found in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())]


@pytest.fixture
async def queue(object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Queue]:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_server.url)
    async with RecordingServer() as server:
        yield Queue(server, s3_client(object_server.url), bucket)


@pytest.fixture
async def client(queue: Queue) -> AsyncIterator[Client]:
    async with Client(**{"endpoint_url": queue.server.url, **CLIENT_ARGUMENTS}) as client:
        yield client


@pytest.fixture
def endpoint(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("documents", serializer=JSON, deserializer=JSON)


async def nothing_is_held(client: Client) -> None:
    """No slot, no connection to the endpoint, and no task.

    Connections of aiohttp's take some turns of the loop to be closed; tasks that are at work would take more.
    """
    statistics = client.statistics()
    assert (statistics.in_use, statistics.waiting) == (0, 0)
    if (transport := transport_of(client)) is not None:
        assert connections_in_use(transport) == 0
    for _ in range(100):
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        # the recording server has one for each connection
        if all("RecordingServer" in repr(task) for task in left):
            return
        await asyncio.sleep(0)
    raise AssertionError(left)


# Submitting


async def test_a_small_body_travels_with_the_request(endpoint: Endpoint[Any, Any], queue: Queue):
    job = await endpoint.submit(
        {"pages": 3}, request_ttl=60, invocation_timeout=5, filename="a.json", inference_id="42"
    )
    (request,) = queue.server.requests
    assert request.path == "/endpoints/documents/async-invocations"
    assert json.loads(request.body) == {"pages": 3}
    assert request.header("X-Amzn-SageMaker-Content-Type") == "application/json"
    assert request.header("X-Amzn-SageMaker-RequestTTLSeconds") == "60"
    assert request.header("X-Amzn-SageMaker-InvocationTimeoutSeconds") == "5"
    assert request.header("X-Amzn-SageMaker-InputLocation") is None
    assert job.handle == queue.handle
    assert job.inference_id == "42"
    assert repr(job) == "<Job 42 at documents>"
    assert queue.keys() == []


async def test_a_large_body_goes_to_s3_first(endpoint: Endpoint[Any, Any], queue: Queue):
    data = ["x" * 1000] * 200
    job = await endpoint.submit(data, upload_to=f"s3://{queue.bucket}/in/")
    (request,) = queue.server.requests
    assert request.body == b""
    assert request.header("X-Amzn-SageMaker-InputLocation") == job.handle.uploaded_to
    assert job.handle.uploaded_to is not None
    assert job.handle.uploaded_to.startswith(f"s3://{queue.bucket}/in/")
    (key,) = queue.keys()
    stored = queue.s3.get_object(Bucket=queue.bucket, Key=key)
    assert (json.loads(stored["Body"].read()), stored["ContentType"]) == (data, "application/json")


async def test_a_large_body_needs_upload_to(endpoint: Endpoint[Any, Any], queue: Queue):
    with pytest.raises(ParamValidationError, match="upload_to"):
        await endpoint.submit("x" * 130_000)
    assert not queue.server.requests
    placed = endpoint.with_options(upload_to=f"s3://{queue.bucket}/in")
    for kept in (placed, placed.with_options(inference_id="42")):
        assert (await kept.submit("x" * 130_000)).handle.uploaded_to is not None
    with pytest.raises(ParamValidationError, match="upload_to"):
        await placed.with_options(upload_to=None).submit("x" * 130_000)


async def test_an_existing_body(endpoint: Endpoint[Any, Any], queue: Queue):
    job = await endpoint.submit(input_location="s3://elsewhere/document.json")
    assert queue.server.requests[0].header("X-Amzn-SageMaker-InputLocation") == "s3://elsewhere/document.json"
    assert job.handle.uploaded_to is None


async def test_exactly_one_input(endpoint: Endpoint[Any, Any], queue: Queue):
    with pytest.raises(ParamValidationError):
        await endpoint.submit()
    with pytest.raises(ParamValidationError):
        await endpoint.submit({}, input_location="s3://elsewhere/document.json")
    with pytest.raises(ParamValidationError, match="RequestTTLSeconds"):
        await endpoint.submit({}, request_ttl=1)
    assert not queue.server.requests


async def test_the_uploaded_body_of_a_refused_request_is_deleted(endpoint: Endpoint[Any, Any], queue: Queue):
    queue.server.answer = respond(400, b'{"message": "no"}', [("x-amzn-errortype", "ValidationError")])
    with pytest.raises(ServiceError):
        await endpoint.submit("x" * 130_000, upload_to=f"s3://{queue.bucket}/in")
    assert queue.keys() == []


async def test_a_failed_upload(endpoint: Endpoint[Any, Any], queue: Queue):
    with pytest.raises(ObjectStoreError) as error:
        await endpoint.submit("x" * 130_000, upload_to="s3://no-such-bucket-anywhere/in")
    assert error.value.code == "NoSuchBucket"
    assert not queue.server.requests


@pytest.mark.parametrize(
    ("environment", "arguments", "url"),
    [
        ({"AWS_REGION": "eu-central-1"}, {}, "https://s3.eu-central-1.amazonaws.com"),
        ({"AWS_REGION": "cn-north-1"}, {}, "https://s3.cn-north-1.amazonaws.com.cn"),
        ({"AWS_REGION": "eu-central-1"}, {"region_name": "us-west-2"}, "https://s3.us-west-2.amazonaws.com"),
        ({}, {"region_name": "us-west-2", "use_fips_endpoint": True}, "https://s3-fips.us-west-2.amazonaws.com"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, {"region_name": "us-west-2"}, "https://s3-fips.us-west-2.amazonaws.com"),
        (
            {"AWS_USE_FIPS_ENDPOINT": "true"},
            {"region_name": "eu-west-1", "use_fips_endpoint": False},
            "https://s3.eu-west-1.amazonaws.com",
        ),
        (
            {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"},
            {"region_name": "us-west-2", "s3_endpoint_url": "http://127.0.0.1:2"},
            "http://127.0.0.1:2",
        ),
        (
            {},
            {"region_name": "us-west-2", "use_dualstack_endpoint": True},
            "https://s3.dualstack.us-west-2.amazonaws.com",
        ),
    ],
)
async def test_s3_is_in_the_clients_region(
    environment: dict[str, str], arguments: dict[str, Any], url: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with Client(**arguments) as client:
        assert await s3_url_of(client) == url


# Waiting


async def test_the_answer(endpoint: Endpoint[Any, Any], queue: Queue):
    job = endpoint.job(queue.handle)
    assert not await job.done()
    queue.succeed()
    assert await job.done()
    assert await job.result() == {"answer": 1}
    assert await job.result(timeout=0) == {"answer": 1}


async def test_waiting_for_the_answer(endpoint: Endpoint[Any, Any], queue: Queue):
    job = endpoint.job(queue.handle)
    waiting = asyncio.create_task(job.result(timeout=30))
    done, _ = await asyncio.wait((waiting,), timeout=0.3)
    assert not done
    await asyncio.to_thread(queue.succeed)
    assert await waiting == {"answer": 1}


async def test_no_answer_in_time(endpoint: Endpoint[Any, Any], queue: Queue):
    with pytest.raises(JobTimeoutError) as error:
        await endpoint.job(queue.handle).result(timeout=0.05)
    assert isinstance(error.value, TimeoutError)
    assert (error.value.operation, error.value.endpoint_name) == ("InvokeEndpointAsync", "documents")
    assert error.value.__cause__ is None


async def test_a_failure(endpoint: Endpoint[Any, Any], queue: Queue):
    job = endpoint.job(queue.handle)
    queue.fail()
    assert await job.done()
    with pytest.raises(JobFailedError) as error:
        await job.result()
    assert error.value.failure_location == queue.failure
    assert error.value.reason == '{"error": "the model ran out of memory"}'
    assert "memory" not in str(error.value)
    assert error.value.endpoint_name == "documents"
    assert pickle.loads(pickle.dumps(error.value)).reason == error.value.reason


async def test_an_endless_failure_is_cut(endpoint: Endpoint[Any, Any], queue: Queue):
    queue.fail(b"x" * 100_000)
    with pytest.raises(JobFailedError) as error:
        await endpoint.job(queue.handle).result()
    assert error.value.reason == "x" * 1024


async def test_the_largest_answer(queue: Queue):
    """`max_response_bytes` is for answers in S3 as well."""
    largest = json.dumps({"answer": "x" * 100}).encode()
    async with Client(
        **{"endpoint_url": queue.server.url, **CLIENT_ARGUMENTS}, max_response_bytes=len(largest)
    ) as client:
        job = await client.endpoint("documents", serializer=JSON, deserializer=JSON).submit(1)
        queue.succeed(largest + b" ")
        with pytest.raises(ResponseStreamingError, match=f"exceeds max_response_bytes of {len(largest)}") as caught:
            await job.result(20)
        assert (caught.value.endpoint_name, caught.value.cause) == ("documents", "none")
        queue.succeed(largest)
        assert await job.result(20) == {"answer": "x" * 100}


async def test_an_older_object_that_is_too_large_is_not_the_answer(queue: Queue):
    queue.succeed(b"1" * 1000)
    queue.accept(("Date", formatdate(time.time() + 3600, usegmt=True)))
    async with Client(**{"endpoint_url": queue.server.url, **CLIENT_ARGUMENTS}, max_response_bytes=100) as client:
        job = await client.endpoint("documents", serializer=JSON, deserializer=JSON).submit(1)
        with pytest.raises(JobTimeoutError):
            await job.result(0)


async def test_without_a_failure_location(endpoint: Endpoint[Any, Any], queue: Queue):
    job = endpoint.job(queue.handle._replace(failure_location=None))
    queue.fail()
    assert not await job.done()
    with pytest.raises(JobTimeoutError):
        await job.result(timeout=0)
    queue.succeed()
    assert await job.result() == {"answer": 1}


async def test_an_older_object_is_not_the_answer(endpoint: Endpoint[Any, Any], queue: Queue):
    """An earlier request used the same output name, and its answer is still there."""
    now = time.time()
    queue.succeed()
    queue.accept(("Date", formatdate(now + 60, usegmt=True)))
    later = await endpoint.submit({"pages": 3}, filename="42.out")
    assert later.handle.submitted_at == int(now + 60)
    assert not await later.done()
    with pytest.raises(JobTimeoutError):
        await later.result(timeout=0)
    queue.fail()
    assert not await later.done()
    with pytest.raises(JobTimeoutError):
        await later.result(timeout=0)
    # S3 counts whole seconds, and its clock is not the service's.
    queue.accept(("Date", formatdate(now + 2, usegmt=True)))
    job = await endpoint.submit({"pages": 3}, filename="42.out")
    assert await job.done()
    assert await job.result(timeout=0) == {"answer": 1}


@pytest.mark.parametrize("timeout", [None, 5000])
async def test_waiting_ends_after_the_services_own_limits(
    endpoint: Endpoint[Any, Any], client: Client, queue: Queue, timeout: float | None
):
    """An endpoint without a failure path ends a job in silence."""
    now = time.time()
    queue.accept(("Date", formatdate(now, usegmt=True)))
    handle = (await endpoint.submit({"pages": 3}, request_ttl=60, invocation_timeout=5)).handle
    assert handle.expires_at == int(now) + 65
    assert (await endpoint.submit({"pages": 3})).handle.expires_at == int(now) + 21_600 + 900
    # Another machine's clock may be some minutes fast.
    late = Job(client, handle, endpoint.deserialized, clock=lambda: now + 65 + 899.7)
    with pytest.raises(JobTimeoutError, match="expired without a result") as error:
        await late.result(timeout=timeout)
    assert error.value.endpoint_name == "documents"
    queue.succeed()
    assert await Job(client, handle, endpoint.deserialized, clock=lambda: now + 10_000).result() == {"answer": 1}


@pytest.mark.parametrize("date", [(), (("Date", "soon"),)], ids=["none", "nonsense"])
async def test_a_response_without_a_date(endpoint: Endpoint[Any, Any], queue: Queue, date: tuple[tuple[str, str], ...]):
    queue.accept(*date)
    handle = (await endpoint.submit({})).handle
    assert (handle.submitted_at, handle.expires_at) == (None, None)


@pytest.mark.parametrize(
    "fault",
    [
        {"endpoint_name": "another"},
        {"output_location": "nonsense"},
        {"failure_location": "s3://bucket"},
        {"uploaded_to": "https://bucket/key"},
    ],
)
async def test_faulty_handles(endpoint: Endpoint[Any, Any], queue: Queue, fault: dict[str, str]):
    with pytest.raises(ParamValidationError):
        endpoint.job(queue.handle._replace(**fault))
    with pytest.raises(ParamValidationError, match="JobHandle"):
        endpoint.job(tuple(queue.handle))  # type: ignore[arg-type]


async def test_a_queued_request_has_a_handle_even_with_odd_locations(endpoint: Endpoint[Any, Any], queue: Queue):
    queue.output = "nonsense"
    queue.accept()
    job = await endpoint.submit("x" * 130_000, upload_to=f"s3://{queue.bucket}/in")
    assert (job.inference_id, job.handle.output_location) == ("42", "nonsense")
    assert len(queue.keys()) == 1
    with pytest.raises(ParamValidationError):
        await job.result(timeout=0)


async def test_options_that_asynchronous_inference_does_not_accept(client: Client, queue: Queue):
    endpoint = client.endpoint("documents", serializer=JSON, deserializer=JSON, target_variant="blue")
    with pytest.raises(ParamValidationError, match="does not accept target_variant"):
        await endpoint.submit({})
    assert not queue.server.requests
    assert (await endpoint.submit({}, target_variant=None)).inference_id == "42"


async def test_an_answer_that_cannot_be_read(endpoint: Endpoint[Any, Any], queue: Queue):
    queue.succeed(b'{"patient": "jane')
    with pytest.raises(DeserializationError) as error:
        await endpoint.job(queue.handle).result()
    assert error.value.endpoint_name == "documents"
    assert "jane" not in f"{error.value!r}"


async def test_a_caller_without_list_permission(queue: Queue, object_server: ObjectServer):
    """S3's 403 for a missing object looks like a missing permission: it is waited out and reported at the end."""
    handle = queue.handle._replace(output_location=f"s3://{queue.bucket}/out/43.out", failure_location=None)
    async with Client(REGION, endpoint_url=queue.server.url, credentials=GUEST) as guest:
        job = guest.endpoint("documents", serializer=JSON, deserializer=JSON).job(handle)
        assert not await job.done()
        with pytest.raises(JobTimeoutError) as error:
            await job.result(timeout=0.05)
        assert isinstance(error.value.__cause__, ObjectStoreError)
        assert error.value.__cause__.code == "AccessDenied"
    assert queue.bucket != GUEST_BUCKET


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "5"])
async def test_faulty_timeouts(endpoint: Endpoint[Any, Any], queue: Queue, timeout: Any):
    with pytest.raises(ParamValidationError, match="timeout"):
        await endpoint.job(queue.handle).result(timeout=timeout)


# Afterwards


async def test_cleaning_up(endpoint: Endpoint[Any, Any], queue: Queue):
    job = await endpoint.submit("x" * 130_000, upload_to=f"s3://{queue.bucket}/in")
    queue.succeed()
    assert len(queue.keys()) == 2
    assert await job.result(cleanup=True) == {"answer": 1}
    assert queue.keys() == []
    for _ in range(2):
        assert await job.result(timeout=0) == {"answer": 1}
        assert await job.done()
    await job.delete()
    queue.fail()
    with pytest.raises(JobFailedError):
        await endpoint.job(queue.handle).result(cleanup=True)
    assert queue.keys() == []


async def test_a_refused_cleanup_loses_nothing(queue: Queue, object_server: ObjectServer):
    """The guest may read and delete only in its own bucket."""
    theirs = f"s3://{GUEST_BUCKET}/refused/42.out"
    queue.s3.put_object(Bucket=GUEST_BUCKET, Key="refused/42.out", Body=b"[1]", ContentType="application/json")
    queue.fail()
    async with Client(REGION, endpoint_url=queue.server.url, credentials=GUEST) as guest:
        endpoint = guest.endpoint("documents", serializer=JSON, deserializer=JSON)
        job = endpoint.job(queue.handle._replace(output_location=theirs))
        for _ in range(2):
            with pytest.raises(ObjectStoreError) as error:
                await job.result(cleanup=True)
            assert error.value.code == "AccessDenied"
        assert await job.result() == [1]
        assert await endpoint.job(job.handle).result() == [1]
    queue.s3.delete_object(Bucket=GUEST_BUCKET, Key="refused/42.out")


async def test_members_are_checked_before_a_body_is_uploaded(endpoint: Endpoint[Any, Any], queue: Queue):
    place = f"s3://{queue.bucket}/in"
    members: list[dict[str, Any]] = [{"request_ttl": 1}, {"filename": "x" * 40}, {"target_model": "m"}]
    for faulty in members:
        with pytest.raises(ParamValidationError):
            await endpoint.submit("x" * 130_000, upload_to=place, **faulty)
    for nowhere in ("nonsense", 5, "s3:/bucket"):
        with pytest.raises(ParamValidationError):
            await endpoint.submit("x" * 130_000, upload_to=nowhere)  # type: ignore[arg-type]
        with pytest.raises(ParamValidationError):
            endpoint.with_options(upload_to=nowhere)  # type: ignore[arg-type]
    queue.server.answer = respond(202, b'{"InferenceId": "42"}')
    with pytest.raises(DeserializationError, match="did not name the location"):
        await endpoint.submit("x" * 130_000, upload_to=place)
    assert queue.keys() == []


async def test_the_uploaded_body_of_an_unsigned_call_is_deleted(queue: Queue):
    async with Client(
        endpoint_url=queue.server.url,
        aws_access_key_id=CLIENT_ARGUMENTS["aws_access_key_id"],
        aws_secret_access_key=CLIENT_ARGUMENTS["aws_secret_access_key"],
    ) as client:
        endpoint = client.endpoint("documents", serializer=JSON, deserializer=JSON)
        with pytest.raises(ConfigurationError):
            await endpoint.submit("x" * 130_000, upload_to=f"s3://{queue.bucket}/in")
    assert queue.keys() == []


async def test_closing_the_client_deletes_an_uploaded_body_or_notes_it(queue: Queue):
    called = asyncio.Event()

    async def never(request: Any) -> None:
        called.set()
        await asyncio.Event().wait()

    queue.server.answer = never
    async with Client(**{"endpoint_url": queue.server.url, **CLIENT_ARGUMENTS}) as client:
        endpoint = client.endpoint("documents", serializer=JSON, deserializer=JSON)
        submitting = asyncio.create_task(endpoint.submit("x" * 130_000, upload_to=f"s3://{queue.bucket}/in"))
        await called.wait()
        submitting.cancel()
    with pytest.raises(asyncio.CancelledError) as error:
        await submitting
    notes = getattr(error.value, "__notes__", [])
    # "may": S3 may have deleted it although the response was not awaited
    assert not queue.keys() or any("may remain" in note for note in notes)


async def test_a_job_is_picked_up_in_another_process(endpoint: Endpoint[Any, Any], queue: Queue, tmp_path: Path):
    job = await endpoint.submit({"pages": 3})
    (tmp_path / "job").write_bytes(pickle.dumps(job.handle))
    queue.succeed()
    program = f"""
import asyncio, pickle, sys
import aiosmrt
from aiosmrt.serializers import JSON

async def main():
    async with aiosmrt.Client({REGION!r}) as client:
        endpoint = client.endpoint("documents", serializer=JSON, deserializer=JSON)
        with open(sys.argv[1], "rb") as file:
            print(await endpoint.job(pickle.load(file)).result(timeout=30))

asyncio.run(main())
"""
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": CLIENT_ARGUMENTS["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": CLIENT_ARGUMENTS["aws_secret_access_key"],
    }
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "job")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'answer': 1}\n"


async def test_a_closed_client(queue: Queue):
    async with Client(**{"endpoint_url": queue.server.url, **CLIENT_ARGUMENTS}) as client:
        job = client.endpoint("documents", serializer=JSON, deserializer=JSON).job(queue.handle)
        waiting = asyncio.create_task(job.result())
        await asyncio.wait((waiting,), timeout=0.1)
    with pytest.raises(ClientStateError):
        await waiting
    with pytest.raises(ClientStateError):
        await job.done()


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
async def test_cancelled_waits_leave_nothing_behind(
    endpoint: Endpoint[Any, Any], client: Client, queue: Queue, moment: Moment
):
    job = endpoint.job(queue.handle)
    queue.succeed()
    assert await job.result() == {"answer": 1}

    async def waiting() -> Any:
        return job.result()

    assert await cancel_everywhere(waiting, moment, after=lambda: nothing_is_held(client)) >= 3
    assert await job.result() == {"answer": 1}


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
async def test_cancelled_clean_ups_lose_no_value(
    endpoint: Endpoint[Any, Any], client: Client, queue: Queue, moment: Moment
):
    """The job keeps the value, whichever of its objects are deleted."""
    queue.succeed()
    assert await endpoint.job(queue.handle).result() == {"answer": 1}
    jobs: list[Job[Any]] = []

    async def waiting() -> Any:
        queue.succeed()
        jobs.append(endpoint.job(queue.handle))
        return jobs[-1].result(cleanup=True)

    async def after() -> None:
        await nothing_is_held(client)
        assert await jobs[-1].result(timeout=0, cleanup=True) == {"answer": 1}
        assert queue.keys() == []

    assert await cancel_everywhere(waiting, moment, after=after) >= 3


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
@pytest.mark.parametrize("method", [Job.done, Job.delete], ids=["done", "delete"])
async def test_cancelled_polls_and_deletions_leave_nothing_behind(
    endpoint: Endpoint[Any, Any],
    client: Client,
    queue: Queue,
    moment: Moment,
    method: Callable[[Job[Any]], Coroutine[Any, Any, Any]],
):
    job = endpoint.job(queue.handle)
    await job.done()

    async def prepare() -> Coroutine[Any, Any, Any]:
        queue.fail()
        return method(job)

    assert await cancel_everywhere(prepare, moment, after=lambda: nothing_is_held(client)) >= 2
    assert await job.done() is (method is Job.done)


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
async def test_cancelled_submissions_delete_their_uploaded_bodies(
    endpoint: Endpoint[Any, Any], client: Client, queue: Queue, moment: Moment
):
    """No job refers to the body of an abandoned request: it is deleted."""
    data = "x" * 130_000
    place = f"s3://{queue.bucket}/in"
    await (await endpoint.submit(data, upload_to=place)).delete()

    ended: list[Any] = []

    async def submitting() -> Any:
        async def submit() -> None:
            ended.append(await endpoint.submit(data, upload_to=place))

        return submit()

    assert await cancel_everywhere(submitting, moment, after=lambda: nothing_is_held(client)) >= 3
    for job in ended:
        await job.delete()
    # An object that S3 was writing when its connection was closed may appear after its deletion.
    assert len(queue.keys()) <= 1


class SlowBodies:
    """JSON that takes its time."""

    content_type = "application/json"

    def __init__(self, size: int, seconds: float) -> None:
        self._body, self._seconds = b" " * size + b"{}", seconds

    def serialize(self, data: Any) -> bytes:
        time.sleep(self._seconds)
        return self._body


@pytest.mark.parametrize("size", [2, 200_000], ids=["inline", "uploaded"])
async def test_the_deadline_of_submit_covers_serializing(client: Client, queue: Queue, size: int) -> None:
    made = SlowBodies(size, 0.2)
    where = {"upload_to": f"s3://{queue.bucket}/in"}
    endpoint = client.endpoint("documents", serializer=made, deserializer=JSON, deadline=0.1, **where)
    for data in ({}, "x" * 2**21):
        with pytest.raises(DeadlineExceededError) as caught:
            await endpoint.submit(data)
        assert (caught.value.operation, caught.value.endpoint_name) == ("InvokeEndpointAsync", "documents")
    assert queue.server.requests == []
    assert "Contents" not in queue.s3.list_objects_v2(Bucket=queue.bucket)
    await endpoint.with_options(deadline=60.0).submit({})
    assert len(queue.server.requests) == 1


async def test_the_deadline_of_submit_covers_uploading(queue: Queue, virtual_time: VirtualTime) -> None:
    """S3 does not answer."""
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(2**16):
                asked.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as s3:
        url = f"http://127.0.0.1:{s3.sockets[0].getsockname()[1]}"
        arguments = {"endpoint_url": queue.server.url, **CLIENT_ARGUMENTS, "s3_endpoint_url": url}
        async with Client(**arguments, deadline=0.5) as client:
            virtual_time.drive(client)
            endpoint = client.endpoint("documents", serializer=SlowBodies(200_000, 0.0), deserializer=JSON)
            submitting = asyncio.create_task(endpoint.submit({}, upload_to=f"s3://{queue.bucket}/in"))
            await asked.wait()
            while not submitting.done():
                await virtual_time.advance(0.1)
            with pytest.raises(DeadlineExceededError) as caught:
                await submitting
    assert caught.value.waited.body >= 0.5
    assert caught.value.endpoint_name == "documents"
    assert any("may remain at s3://" in note for note in caught.value.__notes__)
    assert queue.server.requests == []
