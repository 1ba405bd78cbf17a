"""CPU per message of a bidirectional stream: aiosmrt beside AWS's client, on the same server in the same run.

    python benchmarks/bidirectional.py [--messages 2000] [--rounds 3] [--json FILE]

Messages of 640 bytes, 20 ms of 16 kHz audio, over TLS to a local runtime in another process that echoes them:

- ping-pong: the next message is sent when the last one has come back;
- pipelined: one task sends, another receives;
- send-only: the model takes all of them and answers once.

Then, for aiosmrt alone and its process on one core: how late messages leave when 100 streams send 50 each a second, and
how much memory an idle stream takes.

A client's figure is the CPU time of its process, connection and start of the stream left out. AWS's client
(``aws-sdk-sagemaker-runtime-http2`` on awscrt) runs under the Python that AIOSMRT_TEST_HTTP2 names; `make peers`
installs it. Without it, its column and the targets that name it are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from reporting import against_target, environment, print_table, print_targets, write_json

MESSAGE = bytes(640)
MODES = ("ping-pong", "pipelined", "send-only")
KEY = ("AKIDEXAMPLE", "not-a-real-secret")
REGION = "eu-central-1"
INTERVAL = 0.02

# What is promised: how many times as much CPU AWS's client takes, at least, and at most so late and so large.
RATIOS = {"ping-pong": 3, "pipelined": 15, "send-only": 12}
MAX_LATE_MS = 10
MAX_IDLE_KIB = 64

Send = Callable[[bytes], Awaitable[object]]
Receive = Callable[[], Awaitable[object]]
End = Callable[[], Awaitable[object]]


async def measure(mode: str, messages: int, send: Send, receive: Receive, end: End) -> float:
    """CPU seconds per message."""
    await send(MESSAGE)
    if mode != "send-only":
        await receive()
    began = time.process_time()
    if mode == "ping-pong":
        for _ in range(messages):
            await send(MESSAGE)
            await receive()
    elif mode == "pipelined":

        async def send_all() -> None:
            for _ in range(messages):
                await send(MESSAGE)

        sending = asyncio.ensure_future(send_all())
        for _ in range(messages):
            await receive()
        await sending
    else:
        for _ in range(messages):
            await send(MESSAGE)
        await end()
        await receive()
    return (time.process_time() - began) / messages


async def measure_aiosmrt(url: str, authority: str, mode: str, messages: int) -> float:
    async with (
        client_of(url, authority) as client,
        client.invoke_endpoint_with_bidirectional_stream(EndpointName=mode) as stream,
    ):
        return await measure(mode, messages, stream.send, stream.__anext__, stream.end_input)


def client_of(url: str, authority: str) -> Any:
    import aiosmrt

    return aiosmrt.Client(
        REGION,
        aws_access_key_id=KEY[0],
        aws_secret_access_key=KEY[1],
        http2_endpoint_url=url,
        verify=authority,
        max_concurrency=1000,
    )


async def measure_pace(url: str, authority: str, streams: int, seconds: float) -> float:
    """By how many seconds the latest percent of the messages leaves late, each stream sending 50 a second."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    loop = asyncio.get_running_loop()
    late: list[float] = []

    async def talk(client: Any, number: int, begin: asyncio.Future[float]) -> None:
        async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="send-only") as stream:
            await stream.send(MESSAGE)
            due = await begin + number * INTERVAL / streams
            for _ in range(int(seconds / INTERVAL)):
                await asyncio.sleep(due - loop.time())
                await stream.send(MESSAGE)
                late.append(loop.time() - due)
                due += INTERVAL

    async with client_of(url, authority) as client:
        begin = loop.create_future()
        talks = [asyncio.ensure_future(talk(client, number, begin)) for number in range(streams)]
        await asyncio.sleep(1.0)
        begin.set_result(loop.time() + 0.1)
        await asyncio.gather(*talks)
    return statistics.quantiles(late, n=100)[98]


async def measure_memory(url: str, authority: str, streams: int) -> float:
    """Bytes of resident memory for each further stream that is open and idle."""
    from contextlib import AsyncExitStack

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with client_of(url, authority) as client, AsyncExitStack() as stack:

        async def open_some(count: int) -> None:
            for _ in range(count):
                stream = client.invoke_endpoint_with_bidirectional_stream(EndpointName="pipelined")
                await stack.enter_async_context(stream)
                await stream.send(MESSAGE)
                await anext(stream)

        await open_some(50)
        before = resident()
        await open_some(streams)
        return (resident() - before) / streams


