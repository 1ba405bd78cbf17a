"""Cancellation at every await of a bidirectional stream, on the way in, in it, and on the way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

import aiosmrt
from aiosmrt.local import Invocation, LocalRuntime, StreamMessage, faults
from tests.support.cancellation import Moment, cancel_everywhere, no_task_is_left
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import local_runtime

LARGE = bytes(70_000)


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    assert invocation.messages is not None
    async for message in invocation.messages:
        yield message


async def talk(client: aiosmrt.Client) -> None:
    """Pass every await of a stream: a slot, a connection, the head, flow control in both directions, the end."""
    async with client.invoke_endpoint_with_bidirectional_stream(EndpointName="echo") as stream:
        await stream.send("one")
        await stream.response()
        assert (await anext(stream))["PayloadPart"]["Bytes"] == b"one"
        # More than a window: waits until the model has taken it.
        await stream.send(LARGE)
        assert (await anext(stream))["PayloadPart"]["Bytes"] == LARGE
        await stream.end_input()
        assert [event async for event in stream] == []


async def nothing_is_held(client: aiosmrt.Client, runtime: LocalRuntime, tasks: set[asyncio.Task[Any]]) -> None:
    """After a stream of any outcome, there is no slot, no task but those before, and no connection but the pool's."""
    statistics = client.statistics()
    assert (statistics.in_use, statistics.waiting) == (0, 0)
    await no_task_is_left(tasks)
    # The server sees its streams end, and the connections of attempts that were given up.
    while (found := runtime.statistics())["in_flight"] or found["connections"] > 1:
        await asyncio.sleep(0)


FAULTS = {
    "no fault": None,
    "throttled": faults.throttling(),
    "refused": faults.ResetStream(error_code="REFUSED_STREAM"),
}


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("first_call", [False, True], ids=["pooled connection", "first call"])
async def test_at_every_await(moment: Moment, fault: str, first_call: bool) -> None:
    async with local_runtime({"echo": echo}, http2_port=0) as runtime:
        arguments: dict[str, Any] = {
            **CLIENT_ARGUMENTS,
            "http2_endpoint_url": runtime.http2_url,
            "max_concurrency": 1,
            "retry": aiosmrt.RetryPolicy(base_delay=0.001, throttling_base_delay=0.001),
        }
        clients = [aiosmrt.Client(**arguments)]
        tasks = asyncio.all_tasks()

        async def prepare() -> Coroutine[Any, Any, None]:
            if first_call:
                await clients[-1].close()
                clients.append(aiosmrt.Client(**arguments))
            else:
                await talk(clients[-1])
            runtime.clear_faults()
            if (chosen := FAULTS[fault]) is not None:
                runtime.inject("echo", chosen.next(1))
            return talk(clients[-1])

        async def after() -> None:
            await nothing_is_held(clients[-1], runtime, tasks)
            # With one slot, this would wait without end if that were still taken.
            runtime.clear_faults()
            await talk(clients[-1])

        try:
            suspensions = await cancel_everywhere(prepare, moment, after=after)
        finally:
            await clients[-1].close()
        while runtime.statistics()["connections"]:
            await asyncio.sleep(0)
    assert suspensions >= 4
