"""Builds the dictionaries that botocore would return from a response's status, headers and body.

This holds for successes and errors: code written for boto3 or aiobotocore that reads
``response["ResponseMetadata"]["RequestId"]`` or ``error.response["Error"]`` finds the same keys. Where botocore's
parser fails on a malformed error body (JSON that is not an object, bytes that are not UTF-8), the message stays empty.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from aiosmrt._wire.operations import MAX_ERROR_BYTES, Operation
from aiosmrt.errors import ERROR_CODES

__all__ = ["ReplyReader", "failure", "metadata_of", "stream_failure"]


class ReplyReader:
    """Builds the result dictionaries of one operation.

    Args:
        operation: the operation.
    """

    __slots__ = ("_headers", "_json", "_payload")

    def __init__(self, operation: Operation) -> None:
        self._headers = tuple(
            (member.name, member.header.lower()) for member in operation.results if member.header is not None
        )
        self._json = tuple(member.name for member in operation.results if member.location == "body")
        self._payload = any(member.location == "payload" for member in operation.results)

    def result(self, status: int, headers: dict[str, str], body: object, attempts: int) -> dict[str, Any]:
        """The result dictionary.

        Args:
            status: the HTTP status.
            headers: the response headers, names in lower case.
            body: the value of ``"Body"``; the bytes of a JSON document if the operation has no payload member.
            attempts: how many requests were sent.
        """
        result: dict[str, Any] = {"ResponseMetadata": metadata_of(status, headers, attempts)}
        for name, header in self._headers:
            if header in headers:
                result[name] = headers[header]
        if self._payload:
            result["Body"] = body
        elif isinstance(body, bytes):
            document = _document(body)
            for name in self._json:
                if (value := document.get(name)) is not None:
                    result[name] = value
        return result


def metadata_of(status: int, headers: dict[str, str], attempts: int) -> dict[str, Any]:
    """The ``ResponseMetadata`` of a response.

    Args:
        status: the HTTP status.
        headers: the response headers, names in lower case.
        attempts: how many requests were sent.
    """
    retries = attempts - 1
    if (request_id := headers.get("x-amzn-requestid")) is not None:
        return {"RequestId": request_id, "HTTPStatusCode": status, "HTTPHeaders": headers, "RetryAttempts": retries}
    rest = {"HTTPStatusCode": status, "HTTPHeaders": headers, "RetryAttempts": retries}
    if (request_id := headers.get("x-amz-request-id")) is not None:
        return {"RequestId": request_id, "HostId": headers.get("x-amz-id-2", ""), **rest}
    return rest


def failure(status: int, headers: dict[str, str], body: bytes, attempts: int) -> dict[str, Any]:
    """The ``response`` dictionary of an error response.

    The code is ``x-amzn-errortype``, or else the body's ``code`` or ``__type``, or else the status. Of it, the part
    before the first ``:`` and after the last ``#`` counts.

    Args:
        status: the HTTP status.
        headers: the response headers, names in lower case.
        body: the response body: JSON, a proxy's HTML, or empty.
        attempts: how many requests were sent.

    >>> failure(400, {"x-amzn-errortype": "ThrottlingException:http://x/"}, b'{"message":null}', 1)["Error"]
    {'Message': None, 'Code': 'ThrottlingException'}
    """
    metadata = metadata_of(status, headers, attempts)
    stripped = body.strip()
    if status >= 500 and (not stripped or stripped.startswith(b"<html>")):
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        return {"Error": {"Code": str(status), "Message": phrase}, "ResponseMetadata": metadata}
    document = _document(body)
    code: object = headers.get("x-amzn-errortype")
    for key in ("code", "Code", "__type"):
        if code is None:
            code = document.get(key)
    if not isinstance(code, str):
        code = str(status)
    code = _bare_code(code)
    message = document.get("message", document.get("Message", ""))
    response = {"Error": {"Message": message, "Code": code}, "ResponseMetadata": metadata}
    response.update(_modelled(code, document))
    return response


def stream_failure(message_type: str, exception_type: str | None, headers: Any, payload: bytes) -> dict[str, Any]:
    """The ``response`` dictionary of an ``exception`` or ``error`` message inside an event stream.

    Args:
        message_type: the message's ``:message-type``.
        exception_type: the message's ``:exception-type``, if it has one.
        headers: all headers of the message.
        payload: the message's payload, of which `MAX_ERROR_BYTES` are kept, as of the body of an error response.

    >>> stream_failure("exception", "ModelStreamError", {}, b'{"ErrorCode":"StreamBroken"}')["ErrorCode"]
    'StreamBroken'
    """
    if message_type == "exception" and exception_type is not None:
        document = _document(payload[:MAX_ERROR_BYTES])
        code = _bare_code(exception_type)
        message = next((document[key] for key in ("Message", "message") if document.get(key) is not None), "")
        return {"Error": {"Code": code, "Message": message}, **_modelled(code, document)}
    return {"Error": {"Code": str(headers.get(":error-code", "")), "Message": str(headers.get(":error-message", ""))}}


def _bare_code(code: str) -> str:
    return code.split(":", 1)[0].rsplit("#", 1)[-1]


def _document(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        # As in botocore, a plain-text body is the message.
        return {"message": text}
    return document if isinstance(document, dict) else {}


def _modelled(code: str, document: dict[str, Any]) -> dict[str, Any]:
    known = ERROR_CODES.get(code)
    if known is None or known.members is None:
        return {}
    found: dict[str, Any] = {}
    for name, convert in (("Message", str), *known.members):
        value = document.get(name)
        if value is None:
            continue
        try:
            found[name] = convert(value)
        except (TypeError, ValueError, OverflowError):
            found[name] = value
    return found
