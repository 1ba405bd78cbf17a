"""A SageMaker Runtime on loopback, for tests, demonstrations and development without AWS."""

from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.local import faults
from aiosmrt.local.asynchronous import JobRecord
from aiosmrt.local.backends import ContainerFailure, Invocation, StreamMessage
from aiosmrt.local.capacity import Capacity
from aiosmrt.local.containers import ContainerError, ModelContainer
from aiosmrt.local.objectserver import ObjectServer, ObjectServerError, ObjectServerGuest
from aiosmrt.local.objectstorage import ObjectStorage
from aiosmrt.local.program import serve
from aiosmrt.local.requestlog import RequestRecord
from aiosmrt.local.routing import (
    AsyncInferenceConfig,
    EndpointConfiguration,
    InferenceComponent,
    MultiContainer,
    ProductionVariant,
)
from aiosmrt.local.runtime import LocalRuntime

__all__ = [
    "AsyncInferenceConfig",
    "Capacity",
    "ContainerError",
    "ContainerFailure",
    "Credentials",
    "EndpointConfiguration",
    "InferenceComponent",
    "Invocation",
    "JobRecord",
    "LocalRuntime",
    "ModelContainer",
    "MultiContainer",
    "ObjectServer",
    "ObjectServerError",
    "ObjectServerGuest",
    "ObjectStorage",
    "ProductionVariant",
    "RequestRecord",
    "StreamMessage",
    "faults",
    "serve",
]
