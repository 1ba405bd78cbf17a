"""The operations of SageMaker Runtime as one table.

Header names differ between operations (``Accept`` is sent as ``Accept`` by one and as ``X-Amzn-SageMaker-Accept`` by
another), so they are data in this table and are composed nowhere else. The table restates the service model that
botocore ships (``botocore/data/sagemaker-runtime/2017-05-13/service-2.json.gz``). A conformance test compares the two
member by member and fails when a member is added. `OPENAI_OPERATIONS` are not in the model: those names are ours.
"""

from typing import Final, Literal, NamedTuple

__all__ = [
    "API_VERSION",
    "BY_NAME",
    "CHAT_COMPLETIONS",
    "CHAT_COMPLETIONS_STREAM",
    "EVENT_STREAM",
    "INLINE_BYTES",
    "INVOCATION_TIMEOUT_SECONDS",
    "INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM",
    "MAX_ERROR_BYTES",
    "MAX_MESSAGE_CHARACTERS",
    "NEW_SESSION",
    "OPENAI_OPERATIONS",
    "OPERATIONS",
    "REQUEST_TTL_SECONDS",
    "SERVICE_ID",
    "SIGNING_NAME",
    "STREAM_LIFETIME_SECONDS",
    "Member",
    "Operation",
    "Rule",
]

API_VERSION = "2017-05-13"
SERVICE_ID = "SageMaker Runtime"
SIGNING_NAME = "sagemaker"

REQUEST_TTL_SECONDS: Final = 21_600
"""The service's default for ``RequestTTLSeconds``, which is also the maximum."""

INVOCATION_TIMEOUT_SECONDS: Final = 900
"""The service's default for ``InvocationTimeoutSeconds``."""

INLINE_BYTES: Final = 128_000
"""The largest body of an asynchronous inference that travels with its request (BodyBlob in the service model)."""

NEW_SESSION: Final = "NEW_SESSION"
"""The ``SessionId`` that opens a session."""

EVENT_STREAM: Final = "application/vnd.amazon.eventstream"
"""The media type of streams of events."""

STREAM_LIFETIME_SECONDS: Final = 30 * 60.0
"""How long the service keeps a bidirectional stream."""

MAX_ERROR_BYTES: Final = 2**16
"""How much is kept of what reports an error: messages end up in logs and error reports."""

MAX_MESSAGE_CHARACTERS: Final = 2048
"""As much as an error of the service has of a container's message (Message in the service model)."""


class Rule(NamedTuple):
    """The values that the service model allows.

    Args:
        type: the model's shape type.
        min: minimum length of a string, characters, or value of an integer. If None, no bound.
        max: maximum length of a string, characters, or of a blob, bytes, or value of an integer. If None, no bound.
        pattern: the model's pattern, in Java's syntax, if it has one.
        sensitive: whether the value must not appear in logs and errors.
    """

    type: Literal["string", "integer", "blob", "stream"] = "string"
    min: int | None = None
    max: int | None = None
    pattern: str | None = None
    sensitive: bool = False


class Member(NamedTuple):
    """A request or response member.

    Args:
        name: AWS's name.
        rule: the values that it allows.
        location: where it is sent; ``"body"`` means a key of a JSON body.
        header: the name of its header, if it is sent in one.
        required: whether a request must include it.
    """

    name: str
    rule: Rule
    location: Literal["uri", "header", "payload", "body"] = "header"
    header: str | None = None
    required: bool = False


class Operation(NamedTuple):
    """An operation of the service.

    Args:
        name: AWS's name, as in ``make_request``.
        method: the name of the client's method.
        path_suffix: the path after ``/endpoints/{EndpointName}``.
        status: the HTTP status of success.
        members: request members, in the model's order.
        results: response members, in the model's order.
        errors: the error codes that the model lists.
        streams: whether the response is an event stream.
        openai: whether it is the OpenAI route, see `aiosmrt._wire.openai_route`.
    """

    name: str
    method: str
    path_suffix: str
    status: int
    members: tuple[Member, ...]
    results: tuple[Member, ...]
    errors: tuple[str, ...]
    streams: bool = False
    openai: bool = False


_NAME = "^[a-zA-Z0-9](-*[a-zA-Z0-9])*"
_PRINTABLE = r"\A\S[\p{Print}]*\z"

_HEADER = Rule(max=1024, pattern=r"\p{ASCII}*")
_INLINE_BODY = Rule("blob", max=6291456, sensitive=True)
_TARGET = Rule(max=63, pattern=_NAME)
_ID = Rule(min=1, max=64, pattern=_PRINTABLE)
_SESSION = Rule(max=256, pattern=f"{_NAME}$")

