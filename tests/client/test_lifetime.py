"""Where and how long a client can be used: one loop, one process, until it is closed."""

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client, ClientStateError
from aiosmrt._wire.eventstream import encode_payload_part
from aiosmrt.events import CallEnded
from tests.support import seams
from tests.support.clients import MakeClient
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.recording_server import RecordedRequest, RecordingServer, Response, respond


async def call(client: Client) -> int:
    response = await client.invoke_endpoint(EndpointName="e", Body=b"")
    return response["ResponseMetadata"]["HTTPStatusCode"]


@pytest.fixture
def server_in_a_thread() -> Iterator[str]:
    """The URL of a server with its own loop and thread, so that a test may run several loops."""
    started: Any = threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with RecordingServer() as server:
            stop = asyncio.Event()
            found.extend((server.url, asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait(10)
    url, loop, stop = found
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    assert not thread.is_alive()


def test_a_client_can_be_closed_after_its_loop_was(server_in_a_thread: str) -> None:
    """As by ``asyncio.run(client.close())`` behind the `asyncio.run` of the calls."""
    program = f"""
import asyncio
from aiosmrt import Client, ClientStateError

client = Client("eu-central-1", endpoint_url={server_in_a_thread!r}, aws_access_key_id="a", aws_secret_access_key="b")
asyncio.run(client.invoke_endpoint(EndpointName="churn", Body=b"1"))
asyncio.run(client.close())
asyncio.run(client.close())
try:
    asyncio.run(client.invoke_endpoint(EndpointName="churn", Body=b"1"))
except ClientStateError as error:
    print(error)
"""
    # The sockets of a loop that was closed under them are asyncio's to warn of.
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "the client is closed (InvokeEndpoint of endpoint churn)\n",
        "",
    )


def test_use_on_a_second_loop_is_refused(server_in_a_thread: str) -> None:
    client = Client(endpoint_url=server_in_a_thread, **CLIENT_ARGUMENTS)
    with asyncio.Runner() as first:
        assert first.run(call(client)) == 200

        async def elsewhere() -> None:
            for use in (call(client), client.close(), client.__aenter__()):
                with pytest.raises(ClientStateError, match="event loop"):
                    await use

        thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        thread.start()
        thread.join(30)
        # The first loop has lost nothing by it.
        assert first.run(call(client)) == 200
        first.run(client.close())


def in_child(check: Callable[[], object]) -> str:
    """Run `check` in a forked child; return its traceback, or an empty string."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            check()
            message = ""
        except BaseException:
            message = traceback.format_exc()
        os.write(writer, message.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        message = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return message


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_use_in_a_forked_child_is_refused(server_in_a_thread: str) -> None:
    client = Client(endpoint_url=server_in_a_thread, **CLIENT_ARGUMENTS)
    with asyncio.Runner() as runner:
        assert runner.run(call(client)) == 200

        def on_a_new_loop() -> None:
            with pytest.raises(ClientStateError, match="process"):
                asyncio.run(call(client))

        def on_the_same_loop() -> None:
            with pytest.raises(ClientStateError, match="process"):
                runner.run(call(client))

        assert in_child(on_a_new_loop) == ""
        assert in_child(on_the_same_loop) == ""
        # The parent's connections are as they were.
        assert runner.run(call(client)) == 200
        runner.run(client.close())


def test_a_client_not_used_before_a_fork_works_after_it(server_in_a_thread: str) -> None:
    client = Client(endpoint_url=server_in_a_thread, **CLIENT_ARGUMENTS)

    async def use() -> None:
        async with client:
            assert await call(client) == 200

    with pytest.warns(DeprecationWarning, match="fork") if _fork_warns() else _nothing():
        assert in_child(lambda: asyncio.run(use())) == ""


@pytest.mark.parametrize("is_made_before", [False, True])
def test_workers_that_seed_random_alike_have_calls_of_different_ids(
    server_in_a_thread: str, tmp_path: Path, is_made_before: bool
) -> None:
    def new() -> Client:
        return Client(endpoint_url=server_in_a_thread, observers=[seen.append], **CLIENT_ARGUMENTS)

    seen: list[Any] = []
    path = tmp_path / "ids"
    path.touch()
    shared = new() if is_made_before else None

    async def use() -> None:
        random.seed(7)
        async with shared or new() as client:
            await call(client)
        path.write_text(
            path.read_text() + "".join(f"{event.invocation_id}\n" for event in seen if isinstance(event, CallEnded))
        )

    with pytest.warns(DeprecationWarning, match="fork") if _fork_warns() else _nothing():
        assert [in_child(lambda: asyncio.run(use())) for _ in range(2)] == ["", ""]
    ids = path.read_text().split()
    assert (len(ids), len(set(ids))) == (2, 2)


def _fork_warns() -> bool:
    import sys

    return sys.version_info >= (3, 12)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


async def test_use_of_a_closed_client_is_refused(client: Client) -> None:
    assert await call(client) == 200
    await client.close()
    await client.close()
    for use in (
        call(client),
        client.invoke_endpoint_async(EndpointName="e", Body=b""),
        client.invoke_endpoint_with_response_stream(EndpointName="e", Body=b""),
        client.make_request("InvokeEndpoint", {"EndpointName": "e", "Body": b""}),
        client.__aenter__(),
    ):
        with pytest.raises(ClientStateError, match="closed"):
            await use
    assert "closed" in repr(client)


async def test_a_client_closed_before_its_first_call(client: Client) -> None:
    await client.close()
    with pytest.raises(ClientStateError, match="closed"):
        await call(client)


async def test_leaving_the_block_closes_every_connection(server: RecordingServer) -> None:
    async with Client(endpoint_url=server.url, **CLIENT_ARGUMENTS) as client:
        await asyncio.gather(*(call(client) for _ in range(5)))
        assert server.connections_open > 0
    await server.until(lambda server: server.connections_open == 0)


async def test_closing_ends_calls_that_are_under_way(client: Client, server: RecordingServer) -> None:
    never = asyncio.Event()

    async def silence(request: RecordedRequest) -> Response:
        await never.wait()
        return Response()

    server.answer = silence
    under_way = asyncio.create_task(call(client))
    await server.until(lambda server: len(server.requests) == 1)
    await client.close()
    with pytest.raises(ClientStateError, match="closed"):
        await under_way
    assert client.statistics().in_use == 0


async def test_first_calls_at_once_prepare_once(client: Client, server: RecordingServer) -> None:
    assert await asyncio.gather(*(call(client) for _ in range(20))) == [200] * 20
    assert len(server.requests) == 20
    assert client.statistics().calls == 20


async def test_a_view_ends_with_its_client_and_not_the_other_way_round(client: Client) -> None:
    view = client.with_options(deadline=5.0)
    async with view:
        assert await call(view) == 200
    assert await call(view) == 200
    assert await call(client) == 200
    await client.close()
    with pytest.raises(ClientStateError, match="closed"):
        await call(view)


async def test_nothing_is_left_when_a_first_call_is_cancelled(client: Client, server: RecordingServer) -> None:
    first = asyncio.create_task(call(client))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await call(client) == 200
    assert client.statistics().in_use == 0


async def test_closing_ends_the_wait_behind_an_unread_stream(make_client: MakeClient, server: RecordingServer) -> None:
    server.answer = respond(200, encode_payload_part(b"one"))
    client = make_client(max_concurrency=1)
    callers = (client, client.with_options(max_concurrency=1))
    streams = [
        (await caller.invoke_endpoint_with_response_stream(EndpointName="e", Body=b""))["Body"] for caller in callers
    ]
    waiting = [asyncio.create_task(call(caller)) for caller in callers]
    await asyncio.sleep(0)
    assert [caller.statistics().waiting for caller in callers] == [1, 1]
    await client.close()
    for task in waiting:
        with pytest.raises(ClientStateError, match="closed"):
            await task
    for stream in streams:
        stream.close()
    assert [(caller.statistics().in_use, caller.statistics().waiting) for caller in callers] == [(0, 0), (0, 0)]
    assert len(server.requests) == 2


async def collect_until(holds: Callable[[], bool]) -> None:
    """Collect garbage until a condition holds; the client's thread may still be finishing its last piece of work."""
    while not holds():
        await asyncio.to_thread(gc.collect)


async def test_an_unclosed_client_warns(server: RecordingServer) -> None:
    client = Client(endpoint_url=server.url, transport="pooled", **CLIENT_ARGUMENTS)
    await call(client)
    transport = seams.transport_of(client)
    assert transport is not None
    del client
    with pytest.warns(ResourceWarning, match=r"unclosed aiosmrt\.Client") as warned:
        await collect_until(lambda: len(warned) > 0)
    await transport.close()


async def test_a_client_without_connections_needs_no_closing(server: RecordingServer) -> None:
    client = Client(endpoint_url=server.url, **CLIENT_ARGUMENTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del client
        gc.collect()
