"""Error responses of the local runtime, in the service's own words where those are known.

The messages are the ones that AWS's service sends according to public reports and documentation. Where its wording is
unknown, the message is ours, as noted in the function's docstring. Every error is encoded as the service encodes it:
the code in ``x-amzn-errortype``, and a JSON object with ``Message`` and the error's other members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aiosmrt._wire.operations import MAX_MESSAGE_CHARACTERS

__all__ = [
    "CallContext",
    "ErrorAnswer",
    "ErrorReply",
    "access_denied",
    "asynchronous_only",
    "body_too_large",
    "container_not_found",
    "container_required",
    "container_unsupported",
    "endpoint_not_found",
    "model_error",
    "model_not_ready",
    "model_timed_out",
    "openai_answer",
    "origin_rejected",
    "synchronous_only",
    "target_model_required",
    "target_model_unsupported",
    "throttled",
    "unknown_operation",
    "validation_error",
]

PRIMARY: Final = "primary"  # the service's name for the container of an endpoint with a single container


@dataclass(frozen=True, slots=True)
class CallContext:
    """The facts of a call that error messages mention.

    Args:
        region: the region of the runtime.
        account_id: the account of the runtime, 12 digits.
        endpoint: the endpoint's name; empty if the path names no endpoint.
        now: the time of the call in epoch seconds.
        request_id: the request's ``x-amzn-RequestId``. Defaults to an empty string.
    """

    region: str
    account_id: str
    endpoint: str
    now: float
    request_id: str = ""

    @property
    def log_stream_arn(self) -> str:
        """The log group that a ModelError refers to.

        >>> CallContext("eu-west-1", "123456789012", "churn", 0.0).log_stream_arn
        'arn:aws:logs:eu-west-1:123456789012:log-group:/aws/sagemaker/Endpoints/churn'
        """
        return f"arn:aws:logs:{self.region}:{self.account_id}:log-group:/aws/sagemaker/Endpoints/{self.endpoint}"

    @property
    def console_link(self) -> str:
        """The last sentence of a ModelError's message."""
        return (
            f"See https://{self.region}.console.aws.amazon.com/cloudwatch/home?region={self.region}"
            f"#logEventViewer:group=/aws/sagemaker/Endpoints/{self.endpoint} in account {self.account_id} "
            "for more information."
        )


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An HTTP error response of the service or of a proxy in front of it.

    Args:
        status: the HTTP status.
        code: the value of ``x-amzn-errortype``. If None, the header is omitted, as by a load balancer.
        message: the JSON body's ``Message``. Defaults to null.
        members: further members of the JSON body. Defaults to none.
        retry_after: the hint ``x-amz-retry-after`` in seconds (milliseconds on the wire). If None, it is omitted.
        body: the body to send instead of the JSON object, such as an HTML page. If None, the JSON object is sent.
        content_type: the content type of the body. Defaults to ``application/json``.
        message_key: the member that holds the message. Defaults to ``Message``.
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
        """Return the headers of the response."""
        headers = [("Content-Type", self.content_type)]
        if self.code is not None:
            headers.append(("x-amzn-errortype", self.code))
        if self.retry_after is not None:
            headers.append(("x-amz-retry-after", str(round(self.retry_after * 1000))))
        return headers

    def encoded(self) -> bytes:
        """Return the body of the response.

        >>> ErrorAnswer(400, "ValidationError", "no").encoded()
        b'{"Message": "no"}'
        """
        if self.body is not None:
            return self.body
        return json.dumps({**self.members, self.message_key: self.message}).encode()


