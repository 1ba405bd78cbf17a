"""The header block of an event-stream message: what a header may hold, and how it is written and read.

::

    name length u8 | name | type u8 | value
    types: 0 true, 1 false, 2 byte, 3 short, 4 integer, 5 long,
           6 bytes and 7 string (u16 length before them), 8 timestamp (milliseconds), 9 UUID

Python has one int where the wire has five.  Each that is not the plain 32-bit one is read as a subclass of int (and a
UUID as a subclass of bytes), so a value compares as usual and is still written with the type that it was read with.

https://smithy.io/2.0/aws/amazon-eventstream.html#headers-format is the specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from aiosmrt.errors import HeaderFormatError

__all__ = [
    "Byte",
    "EventHeaders",
    "HeaderValue",
    "Long",
    "Short",
    "Timestamp",
    "Uuid",
    "encode_headers",
    "parse_headers",
]

_MAX_NAME_BYTES: Final = 2**8 - 1
_MAX_VALUE_BYTES: Final = 2**15 - 1  # for encoding; peers read the u16 length as an i16


class Byte(int):
    """A header value that travels as one signed byte."""

    __slots__ = ()


class Short(int):
    """A header value that travels as a signed 16-bit integer."""

    __slots__ = ()


class Long(int):
    """A header value that travels as a signed 64-bit integer; a plain int that fits travels in 32 bits."""

    __slots__ = ()


class Timestamp(int):
    """A header value that is a time, in milliseconds since the Unix epoch."""

    __slots__ = ()


class Uuid(bytes):
    """A header value that is a UUID, as its 16 bytes."""

    __slots__ = ()


_NAMED: Final = {
    ":message-type": "message_type",
    ":event-type": "event_type",
    ":exception-type": "exception_type",
    ":content-type": "content_type",
    ":error-code": "error_code",
    ":error-message": "error_message",
}

HeaderValue: TypeAlias = bool | int | bytes | str
"""A header's value: bool, `Byte`, `Short`, int (32 bits), `Long`, bytes, str, `Timestamp` or `Uuid`."""


