"""boto3's and aiobotocore's clients as the tests make them, with credentials that are obviously fake."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REGION = "eu-central-1"


class FakeCredentials(NamedTuple):
    """Long-term credentials that belong to no account."""

    access_key: str
    secret_key: str


CREDENTIALS = FakeCredentials("AKIDEXAMPLE", "fake-secret-key-for-tests")

CLIENT_ARGUMENTS: dict[str, Any] = {
    "region_name": REGION,
    "aws_access_key_id": CREDENTIALS.access_key,
    "aws_secret_access_key": CREDENTIALS.secret_key,
}


def isolate_aws(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Remove every AWS and proxy variable, and point the configuration files at ones that do not exist."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(directory / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(directory / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


# A session reads some megabytes of service data at first; a client made on a warm one takes a tenth of the time.
@cache
def _aiobotocore_session() -> Any:
    from aiobotocore.session import get_session

    return get_session()


@cache
def _boto3_session() -> Any:
    import boto3

    return boto3.session.Session()


@asynccontextmanager
async def aiobotocore_client(endpoint_url: str, **config: Any) -> AsyncIterator[Any]:
    """An aiobotocore client for `endpoint_url`; `config` goes to its Config."""
    from aiobotocore.config import AioConfig

    context = _aiobotocore_session().create_client(
        "sagemaker-runtime",
        endpoint_url=endpoint_url,
        config=AioConfig(**config),
        # Loading certificate authorities would be most of a test's time.
        verify=endpoint_url.startswith("https:"),
        **CLIENT_ARGUMENTS,
    )
    async with context as client:
        yield client


@asynccontextmanager
async def boto3_client(endpoint_url: str, **config: Any) -> AsyncIterator[Any]:
    """A boto3 client for `endpoint_url`, to be called in a thread; `config` goes to its Config."""
    from botocore.config import Config

    client = _boto3_session().client(
        "sagemaker-runtime", endpoint_url=endpoint_url, config=Config(**config), **CLIENT_ARGUMENTS
    )
    try:
        yield client
    finally:
        client.close()


@asynccontextmanager
async def aiosmrt_client(endpoint_url: str, *, retries: Any = None, **arguments: Any) -> AsyncIterator[Any]:
    """Our client for `endpoint_url`; `retries` as in botocore's Config, the rest goes to its constructor."""
    from aiosmrt.client import Client

    retry = {} if retries is None else {"retry": retries}
    async with Client(endpoint_url=endpoint_url, **CLIENT_ARGUMENTS, **retry, **arguments) as client:
        yield client
