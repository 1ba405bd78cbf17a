"""Asynchronous inference: a request is queued, its answer appears in S3.

The service's 202 names the location of the answer and that of a failure. Neither is announced otherwise (except by SNS,
another service), so waiting means polling both locations, less and less often.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar, cast

from aiosmrt._aws.s3 import ObjectStore, StoredObject, parse_s3_uri
from aiosmrt._core.deadline import OverdueError, within
from aiosmrt._frames import clear_locals
from aiosmrt._policy.clockskew import parse_http_date
from aiosmrt._policy.polling import next_pause
from aiosmrt._wire.operations import (
    INLINE_BYTES,
    INVOCATION_TIMEOUT_SECONDS,
    INVOKE_ENDPOINT_ASYNC,
    REQUEST_TTL_SECONDS,
)
from aiosmrt._wire.s3uri import S3_URI_FORM, split_s3_uri
from aiosmrt.config import is_seconds
from aiosmrt.endpoint.bodies import name_call
from aiosmrt.endpoint.protocols import StorageClient
from aiosmrt.errors import (
    AiosmrtError,
    ConfigurationError,
    DeserializationError,
    JobFailedError,
    JobTimeoutError,
    ObjectStoreError,
    ParamValidationError,
    ResponseStreamingError,
)

__all__ = ["INLINE_BYTES", "Job", "JobHandle", "check_handle", "check_upload_to", "submit"]

Out = TypeVar("Out")

# How much of a failure an error quotes, in characters.
_REASON_CHARACTERS: Final = 1024

# How long a poll that is under way at the timeout may still take.
_LAST_LOOK_SECONDS: Final = 5.0

# How long a failed or cancelled call may take to delete the request body that it uploaded.
_DELETE_SECONDS: Final = 5.0

# How far S3's clock, which counts whole seconds, may be behind the service's clock.
_CLOCKS_APART_SECONDS: Final = 5.0

# How much later than InvocationTimeoutSeconds and RequestTTLSeconds an answer may appear, because this machine's clock
# may be wrong.
_GRACE_SECONDS: Final = 900.0

# Without s3:ListBucket, S3 answers 403 to a request for a missing object (GetObject in its API reference).
_FORBIDDEN: Final = 403
_ACCESS_DENIED: Final = "AccessDenied"

# Codes of a response without a body, such as every response to HEAD, that may stand for any of S3's codes.
_STATUSES: Final = frozenset({"400", "403", "404"})

# S3 names the action that the caller may not perform, unless the bucket is another account's.
_DENIED_ACTION: Final = re.compile(r"not authorized to perform: (\S+)")
_ENCRYPTION: Final = re.compile(r"\bkms\b|ciphertext", re.IGNORECASE)
_LIST: Final = "s3:listbucket"
_READ: Final = "s3:getobject"


class JobHandle(NamedTuple):
    """The facts that find a job again, here or in another process; can be pickled, contains no secrets.

    Args:
        endpoint_name: the endpoint.
        inference_id: the service's id of the request, if it sent one.
        output_location: the S3 URI of the future answer.
        failure_location: the S3 URI of a future failure, if the endpoint has a failure path.
        uploaded_to: the S3 URI of the request body, if `Endpoint.submit` uploaded it.
        submitted_at: when the service accepted the request, in epoch seconds by its clock, if known. An older object is
            not the answer.
        expires_at: when the service has either answered or given up, in epoch seconds, if known.
    """

    endpoint_name: str
    inference_id: str | None
    output_location: str
    failure_location: str | None = None
    uploaded_to: str | None = None
    submitted_at: float | None = None
    expires_at: float | None = None


class Job(Generic[Out]):
    """An asynchronous inference; made by `Endpoint.submit` and `Endpoint.job`.

    Waiting can stop and start again at any time; the inference continues.

    Args:
        client: gives access to S3.
        handle: identifies the job.
        deserialized: returns the answer's value, given its bytes and its media type.
        rand: returns a random number in [0, 1), which spreads the polls of many jobs.
        clock: returns the time in epoch seconds, to compare the job's expiry with.
    """

    def __init__(
        self,
        client: StorageClient,
        handle: JobHandle,
        deserialized: Callable[[bytes, str], Awaitable[Out]],
        *,
        rand: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._deserialized = deserialized
        self._rand = rand
        self._clock = clock
        # The value in a tuple, or the text of the failure: kept once the objects are to be deleted, because they cannot
        # be read again.
        self._outcome: tuple[Out] | str | None = None
        self._cleaned_up = False
        self.handle = handle

    def __repr__(self) -> str:
        return f"<Job {self.inference_id} at {self.handle.endpoint_name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Job cannot be pickled or copied: pickle its handle, and pass that to Endpoint.job()")

    @property
    def inference_id(self) -> str | None:
        """The service's id of the request, if it sent one."""
        return self.handle.inference_id

    async def done(self) -> bool:
        """Check once whether there is an answer or a failure.

        Raises:
            ObjectStoreError: S3 failed, or refused for a definite reason, such as a wrong key.
        """
        if self._outcome is not None:
            return True
        with self._naming():
            store = await self._client._object_store()
            if self._is_new(await _modified_at(store, self.handle.output_location, _is_pending)):
                return True
            failure = self.handle.failure_location
            return failure is not None and self._is_new(await _modified_at(store, failure, _may_be_pending))

    async def result(self, timeout: float | None = None, *, cleanup: bool = False) -> Out:
        """Wait for the answer.

        Polls both locations with growing pauses, from 0.2 to 10 seconds.

        Args:
            timeout: seconds to wait, after which a last poll may take 5 more; 0 polls once. Defaults to waiting until
                15 minutes after ``handle.expires_at``. The inference continues after a timeout.
            cleanup: whether to delete the job's objects from S3 once there is a value or a failure; see `delete`. The
                job then keeps the value, so that this can be called again, also if deleting fails or is cancelled.
                Defaults to False.

        Raises:
            JobFailedError: the inference failed; ``reason`` is the text that the service wrote.
            JobTimeoutError: there is neither answer nor failure yet, or the service gave up silently, as it does for an
                endpoint without a failure path. Its ``__cause__`` is S3's last refusal, if there was one: without the
                permission ``s3:ListBucket``, S3 answers 403 for an object that does not exist yet.
            DeserializationError: the deserializer cannot read the answer.
            ResponseStreamingError: the answer exceeds the client's ``max_response_bytes``.
            ObjectStoreError: S3 failed, or refused for a definite reason, such as a wrong
                key or a missing permission to decrypt. If the clean-up after a failed inference fails, the
                JobFailedError has a note.
            ParamValidationError: ``timeout`` is not a number of seconds.
        """
        with self._naming():
            if timeout is not None and not is_seconds(timeout):
                fault = f"timeout must be a non-negative number of seconds, or None; got {timeout!r}"
                raise ParamValidationError([fault])
            try:
                return await self._result(timeout, cleanup)
            except BaseException as error:
                # Error trackers report locals, and these hold the answer.
                clear_locals(error)
                raise

    async def _result(self, timeout: float | None, cleanup: bool) -> Out:
        clock = asyncio.get_running_loop().time
        expires_at = self.handle.expires_at
        expiry = math.inf if expires_at is None else max(0.0, expires_at + _GRACE_SECONDS - self._clock())
        until = clock() + min(math.inf if timeout is None else timeout, expiry)
        pause = 0.0
        refusal: ObjectStoreError | None = None
        while True:
            if self._outcome is None:
                left = until + _LAST_LOOK_SECONDS - clock()
                try:
                    refusal = await within(left if left < math.inf else None, self._look())
                except OverdueError:
                    break
            if self._outcome is not None:
                return await self._ended(self._outcome, cleanup)
            pause = next_pause(pause)
            left = until - clock()
            if left <= 0:
                break
            # Between half of the pause and all of it; the last poll is at the timeout.
            await asyncio.sleep(min(pause * (1 + self._rand()) / 2, left))
        late_error = JobTimeoutError(
            f"the inference had no result within {timeout} s"
            if timeout is not None and timeout <= expiry
            else "the inference expired without a result"
        )
        try:
            raise late_error from refusal
        finally:
            del late_error, refusal

    async def delete(self) -> None:
        """Delete the job's objects from S3: the answer, the failure, and the request body that `submit` uploaded.

        Missing objects are skipped; an inference that is still running writes its answer later.

        Raises:
            ObjectStoreError: S3 failed.
        """
        with self._naming():
            store = await self._client._object_store()
            # The answer last: it stays if anything fails.
            for uri in (self.handle.uploaded_to, self.handle.failure_location, self.handle.output_location):
                if uri is not None:
                    await store.delete(uri)

    async def _look(self) -> ObjectStoreError | None:
        """Look for the outcome; return S3's refusal, if any."""
        store = await self._client._object_store()
        handle = self.handle
        get = partial(store.get, max_bytes=self._client._max_response_bytes)
        try:
            found, refusal = await _read(get, handle.output_location, _is_pending)
        except ResponseStreamingError:
            if self._is_new(await store.modified_at(handle.output_location)):
                raise
            found = refusal = None
        if found is not None and self._is_new(found.modified_at):
            self._outcome = (await self._deserialized(found.body, found.content_type),)
        elif handle.failure_location is not None:
            found, second_refusal = await _read(_beginning_in(store), handle.failure_location, _may_be_pending)
            if found is not None and self._is_new(found.modified_at):
                self._outcome = found.body.decode(errors="replace")[:_REASON_CHARACTERS]
            refusal = refusal or second_refusal
        return refusal

    def _is_new(self, modified_at: float | None) -> bool:
        """Return whether there is an object that is not an earlier request's with the same name."""
        submitted_at = self.handle.submitted_at
        return modified_at is not None and (submitted_at is None or modified_at >= submitted_at - _CLOCKS_APART_SECONDS)

    async def _ended(self, outcome: tuple[Out] | str, cleanup: bool) -> Out:
        """Return the value or raise the failure; keep either if the objects are to be deleted."""
        failure = None
        if isinstance(outcome, str):
            failure = JobFailedError(
                "the asynchronous inference failed", failure_location=self.handle.failure_location, reason=outcome
            )
        try:
            if cleanup:
                self._cleaned_up = True
                await self.delete()
            elif not self._cleaned_up:
                self._outcome = None
        except ObjectStoreError as error:
            if failure is None:
                raise
            failure.add_note(f"the job's objects could not be deleted: {error}")
        if failure is None:
            return cast("tuple[Out]", outcome)[0]
        try:
            raise failure
        finally:
            del failure

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Have errors name the call that the job comes from."""
        try:
            yield
        except AiosmrtError as error:
            name_call(error, INVOKE_ENDPOINT_ASYNC.name, self.handle.endpoint_name)
            raise


async def submit(
    client: StorageClient,
    params: dict[str, Any],
    body: bytes | None,
    input_location: str | None,
    upload_to: str | None,
    began: float,
) -> JobHandle:
    """Queue a request, with its body in the request or in S3.

    Args:
        client: makes the call, and gives access to S3.
        params: the operation's parameters except for the body.
        body: the request body; None with ``input_location``.
        input_location: the S3 URI of an existing body; None with ``body``.
        upload_to: where to upload a body that is too large for the request. If None, such a body is an error.
        began: when the call began, by the client's clock; its deadline counts from then.

    Raises:
        ParamValidationError: the body is too large, and ``upload_to`` is None.
        ObjectStoreError: the body could not be uploaded to S3.
    """
    uploaded_to = None
    if body is None:
        params = {**params, "InputLocation": input_location}
    elif len(body) <= INLINE_BYTES:
        params = {**params, "Body": body}
    elif upload_to is None:
        fault = f"the body is {len(body)} bytes; bodies over {INLINE_BYTES} need upload_to"
        raise ParamValidationError([fault])
    else:
        uploaded_to = f"{upload_to.rstrip('/')}/{uuid.uuid4()}"
        params = {**params, "InputLocation": uploaded_to}
    within = partial(client._before_deadline, began, INVOKE_ENDPOINT_ASYNC.name, params["EndpointName"])
    store = None if uploaded_to is None else await within(client._object_store())
    # Whether there may be an object to delete: not if S3 refused it or was never called.
    stored = False
    try:
        if store is not None and body is not None and uploaded_to is not None:
            try:
                await within(store.put(uploaded_to, body, params.get("ContentType")))
            except BaseException as error:
                refused = isinstance(error, ObjectStoreError) and error.status is not None
                stored = not refused and not isinstance(error, ConfigurationError)
                raise
            stored = True
        response = await client._request_since(began, INVOKE_ENDPOINT_ASYNC.name, params)
        output_location = _output_location(response)
    except BaseException as error:
        if stored and store is not None and uploaded_to is not None:
            await _delete_upload(store, uploaded_to, error)
        raise
    submitted_at = parse_http_date(response["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
    seconds: int = params.get("RequestTTLSeconds", REQUEST_TTL_SECONDS)
    seconds += params.get("InvocationTimeoutSeconds", INVOCATION_TIMEOUT_SECONDS)
    return JobHandle(
        params["EndpointName"],
        response.get("InferenceId"),
        output_location,
        response.get("FailureLocation"),
        uploaded_to,
        submitted_at,
        None if submitted_at is None else submitted_at + seconds,
    )


def _output_location(response: dict[str, Any]) -> str:
    location = response.get("OutputLocation")
    if not isinstance(location, str):
        raise DeserializationError("the service did not name the location of the answer")
    return location


def check_upload_to(upload_to: str) -> None:
    """Check that bodies can be uploaded under an S3 URI.

    Raises:
        ParamValidationError: ``upload_to`` is not a valid S3 URI.

    >>> check_upload_to("s3://bucket/prefix")
    """
    if not isinstance(upload_to, str):
        raise ParamValidationError([f"upload_to must be an S3 URI; got {type(upload_to)}"])
    folder = upload_to.rstrip("/")
    if split_s3_uri(folder) is None:
        raise ParamValidationError([f"{S3_URI_FORM}; got {upload_to!r:.200}"])
    parse_s3_uri(f"{folder}/{uuid.UUID(int=0)}")


def check_handle(handle: JobHandle, endpoint_name: str) -> None:
    """Check that a handle belongs to an endpoint.

    Raises:
        ParamValidationError: it does not.

    >>> check_handle(JobHandle("churn", None, "s3://bucket/out/1.out"), "churn")
    """
    if not isinstance(handle, JobHandle):
        raise ParamValidationError([f"handle must be a JobHandle; got {type(handle)}"])
    if handle.endpoint_name != endpoint_name:
        raise ParamValidationError(
            [f"handle must be a job of endpoint {endpoint_name}; got one of {handle.endpoint_name!r:.80}"]
        )
    for uri in (handle.output_location, handle.failure_location, handle.uploaded_to):
        if uri is not None:
            parse_s3_uri(uri)


async def _delete_upload(store: ObjectStore, uri: str, error: BaseException) -> None:
    """Delete a request body that no job refers to; if that fails, add a note to the error."""
    try:
        async with asyncio.timeout(_DELETE_SECONDS):
            await store.delete(uri)
    except (AiosmrtError, TimeoutError) as failure:
        error.add_note(f"the request body may remain at {uri}: {failure or type(failure).__name__}")


def _is_pending(error: ObjectStoreError, message: str) -> bool:
    """Return whether a refusal to read an object is the one for an object that does not exist yet.

    Args:
        error: the refusal.
        message: S3's message.
    """
    if error.status != _FORBIDDEN or error.code not in (_ACCESS_DENIED, str(_FORBIDDEN)):
        return False
    denied = _DENIED_ACTION.search(message)
    return denied[1].lower() == _LIST if denied is not None else _ENCRYPTION.search(message) is None


def _may_be_pending(error: ObjectStoreError, message: str) -> bool:
    """Return whether an object that cannot be read may not exist yet.

    For failures, which the caller need not be allowed to read: a successful inference does not write one.
    """
    denied = _DENIED_ACTION.search(message)
    return _is_pending(error, message) or (denied is not None and denied[1].lower() == _READ)


_Pending: TypeAlias = Callable[[ObjectStoreError, str], bool]
_Get: TypeAlias = Callable[[str], Awaitable[StoredObject | None]]


async def _modified_at(store: ObjectStore, uri: str, pending: _Pending) -> float | None:
    try:
        modified_at = await store.modified_at(uri)
    except ObjectStoreError as error:
        if error.code not in _STATUSES:
            raise
        modified_at = None
    if modified_at is None:
        # A response to HEAD lacks the reason: the bucket may be missing, or the key wrong.
        found, _ = await _read(_beginning_in(store), uri, pending)
        modified_at = None if found is None else found.modified_at
    return modified_at


def _beginning_in(store: ObjectStore) -> _Get:
    """Read of an object as much as a failure's reason may take."""
    return partial(store.get, max_bytes=4 * _REASON_CHARACTERS, cut=True)


async def _read(get: _Get, uri: str, pending: _Pending) -> tuple[StoredObject | None, ObjectStoreError | None]:
    """Return an object, or S3's refusal if the object may not exist yet."""
    try:
        return await get(uri), None
    except ObjectStoreError as error:
        if pending(error, str(error.args[0]).partition(f" of {uri}: ")[2]):
            return None, error
        raise
