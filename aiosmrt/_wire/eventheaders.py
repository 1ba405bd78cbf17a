"""Parses and encodes the header block of an event-stream message.

::

    name length u8 | name | type u8 | value
    types: 0 true, 1 false, 2 byte, 3 short, 4 integer, 5 long,
           6 bytes and 7 string (both after a u16 length), 8 timestamp (milliseconds), 9 UUID

Numbers of all widths and timestamps become int, UUIDs become bytes. The specification is
https://smithy.io/2.0/aws/amazon-eventstream.html#headers-format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from aiosmrt.errors import HeaderFormatError

__all__ = ["EventHeaders", "HeaderValue", "encode_header", "encode_timestamp", "parse_headers"]

_NAMED: Final = {
    ":message-type": "message_type",
    ":event-type": "event_type",
    ":exception-type": "exception_type",
    ":content-type": "content_type",
    ":error-code": "error_code",
    ":error-message": "error_message",
}

HeaderValue: TypeAlias = bool | int | bytes | str


class EventHeaders(Mapping[str, HeaderValue]):
    """The headers of a message: an immutable mapping, shared by all messages with the same header block.

    Args:
        values: header names and values; copied.

    Attributes:
        message_type: ``:message-type``: ``event``, ``exception`` or ``error``.
        event_type: ``:event-type``, such as ``PayloadPart``.
        exception_type: ``:exception-type``, such as ``ModelStreamError``.
        content_type: ``:content-type``, the media type of the payload.
        error_code: ``:error-code`` of a message of type ``error``.
        error_message: ``:error-message`` of a message of type ``error``.

    An attribute is None if its header is missing or is not a string.

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
        # Values may quote the model's output.
        return f"<{type(self).__name__} {', '.join(map(repr, self._values))}>"


_NUMBERS: Final[Mapping[int, struct.Struct]] = {
    2: struct.Struct(">b"),
    3: struct.Struct(">h"),
    4: struct.Struct(">i"),
    5: struct.Struct(">q"),
    8: struct.Struct(">q"),
}
_UUID_BYTES: Final = 16
_MAX_NAME_BYTES: Final = 255
_MAX_VALUE_BYTES: Final = 65_535


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
                raise HeaderFormatError("a header has an empty name")
            if name in values:
                raise HeaderFormatError("a header occurs twice in one message")
            values[name], position = _parse_value(block, name_end + 1, kind)
    except UnicodeDecodeError:
        raise HeaderFormatError("a header is not valid UTF-8") from None
    except (IndexError, struct.error):
        raise HeaderFormatError("a header extends beyond the header block") from None
    return EventHeaders(values)


def _parse_value(block: bytes, position: int, kind: int) -> tuple[HeaderValue, int]:
    if kind == 6 or kind == 7:
        start = position + 2
        end = start + int.from_bytes(block[position:start])
        if end > len(block) or start > len(block):
            raise IndexError
        value = block[start:end]
        return (value.decode() if kind == 7 else value), end
    if kind in _NUMBERS:
        layout = _NUMBERS[kind]
        number: int = layout.unpack_from(block, position)[0]
        return number, position + layout.size
    if kind < 2:
        return kind == 0, position
    if kind == 9:
        end = position + _UUID_BYTES
        if end > len(block):
            raise IndexError
        return block[position:end], end
    raise HeaderFormatError(f"a header has the unknown type {kind}")


def encode_header(name: str, value: str | bytes) -> bytes:
    """Encode a header whose value is text or bytes.

    Args:
        name: its name, up to 255 bytes.
        value: its value, up to 65,535 bytes.

    Raises:
        HeaderFormatError: name or value is too long.

    >>> parse_headers(encode_header("DataType", "UTF8"))["DataType"]
    'UTF8'
    """
    kind, octets = (b"\x07", value.encode()) if isinstance(value, str) else (b"\x06", value)
    if len(octets) > _MAX_VALUE_BYTES:
        raise HeaderFormatError(f"a header's value must be at most {_MAX_VALUE_BYTES} bytes; got {len(octets)}")
    return b"".join((_encode_name(name), kind, len(octets).to_bytes(2), octets))


def encode_timestamp(name: str, milliseconds: int) -> bytes:
    """Encode a header whose value is a time.

    Args:
        name: its name, up to 255 bytes.
        milliseconds: since 1970.

    >>> parse_headers(encode_timestamp(":date", 1440938160000))[":date"]
    1440938160000
    """
    return _encode_name(name) + b"\x08" + milliseconds.to_bytes(8, signed=True)


def _encode_name(name: str) -> bytes:
    octets = name.encode()
    if not 1 <= len(octets) <= _MAX_NAME_BYTES:
        raise HeaderFormatError(f"a header's name must be 1 to {_MAX_NAME_BYTES} bytes; got {len(octets)}")
    return bytes((len(octets),)) + octets
