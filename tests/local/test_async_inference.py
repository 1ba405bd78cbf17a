"""Asynchronous inference of the local runtime, with a real S3: results, failures and rejected requests."""

import asyncio
import gc
import json
import logging
import random
import sys
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
    objectstorage,
)
from aiosmrt.local import asynchronous as module
from tests.support.peers import aiosmrt_client, boto3_client
from tests.support.runtime import (
    Draft,
    InProcessContainer,
    RawConnection,
    aiobotocore_client,
    echo,
    local_runtime,
    words,
)
from tests.support.seaweed import OWNER, s3_client

MAKERS: dict[str, Callable[..., AbstractAsyncContextManager[Any]]] = {"boto3": boto3_client, "aiosmrt": aiosmrt_client}
START = 1_800_000_000.0


async def picky(invocation: Invocation) -> bytes:
    """A model that rejects every input."""
    raise ContainerFailure(400, "no such field")


class Held:
    """A model that answers on command and counts the waiting calls."""

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
    """A bucket, accessed with boto3."""

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
        """The content of an object and its content type."""
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
    """No task outlives a runtime, and no transport is left unclosed."""
    gc.freeze()  # skips the objects that exist already
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
    """Whether a client supports inline payloads, which the oldest tested botocore does not."""
    if isinstance(client, Client):
        return True
    return "Body" in client.meta.service_model.operation_model("InvokeEndpointAsync").input_shape.members


async def one_job(runtime: LocalRuntime, **members: Any) -> tuple[dict[str, Any], JobRecord]:
    """The result of a call, and the record of its job once it has ended."""
    async with aiosmrt_client(runtime.url) as client:
        result = await invoke(client, **members)
        return result, (await runtime.wait_for_jobs(1))[-1]


