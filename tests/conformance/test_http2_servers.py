"""The client's streams on HTTP/2 servers of other makers: nghttp2 in Node, nghttp2's proxy, and Hypercorn."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aiosmrt
from aiosmrt._transport.http2.pool import Http2Pool
from aiosmrt.local import Invocation, StreamMessage
from tests.support.availability import unavailable
from tests.support.command_line import limited
from tests.support.javascript_sdk import JAVASCRIPT_DIRECTORY
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import local_runtime
from tests.support.tls import authority_pem, key_and_certificate
from tests.support.virtual_time import VirtualTime

# An echo of signed messages would not be what a service sends.
UNSIGNED = {**CLIENT_ARGUMENTS, "sign": False}


class NodeServer:
    """A running server, and the lines that it prints."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url
        self.seen: list[dict[str, Any]] = []

    async def line(self, name: str) -> Any:
        """Wait for the next line of a kind."""
        assert self._process.stdout is not None
        while True:
            for line in self.seen:
                if name in line:
                    self.seen.remove(line)
                    return line[name]
            text = await self._process.stdout.readline()
            assert text, "Node has ended"
            self.seen.append(json.loads(text))


@asynccontextmanager
async def node_server(node: str, *, tls: bool = False, **order: Any) -> AsyncIterator[NodeServer]:
    """Node's server; `order` is described in http2_server.mjs."""
    if tls:
        order |= dict(zip(("key", "cert"), key_and_certificate(), strict=True))
    process = await asyncio.create_subprocess_exec(
        node,
        str(JAVASCRIPT_DIRECTORY / "http2_server.mjs"),
        json.dumps(order),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    assert process.stdin is not None
    with limited(process):
        try:
            server = NodeServer(process, "")
            server.url = f"{'https' if tls else 'http'}://127.0.0.1:{await server.line('port')}"
            yield server
        finally:
            process.stdin.close()
            await process.communicate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def node_alone() -> str:
    """The path of node; no package is needed."""
    found = shutil.which("node")
    return found if found is not None else unavailable("node is not installed")


@asynccontextmanager
async def client_of(url: str, **arguments: Any) -> AsyncIterator[aiosmrt.Client]:
    async with aiosmrt.Client(http2_endpoint_url=url, **{**UNSIGNED, **arguments}) as client:
        yield client


def conversation(client: aiosmrt.Client, endpoint: str) -> aiosmrt.BidirectionalStream:
    return client.invoke_endpoint_with_bidirectional_stream(EndpointName=endpoint)


async def received(stream: aiosmrt.BidirectionalStream) -> bytes:
    return (await anext(stream))["PayloadPart"]["Bytes"]


async def exchange(stream: aiosmrt.BidirectionalStream, sizes: tuple[int, ...] = (0, 1, 640, 70_000, 400_000)) -> None:
    """Ping-pong with messages of some sizes, then both directions at once with more than all windows, then the end."""
    for size in sizes:
        message = os.urandom(size)
        sending = asyncio.create_task(stream.send(message))
        assert await received(stream) == message
        await sending
    messages = [bytes([number]) * 50_000 for number in range(40)]

    async def send_all() -> None:
        for message in messages:
            await stream.send(message)
        await stream.end_input()

    sending = asyncio.create_task(send_all())
    assert [event["PayloadPart"]["Bytes"] async for event in stream] == messages
    await sending


@pytest.mark.parametrize(
    ("endpoint", "order"),
    [
        ("echo", {"tls": True}),
        ("ornate", {"padding": True}),
        ("echo", {"settings": {"initialWindowSize": 5000, "maxFrameSize": 20_000}}),
        ("shrinking", {}),
    ],
    ids=["TLS", "padding, 103, CONTINUATION and trailers", "small windows", "windows that shrink"],
)
async def test_both_directions(endpoint: str, order: dict[str, Any], node_alone: str, tmp_path: Path) -> None:
    authorities = tmp_path / "authority.pem"
    authorities.write_bytes(authority_pem())
    async with node_server(node_alone, **order) as server:
        async with client_of(server.url, verify=str(authorities)) as client:
            async with conversation(client, endpoint) as stream:
                await exchange(stream)
                if endpoint == "ornate":
                    response = await stream.response()
                    assert response["InvokedProductionVariant"] == "ornate"
                    assert len(response["ResponseMetadata"]["HTTPHeaders"]["x-large-2"]) == 9000
            assert client.statistics().attempts == 1
        assert await server.line("closed") == 0


async def test_more_streams_than_a_connection_takes(node_alone: str) -> None:
    async with (
        node_server(node_alone, settings={"maxConcurrentStreams": 2}) as server,
        client_of(server.url, max_concurrency=7) as client,
    ):

        async def talk() -> None:
            async with conversation(client, "echo") as stream:
                await exchange(stream, ())

        await asyncio.gather(*(talk() for _ in range(7)))
        # None was refused.
        assert client.statistics().attempts == 7


async def test_a_refused_stream_is_begun_again(node_alone: str) -> None:
    async with node_server(node_alone) as server, client_of(server.url) as client:
        async with conversation(client, "refusing") as stream:
            await stream.send("again")
            assert await received(stream) == b"again"
        assert client.statistics().attempts == 2
        assert [await server.line("closed") for _ in range(2)] == [7, 8]


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [("resetting", "INTERNAL_ERROR"), ("cutting", "lost"), ("disowning", "begun")],
    ids=["RST_STREAM", "a cut connection", "GOAWAY before the stream"],
)
async def test_what_breaks_a_stream_is_an_error(endpoint: str, text: str, node_alone: str) -> None:
    async with node_server(node_alone) as server, client_of(server.url) as client:
        async with conversation(client, "echo") as stream:
            await exchange(stream, ())
        async with conversation(client, endpoint) as stream:
            await stream.send("first")
            assert await received(stream) == b"first"
            with pytest.raises(aiosmrt.ResponseStreamingError, match=text):
                await received(stream)
        # The client goes on.
        async with conversation(client, "echo") as stream:
            await exchange(stream, ())


