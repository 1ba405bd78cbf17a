"""The chat of chat.py by OpenAI's SDK: for an endpoint whose container speaks OpenAI's schema.

    pip install 'aiosmrt[fastapi,openai]' uvicorn
    python examples/chat_openai.py

Then open http://127.0.0.1:8080, or pass another port as an argument. The model runs in a local runtime, see below. If
AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME is set, the endpoint "llm" at that URL is used instead. Closing the page during an
answer ends its stream at once.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import uvicorn
from chat import PAGE, REFLECTED, Message
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from aiosmrt.integrations.fastapi import SageMakerClient, ServerSentEvent, SSEResponse, client_lifespan, sse_response
from aiosmrt.integrations.openai import async_openai
from aiosmrt.local import Invocation, LocalRuntime


async def eliza(invocation: Invocation) -> AsyncIterator[bytes]:
    """The therapist of chat.py, in OpenAI's schema: an event per word."""
    said = json.loads(invocation.body)["messages"][-1]["content"].strip(" .!?").split()
    reflected = " ".join(REFLECTED.get(word.lower(), word) for word in said)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "eliza"}
    for word in f"Why do you say that {reflected}?".split():
        choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
        yield b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"
        await asyncio.sleep(0.15)
    yield b"data: [DONE]\n\n"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME" in os.environ:
        async with client_lifespan()(app):
            yield
        return
    runtime = LocalRuntime({"llm": eliza}, verify_signatures=False)
    async with runtime, client_lifespan(endpoint_url=runtime.url, sign=False)(app):
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/answer")
async def answer(message: Message, client: SageMakerClient) -> SSEResponse:
    return sse_response(words(async_openai(client), message.text), heartbeat=15.0)


async def words(llm: openai.AsyncOpenAI, text: str) -> AsyncIterator[Any]:
    try:
        async with await llm.chat.completions.create(
            model="llm", messages=[{"role": "user", "content": text}], stream=True
        ) as stream:
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield {"token": {"text": chunk.choices[0].delta.content}}
    except openai.APIError as error:
        # The page learns the kind of error and not its message, which may quote the model.
        yield ServerSentEvent(event="error", data=json.dumps({"type": type(error).__name__}))


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
