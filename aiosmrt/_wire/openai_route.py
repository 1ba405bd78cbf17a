"""The OpenAI route of an endpoint: chat completions as a container answers them, authorized by a bearer token.

``POST /endpoints/{name}[/inference-components/{component}]/openai/v1/chat/completions``. It is not in AWS's service
model. Answers are the container's, a stream is its bytes. So are its errors, ``{"error": {…}}``. The service's own are
known for missing capacity alone, which has OpenAI's envelope; those in AWS's form are read as on other routes.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from aiosmrt._wire.eventheaders import EventHeaders
from aiosmrt._wire.http1 import ON_ANOTHER_CONNECTION
from aiosmrt._wire.operations import MAX_MESSAGE_CHARACTERS
from aiosmrt._wire.replies import failure, metadata_of
from aiosmrt.errors import ERROR_CODES

__all__ = [
    "CONTAINER_PATH",
    "PlainParts",
    "openai_failure",
    "retry_after_of",
    "says_no_capacity",
]

CONTAINER_PATH: Final = "/v1/chat/completions"
"""Where the service passes requests on to in a container."""

# The last one is FastAPI's.
_MESSAGES: Final = ("message", "Message", "detail")

# "Inference Component X has no capacity …"; further on, a message may quote what a client sent.
_NO_CAPACITY: Final = re.compile(r"[\w .:/-]{0,200}?\bhas no capacity\b", re.ASCII)


def openai_failure(status: int, headers: dict[str, str], body: bytes, attempts: int) -> dict[str, Any]:
    """The ``response`` dictionary of an error response, with OpenAI's error, if it is one, under ``"OpenAI"``.

    With AWS's error type, in ``x-amzn-errortype`` or ``__type``, the error is the service's. Without, one of 408, 421,
    500 and above whose body is OpenAI's or FastAPI's is the container's, and becomes a ``ModelError``. Others have the
    body's ``code`` or ``type``, or else the status, for a code; a container may have written them too.

    Args:
        status: the HTTP status.
        headers: the response headers, names in lower case.
        body: the response body: OpenAI's envelope, AWS's or another document, a proxy's page, or empty.
        attempts: how many requests were sent.

    >>> response = openai_failure(404, {}, b'{"error": {"message": "no such model", "code": 404, "type": "t"}}', 1)
    >>> response["Error"], response["OpenAI"]["type"]
    ({'Message': 'no such model', 'Code': 't'}, 't')
    >>> openai_failure(400, {"x-amzn-errortype": "ThrottlingException:"}, b'{"message": null}', 1)["Error"]
    {'Message': '', 'Code': 'ThrottlingException'}
    >>> response = openai_failure(500, {}, b'{"error": {"message": "out of memory", "type": "ServiceUnavailable"}}', 1)
    >>> response["Error"]["Code"], response["OriginalStatusCode"], response["OriginalMessage"]
    ('ModelError', 500, 'out of memory')
    >>> openai_failure(422, {}, b'{"detail": [{"msg": "too long"}]}', 1)["OpenAI"]["message"]
    '{"detail": [{"msg": "too long"}]}'
    >>> openai_failure(408, {}, b'{"error": {"message": "too slow"}}', 1)["Error"]["Code"]
    'ModelError'
    """
    text = body.decode("utf-8", "replace")
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        document = {}
    error = document.get("error", document)
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        error = {}
    message = next((error[key] for key in _MESSAGES if isinstance(error.get(key), str)), None)
    if "x-amzn-errortype" in headers or isinstance(document.get("__type"), str):
        response = failure(status, headers, body, attempts)
        if error is document or not error:
            if not isinstance(response["Error"]["Message"], str):
                response["Error"]["Message"] = ""
            return response
        response["Error"]["Message"] = message or ""
    else:
        if message is None:
            # As for AWS's own errors, a text without a message is the message, such as FastAPI's list of what is wrong
            # with a request; a page, and a null, are not.
            is_silent = text.lstrip().startswith("<") or any(error.get(key, "") is None for key in _MESSAGES)
            message = "" if is_silent else text[:MAX_MESSAGE_CHARACTERS]
        metadata = metadata_of(status, headers, attempts)
        response = {"Error": {"Message": message, "Code": _code(status, error)}, "ResponseMetadata": metadata}
        if (status >= 500 or status in ON_ANOTHER_CONNECTION) and _is_containers(document):
            response["Error"]["Code"] = "ModelError"
            response["OriginalStatusCode"] = status
            response["OriginalMessage"] = message[:MAX_MESSAGE_CHARACTERS]
    code, message = response["Error"]["Code"], response["Error"]["Message"]
    response["OpenAI"] = {**error, "message": message or f"the service answered {code} without a message"}
    return response


def _code(status: int, error: dict[str, Any]) -> str:
    """The code in an error that may be a container's, which must not pass for a failure of the service."""
    code = next((error[key] for key in ("code", "type") if isinstance(error.get(key), str)), str(status))
    known = ERROR_CODES.get(code)
    return str(status) if known is not None and known.cause in ("model", "transient") else code


def _is_containers(document: dict[str, Any]) -> bool:
    """Tell whether an error has the form of OpenAI's, vLLM's or FastAPI's.

    >>> _is_containers({"object": "error", "message": "too long"}), _is_containers({"message": "Service Unavailable"})
    (True, False)
    """
    return isinstance(document.get("error"), (dict, str)) or document.get("object") == "error" or "detail" in document


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

    def finish(self, content_type: str | None = None) -> None:
        """Do nothing: the connection knows where a body ends, and who reads it what it has to hold."""
