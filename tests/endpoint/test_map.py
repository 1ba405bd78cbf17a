"""Fan-out: order, bounds, back-pressure, failures, and leftovers."""

import asyncio
import contextlib
import contextvars
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.endpoint import Endpoint
from aiosmrt.endpoint.fanout import Answer, Result, Results
from aiosmrt.errors import ClientStateError, ModelError, NoCredentialsError, ParamValidationError
from aiosmrt.local.backends import ContainerFailure
from aiosmrt.serializers import JSON
from tests.support.clients import Serve
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.raw_server import RawServer, response


def endpoint_of(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("square", serializer=JSON, deserializer=JSON)


async def square(invocation: Any) -> bytes:
    number = int(invocation.body)
    if number < 0:
        raise ContainerFailure(400, "negative")
    return str(number * number).encode()


class Gated:
    """A model whose answers the test releases one by one; counts the waiting calls."""

    def __init__(self) -> None:
        self.gates: dict[int, asyncio.Event] = {}
        self.changed = asyncio.Condition()
        self.under_way = 0
        self.most = 0

    async def __call__(self, invocation: Any) -> bytes:
        number = int(invocation.body)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        gate = self.gates.setdefault(number, asyncio.Event())
        async with self.changed:
            self.changed.notify_all()
        try:
            await gate.wait()
        finally:
            self.under_way -= 1
        return str(number).encode()

    async def has(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.gates) >= count)


class Source:
    """Numbers from 0; counts how many were taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.taken += 1
            yield number


async def asynchronously(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def at_once(items: Iterable[Any]) -> Iterable[Any]:
    return items


each_kind_of_items = pytest.mark.parametrize("given", [at_once, asynchronously])


async def read_out(results: Results[Any, Any]) -> tuple[list[Result[Any, Any]], Exception | None]:
    """All results, and the error after them."""
    found = []
    try:
        async for result in results:
            found.append(result)
    except Exception as error:
        return found, error
    return found, None


def tasks_named(name: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


async def some_turns() -> None:
    """Let every task that can continue do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_every_item_has_its_result(serve: Serve):
    client = await serve(square=square)
    async with endpoint_of(client).map([3, 1, -1, 2]) as results:
        found = [result async for result in results]
    assert [result.item for result in found] == [3, 1, -1, 2]
    assert [result.index for result in found] == [0, 1, 2, 3]
    assert [result.value for result in found] == [9, 1, None, 4]
    assert [type(result.error) for result in found] == [type(None), type(None), ModelError, type(None)]
    assert found[0].unwrap() == 9
    with pytest.raises(ModelError):
        found[2].unwrap()
    assert "item" not in repr(found[0])


async def test_an_item_that_cannot_be_serialized_is_a_result(serve: Serve):
    client = await serve(square=square)
    async with endpoint_of(client).map([1, object(), 2]) as results:
        found = [result async for result in results]
    assert [result.value for result in found] == [1, None, 4]
    assert isinstance(found[1].error, ValueError)


async def test_no_items(serve: Serve):
    client = await serve(square=square)
    async with endpoint_of(client).map([]) as results:
        assert [result async for result in results] == []


async def test_asynchronous_items(serve: Serve):
    async def items() -> AsyncIterator[int]:
        for number in range(10):
            await asyncio.sleep(0)
            yield number

    client = await serve(square=square)
    async with endpoint_of(client).map(items(), concurrency=3) as results:
        assert [result.value async for result in results] == [number * number for number in range(10)]


async def test_results_do_not_wait_for_a_slow_source(serve: Serve):
    more = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 2
        await more.wait()
        yield 3

    client = await serve(square=square)
    async with endpoint_of(client).map(items()) as results:
        assert (await anext(results)).value == 4
        more.set()
        assert [result.value async for result in results] == [9]


