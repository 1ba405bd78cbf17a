"""Calls for rows at the least cost: rows from a thread, and answers that are written as they came."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt import Client
from aiosmrt.batch import ANY_ANSWER, score
from aiosmrt.batch.answers import JSONText, Verbatim
from aiosmrt.batch.calls import RowCalls
from aiosmrt.batch.feed import Feed
from aiosmrt.batch.requests import Row
from aiosmrt.endpoint.fanout import Answer, Buffered, Result, Results
from aiosmrt.errors import AiosmrtError, DeserializationError
from aiosmrt.serializers import CSV, JSON, TEXT, JSONCodec
from tests.support.scoring import Models, lines_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def read(body: bytes, content_type: str = "application/json") -> object:
    """What the verbatim deserializer reads, and what the one behind it would have."""
    return Verbatim(ANY_ANSWER).deserialize(body, content_type)


@given(VALUES, st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["", " ", "\t"]))
def test_json_is_left_as_it_is_or_read_as_before(value: object, indent: int | None, ascii: bool, blank: str) -> None:
    try:
        body = f"{blank}{json.dumps(value, indent=indent, ensure_ascii=ascii)}{blank}".encode()
    except UnicodeEncodeError:  # a lone surrogate
        return
    found = read(body)
    expected = ANY_ANSWER.deserialize(body, "application/json")
    if isinstance(found, JSONText):
        assert json.loads(found.data) == expected
        assert b"\n" not in found.data
        assert found.data == body.strip()
        json.loads(found.data, parse_constant=lambda constant: pytest.fail(constant))
    else:
        # as repr() tells NaN from NaN
        assert repr(found) == repr(expected)
        assert b"\n" in body or any(name in body for name in (b"NaN", b"Infinity"))


@given(st.binary(max_size=40), st.sampled_from(["application/json", "text/csv", "text/plain", "", "a/b"]))
def test_anything_else_is_read_as_before(body: bytes, content_type: str) -> None:
    try:
        expected = ANY_ANSWER.deserialize(body, content_type)
    except DeserializationError as error:
        with pytest.raises(DeserializationError, match=f"^{re.escape(str(error))}$"):
            read(body, content_type)
        return
    found = read(body, content_type)
    assert repr(json.loads(found.data) if isinstance(found, JSONText) else found) == repr(expected)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"a":\n1}', "application/json"),
        ("\ufeff1".encode(), "application/json"),
        ('"é"'.encode("latin-1"), "application/json; charset=iso-8859-1"),
        (b"[NaN]", "application/json"),
        (b"1,2", "text/csv"),
    ],
)
def test_what_is_not_written_as_it_came(body: bytes, content_type: str) -> None:
    assert not isinstance(read(body, content_type), JSONText)


def test_space_around_json_is_left_out() -> None:
    found = read(b' {"a": 1.50}\r\n', "application/json")
    assert isinstance(found, JSONText)
    assert found.data == b'{"a": 1.50}'


def test_which_deserializers_read_json_as_it_is() -> None:
    assert isinstance(Verbatim.of(ANY_ANSWER), Verbatim)
    assert isinstance(Verbatim.of(JSON), Verbatim)
    for other in (CSV, TEXT, JSONCodec(accept="application/json; charset=latin-1")):
        assert Verbatim.of(other) is other


async def test_numbers_keep_their_digits(client: Client, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"p": 0.10, "q": 1E2}\n[1,  2]\n"\\u00e9"\n')
    endpoint = client.endpoint("echo", serializer=JSON, deserializer=ANY_ANSWER)
    await score(endpoint, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == (
        '{"index":0,"value":{"p": 0.10, "q": 1E2}}\n{"index":1,"value":[1,  2]}\n{"index":2,"value":"\\u00e9"}\n'
    )
    assert [line["value"] for line in lines_of(tmp_path / "out.jsonl")] == [{"p": 0.1, "q": 100.0}, [1, 2], "é"]


@pytest.mark.parametrize("row", [b'{"n": "secret"', b'"secret"'])
async def test_tracebacks_hold_neither_body_nor_answer(client: Client, models: Models, row: bytes) -> None:
    """An answer that cannot be read, and a row that the model refuses."""
    models.refused = {b'"secret"'}
    endpoint = client.endpoint("echo" if row.startswith(b"{") else "double", serializer=JSON, deserializer=JSON)
    call = RowCalls(endpoint, JSON).call
    with pytest.raises(AiosmrtError) as raised:
        await call(Row(0, None, None, row, None))
    held = [
        (frame.f_code.co_name, name)
        for frame, _ in traceback.walk_tb(raised.value.__traceback__)
        if "/aiosmrt/" in frame.f_code.co_filename
        for name, value in frame.f_locals.items()
        if "secret" in repr(value) or (isinstance(value, Row) and value.body == row)
    ]
    assert held == []


# Feed


class Maker:
    """Makes batches of numbers in a thread, when it is let."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = iter(sizes)
        self._next = 0
        self.may = threading.Semaphore(0)
        self.made = 0

    def __call__(self) -> list[int]:
        self.may.acquire()
        size = next(self._sizes, 0)
        first, self._next = self._next, self._next + size
        self.made += 1
        return list(range(first, self._next))

    def let(self, batches: int = 1000) -> None:
        for _ in range(batches):
            self.may.release()