async def measure_aws(url: str, authority: str, mode: str, messages: int) -> float:
    from aws_sdk_sagemaker_runtime_http2.client import AsyncSageMakerRuntimeHTTP2Client
    from aws_sdk_sagemaker_runtime_http2.config import AsyncSageMakerRuntimeHTTP2Config
    from aws_sdk_sagemaker_runtime_http2.models import (
        InvokeEndpointWithBidirectionalStreamInput,
        RequestPayloadPart,
        RequestStreamEventPayloadPart,
    )
    from smithy_http.aio.crt import AWSCRTHTTPClient

    config = await AsyncSageMakerRuntimeHTTP2Config.resolve(
        endpoint_uri=url, region=REGION, transport=AWSCRTHTTPClient()
    )
    stream: Any = await AsyncSageMakerRuntimeHTTP2Client(config=config).invoke_endpoint_with_bidirectional_stream(
        InvokeEndpointWithBidirectionalStreamInput(endpoint_name=mode)
    )
    events: Any = None

    async def send(data: bytes) -> None:
        part = RequestPayloadPart(bytes_=data)
        await stream.input_stream.send(RequestStreamEventPayloadPart(value=part))

    async def receive() -> None:
        nonlocal events
        if events is None:
            events = (await stream.await_output())[1]
        await events.receive()

    return await measure(mode, messages, send, receive, stream.input_stream.close)


async def serve(folder: Path) -> None:
    """The server's process: prints its URL, and runs until its input ends."""
    import ssl

    import trustme

    from aiosmrt.local import Credentials, LocalRuntime

    async def echo(invocation: Any) -> Any:
        async for message in invocation.messages:
            yield message

    async def sink(invocation: Any) -> Any:
        async for _ in invocation.messages:
            pass
        yield "done"

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    endpoints = {"ping-pong": echo, "pipelined": echo, "send-only": sink}
    async with LocalRuntime(
        endpoints, credentials=Credentials(*KEY), region=REGION, http2_port=0, http2_tls=context
    ) as runtime:
        print(runtime.http2_url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def run_client(python: str, client: str, url: str, authority: Path, mode: str, messages: int) -> float:
    """What a client in a new process measures."""
    environment = os.environ | {
        "SSL_CERT_FILE": str(authority),
        "AWS_ACCESS_KEY_ID": KEY[0],
        "AWS_SECRET_ACCESS_KEY": KEY[1],
    }
    command = [python, __file__, "--client", client, "--url", url, "--authority", str(authority)]
    command += ["--mode", mode, "--messages", str(messages)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return float(json.loads(done.stdout))


def compare(messages: int, rounds: int, path: Path | None) -> None:
    aws = os.environ.get("AIOSMRT_TEST_HTTP2", "")
    clients = {"aiosmrt": sys.executable} | ({"aws": aws} if Path(aws).is_file() else {})
    medians: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        authority = Path(folder, "authority.pem")
        command = [sys.executable, __file__, "--serve", folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdin is not None
            url = server.stdout.readline().strip()
            for mode in MODES:
                figures: dict[str, list[float]] = {client: [] for client in clients}
                for _ in range(rounds):
                    for client, python in clients.items():
                        figures[client].append(run_client(python, client, url, authority, mode, messages))
                medians[mode] = {client: statistics.median(found) for client, found in figures.items()}
            late = run_client(sys.executable, "pace", url, authority, "send-only", 100)
            memory = run_client(sys.executable, "memory", url, authority, "pipelined", 500)
            server.stdin.close()
    print_table(
        f"CPU per message, medians of {rounds} rounds",
        ["", *clients],
        [[mode, *(f"{seconds * 1e6:.0f} µs" for seconds in found.values())] for mode, found in medians.items()],
    )
    targets = [
        against_target(f"{mode}: AWS's CPU / own", found["aws"] / found["aiosmrt"], RATIOS[mode], at_most=False)
        for mode, found in medians.items()
        if "aws" in found
    ]
    targets.append(against_target("100 streams: lateness, p99", late * 1e3, MAX_LATE_MS, at_most=True, unit=" ms"))
    targets.append(against_target("memory of an idle stream", memory / 1024, MAX_IDLE_KIB, at_most=True, unit=" KiB"))
    print_targets("targets", targets)
    write_json(path, {"environment": environment(), "seconds": medians, "targets": targets})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--client", choices=["aiosmrt", "aws", "pace", "memory"], help=argparse.SUPPRESS)
    for name in ("--url", "--authority", "--mode"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve))
    elif arguments.client is not None:
        url, authority, messages = arguments.url, arguments.authority, arguments.messages
        if arguments.client == "pace":
            run: Any = measure_pace(url, authority, messages, 5.0)
        elif arguments.client == "memory":
            run = measure_memory(url, authority, messages)
        else:
            measured = measure_aiosmrt if arguments.client == "aiosmrt" else measure_aws
            run = measured(url, authority, arguments.mode, messages)
        print(json.dumps(asyncio.run(run)))
    else:
        compare(arguments.messages, arguments.rounds, arguments.json)


if __name__ == "__main__":
    main()
