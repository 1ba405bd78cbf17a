"""The client's end of an HTTP/2 connection without I/O: bytes in, bytes out, and what each stream has come to.

What arrives for a stream is kept until its reader takes it, and only then is its window opened again, so that at most
`STREAM_WINDOW_BYTES` of a stream wait here. What was taken is the reader's: `aiosmrt._core.duplex` decodes it, so that
as much again, and the rest of one part, may wait in parts that are not read yet. Padding is not kept, and its share of
the window is opened without the reader, who never learns of it. The connection's own window is opened at once: a reader
that is slow, or gone, must not hold up the other streams.

DATA frames, which are nearly all that comes, go past h2 and its accounts: `Core` cuts them out of what arrives, keeps
count of their windows and compares their length with the response's Content-Length. DATA of a stream that is over only
counts for the connection's window: the server may not have learnt yet that the stream was reset. Everything else is
h2's: other frames, and the ends of streams.

A stream ends in one of two ways: the server ends it (END_STREAM), or something breaks. The second is never taken for
the first: a reset, a GOAWAY that names an earlier stream, a lost connection and a violation of the protocol each become
the stream's `Failure`. A malformed response breaks its own stream; any other violation breaks the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import NoAvailableStreamIDError, ProtocolError
from hpack import HeaderTuple
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PushPromiseFrame

from aiosmrt._wire.http1 import ON_ANOTHER_CONNECTION
from aiosmrt._wire.http2 import DEFAULT_WINDOW_BYTES, FRAME_HEAD, MAX_FRAME_BYTES, STREAM_ID_BITS, Connection

__all__ = ["CONNECTION_WINDOW_BYTES", "STREAM_WINDOW_BYTES", "Core", "Failure", "Stream"]

STREAM_WINDOW_BYTES: Final = 2**18
CONNECTION_WINDOW_BYTES: Final = 2**24

_END_STREAM: Final = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8

# What is followed by CONTINUATION alone until END_HEADERS.
_HEADS: Final = (HeadersFrame.type, PushPromiseFrame.type, ContinuationFrame.type)

_NO_FAILURE: Final = (ErrorCodes.NO_ERROR, ErrorCodes.CANCEL)

# Statuses of responses that have no body, whatever their Content-Length says (RFC 9110, 6.4.1).
_WITHOUT_BODY: Final = (204, 304)

Reason = Literal["reset", "refused", "lost", "malformed", "silent", "closed"]


class Failure(NamedTuple):
    """What has broken a stream.

    Args:
        reason: the server reset the stream; it did not begin with it (GOAWAY, REFUSED_STREAM); the connection was lost;
            it broke the protocol; it was silent for too long; this side closed the connection.
        code: HTTP/2's name for the error, if there is one.
    """

    reason: Reason
    code: str = ""


class Stream:
    """A stream's state.

    Attributes:
        stream_id: its number; odd.
        status: the response's status; None before its head.
        headers: the response's headers; names in lower case, repeated ones joined by ``", "``.
        ended: whether the server has ended it.
        input_ended: whether this side has ended the request.
        failure: what has broken it, if anything.
    """

    __slots__ = (
        "_pending",
        "_received",
        "_still_due",
        "_unopened",
        "ended",
        "failure",
        "headers",
        "input_ended",
        "status",
        "stream_id",
    )

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.ended = False
        self.input_ended = False
        self.failure: Failure | None = None
        self._pending = bytearray()
        self._received = bytearray()
        # bytes, padding included, for which the window has to be opened again
        self._unopened = 0
        # bytes of the body that have not come; None without a Content-Length
        self._still_due: int | None = None

    def __repr__(self) -> str:
        return f"<Stream {self.stream_id} status={self.status} received_bytes={len(self._received)}>"

    @property
    def received_bytes(self) -> int:
        """How many bytes wait to be taken."""
        return len(self._received)

    @property
    def is_over(self) -> bool:
        """Whether nothing more can arrive."""
        return self.ended or self.failure is not None


class Core:
    """The client's end of one connection.

    After every call, `output` has what must be sent. Calls that report streams return those whose state has changed.
    """

    def __init__(self) -> None:
        self._h2 = Connection(client_side=True, stream_window_bytes=STREAM_WINDOW_BYTES)
        self._streams: dict[int, Stream] = {}
        # bytes for which the connection's window has to be opened again
        self._unopened = 0
        # a frame that has not arrived whole
        self._partial = b""
        self._within_head = False
        # the streams with something pending, by number, and how much that is together
        self._writing: dict[int, Stream] = {}
        self._pending_bytes = 0
        # The server's GOAWAY, a status that asks for another connection, or a broken one: no further streams.
        self.is_draining = False
        self.failure: Failure | None = None
        self.has_settings = False
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)

    def __repr__(self) -> str:
        return f"<Core streams={len(self._streams)}{' draining' if self.is_draining else ''}>"

    @property
    def open_streams(self) -> int:
        """Streams that count towards the server's limit."""
        return len(self._streams)

    @property
    def pending_bytes(self) -> int:
        """How much of what was taken waits for the next `output`."""
        return self._pending_bytes

    @property
    def max_streams(self) -> int:
        """The server's MAX_CONCURRENT_STREAMS."""
        return self._h2.remote_settings.max_concurrent_streams

    def output(self) -> bytes:
        """What must be sent now; may be empty."""
        if self._writing:
            self._send_pending()
        return self._h2.data_to_send()

    # Requests

    def open(self, headers: list[HeaderTuple]) -> Stream | None:
        """Begin a request; None if this connection takes no more.

        Args:
            headers: the pseudo-header fields, then the others.
        """
        if self.is_draining or self.open_streams >= self.max_streams:
            return None
        try:
            stream_id = self._h2.get_next_available_stream_id()
        except NoAvailableStreamIDError:
            self.is_draining = True
            return None
        self._h2.send_headers(stream_id, headers)
        stream = self._streams[stream_id] = Stream(stream_id)
        return stream

    def write(self, stream: Stream, data: memoryview) -> int:
        """Take as much as flow control allows, and return how many bytes that is.

        What is taken goes into DATA frames with the next `output`, so that small messages share one.
        """
        if stream.is_over or stream.input_ended:
            return 0
        h2 = self._h2
        room = min(
            h2.room(stream.stream_id) - len(stream._pending),
            h2.outbound_flow_control_window - self._pending_bytes,
        )
        if room <= 0:
            return 0
        piece = data if len(data) <= room else data[:room]
        stream._pending += piece
        self._writing[stream.stream_id] = stream
        self._pending_bytes += len(piece)
        return len(piece)

    def _send_pending(self) -> None:
        for stream in list(self._writing.values()):
            if stream.is_over:
                self._drop_pending(stream)
                continue
            # The server may have made a window smaller since.
            room = max(0, self._h2.room(stream.stream_id))
            with memoryview(stream._pending) as pending, pending[:room] as piece:
                self._h2.send_frames(stream.stream_id, piece)
                rest = bytes(pending[room:])
            self._drop_pending(stream)
            if rest:
                stream._pending += rest
                self._writing[stream.stream_id] = stream
                self._pending_bytes += len(rest)

    def _drop_pending(self, stream: Stream) -> None:
        self._pending_bytes -= len(stream._pending)
        stream._pending = bytearray()
        self._writing.pop(stream.stream_id, None)

    def end_input(self, stream: Stream) -> bool:
        """End the request; return False if data must be sent first and the window is full."""
        if not stream.input_ended and not stream.is_over:
            self._send_pending()
            if stream._pending:
                return False
            self._h2.end_stream(stream.stream_id)
            stream.input_ended = True
        return True

    def take(self, stream: Stream) -> bytes:
        """What has arrived and was not taken yet; the server may send as much again."""
        data = bytes(stream._received)
        stream._received.clear()
        self._open_window(stream)
        return data

    def _open_window(self, stream: Stream) -> None:
        """Let the server send again as much as it has sent and the reader has taken; padding counts as taken."""
        size = stream._unopened - len(stream._received)
        if size >= STREAM_WINDOW_BYTES // 4 and not stream.is_over:
            self._h2.open_window(stream.stream_id, size)
            stream._unopened -= size

    def close(self, stream: Stream) -> None:
        """Forget a stream; if either direction is open, reset it."""
        stream._received.clear()
        if self._streams.pop(stream.stream_id, None) is None or self.failure is not None:
            self._drop_pending(stream)
            return
        self._reset(stream)

    def _reset(self, stream: Stream) -> None:
        self._drop_pending(stream)
        if stream.failure is None and not (stream.ended and stream.input_ended):
            self._h2.reset_stream(stream.stream_id, ErrorCodes.CANCEL)

    def ping(self, data: bytes) -> None:
        """Ask the server for a sign of life; any byte is one."""
        if self.failure is None:
            self._h2.ping(data)

    # What arrives

    def feed(self, data: bytes) -> list[Stream]:
        """Process bytes from the server."""
        if self.failure is not None:
            return []
        if self._partial:
            data = self._partial + data
        changed: dict[int, Stream] = {}
        try:
            self._partial = data[self._feed(data, changed) :]
        except ProtocolError:
            # Its GOAWAY is among the output now.
            for stream in self.fail(Failure("malformed")):
                changed[stream.stream_id] = stream
        if self.failure is None:
            self._open_own_window()
            for stream in changed.values():
                self._open_window(stream)
        return list(changed.values())

    def _open_own_window(self) -> None:
        """Let the server send as much again on the connection as it has sent."""
        if self._unopened > CONNECTION_WINDOW_BYTES // 4:
            self._h2.open_window(0, self._unopened)
            self._unopened = 0

    def _feed(self, data: bytes, changed: dict[int, Stream]) -> int:
        """Process the frames that have arrived whole, and return where the next one begins."""
        size = len(data)
        # Frames between the two are h2's, and are handed to it together.
        begin = position = 0
        while size - position >= FRAME_HEAD.size:
            high, low, kind, flags, number = FRAME_HEAD.unpack_from(data, position)
            start = position + FRAME_HEAD.size
            length = high << 8 | low
            end = start + length
            if length > MAX_FRAME_BYTES:
                self._handle_all(data[begin:position], changed)
                raise self._h2.violated(ErrorCodes.FRAME_SIZE_ERROR)
            if end > size:
                break
            if kind == DataFrame.type and not self._within_head:
                if begin < position:
                    self._handle_all(data[begin:position], changed)
                    begin = position
                number &= STREAM_ID_BITS
                stream = self._streams.get(number)
                if stream is not None and stream.is_over:
                    stream = None
                # Before SETTINGS, h2 knows what to say.
                if self.has_settings and (stream is not None or self._was_open(number)):
                    padding = 0
                    if flags & _PADDED:
                        padding = data[start] + 1 if length else 1
                        start += 1
                    # h2 knows what to say of too much padding.
                    if padding <= length:
                        self._count(length)
                        if stream is not None:
                            self._keep(stream, data[start : end + 1 - padding if padding else end], length)
                            changed[number] = stream
                            if flags & _END_STREAM and stream.failure is None:
                                self._handle_all(_empty_frame(number, _END_STREAM), changed)
                        elif not self._h2.has_reset(number):
                            # And of DATA after the end.
                            self._handle_all(_empty_frame(number), changed)
                        begin = end
            elif kind in _HEADS:
                self._within_head = not flags & _END_HEADERS
            position = end
        if begin < position:
            self._handle_all(data[begin:position], changed)
        return position

    def _was_open(self, number: int) -> bool:
        """Whether this is a stream that was opened here, or one that h2 must complain of."""
        return number % 2 == 1 and number <= self._h2.highest_outbound_stream_id

    def _count(self, length: int) -> None:
        """Count what has come on the connection, padding included."""
        self._unopened += length
        if self._unopened > CONNECTION_WINDOW_BYTES:
            raise self._h2.violated(ErrorCodes.FLOW_CONTROL_ERROR)

    def _keep(self, stream: Stream, data: bytes, length: int) -> None:
        """Keep what has come for a stream, and its length with padding."""
        stream._unopened += length
        if stream._unopened > STREAM_WINDOW_BYTES:
            raise self._h2.violated(ErrorCodes.FLOW_CONTROL_ERROR)
        if stream._still_due is not None:
            stream._still_due -= len(data)
        if stream.status is None or (stream._still_due or 0) < 0:
            self._refuse(stream)
        else:
            stream._received += data

    def _handle_all(self, data: bytes, changed: dict[int, Stream]) -> None:
        """Process frames with h2."""
        for event in self._h2.receive_data(data):
            for stream in self._handle(event):
                changed[stream.stream_id] = stream

    def _handle(self, event: Event) -> Iterable[Stream]:
        if isinstance(event, RemoteSettingsChanged):
            self.has_settings = True
            return self._streams.values()
        if isinstance(event, ConnectionTerminated):
            return self._handle_goaway(event)
        if isinstance(event, WindowUpdated) and not event.stream_id:
            return self._streams.values()
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None:
            return ()
        if isinstance(event, ResponseReceived):
            self._h2.bypass(stream.stream_id)
            if not _take_head(stream, event.headers):
                self._refuse(stream)
            if stream.status in ON_ANOTHER_CONNECTION:
                self.is_draining = True
        elif isinstance(event, StreamEnded):
            if stream._still_due and stream.status not in _WITHOUT_BODY:
                self._refuse(stream)
            else:
                stream.ended = True
        elif isinstance(event, StreamReset):
            # After END_STREAM the server needs no more of the request (RFC 9113, 8.1), unless the code stands for a
            # failure: nghttp2 ends a stream before it resets it.
            if stream.ended and event.error_code in _NO_FAILURE:
                stream.input_ended = True
            else:
                refused = event.error_code == ErrorCodes.REFUSED_STREAM
                reason: Reason = "refused" if refused else "reset" if event.remote_reset else "malformed"
                stream.failure = stream.failure or Failure(reason, _name(event.error_code))
        return (stream,)

    def _refuse(self, stream: Stream) -> None:
        """Break a stream whose response is malformed (RFC 9113, 8.1.1)."""
        stream.failure = stream.failure or Failure("malformed", ErrorCodes.PROTOCOL_ERROR.name)
        self._h2.refuse(stream.stream_id)

    def _handle_goaway(self, event: ConnectionTerminated) -> list[Stream]:
        self.is_draining = True
        last = event.last_stream_id or 0
        refused = [stream for stream in self._streams.values() if stream.stream_id > last and not stream.is_over]
        for stream in refused:
            stream.failure = Failure("refused", _name(event.error_code))
        return refused

    def fail(self, failure: Failure) -> list[Stream]:
        """Break what is open; returns the streams that this has broken."""
        if self.failure is None:
            self.failure = failure
        self._partial = b""
        self.is_draining = True
        broken = [stream for stream in self._streams.values() if not stream.is_over]
        for stream in broken:
            stream.failure = failure
        return broken

    def goodbye(self) -> None:
        """Tell the server that nothing follows."""
        if self.failure is None:
            for stream in self._streams.values():
                self._reset(stream)
            self._h2.close_connection()


def _empty_frame(number: int, flags: int = 0) -> bytes:
    return FRAME_HEAD.pack(0, 0, DataFrame.type, flags, number)


def _take_head(stream: Stream, headers: Iterable[tuple[bytes, bytes]] | None) -> bool:
    """Take in the head of a response; return whether its status and Content-Length are well formed."""
    for raw_name, raw_value in headers or ():
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name == ":status":
            stream.status = int(value) if re.fullmatch("[1-9][0-9]{2}", value) else None
        elif not name.startswith(":"):
            stream.headers[name] = f"{stream.headers[name]}, {value}" if name in stream.headers else value
            if name == "content-length":
                if not re.fullmatch("[0-9]{1,18}", value) or stream._still_due not in (None, int(value)):
                    return False
                stream._still_due = int(value)
    return stream.status is not None


def _name(code: object) -> str:
    try:
        return ErrorCodes(code).name  # type: ignore[arg-type]
    except ValueError:
        return str(code)
