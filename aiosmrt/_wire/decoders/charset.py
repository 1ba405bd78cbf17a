"""Streams in other charsets than UTF-8."""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Generic

from aiosmrt._wire.decoders.base import StreamDecoder, T
from aiosmrt.errors import DeserializationError

__all__ = ["TranscodingDecoder"]


class TranscodingDecoder(Generic[T]):
    r"""Feeds another decoder, which reads UTF-8, with text in another charset.

    Args:
        decoder: makes the items; positions in its errors count bytes of UTF-8.
        encoding: Python's name of the charset.

    >>> from aiosmrt._wire.decoders.text import LineDecoder
    >>> decoder = TranscodingDecoder(LineDecoder(), "utf-16")
    >>> data = "\ufeffé\nb".encode("utf-16-le")
    >>> decoder.feed(data[:3]), decoder.feed(data[3:]), decoder.finish()
    ([], ['é'], ['b'])
    """

    __slots__ = ("_characters", "_decoder", "_encoding", "_fault", "_text")

    def __init__(self, decoder: StreamDecoder[T], encoding: str) -> None:
        self._decoder = decoder
        self._encoding = encoding
        self._text = getincrementaldecoder(encoding)()
        # how many were decoded; where a malformed one begins in bytes depends on how the stream was cut
        self._characters = 0
        self._fault: str | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} from {self._encoding} to {self._decoder!r}>"

    @property
    def failure(self) -> DeserializationError | None:
        """The error that the next call raises, if any."""
        if (failure := self._decoder.failure) is not None:
            return failure
        return None if self._fault is None else DeserializationError(self._fault)

    def feed(self, data: bytes, /) -> Sequence[T]:
        """Take the next bytes of the stream and return the items that they complete.

        Raises:
            DeserializationError: the bytes are not in the charset, or the other decoder raises it.
        """
        items: Sequence[T] = []
        if self._fault is None and (text := self._decoded(data)):
            items = self._decoder.feed(text)
        if not items and self._fault is not None:
            raise DeserializationError(self._fault)
        return items

    def finish(self) -> Sequence[T]:
        """Note that the stream has ended and return the items that this completes.

        Raises:
            DeserializationError: the stream ends inside a character, or the other decoder raises it.
        """
        items = [*self.feed(b"")]
        if rest := self._decoded(b"", final=True):
            items += self._decoder.feed(rest)
        if self._fault is not None:
            raise DeserializationError(self._fault)
        return [*items, *self._decoder.finish()]

    def _decoded(self, data: bytes, *, final: bool = False) -> bytes:
        """Return the text of some more bytes in UTF-8, up to a malformed character."""
        state = self._text.getstate()
        try:
            text = self._text.decode(data, final)
        except UnicodeDecodeError as error:
            # The error counts from the bytes of an unfinished character that were fed before.
            held = len(error.object) - len(data)
            self._text.setstate(state)
            text = self._text.decode(data[: max(0, error.start - held)])
            after = self._characters + len(text)
            self._fault = f"the text after character {after} of the stream is not {self._encoding}"
        except UnicodeError:
            # UTF-16 or UTF-32 without a byte order mark. Python reads a whole body in the order of the machine then.
            order = "le" if sys.byteorder == "little" else "be"
            self._text = getincrementaldecoder(f"{self._encoding}-{order}")()
            return self._decoded(state[0] + data, final=final)
        self._characters += len(text)
        # The other decoder refuses a lone surrogate, which UTF-7 can express.
        return text.encode(errors="surrogatepass")
