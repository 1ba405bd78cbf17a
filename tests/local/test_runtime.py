"""The lifetime of a local runtime: start, close, their cancellation at every await, records and statistics."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiosmrt.errors import ClientStateError, ConfigurationError
from aiosmrt.local import EndpointConfiguration, Invocation, LocalRuntime, ProductionVariant, faults
from tests.support.runtime import ACCEPTED, Draft, InProcessContainer, RawConnection, echo, local_runtime, words
from tests.support.seams import abort_connection


class Held:
    """A model that answers on command."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.ended: list[str] = []

    async def __call__(self, invocation: Invocation) -> bytes:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("answered")
        return b"late"


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task outlives a runtime, and no transport is left unclosed."""
    before = others()
    gc.freeze()  # skips the objects that exist already
    yield
    assert others() <= before
    gc.collect()
    gc.unfreeze()


async def refuses_connections(url: str) -> bool:
    try:
        async with RawConnection.to(url):
            return False
    except ConnectionRefusedError:
        return True


async def test_listens_on_loopback_only_while_running() -> None:
    runtime = local_runtime({"echo": echo})
    with pytest.raises(ClientStateError, match="is not running"):
        _ = runtime.url
    assert "idle" in repr(runtime)
    async with runtime:
        url = runtime.url
        assert url == f"http://127.0.0.1:{runtime.port}"
        assert url in repr(runtime)
        assert not await refuses_connections(url)
    assert await refuses_connections(url)
    with pytest.raises(ClientStateError):
        _ = runtime.port


async def test_restart() -> None:
    runtime = local_runtime({"echo": echo})
    for _ in range(2):
        async with runtime, RawConnection.to(runtime.url) as connection:
            assert (await connection.exchange(Draft(runtime.url).sign().encode())).status == 200
    assert len(runtime.requests) == 2


async def test_start_twice() -> None:
    async with local_runtime({"echo": echo}) as runtime:
        with pytest.raises(ClientStateError, match="already"):
            await runtime.start()
        assert not await refuses_connections(runtime.url)


async def test_close_twice_and_unstarted() -> None:
    runtime = local_runtime({"echo": echo})
    await runtime.close()
    await runtime.start()
    url = runtime.url
    first, second = asyncio.ensure_future(runtime.close()), asyncio.ensure_future(runtime.close())
    await second
    assert first.done()
    assert await refuses_connections(url)
    await runtime.close()


async def test_chosen_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        container = InProcessContainer()
        runtime = local_runtime({"churn": container}, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await runtime.start()
        assert not container.running
    async with runtime:
        assert container.running


async def test_close_waits_for_requests_in_flight() -> None:
    model = Held()
    runtime = local_runtime({"echo": model}, drain_timeout=30)
    await runtime.start()
    async with RawConnection.to(runtime.url) as connection:
        await connection.write(Draft(runtime.url).sign().encode())
        await runtime.wait_for_in_flight(1)
        url = runtime.url
        closing = asyncio.create_task(runtime.close())
        while not await refuses_connections(url):
            await asyncio.sleep(0)
        model.go_on.set()
        assert (await connection.answer()).body == b"late"
        await closing
    assert runtime.requests[0].outcome == "answered"


async def test_close_cancels_requests_after_the_grace_period() -> None:
    model = Held()
    runtime = local_runtime({"echo": model}, drain_timeout=0.02)
    await runtime.start()
    async with RawConnection.to(runtime.url) as connection:
        await connection.write(Draft(runtime.url).sign().encode())
        await runtime.wait_for_in_flight(1)
        await runtime.close()
        assert await connection.rest() == (b"", "closed")
    assert model.ended == ["cancelled"]
    assert runtime.requests[0].outcome == "disconnected"
    assert runtime.statistics()["in_flight"] == 0


async def test_disconnect_at_the_response_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = Held()
    async with local_runtime({"echo": model}) as runtime, RawConnection.to(runtime.url) as connection:
        await connection.write(Draft(runtime.url).sign().encode())
        await runtime.wait_for_in_flight(1)
        # The model's response and the disconnect happen in one loop iteration, in this order.
        model.go_on.set()
        abort_connection(runtime)
        (record,) = await runtime.wait_for_requests(1)
    assert model.ended == ["answered"]
    assert record.outcome == "disconnected"
    assert caplog.records == []


async def test_close_releases_stalled_calls() -> None:
    async with RawConnectionLater() as later:
        async with local_runtime({"echo": echo}, faults={"echo": faults.Stall()}, drain_timeout=30) as runtime:
            connection = await later.open(runtime.url)
            await connection.write(Draft(runtime.url).sign().encode())
            await runtime.wait_for_stalled(1)
        assert (await connection.answer()).status == 200


async def test_client_that_reads_nothing_does_not_delay_the_close() -> None:
    async def model(invocation: Invocation) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    async with RawConnectionLater() as later:
        async with local_runtime({"words": model}, drain_timeout=0.05) as runtime:
            connection = await later.open(runtime.url)
            path = "/endpoints/words/invocations-response-stream"
            await connection.write(Draft(runtime.url, path).sign().encode())
            await connection.reader.readexactly(1000)
        assert runtime.requests[0].outcome == "disconnected"


async def test_close_closes_idle_connections() -> None:
    async with RawConnectionLater() as later:
        async with local_runtime({"echo": echo}) as runtime:
            connection = await later.open(runtime.url)
            assert (await connection.exchange(Draft(runtime.url).sign().encode())).status == 200
        assert await connection.rest() == (b"", "closed")


async def test_cancelled_close_skips_the_grace_period() -> None:
    model, container = Held(), InProcessContainer()
    runtime = local_runtime({"echo": model, "churn": container}, drain_timeout=3600)
    await runtime.start()
    async with RawConnection.to(runtime.url) as connection:
        await connection.write(Draft(runtime.url).sign().encode())
        await runtime.wait_for_in_flight(1)
        closing = asyncio.create_task(runtime.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await connection.rest() == (b"", "closed")
    assert model.ended == ["cancelled"]
    assert not container.running


async def turns(awaitable: Any) -> int:
    """An upper limit of the loop iterations that something takes."""
    task = asyncio.ensure_future(awaitable)
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    await task
    return count


async def was_cancelled(awaitable: Any, turn: int) -> bool:
    """Cancel a task after this many loop iterations; return whether it ended cancelled."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(turn):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    return task.cancelled()


