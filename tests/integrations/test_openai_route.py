"""OpenAI's own SDK on an endpoint's OpenAI route, which a bearer token authorizes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import openai
import pytest

from aiosmrt import Client, Credentials, RetryPolicy
from aiosmrt.events import CallEnded
from aiosmrt.integrations.openai import async_openai
from aiosmrt.local import ContainerFailure, EndpointConfiguration, InferenceComponent, Invocation, LocalRuntime, faults
from tests.integrations.models import GatedModel
from tests.support.openai_models import MESSAGES, WORDS, completion, event, speaker
from tests.support.peers import REGION, aiosmrt_client
from tests.support.raw_server import RawServer, error_response, response
from tests.support.runtime import local_runtime

ASK: dict[str, Any] = {"model": "llm", "messages": MESSAGES}
AT_ONCE = RetryPolicy(base_delay=0.0, throttling_base_delay=0.0)
ANSWER = response(200, json.dumps(completion()).encode(), [("Content-Type", "application/json")])


@pytest.fixture
def model() -> GatedModel:
    return GatedModel()


@pytest.fixture
async def runtime(model: GatedModel) -> AsyncIterator[LocalRuntime]:
    endpoints = {
        "llm": speaker,
        "gated": model.speak,
        "shared": EndpointConfiguration(
            inference_components=(InferenceComponent(speaker, "adapter"), InferenceComponent((), "asleep"))
        ),
    }
    async with local_runtime(endpoints, record_bodies=True) as runtime:
        yield runtime


@pytest.fixture
async def client(runtime: LocalRuntime) -> AsyncIterator[Client]:
    async with aiosmrt_client(runtime.url, patience=0.0) as client:
        yield client


@pytest.fixture
async def llm(client: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    models: dict[str, Any] = {
        "llm": "llm",
        "gated": "gated",
        "adapter": ("shared", "adapter"),
        "asleep": ("shared", "asleep"),
    }
    async with async_openai(client, route="openai", models=models) as llm:
        yield llm


async def words_of(stream: Any) -> list[str]:
    return [one.choices[0].delta.content async for one in stream if one.choices]


async def test_chat(llm: openai.AsyncOpenAI, runtime: LocalRuntime) -> None:
    answer = await llm.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "To be, or not"
    (record,) = runtime.requests
    assert record.path == "/endpoints/llm/openai/v1/chat/completions"
    assert (record.operation, record.access_key_id, record.status) == ("OpenAIChatCompletions", "AKIDEXAMPLE", 200)
    assert json.loads(record.request_body or b"") == {"model": "", "messages": MESSAGES}


async def test_component_is_in_the_path(llm: openai.AsyncOpenAI, runtime: LocalRuntime) -> None:
    await llm.chat.completions.create(model="adapter", messages=MESSAGES)
    (record,) = runtime.requests
    assert record.path == "/endpoints/shared/inference-components/adapter/openai/v1/chat/completions"
    assert record.headers is not None
    assert "x-amzn-sagemaker-inference-component" not in record.headers


async def test_components_have_slots_of_their_own(client: Client, runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.Stall())
    models: dict[str, Any] = {"llm": "llm", "adapter": ("shared", "adapter")}
    async with async_openai(client.with_options(max_concurrency=1), route="openai", models=models) as llm:
        first = asyncio.ensure_future(llm.chat.completions.create(**ASK))
        await llm.chat.completions.create(model="adapter", messages=MESSAGES)
        runtime.release_stalled()
        await first


async def test_stream_word_by_word(llm: openai.AsyncOpenAI, model: GatedModel, runtime: LocalRuntime) -> None:
    model.say(event("first"))
    async with await llm.chat.completions.create(model="gated", messages=MESSAGES, stream=True) as stream:
        assert (await anext(stream)).choices[0].delta.content == "first"
        model.say(event("second")[:30])
        model.say(event("second")[30:])
        assert (await anext(stream)).choices[0].delta.content == "second"
    (record,) = await runtime.wait_for_requests(1)
    assert (record.operation, record.outcome) == ("OpenAIChatCompletionsStream", "disconnected")


async def test_fifty_streams_at_once(llm: openai.AsyncOpenAI, client: Client) -> None:
    async def spoken() -> list[str]:
        return await words_of(await llm.chat.completions.create(**ASK, stream=True))

    assert await asyncio.gather(*(spoken() for _ in range(50))) == [WORDS] * 50
    assert client.statistics().in_use == 0


async def test_container_dies_in_its_stream() -> None:
    async def dying(invocation: Invocation) -> AsyncIterator[bytes]:
        yield event("first")
        raise ContainerFailure(500, "gone")

    async with (
        local_runtime({"llm": dying}) as runtime,
        aiosmrt_client(runtime.url, patience=0.0) as client,
        async_openai(client, route="openai") as llm,
    ):
        stream = await llm.chat.completions.create(**ASK, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "first"
        with pytest.raises(openai.APIConnectionError):
            await anext(stream)


async def test_cancelled_caller(llm: openai.AsyncOpenAI, model: GatedModel, runtime: LocalRuntime) -> None:
    model.say(event("first"))
    stream = await llm.chat.completions.create(model="gated", messages=MESSAGES, stream=True)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (record,) = await runtime.wait_for_requests(1)
    assert record.outcome == "disconnected"


@pytest.mark.parametrize(
    ("fault", "error", "status", "message"),
    [
        (faults.throttling(1.5), openai.RateLimitError, 429, "ThrottlingException"),
        (faults.too_many_requests(), openai.RateLimitError, 429, "the service answered 429 without a message"),
        (faults.no_capacity(), openai.InternalServerError, 503, "has no capacity"),
        (faults.internal_failure(), openai.InternalServerError, 500, "An internal failure occurred."),
        (faults.bad_gateway(), openai.InternalServerError, 502, "the service answered 502 without a message"),
        (faults.validation_failure("no such thing"), openai.BadRequestError, 400, "no such thing"),
        (faults.ModelFailure(500, "out of memory"), openai.InternalServerError, 500, "out of memory"),
        (
            faults.ModelFailure(400, '{"error": {"message": "the bus \\"has no capacity\\"", "code": "c"}}'),
            openai.BadRequestError,
            400,
            'the bus "has no capacity"',
        ),
        (faults.ModelFailure(404, '{"object": "error", "message": "no model"}'), openai.NotFoundError, 404, "no model"),
        (
            faults.ModelFailure(422, '{"error": "too long"}'),
            openai.UnprocessableEntityError,
            422,
            "too long",
        ),
        (faults.ModelFailure(413, '["unreadable"]'), openai.APIStatusError, 413, '["unreadable"]'),
        (faults.ModelFailure(400, '{"detail": "FastAPI"}'), openai.BadRequestError, 400, "400 - FastAPI"),
        (
            faults.ModelFailure(422, '{"detail": [{"msg": "too long"}]}'),
            openai.UnprocessableEntityError,
            422,
            '{"detail": [{"msg": "too long"}]}',
        ),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_error(
    llm: openai.AsyncOpenAI,
    runtime: LocalRuntime,
    fault: Any,
    error: type[openai.APIStatusError],
    status: int,
    message: str,
    streams: bool,
) -> None:
    runtime.inject("llm", fault)
    with pytest.raises(openai.APIStatusError) as caught:
        await llm.with_options(max_retries=5).chat.completions.create(**ASK, stream=streams)
    raised = caught.value
    assert (type(raised), raised.status_code) == (error, status)
    assert message in raised.message
    assert len(runtime.requests) == 1


async def test_missing_endpoint_and_component(client: Client) -> None:
    async with async_openai(client, route="openai") as llm:
        with pytest.raises(openai.NotFoundError, match="Endpoint nowhere of account"):
            await llm.chat.completions.create(model="nowhere", messages=MESSAGES)


async def test_component_without_capacity(llm: openai.AsyncOpenAI, runtime: LocalRuntime) -> None:
    with pytest.raises(openai.InternalServerError, match="has no capacity") as caught:
        await llm.chat.completions.create(model="asleep", messages=MESSAGES)
    assert caught.value.status_code == 503


async def test_capacity_is_waited_for(client: Client, runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.Fault(faults.no_capacity(), faults.Schedule(next=1)))
    async with async_openai(client.with_options(wait_for_capacity=60.0), route="openai") as llm:
        await llm.chat.completions.create(**ASK)
    assert [record.status for record in runtime.requests] == [400, 200]


async def test_throttling_is_waited_out(client: Client, runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.Fault(faults.too_many_requests(), faults.Schedule(next=2)))
    retry = RetryPolicy(base_delay=0.0, throttling_base_delay=0.0)
    async with async_openai(client.with_options(patience=60.0, retry=retry), route="openai") as llm:
        await llm.chat.completions.create(**ASK)
    assert [record.status for record in runtime.requests] == [429, 429, 200]


@pytest.mark.parametrize(
    "refusal",
    [
        error_response(400, "ThrottlingException", None),
        error_response(429, "ModelNotReadyException"),
        error_response(403, "InvalidSignatureException", None, [("Date", formatdate(time.time() + 3600, usegmt=True))]),
        error_response(500, "InternalFailure", error={"message": "failed", "type": "t"}),
        response(400, b'{"__type": "com.amazonaws#ThrottlingException", "message": null}'),
    ],
    ids=["throttling", "model_not_ready", "clock", "failure", "type_in_body"],
)
async def test_errors_in_awss_own_form_are_retried(refusal: bytes) -> None:
    async with (
        RawServer([[refusal]], otherwise=[ANSWER]) as server,
        aiosmrt_client(server.url, patience=60.0, retry=AT_ONCE) as client,
        async_openai(client, route="openai") as llm,
    ):
        answer = await llm.chat.completions.create(**ASK)
        assert answer.choices[0].message.content == "To be, or not"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("refusal", "error", "status", "message"),
    [
        (
            error_response(400, "ThrottlingException", None),
            openai.RateLimitError,
            429,
            "An error occurred (ThrottlingException)",
        ),
        (
            error_response(424, "ModelError", "m", OriginalStatusCode=422, OriginalMessage='{"error": "too long"}'),
            openai.UnprocessableEntityError,
            422,
            "too long",
        ),
        (
            response(400, b'{"message": null}'),
            openai.BadRequestError,
            400,
            "the service answered 400 without a message",
        ),
    ],
    ids=["throttling", "model_error", "no_type"],
)
async def test_errors_in_awss_own_form_reach_the_sdk(
    refusal: bytes, error: type[openai.APIStatusError], status: int, message: str
) -> None:
    async with (
        RawServer(otherwise=[refusal]) as server,
        aiosmrt_client(server.url, patience=0.0) as client,
        async_openai(client, route="openai") as llm,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await llm.chat.completions.create(**ASK)
        assert (type(caught.value), caught.value.status_code) == (error, status)
        assert message in caught.value.message
        assert "null" not in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        '{"error": {"message": "out of memory", "type": "ServiceUnavailable", "code": "ThrottlingException"}}',
        '{"object": "error", "message": "out of memory", "code": 500}',
        '{"detail": "out of memory"}',
        "out of memory",
    ],
)
async def test_failing_container_is_not_asked_again(body: str) -> None:
    calls = 0

    async def poisoned(invocation: Invocation) -> bytes:
        nonlocal calls
        calls += 1
        raise ContainerFailure(503, body)

    seen: list[Any] = []
    async with (
        local_runtime({"llm": poisoned}) as runtime,
        aiosmrt_client(runtime.url, patience=60.0, observers=[seen.append]) as client,
        async_openai(client, route="openai") as llm,
    ):
        with pytest.raises(openai.InternalServerError, match="503 - out of memory"):
            await llm.chat.completions.create(**ASK)
        assert calls == 1
        (ended,) = [one for one in seen if isinstance(one, CallEnded)]
        assert ended.error == "ModelError"
        again = RetryPolicy(base_delay=0.0, retry_model_statuses=frozenset({503}), max_attempts=3)
        async with async_openai(client.with_options(retry=again), route="openai") as stubborn:
            with pytest.raises(openai.InternalServerError, match="503 - out of memory"):
                await stubborn.chat.completions.create(**ASK)
        assert calls == 4


async def test_container_cannot_pass_for_a_failing_service() -> None:
    document = {"error": {"message": "no", "type": "ServiceUnavailable", "code": "ModelError"}}
    async with (
        RawServer(otherwise=[response(400, json.dumps(document).encode())]) as server,
        aiosmrt_client(server.url, patience=60.0) as client,
        async_openai(client, route="openai") as llm,
    ):
        with pytest.raises(openai.BadRequestError, match="no") as caught:
            await llm.chat.completions.create(**ASK)
        assert caught.value.body == document["error"]
        assert len(server.requests) == 1


async def test_full_queue_of_the_container() -> None:
    async def busy(invocation: Invocation) -> bytes:
        raise ContainerFailure(429, '{"error": {"message": "queue is full"}}')

    async with (
        local_runtime({"llm": busy}) as runtime,
        aiosmrt_client(runtime.url, patience=0.0) as own,
        async_openai(own, route="openai") as llm,
    ):
        with pytest.raises(openai.RateLimitError, match="queue is full"):
            await llm.chat.completions.create(**ASK)


async def test_other_paths_are_not_sent(llm: openai.AsyncOpenAI, runtime: LocalRuntime) -> None:
    with pytest.raises(openai.NotFoundError, match="only POST requests to chat/completions are sent"):
        await llm.embeddings.create(model="llm", input="x")
    with pytest.raises(openai.BadRequestError, match="custom-attributes"):
        await llm.chat.completions.create(**ASK, extra_headers={"X-Amzn-SageMaker-Custom-Attributes": "a"})
    assert list(runtime.requests) == []


async def test_timeout_is_a_deadline(llm: openai.AsyncOpenAI, runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.Stall())
    with pytest.raises(openai.APITimeoutError):
        await llm.chat.completions.create(**ASK, timeout=0.05)


async def test_refused_token(runtime: LocalRuntime) -> None:
    other = Credentials("AKIDEXAMPLE", "another")
    async with (
        Client(REGION, endpoint_url=runtime.url, credentials=other) as client,
        async_openai(client, route="openai") as llm,
    ):
        with pytest.raises(openai.PermissionDeniedError, match="signature we calculated does not match"):
            await llm.chat.completions.create(**ASK)


@pytest.mark.parametrize("streams", [False, True])
async def test_the_sdk_alone_with_a_token(client: Client, runtime: LocalRuntime, streams: bool) -> None:
    """The SDK's own HTTP client on the route's URL: AWS's way."""
    url = f"{client.endpoint_url}/endpoints/llm/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=client.bearer_token()) as sdk:
        answer: Any = await sdk.chat.completions.create(**{**ASK, "model": ""}, stream=streams)
        assert not streams or await words_of(answer) == WORDS
    (record,) = await runtime.wait_for_requests(1)
    assert (record.status, record.access_key_id) == (200, "AKIDEXAMPLE")
    assert client.statistics().attempts == 0


async def test_unsigned_client(runtime: LocalRuntime) -> None:
    async with (
        local_runtime({"llm": speaker}, verify_signatures=False, record_bodies=True) as own,
        Client(endpoint_url=own.url, sign=False) as client,
        async_openai(client, route="openai") as llm,
    ):
        await llm.chat.completions.create(**ASK)
