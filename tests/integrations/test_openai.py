"""OpenAI's own SDK on endpoints of a local runtime."""

import asyncio
import doctest
import importlib
import json
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from copy import copy
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt import Client, ParamValidationError, RetryPolicy
from aiosmrt._wire.decoders.sse import SSEDecoder
from aiosmrt.errors import NoRegionError
from aiosmrt.events import GenerationEnded
from aiosmrt.integrations.openai import Deployment, async_openai, http_client
from aiosmrt.integrations.openai._answers import QuickEvent
from aiosmrt.integrations.openai._streams import EventBytes, LineEvents
from aiosmrt.local import ContainerFailure, EndpointConfiguration, InferenceComponent, Invocation, LocalRuntime, faults
from tests.integrations.models import GatedModel
from tests.support.openai_models import DONE, MESSAGES, WORDS, chunk, completion, event, speaker
from tests.support.peers import CLIENT_ARGUMENTS, aiosmrt_client, isolate_aws
from tests.support.runtime import local_runtime
from tests.support.virtual_time import VirtualTime

PROMPT = "MARKprompt"
ASK: dict[str, Any] = {"model": "llm", "messages": MESSAGES}


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    endpoints = {
        "llm": speaker,
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


@asynccontextmanager
async def serving(model: Any, **arguments: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, LocalRuntime]]:
    """The SDK on an endpoint ``llm`` with this model."""
    async with (
        local_runtime({"llm": model}, record_bodies=True) as runtime,
        aiosmrt_client(runtime.url, patience=0.0, **arguments) as client,
        async_openai(client) as llm,
    ):
        yield llm, runtime


def received(runtime: LocalRuntime) -> Any:
    """The body of the only request."""
    (record,) = runtime.requests
    return json.loads(record.request_body or b"")


# Requests


async def test_chat(client: Client, runtime: LocalRuntime) -> None:
    async with async_openai(client) as llm:
        answer = await llm.chat.completions.create(**ASK, temperature=0.5)
    assert answer.choices[0].message.content == "To be, or not"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
    (record,) = runtime.requests
    assert (record.operation, record.endpoint, record.status) == ("InvokeEndpoint", "llm", 200)
    assert record.request_id == answer._request_id
    assert received(runtime) == {"model": "", "messages": MESSAGES, "temperature": 0.5}


async def test_completions_and_embeddings(client: Client, runtime: LocalRuntime) -> None:
    async with async_openai(client) as llm:
        text = await llm.completions.create(model="llm", prompt="To be,")
        vectors = await llm.embeddings.create(model="llm", input="To be", encoding_format="float")
    assert text.choices[0].text == "or not"
    assert vectors.data[0].embedding == [0.25, 0.5]
    assert [record.operation for record in runtime.requests] == ["InvokeEndpoint", "InvokeEndpoint"]


@pytest.mark.parametrize(
    ("options", "model", "sent"),
    [
        ({}, "llm", ("llm", None, "")),
        ({"container_model": None}, "llm", ("llm", None, "llm")),
        ({"container_model": "Qwen"}, "llm", ("llm", None, "Qwen")),
        ({"default_model": "llm"}, "", ("llm", None, "")),
        ({"models": {"qwen": "llm"}, "container_model": None}, "qwen", ("llm", None, "qwen")),
        ({"models": {"qwen": ("shared", "adapter")}}, "qwen", ("shared", "adapter", "")),
        ({"models": {"qwen": Deployment("llm", container_model="Q")}}, "qwen", ("llm", None, "Q")),
        (
            {"models": {"qwen": Deployment("llm", None, None)}, "container_model": "other"},
            "qwen",
            ("llm", None, "qwen"),
        ),
    ],
)
async def test_model_selects_the_endpoint(
    client: Client, runtime: LocalRuntime, options: dict[str, Any], model: str, sent: tuple[str, str | None, str]
) -> None:
    async with async_openai(client, **options) as llm:
        await llm.chat.completions.create(model=model, messages=MESSAGES)
    (record,) = runtime.requests
    assert (record.endpoint, record.inference_component, received(runtime)["model"]) == sent


async def test_headers_are_parameters(client: Client, runtime: LocalRuntime) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "accept_eula=true", "X-Amzn-SageMaker-Inference-Id": "i-1"}
    async with async_openai(client) as llm:
        await llm.chat.completions.create(**ASK, extra_headers=headers)
    (record,) = runtime.requests
    assert record.headers is not None
    assert record.headers["x-amzn-sagemaker-custom-attributes"] == "accept_eula=true"
    assert record.inference_id == "i-1"
    # the SDK's placeholder for a key stays here
    assert "unused" not in repr(dict(record.headers))


async def test_text_that_utf8_cannot_express(client: Client, runtime: LocalRuntime) -> None:
    body = rb'{"model": "llm", "messages": [{"role": "user", "content": "\ud83d"}]}'
    async with http_client(client) as http:
        await http.post("/chat/completions", content=body)
    assert received(runtime)["messages"][0]["content"] == "\ud83d"


@pytest.mark.parametrize("value", ["\u00e9\u2028", 1e-7, 1e22, -0.0, 10**30, json.loads("[" * 300 + "]" * 300)])
async def test_body_stays_the_same(client: Client, runtime: LocalRuntime, value: Any) -> None:
    async with async_openai(client) as llm:
        await llm.chat.completions.create(**ASK, extra_body={"given": value})
    assert repr(received(runtime)["given"]) == repr(value)


async def test_large_body(client: Client, runtime: LocalRuntime) -> None:
    long = "x" * 2_000_000
    async with async_openai(client) as llm:
        await llm.chat.completions.create(model="llm", messages=[{"role": "user", "content": long}])
    assert received(runtime)["messages"][0]["content"] == long


async def test_other_paths_of_a_container(client: Client, runtime: LocalRuntime) -> None:
    async with http_client(client, paths=["/rerank"]) as http:
        assert (await http.post("https://any.host/base/rerank", json={"model": "llm"})).status_code == 200
        assert (await http.post("/embeddings", json={"model": "llm"})).status_code == 404
    assert len(runtime.requests) == 1