async def test_order(serve: Serve):
    model = Gated()
    client = await serve(square=model)

    async def read(ordered: bool) -> list[int]:
        model.gates.clear()
        async with endpoint_of(client).map(range(3), ordered=ordered) as results:
            await model.has(3)
            values = []
            for number in (2, 0, 1):
                model.gates[number].set()
                if not ordered:
                    values.append((await anext(results)).item)
            return values + [result.item async for result in results]

    assert await read(ordered=True) == [0, 1, 2]
    assert await read(ordered=False) == [2, 0, 1]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_concurrency_is_bounded_with_eager_tasks(serve: Serve):
    model = Gated()
    client = await serve(square=model)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    try:
        async with endpoint_of(client).map(range(12), concurrency=4) as results:
            for number in range(12):
                await model.has(min(number + 4, 12))
                model.gates[number].set()
                assert (await anext(results)).item == number
    finally:
        loop.set_task_factory(None)
    assert model.most == 4


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@each_kind_of_items
@pytest.mark.parametrize("suspends", [True, False])
async def test_many_calls_at_once_with_eager_tasks(given: Callable[..., Any], suspends: bool):
    """Nested workers would reach the recursion limit."""
    under_way = most = 0

    async def call(item: int) -> Answer[int]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if suspends:
            await asyncio.sleep(0)
            while most < 2000:
                await asyncio.sleep(0)
        under_way -= 1
        return Answer(item * item, 1, 0.0, None)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    try:
        async with Results(call, given(range(4000)), concurrency=2000, ordered=True) as results:
            assert [result.unwrap() async for result in results] == [item * item for item in range(4000)]
    finally:
        loop.set_task_factory(None)
    assert not suspends or most == 2000


@each_kind_of_items
async def test_concurrency_is_bounded_and_used(serve: Serve, given: Callable[..., Any]):
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(given(range(12)), concurrency=4) as results:
        for number in range(12):
            await model.has(min(number + 4, 12))
            model.gates[number].set()
            assert (await anext(results)).item == number
    assert model.most == 4


@each_kind_of_items
async def test_a_slow_first_call_does_not_stop_the_others(serve: Serve, given: Callable[..., Any]):
    """In order, twice as many items as calls are held: the others continue until these are used up."""
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(given(range(100)), concurrency=4) as results:
        for number in range(1, 8):
            await model.has(min(number + 3, 8))
            model.gates[number].set()
        assert len(model.gates) == 8
        model.gates[0].set()
        assert [(await anext(results)).item for _ in range(8)] == list(range(8))
        assert len(model.gates) <= 16


@each_kind_of_items
async def test_a_slow_reader_slows_the_calls_down(serve: Serve, given: Callable[..., Any]):
    source = Source(1000)
    client = await serve(square=square)
    async with endpoint_of(client).map(given(source), concurrency=5) as results:
        await anext(results)
        while client.statistics().in_use or client.statistics().calls < 11:
            await asyncio.sleep(0)
        await some_turns()
        # ten are held, and one has been read
        assert source.taken == 11
        assert [result.item async for result in results] == list(range(1, 1000))


@each_kind_of_items
async def test_no_item_is_taken_before_a_call_can_be_made_for_it(serve: Serve, given: Callable[..., Any]):
    model = Gated()
    source = Source(100)
    client = await serve(square=model)
    async with endpoint_of(client).map(given(source), concurrency=2) as results:
        for number in range(10):
            await model.has(number + 2)
            await some_turns()
            assert source.taken == number + 2
            model.gates[number].set()
            await anext(results)


async def test_concurrency_defaults_to_the_clients(serve: Serve):
    model = Gated()
    client = await serve(square=model, client={"max_concurrency": 3})
    async with endpoint_of(client).map(range(9)) as results:
        for number in range(9):
            await model.has(min(number + 3, 9))
            model.gates[number].set()
            assert (await anext(results)).item == number
    assert model.most == 3


# Failures that do not belong to an item


@each_kind_of_items
async def test_an_error_of_the_source_comes_after_the_results(serve: Serve, given: Callable[..., Any]):
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("source")

    client = await serve(square=square)
    found = []
    with pytest.raises(KeyError, match="source"):
        async with endpoint_of(client).map(given(items())) as results:
            async for result in results:
                found.append(result.value)
    assert found == [1, 4]


@each_kind_of_items
async def test_missing_credentials_are_one_error_and_not_a_million(
    monkeypatch: pytest.MonkeyPatch, given: Callable[..., Any]
):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    source = Source(1000)
    async with Client("eu-central-1", endpoint_url="http://127.0.0.1:9") as client:
        with pytest.raises(NoCredentialsError):
            async with endpoint_of(client).map(given(source), concurrency=3) as results:
                async for result in results:
                    assert isinstance(result.error, NoCredentialsError)
    assert source.taken <= 6