# Members of more than one operation; where the header or the rule differs, the operation has its own.
_ENDPOINT_NAME = Member("EndpointName", Rule(max=63, pattern=_NAME), "uri", required=True)
_BODY = Member("Body", _INLINE_BODY, "payload", required=True)
_CONTENT_TYPE = Member("ContentType", _HEADER, header="Content-Type")
_PREFIXED_CONTENT_TYPE = Member("ContentType", _HEADER, header="X-Amzn-SageMaker-Content-Type")
_PREFIXED_ACCEPT = Member("Accept", _HEADER, header="X-Amzn-SageMaker-Accept")
_CUSTOM_ATTRIBUTES = Member(
    "CustomAttributes",
    Rule(max=1024, pattern=r"\p{ASCII}*", sensitive=True),
    header="X-Amzn-SageMaker-Custom-Attributes",
)
_TARGET_VARIANT = Member("TargetVariant", _TARGET, header="X-Amzn-SageMaker-Target-Variant")
_TARGET_CONTAINER = Member("TargetContainerHostname", _TARGET, header="X-Amzn-SageMaker-Target-Container-Hostname")
_INFERENCE_ID = Member("InferenceId", _ID, header="X-Amzn-SageMaker-Inference-Id")
_INFERENCE_COMPONENT = Member(
    "InferenceComponentName",
    Rule(max=63, pattern=r"^[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?$"),
    header="X-Amzn-SageMaker-Inference-Component",
)
_PREFIX_AWARE_ID = Member("PrefixAwareId", _ID, header="X-Amzn-SageMaker-Prefix-Aware-Id")
_INVOKED_VARIANT = Member("InvokedProductionVariant", _HEADER, header="x-Amzn-Invoked-Production-Variant")

INVOKE_ENDPOINT = Operation(
    name="InvokeEndpoint",
    method="invoke_endpoint",
    path_suffix="/invocations",
    status=200,
    members=(
        _ENDPOINT_NAME,
        _BODY,
        _CONTENT_TYPE,
        Member("Accept", _HEADER, header="Accept"),
        _CUSTOM_ATTRIBUTES,
        Member("TargetModel", Rule(min=1, max=1024, pattern=_PRINTABLE), header="X-Amzn-SageMaker-Target-Model"),
        _TARGET_VARIANT,
        _TARGET_CONTAINER,
        _INFERENCE_ID,
        Member("EnableExplanations", Rule(min=1, max=64, pattern=".*"), header="X-Amzn-SageMaker-Enable-Explanations"),
        _INFERENCE_COMPONENT,
        Member(
            "SessionId",
            Rule(max=256, pattern=f"^({NEW_SESSION})$|{_NAME}$"),
            header="X-Amzn-SageMaker-Session-Id",
        ),
        _PREFIX_AWARE_ID,
    ),
    results=(
        _BODY,
        _CONTENT_TYPE,
        _INVOKED_VARIANT,
        _CUSTOM_ATTRIBUTES,
        Member(
            "NewSessionId",
            Rule(max=256, pattern=_NAME + r";\sExpires=[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"),
            header="X-Amzn-SageMaker-New-Session-Id",
        ),
        Member("ClosedSessionId", _SESSION, header="X-Amzn-SageMaker-Closed-Session-Id"),
    ),
    errors=(
        "InternalFailure",
        "ServiceUnavailable",
        "ValidationError",
        "ModelError",
        "InternalDependencyException",
        "ModelNotReadyException",
    ),
)

