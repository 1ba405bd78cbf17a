"""Streams as an OpenAI client reads them: server-sent events, whatever the container writes.

Server-sent events pass through, one by one. JSON lines, which LMI writes, become an event each, and get the ``[DONE]``
at their end. Which of the two it is shows in the first byte: no event begins with a brace.

The SDK takes whatever is not an event for silence, and the end of the bytes for that of the answer. So what a container
writes instead of events, and an answer that breaks off, are found here. An answer has ended with ``[DONE]``, with an
error, or with a ``finish_reason`` of each choice: containers that leave out ``[DONE]`` name the reason. A stream whose
events lack ``choices``, and so is not a chat, may end between any two of them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import httpx2
import openai

from aiosmrt._wire.decoders.base import MAX_ITEM_BYTES
from aiosmrt._wire.decoders.sse import FIELDS
from aiosmrt.errors import AiosmrtError, DeserializationError, ResponseStreamingError
from aiosmrt.integrations.openai._errors import envelope, envelope_of, stream_failure
from aiosmrt.integrations.openai._json import loads
from aiosmrt.integrations.openai._metering import Meter

if TYPE_CHECKING:
    from aiosmrt._core.response_bodies import EventStream

__all__ = ["EventBytes", "LineEvents", "PlainEvents", "ServedStream"]

_DONE: Final = b"data: [DONE]\n\n"


class Fault(NamedTuple):
    """Why a stream is not a whole answer: a message, and the class of our error that observers see."""

    message: str
    error: type[AiosmrtError]


_NO_EVENT: Final = Fault("the stream ended without an event", ResponseStreamingError)
_UNFINISHED: Final = Fault("the stream ended inside an event", ResponseStreamingError)
_NO_END: Final = Fault(
    "the stream ended before its answer did: neither [DONE] nor a finish_reason came", ResponseStreamingError
)
_NOT_EVENTS: Final = Fault("the stream has a line that is neither a server-sent event nor JSON", DeserializationError)
_TOO_LONG: Final = Fault(f"the stream has an event of more than {MAX_ITEM_BYTES} bytes", DeserializationError)
_NO_OBJECT: Final = Fault("the stream has an event whose data is not a JSON object", DeserializationError)
_WHOLE: Final = Fault("the container answered at once instead of by a stream", DeserializationError)


class Events(ABC):
    """Turns a stream's bytes into those of server-sent events.

    Attributes:
        fault: what is wrong behind the bytes that were returned; None if nothing is.
    """

    __slots__ = ("_answers", "_done", "_finished", "_rest", "_seen", "_unfinished", "fault")

    def __init__(self) -> None:
        self.fault: Fault | None = None
        # what is not whole yet
        self._rest: list[bytes] = []
        self._seen = False
        # whether an answer's pieces were seen, which choices were, and whether all ended with [DONE] or an error
        self._answers = False
        self._finished: set[int] = set()
        self._unfinished: set[int] = set()
        self._done = False

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Take bytes and return those to pass on, maybe none."""

    @abstractmethod
    def finish(self) -> bytes:
        """Return the last bytes, maybe none."""

    def _object_event(self, data: bytes, event: bytes, fault: Fault) -> bytes:
        """The event to pass on for the data of one: itself, or that of an error in it.

        Args:
            data: its data.
            event: the event.
            fault: what is wrong if the data are not a JSON object.
        """
        document = _object(data)
        if document is None:
            self.fault = fault
            return b""
        if b'"error"' in data and (found := envelope_of(document)) is not None:
            return self._error_event(found)
        return event if self._note(document) else b""

    def _error_event(self, document: dict[str, Any]) -> bytes:
        self._seen = self._done = True
        return b"data: " + json.dumps(document).encode() + b"\n\n"

    def _note(self, document: dict[str, Any]) -> bool:
        """Look at the data of an event, and return whether it may be passed on."""
        self._seen = True
        choices = document.get("choices")
        if choices is None:
            return True
        self._answers = True
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            if "message" in choice and "delta" not in choice:
                self.fault = _WHOLE
                return False
            index = choice.get("index")
            if not isinstance(index, int):
                index = 0
            # Some servers write an empty reason before the last piece.
            if choice.get("finish_reason"):
                self._finished.add(index)
                self._unfinished.discard(index)
            elif index not in self._finished:
                self._unfinished.add(index)
        return True

    def _close(self) -> None:
        if self.fault is not None:
            return
        if not self._seen:
            self.fault = _NO_EVENT
        elif self._answers and not self._done and (self._unfinished or not self._finished):
            self.fault = _NO_END


