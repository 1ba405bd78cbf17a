"""OpenAI's SDK, LangChain, pydantic-ai and LiteLLM on a client, against a model server of another maker.

The server is LitServe with OpenAI's schema. Clients other than the SDK run in their own environment.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
import pytest_asyncio

from aiosmrt import Client
from aiosmrt.integrations.openai import async_openai
from aiosmrt.local import LocalRuntime, ModelContainer, faults
from tests.models.test_litserve import Gate
from tests.models.test_litserve import gate as gate
from tests.support.availability import unavailable
from tests.support.peers import CREDENTIALS, REGION, aiosmrt_client
from tests.support.runtime import local_runtime

APPLICATION = Path(__file__).with_name("openai_words.py")
PROGRAM = Path(__file__).with_name("openai_clients.py")
ROOT = Path(__file__).parents[2]
NAMES = ("openai_sdk", "langchain_chat", "pydantic_agent", "litellm_chat")
EXAMPLES = [ROOT / "examples" / f"{name}.py" for name in NAMES]

pytestmark = [
    pytest.mark.models,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),  # LitServe and each of the clients take many seconds to import on a busy machine
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(
    models_python: Path, server_processes: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LocalRuntime]:
    folder = tmp_path_factory.mktemp("openai")
    async with local_runtime(
        {"llm": ModelContainer([str(models_python), str(APPLICATION)], working_dir=folder)}
    ) as runtime:
        yield runtime


@pytest_asyncio.fixture(loop_scope="module")
async def client(runtime: LocalRuntime) -> AsyncIterator[Client]:
    runtime.clear_requests()
    async with aiosmrt_client(runtime.url, max_concurrency=50) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module", params=["invocations", "openai"])
async def llm(client: Client, request: pytest.FixtureRequest) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_openai(client, route=request.param) as llm:
        yield llm


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "llm", "messages": [{"role": "user", "content": text}], **more}


async def test_plain(llm: openai.AsyncOpenAI) -> None:
    answer = await llm.chat.completions.create(**ask("to be or not", max_tokens=3))
    assert answer.choices[0].message.content == "to be or "
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


async def test_word_arrives_before_the_next_exists(llm: openai.AsyncOpenAI, gate: Gate) -> None:
    stream = await llm.chat.completions.create(**ask("wait be or", user=str(gate.port)), stream=True)
    (model,) = await gate.models()
    async with stream:
        for word in ("wait", "be", "or"):
            model.write(b".")
            assert (await anext(stream)).choices[0].delta.content == f"{word} "
        last = await anext(stream)
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 3)
        assert await anext(stream, None) is None


async def test_fifty_streams_at_once(llm: openai.AsyncOpenAI, gate: Gate) -> None:
    streams = await asyncio.gather(
        *(
            llm.chat.completions.create(**ask(f"wait word{number}", user=str(gate.port)), stream=True)
            for number in range(50)
        )
    )
    models = await gate.models(50)
    for turn in ("wait {}", "word{}"):
        for model in models:
            model.write(b".")
        # All of them, before any model may continue with its next word.
        chunks = await asyncio.gather(*(anext(stream) for stream in streams))
        expected = [turn.format(number).split()[0] + " " for number in range(50)]
        assert [chunk.choices[0].delta.content for chunk in chunks] == expected
    for stream in streams:
        assert [chunk.choices[0].finish_reason async for chunk in stream] == ["stop"]


async def test_cancelled_in_the_middle(llm: openai.AsyncOpenAI, runtime: LocalRuntime, gate: Gate) -> None:
    stream = await llm.chat.completions.create(**ask("wait be or", user=str(gate.port)), stream=True)
    (model,) = await gate.models()
    model.write(b".")
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (record,) = await runtime.wait_for_requests(1)
    assert (record.outcome, runtime.statistics()["in_flight"]) == ("disconnected", 0)


async def test_tool_call(llm: openai.AsyncOpenAI) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    tools: list[Any] = [
        {"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": schema}}
    ]
    answer = await llm.chat.completions.create(**ask("to be", tools=tools))
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", {"text": "to be"})
    pieces = [
        chunk.choices[0].delta.tool_calls
        async for chunk in await llm.chat.completions.create(**ask("to be", tools=tools), stream=True)
    ]
    assert [[call.function.name for call in calls if call.function] for calls in pieces if calls] == [["look_up"]]


async def test_structured_output(llm: openai.AsyncOpenAI) -> None:
    class Answer(pydantic.BaseModel):
        text: str

    answer = await llm.chat.completions.parse(**ask("question"), response_format=Answer)
    assert answer.choices[0].message.parsed == Answer(text="question")


async def test_container_refuses(llm: openai.AsyncOpenAI, runtime: LocalRuntime) -> None:
    with pytest.raises(openai.BadRequestError, match="400 - the model refuses to fail"):
        await llm.with_options(max_retries=3).chat.completions.create(**ask("fail"))
    assert len(runtime.requests) == 1


async def test_throttled(llm: openai.AsyncOpenAI, runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.Fault(faults.too_many_requests(), faults.Schedule(next=2)))
    try:
        answer = await llm.chat.completions.create(**ask("to be"))
    finally:
        runtime.clear_faults()
    assert answer.choices[0].message.content == "to be "
    assert [record.status for record in runtime.requests] == [429, 429, 200]


# Other clients


@pytest.fixture(scope="module")
def clients_python() -> Path:
    """The interpreter with OpenAI clients of other makers, AIOSMRT_TEST_OPENAI."""
    found = os.environ.get("AIOSMRT_TEST_OPENAI")
    if found is None or shutil.which(found) is None:
        unavailable("OpenAI clients are not installed; run make peers, or set AIOSMRT_TEST_OPENAI to their Python")
    return Path(found)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def got(clients_python: Path, runtime: LocalRuntime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the clients got, and what the examples print."""
    folder = tmp_path_factory.mktemp("clients")
    own = ("AWS_", "OPENAI_", "AIOSMRT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {
        "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key,
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key,
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": runtime.url,
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        str(clients_python),
        str(PROGRAM),
        *map(str, EXAMPLES),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment,
    )
    try:
        said, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complained.decode()
    results: dict[str, Any] = json.loads(said.splitlines()[-1])
    return results


