"""Streams as an OpenAI client reads them: server-sent events, whatever the container writes.

Server-sent events pass through as they are. JSON lines, which LMI writes, become an event each, and get the ``[DONE]``
at their end. Which of the two it is shows in the first byte: no event begins with a brace.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Protocol

import httpx2
import openai

from aiosmrt.errors import AiosmrtError, ResponseStreamingError
from aiosmrt.integrations.openai._errors import envelope, stream_failure
from aiosmrt.integrations.openai._metering import Meter

if TYPE_CHECKING:
    from aiosmrt._core.response_bodies import EventStream

__all__ = ["EventBytes", "LineEvents", "ServedStream"]

_DONE: Final = b"data: [DONE]\n\n"
_UNFINISHED: Final = "the stream ended inside an event"


class Events(Protocol):
    """Turns a stream's bytes into those of server-sent events."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return those to pass on, maybe none."""
        ...

    def finish(self) -> bytes | None:
        """Return the last bytes; None if the stream ended inside an event."""
        ...


class EventBytes:
    """Server-sent events, passed on as they come.

    An event that is whole but for the blank line after it is completed, because model servers forget that line.

    >>> events = EventBytes()
    >>> events.feed(b'data: {"id"'), events.feed(b': 1}'), events.finish()
    (b'data: {"id"', b': 1}', b'\\n\\n')
    """

    __slots__ = ("_line",)

    def __init__(self) -> None:
        # the last line, while its end is missing
        self._line = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return them."""
        end = data.rfind(b"\n") + 1
        self._line = data[end:] if end else self._line + data
        return data

    def finish(self) -> bytes | None:
        """Return the blank line that is missing; None if the stream ended inside an event."""
        line = self._line.strip()
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if not (data == b"[DONE]" or _is_json(data)):
                return None
        return b"\n\n"


class LineEvents:
    """JSON lines, each of them an event.

    A line that names an error as a string gets it as an object with a message, which OpenAI clients expect.

    >>> events = LineEvents()
    >>> events.feed(b'{"id": 1}\\n{"id"'), events.feed(b': 2}'), events.finish()
    (b'data: {"id": 1}\\n\\n', b'', b'data: {"id": 2}\\n\\ndata: [DONE]\\n\\n')
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return the events of the lines that they complete."""
        if b"\n" not in data:
            self._rest.append(data)
            return b""
        # at LF alone: other ends of lines, such as U+2028, may stand in a JSON string
        lines = b"".join([*self._rest, data]).split(b"\n")
        self._rest = [lines.pop()]
        return b"".join([_event(line) for line in lines])

    def finish(self) -> bytes | None:
        """Return the event of a last line without an end, and the end of the events; None if it is not whole."""
        line = b"".join(self._rest).strip()
        if line and not _is_json(line):
            return None
        return _event(line) + _DONE


def _event(line: bytes) -> bytes:
    line = line.strip()
    if not line:
        return b""
    # In text, the quotes would be escaped.
    if b'"error"' in line and (found := envelope(line)) is not None:
        line = json.dumps(found).encode()
    return b"data: " + line + b"\n\n"


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


class ServedStream(httpx2.AsyncByteStream):
    """The body of a streamed response.

    Reading it raises `openai.OpenAIError`. A reader that is cancelled, `aclose` and an error close the connection.

    Args:
        parts: the parts of the response.
        request: the request, which errors refer to.
        meter: reads along. Defaults to none.
    """

    def __init__(self, parts: EventStream, request: httpx2.Request, meter: Meter | None = None) -> None:
        self._parts = parts
        self._meter = meter
        self._request = request
        self._events: Events | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"<ServedStream of {self._parts!r}>"

    def __aiter__(self) -> ServedStream:
        return self

    async def __anext__(self) -> bytes:
        data = b""
        while not data and not self._over:
            data = self._passed_on(b"".join(await self._receive()))
        meter = self._meter
        if meter is not None:
            if data:
                meter.streamed(data)
            if self._over:
                meter.ended(None)
        if not data:
            raise StopAsyncIteration
        return data

    async def _receive(self) -> list[bytes]:
        try:
            return await self._parts.receive()
        except AiosmrtError as error:
            failure = stream_failure(error, self._request)
            if self._meter is not None:
                self._meter.ended(type(error).__name__)
        self._over = True
        try:
            raise failure
        finally:
            del failure

    def _passed_on(self, data: bytes) -> bytes:
        events = self._events
        if not data:
            self._over = True
            if events is None:
                return b""
            last = events.finish()
            if last is None:
                del data, events
                if self._meter is not None:
                    self._meter.ended(ResponseStreamingError.__name__)
                raise openai.APIConnectionError(message=_UNFINISHED, request=self._request)
            return last
        if events is None:
            begin = data.lstrip()[:1]
            if not begin:
                return b""
            events = self._events = LineEvents() if begin == b"{" else EventBytes()
        return events.feed(data)

    async def aclose(self) -> None:
        """Close the connection, unless the stream was read to its end."""
        self._over = True
        self._parts.close()
        if self._meter is not None:
            self._meter.ended("CancelledError")