async def test_a_client_closed_in_the_middle(serve: Serve):
    model = Gated()
    client = await serve(square=model, runtime={"drain_timeout": 0.01})
    source = Source(1000)
    with pytest.raises(ClientStateError):
        async with endpoint_of(client).map(source, concurrency=2) as results:
            await model.has(2)
            await client.close()
            async for result in results:
                assert result.error is not None
    assert source.taken <= 6


async def test_cancelled_items_end_the_map(serve: Serve):
    """The source of the items is cancelled, not the map."""

    async def items() -> AsyncIterator[int]:
        yield 2
        helper = asyncio.ensure_future(asyncio.Event().wait())
        helper.cancel()
        await helper

    client = await serve(square=square)
    async with endpoint_of(client).map(items()) as results:
        assert (await anext(results)).value == 4
        with pytest.raises(ClientStateError, match=r"items of a map\(\) were cancelled"):
            await anext(results)


async def test_a_call_that_is_cancelled_from_inside_ends_only_itself(serve: Serve):
    class Cancelling:
        content_type = "application/json"

        def serialize(self, data: int) -> bytes:
            if data == 1:
                raise asyncio.CancelledError
            return str(data).encode()

    client = await serve(square=square)
    endpoint = client.endpoint("square", serializer=Cancelling(), deserializer=JSON)
    async with endpoint.map(range(4), concurrency=1) as results:
        found = [result async for result in results]
    assert [result.value for result in found] == [0, None, 4, 9]
    assert isinstance(found[1].error, ClientStateError)


# Cancelled from outside the block


async def test_asynchronous_items_have_one_task_which_makes_no_calls(serve: Serve):
    here: contextvars.ContextVar[str] = contextvars.ContextVar("here", default="elsewhere")
    advancing: set[Any] = set()
    calling: set[Any] = set()

    class Looking:
        content_type = "application/json"

        def serialize(self, data: int) -> bytes:
            assert here.get() == "elsewhere"
            calling.add(asyncio.current_task())
            return str(data).encode()

    async def items() -> AsyncIterator[int]:
        token = here.set("items")
        for number in range(20):
            advancing.add(asyncio.current_task())
            yield number
        here.reset(token)

    client = await serve(square=square)
    endpoint = client.endpoint("square", serializer=Looking(), deserializer=JSON)
    async with endpoint.map(items(), concurrency=4) as results:
        assert [result.value async for result in results] == [number * number for number in range(20)]
    assert len(advancing) == 1
    assert calling.isdisjoint(advancing)


async def test_a_timeout_of_the_items_does_not_cancel_calls(serve: Serve):
    limits = []
    ended = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                for number in range(1000):
                    yield number
        finally:
            ended.set()

    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(items(), concurrency=2) as results:
        await model.has(2)
        limits[0].reschedule(0)
        await ended.wait()
        for gate in model.gates.values():
            gate.set()
        found, failure = await read_out(results)
    assert [result.value for result in found] == [0, 1]
    assert isinstance(failure, TimeoutError)


async def test_items_that_handle_their_timeout(serve: Serve):
    limits = []

    async def items() -> AsyncIterator[int]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                for number in range(1000):
                    yield number

    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(items(), concurrency=2) as results:
        await model.has(2)
        limits[0].reschedule(0)
        await some_turns()
        for gate in model.gates.values():
            gate.set()
        found, failure = await read_out(results)
    assert [result.value for result in found] == [0, 1]
    assert failure is None


async def test_a_timeout_of_the_items_while_they_are_awaited(serve: Serve):
    async def items() -> AsyncIterator[int]:
        async with asyncio.timeout(0.01):
            yield 3
            await asyncio.Event().wait()

    client = await serve(square=square)
    async with endpoint_of(client).map(items()) as results:
        _, failure = await read_out(results)
    assert isinstance(failure, TimeoutError)


