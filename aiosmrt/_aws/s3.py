"""S3 for asynchronous inference and batch scoring: objects by their URI, whole or in parts.

Theory of operation
-------------------
aiobotocore's S3 client does the work: S3's addressing, redirects, checksums and retries. Four things are added:

- It signs with the SageMaker client's credentials. One provider replaces the session's chain; its credentials come from
  the shared `CredentialsCache` at each signature, so that a renewal needs no new client.
- The blocking part of making a client (imports, service models, endpoint rules) happens once in a thread, whose session
  then makes the client for the caller's loop from its caches.
- A connection on which something has arrived while it was idle is not used again (`aiosmrt._idle`).
- Errors become `ObjectStoreError` without the original as a cause, because that has the request with its body and
  signature.

A missing object is a result and not an error, because callers wait for objects to appear. To callers who may not list
the bucket, S3 answers 403 instead; they have to decide what it means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from aiosmrt._aws.settings import CaBundle
from aiosmrt._aws.tls import fault_for_botocore
from aiosmrt._frames import without_frames
from aiosmrt._wire.operations import MAX_ERROR_BYTES
from aiosmrt._wire.s3uri import S3_URI_FORM, split_s3_uri
from aiosmrt.errors import (
    AiosmrtError,
    ClientStateError,
    ConfigurationError,
    InvalidConfigError,
    ObjectStoreError,
    ParamValidationError,
    ResponseStreamingError,
)

if TYPE_CHECKING:
    from aiosmrt._aws.credentials import CredentialsCache

__all__ = ["ObjectFacts", "ObjectStore", "StoredObject", "parse_s3_uri"]

R = TypeVar("R")

MAX_CONNECTIONS: Final = 50
MAX_KEY_BYTES: Final = 1024  # S3's own limit

# Bodies up to this size are sent in one request. S3 takes up to 10,000 parts, of 5 MiB or more
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
PART_BYTES: Final = 8 << 20
_MOST_PARTS: Final = 9_000
_PARTS_AT_ONCE: Final = 4

# A part of an object whose transfer breaks off is fetched again; botocore repeats requests, but not the reading of
# bodies.
_READS: Final = 4
_PAUSE_SECONDS: Final = 0.2

# S3's codes are single words; longer text comes from another server.
_CODE_CHARACTERS: Final = 256

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
        raise ParamValidationError([f"{S3_URI_FORM}; got {uri!r:.200}"])
    return bucket, key


async def _as_it_is(answer: Any) -> Any:
    return answer


async def _no_content(answer: Mapping[str, Any]) -> bytes:
    return b""


async def _content(uri: str, max_bytes: int | None, cut: bool, answer: Mapping[str, Any]) -> bytes:
    """Read an object's content, up to a limit."""
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    body = answer["Body"]
    async with body:  # in aiobotocore 2.13, what it enters is aiohttp's response
        if "content-length" not in headers and "transfer-encoding" not in headers:
            # Such a body ends with its connection. aiohttp does not tell whether that was closed or cut, and S3 always
            # gives a length.
            from botocore.exceptions import ResponseStreamingError as BrokenOffError

            raise BrokenOffError(error="an answer without a length")
        if max_bytes is None:
            whole: bytes = await body.read()
            return whole
        content = bytearray()
        if cut or answer.get("ContentLength", 0) <= max_bytes:
            while len(content) <= max_bytes and (piece := await body.read(max_bytes + 1 - len(content))):
                content += piece
            if cut or len(content) <= max_bytes:
                return bytes(content[:max_bytes])
    # The frames of an error are kept with it.
    content.clear()
    piece = b""
    raise ResponseStreamingError(f"the object at {uri} exceeds max_response_bytes of {max_bytes}", cause="none")


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


class ObjectFacts(NamedTuple):
    """What S3 knows of an object without its content.

    Attributes:
        key: its key.
        size: bytes.
        etag: changes with its content, as S3 quotes it.
        metadata: what its writer said of it; empty from `ObjectStore.list_objects`.
    """

    key: str
    size: int
    etag: str
    metadata: Mapping[str, str]


