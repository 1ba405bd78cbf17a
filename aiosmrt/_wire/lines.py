"""The bytes of a streamed response, cut anywhere, into text, lines, server-sent events and JSON values.

One decoder serves one stream.  All have the same shape, `StreamDecoder`: ``feed`` takes the next bytes and gives the
items that are now whole, ``finish`` gives what only the end of the stream makes whole.  What a stream yields does not
depend on where it was cut, nor does whether it fails.

Nothing is lost in silence.  Bytes that are no item are a `DeserializationError`, and so is an item that never became
whole; the good items before it are handed out first, and the error comes with the next call.  It says which item it is
and where, and never quotes it.

Theory of operation.  As a rule a feed holds many parts, so the work for all its whole lines or values is done by a few
calls into C, and item by item only where those find a fault, come near the limit, or meet events of more than one line.
What is not whole yet is held as bytes and decoded when its end has come; until then each byte is looked at once, to
find that end.  So the time is linear in the bytes fed, whatever the cuts.  Bytes are cut first and decoded later, as
line ends, quotes and brackets are ASCII: they are never part of a longer UTF-8 sequence, nor swallowed by a broken one.

The module is long because its decoders are small: they share one way to hold, to fail and to end.
"""

from __future__ import annotations

import json
import re
import sys
from abc import ABC, abstractmethod
from array import array
from codecs import BOM_UTF8, utf_8_decode
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from aiosmrt.errors import DeserializationError

__all__ = [
    "MAX_ITEM_BYTES",
    "JSONDecoder",
    "JSONLinesDecoder",
    "LineDecoder",
    "SSEDecoder",
    "ServerSentEvent",
    "StreamDecoder",
    "TextDecoder",
]

MAX_ITEM_BYTES: Final = 64 * 1024 * 1024
"""How long an item may be, in bytes, where a decoder is told nothing else."""

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

# The white space of JSON (RFC 8259, 2), which is less than that of str.strip().
_BLANKS: Final = " \t\n\r"
_BLANK_BYTES: Final = _BLANKS.encode()
_find_token: Final = re.compile(r"[^ \t\n\r]").search
_find_blank: Final = re.compile(rb"[ \t\n\r]").search

_json: Final = json.JSONDecoder()

# A string that stands between texts, where many are parsed at once.  A string that a text leaves open ends at the first
# quote of this one, and then comes what is no JSON.
_MARK: Final = "\x7f"
_BETWEEN: Final = f',"{_MARK}",'
_ESCAPED_MARK: Final = r"\u007"

# Brackets as the items of an array("b"): a level down, a level up.
_BRACKETS: Final = b"{[}]"
_STEPS: Final = bytes.maketrans(_BRACKETS, b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_BRACKETS))

# What a stream of events begins with; no JSON value begins so.
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
# The last event of OpenAI's streams, and of servers that follow them.
_END_MARKER: Final = "[DONE]"
# 10^18 milliseconds are 30 million years; for int() there has to be some end.
_MAX_RETRY_DIGITS: Final = 18


class StreamDecoder(Protocol[_T_co]):
    """What the decoders have in common: bytes in, items out."""

    def feed(self, data: bytes, /) -> Sequence[_T_co]:
        """Take the next bytes of the stream, and give the items that are now whole."""
        ...

    def finish(self) -> Sequence[_T_co]:
        """Note that the stream has ended, and give what that made whole."""
        ...

    @property
    def failure(self) -> DeserializationError | None:
        """The error that the next call will raise; None while all is well."""
        ...


