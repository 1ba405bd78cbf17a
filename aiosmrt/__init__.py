"""The asyncio-native client for Amazon SageMaker Runtime."""

from aiosmrt._version import __version__
from aiosmrt.client import Client, ClientStatistics
from aiosmrt.config import RetryPolicy
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    ConnectTimeoutError,
    DeadlineExceededError,
    EndpointConnectionError,
    EndpointNotFoundError,
    EventStreamFormatError,
    InternalDependencyException,
    InternalFailure,
    InternalStreamFailure,
    ModelError,
    ModelNotReadyException,
    ModelStreamError,
    NoCapacityError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
    ServiceError,
    ServiceUnavailable,
    ThrottlingError,
    TransportError,
    ValidationError,
)
from aiosmrt.events import Event, Observer
from aiosmrt.streams import EventStream, StreamingBody
from aiosmrt.wire.sigv4 import Credentials

__all__ = [
    "AiosmrtError",
    "Client",
    "ClientStateError",
    "ClientStatistics",
    "ConnectTimeoutError",
    "Credentials",
    "DeadlineExceededError",
    "EndpointConnectionError",
    "EndpointNotFoundError",
    "Event",
    "EventStream",
    "EventStreamFormatError",
    "InternalDependencyException",
    "InternalFailure",
    "InternalStreamFailure",
    "ModelError",
    "ModelNotReadyException",
    "ModelStreamError",
    "NoCapacityError",
    "Observer",
    "ParamValidationError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "RetryPolicy",
    "ServiceError",
    "ServiceUnavailable",
    "StreamingBody",
    "ThrottlingError",
    "TransportError",
    "ValidationError",
    "__version__",
]
