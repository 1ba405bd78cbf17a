"""A SageMaker Runtime on loopback, for tests, demonstrations and development without AWS."""

from aiosmrt.local import faults
from aiosmrt.local.containers import ContainerError, ModelContainer
from aiosmrt.local.requestlog import RequestRecord
from aiosmrt.local.routing import EndpointConfiguration, InferenceComponent, ProductionVariant
from aiosmrt.local.runtime import LocalRuntime
from aiosmrt.local.serving import serve
from aiosmrt.local.targets import ContainerFailure, Invocation
from aiosmrt.wire.sigv4 import Credentials

__all__ = [
    "ContainerError",
    "ContainerFailure",
    "Credentials",
    "EndpointConfiguration",
    "InferenceComponent",
    "Invocation",
    "LocalRuntime",
    "ModelContainer",
    "ProductionVariant",
    "RequestRecord",
    "faults",
    "serve",
]