@pytest.mark.parametrize("waiting", [True, False], ids=["an item is waited for", "a call is waited for"])
async def test_a_failed_task_of_the_items_is_reported(serve: Serve, waiting: bool):
    go = asyncio.Event()
    ended = asyncio.Event()

    async def producer() -> None:
        await go.wait()
        raise ValueError("producer failed")

    async def items() -> AsyncIterator[int]:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(producer())
                yield 0
                yield 1
                if waiting:
                    await asyncio.Event().wait()
                for number in range(2, 1000):
                    yield number
        finally:
            ended.set()

    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(items(), concurrency=3 if waiting else 2) as results:
        await model.has(2)
        go.set()
        await ended.wait()
        for gate in model.gates.values():
            gate.set()
        found, failure = await read_out(results)
    assert [result.value for result in found] == [0, 1]
    assert isinstance(failure, ExceptionGroup)
    assert [str(error) for error in failure.exceptions] == ["producer failed"]


class Endless:
    """Numbers from 0, without a generator."""

    def __init__(self) -> None:
        self.next = 0

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> int:
        self.next += 1
        return self.next - 1


async def unimpressed() -> AsyncIterator[int]:
    for number in range(1000):
        with contextlib.suppress(asyncio.CancelledError):
            yield number


@pytest.mark.parametrize(
    "make", [lambda: asynchronously(range(1000)), Endless, unimpressed], ids=["generator", "iterator", "unimpressed"]
)
async def test_a_cancelled_task_of_the_items_ends_the_map(serve: Serve, make: Callable[[], Any]):
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(make(), concurrency=2) as results:
        await model.has(2)
        (feeder,) = tasks_named("aiosmrt-map-items")
        feeder.cancel()
        await asyncio.wait([feeder])
        for gate in model.gates.values():
            gate.set()
        found, failure = await read_out(results)
    assert [result.value for result in found] == [0, 1]
    assert isinstance(failure, ClientStateError)
    assert "items of a map() were cancelled" in str(failure)


@pytest.mark.parametrize("name", ["aiosmrt-map", "aiosmrt-map-items"])
async def test_a_task_that_is_cancelled_before_it_starts_ends_the_map(serve: Serve, name: str):
    client = await serve(square=square)
    async with endpoint_of(client).map(asynchronously(range(10))) as results:
        (task,) = tasks_named(name)
        task.cancel()
        found, failure = await read_out(results)
    assert found == []
    assert isinstance(failure, ClientStateError)
    assert "cancelled from outside" in str(failure)


async def test_items_that_are_cancelled_from_inside_end_the_map(serve: Serve):
    def items() -> Iterator[int]:
        yield 2
        raise asyncio.CancelledError

    client = await serve(square=square)
    async with endpoint_of(client).map(items()) as results:
        found, failure = await read_out(results)
    assert [result.value for result in found] == [4]
    assert isinstance(failure, ClientStateError)
    assert "items of a map() were cancelled" in str(failure)


@each_kind_of_items
async def test_a_call_that_cancels_its_own_task_ends_the_map(serve: Serve, given: Callable[..., Any]):
    class Cancelling:
        content_type = "application/json"

        def serialize(self, data: int) -> bytes:
            if data == 1:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            return str(data).encode()

    client = await serve(square=square)
    endpoint = client.endpoint("square", serializer=Cancelling(), deserializer=JSON)
    async with endpoint.map(given(range(1000)), concurrency=1) as results:
        found, failure = await read_out(results)
    assert [result.value for result in found] == [0, None]
    assert isinstance(found[1].error, ClientStateError)
    assert "the call was cancelled from inside" in str(found[1].error)
    assert isinstance(failure, ClientStateError)


@each_kind_of_items
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_call_that_is_cancelled_from_outside_ends_the_map(
    serve: Serve, given: Callable[..., Any], ordered: bool
):
    """The item has its error, the other calls in flight have their results, and no more items are taken."""
    calls: dict[int, Any] = {}

    class Noting:
        content_type = "application/json"

        def serialize(self, data: int) -> bytes:
            calls[data] = asyncio.current_task()
            return str(data).encode()

    source = Source(1000)
    model = Gated()
    client = await serve(square=model)
    endpoint = client.endpoint("square", serializer=Noting(), deserializer=JSON)
    async with endpoint.map(given(source), concurrency=3, ordered=ordered) as results:
        await model.has(3)
        calls[1].cancel()
        await asyncio.wait([calls[1]])
        for gate in model.gates.values():
            gate.set()
        found, failure = await read_out(results)
    assert {result.item: result.value for result in found} == {0: 0, 1: None, 2: 2}
    assert {type(result.error) for result in found if result.item == 1} == {ClientStateError}
    assert isinstance(failure, ClientStateError)
    assert source.taken == 3


