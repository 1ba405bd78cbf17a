"""Where asynchronous inferences read their input and leave their results: S3, or something that speaks it.

Requests choose what is read, and a local runtime may run with somebody's real credentials, so it touches the buckets
that it was told of and no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from aiosmrt._wire.s3uri import split_s3_uri
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ConfigurationError

__all__ = ["ObjectAccess", "ObjectStorage", "StorageError"]


class StorageError(Exception):
    """The storage refused a request, failed, or could not be reached.

    Args:
        code: S3's error code, or the class of what went wrong on the way.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStorage:
    """The S3 of a local runtime.

    Args:
        endpoint_url: where it is, such as an ``ObjectServer``'s URL; no other is ever called.
        credentials: what its requests are signed with.
        buckets: the only buckets that are read and written; requests and endpoints that name another are refused.
        region: its region.

    Raises:
        ConfigurationError: the URL is not an HTTP one, or there is no bucket.

    >>> key = Credentials("AKIDEXAMPLE", "not-a-real-secret")
    >>> ObjectStorage(endpoint_url="http://127.0.0.1:8333", credentials=key, buckets=["results"]).allows("results")
    True
    """

    endpoint_url: str
    credentials: Credentials = field(repr=False)
    buckets: Sequence[str]
    region: str = "us-east-1"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.endpoint_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigurationError(f"an object storage's URL reads http://host:port, not {self.endpoint_url!r}")
        if isinstance(self.buckets, str) or not self.buckets:
            raise ConfigurationError("an object storage needs a list of the buckets that may be used")

    def allows(self, bucket: str) -> bool:
        """Whether a bucket is one of those that may be used."""
        return bucket in self.buckets

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ObjectAccess]:
        """Access to its objects on the running loop; loading what that needs is left to a thread.

        Raises:
            ConfigurationError: no client can be made.
        """
        try:
            session, arguments = await asyncio.to_thread(self._prepared)
            context = session.create_client("s3", **arguments)
            client = await context.__aenter__()
        except Exception as error:
            raise ConfigurationError(f"the object storage cannot be used: {type(error).__name__}: {error}") from error
        try:
            yield ObjectAccess(client, self)
        finally:
            await context.__aexit__(None, None, None)

    def _prepared(self) -> tuple[Any, dict[str, Any]]:
        """A session that has made a client once, and what to make the next one with."""
        from aiobotocore.config import AioConfig

        arguments = {
            "endpoint_url": self.endpoint_url,
            "region_name": self.region,
            "aws_access_key_id": self.credentials.access_key,
            "aws_secret_access_key": self.credentials.secret_key,
            "aws_session_token": self.credentials.token,
            "config": AioConfig(retries={"mode": "standard"}, max_pool_connections=50),
        }

        async def make_one() -> Any:
            session = _session()
            async with session.create_client("s3", **arguments):
                return session

        return asyncio.run(make_one()), arguments


def _session() -> Any:
    """A session with the service models that an earlier one has loaded: its client takes 6 ms in place of 150."""
    from aiobotocore.session import AioSession

    session = AioSession()
    session.register_component("data_loader", _data_loader(session.get_config_variable("data_path")))
    return session


@cache
def _data_loader(data_path: str | None) -> Any:
    from botocore.loaders import create_loader

    return create_loader(data_path)


class ObjectAccess:
    """Whole objects of an open storage.

    Args:
        client: aiobotocore's.
        storage: says which buckets may be used.
    """

    def __init__(self, client: Any, storage: ObjectStorage) -> None:
        self._client = client
        self._storage = storage

    def __repr__(self) -> str:
        return f"<ObjectAccess {self._storage.endpoint_url} buckets={list(self._storage.buckets)}>"

    async def get(self, uri: str) -> bytes:
        """An object.

        Raises:
            StorageError: there is none, or it cannot be read.
        """
        return await self._request("get_object", uri)

    async def put(self, uri: str, body: bytes, content_type: str | None = None) -> None:
        """Write an object, in place of one that is there.

        Raises:
            StorageError: it cannot be written.
        """
        await self._request("put_object", uri, Body=body, **({"ContentType": content_type} if content_type else {}))

    async def _request(self, operation: str, uri: str, **members: Any) -> bytes:
        parts = split_s3_uri(uri)
        if parts is None or not self._storage.allows(parts[0]):
            raise StorageError("AccessDenied")
        try:
            answer = await getattr(self._client, operation)(Bucket=parts[0], Key=parts[1], **members)
            if (body := answer.get("Body")) is None:
                return b""
            async with body:
                whole: bytes = await body.read()
                return whole
        except Exception as error:
            details = getattr(error, "response", None)
            named = details.get("Error", {}).get("Code") if isinstance(details, dict) else None
            code = named or type(error).__name__
        # Raised out here: the original holds the request, with its payload and signature.
        raise StorageError(code)