WORDS = ["to ", "be ", "or ", "not "]


async def test_langchain(got: Any) -> None:
    assert isinstance(langchain := got["langchain"], dict), langchain
    assert (langchain["plain"], langchain["streamed"], langchain["usage"]) == ("".join(WORDS), WORDS, [4])
    assert langchain["tool"] == [["look_up", {"text": "to be"}]]
    assert langchain["structured"] == "question"
    assert "the model refuses to fail" in langchain["failed"][1]


async def test_pydantic_ai(got: Any) -> None:
    assert isinstance(pydantic_ai := got["pydantic_ai"], dict), pydantic_ai
    assert (pydantic_ai["plain"], pydantic_ai["streamed"]) == ("".join(WORDS), WORDS)
    assert pydantic_ai["usage"] > 0
    assert pydantic_ai["tool"] == [["to be"], "found it "]
    assert pydantic_ai["structured"] == "question"
    assert pydantic_ai["failed"] == 400


async def test_litellm(got: Any) -> None:
    assert isinstance(litellm := got["litellm"], dict), litellm
    assert (litellm["plain"], litellm["streamed"]) == ("".join(WORDS), WORDS)
    assert litellm["failed"] == ["BadRequestError", 400]


async def test_token_with_httpx(got: Any) -> None:
    assert got["legacy_httpx"] == {"status": 200, "plain": "to be "}


async def test_token_is_that_of_awss_package(got: Any) -> None:
    assert got["sagemaker_core"] == {"same": True, "length": pytest.approx(500, abs=100)}


@pytest.mark.parametrize("name", NAMES)
async def test_example(got: Any, name: str) -> None:
    assert got["examples"][name] == "Why do you call models on SageMaker? \n"
