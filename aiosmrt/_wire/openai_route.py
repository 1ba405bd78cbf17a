"""The OpenAI route of an endpoint: chat completions as a container answers them, authorized by a bearer token.

``POST /endpoints/{name}[/inference-components/{component}]/openai/v1/chat/completions``. It is not in AWS's service
model. Answers are the container's, a stream is its bytes; errors are in OpenAI's envelope, ``{"error": {…}}``.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from aiosmrt._wire.eventheaders import EventHeaders
from aiosmrt._wire.replies import metadata_of

__all__ = [
    "CONTAINER_PATH",
    "MAX_MESSAGE_CHARACTERS",
    "PlainParts",
    "openai_failure",
    "retry_after_of",
    "says_no_capacity",
]

MAX_MESSAGE_CHARACTERS: Final = 2048
"""As much as AWS's errors have of a container's."""

CONTAINER_PATH: Final = "/v1/chat/completions"
"""Where the service passes requests on to in a container."""

# "Inference Component X has no capacity …"; further on, a message may quote what a client sent.
_NO_CAPACITY: Final = re.compile(r"[\w .:/-]{0,200}?\bhas no capacity\b", re.ASCII)


def openai_failure(status: int, headers: dict[str, str], body: bytes, attempts: int) -> dict[str, Any]:
    """The ``response`` dictionary of an error response, with OpenAI's error under ``"OpenAI"``.

    Args:
        status: the HTTP status.
        headers: the response headers, names in lower case.
        body: the response body: OpenAI's envelope, another document of a container, a proxy's page, or empty.
        attempts: how many requests were sent.

    >>> response = openai_failure(404, {}, b'{"error": {"message": "no such model", "code": 404, "type": "t"}}', 1)
    >>> response["Error"], response["OpenAI"]["type"]
    ({'Message': 'no such model', 'Code': 't'}, 't')
    """
    metadata = metadata_of(status, headers)
    metadata["RetryAttempts"] = attempts - 1
    text = body.decode("utf-8", "replace")
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    error = document.get("error", document) if isinstance(document, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        error = {}
    # "detail" is FastAPI's. As for AWS's own errors, a text without a message is the message, and a page is not.
    message = next((error[key] for key in ("message", "Message", "detail") if isinstance(error.get(key), str)), None)
    if message is None:
        message = "" if text.lstrip().startswith("<") else text[:MAX_MESSAGE_CHARACTERS]
    code = next((error[key] for key in ("code", "type") if isinstance(error.get(key), str)), str(status))
    return {
        "Error": {"Message": message, "Code": code},
        "ResponseMetadata": metadata,
        "OpenAI": {**error, "message": message or f"the service answered {code} without a message"},
    }


def says_no_capacity(status: int, message: str) -> bool:
    """Tell whether an error is that of an inference component without instances.

    >>> says_no_capacity(400, "Inference Component has no capacity to process this request."), says_no_capacity(503, "")
    (True, False)
    >>> says_no_capacity(400, 'the prompt "my bus has no capacity" is too long')
    False
    """
    return status == 400 and _NO_CAPACITY.match(message) is not None


def retry_after_of(headers: dict[str, str]) -> float | None:
    """The seconds in ``Retry-After``; None without it, or if it is a date.

    >>> retry_after_of({"retry-after": "2"}), retry_after_of({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"})
    (2.0, None)
    """
    value = headers.get("retry-after", "")
    return float(value) if re.fullmatch("[0-9]{1,6}", value) else None


class PlainParts:
    """The decoder of a stream that is bytes without frames: each piece that arrives is a part."""

    __slots__ = ()

    failure = None
    _headers: Final = EventHeaders({":message-type": "event", ":event-type": "PayloadPart"})

    def feed(self, data: bytes | memoryview) -> list[tuple[EventHeaders, bytes]]:
        """Return the bytes as a part."""
        return [(self._headers, bytes(data))]

    def finish(self) -> None:
        """Do nothing: the connection knows where a body ends."""
