"""Differential fuzzing of the HTTP/1.1 response parser and of the connection that uses it, against llhttp.

    python tests/fuzz/http1.py --seconds 60 --seed 1

Responses are written from a grammar, most of them damaged, and cut into segments anywhere. Each is read by
`aiosmrt._wire.http1`, in segments and in one piece, by llhttp in its strict mode (through httptools), and by
`aiosmrt._transport.connection` over a transport that is played. What has to hold:

- however a response is cut, it is read alike;
- what ours accepts, llhttp accepts, with the same status, fields, body and end, and ours keeps the connection only if
  llhttp would;
- a response that was not damaged is accepted;
- the connection answers what the parser accepts, as a reply and as a stream, and fails otherwise, and if something
  follows that does not begin another response; it is never released while more bytes are there, and a complete response
  never leaves its caller waiting.

The first disagreement is printed with the bytes that show it, made as short as it gets, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httptools

from aiosmrt._transport.base import Reply
from aiosmrt._transport.connection import Connection, Receiver
from aiosmrt._wire.http1 import ChunkedBody, HeadParser, HTTPResponseError, check_partial_head
from aiosmrt.errors import TransportError


@dataclass(frozen=True)
class Message:
    """A response as a reader understood it.

    Args:
        end: where in the stream it ends.
        until_close: whether its end is the connection's.
        persistent: whether the connection can be used again.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    end: int
    until_close: bool
    persistent: bool


@dataclass(frozen=True)
class Outcome:
    """What a reader made of a stream: a response, a refusal, or neither because it is not complete."""

    message: Message | None = None
    refusal: str | None = None

    def __repr__(self) -> str:
        if self.message is not None:
            return repr(self.message)
        return "incomplete" if self.refusal is None else f"refused: {self.refusal}"


@dataclass(frozen=True)
class Case:
    """A stream, where it is cut, and the body that has to come out of it; None if it was damaged."""

    stream: bytes
    cuts: tuple[int, ...]
    body: bytes | None


class Disagreement(AssertionError):
    """Two readers read the same bytes differently."""


# -- writing responses -----------------------------------------------------------------------------------------------

_STATUSES = (b"200 OK", b"200", b"200 ", b"424 Model Error", b"500 \xe9 \t", b"204 No", b"304 Not", b"205 R", b"999 x")
_PLAIN_FIELDS = (
    b"Content-Type: text/csv",
    b"x-amzn-RequestId: 0f0f",
    b"X-A:1",
    b"X-A: 2, 3",
    b"x-a:",
    b"X-B: \t b \xc3\xa9 \xff \t",
    b'X-C: a:b;c="d"',
    b"!#$%&'*+-.^_`|~: t",
)
_CONNECTIONS = (
    b"Connection: keep-alive",
    b"Connection: Keep-Alive",
    b"Connection: close",
    b"connection: x, CLOSE",
    b"Connection:\tx ,\t close\t, y",
    b"Connection: x",
    b"Connection: keep-alive, close",
    b"Connection:",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Connection: closed",
    b"Connection: ,close",
)
_HOSTILE_LINES = (
    b"Content-Length: 3",
    b"content-length: 3",
    b"CONTENT-LENGTH:0",
    b"Content-Length: +3",
    b"Content-Length: -3",
    b"Content-Length: 3, 3",
    b"Content-Length: 0x3",
    b"Content-Length: 3_0",
    b"Content-Length: \xd9\xa3",
    b"Content-Length: 3 3",
    b"Content-Length:",
    b"Content-Length: 03",
    b"Content-Length: 18446744073709551619",
    b"Content-Length : 3",
    b"Content-Length\t: 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked ",
    b"Transfer-Encoding: chunked\t",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: chun\xe2\x84\xaaed",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: chunked;q=1",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:",
    b"Connection: \xe2\x84\xaaeep-alive",
    b"Connection: keep-alive foo",
    b"Connection: close foo",
    b"Connection: close;x",
    b'Connection: "close"',
    b" folded",
    b"\tfolded: 1",
    b"X: 1\r\n 2",
    b": no name",
    b"no colon",
    b"a b: 1",
    b"a: \x00",
    b"a: b\rc",
    b"a: b\nc: d",
    b"a: \x7f",
    b"HTTP/1.1 200 OK",
    b"",
)
_HOSTILE_STARTS = (
    b"HTTP/1.1 200 OK\r",
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 020 OK",
    b"HTTP/1.1 200OK",
    b"HTTP/1.1\t200 OK",
    b"HTTP/1.2 200 OK",
    b"HTTP/2 200",
    b"HTTP/2.0 200 OK",
    b"HTTP/0.9 200 OK",
    b"http/1.1 200 OK",
    b"HTTP/1.1 +20 OK",
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.0 100 Continue",
    b"ICY 200 OK",
    b"RTSP/1.0 200 OK",
    b"\r\nHTTP/1.1 200 OK",
    b" HTTP/1.1 200 OK",
    b"HTTP/1.1 200 O\x00K",
)
_SIZE_LINES = (
    b"%x",
    b"%x",
    b"%x",
    b"%X",
    b"00%x",
    b"%x;a",
    b"%x;a=b",
    b'%x;a="b;\\"c";d',
    b"%x;a=",
)
_HOSTILE_SIZE_LINES = (
    b"",
    b"+%x",
    b"-%x",
    b"0x%x",
    b"%x ",
    b" %x",
    b"\t%x",
    b"%x_0",
    b"%x\r",
    b"%x\n",
    b"%x;",
    b"%x;;a",
    b"%x ;a",
    b"%x; a",
    b"%x;a b",
    b'%x;a="b',
    b'%x;a="b\n"',
    b'%x;a="b"c',
    b"%x;a=\xe9",
    b"%x;a\x00",
    b"ffffffffffffffff%x",
    b"1000000000000000%x",
    b"0000000000000000%x",
    b"g%x",
    b"%xg",
)

