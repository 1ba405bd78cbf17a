"""The ``application/vnd.amazon.eventstream`` framing: an incremental decoder, and encoders for SageMaker's messages.

A frame on the wire, integers big-endian, headers as in `aiosmrt._wire.eventheaders`::

    total length u32 | headers length u32 | CRC-32 of these 8 bytes | headers | payload | CRC-32 of all before

The specification is https://smithy.io/2.0/aws/amazon-eventstream.html.

The frames of one response differ in their payloads and in little else: prelude and header block, together called the
*head* here, are the same bytes wherever two payloads have the same length. A verified head is cached with its parsed
headers and the CRC up to its end. For a later frame with the same head, only the payload has to be checksummed, and
still both checksums are verified, as equal bytes have equal CRCs.

There are two paths. A frame that lies wholly inside a chunk is cut out of it with one `struct` call for head, payload
and checksum, guessing that it is as long as the previous one; the chunk is never copied. A frame that straddles chunks
goes through `Decoder._feed_straddling`, which processes every byte once: the prelude is checked as soon as it is
complete, so that no unchecked length is used and no memory is reserved because of one. The payload is written into a
`BytesIO` while its CRC is updated. `BytesIO` grows in place and returns its buffer without a copy, so that the last
chunk of a 24 MiB frame is no more work than the others.

Messages before a malformed frame are not lost: `Decoder.feed` returns them, and the next call raises the error. So the
messages of a stream do not depend on how the network cuts it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final, TypeAlias, TypeVar

from aiosmrt._wire.eventheaders import EventHeaders, encode_header, parse_headers
from aiosmrt._wire.operations import EVENT_STREAM
from aiosmrt.errors import ChecksumMismatchError, EventStreamFormatError, FrameLengthError, TruncatedStreamError

try:
    # The extra `speedups`: three times as fast as zlib on 64 bytes, nine times on 64 KiB.
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = [
    "MAX_HEADERS_BYTES",
    "MAX_PAYLOAD_BYTES",
    "Decoder",
    "EventHeaders",
    "Message",
    "encode_exception",
    "encode_frame",
    "encode_payload_part",
]

# the specification's limits, "Message Format"
MAX_PAYLOAD_BYTES: Final = 24 * 1024 * 1024
MAX_HEADERS_BYTES: Final = 128 * 1024

_PRELUDE_BYTES: Final = 12
_CRC_BYTES: Final = 4
_FRAMING_BYTES: Final = _PRELUDE_BYTES + _CRC_BYTES

# How many heads and header blocks are cached, and up to which size each: at most 256 KiB of either.
_MAX_CACHED: Final = 256
_MAX_CACHED_BYTES: Final = 1024
# A wrong guess of the next frame's length copies at most this much.
_MAX_GUESS_BYTES: Final = 4096

_U32: Final = struct.Struct(">I")
_LENGTHS: Final = struct.Struct(">II")
_PRELUDE: Final = struct.Struct(">III")

_T = TypeVar("_T")

Message: TypeAlias = tuple[EventHeaders, bytes]
"""A message: its headers and its payload."""


class _Head:
    """The head of a frame whose prelude was checked, and what follows from it."""

    __slots__ = ("block", "crc", "frame_bytes", "headers", "payload_bytes", "unpack")

    def __init__(self, block: bytes, frame_bytes: int) -> None:
        self.block = block
        self.frame_bytes = frame_bytes
        self.payload_bytes = frame_bytes - len(block) - _CRC_BYTES
        self.crc = crc32(block)
        # set when the message checksum of a frame with this head has matched
        self.headers: EventHeaders | None = None
        # splits such a frame into head, payload and checksum; set when the head occurs a second time
        self.unpack: Callable[[bytes | memoryview, int], tuple[Any, ...]] | None = None

    def expect_again(self) -> None:
        if self.unpack is None and self.payload_bytes <= _MAX_GUESS_BYTES:
            self.unpack = struct.Struct(f">{len(self.block)}s{self.payload_bytes}sI").unpack_from


class Decoder:
    """Decodes the bytes of an event stream, cut anywhere, into messages.

    The work is linear in the number of bytes, wherever they are cut.

    >>> decoder = Decoder()
    >>> frame = encode_payload_part(b"hello")
    >>> decoder.feed(frame[:20])
    []
    >>> decoder.pending_bytes
    20
    >>> for headers, payload in decoder.feed(frame[20:]):
    ...     print(headers.event_type, payload)
    PayloadPart b'hello'
    >>> decoder.finish()
    """

    def __init__(self) -> None:
        # Class and message of the error. The error itself would keep frames alive, and payloads in them.
        self._fault: tuple[type[EventStreamFormatError], str] | None = None
        # whether not a byte has come
        self._is_empty = True
        self._heads: dict[bytes, _Head] = {}
        self._header_blocks: dict[bytes, EventHeaders] = {}
        self._latest: _Head | None = None
        # A frame that straddles chunks. _partial is the received part of its head, empty if there is no such frame.
        self._partial = bytearray()
        self._head_bytes = 0
        self._head: _Head | None = None
        self._body = BytesIO()
        self._body_left = 0
        self._crc = 0
        self._trailer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an incomplete frame are buffered."""
        return len(self._partial) + self._body.tell() + len(self._trailer)

    @property
    def failure(self) -> EventStreamFormatError | None:
        """The error that the next call will raise, if any."""
        return None if self._fault is None else self._fault[0](self._fault[1])

    def __repr__(self) -> str:
        state = "failed" if self._fault is not None else f"pending_bytes={self.pending_bytes}"
        return f"<{type(self).__name__} {state}>"

    def feed(self, chunk: bytes | bytearray | memoryview) -> list[Message]:
        """Process the next bytes of the stream and return the messages that are now complete.

        Args:
            chunk: any number of bytes. It is not kept, so that its buffer can be reused.

        Raises:
            EventStreamFormatError: the stream is malformed; always a subclass. If messages precede the malformed
                frame, this call returns them and sets `failure`, and the next call raises.
        """
        if self._fault is not None:
            raise self._fault[0](self._fault[1])
        messages: list[Message] = []
        if chunk:
            self._is_empty = False
        try:
            if isinstance(chunk, bytes):
                self._decode(chunk, messages)
            else:
                with memoryview(chunk) as view:
                    if view.ndim == 1 and view.format == "B" and view.c_contiguous:
                        self._decode(view, messages)
                    else:
                        self._decode(view.tobytes(), messages)
        except EventStreamFormatError as error:
            fault = self._fail(error)
        else:
            return messages
        if messages:
            return messages
        # A new error: error trackers report the locals of frames, and those of the first one hold payloads.
        del chunk
        raise fault

    def finish(self, content_type: str | None = EVENT_STREAM) -> None:
        """Check that the stream ends here.

        Args:
            content_type: the response's media type; only an event stream may be empty. None if the type is missing.

        Raises:
            TruncatedStreamError: the stream ends inside a frame.
            EventStreamFormatError: the stream was malformed before; or not a byte came, and the type is not an event
                stream's.
        """
        if self._is_empty and not _is_event_stream(content_type):
            self._fail(EventStreamFormatError(f"the response is empty, and its content type is not {EVENT_STREAM}"))
        if self._fault is None and self._partial:
            expected = self._head.frame_bytes if self._head is not None else None
            self._fail(
                TruncatedStreamError(
                    f"the event stream ended after {self.pending_bytes} bytes of a frame"
                    + (f" of {expected} bytes" if expected is not None else "")
                )
            )
        if self._fault is not None:
            raise self._fault[0](self._fault[1])

    def _fail(self, error: EventStreamFormatError) -> EventStreamFormatError:
        """Remember what is malformed, and return it as a new error."""
        self._fault = (type(error), str(error))
        self._heads.clear()
        self._header_blocks.clear()
        self._latest = None
        self._drop_partial()
        return self._fault[0](self._fault[1])

    def _drop_partial(self) -> None:
        self._partial.clear()
        self._trailer.clear()
        self._head = None
        self._body = BytesIO()
        self._body_left = 0

    def _decode(self, chunk: bytes | memoryview, messages: list[Message]) -> None:
        size = len(chunk)
        position = self._feed_straddling(chunk, 0, messages) if self._partial else 0
        append = messages.append
        head = self._latest
        while position < size:
            following = None
            if head is not None and (headers := head.headers) is not None and (unpack := head.unpack) is not None:
                block, crc, frame_bytes = head.block, head.crc, head.frame_bytes
                while frame_bytes <= size - position:
                    found, payload, checksum = unpack(chunk, position)
                    if found != block:
                        # Usually the header block is the same and the payload has another length.
                        following = self._heads.get(found)
                        break
                    if crc32(payload, crc) != checksum:
                        raise _message_checksum_mismatch(frame_bytes)
                    append((headers, payload))
                    position += frame_bytes
            following = following or self._head_at(chunk, position)
            if following is None:
                break
            self._latest = head = following
            if head.frame_bytes > size - position:
                break
            if head.unpack is None:
                end = position + head.frame_bytes - _CRC_BYTES
                payload = bytes(chunk[position + len(head.block) : end])
                append(self._message(head, payload, crc32(payload, head.crc), _U32.unpack_from(chunk, end)[0]))
                position = end + _CRC_BYTES
        if position < size:
            self._feed_straddling(chunk, position, messages)

    def _head_at(self, chunk: bytes | memoryview, position: int) -> _Head | None:
        """The head that begins at a position, or None if it is incomplete."""
        left = len(chunk) - position
        if left < _PRELUDE_BYTES:
            return None
        head_bytes = _PRELUDE_BYTES + _U32.unpack_from(chunk, position + 4)[0]
        if left < head_bytes:
            return None
        return self._head_of(bytes(chunk[position : position + head_bytes]))

    def _head_of(self, block: bytes) -> _Head:
        head = self._heads.get(block)
        if head is not None:
            head.expect_again()
            return head
        self._check_prelude(block)
        return _Head(block, _U32.unpack_from(block)[0])

    def _message(self, head: _Head, payload: bytes, crc: int, checksum: int) -> Message:
        """The message of a complete frame. Nothing is parsed or cached before the checksum has matched."""
        if crc != checksum:
            raise _message_checksum_mismatch(head.frame_bytes)
        if head.headers is None:
            block = head.block[_PRELUDE_BYTES:]
            headers = self._header_blocks.get(block)
            if headers is None:
                headers = parse_headers(block)
                _cache(self._header_blocks, block, headers)
            head.headers = headers
            _cache(self._heads, head.block, head)
        return head.headers, payload

    def _check_prelude(self, head: bytes | bytearray) -> int:
        """Check the first 12 bytes of a frame, and return the length of its head."""
        total_bytes, headers_bytes, checksum = _PRELUDE.unpack_from(head)
        if crc32(head[:8]) != checksum:
            raise ChecksumMismatchError("the checksum of a frame's prelude does not match")
        payload_bytes = total_bytes - headers_bytes - _FRAMING_BYTES
        if headers_bytes > MAX_HEADERS_BYTES:
            raise FrameLengthError(f"a frame's headers of {headers_bytes} bytes exceed {MAX_HEADERS_BYTES} bytes")
        if payload_bytes < 0:
            raise FrameLengthError(f"a frame of {total_bytes} bytes cannot hold headers of {headers_bytes} bytes")
        if payload_bytes > MAX_PAYLOAD_BYTES:
            raise FrameLengthError(f"a frame's payload of {payload_bytes} bytes exceeds {MAX_PAYLOAD_BYTES} bytes")
        return _PRELUDE_BYTES + int(headers_bytes)

    def _feed_straddling(self, chunk: bytes | memoryview, position: int, messages: list[Message]) -> int:
        """Process bytes of the straddling frame from a position on, and return the position after them."""
        view = memoryview(chunk)
        head = self._head
        if head is None:
            partial = self._partial
            if len(partial) < _PRELUDE_BYTES:
                piece = view[position : position + _PRELUDE_BYTES - len(partial)]
                partial += piece
                position += len(piece)
                if len(partial) < _PRELUDE_BYTES:
                    return position
                self._head_bytes = self._check_prelude(partial)
            piece = view[position : position + self._head_bytes - len(partial)]
            partial += piece
            position += len(piece)
            if len(partial) < self._head_bytes:
                return position
            self._head = head = self._head_of(bytes(partial))
            self._crc = head.crc
            self._body_left = head.payload_bytes
        if self._body_left:
            piece = view[position : position + self._body_left]
            self._crc = crc32(piece, self._crc)
            self._body.write(piece)
            self._body_left -= len(piece)
            position += len(piece)
            if self._body_left:
                return position
        piece = view[position : position + _CRC_BYTES - len(self._trailer)]
        self._trailer += piece
        position += len(piece)
        if len(self._trailer) == _CRC_BYTES:
            messages.append(self._message(head, self._body.getvalue(), self._crc, _U32.unpack(self._trailer)[0]))
            self._drop_partial()
        return position


