"""What the local runtime answers besides a model's own reply: the service's errors, word for word where known.

The sentences are those that AWS's service has been seen to give (public reports and documentation); where none is
known, the sentence is ours and says so in its function. Every error travels as the service's do: the code in
``x-amzn-errortype``, and a JSON object with ``Message`` and the error's other members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "CallContext",
    "ErrorAnswer",
    "ErrorReply",
    "access_denied",
    "endpoint_not_found",
    "model_error",
    "model_not_ready",
    "unknown_operation",
    "validation_error",
]

MAX_MESSAGE_CHARACTERS: Final = 2048  # the service model's Message shape


@dataclass(frozen=True, slots=True)
class CallContext:
    """What an error's text may speak of.

    Args:
        region: the region that the runtime plays.
        account_id: the account that the runtime plays, 12 digits.
        endpoint: the endpoint's name; empty where the path names none.
        now: the time of the call in epoch seconds.
    """

    region: str
    account_id: str
    endpoint: str
    now: float

    @property
    def log_stream_arn(self) -> str:
        """The log group that a ModelError points to.

        >>> CallContext("eu-west-1", "123456789012", "churn", 0.0).log_stream_arn
        'arn:aws:logs:eu-west-1:123456789012:log-group:/aws/sagemaker/Endpoints/churn'
        """
        return f"arn:aws:logs:{self.region}:{self.account_id}:log-group:/aws/sagemaker/Endpoints/{self.endpoint}"

    @property
    def console_link(self) -> str:
        """The sentence with which the service ends a ModelError's message."""
        return (
            f"See https://{self.region}.console.aws.amazon.com/cloudwatch/home?region={self.region}"
            f"#logEventViewer:group=/aws/sagemaker/Endpoints/{self.endpoint} in account {self.account_id} "
            "for more information."
        )


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An HTTP error as the service, or something in front of it, gives it.

    Args:
        status: the HTTP status.
        code: goes into ``x-amzn-errortype``; None leaves that header out, as a load balancer does.
        message: the JSON body's ``Message``; None is sent as null.
        members: further members of the JSON body.
        retry_after: the hint ``x-amz-retry-after`` in seconds (milliseconds on the wire); None sends none.
        body: sent in place of the JSON object, an HTML page for one.
        content_type: the content type of the body.
        message_key: the member that holds the message.
    """

    status: int
    code: str | None
    message: str | None = None
    members: Mapping[str, object] = field(default_factory=dict)
    retry_after: float | None = None
    body: bytes | None = None
    content_type: str = "application/json"
    message_key: str = "Message"

    def headers(self) -> list[tuple[str, str]]:
        """The error's own headers."""
        headers = [("Content-Type", self.content_type)]
        if self.code is not None:
            headers.append(("x-amzn-errortype", self.code))
        if self.retry_after is not None:
            headers.append(("x-amz-retry-after", str(round(self.retry_after * 1000))))
        return headers

    def encoded(self) -> bytes:
        """The body as sent.

        >>> ErrorAnswer(400, "ValidationError", "no").encoded()
        b'{"Message": "no"}'
        """
        if self.body is not None:
            return self.body
        return json.dumps({**self.members, self.message_key: self.message}).encode()


class ErrorReply(Exception):
    """Ends the handling of a request with an error answer."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(f"{answer.status} {answer.code}")
        self.answer = answer


def validation_error(message: str) -> ErrorAnswer:
    """The service's answer to a request that it cannot serve as asked."""
    return ErrorAnswer(400, "ValidationError", message)


def endpoint_not_found(context: CallContext) -> ErrorAnswer:
    """The service's answer for an endpoint that does not exist.

    >>> endpoint_not_found(CallContext("eu-west-1", "123456789012", "churn", 0.0)).message
    'Endpoint churn of account 123456789012 not found.'
    """
    return validation_error(f"Endpoint {context.endpoint} of account {context.account_id} not found.")


def model_not_ready() -> ErrorAnswer:
    """The answer while a model's container does not answer its pings yet."""
    return ErrorAnswer(
        429,
        "ModelNotReadyException",
        "Either a serverless endpoint variant's resources are still being provisioned, or a multi-model endpoint is "
        "still downloading or loading the target model. Wait and try your request again.",
    )


def model_error(context: CallContext, original_status: int, original_message: str) -> ErrorAnswer:
    """The service's ModelError for what a container answered.

    Args:
        context: the call's endpoint, region and account.
        original_status: the container's HTTP status; 0 when it gave no answer.
        original_message: the container's body as text.
    """
    side, error_code = (
        ("client", "CLIENT_ERROR_FROM_MODEL")
        if 400 <= original_status < 500
        else ("server", "INTERNAL_FAILURE_FROM_MODEL")
    )
    message = (
        f'Received {side} error ({original_status}) from primary with message "{original_message}". '
        f"{context.console_link}"
    )
    return ErrorAnswer(
        424,
        "ModelError",
        message[:MAX_MESSAGE_CHARACTERS],
        {
            "ErrorCode": error_code,
            "LogStreamArn": context.log_stream_arn,
            "OriginalMessage": original_message[:MAX_MESSAGE_CHARACTERS],
            "OriginalStatusCode": original_status,
        },
    )


def unknown_operation() -> ErrorAnswer:
    """The AWS front end's answer to a path or method that belongs to no operation."""
    return ErrorAnswer(
        404, "UnknownOperationException", body=b"<UnknownOperationException/>\n", content_type="application/xml"
    )


def body_too_large(max_body_bytes: int) -> ErrorAnswer:
    """The AWS front end's answer to a body above the service's limit."""
    return ErrorAnswer(413, None, f"HTTP content length exceeded {max_body_bytes} bytes.")


def access_denied(status: int, code: str, message: str) -> ErrorAnswer:
    """An answer of AWS's authentication, which writes its member ``message`` in lower case."""
    return ErrorAnswer(status, code, message, message_key="message")
