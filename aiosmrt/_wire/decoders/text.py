"""Bytes into text and lines."""

from __future__ import annotations

import sys
from abc import abstractmethod
from codecs import getincrementaldecoder, utf_8_decode
from collections.abc import Sequence
from io import BytesIO
from typing import Generic

from aiosmrt._wire.decoders.base import Decoder, StreamDecoder, T
from aiosmrt.errors import DeserializationError

__all__ = ["LineDecoder", "LinewiseDecoder", "TextDecoder", "TranscodingDecoder", "decode_utf8"]


def decode_utf8(data: bytes) -> tuple[str, int, bool]:
    """Decode up to a malformed or unfinished character.

    Returns:
        The text, its length in bytes, and whether a malformed character follows.
    """
    try:
        return *utf_8_decode(data, "strict", False), False
    except UnicodeDecodeError as error:
        return data[: error.start].decode(), error.start, True


class TextDecoder(Decoder[str]):
    """UTF-8 into text: one string for each feed, or none if no character became whole.

    Malformed UTF-8 raises after the text before it. Nothing is dropped or added: a byte order mark is a character like
    others, and line ends stay as they are.

    >>> decoder = TextDecoder()
    >>> decoder.feed(b"caf\\xc3"), decoder.feed(b"\\xa9!"), decoder.finish()
    (['caf'], ['é!'], [])
    """

    __slots__ = ()

    def _position(self, number: int) -> str:
        return f"the text at byte {self._offset} of the stream"

    def _decode(self, data: bytes) -> list[str]:
        data = self._release(data)
        text, used, malformed = decode_utf8(data)
        self._offset += used
        if malformed:
            self._fail("is not UTF-8", 0)
        else:
            self._pending += data[used:]
        return [text] if text else []

    def _decode_rest(self) -> list[str]:
        if self._pending:
            self._fail("is half a character: the stream ends inside it", 0)
        return []


class LinewiseDecoder(Decoder[T]):
    """Bytes up to each LF, decoded many lines at a time by `_parse`."""

    __slots__ = ()

    @abstractmethod
    def _parse(self, lines: bytes) -> list[T]:
        """Return the items of some lines, ends included; the last line of the stream may lack its end.

        Raises:
            ValueError, RecursionError: one of the lines is malformed.
        """

    @abstractmethod
    def _reason(self, error: Exception) -> str:
        """Say what an error of `_parse` means; the end of a sentence."""

    def _decode(self, data: bytes) -> list[T]:
        end = data.rfind(b"\n") + 1
        items = self._decode_lines(self._release(data[:end])) if end else []
        if end < len(data) and self._fault is None:
            self._hold(data[end:], len(items))
        return items

    def _decode_rest(self) -> list[T]:
        return self._decode_lines(self._release())

    def _decode_lines(self, lines: bytes) -> list[T]:
        if len(lines) <= self._max_item_bytes:
            try:
                items = self._parse(lines)
            except (ValueError, RecursionError):
                pass  # Found again below, after the good lines before it.
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
                reason = self._reason(error)
            else:
                self._offset += len(line)
                continue
            self._fail(reason, len(items))
            break
        return items


class LineDecoder(LinewiseDecoder[str]):
    """UTF-8 into lines, without their ends, which are LF or CRLF and nothing else.

    The last line may lack its end; what follows the last end is a line unless it is empty.

    >>> decoder = LineDecoder()
    >>> decoder.feed(b"one\\ntwo\\r"), decoder.feed(b"\\n\\nfo"), decoder.feed(b"ur"), decoder.finish()
    (['one'], ['two', ''], [], ['four'])
    """

    __slots__ = ()

    def _position(self, number: int) -> str:
        return f"line {number}, at byte {self._offset} of the stream,"

    def _reason(self, error: Exception) -> str:
        return "is not UTF-8"

    def _parse(self, lines: bytes) -> list[str]:
        text = lines.decode()
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        items = text.split("\n")
        if not items[-1]:
            items.pop()
        return items


class TranscodingDecoder(Generic[T]):
    """Feeds another decoder, which reads UTF-8, with text in another charset.

    Args:
        decoder: makes the items; positions in its errors count bytes of UTF-8.
        encoding: Python's name of the charset.

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
        items: Sequence[T] = ()
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
