"""The asyncio-native client for Amazon SageMaker Runtime."""

from typing import TYPE_CHECKING, Any

from aiosmrt._core.admission import LimiterStatistics
from aiosmrt._core.bearer import BearerToken
from aiosmrt._core.response_bodies import EventStream, StreamingBody, StreamTiming
from aiosmrt._policy.adaptive import AdaptiveLimit
from aiosmrt._version import __version__
from aiosmrt._wire.decoders.event import ServerSentEvent
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.client import Client, ClientStatistics
from aiosmrt.config import RetryPolicy
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    ConnectTimeoutError,
    DeadlineExceededError,
    DeserializationError,
    EndpointConnectionError,
    EndpointNotFoundError,
    EventStreamFormatError,
    InternalDependencyException,
    InternalFailure,
    InternalStreamFailure,
    JobFailedError,
    JobTimeoutError,
    ModelError,
    ModelNotReadyException,
    ModelStreamError,
    NoCapacityError,
    ObjectStoreError,
    ParameterNameError,
    ParameterTypeError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
    SerializationError,
    ServiceError,
    ServiceUnavailable,
    SessionClosedError,
    StreamTimeoutError,
    ThrottlingError,
    TooManyFailuresError,
    TooManyWaitingError,
    TransportError,
    ValidationError,
    Waited,
)
from aiosmrt.events import Event, Observer

if TYPE_CHECKING:
    from aiosmrt._core.duplex import BidirectionalStream

__all__ = [
    "AdaptiveLimit",
    "AiosmrtError",
    "BearerToken",
    "BidirectionalStream",
    "Client",
    "ClientStateError",
    "ClientStatistics",
    "ConnectTimeoutError",
    "Credentials",
    "DeadlineExceededError",
    "DeserializationError",
    "EndpointConnectionError",
    "EndpointNotFoundError",
    "Event",
    "EventStream",
    "EventStreamFormatError",
    "InternalDependencyException",
    "InternalFailure",
    "InternalStreamFailure",
    "JobFailedError",
    "JobTimeoutError",
    "LimiterStatistics",
    "ModelError",
    "ModelNotReadyException",
    "ModelStreamError",
    "NoCapacityError",
    "ObjectStoreError",
    "Observer",
    "ParamValidationError",
    "ParameterNameError",
    "ParameterTypeError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "RetryPolicy",
    "SerializationError",
    "ServerSentEvent",
    "ServiceError",
    "ServiceUnavailable",
    "SessionClosedError",
    "StreamTimeoutError",
    "StreamTiming",
    "StreamingBody",
    "ThrottlingError",
    "TooManyFailuresError",
    "TooManyWaitingError",
    "TransportError",
    "ValidationError",
    "Waited",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name != "BidirectionalStream":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # loaded with the first one
    from aiosmrt._core.duplex import BidirectionalStream

    return BidirectionalStream