async def test_cancel_start_at_every_loop_iteration() -> None:
    container = InProcessContainer()
    runtime = local_runtime({"churn": container, "echo": echo})
    longest = await turns(runtime.start())
    await runtime.close()
    cancelled = 0
    for turn in range(longest + 1):
        if await was_cancelled(runtime.start(), turn):
            cancelled += 1
            assert runtime.statistics()["connections"] == 0
            assert not container.running
            with pytest.raises(ClientStateError):
                _ = runtime.url
        else:
            await runtime.close()
    assert cancelled > 2


async def test_cancel_close_at_every_loop_iteration() -> None:
    container = InProcessContainer()

    async def started() -> tuple[LocalRuntime, RawConnectionLater]:
        runtime = local_runtime({"churn": container, "echo": echo, "words": words}, drain_timeout=3600)
        await runtime.start()
        later = RawConnectionLater()
        idle = await later.open(runtime.url)
        assert (await idle.exchange(Draft(runtime.url).sign().encode())).status == 200
        return runtime, later

    runtime, later = await started()
    longest = await turns(runtime.close())
    await later.close()
    cancelled = 0
    for turn in range(longest + 1):
        runtime, later = await started()
        cancelled += await was_cancelled(runtime.close(), turn)
        if turn:  # a task that is cancelled before it runs has started nothing
            assert not container.running
            assert runtime.statistics()["connections"] == 0
        else:
            await runtime.close()
        await later.close()
    assert cancelled > 2


async def test_failed_container_stops_the_others() -> None:
    class Broken(InProcessContainer):
        async def start(self) -> None:
            raise RuntimeError("no such model")

    good = InProcessContainer()
    with pytest.raises(RuntimeError, match="no such model"):
        await local_runtime({"good": good, "bad": Broken()}).start()
    assert not good.running


async def test_wait_for_in_flight_and_stalled() -> None:
    model = Held()
    async with local_runtime({"echo": model}) as runtime:
        waiting = asyncio.create_task(runtime.wait_for_requests(2))
        async with RawConnection.to(runtime.url) as one, RawConnection.to(runtime.url) as two:
            for connection in (one, two):
                await connection.write(Draft(runtime.url).sign().encode())
            await runtime.wait_for_in_flight(2)
            assert runtime.statistics()["in_flight"] == 2
            assert not waiting.done()
            model.go_on.set()
            assert len(await waiting) == 2
        assert await runtime.wait_for_requests(1) == runtime.requests
        cancelled = asyncio.create_task(runtime.wait_for_requests(3))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        runtime.clear_requests()
        assert runtime.requests == ()
        assert runtime.statistics()["requests"] == 2