class EventBytes(Events):
    """Server-sent events, each passed on when it is whole; their lines end with LF.

    An event that is whole but for the blank line after it is completed, because model servers forget that line. Events
    without data are left out, which the SDK would read as JSON, and so is what follows ``[DONE]``. An error becomes one
    in OpenAI's form. Malformed UTF-8 becomes U+FFFD, as in any stream of events: the SDK would fail with a
    ``UnicodeDecodeError``.

    >>> events = EventBytes()
    >>> events.feed(b'data: {"id"'), events.feed(b': 1}'), events.finish(), events.fault
    (b'', b'', b'data: {"id": 1}\\n\\n', None)
    """

    __slots__ = ("_after_cr", "_over")

    def __init__(self) -> None:
        super().__init__()
        # whether an LF would belong to the end of a line that was read
        self._after_cr = False
        # whether [DONE] came
        self._over = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return the events that they complete."""
        if (
            data.startswith(b"data: {")
            and data.endswith(b"}\n\n")
            and not (self._rest or self._after_cr or self._over)
            and (plain := PlainEvents.of(_in_utf8(data))) is not None
            and all(map(self._note, plain.documents))
        ):
            return plain
        # told again below, where its event is
        self.fault = None
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n\n" not in data and not data.startswith(b"\n"):
            self._rest.append(data)
            return b""
        data = b"".join([*self._rest, data])
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            self._rest = [data]
            return b""
        self._rest = [data[end:]] if end < len(data) else []
        passed: list[bytes] = []
        for block in _in_utf8(data[:end]).split(b"\n\n"):
            passed.append(self._event(block.strip(b"\n")))
            if self.fault is not None:
                break
        return b"".join(passed)

    def finish(self) -> bytes:
        """Return the last event, if only the blank line after it is missing."""
        if self._over:
            return b""
        block = _in_utf8(b"".join(self._rest))
        self._rest.clear()
        last = b""
        if block.strip() and self.fault is None:
            self.fault = _fault_of_last(block)
            if self.fault is None:
                last = self._event(block.strip(b"\n"))
        self._close()
        return last

    def _event(self, block: bytes) -> bytes:
        if self._over or not block:
            return b""
        if block.startswith(b"data:") and b"\n" not in block:
            kind, data = b"", block[5:].strip()
        else:
            fields = [line.partition(b":")[::2] for line in block.split(b"\n") if not line.isspace()]
            names = {name for name, _ in fields}
            if not names <= {b"data", b"event", b"id", b"retry", b""}:
                self.fault = _NOT_EVENTS
                return b""
            if names == {b""}:
                # No blank line: after an event with an id, the SDK takes that for another event.
                return block + b"\n"
            kind = next((value.strip() for name, value in reversed(fields) if name == b"event"), b"")
            data = b"\n".join([value for name, value in fields if name == b"data"]).strip()
        if not data:
            return b""
        if data.startswith(b"[DONE]"):
            self._over = self._seen = self._done = True
            return _DONE
        if kind == b"error":
            message = data.decode(errors="replace")
            return self._error_event(envelope(data) or {"error": {"message": message, "type": None, "code": None}})
        return self._object_event(data, block + b"\n\n", _NO_OBJECT)


class PlainEvents(bytes):
    """Whole events that pass as they are: one line of a JSON object each, and no error.

    Attributes:
        texts: their data.
        documents: the objects in them, so that a reader who finds them here need not parse the same text again.
    """

    texts: list[bytes]
    documents: list[dict[str, Any]]

    @classmethod
    def of(cls, data: bytes) -> PlainEvents | None:
        """Some bytes, if they are such events."""
        if b'"error"' in data or b"\r" in data:
            return None
        texts = data[6:-2].split(b"\n\ndata: ")
        if data.count(b"\n") != 2 * len(texts):
            return None
        documents = []
        for text in texts:
            document = _object(text)
            if document is None:
                return None
            documents.append(document)
        plain = cls(data)
        plain.texts = texts
        plain.documents = documents
        return plain


def _fault_of_last(block: bytes) -> Fault | None:
    """What is wrong with the lines behind the last blank one."""
    lines = block.split(b"\n")
    last = lines[-1].strip()
    if last and not last.startswith((b"data:", b":")):
        begins = any(field.startswith(last) or last.startswith(field) for field in FIELDS)
        return _UNFINISHED if begins else _NOT_EVENTS
    if all(not line.strip() or line.startswith(b":") for line in lines):
        return None
    data = b"\n".join([line[5:] for line in lines if line.startswith(b"data:")]).strip()
    if data == b"[DONE]" or _is_json(data):
        return None
    # A complete line that is not a field is a fault of the event and decides its message.
    whole = [line for line in lines[:-1] if line.strip()]
    return _UNFINISHED if all(line.startswith(FIELDS) for line in whole) else _NOT_EVENTS


class LineEvents(Events):
    """JSON lines, each of them an event.

    A line that names an error as a string gets it as an object with a message, which OpenAI clients expect. A first
    line that is not JSON begins a document of several lines, which is one event. Malformed UTF-8 becomes U+FFFD.

    >>> events = LineEvents()
    >>> events.feed(b'{"id": 1}\\n{"id"'), events.feed(b': 2}'), events.finish()
    (b'data: {"id": 1}\\n\\n', b'', b'data: {"id": 2}\\n\\ndata: [DONE]\\n\\n')
    """

    __slots__ = ("_one",)

    def __init__(self) -> None:
        super().__init__()
        # whether the stream is one document
        self._one = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return the events of the lines that they complete."""
        if self._one or b"\n" not in data:
            self._rest.append(data)
            return b""
        # at LF alone: other ends of lines, such as U+2028, may stand in a JSON string
        whole = b"".join([*self._rest, data])
        end = whole.rfind(b"\n") + 1
        lines = _in_utf8(whole[:end]).split(b"\n")
        self._rest = [whole[end:]]
        if not self._seen:
            first = next((line for line in lines if line.strip()), b"{}")
            if not _is_json(first):
                self._one = True
                self._rest = [whole]
                return b""
        passed: list[bytes] = []
        for line in lines:
            passed.append(self._event(line.strip()))
            if self.fault is not None:
                break
        return b"".join(passed)

    def finish(self) -> bytes:
        """Return the event of a last line without an end, and the end of the events."""
        last = b""
        line = _in_utf8(b"".join(self._rest)).strip()
        self._rest.clear()
        if line and self.fault is None:
            if not (_is_end(line) or _is_json(line)):
                self.fault = _UNFINISHED
            else:
                # strings hold no ends of lines
                last = self._event(line.replace(b"\r", b" ").replace(b"\n", b" "))
        self._close()
        return last if self.fault is not None else last + _DONE

    def _event(self, line: bytes) -> bytes:
        if not line:
            return b""
        if _is_end(line):
            self._done = True
            return b""
        return self._object_event(line, b"data: " + line + b"\n\n", _NOT_EVENTS)


