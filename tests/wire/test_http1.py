"""The HTTP/1.1 response parser: what is refused, what is not, and that neither cuts nor memory change it."""

import random
import re
import time
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._wire import http1
from aiosmrt._wire.http1 import (
    MAX_HEAD_BYTES,
    ChunkedBody,
    HeadParser,
    HTTPResponseError,
    ResponseHead,
    check_partial_head,
)

OK = b"HTTP/1.1 200 OK"


def parse(*lines: bytes) -> ResponseHead:
    return HeadParser().parse(b"\r\n".join(lines))


def fields(*lines: bytes) -> dict[str, str]:
    """The fields of a response that has these and no body."""
    headers = parse(OK, *lines, b"Content-Length: 0").headers
    assert headers.pop("content-length") == "0"
    return headers


# Status lines


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 200 OK", 200),
        (b"HTTP/1.0 200 OK", 200),
        (b"HTTP/1.1 200", 200),
        (b"HTTP/1.1 200 ", 200),
        (b"HTTP/1.1 424 Failed\tDependency  ", 424),
        (b"HTTP/1.1 500 \xe9\xff", 500),
        (b'HTTP/1.1 200 : \\ "x"', 200),
        (b"HTTP/1.1 999 ?", 999),
        (b"HTTP/1.1 600 ?", 600),
    ],
)
def test_good_status_lines(line: bytes, status: int) -> None:
    assert parse(line, b"Content-Length: 0").status == status


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/2 200",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/11 200 OK",
        b"HTTP/1.10 200 OK",
        b"HTTP/01.1 200 OK",
        b"http/1.1 200 OK",
        b"Http/1.1 200 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1 2_0 OK",
        b"HTTP/1.1 2.0 OK",
        b"HTTP/1.1 \xb2\xb0\xb0 OK",
        "HTTP/1.1 \uff12\uff10\uff10 OK".encode(),
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200\tOK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b" HTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\nK",
        b"HTTP/1.1 200 OK\r",
        b"HTTP/1.1 200 OK\n",
        b"\nHTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 O\x7fK",
        b"HTTP/1.1 200 O\x1bK",
    ],
)
def test_bad_status_lines(line: bytes) -> None:
    with pytest.raises(HTTPResponseError, match="status line"):
        parse(line, b"Content-Length: 0")


# Fields


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (b"X-A: b", "x-a", "b"),
        (b"X-A:b", "x-a", "b"),
        (b"X-A:", "x-a", ""),
        (b"X-A: ", "x-a", ""),
        (b"X-A: \t ", "x-a", ""),
        (b"X-A:\t \tb  c\td \t", "x-a", "b  c\td"),
        (b"X-A: b:c", "x-a", "b:c"),
        (b"X-A::", "x-a", ":"),
        (b"!#$%&'*+-.^_`|~9z: t", "!#$%&'*+-.^_`|~9z", "t"),
        ("X-A: é".encode(), "x-a", "é"),
        (b"X-A: \xe9", "x-a", "\udce9"),
        (b"X-A: \xed\xb3\xa9", "x-a", "\udced\udcb3\udca9"),
        # spaces of Unicode are not whitespace here
        ("X-A: \xa0b\x85".encode("latin-1"), "x-a", "\udca0b\udc85"),
        ("X-A: \u2003b\u2028".encode(), "x-a", "\u2003b\u2028"),
    ],
)
def test_good_fields(line: bytes, name: str, value: str) -> None:
    assert fields(line) == {name: value}
    assert value.encode("utf-8", "surrogateescape") == line.partition(b":")[2].strip(b" \t")


BAD_FIELDS = [
    b"",
    b" ",
    b"X-A",
    b": b",
    b":",
    b"X-A : b",
    b"X-A\t: b",
    b" X-A: b",
    b"\tX-A: b",
    b" folded",
    b"X A: b",
    b"X(A): b",
    b'"X": b',
    b"X\xe9: b",
    "\uff38: b".encode(),
    b"X\x00: b",
    b"X-A: b\rc",
    b"X-A: b\r",
    b"\rX-A: b",
    b"X-A: b\nX-B: c",
    b"X-A: b\n",
    b"X-A:\nb",
    *(b"X-A: b%cc" % code for code in (*range(9), *range(10, 32), 127)),
]


