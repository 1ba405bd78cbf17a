"""Bytes into JSON values: JSON Lines, values one after the other, and the data of server-sent events."""

from __future__ import annotations

import json
import re
from array import array
from codecs import BOM_UTF8
from itertools import accumulate
from typing import Any, Final

from aiosmrt._wire.decoders.base import Decoder
from aiosmrt._wire.decoders.sse import FIELDS, EventDecoder
from aiosmrt._wire.decoders.text import LinewiseDecoder, decode_utf8

__all__ = ["JSONDecoder", "JSONLinesDecoder"]

# JSON's white space (RFC 8259, 2), which is less than that of str.strip().
_BLANKS: Final = " \t\n\r"
_BLANK_BYTES: Final = _BLANKS.encode()
_find_token: Final = re.compile(r"[^ \t\n\r]").search
_find_blank: Final = re.compile(rb"[ \t\n\r]").search

_json: Final = json.JSONDecoder()

# A string between texts that are parsed at once. A string that a text leaves open would end at the first quote of this
# one, and what follows is not JSON.
_MARK: Final = "\x7f"
_BETWEEN: Final = f',"{_MARK}",'
_ESCAPED_MARK: Final = r"\u007"

# Brackets as the items of an array("b"): a level down, a level up.
_BRACKETS: Final = b"{[}]"
_STEPS: Final = bytes.maketrans(_BRACKETS, b"\x01\x01\xff\xff")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_BRACKETS))

# Data without a value; the latter ends the streams of OpenAI and of compatible servers.
_SKIPPED: Final = ("", "[DONE]")
_END_MARKER: Final = "[DONE]"


class JSONLinesDecoder(LinewiseDecoder[Any]):
    """JSON Lines into values: one on each line that is not blank. A byte order mark before the first one is skipped.

    Python's json decides what is a value: NaN and Infinity are read, the last of equal keys counts.

    >>> decoder = JSONLinesDecoder()
    >>> decoder.feed(b'{"a": 1}\\n\\n[2'), decoder.feed(b']\\n3'), decoder.finish()
    ([{'a': 1}], [[2]], [3])
    """

    __slots__ = ()

    def _position(self, number: int) -> str:
        return f"JSON value {number}, in the line at byte {self._offset} of the stream,"

    def _reason(self, error: Exception) -> str:
        return _reason(error)

    def _parse(self, lines: bytes) -> list[Any]:
        if self._offset == 0 and lines.startswith(BOM_UTF8):
            lines = lines[len(BOM_UTF8) :]
        text = lines.decode()
        values = _parse_at_once(_filled_lines(text))
        if values is None:
            values = [_parse_json(value) for line in text.split("\n") if (value := line.strip(_BLANKS))]
        return values


class _JSONEventDecoder(EventDecoder[Any]):
    """The JSON values in the data of server-sent events.

    Servers that put one line end between their events, in place of two, send a single event with a value on each line.
    So a data line that is a value is complete, and does not wait for a blank line. Other data lines are joined up to
    the blank line, and are one value, or several, each beginning on a new line.
    """

    __slots__ = ()

    # As everywhere in JSON (RFC 8259, 8.1), which the rules of events do not change.
    _malformed = "strict"

    def _position(self, number: int) -> str:
        return f"JSON value {number}, in an event that ends after byte {self._offset} of the stream,"

    def _take_data(self, items: list[Any]) -> None:
        # Only the first line, so that a value on many lines is not parsed again with each of them.
        if len(self._data) > 1:
            return
        try:
            text = self._data[0].decode().strip(_BLANKS)
            if text not in _SKIPPED:
                items.append(_parse_json(text))
        except (ValueError, RecursionError):
            return
        self._data.clear()
        self._data_bytes = 0

    def _may_lack_end(self, line: bytes | bytearray) -> bool:
        # A number could continue, and half a word is not JSON.
        return line.startswith(b"data:") and line.rstrip(_BLANK_BYTES).endswith((b"}", b"]", b'"'))

    def _complete(self, data: list[str], event: str, items: list[Any]) -> None:
        values = _parse_at_once(data) if len(data) > 1 else None
        if values is not None:
            items += values
            return
        for text in data:
            reason = _parse_lines(text, items)
            if reason is not None:
                self._fail(reason, len(items))
                return