class ErrorReply(Exception):
    """Ends the handling of a request with an error response."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(f"{answer.status} {answer.code}")
        self.answer = answer


def validation_error(message: str, error_code: str | None = None) -> ErrorAnswer:
    """Reject a request that the service cannot serve as asked.

    Args:
        message: the message.
        error_code: the body's member ``ErrorCode``, which the service sends with some of them. If None, it is omitted.
    """
    return ErrorAnswer(400, "ValidationError", message, {} if error_code is None else {"ErrorCode": error_code})


def endpoint_not_found(context: CallContext) -> ErrorAnswer:
    """Reject a call to an endpoint that does not exist.

    >>> endpoint_not_found(CallContext("eu-west-1", "123456789012", "churn", 0.0)).message
    'Endpoint churn of account 123456789012 not found.'
    """
    return validation_error(f"Endpoint {context.endpoint} of account {context.account_id} not found.")


def asynchronous_only(context: CallContext, operation: str) -> ErrorAnswer:
    """Reject a synchronous or streaming call to an asynchronous endpoint; the wording is ours."""
    return validation_error(
        f"Endpoint {context.endpoint} of account {context.account_id} is an asynchronous inference endpoint and does "
        f"not support {operation}. Use InvokeEndpointAsync."
    )


def synchronous_only(context: CallContext) -> ErrorAnswer:
    """Reject an asynchronous call to an endpoint without asynchronous inference; the wording is ours."""
    return validation_error(
        f"Endpoint {context.endpoint} of account {context.account_id} does not have an asynchronous inference "
        "configuration."
    )


def target_model_unsupported(context: CallContext) -> ErrorAnswer:
    """Reject a TargetModel for an endpoint with a single model."""
    return validation_error(
        f"Endpoint {context.endpoint} is not a multi-model endpoint and does not support target model header.",
        "TARGET_MODEL_HEADER_NOT_SUPPORTED",
    )


def target_model_required(context: CallContext) -> ErrorAnswer:
    """Reject a call without TargetModel to a multi-model endpoint; the ErrorCode is ours."""
    return validation_error(
        f"Request {context.request_id} is missing a target model header.", "TARGET_MODEL_HEADER_MISSING"
    )


def container_unsupported(context: CallContext) -> ErrorAnswer:
    """Reject a TargetContainerHostname for an endpoint without direct invocation; wording and ErrorCode are ours."""
    return validation_error(
        f"Endpoint {context.endpoint} is not configured for direct invocation and does not support target container "
        "hostname header.",
        "TARGET_CONTAINER_HOSTNAME_HEADER_NOT_SUPPORTED",
    )


def container_required(context: CallContext) -> ErrorAnswer:
    """Reject a call without TargetContainerHostname to a multi-container endpoint; wording and ErrorCode are ours."""
    return validation_error(
        f"Request {context.request_id} is missing a target container hostname header.",
        "TARGET_CONTAINER_HOSTNAME_HEADER_MISSING",
    )


def container_not_found(context: CallContext, hostname: str) -> ErrorAnswer:
    """Reject a TargetContainerHostname that the endpoint does not have; the wording is ours."""
    return validation_error(
        f"Container {hostname} of Endpoint {context.endpoint} of account {context.account_id} not found."
    )


def throttled(retry_after: float | None = None) -> ErrorAnswer:
    """Refuse a call for load: the type only in the header, a null message.

    Args:
        retry_after: the hint in seconds. If None, it is left out.
    """
    return ErrorAnswer(400, "ThrottlingException", None, retry_after=retry_after, message_key="message")


def model_not_ready() -> ErrorAnswer:
    """Reject a call to a container that does not yet answer its pings."""
    return ErrorAnswer(
        429,
        "ModelNotReadyException",
        "Either a serverless endpoint variant's resources are still being provisioned, or a multi-model endpoint is "
        "still downloading or loading the target model. Wait and try your request again.",
    )


def model_error(
    context: CallContext, original_status: int, original_message: str, container: str = PRIMARY
) -> ErrorAnswer:
    """Report a container's failure as a ModelError.

    Args:
        context: the call's endpoint, region and account.
        original_status: the container's HTTP status; 0 if it did not answer.
        original_message: the container's body as text.
        container: the container's hostname. Defaults to ``primary``, the only one of most endpoints.
    """
    side, error_code = (
        ("client", "CLIENT_ERROR_FROM_MODEL")
        if 400 <= original_status < 500
        else ("server", "INTERNAL_FAILURE_FROM_MODEL")
    )
    message = (
        f'Received {side} error ({original_status}) from {container} with message "{original_message}". '
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


def model_timed_out(container: str | None = None) -> str:
    """Return the service's message for a container that does not answer in time.

    Args:
        container: the container's hostname. If None, ``primary``.
    """
    return (
        f"Your invocation timed out while waiting for a response from container {container or PRIMARY}. Review the "
        "latency metrics for each container in Amazon CloudWatch, resolve the issue, and try again."
    )


def unknown_operation() -> ErrorAnswer:
    """Reject a path or method that matches no operation, as AWS's front end does."""
    return ErrorAnswer(
        404, "UnknownOperationException", body=b"<UnknownOperationException/>\n", content_type="application/xml"
    )


def body_too_large(max_body_bytes: int) -> ErrorAnswer:
    """Reject a request body over the service's limit, as AWS's front end does."""
    return ErrorAnswer(413, None, f"HTTP content length exceeded {max_body_bytes} bytes.")


def openai_answer(answer: ErrorAnswer) -> ErrorAnswer:
    """Report an error as the OpenAI route does, in OpenAI's envelope.

    A container's error is the container's answer: its status, and its body where that is JSON. Statuses and
    ``x-amzn-errortype`` of the service are those of its other operations; what it sends on this route is known for
    missing capacity alone.

    >>> openai_answer(validation_error("no")).encoded()
    b'{"error": {"message": "no", "type": "ValidationError", "param": null, "code": "ValidationError"}}'
    """
    if answer.body is not None:
        return answer  # a proxy's
    status, code, message = answer.status, answer.code or str(answer.status), answer.message or ""
    error_type = answer.code
    if answer.code == "ModelError":
        status = int(str(answer.members["OriginalStatusCode"])) or 502
        message = str(answer.members["OriginalMessage"])
        try:
            json.loads(message)
        except ValueError:
            code, error_type = "model_error", None
        else:
            return ErrorAnswer(status, None, body=message.encode())
    document = {"error": {"message": message, "type": code, "param": None, "code": code}}
    return ErrorAnswer(status, error_type, retry_after=answer.retry_after, body=json.dumps(document).encode())


def access_denied(status: int, code: str, message: str) -> ErrorAnswer:
    """Reject a request as AWS's authentication does, with the member ``message`` in lower case."""
    return ErrorAnswer(status, code, message, message_key="message")


def origin_rejected(reason: str) -> ErrorAnswer:
    """Reject an unsigned request that a web page may have sent.

    Args:
        reason: what tells, see `aiosmrt.local.origins.foreign_origin`.
    """
    message = f"The request was rejected because {reason}. Only signed requests are accepted from elsewhere."
    return access_denied(403, "AccessDeniedException", message)