@pytest.mark.parametrize("line", BAD_FIELDS)
def test_bad_fields(line: bytes) -> None:
    for lines in ([line], [line, b"X-B: c"], [b"X-B: c", line]):
        with pytest.raises(HTTPResponseError, match="header field"):
            parse(OK, *lines, b"Content-Length: 0")


def test_a_folded_line() -> None:
    with pytest.raises(HTTPResponseError):
        parse(OK, b"X-A: b", b" c", b"Content-Length: 0")


def test_repeated_fields_are_joined_in_order() -> None:
    lines = [b"X-A: 1", b"x-B: 2", b"X-a:3", b"X-A:", b"x-a: 4, 5"]
    assert fields(*lines) == {"x-a": "1, 3, , 4, 5", "x-b": "2"}
    assert list(fields(*lines)) == ["x-a", "x-b"]


def test_the_limits_of_a_head() -> None:
    rest = b"\r\nContent-Length: 0"
    longest = OK + b"\r\nX-A: " + b"a" * (MAX_HEAD_BYTES - len(OK) - len(rest) - 7) + rest
    assert len(longest) == MAX_HEAD_BYTES
    assert HeadParser().parse(longest).length == 0
    with pytest.raises(HTTPResponseError, match="longer than 65536 bytes"):
        HeadParser().parse(longest.replace(b"aa", b"aaa", 1))

    many = [b"X-%d: 1" % number for number in range(255)]
    assert len(fields(*many)) == 255
    for number in (256, 300, 5000):
        with pytest.raises(HTTPResponseError, match="too many"):
            fields(*[b"X-%d: 1" % each for each in range(number)])
        with pytest.raises(HTTPResponseError, match="too many"):
            fields(*[b"X: 1"] * number)


# Where a body ends


@pytest.mark.parametrize(
    ("value", "length"),
    [(b"0", 0), (b"5", 5), (b"007", 7), (b"5 \t", 5), (b"\t 5", 5), (b"9" * 18, 10**18 - 1), (b"0" * 17 + b"4", 4)],
)
@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
def test_good_lengths(name: bytes, value: bytes, length: int) -> None:
    head = parse(OK, name + b":" + value)
    assert (head.length, head.chunked, head.persistent) == (length, False, True)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"+5",
        b"-5",
        b"-0",
        b"5, 5",
        b"5,5",
        b"5 5",
        b"5;",
        b"5.0",
        b"5e1",
        b"0x5",
        b"1_0",
        b"a",
        b"'5'",
        b"9" * 19,
        b"0" * 19,
        b"18446744073709551621",
        b"1" * 5000,
        "\u0665".encode(),
        "\uff15".encode(),
        b"\xb2",
        b"\xa05",
        b"5\x0c",
    ],
)
def test_bad_lengths(value: bytes) -> None:
    parser = HeadParser()
    for _ in range(2):
        with pytest.raises(HTTPResponseError):
            parser.parse(OK + b"\r\nContent-Length: " + value)


@pytest.mark.parametrize(
    "second", [b"Content-Length: 5", b"content-length: 5", b"CONTENT-LENGTH:5", b"Content-Length: 6"]
)
@pytest.mark.parametrize("between", [(), (b"X-A: 1",)], ids=["next", "apart"])
@pytest.mark.parametrize("status", [b"200", b"304", b"204", b"100"])
def test_two_lengths(second: bytes, between: tuple[bytes, ...], status: bytes) -> None:
    with pytest.raises(HTTPResponseError, match="repeated Content-Length"):
        parse(b"HTTP/1.1 " + status, b"Content-Length: 5", *between, second)


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b" \tchunked", b"chunked  "])
def test_good_codings(value: bytes) -> None:
    head = parse(OK, b"transfer-Encoding:" + value)
    assert (head.length, head.chunked, head.persistent) == (None, True, True)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"identity",
        b"gzip",
        b"gzip, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"chunked,",
        b",chunked",
        b"chunked;q=1",
        b"xchunked",
        b"chunkedx",
        b'"chunked"',
        b"chun ked",
        b"chunked\x0b",
        b"chunked\t",
        # a small k to str.lower()
        "chun\u212aed".encode(),
        "\uff43hunked".encode(),
    ],
)
def test_bad_codings(value: bytes) -> None:
    with pytest.raises(HTTPResponseError):
        parse(OK, b"Transfer-Encoding: " + value)


