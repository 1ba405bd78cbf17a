"""`map` with several items a call: answers split, bad items found, and early ends."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from math import ceil, log2
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosmrt import Client, errors
from aiosmrt.endpoint import Endpoint, Results, split_answer
from aiosmrt.local import ContainerFailure, Invocation, LocalRuntime, faults
from aiosmrt.serializers import CSV, JSON, JSON_LINES, NPY
from tests.endpoint.test_map import asynchronously, each_kind_of_items, read_out, tasks_named
from tests.support.clients import Serve
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import local_runtime
from tests.transport.test_secrets import SECRET, leaks


class Squares:
    """A model that takes lists of numbers, and refuses those that have a negative one.

    Attributes:
        calls: the lists that it was sent.
        short: a list with one of these gets an answer with a value too few.
        before: called before each answer.
    """

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.short: set[int] = set()
        self.before: Callable[[list[int]], Any] | None = None

    async def __call__(self, invocation: Invocation) -> bytes:
        numbers = json.loads(invocation.body)
        self.calls.append(numbers)
        if self.before is not None:
            await self.before(numbers)
        if any(number < 0 for number in numbers):
            raise ContainerFailure(400, "negative")
        values = [number * number for number in numbers]
        return json.dumps(values[1:] if self.short.intersection(numbers) else values).encode()


@pytest.fixture
def model() -> Squares:
    return Squares()


@pytest.fixture
async def endpoint(serve: Serve, model: Squares) -> Endpoint[Any, Any]:
    return (await serve(square=model)).endpoint("square", serializer=JSON, deserializer=JSON)


@each_kind_of_items
@pytest.mark.parametrize("ordered", [True, False])
async def test_every_item_of_a_group_has_its_result(
    endpoint: Endpoint[Any, Any], model: Squares, given: Any, ordered: bool
) -> None:
    async with endpoint.map(given(range(100)), batch_size=8, concurrency=4, ordered=ordered) as results:
        found = [result async for result in results]
    if ordered:
        assert [result.index for result in found] == list(range(100))
    assert {result.index: (result.item, result.value) for result in found} == {n: (n, n * n) for n in range(100)}
    assert sorted(map(len, model.calls)) == [4] + 12 * [8]
    assert {(result.attempts, result.error) for result in found} == {(1, None)}


def calls_of(n: int, bad: int) -> int:
    """The most calls for a group of n items of which some are bad."""
    return 1 + 2 * bad * ceil(log2(n)) if bad and n > 1 else 1


async def test_a_bad_item_fails_alone(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    async with endpoint.map([*range(9), -1, *range(10, 64)], batch_size=64) as results:
        found = [result async for result in results]
    assert [result.index for result in found if result.error is not None] == [9]
    assert isinstance(found[9].error, errors.ModelError)
    assert [result.value for result in found] == [None if n == 9 else n * n for n in range(64)]
    assert len(model.calls) == calls_of(64, 1) == 13
    # The bad item was in a call of 64, 32, 16, 8, 4, 2 and 1 items.
    assert (found[9].attempts, found[8].attempts, found[63].attempts) == (7, 7, 2)


async def test_an_answer_with_a_wrong_number_of_values_is_asked_for_again_by_halves(
    endpoint: Endpoint[Any, Any], model: Squares
) -> None:
    model.short = {20}
    async with endpoint.map(range(32), batch_size=32) as results:
        found = [result async for result in results]
    assert [result.index for result in found if result.error is not None] == [20]
    assert isinstance(found[20].error, errors.DeserializationError)
    assert str(found[20].error).startswith("the answer to 1 item has 0 values")
    assert found[20].error.request_id
    assert [result.value for result in found if result.index != 20] == [n * n for n in range(32) if n != 20]
    assert len(model.calls) == calls_of(32, 1)


async def test_an_item_that_cannot_be_serialized_costs_no_call(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    async with endpoint.map([0, 1, 2, object(), 4, 5, 6, 7], batch_size=8) as results:
        found = [result async for result in results]
    assert isinstance(found[3].error, errors.SerializationError)
    assert [result.value for result in found] == [0, 1, 4, None, 16, 25, 36, 49]
    assert sorted(model.calls) == [[0, 1], [2], [4, 5, 6, 7]]


async def test_bodies_that_are_too_large_are_halved(serve: Serve, model: Squares) -> None:
    client = await serve(square=model, runtime={"max_body_bytes": 40})
    endpoint = client.endpoint("square", serializer=JSON, deserializer=JSON)
    async with endpoint.map([*range(10, 41), 10**50], batch_size=32, concurrency=2) as results:
        found = [result async for result in results]
    assert [result.value for result in found[:-1]] == [n * n for n in range(10, 41)]
    error = found[-1].error
    assert isinstance(error, errors.ServiceError)
    assert error.status == 413
    assert all(len(json.dumps(numbers, separators=(",", ":"))) <= 40 for numbers in model.calls)


async def test_throttling_and_outages_halve_nothing(
    endpoint: Endpoint[Any, Any], model: Squares, running: list[LocalRuntime]
) -> None:
    running[0].inject("square", faults.throttling().next(6))
    running[0].inject("square", faults.bad_gateway().next(2))
    async with endpoint.map(range(64), batch_size=16, concurrency=4) as results:
        found = [result async for result in results]
    assert [result.value for result in found] == [n * n for n in range(64)]
    assert sorted(model.calls) == [list(range(first, first + 16)) for first in range(0, 64, 16)]


async def test_a_group_that_fails_by_an_outage_fails_as_a_whole(
    endpoint: Endpoint[Any, Any], model: Squares, running: list[LocalRuntime]
) -> None:
    assert await endpoint.predict([1]) == [1]
    running[0].inject("square", faults.throttling())
    async with endpoint.map(range(8), batch_size=8, patience=0) as results:
        found = [result async for result in results]
    assert {type(result.error) for result in found} == {errors.ThrottlingError}
    assert endpoint.client.statistics().attempts == 2


async def test_a_refused_caller_halves_nothing(serve: Serve, model: Squares) -> None:
    client = await serve(square=model)
    missing = client.endpoint("sqare", serializer=JSON, deserializer=JSON)
    async with missing.map(range(1000), batch_size=10, concurrency=2) as results:
        found, error = await read_out(results)
    assert isinstance(error, errors.EndpointNotFoundError)
    assert 10 <= len(found) <= 20
    assert client.statistics().attempts <= 2


@each_kind_of_items
async def test_what_iterating_raises_comes_after_the_items_before_it(
    endpoint: Endpoint[Any, Any], model: Squares, given: Any
) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ZeroDivisionError

    async with endpoint.map(given(items()), batch_size=4, concurrency=2) as results:
        found, error = await read_out(results)
    assert [result.value for result in found] == [0, 1, 4, 9, 16]
    assert isinstance(error, ZeroDivisionError)


async def test_items_are_combined_and_answers_split_by_the_callers_functions(serve: Serve) -> None:
    async def model(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        given = json.loads(invocation.body)
        return json.dumps({"n": {"all": [2 * n for n in given["instances"]]}}).encode(), {}

    client = await serve(model=model)
    endpoint = client.endpoint("model", serializer=JSON, deserializer=JSON)
    async with endpoint.map(
        range(10),
        batch_size=4,
        combine=lambda items: {"instances": items},
        split=lambda answer, count: answer["n"]["all"],
    ) as results:
        assert [result.value async for result in results] == [2 * n for n in range(10)]


@pytest.mark.parametrize("codec", [CSV, JSON_LINES, NPY])
async def test_codecs_make_one_body_of_several_items(serve: Serve, codec: Any) -> None:
    bodies: list[bytes] = []

    async def echo(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        bodies.append(invocation.body)
        return invocation.body, {"Content-Type": invocation.content_type}

    endpoint = (await serve(echo=echo)).endpoint("echo", serializer=codec, deserializer=codec)
    rows = [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]
    async with endpoint.map(rows, batch_size=2) as results:
        values = [np.asarray(result.unwrap(), float).tolist() async for result in results]
    assert values == rows
    assert len(bodies) == 2


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        ([1, 2], [1, 2]),
        ((1, 2), [1, 2]),
        ({"predictions": [1, 2], "model": "a"}, [1, 2]),
        ({"outputs": [1, 2], "labels": [3, 4]}, [1, 2]),
        ({"whatever": [[1], [2]]}, [[1], [2]]),
        ("a\nb\n", ["a", "b"]),
        ("a\r\n\r\n", ["a", ""]),
        ("a\u2028b\x0cc\n\x85\x0b\x1c", ["a\u2028b\x0cc", "\x85\x0b\x1c"]),
        (pa.table({"n": [1, 2]}), [{"n": 1}, {"n": 2}]),
    ],
)
def test_answers_are_split(answer: Any, values: list[Any]) -> None:
    assert list(split_answer(answer, 2)) == values
    with pytest.raises(errors.DeserializationError, match="the answer to 3 items has 2 values"):
        split_answer(answer, 3)


@pytest.mark.parametrize("answer", [3, None, {"a": [1], "b": [2]}, {"a": 1}, b"ab", np.float64(1), {}])
def test_answers_that_lack_a_list(answer: Any) -> None:
    with pytest.raises(errors.DeserializationError, match="lacks a list with a value for each"):
        split_answer(answer, 1)


def test_an_array_is_split_along_its_first_axis() -> None:
    assert [row.tolist() for row in split_answer(np.arange(6).reshape(3, 2), 3)] == [[0, 1], [2, 3], [4, 5]]


async def test_too_many_failures_end_a_map_within_its_groups(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    async with endpoint.map([-1] * 10_000, batch_size=1000, concurrency=2, max_failures="1%") as results:
        found, error = await read_out(results)
    assert isinstance(error, errors.TooManyFailuresError)
    # Two groups of 1,000 would take 4,000 calls.
    assert len(model.calls) < 150
    failed = [result for result in found if isinstance(result.error, errors.ModelError)]
    left = [result for result in found if isinstance(result.error, errors.ClientStateError)]
    assert error.failures <= len(failed) <= error.failures + 2  # with those in flight
    assert len(failed) + len(left) == len(found)
    assert sorted(result.index for result in found) == list(range(len(found)))


def bodies_in_frames(found: list[Any]) -> list[str]:
    return [leak for result in found if result.error is not None for leak in leaks(result.error)]


async def test_frames_of_errors_hold_no_items(serve: Serve) -> None:
    async def refuse(invocation: Invocation) -> bytes:
        raise ContainerFailure(400, "no")

    endpoint = (await serve(model=refuse)).endpoint("model", serializer=JSON, deserializer=JSON)
    async with endpoint.map([SECRET.encode().decode()] * 3 + [SECRET.encode()], batch_size=4) as results:
        found = [result async for result in results]
    assert [type(result.error) for result in found] == 3 * [errors.ModelError] + [errors.SerializationError]
    assert bodies_in_frames(found) == []


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "4"])
async def test_faulty_batch_sizes(size: Any) -> None:
    endpoint: Endpoint[Any, Any] = Client("eu-central-1").endpoint("e", serializer=JSON, deserializer=JSON)
    with pytest.raises(errors.ParamValidationError, match="batch_size must be an integer >= 1"):
        endpoint.map([], batch_size=size)
    with pytest.raises(errors.ParamValidationError, match="combine and split need a batch_size"):
        endpoint.map([], split=split_answer)  # type: ignore[call-overload]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(1, 60),
    size=st.integers(1, 64),
    concurrency=st.integers(1, 5),
    ordered=st.booleans(),
    bad=st.sets(st.integers(0, 59), max_size=12),
    short=st.sets(st.integers(0, 59), max_size=4),
    lazily=st.booleans(),
)
def test_exactly_the_bad_items_fail(
    squares: tuple[Squares, str],
    count: int,
    size: int,
    concurrency: int,
    ordered: bool,
    bad: set[int],
    short: set[int],
    lazily: bool,
) -> None:
    """Whatever is bad, in whatever groups: the others are scored once, and the number of calls is bounded."""
    model, url = squares
    model.calls.clear()
    model.short = short
    numbers = [-1 - n if n in bad else n for n in range(count)]

    async def run() -> list[Any]:
        async with Client(**{"endpoint_url": url, **CLIENT_ARGUMENTS}) as client:
            endpoint = client.endpoint("square", serializer=JSON, deserializer=JSON)
            async with endpoint.map(
                asynchronously(numbers) if lazily else numbers,
                batch_size=size,
                concurrency=concurrency,
                ordered=ordered,
            ) as results:
                return [result async for result in results]

    found = asyncio.run(run())
    if ordered:
        assert [result.index for result in found] == list(range(count))
    failing = {n for n in bad | short if n < count}
    assert Counter(result.index for result in found) == Counter(range(count))
    assert {result.index for result in found if result.error is not None} == failing
    assert all(result.value == result.index**2 for result in found if result.error is None)
    alone = dict.fromkeys(range(count), 0)
    most = 0
    for first in range(0, count, size):
        group = range(first, min(first + size, count))
        most += calls_of(len(group), len(failing.intersection(group)))
    assert len(model.calls) <= most
    for call in model.calls:
        if all(n >= 0 for n in call) and not short.intersection(call):
            for n in call:
                alone[n] += 1
    assert {n for n, times in alone.items() if times == 1} == set(range(count)) - failing


@pytest.fixture(scope="module")
def squares() -> Iterator[tuple[Squares, str]]:
    """One model for many examples."""
    model = Squares()
    with local_runtime({"square": model}) as runtime:
        yield model, runtime.url


# Early ends


class Held:
    """Holds the calls of a model until they are let go."""

    def __init__(self, model: Squares) -> None:
        self.model = model
        self.gate = asyncio.Event()
        self.arrived = asyncio.Condition()
        model.before = self.wait

    async def wait(self, numbers: list[int]) -> None:
        async with self.arrived:
            self.arrived.notify_all()
        await self.gate.wait()

    async def until(self, calls: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.model.calls) >= calls)


def indices(found: list[Any]) -> list[int]:
    return sorted(result.index for result in found)


@each_kind_of_items
@pytest.mark.parametrize("size", [None, 4])
async def test_stop_takes_no_more_items_and_finishes_the_calls_in_flight(
    endpoint: Endpoint[Any, Any], model: Squares, given: Any, size: int | None
) -> None:
    held = Held(model)
    items = [[n] for n in range(1000)] if size is None else list(range(1000))
    results: Results[Any, Any]
    async with endpoint.map(given(items), batch_size=size, concurrency=3) as results:  # type: ignore[call-overload]
        await held.until(3)
        results.stop()
        results.stop()
        held.gate.set()
        found = [result async for result in results]
    assert indices(found) == list(range(3 * (size or 1)))
    assert all(result.error is None for result in found)
    assert len(model.calls) == 3


async def test_stop_calls_for_the_items_that_wait_for_a_full_group(
    endpoint: Endpoint[Any, Any], model: Squares
) -> None:
    given: asyncio.Queue[int] = asyncio.Queue()
    for number in range(6):
        given.put_nowait(number)

    async def items() -> AsyncIterator[int]:
        while True:
            yield await given.get()

    async with endpoint.map(items(), batch_size=4, concurrency=2, ordered=False) as results:
        found = [await anext(results) for _ in range(4)]
        while not given.empty():
            await asyncio.sleep(0)
        results.stop()
        found += [result async for result in results]
    assert [result.value for result in found] == [0, 1, 4, 9, 16, 25]


async def test_stop_finishes_the_halves_of_a_group(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    held = Held(model)
    async with endpoint.map([*range(7), -1, *range(8, 1000)], batch_size=8, concurrency=1) as results:
        await held.until(1)
        results.stop()
        held.gate.set()
        found = [result async for result in results]
    assert indices(found) == list(range(8))
    assert [result.index for result in found if result.error is not None] == [7]


@each_kind_of_items
@pytest.mark.parametrize("size", [None, 4])
async def test_drain_waits_for_the_calls_in_flight(
    endpoint: Endpoint[Any, Any], model: Squares, given: Any, size: int | None
) -> None:
    held = Held(model)
    items = [[n] for n in range(1000)] if size is None else list(range(1000))
    results: Results[Any, Any]
    async with endpoint.map(given(items), batch_size=size, concurrency=3) as results:  # type: ignore[call-overload]
        await held.until(3)
        drained = asyncio.create_task(results.drain())
        again = asyncio.create_task(results.drain(timeout=60))
        await asyncio.sleep(0)
        assert not drained.done()
        held.gate.set()
        await asyncio.gather(drained, again)
        assert len(model.calls) == 3
        found = [result async for result in results]
    assert indices(found) == list(range(3 * (size or 1)))


@each_kind_of_items
@pytest.mark.parametrize("size", [None, 4])
async def test_drain_cuts_off_what_outlasts_its_timeout(
    endpoint: Endpoint[Any, Any], model: Squares, given: Any, size: int | None
) -> None:
    held = Held(model)
    items = [[n] for n in range(1000)] if size is None else list(range(1000))
    results: Results[Any, Any]
    async with endpoint.map(given(items), batch_size=size, concurrency=3) as results:  # type: ignore[call-overload]
        await held.until(3)
        await results.drain(timeout=0.01)
        assert endpoint.client.statistics().in_use == 0
        found = [result async for result in results]
    assert indices(found) == list(range(3 * (size or 1)))
    assert {str(result.error) for result in found} == {"the call was still in flight when drain() ended"}


async def test_drain_cuts_off_halves(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    halves = asyncio.Event()

    async def hold(numbers: list[int]) -> None:
        if len(numbers) == 4:
            halves.set()
            await asyncio.Event().wait()

    model.before = hold
    async with endpoint.map([*range(7), -1], batch_size=8, concurrency=2) as results:
        await halves.wait()
        await results.drain(timeout=0.01)
        found = [result async for result in results]
        assert tasks_named("aiosmrt-map-half") == []
    assert indices(found) == list(range(8))
    assert {type(result.error) for result in found} == {errors.ClientStateError}


async def test_a_drain_that_is_cancelled_holds_nothing(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    held = Held(model)
    async with endpoint.map(range(100), batch_size=4, concurrency=2) as results:
        await held.until(2)
        drained = asyncio.create_task(results.drain())
        await asyncio.sleep(0)
        drained.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drained
        held.gate.set()
        found = [result async for result in results]
    assert indices(found) == list(range(8))


async def test_leaving_the_block_ends_a_drain_and_the_halves(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    halves = asyncio.Event()

    async def hold(numbers: list[int]) -> None:
        if len(numbers) == 4:
            halves.set()
            await asyncio.Event().wait()

    model.before = hold
    async with endpoint.map([*range(7), -1], batch_size=8, concurrency=2) as results:
        await halves.wait()
        drained = asyncio.create_task(results.drain())
        await asyncio.sleep(0)
    await drained
    assert tasks_named("aiosmrt-map-half") == tasks_named("aiosmrt-map") == []
    assert endpoint.client.statistics().in_use == 0


async def test_the_task_of_a_half_that_is_cancelled_from_outside_ends_the_map(
    endpoint: Endpoint[Any, Any], model: Squares
) -> None:
    halves = asyncio.Event()

    async def hold(numbers: list[int]) -> None:
        if len(numbers) == 4:
            halves.set()
            await asyncio.Event().wait()

    model.before = hold
    async with endpoint.map([*range(7), -1, *range(100)], batch_size=8, concurrency=1) as results:
        await halves.wait()
        for task in tasks_named("aiosmrt-map-half"):
            task.cancel()
        found, error = await read_out(results)
    assert indices(found) == list(range(8))
    assert isinstance(error, errors.ClientStateError)


async def test_drain_refuses_what_is_no_time_and_needs_the_block(endpoint: Endpoint[Any, Any]) -> None:
    results = endpoint.map([[1]])
    with pytest.raises(errors.ClientStateError):
        await results.drain()
    async with results:
        with pytest.raises(errors.ParamValidationError, match="timeout"):
            await results.drain(timeout=-1)
        assert [result.value async for result in results] == [[1]]


async def test_stop_before_the_block_takes_nothing(endpoint: Endpoint[Any, Any], model: Squares) -> None:
    results = endpoint.map([[1]])
    results.stop()
    async with results:
        assert [result async for result in results] == []
    assert model.calls == []
