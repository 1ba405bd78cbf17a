"""Server-sent events as bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6)."""

import re
from typing import Any, Final

from aiosmrt._wire.lines import ServerSentEvent
from aiosmrt.errors import SerializationError
from aiosmrt.serializers import JSON

__all__ = ["COMMENT", "EventEncoder"]

COMMENT: Final = b":\n\n"

_LINE_END: Final = re.compile(r"\r\n|\r|\n")


class EventEncoder:
    """Encodes server-sent events.

    An id and a reconnection time stay in effect until they change, so they are written only when they do.

    >>> encoder = EventEncoder()
    >>> encoder.encode({"text": "be"})
    b'data: {"text":"be"}\\n\\n'
    >>> encoder.encode(ServerSentEvent("note", "not\\r\\nevent: to be", id="7"))
    b'event: note\\nid: 7\\ndata: not\\ndata: event: to be\\n\\n'
    """

    def __init__(self) -> None:
        self._id = ""
        self._retry: int | None = None

    def encode(self, item: Any) -> bytes:
        """Encode an item as an event.

        Args:
            item: text, an event, or a value that JSON can express.

        Raises:
            SerializationError: JSON cannot express the value, a field contains a line end, or text cannot be encoded
                as UTF-8.
        """
        if isinstance(item, ServerSentEvent):
            event = item
        else:
            event = ServerSentEvent(data=item if isinstance(item, str) else JSON.serialize(item).decode())
        lines = []
        if event.event not in ("", "message"):
            lines.append(f"event: {event.event}")
        if event.id not in ("", self._id):
            lines.append(f"id: {event.id}")
        if event.retry not in (None, self._retry):
            lines.append(f"retry: {event.retry}")
        if any(_LINE_END.search(line) for line in lines) or "\0" in event.id:
            raise SerializationError("the type, id and retry of an event must not contain line ends, nor the id U+0000")
        lines.extend(f"data: {line}" for line in _LINE_END.split(event.data))
        try:
            encoded = "\n".join(lines).encode() + b"\n\n"
        except UnicodeEncodeError:
            encoded = b""
        if not encoded:
            raise SerializationError("the event contains lone surrogates and cannot be encoded as UTF-8")
        self._id = event.id or self._id
        self._retry = self._retry if event.retry is None else event.retry
        return encoded
