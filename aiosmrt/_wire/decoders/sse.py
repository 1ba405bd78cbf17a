"""Bytes into server-sent events."""

from __future__ import annotations

from abc import abstractmethod
from codecs import BOM_UTF8
from typing import ClassVar, Final

from aiosmrt._wire.decoders.base import Decoder, T
from aiosmrt._wire.decoders.event import ServerSentEvent

__all__ = ["FIELDS", "EventDecoder", "SSEDecoder"]

# 10^18 milliseconds are 30 million years; int() needs some bound.
_MAX_RETRY_DIGITS: Final = 18

# So many data lines of an unfinished event are joined: a line of two bytes takes the memory of forty.
_LINES_JOINED: Final = 1024

_MESSAGE: Final = "message"
FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
"""How a line of server-sent events begins."""

_NOT_A_FIELD: Final = "has a line that is not a field of server-sent events (data, event, id, retry) or a comment"
_UNFINISHED: Final = "is unfinished: the stream ends inside a line"


class EventDecoder(Decoder[T]):
    """The rules of server-sent events; `_complete` makes items of the events."""

    __slots__ = ("_after_cr", "_data", "_data_bytes", "_event", "_id", "_joined", "_retry")

    # What malformed UTF-8 is: an error ("strict"), or U+FFFD ("replace").
    _malformed: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        # Whether the latest byte was a CR, so that an LF would belong to the same line end.
        self._after_cr = False
        # The unfinished event: its data lines, how many of its items are not to be joined any more (the first line and
        # those that were joined), their length with an LF each, and its type.
        self._data: list[bytes] = []
        self._joined = 1
        self._data_bytes = 0
        self._event = ""
        self._id = ""
        self._retry: int | None = None

    @abstractmethod
    def _complete(self, data: list[str], event: str, items: list[T]) -> None:
        """Append the items for some events of one type, given their data; may fail."""

    def _take_data(self, items: list[T]) -> None:
        """Look at the unfinished event, whose latest data line is new."""

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished event are held."""
        return len(self._pending) + self._data_bytes

    def _position(self, number: int) -> str:
        return f"event {number}, which ends after byte {self._offset} of the stream,"

    def _decode(self, data: bytes) -> list[T]:
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
        items: list[T] = []
        if end:
            self._after_cr = data.endswith(b"\r")
            self._decode_lines(self._release(data[:end]), items)
        if end < len(data) and self._fault is None:
            self._hold(data[end:], len(items))
        return items

    def _decode_rest(self) -> list[T]:
        items: list[T] = []
        if self._pending.strip() and not self._may_lack_end(self._pending):
            self._fail(_UNFINISHED if _is_begin_of_field(self._pending) else _NOT_A_FIELD, 0)
        else:
            # The end of the stream stands for that of the last line, and for a blank line.
            self._decode_lines(self._release() + b"\n\n", items)
        return items

    def _may_lack_end(self, line: bytes | bytearray) -> bool:
        """Return whether the last line of the stream is whole although its end is missing."""
        return False

    def _fail(self, reason: str, before: int) -> None:
        super()._fail(reason, before)
        self._data.clear()
        self._data_bytes = 0

    def _decode_lines(self, lines: bytes, items: list[T]) -> None:
        """Decode whole lines and append the items of the events that they complete."""
        if not self._data and not self._event and lines.startswith(b"data:") and len(lines) <= self._max_item_bytes:
            rest = self._take_plain_events(lines, items)
        else:
            rest = lines
        # On bytes, splitlines() splits at LF, CR and CRLF, and nothing else.
        for line in rest.splitlines() if self._fault is None else ():
            if not line:
                if self._data:
                    self._dispatch(items)
                self._event = ""
            else:
                self._take_line(line, items)
            if self._fault is not None:
                return
        self._offset += len(lines)

    def _take_line(self, line: bytes, items: list[T]) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._hold_line(value)
        elif field == b"event":
            self._event = value.decode(errors="replace")
        elif field == b"id":
            if b"\0" not in value:
                self._id = value.decode(errors="replace")
        elif field == b"retry":
            if value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self._retry = int(value)
        elif field and not line.isspace():
            self._fail(_NOT_A_FIELD, len(items))
            return
        if len(line) > self._max_item_bytes or self._data_bytes - 1 > self._max_item_bytes:
            self._fail(self._too_long(), len(items))
        elif field == b"data":
            self._take_data(items)

    def _hold_line(self, value: bytes) -> None:
        """Add a data line to the unfinished event."""
        held = self._data
        if not held:
            self._joined = 1
        elif len(held) - self._joined == _LINES_JOINED:
            held[self._joined :] = [b"\n".join(held[self._joined :])]
            self._joined += 1
        held.append(value)
        self._data_bytes += len(value) + 1

    def _take_plain_events(self, lines: bytes, items: list[T]) -> bytes:
        """Decode the whole events at once if each is one data line; return the lines that are left."""
        if b"\r" in lines:
            lines = lines.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = lines.rfind(b"\n\n") + 2
        try:
            text = lines[:end].decode(errors=self._malformed) if end > 1 else ""
        except UnicodeDecodeError:
            return lines
        prefix = "data: " if text.startswith("data: ") else "data:"
        found = text[len(prefix) : -2].split("\n\n" + prefix)
        # Two LFs for each event leave none that could be inside an event.
        if text.count("\n") != 2 * len(found) or (prefix == "data:" and "\ndata: " in text):
            return lines
        self._complete(found, _MESSAGE, items)
        return lines[end:]

    def _dispatch(self, items: list[T]) -> None:
        """Complete the unfinished event."""
        lines = b"\n".join(self._data)
        self._data.clear()
        self._data_bytes = 0
        try:
            data = lines.decode(errors=self._malformed)
        except UnicodeDecodeError:
            self._fail("is not UTF-8", len(items))
        else:
            self._complete([data], self._event or _MESSAGE, items)


class SSEDecoder(EventDecoder[ServerSentEvent]):
    """Server-sent events, as https://html.spec.whatwg.org/multipage/server-sent-events.html interprets a stream.

    With two exceptions, so that nothing is lost in silence:

    - The specification ignores lines that are not one of its fields; here such a line is an error unless it is blank.
      Either the stream is not one of events, or the server wrote an error message between its events.
    - The specification discards an event that lacks the blank line after it when the stream ends. `finish` returns it,
      because model servers forget that line. A last line without its end is an error: the rest of it may be missing.

    Malformed UTF-8 becomes U+FFFD, as the specification requires: one broken character is not a reason to lose the rest
    of an answer. A block without data lines is not an event, but its id and its retry count for the events that follow.

    >>> decoder = SSEDecoder()
    >>> decoder.feed(b"event: token\\ndata: Hel"), decoder.feed(b"lo\\n")
    ([], [])
    >>> [event] = decoder.feed(b"\\n: a comment\\n\\n")
    >>> event.event, event.data
    ('token', 'Hello')
    """

    __slots__ = ()

    _malformed = "replace"

    def _complete(self, data: list[str], event: str, items: list[ServerSentEvent]) -> None:
        make, event_id, retry = tuple.__new__, self._id, self._retry
        items += [make(ServerSentEvent, (event, item, event_id, retry)) for item in data]


def _is_begin_of_field(line: bytes | bytearray) -> bool:
    """Return whether a line is a field, a comment, or the beginning of one."""
    return any(field.startswith(line) or line.startswith(field) for field in FIELDS)