async def test_a_graceful_goaway_lets_the_stream_finish(node_alone: str) -> None:
    async with node_server(node_alone) as server, client_of(server.url) as client:
        async with conversation(client, "closing") as stream:
            await stream.send("first")
            assert await received(stream) == b"first"
            async with conversation(client, "echo") as other:
                await exchange(other, ())
            await exchange(stream)
        assert [await server.line("session") for _ in range(2)] == [1, 2]


async def test_leaving_early_resets_the_stream(node_alone: str) -> None:
    async with node_server(node_alone) as server, client_of(server.url) as client:
        async with conversation(client, "echo") as stream:
            await stream.send("first")
            await received(stream)
        assert await server.line("closed") == 8  # CANCEL


async def test_pings_are_answered_on_both_sides(node_alone: str, virtual_time: VirtualTime) -> None:
    async with node_server(node_alone) as server:
        async with client_of(server.url) as client, conversation(client, "pinging") as stream:
            await stream.send("first")
            await received(stream)
            assert await server.line("pong") is True
        pool = Http2Pool(server.url, context=None, ping_after=5.0, ping_limit=3.0)
        try:
            fields = {":method": "POST", ":scheme": "http", ":authority": "x", ":path": "/endpoints/echo"}
            link = (await pool.acquire(20.0)).open([*fields.items()], lambda: None)
            assert link is not None
            for number in range(1, 4):
                await virtual_time.advance(5.0)
                assert await server.line("ping") == number
                # What is sent afterwards comes back after the answer.
                assert link.write(memoryview(b"x")) == 1
                assert await link.read() == b"x"
            link.close()
        finally:
            await pool.close()