def opened(maker: Maker) -> tuple[Feed, asyncio.Event]:
    ending = asyncio.Event()
    return Feed(maker, ending, maker.let), ending


@pytest.mark.parametrize("sizes", [[], [1], [3, 1, 5], [256, 256]])
async def test_a_feed_gives_all_in_order(sizes: list[int]) -> None:
    maker = Maker(sizes)
    maker.let()
    feed, _ = opened(maker)
    found = [item async for item in feed]
    await feed.aclose()
    assert found == list(range(sum(sizes)))


async def test_items_that_are_there_are_taken_without_waiting() -> None:
    maker = Maker([3, 2])
    maker.let(1)
    feed, ending = opened(maker)
    assert feed.take_ready() is None
    assert await anext(feed) == 0
    assert [feed.take_ready() for _ in range(3)] == [1, 2, None]
    maker.let(1)
    assert await anext(feed) == 3
    ending.set()
    # What is not wanted any more is not given.
    assert feed.take_ready() is None
    with pytest.raises(StopAsyncIteration):
        await anext(feed)
    await feed.aclose()


@pytest.mark.parametrize("error", [None, ValueError("torn")])
async def test_a_batch_that_is_made_is_there(error: Exception | None) -> None:
    maker = Maker([3, 2])
    maker.let()

    def make() -> list[int]:
        if not (batch := maker()) and error is not None:
            raise error
        return batch

    feed = Feed(make, asyncio.Event(), maker.let)
    found: list[int] = []
    while len(found) < 5:
        if (item := feed.take_ready()) is None:
            # The thread makes the next batch.
            await asyncio.sleep(0.001)
        else:
            found.append(item)
    assert found == list(range(5))
    while maker.made < 3:
        await asyncio.sleep(0.001)
    # What it ended with is not lost.
    assert feed.take_ready() is None
    with pytest.raises(StopAsyncIteration if error is None else ValueError):
        await anext(feed)
    await feed.aclose()


async def test_a_feed_ends_while_it_waits() -> None:
    feed, ending = opened(Maker([3]))
    waiting = asyncio.create_task(anext(feed, None))
    await asyncio.sleep(0)
    ending.set()
    assert await waiting is None
    await feed.aclose()


async def test_an_error_of_the_thread_is_raised() -> None:
    def make() -> list[int]:
        raise ValueError("torn")

    feed = Feed(make, asyncio.Event(), lambda: None)
    with pytest.raises(ValueError, match="torn"):
        await anext(feed)
    await feed.aclose()


async def test_a_cancelled_close_waits_for_the_thread() -> None:
    maker = Maker([3])
    feed = Feed(maker, asyncio.Event(), lambda: None)
    closing = asyncio.create_task(feed.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    assert not closing.done()
    maker.let()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert maker.made == 1


class Held(Buffered[int]):
    """Numbers of which the first two have to be waited for; the others are there once the second one was given."""

    def __init__(self, last: int) -> None:
        self._numbers = iter(range(last + 1))
        self._given = 0
        self.second = asyncio.Event()

    def take_ready(self) -> int | None:
        return next(self._numbers, None) if self._given > 1 else None

    async def __anext__(self) -> int:
        if self._given:
            await self.second.wait()
        self._given += 1
        if (number := next(self._numbers, None)) is None:
            raise StopAsyncIteration
        return number


async def test_an_item_on_its_way_to_a_worker_comes_before_what_is_ready() -> None:
    """A worker that becomes free in between takes no later item in its place."""
    items = Held(9)
    called, answer = asyncio.Event(), asyncio.Event()

    async def call(item: int) -> Answer[int]:
        called.set()
        await answer.wait()
        return Answer(2 * item, 1, 0.0, None)

    async with Results(call, items, concurrency=2, ordered=True) as results:
        await called.wait()
        # In one turn of the loop: the second item comes for the worker that waits, and the other one becomes free.
        items.second.set()
        answer.set()
        found = [(result.index, result.item, result.value) async for result in results]
    assert found == [(n, n, 2 * n) for n in range(10)]


async def test_a_map_takes_what_is_ready_itself() -> None:
    """Each item once, whether a worker takes it or is given it."""
    maker = Maker([7] * 30)
    maker.let()
    feed, _ = opened(maker)

    async def call(item: int) -> Answer[int]:
        await asyncio.sleep(0)
        return Answer(2 * item, 1, 0.0, None)

    found: list[Result[int, int]] = []
    async with Results(call, feed, concurrency=5, ordered=True) as results:
        async for result in results:
            found.append(result)
    await feed.aclose()
    assert [(result.index, result.item, result.value) for result in found] == [(n, n, 2 * n) for n in range(210)]