@pytest.mark.parametrize(
    ("options", "ask", "error", "message"),
    [
        ({}, lambda llm: llm.chat.completions.create(model="", messages=[]), openai.BadRequestError, "got none"),
        (
            {},
            lambda llm: llm.chat.completions.create(model=7, messages=[]),
            openai.BadRequestError,
            "the request must name its model; got one of type int",
        ),
        (
            {},
            lambda llm: llm.models.list(),
            openai.NotFoundError,
            "only POST requests to chat/completions, completions, embeddings are sent to SageMaker; got GET /v1/models",
        ),
        ({}, lambda llm: llm.moderations.create(input="x"), openai.NotFoundError, "got POST /v1/moderations"),
        (
            {},
            lambda llm: llm.embeddings.create(model="llm", input="x", extra_body={"stream": True}),
            openai.BadRequestError,
            "embeddings cannot be streamed",
        ),
        (
            {"models": {"qwen": "llm"}},
            lambda llm: llm.chat.completions.create(**ASK),
            openai.NotFoundError,
            "the model 'llm' is not mapped; known are qwen",
        ),
        (
            {},
            lambda llm: llm.chat.completions.create(model="not/a name", messages=[]),
            openai.BadRequestError,
            "EndpointName",
        ),
        (
            {},
            lambda llm: llm.chat.completions.create(**ASK, timeout=-1.0),
            openai.BadRequestError,
            "deadline must be",
        ),
        (
            {},
            lambda llm: llm.post("/chat/completions", cast_to=object, content=b"[]"),
            openai.BadRequestError,
            "the request's body must be a JSON object",
        ),
        (
            {},
            lambda llm: llm.chat.completions.create(
                **ASK, stream=True, extra_headers={"X-Amzn-SageMaker-Target-Model": "m.tar.gz"}
            ),
            openai.BadRequestError,
            "TargetModel",
        ),
        (
            {},
            lambda llm: llm.chat.completions.create(
                **ASK, extra_headers={"X-Amzn-SageMaker-Target-Varient": "blue", "X-Other": "fine"}
            ),
            openai.BadRequestError,
            "no call on this route has a header 'x-amzn-sagemaker-target-varient'; known are x-amzn-sagemaker-",
        ),
        (
            {"route": "openai"},
            lambda llm: llm.chat.completions.create(
                **ASK, extra_headers={"X-Amzn-SageMaker-Custom-Attributes": "accept_eula=true"}
            ),
            openai.BadRequestError,
            "'x-amzn-sagemaker-custom-attributes'; known are x-amzn-sagemaker-inference-component",
        ),
    ],
)
async def test_bad_request_is_not_sent(
    client: Client,
    runtime: LocalRuntime,
    options: dict[str, Any],
    ask: Callable[[Any], Any],
    error: type[openai.APIStatusError],
    message: str,
) -> None:
    async with async_openai(client, **options) as llm:
        with pytest.raises(error) as caught:
            await ask(llm)
    assert message in str(caught.value)
    assert message in caught.value.body["message"]  # type: ignore[index]
    assert list(runtime.requests) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"route": "v1"}, "route must be 'invocations' or 'openai'; got 'v1'"),
        ({"route": "openai", "paths": ["embeddings"]}, "paths cannot be given with route 'openai'"),
        ({"paths": "embeddings"}, "paths must be OpenAI's paths"),
        ({"paths": [""]}, "paths must be OpenAI's paths"),
        ({"models": ["qwen"]}, "models must map names to endpoints"),
        ({"models": {"qwen": 7}}, "got 7 for 'qwen'"),
        ({"models": {"qwen": ("llm", 7)}}, "models must map each name"),
        ({"default_model": 7}, "default_model must be a string or None"),
        ({"models": {"qwen": "llm"}, "default_model": "llm"}, "default_model must be one of models: qwen; got 'llm'"),
        ({"container_model": 7}, "container_model must be a string or None"),
        ({"http_client": None}, "http_client cannot be given here"),
    ],
)
def test_invalid_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamValidationError, match="(?s).*" + message.replace("(", r"\(")):
        async_openai(Client("eu-central-1"), **arguments)


def test_client_of_another_kind() -> None:
    with pytest.raises(ParamValidationError, match=r"client must be an aiosmrt\.Client"):
        http_client(object())  # type: ignore[arg-type]


async def test_proxy_variables_do_not_divert_requests(
    client: Client, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.invoke_endpoint(EndpointName="llm", Body=b"{}")
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with async_openai(client) as llm:
        await llm.chat.completions.create(**ASK)
    assert len(runtime.requests) == 2


async def test_closing_the_sdk_leaves_the_client_open(client: Client) -> None:
    async with async_openai(client) as llm:
        await llm.chat.completions.create(**ASK)
    assert llm.is_closed()
    await client.invoke_endpoint(EndpointName="llm", Body=b"{}")


# Streams


async def words_of(stream: Any) -> list[str]:
    return [one.choices[0].delta.content async for one in stream if one.choices]


async def test_stream(client: Client, runtime: LocalRuntime) -> None:
    async with (
        async_openai(client) as llm,
        await llm.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}) as stream,
    ):
        chunks = [one async for one in stream]
    assert [one.choices[0].delta.content for one in chunks if one.choices] == WORDS
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    (record,) = await runtime.wait_for_requests(1)
    assert (record.operation, record.outcome) == ("InvokeEndpointWithResponseStream", "answered")
    assert received(runtime)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("form", [event, lambda word: chunk(word) + b"\n"], ids=["events", "lines"])
async def test_word_arrives_before_the_next_exists(form: Callable[[str | None], bytes]) -> None:
    model = GatedModel()
    async with serving(model.speak) as (llm, runtime):
        model.say(b"\n", form("first"))
        async with await llm.chat.completions.create(**ASK, stream=True) as stream:
            assert (await anext(stream)).choices[0].delta.content == "first"
            # An end of line in Unicode that JSON does not escape, and which is no end of a line of JSON.
            model.say(form("sec\u2028ond"))
            assert (await anext(stream)).choices[0].delta.content == "sec\u2028ond"
            model.say(form(None).replace(b"null}]", b'"stop"}]'), end=True)
            assert await words_of(stream) == [None]
        (record,) = await runtime.wait_for_requests(1)
        assert record.outcome == "answered"


async def test_leaving_a_stream_closes_its_connection() -> None:
    model = GatedModel()
    async with serving(model.speak) as (llm, runtime):
        model.say(event("first"))
        async with await llm.chat.completions.create(**ASK, stream=True) as stream:
            await anext(stream)
        (record,) = await runtime.wait_for_requests(1)
        assert record.outcome == "disconnected"


@pytest.mark.parametrize("streams", [True, False])
async def test_cancelled_caller(streams: bool) -> None:
    model = GatedModel()
    async with serving(model.speak) as (llm, runtime):
        if streams:
            model.say(event("first"))
            stream = await llm.chat.completions.create(**ASK, stream=True)
            await anext(stream)
            waiting = asyncio.ensure_future(anext(stream))
        else:
            waiting = asyncio.ensure_future(llm.chat.completions.create(**ASK))
            while not runtime.statistics()["in_flight"]:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (record,) = await runtime.wait_for_requests(1)
        assert (record.outcome, runtime.statistics()["in_flight"]) == ("disconnected", 0)


async def test_fifty_streams_at_once(client: Client, runtime: LocalRuntime) -> None:
    async def spoken(llm: openai.AsyncOpenAI) -> list[str]:
        return await words_of(await llm.chat.completions.create(**ASK, stream=True))

    async with async_openai(client) as llm:
        assert await asyncio.gather(*(spoken(llm) for _ in range(50))) == [WORDS] * 50
    assert client.statistics().in_use == 0


