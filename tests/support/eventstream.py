"""An encoder of event-stream messages with any headers, written from the specification and apart from the package."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Typed", "encode", "encode_error", "encode_headers", "seal"]


class Typed(NamedTuple):
    """A header value with an explicit type number, for types that Python does not tell apart."""

    number: int
    octets: bytes


def encode_headers(headers: Mapping[str, bool | int | bytes | str | Typed]) -> bytes:
    """A header block; an int takes 32 bits, or 64 if it needs them."""
    return b"".join(_encode_header(name, value) for name, value in headers.items())


def _encode_header(name: str, value: bool | int | bytes | str | Typed) -> bytes:
    octets = name.encode()
    before = bytes((len(octets),)) + octets
    if isinstance(value, Typed):
        return before + bytes((value.number,)) + value.octets
    if isinstance(value, bool):
        return before + (b"\0" if value else b"\1")
    if isinstance(value, int):
        return before + (struct.pack(">bi", 4, value) if -(2**31) <= value < 2**31 else struct.pack(">bq", 5, value))
    octets = value.encode() if isinstance(value, str) else value
    return before + (b"\7" if isinstance(value, str) else b"\6") + struct.pack(">H", len(octets)) + octets


def seal(header_block: bytes, payload: bytes = b"", *, total: int | None = None, headers: int | None = None) -> bytes:
    """A frame with good checksums, whatever its lengths say."""
    lengths = struct.pack(
        ">II",
        16 + len(header_block) + len(payload) if total is None else total,
        len(header_block) if headers is None else headers,
    )
    before = lengths + struct.pack(">I", zlib.crc32(lengths)) + header_block + payload
    return before + struct.pack(">I", zlib.crc32(before))


def encode(headers: Mapping[str, bool | int | bytes | str | Typed], payload: bytes = b"") -> bytes:
    """One message."""
    return seal(encode_headers(headers), payload)


def encode_error(code: str, message: str) -> bytes:
    """An unmodelled error."""
    return encode({":error-code": code, ":error-message": message, ":message-type": "error"})
