"""Bytes into text and lines."""

from __future__ import annotations

from abc import abstractmethod
from codecs import utf_8_decode
from io import BytesIO

from aiosmrt._wire.decoders.base import Decoder, T

__all__ = ["LineDecoder", "LinewiseDecoder", "TextDecoder", "decode_utf8"]


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