async def test_a_cancelled_call_ends_even_without_a_reader(serve: Serve):
    """Cancelling all tasks and waiting for them, as `asyncio.run` does at its end, does not hang."""
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(range(1000), concurrency=1):
        await model.has(1)
        model.gates[0].set()
        await model.has(2)
        (worker,) = tasks_named("aiosmrt-map")
        worker.cancel()
        await asyncio.wait([worker])


class Refusing:
    """Fails for 0 with an error that concerns all calls."""

    accept = "application/json"

    def deserialize(self, body: bytes, content_type: str) -> int:
        if body == b"0":
            raise ClientStateError("for all")
        return int(body)


async def test_a_failed_map_takes_no_more_items(serve: Serve):
    """Three workers have asked for items when the call of a fourth fails with an error that concerns all."""
    go = asyncio.Event()

    class Held(Endless):
        async def __anext__(self) -> int:
            if self.next == 3:
                await go.wait()
            return await super().__anext__()

    items = Held()
    model = Gated()
    client = await serve(square=model)
    endpoint = client.endpoint("square", serializer=JSON, deserializer=Refusing())
    async with endpoint.map(items, concurrency=4, ordered=False) as results:
        await model.has(3)
        for number in (1, 2):
            model.gates[number].set()
            assert (await anext(results)).value == number
        await some_turns()
        model.gates[0].set()
        found, failure = await read_out(results)
        go.set()
        await some_turns()
    assert [(result.item, result.error) for result in found] == [(0, failure)]
    assert failure.args == ("for all",)
    assert items.next == 4
    assert len(model.gates) == 3


async def test_a_worker_that_waited_for_the_reader_takes_nothing_after_a_failure(serve: Serve):
    source = Source(1000)
    model = Gated()
    client = await serve(square=model)
    endpoint = client.endpoint("square", serializer=JSON, deserializer=Refusing())
    async with endpoint.map(source, concurrency=2) as results:
        for number in (1, 2, 3):
            await model.has(number + 1)
            model.gates[number].set()
        while client.statistics().calls < 4 or client.statistics().in_use > 1:
            await asyncio.sleep(0)
        await some_turns()
        model.gates[0].set()
        first = await anext(results)
        await some_turns()
        found, failure = await read_out(results)
    assert [result.value for result in found] == [1, 2, 3]
    assert first.error is failure
    assert source.taken == 4


async def test_a_worker_that_is_cancelled_while_it_waits_for_an_item_ends_the_map(serve: Serve):
    waiting = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 3
        waiting.set()
        await asyncio.Event().wait()

    client = await serve(square=square)
    async with endpoint_of(client).map(items(), concurrency=1) as results:
        await waiting.wait()
        (worker,) = tasks_named("aiosmrt-map")
        worker.cancel()
        found, failure = await read_out(results)
    assert [result.value for result in found] == [9]
    assert isinstance(failure, ClientStateError)


@each_kind_of_items
async def test_a_worker_that_is_cancelled_while_it_waits_for_the_reader_ends_the_map(
    serve: Serve, given: Callable[..., Any]
):
    client = await serve(square=square)
    async with endpoint_of(client).map(given(range(1000)), concurrency=1) as results:
        while client.statistics().in_use or client.statistics().calls < 2:
            await asyncio.sleep(0)
        await some_turns()
        (worker,) = tasks_named("aiosmrt-map")
        worker.cancel()
        found, failure = await read_out(results)
    assert [result.value for result in found] == [0, 1]
    assert isinstance(failure, ClientStateError)