class _Decoder(ABC, Generic[_T]):
    """What is held of a stream, and when errors come.

    Subclasses do not raise, they call `_fail`: an error made there has no ``__context__`` that would hold the payload,
    as that of a `json.JSONDecodeError` does.
    """

    __slots__ = ("_count", "_fault", "_max_item_bytes", "_offset", "_pending")

    def __init__(self, *, max_item_bytes: int | None = MAX_ITEM_BYTES) -> None:
        if max_item_bytes is not None and max_item_bytes < 1:
            raise ValueError("max_item_bytes must be positive")
        self._max_item_bytes = sys.maxsize if max_item_bytes is None else max_item_bytes
        self._fault: str | None = None
        self._count = 0
        self._pending = bytearray()
        # Where in the stream the pending bytes begin.
        self._offset = 0

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished item are held."""
        return len(self._pending)

    @property
    def failure(self) -> DeserializationError | None:
        """The error that the next call will raise; None while all is well."""
        return None if self._fault is None else DeserializationError(self._fault)

    def __repr__(self) -> str:
        state = "failed" if self._fault is not None else f"pending_bytes={self.pending_bytes}"
        return f"<{type(self).__name__} items={self._count} {state}>"

    def feed(self, data: bytes, /) -> list[_T]:
        """Take the next bytes of the stream, and give the items that are now whole.

        Args:
            data: bytes of any number, none included.

        Raises:
            DeserializationError: an item is malformed or exceeds ``max_item_bytes``.  The items before it are given
                first: then this call returns them, and `failure` is set.  All later calls raise.
        """
        return self._given(self._decode(data) if self._fault is None else [])

    def finish(self) -> list[_T]:
        """Note that the stream has ended, and give the item, if any, that lacked nothing but the end.

        Raises:
            DeserializationError: the stream ended inside an item, or was malformed before.
        """
        return self._given(self._decode_rest() if self._fault is None else [])

    def _given(self, items: list[_T]) -> list[_T]:
        if self._fault is not None and not items:
            raise DeserializationError(self._fault)
        self._count += len(items)
        return items

    @abstractmethod
    def _decode(self, data: bytes) -> list[_T]:
        """The items that are whole with some more bytes."""

    @abstractmethod
    def _decode_rest(self) -> list[_T]:
        """The items that the end makes whole."""

    def _release(self, data: bytes = b"") -> bytes:
        """The pending bytes and the ones after them."""
        if not self._pending:
            return data
        self._pending += data
        whole = bytes(self._pending)
        self._pending.clear()
        return whole

    def _hold(self, data: bytes, before: int) -> None:
        """Hold more of an unfinished item; fail where it cannot end within the limit any more."""
        self._pending += data
        if len(self._pending) > self._max_item_bytes:
            self._fail(self._too_long(), before)

    def _fail(self, reason: str, before: int) -> None:
        """Note a fault.

        Args:
            reason: what is wrong with the item at `_offset`; the end of a sentence.
            before: how many good items precede it that are not yet counted.
        """
        self._fault = f"{self._place(self._count + before + 1)} {reason}"
        self._pending.clear()

    @abstractmethod
    def _place(self, number: int) -> str:
        """Which item it is and where; the beginning of a sentence."""

    def _too_long(self) -> str:
        return f"exceeds {self._max_item_bytes} bytes"


class TextDecoder(_Decoder[str]):
    """UTF-8 into text: one string for each feed, or none where no character became whole.

    Malformed UTF-8 is an error, which is raised after the text before it.  Nothing is dropped or added: a byte order
    mark is a character like others, and line ends stay what they are.

    >>> decoder = TextDecoder()
    >>> decoder.feed(b"caf\\xc3"), decoder.feed(b"\\xa9!"), decoder.finish()
    (['caf'], ['é!'], [])
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(max_item_bytes=None)

    def _place(self, number: int) -> str:
        return f"the text at byte {self._offset} of the stream"

    def _decode(self, data: bytes) -> list[str]:
        data = self._release(data)
        text, used, malformed = _decode_utf8(data)
        self._offset += used
        if malformed:
            self._fail("is not UTF-8", 0)
        else:
            self._pending += data[used:]
        return [text] if text else []

    def _decode_rest(self) -> list[str]:
        if self._pending:
            self._fail("is half a character, where the stream ends", 0)
        return []