# A receive buffer that takes any of these streams at once.
_ROOMY_BYTES = 2**12

_SPECIAL = (b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"\x7f", b"\x80", b"\xe2\x84\xaa")


def random_head(rng: random.Random, start: bytes, framing: Sequence[bytes]) -> list[bytes]:
    """A head's lines."""
    fields = [*rng.choices(_PLAIN_FIELDS, k=rng.choice((0, 1, 2, 5))), *framing]
    if rng.randrange(3) == 0:
        fields.append(rng.choice(_CONNECTIONS))
    rng.shuffle(fields)
    return [start, *fields]


def random_chunks(rng: random.Random, body: bytes, size_lines: Sequence[bytes]) -> list[bytes]:
    """A body in chunks, as lines."""
    lines = []
    while body:
        size = rng.randrange(1, len(body) + 1)
        lines += [_sized(rng.choice(size_lines), size), body[:size]]
        body = body[size:]
    lines.append(_sized(rng.choice(size_lines), 0))
    if rng.randrange(4) == 0:
        lines += rng.choices(_PLAIN_FIELDS, k=rng.choice((1, 2)))
    return [*lines, b"", b""]


def _sized(line: bytes, size: int) -> bytes:
    return line.replace(b"%x", b"%x" % size).replace(b"%X", b"%X" % size)