async def fails_with(llm: openai.AsyncOpenAI, error: type[openai.APIError], words: list[str]) -> Any:
    """Read a stream that fails after some words."""
    seen = []
    with pytest.raises(openai.APIError) as caught:
        async with await llm.chat.completions.create(**ASK, stream=True) as stream:
            async for one in stream:
                seen.append(one.choices[0].delta.content)
    assert (type(caught.value), seen) == (error, words)
    return caught.value


async def test_error_document_of_several_lines() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield b'{\n  "error": {\n'
        yield b'    "message": "out of memory"\n  }\n}\n'

    async with serving(model) as (llm, _):
        error = await fails_with(llm, openai.APIError, [])
        assert error.message == "out of memory"


async def test_service_reports_a_failure_behind_half_an_event() -> None:
    model = GatedModel()
    async with serving(model.speak) as (llm, runtime):
        runtime.inject("llm", faults.StreamFailure(after_parts=2, message="the model is gone"))
        model.say(event("first"), event("second")[:20], b"")
        error = await fails_with(llm, openai.APIError, ["first"])
        assert (error.message, error.code) == ("the model is gone", "StreamBroken")


async def test_connection_is_lost_in_a_stream() -> None:
    async with serving(speaker) as (llm, runtime):
        runtime.inject("llm", faults.Truncate(after_parts=2))
        await fails_with(llm, openai.APIConnectionError, WORDS[:2])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([event("first"), b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'], "out of memory"),
        ([event("first"), b'data: {"error": {"message": "no blank line"}}'], "no blank line"),
        ([chunk("first") + b"\n", b'{"error": "out of memory", "code": 424}\n'], "out of memory"),
        ([chunk("first") + b"\n", b'{"error": {"message": "out of memory"}}'], "out of memory"),
        ([event("first"), b'data: {"object": "error", "message": "out of memory"}\n\n'], "out of memory"),
        ([event("first"), b'data: {"error": "out of ', b'memory", "error_type": "generation"}\n\n'], "out of memory"),
        ([event("first"), b'event: error\ndata: {"message": "out of memory"}\n\n'], "out of memory"),
        ([event("first"), b"event: error\ndata: out of memory\n\n"], "out of memory"),
    ],
)
async def test_container_reports_an_error_in_its_stream(parts: list[bytes], message: str) -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async with serving(model) as (llm, _):
        error = await fails_with(llm, openai.APIError, ["first"])
        assert error.message == message


@pytest.mark.parametrize("last", [event("second")[:-9], chunk("second")[:-9]], ids=["events", "lines"])
async def test_stream_ends_inside_an_event(last: bytes) -> None:
    first = event("first") if last.startswith(b"data") else chunk("first") + b"\n"

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield first
        yield last

    async with serving(model) as (llm, _):
        error = await fails_with(llm, openai.APIConnectionError, ["first"])
        assert error.message == "the stream ended inside an event"


