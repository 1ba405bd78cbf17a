"""A strict parser of HTTP/1.1 responses: finds the end of head and body and refuses anything ambiguous.

Connections are reused, so a client and a server that disagree about the end of a response would give one call the
response of another. Whatever allows that is refused with `HTTPResponseError`:

- A head ends with an empty line, and lines end with CRLF. A CR or LF by itself is refused (RFC 9112, 2.2: a recipient
  *may* accept a single LF, and parsers differ in that).
- A field name is a token directly before the colon (5.1). A value contains no control characters except tabs (RFC 9110,
  5.5). Lines must not be folded (5.2).
- The length of the body follows from, in this order (6.3): a status without a body (1xx, 204, 304);
  ``Transfer-Encoding``, which must be exactly ``chunked``, in HTTP/1.1; a single ``Content-Length`` of digits; the end
  of the connection. ``Content-Length`` together with ``Transfer-Encoding``, and two of either, are refused (6.1, 6.3:
  "ought to be handled as an error"; these are the means of request smuggling).
- An interim response (1xx) that announces a body or closes the connection is refused, and a connection is not reused
  after a 204 that announces a body. Neither may announce one (6.1; RFC 9110, 8.6), but a server that does may send it.
- A connection is not reused after 408 and 421: their requests may be repeated, but on another one (RFC 9110, 15.5.9 and
  15.5.20).
- A chunk size consists of hexadecimal digits, chunk data is followed by CRLF, and chunk extensions must be well-formed
  and are ignored (7.1), up to a limit. Trailer fields are checked and dropped (7.1.2); those that affect framing are
  refused (RFC 9110, 6.5.1).

In strict mode, llhttp accepts everything that this parser accepts; tests/fuzz/http1.py compares the two.

The lines of heads repeat from response to response. `HeadParser` caches them, which makes it as fast as a parser in C
that creates the same strings each time (docs/design/architecture.md, Transport).

The work is linear in the number of bytes, wherever they are cut: quantifiers are possessive where a malformed line
would cause backtracking, and checks of an incomplete line continue where they stopped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "DEFAULT_PORTS",
    "MAX_HEAD_BYTES",
    "ON_ANOTHER_CONNECTION",
    "ChunkedBody",
    "HTTPResponseError",
    "HeadParser",
    "ResponseHead",
    "check_partial_head",
]

_T = TypeVar("_T")

# Status line and fields. aiohttp allows 8 KiB per line; SageMaker's longest field, CustomAttributes, has 1 KiB.
MAX_HEAD_BYTES = 65_536
_MAX_FIELDS = 256
_MAX_CHUNK_LINE_BYTES = 1024
# How much longer chunk lines may be, in total, than 16 bytes and twice the data of each chunk: Go's limit.
_MAX_CHUNK_OVERHEAD_BYTES = 16_384
_MAX_TRAILER_BYTES = 16_384

# Limits of the cache of lines: half a megabyte at most. A line that differs in each response (a request id) stays until
# the cache is cleared.
_MAX_CACHED_LINES = 1024
_MAX_CACHED_LINE_BYTES = 256

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?")
_FIELD = re.compile(rb"(%b):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)" % _TOKEN)
_LENGTH = re.compile(rb"[0-9]{1,18}[ \t]*+")
# Without a tab after it: to llhttp that is another coding. Bytes, as str.lower() turns the Kelvin sign into a k.
_CHUNKED = re.compile(rb"chunked *+", re.IGNORECASE)
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*" % (_TOKEN, _TOKEN, _QUOTED))
# A CR or LF that cannot be a part of CRLF.
_BARE = re.compile(rb"(?<!\r)\n|\r[^\n]")

DEFAULT_PORTS = {"http": 80, "https": 443}

ON_ANOTHER_CONNECTION = frozenset({408, 421})
"""Statuses of what is between client and service, after which a request may be repeated on another connection."""

# Fields that affect framing must come before the body.
_NO_TRAILERS = frozenset({b"connection", b"content-length", b"transfer-encoding"})


_new = object.__new__


class HTTPResponseError(Exception):
    """A response that is malformed or ambiguous. The message must not quote it."""


# With slots, because each response makes one and it is read several times: a tuple with names takes twice as long to.
@dataclass(slots=True, repr=False)
class ResponseHead:
    """A parsed head.

    Args:
        status: the status code, 100 to 999.
        headers: the fields; names in lower case, repeated ones joined by ``", "``, and bytes that are not UTF-8 as
            surrogate escapes, as in aiohttp.
        length: the length of the body, bytes. None if chunks or the end of the connection determine it.
        chunked: whether the body is chunked.
        persistent: whether the connection can be reused after the body (RFC 9112, 9.3).
    """

    status: int
    headers: dict[str, str]
    length: int | None
    chunked: bool
    persistent: bool

    def __repr__(self) -> str:
        # Headers may hold custom attributes.
        return f"<ResponseHead status={self.status} length={self.length} chunked={self.chunked}>"


class HeadParser:
    """Parses response heads and caches their lines; shared by all connections of a client.

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
            head: everything before the CRLF CRLF at its end.

        Raises:
            HTTPResponseError: the head is malformed, ambiguous or too long.
        """
        if len(head) > MAX_HEAD_BYTES:
            raise HTTPResponseError(f"head longer than {MAX_HEAD_BYTES} bytes")
        # Fields beyond the limit remain one line, which is malformed as it contains CRLF.
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
                raise HTTPResponseError("Content-Length together with Transfer-Encoding")
            if not persistent:
                raise HTTPResponseError("Transfer-Encoding in HTTP/1.0")
        if (connection := headers.get("connection")) is not None:
            persistent = connection == "keep-alive" or _persists(connection, persistent)
        if status < 200 or status == 204 or status == 304:
            if (length or chunked) and status != 304:
                persistent = False
            if status < 200 and not persistent:
                raise HTTPResponseError("1xx response announces a body or closes the connection")
            if status == 101:
                raise HTTPResponseError("unexpected 101 Switching Protocols")
            length, chunked = 0, False
        elif (length is None and not chunked) or status in ON_ANOTHER_CONNECTION:
            persistent = False
        # The class's constructor is a Python function, which would be 5 % of the time here.
        found = _new(ResponseHead)
        found.status = status
        found.headers = headers
        found.length = length
        found.chunked = chunked
        found.persistent = persistent
        return found

    def _joined(self, lines: list[bytes]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for name, value in map(self._field, lines):
            if name not in headers:
                headers[name] = value
            elif name in ("content-length", "transfer-encoding"):
                raise HTTPResponseError("repeated Content-Length or Transfer-Encoding")
            else:
                headers[name] += f", {value}"
        return headers


class _Lines(dict[bytes, _T]):
    """Parsed lines by their bytes; a missing one is parsed and cached."""

    __slots__ = ("_parse",)

    def __init__(self, parse: Callable[[bytes], _T]) -> None:
        super().__init__()
        self._parse = parse

    def __repr__(self) -> str:
        # Fields may hold custom attributes.
        return f"<_Lines {len(self)}>"

    def __missing__(self, line: bytes) -> _T:
        found = self._parse(line)
        if len(line) <= _MAX_CACHED_LINE_BYTES:
            if len(self) >= _MAX_CACHED_LINES:
                self.clear()
            self[line] = found
        return found


def _parse_status_line(line: bytes) -> tuple[int, bool]:
    """The status code, and whether the version is HTTP/1.1."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise HTTPResponseError("malformed status line")
    return int(match[2]), match[1] == b"1"


