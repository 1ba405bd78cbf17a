"""What both ends of HTTP/2 share: h2's connection without its defects, DATA past its objects, and secret header fields.

``h2`` is the protocol without I/O. Six things about it are changed here, and nowhere else:

- A received GOAWAY closes its state machine, so that the next DATA raises a ProtocolError, in either direction. RFC
  9113 (6.8) says the opposite: streams up to the named one go on. AWS's JavaScript client sends GOAWAY as soon as its
  last stream is open. https://github.com/python-hyper/h2/issues/1181; drop `Connection` when it is fixed, for which
  ``test_h2_still_closes_at_goaway`` in ``tests/wire/test_http2.py`` waits.
- It takes any frame for the first one, which must be SETTINGS (3.4). Text of a server that speaks HTTP/1.1 is then a
  frame of megabytes, whose end it waits for.
- It calls a header block that cannot be decoded a PROTOCOL_ERROR, where the RFC has COMPRESSION_ERROR (4.3).
- It answers each DATA frame of a stream that this end has reset with another RST_STREAM. They were on their way
  when it was sent, and 5.1 says to ignore them: nghttp2, in Node.js and others, takes many answers for an attack.
  `Connection.has_reset` tells `aiosmrt._transport.http2.core` which they are.
- A DATA frame costs it some 10 µs to send and 15 to receive, most of what a message costs. `Connection.room`,
  `Connection.send_frames` and `Connection.open_window` do without its objects, as `aiosmrt._transport.http2.core` does.
- ``hpack`` logs header blocks at level DEBUG, before compression and after. They contain signatures and session tokens,
  so its loggers are silenced for the whole process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import StreamClosedBy
from hpack import Decoder, HeaderTuple, HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hpack.hpack import log as _log_of_blocks
from hpack.table import log as _log_of_tables
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, SettingsFrame, WindowUpdateFrame

__all__ = ["DEFAULT_WINDOW_BYTES", "FRAME_HEAD", "LAST_STREAM_ID", "MAX_FRAME_BYTES", "Connection", "header_fields"]

for _log in (_log_of_blocks, _log_of_tables):
    _log.addFilter(lambda record: False)

DEFAULT_WINDOW_BYTES: Final = 65_535
"""The flow-control window of a connection, and of a stream unless SETTINGS say otherwise (RFC 9113, 6.9.2)."""

LAST_STREAM_ID: Final = 2**31 - 1
"""What a graceful GOAWAY names: no stream is affected, and none shall follow."""

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
    """One end of a connection: GOAWAY ends no stream by itself, and SETTINGS must come first.

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