class _LinewiseDecoder(_Decoder[_T]):
    """Bytes up to LF after LF, to be decoded many at a time by `_parse`."""

    __slots__ = ()

    @abstractmethod
    def _parse(self, lines: bytes) -> list[_T]:
        """The items of some lines, ends included, of which only the last of the stream may lack it.

        Raises:
            ValueError, RecursionError: one of the lines is malformed.
        """

    def _decode(self, data: bytes) -> list[_T]:
        end = data.rfind(b"\n") + 1
        items = self._decode_lines(self._release(data[:end])) if end else []
        if end < len(data) and self._fault is None:
            self._hold(data[end:], len(items))
        return items

    def _decode_rest(self) -> list[_T]:
        return self._decode_lines(self._release())

    def _decode_lines(self, lines: bytes) -> list[_T]:
        if len(lines) <= self._max_item_bytes:
            try:
                items = self._parse(lines)
            except (ValueError, RecursionError):
                pass  # It is found again below, after the good lines before it.
            else:
                self._offset += len(lines)
                return items
        items = []
        for line in BytesIO(lines):
            if len(line.removesuffix(b"\n")) > self._max_item_bytes:
                self._fail(self._too_long(), len(items))
                break
            try:
                items += self._parse(line)
            except (ValueError, RecursionError) as error:
                reason = _reason(error)
            else:
                self._offset += len(line)
                continue
            self._fail(reason, len(items))
            break
        return items


class LineDecoder(_LinewiseDecoder[str]):
    """UTF-8 into lines, without their ends, which are LF or CRLF and nothing else.

    The last line needs no end; what follows the last end is a line unless it is empty.

    Args:
        max_item_bytes: how long a line may be, in bytes; None for no limit.

    >>> decoder = LineDecoder()
    >>> decoder.feed(b"one\\ntwo\\r"), decoder.feed(b"\\n\\nfo"), decoder.feed(b"ur"), decoder.finish()
    (['one'], ['two', ''], [], ['four'])
    """

    __slots__ = ()

    def _place(self, number: int) -> str:
        return f"line {number}, at byte {self._offset} of the stream,"

    def _parse(self, lines: bytes) -> list[str]:
        text = lines.decode()
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        items = text.split("\n")
        if not items[-1]:
            items.pop()
        return items


class JSONLinesDecoder(_LinewiseDecoder[Any]):
    """JSON Lines into values: one on each line that is not blank.

    What a value may be is up to Python's json: NaN and Infinity are read, the last of equal keys counts.

    Args:
        max_item_bytes: how long a line may be, in bytes; None for no limit.

    >>> decoder = JSONLinesDecoder()
    >>> decoder.feed(b'{"a": 1}\\n\\n[2'), decoder.feed(b']\\n3'), decoder.finish()
    ([{'a': 1}], [[2]], [3])
    """

    __slots__ = ()

    def _place(self, number: int) -> str:
        return f"JSON value {number}, in the line at byte {self._offset} of the stream,"

    def _parse(self, lines: bytes) -> list[Any]:
        text = lines.decode()
        values = _parse_at_once(_filled_lines(text))
        if values is None:
            values = [_parse_json(value) for line in text.split("\n") if (value := line.strip(_BLANKS))]
        return values


class ServerSentEvent(NamedTuple):
    """An event of a ``text/event-stream``.

    Args:
        event: the event's type.
        data: its data lines, joined by LF.
        id: the last event id: that of this event or, where it has none, of the last one before it that has.
        retry: the reconnection time that the stream asked for last, in milliseconds; None when it never did.
    """

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: int | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.data)} characters>"


