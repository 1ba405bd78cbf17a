"""A page that listens: a browser's microphone over a WebSocket, a bidirectional stream, and texts that come back.

    pip install 'aiosmrt[fastapi,http2]' uvicorn
    python examples/voice.py

Then open http://127.0.0.1:8080, or pass another port as an argument. The models run in a local runtime, see below: one
repeats what you type, the other only pretends to understand speech. If AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2 is set,
the endpoints "echo" and "speech" at that URL are used instead. Closing the page ends its streams at once.
"""

import asyncio
import itertools
import json
import os
import sys
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

from aiosmrt import AiosmrtError, ClientStateError
from aiosmrt.endpoint import DuplexStream, Endpoint
from aiosmrt.integrations.fastapi import client_lifespan, endpoint
from aiosmrt.local import Invocation, LocalRuntime, StreamMessage
from aiosmrt.serializers import BYTES, JSON, TEXT

# Audio is 16-bit PCM in mono. A sample as large as this is sound.
SAMPLES_A_SECOND = 16_000
LOUD = 1_000
# What the model hears, a word in so many seconds of sound; so much silence ends a sentence.
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
SECONDS_A_WORD = 0.2
SECONDS_OF_SILENCE = 0.3


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    """Repeats each message."""
    async for message in invocation.messages:
        yield message