@pytest.mark.parametrize("second", [b"chunked", b"gzip", b"identity", b""])
def test_two_codings(second: bytes) -> None:
    for lines in ((b"chunked", second), (second, b"chunked")):
        with pytest.raises(HTTPResponseError, match="Transfer-Encoding"):
            parse(OK, *[b"Transfer-Encoding: " + line for line in lines])


@pytest.mark.parametrize("status", [b"200", b"304", b"204", b"103"])
def test_a_coding_beside_a_length(status: bytes) -> None:
    lines = (b"Content-Length: 5", b"Transfer-Encoding: chunked")
    for order in (lines, lines[::-1]):
        with pytest.raises(HTTPResponseError, match="together with"):
            parse(b"HTTP/1.1 " + status, *order)


@pytest.mark.parametrize("more", [(), (b"Connection: keep-alive",)])
def test_a_coding_in_http_1_0(more: tuple[bytes, ...]) -> None:
    with pytest.raises(HTTPResponseError, match=re.escape("HTTP/1.0")):
        parse(b"HTTP/1.0 200 OK", b"Transfer-Encoding: chunked", *more)


@pytest.mark.parametrize("status", [b"100", b"103", b"204", b"304"])
def test_statuses_without_a_body(status: bytes) -> None:
    head = parse(b"HTTP/1.1 " + status + b" x", b"X-A: 1")
    assert (head.length, head.chunked, head.persistent) == (0, False, True)
    head = parse(b"HTTP/1.1 " + status + b" x", b"Content-Length: 0")
    assert (head.length, head.chunked, head.persistent) == (0, False, True)


