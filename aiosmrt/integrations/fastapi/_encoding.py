"""Server-sent events as bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6)."""

import json
import re
from typing import Any, Final

from aiosmrt._wire.decoders.event import ServerSentEvent
from aiosmrt.errors import SerializationError
from aiosmrt.serializers import JSON
from aiosmrt.serializers.objects import is_array, is_numpy_scalar

__all__ = ["COMMENT", "EventEncoder"]

# Without a blank line, which would dispatch an empty event in the decoders of openai, anthropic, httpx-sse and
# @microsoft/fetch-event-source.
COMMENT: Final = b":\n"

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

        NaN and infinities become null, as JSON cannot express them. Lone surrogates, such as half of an emoji, are
        escaped in JSON and become U+FFFD in text, as in a browser.

        Raises:
            SerializationError: JSON cannot express the value, or a field contains a line end.
        """
        if isinstance(item, ServerSentEvent):
            event = item
        else:
            event = ServerSentEvent(data=item if isinstance(item, str) else _json(item))
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
        self._id = event.id or self._id
        self._retry = self._retry if event.retry is None else event.retry
        return _utf8("\n".join(lines)) + b"\n\n"


def _utf8(text: str) -> bytes:
    """Encode text, with U+FFFD for lone surrogates.

    >>> _utf8("\\ud83d, \\ud83d\\ude00").decode()
    '\ufffd, \U0001f600'
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _json(value: Any) -> str:
    """Write JSON that every parser accepts.

    Raises:
        SerializationError: JSON cannot express the value.

    >>> _json({"t": "\\ud83d", "logprobs": [-0.5, float("-inf")]})
    '{"t":"\\\\ud83d","logprobs":[-0.5,null]}'
    """
    try:
        return JSON.serialize(value).decode()
    except SerializationError as error:
        failure = error
    try:
        plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
        # In JSON, the escape of a surrogate is that of Python.
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace").decode()
    except (TypeError, ValueError, RecursionError):
        pass
    raise failure


def _plain(value: Any) -> Any:
    if is_array(value) or is_numpy_scalar(value):
        plain = value.tolist()
        # tolist() does not convert a longdouble.
        if type(plain) is not type(value):
            return plain
    raise TypeError
