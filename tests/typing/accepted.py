"""What users write; ``test_typing.py`` has it checked by mypy and pyright, strictly, and nothing here is run."""

import io
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import aiohttp

import aiosmrt
from aiosmrt import Client, Credentials, EventStream, RetryPolicy, StreamingBody
from aiosmrt.endpoint import DuplexStream, Inference, Job, PredictionStream
from aiosmrt.local import Invocation, LocalRuntime, StreamMessage
from aiosmrt.serializers import BYTES, CSV, JSON, TEXT
from aiosmrt.types import InvokeEndpointOutput, ResponseMetadata


async def one_call() -> bytes:
    async with Client(region_name="eu-central-1") as client:
        response = await client.invoke_endpoint(EndpointName="churn", Body=b"1,2,3", ContentType="text/csv")
        assert_type(response, InvokeEndpointOutput)
        assert_type(response["Body"], StreamingBody)
        return await response["Body"].read()


async def every_kind_of_body(client: Client, path: Path) -> None:
    await client.invoke_endpoint(EndpointName="churn", Body=bytearray(8))
    await client.invoke_endpoint(EndpointName="churn", Body=memoryview(b"1,2,3"))
    await client.invoke_endpoint(EndpointName="churn", Body='{"instances": []}')
    await client.invoke_endpoint(EndpointName="churn", Body=io.BytesIO(b"1,2,3"))
    with path.open("rb") as file:
        await client.invoke_endpoint(EndpointName="churn", Body=file)


async def every_member(client: Client) -> None:
    await client.invoke_endpoint(
        EndpointName="churn",
        Body=b"",
        ContentType="text/csv",
        Accept="text/csv",
        CustomAttributes="trace=1",
        TargetModel="model.tar.gz",
        TargetVariant="blue",
        TargetContainerHostname="second",
        InferenceId="42",
        EnableExplanations="`true`",
        InferenceComponentName="adapter",
        SessionId="NEW_SESSION",
        PrefixAwareId="prefix",
    )


async def keys_of_a_result(client: Client) -> None:
    response = await client.invoke_endpoint(EndpointName="churn", Body=b"1,2,3")
    assert_type(response["InvokedProductionVariant"], str)
    assert_type(response["ResponseMetadata"]["RequestId"], str)
    assert_type(response.get("CustomAttributes"), str | None)
    assert_type(response.get("NewSessionId"), str | None)
    assert_type(response["ResponseMetadata"], ResponseMetadata)
    assert_type(response["ResponseMetadata"]["HTTPStatusCode"], int)
    assert_type(response["ResponseMetadata"]["HTTPHeaders"], dict[str, str])
    assert_type(response["ContentType"], str)
    if "ContentType" in response:
        assert_type(response["ContentType"], str)


async def pieces_of_a_body(client: Client) -> None:
    response = await client.invoke_endpoint(EndpointName="churn", Body=b"1,2,3")
    async with response["Body"] as body:
        assert_type(await body.read(16), bytes)
        async for chunk in body.iter_chunks(1024):
            assert_type(chunk, bytes)
        async for line in body.iter_lines(keepends=True):
            assert_type(line, bytes)


async def a_stream(client: Client) -> int:
    response = await client.invoke_endpoint_with_response_stream(EndpointName="llm", Body=b"{}", SessionId="s-1")
    assert_type(response["Body"], EventStream)
    size = 0
    async with response["Body"] as stream:
        first = await anext(stream)
        size += len(first["PayloadPart"]["Bytes"])
        async for event in stream:
            assert_type(event["PayloadPart"]["Bytes"], bytes)
            size += len(event["PayloadPart"]["Bytes"])
    return size


async def a_queued_inference(client: Client) -> str | None:
    response = await client.invoke_endpoint_async(
        EndpointName="slow", InputLocation="s3://bucket/key", RequestTTLSeconds=3600, InvocationTimeoutSeconds=900
    )
    return response.get("OutputLocation")


async def other_settings(client: Client) -> None:
    impatient = client.with_options(deadline=2.0, retry=RetryPolicy(max_attempts=1), read_timeout=None)
    assert_type(impatient, Client)
    await impatient.invoke_endpoint(EndpointName="churn", Body=b"1,2,3")
    client.with_options(retry={"mode": "standard", "max_attempts": 2})


async def by_name(client: Client, params: Mapping[str, Any]) -> dict[str, Any]:
    return await client.make_request("InvokeEndpoint", params)


async def a_presigned_url(client: Client) -> str:
    return await client.generate_presigned_url("invoke_endpoint", {"EndpointName": "churn", "Body": b""}, ExpiresIn=60)


async def errors(client: Client) -> None:
    try:
        await client.invoke_endpoint(EndpointName="churn", Body=b"1,2,3")
    except aiosmrt.ModelError as error:
        assert_type(error.original_status_code, int | None)
        assert_type(error.log_stream_arn, str | None)
    except (aiosmrt.ThrottlingError, client.exceptions.ModelNotReadyException) as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.attempts, int)
    except aiosmrt.ReadTimeoutError as error:
        assert_type(error.endpoint_url, str | None)
    except TimeoutError:
        raise
    except aiosmrt.ParamValidationError as error:
        assert_type(error.faults, list[str])
    except aiosmrt.AiosmrtError as error:
        assert_type(error.request_id, str | None)
        assert_type(error.throttling, bool)


