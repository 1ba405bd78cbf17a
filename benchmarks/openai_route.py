"""What does a chat call cost, and a streamed token?

    make .venv-openai/.installed
    .venv-openai/bin/python benchmarks/openai_route.py [--quick] [--rounds N] [--clients ...] [--json FILE]

The same chat completion by:

- asyncio: a connection that sends a request made beforehand, and a task that waits for each piece: what is spent on
  sockets and the event loop by any client;
- sdk: OpenAI's SDK on a transport that has the answers in memory: what the SDK costs by itself;
- sdk-quick: the same with the objects made as `async_openai` makes them: what it would cost if calls were free;
- httpx: the SDK with its own HTTP client, directly at the server, unsigned;
- invocations: the SDK on an aiosmrt.Client, by InvokeEndpoint and InvokeEndpointWithResponseStream, signed;
- openai: the same by the endpoint's OpenAI route, with a bearer token;
- litellm: LiteLLM's SageMaker provider (``sagemaker_chat/``), which signs as well.

The server (``--serve``) runs on another core and has all its answers ready. ``call``: one call after the other.
``token``: 16 streams at once of one token about every 5 ms, each in its own write, as a model emits them: whole streams
minus streams of one token, so that making the calls does not count. Figures are CPU time of this process, its threads
included; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import openai
from harness import WHO, FloorProtocol, median_ratio, seconds_and_cpu, take_turns
from reporting import cores, environment, print_table, stay_on, write_json

import aiosmrt
from aiosmrt.integrations.openai import async_openai
from aiosmrt.integrations.openai._answers import QuickAsyncOpenAI

STREAMS = 16
PACE_SECONDS = 0.005
MESSAGES: list[Any] = [{"role": "user", "content": "Say a few words about the sea."}]
HEAD = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}

# The server


def answer_body() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * 50}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 8, "completion_tokens": 50, "total_tokens": 58}
    return json.dumps({**HEAD, "choices": [choice], "usage": usage}).encode()


def event(content: str | None) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": None if content else "stop"}
    return b"data: " + json.dumps({**HEAD, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def frame(payload: bytes) -> bytes:
    """An event-stream message; made here, so that the figures do not depend on the code that is measured."""
    headers = b"".join(
        struct.pack("!B", len(name)) + name + b"\x07" + struct.pack("!H", len(value)) + value
        for name, value in (
            (b":event-type", b"PayloadPart"),
            (b":content-type", b"application/octet-stream"),
            (b":message-type", b"event"),
        )
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


def chunked(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


ANSWER_BODY = answer_body()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER_BODY),
    ANSWER_BODY,
)
# LiteLLM takes a model that repeats itself for broken.
TOKENS = [event(f"word{number} ") for number in range(8)]
LAST, DONE = event(None), b"data: [DONE]\n\n"
PLAIN_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAMED_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n"
    b"X-Amzn-SageMaker-Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            assert length is not None, "a request without Content-Length"
            asked = json.loads(await reader.readexactly(int(length[1])))
            framed = head.split(b" ", 2)[1].endswith(b"-response-stream")
            if not (framed or asked.get("stream")):
                writer.write(ANSWER)
                continue
            wrap = (lambda data: chunked(frame(data))) if framed else chunked
            writer.write(FRAMED_HEAD if framed else PLAIN_HEAD)
            tokens = [wrap(token) for token in TOKENS]
            for number in range(asked["max_tokens"]):
                writer.write(tokens[number % len(tokens)])
                await asyncio.sleep(PACE_SECONDS * random.uniform(0.5, 1.5))
            writer.write(wrap(LAST) + wrap(DONE) + b"0\r\n\r\n")
    writer.close()


async def serve() -> None:
    server = await asyncio.start_server(serve_connection, "127.0.0.1", 0)
    print("http://{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def server_on(core: int) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", str(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


# The clients

Ask = Callable[[int | None], Awaitable[int]]
"""Makes a call and returns the pieces that came: of a stream with that many tokens, or of a whole answer for None."""


def by_sdk(llm: openai.AsyncOpenAI) -> Ask:
    async def ask(tokens: int | None) -> int:
        if tokens is None:
            whole = await llm.chat.completions.create(model="m", messages=MESSAGES)
            return len(whole.choices)
        seen = 0
        async for chunk in await llm.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=tokens, stream=True
        ):
            seen += chunk.choices[0].delta.content is not None
        return seen

    return ask


class Pieces(FloorProtocol):
    """A connection that wakes a waiting task for each piece of a response."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(2**16)
        self.received = 0
        self.last = b""

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        self.last = bytes(self.buffer[max(0, nbytes - 5) : nbytes])
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def piece(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        await self.waiter


@asynccontextmanager
async def asyncios(url: str) -> AsyncIterator[Ask]:
    loop = asyncio.get_running_loop()
    host, _, port = url.partition("://")[2].partition(":")
    idle: list[Pieces] = []

    async def ask(tokens: int | None) -> int:
        pieces = idle.pop() if idle else (await loop.create_connection(Pieces, host, int(port)))[1]
        pieces.received = 0
        asked = {"messages": MESSAGES, "model": "m"} | (
            {} if tokens is None else {"max_tokens": tokens, "stream": True}
        )
        body = json.dumps(asked).encode()
        path = "invocations" if tokens is None else "invocations-response-stream"
        pieces.transport.write(
            b"POST /endpoints/m/%b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        while pieces.received < len(ANSWER) if tokens is None else not pieces.last.endswith(b"0\r\n\r\n"):
            await pieces.piece()
        pieces.last = b""
        idle.append(pieces)
        return 1 if tokens is None else tokens

    yield ask
    for pieces in idle:
        pieces.transport.close()


@asynccontextmanager
async def httpxs(url: str) -> AsyncIterator[Ask]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as llm:
        yield by_sdk(llm)


class Stub(httpx2.AsyncBaseTransport):
    """Answers from memory: each token is a piece, as when it arrives by itself."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        tokens = re.search(rb'"max_tokens": *(\d+)', await request.aread())
        if tokens is None:
            return httpx2.Response(200, headers={"content-type": "application/json"}, content=ANSWER_BODY)
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=pieces(int(tokens[1])))


async def pieces(tokens: int) -> AsyncIterator[bytes]:
    for number in range(tokens):
        yield TOKENS[number % len(TOKENS)]
    yield LAST + DONE


def on_stub(kind: type[openai.AsyncOpenAI]) -> Callable[[str], Any]:
    @asynccontextmanager
    async def opening(url: str) -> AsyncIterator[Ask]:
        async with kind(api_key="unused", http_client=httpx2.AsyncClient(transport=Stub())) as llm:
            yield by_sdk(llm)

    return opening


def on_aiosmrt(route: Any) -> Callable[[str], Any]:
    @asynccontextmanager
    async def opening(url: str) -> AsyncIterator[Ask]:
        async with aiosmrt.Client(**WHO, endpoint_url=url) as client, async_openai(client, route=route) as llm:
            yield by_sdk(llm)

    return opening


@asynccontextmanager
async def litellms(url: str) -> AsyncIterator[Ask]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.suppress_debug_info = True
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)  # it complains of the end of each stream
    who = {
        "aws_region_name": WHO["region_name"],
        "aws_access_key_id": WHO["aws_access_key_id"],
        "aws_secret_access_key": WHO["aws_secret_access_key"],
    }

    async def ask(tokens: int | None) -> int:
        path = "invocations" if tokens is None else "invocations-response-stream"
        options: dict[str, Any] = {**who, "sagemaker_base_url": f"{url}/endpoints/m/{path}"}
        if tokens is None:
            whole: Any = await litellm.acompletion(model="sagemaker_chat/m", messages=MESSAGES, **options)
            return len(whole.choices)
        seen = 0
        stream: Any = await litellm.acompletion(
            model="sagemaker_chat/m", messages=MESSAGES, max_tokens=tokens, stream=True, **options
        )
        async for chunk in stream:
            seen += bool(chunk.choices[0].delta.content)
        return seen

    yield ask


CLIENTS: dict[str, Callable[[str], Any]] = {
    "asyncio": asyncios,
    "sdk": on_stub(openai.AsyncOpenAI),
    "sdk-quick": on_stub(QuickAsyncOpenAI),
    "httpx": httpxs,
    "invocations": on_aiosmrt("invocations"),
    "openai": on_aiosmrt("openai"),
    "litellm": litellms,
}


class Shape(NamedTuple):
    """What is measured: calls, or tokens per stream."""

    name: str
    count: int


async def sample(ask: Ask, shape: Shape) -> float:
    """CPU microseconds for each call or token."""
    if shape.name == "call":

        async def calls() -> None:
            for _ in range(shape.count):
                assert await ask(None) == 1

        _, cpu = await seconds_and_cpu(calls)
        return cpu / shape.count * 1e6

    async def streams(tokens: int) -> None:
        seen = await asyncio.gather(*(ask(tokens) for _ in range(STREAMS)))
        assert seen == [tokens] * STREAMS, f"{set(seen)} of {tokens} tokens"

    _, whole = await seconds_and_cpu(lambda: streams(shape.count))
    _, short = await seconds_and_cpu(lambda: streams(1))
    return (whole - short) / (STREAMS * (shape.count - 1)) * 1e6


async def measure(url: str, names: list[str], rounds: int, quick: bool) -> dict[str, dict[str, list[float]]]:
    shapes = [Shape("call", 50 if quick else 200), Shape("token", 40 if quick else 200)]
    async with contextlib.AsyncExitStack() as stack:
        asks = {name: await stack.enter_async_context(CLIENTS[name](url)) for name in names}
        for ask in asks.values():  # what the first call and the first stream load is not measured
            await ask(None)
            await ask(2)
        taken = await take_turns(rounds, shapes, names, lambda shape, name: sample(asks[name], shape))
    return {shape.name: samples for shape, samples in zip(shapes, taken, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", type=int, metavar="CORE", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="fewer calls, fewer rounds")
    parser.add_argument("--rounds", type=int, help="number of rounds")
    parser.add_argument("--clients", default=",".join(CLIENTS), help=f"comma-separated, any of {', '.join(CLIENTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        stay_on(arguments.serve)
        asyncio.run(serve())
        return
    names = [name for name in CLIENTS if name in arguments.clients.split(",")]
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        del os.environ[variable]
    available = cores()
    with server_on(available[-1]) as url:
        stay_on(available[0])
        results = asyncio.run(measure(url, names, rounds, arguments.quick))
    for shape, samples in results.items():

        def ratio(one: str, other: str, samples: dict[str, list[float]] = samples) -> str:
            return f"{median_ratio(samples[one], samples[other]):.2f}" if {one, other} <= set(names) else "-"

        rows = [
            [name, f"{statistics.median(samples[name]):.0f}", ratio(name, "httpx"), ratio("litellm", name)]
            for name in names
        ]
        print_table(f"CPU per {shape}, µs", ["client", "µs", "of httpx", "litellm by this"], rows)
    write_json(arguments.json, {"environment": environment(), "rounds": rounds, "microseconds": results})


if __name__ == "__main__":
    main()
