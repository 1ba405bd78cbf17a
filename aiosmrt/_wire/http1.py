"""HTTP/1.1 responses, strictly: where a head and a body end, and nothing that could be read in two ways.

A connection is used again, so a client that takes a response to end elsewhere than the server does would hand one
call's answer to another one. What leaves room for that is refused with `HTTPResponseError`, and the connection with it:

- a head ends with an empty line, lines end with CRLF; a CR or LF on its own is refused (RFC 9112, 2.2: a recipient
  *may* take a single LF, which is where parsers differ);
- a field name is a token directly before the colon (5.1), a value has no control character but the tab (RFC 9110, 5.5),
  and no line is folded (5.2);
- the body's length comes from, in this order (6.3): a status that has no body (1xx, 204, 304); ``Transfer-Encoding``,
  which has to be ``chunked`` and nothing else, in HTTP/1.1; one ``Content-Length`` of digits; the connection's end.
  ``Content-Length`` beside ``Transfer-Encoding``, and two of either, are refused (6.1, 6.3: "ought to be handled as an
  error", and what request smuggling is made of);
- an interim response (1xx) that closes the connection or announces a body is refused, and a connection is not used
  again after a 204 that announces one, which neither may (6.1; RFC 9110, 8.6): a server that means it sends it;
- a chunk's size is hexadecimal digits alone, its data is followed by CRLF, its extensions are well-formed and ignored
  (7.1); trailer fields are checked as fields and dropped (7.1.2), and those that frame messages are refused (RFC 9110,
  6.5.1).

llhttp in its strict mode refuses nothing that this accepts; tests/fuzz/http1.py compares the two.

A head's lines repeat from response to response. `HeadParser` remembers them, which makes it as fast as a parser in C
that has to make the same strings anew (docs/design/architecture.md, Transport).

Time is linear in what arrives, however it is cut: quantifiers are possessive where a malformed line could otherwise be
matched again and again, and what broke off is looked at from where it was left.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

__all__ = ["MAX_HEAD_BYTES", "ChunkedBody", "HTTPResponseError", "HeadParser", "ResponseHead", "check_partial_head"]

_T = TypeVar("_T")

# Status line and fields. aiohttp allows 8 KiB per line; SageMaker's longest field, CustomAttributes, has 1 KiB.
MAX_HEAD_BYTES = 65_536
_MAX_FIELDS = 256
_MAX_CHUNK_LINE_BYTES = 1024
_MAX_TRAILER_BYTES = 16_384

# Remembered lines, and how long one may be: half a megabyte at most. One that differs in each response (a request id)
# lasts until the next clearing.
_MAX_KNOWN_LINES = 1024
_MAX_KNOWN_LINE_BYTES = 256

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?")
_FIELD = re.compile(rb"(%b):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)" % _TOKEN)
_LENGTH = re.compile(rb"[0-9]{1,18}[ \t]*+")
# No tab after it: llhttp takes that for another coding. As bytes, because the Kelvin sign is a small k to str.lower().
_CHUNKED = re.compile(rb"chunked *+", re.IGNORECASE)
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*" % (_TOKEN, _TOKEN, _QUOTED))
# A line's end that is none, whatever comes next.
_BARE = re.compile(rb"(?<!\r)\n|\r[^\n]")

# What decides where a message ends has to come before it.
_NO_TRAILERS = frozenset({b"connection", b"content-length", b"transfer-encoding"})


class HTTPResponseError(Exception):
    """A response that is not HTTP/1.1, or not unmistakably."""


class ResponseHead(NamedTuple):
    """What a head says.

    Args:
        status: the status code, 100 to 999.
        headers: the fields, names in lower case, repeated ones joined by ``", "``; bytes that are not UTF-8 as
            surrogate escapes, as aiohttp has them.
        length: bytes in the body; None where chunks or the connection's end tell it.
        chunked: whether the body is chunked.
        persistent: whether the connection may be used again after the body (RFC 9112, 9.3).
    """

    status: int
    headers: dict[str, str]
    length: int | None
    chunked: bool
    persistent: bool

    def __repr__(self) -> str:
        # headers carry custom attributes
        return f"<ResponseHead status={self.status} length={self.length} chunked={self.chunked}>"


class HeadParser:
    """Parses response heads, remembering their lines; one for all connections of a client.

    >>> head = HeadParser().parse(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5")
    >>> head.headers, head.length, head.persistent
    ({'content-length': '5'}, 5, True)
    """

    __slots__ = ("_field", "_status_line")

    def __init__(self) -> None:
        self._status_line = _Lines(_parse_status_line).__getitem__
        self._field = _Lines(_parse_field).__getitem__

    def parse(self, head: bytes) -> ResponseHead:
        """Parse a head.

        Args:
            head: everything before the CRLF CRLF that ends it.

        Raises:
            HTTPResponseError: it is malformed, ambiguous or too long.
        """
        if len(head) > MAX_HEAD_BYTES:
            raise HTTPResponseError(f"a head of more than {MAX_HEAD_BYTES} bytes")
        # Fields beyond the limit stay one line, with CRLF in it, which is no field.
        lines = head.split(b"\r\n", _MAX_FIELDS)
        status, persistent = self._status_line(lines.pop(0))
        headers = dict(map(self._field, lines))
        if len(headers) < len(lines):
            headers = self._joined(lines)
        length = None
        if (announced := headers.get("content-length")) is not None:
            length = int(announced)
        chunked = "transfer-encoding" in headers
        if chunked:
            if length is not None:
                raise HTTPResponseError("Content-Length beside Transfer-Encoding")
            if not persistent:
                raise HTTPResponseError("Transfer-Encoding in HTTP/1.0")
        if (connection := headers.get("connection")) is not None:
            persistent = connection == "keep-alive" or _persists(connection, persistent)
        if status < 200 or status == 204 or status == 304:
            if (length or chunked) and status != 304:
                persistent = False
            if status < 200 and not persistent:
                raise HTTPResponseError("an interim response that is more than that")
            if status == 101:
                raise HTTPResponseError("a change of protocol that nobody asked for")
            length, chunked = 0, False
        elif length is None and not chunked:
            persistent = False
        # The class's own constructor is a function in Python, 5 % of the time here.
        return tuple.__new__(ResponseHead, (status, headers, length, chunked, persistent))

    def _joined(self, lines: list[bytes]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for name, value in map(self._field, lines):
            if name not in headers:
                headers[name] = value
            elif name in ("content-length", "transfer-encoding"):
                raise HTTPResponseError("two Content-Length or Transfer-Encoding fields")
            else:
                headers[name] += f", {value}"
        return headers


class _Lines(dict[bytes, _T]):
    """What lines say; one that is asked for the first time is parsed and remembered."""

    __slots__ = ("_parse",)

    def __init__(self, parse: Callable[[bytes], _T]) -> None:
        super().__init__()
        self._parse = parse

    def __repr__(self) -> str:
        # fields carry custom attributes
        return f"<_Lines {len(self)}>"

    def __missing__(self, line: bytes) -> _T:
        found = self._parse(line)
        if len(line) <= _MAX_KNOWN_LINE_BYTES:
            if len(self) >= _MAX_KNOWN_LINES:
                self.clear()
            self[line] = found
        return found


def _parse_status_line(line: bytes) -> tuple[int, bool]:
    """The status code, and whether it is HTTP/1.1."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise HTTPResponseError("a malformed status line")
    return int(match[2]), match[1] == b"1"


def _parse_field(line: bytes) -> tuple[str, str]:
    """The name in lower case, and the value."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise HTTPResponseError("a malformed header field, or too many")
    token, value = match.groups()
    name = token.decode("ascii").lower()
    if name == "content-length":
        if not _LENGTH.fullmatch(value):
            raise HTTPResponseError("a Content-Length that is no number")
    elif name == "transfer-encoding" and not _CHUNKED.fullmatch(value):
        raise HTTPResponseError("a Transfer-Encoding other than chunked")
    return name, value.rstrip(b" \t").decode("utf-8", "surrogateescape")


def _persists(connection: str, persistent: bool) -> bool:
    """What the field Connection makes of the protocol version's default (9.3)."""
    options = {option.strip(" \t") for option in connection.lower().split(",")}
    # The Kelvin sign has become a k, so keep-alive is believed in ASCII alone.
    return "close" not in options and (persistent or ("keep-alive" in options and connection.isascii()))


def check_partial_head(partial: bytes | bytearray, checked: int) -> None:
    """Refuse at once what cannot become a head any more, rather than wait for an end that never comes.

    Args:
        partial: what has arrived of it.
        checked: so many bytes of it were checked before.

    Raises:
        HTTPResponseError: it is no HTTP/1, a line ends otherwise than with CRLF, or it is too long.
    """
    if not b"HTTP/1.".startswith(partial[:7]):
        raise HTTPResponseError("not an HTTP/1 response")
    if _BARE.search(partial, max(0, checked - 1)):
        raise HTTPResponseError("a CR or LF on its own")
    # up to three bytes of the end may be among it
    if len(partial) > MAX_HEAD_BYTES + 3:
        raise HTTPResponseError(f"a head of more than {MAX_HEAD_BYTES} bytes")


class ChunkedBody:
    """Takes the framing off a chunked body (RFC 9112, 7.1) that arrives in pieces.

    >>> body = ChunkedBody()
    >>> received = bytearray(b"4\\r\\nWiki\\r\\n0\\r\\n\\r\\nHTTP/1.1")
    >>> parts = []
    >>> end = body.feed(received, memoryview(received), 0, len(received), parts)
    >>> [bytes(part) for part in parts], body.complete, bytes(received[end:])
    ([b'Wiki'], True, b'HTTP/1.1')
    """

    __slots__ = ("_left", "_partial", "_state", "_trailer_bytes", "complete")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        # bytes that the current chunk lacks
        self._left = 0
        # a line, or the end of one chunk's data, that the received bytes broke off in
        self._partial = bytearray()
        self._trailer_bytes = 0
        self.complete = False

    def feed(self, received: bytearray, view: memoryview, start: int, end: int, parts: list[memoryview]) -> int:
        """Take in what was received, up to the body's end.

        Args:
            received: a receive buffer.
            view: a view on it.
            start, end: where in it the new bytes are.
            parts: takes the data, a slice of ``view`` for each piece of a chunk.

        Returns:
            Where in ``received`` the first byte is that was not taken in; ``end`` unless the body is complete.

        Raises:
            HTTPResponseError: the framing is malformed.
        """
        position = start
        while position < end:
            if self._state == self._DATA:
                stop = position + self._left
                if stop > end:
                    parts.append(view[position:end])
                    self._left = stop - end
                    return end
                parts.append(view[position:stop])
                position = stop
                if received.startswith(b"\r\n", position, end):
                    position += 2
                    self._state = self._SIZE
                else:
                    self._state = self._DATA_END
                continue
            partial = self._partial
            if partial and partial[-1] == _CR and received[position] == _LF:
                position += 1
                self._take_line(partial, 0, len(partial) - 1)
                partial.clear()
            elif (stop := received.find(b"\r\n", position, end)) < 0:
                checked = len(partial)
                partial += view[position:end]
                self._check_partial(checked)
                return end
            elif partial:
                partial += view[position:stop]
                position = stop + 2
                self._take_line(partial, 0, len(partial))
                partial.clear()
            else:
                self._take_line(received, position, stop)
                position = stop + 2
            if self.complete:
                return position
        return position

    def _take_line(self, text: bytearray, start: int, stop: int) -> None:
        """Take in the line that is there in ``text``."""
        size = stop - start
        if self._state == self._SIZE:
            match = _CHUNK_LINE.fullmatch(text, start, stop) if size <= _MAX_CHUNK_LINE_BYTES else None
            if match is None:
                raise HTTPResponseError("a malformed chunk size")
            self._left = int(match[1], 16)
            self._state = self._DATA if self._left else self._TRAILER
        elif self._state == self._DATA_END:
            if size:
                raise HTTPResponseError("a chunk without its end")
            self._state = self._SIZE
        elif size:
            self._trailer_bytes += size
            match = _FIELD.fullmatch(text, start, stop) if self._trailer_bytes <= _MAX_TRAILER_BYTES else None
            if match is None or match[1].lower() in _NO_TRAILERS:
                raise HTTPResponseError("a malformed trailer field")
        else:
            self.complete = True

    def _check_partial(self, checked: int) -> None:
        """Refuse at once a line that cannot become a good one any more; ``checked`` bytes were looked at before."""
        partial = self._partial
        # one more for the CR
        if self._state == self._DATA_END:
            good = partial == b"\r"
        elif self._state == self._SIZE:
            good = len(partial) <= _MAX_CHUNK_LINE_BYTES + 1 and partial[0] in b"0123456789ABCDEFabcdef"
        else:
            good = self._trailer_bytes + len(partial) <= _MAX_TRAILER_BYTES + 1
        if not good or _BARE.search(partial, max(0, checked - 1)):
            raise HTTPResponseError("a malformed chunk")


_CR, _LF = b"\r\n"
