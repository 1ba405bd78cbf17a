"""Streams in other charsets than UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Generic, TypeVar

from aiosmrt._wire.decoders.base import StreamDecoder
from aiosmrt.errors import DeserializationError

__all__ = ["RecodingDecoder"]

T = TypeVar("T")


class RecodingDecoder(Generic[T]):
    """Passes a stream on in UTF-8.

    Args:
        encoding: Python's name for the stream's charset.
        decoder: decodes UTF-8.

    Raises:
        LookupError: the charset cannot be decoded piece by piece.

    >>> from aiosmrt._wire.decoders.text import TextDecoder
    >>> decoder = RecodingDecoder("utf-16-le", TextDecoder())
    >>> decoder.feed(b"h\\0i"), decoder.feed(b"\\0"), decoder.finish()
    (['h'], ['i'], [])
    """

    __slots__ = ("_decoder", "_encoding", "_fault", "_offset", "_recoder")

    def __init__(self, encoding: str, decoder: StreamDecoder[T]) -> None:
        self._encoding = encoding
        self._decoder = decoder
        self._recoder = codecs.getincrementaldecoder(encoding)("strict")
        # of the bytes that were passed on
        self._offset = 0
        self._fault: str | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._encoding} of {self._decoder!r}>"

    @property
    def failure(self) -> DeserializationError | None:
        """The error that the next call raises, if any."""
        return self._decoder.failure or (None if self._fault is None else DeserializationError(self._fault))

    def feed(self, data: bytes, /) -> Sequence[T]:
        """Take the next bytes of the stream and return the items that they complete.

        Raises:
            DeserializationError: the bytes are not in the charset, or as the other decoder.
        """
        return self._given(self._decoder.feed(self._recoded(data)) if self._fault is None else [])

    def finish(self) -> Sequence[T]:
        """Note that the stream has ended and return the items that this completes.

        Raises:
            DeserializationError: the stream ended inside a character, or as the other decoder.
        """
        if self._fault is None:
            try:
                self._recoder.decode(b"", final=True)
            except UnicodeError:
                self._fault = f"the stream ends inside a character of {self._encoding}"
        return self._given(self._decoder.finish() if self._fault is None else [])

    def _given(self, items: Sequence[T]) -> Sequence[T]:
        if not items and self._fault is not None:
            raise DeserializationError(self._fault)
        return items

    def _recoded(self, data: bytes) -> bytes:
        """Return in UTF-8 what some bytes complete, up to the first that is not in the charset."""
        state = self._recoder.getstate()
        try:
            text = self._recoder.decode(data)
        except UnicodeError:
            self._recoder.setstate(state)
            text = self._up_to_fault(data)
        else:
            self._offset += len(data)
        # A charset that knows surrogates does not make them characters; the other decoder refuses them.
        return text.encode("utf-8", "surrogatepass")

    def _up_to_fault(self, data: bytes) -> str:
        text = ""
        for at in range(len(data)):
            try:
                text += self._recoder.decode(data[at : at + 1])
            except UnicodeError:
                self._fault = f"the stream is not {self._encoding} at byte {self._offset + at}"
                break
        return text
