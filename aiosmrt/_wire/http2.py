"""What both ends of HTTP/2 share: h2's connection without its defects, and header fields that are kept secret.

``h2`` is the protocol without I/O. Two things about it are changed here, and nowhere else:

- A received GOAWAY closes its state machine, so that the next DATA raises a ProtocolError, in either direction. RFC
  9113 (6.8) says the opposite: streams up to the named one go on. AWS's JavaScript client sends GOAWAY as soon as its
  last stream is open. https://github.com/python-hyper/h2/issues/1181; drop `Connection` when it is fixed, for which
  ``test_h2_still_closes_at_goaway`` in ``tests/wire/test_http2.py`` waits.
- ``hpack`` logs header blocks at level DEBUG, before compression and after. They contain signatures and session tokens,
  so its loggers are silenced for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event
from h2.settings import SettingCodes, Settings
from hpack import HeaderTuple, NeverIndexedHeaderTuple
from hpack.hpack import log as _log_of_blocks
from hpack.table import log as _log_of_tables
from hyperframe.frame import Frame, GoAwayFrame

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


class Connection(H2Connection):
    """One end of a connection, on which GOAWAY ends no stream by itself.

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