class EventHeaders(Mapping[str, HeaderValue]):
    """The headers of one message: an immutable mapping, shared by all messages with the same header block.

    Args:
        values: header names and values; copied.

    Attributes:
        message_type: ``:message-type``, which is ``event``, ``exception`` or ``error``.
        event_type: ``:event-type``, such as ``PayloadPart``.
        exception_type: ``:exception-type``, such as ``ModelStreamError``.
        content_type: ``:content-type``, the media type of the payload.
        error_code: ``:error-code`` of a message of type ``error``.
        error_message: ``:error-message`` of a message of type ``error``.

    Each attribute is None where the header is missing or is not a string.

    >>> headers = EventHeaders({":message-type": "event", ":event-type": "PayloadPart"})
    >>> headers.event_type, headers[":message-type"], headers.exception_type
    ('PayloadPart', 'event', None)
    """

    __slots__ = ("_values", *_NAMED.values())

    message_type: str | None
    event_type: str | None
    exception_type: str | None
    content_type: str | None
    error_code: str | None
    error_message: str | None
    _values: dict[str, HeaderValue]

    def __init__(self, values: Mapping[str, HeaderValue]) -> None:
        put = super().__setattr__
        put("_values", dict(values))
        for name, attribute in _NAMED.items():
            value = values.get(name)
            put(attribute, value if isinstance(value, str) else None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __getitem__(self, name: str) -> HeaderValue:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[type[EventHeaders], tuple[dict[str, HeaderValue]]]:
        return type(self), (dict(self._values),)

    def __repr__(self) -> str:
        # Values may quote what the model said.
        return f"<{type(self).__name__} {', '.join(map(repr, self._values))}>"


_FIXED: Final[Mapping[int, tuple[struct.Struct, type[int]]]] = {
    2: (struct.Struct(">b"), Byte),
    3: (struct.Struct(">h"), Short),
    4: (struct.Struct(">i"), int),
    5: (struct.Struct(">q"), Long),
    8: (struct.Struct(">q"), Timestamp),
}
_NUMBER_OF: Final[Mapping[type, int]] = {Byte: 2, Short: 3, Long: 5, Timestamp: 8}
_UUID_BYTES: Final = 16


def parse_headers(block: bytes) -> EventHeaders:
    """Parse a header block.

    Args:
        block: the bytes between prelude and payload.

    Raises:
        HeaderFormatError: the block is malformed, or a name occurs twice.

    >>> parse_headers(b"\\x02ok\\x00")["ok"]
    True
    """
    values: dict[str, HeaderValue] = {}
    position = 0
    try:
        while position < len(block):
            name_end = position + 1 + block[position]
            name = block[position + 1 : name_end].decode()
            kind = block[name_end]
            if not name:
                raise HeaderFormatError("a header has no name")
            if name in values:
                raise HeaderFormatError("a header occurs twice in one message")
            values[name], position = _parse_value(block, name_end + 1, kind)
    except UnicodeDecodeError:
        raise HeaderFormatError("a header is not valid UTF-8") from None
    except (IndexError, struct.error):
        raise HeaderFormatError("a header runs over the end of the header block") from None
    return EventHeaders(values)


def _parse_value(block: bytes, position: int, kind: int) -> tuple[HeaderValue, int]:
    if kind == 6 or kind == 7:
        start = position + 2
        end = start + int.from_bytes(block[position:start])
        if end > len(block) or start > len(block):
            raise IndexError
        value = block[start:end]
        return (value.decode() if kind == 7 else value), end
    if kind in _FIXED:
        layout, of = _FIXED[kind]
        return of(layout.unpack_from(block, position)[0]), position + layout.size
    if kind < 2:
        return kind == 0, position
    if kind == 9:
        end = position + _UUID_BYTES
        if end > len(block):
            raise IndexError
        return Uuid(block[position:end]), end
    raise HeaderFormatError(f"a header has the unknown type {kind}")


def encode_headers(headers: Mapping[str, HeaderValue]) -> bytes:
    """Encode a header block.

    Args:
        headers: names of 1 to 255 bytes in UTF-8, and values; strings and bytes of up to 32,767 bytes.

    Raises:
        HeaderFormatError: a header cannot be expressed.

    >>> encode_headers({"ok": True})
    b'\\x02ok\\x00'
    """
    return b"".join([_encode_header(name, value) for name, value in headers.items()])


def _encode_header(name: str, value: HeaderValue) -> bytes:
    octets = _utf8(name)
    if not 1 <= len(octets) <= _MAX_NAME_BYTES:
        raise HeaderFormatError(f"a header's name has {len(octets)} bytes; 1 to 255 can be expressed")
    return bytes((len(octets),)) + octets + _encode_value(value)


def _encode_value(value: HeaderValue) -> bytes:
    if isinstance(value, bool):
        return b"\x00" if value else b"\x01"
    if isinstance(value, Uuid):
        if len(value) != _UUID_BYTES:
            raise HeaderFormatError(f"a UUID has 16 bytes, not {len(value)}")
        return b"\x09" + value
    if isinstance(value, str | bytes):
        kind, octets = (b"\x07", _utf8(value)) if isinstance(value, str) else (b"\x06", value)
        if len(octets) > _MAX_VALUE_BYTES:
            raise HeaderFormatError(f"a header's value of {len(octets)} bytes exceeds {_MAX_VALUE_BYTES} bytes")
        return kind + len(octets).to_bytes(2) + octets
    if isinstance(value, int):
        number = _NUMBER_OF.get(type(value)) or (4 if -(2**31) <= value < 2**31 else 5)
        try:
            return bytes((number,)) + _FIXED[number][0].pack(value)
        except struct.error:
            raise HeaderFormatError(f"a header's value does not fit into a {type(value).__name__}") from None
    raise HeaderFormatError(f"a header cannot hold a {type(value).__name__}")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise HeaderFormatError("a header holds a lone surrogate, which UTF-8 cannot express") from None
