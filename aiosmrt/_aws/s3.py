"""S3 for asynchronous inference: whole objects, by their URI.

Theory of operation
-------------------
aiobotocore's S3 client does the work: S3's addressing, redirects, checksums and retries. Three things are added:

- It signs with the SageMaker client's credentials. One provider replaces the session's chain; its credentials come from
  the shared `CredentialsCache` at each signature, so that a renewal needs no new client.
- The blocking part of making a client (imports, service models, endpoint rules) happens once in a thread, whose session
  then makes the client for the caller's loop from its caches.
- Errors become `ObjectStoreError` without the original as a cause, because that has the request with its body and
  signature.

A missing object is a result and not an error, because callers wait for objects to appear. To callers who may not list
the bucket, S3 answers 403 instead; they have to decide what it means.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiosmrt._wire.s3uri import split_s3_uri
from aiosmrt.errors import AiosmrtError, ClientStateError, ConfigurationError, ObjectStoreError, ParamValidationError

if TYPE_CHECKING:
    from aiosmrt._aws.credentials import CredentialsCache

__all__ = ["ObjectStore", "StoredObject", "parse_s3_uri"]

MAX_CONNECTIONS: Final = 50
MAX_KEY_BYTES: Final = 1024  # S3's own limit

# The second is aiobotocore's code for the response to a HEAD request, which lacks a body.
_NOT_FOUND = ("NoSuchKey", "404")


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Split an object's URI into bucket and key.

    Args:
        uri: ``s3://bucket/key``; the key is not percent-decoded.

    Raises:
        ParamValidationError: it is not a valid S3 URI.

    >>> parse_s3_uri("s3://results/churn/1.out")
    ('results', 'churn/1.out')
    """
    bucket, key = (split_s3_uri(uri) if isinstance(uri, str) else None) or ("", "")
    try:
        key_bytes = len(key.encode())
    except UnicodeEncodeError:
        key_bytes = 0
    if not 0 < key_bytes <= MAX_KEY_BYTES:
        raise ParamValidationError([f"an S3 URI must be of the form s3://bucket/key; got {uri!r:.200}"])
    return bucket, key


class StoredObject(NamedTuple):
    """An object of S3.

    Attributes:
        body: its content.
        content_type: its media type; may be empty.
        modified_at: when it was written, in whole seconds since 1970 by S3's clock.
    """

    body: bytes
    content_type: str
    modified_at: float

    def __repr__(self) -> str:
        # without the body, which is a payload
        return f"<StoredObject body_bytes={len(self.body)} content_type={self.content_type!r}>"


