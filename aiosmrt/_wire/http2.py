"""What both ends of HTTP/2 share: h2's connection without its defects, DATA past its objects, and secret header fields.

``h2`` is the protocol without I/O. `Connection` is h2's, but for this:

- A received GOAWAY closes h2's state machine, so that the next DATA raises a ProtocolError, in either direction. RFC
  9113 (6.8) says the opposite: streams up to the named one go on. AWS's JavaScript client sends GOAWAY as soon as its
  last stream is open. https://github.com/python-hyper/h2/issues/1181; drop `Connection._receive_goaway_frame` when it
  is fixed, for which ``test_h2_still_closes_at_goaway`` in ``tests/wire/test_http2.py`` waits.
- h2 takes any frame for the first one, which must be SETTINGS (3.4). Text of a server that speaks HTTP/1.1 is then a
  frame of megabytes, whose end it waits for.
- It ends the connection for a malformed message, and with it all other streams, where the RFC has an error of the
  stream (8.1.1).
- It lets a server begin streams by HEADERS, which only PUSH_PROMISE may (8.4).
- It calls a header block that cannot be decoded a PROTOCOL_ERROR, where the RFC has COMPRESSION_ERROR (4.3).
- It answers each frame of DATA or headers of a stream that this end has reset with another RST_STREAM. They were on
  their way when it was sent, and 5.1 says to ignore them: nghttp2, in Node.js and others, takes many answers for an
  attack. Heads are dropped here; `Connection.has_reset` tells of which streams DATA must not come here.
- A DATA frame costs it some 10 µs to send and 15 to receive, most of what a message costs. `Connection.room`,
  `Connection.send_frames` and `Connection.open_window` do without its objects. `aiosmrt._transport.http2.core` reads
  DATA itself.

``hpack`` logs header blocks at level DEBUG, before compression and after. They contain signatures and session tokens,
so its loggers are silenced for the whole process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, StreamReset
from h2.exceptions import InvalidBodyLengthError, ProtocolError, StreamClosedError, StreamIDTooLowError
from h2.settings import SettingCodes, Settings
from h2.stream import StreamClosedBy, StreamState
from hpack import Decoder, HeaderTuple, HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hpack.hpack import log as _log_of_blocks
from hpack.table import log as _log_of_tables
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame

__all__ = [
    "DEFAULT_WINDOW_BYTES",
    "FLUSH_BYTES",
    "FRAME_HEAD",
    "LAST_STREAM_ID",
    "MAX_FRAME_BYTES",
    "STREAM_ID_BITS",
    "Connection",
    "header_fields",
]

for _log in (_log_of_blocks, _log_of_tables):
    _log.addFilter(lambda record: False)

DEFAULT_WINDOW_BYTES: Final = 65_535
"""The flow-control window of a connection, and of a stream unless SETTINGS say otherwise (RFC 9113, 6.9.2)."""

LAST_STREAM_ID: Final = 2**31 - 1
"""What a graceful GOAWAY names: no stream is affected, and none shall follow."""

FLUSH_BYTES: Final = 2**16
"""How much of what an end writes in one turn of the loop is held back, to be sent together."""

_MAX_HEADER_LIST_BYTES: Final = 2**16

_SECRET_FIELDS: Final = frozenset(
    {
        "authorization",
        "x-amz-security-token",
        "x-amzn-sagemaker-custom-attributes",
        "x-amzn-sagemaker-model-query-string",
    }
)


FRAME_HEAD: Final = struct.Struct(">HBBBI")
"""What precedes a frame's payload: its length as 16 and 8 bits, type, flags, stream (RFC 9113, 4.1)."""

STREAM_ID_BITS: Final = 2**31 - 1
"""The bits of a frame head's last field that are the stream's number; the first bit means nothing."""

MAX_FRAME_BYTES: Final = 2**14
"""The largest payload of a frame, unless SETTINGS say otherwise."""

_PREFACE_BYTES: Final = 24
_ACK: Final = 0x1
_WINDOW_UPDATE: Final = struct.Struct(">HBBBII")


class _CompressionError(ProtocolError):
    """A header block that cannot be decoded."""

    error_code = ErrorCodes.COMPRESSION_ERROR


class _Decoder(Decoder):
    """Tells h2 which error of the connection a malformed header block is."""

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        try:
            return super().decode(data, raw)
        except OversizedHeaderListError:
            raise
        except HPACKError as error:
            raise _CompressionError("a header block cannot be decoded") from error