def _cache(cache: dict[bytes, _T], block: bytes, value: _T) -> None:
    if len(block) <= _MAX_CACHED_BYTES:
        if len(cache) >= _MAX_CACHED:
            cache.clear()
        cache[block] = value


def _is_event_stream(content_type: str | None) -> bool:
    """Whether a media type is an event stream's.

    >>> _is_event_stream("Application/vnd.amazon.eventstream; version=1"), _is_event_stream("text/html")
    (True, False)
    """
    return content_type is not None and content_type.partition(";")[0].strip().lower() == EVENT_STREAM


def _message_checksum_mismatch(frame_bytes: int) -> ChecksumMismatchError:
    return ChecksumMismatchError(f"the checksum of a frame of {frame_bytes} bytes does not match")


# The headers of the service's messages, in its order; 7 is the type of strings.
_PAYLOAD_PART: Final = (
    b"\x0b:event-type\x07\x00\x0bPayloadPart"
    b"\x0d:content-type\x07\x00\x18application/octet-stream"
    b"\x0d:message-type\x07\x00\x05event"
)

_EXCEPTION: Final = b"\x0d:content-type\x07\x00\x10application/json\x0d:message-type\x07\x00\x09exception"


def encode_payload_part(
    payload: bytes | bytearray | memoryview, data_type: str | None = None, completion_state: str | None = None
) -> bytes:
    """Encode a ``PayloadPart`` event, the only kind of event that SageMaker Runtime takes and sends.

    Args:
        payload: the part's bytes, up to 24 MiB.
        data_type: of a bidirectional stream, ``UTF8`` or ``BINARY``. If None, it is left out.
        completion_state: of a bidirectional stream, ``PARTIAL`` or ``COMPLETE``. If None, it is left out.

    Raises:
        FrameLengthError: the payload exceeds the specification's limit.

    >>> len(encode_payload_part(b"x" * 64))
    169
    >>> Decoder().feed(encode_payload_part(b"hello", "UTF8"))[0][0]["DataType"]
    'UTF8'
    """
    if data_type is None and completion_state is None:
        return encode_frame(_PAYLOAD_PART, payload)
    block = _PAYLOAD_PART
    if data_type is not None:
        block += encode_header("DataType", data_type)
    if completion_state is not None:
        block += encode_header("CompletionState", completion_state)
    return encode_frame(block, payload)