def random_case(rng: random.Random) -> Case:
    """A stream of one response, as a rule damaged."""
    damage = rng.choice((None, None, "head", "head", "chunks", "bytes", "bytes", "more"))
    version = rng.choice((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"))
    start = version + b" " + rng.choice((*_STATUSES, *[b"200 OK"] * 9))
    bodiless = start[9:12] in (b"204", b"304")
    body = b"" if bodiless else rng.choice((b"", b"a", b"hello", b"\r\n\r\n", b"0\r\n\r\n", rng.randbytes(40)))
    framings = ["length", "close"] if version == b"HTTP/1.0" else ["length", "length", "chunks", "chunks", "close"]
    framing = "chunks" if damage == "chunks" and version == b"HTTP/1.1" else rng.choice(framings)
    if framing == "length":
        head = random_head(rng, start, [b"Content-Length: %d" % len(body)])
        rest = [body]
    elif framing == "chunks":
        head = random_head(rng, start, [rng.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED"))])
        lines = [*_SIZE_LINES, *_HOSTILE_SIZE_LINES] if damage == "chunks" else _SIZE_LINES[:-1]
        rest = random_chunks(rng, body, lines)
        if bodiless:
            rest = [b""]
    else:
        head = random_head(rng, start, [])
        rest = [body]
    if damage == "head":
        _damage_head(rng, head)
    elif damage == "chunks" and framing == "chunks" and rng.randrange(2):
        rest.insert(rng.randrange(len(rest)), rng.choice((*_HOSTILE_LINES, *_PLAIN_FIELDS)))
    interim = [
        b"\r\n".join((b"HTTP/1.1 10%d x" % digit, *rng.choices(_PLAIN_FIELDS, k=rng.randrange(2)), b"", b""))
        for digit in rng.choices((0, 2, 3), k=rng.choice((0, 0, 0, 0, 1, 2)))
    ]
    if damage == "head" and interim and rng.randrange(2):
        lines = interim[0].split(b"\r\n")
        lines.insert(1, rng.choice((*_HOSTILE_LINES, *_CONNECTIONS)))
        interim[0] = b"\r\n".join(lines)
    stream = b"".join((*interim, b"\r\n".join((*head, b"", b"")), b"\r\n".join(rest)))
    if damage == "bytes":
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            stream = _scrambled(rng, stream)
    elif damage == "more":
        stream += rng.choice((b"x", b"\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", stream))
    return Case(stream, random_cuts(rng, stream), body if damage is None else None)


def random_cuts(rng: random.Random, stream: bytes) -> tuple[int, ...]:
    """Where a stream is cut: most often at a few places, near a line's end or anywhere; at times at each byte."""
    if rng.randrange(12) == 0:
        return tuple(range(1, len(stream)))
    cuts = {rng.randrange(len(stream) + 1) for _ in range(rng.choice((0, 1, 2, 6)))}
    ends = [at for at in range(len(stream)) if stream[at] in b"\r\n"]
    if ends:
        cuts |= {rng.choice(ends) + rng.randrange(2) for _ in range(rng.choice((0, 1, 3)))}
    return tuple(sorted(cuts - {0, len(stream)}))


def _damage_head(rng: random.Random, head: list[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 2))):
        where = rng.randrange(len(head))
        match rng.randrange(5):
            case 0:
                head[0] = rng.choice(_HOSTILE_STARTS)
            case 1:
                head.insert(where, rng.choice(head))
            case 2:
                head[where] = rng.choice(_HOSTILE_LINES)
            case _:
                head.insert(where + 1, rng.choice(_HOSTILE_LINES))


def _scrambled(rng: random.Random, octets: bytes) -> bytes:
    data = bytearray(octets)
    where = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0 if where < len(data):
            data[where] ^= 1 << rng.randrange(8)
        case 1 if where < len(data):
            data[where : where + 1] = rng.choice(_SPECIAL)
        case 2:
            del data[where : where + rng.choice((1, 1, 2, 8))]
        case 3:
            data[where:where] = data[where : where + rng.choice((1, 2, 10))]
        case 4:
            # the same at a line's end, where it hurts
            ends = [at for at in range(len(data)) if data[at] in b"\r\n:"]
            at = rng.choice(ends) if ends else 0
            data[at : at + rng.randrange(2)] = rng.choice(_SPECIAL)
        case _:
            data[where:where] = rng.choice(_SPECIAL)
    return bytes(data)


# -- reading them ----------------------------------------------------------------------------------------------------


def segments(stream: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    return (stream[start:end] for start, end in pairwise((0, *cuts, len(stream))))


def read_with_ours(stream: bytes, cuts: Sequence[int], parser: HeadParser) -> Outcome:
    """The parser without a connection around it."""
    try:
        return _read_with_ours(stream, cuts, parser)
    except HTTPResponseError as error:
        return Outcome(refusal=str(error))


def _read_with_ours(stream: bytes, cuts: Sequence[int], parser: HeadParser) -> Outcome:
    received = bytearray()
    begin = 0
    head = chunks = None
    parts: list[memoryview] = []
    for segment in segments(stream, cuts):
        before = len(received)
        received = received + segment
        while head is None:
            end = received.find(b"\r\n\r\n", begin)
            if end < 0:
                check_partial_head(received[begin:], max(0, before - begin))
                break
            head = parser.parse(bytes(received[begin:end]))
            begin = end + 4
            if head.status < 200:
                head = None
            elif head.chunked:
                before, chunks = begin, ChunkedBody()
        if chunks is not None:
            end = chunks.feed(received, memoryview(received), before, len(received), parts)
            if chunks.complete:
                assert head is not None
                body = b"".join(parts)
                return Outcome(Message(head.status, head.headers, body, end, False, head.persistent))
            if end != len(received):
                raise Disagreement("a chunked body that is not complete left bytes behind")
    if head is None or chunks is not None:
        return Outcome()
    end = len(received) if head.length is None else begin + head.length
    if end > len(received):
        return Outcome()
    body = bytes(received[begin:end])
    return Outcome(Message(head.status, head.headers, body, end, head.length is None, head.persistent))


class _Events:
    """llhttp's callbacks."""

    def __init__(self) -> None:
        self.parser: Any = httptools.HttpResponseParser(self)
        self.statuses: list[int] = []
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.in_head = False
        self.complete = False
        self.keeps_alive = False

    def on_message_begin(self) -> None:
        self.fields = []
        self.in_head = True
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        self.statuses.append(self.parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True
        self.keeps_alive = self.parser.should_keep_alive()

    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for raw_name, raw_value in self.fields:
            name, value = raw_name.decode().lower(), raw_value.strip(b" \t").decode("utf-8", "surrogateescape")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers


def read_with_llhttp(stream: bytes) -> Outcome:
    """A stream that ends where its response does: its last byte completes it, or the connection's end."""
    events = _Events()
    final = False
    try:
        for segment in (stream[:-1], stream[-1:]):
            final = events.complete and events.statuses[-1] >= 200
            if final and segment:
                break
            events.parser.feed_data(segment)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        return Outcome(refusal=str(error))
    if final or not events.statuses or events.statuses[-1] < 200:
        return Outcome()
    complete = events.complete
    return Outcome(
        Message(
            events.statuses[-1],
            events.headers(),
            events.body,
            len(stream),
            not complete,
            complete and events.keeps_alive,
        )
    )


def _refused_by_llhttp(stream: bytes) -> bool:
    try:
        _Events().parser.feed_data(stream)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return True
    return False


# -- the connection --------------------------------------------------------------------------------------------------


class _Played:
    """A transport, aiohttp's hold on it and the connections' owner in one; records how the connection ends."""

    def __init__(self) -> None:
        self.released_times = 0
        self.aborted = False
        self.closed = False
        self.forgotten = False

    # asyncio.Transport
    def get_protocol(self) -> asyncio.BaseProtocol:
        return asyncio.Protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    # aiohttp.connector.Connection
    def close(self) -> None:
        self.closed = True

    # Owner
    def released(self, connection: Connection) -> None:
        self.released_times += 1

    def watch(self, connection: Connection) -> None:
        pass

    def lost(self, connection: Connection) -> None:
        self.forgotten = True


def read_with_connection(stream: bytes, cuts: Sequence[int], receiver: Receiver, streams: bool) -> tuple[Outcome, int]:
    """A response by way of a connection, as far as it goes until the connection is released or gone.

    Returns:
        What the caller got, and how many bytes were received.
    """
    played: Any = _Played()
    connection = Connection(played, receiver, played, played, "http://origin")
    arguments: dict[str, Any] = {"streams": streams, "resend": False, "read_timeout": math.inf, "now": 0.0}
    waiter = connection.send(b"", b"", **arguments)
    fed = 0
    for segment in segments(stream, cuts):
        while segment and not played.aborted:
            if played.released_times:
                raise Disagreement(f"released while {len(segment)} bytes more were there")
            buffer = connection.get_buffer(-1)
            count = min(len(buffer), len(segment))
            buffer[:count] = segment[:count]
            connection.buffer_updated(count)
            fed += count
            segment = segment[count:]
        if played.released_times or played.aborted:
            break
    until_close = not played.released_times and not played.aborted
    if until_close:
        connection.eof_received()
        if not played.aborted:
            raise Disagreement("open after the service's end")
    if not waiter.done():
        raise Disagreement("the caller is left waiting")
    if played.aborted != played.closed or played.aborted != played.forgotten:
        raise Disagreement("gone, but not everybody was told")
    if played.released_times + played.aborted != 1:
        raise Disagreement("released and gone")
    try:
        answer = waiter.result()
        if not isinstance(answer, Reply):
            answer = Reply(answer.status, answer.headers, _read_now(answer))
    except TransportError as error:
        return Outcome(refusal=str(error)), fed
    message = Message(
        answer.status, answer.headers, answer.body, end=fed, until_close=until_close, persistent=not played.aborted
    )
    return Outcome(message), fed


def _read_now(stream: Any) -> bytes:
    """Everything that a stream whose connection is released or gone still has."""
    pieces = []
    while True:
        try:
            stream.read().send(None)
        except StopIteration as end:
            if not end.value:
                return b"".join(pieces)
            pieces.append(end.value)
        else:
            raise Disagreement("a stream is left waiting")


# -- comparing -------------------------------------------------------------------------------------------------------


class Checker:
    """Compares readers; the parser's memory goes from case to case, as in a client.

    Args:
        parser_type: the parser under test.
        connections: whether the connection is tested as well; needs a running event loop.
    """

    def __init__(self, parser_type: type[HeadParser] = HeadParser, connections: bool = True) -> None:
        self._parser_type = parser_type
        self._warm = parser_type()
        self._connections = connections

    def check(self, stream: bytes, cuts: Sequence[int]) -> Outcome:
        """Compare the readers on one stream.

        Raises:
            Disagreement: they differ in a way that they must not.
        """
        ours = read_with_ours(stream, cuts, self._warm)
        whole = read_with_ours(stream, (), self._parser_type())
        if (ours.message, ours.refusal is None) != (whole.message, whole.refusal is None):
            raise Disagreement(f"cut: {ours}; whole: {whole}")
        if ours.message is not None:
            _compare_with_llhttp(ours.message, stream)
        if self._connections:
            for streams in (False, True):
                for buffer_bytes in (_ROOMY_BYTES, 2 ** (len(stream) % 4 + 3)):
                    self._check_connection(stream, cuts, ours, streams, buffer_bytes)
        return ours

    def _check_connection(
        self, stream: bytes, cuts: Sequence[int], ours: Outcome, streams: bool, buffer_bytes: int
    ) -> None:
        receiver = Receiver()
        receiver.parser = self._warm
        receiver.buffer = bytearray(buffer_bytes)
        receiver.view = memoryview(receiver.buffer)
        theirs, fed = read_with_connection(stream, cuts, receiver, streams)
        which = f"as a {'stream' if streams else 'reply'}: {theirs}; the parser: {ours}"
        message, reply = ours.message, theirs.message
        if message is None:
            if reply is not None:
                raise Disagreement(f"answered {which}")
            return
        beyond = stream[message.end : fed]
        is_whole = not beyond or _begins_response(beyond)
        if reply is None:
            if is_whole:
                raise Disagreement(f"not answered {which}")
            return  # more came with its end
        if not is_whole:
            raise Disagreement(f"answered though it does not end there {which}")
        if (reply.status, reply.headers, reply.body) != (message.status, message.headers, message.body):
            raise Disagreement(f"answered otherwise {which}")
        if beyond:
            if reply.persistent:
                raise Disagreement(f"kept with another response {which}")
            return
        # A read that fills the buffer leaves open whether more is there.
        if reply.persistent > message.persistent or (
            reply.persistent < message.persistent and len(stream) < buffer_bytes
        ):
            raise Disagreement(f"kept or not {which}")


def _begins_response(beyond: bytes) -> bool:
    """Tell whether what follows a body may be another response; the connection looks at a few bytes."""
    begin = beyond[:16].lstrip(b"\r\n")[:7]
    return b"HTTP/1.".startswith(begin)


def _compare_with_llhttp(ours: Message, stream: bytes) -> None:
    theirs = read_with_llhttp(stream[: ours.end])
    message = theirs.message
    if message is None:
        raise Disagreement(f"ours: {ours}; llhttp: {theirs}")
    for what in ("status", "headers", "body", "until_close"):
        if getattr(ours, what) != getattr(message, what):
            raise Disagreement(f"{what}, ours: {ours}; llhttp: {message}")
    if ours.persistent and not message.persistent:
        raise Disagreement(f"llhttp would not use the connection again: {ours}")


def minimised(
    stream: bytes, cuts: Sequence[int], fails: Callable[[bytes, Sequence[int]], bool]
) -> tuple[bytes, Sequence[int]]:
    """A finding without the bytes and cuts that it does not need."""
    if fails(stream, ()):
        cuts = ()
    for cut in list(cuts):
        fewer = [other for other in cuts if other != cut]
        if fails(stream, fewer):
            cuts = fewer
    size = max(1, len(stream) // 2)
    while True:
        shorter = False
        start = 0
        while start < len(stream):
            candidate = stream[:start] + stream[start + size :]
            moved = sorted({cut if cut <= start else max(start, cut - size) for cut in cuts} - {0, len(candidate)})
            moved = [cut for cut in moved if cut < len(candidate)]
            if fails(candidate, moved):
                stream, cuts, shorter = candidate, moved, True
            else:
                start += size
        if not shorter:
            if size == 1:
                return stream, cuts
            size //= 2


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run saw.

    Args:
        stricter: of what ours refused, how much llhttp did not, by our reason.
    """

    cases: int = 0
    accepted: int = 0
    incomplete: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    stricter: Counter[str] = field(default_factory=Counter)
    finding: str | None = None
    stream: bytes = b""
    cuts: Sequence[int] = ()


def run(
    seed: int,
    *,
    cases: int | None = None,
    seconds: float | None = None,
    parser_type: type[HeadParser] = HeadParser,
    connections: bool = True,
) -> Report:
    """Fuzz until the first finding, or until so many cases or seconds have passed."""

    async def fuzz() -> Report:
        # The connections want a loop, and nothing of it but that it is running.
        return _run(seed, cases, seconds, Checker(parser_type, connections))

    return asyncio.run(fuzz())


def _run(seed: int, cases: int | None, seconds: float | None, checker: Checker) -> Report:
    rng = random.Random(seed)
    report = Report()
    end = None if seconds is None else time.monotonic() + seconds
    while (cases is None or report.cases < cases) and (end is None or time.monotonic() < end):
        case = random_case(rng)
        report.cases += 1
        try:
            outcome = checker.check(case.stream, case.cuts)
        except Exception as error:  # whatever escapes the parser is a finding as well
            report.finding = f"{type(error).__name__}: {error}"
            report.stream, report.cuts = minimised(case.stream, case.cuts, _fails_as(checker, error))
            return report
        if case.body is not None and (outcome.message is None or outcome.message.body != case.body):
            report.finding = f"not damaged, but {outcome}"
            report.stream, report.cuts = case.stream, case.cuts
            return report
        if outcome.message is not None:
            report.accepted += 1
        elif outcome.refusal is None:
            report.incomplete += 1
        else:
            report.refusals[outcome.refusal] += 1
            if not _refused_by_llhttp(case.stream):
                report.stricter[outcome.refusal] += 1
    return report


def _fails_as(checker: Checker, error: Exception) -> Callable[[bytes, Sequence[int]], bool]:
    # the first words tell the kinds apart
    kind = type(error), str(error).split(",")[0].split(":")[0]

    def fails(stream: bytes, cuts: Sequence[int]) -> bool:
        try:
            checker.check(stream, cuts)
        except Exception as another:
            return kind == (type(another), str(another).split(",")[0].split(":")[0])
        return False

    return fails


def reproduce(stream: bytes, cuts: Sequence[int]) -> Outcome:
    """Check one stream.

    Raises:
        Disagreement: the readers differ.
    """

    async def check() -> Outcome:
        return Checker().check(stream, cuts)

    return asyncio.run(check())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers start")
    parser.add_argument("--parser-alone", action="store_true", help="leave the connection out")
    parser.add_argument("--reproduce", metavar="JSON", help='a finding, {"stream": HEX, "cuts": [...]}')
    options = parser.parse_args(arguments)
    if options.reproduce is not None:
        finding = json.loads(options.reproduce)
        print(reproduce(bytes.fromhex(finding["stream"]), finding["cuts"]))
        return 0
    began = time.monotonic()
    report = run(options.seed, seconds=options.seconds, connections=not options.parser_alone)
    if report.finding is not None:
        print(f"case {report.cases} of seed {options.seed}: {report.finding}")
        print(f"at its shortest: {report.stream!r}, cut at {list(report.cuts)}")
        finding = {"stream": report.stream.hex(), "cuts": list(report.cuts)}
        print(f"reproduce with --reproduce '{json.dumps(finding)}'")
        return 1
    print(
        f"{report.cases} cases ({report.cases / (time.monotonic() - began):.0f}/s), {report.accepted} accepted, "
        f"{report.incomplete} incomplete, refused: {json.dumps(report.refusals, sort_keys=True)}, "
        f"of these not by llhttp: {json.dumps(report.stricter, sort_keys=True)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