@pytest.mark.parametrize("status", [b"408", b"421"])
@pytest.mark.parametrize("more", [(), (b"Connection: keep-alive",)])
@pytest.mark.parametrize("length", [b"Content-Length: 0", b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_statuses_for_which_another_connection_is_taken(status: bytes, more: tuple[bytes, ...], length: bytes) -> None:
    assert not parse(b"HTTP/1.1 " + status + b" x", length, *more).persistent
    assert parse(b"HTTP/1.1 409 x", length, *more).persistent


@pytest.mark.parametrize("announcement", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_body_that_must_not_be(announcement: bytes) -> None:
    with pytest.raises(HTTPResponseError, match="1xx response"):
        parse(b"HTTP/1.1 100 Continue", announcement)
    head = parse(b"HTTP/1.1 204 No Content", announcement)
    assert (head.length, head.chunked, head.persistent) == (0, False, False)
    # It announces the length that the body of a 200 would have.
    head = parse(b"HTTP/1.1 304 Not Modified", announcement)
    assert (head.length, head.chunked, head.persistent) == (0, False, True)


@pytest.mark.parametrize("lines", [(b"HTTP/1.0 100 x",), (b"HTTP/1.1 100 x", b"Connection: close")])
def test_an_interim_response_that_closes(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(HTTPResponseError, match="1xx response"):
        parse(*lines)


def test_a_change_of_protocol() -> None:
    with pytest.raises(HTTPResponseError, match="101 Switching Protocols"):
        parse(b"HTTP/1.1 101 Switching Protocols", b"Connection: upgrade", b"Upgrade: h2c")


def test_a_body_until_the_connections_end() -> None:
    for lines in ((OK,), (OK, b"Connection: keep-alive"), (b"HTTP/1.1 205 R",), (b"HTTP/1.0 200", b"X-A: 1")):
        head = parse(*lines)
        assert (head.length, head.chunked, head.persistent) == (None, False, False)


@pytest.mark.parametrize(
    ("version", "value", "persistent"),
    [
        (b"1.1", None, True),
        (b"1.1", b"", True),
        (b"1.1", b"keep-alive", True),
        (b"1.1", b"x", True),
        (b"1.1", b"closed, unclose", True),
        (b"1.1", b"close", False),
        (b"1.1", b"CLOSE", False),
        (b"1.1", b"x ,\t Close\t,y", False),
        (b"1.1", b",close,", False),
        (b"1.1", b"keep-alive, close", False),
        (b"1.1", b"close, keep-alive", False),
        (b"1.0", None, False),
        (b"1.0", b"x", False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"x, KEEP-ALIVE", True),
        (b"1.0", b"keep-alive, close", False),
        (b"1.0", b"keep-alive x", False),
        (b"1.0", "\u212aeep-alive".encode(), False),
    ],
)
def test_persistence(version: bytes, value: bytes | None, persistent: bool) -> None:
    lines = [] if value is None else [b"connection: " + value]
    head = parse(b"HTTP/" + version + b" 200", *lines, b"Content-Length: 1")
    assert head.persistent is persistent
    if value is not None and b"," in value:
        apart = [b"Connection: " + option for option in value.split(b",")]
        assert parse(b"HTTP/" + version + b" 200", *apart, b"Content-Length: 1").persistent is persistent


def test_a_head_keeps_its_fields_to_itself() -> None:
    head = parse(OK, b"X-Amzn-SageMaker-Custom-Attributes: secret", b"Content-Length: 1")
    assert repr(head) == "<ResponseHead status=200 length=1 chunked=False>"
    assert isinstance(head, ResponseHead)


def test_a_parser_keeps_what_it_remembers_to_itself() -> None:
    parser = HeadParser()
    parser.parse(OK + b"\r\nX-Amzn-SageMaker-Custom-Attributes: secret\r\nContent-Length: 1")
    assert list(map(repr, remembered(parser))) == ["<_Lines 2>", "<_Lines 1>"]
    assert "secret" not in repr(parser)


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 s\0ecret", b"secret", b"secret: \0", b"Content-Length: secret"])
def test_refusals_quote_nothing(line: bytes) -> None:
    lines = [line] if line.startswith(b"HTTP") else [OK, line]
    with pytest.raises(HTTPResponseError) as caught:
        parse(*lines)
    assert "secret" not in str(caught.value)


# What is remembered

LINES = st.sampled_from(
    [
        b"X-A: 1",
        b"x-a: 2",
        b"Content-Length: 3",
        b"content-length: 3",
        b"Content-Length: 4",
        b"Content-Length: x",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Connection: close",
        b"Connection: keep-alive",
        b"bad",
        OK,
    ]
) | st.integers(0, 3000).map(lambda number: b"X-Request-Id: %d" % number)
HEADS = st.builds(
    lambda start, lines: b"\r\n".join((start, *lines)),
    st.sampled_from([OK, b"HTTP/1.0 200", b"HTTP/1.1 204 x", b"HTTP/1.1 100", b"HTTP/1.1 101", b"HTTP/3", b"X-A: 1"]),
    st.lists(LINES, max_size=5),
)


def outcome(parser: HeadParser, head: bytes) -> Any:
    try:
        return parser.parse(head)
    except HTTPResponseError as error:
        return str(error)


@given(st.lists(HEADS, max_size=20))
def test_memory_changes_nothing(heads: list[bytes]) -> None:
    warm = HeadParser()
    for head in heads:
        first = outcome(warm, head)
        assert first == outcome(warm, head) == outcome(HeadParser(), head)
        if isinstance(first, ResponseHead):
            first.headers["x-a"] = "the dictionary may be changed by its owner"


def remembered(parser: HeadParser) -> list[dict[bytes, Any]]:
    return [parser._field.__self__, parser._status_line.__self__]  # type: ignore[attr-defined]


def test_memory_is_bounded_in_lines() -> None:
    parser = HeadParser()
    most = 0
    for number in range(3000):
        head = parser.parse(b"HTTP/1.1 200 %d\r\nX-Id: %d\r\nContent-Length: %d" % (number, number, number))
        assert (head.headers["x-id"], head.length) == (str(number), number)
        most = max(most, *map(len, remembered(parser)))
    assert 500 < most <= 1024


def test_memory_is_bounded_in_bytes() -> None:
    parser = HeadParser()
    for number in range(100):
        value = f"{number}" + "a" * 60_000
        head = parser.parse(f"HTTP/1.1 200 {value[:1000]}\r\nX-A: {value}\r\nX-B: b\r\nContent-Length: 0".encode())
        assert head.headers["x-a"] == value
    assert [len(lines) for lines in remembered(parser)] == [2, 0]


def test_refused_lines_are_not_remembered() -> None:
    parser = HeadParser()
    for line in (b"bad", b"Content-Length: x", b"Transfer-Encoding: x", b"X: \0"):
        for _ in range(2):
            with pytest.raises(HTTPResponseError):
                parser.parse(OK + b"\r\n" + line)
    with pytest.raises(HTTPResponseError):
        parser.parse(b"HTTP/9 200")
    assert [len(lines) for lines in remembered(parser)] == [0, 1]


# Heads that have not ended yet


@pytest.mark.parametrize(
    "partial", [b"", b"H", b"HTTP/1.", b"HTTP/1.1 200 OK\r", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: \r\n\r"]
)
def test_partial_heads_that_may_go_on(partial: bytes) -> None:
    for checked in range(len(partial) + 1):
        check_partial_head(bytearray(partial), checked)


@pytest.mark.parametrize(
    ("partial", "reason"),
    [
        (b"X", "not an HTTP/1"),
        (b"HTTP/2", "not an HTTP/1"),
        (b"http", "not an HTTP/1"),
        (b"\r\n", "not an HTTP/1"),
        (b"\x00", "not an HTTP/1"),
        (b"HTTP/1.1 200 OK\nX: 1", "outside CRLF"),
        (b"HTTP/1.1 200 OK\rX: 1", "outside CRLF"),
        (b"HTTP/1.1 200 OK\r\r", "outside CRLF"),
        (b"HTTP/1.1 200 OK\r\n\n", "outside CRLF"),
    ],
)
def test_partial_heads_that_may_not(partial: bytes, reason: str) -> None:
    with pytest.raises(HTTPResponseError, match=reason):
        check_partial_head(partial, 0)
    # In pieces, the last one at the latest makes the fault.
    for checked in range(1, len(partial)):
        with pytest.raises(HTTPResponseError, match=reason):
            check_checked(partial, checked)


def check_checked(partial: bytes, checked: int) -> None:
    """Check a head that came in two pieces."""
    check_partial_head(partial[:checked], 0)
    check_partial_head(partial, checked)


def test_the_limit_of_a_partial_head() -> None:
    longest = OK + b"\r\nX: " + b"a" * MAX_HEAD_BYTES
    longest = longest[:MAX_HEAD_BYTES]
    check_partial_head(longest + b"\r\n\r", 0)
    with pytest.raises(HTTPResponseError, match="longer than 65536 bytes"):
        check_partial_head(longest + b"aaaa", 0)


# Chunks


class Chunks:
    """Feeds a decoder, and checks what it says at each step."""

    def __init__(self) -> None:
        self.decoder = ChunkedBody()
        self.parts: list[bytes] = []
        self.taken = 0

    def feed(self, data: bytes, before: bytes = b"...", after: bytes = b"") -> bool:
        """Whether the body has ended; ``taken`` is its end."""
        # The buffer is larger than what was received, and full of line ends and digits of earlier reads.
        received = bytearray(before + data + after + b"\r\n0\r\n\r\n")
        parts: list[memoryview] = []
        begin, limit = len(before), len(before) + len(data)
        end = self.decoder.feed(received, memoryview(received), begin, limit, parts)
        assert begin <= end <= limit
        assert end == limit or self.decoder.complete
        assert all(parts)
        self.parts += map(bytes, parts)
        self.taken += end - begin
        return self.decoder.complete

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


def unchunk(stream: bytes, cuts: Sequence[int] = ()) -> tuple[bytes, int] | None:
    """The body and where it ends; None while it has not."""
    chunks = Chunks()
    for start, end in pairwise((0, *cuts, len(stream))):
        if chunks.feed(stream[start:end]):
            return chunks.body, chunks.taken
    assert chunks.taken == len(stream)
    return None


GOOD_CHUNKS = {
    b"0\r\n\r\n": b"",
    b"000000000000000\r\n\r\n": b"",
    b"1\r\na\r\n0\r\n\r\n": b"a",
    b"00A\r\n0123456789\r\n0\r\n\r\n": b"0123456789",
    b"a\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n": b"0123456789\n",
    b"4\r\n\r\n\r\n\r\n0\r\n\r\n": b"\r\n\r\n",
    b'1;a\r\nx\r\n1;a=b;c\r\ny\r\n1;a="b;\\"\t c";d="";e="\\\\"\r\nz\r\n0;f=g\r\n\r\n': b"xyz",
    b"1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n": b"\r\n",
    b"2\r\nab\r\n0\r\nX-T: 1\r\nx-u:\r\nX-V: \xff\t\r\n\r\n": b"ab",
}


@pytest.mark.parametrize("stream", GOOD_CHUNKS)
@pytest.mark.parametrize("more", [b"", b"\r\n", b"HTTP/1.1 200", b"0\r\n\r\n"])
def test_good_chunks_in_every_two_or_three_pieces(stream: bytes, more: bytes) -> None:
    expected = GOOD_CHUNKS[stream], len(stream)
    sent = stream + more
    assert unchunk(sent) == expected
    assert unchunk(sent, range(1, len(sent))) == expected
    for count in (1, 2):
        for cuts in combinations(range(len(sent) + 1), count):
            assert unchunk(sent, cuts) == expected, cuts


@pytest.mark.parametrize("stream", GOOD_CHUNKS)
def test_chunks_that_break_off(stream: bytes) -> None:
    for end in range(len(stream)):
        assert unchunk(stream[:end]) is None
        assert unchunk(stream[:end], range(1, end)) is None


BAD_CHUNKS = [
    b"\r\n",
    b"\r\n0\r\n\r\n",
    b" \r\n",
    b"+1\r\na\r\n",
    b"-1\r\na\r\n",
    b"-0\r\n\r\n",
    b"0x1\r\na\r\n",
    b"1_0\r\n0123456789abcdef\r\n",
    b"_1\r\na\r\n",
    b" 1\r\na\r\n",
    b"\t1\r\na\r\n",
    b"1 \r\na\r\n",
    b"1\t\r\na\r\n",
    b"g\r\n",
    b"1g\r\na\r\n",
    b"1.0\r\na\r\n",
    b"\xb2\r\nab\r\n",
    "\u0661\r\na\r\n".encode(),
    b"0000000000000001\r\na\r\n",
    b"00000000000000001\r\na\r\n",
    b"1000000000000000\r\na\r\n",
    b"10000000000000001\r\na\r\n",
    b"ffffffffffffffff\r\na\r\n",
    b"fffffffffffffffff\r\na\r\n",
    b"1;\r\na\r\n",
    b"1;;a\r\na\r\n",
    b"1 ;a\r\na\r\n",
    b"1; a\r\na\r\n",
    b"1;a \r\na\r\n",
    b"1;a b\r\na\r\n",
    b"1;=b\r\na\r\n",
    b"1;a=\r\na\r\n",
    b"1;a==b\r\na\r\n",
    b"1;a=b=c\r\na\r\n",
    b'1;a="b\r\na\r\n',
    b'1;a=b"\r\na\r\n',
    b'1;a="b"c\r\na\r\n',
    b'1;a="\\"\r\na\r\n',
    b'1;a="\x00"\r\na\r\n',
    b'1;a="\\\x00"\r\na\r\n',
    b"1;\x00\r\na\r\n",
    b"1;a=\xe9\r\na\r\n",
    b"1;a\n\r\na\r\n",
    b"1;a\r\r\na\r\n",
    b"1\n\r\na\r\n",
    b"1\ra\r\n",
    b"1\na\r\n",
    b"1\r\r\na\r\n",
    b"1\r\nab\r\n",
    b"1\r\na\r\r\n",
    b"1\r\na\n\r\n",
    b"1\r\na\n0\r\n\r\n",
    b"1\r\na\r0\r\n\r\n",
    b"1\r\na0\r\n\r\n",
    b"1\r\na \r\n0\r\n\r\n",
    b"3\r\na\r\n\r\r\n",
    b"0\r\n\n\r\n",
    b"0\r\n\r\r\n",
    b"0\r\n \r\n",
    b"0\r\nX\r\n\r\n",
    b"0\r\n: 1\r\n\r\n",
    b"0\r\nX : 1\r\n\r\n",
    b"0\r\n X: 1\r\n\r\n",
    b"0\r\nX: 1\r\n folded\r\n\r\n",
    b"0\r\nX: \x00\r\n\r\n",
    b"0\r\nX: 1\n\r\n\r\n",
    b"0\r\nX: 1\r2\r\n\r\n",
    b"0\r\nX: 1\nY: 2\r\n\r\n",
    b"0\r\nContent-Length: 0\r\n\r\n",
    b"0\r\ncontent-LENGTH: 0\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"0\r\nConnection: close\r\n\r\n",
]


@pytest.mark.parametrize("stream", BAD_CHUNKS)
def test_bad_chunks_in_every_two_pieces(stream: bytes) -> None:
    for cuts in ((), range(1, len(stream)), *((cut,) for cut in range(len(stream) + 1))):
        with pytest.raises(HTTPResponseError):
            unchunk(b"1\r\n.\r\n" + stream, [6 + cut for cut in cuts])


@pytest.mark.parametrize(
    "stream", [b"g", b" ", b"\r", b"1\r\r", b"1\r\nax", b"1\r\na\rx", b"1\r\na\n", b"1;a\n", b"0\r\nX\n", b"0\r\nX\ra"]
)
def test_what_cannot_become_a_chunk_is_refused_before_its_line_ends(stream: bytes) -> None:
    for cuts in ((), range(1, len(stream))):
        with pytest.raises(HTTPResponseError):
            unchunk(stream, cuts)
        assert unchunk(stream[:-1], cuts[:-1]) is None


@pytest.mark.parametrize(
    ("line", "limit"),
    [(b"1;a=", 1024), (b"0\r\nX: ", 16_384 + 3), (b"0\r\nX: 1\r\nY: ", 16_384 + 3 + 2)],
    ids=["chunk line", "trailer", "trailers"],
)
def test_limits_of_lines(line: bytes, limit: int) -> None:
    rest = b"\r\na\r\n0\r\n\r\n" if line.startswith(b"1") else b"\r\n\r\n"
    longest = line.ljust(limit, b"a")
    tails = [(), (limit,), (limit + 1,), (limit + 2,), range(len(line), limit + len(rest))]
    for cuts in tails:
        assert unchunk(longest + rest, cuts) is not None
        with pytest.raises(HTTPResponseError):
            unchunk(longest + b"a" + rest, cuts)
    # without an end, too
    with pytest.raises(HTTPResponseError):
        unchunk(longest + b"aa")
    with pytest.raises(HTTPResponseError):
        unchunk(longest + b"aa", range(1, limit))


def test_trailer_fields_count_together() -> None:
    line = b"X: 1\r\n"
    assert unchunk(b"0\r\n" + line * (16_384 // 4) + b"\r\n") is not None
    with pytest.raises(HTTPResponseError):
        unchunk(b"0\r\n" + line * (16_384 // 4 + 1) + b"\r\n")


TOKENS = st.text("abAB01!#$%&'*+-.^_`|~", min_size=1, max_size=5).map(str.encode)
QUOTED = st.text("\t !#[]~a0;=,:", max_size=5).map(lambda text: b'"' + text.encode() + b'\\"\\\\"')
EXTENSIONS = st.lists(
    st.builds(
        lambda name, value: b";" + name + value, TOKENS, st.just(b"") | (TOKENS | QUOTED).map(lambda v: b"=" + v)
    ),
    max_size=2,
).map(b"".join)
TRAILERS = st.lists(st.builds(lambda name, value: b"x" + name + b":" + value + b"\r\n", TOKENS, TOKENS), max_size=2)
DATA = st.binary(min_size=1, max_size=30) | st.sampled_from([b"\r\n", b"\r", b"\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n"])


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A chunked body and its chunks."""
    data = draw(st.lists(DATA, max_size=5))
    encoded = b""
    for chunk in (*data, b""):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"%015x"])) % len(chunk)
        encoded += size + draw(EXTENSIONS) + b"\r\n" + (chunk + b"\r\n" if chunk else b"")
    return encoded + b"".join(draw(TRAILERS)) + b"\r\n", data


@given(chunked(), st.binary(max_size=5), st.randoms(use_true_random=False))
def test_chunks_wherever_they_are_cut(body: tuple[bytes, list[bytes]], more: bytes, rng: random.Random) -> None:
    encoded, data = body
    stream = encoded + more
    expected = b"".join(data), len(encoded)
    assert unchunk(stream) == expected
    assert unchunk(stream, range(1, len(stream))) == expected
    for _ in range(3):
        cuts = sorted(rng.choices(range(len(stream) + 1), k=rng.randrange(1, 8)))
        assert unchunk(stream, cuts) == expected
    whole = Chunks()
    whole.feed(stream)
    assert whole.parts == data


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"0", b"1", b"a", b";", b"=", b'"', b":", b" "]), max_size=14))
def test_chunks_of_anything(pieces: list[bytes]) -> None:
    """Whatever it is, cuts change nothing but the moment of a refusal."""
    stream = b"".join(pieces)

    def read(cuts: Sequence[int]) -> Any:
        try:
            return unchunk(stream, cuts)
        except HTTPResponseError:
            return "refused"

    whole = read(())
    for cut in range(len(stream) + 1):
        assert read((cut,)) == whole
    assert read(range(1, len(stream))) == whole


# Work


class Counted:
    """Stands for a pattern of the module and counts the bytes that it is given."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self.nbytes = 0

    def fullmatch(self, data: bytes | bytearray, start: int = 0, end: int | None = None) -> re.Match[bytes] | None:
        end = len(data) if end is None else end
        self.nbytes += end - start
        return self._pattern.fullmatch(data, start, end)

    def search(self, data: bytes | bytearray, start: int = 0) -> re.Match[bytes] | None:
        self.nbytes += len(data) - start
        return self._pattern.search(data, start)


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many bytes went through regular expressions."""
    counted = []
    for name in ("_FIELD", "_CHUNK_LINE", "_BARE", "_STATUS_LINE"):
        counted.append(Counted(getattr(http1, name)))
        monkeypatch.setattr(http1, name, counted[-1])
    return lambda: sum(pattern.nbytes for pattern in counted)


@pytest.mark.parametrize(
    "stream",
    [
        b"0\r\nX: " + b"a" * 16_000 + b"\r\n\r\n",
        b"0\r\n" + b"X: 1\r\n" * 4000 + b"\r\n",
        b"1;a=" + b"a" * 1000 + b"\r\n",
        b"1\r\na\r\n" * 3000,
    ],
    ids=["trailer", "trailers", "chunk line", "chunks"],
)
def test_a_drip_is_looked_at_once(stream: bytes, matched: Callable[[], int]) -> None:
    """Byte by byte, each is matched as part of what is new, of the pair that it may be half of, and of its line."""
    unchunk(stream, range(1, len(stream)))
    assert matched() <= 4 * len(stream)


def test_a_dripping_head_is_looked_at_once(matched: Callable[[], int]) -> None:
    partial = bytearray(OK)
    for _ in range(20_000):
        had = len(partial)
        partial += b"a"
        check_partial_head(partial, had)
    assert matched() <= 3 * len(partial)


# Each grew with the square of its length or worse, or would if a quantifier gave back what it took.
HOSTILE: dict[str, Callable[[int], tuple[re.Pattern[bytes], bytes]]] = {
    "spaces": lambda size: (http1._FIELD, b"a:" + b" " * size + b"\x00"),
    "tabs": lambda size: (http1._FIELD, b"a:" + b"\t " * (size // 2) + b"\x00"),
    "name": lambda size: (http1._FIELD, b"a" * size),
    "value": lambda size: (http1._FIELD, b"a: " + b"b " * (size // 2) + b"\r"),
    "reason": lambda size: (http1._STATUS_LINE, OK + b" " * size + b"\x00"),
    "length": lambda size: (http1._LENGTH, b"1" + b" " * size + b"x"),
    "coding": lambda size: (http1._CHUNKED, b"chunked" + b" " * size + b"x"),
    "extensions": lambda size: (http1._CHUNK_LINE, b"1" + b";a" * (size // 2) + b" "),
    "extension": lambda size: (http1._CHUNK_LINE, b"1;" + b"a" * size + b" "),
    "extension-value": lambda size: (http1._CHUNK_LINE, b"1;a=" + b"a" * size + b" "),
    "extension-values": lambda size: (http1._CHUNK_LINE, b"1" + b';a="b"' * (size // 6) + b'"'),
    "quoted": lambda size: (http1._CHUNK_LINE, b'1;a="' + b"\\a" * (size // 2)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_pattern_goes_back_and_forth(kind: str) -> None:
    """A regular expression's steps cannot be counted: here linear is below a millisecond, a square ten seconds."""
    pattern, line = HOSTILE[kind](60_000)
    began = time.thread_time()
    assert pattern.fullmatch(line) is None
    assert time.thread_time() - began < 1.0
