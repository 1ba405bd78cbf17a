"""Scripted capacity: workers, the queue, what is refused, how long calls take, and steps over time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aiosmrt
from aiosmrt.errors import ConfigurationError
from aiosmrt.local import (
    AsyncInferenceConfig,
    Capacity,
    EndpointConfiguration,
    LocalRuntime,
    ProductionVariant,
    StreamMessage,
)
from aiosmrt.local.capacity import TIMES, Workers, service_seconds
from aiosmrt.local.configuration import parse_settings
from aiosmrt.local.error_responses import ErrorReply
from tests.support.runtime import local_runtime


class Held:
    """A model that answers when it is told to, and knows how many calls it has at once."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.arrived = asyncio.Semaphore(0)
        self.inside = 0
        self.most = 0

    async def __call__(self, invocation: Any) -> bytes:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.arrived.release()
        try:
            await self.go_on.wait()
        finally:
            self.inside -= 1
        return b"done"


@asynccontextmanager
async def running(model: Any, **capacity: Any) -> AsyncIterator[tuple[LocalRuntime, aiosmrt.Client]]:
    """A runtime with this capacity, and a client that does not retry."""
    configuration = EndpointConfiguration([ProductionVariant(model)], capacity=Capacity(**capacity))
    async with (
        local_runtime({"churn": configuration}) as runtime,
        aiosmrt.Client(**runtime.client_settings, retry={"max_attempts": 0, "mode": "standard"}) as client,
    ):
        yield runtime, client


async def call(client: aiosmrt.Client) -> bytes:
    response = await client.invoke_endpoint(EndpointName="churn", Body=b"1")
    return await response["Body"].read()


async def test_a_call_gets_a_worker_waits_in_the_queue_or_is_refused() -> None:
    model = Held()
    async with running(model, workers=2, queue=1) as (runtime, client):
        first = [asyncio.create_task(call(client)) for _ in range(3)]
        await runtime.wait_for_queued(1)
        assert runtime.statistics()["queued"] == 1
        assert model.inside == 2
        with pytest.raises(aiosmrt.ThrottlingError) as caught:
            await call(client)
        assert caught.value.code == "ThrottlingException"
        model.go_on.set()
        assert await asyncio.gather(*first) == [b"done"] * 3
        assert model.most == 2
        assert runtime.statistics()["queued"] == 0


async def test_a_queue_without_end_refuses_nothing() -> None:
    model = Held()
    async with running(model, workers=1) as (runtime, client):
        tasks = [asyncio.create_task(call(client)) for _ in range(20)]
        await runtime.wait_for_queued(19)
        model.go_on.set()
        assert await asyncio.gather(*tasks) == [b"done"] * 20
        assert model.most == 1


async def test_a_caller_that_leaves_gives_up_its_place() -> None:
    model = Held()
    async with running(model, workers=1, queue=1) as (runtime, client):
        served = asyncio.create_task(call(client))
        waits = asyncio.create_task(call(client))
        await runtime.wait_for_queued(1)
        waits.cancel()
        await asyncio.wait([waits])
        await runtime.wait_for_requests(1)
        assert runtime.requests[0].outcome == "disconnected"
        follower = asyncio.create_task(call(client))
        await runtime.wait_for_queued(1)
        model.go_on.set()
        assert await asyncio.gather(served, follower) == [b"done"] * 2


async def test_a_step_lets_in_calls_that_wait() -> None:
    model = Held()
    async with running(model, workers=[(0, 1), (0.05, 2)]) as (_, client):
        tasks = [asyncio.create_task(call(client)) for _ in range(2)]
        # The first call does not end before the second one has a worker.
        for _ in tasks:
            await model.arrived.acquire()
        model.go_on.set()
        assert await asyncio.gather(*tasks) == [b"done"] * 2


async def test_a_response_stream_holds_its_worker_to_its_end() -> None:
    more = asyncio.Event()

    async def words(invocation: Any) -> AsyncIterator[bytes]:
        yield b"to"
        await more.wait()
        yield b"be"

    async with running(words, workers=1, queue=0) as (_, client):
        response = await client.invoke_endpoint_with_response_stream(EndpointName="churn", Body=b"1")
        async with response["Body"] as stream:
            await anext(stream)
            with pytest.raises(aiosmrt.ThrottlingError):
                await call(client)
            more.set()
            assert [event async for event in stream] == [{"PayloadPart": {"Bytes": b"be"}}]


