"""botocore's model of the service, for code that reads more of it than aiosmrt does."""

from functools import cache
from typing import Any

from aiosmrt._wire.operations import API_VERSION

__all__ = ["whole_service_model"]


@cache
def whole_service_model() -> Any:
    """botocore's ``ServiceModel``; the first call reads its file, which takes some 40 ms."""
    from botocore.loaders import create_loader
    from botocore.model import ServiceModel

    name = "sagemaker-runtime"
    return ServiceModel(create_loader().load_service_model(name, "service-2", API_VERSION), name)
