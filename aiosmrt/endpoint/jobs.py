"""Asynchronous inference: a request is queued, its answer appears in S3.

The service says with its 202 where the answer will be, and where the failure will be instead. Neither is announced
otherwise (but for SNS, which is another service), so whoever waits looks at both places, less and less often.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar, cast

from aiosmrt._aws.s3 import parse_s3_uri
from aiosmrt._policy.clockskew import parse_http_date
from aiosmrt._policy.polling import next_pause
from aiosmrt._wire.operations import REQUEST_TTL_SECONDS
from aiosmrt.config import is_seconds
from aiosmrt.errors import (
    AiosmrtError,
    ConfigurationError,
    DeserializationError,
    JobFailedError,
    JobTimeoutError,
    ObjectStoreError,
    ParamValidationError,
)

if TYPE_CHECKING:
    from aiosmrt._aws.s3 import ObjectStore, StoredObject
    from aiosmrt.client import Client

__all__ = ["INLINE_BYTES", "Job", "JobHandle", "check_handle", "check_place", "submit"]

Out = TypeVar("Out")

_OPERATION: Final = "InvokeEndpointAsync"

# BodyBlob of InvokeEndpointAsync in the service model.
INLINE_BYTES: Final = 128_000

# As much of a failure as an error keeps, in characters.
_REASON_CHARACTERS: Final = 1024

# How much longer than its time the look may take that is under way then.
_LAST_LOOK_SECONDS: Final = 5.0

# How long a call that failed or was cancelled may take to delete the request body that it has put into S3.
_TAKE_BACK_SECONDS: Final = 5.0

# How far S3's clock, which counts whole seconds, may be behind that of the service.
_CLOCKS_APART_SECONDS: Final = 5.0

# InvocationTimeoutSeconds where a request does not name it (InvokeEndpointAsync in the API reference), and how much
# later than that and RequestTTLSeconds an answer may appear, for this machine's clock may be wrong.
_INVOCATION_TIMEOUT_SECONDS: Final = 900
_GRACE_SECONDS: Final = 900.0

# S3 answers 403 in place of 404 to those who may not list a bucket (GetObject in its API reference).
_MAYBE_MISSING: Final = 403


class JobHandle(NamedTuple):
    """What it takes to find a job again, here or in another process; pickles, and holds nothing secret.

    Args:
        endpoint_name: the endpoint.
        inference_id: the service's id of the request; None when it gave none.
        output_location: the S3 URI at which the answer will be.
        failure_location: the S3 URI at which a failure will be written; None when the endpoint has no such place.
        uploaded_to: the S3 URI of the request body, where `Endpoint.submit` put it there; None where it did not.
        submitted_at: when the service took the request, in epoch seconds by its clock: what is older is not its answer.
            None when unknown.
        expires_at: when the service has either answered or given up, in epoch seconds; None when unknown.
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

    Waiting for it may be given up and taken up again at any time; the inference goes on.

    Args:
        client: gives access to S3.
        handle: which job.
        deserialized: makes the answer's value of its bytes and its media type.
        rand: a random number in [0, 1), which spreads the looks of many jobs.
        clock: the time in epoch seconds, to compare the job's expiry with.
    """

    def __init__(
        self,
        client: Client,
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
        # The value in a tuple, or what was written about the failure: kept from when the objects are to be deleted, as
        # nobody could read them again.
        self._outcome: tuple[Out] | str | None = None
        self._cleaned_up = False
        self.handle = handle

    def __repr__(self) -> str:
        return f"<Job {self.inference_id} at {self.handle.endpoint_name}>"

    @property
    def inference_id(self) -> str | None:
        """The service's id of the request; None when it gave none."""
        return self.handle.inference_id

    async def done(self) -> bool:
        """Look once whether there is an answer or a failure.

        Raises:
            ObjectStoreError: S3 failed.
        """
        if self._outcome is not None:
            return True
        store = await self._client._object_store()
        for uri in (self.handle.output_location, self.handle.failure_location):
            if uri is not None and self._is_new(await _modified_at(store, uri)):
                return True
        return False

    async def result(self, timeout: float | None = None, *, cleanup: bool = False) -> Out:
        """Wait for the answer.

        Looks at both places after growing pauses, from 0.2 to 10 seconds.

        Args:
            timeout: seconds to wait, after which one last look may take 5 more; 0 for one look, None for as long as
                something can come: until ``handle.expires_at`` and 15 minutes more. The inference goes on after it.
            cleanup: whether the objects of the job are deleted from S3 once there is a value or a failure; see
                `delete`. From then on this job keeps the value: when deleting fails or is cancelled, or when the value
                is asked for once more, this may be called again.

        Raises:
            JobFailedError: the inference failed; ``reason`` is what the service wrote about it.
            JobTimeoutError: there is neither answer nor failure yet, or the service has given up without saying so: an
                endpoint without a path for failures never does. Its ``__cause__`` is S3's last refusal where there was
                one: without the permission ``s3:ListBucket``, S3 refuses to say that an object is not there yet, so
                that a missing permission to read it looks the same.
            DeserializationError: the deserializer cannot read the answer.
            ObjectStoreError: S3 failed. A failed clean-up of a failed inference is a note of the JobFailedError.
            ParamValidationError: ``timeout`` is no number of seconds.
        """
        if timeout is not None and not is_seconds(timeout):
            raise ParamValidationError([f"timeout must be a number of seconds from 0, or None; got {timeout!r}"])
        clock = asyncio.get_running_loop().time
        expires_at = self.handle.expires_at
        expiry = math.inf if expires_at is None else max(0.0, expires_at + _GRACE_SECONDS - self._clock())
        until = clock() + min(math.inf if timeout is None else timeout, expiry)
        pause = 0.0
        refusal: ObjectStoreError | None = None
        while True:
            if self._outcome is None:
                timer = asyncio.timeout_at(until + _LAST_LOOK_SECONDS if until < math.inf else None)
                try:
                    async with timer:
                        refusal = await self._look()
                except TimeoutError:
                    if not timer.expired():
                        raise
                    break
            if self._outcome is not None:
                return await self._ended(self._outcome, cleanup)
            pause = next_pause(pause)
            left = until - clock()
            if left <= 0:
                break
            # Between half of it and all of it, and one last look when the time is up.
            await asyncio.sleep(min(pause * (1 + self._rand()) / 2, left))
        late_error = JobTimeoutError(
            f"The inference had no result within {timeout} s"
            if timeout is not None and timeout <= expiry
            else "The inference had no result in the time that the service gives it, and will have none"
        )
        try:
            raise self._placed(late_error) from refusal
        finally:
            del late_error, refusal

    async def delete(self) -> None:
        """Delete the job's objects from S3: the answer, the failure, and the request body that `submit` put there.

        What is not there, or not yet, is passed over; an inference that is still going on writes its answer later.

        Raises:
            ObjectStoreError: S3 failed.
        """
        store = await self._client._object_store()
        # The answer last: as long as anything went wrong, it is there.
        for uri in (self.handle.uploaded_to, self.handle.failure_location, self.handle.output_location):
            if uri is not None:
                await store.delete(uri)

    async def _look(self) -> ObjectStoreError | None:
        """Look for the outcome; why S3 would not say."""
        store = await self._client._object_store()
        handle = self.handle
        found, refusal = await _read(store, handle.output_location)
        if found is not None and self._is_new(found.modified_at):
            try:
                self._outcome = (await self._deserialized(found.body, found.content_type),)
            except AiosmrtError as error:
                self._placed(error)
                raise
        elif handle.failure_location is not None:
            found, second_refusal = await _read(store, handle.failure_location)
            if found is not None and self._is_new(found.modified_at):
                self._outcome = found.body.decode(errors="replace")[:_REASON_CHARACTERS]
            refusal = refusal or second_refusal
        return refusal

    def _is_new(self, modified_at: float | None) -> bool:
        """Whether there is an object, and not one of an earlier request with the same name."""
        submitted_at = self.handle.submitted_at
        return modified_at is not None and (submitted_at is None or modified_at >= submitted_at - _CLOCKS_APART_SECONDS)

    async def _ended(self, outcome: tuple[Out] | str, cleanup: bool) -> Out:
        """Give the value or raise the failure, which the job keeps where its objects are to be deleted."""
        failure = None
        if isinstance(outcome, str):
            failure = JobFailedError(
                "The asynchronous inference failed", failure_location=self.handle.failure_location, reason=outcome
            )
        try:
            if cleanup:
                self._cleaned_up = True
                await self.delete()
            elif not self._cleaned_up:
                self._outcome = None
        except ObjectStoreError as error:
            if failure is None:
                self._placed(error)
                raise
            failure.add_note(f"its objects could not be deleted: {error}")
        if failure is None:
            return cast("tuple[Out]", outcome)[0]
        try:
            raise self._placed(failure)
        finally:
            del failure

    def _placed(self, error: AiosmrtError) -> AiosmrtError:
        error.operation = _OPERATION
        error.endpoint_name = self.handle.endpoint_name
        return error


