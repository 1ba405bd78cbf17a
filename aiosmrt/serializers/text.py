"""Text and bytes, sent and read as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from aiosmrt.errors import SerializationError
from aiosmrt.serializers.codec import TEXT_TYPES, Codec
from aiosmrt.serializers.objects import type_name

__all__ = ["BYTES", "TEXT", "BytesCodec", "TextCodec"]

BytesLike: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, kw_only=True)
class TextCodec(Codec):
    """Text as it is.

    Serializes ``str``. Deserializes text types, including JSON and XML, to ``str``.

    Args:
        content_type: the request's type; its ``charset`` parameter decides how text is encoded. Defaults to UTF-8.
        accept: the response's type; its ``charset`` parameter applies to responses that name none.

    Raises:
        ParamValidationError: a header is invalid, or names an unknown charset.

    >>> TEXT.serialize("naïve")
    b'na\\xc3\\xafve'
    >>> TEXT.deserialize(b"na\\xefve", "text/plain; charset=ISO-8859-1")
    'naïve'
    >>> TextCodec(accept="application/json").deserialize(b'{"score": 0.5}', "application/json")
    '{"score": 0.5}'
    """

    content_type: str = "text/plain"
    accept: str = "text/plain"

    _kin = TEXT_TYPES

    def serialize(self, data: str, /) -> bytes:
        """Encode text.

        Raises:
            SerializationError: the object is not a ``str``, or the charset lacks one of its characters.
        """
        if not isinstance(data, str):
            raise SerializationError(f"data must be a str; got a {type_name(data)}")
        return self._encode(data)

    def deserialize(self, body: bytes, content_type: str, /) -> str:
        """Decode text.

        Raises:
            DeserializationError: the response is not a text type, or not in its charset.
        """
        self._expect(content_type)
        return self._decode(body, content_type)


@dataclass(frozen=True, kw_only=True)
class BytesCodec(Codec):
    """Bytes as they are, for bodies that are made elsewhere.

    Serializes ``bytes``, ``bytearray`` and ``memoryview``. Deserializes every response to ``bytes``.

    Args:
        content_type: the request's type, such as ``"application/x-image"``.
        accept: the response's type; any other is read as well.

    Raises:
        ParamValidationError: a header is invalid.

    >>> BytesCodec(content_type="application/x-image").serialize(memoryview(b"GIF89a"))
    b'GIF89a'
    """

    content_type: str = "application/octet-stream"
    accept: str = "*/*"

    def serialize(self, data: BytesLike, /) -> bytes:
        """Return the bytes.

        Raises:
            SerializationError: the object is not bytes; `TEXT` takes text.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise SerializationError(f"data must be bytes; got a {type_name(data)}")
        return bytes(data)

    def deserialize(self, body: bytes, content_type: str, /) -> bytes:
        """Return the body."""
        return body


TEXT: Final = TextCodec()
"""`TextCodec` with its defaults."""

BYTES: Final = BytesCodec()
"""`BytesCodec` with its defaults."""