@pytest.mark.parametrize(
    "begin", [b"data: {", b'{"choices": "', b"data: x\ndata: "], ids=["events", "lines", "many lines"]
)
async def test_an_event_without_end_is_not_held(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosmrt.integrations.openai._streams.MAX_ITEM_BYTES", 100_000)

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield (chunk("first") + b"\n" if begin.startswith(b"{") else event("first")) + begin
        for _ in range(100):
            yield b"x" * 10_000

    async with serving(model) as (llm, _):
        error = await fails_with(llm, openai.APIConnectionError, ["first"])
        assert "the stream has an event of more than" in error.message


NOTHING = "the stream ended without an event"
CUT = "the stream ended inside an event"
NO_END = "the stream ended before its answer did: neither [DONE] nor a finish_reason came"
OTHER = "the stream has a line that is neither a server-sent event nor JSON"
NO_OBJECT = "the stream has an event whose data is not a JSON object"
AT_ONCE = "the container answered at once instead of by a stream"
STOP = b'{"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize("route", ["invocations", "openai"])
@pytest.mark.parametrize(
    ("parts", "words", "message", "reported"),
    [
        ([], [], NOTHING, "ResponseStreamingError"),
        ([b"\n", b"\r\n \n"], [], NOTHING, "ResponseStreamingError"),
        ([b": a comment\n\n"], [], NOTHING, "ResponseStreamingError"),
        ([b"event: ping\n\nid: 7\n\n"], [], NOTHING, "ResponseStreamingError"),
        ([b"MARK Internal Server Error"], [], OTHER, "DeserializationError"),
        ([b"<html>\n\n<p>MARK</p>\n\n</html>\n"], [], OTHER, "DeserializationError"),
        ([b'[{"error": "MARK"}]'], [], OTHER, "DeserializationError"),
        ([event("a"), b"MARK Internal Server Error\n\n"], ["a"], OTHER, "DeserializationError"),
        ([chunk("a") + b"\n", b"MARK Internal Server Error\n"], ["a"], OTHER, "DeserializationError"),
        (
            [event("a"), b"data: MARK Internal Server Error\n\n"],
            ["a"],
            NO_OBJECT,
            "DeserializationError",
        ),
        ([event("a"), b'data: {"MARK": }\n\n'], ["a"], NO_OBJECT, "DeserializationError"),
        ([event("a") + event("b") + b'data: {"MARK": }\n\n'], ["a", "b"], NO_OBJECT, "DeserializationError"),
        ([event("a"), b'data: "MARK"\n\n'], ["a"], NO_OBJECT, "DeserializationError"),
        (
            [event("a"), b'data: {"MARK": %b}\n\n' % (b"[" * 9999 + b"]" * 9999)],
            ["a"],
            NO_OBJECT,
            "DeserializationError",
        ),
        ([chunk("a") + b"\n", b'{"MARK": }\n'], ["a"], OTHER, "DeserializationError"),
        ([json.dumps(completion("MARK"), indent=1).encode()], [], AT_ONCE, "DeserializationError"),
        (
            [event("a") + b"data: %b\n\n" % json.dumps(completion("MARK")).encode()],
            ["a"],
            AT_ONCE,
            "DeserializationError",
        ),
        # only one of two choices has ended
        (
            [event("a") + event("b").replace(b'x": 0', b'x": 1'), b"data: " + STOP],
            ["a", "b", "b"],
            NO_END,
            "ResponseStreamingError",
        ),
        ([event("a")], ["a"], NO_END, "ResponseStreamingError"),
        ([chunk("a")], ["a"], NO_END, "ResponseStreamingError"),
        ([event('"finish_reason": "stop"')], ['"finish_reason": "stop"'], NO_END, "ResponseStreamingError"),
        ([event("a").replace(b"null}", b'""}')], ["a"], NO_END, "ResponseStreamingError"),
        ([event("a"), b"dat"], ["a"], CUT, "ResponseStreamingError"),
        ([event("a"), b"data:"], ["a"], CUT, "ResponseStreamingError"),
        ([event("a"), b"event: err"], ["a"], CUT, "ResponseStreamingError"),
        ([event("a"), b"event: error\n"], ["a"], CUT, "ResponseStreamingError"),
        ([event("a"), b'data: {"MARK":\n'], ["a"], CUT, "ResponseStreamingError"),
        ([event("a"), b'data: {"MARK": 1}\ndata'], ["a"], CUT, "ResponseStreamingError"),
        ([b'{\n  "MARK": ', b"1,\n"], [], CUT, "ResponseStreamingError"),
    ],
)
async def test_stream_that_is_no_whole_answer(
    route: Any, parts: list[bytes], words: list[str], message: str, reported: str
) -> None:
    async def streamed() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def model(invocation: Invocation) -> Any:
        return streamed(), {"Content-Type": "text/event-stream"}

    seen: list[Any] = []
    async with (
        local_runtime({"llm": model}) as runtime,
        aiosmrt_client(runtime.url, patience=0.0, observers=[seen.append]) as client,
        async_openai(client, route=route) as llm,
    ):
        error = await fails_with(llm, openai.APIConnectionError, words)
        assert error.message == message
        texts = [*own_locals(error), "".join(traceback.format_exception(error))]
        assert [text for text in texts if "MARK" in text] == []
        assert client.statistics().in_use == 0
    assert [one.error for one in seen if isinstance(one, GenerationEnded)] == [reported]


@pytest.mark.parametrize(
    "parts",
    [
        [event("a"), event("b"), DONE],
        [event("a"), event("b"), b"data: [DONE]"],
        [event("a"), event("b"), DONE, b"dat"],
        [event("a"), b"data: " + STOP],
        [event("a"), b"data: ", STOP, b"\n: a comment"],
        [chunk("a") + b"\n", STOP],
        [chunk("a") + b"\n", chunk("b") + b"\n", b"[DONE]\n"],
        [chunk("a") + b"\n", chunk("b") + b"\ndata: [DONE]"],
        [event("a").replace(b"null}", b'"stop"}'), b"data: " + STOP.replace(b'x": 0', b'x": 1')],
        [b"\xef", b"\xbb\xbf" + event("a"), event("b"), DONE],
        [b"id: 1\n", event("a"), b": ping\n\n", b"event: ping\n\n", event("b"), DONE],
        [event("a").replace(b"\n", b"\r"), b"data: ", STOP, b"\r\r"],
        [event("a").replace(b"\n", b"\r\n"), b"data: ", STOP, b"\r", b"\n\r", b"\n"],
    ],
)
async def test_stream_that_is_a_whole_answer(parts: list[bytes]) -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    seen: list[Any] = []
    async with serving(model, observers=[seen.append]) as (llm, _):
        assert await words_of(await llm.chat.completions.create(**ASK, stream=True)) == ["a", "b"]
    assert [one.error for one in seen if isinstance(one, GenerationEnded)] == [None]


@pytest.mark.parametrize("form", [b"data: %b\n\n", b"data:%b\r\n\r\n", b"%b\n"], ids=["plain", "other", "lines"])
async def test_malformed_utf8_costs_its_character_alone(form: bytes) -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        spoiled = form % chunk("c\u00f4t\u00e9?").replace(b"?", b"\xe9")
        yield spoiled[:-9]
        yield spoiled[-9:]
        yield form % STOP

    async with serving(model) as (llm, _):
        assert await words_of(await llm.chat.completions.create(**ASK, stream=True)) == ["c\u00f4t\u00e9\ufffd", "b"]


async def test_events_of_another_kind_may_end_anywhere() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield b'event: response.completed\ndata: {"type": "response.completed"}\n\n'

    async with (
        local_runtime({"llm": model}) as runtime,
        aiosmrt_client(runtime.url, patience=0.0) as client,
        http_client(client, paths=["responses"]) as http,
    ):
        answer = await http.post("/responses", json={"model": "llm", "stream": True})
    assert answer.content == b'event: response.completed\ndata: {"type": "response.completed"}\n\n'


@given(st.lists(st.text(), max_size=5), st.lists(st.integers(0, 300), max_size=9), st.booleans())
def test_lines_become_the_same_events_wherever_they_are_cut(
    texts: list[str], cuts: list[int], last_line_ends: bool
) -> None:
    lines = b"\n".join(json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts)
    whole = lines + b"\n" if last_line_ends else lines
    decoder = LineEvents()
    ends = sorted(min(cut, len(whole)) for cut in cuts)
    pieces = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]
    events = b"".join(decoder.feed(piece) for piece in pieces) + decoder.finish()
    expected = b"".join(b"data: " + line + b"\n\n" for line in lines.split(b"\n") if line)
    assert events == (expected + DONE if texts else b"")
    assert (decoder.fault is None) == bool(texts)


PIECES = [
    b'data: {"a": 1}\n\n',
    b'data: {"error": null}\n\n',
    b'data: {"a": "\xc3\xa9\xe2"}\n\n',
    b'data: {"a":\ndata: 1}\n\n',
    b": x\n",
    b'event: e\nid: 1\ndata: {"b": 2}\n\n',
    b"\n",
]


@given(
    st.lists(st.sampled_from(PIECES)),
    st.lists(st.integers(0, 300), max_size=9),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
)
def test_events_stay_the_same_wherever_they_are_cut(events: list[bytes], cuts: list[int], end: bytes) -> None:
    whole = b"".join(events).replace(b"\n", end)
    decoder = EventBytes()
    ends = sorted(min(cut, len(whole)) for cut in cuts)
    pieces = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]
    passed = b"".join(decoder.feed(piece) for piece in pieces) + decoder.finish()
    reader = SSEDecoder()
    expected = [one.data for one in reader.feed(whole) + reader.finish()]
    reader = SSEDecoder()
    assert [one.data for one in reader.feed(passed) + reader.finish()] == expected
    assert (decoder.fault is None) == bool(expected)


@given(st.integers(0, 100))
def test_every_cut_of_a_stream_is_seen(cut: int) -> None:
    whole = event("first") + b"event: chunk\n" + event("second") + DONE
    decoder = EventBytes()
    decoder.feed(whole[: len(whole) - cut])
    decoder.finish()
    # all of [DONE] but the ends of its lines
    assert (decoder.fault is None) == (cut <= 2)


# What the SDK makes of answers


