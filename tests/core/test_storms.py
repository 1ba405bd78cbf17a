"""Thousands of calls to a service that is ill for a minute: how few requests it gets, when calls end, how load returns.

Time is virtual, and the service a function: `FakeClient` opens no sockets, so a storm takes a second.
`tests/client/test_outages.py` has one of 503 on both transports.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from aiosmrt import (
    AdaptiveLimit,
    Client,
    ConnectTimeoutError,
    DeadlineExceededError,
    EndpointConnectionError,
    ThrottlingError,
)
from aiosmrt.errors import AiosmrtError
from aiosmrt.testing import FakeClient, RecordedCall, make_error
from tests.support import seams
from tests.support.virtual_time import VirtualTime

pytestmark = pytest.mark.long

CALLERS = 5_000
OUTAGE = 60.0
MODEL_SECONDS = 0.05
CONNECT_TIMEOUT = 5.0
# What a float clock may be off after some sums.
EXACT = 1e-6

Call = Callable[[Client, str], Coroutine[Any, Any, bytes]]


class Illness(NamedTuple):
    """How a service fails.

    Args:
        error: the error that each request ends with.
        seconds: how long that takes.
    """

    error: type[AiosmrtError]
    seconds: float = 0.02


ILLNESSES = {
    "throttling": Illness(ThrottlingError),
    "refused": Illness(EndpointConnectionError, 0.0),
    "connect timeout": Illness(ConnectTimeoutError, CONNECT_TIMEOUT),
}


@dataclass
class Service:
    """Answers after `MODEL_SECONDS`, or fails.

    Attributes:
        ill: what each endpoint is ill with, by name.
        requests: all requests so far, by endpoint.
        in_flight: requests under way, by endpoint.
        load: when a request came to the endpoint ``llm``, and how many were under way then.
    """

    time: VirtualTime
    ill: dict[str, Illness] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    load: list[tuple[float, int]] = field(default_factory=list)

    async def __call__(self, call: RecordedCall) -> bytes:
        name = call.endpoint_name
        self.requests[name] += 1
        self.in_flight[name] += 1
        if name == "llm":
            self.load.append((self.time.now, self.in_flight[name]))
        try:
            illness = self.ill.get(name)
            await asyncio.sleep(MODEL_SECONDS if illness is None else illness.seconds)
            if illness is not None:
                raise make_error(illness.error, "ill")
            return b"ok"
        finally:
            self.in_flight[name] -= 1


class Storm(NamedTuple):
    """A client, its service and the time in which they live."""

    time: VirtualTime
    service: Service
    client: Client

    def start(self, call: Coroutine[Any, Any, bytes]) -> asyncio.Task[tuple[Any, float]]:
        """Make a call in a new task, which returns the result or the error, and how long it took."""

        async def ends() -> tuple[Any, float]:
            began = self.time.now
            try:
                result: Any = await call
            except Exception as error:
                result = error.with_traceback(None)
            return result, self.time.now - began

        return asyncio.create_task(ends())

    async def outcomes(self, *tasks: asyncio.Task[Any]) -> list[Any]:
        """Let time pass until these are done."""
        return await self.time.run(asyncio.gather(*tasks), lambda: False)


@asynccontextmanager
async def storm(**arguments: Any) -> AsyncIterator[Storm]:
    time = VirtualTime()
    service = Service(time)
    async with FakeClient({"*": service}, **arguments) as client:
        # The first call reads the configuration, in a thread.
        await plain(client, "warm-up")
        time.drive(client)
        seams.set_random(client, random.Random(1).random)
        with time.drive_loop():
            yield Storm(time, service, client)


async def plain(client: Client, name: str) -> bytes:
    response = await client.invoke_endpoint(EndpointName=name, Body=b"1,2")
    return await response["Body"].read()


async def streamed(client: Client, name: str) -> bytes:
    response = await client.invoke_endpoint_with_response_stream(EndpointName=name, Body=b"1,2")
    async with response["Body"] as stream:
        return b"".join([event["PayloadPart"]["Bytes"] async for event in stream])


# The options of callers, and when they give up: by their patience or by their deadline. None sees the outage's end.
CALLERS_OPTIONS: list[tuple[dict[str, Any], float | None, float | None]] = [
    ({"patience": 20.0}, 20.0, None),
    ({"patience": 5.0}, 5.0, None),
    ({"patience": 40.0}, 40.0, None),
    ({"patience": 7.0, "deadline": 58.0}, 7.0, None),
    ({"patience": None, "deadline": 3.0}, None, 3.0),
    ({"patience": None, "deadline": 55.0}, None, 55.0),
    ({"patience": 30.0, "deadline": 12.0}, None, 12.0),
    ({"patience": 90.0}, None, None),
    ({"patience": None, "deadline": 90.0}, None, None),
]


@pytest.mark.parametrize(
    ("name", "call", "limit", "earlier_calls", "count"),
    [
        ("throttling", plain, AdaptiveLimit(maximum=200), 1_000, CALLERS),
        ("connect timeout", streamed, 100, 100, CALLERS),
        ("refused", streamed, 4, 0, 1_000),
    ],
    ids=["throttling", "connect timeout", "refused"],
)
async def test_a_minutes_outage(name: str, call: Call, limit: Any, earlier_calls: int, count: int) -> None:
    illness = ILLNESSES[name]
    async with storm(max_concurrency=limit, patience=20.0) as world:
        time, service, client = world
        await world.outcomes(*(world.start(call(client, "llm")) for _ in range(1 + earlier_calls)))
        known = client.statistics().endpoints["llm"].max_concurrency
        service.requests.clear()
        service.load.clear()
        service.ill["llm"] = illness
        began = time.now
        time.call_later(OUTAGE, service.ill.clear)
        views = [
            (client.with_options(**options), patience, deadline) for options, patience, deadline in CALLERS_OPTIONS
        ]
        callers = [views[number % len(views)] for number in range(count)]
        random.Random(2).shuffle(callers)
        tasks = [world.start(call(view, "llm")) for view, _, _ in callers]
        others: list[float] = []

        async def call_another() -> None:
            while time.now < began + OUTAGE + 5.0:
                before = time.now
                assert await call(client, "other") == b"ok"
                others.append(time.now - before)
                await asyncio.sleep(0.5)

        another = asyncio.create_task(call_another())
        outcomes = await world.outcomes(*tasks)
        await world.outcomes(another)

        # Each call ends when its time is up; an attempt that is under way then is waited for.
        served = 0
        for (result, seconds), (_, patience, deadline) in zip(outcomes, callers, strict=True):
            if deadline is not None:
                assert type(result) is DeadlineExceededError
                assert seconds == pytest.approx(deadline, abs=EXACT)
            elif patience is not None:
                assert type(result) is illness.error
                # It begins with the first failure: of the call, or of others at its target.
                assert patience - EXACT <= seconds <= patience + 2 * illness.seconds + 0.5
            else:
                assert result == b"ok"
                served += 1
                continue
            # All of it is accounted for.
            assert sum(result.waited) == pytest.approx(seconds, abs=EXACT)
        assert served > count / 5

        # The service was spared, and what is well was not held back.
        first = min(at for at, _ in service.load if at >= began + OUTAGE)
        assert sum(at < first for at, _ in service.load) <= 0.1 * count
        assert service.requests["llm"] - served <= 0.1 * count
        assert len(others) > 100
        assert others == pytest.approx([MODEL_SECONDS] * len(others), abs=EXACT)

        # The load returns in steps, and never above what was known before.
        assert first <= began + OUTAGE + 5.0 + illness.seconds
        trips: Counter[int] = Counter()
        for at, in_flight in service.load:
            if at >= first:
                trip = int((at - first) / MODEL_SECONDS + EXACT)
                trips[trip] = max(trips[trip], in_flight)
        steps = [trips[trip] for trip in range(max(trips) + 1)]
        assert steps[0] <= 4
        for before, after in pairwise(steps):
            assert after <= 2 * before + 4
        assert 4 <= max(steps) <= known

        endpoint = client.statistics().endpoints["llm"]
        assert (endpoint.illness, endpoint.in_use, endpoint.waiting, endpoint.held_back) == (None, 0, 0, 0)
