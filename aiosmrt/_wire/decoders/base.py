"""What all stream decoders share: how they hold unfinished items, fail, and end.

One decoder serves one stream. All have the same shape, `StreamDecoder`: ``feed`` takes the next bytes and returns the
items that they complete, ``finish`` returns the items that only the end of the stream completes. Neither the items of a
stream nor its faults depend on where it was cut.

Nothing is lost in silence. Malformed bytes raise `DeserializationError`, and so does an item that never became whole.
The good items before it are returned first; the next call raises. The error names the item's number and position and
never quotes it.

A feed usually holds many items, so all its whole lines or values are decoded by a few calls into C. Only if those find
a fault, come near the size limit, or meet events of several lines are items decoded one by one. An unfinished item is
held as bytes, each of which is looked at once, to find the item's end. So the time is linear in the bytes fed, however
they are cut. Cutting bytes before decoding them is safe: line ends, quotes and brackets are ASCII, so they are never
part of a longer UTF-8 sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from aiosmrt.errors import DeserializationError

__all__ = ["MAX_ITEM_BYTES", "Decoder", "StreamDecoder"]

MAX_ITEM_BYTES: Final = 64 * 1024 * 1024
"""The size limit of an item, in bytes."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StreamDecoder(Protocol[T_co]):
    """The shape of a decoder: bytes in, items out."""

    def feed(self, data: bytes, /) -> Sequence[T_co]:
        """Take the next bytes of the stream and return the items that they complete."""
        ...

    def finish(self) -> Sequence[T_co]:
        """Note that the stream has ended and return the items that this completes."""
        ...

    @property
    def failure(self) -> DeserializationError | None:
        """The error that the next call raises, if any."""
        ...


class Decoder(ABC, Generic[T]):
    """Holds the unfinished item of a stream, and its fault.

    Subclasses do not raise; they call `_fail`. An error made there lacks a ``__context__``, which would hold the
    payload, as that of a `json.JSONDecodeError` does.
    """

    __slots__ = ("_count", "_fault", "_offset", "_pending")

    _max_item_bytes: ClassVar[int] = MAX_ITEM_BYTES

    def __init__(self) -> None:
        self._fault: str | None = None
        self._count = 0
        self._pending = bytearray()
        # Where in the stream the pending bytes begin.
        self._offset = 0

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished item are held."""
        return len(self._pending)

    @property
    def failure(self) -> DeserializationError | None:
        """The error that the next call raises, if any."""
        return None if self._fault is None else DeserializationError(self._fault)

    def __repr__(self) -> str:
        state = "failed" if self._fault is not None else f"pending_bytes={self.pending_bytes}"
        return f"<{type(self).__name__} items={self._count} {state}>"

    def feed(self, data: bytes, /) -> list[T]:
        """Take the next bytes of the stream and return the items that they complete.

        Args:
            data: any number of bytes, including none.

        Raises:
            DeserializationError: an item is malformed or exceeds `MAX_ITEM_BYTES`. If there are good items before it,
                this call returns them and sets `failure`. All later calls raise.
        """
        return self._given(self._decode(data) if self._fault is None else [])

    def finish(self) -> list[T]:
        """Note that the stream has ended and return the items that this completes.

        Raises:
            DeserializationError: the stream ended inside an item, or was malformed before.
        """
        return self._given(self._decode_rest() if self._fault is None else [])

    def _given(self, items: list[T]) -> list[T]:
        if self._fault is not None and not items:
            raise DeserializationError(self._fault)
        self._count += len(items)
        return items

    @abstractmethod
    def _decode(self, data: bytes) -> list[T]:
        """Return the items that some more bytes complete."""

    @abstractmethod
    def _decode_rest(self) -> list[T]:
        """Return the items that the end of the stream completes."""

    def _release(self, data: bytes = b"") -> bytes:
        """Return the pending bytes and those after them, and hold nothing."""
        if not self._pending:
            return data
        self._pending += data
        whole = bytes(self._pending)
        self._pending.clear()
        return whole

    def _hold(self, data: bytes, before: int) -> None:
        """Hold more of an unfinished item; fail once it exceeds the limit."""
        self._pending += data
        if len(self._pending) > self._max_item_bytes:
            self._fail(self._too_long(), before)

    def _fail(self, reason: str, before: int) -> None:
        """Note a fault.

        Args:
            reason: what is wrong with the item at `_offset`; the end of a sentence.
            before: how many good items precede it that are not yet counted.
        """
        self._fault = f"{self._position(self._count + before + 1)} {reason}"
        self._pending.clear()

    @abstractmethod
    def _position(self, number: int) -> str:
        """Name an item by number and position; the beginning of a sentence."""

    def _too_long(self) -> str:
        return f"exceeds {self._max_item_bytes} bytes"
