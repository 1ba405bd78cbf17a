"""Fan-out: order, bounds, back-pressure, failures, and what is left behind."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import ClientStateError, ModelError, NoCredentialsError, ParamValidationError
from aiosmrt.local.targets import ContainerFailure
from aiosmrt.serializers import JSON
from tests.endpoint.conftest import Serve
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
    """A model whose answers the test lets go, one by one; counts the calls that wait."""

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
    """Numbers from 0 on, which knows how many were taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.taken += 1
            yield number


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


async def test_concurrency_is_bounded_and_used(serve: Serve):
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(range(12), concurrency=4) as results:
        for number in range(12):
            await model.has(min(number + 4, 12))
            model.gates[number].set()
            assert (await anext(results)).item == number
    assert model.most == 4


async def test_a_slow_first_call_does_not_stop_the_others(serve: Serve):
    """In order, twice as many items as calls are held: the others go on until these are used up."""
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(range(100), concurrency=4) as results:
        for number in range(1, 8):
            await model.has(min(number + 3, 8))
            model.gates[number].set()
        assert len(model.gates) == 8
        model.gates[0].set()
        assert [(await anext(results)).item for _ in range(8)] == list(range(8))
        assert len(model.gates) <= 16


async def test_a_slow_reader_slows_the_calls_down(serve: Serve):
    source = Source(1000)
    client = await serve(square=square)
    async with endpoint_of(client).map(source, concurrency=5) as results:
        await anext(results)
        while client.statistics().in_use or len(results._ready) < 9:
            await asyncio.sleep(0)
        # ten are held, and one has been read
        assert source.taken == 11
        assert [result.item async for result in results] == list(range(1, 1000))


async def test_as_many_as_the_client_allows(serve: Serve):
    model = Gated()
    client = await serve(square=model, client={"max_concurrency": 3})
    async with endpoint_of(client).map(range(9)) as results:
        for number in range(9):
            await model.has(min(number + 3, 9))
            model.gates[number].set()
            assert (await anext(results)).item == number
    assert model.most == 3


# Failures that are nobody's item


async def test_what_the_source_raises_comes_behind_the_results(serve: Serve):
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("source")

    client = await serve(square=square)
    found = []
    with pytest.raises(KeyError, match="source"):
        async with endpoint_of(client).map(items()) as results:
            async for result in results:
                found.append(result.value)
    assert found == [1, 4]


async def test_without_credentials_there_is_one_error_and_not_a_million(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    source = Source(1000)
    async with Client("eu-central-1", endpoint_url="http://127.0.0.1:9") as client:
        with pytest.raises(NoCredentialsError):
            async with endpoint_of(client).map(source, concurrency=3) as results:
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
    """Somebody cancels what the items come from, and not the map."""

    async def items() -> AsyncIterator[int]:
        yield 2
        helper = asyncio.ensure_future(asyncio.Event().wait())
        helper.cancel()
        await helper

    client = await serve(square=square)
    async with endpoint_of(client).map(items()) as results:
        assert (await anext(results)).value == 4
        with pytest.raises(ClientStateError, match="items were cancelled"):
            await anext(results)


async def test_a_call_that_something_in_it_cancels_ends_nothing_but_itself(serve: Serve):
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


def test_faulty_options_are_found_at_once():
    endpoint = endpoint_of(Client("eu-central-1"))
    with pytest.raises(TypeError, match="acept"):
        endpoint.map([1], acept="x")  # type: ignore[call-arg]
    with pytest.raises(ParamValidationError, match="InferenceId"):
        endpoint.map([1], inference_id="")


async def test_whatever_for_takes(serve: Serve):
    class Rows:
        """A sequence of the old kind, as data sets are."""

        def __getitem__(self, index: int) -> int:
            if index > 2:
                raise IndexError
            return index

    class Only:
        """An asynchronous iterator that is registered nowhere."""

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


async def test_a_reader_in_another_task_is_told_that_the_block_was_left(serve: Serve):
    model = Gated()
    client = await serve(square=model)
    async with endpoint_of(client).map(range(10), concurrency=2) as results:
        reader = asyncio.create_task(anext(results))  # type: ignore[arg-type]
        await model.has(2)
    with pytest.raises(ClientStateError, match="inside"):
        await asyncio.wait_for(reader, 10)


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


async def test_a_second_cancellation_leaves_nothing_behind_either(serve: Serve):
    ending = asyncio.Event()

    class Slow:
        """An item source that takes its time to end."""

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


async def test_ten_thousand_items_hold_memory_flat():
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
        assert await peak(10_000) < few + 20_000


class Item:
    """A number that counts how many of its kind there are."""

    alive = 0

    def __init__(self, number: int) -> None:
        self.number = number
        Item.alive += 1

    def __del__(self) -> None:
        Item.alive -= 1


async def test_items_are_let_go_with_their_results(serve: Serve):
    class Number:
        content_type = "application/json"

        def serialize(self, data: Item) -> bytes:
            return str(data.number).encode()

    client = await serve(square=square)
    endpoint = client.endpoint("square", serializer=Number(), deserializer=JSON)
    most = 0
    async with endpoint.map((Item(number) for number in range(500)), concurrency=5, ordered=False) as results:
        async for _ in results:
            most = max(most, Item.alive)
    # the ten that may be held, and the one in the reader's hand
    assert most <= 11
    assert Item.alive <= 1