@asynccontextmanager
async def conversing(**arguments: Any) -> AsyncIterator[tuple[LocalRuntime, aiosmrt.Client]]:
    """A runtime with one worker whose model repeats what it hears, and a client that does not retry."""

    async def echo(invocation: Any) -> AsyncIterator[StreamMessage]:
        async for message in invocation.messages:
            yield message

    configuration = EndpointConfiguration([ProductionVariant(echo)], **arguments)
    async with (
        local_runtime({"churn": configuration}, http2_port=0) as runtime,
        aiosmrt.Client(
            **runtime.client_settings,
            http2_endpoint_url=runtime.http2_url,
            retry={"max_attempts": 0, "mode": "standard"},
        ) as client,
    ):
        yield runtime, client


async def test_a_bidirectional_stream_holds_its_worker_to_its_end() -> None:
    async with conversing(capacity=Capacity(workers=1, queue=1)) as (runtime, client):

        async def talk() -> bytes:
            async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="churn") as stream:
                await stream.send("second")
                return (await anext(stream))["PayloadPart"]["Bytes"]

        async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="churn") as stream:
            await stream.send("first")
            await anext(stream)
            second = asyncio.create_task(talk())
            await runtime.wait_for_queued(1)
            with pytest.raises(aiosmrt.ThrottlingError) as caught:
                await talk()
            assert caught.value.code == "ThrottlingException"
        assert await second == b"second"
        assert runtime.statistics()["queued"] == 0


async def test_a_bidirectional_stream_that_leaves_gives_up_its_place() -> None:
    async with conversing(capacity=Capacity(workers=[(0, 0)])) as (runtime, client):
        async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="churn"):
            await runtime.wait_for_queued(1)
        (record,) = await runtime.wait_for_requests(1)
        assert record.outcome == "disconnected"
        assert runtime.statistics()["queued"] == 0


async def test_a_bidirectional_stream_waits_no_longer_than_the_model_timeout() -> None:
    async with (
        conversing(capacity=Capacity(workers=[(0, 0)]), model_timeout=0.01) as (_, client),
        client.invoke_endpoint_with_bidirectional_stream(EndpointName="churn") as stream,
    ):
        with pytest.raises(aiosmrt.ModelError, match="timed out"):
            await anext(stream)


async def test_waiting_counts_towards_the_model_timeout() -> None:
    configuration = EndpointConfiguration(
        [ProductionVariant(Held())], capacity=Capacity(workers=[(0, 0)]), model_timeout=0.05
    )
    async with (
        local_runtime({"churn": configuration}) as runtime,
        aiosmrt.Client(**runtime.client_settings) as client,
    ):
        with pytest.raises(aiosmrt.ModelError):
            await call(client)


# Workers by themselves, with their own clock


def workers(clock: Any = None, **capacity: Any) -> Workers:
    return Workers(Capacity(**capacity), random.Random(1), clock=clock)


async def share_refused(live: Workers, calls: int) -> float:
    refused = 0
    for _ in range(calls):
        try:
            async with live.serve():
                pass
        except ErrorReply:
            refused += 1
    return refused / calls


async def test_a_share_is_refused_whatever_the_number_of_calls() -> None:
    assert await share_refused(workers(workers=100, refused=0.2), 2_000) == pytest.approx(0.2, abs=0.03)


async def test_a_quota_refuses_what_comes_faster() -> None:
    now = [0.0]
    live = workers(lambda: now[0], workers=100, quota=10.0, burst=5.0)
    assert await share_refused(live, 10) == 0.5
    now[0] = 0.25
    assert await share_refused(live, 10) == 0.8
    now[0] = 100.0
    assert await share_refused(live, 10) == 0.5


async def test_workers_follow_the_steps_from_the_first_call_on() -> None:
    now = [1_000.0]
    live = workers(lambda: now[0], workers=[(0, 2), (10, 1), (20, 0)], queue=0)
    async with live.serve(), live.serve():
        assert live.busy == 2
    now[0] += 10
    async with live.serve():
        with pytest.raises(ErrorReply):
            await live.serve().__aenter__()
    now[0] += 10
    with pytest.raises(ErrorReply):
        await live.serve().__aenter__()


async def test_a_call_takes_longer_among_others_in_a_server_that_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    live = workers(workers=8, seconds=0.1, batch=2.0)
    async with live.serve(), live.serve():
        pass
    assert slept == pytest.approx([0.15, 0.2])