class TestResults:
    @pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
    async def test_inline_input(self, maker: Callable[..., AbstractAsyncContextManager[Any]], objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime, maker(runtime.url) as client:
            if not takes_a_body(client):
                pytest.skip("this botocore's InvokeEndpointAsync does not support Body")
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
    async def test_input_in_s3(self, maker: Callable[..., AbstractAsyncContextManager[Any]], objects: Objects) -> None:
        rows = b"1,2,3\n" * 500_000
        location = objects.put("in/rows 1+2%.csv", rows)
        async with runtime_of(objects, echo) as runtime, maker(runtime.url) as client:
            result = await invoke(client, InputLocation=location, ContentType="text/csv")
            (job,) = await runtime.wait_for_jobs(1)
        assert objects.get(result["OutputLocation"]) == (rows, "text/csv")
        assert (job.input_location, job.response_bytes) == (location, len(rows))

    async def test_response_in_parts(self, objects: Objects) -> None:
        async with runtime_of(objects, words) as runtime:
            result, _ = await one_job(runtime, Body=b"to be or not")
        assert objects.get(result["OutputLocation"])[0] == b"tobeornot"

    async def test_headers_for_the_container(self, objects: Objects) -> None:
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

    async def test_generated_id(self, objects: Objects) -> None:
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

    async def test_requested_names(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            result, _ = await one_job(
                runtime, Body=b"1", InferenceId="a/b", Filename="rows.csv", S3OutputPathExtension="2024/may"
            )
        assert result["OutputLocation"] == f"s3://{objects.bucket}/out/2024/may/rows.csv"
        assert result["FailureLocation"] == f"s3://{objects.bucket}/failed/rows-error.csv"
        assert objects.keys() == ["out/2024/may/rows.csv"]

    async def test_id_is_percent_encoded_in_the_name(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            result, _ = await one_job(runtime, Body=b"1", InferenceId="a/b c%20")
        assert result["OutputLocation"] == f"s3://{objects.bucket}/out/a%2Fb%20c%2520.out"
        assert objects.get(result["OutputLocation"])[0] == b"1"

    async def test_many_jobs(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime, aiosmrt_client(runtime.url) as client:
            bodies = {f"row-{number}": str(number).encode() for number in range(60)}
            await asyncio.gather(*(invoke(client, Body=body, InferenceId=row) for row, body in bodies.items()))
            jobs = await runtime.wait_for_jobs(len(bodies))
            assert Counter(job.outcome for job in jobs) == {"succeeded": len(bodies)}
            # The workers have ended; the next job starts one.
            await invoke(client, Body=b"one more", InferenceId="last")
            await runtime.wait_for_jobs(len(bodies) + 1)
        for job in jobs:
            assert objects.get(job.output_location)[0] == bodies[job.inference_id]


class TestFailures:
    async def test_model_fails(self, objects: Objects) -> None:
        async with runtime_of(objects, picky) as runtime:
            result, job = await one_job(runtime, Body=b"1", InferenceId="row-1")
        assert (job.outcome, job.error_code, job.variant) == ("failed", "ModelError", "AllTraffic")
        text, content_type = objects.get(result["FailureLocation"])
        assert text.startswith(b'Received client error (400) from primary with message "no such field". See https://')
        assert content_type == "text/plain; charset=utf-8"
        assert objects.keys() == ["failed/row-1-error.out"]

    async def test_model_fails_without_failure_path(self, objects: Objects) -> None:
        async with runtime_of(objects, picky, failures=False) as runtime:
            result, job = await one_job(runtime, Body=b"1")
            assert runtime.statistics()["jobs"]["failed"] == 1
        assert "FailureLocation" not in result
        assert (job.outcome, job.failure_location) == ("failed", None)
        assert objects.keys() == []

    async def test_input_cannot_be_read(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            result, job = await one_job(runtime, InputLocation=f"s3://{objects.bucket}/nothing")
        assert (job.outcome, job.error_code) == ("failed", "InputUnavailable")
        text, _ = objects.get(result["FailureLocation"])
        assert text.decode() == f"The input could not be read from s3://{objects.bucket}/nothing: NoSuchKey."

    async def test_result_cannot_be_written(self, objects: Objects) -> None:
        config = AsyncInferenceConfig("s3://no-such-bucket/out", f"s3://{objects.bucket}/failed")
        endpoint = EndpointConfiguration([ProductionVariant(echo)], async_inference=config)
        async with local_runtime({"later": endpoint}, object_storage=objects.storage("no-such-bucket")) as runtime:
            result, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code, job.response_bytes) == ("failed", "OutputUnwritable", 0)
        text, _ = objects.get(result["FailureLocation"])
        assert text.decode() == f"The result could not be written to {result['OutputLocation']}: NoSuchBucket."

    async def test_nothing_can_be_written(self, objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
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

    async def test_unwritten_failure_is_recorded(self, objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
        config = AsyncInferenceConfig(f"s3://{objects.bucket}/out", "s3://no-such-bucket/failed")
        endpoint = EndpointConfiguration([ProductionVariant(picky)], async_inference=config)
        storage = objects.storage("no-such-bucket")
        with caplog.at_level(logging.ERROR, "aiosmrt.local.asynchronous"):
            async with local_runtime({"later": endpoint}, object_storage=storage) as runtime:
                _, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code) == ("failed", "ModelError")
        assert "failed (ModelError)" in caplog.text
        assert "NoSuchBucket" in caplog.text

    async def test_storage_is_unreachable(
        self, objects: Objects, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        storage = objects.storage(url=f"http://127.0.0.1:{unused_tcp_port}")
        with caplog.at_level(logging.ERROR, "aiosmrt.local.asynchronous"):
            async with runtime_of(objects, echo, object_storage=storage) as runtime:
                _, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code) == ("failed", "OutputUnwritable")
        (message,) = caplog.messages
        assert message.endswith(": EndpointConnectionError")

    @pytest.mark.parametrize("eager", [False, True], ids=["plain tasks", "eager tasks"])
    async def test_internal_failure_does_not_end_the_worker(
        self, objects: Objects, caplog: pytest.LogCaptureFixture, eager: bool
    ) -> None:
        if eager:
            if sys.version_info < (3, 12):
                pytest.skip("eager tasks came with Python 3.12")
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        class Dice(random.Random):
            thrown = 0

            def choice(self, options: Any) -> Any:
                self.thrown += 1
                if self.thrown == 1:
                    raise OSError("the dice are lost")
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
        assert "the dice are lost" in caplog.text

    async def test_invocation_timeout(self, objects: Objects) -> None:
        model = Held()
        async with runtime_of(objects, model) as runtime:
            result, job = await one_job(runtime, Body=b"1", InvocationTimeoutSeconds=1)
            assert runtime.statistics()["jobs"]["running"] == 0
        assert (job.outcome, job.error_code) == ("failed", "ModelInvocationTimeExceeded")
        assert model.cancelled == 1
        text, _ = objects.get(result["FailureLocation"])
        assert b"timed out while waiting for a response" in text

    async def test_request_expires_in_the_queue(self, objects: Objects) -> None:
        """Three jobs for one slot: the first takes 61 s, after which only one of the others may still run."""
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

    async def test_waits_for_a_container_to_become_ready(self, objects: Objects) -> None:
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

    async def test_container_disconnects(self, objects: Objects) -> None:
        async def serve(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        async with InProcessContainer(serve) as container, runtime_of(objects, container.url) as runtime:
            _, job = await one_job(runtime, Body=b"1")
        assert (job.outcome, job.error_code) == ("failed", "ModelError")


class TestConcurrency:
    async def test_slots_of_one_instance(self, objects: Objects) -> None:
        model = Held()
        async with runtime_of(objects, model, at_once=2) as runtime, aiosmrt_client(runtime.url) as client:
            for _ in range(5):
                await invoke(client, Body=b"1")
            await runtime.wait_for_running_jobs(2)
            assert runtime.statistics()["jobs"]["queued"] == 3
            model.go_on.set()
            await runtime.wait_for_jobs(5)
        assert model.most_at_once == 2

    async def test_slots_of_several_instances(self, objects: Objects) -> None:
        """Whatever instances are chosen, none exceeds its slots."""
        models = [Held(), Held(), Held()]
        async with runtime_of(objects, *models, at_once=2) as runtime, aiosmrt_client(runtime.url) as client:
            for _ in range(12):
                await invoke(client, Body=b"1")
            await runtime.wait_for_running_jobs(6)
            for model in models:
                model.go_on.set()
            await runtime.wait_for_jobs(12)
        assert all(model.most_at_once <= 2 for model in models)


class TestInputLocations:
    async def test_empty_json_body_beside_a_location(self, objects: Objects) -> None:
        """AWS's JavaScript SDK 2 sends one."""
        headers = [("X-Amzn-SageMaker-InputLocation", objects.put("in", b"the input"))]
        async with runtime_of(objects, echo) as runtime, RawConnection.to(runtime.url) as connection:
            draft = Draft(runtime.url, "/endpoints/later/async-invocations", body=b"{}", headers=headers).sign()
            answer = await connection.exchange(draft.encode())
            (job,) = await runtime.wait_for_jobs(1)
        assert answer.status == 202
        assert job.input_location == headers[0][1]
        assert objects.get(job.output_location)[0] == b"the input"

    async def test_empty_json_body_alone_is_input(self, objects: Objects) -> None:
        async with runtime_of(objects, echo) as runtime:
            _, job = await one_job(runtime, Body=b"{}")
        assert objects.get(job.output_location)[0] == b"{}"

    @pytest.mark.parametrize(
        "form",
        [
            "https://{bucket}.s3.eu-central-1.amazonaws.com/in/a%20b%2B.csv",
            "https://{bucket}.s3.amazonaws.com/in/a%20b+.csv",
            "https://{bucket}.s3-eu-central-1.amazonaws.com/in/a%20b%2b.csv",
            "https://{bucket}.s3.dualstack.eu-central-1.amazonaws.com/in/a%20b%2B.csv",
            "https://{bucket}.s3.cn-north-1.amazonaws.com.cn/in/a%20b%2B.csv",
            "https://s3.eu-central-1.amazonaws.com/{bucket}/in/a%20b%2B.csv",
            "https://s3.amazonaws.com:443/{bucket}/in/a%20b%2B.csv",
        ],
    )
    @pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
    async def test_https_urls_of_s3(
        self, maker: Callable[..., AbstractAsyncContextManager[Any]], form: str, objects: Objects
    ) -> None:
        objects.put("in/a b+.csv", b"1,2")
        location = form.format(bucket=objects.bucket)
        async with runtime_of(objects, echo) as runtime, maker(runtime.url) as client:
            result = await invoke(client, InputLocation=location)
            (job,) = await runtime.wait_for_jobs(1)
        assert (job.outcome, job.input_location) == ("succeeded", location)
        assert objects.get(result["OutputLocation"])[0] == b"1,2"

    async def test_input_over_the_limit(self, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objectstorage, "MAX_OBJECT_BYTES", 1000)
        objects.put("exact", b"x" * 1000)
        objects.put("large", b"x" * 1001)
        async with runtime_of(objects, echo) as runtime:
            _, job = await one_job(runtime, InputLocation=f"s3://{objects.bucket}/exact")
            assert job.outcome == "succeeded"
            runtime.clear_requests()
            result, job = await one_job(runtime, InputLocation=f"s3://{objects.bucket}/large")
        assert (job.outcome, job.error_code) == ("failed", "InputUnavailable")
        assert objects.get(result["FailureLocation"])[0].endswith(b": EntityTooLarge.")

    async def test_result_over_the_limit(self, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_OBJECT_BYTES", 4)
        async with runtime_of(objects, words) as runtime:
            _, job = await one_job(runtime, Body=b"to be")
            assert job.outcome == "succeeded"
            runtime.clear_requests()
            result, job = await one_job(runtime, Body=b"to be or")
        assert (job.outcome, job.error_code) == ("failed", "ModelError")
        assert b"exceeded the limit of 4 bytes" in objects.get(result["FailureLocation"])[0]


class TestRejectedRequests:
    @pytest.mark.parametrize(
        "location",
        [
            "s3://another-bucket/key",
            "s3://{bucket}",
            "s3://{bucket}/",
            "https://another-bucket.s3.amazonaws.com/key",
            "https://s3.amazonaws.com/another-bucket/key",
            "https://s3.amazonaws.com/{bucket}",
            "https://s3.amazonaws.com/{bucket}/",
            "https://{bucket}.s3.amazonaws.com/",
            "https://{bucket}.s3.amazonaws.com/key?versionId=1",
            "https://{bucket}.s3.amazonaws.com/%ff",
            "https://{bucket}.s3.amazonaws.com.evil.example/key",
            "https://{bucket}.s3.amazonaws.com:444/key",
            "https://user@{bucket}.s3.amazonaws.com/key",
            "https://evil.example/{bucket}/key",
            "https://169.254.169.254/latest/meta-data",
        ],
    )
    async def test_input_outside_the_buckets(self, location: str, objects: Objects) -> None:
        location = location.format(bucket=objects.bucket)
        async with runtime_of(objects, echo) as runtime, aiosmrt_client(runtime.url) as client:
            with pytest.raises(ValidationError, match="not an object in a bucket of this runtime") as caught:
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
    async def test_invalid_body_and_location(
        self, headers: list[tuple[str, str]], body: bytes, reason: str, objects: Objects
    ) -> None:
        async with runtime_of(objects, echo) as runtime, RawConnection.to(runtime.url) as connection:
            draft = Draft(runtime.url, "/endpoints/later/async-invocations", body=body, headers=headers).sign()
            answer = await connection.exchange(draft.encode())
        assert answer.status == 400
        assert answer.headers["x-amzn-errortype"] == "ValidationError"
        assert reason in json.loads(answer.body)["Message"]

    async def test_synchronous_and_streaming_calls(self, objects: Objects) -> None:
        model = Held()
        model.go_on.set()
        async with runtime_of(objects, model) as runtime, aiobotocore_client(runtime.url) as client:
            for call, operation in (
                (client.invoke_endpoint, "InvokeEndpoint"),
                (client.invoke_endpoint_with_response_stream, "InvokeEndpointWithResponseStream"),
            ):
                with pytest.raises(client.exceptions.ValidationError, match=f"does not support {operation}") as caught:
                    await call(EndpointName="later", Body=b"now")
                assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
            assert runtime.jobs == ()
        assert model.most_at_once == 0

    async def test_largest_inline_payload(self, objects: Objects) -> None:
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

    async def test_synchronous_endpoint(self, objects: Objects) -> None:
        async with (
            local_runtime({"now": echo}, object_storage=objects.storage()) as runtime,
            boto3_client(runtime.url) as client,
        ):
            with pytest.raises(ClientError, match="does not have an asynchronous inference configuration"):
                await invoke(client, EndpointName="now", InputLocation=f"s3://{objects.bucket}/1")
            with pytest.raises(ClientError, match="not found"):
                await invoke(client, EndpointName="nowhere", InputLocation=f"s3://{objects.bucket}/1")

    async def test_faults_apply_to_the_request(self, objects: Objects) -> None:
        async with (
            runtime_of(objects, echo, faults={"later": faults.throttling().next(1)}) as runtime,
            aiosmrt_client(runtime.url, retries=RetryPolicy(max_attempts=1, retry_stale_connections=False)) as client,
        ):
            with pytest.raises(ThrottlingError):
                await invoke(client, Body=b"1")
            assert runtime.jobs == ()
            # The response is lost but the job is queued: a retried call makes two.
            runtime.inject("later", faults.ResetBeforeHeaders(after_model=True).next(1))
            with pytest.raises(TransportError):
                await invoke(client, Body=b"1", InferenceId="row-1")
            await invoke(client, Body=b"1", InferenceId="row-1")
            jobs = await runtime.wait_for_jobs(2)
        assert [job.inference_id for job in jobs] == ["row-1", "row-1"]


class TestConfiguration:
    def test_paths_outside_the_buckets(self, objects: Objects) -> None:
        storage = ObjectStorage(endpoint_url="http://127.0.0.1:1", credentials=OWNER, buckets=["another"])
        with pytest.raises(ConfigurationError, match=r"endpoint later writes to s3://bucket-.* whose bucket"):
            runtime_of(objects, echo, object_storage=storage)

    def test_no_storage(self, objects: Objects) -> None:
        with pytest.raises(ConfigurationError, match="endpoint later is asynchronous and needs an object_storage"):
            runtime_of(objects, echo, object_storage=None)

    def test_inference_components(self, objects: Objects) -> None:
        config = AsyncInferenceConfig(f"s3://{objects.bucket}/out")
        endpoint = EndpointConfiguration(
            inference_components=[InferenceComponent(echo, "adapter")], async_inference=config
        )
        with pytest.raises(ConfigurationError, match="cannot be asynchronous"):
            local_runtime({"later": endpoint}, object_storage=objects.storage())

    @pytest.mark.parametrize("path", ["", "results", "https://results/out", "s3://", "s3://a b/c"])
    def test_invalid_paths(self, path: str) -> None:
        for arguments in ({"s3_output_path": path}, {"s3_output_path": "s3://results", "s3_failure_path": path}):
            with pytest.raises(ConfigurationError, match="s3://bucket/prefix"):
                AsyncInferenceConfig(**arguments)

    @pytest.mark.parametrize("number", [0, 1001])
    def test_numbers_out_of_range(self, number: int) -> None:
        with pytest.raises(ConfigurationError, match=f"from 1 to 1000; got {number}"):
            AsyncInferenceConfig("s3://results", max_concurrent_invocations_per_instance=number)

    @pytest.mark.parametrize("url", ["", "127.0.0.1:8333", "ftp://127.0.0.1", "http://[", "http://host:0"])
    def test_invalid_storage_urls(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="http://host:port"):
            ObjectStorage(endpoint_url=url, credentials=OWNER, buckets=["results"])

    @pytest.mark.parametrize("buckets", [[], (), "results"])
    def test_storage_without_buckets(self, buckets: Any) -> None:
        with pytest.raises(ConfigurationError, match="non-empty list of bucket names"):
            ObjectStorage(endpoint_url="http://127.0.0.1:8333", credentials=OWNER, buckets=buckets)

    def test_storage_repr_omits_the_secret(self, objects: Objects) -> None:
        assert OWNER.secret_key not in repr(objects.storage())

    async def test_storage_cannot_be_used(self, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "missing")
        runtime = runtime_of(objects, echo)
        with pytest.raises(ConfigurationError, match=r"object storage cannot be used: ProfileNotFound"):
            await runtime.start()
        assert "idle" in repr(runtime)


class TestClose:
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

    async def test_restart(self, objects: Objects) -> None:
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

    async def test_close_right_after_a_request(self, objects: Objects) -> None:
        """Also while the worker has not started to run."""
        runtime = runtime_of(objects, echo)
        await runtime.start()
        async with aiosmrt_client(runtime.url) as client:
            await asyncio.gather(*(invoke(client, Body=b"1") for _ in range(10)))
            await runtime.close()
        assert len(runtime.jobs) == 10
        assert runtime.statistics()["jobs"]["queued"] == 0

    async def test_unneeded_storage_is_not_opened(self, objects: Objects) -> None:
        class Untouched(ObjectStorage):
            def open(self) -> Any:
                raise AssertionError("the storage was opened")

        storage = Untouched(endpoint_url="http://127.0.0.1:1", credentials=OWNER, buckets=[objects.bucket])
        async with local_runtime({"now": echo}, object_storage=storage):
            pass
        with pytest.raises(AssertionError, match="was opened"):
            async with runtime_of(objects, echo, object_storage=storage):
                pass