async def submit(
    client: Client, params: dict[str, Any], body: bytes | None, input_location: str | None, upload_to: str | None
) -> JobHandle:
    """Queue a request, with its body where it may be.

    Args:
        client: makes the call, and gives access to S3.
        params: the operation's parameters but for the body.
        body: the request body; None with ``input_location``.
        input_location: the S3 URI of a body that is there already; None with ``body``.
        upload_to: where a body goes that is too large for the request; None for nowhere.

    Raises:
        ParamValidationError: the body is too large, and there is nowhere to put it.
        ObjectStoreError: the body could not be put into S3.
    """
    uploaded_to = None
    if body is None:
        params = {**params, "InputLocation": input_location}
    elif len(body) <= INLINE_BYTES:
        params = {**params, "Body": body}
    elif upload_to is None:
        fault = f"the body has {len(body)} bytes, and {INLINE_BYTES} travel with a request: say upload_to"
        raise ParamValidationError([fault])
    else:
        uploaded_to = f"{upload_to.rstrip('/')}/{uuid.uuid4()}"
        params = {**params, "InputLocation": uploaded_to}
    store = None if uploaded_to is None else await client._object_store()
    # Whether there may be something to take back: not where S3 has refused it, or was never asked.
    stored = False
    try:
        if store is not None and body is not None and uploaded_to is not None:
            try:
                await store.put(uploaded_to, body, params.get("ContentType"))
            except BaseException as error:
                refused = isinstance(error, ObjectStoreError) and error.status is not None
                stored = not refused and not isinstance(error, ConfigurationError)
                raise
            stored = True
        response = await client.make_request(_OPERATION, params)
        output_location = _output_location(response)
    except BaseException as error:
        if stored and store is not None and uploaded_to is not None:
            await _take_back(store, uploaded_to, error)
        raise
    submitted_at = parse_http_date(response["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
    seconds: int = params.get("RequestTTLSeconds", REQUEST_TTL_SECONDS)
    seconds += params.get("InvocationTimeoutSeconds", _INVOCATION_TIMEOUT_SECONDS)
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
        raise DeserializationError("the service did not say where the answer will be")
    return location


def check_place(upload_to: str) -> None:
    """Look whether bodies can be put under an S3 URI.

    Raises:
        ParamValidationError: it is none.

    >>> check_place("s3://bucket/prefix")
    """
    if not isinstance(upload_to, str):
        raise ParamValidationError([f"upload_to must be an S3 URI; got {type(upload_to)}"])
    parse_s3_uri(f"{upload_to.rstrip('/')}/{uuid.UUID(int=0)}")


def check_handle(handle: JobHandle, endpoint_name: str) -> None:
    """Look whether a handle is one of an endpoint's.

    Raises:
        ParamValidationError: it is not.

    >>> check_handle(JobHandle("churn", None, "s3://bucket/out/1.out"), "churn")
    """
    if not isinstance(handle, JobHandle):
        raise ParamValidationError([f"a job's handle must be a JobHandle; got {type(handle)}"])
    if handle.endpoint_name != endpoint_name:
        raise ParamValidationError([f"the job is one of endpoint {handle.endpoint_name!r:.80}, not of {endpoint_name}"])
    for uri in (handle.output_location, handle.failure_location, handle.uploaded_to):
        if uri is not None:
            parse_s3_uri(uri)


async def _take_back(store: ObjectStore, uri: str, error: BaseException) -> None:
    """Delete a request body of which nobody knows any more; when that fails, the error says so."""
    try:
        async with asyncio.timeout(_TAKE_BACK_SECONDS):
            await store.delete(uri)
    except (AiosmrtError, TimeoutError) as failure:
        error.add_note(f"the request body may have been left at {uri}: {failure or type(failure).__name__}")


async def _modified_at(store: ObjectStore, uri: str) -> float | None:
    try:
        return await store.modified_at(uri)
    except ObjectStoreError as error:
        if error.status == _MAYBE_MISSING:
            return None
        raise


async def _read(store: ObjectStore, uri: str) -> tuple[StoredObject | None, ObjectStoreError | None]:
    try:
        return await store.get(uri), None
    except ObjectStoreError as error:
        if error.status == _MAYBE_MISSING:
            return None, error
        raise