def _parse_field(line: bytes) -> tuple[str, str]:
    """The name in lower case, and the value."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise HTTPResponseError("malformed header field, or too many fields")
    token, value = match.groups()
    name = token.decode("ascii").lower()
    if name == "content-length":
        if not _LENGTH.fullmatch(value):
            raise HTTPResponseError("Content-Length is not a number")
    elif name == "transfer-encoding" and not _CHUNKED.fullmatch(value):
        raise HTTPResponseError("Transfer-Encoding is not chunked")
    return name, value.rstrip(b" \t").decode("utf-8", "surrogateescape")


def _persists(connection: str, persistent: bool) -> bool:
    """Whether a connection persists, given the field Connection and the default of the protocol version (9.3)."""
    options = {option.strip(" \t") for option in connection.lower().split(",")}
    # str.lower() has turned a Kelvin sign into a k, so keep-alive counts only in ASCII.
    return "close" not in options and (persistent or ("keep-alive" in options and connection.isascii()))


def check_partial_head(partial: bytes | bytearray, checked: int) -> None:
    """Refuse an incomplete head that is already malformed, rather than wait for its end.

    Args:
        partial: the part of the head that has arrived.
        checked: how many bytes of it were checked before.

    Raises:
        HTTPResponseError: the head is not HTTP/1, contains a CR or LF by itself, or is too long.
    """
    if not b"HTTP/1.".startswith(partial[:7]):
        raise HTTPResponseError("not an HTTP/1 response")
    if _BARE.search(partial, max(0, checked - 1)):
        raise HTTPResponseError("CR or LF outside CRLF")
    # It may include up to three bytes of the CRLF CRLF.
    if len(partial) > MAX_HEAD_BYTES + 3:
        raise HTTPResponseError(f"head longer than {MAX_HEAD_BYTES} bytes")


class ChunkedBody:
    """Decodes a chunked body (RFC 9112, 7.1) that arrives in pieces.

    >>> body = ChunkedBody()
    >>> received = bytearray(b"4\\r\\nWiki\\r\\n0\\r\\n\\r\\nHTTP/1.1")
    >>> parts = []
    >>> end = body.feed(received, memoryview(received), 0, len(received), parts)
    >>> [bytes(part) for part in parts], body.complete, bytes(received[end:])
    ([b'Wiki'], True, b'HTTP/1.1')
    """

    __slots__ = ("_left", "_overhead", "_partial", "_state", "_trailer_bytes", "complete")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        # bytes of the current chunk that have not arrived
        self._left = 0
        self._overhead = 0
        # an incomplete line, or an incomplete CRLF after chunk data
        self._partial = bytearray()
        self._trailer_bytes = 0
        self.complete = False

    def feed(self, received: bytearray, view: memoryview, start: int, end: int, parts: list[memoryview]) -> int:
        """Process received bytes up to the end of the body.

        Args:
            received: a receive buffer.
            view: a view of it.
            start, end: where the new bytes are in it.
            parts: receives the data, as slices of ``view``.

        Returns:
            Where in ``received`` processing stopped: ``end``, or the end of the body once it is complete.

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
                self._process_line(partial, 0, len(partial) - 1)
                partial.clear()
            elif (stop := received.find(b"\r\n", position, end)) < 0:
                checked = len(partial)
                partial += view[position:end]
                self._check_partial(checked)
                return end
            elif partial:
                partial += view[position:stop]
                position = stop + 2
                self._process_line(partial, 0, len(partial))
                partial.clear()
            else:
                self._process_line(received, position, stop)
                position = stop + 2
            if self.complete:
                return position
        return position

    def _process_line(self, text: bytearray, start: int, stop: int) -> None:
        """Process the line from ``start`` to ``stop`` in ``text``."""
        size = stop - start
        if self._state == self._SIZE:
            match = _CHUNK_LINE.fullmatch(text, start, stop) if size <= _MAX_CHUNK_LINE_BYTES else None
            if match is None:
                raise HTTPResponseError("malformed chunk size")
            self._left = int(match[1], 16)
            if size > 16 or self._overhead:
                self._overhead = max(0, self._overhead + size - 16 - 2 * self._left)
                if self._overhead > _MAX_CHUNK_OVERHEAD_BYTES:
                    raise HTTPResponseError("chunk lines much longer than the data")
            self._state = self._DATA if self._left else self._TRAILER
        elif self._state == self._DATA_END:
            if size:
                raise HTTPResponseError("chunk data not terminated by CRLF")
            self._state = self._SIZE
        elif size:
            self._trailer_bytes += size
            match = _FIELD.fullmatch(text, start, stop) if self._trailer_bytes <= _MAX_TRAILER_BYTES else None
            if match is None or match[1].lower() in _NO_TRAILERS:
                raise HTTPResponseError("malformed trailer field")
        else:
            self.complete = True

    def _check_partial(self, checked: int) -> None:
        """Refuse an incomplete line that is already malformed; ``checked`` bytes of it were checked before."""
        partial = self._partial
        # one byte more for the CR
        if self._state == self._DATA_END:
            good = partial == b"\r"
        elif self._state == self._SIZE:
            good = len(partial) <= _MAX_CHUNK_LINE_BYTES + 1 and partial[0] in b"0123456789ABCDEFabcdef"
        else:
            good = self._trailer_bytes + len(partial) <= _MAX_TRAILER_BYTES + 1
        if not good or _BARE.search(partial, max(0, checked - 1)):
            raise HTTPResponseError("malformed chunk")


_CR, _LF = b"\r\n"
