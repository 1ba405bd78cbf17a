"""Messages of a bidirectional stream, joined from the parts that the service sends."""

from __future__ import annotations

from typing import Final, NamedTuple, get_args

from aiosmrt.config import is_whole, shown
from aiosmrt.errors import DeserializationError, TruncatedStreamError
from aiosmrt.types import BidirectionalPayloadPart, CompletionState, DataType

__all__ = ["COMPLETION_STATES", "DATA_TYPES", "MAX_PART_BYTES", "Message", "MessageJoiner", "faulty_limit"]

DATA_TYPES: Final[tuple[DataType, ...]] = get_args(DataType)
COMPLETION_STATES: Final[tuple[CompletionState, ...]] = get_args(CompletionState)

MAX_PART_BYTES: Final = 16 * 1024 * 1024
"""The largest payload of a message, or of a part of one, that the service takes."""


def faulty_limit(max_message_bytes: object) -> list[str]:
    """The faults of a limit of messages that are read.

    >>> faulty_limit(1), faulty_limit(0)
    ([], ['max_message_bytes must be an integer >= 1; got 0'])
    """
    if is_whole(max_message_bytes, 1):
        return []
    return [f"max_message_bytes must be an integer >= 1; got {shown(max_message_bytes)}"]


class Message(NamedTuple):
    """A whole message.

    Args:
        data: its payload.
        data_type: ``"UTF8"`` for text, ``"BINARY"`` for bytes.
    """

    data: bytes
    data_type: DataType


class MessageJoiner:
    """Joins parts up to ``COMPLETE``. After an error, the rest of that message is skipped.

    A ``DataType`` other than ``UTF8`` is taken for ``BINARY``, and so is a missing one, except in a part that goes on
    with a message: there it means the type with which the message began.

    >>> joiner = MessageJoiner()
    >>> joiner.add({"Bytes": b"a", "CompletionState": "PARTIAL"}, 10)
    >>> joiner.add({"Bytes": b"b"}, 10)
    Message(data=b'ab', data_type='BINARY')
    """

    def __init__(self) -> None:
        # One buffer: a list of many small parts, or of empty ones, would take far more memory than their bytes.
        self._data = bytearray()
        self._data_type: DataType = "BINARY"
        self._is_within = False
        self._skips = False

    def add(self, part: BidirectionalPayloadPart, max_bytes: int) -> Message | None:
        """Take the next part, and return the message that it completes, if it does.

        Args:
            part: as the service sent it.
            max_bytes: the largest message.

        Raises:
            DeserializationError: the message exceeds ``max_bytes``, or changes its type half way.
        """
        was_within, skips = self._is_within, self._skips
        self._is_within = part.get("CompletionState") == "PARTIAL"
        if not self._is_within:
            self._skips = False
        if skips:
            return None
        data_type = self._data_type if was_within else "BINARY"
        # The service may send a type that is not in the model of today.
        sent_type: str | None = part.get("DataType")
        if sent_type is not None:
            data_type = "UTF8" if sent_type == "UTF8" else "BINARY"
        if was_within and data_type != self._data_type:
            self._drop()
            raise DeserializationError(f"a message begins as {self._data_type} and goes on as {data_type}")
        self._data_type = data_type
        data = part["Bytes"]
        if len(self._data) + len(data) > max_bytes:
            self._drop()
            raise DeserializationError(f"a message exceeds max_message_bytes of {max_bytes}")
        if self._is_within or self._data:
            self._data += data
        if self._is_within:
            return None
        if self._data:
            data = bytes(self._data)
            self._data = bytearray()
        return Message(data, data_type)

    def finish(self) -> None:
        """Take note of the end of the stream.

        Raises:
            TruncatedStreamError: it is inside a message.
        """
        if self._is_within:
            raise TruncatedStreamError("the stream ended inside a message")

    def _drop(self) -> None:
        self._data = bytearray()
        self._skips = self._is_within