def encode_exception(exception_type: str, payload: bytes | bytearray | memoryview) -> bytes:
    """Encode a modelled error, which ends a stream.

    Args:
        exception_type: the member of the event stream, such as ``ModelStreamError``.
        payload: the error's JSON document, with ``Message`` and for some errors ``ErrorCode``.

    Raises:
        FrameLengthError: the payload exceeds the specification's limit.

    >>> frame = encode_exception("ModelStreamError", b'{"Message": "broken", "ErrorCode": "StreamBroken"}')
    >>> Decoder().feed(frame)[0][0].exception_type
    'ModelStreamError'
    """
    name = exception_type.encode()
    return encode_frame(b"\x0f:exception-type\x07" + len(name).to_bytes(2) + name + _EXCEPTION, payload)


def encode_frame(header_block: bytes, payload: bytes | bytearray | memoryview) -> bytes:
    """Encode a message.

    Args:
        header_block: the encoded headers, as `aiosmrt._wire.eventheaders.encode_header` makes them.
        payload: its bytes, up to 24 MiB.

    Raises:
        FrameLengthError: the payload exceeds the specification's limit.

    >>> encode_frame(b"", b"").hex()
    '000000100000000005c248eb7d98c8ff'
    """
    payload_bytes = payload.nbytes if isinstance(payload, memoryview) else len(payload)
    headers_bytes = len(header_block)
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise FrameLengthError(f"the payload must be at most {MAX_PAYLOAD_BYTES} bytes; got {payload_bytes}")
    lengths = _LENGTHS.pack(_FRAMING_BYTES + headers_bytes + payload_bytes, headers_bytes)
    head = lengths + _U32.pack(crc32(lengths)) + header_block
    return b"".join((head, payload, _U32.pack(crc32(payload, crc32(head)))))
