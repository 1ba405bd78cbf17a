"""How `aiosmrt converse` cuts standard input into messages, whatever pieces it is read in."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Protocol

from aiosmrt._wire.messages import MAX_PART_BYTES
from aiosmrt.errors import AiosmrtError

__all__ = ["AsItComes", "Cutter", "Frames", "Lines", "UnreadableInputError"]


class UnreadableInputError(AiosmrtError):
    """Standard input cannot be read, or made into messages."""


class Cutter(Protocol):
    """Makes messages of what is read: text as str, binary ones as bytes."""

    def feed(self, data: bytes, /) -> Iterator[bytes | str]:
        """The messages that some more input completes.

        Raises:
            UnreadableInputError: it is not UTF-8 where it must be, or a line is too long.
        """
        ...

    def finish(self) -> Iterator[bytes | str]:
        """The messages that the end of the input completes; otherwise as `feed`."""
        ...


class AsItComes:
    """What was read at once is a message; text keeps its characters whole.

    Args:
        is_text: whether messages are text.
    """

    def __init__(self, *, is_text: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")() if is_text else None
        self._before = 0

    def feed(self, data: bytes, /) -> Iterator[bytes | str]:
        """See `Cutter`."""
        whole = data if self._decoder is None else self._decoded(self._decoder, data)
        if whole:
            yield whole

    def finish(self) -> Iterator[bytes | str]:
        """See `Cutter`."""
        if self._decoder is not None:
            self._decoded(self._decoder, b"", final=True)
        return iter(())

    def _decoded(self, decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool = False) -> str:
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final)
        except UnicodeDecodeError as error:
            position = self._before - held + error.start
        else:
            self._before += len(data)
            return text
        raise _not_utf8(position)


class Frames:
    """Binary messages of one size; the last one may be shorter.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = bytearray()

    def feed(self, data: bytes, /) -> Iterator[bytes | str]:
        """See `Cutter`."""
        self._left += data
        while len(self._left) >= self._size:
            frame = bytes(self._left[: self._size])
            del self._left[: self._size]
            yield frame

    def finish(self) -> Iterator[bytes | str]:
        """See `Cutter`."""
        if self._left:
            yield bytes(self._left)


class Lines:
    """Lines without their ends, LF or CRLF; the last one may lack its end.

    Args:
        is_text: whether messages are text.
    """

    def __init__(self, *, is_text: bool) -> None:
        self._is_text = is_text
        self._left = bytearray()
        self._before = 0

    def feed(self, data: bytes, /) -> Iterator[bytes | str]:
        """See `Cutter`."""
        self._left += data
        *lines, rest = self._left.split(b"\n") if b"\n" in data else [self._left]
        self._left = rest
        for line in lines:
            yield self._message(line.removesuffix(b"\r"))
            self._before += len(line) + 1
        # A CR may be the first half of the line's end.
        self._check_size(len(rest) - 1)

    def finish(self) -> Iterator[bytes | str]:
        """See `Cutter`."""
        if self._left:
            yield self._message(self._left)

    def _check_size(self, size: int) -> None:
        if size > MAX_PART_BYTES:
            raise UnreadableInputError(f"a line of standard input exceeds {MAX_PART_BYTES} bytes")

    def _message(self, data: bytearray) -> bytes | str:
        self._check_size(len(data))
        line = bytes(data)
        if not self._is_text:
            return line
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            position = self._before + error.start
        raise _not_utf8(position)


def _not_utf8(position: int) -> UnreadableInputError:
    return UnreadableInputError(
        f"standard input is not UTF-8 at byte {position}; --data-type BINARY sends it as binary messages"
    )