class JSONDecoder(Decoder[Any]):
    """JSON values, however a model server puts them into its parts.

    Either they follow one another, with or without white space between them, or they are the data of server-sent
    events, one in each or on each line. That is decided once: ``data:``, ``event:``, ``id:``, ``retry:`` or ``:`` begin
    a stream of events, anything else values. White space before is skipped, and so is a byte order mark, as RFC 8259,
    8.1, allows.

    Numbers, true, false and null last until white space or the end of the stream, so that a number may be cut. In a
    stream of events, blank data and the end marker ``[DONE]`` are skipped, fields other than data are ignored, and a
    line that is not a field is an error. The last line may lack its end if a bracket or quote shows that its value is
    whole.

    Python's json decides what is a value: NaN and Infinity are read, the last of equal keys counts.

    >>> decoder = JSONDecoder()
    >>> decoder.feed(b'{"a": 1}{"b"'), decoder.feed(b': 2} [3,\\n4] 5'), decoder.feed(b'6'), decoder.finish()
    ([{'a': 1}], [{'b': 2}, [3, 4]], [], [56])
    >>> JSONDecoder().feed(b'data: {"a": 1}\\n\\ndata: [DONE]\\n\\n')
    [{'a': 1}]
    """

    __slots__ = ("_begun", "_events", "_extent", "_linewise")

    def __init__(self) -> None:
        super().__init__()
        # Whether the kind of stream is known; the events, if it is a stream of events.
        self._begun = False
        self._events: _JSONEventDecoder | None = None
        # Whether each value so far had a line to itself.
        self._linewise = True
        # Of the pending value, if any.
        self._extent: _Extent | None = None

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished value are held."""
        return super().pending_bytes if self._events is None else self._events.pending_bytes

    def _position(self, number: int) -> str:
        return f"JSON value {number}, at byte {self._offset} of the stream,"

    def _decode(self, data: bytes) -> list[Any]:
        if not self._begun:
            data = self._begin(self._release(data))
        if not self._begun:
            return []
        if self._events is not None:
            return self._from_events(self._events._decode(data), self._events)
        return self._decode_values(data)

    def _decode_rest(self) -> list[Any]:
        if self._events is not None:
            return self._from_events(self._events._decode_rest(), self._events)
        if not self._begun:
            return self._decode_values(self._release(b"\n"))
        # The end of the stream ends a value as white space does.
        values = self._decode_values(b"\n")
        if self._pending:
            self._fail("is unfinished: the stream ends inside it", 0)
        return values

    def _from_events(self, values: list[Any], events: _JSONEventDecoder) -> list[Any]:
        events._count += len(values)
        self._fault = events._fault
        return values

    def _begin(self, data: bytes) -> bytes:
        """Find out the kind of stream, if that is clear yet; return the bytes to continue with."""
        if self._offset == 0 and data.startswith(BOM_UTF8):
            self._offset = len(BOM_UTF8)
            data = data.removeprefix(BOM_UTF8)
        start = data.lstrip(_BLANK_BYTES)
        self._offset += len(data) - len(start)
        # No JSON value begins so.
        if start.startswith(FIELDS):
            self._events = _JSONEventDecoder()
            self._events._offset = self._offset
        elif any(mark.startswith(start) for mark in (BOM_UTF8, *FIELDS)):
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
        text, used, _ = decode_utf8(data)
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
                # A number or a word that may continue.
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


class _Extent:
    """Finds the end of a JSON value that comes in pieces; looks at each byte once.

    For a malformed value it finds some end, the same one however the value was cut.

    Args:
        first: the value's first byte.
    """

    __slots__ = ("_depth", "_escape", "_in_string", "_nested")

    def __init__(self, first: int) -> None:
        self._nested = first in b"{["
        self._depth = int(self._nested)
        self._in_string = first == ord('"')
        # The backslash at the end of the bytes so far, if the next byte is the escaped one.
        self._escape = b""

    def ends_in(self, data: bytes) -> bool:
        """Return whether the value ends in the next bytes; do not call this again after True."""
        if not self._nested and not self._in_string:
            return _find_blank(data) is not None
        if self._escape or b"\\" in data:
            data = (self._escape + data).replace(b"\\\\", b"").replace(b'\\"', b"")
            self._escape = data[-1:] if data.endswith(b"\\") else b""
        # The quotes left are those that delimit strings, so every other piece is outside a string.
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


def _filled_lines(text: str) -> list[str]:
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return list(filter(None, text.split("\n")))


def _parse_at_once(texts: list[str]) -> list[Any] | None:
    """Return the values in some texts, one in each; None if the texts must be parsed one by one.

    All are parsed as one array, which costs less than half. A mark between the texts, which none of them contains,
    shows that each text is a value, and not two values or a piece of one: if every second item is a mark, then no mark
    is inside an array that a text has begun, and between two marks is one value.
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
    """Return the only value in a text without white space around it.

    Raises:
        ValueError, RecursionError: the text is not exactly one value.
    """
    value, end = _json.raw_decode(text)
    if end < len(text):
        raise ValueError("more than one value")
    return value


def _parse_lines(text: str, items: list[Any]) -> str | None:
    """Append the values in a text, each of which begins on a new line; return what is wrong with the text, if anything.

    Blank lines and the end marker are skipped.
    """
    at = 0
    while (found := _find_token(text, at)) is not None:
        values = []
        if text.startswith(_END_MARKER, found.start()):
            at = found.start() + len(_END_MARKER)
        else:
            try:
                value, at = _json.raw_decode(text, found.start())
            except (ValueError, RecursionError) as error:
                return _reason(error)
            values.append(value)
        if (following := _find_token(text, at)) is not None and "\n" not in text[at : following.start()]:
            return "is not JSON"
        items += values
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is not JSON"
