"""Text and bytes as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from aiosmrt.errors import SerializationError
from aiosmrt.serializers.codec import Codec
from aiosmrt.serializers.objects import kind_of

__all__ = ["BYTES", "TEXT", "BytesCodec", "TextCodec"]

BytesLike: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, kw_only=True)
class TextCodec(Codec):
    """Text as it is.

    Serializes ``str``.  Deserializes to ``str`` what is text by its type, JSON and XML included.

    Args:
        content_type: the request's type; a ``charset`` parameter decides how text is encoded, UTF-8 without one.
        accept: what the response shall be; a ``charset`` parameter is for responses that name none themselves.

    Raises:
        ParamValidationError: a header cannot be one, or names a charset that Python does not know.

    >>> TEXT.serialize("naïve")
    b'na\\xc3\\xafve'
    >>> TEXT.deserialize(b"na\\xefve", "text/plain; charset=ISO-8859-1")
    'naïve'
    >>> TextCodec(accept="application/json").deserialize(b'{"score": 0.5}', "application/json")
    '{"score": 0.5}'
    """

    content_type: str = "text/plain"
    accept: str = "text/plain"

    _kin = r"text/.+|[^/]+/(.+\+)?(json|xml|yaml)|application/(x-)?(jsonlines|json-lines|jsonl|ndjson|csv)"

    def serialize(self, data: str, /) -> bytes:
        """Encode text.

        Raises:
            SerializationError: it is no ``str``, or the charset lacks one of its characters.
        """
        if not isinstance(data, str):
            raise SerializationError(f"data is a {kind_of(data)}, not text")
        return self._encode(data)

    def deserialize(self, body: bytes, content_type: str, /) -> str:
        """Decode text.

        Raises:
            DeserializationError: the response is no text by its type, or not in its charset.
        """
        self._expect(content_type)
        return self._decode(body, content_type)


@dataclass(frozen=True, kw_only=True)
class BytesCodec(Codec):
    """Bytes as they are: the body is made elsewhere.

    Serializes ``bytes``, ``bytearray`` and ``memoryview``.  Deserializes every response to ``bytes``.

    Args:
        content_type: the request's type, such as ``"application/x-image"``.
        accept: what the response shall be; any other is given as well.

    Raises:
        ParamValidationError: a header cannot be one.

    >>> BytesCodec(content_type="application/x-image").serialize(memoryview(b"GIF89a"))
    b'GIF89a'
    """

    content_type: str = "application/octet-stream"
    accept: str = "*/*"

    def serialize(self, data: BytesLike, /) -> bytes:
        """Give the bytes.

        Raises:
            SerializationError: there are none; text is for `TEXT`.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise SerializationError(f"data is a {kind_of(data)}, not bytes")
        return bytes(data)

    def deserialize(self, body: bytes, content_type: str, /) -> bytes:
        """Give the body."""
        return body


TEXT: Final = TextCodec()
"""`TextCodec` with its defaults."""

BYTES: Final = BytesCodec()
"""`BytesCodec` with its defaults."""
