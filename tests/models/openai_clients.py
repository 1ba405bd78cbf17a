"""OpenAI clients of other makers on an aiosmrt.Client: openai_clients.py EXAMPLE... prints as JSON what they got.

The endpoint "llm" is the application of openai_words.py, at AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME. All of them run in one
process, because importing them takes longer than everything else.
"""

import asyncio
import contextlib
import datetime
import io
import json
import runpy
import sys
import traceback
from base64 import b64decode
from importlib.metadata import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs

from botocore.session import get_session

import aiosmrt
from aiosmrt.integrations.openai import async_openai, http_client


async def langchain(client):
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Answer(BaseModel):
        text: str

    @tool
    def look_up(text: str) -> str:
        """Look a text up."""
        return text

    llm = ChatOpenAI(model="llm", api_key="unused", http_async_client=http_client(client), stream_usage=True)
    plain = await llm.ainvoke("to be or not")
    pieces = [piece async for piece in llm.astream("to be or not")]
    called = await llm.bind_tools([look_up]).ainvoke("to be")
    structured = await llm.with_structured_output(Answer, method="json_schema").ainvoke("question")
    failed = None
    try:
        await llm.ainvoke("fail")
    except Exception as error:
        failed = [type(error).__name__, str(error)]
    return {
        "plain": plain.content,
        "streamed": [piece.content for piece in pieces if piece.content],
        "usage": [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata],
        "tool": [[call["name"], call["args"]] for call in called.tool_calls],
        "structured": structured.text,
        "failed": failed,
    }


async def pydantic_ai(client):
    from pydantic import BaseModel
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.exceptions import ModelHTTPError
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Answer(BaseModel):
        text: str

    model = OpenAIChatModel("llm", provider=OpenAIProvider(openai_client=async_openai(client)))
    plain = await Agent(model).run("to be or not")
    streamed = []
    async with Agent(model).run_stream("to be or not") as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            streamed.append(piece)
    looked_up = []
    agent = Agent(model)

    @agent.tool_plain
    def look_up(text: str) -> str:
        """Look a text up."""
        looked_up.append(text)
        return "found it"

    called = await agent.run("to be")
    structured = await Agent(model, output_type=NativeOutput(Answer)).run("question")
    failed = None
    try:
        await Agent(model).run("fail")
    except ModelHTTPError as error:
        failed = error.status_code
    return {
        "plain": plain.output,
        "streamed": streamed,
        "usage": plain.usage.input_tokens,
        "tool": [looked_up, called.output],
        "structured": structured.output.text,
        "failed": failed,
    }


async def litellm(client):
    import litellm

    sdk = async_openai(client)
    ask = {"model": "openai/llm", "client": sdk}
    plain = await litellm.acompletion(**ask, messages=[{"role": "user", "content": "to be or not"}])
    stream = await litellm.acompletion(**ask, messages=[{"role": "user", "content": "to be or not"}], stream=True)
    streamed = [piece.choices[0].delta.content async for piece in stream if piece.choices[0].delta.content]
    failed = None
    try:
        await litellm.acompletion(**ask, messages=[{"role": "user", "content": "fail"}])
    except Exception as error:
        failed = [type(error).__name__, error.status_code]
    return {"plain": plain.choices[0].message.content, "streamed": streamed, "failed": failed}


async def legacy_httpx(client):
    import httpx

    token = client.bearer_token()
    url = f"{client.endpoint_url}/endpoints/llm/openai/v1/chat/completions"
    async with httpx.AsyncClient(auth=token.httpx_auth()) as http:
        body = {"model": "", "messages": [{"role": "user", "content": "to be"}]}
        answer = await http.post(url, json=body, timeout=60)
    return {"status": answer.status_code, "plain": answer.json()["choices"][0]["message"]["content"]}


async def sagemaker_core(client):
    generator = load(next(file for file in files("sagemaker-core") if file.name == "token_generator.py"))
    ours = await client.bearer_token(expires_in=43_200)()
    # Theirs of the moment at which ours was signed.
    query = parse_qs(b64decode(ours.removeprefix("sagemaker-api-key-")).decode())
    signed_at = datetime.datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z")
    keys = get_session().get_credentials()
    with mock.patch("botocore.auth.get_current_datetime", return_value=signed_at):
        theirs = generator.SageMakerTokenGenerator().get_token(keys, client.meta.region_name)
    return {"same": ours == theirs, "length": len(ours)}


def load(file):
    """A module of a package by itself: importing the package takes many seconds."""
    spec = spec_from_file_location("token_generator", file.locate())
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def scenario(function):
    """What one client got, or how it failed."""
    try:
        async with aiosmrt.Client() as client:
            return await function(client)
    except Exception:
        return traceback.format_exc()


async def scenarios():
    functions = [langchain, pydantic_ai, litellm, legacy_httpx, sagemaker_core]
    return {function.__name__: await scenario(function) for function in functions}


def example(path):
    """What an example prints, or how it failed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            runpy.run_path(path, run_name="__main__")
        except Exception:
            return traceback.format_exc()
    return said.getvalue()


if __name__ == "__main__":
    results = asyncio.run(scenarios())
    paths, sys.argv[1:] = sys.argv[1:], []
    results["examples"] = {Path(path).stem: example(path) for path in paths}
    print(json.dumps(results))
