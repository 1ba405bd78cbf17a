"""OpenAI's own SDK on an endpoint's OpenAI route, which a bearer token authorizes."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from aiosmrt import Client, Credentials, RetryPolicy
from aiosmrt.integrations.openai import async_openai
from aiosmrt.local import ContainerFailure, EndpointConfiguration, InferenceComponent, Invocation, LocalRuntime, faults
from tests.integrations.models import GatedModel
from tests.support.openai_models import MESSAGES, WORDS, event, speaker
from tests.support.peers import REGION, aiosmrt_client
from tests.support.runtime import local_runtime

ASK: dict[str, Any] = {"model": "llm", "messages": MESSAGES}


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
    models = {"llm": "llm", "gated": "gated", "adapter": ("shared", "adapter"), "asleep": ("shared", "asleep")}
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
    models = {"llm": "llm", "adapter": ("shared", "adapter")}
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
    with pytest.raises(openai.BadRequestError, match="CustomAttributes"):
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
