"""Asynchronous inference of the local runtime, on a real S3: what comes of a request, and of one that goes wrong."""

import asyncio
import gc
import json
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ClientError

from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.client import Client
from aiosmrt.config import RetryPolicy
from aiosmrt.errors import ConfigurationError, ThrottlingError, TransportError, ValidationError
from aiosmrt.local import (
    AsyncInferenceConfig,
    ContainerFailure,
    EndpointConfiguration,
    InferenceComponent,
    Invocation,
    JobRecord,
    LocalRuntime,
    ObjectServer,
    ObjectStorage,
    ProductionVariant,
    faults,
)
from tests.support.peers import aiosmrt_client, boto3_client
from tests.support.runtime import Draft, InProcessContainer, RawConnection, echo, local_runtime, words
from tests.support.seaweed import OWNER, s3_client

MAKERS: dict[str, Callable[..., AbstractAsyncContextManager[Any]]] = {"boto3": boto3_client, "aiosmrt": aiosmrt_client}
START = 1_800_000_000.0


async def picky(invocation: Invocation) -> bytes:
    """A model that takes nothing."""
    raise ContainerFailure(400, "no such field")


class Held:
    """A model that answers when it is told to, and counts who waits."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.at_once = 0
        self.most_at_once = 0
        self.cancelled = 0

    async def __call__(self, invocation: Invocation) -> bytes:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        return invocation.body


class Objects:
    """A bucket as boto3 sees it."""

    def __init__(self, server: ObjectServer, bucket: str) -> None:
        self.server = server
        self.bucket = bucket
        self._client = s3_client(server.url)

    def storage(self, *more: str, url: str | None = None) -> ObjectStorage:
        return ObjectStorage(
            endpoint_url=url or self.server.url, credentials=OWNER, buckets=[self.bucket, *more], region="us-east-1"
        )

    def put(self, key: str, body: bytes) -> str:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=body)
        return f"s3://{self.bucket}/{key}"

    def get(self, uri: str) -> tuple[bytes, str]:
        """What an object holds, and its content type."""
        start = f"s3://{self.bucket}/"
        assert uri.startswith(start)
        found = self._client.get_object(Bucket=self.bucket, Key=uri.removeprefix(start))
        return found["Body"].read(), found["ContentType"]

    def keys(self) -> list[str]:
        return [found["Key"] for found in self._client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]


@pytest.fixture
def objects(object_server: ObjectServer, bucket: str) -> Objects:
    return Objects(object_server, bucket)


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task outlives a runtime, and no transport is left for the collector to complain about."""
    gc.freeze()  # what is there already need not be looked at
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    gc.unfreeze()


def asynchronous(objects: Objects, *targets: Any, failures: bool = True, at_once: int = 4) -> EndpointConfiguration:
    """An endpoint that writes to ``out`` and ``failed``."""
    return EndpointConfiguration(
        [ProductionVariant(list(targets))],
        async_inference=AsyncInferenceConfig(
            f"s3://{objects.bucket}/out", f"s3://{objects.bucket}/failed" if failures else None, at_once
        ),
    )


def runtime_of(objects: Objects, *targets: Any, failures: bool = True, at_once: int = 4, **more: Any) -> LocalRuntime:
    """A runtime with one endpoint, ``later``."""
    endpoints = {"later": asynchronous(objects, *targets, failures=failures, at_once=at_once)}
    return local_runtime(endpoints, **{"object_storage": objects.storage(), **more})


async def invoke(client: Any, **members: Any) -> dict[str, Any]:
    """A call through boto3 or aiosmrt."""
    call = client.invoke_endpoint_async
    members = {"EndpointName": "later", **members}
    result: dict[str, Any] = (
        await call(**members) if asyncio.iscoroutinefunction(call) else await asyncio.to_thread(call, **members)
    )
    return result


def takes_a_body(client: Any) -> bool:
    """Whether a client knows of inline payloads, which are younger than the oldest botocore that is tested."""
    if isinstance(client, Client):
        return True
    return "Body" in client.meta.service_model.operation_model("InvokeEndpointAsync").input_shape.members


