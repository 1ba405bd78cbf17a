"""Text, lines, events and JSON values from bytes cut anywhere, compared with plain readers of the whole."""

import json
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiosmrt import ServerSentEvent
from aiosmrt._wire.decoders.base import MAX_ITEM_BYTES, Decoder, StreamDecoder
from aiosmrt._wire.decoders.charset import TranscodingDecoder
from aiosmrt._wire.decoders.json import JSONDecoder, JSONLinesDecoder
from aiosmrt._wire.decoders.sse import SSEDecoder
from aiosmrt._wire.decoders.text import LineDecoder, TextDecoder
from aiosmrt.errors import DeserializationError

SECRET = "hunter2"
BOM = b"\xef\xbb\xbf"

# Type checkers see here that each has the common shape.
DECODERS: list[Callable[..., StreamDecoder[Any]]] = [
    *(TextDecoder, LineDecoder, JSONLinesDecoder, SSEDecoder, JSONDecoder),
    partial(TranscodingDecoder, LineDecoder(), "utf-16"),
]


@contextmanager
def max_item_bytes(limit: int) -> Iterator[None]:
    """Lower the size limit of items, which is too large to reach in every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "_max_item_bytes", limit)
        yield


def run(decoder: StreamDecoder[Any], chunks: list[bytes]) -> tuple[list[Any], str | None]:
    """The items of a stream, and the message of its fault."""
    items: list[Any] = []
    try:
        for chunk in chunks:
            items += decoder.feed(chunk)
        items += decoder.finish()
    except DeserializationError as error:
        return items, str(error)
    return items, None


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(at % (len(stream) + 1) for at in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


CUTS = st.lists(st.integers(0, 120), max_size=8)


def streams(*tokens: bytes) -> st.SearchStrategy[bytes]:
    """Streams of tokens that matter to a decoder, and of others, in any order."""
    return st.lists(st.sampled_from(tokens) | st.binary(max_size=3), max_size=25).map(b"".join)


def sound(*tokens: bytes) -> st.SearchStrategy[bytes]:
    """Streams of such tokens only, so that most are well-formed."""
    return st.lists(st.sampled_from(tokens), max_size=25).map(b"".join)


# -- readers of the whole --------------------------------------------------------------------------------------------

Outcome = tuple[list[Any], bool]
"""The items before the first fault, and whether there is one."""


def read_text(stream: bytes) -> Outcome:
    try:
        return [stream.decode()], False
    except UnicodeDecodeError as error:
        return [stream[: error.start].decode()], True


def read_lines(stream: bytes, limit: int) -> Outcome:
    *lines, rest = stream.split(b"\n")
    items: list[Any] = []
    for line, end in [*((line, b"\r") for line in lines), *([(rest, b"")] if rest else [])]:
        try:
            items.append(line.removesuffix(end).decode())
        except UnicodeDecodeError:
            return items, True
        if len(line) > limit:
            return items[:-1], True
    return items, False


def read_json_lines(stream: bytes, limit: int) -> Outcome:
    items: list[Any] = []
    for number, line in enumerate(stream.split(b"\n")):
        if len(line) > limit:
            return items, True
        if number == 0:
            line = line.removeprefix(BOM)
        try:
            if line.strip(b" \t\r\n"):
                items.append(json.loads(line.decode()))
        except ValueError:
            return items, True
    return items, False


def event_lines(stream: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a stream of events, and the rest without a line end."""
    *lines, rest = re.split(rb"\r\n|\n|\r", stream.removeprefix(BOM))
    return lines, rest


def read_events(stream: bytes, limit: int) -> tuple[list[ServerSentEvent], bool]:
    """Section 9.2.6 of the HTML specification, step by step; other lines are faults, and the end is a blank line."""
    events: list[ServerSentEvent] = []
    data_buffer, type_buffer, last_id, retry = b"", b"", b"", None
    lines, rest = event_lines(stream)
    rest = rest if rest.strip() else b""
    for line in [*lines, rest]:
        if len(line) > limit or (rest and line is rest):
            return events, True
        if line == b"":
            if data_buffer != b"":
                data = data_buffer.removesuffix(b"\n")
                texts = [part.decode("utf-8", "replace") for part in (type_buffer or b"message", data, last_id)]
                events.append(ServerSentEvent(texts[0], texts[1], texts[2], retry))
            data_buffer, type_buffer = b"", b""
        elif line.startswith(b":"):
            pass
        else:
            field, value = line.split(b":", 1) if b":" in line else (line, b"")
            if value.startswith(b" "):
                value = value[1:]
            if field == b"event":
                type_buffer = value
            elif field == b"data":
                data_buffer += value + b"\n"
                if len(data_buffer) - 1 > limit:
                    return events, True
            elif field == b"id":
                last_id = last_id if b"\0" in value else value
            elif field == b"retry":
                retry = int(value) if re.fullmatch(rb"[0-9]+", value) else retry
            elif line.strip():
                return events, True
    return events, False


def read_json(stream: bytes, limit: int) -> Outcome:
    """Values one after the other, each cut out byte by byte before it is parsed."""
    items: list[Any] = []
    at = 3 if stream.startswith(BOM) else 0
    while at < len(stream):
        if stream[at] in b" \t\r\n":
            at += 1
            continue
        end = value_end(stream, at)
        if end is None:
            return items, True
        try:
            value = json.loads(stream[at:end].decode())
        except ValueError:
            return items, True
        if end - at > limit or stream[at:].startswith(BOM):
            return items, True
        items.append(value)
        at = end
    return items, False


def value_end(stream: bytes, at: int) -> int | None:
    if stream[at] not in b'{["':
        return next((end for end in range(at, len(stream)) if stream[end] in b" \t\r\n"), len(stream))
    depth, in_string = 0, False
    while at < len(stream):
        byte = stream[at]
        if byte == ord("\\"):
            at += 1
        elif byte == ord('"'):
            in_string = not in_string
        elif not in_string:
            depth += (byte in b"{[") - (byte in b"}]")
        at += 1
        if depth == 0 and not in_string:
            return at if at <= len(stream) else None
    return None


