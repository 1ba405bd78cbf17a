"""S3 as asynchronous inference needs it: whole objects, by their URI.

Theory of operation
-------------------
aiobotocore's S3 client does the work; it knows S3's addressing, redirects, checksums and retries. Three things are
added. Its credentials are those that the SageMaker client signs with: the session's provider chain is replaced by one
provider, whose credentials ask the shared `CredentialsCache` at every signature, so that a renewal needs no new client.
What blocks in making a client (imports, service models, endpoint rules) is done once in a thread, on a private loop,
whose session then makes the client for the caller's loop out of its caches. And its errors become `ObjectStoreError`,
without the original as a cause: that holds the request with its body and signature.

An object that is not there is an answer and no error: results are waited for. S3 hides that fact from callers who may
not list the bucket, and answers 403 then; what this means is for the caller to judge.
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

# What a HEAD request's answer, which has no body, is given as a code.
_NOT_FOUND = ("NoSuchKey", "404")


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an object.

    Args:
        uri: ``s3://bucket/key``; the key is taken as it stands, nothing in it is percent-decoded.

    Raises:
        ParamValidationError: it is no such URI.

    >>> parse_s3_uri("s3://results/churn/1.out")
    ('results', 'churn/1.out')
    """
    bucket, key = (split_s3_uri(uri) if isinstance(uri, str) else None) or ("", "")
    try:
        key_bytes = len(key.encode())
    except UnicodeEncodeError:
        key_bytes = 0
    if not 0 < key_bytes <= MAX_KEY_BYTES:
        raise ParamValidationError([f"an S3 URI reads s3://bucket/key; got {uri!r:.200}"])
    return bucket, key


class StoredObject(NamedTuple):
    """An object out of S3: its body, its media type, which is empty when it has none, and when it was written.

    That is in epoch seconds by S3's clock, without fractions.
    """

    body: bytes
    content_type: str
    modified_at: float

    def __repr__(self) -> str:
        # the body may be anybody's data
        return f"<StoredObject body_bytes={len(self.body)} content_type={self.content_type!r}>"


class ObjectStore:
    """Objects in S3, on one event loop: the one of its first call.

    Nothing is loaded or connected before the first call.

    Args:
        credentials: what requests are signed with; stays the caller's, to be closed by it.
        region_name: the region; None takes botocore's configuration.
        endpoint_url: where S3 is; None takes botocore's configuration (``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``,
            the profile), then the service's own.
        verify: whether certificates are checked, or the path of a file with certificate authorities; None takes
            botocore's configuration.
        profile_name: the profile of the AWS configuration files; None takes the environment's.
        max_connections: connections at once; further requests wait for one.
        use_fips_endpoint: whether the FIPS endpoint is wanted; None takes botocore's configuration.
        use_dualstack_endpoint: whether the endpoint that also speaks IPv6 is wanted; None likewise.

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
        """The whole object, or None when there is none.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: anything else: ``NoSuchBucket``, or ``AccessDenied`` (status 403), which S3 also answers
                for an object that is not there when the caller may not list the bucket.
            ParamValidationError: the URI is none.
            ConfigurationError: no client can be made, or there are no credentials.
            ClientStateError: the store is closed.
        """
        try:
            return StoredObject(*await self._request("get_object", uri))
        except ObjectStoreError as error:
            if error.code in _NOT_FOUND:
                return None
            raise

    async def modified_at(self, uri: str) -> float | None:
        """When the object was written, in epoch seconds by S3's clock; None when there is none.

        None also for a bucket that is not there, which S3 does not tell apart.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: as for ``get``.
        """
        try:
            _, _, modified_at = await self._request("head_object", uri)
        except ObjectStoreError as error:
            if error.code in _NOT_FOUND:
                return None
            raise
        return modified_at

    async def put(self, uri: str, body: bytes, content_type: str | None = None) -> None:
        """Write an object, in place of one that is there.

        Args:
            uri: ``s3://bucket/key``.
            body: what it is to hold.
            content_type: its media type; None leaves that to S3.

        Raises:
            ObjectStoreError: as for ``get``.
        """
        members = {} if content_type is None else {"ContentType": content_type}
        await self._request("put_object", uri, Body=body, **members)

    async def delete(self, uri: str) -> None:
        """Remove an object; no error when there is none.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: as for ``get``.
        """
        await self._request("delete_object", uri)

    async def close(self) -> None:
        """Close its connections; calls under way fail. May be called again."""
        self._closed = True
        async with self._lock:  # a client that is being made is ready then
            self._client = None
            await self._stack.aclose()

    async def _request(self, operation: str, uri: str, **members: Any) -> tuple[bytes, str, float]:
        """Make a call and read the body of its answer, with the object's media type and time; empty and 0 for none."""
        bucket, key = parse_s3_uri(uri)
        client = await self._opened()
        try:
            answer = await getattr(client, operation)(Bucket=bucket, Key=key, **members)
            modified_at = answer["LastModified"].timestamp() if "LastModified" in answer else 0.0
            if (body := answer.get("Body")) is None:
                return b"", "", modified_at
            async with body:
                return await body.read(), answer.get("ContentType", ""), modified_at
        except AiosmrtError:  # of the credentials
            raise
        except Exception as error:
            failure = self._failure(operation, uri, client.meta.endpoint_url, error)
        # Raised out here: the original holds the request.
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
        """The client, made if need be."""
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

        async def prepare() -> tuple[Any, dict[str, Any]]:
            from aiobotocore.config import AioConfig

            from aiosmrt._aws.s3session import warm_session

            config = AioConfig(retries={"mode": "standard"}, **self._config)
            arguments = {**self._arguments, "config": config}
            return await warm_session(self._credentials, self._profile_name, arguments), arguments

        try:
            session, arguments = await run_in_daemon_thread(lambda: asyncio.run(prepare()))
            return await self._stack.enter_async_context(session.create_client("s3", **arguments))
        except Exception as error:
            # botocore's text: it speaks of profiles, regions and URLs
            failure = ConfigurationError(f"no S3 client can be made: {type(error).__name__}: {error}")
        raise failure