@pytest.mark.parametrize("route", ["invocations", "openai"])
@pytest.mark.parametrize(
    ("body", "message", "reported"),
    [
        (b"", "the answer is not a JSON object", "DeserializationError"),
        (b"MARK", "the answer is not a JSON object", "DeserializationError"),
        (b'["MARK"]', "the answer is not a JSON object", "DeserializationError"),
        (b'{"MARK": "\xff"}', "the answer is not a JSON object", "DeserializationError"),
        (b'{"error": {"message": "out of memory"}}', "out of memory", "ModelStreamError"),
        (b'{"error": "out of memory", "code": 424}', "out of memory", "ModelStreamError"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_success_without_an_answer(
    route: Any, body: bytes, message: str, reported: str, content_type: str
) -> None:
    async def model(invocation: Invocation) -> Any:
        return body, {"Content-Type": content_type}

    seen: list[Any] = []
    async with (
        local_runtime({"llm": model}) as runtime,
        aiosmrt_client(runtime.url, patience=0.0, observers=[seen.append]) as client,
        async_openai(client, route=route) as llm,
    ):
        kind = openai.APIConnectionError if reported == "DeserializationError" else openai.APIError
        with pytest.raises(openai.APIError) as caught:
            await llm.chat.completions.create(**ASK)
    assert (type(caught.value), caught.value.message) == (kind, message)
    texts = [*own_locals(caught.value), "".join(traceback.format_exception(caught.value))]
    assert [text for text in texts if "MARK" in text] == []
    assert [one.error for one in seen if isinstance(one, GenerationEnded)] == [reported]


async def test_answer_of_another_path_is_the_containers_own() -> None:
    async def model(invocation: Invocation) -> Any:
        return b"RIFF", {"Content-Type": "audio/wav"}

    async with (
        local_runtime({"llm": model}) as runtime,
        aiosmrt_client(runtime.url) as client,
        async_openai(client, paths=["audio/speech"]) as llm,
    ):
        assert (await llm.audio.speech.create(model="llm", input="To be?", voice="alloy")).content == b"RIFF"


async def test_raw_response(client: Client, runtime: LocalRuntime) -> None:
    async with async_openai(client) as llm:
        raw = await llm.chat.completions.with_raw_response.create(**ASK)
        assert raw.headers["content-length"] == str(len(raw.content))
        assert (raw.parse().choices[0].message.content, raw.elapsed > timedelta(0)) == ("To be, or not", True)
        runtime.inject("llm", faults.throttling())
        with pytest.raises(openai.RateLimitError) as caught:
            await llm.chat.completions.with_raw_response.create(**ASK)
        assert caught.value.response.elapsed > timedelta(0)


MISSING = object()
VALUES = [MISSING, None, True, -1, 0.5, "", "1", "stop", [], {}, [None], {"more": 1}]


def variations(value: Any) -> Iterator[Any]:
    """Documents like this one, each with one other value, one less, or one more."""
    if not isinstance(value, (dict, list)):
        return
    for key in [*value, "more"] if isinstance(value, dict) else range(len(value)):
        others = chain(VALUES, variations(value[key])) if isinstance(value, list) or key in value else VALUES
        for other in others:
            document: Any = value.copy()
            if other is not MISSING:
                document[key] = other
            elif isinstance(value, list) or key in value:
                del document[key]
            yield document


LOGPROBS = {"content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}], "refusal": None}
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PIECE = {
    **json.loads(chunk("a")),
    "choices": [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": [CALL]},
            "finish_reason": None,
            "logprobs": LOGPROBS,
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}
ANSWERS: list[tuple[Any, dict[str, Any]]] = [
    (openai.types.chat.ChatCompletionChunk, PIECE),
    (openai.types.chat.ChatCompletion, completion(None, tool_calls=[CALL], annotations=[])),
    (
        openai.types.Completion,
        {"id": "c", "choices": [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}]},
    ),
    (
        openai.types.CreateEmbeddingResponse,
        {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.25, 1]}]},
    ),
]


@pytest.fixture(scope="module")
def ours() -> Iterator[openai.AsyncOpenAI]:
    """The SDK on a client of ours, which sends nothing."""
    llm = async_openai(Client("eu-central-1"))
    yield llm
    asyncio.run(llm.close())


@pytest.fixture(scope="module")
def theirs() -> Iterator[openai.AsyncOpenAI]:
    """The SDK as it is."""
    llm = openai.AsyncOpenAI(api_key="k")
    yield llm
    asyncio.run(llm.close())


def described(value: Any) -> Any:
    """A value with its type and, of a model, the members noted as given, and all members; floats as text."""
    if isinstance(value, openai.BaseModel):
        return (
            type(value),
            value.model_fields_set,
            {name: described(one) for name, one in value},
            value.__pydantic_private__,
        )
    if isinstance(value, dict):
        return {name: described(one) for name, one in value.items()}
    return [described(one) for one in value] if isinstance(value, list) else (type(value), repr(value))


@pytest.mark.parametrize(("kind", "whole"), ANSWERS)
def test_objects_are_those_of_the_sdk(
    kind: Any, whole: dict[str, Any], ours: openai.AsyncOpenAI, theirs: openai.AsyncOpenAI
) -> None:
    def made(client: Any, data: Any) -> Any:
        try:
            return described(client._process_response_data(data=data, cast_to=kind, response=httpx2.Response(200)))
        except Exception as error:
            return type(error)

    assert made(theirs, whole)[0] is kind  # neither refuses everything
    for data in [whole, None, [], "text", *variations(whole)]:
        assert made(ours, data) == made(theirs, data)


@given(
    st.lists(st.sampled_from([*PIECES, b"data:  a\n\n", b"data:b\n\n", b"data: \n\n", b"data: a\rdata: b\n\n", DONE])),
    st.lists(st.integers(0, 300), max_size=9),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
)
async def test_events_are_those_of_the_sdk(
    ours: openai.AsyncOpenAI, theirs: openai.AsyncOpenAI, events: list[bytes], cuts: list[int], end: bytes
) -> None:
    whole = b"".join(events).replace(b"\xe2", b"").replace(b"\n", end)
    ends = sorted(min(cut, len(whole)) for cut in cuts)
    pieces = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]
    if end == b"\n" and not cuts:
        pieces = [one.replace(b"\xe2", b"") for one in events]

    async def read(client: Any) -> list[Any]:
        async def arriving() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return [(one.event, one.data) async for one in client._make_sse_decoder().aiter_bytes(arriving())]

    assert await read(ours) == await read(theirs)


@pytest.mark.parametrize(
    "text", ['{"a": "\\ud83d", "b": NaN}', '{"a": 1000000000000000000000000000000}', "[" * 300 + "]" * 300, '"\u00e9"']
)
async def test_json_of_events_is_that_of_python(text: str, ours: openai.AsyncOpenAI) -> None:
    async def arriving() -> AsyncIterator[bytes]:
        yield f"data: {text}\n\n".encode()

    (one,) = [one async for one in ours._make_sse_decoder().aiter_bytes(arriving())]
    assert isinstance(one, QuickEvent)
    assert repr(one.json()) == repr(json.loads(text))