def _is_end(line: bytes) -> bool:
    """Tell whether a line among JSON lines is the mark that ends events."""
    return line in (b"[DONE]", b"data: [DONE]", b"data:[DONE]")


def _in_utf8(data: bytes) -> bytes:
    """Whole lines, with U+FFFD for malformed UTF-8."""
    return data if data.isascii() else data.decode(errors="replace").encode()


def _is_json(data: bytes) -> bool:
    try:
        loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _object(data: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; returns None if the text is anything else, or nested too deeply."""
    try:
        document = loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class ServedStream(httpx2.AsyncByteStream):
    """The body of a streamed response.

    Reading it raises `openai.OpenAIError`, also where the container wrote no events or broke off an answer. A reader
    that is cancelled, `aclose` and an error close the connection.

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
        # what came before the first byte that tells events from lines
        self._begin = b""
        self._fault: Fault | None = None
        self._over = False
        # bytes that came since something was passed on
        self._held_bytes = 0

    def __repr__(self) -> str:
        return f"<ServedStream of {self._parts!r}>"

    def __aiter__(self) -> ServedStream:
        return self

    async def __anext__(self) -> bytes:
        data = b""
        while not data:
            if self._fault is not None:
                self._break_off(self._fault)
            if self._over:
                raise StopAsyncIteration
            failure: AiosmrtError | None = None
            try:
                data = self._passed_on(b"".join(await self._parts.receive()))
            except AiosmrtError as error:
                failure = error
            if failure is not None:
                try:
                    self._fail(failure)
                finally:
                    del failure
            if self._meter is not None:
                if data:
                    self._meter.streamed(data)
                if self._over and self._fault is None:
                    self._meter.ended(None)
        return data

    def _fail(self, error: AiosmrtError) -> NoReturn:
        """Raise what an OpenAI client gets for a failure of ours."""
        self._over = True
        try:
            if self._meter is not None:
                self._meter.ended(type(error).__name__)
            raise stream_failure(error, self._request)
        finally:
            del error

    def _passed_on(self, data: bytes) -> bytes:
        """What to pass on for some bytes; none are the end."""
        events = self._events
        if not data:
            self._over = True
            if events is None:
                self._fault = _NOT_EVENTS if self._begin else _NO_EVENT
                return b""
            passed = events.finish()
        else:
            if events is None:
                data = (self._begin + data).lstrip()
                if BOM_UTF8.startswith(data):
                    self._begin = data
                    return b""
                self._begin = b""
                data = data.removeprefix(BOM_UTF8)
                events = self._events = LineEvents() if data.lstrip()[:1] == b"{" else EventBytes()
            passed = events.feed(data)
            self._held_bytes = 0 if passed else self._held_bytes + len(data)
        self._fault = _TOO_LONG if self._held_bytes > MAX_ITEM_BYTES else events.fault
        return passed

    def _break_off(self, fault: Fault) -> NoReturn:
        self._over = True
        self._fault = None
        self._parts.close()
        if self._meter is not None:
            self._meter.ended(fault.error.__name__)
        raise openai.APIConnectionError(message=fault.message, request=self._request)

    async def aclose(self) -> None:
        """Close the connection, unless the stream was read to its end."""
        self._over = True
        self._fault = None
        self._parts.close()
        if self._meter is not None:
            self._meter.ended("CancelledError")