async def test_a_caller_that_leaves_as_its_turn_comes_passes_it_on() -> None:
    live = workers(workers=1)
    order: list[str] = []

    async def hold(name: str) -> None:
        async with live.serve():
            order.append(name)

    async with live.serve():
        leaves, stays = asyncio.create_task(hold("leaves")), asyncio.create_task(hold("stays"))
        while live.queued < 2:
            await asyncio.sleep(0)
    # It has been given the worker, and has not run since.
    leaves.cancel()
    await asyncio.wait([leaves, stays])
    assert order == ["stays"]
    assert (live.busy, live.queued) == (0, 0)


@pytest.mark.parametrize("times", TIMES)
def test_every_distribution_has_the_mean_that_is_asked_for(times: str) -> None:
    rand = random.Random(2)
    seconds = [service_seconds(times, 0.2, 0.5, rand) for _ in range(100_000)]
    assert sum(seconds) / len(seconds) == pytest.approx(0.2, rel=0.03)
    assert len({round(one, 6) for one in seconds}) > 1_000


def test_without_a_spread_every_call_takes_the_mean() -> None:
    assert service_seconds("lognormal", 0.2, 0.0, random.Random(1)) == 0.2


# Configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": -1}, "workers must be an integer >= 0; got -1"),
        ({"workers": [(1, 8)]}, "must begin at second 0 and increase"),
        ({"workers": [(0, 8), (5, 1), (5, 2)]}, "must begin at second 0 and increase"),
        ({"workers": []}, "must begin at second 0 and increase"),
        ({"workers": 1, "queue": -1}, "queue must be an integer >= 0; got -1"),
        ({"workers": 1, "seconds": -0.1}, "seconds must be a number >= 0; got -0.1"),
        ({"workers": 1, "sigma": float("nan")}, "sigma must be a number >= 0; got nan"),
        ({"workers": 1, "batch": 0}, "batch must be a number > 0; got 0"),
        ({"workers": 1, "quota": 0}, "quota must be a number > 0; got 0"),
        ({"workers": 1, "burst": 0.5}, "burst must be a number >= 1; got 0.5"),
        ({"workers": 1, "refused": 1.5}, "refused must be a number from 0 to 1; got 1.5"),
        ({"workers": 1, "times": "normal"}, "times must be one of lognormal, .*; got 'normal'"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Capacity(**arguments)


def test_an_asynchronous_endpoint_has_its_own_workers() -> None:
    configuration = EndpointConfiguration(
        [ProductionVariant(Held())], async_inference=AsyncInferenceConfig("s3://results"), capacity=Capacity(workers=1)
    )
    with pytest.raises(ConfigurationError, match="has a capacity and cannot be asynchronous"):
        local_runtime({"churn": configuration})


def test_a_file_configures_it() -> None:
    document = {
        "endpoints": {
            "churn": {
                "url": "http://127.0.0.1:8080",
                "capacity": {
                    "workers": [[0, 8], [15.5, 32]],
                    "queue": 16,
                    "seconds": 0.1,
                    "sigma": 0.3,
                    "times": "bimodal",
                    "batch": 32,
                    "quota": 300,
                    "burst": 30,
                    "refused": 0.05,
                },
            }
        }
    }
    [configuration] = parse_settings(document, Path())["endpoints"].values()
    assert configuration.capacity == Capacity(
        workers=[(0.0, 8), (15.5, 32)],
        queue=16,
        seconds=0.1,
        sigma=0.3,
        times="bimodal",
        batch=32.0,
        quota=300.0,
        burst=30.0,
        refused=0.05,
    )


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        ({}, r"endpoints\.churn\.capacity\.workers: is missing"),
        ({"workers": "8"}, r"capacity\.workers: must be an integer or a list"),
        ({"workers": [8]}, r"capacity\.workers: must be an integer or steps such as \[\[0, 8\], \[15, 32\]\]"),
        ({"workers": [[1, 8]]}, r"capacity\.workers: the steps of workers must begin at second 0"),
        ({"workers": 8, "queues": 1}, r"capacity\.queues: is unknown; did you mean queue\?"),
        ({"workers": 8, "times": "normal"}, r"capacity\.times: must be 'lognormal' or "),
    ],
)
def test_faults_in_a_file_are_named(capacity: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_settings({"endpoints": {"churn": {"url": "http://127.0.0.1:8080", "capacity": capacity}}}, Path())