def read_json_events(stream: bytes, limit: int) -> Outcome:
    """The value of each data line that is one; otherwise the values in the lines up to the blank line."""
    items: list[Any] = []
    lines, rest = event_lines(stream.lstrip(b" \t\r\n"))
    if rest.startswith(b"data:") and rest.rstrip(b" \t").endswith((b"}", b"]", b'"')):
        lines, rest = [*lines, rest], b""
    rest = rest if rest.strip() else b""
    held: list[bytes] = []
    size = 0

    def read() -> bool:
        try:
            return read_values(b"\n".join(held).decode().split("\n"), items)
        except UnicodeDecodeError:
            return False

    for line in [*lines, rest]:
        if len(line) > limit or (rest and line is rest):
            return items, True
        if line == b"":
            if not read():
                return items, True
            held, size = [], 0
            continue
        field, value = line.split(b":", 1) if b":" in line else (line, b"")
        if field not in (b"data", b"event", b"id", b"retry", b"") and line.strip():
            return items, True
        if field == b"data":
            value = value.removeprefix(b" ")
            held.append(value)
            size += len(value) + 1
            if size - 1 > limit:
                return items, True
            if len(held) == 1 and read():
                held, size = [], 0
    return items, False


def read_values(lines: list[str], items: list[Any]) -> bool:
    """Append the values in some lines; return whether the lines contain nothing else."""
    unread = ""
    for line in lines:
        if not unread and line.strip(" \t\r\n") in ("", "[DONE]"):
            continue
        unread += line + "\n"
        with suppress(ValueError):
            items.append(json.loads(unread))
            unread = ""
    return not unread


def agree(decoder: Callable[[], StreamDecoder[Any]], stream: bytes, cuts: list[int], expected: Outcome) -> None:
    """Whole, cut and byte by byte, a stream gives the same items, and fails or does not."""
    for chunks in ([stream], cut(stream, cuts), bytewise(stream)):
        items, fault = run(decoder(), chunks)
        # NaN differs from itself, and 1 equals True; their reprs do not.
        assert (repr(items), fault is not None) == (repr(expected[0]), expected[1])


LINES = (b"\n", b"\r\n", b"\r", b"a", "é".encode(), "\u2028".encode(), b"\x0b\x0c\x1c\x85"[:3], "😀".encode())
JSON = (
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"1", b"-", b".5", b"e3", b" ", b"\n", b"\r", b"\t"),
    *(b"true", b"null", b"NaN", b"-Infinity", b'"a"', b'"a":', b'{"a":[1]}', b'"\\"]"', b'"\\\\"', b'"\\u00e9"'),
    *('"é😀"'.encode(), b"12 34", b'{"k":{"k":"}"}}\n', b"[[],{}]", b"[1\n,2]", b'{"a":1,"a":2}'),
)
GOOD_JSON = (
    *(b'{"a":[1]}', b'"\\"]"', b'"\\\\"', b'"\\u00e9\\n"', '"é😀"'.encode(), b'{"k":{"k":"}"}}', b"[[],{}]", b" "),
    *(
        b"1 ",
        b"-0.5e3\n",
        b"true\r\n",
        b"null\t",
        b"NaN\n",
        b'[\n{"a": "\\\\\\""}\n, 2\n]',
        b"\n",
        b"[" * 20 + b"]" * 20,
    ),
)
EVENTS = (
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"data", b"data:", b"data: ", b"data: x\n\n", b"data:y\n\n", b"data:  z\n\n"),
    *(b"event: token\n", b"event", b"event:\n", b"id: 7\n", b"id\n", b"id: a\0b\n", b"retry: 10\n", b"retry: -1\n"),
    *(b"retry: 1\xd9\xa3\n", b": ping\n\n", b":", b" ", b"\0", BOM, "é😀".encode(), b"\xe2\x82", b"\xff", b"[DONE]"),
)
JSON_EVENTS = (
    *(b"\n", b"\r\n\r\n", b"data: ", b"data:", b'data: {"a": 1}\n\n', b"data: [1,\ndata: 2]\n\n", b"data: 3\r\r"),
    *(b"data: [DONE]\n\n", b"data: [DONE] \n\n", b"data\n\n", b"data:  \n\n", b": ping\n\n", b"event: e\n", b"id: 1\n"),
    *(b"{", b"}", b"1 2", b"\xff", "data: \xa01\n\n".encode(), "data: \u2028\n\n".encode()),
)
LIMITS = st.integers(4, 40)