INVOKE_ENDPOINT_ASYNC = Operation(
    name="InvokeEndpointAsync",
    method="invoke_endpoint_async",
    path_suffix="/async-invocations",
    status=202,
    members=(
        _ENDPOINT_NAME,
        _PREFIXED_CONTENT_TYPE,
        _PREFIXED_ACCEPT,
        _CUSTOM_ATTRIBUTES,
        _INFERENCE_ID,
        Member(
            "InputLocation",
            Rule(min=1, max=1024, pattern="^(https|s3)://([^/]+)/?(.*)$"),
            header="X-Amzn-SageMaker-InputLocation",
        ),
        Member(
            "S3OutputPathExtension",
            Rule(min=1, max=512, pattern=r"^(?!s3:|https:)[a-zA-Z0-9!_.*'()/-]+$"),
            header="X-Amzn-SageMaker-S3OutputPathExtension",
        ),
        Member(
            "Filename",
            Rule(min=1, max=32, pattern=r"^(?!.*\..*\.)[a-zA-Z0-9][a-zA-Z0-9-_\.]*$"),
            header="X-Amzn-SageMaker-Filename",
        ),
        Member(
            "RequestTTLSeconds", Rule("integer", 60, REQUEST_TTL_SECONDS), header="X-Amzn-SageMaker-RequestTTLSeconds"
        ),
        Member(
            "InvocationTimeoutSeconds",
            Rule("integer", 1, 3600),
            header="X-Amzn-SageMaker-InvocationTimeoutSeconds",
        ),
        Member("Body", Rule("blob", max=INLINE_BYTES, sensitive=True), "payload"),
    ),
    results=(
        Member("InferenceId", _HEADER, "body"),
        Member("OutputLocation", _HEADER, header="X-Amzn-SageMaker-OutputLocation"),
        Member("FailureLocation", _HEADER, header="X-Amzn-SageMaker-FailureLocation"),
    ),
    errors=("InternalFailure", "ServiceUnavailable", "ValidationError"),
)

INVOKE_ENDPOINT_WITH_RESPONSE_STREAM = Operation(
    name="InvokeEndpointWithResponseStream",
    method="invoke_endpoint_with_response_stream",
    path_suffix="/invocations-response-stream",
    status=200,
    members=(
        _ENDPOINT_NAME,
        _BODY,
        _CONTENT_TYPE,
        _PREFIXED_ACCEPT,
        _CUSTOM_ATTRIBUTES,
        _TARGET_VARIANT,
        _TARGET_CONTAINER,
        _INFERENCE_ID,
        _INFERENCE_COMPONENT,
        Member("SessionId", _SESSION, header="X-Amzn-SageMaker-Session-Id"),
        _PREFIX_AWARE_ID,
    ),
    results=(
        Member("Body", Rule("stream"), "payload", required=True),
        _PREFIXED_CONTENT_TYPE,
        _INVOKED_VARIANT,
        _CUSTOM_ATTRIBUTES,
    ),
    errors=(
        "InternalFailure",
        "ServiceUnavailable",
        "ValidationError",
        "ModelError",
        "ModelStreamError",
        "InternalStreamFailure",
    ),
    streams=True,
)

INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM = Operation(
    name="InvokeEndpointWithBidirectionalStream",
    method="invoke_endpoint_with_bidirectional_stream",
    path_suffix="/invocations-bidirectional-stream",
    status=200,
    members=(
        _ENDPOINT_NAME,
        Member("Body", Rule("stream"), "payload", required=True),
        _TARGET_VARIANT,
        Member(
            "ModelInvocationPath",
            Rule(max=100, pattern=r"^[A-Za-z0-9\-._]+(?:/[A-Za-z0-9\-._]+)*$"),
            header="X-Amzn-SageMaker-Model-Invocation-Path",
        ),
        Member("ModelQueryString", Rule(max=2048, sensitive=True), header="X-Amzn-SageMaker-Model-Query-String"),
    ),
    results=(
        Member("Body", Rule("stream"), "payload", required=True),
        _INVOKED_VARIANT,
    ),
    errors=(
        "InputValidationError",
        "InternalServerError",
        "InternalStreamFailure",
        "ModelError",
        "ModelStreamError",
        "ServiceUnavailableError",
    ),
    streams=True,
)
"""In the service model of AWS's ``sagemaker-runtime-http2``, which botocore does not have."""

OPERATIONS = (INVOKE_ENDPOINT, INVOKE_ENDPOINT_ASYNC, INVOKE_ENDPOINT_WITH_RESPONSE_STREAM)
BY_NAME = {operation.name: operation for operation in OPERATIONS}

CHAT_COMPLETIONS = Operation(
    name="OpenAIChatCompletions",
    method="",
    path_suffix="/openai/v1/chat/completions",
    status=200,
    members=(
        _ENDPOINT_NAME,
        _BODY,
        _CONTENT_TYPE,
        _INFERENCE_COMPONENT._replace(location="uri", header=None),
    ),
    results=(_BODY, _CONTENT_TYPE),
    errors=(),
    openai=True,
)
CHAT_COMPLETIONS_STREAM = CHAT_COMPLETIONS._replace(name="OpenAIChatCompletionsStream", streams=True)

OPENAI_OPERATIONS = (CHAT_COMPLETIONS, CHAT_COMPLETIONS_STREAM)