async def test_an_event_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes | str] = []

    def counted(text: bytes | str) -> Any:
        parsed.append(text)
        return json.loads(text)

    monkeypatch.setattr("aiosmrt.integrations.openai._streams.loads", counted)
    monkeypatch.setattr("aiosmrt.integrations.openai._answers.loads", counted)
    model = GatedModel()
    words = ["one", "two", "three"]
    async with serving(model.speak) as (llm, _):
        model.say(event(words[0]))
        async with await llm.chat.completions.create(**ASK, stream=True) as stream:
            for word, later in zip(words, [*words[1:], None], strict=True):
                assert (await anext(stream)).choices[0].delta.content == word
                assert len(parsed) == words.index(word) + 1
                model.say(event(later), end=later is None)
    assert all(word in str(text) for word, text in zip(words, parsed, strict=False))


def test_an_event_that_was_parsed_may_be_parsed_again() -> None:
    given = QuickEvent('{"a": 1}', {"a": 1})
    given.json()["a"] = 2
    assert given.json() == {"a": 1}


async def test_a_new_base_url_holds_from_the_next_request(client: Client) -> None:
    def paths() -> list[str]:
        return [str(http.build_request("POST", url).url) for url in ("/a", "/a", "b", "https://h.invalid/c")]

    async with http_client(client) as http:
        before = paths()
        http.base_url = "https://other.invalid/v2"
        assert [url.replace("https://aiosmrt.invalid/v1", "https://other.invalid/v2") for url in before] == paths()
    async with async_openai(client, paths=["embeddings"]) as llm:
        for base in ("https://one.invalid/v1", "https://one.invalid/v1", "https://two.invalid/v2"):
            llm.base_url = base
            raw = await llm.embeddings.with_raw_response.create(model="llm", input="x", encoding_format="float")
            assert str(raw.http_request.url) == f"{base}/embeddings"


def test_hooks_pass_on_whatever_arguments_the_sdk_gives(
    monkeypatch: pytest.MonkeyPatch, ours: openai.AsyncOpenAI
) -> None:
    class Decoder:
        def aiter_bytes(self, *positional: Any, **named: Any) -> Any:
            return positional, named

    def same(self: Any, *positional: Any, **named: Any) -> Any:
        return positional, named

    def decoder(self: Any, *positional: Any, **named: Any) -> Any:
        made = Decoder()
        made.arguments = positional, named  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(openai.AsyncOpenAI, "_process_response_data", same)
    monkeypatch.setattr(openai.AsyncOpenAI, "_make_sse_decoder", decoder)
    monkeypatch.setattr(openai.AsyncOpenAI, "_prepare_url", same)
    hooks: Any = ours
    assert hooks._prepare_url("/a", base="b") == (("/a",), {"base": "b"})
    kind, data = openai.types.Completion, {"id": "c", "choices": [], "created": 1, "model": "m"}
    data["object"] = "text_completion"
    known = {"data": data, "cast_to": kind, "response": httpx2.Response(200)}
    assert isinstance(hooks._process_response_data(**known), kind)
    for positional, named in [
        ((), {**known, "lenient": True}),
        ((data,), known),
        ((), {"data": data, "cast_to": kind}),
    ]:
        assert hooks._process_response_data(*positional, **named) == (positional, named)
    events = hooks._make_sse_decoder(1, limit=2)
    assert events.arguments == ((1,), {"limit": 2})
    assert events.aiter_bytes(iterator=b"", limit=2) == ((), {"iterator": b"", "limit": 2})
    assert events.aiter_bytes(b"", 2) == ((b"", 2), {})


def test_decoder_has_what_that_of_the_sdk_has(ours: openai.AsyncOpenAI) -> None:
    decoder: Any = ours._make_sse_decoder()
    assert [(one.event, one.data) for one in decoder.iter_bytes([b"event: e\ndata: a\n\n"])] == [("e", "a")]
    assert decoder.decode("data: b") is None
    assert decoder.decode("").data == "b"
    assert copy(decoder).decode("") is None
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = decoder.nonesuch