class Connection(H2Connection):
    """One end of a connection; the module's docstring lists what differs from h2's.

    Args:
        client_side: whether it is the client's end.
        stream_window_bytes: how much a peer may send on a stream before its window is opened again.
        max_streams: streams that a client may have open at once. If None, the setting is left out.
    """

    def __init__(self, *, client_side: bool, stream_window_bytes: int, max_streams: int | None = None) -> None:
        super().__init__(H2Configuration(client_side=client_side, header_encoding=None))
        values: dict[Any, int] = {
            SettingCodes.INITIAL_WINDOW_SIZE: stream_window_bytes,
            SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_LIST_BYTES,
        }
        if client_side:
            values[SettingCodes.ENABLE_PUSH] = 0
        elif max_streams is not None:
            values[SettingCodes.MAX_CONCURRENT_STREAMS] = max_streams
        self.local_settings = Settings(client=client_side, initial_values=values)
        limit = self.decoder.max_header_list_size
        self.decoder = _Decoder()
        self.decoder.max_header_list_size = limit
        # what has come of the peer's preface, until that is checked
        self._start: bytes | None = b""
        self._start_bytes = FRAME_HEAD.size + (0 if client_side else _PREFACE_BYTES)

    def receive_data(self, data: Any) -> list[Event]:
        """Process what the peer sends; raises a ProtocolError once that is not HTTP/2."""
        if self._start is not None:
            self._start += bytes(data[: self._start_bytes - len(self._start)])
            if len(self._start) == self._start_bytes:
                head = self._start[-FRAME_HEAD.size :]
                self._start = None
                if head[3] != SettingsFrame.type or head[4] & _ACK:
                    raise self.violated(ErrorCodes.PROTOCOL_ERROR)
        return super().receive_data(data)

    def violated(self, code: ErrorCodes) -> ProtocolError:
        """Prepare a GOAWAY for a peer that has violated the protocol; returns the error to raise."""
        self._terminate_connection(code)
        return ProtocolError(f"the peer has violated HTTP/2: {code.name}")

    def refuse(self, stream_id: int) -> None:
        """Reset a stream whose peer has sent a malformed message, unless it is closed."""
        stream = self.streams.get(stream_id)
        if stream is not None and not stream.closed:
            self.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)

    def has_reset(self, stream_id: int) -> bool:
        """Whether this end has closed a stream by RST_STREAM; h2 remembers it of the last 65,536 streams."""
        return self._stream_closed_by(stream_id) is StreamClosedBy.SEND_RST_STREAM

    @property
    def waiting_bytes(self) -> int:
        """How much must be sent."""
        return len(self._data_to_send)

    def room(self, stream_id: int) -> int:
        """How many bytes flow control lets this end send on an open stream. May be negative."""
        return min(self.outbound_flow_control_window, self.streams[stream_id].outbound_flow_control_window)

    def send_frames(self, stream_id: int, data: memoryview) -> None:
        """Send DATA on an open stream, in as many frames as it needs.

        Args:
            stream_id: the stream.
            data: no more than `room`.
        """
        size = len(data)
        self.outbound_flow_control_window -= size
        self.streams[stream_id].outbound_flow_control_window -= size
        limit = self.max_outbound_frame_size
        for start in range(0, size, limit):
            piece = data[start : start + limit]
            self._data_to_send += FRAME_HEAD.pack(len(piece) >> 8, len(piece) & 0xFF, DataFrame.type, 0, stream_id)
            self._data_to_send += piece

    def open_window(self, stream_id: int, size: int) -> None:
        """Let the peer send so many bytes more: for DATA that h2 has not seen, since it counts what it has.

        Args:
            stream_id: the stream; 0 for the connection.
            size: bytes.
        """
        self._data_to_send += _WINDOW_UPDATE.pack(0, 4, WindowUpdateFrame.type, 0, stream_id, size)

    def bypass(self, stream_id: int) -> None:
        """Expect no DATA of a stream: it goes past h2, which cannot compare it with the Content-Length then."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream._expected_content_length = None

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        if self.config.client_side and frame.stream_id % 2 == 0:
            raise ProtocolError("the server has opened a stream")
        was_reset = self.has_reset(frame.stream_id)
        try:
            return super()._receive_headers_frame(frame)
        except (StreamClosedError, StreamIDTooLowError):
            if not was_reset:
                raise
        except ProtocolError as error:
            stream = self.streams.get(frame.stream_id)
            # What is wrong with more than a message has its own class, or closes the connection's state machine.
            if type(error) is not ProtocolError or stream is None or self.state_machine.state is ConnectionState.CLOSED:
                raise
            if stream.closed and stream.closed_by is None:
                # h2 has closed it in silence, for an informational head after the final one: then nothing resets it.
                stream.state_machine.state = StreamState.OPEN
        return [], [] if was_reset else self._refused(frame.stream_id)

    def _receive_data_frame(self, frame: DataFrame) -> tuple[list[Frame], list[Event]]:
        try:
            return super()._receive_data_frame(frame)
        except InvalidBodyLengthError:
            pass
        if frame.flow_controlled_length:
            # h2 has counted it, and no reader takes it.
            self.increment_flow_control_window(frame.flow_controlled_length)
        return [], self._refused(frame.stream_id)

    def _refused(self, stream_id: int) -> list[Event]:
        self.refuse(stream_id)
        event = StreamReset(stream_id=stream_id)
        event.error_code = ErrorCodes.PROTOCOL_ERROR
        event.remote_reset = False
        return [event]

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]


def header_fields(pairs: Iterable[tuple[str, str]]) -> list[HeaderTuple]:
    """Header fields as HTTP/2 has them: names in lower case, and secret ones never in a compression table.

    >>> header_fields([(":method", "POST"), ("Authorization", "secret")])[1].indexable
    False
    """
    return [
        (NeverIndexedHeaderTuple if name.lower() in _SECRET_FIELDS else HeaderTuple)(
            name.lower().encode(), value.encode()
        )
        for name, value in pairs
    ]
