"""The storage of asynchronous inference, for input and results: S3, or another service with its API.

Requests choose what is read, and a local runtime may run with a user's real credentials, so it accesses only the
buckets that are configured.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

from aiosmrt._extras import installed
from aiosmrt._frames import without_frames
from aiosmrt._idle import checked_session
from aiosmrt._wire.s3uri import split_s3_uri
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ConfigurationError

__all__ = ["ObjectAccess", "ObjectStorage", "StorageError", "locate_object"]

MAX_OBJECT_BYTES: Final = 1024 * 1024 * 1024  # AWS's documented limit for payloads of asynchronous inference
_CHUNK_BYTES: Final = 1024 * 1024

# S3's own URLs, virtual-hosted (the bucket is part of the host) and path-style, without a query.
_S3_URL: Final = re.compile(
    r"https://(?:(?P<bucket>[a-zA-Z0-9._-]{3,255})\.)?s3[.-](?:[a-z0-9-]+\.){0,2}amazonaws\.com(?:\.cn)?(?::443)?"
    r"/(?P<path>[^?#]+)",
    re.IGNORECASE,
)


def locate_object(uri: str) -> tuple[str, str] | None:
    """Return bucket and key of an S3 URI or of an ``https://`` URL of S3; otherwise None.

    >>> locate_object("s3://inputs/rows.csv")
    ('inputs', 'rows.csv')
    >>> locate_object("https://inputs.s3.eu-west-1.amazonaws.com/day%201/rows.csv")
    ('inputs', 'day 1/rows.csv')
    >>> locate_object("https://s3.amazonaws.com/inputs/rows.csv")
    ('inputs', 'rows.csv')
    >>> locate_object("https://Inputs.S3.AmazonAWS.com/Rows.csv")
    ('inputs', 'Rows.csv')
    >>> locate_object("https://example.com/inputs/rows.csv") is None
    True
    """
    match = _S3_URL.fullmatch(uri)
    if match is None:
        return split_s3_uri(uri)
    try:
        path = unquote_to_bytes(match["path"]).decode()
    except UnicodeDecodeError:
        return None
    if match["bucket"] is not None:
        return match["bucket"].lower(), path
    return split_s3_uri(f"s3://{path}")


class StorageError(Exception):
    """The storage refused a request, failed, or could not be reached.

    Args:
        code: S3's error code, or the name of the exception's class.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStorage:
    """The S3 of a local runtime.

    Args:
        endpoint_url: its URL, such as an ``ObjectServer``'s; no other URL is ever called.
        credentials: the credentials that sign its requests.
        buckets: the only buckets that are read and written; requests and endpoints that name another are rejected.
        region: its region. Defaults to us-east-1.

    Raises:
        ConfigurationError: not an HTTP URL, or an empty list of buckets.

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
            raise ConfigurationError(f"endpoint_url must have the form http://host:port; got {self.endpoint_url!r}")
        if isinstance(self.buckets, str) or not self.buckets:
            raise ConfigurationError("buckets must be a non-empty list of bucket names")

    def allows(self, bucket: str) -> bool:
        """Return whether the bucket may be used."""
        return bucket in self.buckets

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ObjectAccess]:
        """Open access to the objects on the running loop; the service model is loaded in a thread.

        Raises:
            ConfigurationError: the client cannot be created.
        """
        context, client = await self._entered()
        try:
            yield ObjectAccess(client, self)
        finally:
            await context.__aexit__(None, None, None)

    async def _entered(self) -> tuple[Any, Any]:
        """An entered context manager and its client."""
        try:
            session, arguments = await asyncio.to_thread(self._prepared)
            context = session.create_client("s3", **arguments)
            return context, await context.__aenter__()
        except ConfigurationError:
            raise
        except Exception as error:
            failure = ConfigurationError(f"the object storage cannot be used: {type(error).__name__}: {error}")
            # botocore's frames hold the keys
            failure.__cause__ = without_frames(error)
        raise failure

    def _prepared(self) -> tuple[Any, dict[str, Any]]:
        """A session that has created a client once, and the arguments for the next one."""
        configuration = installed("aiobotocore.config", "s3")
        connections = checked_session(installed("aiobotocore.httpsession", "s3").AIOHTTPSession)
        arguments = {
            "endpoint_url": self.endpoint_url,
            "region_name": self.region,
            "aws_access_key_id": self.credentials.access_key,
            "aws_secret_access_key": self.credentials.secret_key,
            "aws_session_token": self.credentials.token,
            "config": configuration.AioConfig(
                retries={"mode": "standard"}, max_pool_connections=50, http_session_cls=connections
            ),
        }

        async def make_one() -> Any:
            session = _session()
            async with session.create_client("s3", **arguments):
                return session

        return asyncio.run(make_one()), arguments


def _session() -> Any:
    """A session that reuses loaded service models: its client takes 6 ms instead of 150."""
    from aiobotocore.session import AioSession

    session = AioSession()
    session.register_component("data_loader", _data_loader(session.get_config_variable("data_path")))
    return session


@cache
def _data_loader(data_path: str | None) -> Any:
    from botocore.loaders import create_loader

    return create_loader(data_path)


class ObjectAccess:
    """Access to whole objects of an open storage.

    Args:
        client: an aiobotocore client.
        storage: the storage, which lists the allowed buckets.
    """

    def __init__(self, client: Any, storage: ObjectStorage) -> None:
        self._client = client
        self._storage = storage

    def __repr__(self) -> str:
        return f"<ObjectAccess {self._storage.endpoint_url} buckets={list(self._storage.buckets)}>"

    async def get(self, uri: str) -> bytes:
        """Read an object.

        Args:
            uri: an S3 URI, or an ``https://`` URL of S3.

        Raises:
            StorageError: the object does not exist, cannot be read, or is larger than 1 GiB (``EntityTooLarge``).
        """
        return await self._request("get_object", uri)

    async def put(self, uri: str, body: bytes, content_type: str | None = None) -> None:
        """Write an object; replaces an existing one.

        Args:
            uri: an S3 URI.
            body: the content.
            content_type: its media type. If None, S3's default.

        Raises:
            StorageError: the object cannot be written.
        """
        await self._request("put_object", uri, Body=body, **({"ContentType": content_type} if content_type else {}))

    async def _request(self, operation: str, uri: str, **members: Any) -> bytes:
        located = locate_object(uri)
        if located is None or not self._storage.allows(located[0]):
            raise StorageError("AccessDenied")
        try:
            answer = await getattr(self._client, operation)(Bucket=located[0], Key=located[1], **members)
            if (body := answer.get("Body")) is None:
                return b""
            async with body:
                return await _read_limited(body)
        except StorageError:
            raise
        except Exception as error:
            details = getattr(error, "response", None)
            named = details.get("Error", {}).get("Code") if isinstance(details, dict) else None
            code = named or type(error).__name__
        # Raised out here: the original holds the request, with its payload and signature.
        raise StorageError(code)


async def _read_limited(body: Any) -> bytes:
    collected = bytearray()
    while chunk := await body.read(_CHUNK_BYTES):
        if len(collected) + len(chunk) > MAX_OBJECT_BYTES:
            raise StorageError("EntityTooLarge")
        collected += chunk
    return bytes(collected)