async def fresh_credentials() -> Credentials:
    return Credentials("AKIDEXAMPLE", "not-a-real-secret", token=None, expires_at=None)


def watch(event: aiosmrt.Event) -> None:
    print(event)


def everything_given(session: aiohttp.ClientSession) -> Client:
    return Client(
        "eu-central-1",
        endpoint_url="http://127.0.0.1:8080",
        profile_name="work",
        credentials=fresh_credentials,
        api_version="2017-05-13",
        verify=ssl.create_default_context(),
        connect_timeout=None,
        read_timeout=70,
        deadline=90.0,
        max_concurrency=32,
        retry=RetryPolicy(retry_model_statuses=frozenset({503})),
        sign=True,
        user_agent_extra="batch/1",
        use_fips_endpoint=False,
        use_dualstack_endpoint=None,
        session=session,
        observers=[watch],
    )


def facts(client: Client) -> None:
    statistics = client.statistics()
    assert_type(statistics.retries, Mapping[str, int])
    assert_type(client.meta.region_name, str | None)
    assert_type(client.can_paginate("invoke_endpoint"), bool)
    assert_type(client.meta.partition, str)
    assert_type(client.meta.service_model.operation_names, tuple[str, ...])
    client.meta.service_model.operation_model("InvokeEndpoint")


async def endpoints(client: Client) -> None:
    scores = client.endpoint("churn", serializer=CSV, deserializer=TEXT, target_variant="blue", deadline=5.0)
    assert_type(await scores.predict([[1, 2.5, "a"]]), str)
    assert_type(await scores.invoke([[1, 2]], inference_id="42"), Inference[str])
    assert_type((await scores.invoke([[1, 2]])).value, str)
    assert_type(await client.endpoint("image", serializer=BYTES, deserializer=JSON).predict(b"GIF89a"), Any)
    assert_type(await client.endpoint("text", serializer=TEXT, deserializer=BYTES).predict("hello"), bytes)


class Scores:
    """A deserializer of one's own needs no base class."""

    accept = "text/csv"

    def deserialize(self, body: bytes, content_type: str) -> list[float]:
        return [float(line) for line in body.splitlines()]


async def codecs_of_ones_own(client: Client) -> None:
    endpoint = client.endpoint("churn", serializer=CSV, deserializer=Scores())
    assert_type(await endpoint.predict([[1, 2]]), list[float])
    assert_type(await endpoint.with_options(deadline=1.0, accept="text/csv").predict([[1, 2]]), list[float])


async def streams(client: Client) -> None:
    endpoint = client.endpoint("llm", serializer=JSON, deserializer=JSON)
    async with endpoint.stream({"inputs": "hello"}, first_part_timeout=30.0, part_timeout=5) as stream:
        assert_type(stream, PredictionStream)
        async for text in stream.text():
            assert_type(text, str)
    async with endpoint.stream({"inputs": "hello"}) as stream:
        async for part in stream.bytes():
            assert_type(part, bytes)
    async with endpoint.stream({"inputs": "hello"}) as stream:
        async for event in stream.sse():
            assert_type(event.data, str)


async def both_directions(client: Client, frames: AsyncIterator[bytes]) -> None:
    endpoint = client.endpoint("speech", serializer=BYTES, deserializer=Scores())
    async with endpoint.duplex(model_query_string="a=b", target_variant="blue", data_type="BINARY") as stream:
        assert_type(stream, DuplexStream[bytes | bytearray | memoryview, list[float]])
        await stream.send_all(frames, end_input=False)
        await stream.send({"type": "Finalize"}, serializer=JSON)
        async for value in stream:
            assert_type(value, list[float])


async def words(invocation: Invocation) -> AsyncIterator[str]:
    async for message in invocation.messages:
        assert_type(message, StreamMessage)
        yield "heard"


async def a_model_that_talks_back(client: Client) -> None:
    async with LocalRuntime({"speech": words}, http2_port=0) as runtime:
        assert_type(runtime.http2_url, str)


async def fan_out(client: Client, rows: list[str], queue: AsyncIterator[str]) -> None:
    endpoint = client.endpoint("churn", serializer=TEXT, deserializer=Scores())
    async with endpoint.map(rows, concurrency=8, ordered=False) as results:
        async for result in results:
            assert_type(result.item, str)
            assert_type(result.value, list[float] | None)
            assert_type(result.error, Exception | None)
            assert_type(result.unwrap(), list[float])
    async with endpoint.map(queue) as results:
        assert_type((await anext(results)).index, int)
        results.stop()
        await results.drain(timeout=10)
    async with endpoint.map([1, 2], batch_size=2, combine=str, split=lambda scores, count: scores) as grouped:
        assert_type((await anext(grouped)).item, int)
    async with endpoint.map_groups([["a"], ["b"]], combine="".join, max_failures="5%") as grouped_texts:
        assert_type((await anext(grouped_texts)).item, str)


async def sessions_and_jobs(client: Client) -> None:
    endpoint = client.endpoint("chat", serializer=TEXT, deserializer=Scores(), upload_to="s3://bucket/in")
    async with endpoint.session() as session:
        assert_type(await session.predict("hello"), list[float])
    job = await endpoint.submit("hello", request_ttl=60)
    assert_type(job, Job[list[float]])
    assert_type(await job.result(timeout=900, cleanup=True), list[float])
    assert_type(await endpoint.job(job.handle).done(), bool)
