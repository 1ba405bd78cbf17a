"""A chat whose answers appear word by word: an endpoint's stream, FastAPI, and a page.

    pip install 'aiosmrt[fastapi]' uvicorn
    python examples/chat.py

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
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from aiosmrt.endpoint import Endpoint, PredictionStream
from aiosmrt.integrations.fastapi import SSEResponse, client_lifespan, endpoint, sse_response
from aiosmrt.local import Invocation, LocalRuntime
from aiosmrt.serializers import JSON

REFLECTED = {"i": "you", "me": "you", "my": "your", "mine": "yours", "am": "are", "you": "I", "your": "my"}


async def eliza(invocation: Invocation) -> AsyncIterator[bytes]:
    """A therapist after Joseph Weizenbaum (1966), who reflects your words; one line of JSON per word."""
    said = json.loads(invocation.body)["inputs"].strip(" .!?").split()
    reflected = " ".join(REFLECTED.get(word.lower(), word) for word in said)
    for word in f"Why do you say that {reflected}?".split():
        yield json.dumps({"token": {"text": f"{word} "}}).encode() + b"\n"
        await asyncio.sleep(0.15)


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
Llm = Annotated[Endpoint[Any, Any], Depends(endpoint("llm", serializer=JSON, deserializer=JSON))]


class Message(BaseModel):
    text: str


@app.post("/answer")
async def answer(message: Message, llm: Llm) -> SSEResponse:
    # Each line from the model is sent as an event when it arrives.
    return sse_response(llm.stream({"inputs": message.text}), PredictionStream.jsonl, heartbeat=15.0)


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Chat</title>
<link rel="icon" href="data:,">
<style>
  body { font: 16px/1.5 sans-serif; max-width: 36rem; margin: 0 auto; padding: 1rem }
  li { list-style: none; width: fit-content; max-width: 80%; margin: .5rem 0 }
  li { padding: .4rem .8rem; border-radius: 1rem }
  ul { padding: 0 }
  .question { background: #135; color: #fff; margin-left: auto }
  .answer { background: #eee }
  .answer:empty::before { content: "…" }
  .failed { color: #b00 }
  form { display: flex; gap: .5rem }
  input { flex: 1; font: inherit; padding: .4rem .8rem }
  button { font: inherit }
</style>
<ul id="messages" aria-live="polite"></ul>
<form><input name="text" aria-label="Message" autocomplete="off" autofocus required><button>Send</button></form>
<script>
  const form = document.querySelector("form");
  const say = (kind, text) => {
    const item = document.createElement("li");
    item.className = kind;
    item.textContent = text;
    document.querySelector("#messages").append(item);
    form.scrollIntoView();
    return item;
  };

  // The data of the events of a text/event-stream, as they arrive. (EventSource would put the question into the URL.)
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let read; !(read = await reader.read()).done; ) {
      const blocks = (rest + read.value).split("\\n\\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\\n").filter(line => line.startsWith("data: ")).map(line => line.slice(6));
        if (data.length) yield JSON.parse(data.join("\\n"));
      }
    }
  }

  form.addEventListener("submit", async event => {
    event.preventDefault();
    const text = form.elements.text.value;
    form.reset();
    say("question", text);
    const item = say("answer", "");
    try {
      const headers = {"Content-Type": "application/json"};
      const response = await fetch("/answer", {method: "POST", headers, body: JSON.stringify({text})});
      if (!response.ok) throw Error((await response.json()).detail);
      for await (const {token, type} of events(response)) {
        if (!token) throw Error(type); // event: error
        item.textContent += token.text;
      }
    } catch (error) {
      item.classList.add("failed");
      item.textContent += ` (${error.message})`;
    }
  });
</script>
</html>
"""

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
