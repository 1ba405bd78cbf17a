"""What both ends of HTTP/2 share: h2's connection without its defects, and header fields that are kept secret.

``h2`` is the protocol without I/O. Four things about it are changed here, and nowhere else:

- A received GOAWAY closes its state machine, so that the next DATA raises a ProtocolError, in either direction. RFC
  9113 (6.8) says the opposite: streams up to the named one go on. AWS's JavaScript client sends GOAWAY as soon as its
  last stream is open. https://github.com/python-hyper/h2/issues/1181; drop `Connection` when it is fixed, for which
  ``test_h2_still_closes_at_goaway`` in ``tests/wire/test_http2.py`` waits.
- It takes any frame for the first one, which must be SETTINGS (3.4). Text of a server that speaks HTTP/1.1 is then a
  frame of megabytes, whose end it waits for.
- It calls a header block that cannot be decoded a PROTOCOL_ERROR, where the RFC has COMPRESSION_ERROR (4.3).
- ``hpack`` logs header blocks at level DEBUG, before compression and after. They contain signatures and session tokens,
  so its loggers are silenced for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Decoder, HeaderTuple, HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hpack.hpack import log as _log_of_blocks
from hpack.table import log as _log_of_tables
from hyperframe.frame import Frame, GoAwayFrame, SettingsFrame

__all__ = ["DEFAULT_WINDOW_BYTES", "LAST_STREAM_ID", "Connection", "header_fields"]

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


_PREFACE_BYTES: Final = 24
_FRAME_HEAD_BYTES: Final = 9
_ACK: Final = 0x1


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
        self._start_bytes = _FRAME_HEAD_BYTES + (0 if client_side else _PREFACE_BYTES)

    def receive_data(self, data: Any) -> list[Event]:
        """Process what the peer sends; raises a ProtocolError once that is not HTTP/2."""
        if self._start is not None:
            self._start += bytes(data[: self._start_bytes - len(self._start)])
            if len(self._start) == self._start_bytes:
                head = self._start[-_FRAME_HEAD_BYTES:]
                self._start = None
                if head[3] != SettingsFrame.type or head[4] & _ACK:
                    self._terminate_connection(ErrorCodes.PROTOCOL_ERROR)
                    raise ProtocolError("the first frame is not SETTINGS")
        return super().receive_data(data)

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