@given(streams(*LINES, "€".encode(), b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0\x80", BOM), CUTS)
@example(b"\xe2\x28", [1])
@example("😀".encode(), [1, 2, 3])
def test_text_wherever_it_is_cut(stream: bytes, cuts: list[int]) -> None:
    for chunks in ([stream], cut(stream, cuts), bytewise(stream)):
        items, fault = run(TextDecoder(), chunks)
        assert all(items)
        assert (["".join(items)], fault is not None) == read_text(stream)


@given(streams(*LINES), CUTS, LIMITS)
@example(b"a\r\nb\rc\r", [2, 5], 4)
def test_lines_wherever_they_are_cut(stream: bytes, cuts: list[int], limit: int) -> None:
    agree(LineDecoder, stream, cuts, read_lines(stream, MAX_ITEM_BYTES))
    with max_item_bytes(limit):
        agree(LineDecoder, stream, cuts, read_lines(stream, limit))


def tricks_of_many_at_once(test: Any) -> Any:
    """Lines that are values only together, and the marks between texts that are parsed at once."""
    for stream in (
        b'[1\n2]\n3,"\x7f",4\n',
        b'[1\n2]\n3,"\\u007f",4\n',
        b'"\x7f"\n"\\u007F"\n1\n',
        b'{"a":1\n"b":2}\n3,4\n',
        b'[1\n2]\n3,"x",4\n',
        b"1\n2,3\n",
        b"1]\n[2\n",
        b'"1\n2"\n',
    ):
        test = example(stream, [], 40)(test)
    return test


@given(streams(*JSON) | sound(*GOOD_JSON), CUTS, LIMITS)
@example(b'{"a":1}\r\n\r\n \t\n2', [8, 9], 4)
@example(b"1\n\x0b\n2", [], 4)
@tricks_of_many_at_once
def test_json_lines_wherever_they_are_cut(stream: bytes, cuts: list[int], limit: int) -> None:
    agree(JSONLinesDecoder, stream, cuts, read_json_lines(stream, MAX_ITEM_BYTES))
    with max_item_bytes(limit):
        agree(JSONLinesDecoder, stream, cuts, read_json_lines(stream, limit))


@given(streams(*EVENTS) | sound(*EVENTS), CUTS, LIMITS)
@example(b"data:x\n\ndata: y\n\ndata:\n\n", [], 40)
@example(b"data: x\n\n\n\ndata: y\n\n", [], 40)
@example(b"data: x\r\r\ndata: y\r\n\r\n", [8, 9], 40)
@example(BOM + BOM + b"data: x\n\n", [1, 2], 40)
def test_events_wherever_they_are_cut(stream: bytes, cuts: list[int], limit: int) -> None:
    agree(SSEDecoder, stream, cuts, read_events(stream, MAX_ITEM_BYTES))
    with max_item_bytes(limit):
        agree(SSEDecoder, stream, cuts, read_events(stream, limit))


@given(streams(*JSON) | sound(*JSON) | sound(*GOOD_JSON), CUTS, LIMITS)
@example(b"12", [1], 4)
@example(b'"\\\\\\""', [2, 3, 4], 40)
@example(b"[1\n2]", [], 40)
@example(b"[1}[2]", [], 40)
@example(b"1{}\n", [1], 40)
@example(BOM + b" {}", [2], 40)
@example(b" " + BOM + b"1", [2], 40)
@example(b'{"a": "\xff"} 1', [3], 40)
@tricks_of_many_at_once
def test_json_values_wherever_they_are_cut(stream: bytes, cuts: list[int], limit: int) -> None:
    if stream.removeprefix(BOM).lstrip(b" \t\r\n").startswith((b":", b"data:", b"event:", b"id:", b"retry:")):
        return
    agree(JSONDecoder, stream, cuts, read_json(stream, MAX_ITEM_BYTES))
    with max_item_bytes(limit):
        agree(JSONDecoder, stream, cuts, read_json(stream, limit))
    # The message of a fault does not depend on the cuts either.
    assert len({run(JSONDecoder(), chunks)[1] for chunks in ([stream], cut(stream, cuts), bytewise(stream))}) == 1


@given(sound(b"", BOM, b" ", b"\n\n"), sound(*JSON_EVENTS) | streams(*JSON_EVENTS), CUTS, LIMITS)
@example(b"", b'data: [1\n\ndata: 2]\n\ndata: 3,"\x7f",4\n\n', [], 40)
@example(b"", b'data: [1\n\ndata: 2]\n\ndata: 3,"\\u007f",4\n\n', [], 40)
@example(b"", b"data: [1,\ndata: 2]\n\ndata: 3\n\n", [], 40)
@example(b"", b'data: "\x7f"\n\ndata: "\\u007F"\n\n', [], 40)
def test_json_in_events_wherever_it_is_cut(before: bytes, events: bytes, cuts: list[int], limit: int) -> None:
    blanks = before.removeprefix(BOM).replace(BOM, b"")
    stream = blanks + b": \n" + events
    for mark in (b"", BOM):
        agree(JSONDecoder, mark + stream, cuts, read_json_events(stream, MAX_ITEM_BYTES))
        with max_item_bytes(limit):
            agree(JSONDecoder, mark + stream, cuts, read_json_events(stream, limit))


# -- text and lines --------------------------------------------------------------------------------------------------


def test_text_keeps_half_a_character() -> None:
    decoder = TextDecoder()
    assert [decoder.feed(byte) for byte in bytewise("a€".encode())] == [["a"], [], [], ["€"]]
    assert decoder.feed(b"") == []
    assert decoder.finish() == []


def test_text_keeps_a_byte_order_mark() -> None:
    assert run(TextDecoder(), [BOM + b"a"]) == (["\ufeffa"], None)


def test_text_that_ends_inside_a_character() -> None:
    decoder = TextDecoder()
    assert decoder.feed(b"ab\xe2\x82") == ["ab"]
    with pytest.raises(DeserializationError, match="byte 2 of the stream"):
        decoder.finish()


def test_line_ends_are_only_lf_and_crlf() -> None:
    odd = "a\rb\x0bc\x0cd\x1ce\x85f\u2028g\u2029h"
    assert run(LineDecoder(), [f"{odd}\n{odd}\r\n{odd}\r".encode()]) == ([odd, odd, odd + "\r"], None)


def test_last_line_without_end() -> None:
    decoder = LineDecoder()
    assert decoder.feed(b"one\n\ntw") == ["one", ""]
    assert decoder.feed(b"o") == []
    assert decoder.finish() == ["two"]
    assert run(LineDecoder(), [b"one\n"]) == (["one"], None)
    assert run(LineDecoder(), [b"\n\n"]) == (["", ""], None)
    assert run(LineDecoder(), []) == ([], None)


def test_crlf_cut_in_two() -> None:
    decoder = LineDecoder()
    assert [decoder.feed(chunk) for chunk in (b"a\r", b"\nb\r", b"c\r", b"\n")] == [[], ["a"], [], ["b\rc"]]


# -- server-sent events ----------------------------------------------------------------------------------------------


def events(stream: str, *, after: str = "") -> list[ServerSentEvent]:
    """The events of a stream, where `finish` adds only the one after them."""
    decoder = SSEDecoder()
    found = decoder.feed(stream.encode())
    assert [event.data for event in decoder.finish()] == ([after] if after else [])
    return found


def event(data: str, event: str = "message", id: str = "", retry: int | None = None) -> ServerSentEvent:
    return ServerSentEvent(event, data, id, retry)


# The specification's examples, in its order.
EXAMPLES: list[tuple[str, list[ServerSentEvent], str | None]] = [
    (
        (
            "data: This is the first message.\n\ndata: This is the second message, it\ndata: has two lines.\n\n"
            "data: This is the third message.\n\n"
        ),
        [
            event("This is the first message."),
            event("This is the second message, it\nhas two lines."),
            event("This is the third message."),
        ],
        None,
    ),
    (
        "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
        [event("73857293", "add"), event("2153", "remove"), event("113411", "add")],
        None,
    ),
    ("data: YHOO\ndata: +2\ndata: 10\n\n", [event("YHOO\n+2\n10")], None),
    (
        ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
        [event("first event", id="1"), event("second event")],
        " third event",
    ),
    ("data\n\ndata\ndata\n\ndata:\n", [event(""), event("\n")], ""),
    ("data:test\n\ndata: test\n\n", [event("test"), event("test")], None),
]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize(("stream", "expected", "unfinished"), EXAMPLES)
def test_examples_of_the_specification(
    stream: str, expected: list[ServerSentEvent], unfinished: str | None, end: str
) -> None:
    octets = stream.replace("\n", end).encode()
    for chunks in ([octets], bytewise(octets)):
        decoder = SSEDecoder()
        assert [event for chunk in chunks for event in decoder.feed(chunk)] == expected
        # The specification discards an event without its blank line; it is still data.
        assert [event.data for event in decoder.finish()] == ([] if unfinished is None else [unfinished])


def test_event_defaults() -> None:
    assert ServerSentEvent() == ("message", "", "", None)
    assert events("event\ndata: x\n\n") == [event("x")]


def test_type_is_of_one_event_and_id_and_retry_are_of_the_stream() -> None:
    assert events("id: 4\nretry: 250\n\nevent: a\ndata: 1\n\ndata: 2\n\nid: 5\ndata: 3\n\ndata: 4\n\n") == [
        event("1", "a", "4", 250),
        event("2", id="4", retry=250),
        event("3", id="5", retry=250),
        event("4", id="5", retry=250),
    ]
    # An event without data does not count, and neither does its type.
    assert events("event: a\n\ndata: 1\n\n") == [event("1")]


def test_values_that_are_ignored() -> None:
    assert events("id: a\0b\nretry: 1.5\nretry: -1\nretry:\nretry: \u0661\ndata: x\n\n") == [event("x")]
    assert events(f"retry: {'9' * 5000}\ndata: x\n\n") == [event("x")]


def test_plain_events_among_others() -> None:
    assert events("data: 1\n\ndata: 2\n\n: ping\n\ndata: 3\n\ndata: 4\ndata: 5\n\ndata: 6\n\ndata: 7\n", after="7") == [
        event(text) for text in ("1", "2", "3", "4\n5", "6")
    ]


@pytest.mark.parametrize(
    "line",
    [
        *('{"error": "no tokens"}', "DATA: 1", " data: 2", "other: 3", "other", "<html>", "a,b", 'data {"a": 1}', " x"),
        *("data : 1", "\0", "\ufeffdata: 1", "Error: out of memory", "[DONE]"),
    ],
)
@pytest.mark.parametrize("decoder", [SSEDecoder, JSONDecoder])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_line_that_is_not_a_field(decoder: Callable[[], StreamDecoder[Any]], line: str, end: str) -> None:
    """Servers write errors between their events; an answer of another kind does not contain any event."""
    good = [event("1")] if decoder is SSEDecoder else [1]
    for before, expected in ((":\n", []), ("data: 1\n\n", good)):
        stream = f"{before}{line}{end}".encode()
        for chunks in ([stream], bytewise(stream)):
            items, fault = run(decoder(), chunks)
            assert items == expected
            assert fault is not None
            assert fault.endswith(
                "has a line that is not a field of server-sent events (data, event, id, retry) or a comment"
            )


@pytest.mark.parametrize(
    "rest",
    [
        *(
            "data: half of a se",
            "data:",
            "da",
            "event: don",
            "id: 1",
            "id",
            ": comm",
            "retry: 1",
            "data: 12",
            "data: tru",
        ),
        *('data: {"a": 1', 'data: {"a": "}', "data: [1,"),
    ],
)
@pytest.mark.parametrize("decoder", [SSEDecoder, JSONDecoder])
def test_a_last_line_without_its_end(decoder: Callable[[], StreamDecoder[Any]], rest: str) -> None:
    good = [event("[1]")] if decoder is SSEDecoder else [[1]]
    stream = f"data: [1]\n\n{rest}".encode()
    for chunks in ([stream], bytewise(stream)):
        items, fault = run(decoder(), chunks)
        assert items == good
        assert fault is not None


@pytest.mark.parametrize("rest", ['data: {"a": 1}', "data: [1]", 'data:"a"', "data: [DONE]", 'data: {"a": 1} '])
def test_a_whole_value_in_a_last_line_without_its_end(rest: str) -> None:
    stream = f"data: 1\n\n{rest}".encode()
    text = rest.removeprefix("data:")
    expected = [1] if "DONE" in rest else [1, json.loads(text)]
    for chunks in ([stream], bytewise(stream)):
        assert run(JSONDecoder(), chunks) == (expected, None)
        assert run(SSEDecoder(), chunks)[1] is not None


def test_json_events_with_one_line_end_between_them() -> None:
    """Values arrive one by one although, without blank lines, all of them are one event."""
    decoder = JSONDecoder()
    assert decoder.feed(b'data: {"a": 1}\ndata: {"a"') == [{"a": 1}]
    assert decoder.feed(b": 2}\ndata: 3\n") == [{"a": 2}, 3]
    assert decoder.feed(b'event: x\ndata: {\ndata:   "a": 4\ndata: }\ndata: {\ndata: "a": 5}\ndata: [DONE]\n\n') == [
        {"a": 4},
        {"a": 5},
    ]
    assert decoder.finish() == []


@pytest.mark.parametrize("data", ["1 2", '{"a": 1} x', "[1\ndata: ] 2", "[DONE] 1", "x\ndata: 1", "[1,\ndata: x"])
def test_data_lines_that_are_not_values(data: str) -> None:
    stream = f"data: {data}\n\ndata: 3\n\n".encode()
    for chunks in ([stream], bytewise(stream)):
        items, fault = run(JSONDecoder(), chunks)
        assert items == []
        assert fault is not None
        assert fault.endswith("is not JSON")


def test_blank_lines_lose_nothing() -> None:
    for stream in (b" \n\t\ndata: 1\n \n\n  \n", b"data: 1\n\n \t"):
        for chunks in ([stream], bytewise(stream)):
            assert run(SSEDecoder(), chunks) == ([event("1")], None)
            assert run(JSONDecoder(), chunks) == ([1], None)


def test_last_event_without_its_blank_line() -> None:
    for end in ("\n", "\r", "\r\n"):
        assert run(SSEDecoder(), [f"event: done\ndata: x{end}".encode()]) == ([event("x", "done")], None)
    assert run(SSEDecoder(), [b"event: done\nid: 3\n"]) == ([], None)


def test_lines_that_are_cut_off_at_their_end() -> None:
    for chunks in (["data: a\n", "data: b\n\n"], ["data: a\rid:", "\ndata: b\n\n"], ["data: a\r", "\ndata: b\r", "\r"]):
        assert run(SSEDecoder(), [chunk.encode() for chunk in chunks]) == ([event("a\nb")], None)


def test_event_comes_with_the_cr_of_its_blank_line() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: x\r\n\r") == [event("x")]
    assert decoder.feed(b"\ndata: y\r\r") == [event("y")]
    assert decoder.feed(b"\n\n") == []
    assert decoder.finish() == []


def test_malformed_utf8_in_events_is_replaced() -> None:
    for chunks in ([b"data: a\xffb\xe2\x82\n\ndata: c\n\n"], bytewise(b"data: a\xffb\xe2\x82\n\ndata: c\n\n")):
        assert run(SSEDecoder(), chunks) == ([event("a\ufffdb\ufffd"), event("c")], None)


@pytest.mark.parametrize("malformed", [b"caf\xe9", b"caf\xc3", b"\xed\xa0\xbd", b"\xff"])
def test_malformed_utf8_in_json_is_an_error_in_events_too(malformed: bytes) -> None:
    """A value with U+FFFD in it would be one that the model did not write."""
    for stream in (
        b'data: "good"\n\ndata: "%b"\n\ndata: 1\n\n' % malformed,
        b'data: "good"\ndata: "%b"\n' % malformed,
        b'data: "good"\n\ndata: {\ndata: "a": "%b"}\n\n' % malformed,
        b'data: "good"\n\ndata: "%b"' % malformed,
    ):
        for chunks in ([stream], bytewise(stream)):
            items, fault = run(JSONDecoder(), chunks)
            assert items == ["good"]
            assert fault is not None
            assert "is not UTF-8" in fault


@pytest.mark.parametrize("decoder", [JSONDecoder, JSONLinesDecoder])
def test_a_byte_order_mark_before_json(decoder: Callable[[], StreamDecoder[Any]]) -> None:
    for stream, values in ((BOM + b"1\n2\n", [1, 2]), (BOM, []), (BOM + b"\n1", [1])):
        for chunks in ([stream], bytewise(stream)):
            assert run(decoder(), chunks) == (values, None)
    for stream in (b"\n" + BOM + b"1\n", BOM + BOM + b"1\n"):
        for chunks in ([stream], bytewise(stream)):
            items, fault = run(decoder(), chunks)
            assert (items, fault is not None) == ([], True)


# -- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [JSONDecoder, JSONLinesDecoder])
def test_values_are_those_of_pythons_json(decoder: Callable[[], StreamDecoder[Any]]) -> None:
    text = '[NaN, -Infinity, 1e999]\n{"a": 1, "a": 2}\n"\\ud83d\\ude00\\ud800"\n1.0\n1\ntrue\n12345678901234567890\n'
    items, fault = run(decoder(), bytewise(text.encode()))
    assert fault is None
    assert repr(items) == repr([json.loads(line) for line in text.splitlines()])


def test_json_lines_hold_one_value_each() -> None:
    decoder = JSONLinesDecoder()
    assert decoder.feed(b'{"a": 1}\n \t\r\n[1]\n{} {}\n3\n') == [{"a": 1}, [1]]
    with pytest.raises(DeserializationError, match="JSON value 3, in the line at byte 17 of the stream, is not JSON"):
        decoder.feed(b"4\n")


def test_number_ends_at_white_space_or_the_end() -> None:
    decoder = JSONDecoder()
    assert [decoder.feed(chunk) for chunk in (b"12", b"34", b"\n5", b" 6")] == [[], [], [1234], [5]]
    assert decoder.finish() == [6]
    assert run(JSONDecoder(), [b"tr", b"ue"]) == ([True], None)


@pytest.mark.parametrize(
    "value",
    [
        "{}",
        "[[], {}]",
        '{"a": "}"}',
        '[{"]": 1}]',
        '""',
        r'"\""',
        r'"\\"',
        r'"\\\""',
        r'["\\", "\"]"]',
        r'{"\"{": "\u005b"}',
    ],
)
def test_value_comes_as_soon_as_it_is_whole(value: str) -> None:
    for at in range(1, len(value)):
        decoder = JSONDecoder()
        assert decoder.feed(value[:at].encode()) == []
        assert decoder.feed(value[at:].encode()) == [json.loads(value)]
        assert [decoder.feed(byte) for byte in bytewise(value.encode())][-1:] == [[json.loads(value)]]
        assert decoder.finish() == []


def test_value_comes_with_the_beginning_of_the_next() -> None:
    decoder = JSONDecoder()
    assert [decoder.feed(chunk) for chunk in (b"[1", b"][2", b'] "', b'"{"', b'": 3}4', b" [")] == [
        [],
        [[1]],
        [[2]],
        [""],
        [{"": 3}],
        [4],
    ]


def test_pretty_printed_and_concatenated_values() -> None:
    values: list[Any] = [{"a": [1, {"b": "\n"}], "c": None}, [], "x", [[["{"]]]]
    stream = "".join(json.dumps(value, indent=2) for value in values).encode()
    assert run(JSONDecoder(), [stream]) == (values, None)


def test_large_array_is_one_value() -> None:
    value = [{"index": index, "scores": [0.5, 1.5]} for index in range(20_000)]
    stream = json.dumps(value).encode()
    assert run(JSONDecoder(), cut(stream, list(range(0, len(stream), 1000)))) == ([value], None)


@pytest.mark.parametrize(
    "begin", ["data: 1\n\n", "event: e\ndata: 1\n\n", "id: 7\ndata: 1\n\n", ": ping\n\ndata: 1\n\n"]
)
@pytest.mark.parametrize("before", ["", "\n\n", " \t", "\ufeff", "\ufeff\r\n"])
def test_the_kind_of_stream_is_decided_at_its_beginning(before: str, begin: str) -> None:
    stream = f'{before}{begin}retry: 5\n\ndata: {{"a":\ndata: 2}}\n\ndata: [DONE]\n\n'.encode()
    for chunks in ([stream], bytewise(stream)):
        assert run(JSONDecoder(), chunks) == ([1, {"a": 2}], None)


@pytest.mark.parametrize(
    "stream", [b"dat", b"data", b"data {}", b"dog: 1\n", b"<html> </html>", b"e", b"{data: 1}", BOM[:2]]
)
def test_neither_events_nor_json(stream: bytes) -> None:
    for chunks in ([stream], bytewise(stream)):
        items, fault = run(JSONDecoder(), chunks)
        assert items == []
        assert fault is not None


@pytest.mark.parametrize("stream", [b"", b" \r\n\t", BOM, BOM + b"\n"])
def test_no_value_at_all(stream: bytes) -> None:
    for chunks in ([stream], bytewise(stream)):
        assert run(JSONDecoder(), chunks) == ([], None)


def test_end_marker_is_json_only_in_events() -> None:
    assert run(JSONDecoder(), [b'data: "[DONE]"\n\ndata: [DONE]']) == (["[DONE]"], None)
    for decoder in (JSONDecoder(), JSONLinesDecoder()):
        items, fault = run(decoder, [b"1\n[DONE]\n"])
        assert items == [1]
        assert fault is not None


@pytest.mark.parametrize("stream", [b"[1, 2", b'{"a": "', b'"abc', b'"abc\\', b'["\\', b'{"a": {}'])
def test_unfinished_value(stream: bytes) -> None:
    for chunks in ([b"1 " + stream], bytewise(b"1 " + stream)):
        items, fault = run(JSONDecoder(), chunks)
        assert items == [1]
        assert fault == "JSON value 2, at byte 2 of the stream, is unfinished: the stream ends inside it"


@pytest.mark.parametrize(
    ("decoder", "frame"),
    [(JSONDecoder, "1 %s\n"), (JSONLinesDecoder, "1\n%s\n"), (JSONDecoder, "data: 1\n\ndata: %s\n\n")],
    ids=["values", "lines", "events"],
)
@pytest.mark.parametrize(
    "value", ["[" * 100_000 + "]" * 100_000, "[" + "1" * 5000 + "]", "01", "1.", "'a'", '["\x01"]']
)
def test_values_that_pythons_json_refuses(decoder: Callable[[], StreamDecoder[Any]], frame: str, value: str) -> None:
    stream = (frame % value).encode()
    for chunks in ([stream], cut(stream, list(range(0, len(stream), 1000)))):
        items, fault = run(decoder(), chunks)
        assert items == [1]
        assert fault is not None
        assert fault.endswith("is nested too deeply" if value.startswith("[[") else "is not JSON")


# -- faults ----------------------------------------------------------------------------------------------------------

# A decoder, a stream, the good items, the message of the error, and the size limit.
FAULTS: list[tuple[Callable[[], Any], bytes, list[Any], str, int]] = [
    (
        TextDecoder,
        b"good\xff" + SECRET.encode(),
        ["good"],
        "the text at byte 4 of the stream is not UTF-8",
        MAX_ITEM_BYTES,
    ),
    (
        LineDecoder,
        b"good\n" + SECRET.encode() + b"\xff\nlost\n",
        ["good"],
        "line 2, at byte 5 of the stream, is not UTF-8",
        MAX_ITEM_BYTES,
    ),
    (
        LineDecoder,
        b"good\r\n" + SECRET.encode() + b"\n",
        ["good"],
        "line 2, at byte 6 of the stream, exceeds 6 bytes",
        6,
    ),
    (
        JSONLinesDecoder,
        b'{"a": 1}\n\n{"' + SECRET.encode() + b'"\n3\n',
        [{"a": 1}],
        "JSON value 2, in the line at byte 10 of the stream, is not JSON",
        MAX_ITEM_BYTES,
    ),
    (
        JSONDecoder,
        b'{"a": 1}\n{"' + SECRET.encode() + b'"} 3 ',
        [{"a": 1}],
        "JSON value 2, at byte 9 of the stream, is not JSON",
        MAX_ITEM_BYTES,
    ),
    (
        JSONDecoder,
        b'"\xc3\xa9" ' + SECRET.encode() + b" 3 ",
        ["é"],
        "JSON value 2, at byte 5 of the stream, is not JSON",
        MAX_ITEM_BYTES,
    ),
    (
        JSONDecoder,
        b'data: {"a": 1}\n\ndata: [DONE]\n\ndata: ' + SECRET.encode() + b"\n\n",
        [{"a": 1}],
        "JSON value 2, in an event that ends after byte 0 of the stream, is not JSON",
        MAX_ITEM_BYTES,
    ),
    (
        SSEDecoder,
        b"data: x\n\ndata: " + SECRET.encode() + b"\n\n",
        [event("x")],
        "event 2, which ends after byte 0 of the stream, exceeds 12 bytes",
        12,
    ),
    (
        JSONDecoder,
        b"data: 1\n\ndata: " + SECRET.encode() + b"\n\n",
        [1],
        "JSON value 2, in an event that ends after byte 0 of the stream, exceeds 12 bytes",
        12,
    ),
]


@pytest.fixture
def limited(request: pytest.FixtureRequest) -> Iterator[None]:
    """The size limit of a test's parameters."""
    with max_item_bytes(request.param):
        yield


each_fault = pytest.mark.parametrize(("make", "stream", "good", "message", "limited"), FAULTS, indirect=["limited"])


@each_fault
def test_good_items_come_before_the_fault(
    make: Callable[[], Any], stream: bytes, good: list[Any], message: str, limited: None
) -> None:
    decoder = make()
    assert decoder.failure is None
    assert decoder.feed(stream) == good
    assert str(decoder.failure) == message
    assert decoder.pending_bytes == 0
    for call in (lambda: decoder.feed(b""), lambda: decoder.feed(b"x\n"), decoder.finish, decoder.finish):
        with pytest.raises(DeserializationError) as caught:
            call()
        assert str(caught.value) == message


@each_fault
def test_fault_without_good_items_comes_at_once(
    make: Callable[[], Any], stream: bytes, good: list[Any], message: str, limited: None
) -> None:
    decoder = make()
    came: list[Any] = []
    for byte in bytewise(stream + b"\n\n"):
        try:
            came += decoder.feed(byte)
        except DeserializationError:
            break
        assert decoder.failure is None
    assert ["".join(came)] == good if make is TextDecoder else came == good
    assert decoder.failure is not None


def test_positions_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    # After a byte order mark, white space, and line ends of two bytes that were cut.
    monkeypatch.setattr(Decoder, "_max_item_bytes", 9)
    decoder = JSONDecoder()
    for chunk in (BOM, b"\n ", b"\r\n", b"data: 1\r", b"\n\r", b"\n"):
        decoder.feed(chunk)
    with pytest.raises(
        DeserializationError, match="JSON value 2, in an event that ends after byte 18 of the stream, exceeds 9"
    ):
        decoder.feed(b"data: 2345\n")
    lines = LineDecoder()
    for chunk in (b"a\nb\n", b"c", b"\nd", b"\n"):
        lines.feed(chunk)
    with pytest.raises(DeserializationError, match="line 5, at byte 8 of the stream, is not UTF-8"):
        lines.feed(b"\xff\n")


def errors(make: Callable[[], Any], stream: bytes) -> Iterator[BaseException]:
    for chunks in ([stream], bytewise(stream)):
        decoder = make()
        for call in [*(partial(decoder.feed, chunk) for chunk in chunks), decoder.finish]:
            try:
                call()
            except DeserializationError as error:
                yield error
            assert SECRET not in repr(decoder)
            assert SECRET not in repr(decoder.failure)


UNFINISHED: list[tuple[Callable[[], Any], bytes]] = [
    (TextDecoder, SECRET.encode() + b"\xe2"),
    (LineDecoder, SECRET.encode() + b"\xe2"),
    (JSONLinesDecoder, SECRET.encode()),
    (JSONLinesDecoder, b'"' + SECRET.encode() + b"\xff"),
    (JSONDecoder, SECRET.encode()),
    (JSONDecoder, b'["' + SECRET.encode()),
    (JSONDecoder, b"data: " + SECRET.encode()),
]


@pytest.mark.parametrize(
    ("make", "stream", "limit"),
    [*((make, stream, limit) for make, stream, *_, limit in FAULTS), *((*case, MAX_ITEM_BYTES) for case in UNFINISHED)],
)
def test_errors_keep_no_payload(
    make: Callable[[], Any], stream: bytes, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "_max_item_bytes", limit)
    found = list(errors(make, stream))
    assert found
    for error in found:
        assert error.__cause__ is None
        assert error.__context__ is None
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        assert SECRET not in repr(vars(error))


@pytest.mark.parametrize("make", DECODERS)
def test_reprs_show_no_payload(make: Callable[[], Any]) -> None:
    decoder = make()
    decoder.feed((f"data: {SECRET}\n\ndata: {SECRET}" if make is SSEDecoder else f'"{SECRET}"\n"{SECRET}').encode())
    assert SECRET not in repr(decoder)
    assert "items=" in repr(decoder)
    assert not hasattr(decoder, "__dict__")
    shown = repr(ServerSentEvent(SECRET, SECRET, SECRET))
    assert shown == "<ServerSentEvent of 7 characters>"


# -- limits ----------------------------------------------------------------------------------------------------------

# Items of 12 bytes, as their decoder counts, and items of one byte more.
AT_THE_LIMIT: list[tuple[Callable[..., Any], bytes, bytes]] = [
    (LineDecoder, b"x" * 12 + b"\n", b"x" * 13),
    (LineDecoder, b"x" * 11 + b"\r\n", b"x" * 12 + b"\r\n"),
    (LineDecoder, "é".encode() * 6, "é".encode() * 6 + b"x\n"),
    (JSONLinesDecoder, b'"1234567890"\n', b'"12345678901"\n'),
    (JSONLinesDecoder, b" " * 12 + b"\n", b" " * 13),
    (JSONDecoder, b'"1234567890"', b'"12345678901"'),
    (JSONDecoder, '"ééééé"'.encode(), '"ééééé1"'.encode()),
    (JSONDecoder, b"123456789012 ", b"1234567890123"),
    (JSONDecoder, b" " * 100 + b"[1, 2, 3, 4]" + b"\n" * 100, b"[1, 2, 3,  4]"),
    (JSONDecoder, b"data: 123456\n\n", b"data: 1234567\n\n"),
    (SSEDecoder, b"data: 123456\n\n", b"data: 1234567\n\n"),
    (SSEDecoder, BOM + b"data: 123456\r\n\r\n", BOM + b"data: 1234567\r\n\r\n"),
    (SSEDecoder, b"data: 123456\ndata: 12345\n\n", b"data: 123456\ndata: 123456\n\n"),
    (SSEDecoder, b"data: 123456\n\nid\n" * 9, b"data: 123456\n\ndata: 1234567\n\n"),
    (SSEDecoder, b"id\ndata: 123456\n\n" * 9, b"id\ndata: 123456\n\ndata: 1234567\n\n"),
    (SSEDecoder, b": 3456789012\n" * 9, b": 34567890123\n"),
    (SSEDecoder, b"id: 56789012\nevent: 89012\n", b"event: 890123\n"),
]


@pytest.mark.parametrize(("make", "fits", "exceeds"), AT_THE_LIMIT)
def test_limit_is_the_last_size_that_fits(make: Callable[..., Any], fits: bytes, exceeds: bytes) -> None:
    for split in (bytewise, lambda stream: [stream]):
        assert run(make(), split(exceeds))[1] is None
        with max_item_bytes(12):
            assert run(make(), split(fits))[1] is None
            _, fault = run(make(), split(exceeds))
        assert fault is not None
        assert fault.endswith("exceeds 12 bytes")


@pytest.mark.parametrize(
    ("make", "begin", "more"),
    [
        (LineDecoder, b"", b"x"),
        (JSONLinesDecoder, b"[", b"1,"),
        (JSONDecoder, b"[", b"1,"),
        (JSONDecoder, b'"', b"\\n"),
        (JSONDecoder, b"", b"1"),
        (SSEDecoder, b"", b"x"),
        (SSEDecoder, b"", b"data\n"),
        (SSEDecoder, b"data: x\n\n" * 500, b"data\n"),
        (JSONDecoder, b"data: [", b"1,\ndata: "),
    ],
)
def test_endless_item_is_not_held(
    make: Callable[..., Any], begin: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "_max_item_bytes", 1000)
    decoder = make()
    decoder.feed(begin)
    held = 0
    while decoder.failure is None and held < 2000:
        held = decoder.pending_bytes
        with suppress(DeserializationError):
            decoder.feed(more)
    assert 990 < held < 1010
    assert decoder.pending_bytes == 0
    with pytest.raises(DeserializationError, match="exceeds 1000 bytes"):
        decoder.finish()


# -- effort ----------------------------------------------------------------------------------------------------------

# Items that do not end: the effort for each chunk could grow with the bytes that are held.
ENDLESS: dict[str, tuple[Callable[..., Any], bytes, bytes]] = {
    "text": (TextDecoder, b"", "€".encode()),
    "line": (LineDecoder, b"", b"x"),
    "CRs": (LineDecoder, b"", b"\r"),
    "JSON line": (JSONLinesDecoder, b'"', b"x"),
    "string": (JSONDecoder, b'"', b"x"),
    "escapes": (JSONDecoder, b'[ "', b'\\"\\\\'),
    "objects": (JSONDecoder, b"[", b'{"a":[1]},\n'),
    "number": (JSONDecoder, b"0.", b"1"),
    "depth": (JSONDecoder, b"", b"["),
    "malformed": (JSONDecoder, b"[", b"{]:,"),
    "not UTF-8": (JSONDecoder, b'"', b"\xff"),
    "blanks": (JSONDecoder, b"", b" \n"),
    "data line": (SSEDecoder, b"data: ", b"x"),
    "data lines": (SSEDecoder, b"", b"data: x\n"),
    "comments": (SSEDecoder, b"data: x\n", b":\r\n"),
    "JSON event": (JSONDecoder, b"data: ", b"x"),
}


@pytest.mark.parametrize(("make", "begin", "more"), ENDLESS.values(), ids=list(ENDLESS))
def test_effort_is_linear(make: Callable[..., Any], begin: bytes, more: bytes) -> None:
    def seconds(size: int) -> float:
        stream = begin + more * (size // len(more))
        chunks = cut(stream, list(range(0, len(stream), 256)))
        best = float("inf")
        for _ in range(3):
            decoder = make()
            start = time.process_time()
            for chunk in chunks:
                decoder.feed(chunk)
            best = min(best, time.process_time() - start)
            assert decoder.failure is None
        return best

    # 16 times the bytes take 16 times the effort; 256 times if each chunk made the decoder read all again.
    assert seconds(1024 * 1024) < 64 * seconds(64 * 1024)


@pytest.mark.parametrize(("make", "line"), [(SSEDecoder, b""), (SSEDecoder, b"ab"), (JSONDecoder, b"1,")])
def test_many_short_lines_take_no_more_memory_than_long_ones(make: Callable[[], Any], line: bytes) -> None:
    """An unfinished event is bounded in bytes, so it must not hold an object for each line."""
    decoder = make()
    decoder.feed(b"data: [\n")
    lines = (b"data:" + line + b"\n") * 1000
    tracemalloc.start()
    try:
        for _ in range(30):
            decoder.feed(lines)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.pending_bytes >= 30_000
    assert held < 2 * decoder.pending_bytes + 100_000


def test_huge_value_in_small_pieces() -> None:
    value = ["x" * (20 * 1024 * 1024)]
    stream = json.dumps(value).encode()
    assert run(JSONDecoder(), cut(stream, list(range(0, len(stream), 1024)))) == ([value], None)


# Other charsets


CHARSETS = {
    "latin-1": "é\n!",
    "cp037": "EBCDIC\r\nx",
    "utf-16": "\U0001f600 é\nb",
    "utf-16-le": "é\nb",
    "utf-32": "é\n\U0001f600",
    "utf-7": "é\n+-\U0001f600",
    "shift_jis": "日本\n語",
    "iso2022_jp": "日本\n語",  # seven bits: it would pass for UTF-8
    "gb18030": "日本\n\U0001f600é",
}


@pytest.mark.parametrize("charset", CHARSETS)
def test_text_in_another_charset(charset: str) -> None:
    text = CHARSETS[charset]
    stream = text.encode(charset)
    lines = text.replace("\r\n", "\n").split("\n")
    for at in range(len(stream) + 1):
        for make, right in ((LineDecoder, lines), (TextDecoder, [text])):
            items, fault = run(TranscodingDecoder(make(), charset), [stream[:at], stream[at:]])
            assert (items if make is LineDecoder else ["".join(items)], fault) == (right, None)


CUT_CHARSETS = (
    "iso8859-1",
    "cp1252",
    "utf-16",
    "utf-16-le",
    "utf-32-be",
    "shift_jis",
    "iso2022_jp",
    "gb18030",
    "utf-8-sig",
)


@pytest.mark.parametrize("encoding", CUT_CHARSETS)
@given(data=st.data())
def test_another_charset_wherever_it_is_cut(encoding: str, data: st.DataObject) -> None:
    text = data.draw(
        st.text(alphabet="ab\n\r€éüあ語ｱ\u00a5\x7f".encode(encoding, "ignore").decode(encoding), max_size=9)
    )
    stream = text.encode(encoding)
    cuts = data.draw(st.lists(st.integers(0, 50), max_size=4))
    for make in (TextDecoder, LineDecoder):
        expected = run(make(), [text.encode()])
        for chunks in ([stream], cut(stream, cuts), bytewise(stream)):
            items, fault = run(TranscodingDecoder(make(), encoding), chunks)
            assert ("".join(items), fault) == ("".join(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("charset", "broken"),
    [
        ("utf-16-le", b"\x00\xdc"),
        ("utf-32", b"\xff\xff\xff\xff"),
        ("shift_jis", b"\x80"),
        ("iso2022_jp", b"\x80"),
        ("gb18030", b"\xff"),
        ("cp1252", b"\x81"),
    ],
)
def test_text_that_is_not_in_its_charset(charset: str, broken: bytes) -> None:
    """Neither the text before the fault nor its message depend on how the stream was cut."""
    stream = "ab\n12".encode(charset) + broken + "c".encode(charset)
    for at in range(len(stream) + 1):
        decoder = TranscodingDecoder(TextDecoder(), charset)
        items, fault = run(decoder, [stream[:at], stream[at:]])
        assert "".join(items).removeprefix("\ufeff") == "ab\n12"
        assert fault == f"the text after character 5 of the stream is not {charset}"
        assert str(decoder.failure) == fault
    items, fault = run(TranscodingDecoder(LineDecoder(), charset), [stream])
    assert [item.removeprefix("\ufeff") for item in items] == ["ab"]


def test_a_fault_after_a_shift_to_another_alphabet() -> None:
    """What precedes it is read as it began: the charset's state is that of the bytes before."""
    stream = b"ab" + "日".encode("iso2022_jp").removesuffix(b"\x1b(B") + b"\x80"
    for at in range(len(stream) + 1):
        items, fault = run(TranscodingDecoder(TextDecoder(), "iso2022_jp"), [stream[:at], stream[at:]])
        assert ("".join(items), fault) == ("ab日", "the text after character 3 of the stream is not iso2022_jp")


@pytest.mark.parametrize(("charset", "half"), [("utf-16-le", b"a"), ("utf-32-be", b"abc"), ("shift_jis", b"\x93")])
def test_a_stream_that_ends_inside_a_character_of_another_charset(charset: str, half: bytes) -> None:
    items, fault = run(TranscodingDecoder(TextDecoder(), charset), ["ab".encode(charset) + half])
    assert (items, fault) == (["ab"], f"the text after character 2 of the stream is not {charset}")


@pytest.mark.parametrize("charset", ["utf-16", "utf-32"])
def test_a_charset_without_its_byte_order_mark(charset: str) -> None:
    """It is read as Python reads a whole body."""
    stream = "é\nb".encode(charset)[len("".encode(charset)) :]
    assert stream.decode(charset) == "é\nb"
    for at in range(len(stream) + 1):
        assert run(TranscodingDecoder(LineDecoder(), charset), [stream[:at], stream[at:]]) == (["é", "b"], None)


def test_a_lone_surrogate_in_another_charset_is_refused() -> None:
    items, fault = run(TranscodingDecoder(TextDecoder(), "utf-7"), [b"ab+2D0-"])
    assert "".join(items) == "ab"
    assert fault is not None
