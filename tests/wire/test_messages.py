"""Messages joined from parts, whatever the service says of their types."""

from __future__ import annotations

import tracemalloc
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._wire.messages import Message, MessageJoiner
from aiosmrt.errors import DeserializationError
from aiosmrt.types import BidirectionalPayloadPart

PARTIAL, COMPLETE = "PARTIAL", "COMPLETE"


def part(data: bytes, data_type: str | None = None, state: str | None = None) -> BidirectionalPayloadPart:
    """A part as it comes, with any marks."""
    marks = {"DataType": data_type, "CompletionState": state}
    found = {"Bytes": data, **{name: mark for name, mark in marks.items() if mark is not None}}
    return cast("BidirectionalPayloadPart", found)


@pytest.mark.parametrize("data_type", [None, "BINARY", "TEXT", "utf8", ""])
def test_what_is_not_utf8_is_binary(data_type: str | None) -> None:
    assert MessageJoiner().add(part(b"x", data_type), 10) == Message(b"x", "BINARY")


@given(
    st.sampled_from([None, "UTF8", "BINARY", "TEXT"]),
    st.lists(st.tuples(st.binary(max_size=3), st.booleans()), min_size=1, max_size=6),
)
def test_a_part_without_a_type_goes_on_as_the_message_began(
    data_type: str | None, parts: list[tuple[bytes, bool]]
) -> None:
    joiner = MessageJoiner()
    found = []
    for number, (data, repeats_type) in enumerate(parts):
        state = COMPLETE if number == len(parts) - 1 else PARTIAL
        found.append(joiner.add(part(data, data_type if repeats_type or not number else None, state), 100))
    whole = b"".join(data for data, _ in parts)
    assert found == [None] * (len(parts) - 1) + [Message(whole, "UTF8" if data_type == "UTF8" else "BINARY")]


def test_the_type_of_a_message_is_not_that_of_the_next() -> None:
    joiner = MessageJoiner()
    assert joiner.add(part(b"x", "UTF8"), 10) == Message(b"x", "UTF8")
    assert joiner.add(part(b"y"), 10) == Message(b"y", "BINARY")


@pytest.mark.parametrize(("first", "second"), [("UTF8", "BINARY"), ("BINARY", "UTF8"), (None, "UTF8")])
def test_a_message_that_changes_its_type_is_an_error(first: str | None, second: str) -> None:
    joiner = MessageJoiner()
    assert joiner.add(part(b"x", first, PARTIAL), 10) is None
    with pytest.raises(DeserializationError, match=f"begins as {first or 'BINARY'} and goes on as {second}"):
        joiner.add(part(b"y", second, PARTIAL), 10)
    # the rest of it is skipped, and the next one is read
    assert joiner.add(part(b"z", first, COMPLETE), 10) is None
    assert joiner.add(part(b"next", "UTF8"), 10) == Message(b"next", "UTF8")


@pytest.mark.parametrize("data", [b"", b"xy"])
def test_many_parts_of_a_message_take_no_more_memory_than_their_bytes(data: bytes) -> None:
    joiner = MessageJoiner()
    count = 20_000
    tracemalloc.start()
    try:
        for _ in range(count):
            joiner.add(part(bytes(bytearray(data)), None, PARTIAL), 10**6)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # a buffer grows by an eighth at a time
    assert kept < count * len(data) * 1.25 + 10_000
    assert joiner.add(part(b"end"), 10**6) == Message(data * count + b"end", "BINARY")