class _EventDecoder(_Decoder[_T]):
    """The rules of server-sent events; what is made of an event is up to `_made`."""

    __slots__ = ("_after_cr", "_data", "_data_bytes", "_event", "_id", "_retry")

    def __init__(self, *, max_item_bytes: int | None = MAX_ITEM_BYTES) -> None:
        super().__init__(max_item_bytes=max_item_bytes)
        # Whether the latest byte was a CR, so that an LF would be the same line's end.
        self._after_cr = False
        # The event under way: its data lines, their length with an LF each, and its type.
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._event = ""
        self._id = ""
        self._retry: int | None = None

    @abstractmethod
    def _made(self, data: list[str], event: str) -> list[_T]:
        """The items for some events of one type, by their data."""

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished event are held."""
        return len(self._pending) + self._data_bytes

    def _place(self, number: int) -> str:
        return f"event {number}, which ends after byte {self._offset} of the stream,"

    def _decode(self, data: bytes) -> list[_T]:
        if self._after_cr and data:
            self._after_cr = False
            self._offset += data.startswith(b"\n")
            data = data.removeprefix(b"\n")
        if self._offset == 0 and len(self._pending) < len(BOM_UTF8):
            data = self._release(data)
            if data.startswith(BOM_UTF8):
                self._offset = len(BOM_UTF8)
                data = data.removeprefix(BOM_UTF8)
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        events: list[_T] = []
        if end:
            self._after_cr = data.endswith(b"\r")
            self._decode_lines(self._release(data[:end]), events)
        if end < len(data) and self._fault is None:
            self._hold(data[end:], len(events))
        return events

    def _decode_rest(self) -> list[_T]:
        events: list[_T] = []
        # The end of the stream stands for that of a line, and for a blank line.
        self._decode_lines(self._release() + b"\n\n", events)
        return events

    def _fail(self, reason: str, before: int) -> None:
        super()._fail(reason, before)
        self._data.clear()
        self._data_bytes = 0

    def _decode_lines(self, lines: bytes, events: list[_T]) -> None:
        """Take whole lines, and append the events that they complete."""
        if not self._data and not self._event and lines.startswith(b"data:") and len(lines) <= self._max_item_bytes:
            rest = self._take_plain_events(lines, events)
        else:
            rest = lines
        # Of bytes, splitlines() takes LF, CR and CRLF for ends, and nothing else.
        for line in rest.splitlines():
            if not line:
                if self._data:
                    events += self._dispatch()
                self._event = ""
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                self._data.append(value)
                self._data_bytes += len(value) + 1
            elif field == b"event":
                self._event = value.decode(errors="replace")
            elif field == b"id":
                if b"\0" not in value:
                    self._id = value.decode(errors="replace")
            elif field == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self._retry = int(value)
            if len(line) > self._max_item_bytes or self._data_bytes - 1 > self._max_item_bytes:
                self._fail(self._too_long(), len(events))
                return
        self._offset += len(lines)

    def _take_plain_events(self, lines: bytes, events: list[_T]) -> bytes:
        """Take the whole events at once, where each is one data line; the lines that are left."""
        if b"\r" in lines:
            lines = lines.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = lines.rfind(b"\n\n") + 2
        text = lines[:end].decode(errors="replace") if end > 1 else ""
        prefix = "data: " if text.startswith("data: ") else "data:"
        found = text[len(prefix) : -2].split("\n\n" + prefix)
        # Two LFs for each event leave none that could be inside of one.
        if text.count("\n") != 2 * len(found) or (prefix == "data:" and "\ndata: " in text):
            return lines
        events += self._made(found, "message")
        return lines[end:]

    def _dispatch(self) -> list[_T]:
        data = b"\n".join(self._data).decode(errors="replace")
        self._data.clear()
        self._data_bytes = 0
        return self._made([data], self._event or "message")


class SSEDecoder(_EventDecoder[ServerSentEvent]):
    """Server-sent events, as https://html.spec.whatwg.org/multipage/server-sent-events.html interprets a stream.

    With one exception: an event that lacks only the blank line after it, when the stream ends, is given by `finish`,
    where the specification discards it.  Model servers forget that line, and would lose the end of an answer.

    Malformed UTF-8 becomes U+FFFD, as the specification has it: the format has no malformed streams, every client shows
    the same text, and one broken character is no reason to lose the rest of an answer.  An event without data lines is
    none, but its id and its retry count for those that follow.

    Args:
        max_item_bytes: how long a line may be, and the data of an event, in bytes; None for no limit.

    >>> decoder = SSEDecoder()
    >>> decoder.feed(b"event: token\\ndata: Hel"), decoder.feed(b"lo\\n")
    ([], [])
    >>> [event] = decoder.feed(b"\\n: a comment\\n\\n")
    >>> event.event, event.data
    ('token', 'Hello')
    """

    __slots__ = ()

    def _made(self, data: list[str], event: str) -> list[ServerSentEvent]:
        make, event_id, retry = tuple.__new__, self._id, self._retry
        return [make(ServerSentEvent, (event, item, event_id, retry)) for item in data]


class _EventDataDecoder(_EventDecoder[str]):
    """Server-sent events of which only the data matters."""

    __slots__ = ()

    def _made(self, data: list[str], event: str) -> list[str]:
        return data


class JSONDecoder(_Decoder[Any]):
    """JSON values, however a model server puts them into its parts.

    Either they follow one another, with white space between them or without, or they are the data of server-sent
    events, one in each.  That is decided once: ``data:``, ``event:``, ``id:``, ``retry:`` or ``:`` begin a stream of
    events, anything else values.  White space before is skipped, and so is a byte order mark, as RFC 8259, 8.1, allows.

    Numbers, true, false and null last until white space or the end of the stream, so that a number may be cut.  In a
    stream of events, blank data and the end marker ``[DONE]`` are skipped, and everything but the data is ignored.

    What a value may be is up to Python's json: NaN and Infinity are read, the last of equal keys counts.

    Args:
        max_item_bytes: how long a value may be, and a line of an event stream, in bytes; None for no limit.

    >>> decoder = JSONDecoder()
    >>> decoder.feed(b'{"a": 1}{"b"'), decoder.feed(b': 2} [3,\\n4] 5'), decoder.feed(b'6'), decoder.finish()
    ([{'a': 1}], [{'b': 2}, [3, 4]], [], [56])
    >>> JSONDecoder().feed(b'data: {"a": 1}\\n\\ndata: [DONE]\\n\\n')
    [{'a': 1}]
    """

    __slots__ = ("_begun", "_events", "_extent", "_linewise")

    def __init__(self, *, max_item_bytes: int | None = MAX_ITEM_BYTES) -> None:
        super().__init__(max_item_bytes=max_item_bytes)
        # Whether it is decided what the stream is made of, and its events if it is made of those.
        self._begun = False
        self._events: _EventDataDecoder | None = None
        # Whether so far each value had a line to itself, wherever several came at once.
        self._linewise = True
        # Of the pending value; None without one.
        self._extent: _Extent | None = None

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished value are held."""
        return super().pending_bytes if self._events is None else self._events.pending_bytes

    def _place(self, number: int) -> str:
        if self._events is None:
            return f"JSON value {number}, at byte {self._offset} of the stream,"
        return f"JSON value {number}, in event {self._events._count} before byte {self._events._offset} of the stream,"

    def _decode(self, data: bytes) -> list[Any]:
        if not self._begun:
            data = self._begin(self._release(data))
        if not self._begun:
            return []
        if self._events is not None:
            return self._read(self._events, self._events._decode(data))
        return self._decode_values(data)

    def _decode_rest(self) -> list[Any]:
        if self._events is not None:
            return self._read(self._events, self._events._decode_rest())
        if not self._begun:
            return self._decode_values(self._release(b"\n"))
        # Where white space ends a value, the end of the stream does.
        values = self._decode_values(b"\n")
        if self._pending:
            self._fail("is unfinished where the stream ends", 0)
        return values

    def _begin(self, data: bytes) -> bytes:
        """Decide what the stream is made of, as soon as that is clear; the bytes to go on with."""
        if self._offset == 0 and data.startswith(BOM_UTF8):
            self._offset = len(BOM_UTF8)
            data = data.removeprefix(BOM_UTF8)
        start = data.lstrip(_BLANK_BYTES)
        self._offset += len(data) - len(start)
        if start.startswith(_FIELDS):
            self._events = _EventDataDecoder(max_item_bytes=self._max_item_bytes)
            self._events._offset = self._offset
        elif any(mark.startswith(start) for mark in (BOM_UTF8, *_FIELDS)):
            self._pending += start
            return b""
        self._begun = True
        return start

    def _decode_values(self, data: bytes) -> list[Any]:
        if self._extent is not None:
            if not self._extent.ends_in(data):
                self._hold(data, 0)
                return []
            self._extent = None
        data = self._release(data)
        text, used, _ = _decode_utf8(data)
        size = len(text)
        may_exceed = len(data) > self._max_item_bytes
        reason = "is not JSON"
        values: list[Any] = []
        start = 0
        if self._linewise and not may_exceed and (end := text.rfind("\n") + 1):
            whole = _parse_at_once(_filled_lines(text[:end]))
            if whole is None:
                self._linewise = False
            else:
                values, start = whole, end
        at = found.start() if (found := _find_token(text, start)) else size
        while at < size:
            try:
                value, end = _json.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                reason = _reason(error)
                break
            following = found.start() if (found := _find_token(text, end)) else size
            if following == end and text[at] not in '{["':
                # A number or a word that may go on.
                break
            if may_exceed and len(text[at:end].encode()) > self._max_item_bytes:
                reason = self._too_long()
                break
            values.append(value)
            at = following
        rest = text[at:].encode() + data[used:]
        self._offset += len(data) - len(rest)
        if rest:
            extent = _Extent(rest[0])
            if extent.ends_in(rest[1:]):
                self._fail(reason, len(values))
            else:
                self._extent = extent
                self._hold(rest, len(values))
        return values

    def _read(self, source: _EventDataDecoder, events: list[str]) -> list[Any]:
        """The values in the data of some events."""
        values = _parse_at_once(events) if len(events) > 1 else None
        if values is not None:
            source._count += len(events)
            self._fault = source._fault
            return values
        values = []
        for data in events:
            source._count += 1
            text = data.strip(_BLANKS)
            try:
                values.append(_parse_json(text))
                continue
            except (ValueError, RecursionError) as error:
                reason = _reason(error)
            if text not in ("", _END_MARKER):
                self._fail(reason, len(values))
                return values
        self._fault = source._fault
        return values