async def test_request_records() -> None:
    headers = [
        ("amz-sdk-invocation-id", "5c1b3f7e-fake"),
        ("amz-sdk-request", "ttl=20300101T000000Z; attempt=2; max=5"),
        ("User-Agent", "tester/1"),
        ("X-Amzn-SageMaker-Inference-Id", "inference-1"),
        ("X-Amzn-SageMaker-Target-Model", "m.tar.gz"),
        ("X-Amzn-SageMaker-Custom-Attributes", "secret=1"),
    ]
    endpoints = {"echo": EndpointConfiguration([ProductionVariant(echo)], multi_model=True), "plain": echo}
    async with local_runtime(endpoints) as runtime:
        async with RawConnection.to(runtime.url) as connection:
            answer = await connection.exchange(Draft(runtime.url, query="b=2", headers=headers).sign().encode())
            await connection.exchange(Draft(runtime.url, "/endpoints/plain/invocations").sign().encode())
        async with RawConnection.to(runtime.url) as connection:
            await connection.exchange(Draft(runtime.url).encode())
    first, second, third = runtime.requests
    assert first.request_id == answer.headers["x-amzn-requestid"]
    assert (first.method, first.path) == ("POST", "/endpoints/echo/invocations")
    assert (first.operation, first.endpoint, first.variant) == ("InvokeEndpoint", "echo", "AllTraffic")
    assert (first.status, first.error_code, first.outcome, first.fault) == (200, None, "answered", ())
    assert (first.request_bytes, first.response_bytes, first.parts) == (5, 5, 0)
    assert (first.attempt, first.max_attempts, first.invocation_id) == (2, 5, "5c1b3f7e-fake")
    assert (first.user_agent, first.inference_id, first.target_model) == ("tester/1", "inference-1", "m.tar.gz")
    assert first.access_key_id == ACCEPTED.access_key
    assert first.seconds > 0
    assert (second.attempt, second.max_attempts, second.invocation_id) == (None, None, None)
    assert (third.error_code, third.access_key_id) == ("MissingAuthenticationTokenException", None)
    assert [record.connection for record in runtime.requests] == [1, 1, 2]
    assert first.headers is first.request_body is first.response_body is None
    assert runtime.statistics() == {
        "requests": 3,
        "in_flight": 0,
        "stalled": 0,
        "queued": 0,
        "connections": 0,
        "connections_seen": 2,
        "closes_to_come": 0,
        "sessions": 0,
        "jobs": {"queued": 0, "running": 0, "succeeded": 0, "failed": 0, "dropped": 0},
        "request_bytes": 15,
        "response_bytes": 10 + third.response_bytes,
        "by_status": {200: 2, 403: 1},
        "by_error": {"MissingAuthenticationTokenException": 1},
        "by_endpoint": {"echo": 2, "plain": 1},
    }


async def test_record_bodies() -> None:
    async with (
        local_runtime({"echo": echo, "words": words}, record_bodies=True) as runtime,
        RawConnection.to(runtime.url) as connection,
    ):
        await connection.exchange(Draft(runtime.url, headers=[("Content-Type", "text/csv")]).sign().encode())
        stream = Draft(runtime.url, "/endpoints/words/invocations-response-stream").sign().encode()
        streamed = await connection.exchange(stream)
    first, second = runtime.requests
    assert first.request_body == first.response_body == b"1,2,3"
    assert first.headers is not None
    assert first.headers["content-type"] == "text/csv"
    assert "authorization" not in first.headers
    assert second.response_body == streamed.body
    assert "1,2,3" not in repr(first)


async def test_shared_container_is_started_once() -> None:
    container = InProcessContainer()
    starts = 0
    start = container.start

    async def counted() -> None:
        nonlocal starts
        starts += 1
        await start()

    container.start = counted  # type: ignore[method-assign]
    async with local_runtime({"a": ProductionVariant([container, container]), "b": container}):
        assert container.running
    assert starts == 1


async def test_no_endpoints() -> None:
    async with local_runtime({}) as runtime, RawConnection.to(runtime.url) as connection:
        assert (await connection.exchange(Draft(runtime.url).sign().encode())).status == 400


def test_constructor_needs_no_loop() -> None:
    local_runtime({"echo": echo, "url": "http://127.0.0.1:9"})
    with pytest.raises(ConfigurationError):
        local_runtime({"echo": None})


class RawConnectionLater:
    """Connections that outlive their runtime."""

    def __init__(self) -> None:
        self._contexts: list[Any] = []

    async def open(self, url: str) -> RawConnection:
        context = RawConnection.to(url)
        connection: RawConnection = await context.__aenter__()
        self._contexts.append(context)
        return connection

    async def close(self) -> None:
        while self._contexts:
            await self._contexts.pop().__aexit__(None, None, None)

    async def __aenter__(self) -> "RawConnectionLater":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