class ObjectStore:
    """Objects in S3, on the event loop of the first call.

    Nothing is imported or connected before the first call.

    Args:
        credentials: the source of credentials; the caller closes it.
        region_name: the region. Defaults to botocore's configuration.
        endpoint_url: the endpoint. Defaults to botocore's configuration (``AWS_ENDPOINT_URL_S3``,
            ``AWS_ENDPOINT_URL``, the profile), then the service's own.
        verify: whether to verify certificates, or the path of a file with certificate authorities. Defaults to
            botocore's configuration.
        profile_name: the profile of the AWS configuration files. Defaults to the environment's.
        max_connections: maximum number of connections; further requests wait for one.
        use_fips_endpoint: whether to call the FIPS endpoint. Defaults to botocore's configuration.
        use_dualstack_endpoint: whether to call the endpoint that also supports IPv6. Defaults to botocore's
            configuration.

    >>> from aiosmrt._aws.credentials import CredentialsCache
    >>> ObjectStore(CredentialsCache(), region_name="eu-central-1")
    <ObjectStore idle>
    """

    def __init__(
        self,
        credentials: CredentialsCache,
        *,
        region_name: str | None = None,
        endpoint_url: str | None = None,
        verify: bool | str | None = None,
        profile_name: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
        use_fips_endpoint: bool | None = None,
        use_dualstack_endpoint: bool | None = None,
    ) -> None:
        self._credentials = credentials
        self._arguments = {"region_name": region_name, "endpoint_url": endpoint_url, "verify": verify}
        self._profile_name = profile_name
        self._config = {
            "max_pool_connections": max_connections,
            "use_fips_endpoint": use_fips_endpoint,
            "use_dualstack_endpoint": use_dualstack_endpoint,
        }
        self._client: Any = None
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        if self._closed:
            return "<ObjectStore closed>"
        return f"<ObjectStore {'idle' if self._client is None else self._client.meta.endpoint_url}>"

    async def get(self, uri: str) -> StoredObject | None:
        """Read a whole object; None if it does not exist.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: any other refusal or failure: ``NoSuchBucket``, or ``AccessDenied`` (status 403), which
                also stands for a missing object if the caller may not list the bucket.
            ParamValidationError: not a valid S3 URI.
            ConfigurationError: the client cannot be made, or credentials are missing.
            ClientStateError: the store is closed.
        """
        try:
            return StoredObject(*await self._request("get_object", uri))
        except ObjectStoreError as error:
            if error.code in _NOT_FOUND:
                return None
            raise

    async def modified_at(self, uri: str) -> float | None:
        """When an object was written, in seconds since 1970 by S3's clock; None if it or its bucket does not exist.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: as in ``get``.
        """
        try:
            _, _, modified_at = await self._request("head_object", uri)
        except ObjectStoreError as error:
            if error.code in _NOT_FOUND:
                return None
            raise
        return modified_at

    async def put(self, uri: str, body: bytes, content_type: str | None = None) -> None:
        """Write an object, replacing any existing one.

        Args:
            uri: ``s3://bucket/key``.
            body: its content.
            content_type: its media type. If None, S3 chooses.

        Raises:
            ObjectStoreError: as in ``get``.
        """
        members = {} if content_type is None else {"ContentType": content_type}
        await self._request("put_object", uri, Body=body, **members)

    async def delete(self, uri: str) -> None:
        """Remove an object, if it exists.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: as in ``get``.
        """
        await self._request("delete_object", uri)

    async def close(self) -> None:
        """Close the connections; calls under way fail. May be called again."""
        self._closed = True
        async with self._lock:  # a client under construction is complete then
            self._client = None
            await self._stack.aclose()

    async def _request(self, operation: str, uri: str, **members: Any) -> tuple[bytes, str, float]:
        """Make a call and return the response's body, media type and time; empty and 0 where it lacks them."""
        bucket, key = parse_s3_uri(uri)
        client = await self._opened()
        try:
            answer = await getattr(client, operation)(Bucket=bucket, Key=key, **members)
            modified_at = answer["LastModified"].timestamp() if "LastModified" in answer else 0.0
            if (body := answer.get("Body")) is None:
                return b"", "", modified_at
            async with body:
                return await body.read(), answer.get("ContentType", ""), modified_at
        except AiosmrtError:  # from the credentials
            raise
        except Exception as error:
            failure = self._failure(operation, uri, client.meta.endpoint_url, error)
        # Raised out here: the original has the request.
        raise failure

    def _failure(self, operation: str, uri: str, endpoint_url: str, error: Exception) -> AiosmrtError:
        from botocore import exceptions as boto

        if self._closed:
            return ClientStateError("the object store was closed")
        if isinstance(error, boto.ClientError):
            details = error.response.get("Error", {})
            code, status = details.get("Code", ""), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return ObjectStoreError(
                f"S3 answered {code} to {operation} of {uri}: {details.get('Message', '')}", code=code, status=status
            )
        code = type(error).__name__
        return ObjectStoreError(f"{operation} of {uri} at {endpoint_url} failed: {code}", code=code)

    async def _opened(self) -> Any:
        """The client; made by the first call."""
        if (client := self._client) is not None:
            return client
        async with self._lock:
            if self._closed:
                raise ClientStateError("the object store is closed")
            if self._client is None:
                self._client = await self._open()
            if self._closed:
                raise ClientStateError("the object store was closed")
            return self._client

    async def _open(self) -> Any:
        from aiosmrt._aws.daemon import run_in_daemon_thread
        from aiosmrt._extras import installed

        async def prepare() -> tuple[Any, dict[str, Any]]:
            configuration = installed("aiobotocore.config", "s3")
            from aiosmrt._aws.s3session import warm_session

            config = configuration.AioConfig(retries={"mode": "standard"}, **self._config)
            arguments = {**self._arguments, "config": config}
            return await warm_session(self._credentials, self._profile_name, arguments), arguments

        try:
            session, arguments = await run_in_daemon_thread(lambda: asyncio.run(prepare()))
            return await self._stack.enter_async_context(session.create_client("s3", **arguments))
        except ConfigurationError:
            raise
        except Exception as error:
            # botocore's text is about profiles, regions and URLs
            failure = ConfigurationError(f"the S3 client cannot be made: {type(error).__name__}: {error}")
        raise failure