class _Extent:
    """Finds the end of a JSON value that comes in pieces; looks at each byte once.

    Of a malformed value it finds some end, the same one wherever it was cut.

    Args:
        first: the value's first byte.
    """

    __slots__ = ("_depth", "_escape", "_in_string", "_nested")

    def __init__(self, first: int) -> None:
        self._nested = first in b"{["
        self._depth = int(self._nested)
        self._in_string = first == ord('"')
        # The backslash that the bytes so far ended with, if it has yet to escape something.
        self._escape = b""

    def ends_in(self, data: bytes) -> bool:
        """Whether the value's end is in the next bytes; the last call is the one that says so."""
        if not self._nested and not self._in_string:
            return _find_blank(data) is not None
        if self._escape or b"\\" in data:
            data = (self._escape + data).replace(b"\\\\", b"").replace(b'\\"', b"")
            self._escape = data[-1:] if data.endswith(b"\\") else b""
        # What is left are the quotes that begin and end strings: every other piece is outside of one.
        pieces = data.split(b'"')
        if not self._nested:
            return len(pieces) > 1
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        steps = array("b", outside.translate(_STEPS, _NO_BRACKETS))
        if 0 in accumulate(steps, initial=self._depth):
            return True
        self._depth += sum(steps)
        return False


def _decode_utf8(data: bytes) -> tuple[str, int, bool]:
    """The text up to a malformed or unfinished character, its length in bytes, and whether a malformed one follows."""
    try:
        return *utf_8_decode(data, "strict", False), False
    except UnicodeDecodeError as error:
        return data[: error.start].decode(), error.start, True


def _filled_lines(text: str) -> list[str]:
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return list(filter(None, text.split("\n")))


def _parse_at_once(texts: list[str]) -> list[Any] | None:
    """The values in some texts, one in each; None where that has to be found out text by text.

    All are parsed as one array, which costs less than half.  That each text is a value, and not two values or a piece
    of one, shows by a mark between them that no text holds: if every second item is one, then all the marks are items,
    none is inside of an array that a text has begun, and between two of them is one value.
    """
    if not texts:
        return []
    whole = _BETWEEN.join(texts)
    marks = len(texts) - 1
    if whole.count(_MARK) != marks or ("\\" in whole and _ESCAPED_MARK in whole):
        return None
    try:
        items: list[Any] = _json.decode(f"[{whole}]")
    except (ValueError, RecursionError):
        return None
    if len(items) != 2 * marks + 1 or items[1::2].count(_MARK) != marks:
        return None
    return items[::2]


def _parse_json(text: str) -> Any:
    """The one value in a text, with no white space around it.

    Raises:
        ValueError, RecursionError: there is none, or more than it.
    """
    value, end = _json.raw_decode(text)
    if end < len(text):
        raise ValueError("more than one value")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is not JSON"