async def one_job(runtime: LocalRuntime, **members: Any) -> tuple[dict[str, Any], JobRecord]:
    """A call to a running runtime, and the record of its job once that has ended."""
    async with aiosmrt_client(runtime.url) as client:
        result = await invoke(client, **members)
        async with asyncio.timeout(30):
            return result, (await runtime.wait_for_jobs(1))[-1]


class TestResults:
    @pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
    async def test_of_input_that_came_with_the_request(
        self, maker: Callable[..., AbstractAsyncContextManager[Any]], objects: Objects
    ) -> None:
        async with runtime_of(objects, echo) as runtime, maker(runtime.url) as client:
            if not takes_a_body(client):
                pytest.skip("this botocore's InvokeEndpointAsync has no Body yet")
            result = await invoke(client, Body=b"1,2,3", ContentType="text/csv", InferenceId="row-1")
            assert result["ResponseMetadata"]["HTTPStatusCode"] == 202
            assert result["InferenceId"] == "row-1"
            assert result["OutputLocation"] == f"s3://{objects.bucket}/out/row-1.out"
            assert result["FailureLocation"] == f"s3://{objects.bucket}/failed/row-1-error.out"
            (job,) = await runtime.wait_for_jobs(1)
            assert objects.get(result["OutputLocation"]) == (b"1,2,3", "text/csv")
            assert objects.keys() == ["out/row-1.out"]
            assert (job.inference_id, job.endpoint, job.variant) == ("row-1", "later", "AllTraffic")
            assert (job.outcome, job.error_code, job.response_bytes) == ("succeeded", None, 5)
            assert (job.output_location, job.failure_location) == (result["OutputLocation"], result["FailureLocation"])
            assert job.input_location is None
            (request,) = await runtime.wait_for_requests(1)
            assert (request.operation, request.status, request.inference_id) == ("InvokeEndpointAsync", 202, "row-1")
            assert runtime.statistics()["jobs"] == {
                "queued": 0,
                "running": 0,
                "succeeded": 1,
                "failed": 0,
                "dropped": 0,
            }
            runtime.clear_requests()
            assert runtime.jobs == ()

    @pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
    async def test_of_input_in_s3(
        self, maker: Callable[..., AbstractAsyncContextManager[Any]], objects: Objects
    ) -> None:
        rows = b"1,2,3\n" * 500_000
        location = objects.put("in/rows 1+2%.csv", rows)
        async with runtime_of(objects, echo) as runtime, maker(runtime.url) as client:
            result = await invoke(client, InputLocation=location, ContentType="text/csv")
            (job,) = await runtime.wait_for_jobs(1)
        assert objects.get(result["OutputLocation"]) == (rows, "text/csv")
        assert (job.input_location, job.response_bytes) == (location, len(rows))

    async def test_of_a_model_that_answers_in_parts(self, objects: Objects) -> None:
        async with runtime_of(objects, words) as runtime:
            result, _ = await one_job(runtime, Body=b"to be or not")
        assert objects.get(result["OutputLocation"])[0] == b"tobeornot"

    async def test_what_the_container_gets_to_see(self, objects: Objects) -> None:
        async with InProcessContainer() as container, runtime_of(objects, container.url) as runtime:
            await one_job(
                runtime,
                Body=b"{}",
                ContentType="application/json",
                Accept="text/csv",
                CustomAttributes="trace=1",
                InferenceId="row-1",
            )
        (received,) = container.received
        assert received.body == b"{}"
        expected = {
            "content-type": "application/json",
            "accept": "text/csv",
            "x-amzn-sagemaker-custom-attributes": "trace=1",
            "x-amzn-sagemaker-inference-id": "row-1",
            "x-amzn-sagemaker-forwarded-api": "InvokeEndpointAsync",
        }
        assert received.headers.items() >= expected.items()

    async def test_an_id_of_the_runtimes_own(self, objects: Objects) -> None:
        seen: list[str | None] = []

        async def model(invocation: Invocation) -> bytes:
            seen.append(invocation.inference_id)
            return b""

        async with runtime_of(objects, model) as runtime, aiosmrt_client(runtime.url) as client:
            results = [await invoke(client, Body=b"1") for _ in range(2)]
            await runtime.wait_for_jobs(2)
            (first, second) = (result["InferenceId"] for result in results)
            assert first != second
            assert {record.inference_id for record in runtime.requests} == {first, second}
        assert set(seen) == {first, second}
        assert sorted(objects.keys()) == sorted([f"out/{first}.out", f"out/{second}.out"])

    async def test_names_of_the_callers_choice(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            result, _ = await one_job(
                runtime, Body=b"1", InferenceId="a/b", Filename="rows.csv", S3OutputPathExtension="2024/may"
            )
        assert result["OutputLocation"] == f"s3://{objects.bucket}/out/2024/may/rows.csv"
        assert result["FailureLocation"] == f"s3://{objects.bucket}/failed/rows-error.csv"
        assert objects.keys() == ["out/2024/may/rows.csv"]

    async def test_an_id_that_is_no_file_name(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            result, _ = await one_job(runtime, Body=b"1", InferenceId="a/b c%20")
        assert result["OutputLocation"] == f"s3://{objects.bucket}/out/a%2Fb%20c%2520.out"
        assert objects.get(result["OutputLocation"])[0] == b"1"

    async def test_many(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime, aiosmrt_client(runtime.url) as client:
            bodies = {f"row-{number}": str(number).encode() for number in range(60)}
            await asyncio.gather(*(invoke(client, Body=body, InferenceId=row) for row, body in bodies.items()))
            jobs = await runtime.wait_for_jobs(len(bodies))
            assert Counter(job.outcome for job in jobs) == {"succeeded": len(bodies)}
            # the workers have ended, and the next job gets one again
            await invoke(client, Body=b"one more", InferenceId="last")
            await runtime.wait_for_jobs(len(bodies) + 1)
        for job in jobs:
            assert objects.get(job.output_location)[0] == bodies[job.inference_id]

    async def test_other_calls_of_the_endpoint_are_served_as_ever(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime, aiosmrt_client(runtime.url) as client:
            result = await client.invoke_endpoint(EndpointName="later", Body=b"now")
            assert await result["Body"].read() == b"now"
            assert runtime.jobs == ()


class TestFailures:
    async def test_of_the_model(self, objects: Objects) -> None:
        async with runtime_of(objects, picky) as runtime:
            result, job = await one_job(runtime, Body=b"1", InferenceId="row-1")
        assert (job.outcome, job.error_code, job.variant) == ("failed", "ModelError", "AllTraffic")
        text, content_type = objects.get(result["FailureLocation"])
        assert text.startswith(b'Received client error (400) from primary with message "no such field". See https://')
        assert content_type == "text/plain; charset=utf-8"
        assert objects.keys() == ["failed/row-1-error.out"]

    async def test_of_the_model_where_failures_have_no_path(self, objects: Objects) -> None:
        async with runtime_of(objects, picky, failures=False) as runtime:
            result, job = await one_job(runtime, Body=b"1")
            assert runtime.statistics()["jobs"]["failed"] == 1
        assert "FailureLocation" not in result
        assert (job.outcome, job.failure_location) == ("failed", None)
        assert objects.keys() == []

    async def test_of_reading_the_input(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            result, job = await one_job(runtime, InputLocation=f"s3://{objects.bucket}/nothing")
        assert (job.outcome, job.error_code) == ("failed", "InputUnavailable")
        text, _ = objects.get(result["FailureLocation"])
        assert text.decode() == f"The input could not be read from s3://{objects.bucket}/nothing: NoSuchKey."

    async def test_of_writing_the_result(self, objects: Objects) -> None:
        config = AsyncInferenceConfig("s3://no-such-bucket/out", f"s3://{objects.bucket}/failed")
        endpoint = EndpointConfiguration([ProductionVariant(echo)], async_inference=config)
        async with local_runtime({"later": endpoint}, object_storage=objects.storage("no-such-bucket")) as runtime:
            result, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code, job.response_bytes) == ("failed", "OutputUnwritable", 0)
        text, _ = objects.get(result["FailureLocation"])
        assert text.decode() == f"The result could not be written to {result['OutputLocation']}: NoSuchBucket."

    async def test_of_writing_anything(self, objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
        config = AsyncInferenceConfig("s3://no-such-bucket/out", "s3://no-such-bucket/failed")
        endpoint = EndpointConfiguration([ProductionVariant(echo)], async_inference=config)
        storage = objects.storage("no-such-bucket")
        with caplog.at_level(logging.ERROR, "aiosmrt.local.asynchronous"):
            async with local_runtime({"later": endpoint}, object_storage=storage) as runtime:
                _, job = await one_job(runtime, Body=b"a payload", InferenceId="row-1")
        assert (job.outcome, job.error_code) == ("failed", "OutputUnwritable")
        (message,) = caplog.messages
        assert message == (
            "An asynchronous inference failed (OutputUnwritable), which could not be written to "
            "s3://no-such-bucket/failed/row-1-error.out: NoSuchBucket"
        )

    async def test_is_recorded_although_it_cannot_be_written(
        self, objects: Objects, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = AsyncInferenceConfig(f"s3://{objects.bucket}/out", "s3://no-such-bucket/failed")
        endpoint = EndpointConfiguration([ProductionVariant(picky)], async_inference=config)
        storage = objects.storage("no-such-bucket")
        with caplog.at_level(logging.ERROR, "aiosmrt.local.asynchronous"):
            async with local_runtime({"later": endpoint}, object_storage=storage) as runtime:
                _, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code) == ("failed", "ModelError")
        assert "failed (ModelError)" in caplog.text
        assert "NoSuchBucket" in caplog.text

    async def test_of_a_storage_that_is_not_there(
        self, objects: Objects, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        storage = objects.storage(url=f"http://127.0.0.1:{unused_tcp_port}")
        with caplog.at_level(logging.ERROR, "aiosmrt.local.asynchronous"):
            async with runtime_of(objects, echo, object_storage=storage) as runtime:
                _, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code) == ("failed", "OutputUnwritable")
        (message,) = caplog.messages
        assert message.endswith(": EndpointConnectionError")

    async def test_of_the_runtime_itself_ends_no_worker(
        self, objects: Objects, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Dice(random.Random):
            thrown = 0

            def choice(self, options: Any) -> Any:
                self.thrown += 1
                if self.thrown == 1:
                    raise OSError("the dice are gone")
                return super().choice(options)

        async with (
            runtime_of(objects, echo, chance=Dice(), at_once=1) as runtime,
            aiosmrt_client(runtime.url) as client,
        ):
            await invoke(client, Body=b"1")
            await invoke(client, Body=b"2")
            broken, whole = await runtime.wait_for_jobs(2)
        assert (broken.outcome, broken.error_code) == ("failed", "InternalFailure")
        assert (whole.outcome, whole.error_code) == ("succeeded", None)
        assert "the dice are gone" in caplog.text

    async def test_of_time(self, objects: Objects) -> None:
        model = Held()
        async with runtime_of(objects, model) as runtime:
            result, job = await one_job(runtime, Body=b"1", InvocationTimeoutSeconds=1)
            assert runtime.statistics()["jobs"]["running"] == 0
        assert (job.outcome, job.error_code) == ("failed", "ModelInvocationTimeExceeded")
        assert model.cancelled == 1
        text, _ = objects.get(result["FailureLocation"])
        assert b"timed out while waiting for a response" in text

    async def test_of_patience(self, objects: Objects) -> None:
        """Three jobs for one place: the first takes 61 s, after which only one of the others may still run."""
        now = START
        model = Held()
        async with (
            runtime_of(objects, model, at_once=1, clock=lambda: now, verify_signatures=False) as runtime,
            aiosmrt_client(runtime.url) as client,
        ):
            await invoke(client, Body=b"1", InferenceId="first", RequestTTLSeconds=60)
            await runtime.wait_for_running_jobs(1)
            await invoke(client, Body=b"1", InferenceId="impatient", RequestTTLSeconds=60)
            await invoke(client, Body=b"1", InferenceId="patient", RequestTTLSeconds=61)
            assert runtime.statistics()["jobs"]["queued"] == 2
            now += 61
            model.go_on.set()
            jobs = await runtime.wait_for_jobs(3)
        ended = {job.inference_id: (job.outcome, job.error_code, job.ended_at - job.accepted_at) for job in jobs}
        assert ended == {
            "first": ("succeeded", None, 61.0),
            "impatient": ("failed", "RequestExpired", 61.0),
            "patient": ("succeeded", None, 61.0),
        }
        text, _ = objects.get(f"s3://{objects.bucket}/failed/impatient-error.out")
        assert text == b"The request expired: it was queued for longer than 60 seconds."

    async def test_a_container_that_is_not_ready_is_waited_for(self, objects: Objects) -> None:
        container = InProcessContainer()
        container.ping_status = 503
        async with container, runtime_of(objects, container.url) as runtime, aiosmrt_client(runtime.url) as client:
            result = await invoke(client, Body=b"1")
            while container.pings < 2:
                await asyncio.sleep(0.01)
            container.ping_status = 200
            (job,) = await runtime.wait_for_jobs(1)
        assert job.outcome == "succeeded"
        assert objects.get(result["OutputLocation"])[0] == b"1"

    async def test_a_container_that_goes_away(self, objects: Objects) -> None:
        async def serve(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        async with InProcessContainer(serve) as container, runtime_of(objects, container.url) as runtime:
            _, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code) == ("failed", "ModelError")


class TestConcurrency:
    async def test_of_one_instance(self, objects: Objects) -> None:
        model = Held()
        async with runtime_of(objects, model, at_once=2) as runtime, aiosmrt_client(runtime.url) as client:
            for _ in range(5):
                await invoke(client, Body=b"1")
            await runtime.wait_for_running_jobs(2)
            assert runtime.statistics()["jobs"]["queued"] == 3
            model.go_on.set()
            await runtime.wait_for_jobs(5)
        assert model.most_at_once == 2

    async def test_of_several_instances(self, objects: Objects) -> None:
        """However the choice falls, no instance gets more than its share."""
        models = [Held(), Held(), Held()]
        async with runtime_of(objects, *models, at_once=2) as runtime, aiosmrt_client(runtime.url) as client:
            for _ in range(12):
                await invoke(client, Body=b"1")
            await runtime.wait_for_running_jobs(6)
            for model in models:
                model.go_on.set()
            await runtime.wait_for_jobs(12)
        assert all(model.most_at_once <= 2 for model in models)


class TestRefusals:
    @pytest.mark.parametrize(
        "location",
        ["s3://another-bucket/key", "https://bucket.s3.amazonaws.com/key", "s3://{bucket}", "s3://{bucket}/"],
    )
    async def test_input_from_anywhere_else(self, location: str, objects: Objects) -> None:
        location = location.format(bucket=objects.bucket)
        async with runtime_of(objects, echo) as runtime, aiosmrt_client(runtime.url) as client:
            with pytest.raises(ValidationError, match="no object in a bucket that this runtime may use") as caught:
                await invoke(client, InputLocation=location)
            assert caught.value.status == 400
            assert runtime.statistics()["jobs"] == dict.fromkeys(
                ("queued", "running", "succeeded", "failed", "dropped"), 0
            )

    @pytest.mark.parametrize(
        ("headers", "body", "reason"),
        [
            ([], b"", "got neither"),
            ([("X-Amzn-SageMaker-InputLocation", "s3://bucket/key")], b"1", "got both"),
            ([], b"1" * 128_001, "128001 bytes exceeds the limit of 128000"),
        ],
    )
    async def test_what_clients_would_not_send(
        self, headers: list[tuple[str, str]], body: bytes, reason: str, objects: Objects
    ) -> None:
        async with runtime_of(objects, echo) as runtime, RawConnection.to(runtime.url) as connection:
            draft = Draft(runtime.url, "/endpoints/later/async-invocations", body=body, headers=headers).sign()
            answer = await connection.exchange(draft.encode())
        assert answer.status == 400
        assert answer.headers["x-amzn-errortype"] == "ValidationError"
        assert reason in json.loads(answer.body)["Message"]

    async def test_the_largest_inline_payload(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            _, job = await one_job(runtime, Body=b"1" * 128_000)
        assert job.response_bytes == 128_000

    async def test_signatures(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime, RawConnection.to(runtime.url) as connection:
            path = "/endpoints/later/async-invocations"
            unsigned = await connection.exchange(Draft(runtime.url, path).encode())
            forged = Draft(runtime.url, path).sign(Credentials(OWNER.access_key, "another-fake-secret"))
            badly_signed = await connection.exchange(forged.encode())
            assert (unsigned.status, badly_signed.status) == (403, 403)
            assert runtime.statistics()["jobs"]["queued"] == runtime.statistics()["jobs"]["running"] == 0
        assert objects.keys() == []

    async def test_an_endpoint_that_is_not_asynchronous(self, objects: Objects) -> None:
        async with (
            local_runtime({"now": echo}, object_storage=objects.storage()) as runtime,
            boto3_client(runtime.url) as client,
        ):
            with pytest.raises(ClientError, match="has no asynchronous inference configuration"):
                await invoke(client, EndpointName="now", InputLocation=f"s3://{objects.bucket}/1")
            with pytest.raises(ClientError, match="not found"):
                await invoke(client, EndpointName="nowhere", InputLocation=f"s3://{objects.bucket}/1")

    async def test_scripted_faults_meet_the_request(self, objects: Objects) -> None:
        async with (
            runtime_of(objects, echo, faults={"later": faults.throttling().next(1)}) as runtime,
            aiosmrt_client(runtime.url, retries=RetryPolicy(max_attempts=1, retry_stale_connections=False)) as client,
        ):
            with pytest.raises(ThrottlingError):
                await invoke(client, Body=b"1")
            assert runtime.jobs == ()
            # the answer is lost, and the job is queued all the same: a call that is sent again makes two
            runtime.inject("later", faults.ResetBeforeHeaders(after_model=True).next(1))
            with pytest.raises(TransportError):
                await invoke(client, Body=b"1", InferenceId="row-1")
            await invoke(client, Body=b"1", InferenceId="row-1")
            jobs = await runtime.wait_for_jobs(2)
        assert [job.inference_id for job in jobs] == ["row-1", "row-1"]


class TestConfiguration:
    def test_paths_outside_of_the_buckets(self, objects: Objects) -> None:
        storage = ObjectStorage(endpoint_url="http://127.0.0.1:1", credentials=OWNER, buckets=["another"])
        with pytest.raises(ConfigurationError, match=r"endpoint later writes to s3://bucket-.* excludes"):
            runtime_of(objects, echo, object_storage=storage)

    def test_no_storage(self, objects: Objects) -> None:
        with pytest.raises(ConfigurationError, match="endpoint later is asynchronous: give the runtime an object_stor"):
            runtime_of(objects, echo, object_storage=None)

    def test_inference_components(self, objects: Objects) -> None:
        config = AsyncInferenceConfig(f"s3://{objects.bucket}/out")
        endpoint = EndpointConfiguration(
            inference_components=[InferenceComponent(echo, "adapter")], async_inference=config
        )
        with pytest.raises(ConfigurationError, match="cannot be asynchronous"):
            local_runtime({"later": endpoint}, object_storage=objects.storage())

    @pytest.mark.parametrize("path", ["", "results", "https://results/out", "s3://", "s3://a b/c"])
    def test_paths_that_are_none(self, path: str) -> None:
        for arguments in ({"s3_output_path": path}, {"s3_output_path": "s3://results", "s3_failure_path": path}):
            with pytest.raises(ConfigurationError, match="s3://bucket/prefix"):
                AsyncInferenceConfig(**arguments)

    @pytest.mark.parametrize("number", [0, 1001])
    def test_numbers_out_of_range(self, number: int) -> None:
        with pytest.raises(ConfigurationError, match=f"from 1 to 1000, not {number}"):
            AsyncInferenceConfig("s3://results", max_concurrent_invocations_per_instance=number)

    @pytest.mark.parametrize("url", ["", "127.0.0.1:8333", "ftp://127.0.0.1", "http://[", "http://host:0"])
    def test_storages_at_no_url(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="http://host:port"):
            ObjectStorage(endpoint_url=url, credentials=OWNER, buckets=["results"])

    @pytest.mark.parametrize("buckets", [[], (), "results"])
    def test_storages_without_buckets(self, buckets: Any) -> None:
        with pytest.raises(ConfigurationError, match="list of the buckets"):
            ObjectStorage(endpoint_url="http://127.0.0.1:8333", credentials=OWNER, buckets=buckets)

    def test_a_storage_keeps_its_secret_to_itself(self, objects: Objects) -> None:
        assert OWNER.secret_key not in repr(objects.storage())

    async def test_a_storage_that_cannot_be_used(self, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        runtime = runtime_of(objects, echo)
        with pytest.raises(ConfigurationError, match=r"object storage cannot be used: ProfileNotFound"):
            await runtime.start()
        assert "idle" in repr(runtime)


class TestEnd:
    async def test_jobs_are_dropped(self, objects: Objects) -> None:
        model = Held()
        runtime = runtime_of(objects, model, at_once=2)
        await runtime.start()
        async with aiosmrt_client(runtime.url) as client:
            for number in range(5):
                await invoke(client, Body=b"1", InferenceId=f"row-{number}")
            await runtime.wait_for_running_jobs(2)
        await runtime.close()
        assert model.cancelled == 2
        assert model.at_once == 0
        assert sorted(job.inference_id for job in runtime.jobs) == [f"row-{number}" for number in range(5)]
        assert {job.outcome for job in runtime.jobs} == {"dropped"}
        jobs = {"queued": 0, "running": 0, "succeeded": 0, "failed": 0, "dropped": 5}
        assert runtime.statistics()["jobs"] == jobs
        assert objects.keys() == []

    async def test_it_can_be_started_again(self, objects: Objects) -> None:
        model = Held()
        runtime = runtime_of(objects, model, at_once=1)
        for _ in range(2):
            async with runtime, aiosmrt_client(runtime.url) as client:
                await invoke(client, Body=b"1")
                await runtime.wait_for_running_jobs(1)
        model.go_on.set()
        runtime.clear_requests()
        async with runtime:
            _, job = await one_job(runtime, Body=b"1")
        assert job.outcome == "succeeded"

    async def test_at_once_after_a_request(self, objects: Objects) -> None:
        """The worker is cancelled before its first turn, too."""
        runtime = runtime_of(objects, echo)
        await runtime.start()
        async with aiosmrt_client(runtime.url) as client:
            await asyncio.gather(*(invoke(client, Body=b"1") for _ in range(10)))
            await runtime.close()
        assert len(runtime.jobs) == 10
        assert runtime.statistics()["jobs"]["queued"] == 0

    async def test_a_storage_that_nobody_needs_is_not_opened(self, objects: Objects) -> None:
        storage = objects.storage(url="http://127.0.0.1:1")
        async with local_runtime({"now": echo}, object_storage=storage) as runtime:
            assert runtime._jobs._objects is None