@pytest.mark.parametrize("last", [True, False])
async def test_a_worker_that_is_cancelled_with_an_item_on_its_way_ends_the_map(serve: Serve, last: bool):
    """The item was taken, but its call is never made: the map's error must report that."""
    more = asyncio.Event()

    class Giving(Endless):
        async def __anext__(self) -> int:
            if self.next == 2:
                await more.wait()
            if self.next == 3:
                # The workers have not woken up yet: one has an item, one has not.
                for worker in tasks_named("aiosmrt-map"):
                    worker.cancel()
                if last:
                    raise StopAsyncIteration
            return await super().__anext__()

    client = await serve(square=square)
    items = Giving()
    async with endpoint_of(client).map(items, concurrency=2) as results:
        assert [(await anext(results)).value for _ in range(2)] == [0, 1]
        await some_turns()
        more.set()
        found, failure = await read_out(results)
    assert items.next >= 3
    assert found == []
    assert isinstance(failure, ClientStateError)


def test_faulty_options_are_refused_at_once():
    endpoint = endpoint_of(Client("eu-central-1"))
    with pytest.raises(TypeError, match="acept"):
        endpoint.map([1], acept="x")  # type: ignore[call-arg]
    with pytest.raises(ParamValidationError, match="InferenceId"):
        endpoint.map([1], inference_id="")


async def test_every_kind_of_iterable(serve: Serve):
    class Rows:
        """A sequence with only `__getitem__`, as some data sets are."""

        def __getitem__(self, index: int) -> int:
            if index > 2:
                raise IndexError
            return index

    class Only:
        """An asynchronous iterator without a base class."""

        def __init__(self) -> None:
            self.left = 2

        def __aiter__(self) -> "Only":
            return self

        async def __anext__(self) -> int:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return self.left

    client = await serve(square=square)
    for items, expected in ((Rows(), [0, 1, 4]), (Only(), [1, 0])):
        async with endpoint_of(client).map(items) as results:  # type: ignore[arg-type]
            assert [result.value async for result in results] == expected


async def test_a_reader_in_another_task_after_the_block_exits(serve: Serve):
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(range(10), concurrency=2) as results:
        reader = asyncio.create_task(anext(results))  # type: ignore[arg-type]
        await model.has(2)
    with pytest.raises(ClientStateError, match="inside"):
        await reader


# Leaving


async def only_this_task() -> None:
    for _ in range(20):
        if len([task for task in asyncio.all_tasks() if task.get_name().startswith("aiosmrt")]) == 0:
            return
        await asyncio.sleep(0)
    raise AssertionError(asyncio.all_tasks())


async def test_a_break_ends_the_calls(serve: Serve):
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(range(1000), concurrency=4) as results:
        await model.has(4)
        model.gates[0].set()
        async for result in results:
            assert result.item == 0
            break
    assert client.statistics().in_use == 0
    await only_this_task()
    with pytest.raises(ClientStateError):
        await anext(results)


async def test_an_exception_in_the_block_ends_the_calls(serve: Serve):
    model = Gated()
    client = await serve(square=model)
    with pytest.raises(ZeroDivisionError):
        async with endpoint_of(client).map(range(1000), concurrency=4):
            await model.has(4)
            raise ZeroDivisionError
    assert client.statistics().in_use == 0
    await only_this_task()


