"""A local runtime in a ``with`` block: in its own thread, used from others."""

import asyncio
import http.client
import sys
import threading
from contextlib import closing
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.errors import ClientStateError, ConfigurationError
from aiosmrt.local import Credentials, LocalRuntime, faults
from aiosmrt.local.loopthread import LoopThread

KEY = Credentials("AKIDEXAMPLE", "not-a-real-secret")
CALL: dict[str, Any] = {"EndpointName": "churn", "Body": b"1"}


async def model(invocation: Any) -> tuple[bytes, dict[str, str]]:
    return threading.current_thread().name.encode(), {"Content-Type": "text/plain"}


async def called(runtime: LocalRuntime) -> bytes:
    async with Client(**runtime.client_settings) as client:  # type: ignore[arg-type]
        return await (await client.invoke_endpoint(**CALL))["Body"].read()


def local_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiosmrt-local"]


def test_models_run_in_its_thread_which_ends_with_the_block() -> None:
    with LocalRuntime({"churn": model}, credentials=KEY) as runtime:
        assert asyncio.run(called(runtime)) == b"aiosmrt-local"
        assert len(local_threads()) == 1
        assert len(asyncio.run(runtime.wait_for_requests(1))) == 1
    assert local_threads() == []
    with pytest.raises(ClientStateError):
        _ = runtime.url


def test_it_can_be_entered_again_but_not_twice() -> None:
    runtime = LocalRuntime({"churn": model}, credentials=KEY)
    for _ in range(2):
        with runtime:
            assert asyncio.run(called(runtime)) == b"aiosmrt-local"
            with pytest.raises(ClientStateError, match="already running"):
                runtime.__enter__()
    assert local_threads() == []


def test_a_start_that_fails_leaves_no_thread() -> None:
    with LocalRuntime({"churn": model}, credentials=KEY) as running:
        other = LocalRuntime({"churn": model}, credentials=KEY, port=running.port)
        with pytest.raises(OSError):
            other.__enter__()
        assert len(local_threads()) == 1
    assert local_threads() == []


def test_a_response_in_hand_is_in_the_log() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the threads alternate within each step of the runtime's loop
    try:
        with (
            LocalRuntime({"churn": model}, verify_signatures=False) as runtime,
            closing(http.client.HTTPConnection("127.0.0.1", runtime.port)) as connection,
        ):
            for answered in range(1, 201):
                connection.request("POST", "/endpoints/churn/invocations", b"1")
                assert connection.getresponse().read() == b"aiosmrt-local"
                assert len(runtime.requests) == answered
    finally:
        sys.setswitchinterval(before)


async def test_stalled_calls_are_released_from_another_loop() -> None:
    with LocalRuntime({"churn": model}, credentials=KEY, drain_timeout=1.0) as runtime:
        runtime.inject("churn", faults.Stall())
        call = asyncio.create_task(called(runtime))
        await runtime.wait_for_stalled(1)
        assert runtime.statistics()["stalled"] == 1
        runtime.clear_faults()
        runtime.release_stalled()
        assert await call == b"aiosmrt-local"


async def test_faults_and_records_from_another_loop() -> None:
    with LocalRuntime({"churn": model}, credentials=KEY) as runtime:
        runtime.inject("churn", faults.throttling().next(1))
        await called(runtime)
        assert [request.status for request in await runtime.wait_for_requests(2)] == [400, 200]
        runtime.clear_requests()
        assert list(runtime.requests) == []
        with pytest.raises(ConfigurationError):
            runtime.inject("another", faults.throttling())


async def test_an_interrupted_block_ends_its_thread() -> None:
    with pytest.raises(KeyboardInterrupt), LocalRuntime({"churn": model}, credentials=KEY):
        raise KeyboardInterrupt
    assert local_threads() == []


def test_settings_of_a_runtime_that_verifies_nothing() -> None:
    with LocalRuntime({"churn": model}, verify_signatures=False) as runtime:
        assert asyncio.run(called(runtime)) == b"aiosmrt-local"
        assert runtime.environment["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] == runtime.url


def test_settings_with_temporary_credentials() -> None:
    key = Credentials("AKIDEXAMPLE", "not-a-real-secret", "token")
    with LocalRuntime({"churn": model}, credentials=key) as runtime:
        assert runtime.client_settings["aws_session_token"] == "token"
        assert runtime.environment["AWS_SESSION_TOKEN"] == "token"
        assert asyncio.run(called(runtime)) == b"aiosmrt-local"


def test_a_call_that_meets_the_end_of_the_thread_returns() -> None:
    """Threads call in a loop while it ends, which is another moment of their calls each time."""
    missing = 0
    for _ in range(30):
        thread, over = LoopThread(), threading.Event()
        results: list[int] = []

        def keep_calling(thread: LoopThread = thread, over: threading.Event = over, results: Any = results) -> None:
            while not over.is_set():
                results.append(thread.call(int, "1"))

        callers = [threading.Thread(target=keep_calling, daemon=True) for _ in range(3)]
        for caller in callers:
            caller.start()
        thread.close()
        over.set()
        for caller in callers:
            caller.join(10.0)
            missing += caller.is_alive()
        assert set(results) <= {1}
        assert not missing


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_wait_ends_with_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosmrt.local.loopthread._GRACE", 0.0)
    thread = LoopThread()
    waiting = asyncio.create_task(thread.wait_for(forever()))
    running = asyncio.create_task(asyncio.to_thread(thread.run, forever()))
    cancelled = asyncio.create_task(thread.wait_for(forever()))
    while thread.call(lambda: len(asyncio.all_tasks())) < 1 + 3:
        await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await asyncio.to_thread(thread.close)
    for work in (waiting, running):
        with pytest.raises(ClientStateError, match="was closed"):
            await work
    with pytest.raises(ClientStateError, match="was closed"):
        await thread.wait_for(forever())
    with pytest.raises(ClientStateError, match="was closed"):
        thread.run(forever())
    assert thread.call(threading.current_thread) is threading.main_thread()