async def test_a_fast_server_fills_one_window_and_starves_no_other_stream(node_alone: str) -> None:
    async with (
        node_server(node_alone) as server,
        client_of(server.url) as client,
        conversation(client, "flooding") as slow,
    ):
        message = bytes(40_000)
        await slow.send(message)
        await slow.response()
        # 4 MB in all, of which the server could send no more than the window, and what its own buffers take.
        assert await server.line("full") < 1_000_000
        async with conversation(client, "echo") as other:
            await exchange(other, (640,))
        await slow.end_input()
        assert [event["PayloadPart"]["Bytes"] async for event in slow] == [message] * 100


# The client, nghttp2's proxy and the local runtime, with signatures


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    assert invocation.messages is not None
    async for message in invocation.messages:
        yield message


@asynccontextmanager
async def proxy_of(url: str, *arguments: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """nghttp2's proxy in front of a server; its address and its process."""
    program = shutil.which("nghttpx")
    if program is None:
        unavailable("nghttpx is not installed: .ci/nghttp2 does that on Debian")
    with socket.socket() as reserved:
        # Linux lets both bind a port on which only one of them listens; no other program gets it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            program,
            f"--conf={os.devnull}",
            f"--frontend=127.0.0.1,{port};no-tls",
            f"--backend=127.0.0.1,{url.rpartition(':')[2]};;proto=h2",
            "--workers=1",
            "--errorlog-file=/dev/stderr",
            f"--accesslog-file={os.devnull}",
            *arguments,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        with limited(process):
            try:
                while b"Created worker thread" not in (line := await process.stderr.readline()):
                    assert line, "nghttpx did not start"
                yield f"http://127.0.0.1:{port}", process
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.communicate()


async def test_signed_streams_pass_a_proxy_until_it_shuts_down() -> None:
    async with (
        local_runtime({"echo": echo}, http2_port=0) as runtime,
        proxy_of(runtime.http2_url, "--frontend-http2-max-concurrent-streams=3") as (url, proxy),
        client_of(url, sign=True) as client,
    ):

        async def talk() -> None:
            async with conversation(client, "echo") as stream:
                await exchange(stream)

        await asyncio.gather(*(talk() for _ in range(4)))
        async with conversation(client, "echo") as stream:
            await stream.send("first")
            assert await received(stream) == b"first"
            proxy.send_signal(signal.SIGQUIT)
            # It takes no new connections once it has sent GOAWAY.
            assert proxy.stderr is not None
            while b"Graceful shutdown commencing" not in (line := await proxy.stderr.readline()):
                assert line, "nghttpx has ended"
            await exchange(stream)
        await proxy.wait()
        assert {record.outcome for record in await runtime.wait_for_requests(5)} == {"answered"}


# Hypercorn


async def _echo_application(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that answers while the request goes on."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        more = event.get("more_body", False)
        await send({"type": "http.response.body", "body": event.get("body", b""), "more_body": more})
        if not more:
            return


@asynccontextmanager
async def hypercorn() -> AsyncIterator[str]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.h2_max_concurrent_streams = 3
    config.errorlog = None
    leave = asyncio.Event()
    serving = asyncio.create_task(serve(_echo_application, config, shutdown_trigger=leave.wait, mode="asgi"))
    try:
        yield url
    finally:
        leave.set()
        # It ends what is left itself after a few seconds.
        await serving


async def test_hypercorn() -> None:
    async with hypercorn() as url, client_of(url, max_concurrency=5) as client:

        async def talk() -> None:
            async with conversation(client, "any") as stream:
                # It reads nothing, WINDOW_UPDATE included, while its application waits for room: one message at a time.
                for size in (0, 1, 640, 70_000, 400_000):
                    message = os.urandom(size)
                    sending = asyncio.create_task(stream.send(message))
                    assert await received(stream) == message
                    await sending
                await stream.end_input()
                assert [event async for event in stream] == []

        await asyncio.gather(*(talk() for _ in range(5)))
        assert client.statistics().attempts == 5