@pytest.mark.parametrize("reading", [True, False])
async def test_cancellation_ends_the_calls(serve: Serve, reading: bool):
    model = Gated()
    client = await serve(square=model)

    async def run() -> None:
        async with endpoint_of(client).map(range(1000), concurrency=4) as results:
            if reading:
                async for _ in results:
                    pass
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await model.has(4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.statistics().in_use == 0
    await only_this_task()


async def test_a_second_cancellation_leaves_nothing_behind(serve: Serve):
    ending = asyncio.Event()

    class Slow:
        """An item source that is slow to end."""

        def __aiter__(self) -> "Slow":
            return self

        async def __anext__(self) -> int:
            try:
                await asyncio.Event().wait()
            finally:
                ending.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            raise AssertionError

    client = await serve(square=square)

    async def run() -> None:
        async with endpoint_of(client).map(Slow()) as results:
            await anext(results)

    task = asyncio.create_task(run())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await ending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await only_this_task()


async def test_leaving_ends_the_waiting_for_an_item(serve: Serve):
    waiting = asyncio.Event()
    ended = []

    async def items() -> AsyncIterator[int]:
        yield 3
        try:
            waiting.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    client = await serve(square=square)
    async with endpoint_of(client).map(items()) as results:
        assert (await anext(results)).value == 9
        await waiting.wait()
    assert ended == [True]
    await only_this_task()


async def test_items_that_suppress_cancellation_do_not_block_the_exit(serve: Serve):
    class Unimpressed(Endless):
        async def __anext__(self) -> int:
            if self.next:
                with contextlib.suppress(asyncio.CancelledError):
                    waiting.set()
                    await asyncio.Event().wait()
            return await super().__anext__()

    waiting = asyncio.Event()
    items = Unimpressed()
    client = await serve(square=square)
    async with endpoint_of(client).map(items) as results:
        assert (await anext(results)).value == 0
        await waiting.wait()
    assert items.next == 2
    await only_this_task()


async def test_a_started_generator_is_the_callers_to_close(serve: Serve):
    items = asynchronously(range(1000))
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(items, concurrency=2):
        await model.has(2)
    await only_this_task()
    assert await anext(items) == 2
    await items.aclose()  # type: ignore[attr-defined]


async def test_results_are_entered_once(serve: Serve):
    client = await serve(square=square)
    results = endpoint_of(client).map([1])
    with pytest.raises(ClientStateError):
        await anext(results)
    async with results:
        with pytest.raises(ClientStateError):
            await results.__aenter__()


async def test_one_reader_at_a_time(serve: Serve):
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map([1]) as results:
        first = asyncio.create_task(anext(results))  # type: ignore[arg-type]
        await model.has(1)
        with pytest.raises(ClientStateError, match="another task"):
            await anext(results)
        model.gates[1].set()
        assert (await first).value == 1


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5, "4"])
def test_faulty_concurrency(concurrency: Any):
    with pytest.raises(ParamValidationError, match="concurrency"):
        endpoint_of(Client("eu-central-1")).map([1], concurrency=concurrency)


def test_faulty_items():
    with pytest.raises(ParamValidationError, match="items"):
        endpoint_of(Client("eu-central-1")).map(5)  # type: ignore[arg-type]


async def test_thousands_of_items_hold_memory_flat():
    async with RawServer() as server, Client(**{"endpoint_url": server.url, **CLIENT_ARGUMENTS}) as client:
        server.otherwise = [response(200, b'"%b"' % bytes(1000).hex().encode(), [("Content-Type", "application/json")])]

        async def peak(count: int) -> int:
            tracemalloc.start()
            try:
                async with endpoint_of(client).map(range(count), concurrency=20) as results:
                    async for result in results:
                        assert result.error is None
                        server.requests.clear()
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        await peak(200)
        few = await peak(500)
        assert await peak(2500) < few + 20_000


class Item:
    """A number that counts its living instances."""

    alive = 0

    def __init__(self, number: int) -> None:
        self.number = number
        Item.alive += 1

    def __del__(self) -> None:
        Item.alive -= 1


class Numbers:
    """Serializes `Item`."""

    content_type = "application/json"

    def serialize(self, data: Item) -> bytes:
        return str(data.number).encode()


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_items_are_released_with_their_results(serve: Serve, asynchronous: bool):
    client = await serve(square=square)
    endpoint = client.endpoint("square", serializer=Numbers(), deserializer=JSON)
    items: Any = (Item(number) for number in range(500))
    if asynchronous:
        items = (Item(number) async for number in asynchronously(range(500)))
    most = 0
    async with endpoint.map(items, concurrency=5, ordered=False) as results:
        async for _ in results:
            most = max(most, Item.alive)
    # the ten that may be held, and the reader's
    assert most <= 11
    assert Item.alive <= 1


async def test_no_item_is_held_while_the_next_one_is_waited_for(serve: Serve):
    asked = asyncio.Event()

    async def items() -> AsyncIterator[Item]:
        yield Item(1)
        asked.set()
        await asyncio.Event().wait()

    client = await serve(square=square)
    endpoint = client.endpoint("square", serializer=Numbers(), deserializer=JSON)
    async with endpoint.map(items(), concurrency=2) as results:
        assert (await anext(results)).value == 1
        await asked.wait()
        assert Item.alive == 0