async def test_objects_are_made_by_the_validator(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.construct_type", None)
    async with async_openai(client) as llm:
        assert (await llm.chat.completions.create(**ASK)).choices[0].message.content == "To be, or not"
        async with llm.with_options(timeout=60.0) as other:
            assert (await other.embeddings.create(model="llm", input="x", encoding_format="float")).data


# Errors


@pytest.mark.parametrize(
    ("fault", "error", "status", "message", "headers"),
    [
        (faults.throttling(), openai.RateLimitError, 429, "ThrottlingException", {"retry-after": "1"}),
        (faults.too_many_requests(1.5), openai.RateLimitError, 429, "429", {"retry-after": "2"}),
        (faults.no_capacity(), openai.InternalServerError, 503, "has no capacity", {"retry-after": "1"}),
        (faults.model_not_ready(), openai.InternalServerError, 503, "still being provisioned", {"retry-after": "1"}),
        (faults.internal_failure(), openai.InternalServerError, 500, "An internal failure occurred.", {}),
        (faults.internal_dependency(), openai.InternalServerError, 530, "", {}),
        (faults.bad_gateway(), openai.InternalServerError, 502, "Bad Gateway", {}),
        (faults.validation_failure("no such thing"), openai.BadRequestError, 400, "no such thing", {}),
        (faults.ModelFailure(500, "out of memory"), openai.InternalServerError, 500, "out of memory", {}),
        (faults.ModelFailure(0, "died"), openai.InternalServerError, 502, "died", {}),
        (faults.ModelFailure(200, "no JSON"), openai.InternalServerError, 502, "no JSON", {}),
        (faults.ModelFailure(302, "moved"), openai.InternalServerError, 502, "moved", {}),
        (faults.ModelFailure(429, "queue is full"), openai.RateLimitError, 429, "queue is full", {"retry-after": "1"}),
        (faults.ModelFailure(503, "loading"), openai.InternalServerError, 503, "loading", {"retry-after": "1"}),
        (
            faults.ModelFailure(400, '{"error": {"message": "too long", "type": "bad", "param": "p", "code": "c"}}'),
            openai.BadRequestError,
            400,
            "too long",
            {},
        ),
        (
            faults.ModelFailure(404, '{"object": "error", "message": "no such model", "code": 404}'),
            openai.NotFoundError,
            404,
            "no such model",
            {},
        ),
        (faults.ModelFailure(422, '{"error": "too long"}'), openai.UnprocessableEntityError, 422, "too long", {}),
        (faults.ModelFailure(400, '{"detail": "FastAPI"}'), openai.BadRequestError, 400, "400 - FastAPI", {}),
        (faults.ModelFailure(413, '["unreadable"]'), openai.APIStatusError, 413, '["unreadable"]', {}),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_error_of_the_service(
    client: Client,
    runtime: LocalRuntime,
    fault: Any,
    error: type[openai.APIStatusError],
    status: int,
    message: str,
    headers: dict[str, str],
    streams: bool,
) -> None:
    runtime.inject("llm", fault)
    # A client of the user's own, which would retry.
    async with http_client(client) as http, openai.AsyncOpenAI(http_client=http, api_key="k", max_retries=5) as llm:
        with pytest.raises(openai.APIStatusError) as caught:
            await llm.chat.completions.create(**ASK, stream=streams)
    raised = caught.value
    assert (type(raised), raised.status_code) == (error, status)
    assert message in raised.message
    assert {name: raised.response.headers.get(name) for name in headers} == headers
    assert len(runtime.requests) == 1
    assert raised.request_id == runtime.requests[0].request_id


async def test_containers_error_is_passed_on_whole(client: Client, runtime: LocalRuntime) -> None:
    document = {"message": "too long", "type": "BadRequestError", "param": "messages", "code": "context_length"}
    runtime.inject("llm", faults.ModelFailure(400, json.dumps({"error": document})))
    async with async_openai(client) as llm:
        with pytest.raises(openai.BadRequestError) as caught:
            await llm.chat.completions.create(**ASK)
    assert caught.value.body == document
    assert (caught.value.code, caught.value.param) == ("context_length", "messages")


async def test_endpoint_does_not_exist(client: Client) -> None:
    async with async_openai(client) as llm:
        with pytest.raises(openai.NotFoundError, match="Endpoint nowhere of account"):
            await llm.chat.completions.create(model="nowhere", messages=MESSAGES)


async def test_refused_credentials(runtime: LocalRuntime) -> None:
    arguments = CLIENT_ARGUMENTS | {"aws_secret_access_key": "another"}
    async with Client(endpoint_url=runtime.url, **arguments) as client, async_openai(client) as llm:
        with pytest.raises(openai.PermissionDeniedError, match="signature we calculated does not match"):
            await llm.chat.completions.create(**ASK)


async def test_our_retries_count(client: Client, runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.Fault(faults.throttling(), faults.Schedule(next=2)))
    retry = RetryPolicy(base_delay=0.0, throttling_base_delay=0.0)
    async with async_openai(client.with_options(patience=60.0, retry=retry)) as llm:
        await llm.chat.completions.create(**ASK)
    assert [record.status for record in runtime.requests] == [400, 400, 200]


async def test_capacity_is_waited_for(client: Client, runtime: LocalRuntime) -> None:
    models = {"qwen": ("shared", "adapter")}
    runtime.inject("shared", faults.Fault(faults.no_capacity(), faults.Schedule(next=1)))
    async with async_openai(client.with_options(wait_for_capacity=60.0), models=models) as llm:
        await llm.chat.completions.create(model="qwen", messages=MESSAGES)
    assert [record.status for record in runtime.requests] == [400, 200]


async def test_full_line(runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.Stall())
    async with aiosmrt_client(runtime.url, max_concurrency=1, max_waiting=0) as client, async_openai(client) as llm:
        first = asyncio.ensure_future(llm.chat.completions.create(**ASK))
        while not client.statistics().in_use:
            await asyncio.sleep(0)
        with pytest.raises(openai.RateLimitError):
            await llm.chat.completions.create(**ASK)
        runtime.clear_faults()
        runtime.release_stalled()
        await first
    assert len(runtime.requests) == 1


@pytest.mark.parametrize("where", ["client", "request", "view"])
async def test_timeout_is_a_deadline(
    client: Client, runtime: LocalRuntime, where: str, virtual_time: VirtualTime
) -> None:
    virtual_time.drive(client)
    runtime.inject("llm", faults.Stall())
    ours = client.with_options(deadline=0.05) if where == "view" else client
    options: dict[str, Any] = {"timeout": 0.05} if where == "client" else {}
    ask: dict[str, Any] = {"timeout": 0.05 if where == "request" else 60.0} if where != "client" else {}
    async with async_openai(ours, max_retries=5, **options) as llm:
        call = asyncio.create_task(llm.chat.completions.create(**ASK, **ask))
        await runtime.wait_for_stalled(1)
        await virtual_time.advance(0.05)
        with pytest.raises(openai.APITimeoutError, match=r"did not finish within its deadline of 0\.05 s"):
            await call
    (record,) = await runtime.wait_for_requests(1)
    assert record.outcome == "disconnected"


async def test_timeout_is_the_longest_silence_of_a_stream(virtual_time: VirtualTime) -> None:
    model = GatedModel()
    async with serving(model.speak) as (llm, _):
        model.say(event("first"))
        async with await llm.chat.completions.create(**ASK, stream=True, timeout=20.0) as stream:
            await anext(stream)
            silence = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
            began = virtual_time.now
            while not silence.done():
                await virtual_time.advance(1.0)
            assert 20.0 <= virtual_time.now - began <= 60.0
            with pytest.raises(openai.APITimeoutError, match="timeout"):
                await silence


async def test_the_sdks_own_default_timeout_is_none(client: Client, runtime: LocalRuntime) -> None:
    async with http_client(client) as http, openai.AsyncOpenAI(http_client=http, api_key="k") as llm:
        await llm.chat.completions.create(**ASK)
    (record,) = runtime.requests
    assert record.headers is not None
    assert "ttl=" not in record.headers["amz-sdk-request"]


async def test_no_connection() -> None:
    async with aiosmrt_client("http://127.0.0.1:1", patience=0.0) as client, async_openai(client, max_retries=5) as llm:
        with pytest.raises(openai.APIConnectionError, match=r"127\.0\.0\.1:1"):
            await llm.chat.completions.create(**ASK)
    assert client.statistics().attempts == 1


async def test_closed_client_is_the_programs_fault(client: Client) -> None:
    await client.close()
    async with async_openai(client) as llm:
        with pytest.raises(RuntimeError, match="the client is closed"):
            await llm.chat.completions.create(**ASK)


# Secrets


def own_locals(error: BaseException) -> list[str]:
    """The representations of the local variables of our frames, in an error's traceback and those of its causes."""
    found: list[str] = []
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        queue += [one.__cause__, one.__context__]
        trace: TracebackType | None = one.__traceback__
        while trace is not None:
            if "aiosmrt" in trace.tb_frame.f_code.co_filename:
                found += [f"{name}={value!r}" for name, value in trace.tb_frame.f_locals.items()]
            trace = trace.tb_next
    return found


@pytest.mark.parametrize(
    "fault",
    [
        None,
        faults.Stall(),
        faults.throttling(),
        faults.ResetBeforeHeaders(),
        faults.StreamFailure(after_parts=1),
        faults.Truncate(after_parts=1),
        faults.ModelFailure(400, "no"),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_prompts_and_answers_stay_out_of_errors_and_logs(
    runtime: LocalRuntime, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield event("MARKanswer")
        raise ContainerFailure(500, "gone")

    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    async with local_runtime({"llm": model}) as own:
        own.inject("llm", *([] if fault is None else [fault]))
        async with aiosmrt_client(own.url, patience=0.0) as client, http_client(client) as http:
            llm = openai.AsyncOpenAI(http_client=http, api_key="MARKkey")
            with pytest.raises(openai.APIError) as caught:
                stream = await llm.chat.completions.create(model="llm", messages=messages, stream=True, timeout=1.0)
                async for _ in stream:
                    pass
            texts = [
                *own_locals(caught.value),
                "".join(traceback.format_exception(caught.value)),
                repr(http._transport),
                # those of the SDK are its own
                *(record.getMessage() for record in caplog.records if record.name.startswith("aiosmrt")),
            ]
    assert [text for text in texts if "MARK" in text] == []
    assert texts


async def test_prompts_stay_out_of_errors_of_requests_that_are_not_sent(client: Client) -> None:
    async with http_client(client) as http:
        for body in ({"model": "", "messages": PROMPT}, {"model": "llm", "stream": True, "input": PROMPT}):
            answer = await http.post("/embeddings", json=body)
            assert (answer.status_code, PROMPT in answer.text) == (400, False)


def test_missing_sdk_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "try:\n    import aiosmrt.integrations.openai\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "openai is not installed; run: pip install 'aiosmrt[openai]'"


async def test_any_http_client_code_works_on_it(client: Client) -> None:
    async with http_client(client) as http:
        assert isinstance(http, httpx2.AsyncClient)
        answer = await http.post("/chat/completions", json=ASK)
    assert answer.json()["choices"][0]["message"]["content"] == "To be, or not"


# What observers learn


async def generations(
    client: Client, fault: Any, runtime: LocalRuntime, **ask: Any
) -> tuple[list[GenerationEnded], BaseException | None]:
    """The events of one call, and its error."""
    seen: list[Any] = []
    runtime.inject("llm", *([] if fault is None else [fault]))
    raised = None
    async with async_openai(client.with_options(observers=[seen.append])) as llm:
        try:
            answer = await llm.chat.completions.create(**ASK, **ask)
            if ask.get("stream"):
                await words_of(answer)
        except openai.APIError as error:
            raised = error
    return [event for event in seen if isinstance(event, GenerationEnded)], raised


@pytest.mark.parametrize("ask", [{}, {"stream": True}])
async def test_tokens_are_reported(client: Client, runtime: LocalRuntime, ask: dict[str, Any]) -> None:
    (event,), _ = await generations(client, None, runtime, **ask)
    assert event[:7] == ("chat", "llm", runtime.url, "llm", "qwen", 3, 4)
    assert event.duration > 0
    assert event.error is None


@pytest.mark.parametrize(
    ("fault", "ask", "error"),
    [
        (faults.throttling(), {}, "ThrottlingError"),
        (faults.StreamFailure(after_parts=1), {"stream": True}, "ModelStreamError"),
        (faults.Truncate(after_parts=1), {"stream": True}, "ResponseStreamingError"),
        (faults.Stall(), {"timeout": 0.05}, "DeadlineExceededError"),
    ],
)
async def test_failures_are_reported(
    client: Client, runtime: LocalRuntime, fault: Any, ask: dict[str, Any], error: str
) -> None:
    (event,), raised = await generations(client, fault, runtime, **ask)
    assert raised is not None
    assert event.error == error


async def test_caller_that_leaves_is_reported() -> None:
    seen: list[Any] = []
    model = GatedModel()
    async with serving(model.speak, observers=[seen.append]) as (llm, _):
        model.say(event("first"))
        async with await llm.chat.completions.create(**ASK, stream=True) as stream:
            await anext(stream)
    (ended,) = [one for one in seen if isinstance(one, GenerationEnded)]
    assert (ended.error, ended.response_model, ended.output_tokens) == ("CancelledError", "qwen", None)


async def test_observers_do_not_change_how_a_call_ends_that_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate_aws(monkeypatch, tmp_path)
    seen: list[Any] = []
    async with Client(observers=[seen.append]) as client, async_openai(client, models={"m": "no name"}) as llm:
        with pytest.raises(openai.BadRequestError, match="EndpointName"):
            await llm.chat.completions.create(model="m", messages=MESSAGES)
    assert [one for one in seen if isinstance(one, GenerationEnded)] == []


async def test_caller_that_leaves_before_the_client_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, reading, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    threads: list[int] = []

    def configure(*_: Any, **__: Any) -> None:
        threads.append(threading.get_ident())
        if threads[-1] != threading.main_thread().ident:
            loop.call_soon_threadsafe(reading.set)
            release.wait()
        raise NoRegionError("no region")

    monkeypatch.setattr("aiosmrt._core.client_core.configure", configure)
    seen: list[Any] = []
    async with Client(observers=[seen.append]) as client, async_openai(client) as llm:
        calling = asyncio.ensure_future(llm.chat.completions.create(**ASK))
        await reading.wait()
        calling.cancel()
        try:
            with pytest.raises(asyncio.CancelledError):
                await calling
        finally:
            release.set()
    assert threading.main_thread().ident not in threads
    assert [one for one in seen if isinstance(one, GenerationEnded)] == []


@pytest.mark.parametrize(
    "tokens", [b"1e999", b"NaN", b"-1", b"9223372036854775808", b"1" + b"0" * 400, b"true", b'"3"']
)
async def test_numbers_and_names_that_exporters_do_not_take(tokens: bytes) -> None:
    """One that OTLP cannot express would lose the metrics that are exported with it."""

    async def model(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        body = b'{"model": "qwen\\ud83d", "usage": {"prompt_tokens": %b, "completion_tokens": 9223372036854775807}}'
        return body % tokens, {"Content-Type": "application/json"}

    seen: list[Any] = []
    async with serving(model, observers=[seen.append]) as (llm, _):
        await llm.with_raw_response.completions.create(model="llm", prompt="x")
    (ended,) = [one for one in seen if isinstance(one, GenerationEnded)]
    assert (ended.response_model, ended.input_tokens, ended.output_tokens) == ("qwen?", None, 2**63 - 1)


async def test_containers_own_error_is_reported() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        yield event("first") + b'data: {"error": {"message": "out of memory"}}\n\n'

    seen: list[Any] = []
    async with serving(model, observers=[seen.append]) as (llm, _):
        with pytest.raises(openai.APIError):
            await words_of(await llm.chat.completions.create(**ASK, stream=True))
    assert [one.error for one in seen if isinstance(one, GenerationEnded)] == ["ModelStreamError"]


@pytest.mark.parametrize(
    "name",
    [
        "_wire.openai_route",
        "_wire.sigv4.bearer",
        "integrations.openai._errors",
        "integrations.openai._factory",
        "integrations.openai._json",
        "integrations.openai._metering",
        "integrations.openai._streams",
        "local.error_responses",
        "local.parameters",
    ],
)
def test_examples_in_docstrings(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"aiosmrt.{name}"))
    assert failed == 0
    assert tried
