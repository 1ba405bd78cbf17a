"""Results as typed dictionaries with AWS's names.

Members that the service sends with every success are declared as present, as in boto3's stubs.
"""

from typing import IO, TYPE_CHECKING, Literal, NotRequired, TypeAlias, TypedDict

if TYPE_CHECKING:
    from aiosmrt._core.response_bodies import EventStream, StreamingBody

__all__ = [
    "BidirectionalPayloadPart",
    "BidirectionalStreamEvent",
    "Body",
    "CompletionState",
    "DataType",
    "InvokeEndpointAsyncOutput",
    "InvokeEndpointOutput",
    "InvokeEndpointWithResponseStreamOutput",
    "PayloadPart",
    "ResponseMetadata",
    "ResponseStreamEvent",
]

Body: TypeAlias = "bytes | bytearray | memoryview | str | IO[bytes]"


class ResponseMetadata(TypedDict):
    """About the response; ``HTTPHeaders`` has its names in lower case, ``RetryAttempts`` counts retries.

    ``RequestId`` is required, as in the stubs for boto3; a proxy's response may lack it.
    """

    RequestId: str
    HostId: NotRequired[str]
    HTTPStatusCode: int
    HTTPHeaders: dict[str, str]
    RetryAttempts: int


class InvokeEndpointOutput(TypedDict):
    """The result of ``invoke_endpoint``; what the service did not send is absent."""

    ResponseMetadata: ResponseMetadata
    Body: "StreamingBody"
    ContentType: str
    InvokedProductionVariant: str
    CustomAttributes: NotRequired[str]
    NewSessionId: NotRequired[str]
    ClosedSessionId: NotRequired[str]


class InvokeEndpointAsyncOutput(TypedDict):
    """The result of ``invoke_endpoint_async``; what the service did not send is absent."""

    ResponseMetadata: ResponseMetadata
    InferenceId: str
    OutputLocation: str
    FailureLocation: NotRequired[str]


class PayloadPart(TypedDict):
    """A part of a streamed response; where the parts are cut means nothing."""

    Bytes: bytes


class ResponseStreamEvent(TypedDict):
    """An event of a response stream."""

    PayloadPart: PayloadPart


DataType: TypeAlias = Literal["UTF8", "BINARY"]
"""What a message of a bidirectional stream is to the model: a text frame of its WebSocket, or a binary one."""

CompletionState: TypeAlias = Literal["PARTIAL", "COMPLETE"]
"""Whether a message of a bidirectional stream goes on with the next part."""


class BidirectionalPayloadPart(TypedDict):
    """A part of a message from the model: one WebSocket frame of its container."""

    Bytes: bytes
    DataType: NotRequired[DataType]
    CompletionState: NotRequired[CompletionState]


class BidirectionalStreamEvent(TypedDict):
    """An event of a bidirectional stream."""

    PayloadPart: BidirectionalPayloadPart


class InvokeEndpointWithResponseStreamOutput(TypedDict):
    """The result of ``invoke_endpoint_with_response_stream``; what the service did not send is absent."""

    ResponseMetadata: ResponseMetadata
    Body: "EventStream"
    ContentType: str
    InvokedProductionVariant: str
    CustomAttributes: NotRequired[str]