async def speech(invocation: Invocation) -> AsyncIterator[str]:
    """Pretends to transcribe audio: partial texts while there is sound, and a final one when it stops."""
    vocabulary = itertools.cycle(WORDS)
    heard: list[str] = []
    sound = silence = 0.0
    async for message in invocation.messages:
        if isinstance(message.data, str):
            continue
        samples = array("h", message.data[: len(message.data) // 2 * 2])
        seconds = len(samples) / SAMPLES_A_SECOND
        if max(map(abs, samples), default=0) >= LOUD:
            silence = 0.0
            sound += seconds
            while sound > SECONDS_A_WORD - 1e-6:
                sound -= SECONDS_A_WORD
                heard.append(next(vocabulary))
                yield json.dumps({"partial": " ".join(heard)})
        else:
            silence += seconds
            if heard and silence > SECONDS_OF_SILENCE - 1e-6:
                yield json.dumps({"final": " ".join(heard)})
                heard = []
    if heard:
        yield json.dumps({"final": " ".join(heard)})


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2" in os.environ:
        async with client_lifespan()(app):
            yield
        return
    runtime = LocalRuntime({"echo": echo, "speech": speech}, verify_signatures=False, http2_port=0)
    async with (
        runtime,
        client_lifespan(endpoint_url=runtime.url, http2_endpoint_url=runtime.http2_url, sign=False)(app),
    ):
        yield


app = FastAPI(lifespan=lifespan)
Echo = Annotated[Endpoint[Any, Any], Depends(endpoint("echo", serializer=TEXT, deserializer=TEXT))]
Speech = Annotated[Endpoint[Any, Any], Depends(endpoint("speech", serializer=BYTES, deserializer=JSON))]


async def relay(socket: WebSocket, stream: DuplexStream[Any, Any]) -> None:
    """Pass on both directions until the model ends or the page is closed. An empty text ends the model's input."""

    async def talk() -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect
            data = message.get("text") or message.get("bytes")
            try:
                await (stream.send(data) if data else stream.end_input())
            except ClientStateError:
                return  # the stream has ended; its reader gets the error, if there is one

    await socket.accept()
    is_gone, code, reason = False, 1000, ""
    try:
        async with stream, asyncio.TaskGroup() as group:
            talking = group.create_task(talk())
            async for value in stream:
                await socket.send_json(value)
            talking.cancel()
    except* WebSocketDisconnect:
        is_gone = True
    except* AiosmrtError as errors:
        # Not the message, which may quote the model.
        code, reason = 1011, type(errors.exceptions[0]).__name__
    if not is_gone:
        await socket.close(code, reason)


@app.websocket("/echo")
async def repeat(socket: WebSocket, model: Echo) -> None:
    await relay(socket, model.duplex())


@app.websocket("/speech")
async def transcribe(socket: WebSocket, model: Speech) -> None:
    await relay(socket, model.duplex(model_query_string=f"sample_rate={SAMPLES_A_SECOND}"))


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Voice</title>
<link rel="icon" href="data:,">
<style>
  body { font: 16px/1.5 sans-serif; max-width: 36rem; margin: 0 auto; padding: 1rem }
  .partial { color: #777 }
  .failed { color: #b00 }
  input, button { font: inherit; padding: .2rem .6rem }
</style>
<h1>Echo</h1>
<form><input name="text" aria-label="Message" autocomplete="off"></form>
<div id="echo" aria-live="polite"></div>
<h1>Speech</h1>
<button id="sample">Beep</button> <button id="microphone">Microphone</button> <button id="stop">Stop</button>
<div id="speech" aria-live="polite"></div>
<script>
  const RATE = 16000, FRAME = 320; // 20 ms

  const say = (where, kind, text) => {
    const line = document.createElement("p");
    line.className = kind;
    line.textContent = text;
    document.querySelector(where).append(line);
  };

  // A WebSocket that is open, and shows what ends it unless that is its end.
  const connect = path => new Promise((resolve, reject) => {
    const socket = new WebSocket(new URL(path, location.href.replace(/^http/, "ws")));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(Error("no connection"));
    socket.onclose = ({code, reason}) => say("#" + path, code === 1000 ? "ended" : "failed", reason);
  });

  let echo;
  document.querySelector("form").addEventListener("submit", async event => {
    event.preventDefault();
    const field = event.target.elements.text, text = field.value;
    field.value = "";
    if (!echo || echo.readyState !== WebSocket.OPEN) {
      echo = await connect("echo");
      echo.onmessage = ({data}) => say("#echo", "repeated", JSON.parse(data));
    }
    echo.send(text);
  });

  // A partial text replaces the one before, and a final one stays.
  const listen = async () => {
    const socket = await connect("speech");
    socket.onmessage = ({data}) => {
      const {partial, final} = JSON.parse(data);
      document.querySelector("#speech .partial")?.remove();
      say("#speech", final === undefined ? "partial" : "final", final ?? partial);
    };
    return socket;
  };

  const frames = (count, sample) => Array.from({length: count}, (_, number) =>
    Int16Array.from({length: FRAME}, (_, index) => sample(number * FRAME + index)));
  const tone = index => 8000 * Math.sin(index * 440 * 2 * Math.PI / RATE);

  // 0.6 s of sound, 0.3 s of silence, 0.4 s of sound, and the end.
  document.querySelector("#sample").addEventListener("click", async () => {
    const socket = await listen();
    for (const frame of [...frames(30, tone), ...frames(15, () => 0), ...frames(20, tone)]) socket.send(frame);
    socket.send("");
  });

  const WORKLET = `registerProcessor("samples", class extends AudioWorkletProcessor {
    process([[channel]]) { if (channel) this.port.postMessage(channel.slice()); return true }
  })`;
  let stop = () => {};
  document.querySelector("#stop").addEventListener("click", () => stop());
  document.querySelector("#microphone").addEventListener("click", async () => {
    stop();
    const media = await navigator.mediaDevices.getUserMedia({audio: {channelCount: 1}});
    const context = new AudioContext({sampleRate: RATE});
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], {type: "text/javascript"})));
    const socket = await listen(), samples = [];
    const node = new AudioWorkletNode(context, "samples");
    node.port.onmessage = ({data}) => {
      samples.push(...data);
      while (samples.length >= FRAME && socket.readyState === WebSocket.OPEN)
        socket.send(Int16Array.from(samples.splice(0, FRAME), sample => Math.max(-1, Math.min(1, sample)) * 32767));
    };
    context.createMediaStreamSource(media).connect(node);
    stop = () => {
      stop = () => {};
      media.getTracks().forEach(track => track.stop());
      context.close();
      if (socket.readyState === WebSocket.OPEN) socket.send("");
    };
  });
</script>
</html>
"""

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080, ws="websockets-sansio")