class ObjectStore:
    """Objects in S3, on the event loop of the first call.

    Nothing is imported or connected before the first call.

    Args:
        credentials: the source of credentials; the caller closes it.
        region_name: the region. Defaults to botocore's configuration.
        endpoint_url: the endpoint. Defaults to botocore's configuration (``AWS_ENDPOINT_URL_S3``,
            ``AWS_ENDPOINT_URL``, the profile), then the service's own.
        verify: whether to verify certificates, or the file with the certificate authorities to trust. Defaults to
            botocore's configuration.
        profile_name: the profile of the AWS configuration files. Defaults to the environment's.
        max_connections: maximum number of connections; further requests wait for one.
        use_fips_endpoint: whether to call the FIPS endpoint. Defaults to botocore's configuration.
        use_dualstack_endpoint: whether to call the endpoint that also supports IPv6. Defaults to botocore's
            configuration.

    >>> from aiosmrt._aws.credentials import CredentialsCache
    >>> from aiosmrt._aws.providers import provider_for
    >>> ObjectStore(CredentialsCache(provider_for()), region_name="eu-central-1")
    <ObjectStore idle>
    """

    def __init__(
        self,
        credentials: CredentialsCache,
        *,
        region_name: str | None = None,
        endpoint_url: str | None = None,
        verify: bool | CaBundle | None = None,
        profile_name: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
        use_fips_endpoint: bool | None = None,
        use_dualstack_endpoint: bool | None = None,
    ) -> None:
        self._credentials = credentials
        self._bundle = verify if isinstance(verify, CaBundle) else None
        self._arguments = {
            "region_name": region_name,
            "endpoint_url": endpoint_url,
            "verify": verify if self._bundle is None else self._bundle.path,
        }
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

    async def get(self, uri: str, max_bytes: int | None = None, *, cut: bool = False) -> StoredObject | None:
        """Read a whole object; None if it does not exist.

        Args:
            uri: ``s3://bucket/key``.
            max_bytes: the largest content to read. Defaults to any.
            cut: whether a longer content is cut, and no error. Defaults to False.

        Raises:
            ResponseStreamingError: the content exceeds ``max_bytes``.
            ObjectStoreError: any other refusal or failure: ``NoSuchBucket``, or ``AccessDenied`` (status 403), which
                also stands for a missing object if the caller may not list the bucket.
            ParamValidationError: not a valid S3 URI.
            ConfigurationError: the client cannot be made, or credentials are missing.
            ClientStateError: the store is closed.
        """
        try:
            return StoredObject(*await self._request("get_object", uri, partial(_content, uri, max_bytes, cut)))
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
            _, _, modified_at = await self._request("head_object", uri, _no_content)
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
        putting = self._request("put_object", uri, _no_content, Body=body, **members)
        # error trackers report locals
        del body
        await putting

    async def delete(self, uri: str) -> None:
        """Remove an object, if it exists.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: as in ``get``.
        """
        await self._request("delete_object", uri, _no_content)

    async def facts(self, uri: str) -> ObjectFacts | None:
        """What S3 knows of an object; None if it or its bucket does not exist.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: As in ``get``.
        """
        bucket, key = parse_s3_uri(uri)
        try:
            found: Mapping[str, Any] = await self._call("head_object", uri, {"Bucket": bucket, "Key": key})
        except ObjectStoreError as error:
            if error.code in _NOT_FOUND:
                return None
            raise
        return ObjectFacts(key, found["ContentLength"], found["ETag"], found.get("Metadata", {}))

    async def list_objects(self, bucket: str, prefix: str) -> list[ObjectFacts]:
        """The objects whose keys begin with a prefix, in the order of their keys.

        Args:
            bucket: the bucket.
            prefix: what their keys begin with; may be empty.

        Raises:
            ObjectStoreError: As in ``get``.
        """
        found: list[ObjectFacts] = []
        more: dict[str, str] = {}
        while True:
            page: Mapping[str, Any] = await self._call(
                "list_objects_v2", f"s3://{bucket}/{prefix}", {"Bucket": bucket, "Prefix": prefix, **more}
            )
            found += [ObjectFacts(one["Key"], one["Size"], one["ETag"], {}) for one in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def get_range(self, uri: str, start: int, length: int, etag: str) -> bytes:
        """Read a part of an object.

        Args:
            uri: ``s3://bucket/key``.
            start: its first byte.
            length: its bytes, at least one of which exists.
            etag: what the object must be; ``PreconditionFailed`` is the code of the error if it is another.

        Raises:
            ObjectStoreError: As in ``get``.
        """
        bucket, key = parse_s3_uri(uri)
        part = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{start + length - 1}", "IfMatch": etag}

        for left in reversed(range(_READS)):
            try:
                return await self._call("get_object", uri, part, partial(_content, uri, None, False))
            except ObjectStoreError as error:
                if error.status is not None or not left:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError("unreachable")

    async def put_parts(
        self,
        uri: str,
        size: int,
        read: Callable[[int, int], Awaitable[bytes]],
        *,
        metadata: Mapping[str, str],
        content_type: str,
    ) -> None:
        """Write an object of any size, a few parts of which are held in memory. It appears when it is complete.

        Args:
            uri: ``s3://bucket/key``.
            size: its bytes.
            read: returns bytes, given the first one's position and their number.
            metadata: facts to keep with the object.
            content_type: its media type.

        Raises:
            ObjectStoreError: As in ``get``.
        """
        bucket, key = parse_s3_uri(uri)
        place = {"Bucket": bucket, "Key": key}
        about = {"Metadata": dict(metadata), "ContentType": content_type}
        if size <= PART_BYTES:
            await self._call("put_object", uri, {**place, **about, "Body": await read(0, size)})
            return
        length = max(PART_BYTES, -(-size // _MOST_PARTS))
        upload: str = (await self._call("create_multipart_upload", uri, {**place, **about}))["UploadId"]
        part_of = {**place, "UploadId": upload}
        starts = list(enumerate(range(0, size, length), 1))
        tags: dict[int, str] = {}

        async def send() -> None:
            while starts:
                number, start = starts.pop(0)
                part = {"PartNumber": number, "Body": await read(start, min(length, size - start))}
                sending: Awaitable[Any] = self._call("upload_part", uri, {**part_of, **part})
                # error trackers report locals
                del part
                tags[number] = (await sending)["ETag"]

        try:
            senders = [asyncio.ensure_future(send()) for _ in range(min(_PARTS_AT_ONCE, len(starts)))]
            try:
                await asyncio.gather(*senders)
            finally:
                for sender in senders:
                    sender.cancel()
                await asyncio.gather(*senders, return_exceptions=True)
            parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(tags.items())]
            await self._call("complete_multipart_upload", uri, {**part_of, "MultipartUpload": {"Parts": parts}})
        except BaseException as failure:
            # S3 keeps, and charges for, the parts of an upload that is neither completed nor aborted.
            try:
                await self._call("abort_multipart_upload", uri, part_of)
            except AiosmrtError as error:
                failure.add_note(str(error))
            raise

    async def check_writable(self, uri: str) -> None:
        """See whether an object may be written, and leave no trace.

        Args:
            uri: ``s3://bucket/key``.

        Raises:
            ObjectStoreError: As in ``get``.
        """
        bucket, key = parse_s3_uri(uri)
        place = {"Bucket": bucket, "Key": key}
        # It needs the permission to write the object, which then does not appear.
        upload: str = (await self._call("create_multipart_upload", uri, place))["UploadId"]
        # Ending it is another permission. An upload without parts costs nothing.
        with suppress(ObjectStoreError):
            await self._call("abort_multipart_upload", uri, {**place, "UploadId": upload})

    async def close(self) -> None:
        """Close the connections; calls under way fail. May be called again."""
        self._closed = True
        async with self._lock:  # a client under construction is complete then
            self._client = None
            await self._stack.aclose()

    async def _request(
        self, operation: str, uri: str, content: Callable[[Mapping[str, Any]], Awaitable[bytes]], **members: Any
    ) -> tuple[bytes, str, float]:
        """Make a call and return the response's body, media type and time; empty and 0 where it lacks them."""
        bucket, key = parse_s3_uri(uri)

        async def read(answer: Mapping[str, Any]) -> tuple[bytes, str, float]:
            modified_at = answer["LastModified"].timestamp() if "LastModified" in answer else 0.0
            return await content(answer), answer.get("ContentType", ""), modified_at

        calling = self._call(operation, uri, {"Bucket": bucket, "Key": key, **members}, read)
        # error trackers report locals
        del members
        return await calling

    async def _call(
        self,
        operation: str,
        uri: str,
        members: Mapping[str, Any],
        read: Callable[[Any], Awaitable[R]] = _as_it_is,
    ) -> R:
        """Make a call and return what ``read`` makes of the answer, or the answer itself.

        Args:
            operation: aiobotocore's name of it.
            uri: what it is about, for errors.
            members: the call's.
            read: reads the answer, and its body if there is one.
        """
        failure: BaseException
        client: Any = None
        try:
            client = await self._opened()
            calling = getattr(client, operation)(**members)
            # error trackers report locals
            del members
            return await read(await calling)
        except Exception as error:
            failure = error
            # Ours is from the credentials.
            if client is not None and not isinstance(error, AiosmrtError):
                failure = self._failure(operation, uri, client.meta.endpoint_url, error)
        except BaseException as error:
            failure = error
        # Out here, so that no error of the libraries becomes the context: their frames hold the request, with its
        # payload and signature.
        try:
            raise without_frames(failure)
        finally:
            del failure

    def _failure(self, operation: str, uri: str, endpoint_url: str, error: Exception) -> AiosmrtError:
        from botocore import exceptions as boto

        if self._closed:
            return ClientStateError("the object store was closed")
        if isinstance(error, boto.ClientError):
            code, message, status = _refusal(error.response, has_body=not operation.startswith("head_"))
            code, message = code[:_CODE_CHARACTERS], message[:MAX_ERROR_BYTES]
            return ObjectStoreError(f"S3 answered {code} to {operation} of {uri}: {message}", code=code, status=status)
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
        from aiosmrt._daemon import run_in_daemon_thread
        from aiosmrt._extras import installed

        async def prepare() -> tuple[Any, dict[str, Any]]:
            configuration = installed("aiobotocore.config", "s3")
            from aiosmrt._aws.s3session import warm_session
            from aiosmrt._idle import checked_session

            connections = checked_session(installed("aiobotocore.httpsession", "s3").AIOHTTPSession)
            config = configuration.AioConfig(retries={"mode": "standard"}, http_session_cls=connections, **self._config)
            arguments = {**self._arguments, "config": config}
            # aiobotocore reads the authorities also where the URL has no TLS.
            if self._bundle is not None and (fault := fault_for_botocore(self._bundle)) is not None:
                raise InvalidConfigError(fault)
            return await warm_session(self._credentials, self._profile_name, arguments), arguments

        try:
            session, arguments = await run_in_daemon_thread(lambda: asyncio.run(prepare()), "aiosmrt-s3")
            return await self._stack.enter_async_context(session.create_client("s3", **arguments))
        except ConfigurationError:
            raise
        except Exception as error:
            # botocore's text is about profiles, regions and URLs
            failure = ConfigurationError(f"the S3 client cannot be made: {type(error).__name__}: {error}")
        raise failure


def _refusal(response: Mapping[str, Any], *, has_body: bool) -> tuple[str, str, int | None]:
    """Code, message and status of an error response.

    botocore puts an error with an XML namespace, as some services with S3's API send it, beside an empty one. A 403
    with a body that is not S3's error is a proxy's, for which botocore returns the code of a 403 without a body.

    Args:
        response: botocore's dictionary of it.
        has_body: whether the request is one whose response may have a body, other than HEAD.

    >>> facts = {"HTTPStatusCode": 404}
    >>> _refusal({"Error": {"Code": ""}, "Code": "NoSuchKey", "ResponseMetadata": facts}, has_body=True)
    ('NoSuchKey', '', 404)
    >>> facts = {"HTTPStatusCode": 403, "HTTPHeaders": {"content-length": "120"}}
    >>> _refusal({"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": facts}, has_body=True)
    ('Unknown', 'the body of the response, with status 403, is not an error of S3', 403)
    >>> _refusal({"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": facts}, has_body=False)
    ('403', 'Forbidden', 403)
    >>> facts = {"HTTPStatusCode": 403, "HTTPHeaders": {"transfer-encoding": "chunked"}}
    >>> _refusal({"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": facts}, has_body=True)[0]
    'Unknown'
    """
    details, facts = response.get("Error", {}), response.get("ResponseMetadata", {})
    status = facts.get("HTTPStatusCode")
    code, message = details.get("Code"), details.get("Message", "")
    if not code and isinstance(named := response.get("Code"), str):
        code, message = named, response.get("Message", "")
    headers = facts.get("HTTPHeaders", {})
    is_empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if not code or (has_body and code == "403" and not is_empty):
        code, message = "Unknown", f"the body of the response, with status {status}, is not an error of S3"
    return code, message if isinstance(message, str) else "", status
